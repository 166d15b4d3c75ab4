"""Numbers that break a claim on the eigenvalues of a small matrix: what `witness` searches for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from rnnc.bound.box import Box
from rnnc.bound.eigen import distance, eigenvalues, error
from rnnc.bound.interval import INF, Interval, Num, point
from rnnc.bound.matrix import Matrix
from rnnc.bound.parts import is_zero
from rnnc.ir import Expr

V = TypeVar("V")


@dataclass(frozen=True)
class Eigenvalue:
    """An eigenvalue of `matrix` outside of a region: of moduli between `lo` and `hi`, or, `line`, of real numbers."""

    matrix: Matrix
    line: bool
    lo: Expr | None = None
    hi: Expr | None = None
    shown: tuple[tuple[str, Expr], ...] = ()
    strict: bool = field(default=False, init=False)

    @property
    def cost(self) -> int:
        return 4 * self.matrix.size**3

    @cached_property
    def places(self) -> list[tuple[int, int, bool]]:
        """Of each root of an entry: the row, the column, and whether it is an imaginary part."""
        found = [(i, j, False) for i, j in self.matrix.entries]
        return [*found, *((i, j, True) for (i, j), e in self.matrix.entries.items() if not is_zero(e.im))]

    def roots(self) -> list[Expr]:
        entries = self.matrix.entries
        found = [entries[i, j].im if imaginary else entries[i, j].re for i, j, imaginary in self.places]
        return [*found, *(e for e in (self.lo, self.hi) if e is not None), *(e for _, e in self.shown)]

    def score(self, at: Sequence[float]) -> float:
        n = self.matrix.size
        numbers = [[0j] * n for _ in range(n)]
        for (i, j, imaginary), x in zip(self.places, at, strict=False):
            numbers[i][j] += x * 1j if imaginary else x
        lo, hi = (x if isinstance(x, float) else 0.0 for x in self._ends(at, -INF, INF))
        return max((self._outside(x, lo, hi) for x in eigenvalues(numbers)), default=-INF)

    def _ends(self, at: Sequence[V], lo: V, hi: V) -> tuple[V, V]:
        rest = iter(at[len(self.places) :])
        return (lo if self.lo is None else next(rest)), (hi if self.hi is None else next(rest))

    def _outside(self, x: complex, lo: float, hi: float) -> float:
        value = x.real if self.line else abs(x)
        gaps = [abs(x.imag)] if self.line else []
        gaps += [(value - hi) / (1 + abs(hi))] if hi < INF else []
        gaps += [(lo - value) / (1 + abs(lo))] if lo > -INF else []
        return max(gaps, default=-INF)

    def offence(self, at: Sequence[Interval]) -> complex | float | None:
        n = self.matrix.size
        boxes = [[Box.of(0)] * n for _ in range(n)]
        for (i, j, imaginary), x in zip(self.places, at, strict=False):
            if x.undefined:
                return None
            was = boxes[i][j]
            boxes[i][j] = Box(was.re, x) if imaginary else Box(x, was.im)
        lo, hi = self._ends(at, point(-INF), point(INF))
        if lo.undefined or hi.undefined:
            return None
        found = eigenvalues([[b.middle() for b in row] for row in boxes])
        ends = float(lo.lo), float(hi.hi)
        for x in sorted(found, key=lambda x: -self._outside(x, *ends)):
            # Roots that are real, or equal in modulus, come out with rounding errors beside them.
            near = complex(x.real, 0.0) if abs(x.imag) <= 1e-9 * (1 + abs(x)) else x
            if self._outside(near, *ends) <= 0:
                return None
            off = error(boxes, near)
            if off < INF and self._surely(near, off, lo, hi):
                return near if near.imag else near.real
        return None

    def _surely(self, x: complex, off: Num, lo: Interval, hi: Interval) -> bool:
        """Whether all numbers so near to one lie outside."""
        if self.line:
            value = point(x.real)
            if abs(point(x.imag)).lo > off:
                return True
        else:
            value = distance(x)
        return value.lo - off > hi.hi or value.hi + off < lo.lo
