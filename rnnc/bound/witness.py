"""Numbers that break a claim.

Goals: a reachable counterexample in few and simple numbers, found by a seeded search over floats and then proved in
exact arithmetic, so that no claim is refuted by a rounding error.
Non-goals: finding one wherever there is one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, TypeVar

from rnnc.bound.evaluate import FLOATS, INTERVALS, Array, Runner, Slot, Unsupported
from rnnc.bound.interval import INF, Interval, point
from rnnc.bound.invariants import Environment
from rnnc.bound.parts import Parts, is_zero
from rnnc.bound.ranges import walk_real
from rnnc.bound.relational import Budget
from rnnc.ir import Draw, Expr, Linear, Merge, Normalize, Reduce, Ref, Solve, Split, walk
from rnnc.show import expr_text

_PLAIN = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 1.3, -1.3, 3.0, -3.0, 0.1, -0.1, 10.0, -10.0, 30.0, -30.0)
_LEAST = 500
_EXACT = 8
_TOLD = 3
_STARTS = 5
_TOKENS = (1, 2, 3)
_MARGIN = 1e-6
_WEIGHTS, _INPUTS, _NEAR = 60, 16, 1e-3

_SIZED = Reduce | Normalize | Linear | Solve | Merge | Split
"""Operations that go over dims."""

V = TypeVar("V")


@dataclass(frozen=True)
class Witness:
    """A counterexample: what each value is, and what comes of it after `tokens` tokens with dims of size `size`.

    `values` are (name, numbers) pairs, the numbers as text; `rest` says that there are more, which are 0. `result` is
    the offending value, `sized` whether sizes may matter for it.
    """

    values: tuple[tuple[str, str], ...]
    result: complex | float
    tokens: int
    size: int
    rest: bool = False
    sized: bool = False

    def text(self) -> str:
        """with `x = 2`, `w = -1` after 2 tokens."""
        said = ", ".join(f"`{name} = {text}`" for name, text in self.values)
        if self.rest:
            said = f"{said}, all else 0" if said else "all 0"
        when = f"after {self.tokens} tokens" if self.tokens > 1 else "" if said else "at the first token"
        where = f"at sizes of {self.size}" if self.sized else ""
        return " ".join(part for part in (said and f"with {said}", where, when) if part)


class Target(Protocol):
    """What must not happen, in terms of real expressions of the model.

    `roots` are what it is told by, `shown` more values to report, which come last. `strict`: an end counts as outside.
    """

    @property
    def shown(self) -> tuple[tuple[str, Expr], ...]: ...
    @property
    def strict(self) -> bool: ...
    @property
    def cost(self) -> int:
        """What one look costs beside the values, in nodes evaluated."""
        ...

    def roots(self) -> list[Expr]: ...

    def score(self, at: Sequence[float]) -> float:
        """How far outside: positive there, 0 at an end."""
        ...

    def offence(self, at: Sequence[Interval]) -> complex | float | None:
        """The offending value, if the claim is false for all values of these intervals."""
        ...


@dataclass(frozen=True)
class Outside:
    """`value` outside of the region between `lo` and `hi`, or `imag` different from 0, as far as they are given. It may
    be the modulus `of` something, which is what is reported."""

    value: Expr
    lo: Expr | None = None
    hi: Expr | None = None
    lo_open: bool = False
    hi_open: bool = False
    imag: Expr | None = None
    shown: tuple[tuple[str, Expr], ...] = ()
    of: Parts | None = None
    cost: int = 0

    @property
    def strict(self) -> bool:
        return self.lo_open or self.hi_open

    def roots(self) -> list[Expr]:
        return [*(e for _, e in self._parts()), *(e for _, e in self.shown)]

    def _parts(self) -> list[tuple[str, Expr]]:
        of = () if self.of is None else (("of", self.of.re), ("turned", None if is_zero(self.of.im) else self.of.im))
        named = (("value", self.value), ("lo", self.lo), ("hi", self.hi), ("imag", self.imag), *of)
        return [(n, e) for n, e in named if e is not None]

    def _read(self, values: Sequence[V]) -> dict[str, V]:
        return dict(zip((n for n, _ in self._parts()), values, strict=False))

    def score(self, at: Sequence[float]) -> float:
        read = self._read(at)
        gaps: list[float] = []
        if "hi" in read:
            gaps.append((read["value"] - read["hi"]) / (1 + abs(read["hi"])))  # inf where the value is
        if "lo" in read:
            gaps.append((read["lo"] - read["value"]) / (1 + abs(read["lo"])))
        if "imag" in read:
            gaps.append(abs(read["imag"]))
        gaps = [g for g in gaps if g == g]
        return max(gaps, default=-INF)

    def offence(self, at: Sequence[Interval]) -> complex | float | None:
        read = self._read(at)
        if any(i.undefined for i in read.values()):
            return None
        value = read["value"]
        above = "hi" in read and (value.lo > read["hi"].hi or (self.hi_open and value.lo >= read["hi"].hi))
        below = "lo" in read and (value.hi < read["lo"].lo or (self.lo_open and value.hi <= read["lo"].lo))
        turned = "imag" in read and read["imag"].nonzero
        if not (above or below or turned):
            return None
        if "turned" in read and read["turned"].nonzero:
            return complex(middle(read["of"]), middle(read["turned"]))
        return complex(middle(value), middle(read["imag"])) if turned else middle(read.get("of", value))


def search_budget() -> Budget:
    """For all searches of one cell: how many nodes may be evaluated."""
    return Budget(400_000, 120_000)


def search(env: Environment, target: Target, budget: Budget, sizes: Sequence[int] = (1, 2)) -> Witness | None:
    """A witness against a target, or None where none was found."""
    remaining = [budget.allowance(_LEAST)]
    for size in sizes:
        try:
            found = _Search(env, target, size, remaining).run()
        except Unsupported:
            found = None
        if found is not None:
            break
    else:
        found = None
    budget.left += max(remaining[0], 0)
    return found


def reached(env: Environment, value: Expr, targets: Sequence[float]) -> bool:
    """Whether inputs were found that bring a value near each of some targets, with the same params for all of them.

    No lag may stand in the value: it is looked at at the first token.
    """
    try:
        return _Search(env, Outside(value), 1, [0]).reaches(targets)
    except Unsupported:
        return False


Numbers = dict[Slot, float]


class _Search:
    def __init__(self, env: Environment, target: Target, size: int, remaining: list[int]) -> None:
        self.env = env
        self.target = target
        self.size = size
        self.remaining = remaining
        self.runner = Runner(env.model, target.roots(), size, FLOATS)
        self.domains: dict[Slot, Interval] = {}
        self.random = random.Random(1)
        self.seen: dict[object, tuple[complex | float, list[Interval]] | None] = {}

    def run(self) -> Witness | None:
        past = any(isinstance(n, Ref) and n.lag for r in self.target.roots() for n in walk_real(r)) or any(
            isinstance(n, Ref) and n.lag for r in self.target.roots() for n in walk(r)
        )
        for tied in (True, False):
            for tokens in _TOKENS if past else _TOKENS[:1]:
                if not tied and tokens == 1:
                    continue
                found = self.search(tokens, tied)
                if found is not None:
                    return self.report(self.simplified(found, tokens, tied), tokens, tied)
        return None

    # --- evaluating -------------------------------------------------------------------------------------------------

    def key(self, slot: Slot, tied: bool) -> Slot:
        return Slot(slot.kind, slot.name, slot.part, slot.index) if tied else slot

    def chooser(self, numbers: Numbers, tied: bool) -> Callable[[Slot], float]:
        def choose(slot: Slot) -> float:
            key = self.key(slot, tied)
            if key not in numbers:
                numbers[key] = self.default(key)
            return numbers[key]

        return choose

    def score(self, numbers: Numbers, tokens: int, tied: bool) -> float:
        """The worst violation at the last token."""
        self.remaining[0] -= len(self.runner.order) * tokens * self.size + self.target.cost
        results = self.runner.run(tokens, self.chooser(numbers, tied))[-1]
        return max(self.target.score(at) for at in _rows(self.runner, results))

    # --- searching --------------------------------------------------------------------------------------------------

    def domain(self, slot: Slot) -> Interval:
        if slot not in self.domains:
            self.domains[slot] = self._domain(slot)
        return self.domains[slot]

    def _domain(self, slot: Slot) -> Interval:
        model = self.env.model
        graph = model.graph
        match slot.kind:
            case "input":
                declared = model.cell.input(slot.name)
                leaf: Expr = graph.ref("input", slot.name, declared.type)
                if slot.part:
                    # Both parts within a square inside the disc.
                    bound = self.env.leaf(graph.apply("abs", leaf))
                    if isinstance(bound.hi, Fraction):
                        return Interval(-bound.hi * Fraction(7, 10), bound.hi * Fraction(7, 10))
                    leaf = graph.apply(slot.part, leaf)
                return self.env.leaf(leaf)
            case "const":
                const = model.cell.const(slot.name)
                return point(const.value) if const.region is None else self.env.leaf(graph.ref("const", slot.name))
            case "draw":
                drawn = self.drawn(slot)
                return Interval(-INF, INF, True, True) if drawn is None else self.env.leaf(drawn)
            case _:
                return Interval(-INF, INF, True, True)

    def drawn(self, slot: Slot) -> Draw | None:
        """What a slot of a param or a buffer is drawn from."""
        model = self.env.model
        draws = [n for p in model.cell.params for n in walk(p.init) if isinstance(n, Draw)]
        return next((d for d in draws if str(model.number(d)) == slot.name), None)

    def title(self, slot: Slot) -> str:
        """What a slot is called: a draw, which has no name of its own, as the program writes it."""
        drawn = self.drawn(slot) if slot.kind == "draw" else None
        return slot.name if drawn is None else expr_text(drawn)

    def boolean(self, slot: Slot) -> bool:
        return slot.kind == "input" and self.env.model.cell.input(slot.name).type.kind == "bool"

    def candidates(self, slot: Slot) -> list[float]:
        """Numbers to try for a slot, simplest first."""
        domain = self.domain(slot)
        if self.boolean(slot):
            return [0.0, 1.0]
        if domain.point:
            return [float(domain.lo)]
        found = [x for x in _PLAIN if domain.holds(Fraction(x))]
        for end, is_open, inward in ((domain.lo, domain.lo_open, 1), (domain.hi, domain.hi_open, -1)):
            if not isinstance(end, Fraction):
                continue
            width = float(min(Fraction(1), abs(domain.hi - domain.lo)) if math.isfinite(domain.hi - domain.lo) else 1)
            near = float(end) + inward * width * 0.001
            value = near if is_open else float(end)
            if domain.holds(Fraction(value)) and value not in found:
                found.append(value)
        if not found:
            middle = (Fraction(domain.lo) + Fraction(domain.hi)) / 2
            found = [float(middle)]
        return found

    def default(self, slot: Slot) -> float:
        if slot.kind == "const":
            return float(self.env.model.cell.const(slot.name).value)
        return self.candidates(slot)[0]

    def enough(self, score: float) -> bool:
        return score > _MARGIN or (score >= 0 and self.target.strict)

    def search(self, tokens: int, tied: bool) -> Numbers | None:
        for start in range(_STARTS):
            numbers: Numbers = {}
            best = self.score(numbers, tokens, tied)
            if start == 1:
                numbers = {s: self.near(s, 1.0) for s in numbers}
            elif start > 1:
                numbers = {s: self.random.choice(self.candidates(s)) for s in numbers}
            if start:
                best = self.score(numbers, tokens, tied)
            if self.enough(best) and self.proved(numbers, tokens, tied):
                return numbers
            for _ in range(2):
                before = best
                for slot in list(numbers):
                    kept = numbers[slot]
                    for candidate in self.candidates(slot):
                        if candidate == kept or self.remaining[0] <= 0:
                            continue
                        trial = {**numbers, slot: candidate}
                        score = self.score(trial, tokens, tied)
                        if score > best:
                            best, numbers = score, trial
                            if self.enough(best) and self.proved(numbers, tokens, tied):
                                return numbers
                if best <= before:
                    break
            if self.remaining[0] <= 0:
                return None
        return None

    def near(self, slot: Slot, value: float) -> float:
        return min(self.candidates(slot), key=lambda c: abs(c - value))

    def proved(self, numbers: Numbers, tokens: int, tied: bool) -> bool:
        """Whether the claim is broken in exact arithmetic."""
        return self.offence(numbers, tokens, tied) is not None

    def offence(self, numbers: Numbers, tokens: int, tied: bool) -> tuple[complex | float, list[Interval]] | None:
        """The first offending value, with all that was computed beside it."""
        key = (frozenset(numbers.items()), tokens, tied)
        if key not in self.seen:
            self.seen[key] = next(self._offences(numbers, tokens, tied), None)
        return self.seen[key]

    def _offences(self, numbers: Numbers, tokens: int, tied: bool) -> Iterator[tuple[complex | float, list[Interval]]]:
        self.remaining[0] -= _EXACT * (len(self.runner.order) * tokens * self.size + self.target.cost)
        exact = Runner(self.env.model, self.target.roots(), self.size, INTERVALS)
        results = exact.run(tokens, lambda slot: point(numbers.get(self.key(slot, tied), 0.0)))[-1]
        for at in _rows(exact, results):
            found = self.target.offence(at)
            if found is not None:
                yield found, at

    def reaches(self, targets: Sequence[float]) -> bool:
        numbers: Numbers = {}
        self.score(numbers, 1, True)
        inputs = [s for s in numbers if s.kind == "input"]
        for _ in range(_WEIGHTS):
            numbers = {s: self.random.choice(self.candidates(s)) for s in numbers}
            missing = set(targets)
            for _ in range(_INPUTS):
                numbers |= {s: self.random.choice(self.candidates(s)) for s in inputs}
                results = self.runner.run(1, self.chooser(numbers, True))[-1]
                missing = {
                    x
                    for x in missing
                    if abs(results[0].data[0] - x) > _NEAR or results[0].data[0] != results[0].data[0]
                }
                if not missing:
                    return True
        return False

    # --- telling ----------------------------------------------------------------------------------------------------

    def simplified(self, numbers: Numbers, tokens: int, tied: bool) -> Numbers:
        """The same with as plain numbers as the violation allows: those chosen, or those shown instead."""
        least = min(self.score(numbers, tokens, tied), 0.05)
        for slot in list(numbers):
            trials = [{**numbers, slot: candidate} for candidate in self.candidates(slot)]
            good = (
                trial
                for trial in trials
                if (not self.target.cost or self.remaining[0] > 0)
                and (score := self.score(trial, tokens, tied)) >= least
                and self.enough(score)
                and self.proved(trial, tokens, tied)
            )
            if self.target.shown:
                numbers = min(good, key=lambda trial: len(self.report(trial, tokens, tied).text()), default=numbers)
            else:
                numbers = next(good, numbers)
        return numbers

    def report(self, numbers: Numbers, tokens: int, tied: bool) -> Witness:
        found = self.offence(numbers, tokens, tied)
        assert found is not None
        result, at = found
        shown = [(name, at[-len(self.target.shown) + i]) for i, (name, _) in enumerate(self.target.shown)]
        values = tuple((n, number_text(middle(i))) for n, i in shown) if shown else self.named(numbers)
        rest = not shown and len({self.title(s) for s in numbers}) > len(values)
        sized = not shown and any(isinstance(n, _SIZED) or _is_size(n) for n in self.runner.order)
        return Witness(values, result, tokens, self.size, rest, sized)

    def named(self, numbers: Numbers) -> tuple[tuple[str, str], ...]:
        """The chosen numbers by name, those that are 0 left out where there are many."""
        tokens: dict[str, dict[int, list[float]]] = {}
        for slot, value in sorted(numbers.items(), key=lambda i: (i[0].token, i[0].index, i[0].part != "real")):
            tokens.setdefault(self.title(slot), {}).setdefault(slot.token, []).append(value)
        order = list(dict.fromkeys(self.title(s) for s in numbers))
        found = [(n, ", then ".join(_entries(v) for _, v in sorted(tokens[n].items()))) for n in order]
        return tuple(found if len(found) <= _TOLD else [(n, text) for n, text in found if text != "0"])


def _is_size(node: Expr) -> bool:
    return isinstance(node, Ref) and node.role == "size"


def _rows(runner: Runner[V], arrays: Sequence[Array[V]]) -> Iterator[list[V]]:
    """The values of all roots at each entry of the first."""
    first = arrays[0]
    for at in runner.entries(first.dims):
        where = dict(zip(first.dims, at, strict=True))
        yield [runner.at(a, where) for a in arrays]


def _entries(values: list[float]) -> str:
    texts = [number_text(v) for v in values]
    return texts[0] if len(set(texts)) == 1 else f"({', '.join(texts)})"


def middle(x: Interval) -> float:
    """A number of an interval."""
    if x.point:
        return float(x.lo)
    if not (math.isfinite(x.lo) and math.isfinite(x.hi)):
        return float(x.lo if math.isfinite(x.lo) else x.hi)
    return float((Fraction(x.lo) + Fraction(x.hi)) / 2)


def number_text(value: complex | float) -> str:
    """A number for people: three digits, or five where three would make a whole number of it: 1.001 is not 1."""
    if isinstance(value, complex):
        return f"{value.real + 0.0:.3g}{value.imag + 0.0:+.3g}j"
    text = f"{value + 0.0:.3g}"
    return f"{value + 0.0:.5g}" if float(text).is_integer() else text
