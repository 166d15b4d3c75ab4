"""That the step maps of a family compose, from the very functions that kernels are made of."""

from __future__ import annotations

from collections.abc import Callable

from rnnc.closure.base import Composable
from rnnc.ir import Expr, Graph

Same = Callable[[Expr, Expr], bool]


def composes(closure: Composable, same: Same) -> bool:
    """Whether `f2(f1(s)) = compose(f2, f1)(s)` and `identity(s) = s`, for any parameters and states."""
    graph = Graph(())

    def named(letter: str, count: int) -> tuple[Expr, ...]:
        return tuple(graph.ref("input", f"{letter}{i}") for i in range(count))

    size = len(closure.parameters)
    later, earlier, states = named(LATER, size), named(EARLIER, size), named("s", len(closure.components))
    left = closure.apply(graph, later, closure.apply(graph, earlier, states))
    right = closure.apply(graph, closure.compose(graph, later, earlier), states)
    still = closure.apply(graph, closure.identity(graph), states)
    return all(same(x, y) for x, y in zip((*left, *still), (*right, *states), strict=True))


LATER, EARLIER = "q", "p"
"""How the parameters of the two maps are named: `q0`, `q1`, ... and `p0`, `p1`, ..."""
