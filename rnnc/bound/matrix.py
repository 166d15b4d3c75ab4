"""Small dense matrices of expressions, n x n for each entry of a group: where their eigenvalues lie, by norms.

Goals: what holds of every matrix that may occur at a step: the best of several norms and of Gershgorin's discs, and
which it was. Sums of moduli are looked at as one expression each, so that what cancels (`z` and `1 - z`) is seen.
Scalings are fixed numbers, the same at all steps; every bound is checked with them in exact arithmetic, so that nothing
rests on how they were found.
Non-goals: closed forms (`pair`), numbers that break a claim (`eigen`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from rnnc.bound import functions
from rnnc.bound.box import Box
from rnnc.bound.interval import INF, ONE, ZERO, Interval, hull, point, to_float
from rnnc.bound.invariants import Environment
from rnnc.bound.model import Parts
from rnnc.bound.parts import Arithmetic, is_zero
from rnnc.ir import Expr

_ROUNDS = 60
_NEAR = 64
"""Scalings are fractions with denominators up to this."""
_POWER = 16
_ORTHOGONAL = 4
"""Up to here inner products of columns are looked at."""
_DENSE = 128
"""How many entries the matrices may have whose powers are looked at."""

Weights = tuple[Fraction, ...]
Place = tuple[int, int]


@dataclass(frozen=True)
class Matrix:
    """`entries` that are not zero, by row and column, over (state, lag) components."""

    components: tuple[tuple[str, int], ...]
    entries: Mapping[Place, Parts]

    @property
    def size(self) -> int:
        return len(self.components)

    def entry(self, i: int, j: int, zero: Parts) -> Parts:
        return self.entries.get((i, j), zero)


@dataclass(frozen=True)
class Enclosure:
    """Where all eigenvalues lie: their moduli, and, where all are real, their range; `method` says by what."""

    modulus: Interval
    real: Interval | None
    method: str


class Norms:
    """Bounds on norms of a matrix, for all that it may be."""

    def __init__(self, env: Environment, matrix: Matrix) -> None:
        self.env = env
        self.numbers = Arithmetic(env.model)
        self.matrix = matrix
        self.entries = matrix.entries
        self.size = matrix.size

    @cached_property
    def moduli(self) -> dict[Place, Expr]:
        return {at: self._modulus(e) for at, e in self.entries.items()}

    def _modulus(self, entry: Parts) -> Expr:
        """What is not negative stands for itself, so that it can cancel."""
        if not is_zero(entry.im):
            return entry.mod
        known = self.env.ranges(entry.re)
        if known.lo >= 0:
            return entry.re
        return self.env.model.graph.apply("neg" if known.hi <= 0 else "abs", entry.re)

    @cached_property
    def bounds(self) -> dict[Place, Interval]:
        return {at: self.env.ranges(e) for at, e in self.moduli.items()}

    # --- the spectrum -----------------------------------------------------------------------------------------------

    def enclosure(self) -> Enclosure:
        modulus, method = min(self._norms(), key=lambda f: (f[0].undefined, f[0].hi, not f[0].hi_open))
        low, by = self._least()
        if low.lo > 0:
            modulus = Interval(low.lo, modulus.hi, low.lo_open, modulus.hi_open, modulus.undefined)
            method = f"{method} and {by}" if by != method else method
        matrix = f"its {self.size} x {self.size} matrix"
        if not self.symmetric():
            return Enclosure(modulus, None, f"{method} of {matrix}")
        discs = hull(self.env.ranges(e) for e in self._discs())
        real = discs.meet(Interval(-modulus.hi, modulus.hi, modulus.hi_open, modulus.hi_open, discs.undefined)) or discs
        method = f"{method} and Gershgorin's discs of {matrix}, which has the eigenvalues of a symmetric one"
        return Enclosure(modulus, real, method)

    def _norms(self) -> Iterator[tuple[Interval, str]]:
        """Upper bounds of the moduli, simplest first."""
        for weighted in (False, True):
            for rows, line in ((True, "row"), (False, "column")):
                for w in self.scalings(rows=rows):
                    if weighted == (w != self.ones):
                        scaled = f", scaled by {_shown(w)}" if weighted else ""
                        yield _upper(self.sums(w, rows=rows)), f"the largest sum of moduli in a {line}{scaled}"
        squares = [self._square(self.entries[at]) for at in self.entries]
        yield _upper(functions.sqrt(self.env.ranges(self.numbers.sum(squares)))), "the Frobenius norm"
        if self.gram is not None:
            yield _upper(functions.sqrt(self.gram)), "the spectral norm"
        best: Interval | None = None
        for k, bound in self._powers():
            if best is not None and bound.hi >= best.hi:
                break
            best = bound
            yield bound, f"a norm of the {k}th power" if k > 3 else "a norm of the square"

    def _square(self, entry: Parts) -> Expr:
        apply = self.env.model.graph.apply
        if is_zero(entry.im):
            return apply("square", entry.re)
        return apply("add", apply("square", entry.re), apply("square", entry.im))

    def _powers(self) -> Iterator[tuple[int, Interval]]:
        """Roots of norms of powers: those of one matrix, multiplied with itself."""
        if len(self.entries) > _DENSE or any(not i.real or not _finite(i) for i in self.bounds.values()):
            return
        ranges = self.env.ranges
        power = {at: Box(ranges(e.re), ranges(e.im)) for at, e in self.entries.items()}
        exponent = 1
        while exponent < _POWER:
            power, exponent = _squared(power, self.size), 2 * exponent
            moduli = {at: box.modulus() for at, box in power.items()}
            lines = [
                [m for (i, j), m in moduli.items() if (i if rows else j) == k]
                for rows in (True, False)
                for k in range(self.size)
            ]
            sums = [sum(line, point(0)) for line in lines]
            least = min(hull(sums[: self.size]).hi, hull(sums[self.size :]).hi)
            yield exponent, Interval(ZERO, _root(least, exponent))

    def _least(self) -> tuple[Interval, str]:
        """A lower bound of the moduli: by Gershgorin's discs, or the smallest singular value."""
        graph = self.env.model.graph
        found: list[tuple[Interval, str]] = []
        for rows in (True, False):
            gaps: list[Expr] = []
            for i in range(self.size):
                others = [e for (r, c), e in self.moduli.items() if (r if rows else c) == i and r != c]
                diagonal = self.moduli.get((i, i), graph.lit(0))
                gaps.append(graph.apply("sub", diagonal, self.numbers.sum(others)))
            found.append((hull(self.env.ranges(g) for g in gaps), "Gershgorin's discs"))
        if self.gram is not None and self.gram.hi < INF and not self.gram.undefined:
            gaps = []
            for i, row in enumerate(self._gram):
                others = [e for j, e in enumerate(row) if j != i]
                gaps.append(graph.apply("sub", row[i], self.numbers.sum(others)))
            square = hull(self.env.ranges(g) for g in gaps)
            found.append(
                (
                    functions.sqrt(square) if square.lo > 0 else point(0),
                    "the spectral norm",
                )
            )
        return max((f for f in found if not f[0].undefined), key=lambda f: f[0].lo, default=(point(0), ""))

    def _discs(self) -> Iterator[Expr]:
        """The ends of Gershgorin's discs on the real line, by rows."""
        graph = self.env.model.graph
        for i in range(self.size):
            radius = self.numbers.sum(e for (r, c), e in self.moduli.items() if r == i and c != i)
            center = self.entries[i, i].re if (i, i) in self.entries else graph.lit(0)
            for op in ("add", "sub"):
                yield graph.apply(op, center, radius)

    def symmetric(self) -> bool:
        """Whether it is Hermitian, or, its entries in the pattern of a tree, similar to a symmetric matrix.

        There the characteristic polynomial holds `a[i, j]` and `a[j, i]` only as their product.
        """
        if any(not is_zero(e.im) for (i, j), e in self.entries.items() if i == j):
            return False
        numbers, off = self.numbers, sorted({(min(at), max(at)) for at in self.entries if at[0] != at[1]})
        differences: list[Expr] = []
        for i, j in off:
            a, b = (self.entries.get(at, numbers.zero) for at in ((i, j), (j, i)))
            gap = numbers.sub(a, numbers.conj(b))
            differences += [gap.re, gap.im]
        if all(self.env.ranges(d) == point(0) for d in differences):
            return True
        if len(off) >= self.size or any(not is_zero(e.im) for e in self.entries.values()):
            return False
        joined = list(range(self.size))
        for i, j in off:
            if joined[i] == joined[j]:
                return False
            joined = [joined[i] if x == joined[j] else x for x in joined]
        both = [(i, j) for i, j in off if (i, j) in self.entries and (j, i) in self.entries]
        products = [self.env.ranges(numbers.mul(self.entries[i, j], self.entries[j, i]).re) for i, j in both]
        return all(p.lo >= 0 and not p.undefined for p in products)

    # --- sums of moduli ---------------------------------------------------------------------------------------------

    def sums(self, weights: Weights, *, rows: bool) -> Interval:
        """The largest weighted sum of moduli in a row (or a column): `sum(w[j] |a[i, j]|) / w[i]`."""
        found = [point(0)]
        for i in range(self.size):
            line = [((c if rows else r), e) for (r, c), e in self.moduli.items() if (r if rows else c) == i]
            terms = [self.numbers.scaled(weights[j] / weights[i], e) for j, e in line]
            found.append(self.env.ranges(self.numbers.sum(terms)))
        return hull(found)

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
        return self.gram is not None and _within(self.gram)

    @cached_property
    def gram(self) -> Interval | None:
        """A bound on the square of the spectral norm: the largest sum of moduli in a row of `A* A`, whose entries
        cancel where columns are orthogonal."""
        if self.size > _ORTHOGONAL:
            return None
        return hull(self.env.ranges(self.numbers.sum(row)) for row in self._gram)

    @cached_property
    def _gram(self) -> list[list[Expr]]:
        """The moduli of the entries of `A* A`."""
        return [[self._modulus(self._inner(i, j)) for j in range(self.size)] for i in range(self.size)]

    def _inner(self, i: int, j: int) -> Parts:
        """The inner product of two columns, the first conjugated."""
        pairs = [(self.entries.get((k, i)), self.entries.get((k, j))) for k in range(self.size)]
        numbers = self.numbers
        return numbers.total(numbers.mul(numbers.conj(a), b) for a, b in pairs if a is not None and b is not None)


def _upper(found: Interval) -> Interval:
    return Interval(ZERO, found.hi, False, found.hi_open, found.undefined)


def _within(found: Interval) -> bool:
    return found.hi <= 1 and not found.undefined


def _finite(x: Interval) -> bool:
    return isinstance(x.lo, Fraction) and isinstance(x.hi, Fraction)


def _shown(weights: Sequence[Fraction]) -> str:
    return f"({', '.join(f'{float(w):.3g}' for w in weights)})"


def _squared(a: Mapping[Place, Box], n: int) -> dict[Place, Box]:
    rows: list[list[tuple[int, Box]]] = [[] for _ in range(n)]
    for (i, j), x in a.items():
        rows[i].append((j, x))
    found: dict[Place, Box] = {}
    for (i, k), x in a.items():
        for j, y in rows[k]:
            term = x * y
            found[i, j] = found[i, j] + term if (i, j) in found else term
    return found


def _root(x: float | Fraction, k: int) -> float | Fraction:
    """A number that is at least the k-th root of one that is not negative."""
    for _ in range(k.bit_length() - 1):
        x = functions.sqrt(point(x)).hi
    return x


def _perron(sizes: Mapping[Place, float], n: int) -> Weights | None:
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
