"""Sums, means, extremes and normalisers over dims that a program has all of, as Triton code over tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rnnc.ir import Expr, Graph, Normalize, Reduce
from rnnc.plan import is_number

from ..torch.block import NameTable
from .tile import Tile, Tiles

Group = tuple[str, tuple[str, ...], str, str]
"""An axis of tiles, the dims that lie along it, and the names of how many entries these have and of which are real."""


def normalized(graph: Graph, node: Normalize, x: Expr) -> Expr:
    """A normaliser of `x` as what it is made of."""
    over = node.over
    if node.op == "softmax":
        powers = graph.apply("exp", graph.apply("sub", x, graph.reduce("max", over, x)))
        return graph.apply("div", powers, graph.reduce("sum", over, powers))
    if node.op == "layernorm":
        x = graph.apply("sub", x, graph.reduce("mean", over, x))
    size = graph.reduce("sum" if node.op == "l2norm" else "mean", over, graph.apply("square", x))
    return graph.apply("mul", x, graph.apply("rsqrt", graph.apply("add", size, graph.lit(node.eps))))


class SumTiles(Tiles):
    """Tiles that are summed over some of their axes."""

    def __init__(
        self,
        names: NameTable,
        hints: Mapping[Expr, str],
        number: Callable[[Expr], tuple[str, ...]],
        groups: Sequence[Group],
    ) -> None:
        super().__init__(names, hints, number, "1")
        self.groups = groups

    def build(self, node: Expr) -> Tile:
        return self.reduced(node) if isinstance(node, Reduce) and not is_number(node) else super().build(node)

    def reduced(self, node: Reduce) -> Tile:
        tile = self.tile(node.arg)
        axes, parts = tile.axes, self.aligned(node.arg, tile.axes)
        counted: list[str] = []
        for axis, dims, count, real in self.groups:
            if not set(dims) & set(node.over):
                continue
            if axis not in axes:
                counted += [count] if node.op == "sum" else []
                continue
            mask = real if axes == axis else f"{real}[{', '.join(':' if a == axis else 'None' for a in axes)}]"
            at = axes.index(axis)
            if node.op in ("sum", "mean"):
                parts = tuple(f"tl.sum(tl.where({mask}, {p}, 0.0), {at})" for p in parts)
                parts = tuple(f"{p} / {count}" if node.op == "mean" else p for p in parts)
            else:
                function = {"max": "_tl_maximum", "min": "_tl_minimum"}[node.op]
                self.functions.add(function)
                least = '-float("inf")' if node.op == "max" else 'float("inf")'
                parts = tuple(f"tl.reduce(tl.where({mask}, {p}, {least}), {at}, {function})" for p in parts)
            axes = axes.replace(axis, "")
        binds = 4 if node.op == "mean" or counted else 6
        parts = tuple(" * ".join([*counted, f"({p})" if counted else p]) for p in parts)
        return Tile(parts, axes, binds)
