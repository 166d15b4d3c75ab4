"""Operands that kernels make themselves, entry by entry: as functions of Triton, with their gradients, and of PyTorch.

What a kernel reads once or twice, as decays, queries and keys of chunks, is then read as it leaves a product, and
neither written before nor its gradient read again. Goals: gates, feature maps and scales of one value. Non-goals:
sums over dims, and functions of several values; they are computed before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rnnc.derive import pull_back
from rnnc.ir import Apply, Expr, Graph, Lit
from rnnc.plan import is_number, per_token
from rnnc.show import expr_text

from ..torch.block import Block, NameTable
from ..torch.text import cut
from .tile import Tile, Tiles, folded, literal, numbers

LONGEST = 80
"""Characters of PyTorch code of a function that stands in a call."""


@dataclass(frozen=True)
class Entrywise:
    """`value` is made of the entries of `source`, each by itself, and of numbers; `code`: in PyTorch, from `x`. The
    source is what is `read`, plus an `offset` that all tokens share, if there is one."""

    value: Expr
    source: Expr
    code: str
    read: Expr
    offset: Expr | None = None


def entrywise(value: Expr, block: Block) -> Entrywise | None:
    """The function that makes a value of one that has the same dims, if there is one to make. `block` is for its code:
    one that has no names but for numbers."""
    source = source_of(value)
    if source is None:
        return None
    block.variables[source] = "x"
    code = block.code(value)
    return None if block.lines or len(code) > LONGEST else Entrywise(value, source, code, source)


def with_offset(made: Entrywise) -> Entrywise:
    """The same with an offset apart, as a gate has one that learns."""
    source = made.source
    if isinstance(source, Apply) and source.op == "add":
        for read, offset in (source.args, source.args[::-1]):
            if per_token(read) and not per_token(offset) and set(read.dims) == set(source.dims):
                return replace(made, read=read, offset=offset) if offset.kind == read.kind == "real" else made
    return made


def source_of(value: Expr) -> Expr | None:
    """What all of a value is made of, as far down as that is one value for each token."""
    node = value
    while isinstance(node, Apply) and node.kind == "real":
        leaves = _leaves(node)
        below = leaves if len(leaves) == 1 else [c for c in dict.fromkeys(node.args) if not is_number(c)]
        if len(below) != 1 or set(below[0].dims) != set(value.dims) or below[0].kind != "real":
            break
        node = below[0]
    return node if node is not value and per_token(node) and not is_number(node) else None


def _leaves(root: Expr) -> list[Expr]:
    """What an expression of elementwise operations is made of, but for numbers."""
    found: dict[Expr, None] = {}
    stack, seen = [root], {root}
    while stack:
        node = stack.pop()
        if not isinstance(node, Apply):
            found[node] = None
            continue
        new = [c for c in node.args if not is_number(c) and c not in seen]
        seen.update(new)
        stack.extend(new)
    return list(found)


class EntrywiseCoder:
    """Triton functions of what kernels make. `numbers` are what the host must compute for them, by their names."""

    def __init__(self, graph: Graph, made: Mapping[str, Entrywise]) -> None:
        self.made = made
        self.roots: dict[str, Expr] = {}
        for name, m in made.items():
            arriving = graph.ref("input", "arriving", m.value.type)
            found = pull_back(graph, {m.value: arriving}, [m.source])
            self.roots[name] = m.value
            self.roots[f"d_{name}"] = found.get(m.source, graph.lit(0.0))
        self.arriving = {name: graph.ref("input", "arriving", m.value.type) for name, m in made.items()}
        self.numbers = {node: f"number_{i}" for i, node in enumerate(numbers(self.roots.values()))}

    def functions(self, prefix: str) -> list[str]:
        """The text of each: of a value from its source `x`; of the source's gradient from `x` and that of the value."""
        return [self._function(name, prefix) for name in self.roots]

    def calls(self, prefix: str) -> dict[str, str]:
        """Code of a call of each, with places for `x` and, of a gradient, that of the value."""
        places = {"x": "{0}", "gradient": "{1}"}
        given = {name: [places.get(a, a) for a in self._arguments(self._lines(name))] for name in self.roots}
        return {name: f"{prefix}_{name}({', '.join(arguments)})" for name, arguments in given.items()}

    def _arguments(self, lines: list[str]) -> list[str]:
        """What lines use."""
        used = set(re.findall(r"\w+", " ".join(lines)))
        return [name for name in ("x", "gradient", *self.numbers.values()) if name in used]

    def _function(self, name: str, prefix: str) -> str:
        owner, lines = name.removeprefix("d_"), self._lines(name)
        made, arguments = self.made[owner], self._arguments(lines)
        if any("DTYPE" in line for line in lines):
            lines.insert(0, "DTYPE: tl.constexpr = tl.float32")
        value, source = cut(expr_text(made.value), 40), cut(expr_text(made.source), 40)
        what = f"{value} from x = {source}" if name == owner else f"Of x = {source}, from that of {value}"
        head = [f"def {prefix}_{name}({', '.join(arguments)}):", f'    """{what}."""']
        return "\n".join(["@triton.jit", *head, *(f"    {line}" for line in lines)])

    def _lines(self, name: str) -> list[str]:
        """The body of a function."""
        root, owner = self.roots[name], name.removeprefix("d_")

        def number(node: Expr) -> tuple[str, ...]:
            value = folded(node)
            return (self.numbers[node],) if value is None else literal(value)

        tiles = Tiles(NameTable(["x", "gradient", "tl", *self.numbers.values()]), {}, number, "1")
        tiles.values[self.made[owner].source] = Tile(("x",))
        tiles.values[self.arriving[owner]] = Tile(("gradient",))
        tiles.expect(root)
        result = "tl.zeros_like(x)" if isinstance(root, Lit) else tiles.tile(root).parts[0]
        return [*tiles.take(), f"return {result}"]
