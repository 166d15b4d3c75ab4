"""Eigenvalues of small matrices of numbers, in plain Python: approximations, and what is sure of them.

Goals: `eigenvalues` by shifted QR steps, to search; `error` bounds the distance from a number to the nearest eigenvalue
of any matrix in a box of entries, in exact arithmetic: a refutation rests on that alone.
Non-goals: speed beyond n = 16, eigenvectors.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence
from fractions import Fraction

from rnnc.bound import functions
from rnnc.bound.box import Box
from rnnc.bound.interval import INF, Interval, Num, point, to_float

_STEPS = 40
_TINY = 1e-15

Numbers = list[list[complex]]


def eigenvalues(matrix: Sequence[Sequence[complex]]) -> list[complex]:
    """All eigenvalues, about; none where the matrix is not finite or the iteration does not settle."""
    if not all(cmath.isfinite(x) for row in matrix for x in row):
        return []
    found: list[complex] = []
    try:
        h = _hessenberg([[complex(x) for x in row] for row in matrix])
        while len(h) > 2:
            last = _deflated(h)
            if last is None:
                return []
            found += last
    except (OverflowError, ZeroDivisionError):
        return []
    found += [h[0][0]] if len(h) == 1 else _both(*h[0], *h[1]) if h else []
    return found if all(cmath.isfinite(x) for x in found) else []


def _hessenberg(h: Numbers) -> Numbers:
    """A similar matrix with zeros below the subdiagonal, by elimination."""
    n = len(h)
    for k in range(n - 2):
        pivot = max(range(k + 1, n), key=lambda i: abs(h[i][k]))
        if h[pivot][k] == 0:
            continue
        h[k + 1], h[pivot] = h[pivot], h[k + 1]
        for row in h:
            row[k + 1], row[pivot] = row[pivot], row[k + 1]
        for i in range(k + 2, n):
            factor = h[i][k] / h[k + 1][k]
            if factor == 0:
                continue
            h[i] = [x - factor * y for x, y in zip(h[i], h[k + 1], strict=True)]
            for row in h:
                row[k + 1] += factor * row[i]
    return h


def _deflated(h: Numbers) -> list[complex] | None:
    """One or two eigenvalues, taken off the end of a Hessenberg matrix of three or more rows."""
    for step in range(_STEPS * len(h)):
        n = len(h)
        for size in (1, 2):
            i = n - size
            if abs(h[i][i - 1]) <= _TINY * (abs(h[i][i]) + abs(h[i - 1][i - 1])):
                last = [row[i:] for row in h[i:]]
                del h[i:]
                for row in h:
                    del row[i:]
                return [last[0][0]] if size == 1 else _both(*last[0], *last[1])
        corner = _both(h[n - 2][n - 2], h[n - 2][n - 1], h[n - 1][n - 2], h[n - 1][n - 1])
        shift = min(corner, key=lambda x: abs(x - h[n - 1][n - 1]))
        if step % 11 == 10:
            shift = h[n - 1][n - 1] + abs(h[n - 1][n - 2])
        _step(h, shift)
    return None


def _step(h: Numbers, shift: complex) -> None:
    """One QR step: rotations that make `h - shift` triangular, then the same from the right."""
    n = len(h)
    for i in range(n):
        h[i][i] -= shift
    turns: list[tuple[complex, complex]] = []
    for k in range(n - 1):
        a, b = h[k][k], h[k + 1][k]
        size = math.hypot(abs(a), abs(b))
        c, s = (1.0 + 0j, 0j) if size == 0 else (a / size, b / size)
        turns.append((c, s))
        upper, lower = h[k], h[k + 1]
        for j in range(k, n):
            x, y = upper[j], lower[j]
            upper[j], lower[j] = c.conjugate() * x + s.conjugate() * y, c * y - s * x
    for k, (c, s) in enumerate(turns):
        for i in range(min(k + 2, n)):
            x, y = h[i][k], h[i][k + 1]
            h[i][k], h[i][k + 1] = x * c + y * s, y * c.conjugate() - x * s.conjugate()
    for i in range(n):
        h[i][i] += shift


def _both(a: complex, b: complex, c: complex, d: complex) -> list[complex]:
    """The eigenvalues of `[[a, b], [c, d]]`."""
    middle, half = (a + d) / 2, cmath.sqrt(((a - d) / 2) ** 2 + b * c)
    far = middle + half if abs(middle + half) >= abs(middle - half) else middle - half
    det = a * d - b * c
    return [far, det / far if far else far]


# --- what is sure ----------------------------------------------------------------------------------------------------


def error(matrix: Sequence[Sequence[Box]], near: complex) -> Num:
    """How far from a number an eigenvalue is at most, whatever the entries are.

    Of a monic polynomial of degree n one root lies within `n |p(x) / p'(x)|` of x, and within the n-th root of
    `|p(x)|`.
    """
    n = len(matrix)
    h = _reduced([list(row) for row in matrix])
    if h is None:
        return INF
    value, slope = _characteristic(h, Box.of(near))
    size, steep = value.modulus(), slope.modulus()
    if size.undefined or not isinstance(size.hi, Fraction):
        return INF
    found: Num = Fraction(max(to_float(size.hi, True), 0.0) ** (1 / n)) * Fraction(1000001, 1000000)
    if isinstance(steep.lo, Fraction) and steep.lo > 0 and not steep.undefined:
        found = min(found, n * size.hi / steep.lo)
    return found


def _reduced(h: list[list[Box]]) -> list[list[Box]] | None:
    """A similar matrix with zeros below the subdiagonal; None where a pivot may be zero."""
    n = len(h)
    zero = Box.of(0)
    for k in range(n - 2):
        pivot = max(range(k + 1, n), key=lambda i: abs(h[i][k].middle()))
        if all(h[i][k].zero for i in range(k + 2, n)) and pivot == k + 1:
            continue
        h[k + 1], h[pivot] = h[pivot], h[k + 1]
        for row in h:
            row[k + 1], row[pivot] = row[pivot], row[k + 1]
        for i in range(k + 2, n):
            if h[i][k].zero:
                continue
            factor = h[i][k] / h[k + 1][k]
            if factor.re.undefined or factor.im.undefined:
                return None
            h[i] = [x if y.zero else x - factor * y for x, y in zip(h[i], h[k + 1], strict=True)]
            h[i][k] = zero
            for row in h:
                if not row[i].zero:
                    row[k + 1] = row[k + 1] + factor * row[i]
    return h


def _characteristic(h: Sequence[Sequence[Box]], x: Box) -> tuple[Box, Box]:
    """The characteristic polynomial of a Hessenberg matrix and its derivative at a number, by leading minors."""
    one, zero = Box.of(1), Box.of(0)
    values, slopes = [one], [zero]
    for k in range(len(h)):
        gap = x - h[k][k]
        value, slope = gap * values[k], gap * slopes[k] + values[k]
        chain = one
        for i in range(k - 1, -1, -1):
            chain = chain * h[i + 1][i]
            if chain.zero:
                break
            if not h[i][k].zero:
                factor = h[i][k] * chain
                value, slope = value - factor * values[i], slope - factor * slopes[i]
        values.append(value)
        slopes.append(slope)
    return values[-1], slopes[-1]


def distance(value: complex) -> Interval:
    """The modulus of a number."""
    return functions.sqrt(point(value.real).power(2) + point(value.imag).power(2))
