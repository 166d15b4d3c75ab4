"""Polynomials and fractions over numbered atoms, with exact rational coefficients.

Goals: one form for equal arithmetic expressions, small enough to be bounded. Operations raise `TooLarge` beyond a cap.
Non-goals: factorisation. Denominators are kept as products of factors known to be positive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

Mono = tuple[tuple[int, int], ...]
"""`(atom, exponent)` pairs, exponents positive, sorted by atom."""
Coef = int | Fraction
"""Whole numbers are kept as ints, which are much faster; never divide two of them by `/`."""
Poly = Mapping[Mono, Coef]
Frozen = tuple[tuple[Mono, Coef], ...]
"""A polynomial as a key: its terms, sorted."""
Reduce = Callable[[int], Poly | None]
"""What the square of an atom is, where it is something else (`sqrt`, `abs`, truth values, `sin`)."""

TERMS, DEGREE, BITS = 80, 16, 600
UNIT: Mono = ()


class TooLarge(Exception):
    """The expression has outgrown the caps."""


def slim(value: Coef) -> Coef:
    """The number as an int if it is whole."""
    return value.numerator if value.denominator == 1 else value


def constant(value: Coef) -> Poly:
    return {UNIT: slim(value)} if value else {}


def variable(atom: int) -> Poly:
    return {((atom, 1),): 1}


def freeze(p: Poly) -> Frozen:
    return tuple(sorted(p.items()))


def atoms(p: Poly) -> set[int]:
    return {a for mono in p for a, _ in mono}


def degree(p: Poly, atom: int) -> int:
    return max((e for mono in p for a, e in mono if a == atom), default=0)


def check(p: dict[Mono, Coef]) -> Poly:
    if len(p) > TERMS:
        raise TooLarge
    for mono, c in p.items():
        if sum(e for _, e in mono) > DEGREE or c.numerator.bit_length() + c.denominator.bit_length() > BITS:
            raise TooLarge
    return p


def add(p: Poly, q: Poly, scale: Coef = 1) -> Poly:
    """`p + scale * q`."""
    result = dict(p)
    for mono, c in q.items():
        total = result.get(mono, 0) + scale * c
        if total:
            result[mono] = total
        else:
            result.pop(mono, None)
    return check(result)


def scaled(p: Poly, factor: Coef) -> Poly:
    return {m: slim(c * factor) for m, c in p.items()} if factor else {}


def times(m: Mono, n: Mono) -> Mono:
    if not m:
        return n
    if not n:
        return m
    powers = dict(m)
    for a, e in n:
        powers[a] = powers.get(a, 0) + e
    return tuple(sorted(powers.items()))


def mul(p: Poly, q: Poly, squares: Reduce | None = None) -> Poly:
    result: dict[Mono, Coef] = {}
    for m, c in p.items():
        for n, d in q.items():
            mono = times(m, n)
            total = result.get(mono, 0) + c * d
            if total:
                result[mono] = total
            else:
                result.pop(mono, None)
            if len(result) > 4 * TERMS:
                raise TooLarge
    check(result)
    return result if squares is None else reduce_squares(result, squares)


def reduce_squares(p: Poly, squares: Reduce) -> Poly:
    """Replaces squares of atoms by what they are."""
    for _ in range(DEGREE):
        hit = next(((m, a, e) for m in p for a, e in m if e >= 2 and squares(a) is not None), None)
        if hit is None:
            return p
        mono, atom, exponent = hit
        rest = tuple((a, e - 2 if a == atom else e) for a, e in mono if a != atom or exponent > 2)
        p = add({m: d for m, d in p.items() if m != mono}, mul({rest: p[mono]}, squares(atom) or {}))
    raise TooLarge


def power(p: Poly, n: int, squares: Reduce | None = None) -> Poly:
    result = constant(1)
    for _ in range(n):
        result = mul(result, p, squares)
    return result


def product(factors: Iterable[tuple[Frozen, int]], squares: Reduce | None = None) -> Poly:
    result = constant(1)
    for factor, n in factors:
        for _ in range(n):
            result = mul(result, dict(factor), squares)
    return result


def by_power(p: Poly, atom: int) -> dict[int, dict[Mono, Coef]]:
    """The coefficients of the powers of one atom."""
    result: dict[int, dict[Mono, Coef]] = {}
    for mono, c in p.items():
        exponent = next((e for a, e in mono if a == atom), 0)
        rest = tuple((a, e) for a, e in mono if a != atom)
        result.setdefault(exponent, {})[rest] = c
    return result


def divide(p: Poly, q: Poly) -> Poly | None:
    """`p / q` where it comes out even."""
    if len(q) > len(p):
        return None
    lead = max(q, key=_lex)
    quotient: Poly = {}
    rest = dict(p)
    for _ in range(TERMS):
        if not rest:
            return quotient
        top = max(rest, key=_lex)
        ratio = _ratio(top, lead)
        if ratio is None:
            return None
        c = slim(Fraction(rest[top]) / q[lead])
        quotient = add(quotient, {ratio: c})
        rest = dict(add(rest, mul({ratio: c}, q), -1))
    return None


def square_root(p: Poly) -> Poly | None:
    """What `p` is the square of, if it is one."""
    if not p:
        return p
    lead = max(p, key=_lex)
    first = Fraction(p[lead])
    above, below = (math.isqrt(max(x, 0)) for x in (first.numerator, first.denominator))
    if any(e % 2 for _, e in lead) or Fraction(above**2, below**2) != first:
        return None
    half = tuple((a, e // 2) for a, e in lead)
    found: Poly = {half: slim(Fraction(above, below))}
    for _ in range(TERMS):
        rest = add(p, mul(found, found), -1)
        if not rest:
            return found
        top = max(rest, key=_lex)
        ratio = _ratio(top, half)
        if ratio is None or ratio in found:
            return None
        found = add(found, {ratio: slim(Fraction(rest[top]) / (2 * Fraction(above, below)))})
    return None


def _lex(mono: Mono) -> Mono:
    """A sort key that agrees with multiplication."""
    return tuple((-a, e) for a, e in mono)


def _ratio(m: Mono, n: Mono) -> Mono | None:
    powers = dict(m)
    for a, e in n:
        powers[a] = powers.get(a, 0) - e
    if any(e < 0 for e in powers.values()):
        return None
    return tuple(sorted((a, e) for a, e in powers.items() if e))


def content(p: Poly) -> Mono:
    """The greatest monomial that divides every term."""
    common: dict[int, int] | None = None
    for mono in p:
        powers = dict(mono)
        common = powers if common is None else {a: min(e, powers[a]) for a, e in common.items() if a in powers}
    return tuple(sorted((common or {}).items()))


@dataclass(frozen=True, slots=True)
class Rat:
    """`num / den`; every factor of `den` is positive wherever the expression has a value."""

    num: Poly
    den: tuple[tuple[Frozen, int], ...] = ()

    @property
    def atoms(self) -> set[int]:
        return atoms(self.num).union(*(atoms(dict(f)) for f, _ in self.den))

    def key(self) -> tuple[Frozen, tuple[tuple[Frozen, int], ...]]:
        return freeze(self.num), self.den

    @property
    def value(self) -> Coef | None:
        """The number that it is, if it is one."""
        if self.den or any(m for m in self.num):
            return None
        return self.num.get(UNIT, 0)


def rat(value: Coef) -> Rat:
    return Rat(constant(value))


def rat_add(a: Rat, b: Rat, squares: Reduce, scale: int = 1) -> Rat:
    left, right = dict(a.den), dict(b.den)
    both = {f: max(left.get(f, 0), right.get(f, 0)) for f in (*left, *right)}
    up = product([(f, n - left.get(f, 0)) for f, n in both.items()], squares)
    down = product([(f, n - right.get(f, 0)) for f, n in both.items()], squares)
    return cancel(add(mul(a.num, up, squares), mul(b.num, down, squares), scale), both)


def rat_mul(a: Rat, b: Rat, squares: Reduce) -> Rat:
    den: dict[Frozen, int] = dict(a.den)
    for f, n in b.den:
        den[f] = den.get(f, 0) + n
    return cancel(mul(a.num, b.num, squares), den)


def cancel(num: Poly, den: Mapping[Frozen, int]) -> Rat:
    """The fraction with every factor of `den` taken out of `num` as often as it divides it."""
    kept: dict[Frozen, int] = {}
    for factor, n in den.items():
        left = n
        while left and num and (quotient := divide(num, dict(factor))) is not None:
            num, left = quotient, left - 1
        if left and num:
            kept[factor] = left
    return Rat(num, tuple(sorted(kept.items())))


def rat_substitute(r: Rat, atom: int, value: Rat, squares: Reduce) -> Rat:
    """`r` with what an atom equals put in its place: factors of the denominator stay positive."""
    if atom not in r.atoms:
        return r
    num, below = _substitute(r.num, atom, value, squares)
    result = cancel(num, dict(below))
    for factor, n in r.den:
        top, under = _substitute(dict(factor), atom, value, squares)
        inverse = Rat(product(under, squares), ((freeze(top), 1),))
        for _ in range(n):
            result = rat_mul(result, inverse, squares)
    return result


def _substitute(p: Poly, atom: int, value: Rat, squares: Reduce) -> tuple[Poly, tuple[tuple[Frozen, int], ...]]:
    top = degree(p, atom)
    below = product(value.den, squares)
    result: Poly = {}
    for exponent, coefficient in sorted(by_power(p, atom).items()):
        term = mul(coefficient, power(value.num, exponent, squares), squares)
        result = add(result, mul(term, power(below, top - exponent, squares), squares))
    return result, tuple((f, n * top) for f, n in value.den) if top else ()
