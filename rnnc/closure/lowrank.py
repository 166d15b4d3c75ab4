"""The family of low-rank transitions: `s[t] = (D + U Vᵀ) s[t-1] + B`, `D` along the mixed dims, `U` and `V` thin.

Match: every update, taken apart as a sum over sums `sum[K](v * s[t-1])` that are taken of the state as it was, however
they are nested in it: an error apart, one write after another, a loss's gradient. Several states of the same dims are
one of blocks. An update `over` a dim is one map for each of its entries.
Composition: `(D2 D1, [(D2 + U2 V2ᵀ) U1, U2], [V1, D1ᵀ V2], (D2 + U2 V2ᵀ) B1 + B2)`; identity `(1, 0, 0, 0)`;
obligation: none. Both are confirmed by expanding all sums at small sizes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from rnnc.closure import algebra
from rnnc.closure.base import Closure, Refusal
from rnnc.closure.block import substituted
from rnnc.closure.contraction import Contraction, Sum, taken_apart
from rnnc.closure.expand import agree
from rnnc.closure.view import pasts_of
from rnnc.group import Group
from rnnc.ir import Expr, Graph, Type
from rnnc.lower import Stream, System
from rnnc.show import expr_text

FAMILY = "low rank"
LARGEST = 16
"""Sums that a token may take of the state."""


@dataclass(frozen=True)
class Term:
    """`left[i] * sum[inner](right * s)`, `s` the state at `column`, added to each state `i`, summed over `bound`: dims
    of `left` and `right` that no state has."""

    column: int
    right: Expr
    left: tuple[Expr | None, ...]
    bound: tuple[str, ...]


@dataclass(frozen=True)
class Map:
    """One token's map: `factors[i][j]` times state `j`, `terms` and `rest[i]` give state `i`. None is zero."""

    factors: tuple[tuple[Expr | None, ...], ...]
    terms: tuple[Term, ...]
    rest: tuple[Expr | None, ...]


@dataclass(frozen=True)
class LowRank(Closure):
    """A group whose step maps are `map`, sums being taken over `inner`; `over` is the dim whose entries are so many
    maps a token, one after the other."""

    family: ClassVar[str] = FAMILY
    map: Map
    inner: tuple[str, ...]
    over: str | None
    certificate: str

    @property
    def factors(self) -> tuple[Expr, ...]:
        """The entries of D that are not zero."""
        return tuple(e for row in self.map.factors for e in row if e is not None)

    @property
    def triangular(self) -> bool:
        """Whether the states can be ordered so that none's factors reach a later one: then their products over many
        tokens grow with the number of tokens at most, if no factor exceeds 1."""
        left = set(range(len(self.map.factors)))
        while free := {i for i in left if not any(self.map.factors[i][j] is not None for j in left - {i})}:
            left -= free
        return not left


def identity(graph: Graph, states: int) -> Map:
    """The map that changes nothing."""
    one = graph.lit(1.0)
    factors = tuple(tuple(one if i == j else None for j in range(states)) for i in range(states))
    return Map(factors, (), (None,) * states)


def apply(graph: Graph, map: Map, inner: tuple[str, ...], states: tuple[Expr, ...]) -> tuple[Expr | None, ...]:
    """The new values of the states."""
    reads = [graph.reduce("sum", inner, graph.apply("mul", t.right, states[t.column])) for t in map.terms]
    found: list[Expr | None] = []
    for i, row in enumerate(map.factors):
        total = _dot(graph, row, states)
        for term, read in zip(map.terms, reads, strict=True):
            total = algebra.add(graph, total, _bound(graph, term.bound, algebra.mul(graph, term.left[i], read)))
        found.append(algebra.add(graph, total, map.rest[i]))
    return tuple(found)


def compose(graph: Graph, inner: tuple[str, ...], later: Map, earlier: Map) -> Map:
    """`later` after `earlier`. It is associative. No bound dim of the one may be a dim of the other."""
    size = range(len(later.factors))
    linear = replace(later, rest=(None,) * len(size))

    def moved(values: tuple[Expr | None, ...]) -> tuple[Expr | None, ...]:
        zero = graph.lit(0.0)
        return apply(graph, linear, inner, tuple(zero if v is None else v for v in values))

    columns = [tuple(row[j] for row in earlier.factors) for j in size]
    factors = tuple(tuple(_dot(graph, row, c) for c in columns) for row in later.factors)
    terms = [replace(t, left=moved(t.left)) for t in earlier.terms]
    for t in later.terms:
        for j in size:
            factor = algebra.mul(graph, t.right, earlier.factors[t.column][j])
            if factor is not None:
                terms.append(replace(t, column=j, right=factor))
    rest = tuple(algebra.add(graph, x, y) for x, y in zip(moved(earlier.rest), later.rest, strict=True))
    return Map(factors, tuple(terms), rest)


def match(system: System, group: Group) -> LowRank | Refusal:
    graph, streams = system.graph, [system.stream(n) for n in group.states]
    shaped = _alike(streams)
    if isinstance(shaped, Refusal):
        return shaped
    updates = substituted(graph, streams)
    pasts = pasts_of(group.states, *updates)
    if far := next((p for p in pasts if p.lag != 1), None):
        reason = f"`{expr_text(far)}` reaches back further than one token"
        return Refusal(FAMILY, reason, expr_text(far))
    sums: list[Sum] = []
    for update in updates:
        found = taken_apart(graph, update, pasts, streams[0].over)
        if isinstance(found, tuple):
            return Refusal(FAMILY, *found)
        sums.append(found)
    contractions = list(dict.fromkeys(c for s in sums for c in s.reads))
    overs = {c.over for c in contractions}
    if len(overs) > 1:
        shown = " and ".join(", ".join(o) for o in sorted(overs))
        return Refusal(FAMILY, f"`{group.states[0]}` is summed over {shown} apart, so entries of both sides mix")
    if not contractions and not streams[0].over:
        return Refusal(FAMILY, "no sum is taken of its states, and so no entries mix")
    if len(contractions) > LARGEST:
        return Refusal(FAMILY, f"a token takes {len(contractions)} sums of its states, and at most {LARGEST} are a few")
    inner = contractions[0].over if contractions else ()
    map = _map(group.states, sums, contractions)
    return _confirmed(graph, group, map, inner, streams, updates)


def _alike(streams: list[Stream]) -> Refusal | None:
    first = streams[0]
    if len(streams) > 1 and (several := next((s for s in streams if s.over), None)):
        return Refusal(FAMILY, f"`{several.name}` is updated several times a token, beside another state")
    if any(first.over in s.type.dims for s in streams):
        return Refusal(FAMILY, f"`{first.name}` has the dim `{first.over}` that its update goes over")
    for s in streams:
        if set(s.type.dims) != set(first.type.dims) or s.type.kind != first.type.kind:
            shapes = f"`{first.name}` is {first.type} and `{s.name}` is {s.type}"
            return Refusal(FAMILY, f"{shapes}, and states that need each other must have the same dims and kind")
    if first.type.kind == "bool":
        return Refusal(FAMILY, f"`{first.name}` holds conditions")
    return None


def _map(names: tuple[str, ...], sums: list[Sum], contractions: list[Contraction]) -> Map:
    index = {name: i for i, name in enumerate(names)}
    factors = [[s.direct.get(name) for name in names] for s in sums]
    terms = [Term(index[c.past.name], c.right, tuple(s.reads.get(c) for s in sums), c.bound) for c in contractions]
    return Map(tuple(map(tuple, factors)), tuple(terms), tuple(s.rest for s in sums))


def _confirmed(
    graph: Graph, group: Group, map: Map, inner: tuple[str, ...], streams: list[Stream], updates: list[Expr]
) -> LowRank | Refusal:
    name = group.states[0]
    pasts = tuple(graph.ref("state", s.name, s.type, 1) for s in streams)
    zero = graph.lit(0.0)
    found = [zero if e is None else e for e in apply(graph, map, inner, pasts)]
    if not agree(graph, list(zip(found, updates, strict=True))):
        return Refusal(FAMILY, f"the sums of `{name}` could not be confirmed")
    if not composes(map, inner, streams):
        return Refusal(FAMILY, "the composition could not be confirmed")
    certificate = (
        "update - ((D + U Vᵀ) s + B) = 0; (D2, U2, V2, B2) after (D1, U1, V1, B1) = (D2 D1, [A2 U1, U2], [V1, D1ᵀ V2], "
        "A2 B1 + B2) with A2 = D2 + U2 V2ᵀ (all sums expanded at sizes 2 and 3, at random numbers modulo a prime)"
    )
    return LowRank(group, map, inner, streams[0].over, certificate)


def composes(map: Map, inner: tuple[str, ...], streams: list[Stream]) -> bool:
    """Whether `f2(f1(s)) = compose(f2, f1)(s)` and `identity(s) = s`, for any maps of this form and any states."""
    dims = tuple(dict.fromkeys(d for s in streams for d in s.type.dims))
    extra = dict.fromkeys(d for t in map.terms for d in (*t.right.dims, *t.bound))
    for row in (*(m.left for m in map.terms), *map.factors, map.rest):
        extra.update(dict.fromkeys(d for e in row if e is not None for d in e.dims))
    own = [d for d in extra if d not in dims]
    # The two maps' bound dims are their own.
    graph = Graph([*dims, *(f"{d}{i}" for i in "12" for d in own)])
    later, earlier = (_opaque(graph, map, set(dims), mark) for mark in "21")
    states = tuple(graph.ref("input", f"s{i}", Type(graph.sort(dims))) for i, _ in enumerate(streams))
    zero = graph.lit(0.0)

    def after(map: Map, states: tuple[Expr, ...]) -> tuple[Expr, ...]:
        return tuple(zero if e is None else e for e in apply(graph, map, inner, states))

    left = after(later, after(earlier, states))
    right = after(compose(graph, inner, later, earlier), states)
    still = after(identity(graph, len(states)), states)
    return agree(graph, [*zip(left, right, strict=True), *zip(still, states, strict=True)])


def _opaque(graph: Graph, map: Map, shared: set[str], mark: str) -> Map:
    """The map with parameters of which nothing is known but their dims."""
    count = 0

    def named(e: Expr | None) -> Expr | None:
        nonlocal count
        count += 1
        if e is None:
            return None
        dims = graph.sort(d if d in shared else f"{d}{mark}" for d in e.dims)
        return graph.ref("input", f"m{mark}{count}", Type(dims))

    def known(e: Expr) -> Expr:
        found = named(e)
        assert found is not None
        return found

    factors = tuple(tuple(named(e) for e in row) for row in map.factors)
    terms = tuple(
        Term(t.column, known(t.right), tuple(named(e) for e in t.left), tuple(f"{d}{mark}" for d in t.bound))
        for t in map.terms
    )
    return Map(factors, terms, tuple(named(e) for e in map.rest))


def _dot(graph: Graph, row: tuple[Expr | None, ...], column: tuple[Expr | None, ...]) -> Expr | None:
    products = [algebra.mul(graph, x, y) for x, y in zip(row, column, strict=True)]
    return algebra.total(graph, [p for p in products if p is not None])


def _bound(graph: Graph, over: tuple[str, ...], e: Expr | None) -> Expr | None:
    return graph.reduce("sum", over, e) if over and e is not None else e
