"""Arithmetic of values in parts, as `Model.parts` gives them: sums and products as real expressions."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from rnnc.bound.model import Model, Parts
from rnnc.ir import Expr, Graph, Lit


class Arithmetic:
    """Sums and products over one model. What is real stays free of imaginary parts."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.graph: Graph = model.graph
        self.zero = self.real(self.graph.lit(0))

    def real(self, x: Expr) -> Parts:
        return Parts(x, self.graph.lit(0), self.graph.apply("abs", x))

    def whole(self, re: Expr, im: Expr, most: Expr | None = None) -> Parts:
        """A value from both parts; `most` bounds its modulus."""
        if is_zero(im):
            return self.real(re)
        squares = [self.graph.apply("square", x) for x in (re, im)]
        modulus = self.graph.apply("sqrt", self.graph.apply("add", *squares))
        if most is not None:
            self.model.hints.setdefault(modulus, most)
        return Parts(re, im, modulus)

    def conj(self, a: Parts) -> Parts:
        return a if is_zero(a.im) else Parts(a.re, self.graph.apply("neg", a.im), a.mod)

    def mul(self, a: Parts, b: Parts) -> Parts:
        re = self._sub(self._mul(a.re, b.re), self._mul(a.im, b.im))
        im = self._add(self._mul(a.re, b.im), self._mul(a.im, b.re))
        return self.real(re) if is_zero(im) else Parts(re, im, self._mul(a.mod, b.mod))

    def add(self, a: Parts, b: Parts) -> Parts:
        return self.whole(self._add(a.re, b.re), self._add(a.im, b.im), self._add(a.mod, b.mod))

    def sub(self, a: Parts, b: Parts) -> Parts:
        return self.whole(self._sub(a.re, b.re), self._sub(a.im, b.im), self._add(a.mod, b.mod))

    def total(self, terms: Iterable[Parts]) -> Parts:
        found = self.zero
        for t in terms:
            found = self.add(found, t)
        return found

    def sum(self, terms: Iterable[Expr]) -> Expr:
        """Of real expressions."""
        found = self.graph.lit(0)
        for t in terms:
            found = self._add(found, t)
        return found

    def scaled(self, factor: Fraction, x: Expr) -> Expr:
        """A real expression times a number, exactly."""
        return self._mul(fraction(self.graph, factor), x)

    def _add(self, a: Expr, b: Expr) -> Expr:
        return b if is_zero(a) else a if is_zero(b) else self.graph.apply("add", a, b)

    def _sub(self, a: Expr, b: Expr) -> Expr:
        if is_zero(b):
            return a
        return self.graph.apply("neg", b) if is_zero(a) else self.graph.apply("sub", a, b)

    def _mul(self, a: Expr, b: Expr) -> Expr:
        if is_zero(a) or is_zero(b):
            return self.graph.lit(0)
        return b if _is_one(a) else a if _is_one(b) else self.graph.apply("mul", a, b)


def fraction(graph: Graph, x: Fraction) -> Expr:
    """A number, exactly: literals count as the decimals that they print as."""
    near = float(x)
    if x.denominator == 1:
        return graph.lit(x.numerator)
    if Fraction(repr(near)) == x:
        return graph.lit(near)
    return graph.apply("div", graph.lit(x.numerator), graph.lit(x.denominator))


def is_zero(node: Expr) -> bool:
    return isinstance(node, Lit) and node.value == 0


def _is_one(node: Expr) -> bool:
    return isinstance(node, Lit) and node.value == 1
