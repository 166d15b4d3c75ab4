"""Small dense matrices of expressions, n x n for each entry of a group: bounds on their norms.

Goals: what holds of every matrix that may occur at a step. Sums of moduli are looked at as one expression each, so that
what cancels (`z` and `1 - z`) is seen. Scalings are fixed numbers, the same at all steps; every bound is checked with
them in exact arithmetic, so that nothing rests on how they were found.
Non-goals: closed forms (`pair`), numbers that break a claim (`eigen`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from rnnc.bound.interval import ONE, ZERO, Interval, hull, point, to_float
from rnnc.bound.invariants import Environment
from rnnc.bound.model import Parts
from rnnc.ir import Expr, Graph, Lit

_ROUNDS = 60
_NEAR = 64
"""Scalings are fractions with denominators up to this."""

Weights = tuple[Fraction, ...]


@dataclass(frozen=True)
class Matrix:
    """`entries` that are not zero, by row and column, over (state, lag) components."""

    components: tuple[tuple[str, int], ...]
    entries: Mapping[tuple[int, int], Parts]

    @property
    def size(self) -> int:
        return len(self.components)


class Norms:
    """Bounds on norms of a matrix, for all that it may be."""

    def __init__(self, env: Environment, matrix: Matrix) -> None:
        self.env = env
        self.graph: Graph = env.model.graph
        self.matrix = matrix
        self.size = matrix.size

    @cached_property
    def moduli(self) -> dict[tuple[int, int], Expr]:
        """What is not negative stands for itself, so that it can cancel."""
        return {at: self._modulus(e) for at, e in self.matrix.entries.items()}

    def _modulus(self, entry: Parts) -> Expr:
        if not is_zero(entry.im):
            return entry.mod
        known = self.env.ranges(entry.re)
        if known.lo >= 0:
            return entry.re
        return self.graph.apply("neg" if known.hi <= 0 else "abs", entry.re)

    @cached_property
    def bounds(self) -> dict[tuple[int, int], Interval]:
        return {at: self.env.ranges(e) for at, e in self.moduli.items()}

    # --- sums of moduli ---------------------------------------------------------------------------------------------

    def sums(self, weights: Weights, *, rows: bool) -> Interval:
        """The largest weighted sum of moduli in a row (or a column): `sum(w[j] |a[i, j]|) / w[i]`."""
        found: list[Interval] = []
        for i in range(self.size):
            line = [
                (j, at) for at in self.moduli for j in [at[1] if rows else at[0]] if (at[0] if rows else at[1]) == i
            ]
            terms = [self._times(weights[j] / weights[i], self.moduli[at]) for j, at in line]
            if terms:
                found.append(self.env.ranges(total(self.graph, terms)))
        return hull(found) if found else point(0)

    def _times(self, weight: Fraction, node: Expr) -> Expr:
        if weight == 1:
            return node
        above = self.graph.apply("mul", self.graph.lit(weight.numerator), node)
        return above if weight.denominator == 1 else self.graph.apply("div", above, self.graph.lit(weight.denominator))

    @property
    def ones(self) -> Weights:
        return (ONE,) * self.size

    def scalings(self, *, rows: bool) -> Iterator[Weights]:
        """None, and one that makes the weighted sums of all rows (or columns) as equal as may be: the Perron vector."""
        yield self.ones
        sizes = {at: to_float(i.hi, True) for at, i in self.bounds.items()}
        if any(not math.isfinite(x) for x in sizes.values()):
            return
        found = _perron({(i, j) if rows else (j, i): x for (i, j), x in sizes.items()}, self.size)
        if found is not None and found != self.ones:
            yield found

    # --- products over time -----------------------------------------------------------------------------------------

    def shrinking(self) -> bool:
        """Whether one norm, the same at all steps, is at most 1: products of any number of them cannot grow."""
        for rows in (True, False):
            if any(_within(self.sums(w, rows=rows)) for w in self.scalings(rows=rows)):
                return True
        return _within(self.gram())

    def gram(self) -> Interval:
        """A bound on the square of the spectral norm: the largest sum of moduli in a row of `A* A`."""
        found: list[Interval] = []
        for i in range(self.size):
            row = [self._modulus(self._inner(i, j)) for j in range(self.size)]
            found.append(self.env.ranges(total(self.graph, row)))
        return hull(found)

    def _inner(self, i: int, j: int) -> Parts:
        """The inner product of two columns, the first conjugated."""
        apply, entries = self.graph.apply, self.matrix.entries
        re: list[Expr] = []
        im: list[Expr] = []
        for k in range(self.size):
            a, b = entries.get((k, i)), entries.get((k, j))
            if a is None or b is None:
                continue
            re.append(apply("mul", a.re, b.re))
            if not (is_zero(a.im) and is_zero(b.im)):
                re.append(apply("mul", a.im, b.im))
                im.append(apply("sub", apply("mul", a.re, b.im), apply("mul", a.im, b.re)))
        real, imag = total(self.graph, re), total(self.graph, im)
        squares = [apply("square", x) for x in (real, imag)]
        return Parts(real, imag, apply("sqrt", apply("add", *squares)))


def total(graph: Graph, terms: Sequence[Expr]) -> Expr:
    if not terms:
        return graph.lit(0)
    found = terms[0]
    for t in terms[1:]:
        found = graph.apply("add", found, t)
    return found


def is_zero(node: Expr) -> bool:
    return isinstance(node, Lit) and node.value == 0


def _within(found: Interval) -> bool:
    return found.hi <= 1 and not found.undefined


def _perron(sizes: Mapping[tuple[int, int], float], n: int) -> Weights | None:
    """A vector near the one that a matrix without negative entries stretches evenly, by rounds of products.

    The identity is added, so that what goes round in a circle settles too.
    """
    at = [1.0] * n
    for _ in range(_ROUNDS):
        after = list(at)
        for (i, j), x in sizes.items():
            after[i] += x * at[j]
        top = max(after)
        at = [x / top for x in after]
    least = min(at)
    if not math.isfinite(least) or least <= 1e-4:
        return None
    found = tuple(Fraction(x / least).limit_denominator(_NEAR) for x in at)
    return found if all(w > ZERO for w in found) else None
