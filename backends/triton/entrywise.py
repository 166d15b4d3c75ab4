"""Operands that kernels make themselves, entry by entry: functions of Triton, with gradients, and PyTorch code."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rnnc.derive import pull_back
from rnnc.entrywise import Entrywise
from rnnc.ir import Expr, Graph, Lit
from rnnc.show import expr_text

from ..torch.block import Block, NameTable
from ..torch.text import cut
from .tile import Tile, Tiles, folded, literal, numbers


def in_torch(made: Entrywise, block: Block) -> str:
    """Code of a value from `x`, its source. `block` is for that code: one that has no names but for numbers."""
    block.variables[made.source] = "x"
    return block.nested(made.value)[0]


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
