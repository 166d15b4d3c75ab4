"""The family of small dense blocks, elementwise: `s[t] = A s[t-1] + b`, `A` n x n, where `s` are several states of a
group, or several pasts of one (the companion form).

Match: states at lag 0 are put in place, and each update becomes a sum over the group's pasts (`linear`).
Composition: `(A2 A1, A2 b1 + b2)`; identity `(I, 0)`; obligation: none. Entries that are zero in every product are no
parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from rnnc.closure import algebra
from rnnc.closure.base import Composable, Refusal
from rnnc.closure.formula import same, same_modulo
from rnnc.closure.linear import Terms, confirmed, split
from rnnc.closure.proof import composes
from rnnc.closure.view import mixing, pasts_of
from rnnc.group import Group
from rnnc.ir import Expr, Graph, Ref, walk
from rnnc.lower import Stream, System
from rnnc.show import expr_text

FAMILY = "block"
LARGEST = 16
_SYMBOLIC = 3
"""Up to here SymPy multiplies the matrices out."""
Matrix = dict[tuple[int, int], Expr]
"""Entries that are not zero."""


@dataclass(frozen=True)
class Block(Composable):
    """`entries` of the matrix that `parameters` begin with, row by row; then come those of `b` in `rows`."""

    family: ClassVar[str] = FAMILY
    entries: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]

    def grows(self, contracting: bool) -> bool:
        return not contracting

    def matrix(self, parameters: tuple[Expr, ...]) -> Matrix:
        return {at: e for at, e in zip(self.entries, parameters, strict=False) if algebra.number(e) != 0}

    def offset(self, parameters: tuple[Expr, ...]) -> dict[int, Expr]:
        given = zip(self.rows, parameters[len(self.entries) :], strict=True)
        return {row: e for row, e in given if algebra.number(e) != 0}

    def identity(self, graph: Graph) -> tuple[Expr, ...]:
        ones = [graph.lit(1.0 if i == j else 0.0) for i, j in self.entries]
        return (*ones, *(graph.lit(0.0) for _ in self.rows))

    def compose(self, graph: Graph, later: tuple[Expr, ...], earlier: tuple[Expr, ...]) -> tuple[Expr, ...]:
        a2, a1, b2, b1 = self.matrix(later), self.matrix(earlier), self.offset(later), self.offset(earlier)
        size = range(len(self.components))
        found = [_dot(graph, [(a2.get((i, k)), a1.get((k, j))) for k in size]) for i, j in self.entries]
        moved = [_dot(graph, [(a2.get((i, k)), b1.get(k)) for k in size]) for i in self.rows]
        moved = [algebra.add(graph, x, b2.get(i)) for x, i in zip(moved, self.rows, strict=True)]
        return tuple(graph.lit(0.0) if e is None else e for e in (*found, *moved))

    def apply(self, graph: Graph, parameters: tuple[Expr, ...], states: tuple[Expr, ...]) -> tuple[Expr, ...]:
        a, b = self.matrix(parameters), self.offset(parameters)
        size = range(len(states))
        found = [_dot(graph, [(a.get((i, j)), states[j]) for j in size]) for i in size]
        full = [algebra.add(graph, x, b.get(i)) for i, x in enumerate(found)]
        return tuple(graph.lit(0.0) if e is None else e for e in full)


def _dot(graph: Graph, pairs: list[tuple[Expr | None, Expr | None]]) -> Expr | None:
    products = [algebra.mul(graph, x, y) for x, y in pairs]
    return algebra.total(graph, [p for p in products if p is not None])


def match(system: System, group: Group) -> Block | Refusal:
    graph, streams = system.graph, [system.stream(n) for n in group.states]
    first = streams[0]
    if several := next((s for s in streams if s.over), None):
        return Refusal(FAMILY, f"`{several.name}` is updated several times a token, over `{several.over}`")
    for s in streams:
        if set(s.type.dims) != set(first.type.dims) or s.type.kind != first.type.kind:
            shapes = f"`{first.name}` is {first.type} and `{s.name}` is {s.type}"
            return Refusal(FAMILY, f"{shapes}, and the states of a block must have the same dims and kind")
    updates = substituted(graph, streams)
    pasts = pasts_of(group.states, *updates)
    components = components_of(streams, pasts)
    if len(components) == 1:
        return Refusal(FAMILY, "one state that reaches back one token is no block")
    if len(components) > LARGEST:
        reason = f"it holds {len(components)} values from token to token, and a block at most {LARGEST}"
        return Refusal(FAMILY, reason)
    matrix: Matrix = {}
    offset: dict[int, Expr] = {}
    index = {c: i for i, c in enumerate(components)}
    for stream, update in zip(streams, updates, strict=True):
        terms = _row(graph, stream, update, pasts)
        if isinstance(terms, Refusal):
            return terms
        row = index[stream.name, 1]
        for past in pasts:
            if (slope := terms.slopes.get(past)) is not None:
                matrix[row, index[past.name, past.lag]] = slope
        if terms.rest is not None:
            offset[row] = terms.rest
    for (name, lag), row in index.items():
        if lag > 1:
            matrix[row, index[name, lag - 1]] = graph.lit(1.0)
    return _block(graph, group, components, matrix, offset)


def components_of(streams: Sequence[Stream], pasts: Iterable[Ref]) -> tuple[tuple[str, int], ...]:
    """The values that a group holds from token to token: its streams as far back as `pasts` reach, newest first."""
    depth = {s.name: 1 for s in streams}
    for p in pasts:
        depth[p.name] = max(depth[p.name], p.lag)
    return tuple((s.name, lag) for s in streams for lag in range(1, depth[s.name] + 1))


def substituted(graph: Graph, streams: list[Stream]) -> list[Expr]:
    """The updates with each other at lag 0 put in place."""
    done: dict[Expr, Expr] = {}
    for stream in streams:
        for node in walk(stream.expr):
            if node not in done:
                done[node] = graph.rebuild(node, tuple(done[c] for c in node.children)) if node.children else node
        done[graph.ref("state", stream.name, stream.type)] = done[stream.expr]
    return [done[s.expr] for s in streams]


def _row(graph: Graph, stream: Stream, update: Expr, pasts: list[Ref]) -> Terms | Refusal:
    mixed = mixing(FAMILY, stream.name, update, pasts)
    if mixed is not None:
        return mixed
    terms = split(graph, update, pasts)
    if not isinstance(terms, Terms):
        reason = f"`{expr_text(terms)}`, of `{stream.name}`, is not affine in the group's pasts"
        return Refusal(FAMILY, reason, expr_text(terms))
    if not confirmed(update, terms, pasts):
        return Refusal(FAMILY, f"the split of `{stream.name}` could not be confirmed")
    return terms


def dense(
    graph: Graph, components: Sequence[tuple[str, int]], matrix: Matrix, offset: Mapping[int, Expr]
) -> tuple[tuple[Expr, ...], tuple[tuple[int, int], ...], tuple[int, ...]]:
    """The parameters of `matrix` and `offset`, with the places that products of such matrices reach."""
    size = range(len(components))
    reached = {(i, i) for i in size} | set(matrix)
    for k in size:
        reached |= {(i, j) for i in size for j in size if (i, k) in reached and (k, j) in reached}
    rows = tuple(i for i in size if any((i, j) in reached for j in offset))
    entries = tuple(sorted(reached))
    zero = graph.lit(0.0)
    given = [*(matrix.get(at, zero) for at in entries), *(offset.get(i, zero) for i in rows)]
    return algebra.numbers(graph, given), entries, rows


def _block(
    graph: Graph, group: Group, components: tuple[tuple[str, int], ...], matrix: Matrix, offset: dict[int, Expr]
) -> Block | Refusal:
    parameters, entries, rows = dense(graph, components, matrix, offset)
    n = len(components)
    certificate = f"update - (A s + b) = 0, A {n} x {n}; (A2, b2) after (A1, b1) = (A2 A1, A2 b1 + b2)"
    found = Block(group, parameters, "", (), components, entries, rows)
    small = n <= _SYMBOLIC
    if not composes(found, same if small else same_modulo):
        return Refusal(FAMILY, "the composition could not be confirmed")
    return replace(found, certificate=certificate + ("" if small else " (at random numbers modulo a prime)"))
