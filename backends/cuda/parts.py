"""What a kernel is made of, and what all who write one need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rnnc.ir import Expr

from ..clike.nest import length, size
from ..clike.stages import Array, Product, Repeat, Stage, Stages

KINDS = {"real": "real", "complex": "cplx", "bool": "unsigned char"}


@dataclass(frozen=True)
class Slot:
    """An array of a block: for each of its sequences, and for each token of a ring."""

    name: str
    dims: tuple[str, ...]
    kind: str
    ring: int
    space: int | None
    """The space whose threads each touch only their own entries: it may lie in registers."""


@dataclass(frozen=True)
class Matrix:
    """Learned numbers of products: which fixed value, in which space the products are, and the dims of both sides."""

    place: int
    space: int
    outs: tuple[str, ...]
    ins: tuple[str, ...]
    whole: bool
    """Whether a block needs one matrix only."""


@dataclass(frozen=True)
class Kernel:
    text: str
    free: str | None
    spaces: tuple[tuple[str, ...], ...]
    slots: tuple[Slot, ...]
    matrices: tuple[Matrix, ...]
    extra: tuple[Array, ...]
    """Results besides the cotangents of states, in the order of the kernel's arguments."""
    summed: Mapping[Array, Array]
    """Results that are sums of others over all tokens, which no kernel makes."""
    tiled: bool
    """Whether sequences go in tiles, for products; else each block has one."""
    numbers: frozenset[int]
    """The fixed values that are read number by number."""
    registers: tuple[int, ...]
    """For each space, how many numbers of an entry a thread holds from token to token."""


def flat(names: Mapping[str, str], dims: Sequence[str]) -> str:
    """The place of an entry, row-major."""
    text = ""
    for d in dims:
        text = f"({text}) * {size(d)} + {names[d]}" if text else names[d]
    return text or "0"


def indented(lines: Iterable[str]) -> list[str]:
    return [line if line.startswith(("#if", "#e")) else f"  {line}" for line in lines]


def with_inner(stages: Stages) -> list[Stages]:
    """The stages, and those of small steps."""
    inner = [x for s in stages.order if isinstance(s, Repeat) for x in (s.steps, s.back) if x is not None]
    return [stages, *inner]


def grouped(order: Sequence[Stage]) -> list[list[Stage]]:
    """Stages, products of one operand into as many numbers together."""
    out: list[list[Stage]] = []
    for stage in order:
        last = out[-1][0] if out else None
        together = (
            isinstance(stage, Product)
            and isinstance(last, Product)
            and (last.arg, last.kept, last.outs, last.ins) == (stage.arg, stage.kept, stage.outs, stage.ins)
        )
        if together:
            out[-1].append(stage)
        else:
            out.append([stage])
    return out


def below(node: Expr, nodes: Sequence[Expr]) -> tuple[Expr, ...]:
    """Those of a nest's nodes that a node is made of."""
    wanted, stack, own = set[Expr](), [node], set(nodes)
    while stack:
        n = stack.pop()
        if n in own and n not in wanted:
            wanted.add(n)
            stack.extend(n.children)
    return tuple(n for n in nodes if n in wanted)


def stride(p: Product, role: str) -> str:
    """How far apart the entries of a stretch of the matrix's axes lie."""
    last = max((i for i, (r, _) in enumerate(p.axes) if r == role), default=len(p.axes) - 1)
    return f"({length([d for _, d in p.axes[last + 1 :]])})"
