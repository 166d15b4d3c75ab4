"""Updates `over` a dim: one small step for each entry of it, and the backward of those.

Goals: the small step as an expression of the running value and of one entry of whatever has the dim, and its
derivative. To the stages around it all small steps together are one operation.
Non-goals: text, and where the values between small steps lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rnnc.derive import depends, pull_back
from rnnc.ir import Expr, Graph, Linear, Type
from rnnc.lower import Stream
from rnnc.plan import is_number

from .stages import Array


@dataclass(frozen=True, eq=False)
class Small:
    """A small step: `expr` is the new running value. `given` are the values from outside that it reads, each with the
    node that they are part of; `maps` its learned maps, as they were before."""

    over: str
    type: Type
    running: Expr
    expr: Expr
    given: Mapping[Expr, Expr]
    maps: Mapping[Expr, Linear]
    hints: Mapping[Expr, str]


@dataclass(frozen=True, eq=False)
class Over:
    """All small steps as one operation, whose results are the keys that a `Stager` is given.

    Forward, `out` is the array of the result. Backward, `arriving` is the result's cotangent, `flows` the cotangents of
    the running value (None where there is none) and of what is given, for one small step; `kept` what else is stored
    at each.
    """

    small: Small
    past: Array
    out: Array | None = None
    arriving: Expr | None = None
    cotangent: Expr | None = None
    flows: Mapping[Expr, Expr | None] | None = None
    kept: Sequence[tuple[Array, Expr]] = ()

    @property
    def inputs(self) -> dict[Expr, tuple[str, ...]]:
        """What must lie in memory before, and in which order of dims."""
        whole = {n: n.dims for n in self.small.given.values()}
        return whole if self.arriving is None else {**whole, self.arriving: self.small.type.dims}

    @property
    def inner(self) -> tuple[Expr, ...]:
        """All that a small step computes."""
        flows = (self.flows or {}).values()
        return (self.small.expr, *(e for e in flows if e is not None), *(e for _, e in self.kept))


def small_step(graph: Graph, stream: Stream, expr: Expr, hints: Mapping[Expr, str]) -> Small:
    """The small step of an update."""
    assert stream.over
    over, running = stream.over, graph.ref("state", stream.name, stream.type, 1)
    moving = depends([expr], [running])
    given: dict[Expr, Expr] = {}
    maps: dict[Expr, Linear] = {}
    done: dict[Expr, Expr] = {running: running}

    def enter(node: Expr) -> Expr:
        """A value from outside, or the part of it that a small step reads."""
        if is_number(node):
            return node
        part = node
        if over in node.dims:
            dims = tuple(d for d in node.dims if d != over)
            # No name of a program begins with this sign.
            part = graph.ref("input", f"∂{over}{len(given)}_{stream.name}", Type(dims, node.kind))
        given[part] = node
        return part

    stack = [(expr, False)]
    while stack:
        node, ready = stack.pop()
        if node in done:
            continue
        if node not in moving:
            done[node] = enter(node)
        elif not ready:
            stack.append((node, True))
            stack.extend((c, False) for c in node.children[::-1])
        elif isinstance(node, Linear):
            kept = tuple(d for d in node.kept if d != over)
            made = graph.linear(node.weight, done[node.arg], kept, node.ins, node.outs, node.transposed)
            done[node], maps[made] = made, node
        else:
            done[node] = graph.rebuild(node, tuple(done[c] for c in node.children))
    value = done[expr]
    if set(value.dims) != set(stream.type.dims):
        value = graph.apply("like", value, graph.ref("input", "", stream.type))
    if stream.type.kind == "complex" and value.kind != "complex":
        value = graph.apply("add", value, graph.lit(0j))
    names = {done[n]: h for n, h in hints.items() if n in done}
    return Small(over, stream.type, running, value, given, maps, names)


def back_steps(
    graph: Graph, stream: Stream, small: Small, arriving: Expr
) -> tuple[dict[Expr, Expr], dict[Expr, Expr | None], Expr, dict[Expr, Expr]]:
    """The backward of all small steps: for the running value and each given node what stands for its cotangent; the
    cotangents within a small step by what stands for them; what stands for the one that arrives there; and those of
    the learned maps."""
    cotangent = graph.ref("state", f"∂{small.over}∂{stream.name}", stream.type)
    targets = [small.running, *(n for n, whole in small.given.items() if whole.kind != "bool")]
    found = pull_back(graph, {small.expr: cotangent}, targets, tuple(small.maps))
    results: dict[Expr, Expr] = {}
    flows: dict[Expr, Expr | None] = {}
    for i, n in enumerate(targets):
        whole = small.given.get(n, n)
        if n in found or n is small.running:
            results[whole] = ref = graph.ref("state", f"∂{i}∂{stream.name}", whole.type)
            # Where a small step forgets what was before, nothing flows on.
            flows[ref] = found.get(n)
    return results, flows, cotangent, {m: found[m] for m in small.maps if m in found}
