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
from math import comb

from rnnc.bound import functions
from rnnc.bound.forms import Forms
from rnnc.bound.interval import INF, REAL, ZERO, End, Interval, hull
from rnnc.bound.poly import (
    Mono,
    Poly,
    Rat,
    TooLarge,
    degree,
    product,
    rat_add,
    rat_mul,
    rat_substitute,
    times,
    variable,
)

_TERMS = 400
_VARIANTS = 12
_DEPTH = 2
_ONE_FORM = 2_000


@dataclass
class Budget:
    """Terms that may still be looked at. Counting work, not time, keeps the answers the same everywhere."""

    left: int = 120_000

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
        self._stop = 0

    def worth(self, r: Rat) -> bool:
        """Whether anything occurs twice, or an atom is bounded by another."""
        seen: set[int] = set()
        for mono in [*r.num, *(m for f, _ in r.den for m, _ in f)]:
            for i, e in mono:
                if i in seen or e > 1:
                    return True
                seen.add(i)
        return any(self._related(r, i) for i in seen)

    def __call__(self, r: Rat) -> Interval:
        key = r.key()
        if key not in self._known:
            self._stop = self.budget.left - _ONE_FORM
            self._known[key] = self._search(r, _DEPTH, [_VARIANTS])
        return self._known[key]

    def _related(self, r: Rat, atom: int) -> bool:
        known = self.forms.atoms[atom]
        return any((s.base.atoms & r.atoms) - {atom} for s in known.sides) or any(
            (c.atoms & r.atoms) - {atom} for c in known.cases
        )

    def _search(self, r: Rat, depth: int, variants: list[int]) -> Interval:
        """The meet of what all ways of writing `r` give."""
        variants[0] -= 1
        loose = self._loose(r)
        best = REAL if loose else self._rooted(r)
        if depth == 0 or not loose <= self._reach(r):
            return best
        for i in sorted(r.atoms):
            if variants[0] <= 0 or best.point or self.budget.left < self._stop:
                break
            if not self._related(r, i):
                continue
            known = self.forms.atoms[i]
            for option, side in enumerate(known.sides):
                if (side.base.atoms & r.atoms) - {i} and variants[0] > 0:
                    best = _meet(best, self._with_side(r, i, option, depth - 1, variants))
            if known.cases and variants[0] > 1:
                best = _meet(best, self._by_case(r, i, known.cases, depth - 1, variants))
        return best

    def _loose(self, r: Rat) -> set[int]:
        """Atoms that make `r` unbounded on both sides unless they cancel."""
        below = {m for f, _ in r.den for m, _ in f}
        return {
            i
            for mono in r.num
            if mono not in below or len(r.den) != 1
            for i, e in mono
            if e % 2 and self._free(i) and not any(j == i for m in below for j, _ in m)
        }

    def _free(self, atom: int) -> bool:
        box = self.forms.atoms[atom].box
        return box.lo == -INF and box.hi == INF

    def _reach(self, r: Rat) -> set[int]:
        """Atoms that bounds or cases of other atoms may cancel."""
        found: set[int] = set()
        for i in r.atoms:
            known = self.forms.atoms[i]
            for form in (*(s.base for s in known.sides), *known.cases):
                found |= {i, *form.atoms}
                for j in form.atoms:
                    inner = self.forms.atoms[j]
                    for deeper in (*(s.base for s in inner.sides), *inner.cases):
                        found |= deeper.atoms
        return found

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

    def _rooted(self, r: Rat) -> Interval:
        """Bounds of `r`, and of its square where roots in it go away."""
        best = self._split(r)
        try:
            if any(self.forms.squares(i) is not None for i in r.atoms):
                square = self._split(rat_mul(r, r, self.forms.squares)).meet(Interval(ZERO, INF, False, True))
                if square is not None:
                    size = functions.sqrt(square)
                    best = _meet(best, -size if best.hi <= 0 else size if best.lo >= 0 else (-size).hull(size))
        except TooLarge:
            pass
        return best

    def _split(self, r: Rat) -> Interval:
        """Bounds of `r`, with the range of an atom of a higher degree halved."""
        try:
            below = product(r.den, self.forms.squares)
            num = r.num
            boxes = {i: self.forms.atoms[i].box for i in sorted(r.atoms)}
            boxes = {i: b for i, b in boxes.items() if degree(num, i) or degree(below, i)}
            best = self._direct(num, below, boxes)
            bent = [i for i in boxes if max(degree(num, i), degree(below, i)) > 1]
            for i in bent[:2]:
                halves = _halve(boxes[i])
                if halves is not None:
                    parts = [self._direct(num, below, {**boxes, i: half}) for half in halves]
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


def _halve(box: Interval) -> tuple[Interval, Interval] | None:
    if not (isinstance(box.lo, Fraction) and isinstance(box.hi, Fraction)) or box.point:
        return None
    middle = (box.lo + box.hi) / 2
    return Interval(box.lo, middle, box.lo_open, False), Interval(middle, box.hi, False, box.hi_open)


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
        powers = {k: _bernstein(lo, hi, k, top, first, second) for k in range(top + 1)}
    elif isinstance(lo, Fraction):
        powers = {k: _shifted(lo, 1 if lo != hi else 0, k, first) for k in range(top + 1)}
        if box.lo_open:
            space.positive.add(first)
    elif isinstance(hi, Fraction):
        powers = {k: _shifted(hi, -1, k, first) for k in range(top + 1)}
        if box.hi_open:
            space.positive.add(first)
    else:
        powers = {k: {((first, k),) if k else (): Fraction(1)} for k in range(top + 1)}
        space.free.add(first)
    return _replace(num, atom, powers), _replace(below, atom, powers)


def _bernstein(lo: Fraction, hi: Fraction, k: int, top: int, first: int, second: int) -> Poly:
    """`(lo a + hi b)^k (a + b)^(top - k)`."""
    result: dict[Mono, Fraction] = {}
    for i in range(k + 1):
        for j in range(top - k + 1):
            c = comb(k, i) * lo ** (k - i) * hi**i * comb(top - k, j)
            if c:
                b = i + j
                mono = tuple((v, e) for v, e in ((second, b), (first, top - b)) if e)
                result[mono] = result.get(mono, ZERO) + c
    return {m: c for m, c in result.items() if c}


def _shifted(end: Fraction, sign: int, k: int, first: int) -> Poly:
    """`(end + sign * y)^k`."""
    terms = {j: comb(k, j) * end ** (k - j) * Fraction(sign) ** j for j in range(k + 1)}
    return {((first, j),) if j else (): c for j, c in terms.items() if c}


def _replace(p: Poly, atom: int, powers: Mapping[int, Poly]) -> Poly:
    result: dict[Mono, Fraction] = {}
    for mono, c in p.items():
        exponent = next((e for a, e in mono if a == atom), 0)
        rest = tuple((a, e) for a, e in mono if a != atom)
        for extra, d in powers[exponent].items():
            key = times(rest, extra)
            result[key] = result.get(key, ZERO) + c * d
        if len(result) > _TERMS:
            raise TooLarge
    return {m: c for m, c in result.items() if c}


def _least(num: Poly, below: Poly, space: _Space) -> End:
    """The greatest `c` for which `num - c * below` has no negative coefficient: a lower bound of the fraction."""
    upper: Fraction | None = None
    lower: Fraction | None = None
    for mono in {**num, **below}:
        n, d = num.get(mono, ZERO), below.get(mono, ZERO)
        if any(v in space.free and e % 2 for v, e in mono):
            if d == 0:
                return -INF, True
            upper = n / d if upper is None else min(upper, n / d)
            lower = n / d if lower is None else max(lower, n / d)
        elif d > 0:
            upper = n / d if upper is None else min(upper, n / d)
        elif d < 0:
            lower = n / d if lower is None else max(lower, n / d)
        elif n < 0:
            return -INF, True
    if upper is None or (lower is not None and lower > upper):
        return -INF, True
    strict = any(
        num.get(m, ZERO) - upper * below.get(m, ZERO) > 0 and all(v in space.positive for v, _ in m)
        for m in {**num, **below}
    )
    return upper, strict
