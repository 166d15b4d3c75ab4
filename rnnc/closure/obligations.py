"""What families rest on, decided by ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rnnc.closure import close
from rnnc.closure.base import Closure, Composable, Obligation
from rnnc.ir import Disc, Expr, Interval, Ref, Region, walk
from rnnc.lower import System

Always = Callable[[Expr, Region], bool]
"""Whether an expression of a checked cell always lies in a region (`Analysis.always`)."""


def settle(system: System, closures: Iterable[Closure], always: Always) -> tuple[Closure, ...]:
    """Closures whose obligations are proved; a group whose are not gets the next family that takes it, or none."""

    def prove(o: Obligation) -> bool:
        expr = as_written(system, o.expr)
        return expr is not None and always(expr, o.what)

    return tuple(close(system, c.group, prove) if isinstance(c, Composable) and c.obligations else c for c in closures)


def bounded(system: System, factors: Iterable[Expr], always: Always) -> bool:
    """Whether it was proved that none of these ever exceeds 1 in modulus."""
    graph = system.graph
    one = graph.lit(1.0)

    def proved(factor: Expr) -> bool:
        expr = as_written(system, factor)
        region = Disc(one) if factor.kind == "complex" else Interval(graph.lit(-1.0), one)
        return expr is not None and always(expr, region)

    return all(proved(f) for f in factors)


def as_written(system: System, root: Expr) -> Expr | None:
    """A lowered expression as one of the cell; None where it reads what the cell does not name, as the history of a
    convolution."""
    graph, cell = system.graph, system.cell
    states = {s.name for s in cell.states}
    pasts = {f.name: f.of for f in system.fields if f.role == "past"}
    inputs = {i.name for i in cell.inputs}
    done: dict[Expr, Expr] = {}
    for node in walk(root):
        new = graph.rebuild(node, tuple(done[c] for c in node.children)) if node.children else node
        if isinstance(node, Ref) and node.role == "state" and node.name not in states:
            if node.name not in pasts:
                return None
            of = pasts[node.name]
            new = graph.ref("input" if of in inputs else "def", of, node.type, node.lag)
        elif isinstance(node, Ref) and node.role == "param" and node.lag:
            return None
        done[node] = new
    return done[root]
