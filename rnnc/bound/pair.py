"""2 x 2 matrices: their eigenvalues from trace and determinant."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from rnnc.bound.interval import Interval
from rnnc.bound.invariants import Environment
from rnnc.bound.model import Parts
from rnnc.ir import Expr, Graph


@dataclass(frozen=True, slots=True)
class Pair:
    """The roots of `x^2 - trace x + det`, both real expressions of the model."""

    trace: Expr
    det: Expr

    @staticmethod
    def of(graph: Graph, a: Expr, b: Expr, c: Expr, d: Expr) -> Pair:
        """Of the matrix `[[a, b], [c, d]]`."""
        det = graph.apply("sub", graph.apply("mul", a, d), graph.apply("mul", b, c))
        return Pair(graph.apply("add", a, d), det)

    def roots(self, graph: Graph) -> tuple[Parts, ...]:
        """Both roots, as expressions."""
        apply, number = graph.apply, graph.lit
        quarter = apply("sub", apply("square", apply("div", self.trace, number(2))), self.det)
        real = apply("ge", quarter, number(0))
        half = apply("sqrt", apply("abs", quarter))
        zero = number(0)
        found: list[Parts] = []
        for op in ("add", "sub"):
            re = apply(op, apply("div", self.trace, number(2)), apply("where", real, half, zero))
            im = apply("where", real, zero, half if op == "add" else apply("neg", half))
            mod = apply("where", real, apply("abs", re), apply("sqrt", apply("abs", self.det)))
            found.append(Parts(re, im, mod))
        return tuple(found)

    def within_disc(self, env: Environment, radius: Fraction) -> bool:
        """Whether both roots always have a modulus of at most `radius` (Jury's conditions)."""
        graph = env.model.graph
        r, r2 = graph.lit(float(radius)), graph.lit(float(radius * radius))
        ends = [
            graph.apply(op, graph.apply("add", r2, self.det), graph.apply("mul", r, self.trace))
            for op in ("add", "sub")
        ]
        return all(_positive(env.ranges(e)) for e in [*ends, graph.apply("sub", r2, self.det)])

    def within(self, env: Environment, region: Interval) -> bool:
        """Whether both roots are always real and in a bounded interval (its open ends are taken as closed ones)."""
        graph = env.model.graph
        if not (isinstance(region.lo, Fraction) and isinstance(region.hi, Fraction)):
            return False
        quarter = graph.apply("sub", graph.apply("square", graph.apply("div", self.trace, graph.lit(2))), self.det)
        needed = [quarter]
        for end, sign in ((region.lo, 1), (region.hi, -1)):
            x = graph.lit(float(end))
            at = graph.apply("sub", graph.apply("square", x), graph.apply("mul", x, self.trace))
            beyond = graph.apply("sub", self.trace, graph.lit(2 * float(end)))
            needed += [graph.apply("add", at, self.det), beyond if sign > 0 else graph.apply("neg", beyond)]
        return all(_positive(env.ranges(e)) for e in needed)


def _positive(found: Interval) -> bool:
    return found.lo >= 0 and not found.undefined
