"""Intervals of extended reals with rational ends, each open or closed.

Goals: sound enclosures in exact arithmetic. Decimal literals are taken at their decimal value, sums and products of
ends are exact, transcendental ends are rounded outwards. An infinite end that is open means "unbounded, but finite".
Non-goals: the tightest enclosure; relations between values (see `relational`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

INF = math.inf
Num = Fraction | float
"""A finite end is a Fraction, an infinite one a float."""

ZERO, ONE, HALF = Fraction(0), Fraction(1), Fraction(1, 2)
_BITS = 320


def num(value: int | float | Fraction) -> Num:
    """A number as an end: floats at the decimal value that they print as."""
    if isinstance(value, float):
        return value if math.isinf(value) else Fraction(repr(value))
    return Fraction(value)


def finite(x: Num) -> bool:
    return isinstance(x, Fraction)


def tame(x: Num, up: bool) -> Num:
    """`x`, or, where it has grown too long, a short number beyond it."""
    if not isinstance(x, Fraction) or x.numerator.bit_length() + x.denominator.bit_length() <= _BITS:
        return x
    near = to_float(x, up)
    return near if math.isinf(near) else Fraction(near)


def to_float(x: Num, up: bool) -> float:
    """The nearest double on the given side (an overflow is infinite, or the largest double)."""
    if not isinstance(x, Fraction):
        return x
    try:
        near = float(x)
    except OverflowError:
        largest = math.nextafter(INF, 0)
        return (INF if up else largest) if x > 0 else (-largest if up else -INF)
    if (Fraction(near) < x) if up else (Fraction(near) > x):
        near = math.nextafter(near, INF if up else -INF)
    return near


@dataclass(frozen=True, slots=True)
class Interval:
    """All numbers between two ends. `undefined`: the value may also be no number at all (0/0, sqrt(-1), inf - inf)."""

    lo: Num
    hi: Num
    lo_open: bool = False
    hi_open: bool = False
    undefined: bool = False

    def __str__(self) -> str:
        left, right = "(" if self.lo_open else "[", ")" if self.hi_open else "]"
        return f"{left}{show(self.lo)}, {show(self.hi)}{right}"

    @property
    def point(self) -> bool:
        return self.lo == self.hi

    @property
    def has_lo(self) -> bool:
        """Whether the value may be -inf."""
        return self.lo == -INF and not self.lo_open

    @property
    def has_hi(self) -> bool:
        """Whether the value may be inf."""
        return self.hi == INF and not self.hi_open

    @property
    def real(self) -> bool:
        """Always a finite number."""
        return not (self.undefined or self.has_lo or self.has_hi)

    @property
    def positive(self) -> bool:
        return self.lo > 0 or (self.lo == 0 and self.lo_open)

    @property
    def negative(self) -> bool:
        return self.hi < 0 or (self.hi == 0 and self.hi_open)

    @property
    def nonzero(self) -> bool:
        return self.positive or self.negative

    def holds(self, x: Num) -> bool:
        return (self.lo < x or (self.lo == x and not self.lo_open)) and (
            x < self.hi or (self.hi == x and not self.hi_open)
        )

    def inside(self, other: Interval) -> bool:
        """Whether it is a part of `other`, and defined wherever that is."""
        low = self.lo > other.lo or (self.lo == other.lo and (self.lo_open or not other.lo_open))
        high = self.hi < other.hi or (self.hi == other.hi and (self.hi_open or not other.hi_open))
        return low and high and (other.undefined or not self.undefined)

    def hull(self, other: Interval) -> Interval:
        lo, lo_open = _low((self.lo, self.lo_open), (other.lo, other.lo_open))
        hi, hi_open = _high((self.hi, self.hi_open), (other.hi, other.hi_open))
        return Interval(lo, hi, lo_open, hi_open, self.undefined or other.undefined)

    def meet(self, other: Interval) -> Interval | None:
        """What is in both (None if nothing is); undefined only if both may be."""
        lo, lo_open = max((self.lo, self.lo_open), (other.lo, other.lo_open))
        hi, hi_open = min((self.hi, not self.hi_open), (other.hi, not other.hi_open))
        if lo > hi or (lo == hi and (lo_open or not hi_open)):
            return None
        return Interval(lo, hi, lo_open, not hi_open, self.undefined and other.undefined)

    def maybe_undefined(self, flag: bool = True) -> Interval:
        return replace(self, undefined=True) if flag and not self.undefined else self

    def __neg__(self) -> Interval:
        return Interval(-self.hi, -self.lo, self.hi_open, self.lo_open, self.undefined)

    def __add__(self, other: Interval) -> Interval:
        lost = (self.has_lo and other.has_hi) or (self.has_hi and other.has_lo)
        lo, lo_open = _sum((self.lo, self.lo_open), (other.lo, other.lo_open), -INF)
        hi, hi_open = _sum((self.hi, self.hi_open), (other.hi, other.hi_open), INF)
        if lo > hi:
            return ANY
        return Interval(tame(lo, False), tame(hi, True), lo_open, hi_open, self.undefined or other.undefined or lost)

    def __sub__(self, other: Interval) -> Interval:
        return self + -other

    def __mul__(self, other: Interval) -> Interval:
        infinite = self.has_lo or self.has_hi, other.has_lo or other.has_hi
        lost = (infinite[0] and other.holds(ZERO)) or (infinite[1] and self.holds(ZERO))
        corners = [_corner(a, b) for a in self.ends() for b in other.ends()]
        lo, lo_open = _low(*corners)
        hi, hi_open = _high(*corners)
        return Interval(tame(lo, False), tame(hi, True), lo_open, hi_open, self.undefined or other.undefined or lost)

    def inverse(self) -> Interval:
        if not self.nonzero:
            return ANY
        above = self.lo if self.lo != 0 else INF
        below = self.hi if self.hi != 0 else -INF
        hi = 1 / above if finite(above) else ZERO if self.lo != 0 else INF
        lo = 1 / below if finite(below) else ZERO if self.hi != 0 else -INF
        return Interval(tame(lo, False), tame(hi, True), self.hi_open, self.lo_open, self.undefined)

    def __truediv__(self, other: Interval) -> Interval:
        return self * other.inverse()

    def ends(self) -> tuple[tuple[Num, bool], tuple[Num, bool]]:
        return (self.lo, self.lo_open), (self.hi, self.hi_open)

    def __abs__(self) -> Interval:
        if self.lo >= 0:
            return self
        if self.hi <= 0:
            return -self
        hi, hi_open = _high((-self.lo, self.lo_open), (self.hi, self.hi_open))
        return Interval(ZERO, hi, False, hi_open, self.undefined)

    def power(self, n: int) -> Interval:
        """`x ** n` for a whole n."""
        if n < 0:
            return self.power(-n).inverse()
        if n == 0:
            return replace(point(1), undefined=self.undefined)
        base = abs(self) if n % 2 == 0 else self
        return Interval(_pow(base.lo, n, False), _pow(base.hi, n, True), base.lo_open, base.hi_open, self.undefined)


def show(x: Num) -> str:
    """An end for people: at most 6 digits."""
    return f"{float(x) + 0.0:.6g}"


def point(value: int | float | Fraction) -> Interval:
    x = num(value)
    return Interval(x, x)


REAL = Interval(-INF, INF, True, True)
ANY = Interval(-INF, INF, undefined=True)
UNIT = Interval(ZERO, ONE)
POSITIVE = Interval(ZERO, INF, True, True)
NONNEGATIVE = Interval(ZERO, INF, False, True)


def hull(intervals: Iterable[Interval]) -> Interval:
    first, *rest = intervals
    for i in rest:
        first = first.hull(i)
    return first


# --- ends ------------------------------------------------------------------------------------------------------------

End = tuple[Num, bool]


def _low(*ends: End) -> End:
    """The lowest end; closed if any of equals is."""
    return min(ends)


def _high(*ends: End) -> End:
    value, closed = max((v, not o) for v, o in ends)
    return value, not closed


def _sum(a: End, b: End, far: float) -> End:
    """The sum of two lower (`far` = -inf) or two upper ends."""
    if -far in (a[0], b[0]):
        # That summand is always infinite.
        return -far, False
    if far in (a[0], b[0]):
        reached = (a[0] == far and not a[1]) or (b[0] == far and not b[1])
        return far, not reached
    return a[0] + b[0], a[1] or b[1]


def _corner(a: End, b: End) -> End:
    """The product of two ends. 0 times an unbounded end is 0: the other corners hold what it may grow to."""
    (x, x_open), (y, y_open) = a, b
    if x == 0 or y == 0:
        reached = (x == 0 and not x_open) or (y == 0 and not y_open)
        return ZERO, not reached
    if finite(x) and finite(y):
        return x * y, x_open or y_open
    # An infinity that is reached times anything near the other end is one.
    reached = (not finite(x) and not x_open) or (not finite(y) and not y_open)
    return (INF if (x > 0) == (y > 0) else -INF), not reached


def _pow(x: Num, n: int, up: bool) -> Num:
    if not isinstance(x, Fraction):
        return x if n % 2 or x > 0 else -x
    if (x.numerator.bit_length() + x.denominator.bit_length()) * n <= 4 * _BITS:
        return tame(x**n, up)
    # Long powers: bounds from repeated squaring with tamed steps, on the modulus.
    outward = up == (x > 0 or n % 2 == 0)
    bound: Num = ONE
    square: Num = abs(x)
    while n:
        if n & 1:
            bound = _times(bound, square, outward)
        n >>= 1
        square = _times(square, square, outward)
    return bound if x > 0 or not n % 2 else -bound


def _times(x: Num, y: Num, up: bool) -> Num:
    if not (finite(x) and finite(y)):
        return ZERO if 0 in (x, y) else INF
    return tame(x * y, up)


def monotone(
    f: Callable[[float], float],
    x: Interval,
    *,
    limits: tuple[Num, Num],
    exact: Callable[[Fraction], Num | None] = lambda _: None,
) -> Interval:
    """The image under a strictly rising function, within a few units in the last place.

    `limits` are the values at the two infinite ends, which no finite number reaches; `exact` knows some values exactly.
    """
    first, last = x.ends()
    (lo, lo_open), (hi, hi_open) = _image(f, first, limits, exact, False), _image(f, last, limits, exact, True)
    return Interval(lo, hi, lo_open, hi_open, x.undefined)


def _image(
    f: Callable[[float], float],
    end: End,
    limits: tuple[Num, Num],
    exact: Callable[[Fraction], Num | None],
    up: bool,
) -> End:
    x, is_open = end
    if not isinstance(x, Fraction):
        return limits[0 if x < 0 else 1], is_open
    if (known := exact(x)) is not None:
        return known, is_open
    try:
        y = f(to_float(x, up))
    except OverflowError:
        y = INF
    if math.isnan(y):
        return (INF if up else -INF), True
    for _ in range(8):
        y = math.nextafter(y, INF if up else -INF)
    low, high = min(limits), max(limits)
    if up and y >= high:
        return high, True
    if not up and y <= low:
        return low, True
    if math.isinf(y):
        return (y, True) if up == (y > 0) else (Fraction(math.nextafter(y, 0)), True)
    return Fraction(y), is_open
