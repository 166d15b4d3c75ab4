"""Bounds of forms: what intervals lose where a value occurs twice.

Goals: a sound range of a fraction of polynomials over atoms in boxes, found without search. Each atom is written over
quantities that are not negative (`x = lo + y`, or `x = lo * a + hi * b` with `a + b = 1`); then `num - c * den >= 0`
follows where all its coefficients are not negative, and the best `c` is a comparison of coefficients. Atoms with bounds
of their own (`max(u, w) = u + s`, `s >= 0`) are tried in that form too, and atoms with cases case by case.
Non-goals: completeness. Every step costs from a budget; where it is spent, the answer is "unbounded".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from math import comb

from rnnc.bound import functions
from rnnc.bound.forms import Forms
from rnnc.bound.interval import INF, ONE, REAL, ZERO, End, Interval, hull, point
from rnnc.bound.poly import (
    Coef,
    Mono,
    Poly,
    Rat,
    TooLarge,
    atoms,
    degree,
    freeze,
    product,
    rat_add,
    rat_mul,
    rat_substitute,
    slim,
    times,
    variable,
)

_TERMS = 400
_VARIANTS = 12
_DEPTH = 2
_SMALL = 12


@dataclass
class Budget:
    """Steps that are left, in all and for `each` question. To count work, not time, keeps answers the same."""

    left: int = 120_000
    each: int = 600

    def allowance(self, least: int) -> int:
        """What one question may cost, and that taken off; never less than `least`."""
        allowed = max(least, min(self.each, self.left))
        self.left -= allowed
        return allowed

    def spend(self, amount: int) -> bool:
        self.left -= amount
        return self.left > 0


@dataclass(slots=True)
class _Space:
    """The variables that atoms were written over: which may have either sign, and which are never 0."""

    free: set[int] = field(default_factory=set[int])
    positive: set[int] = field(default_factory=set[int])


class Bounds:
    """Ranges of forms, remembered."""

    def __init__(self, forms: Forms, budget: Budget) -> None:
        self.forms = forms
        self.budget = budget
        self._known: dict[object, Interval] = {}
        self._abouts: dict[int, frozenset[int]] = {}
        self._stop = 0

    def worth(self, r: Rat) -> bool:
        """Whether anything occurs twice, or what an atom is bounded by occurs beside it."""
        monos = [*r.num, *(m for f, _ in r.den for m, _ in f)]
        seen: set[int] = set()
        for i, e in (power for mono in monos for power in mono):
            if e > 1 or seen & self._about(i):
                return True
            seen |= self._about(i)
        return False

    def __call__(self, r: Rat) -> Interval:
        key = r.key()
        if key not in self._known:
            self._stop = self.budget.left - self.budget.each
            self._known[key] = self._rooted(r)
        return self._known[key]

    def _about(self, atom: int) -> frozenset[int]:
        """The atom, and those in what it is bounded by or made of, two steps deep."""
        if atom not in self._abouts:
            found = {atom}
            for _ in range(2):
                for i in list(found):
                    known = self.forms.atoms[i]
                    for form in (*(side.base for side in known.sides), *known.cases):
                        found |= form.atoms
                    if known.square is not None:
                        found |= atoms(known.square)
            self._abouts[atom] = frozenset(found)
        return self._abouts[atom]

    def _rooted(self, r: Rat) -> Interval:
        """Bounds of `r`, and of its square where roots in it go away."""
        best = self._search(r, _DEPTH, [_VARIANTS])
        if best.point or all(self.forms.squares(i) is None for i in r.atoms):
            return best
        try:
            twice = rat_mul(r, r, self.forms.squares)
            below = freeze(product(twice.den, self.forms.squares))
            found = self._search(Rat(twice.num, ((below, 1),)), _DEPTH, [_VARIANTS])
        except TooLarge:
            return best
        square = found.meet(Interval(ZERO, INF, False, True))
        if square is None:
            return best
        size = functions.sqrt(square)
        return _meet(best, -size if best.hi <= 0 else size if best.lo >= 0 else (-size).hull(size))

    def _search(self, r: Rat, depth: int, variants: list[int]) -> Interval:
        """The meet of what all ways of writing `r` give."""
        variants[0] -= 1
        loose = self._loose(r)
        best = REAL if loose else self._split(r)
        if depth == 0 or best.point:
            return best
        abouts = {i: self._about(i) for i in sorted(r.atoms)}
        active = [i for i in abouts if self.forms.atoms[i].sides or self.forms.atoms[i].cases]
        if not loose <= {j for i in active for j in abouts[i]}:
            return best
        for i in active:
            others = {k for j in abouts if j != i for k in abouts[j]}
            known = self.forms.atoms[i]
            for option, side in enumerate(known.sides):
                if self._spent(variants):
                    return best
                if any(self._about(j) & others for j in side.base.atoms):
                    best = _meet(best, self._with_side(r, i, option, depth - 1, variants))
            if known.cases and not self._spent(variants) and abouts[i] & others:
                best = _meet(best, self._by_case(r, i, known.cases, depth - 1, variants))
        return best

    def _spent(self, variants: list[int]) -> bool:
        return variants[0] <= 0 or self.budget.left < self._stop

    def _loose(self, r: Rat) -> set[int]:
        """Atoms that make `r` unbounded on both sides unless they cancel: of odd power, with no even one or divisor."""
        below = {m for f, _ in r.den for m, _ in f}
        divisors = {j for m in below for j, _ in m}
        even = {j for m in r.num for j, e in m if e % 2 == 0}
        return {
            i
            for mono in r.num
            if mono not in below or len(r.den) != 1
            for i, e in mono
            if e % 2 and i not in divisors and i not in even and self._free(i)
        }

    def _free(self, atom: int) -> bool:
        box = self.forms.atoms[atom].box
        return box.lo == -INF and box.hi == INF

    def _with_side(self, r: Rat, atom: int, option: int, depth: int, variants: list[int]) -> Interval:
        side = self.forms.atoms[atom].sides[option]
        slack = variable(self.forms.slack(atom, option))
        try:
            gap = Rat({m: c * side.sign for m, c in slack.items()})
            value = rat_add(side.base, gap, self.forms.squares)
            return self._search(rat_substitute(r, atom, value, self.forms.squares), depth, variants)
        except TooLarge:
            return REAL

    def _by_case(self, r: Rat, atom: int, cases: Iterable[Rat], depth: int, variants: list[int]) -> Interval:
        try:
            return hull(
                self._search(rat_substitute(r, atom, case, self.forms.squares), depth, variants) for case in cases
            )
        except TooLarge:
            return REAL

    def _split(self, r: Rat) -> Interval:
        """Bounds of `r`, with the range of an atom of a higher degree in pieces."""
        try:
            below = product(r.den, self.forms.squares)
            num = r.num
            boxes = {i: self.forms.atoms[i].box for i in sorted(atoms(num) | atoms(below))}
            best = self._direct(num, below, boxes)
            if len(num) + len(below) > _SMALL or best.point:
                return best
            bent = {i: _pieces(boxes[i]) for i in boxes if max(degree(num, i), degree(below, i)) > 1}
            bent.update({i: [point(0), point(1)] for i in boxes if self.forms.squares(i) == variable(i)})
            for i, pieces in list(bent.items())[:2]:
                parts = [self._direct(num, below, {**boxes, i: piece}) for piece in pieces]
                best = _meet(best, hull(parts))
            return best
        except TooLarge:
            return REAL

    def _direct(self, num: Poly, below: Poly, boxes: Mapping[int, Interval]) -> Interval:
        """Bounds by comparing coefficients."""
        space = _Space()
        for i, box in boxes.items():
            num, below = _rewrite(num, below, i, box, space)
            if not self.budget.spend(len(num) + len(below)) or self.budget.left < self._stop:
                return REAL
        lo, lo_open = _least(num, below, space)
        hi, hi_open = _least({m: -c for m, c in num.items()}, below, space)
        return Interval(lo, -hi, lo_open, hi_open)


def _meet(a: Interval, b: Interval) -> Interval:
    """What is in both; where nothing is, the case cannot arise, and the first is as good as any."""
    return a.meet(b) or a


def _pieces(box: Interval) -> list[Interval]:
    """A range cut in the middle, or, where it is unbounded, near its end; all numbers at -1, 0 and 1."""
    lo, hi = box.lo, box.hi
    if isinstance(lo, Fraction):
        cuts = [(lo + hi) / 2] if isinstance(hi, Fraction) else [lo + 1]
    else:
        cuts = [hi - 1] if isinstance(hi, Fraction) else [-ONE, ZERO, ONE]
    ends = [(lo, box.lo_open), *((cut, False) for cut in cuts), (hi, box.hi_open)]
    return [Interval(a, b, a_open, b_open) for (a, a_open), (b, b_open) in pairwise(ends)]


def _rewrite(num: Poly, below: Poly, atom: int, box: Interval, space: _Space) -> tuple[Poly, Poly]:
    """Both polynomials with an atom written over quantities of known sign; both grow by the same factor."""
    first, second = -2 * atom - 1, -2 * atom - 2
    top = max(degree(num, atom), degree(below, atom))
    lo, hi = box.lo, box.hi
    if isinstance(lo, Fraction) and isinstance(hi, Fraction) and lo != hi:
        if box.hi_open:
            space.positive.add(first)
        if box.lo_open:
            space.positive.add(second)
        powers = {k: _bernstein(slim(lo), slim(hi), k, top, first, second) for k in range(top + 1)}
    elif isinstance(lo, Fraction):
        powers = {k: _shifted(slim(lo), 1 if lo != hi else 0, k, first) for k in range(top + 1)}
        if box.lo_open:
            space.positive.add(first)
    elif isinstance(hi, Fraction):
        powers = {k: _shifted(slim(hi), -1, k, first) for k in range(top + 1)}
        if box.hi_open:
            space.positive.add(first)
    else:
        powers = {k: {((first, k),) if k else (): 1} for k in range(top + 1)}
        space.free.add(first)
    return _replace(num, atom, powers), _replace(below, atom, powers)


def _bernstein(lo: Coef, hi: Coef, k: int, top: int, first: int, second: int) -> Poly:
    """`(lo a + hi b)^k (a + b)^(top - k)`."""
    result: dict[Mono, Coef] = {}
    for i in range(k + 1):
        for j in range(top - k + 1):
            c = comb(k, i) * lo ** (k - i) * hi**i * comb(top - k, j)
            if c:
                b = i + j
                mono = tuple((v, e) for v, e in ((second, b), (first, top - b)) if e)
                result[mono] = result.get(mono, 0) + c
    return {m: c for m, c in result.items() if c}


def _shifted(end: Coef, sign: int, k: int, first: int) -> Poly:
    """`(end + sign * y)^k`."""
    terms = {j: comb(k, j) * end ** (k - j) * sign**j for j in range(k + 1)}
    return {((first, j),) if j else (): c for j, c in terms.items() if c}


def _replace(p: Poly, atom: int, powers: Mapping[int, Poly]) -> Poly:
    result: dict[Mono, Coef] = {}
    for mono, c in p.items():
        exponent = next((e for a, e in mono if a == atom), 0)
        rest = tuple((a, e) for a, e in mono if a != atom)
        for extra, d in powers[exponent].items():
            key = times(rest, extra)
            result[key] = result.get(key, 0) + c * d
        if len(result) > _TERMS:
            raise TooLarge
    return {m: c for m, c in result.items() if c}


def _balanced(num: Poly, below: Poly, space: _Space) -> Poly:
    """A polynomial that is nowhere larger, with fewer terms of either sign: `x y >= -(x^2 + y^2) / 2`."""
    result = dict(num)
    for mono, c in num.items():
        odd = [v for v, e in mono if v in space.free and e % 2]
        if not odd or len(odd) > 2 or mono in below:
            continue
        del result[mono]
        first, *second = odd
        for up in (1, -1):
            powers = dict(mono)
            powers[first] += up
            for v in second:
                powers[v] -= up
            square = tuple(sorted((v, e) for v, e in powers.items() if e))
            result[square] = result.get(square, 0) - Fraction(abs(c)) / 2
    return result


def _least(num: Poly, below: Poly, space: _Space) -> End:
    """The greatest `c` for which `num - c * below` has no negative coefficient: a lower bound of the fraction."""
    num = _balanced(num, below, space)
    upper: Fraction | None = None
    lower: Fraction | None = None
    for mono in {**num, **below}:
        n, d = num.get(mono, 0), below.get(mono, 0)
        ratio = Fraction(n) / d if d else ZERO
        if any(v in space.free and e % 2 for v, e in mono):
            if d == 0:
                return -INF, True
            upper = ratio if upper is None else min(upper, ratio)
            lower = ratio if lower is None else max(lower, ratio)
        elif d > 0:
            upper = ratio if upper is None else min(upper, ratio)
        elif d < 0:
            lower = ratio if lower is None else max(lower, ratio)
        elif n < 0:
            return -INF, True
    if upper is None or (lower is not None and lower > upper):
        return -INF, True
    strict = any(
        num.get(m, 0) - upper * below.get(m, 0) > 0 and all(v in space.positive for v, _ in m) for m in {**num, **below}
    )
    return upper, strict
