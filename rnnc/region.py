"""Plan → Regions: what stands between learned maps and recurrences, as kernels of its own.

Goals: of what PyTorch would compute for each token by itself, find the connected parts that one kernel can hold, and
say what each reads and writes. Non-goals: text; what the kernels of recurrences make themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from rnnc import entrywise
from rnnc.check.sizes import size_at_defaults
from rnnc.closure import LowRank
from rnnc.fuse import elementwise, fuse, paired, ranked
from rnnc.ir import Apply, Conv, Expr, Linear, Normalize, Reduce, Ref
from rnnc.lower import System
from rnnc.plan import Loop, Plan, Pointwise, Scan, is_number, needs, per_token

LARGEST = 4096
"""Entries of a token that a program may have all of."""
WIDEST = 8
"""Tokens that a convolution in a kernel reads: each is one load more."""
FEWEST = 3
"""Operations of PyTorch whose place a kernel must take."""

Use = Literal["wide", "low", "operand", "out"]
"""What becomes of a value: a number that more is computed from, the operand of a learned map, that of products in a
recurrence's kernels, an output. All but the first are rounded in any case, and may be where they are written."""
Place = Expr | int
"""A value, or the step of a plan that has this number."""


@dataclass(frozen=True)
class Region:
    """Values of each token, computed together from what they are made of.

    A program has some tokens, some entries of the dims that are `spread`, and all entries of the dims of each of
    `groups`, over which it can sum. `inputs` differ from token to token, `fixed` do not; both are there before.
    `shared` are the inputs that something else reads too, `uses` what becomes of each of the `results`, and `saved` the
    operations of PyTorch that it takes the place of.
    """

    spread: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    inputs: tuple[Expr, ...]
    fixed: tuple[Expr, ...]
    results: tuple[Expr, ...]
    uses: tuple[Use, ...]
    shared: frozenset[Expr]
    saved: int

    @property
    def dims(self) -> tuple[str, ...]:
        return (*self.spread, *(d for g in self.groups for d in g))

    @cached_property
    def convs(self) -> tuple[Conv, ...]:
        """The convolutions that it computes, each from what it reads of several tokens."""
        return tuple(n for n in self.inside if isinstance(n, Conv))

    @property
    def sources(self) -> tuple[Expr, ...]:
        return (*self.inputs, *self.fixed)

    @cached_property
    def inside(self) -> tuple[Expr, ...]:
        """What it computes, operands first."""
        return tuple(n for n in _between(self.results, self.sources) if n not in self.sources and not is_number(n))

    @property
    def told(self) -> str:
        """What a program has of a token, in words."""
        whole = [d for g in self.groups for d in g]
        parts = [f"all of {' and '.join(whole)}"] if whole else []
        return " and ".join([*parts, *([f"some of {' and '.join(self.spread)}"] if self.spread else [])])

    @cached_property
    def lumps(self) -> tuple[tuple[int, ...], ...]:
        """The groups, by number, that one value has all of."""
        found = {tuple(i for i, g in enumerate(self.groups) if set(n.dims) & set(g)) for n in self.inside}
        found |= {tuple(i for i, g in enumerate(self.groups) if set(n.dims) & set(g)) for n in self.sources}
        return tuple(sorted(x for x in found if x and not any(set(x) < set(y) for y in found)))


@dataclass(frozen=True)
class Between:
    """The regions of a plan, and what kernels have operations for, but PyTorch computes: a program cannot have all that
    it sums over, at the sizes that are declared."""

    regions: tuple[Region, ...] = ()
    left: tuple[Expr, ...] = ()


def between(plan: Plan) -> Between:
    """What stands between the kernels of a plan; nothing where no recurrence has one."""
    found = _Regions(plan)
    return Between(found.regions(), tuple(found.left)) if found.by_kernels else Between()


def regions(plan: Plan) -> tuple[Region, ...]:
    return between(plan).regions


def _between(roots: Iterable[Expr], sources: Iterable[Expr]) -> list[Expr]:
    """The nodes below `roots` down to `sources`, operands first."""
    out: list[Expr] = []
    seen: set[Expr] = set()
    stop = set(sources)
    stack = [(r, False) for r in reversed(list(roots))]
    while stack:
        node, ready = stack.pop()
        if ready:
            out.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            if node not in stop:
                stack.extend((c, False) for c in reversed(node.children))
    return out


class _Regions:
    def __init__(self, plan: Plan) -> None:
        self.plan, self.system = plan, plan.system
        self.by_kernels = bool(fuse(plan)) or any(paired(s) or ranked(s) for s in plan.steps)
        self.sizes = _sizes(plan.system)
        self.asked = self._asked()
        self.made = self._made()
        self.nodes = self._nodes()
        self.candidates = {n for n in self.nodes if n not in self.made and self.fits(n)}
        self.readers = self._readers()
        self.home: dict[Expr, frozenset[Expr]] = {}
        self.left: list[Expr] = []

    # --- what is asked for, and where it comes from ---

    def _asked(self) -> list[list[tuple[Expr, Use]]]:
        """What each step reads, and at last what the outputs are."""
        kernels = {id(step): k for k in fuse(self.plan) for step in k.steps}
        beside: dict[str, list[Expr]] = {}
        for step in self.plan.steps:
            if isinstance(step, Scan) and step.chunks and step.chunks.beside:
                beside.setdefault(step.chunks.beside, []).extend(v for _, v in step.chunks.writes)
        asked: list[list[tuple[Expr, Use]]] = []
        for step in self.plan.steps:
            kernel = kernels.get(id(step))
            found: list[tuple[Expr, Use]] = []
            if kernel is not None:
                found += _as("wide", (*kernel.inputs, *kernel.fixed) if step is kernel.steps[0] else ())
            elif isinstance(step, Scan) and step.chunks and step.chunks.beside:
                pass
            elif isinstance(step, Scan) and step.chunks and paired(step):
                operands = [r.query for r in step.chunks.reads] + [e for pair in step.chunks.writes for e in pair]
                operands += beside.get(step.stream.name, [])
                own = entrywise.operands(step)
                for e, use in (*_as("wide", [step.closure.a]), *_as("operand", operands)):
                    made = next((m for m in own.values() if m.value is e), None)
                    read = [e] if made is None else [x for x in (made.read, made.offset) if x is not None]
                    found += _as(use if made is None else "wide", read)
            elif isinstance(step, Loop) and isinstance(step.closure, LowRank) and ranked(step):
                factors = {e for row in step.closure.map.factors for e in row}
                found += _as("wide", (e for e in needs(step) if e in factors))
                found += _as("operand", (e for e in needs(step) if e not in factors))
            else:
                found += _as("wide", needs(step))
            asked.append(found)
        return [*asked, _as("out", (e for _, e in self.system.outputs))]

    def _made(self) -> dict[Expr, int]:
        """What is not computed from its operands, and the step that it comes out of."""
        made: dict[Expr, int] = {}
        kernels = {id(k.steps[0]): k for k in fuse(self.plan)}
        hosts: dict[str, int] = {}
        for i, step in enumerate(self.plan.steps):
            if (kernel := kernels.get(id(step))) is not None:
                made.update((r, i) for r in kernel.results)
            elif isinstance(step, Scan) and step.chunks:
                hosts[step.stream.name] = i
                at = i if step.chunks.beside is None else hosts[step.chunks.beside]
                made.update((r.node, at) for r in step.chunks.reads)
            elif isinstance(step, Loop) and step.chunks:
                made.update((r.read.node, i) for r in step.chunks.reads)
        return made

    def before(self, place: Place) -> tuple[Place, ...]:
        """What must be there before a value is, or a step is taken: the steps are taken in order."""
        if isinstance(place, int):
            return (*(e for e, _ in self.asked[place]), *([place - 1] if place else []))
        if place in self.made:
            return (self.made[place],)
        if isinstance(place, Ref) and place.role == "state":
            for i, step in enumerate(self.plan.steps):
                if place.name in step.closure.group.states:
                    late = place.lag and isinstance(step, Pointwise)
                    return (self.system.stream(place.name).expr,) if late else (i,)
        return place.children

    def _nodes(self) -> list[Expr]:
        """All that PyTorch would compute, operands first."""
        out: list[Expr] = []
        seen: set[Place] = set()
        stack: list[tuple[Place, bool]] = [(len(self.plan.steps), False)]
        while stack:
            place, ready = stack.pop()
            if ready:
                if not isinstance(place, int):
                    out.append(place)
            elif place not in seen:
                seen.add(place)
                stack.append((place, True))
                stack.extend((p, False) for p in reversed(self.before(place)))
        return out

    def _readers(self) -> dict[Expr, list[tuple[Place, Use]]]:
        """What reads each value, and as what. Learned maps that are one product are one reader."""
        found: dict[Expr, dict[tuple[Place, Use], None]] = {}
        for node in self.nodes:
            if node in self.made or is_number(node):
                continue
            joined = self.plan.projections.get(node)
            reader = joined.maps[0] if joined else node
            for c in node.children:
                found.setdefault(c, {})[reader, "low" if isinstance(node, Linear) else "wide"] = None
        readers: dict[Expr, list[tuple[Place, Use]]] = {n: list(r) for n, r in found.items()}
        for i, asked in enumerate(self.asked):
            for e, use in asked:
                readers.setdefault(e, []).append((i, use))
        for node in self.nodes:
            if isinstance(node, Ref) and node.role == "state" and node.lag:
                for e in self.before(node):
                    if not isinstance(e, int):
                        readers.setdefault(e, []).append((node, "wide"))
        return readers

    # --- what fits ---

    def fits(self, node: Expr) -> bool:
        """Whether a kernel has the operation, on real numbers. A product larger than what differs from token to
        token in it is part of a sum of products."""
        if not per_token(node) or is_number(node) or not _all_real(node):
            return False
        match node:
            case Apply():
                return elementwise(node) and any(per_token(c) and set(c.dims) == set(node.dims) for c in node.args)
            case Reduce(op=op, arg=arg, over=over):
                return op in ("sum", "mean", "max", "min") and set(over) <= set(arg.dims)
            case Normalize():
                return True
            case Conv(arg=arg, width=width):
                return per_token(arg) and node.dims == arg.dims and 1 < width <= WIDEST
            case _:
                return False

    def border(self, inside: Iterable[Expr]) -> tuple[list[Expr], list[Expr]]:
        """What a kernel with these values reads for each token, and what that all tokens share."""
        inside = set(inside)
        tokens: dict[Expr, None] = {}
        fixed: dict[Expr, None] = {}
        dims = {d for n in inside for d in n.dims}
        stack = [c for n in self.nodes if n in inside for c in n.children if c not in inside]
        for node in stack:
            if is_number(node):
                continue
            if per_token(node):
                tokens[node] = None
                continue
            below, seen = [node], set[Expr]()
            while below:
                n = below.pop()
                if n in seen or is_number(n):
                    continue
                seen.add(n)
                if elementwise(n) and _all_real(n) and set(n.dims) <= dims:
                    below.extend(reversed(n.children))
                else:
                    fixed[n] = None
        return list(tokens), list(fixed)

    def shape(self, inside: Iterable[Expr]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]] | None:
        """The dims that are spread, and the groups that a program has all of; None where it cannot."""
        inside = set(inside)
        convolved = [n.arg for n in inside if isinstance(n, Conv)]
        for arg in convolved:
            # Its gradient is summed over several tokens, and so apart from any other.
            own = sum(arg in n.children for n in inside)
            if arg in inside or own > 1:
                return None
        tokens, fixed = self.border(inside)
        order = self.system.graph.order
        nodes = [*inside, *tokens]
        dims = sorted({d for n in nodes for d in n.dims}, key=order.__getitem__)
        summed = {d for n in inside if isinstance(n, Reduce | Normalize) for d in n.over}
        spread = tuple(d for d in dims if d not in summed and all(d in n.dims for n in nodes))
        if any(set(n.dims) - set(dims) for n in fixed):
            return None
        groups = self.grouped([d for d in dims if d not in spread], [*nodes, *fixed])
        if len(groups) > 2:
            return None
        sizes = [_power_of_two(math.prod(self.sizes[d] for d in g)) for g in groups]
        for n in (*nodes, *fixed):
            if math.prod(s for g, s in zip(groups, sizes, strict=True) if set(g) & set(n.dims)) > LARGEST:
                return None
        return spread, groups

    def grouped(self, dims: Sequence[str], nodes: Sequence[Expr]) -> tuple[tuple[str, ...], ...]:
        """Dims that always come together, one right after the other, are one axis."""
        groups: list[tuple[str, ...]] = []
        for d in dims:
            if groups and all(_together(n, groups[-1], d) for n in nodes):
                groups[-1] = (*groups[-1], d)
            else:
                groups.append((d,))
        return tuple(groups)

    # --- which together ---

    def regions(self) -> tuple[Region, ...]:
        found: list[frozenset[Expr]] = []
        source: dict[Expr, list[Expr]] = {}
        for node in self.nodes:
            if node not in self.candidates:
                continue
            near = [c for c in node.children if c in self.candidates]
            near += [r for c in node.children if c not in self.candidates for r in source.get(c, ())]
            for c in node.children:
                if c not in self.candidates and per_token(c):
                    source.setdefault(c, []).append(node)
            own = frozenset([node])
            if self.shape(own) is None:
                self.left.append(node)
                continue
            homes = list(dict.fromkeys(self.home[c] for c in near if c in self.home))
            whole = own.union(*homes)
            if homes and self.possible(whole):
                own = whole
            else:
                for home in homes:
                    if self.possible(own | home):
                        own |= home
            self.home.update(dict.fromkeys(own, own))
        found = list(dict.fromkeys(self.home[n] for n in self.nodes if n in self.home))
        made = [self.region(x) for x in found]
        return tuple(r for r in made if r is not None)

    def possible(self, inside: frozenset[Expr]) -> bool:
        """Whether a kernel can hold these values, and nothing that it reads waits for it."""
        if self.shape(inside) is None:
            return False
        stack = [p for n in inside for p in self.before(n) if p not in inside]
        seen: set[Place] = set()
        while stack:
            place = stack.pop()
            if place in seen:
                continue
            seen.add(place)
            if place in inside:
                return False
            stack.extend(self.before(place))
            if not isinstance(place, int) and place in self.home and not self.home[place] <= inside:
                # What another region waits for, whatever of it is wanted.
                stack.extend(p for n in self.home[place] for p in self.before(n) if p not in self.home[place])
        return True

    def region(self, inside: frozenset[Expr]) -> Region | None:
        """The region, if it is worth a kernel."""
        shape = self.shape(inside)
        assert shape is not None
        results: list[Expr] = []
        uses: list[Use] = []
        for node in self.nodes:
            if node not in inside:
                continue
            if read := self.outside(node, inside):
                results.append(node)
                uses.append(read[0][1] if len(read) == 1 and node.kind == "real" else "wide")
        tokens, fixed = self.border(inside)
        shared = frozenset(n for n in tokens if self.outside(n, inside))
        saved = sum(map(_operations, inside)) + sum(use in ("low", "operand") for use in uses)
        saved += sum(_narrow(n) and n not in shared for n in tokens)
        if saved < FEWEST:
            return None
        return Region(*shape, tuple(tokens), tuple(fixed), tuple(results), tuple(uses), shared, saved)

    def outside(self, node: Expr, inside: frozenset[Expr]) -> list[tuple[Place, Use]]:
        """What reads a value, but for a region."""
        return [(p, use) for p, use in self.readers.get(node, ()) if isinstance(p, int) or p not in inside]


def _all_real(node: Expr) -> bool:
    return not any(x.kind == "complex" for x in (node, *node.children))


def _as(use: Use, nodes: Iterable[Expr]) -> list[tuple[Expr, Use]]:
    return [(n, use) for n in nodes]


def _together(node: Expr, group: tuple[str, ...], dim: str) -> bool:
    """Whether a node treats a dim as it does those of a group, and has it right behind them if at all."""
    if isinstance(node, Reduce | Normalize) and (group[-1] in node.over) != (dim in node.over):
        return False
    if group[-1] not in node.dims or dim not in node.dims:
        return group[-1] not in node.dims and dim not in node.dims
    return node.dims.index(dim) == node.dims.index(group[-1]) + 1


def _operations(node: Expr) -> int:
    """How many operations of PyTorch compute it."""
    if isinstance(node, Conv):
        return 3 * node.width - 2
    if isinstance(node, Normalize):
        return {"softmax": 1, "layernorm": 7}.get(node.op, 5)
    return 0 if isinstance(node, Apply) and node.op in ("like", "stop_gradient", "real", "conj") else 1


def _narrow(node: Expr) -> bool:
    """Whether PyTorch would first make float32 of it, where it has 16 bits."""
    return (isinstance(node, Linear) or (isinstance(node, Ref) and node.role == "input")) and node.kind == "real"


def _sizes(system: System) -> dict[str, float]:
    """Sizes as declared."""
    known: dict[str, int | None] = {}
    for d in system.cell.dims:
        size = size_at_defaults(d.size, known) if isinstance(d.size, Expr) else d.size
        known[d.name] = None if size is None else int(size)
    return {name: math.inf if size is None else size for name, size in known.items()}


def _power_of_two(n: float) -> float:
    return n if math.isinf(n) else 1 << (int(n) - 1).bit_length()
