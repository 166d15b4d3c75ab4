"""Sums and products of IR expressions where None stands for zero, and literals fold."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce

from rnnc.ir import Apply, Expr, Graph, Lit
from rnnc.literals import number

Maybe = Expr | None


def add(graph: Graph, x: Maybe, y: Maybe) -> Maybe:
    if x is None or y is None:
        return y if x is None else x
    if isinstance(x, Lit) and isinstance(y, Lit):
        return graph.lit(x.value + y.value)
    return graph.apply("add", x, y)


def sub(graph: Graph, x: Maybe, y: Maybe) -> Maybe:
    if y is None:
        return x
    return neg(graph, y) if x is None else graph.apply("sub", x, y)


def neg(graph: Graph, x: Maybe) -> Maybe:
    match x:
        case None:
            return None
        case Lit(value=value) if not isinstance(value, bool):
            return graph.lit(-value)
        case Apply(op="neg", args=(inner,)) if inner.kind != "bool":
            return inner
        case _:
            return graph.apply("neg", x)


def mul(graph: Graph, x: Maybe, y: Maybe) -> Maybe:
    if x is None or y is None or _is(x, 0) or _is(y, 0):
        return None
    if _is(x, 1):
        return y
    if isinstance(x, Lit) and isinstance(y, Lit):
        return graph.lit(x.value * y.value)
    return x if _is(y, 1) else graph.apply("mul", x, y)


def div(graph: Graph, x: Maybe, y: Expr) -> Maybe:
    return None if x is None else x if _is(y, 1) else graph.apply("div", x, y)


def choose(graph: Graph, condition: Expr, x: Maybe, y: Maybe, other: float = 0.0) -> Maybe:
    """`where(condition, x, y)`, where None stands for `other`."""
    absent = graph.lit(other)
    yes, no = absent if x is None else x, absent if y is None else y
    return x if yes is no else graph.apply("where", condition, yes, no)


def total(graph: Graph, terms: list[Expr]) -> Maybe:
    return reduce(lambda x, y: graph.apply("add", x, y), terms) if terms else None


def numbers(graph: Graph, values: Iterable[Expr]) -> tuple[Expr, ...]:
    """Conditions among the values as 0 and 1."""
    zero, one = graph.lit(0.0), graph.lit(1.0)
    return tuple(graph.apply("where", v, one, zero) if v.kind == "bool" else v for v in values)


def fixed(graph: Graph, x: Expr, value: Expr) -> Expr:
    """`value`, but `x` itself where `x` is infinite: an infinity absorbs, so that inf - inf and 0 * inf never meet."""
    match number(x):
        case None:
            infinite = graph.apply("eq", graph.apply("abs", x), graph.lit(math.inf))
            return graph.apply("where", infinite, x, value)
        case known:
            return x if math.isinf(known) else value


def _is(x: Expr, value: int) -> bool:
    return isinstance(x, Lit) and not isinstance(x.value, bool) and x.value == value
