"""Complex numbers as boxes: intervals of real and imaginary parts."""

from __future__ import annotations

from dataclasses import dataclass

from rnnc.bound import functions
from rnnc.bound.interval import Interval, point


@dataclass(frozen=True, slots=True)
class Box:
    re: Interval
    im: Interval

    @staticmethod
    def of(value: complex) -> Box:
        return Box(point(value.real), point(value.imag))

    @property
    def real(self) -> bool:
        return self.im == point(0)

    @property
    def zero(self) -> bool:
        return self.real and self.re == point(0)

    def __add__(self, other: Box) -> Box:
        return Box(self.re + other.re, self.im + other.im)

    def __sub__(self, other: Box) -> Box:
        return Box(self.re - other.re, self.im - other.im)

    def __mul__(self, other: Box) -> Box:
        if self.real and other.real:
            return Box(self.re * other.re, self.im)
        re = self.re * other.re - self.im * other.im
        return Box(re, self.re * other.im + self.im * other.re)

    def __truediv__(self, other: Box) -> Box:
        if other.real:
            return Box(self.re / other.re, self.im if self.real else self.im / other.re)
        size = other.re.power(2) + other.im.power(2)
        above = self * Box(other.re, -other.im)
        return Box(above.re / size, above.im / size)

    def modulus(self) -> Interval:
        return abs(self.re) if self.real else functions.sqrt(self.re.power(2) + self.im.power(2))

    def middle(self) -> complex:
        return complex(_middle(self.re), _middle(self.im))


def _middle(x: Interval) -> float:
    return float(x.lo) if x.point else (float(x.lo) + float(x.hi)) / 2
