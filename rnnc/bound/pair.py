"""2 x 2 matrices: where their eigenvalues lie, from trace and determinant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from rnnc.bound.interval import Interval, hull
from rnnc.bound.invariants import Environment
from rnnc.bound.model import Model, Parts
from rnnc.bound.parts import Arithmetic, fraction, is_zero
from rnnc.bound.poly import TooLarge, square_root
from rnnc.ir import Expr, Graph


@dataclass(frozen=True, slots=True)
class Pair:
    """The roots of `x^2 - trace x + det`."""

    trace: Parts
    det: Parts

    @staticmethod
    def of(model: Model, entries: Sequence[Parts]) -> Pair:
        """Of the matrix `[[a, b], [c, d]]`."""
        a, b, c, d = entries
        numbers = Arithmetic(model)
        return Pair(numbers.add(a, d), numbers.sub(numbers.mul(a, d), numbers.mul(b, c)))

    @property
    def real(self) -> bool:
        return is_zero(self.trace.im) and is_zero(self.det.im)

    def quarter(self, graph: Graph) -> Expr:
        """A quarter of the discriminant of a real pair."""
        half = graph.apply("div", self.trace.re, graph.lit(2))
        return graph.apply("sub", graph.apply("square", half), self.det.re)

    def roots(self, graph: Graph) -> tuple[Parts, ...]:
        """Both roots of a real pair, as expressions."""
        apply, number = graph.apply, graph.lit
        quarter = self.quarter(graph)
        real = apply("ge", quarter, number(0))
        half = apply("sqrt", apply("abs", quarter))
        zero = number(0)
        found: list[Parts] = []
        for op in ("add", "sub"):
            re = apply(op, apply("div", self.trace.re, number(2)), apply("where", real, half, zero))
            im = apply("where", real, zero, half if op == "add" else apply("neg", half))
            mod = apply("where", real, apply("abs", re), apply("sqrt", apply("abs", self.det.re)))
            found.append(Parts(re, im, mod))
        return tuple(found)

    def enclosure(self, env: Environment) -> tuple[Interval, Interval | None]:
        """The moduli of the roots, and, where they are always real, their range."""
        if not self.real:
            return Interval(Fraction(0), float("inf"), False, True), None
        graph = env.model.graph
        root = self._root(env)
        if root is not None:
            half = graph.apply("div", self.trace.re, graph.lit(2))
            real = hull(env.ranges(graph.apply(op, half, root)) for op in ("add", "sub"))
            return abs(real), real
        roots = self.roots(graph)
        moduli = hull(env.ranges(r.mod) for r in roots)
        if not _positive(env.ranges(self.quarter(graph))):
            return moduli, None
        return moduli, hull(env.ranges(r.re) for r in roots)

    def _root(self, env: Environment) -> Expr | None:
        """The root of a quarter of the discriminant, where that is a square as a fraction of polynomials."""
        graph, forms = env.model.graph, env.plain.forms
        quarter = self.quarter(graph)
        env.plain(quarter)
        form = forms.of(quarter)
        if form is None or any(n % 2 for _, n in form.den):
            return None
        try:
            above = square_root(form.num)
        except TooLarge:
            return None
        found = None if above is None else forms.expression(above)
        for factor, n in form.den:
            below = forms.expression(dict(factor))
            for _ in range(n // 2):
                found = None if found is None or below is None else graph.apply("div", found, below)
        return found

    # --- claims -----------------------------------------------------------------------------------------------------

    def within_disc(self, env: Environment, radius: Fraction) -> bool:
        """Whether both roots always have a modulus of at most `radius`."""
        graph = env.model.graph
        r, r2 = fraction(graph, radius), fraction(graph, radius * radius)
        if self.real:
            # Jury's conditions.
            return all(
                _positive(env.ranges(e)) for e in [*self._ends(graph, r, r2), graph.apply("sub", r2, self.det.re)]
            )
        # Those of Schur and Cohn; the last matters where the determinant has modulus 1.
        numbers = Arithmetic(env.model)
        r3, r4 = fraction(graph, radius**3), fraction(graph, radius**4)
        turned = numbers.mul(numbers.conj(self.trace), self.det)
        inner = numbers.sub(numbers.mul(numbers.real(r3), self.trace), numbers.mul(numbers.real(r), turned))
        apply = graph.apply
        needed = [
            apply("sub", r2, self.det.mod),
            apply("sub", apply("sub", r4, apply("square", self.det.mod)), inner.mod),
            apply("sub", fraction(graph, 2 * radius), self.trace.mod),
        ]
        return all(_positive(env.ranges(e)) for e in needed)

    def beyond_disc(self, env: Environment, radius: Fraction) -> bool:
        """Whether both roots, of a real pair, always have a modulus of at least `radius`."""
        if radius <= 0:
            return True
        if not self.real:
            return False
        graph = env.model.graph
        r, r2 = fraction(graph, radius), fraction(graph, radius * radius)
        ends = self._ends(graph, r, r2)
        if _positive(env.ranges(graph.apply("sub", self.det.re, r2))):
            return all(_positive(env.ranges(e)) for e in ends)
        # Real roots of both signs: at the ends of the disc the polynomial is negative.
        outside = [graph.apply("neg", e) for e in (graph.apply("add", self.det.re, r2), *ends)]
        return all(_positive(env.ranges(e)) for e in outside)

    def _ends(self, graph: Graph, r: Expr, r2: Expr) -> list[Expr]:
        """The polynomial at `-r` and at `r`."""
        middle = graph.apply("add", r2, self.det.re)
        return [graph.apply(op, middle, graph.apply("mul", r, self.trace.re)) for op in ("add", "sub")]

    def within(self, env: Environment, region: Interval) -> bool:
        """Whether both roots are always real and in a bounded interval (its open ends are taken as closed ones)."""
        graph = env.model.graph
        if not (self.real and isinstance(region.lo, Fraction) and isinstance(region.hi, Fraction)):
            return False
        needed = [self.quarter(graph)]
        for end, sign in ((region.lo, 1), (region.hi, -1)):
            x = fraction(graph, end)
            at = graph.apply("sub", graph.apply("square", x), graph.apply("mul", x, self.trace.re))
            beyond = graph.apply("sub", self.trace.re, fraction(graph, 2 * end))
            needed += [graph.apply("add", at, self.det.re), beyond if sign > 0 else graph.apply("neg", beyond)]
        return all(_positive(env.ranges(e)) for e in needed)


def _positive(found: Interval) -> bool:
    return found.lo >= 0 and not found.undefined
