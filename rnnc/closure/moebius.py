"""The Möbius family, elementwise: `s[t] = (a s[t-1] + b) / (c s[t-1] + d)`.

Match: structurally, where one fraction is taken of sums; else SymPy makes one fraction of sums of them.
Composition: the product of `[[a, b], [c, d]]`, divided by its largest entry, so that no product of many overflows;
identity `[[1, 0], [0, 1]]`; obligation: none (where the denominator is 0, the program has no number either).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from rnnc.closure import algebra
from rnnc.closure.base import Composable, Refusal
from rnnc.closure.formula import fraction, free_parts, same
from rnnc.closure.proof import composes
from rnnc.closure.view import alone, holding
from rnnc.group import Group
from rnnc.ir import Apply, Expr, Graph, Lit, walk
from rnnc.lower import System
from rnnc.show import expr_text

FAMILY = "moebius"


@dataclass(frozen=True)
class Moebius(Composable):
    """`parameters` are `(a, b, c, d)`; `infinite` where the state may begin at an infinity."""

    family: ClassVar[str] = FAMILY
    infinite: bool

    def identity(self, graph: Graph) -> tuple[Expr, ...]:
        one, zero = graph.lit(1.0), graph.lit(0.0)
        return one, zero, zero, one

    def compose(self, graph: Graph, later: tuple[Expr, ...], earlier: tuple[Expr, ...]) -> tuple[Expr, ...]:
        (a2, b2, c2, d2), (a1, b1, c1, d1) = later, earlier
        dots = ((a2, a1, b2, c1), (a2, b1, b2, d1), (c2, a1, d2, c1), (c2, b1, d2, d1))
        sums = [algebra.add(graph, algebra.mul(graph, w, x), algebra.mul(graph, y, z)) for w, x, y, z in dots]
        found = [graph.lit(0.0) if e is None else e for e in sums]
        largest = graph.apply("abs", found[0])
        for e in found[1:]:
            largest = graph.apply("max", largest, graph.apply("abs", e))
        # A map that is nothing anywhere stays so.
        size = graph.apply("where", graph.apply("eq", largest, graph.lit(0.0)), graph.lit(1.0), largest)
        return tuple(graph.apply("div", e, size) for e in found)

    def apply(self, graph: Graph, parameters: tuple[Expr, ...], states: tuple[Expr, ...]) -> tuple[Expr, ...]:
        a, b, c, d = parameters
        (s,) = states
        zero = graph.lit(0.0)
        above = algebra.add(graph, algebra.mul(graph, a, s), b if algebra.number(b) != 0 else None)
        below = algebra.add(graph, algebra.mul(graph, c, s), d if algebra.number(d) != 0 else None)
        value = graph.apply("div", zero if above is None else above, zero if below is None else below)
        if not self.infinite:
            return (value,)
        straight = graph.apply("mul", graph.apply("div", a, d), s)
        limit = graph.apply("where", graph.apply("eq", c, zero), straight, graph.apply("div", a, c))
        far = graph.apply("eq", graph.apply("abs", s), graph.lit(math.inf))
        return (graph.apply("where", far, limit, value),)


def match(system: System, group: Group) -> Moebius | Refusal:
    found = alone(FAMILY, system, group)
    if isinstance(found, Refusal):
        return found
    stream, past = found
    graph, update = system.graph, stream.expr
    holds = holding(update, (past,))
    entries = of(graph, update, past, holds)
    if isinstance(entries, Expr):
        return Refusal(
            FAMILY, f"`{expr_text(entries)}` is no fraction of sums in `{expr_text(past)}`", expr_text(entries)
        )
    zero = graph.lit(0.0)
    parameters = algebra.numbers(graph, (zero if e is None else e for e in entries))
    infinite = stream.init is not None and any(isinstance(n, Lit) and _unbounded(n) for n in walk(stream.init))
    closure = Moebius(group, parameters, "", (), ((stream.name, 1),), infinite)
    (again,) = closure.apply(graph, parameters, (past,))
    if not same(update, again, [past, *free_parts(update, holds)]):
        return Refusal(FAMILY, f"the fraction of `{stream.name}` could not be confirmed")
    if not composes(closure, same):
        return Refusal(FAMILY, "the composition could not be confirmed")
    s = expr_text(past)
    certificate = (
        f"update - (a * {s} + b) / (c * {s} + d) = 0; [[a2, b2], [c2, d2]] after [[a1, b1], [c1, d1]] = their product"
    )
    return replace(closure, certificate=certificate)


def _unbounded(node: Lit) -> bool:
    return not isinstance(node.value, complex) and math.isinf(node.value)


Entries = tuple[Expr | None, ...]
"""`(a, b, c, d)`, None for zero."""


def of(graph: Graph, update: Expr, past: Expr, holds: set[Expr]) -> Entries | Expr:
    """The entries of an update, else the node that makes no fraction."""
    one = graph.lit(1.0)
    done: dict[Expr, Entries] = {past: (one, None, None, one)}
    for node in walk(update):
        if node not in holds or node in done:
            continue
        assert isinstance(node, Apply)
        entries = _split(graph, node, done)
        if entries is None:
            found = fraction(graph, update, past, holds)
            return node if found is None else found
        done[node] = entries
    return done[update]


def _split(graph: Graph, node: Apply, done: dict[Expr, Entries]) -> Entries | None:
    add, mul, neg = algebra.add, algebra.mul, algebra.neg
    match node.op, node.args:
        case ("add" | "sub") as op, (x, y) if x in done and y in done:
            (a1, b1, c1, d1), (a2, b2, c2, d2) = done[x], done[y]
            if c1 is not c2 or d1 is not d2:
                return None
            join = algebra.add if op == "add" else algebra.sub
            return join(graph, a1, a2), join(graph, b1, b2), c1, d1
        case ("add" | "sub") as op, (x, y):
            free, held = (x, y) if y in done else (y, x)
            a, b, c, d = done[held]
            if op == "sub" and held is y:
                a, b = neg(graph, a), neg(graph, b)
            join = algebra.sub if op == "sub" and held is x else add
            return join(graph, a, mul(graph, free, c)), join(graph, b, mul(graph, free, d)), c, d
        case "neg", (x,):
            a, b, c, d = done[x]
            return neg(graph, a), neg(graph, b), c, d
        case "mul", (x, y) if (x in done) != (y in done):
            free, held = (x, y) if y in done else (y, x)
            a, b, c, d = done[held]
            return mul(graph, free, a), mul(graph, free, b), c, d
        case "div", (x, y) if x in done and y in done:
            (a1, b1, c1, d1), (a2, b2, c2, d2) = done[x], done[y]
            return (a1, b1, a2, b2) if c1 is c2 and d1 is d2 else None
        case "div", (x, y) if x in done:
            a, b, c, d = done[x]
            return a, b, mul(graph, y, c), mul(graph, y, d)
        case "div", (x, y):
            a, b, c, d = done[y]
            return mul(graph, x, c), mul(graph, x, d), a, b
        case (("only" | "like"), (x, y)) if y not in done:
            return done[x]
        case (("real" | "conj"), (x,)) if x.kind != "complex":
            return done[x]
        case "where", (condition, x, y) if condition not in done:
            free = (None, None, None, graph.lit(1.0))
            f, g = (done[e] if e in done else (None, e, *free[2:]) for e in (x, y))
            return tuple(algebra.choose(graph, condition, p, q) for p, q in zip(f, g, strict=True))
        case _:
            return None
