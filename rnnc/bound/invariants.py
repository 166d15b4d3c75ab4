"""Ranges of leaves: what is assumed of inputs, and what holds of every reachable state.

Goals: for each state a range that holds its initial value and that its update maps into itself. Candidates grow from
the initial value, with ends rounded outwards to numbers that occur in the program; the last one is checked, so that
nothing rests on how it was guessed. A leaf that may be infinite is looked at case by case: finite, and each infinity.
Non-goals: relations between states.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from itertools import product

from rnnc import ir
from rnnc.bound.interval import ANY, INF, NONNEGATIVE, ONE, REAL, UNIT, ZERO, Interval, Num, hull, num, point
from rnnc.bound.model import Model, pending
from rnnc.bound.ranges import SIZE, Ranges, is_leaf
from rnnc.bound.relational import Budget
from rnnc.ir import Annulus, Apply, Disc, Draw, Expr, Lit, Ref, Region, walk

_STEPS = 14
_PLAIN_STEPS = 2
_INFINITE_LEAVES = 2
_SIMPLE = [Fraction(n) for n in (0, 1, -1, 2, -2)] + [Fraction(1, 2), Fraction(-1, 2)]

StateRanges = Mapping[tuple[str, str], Interval]
"""By state and part: "" for a real one; "real", "imag" and "abs" for a complex one."""
Limits = Mapping[tuple[str, str], Interval]
"""Assumptions on inputs, consts and params, by role and name, to see what would follow."""


class Environment:
    """Ranges under given ranges of the states. `ranges(e)` looks at the infinite cases too."""

    def __init__(
        self,
        model: Model,
        states: StateRanges,
        budget: Budget,
        limits: Limits | None = None,
        still: Ranges | None = None,
        assumed: Mapping[Expr, Interval] | None = None,
    ) -> None:
        self.model = model
        self.assumed = dict(assumed or {})
        self.limits = limits or {}
        self.states = dict(states)
        self.budget = budget
        self.still = still or Ranges(model.graph, model.hints, self.leaf, budget, self.assumed)
        self.plain = Ranges(model.graph, model.hints, self.leaf, budget, self.assumed, still=self.still)
        self.quick = Ranges(model.graph, model.hints, self.leaf, budget, quick=True)
        self._split: dict[tuple[tuple[Expr, Interval], ...], Ranges] = {}
        self._leaves: dict[Expr, Interval] = {}
        self._known: dict[Expr, Interval] = {}
        self._unbounded: dict[Expr, tuple[Expr, ...]] = {}

    def ranges(self, node: Expr) -> Interval:
        """The range of a real expression."""
        if node not in self._known:
            self._known[node] = self._by_case(node)
        return self._known[node]

    def _by_case(self, node: Expr) -> Interval:
        whole = self.plain(node)
        infinite = self._infinite(node)
        if not infinite or len(infinite) > _INFINITE_LEAVES:
            return whole
        choices = [[(n, part) for part in _cases(self.leaf(n))] for n in infinite]
        found = hull(self._under(chosen)(node) for chosen in product(*choices))
        return found.meet(whole) or whole

    def _infinite(self, root: Expr) -> tuple[Expr, ...]:
        """The leaves below that may be infinite, a few at most."""
        known = self._unbounded
        for node in pending(root, known.__contains__, lambda n: () if is_leaf(n) else n.children):
            if is_leaf(node):
                found = self.leaf(node)
                known[node] = (node,) if found.has_lo or found.has_hi else ()
            else:
                below = dict.fromkeys(leaf for c in node.children for leaf in known[c])
                known[node] = tuple(below)[: _INFINITE_LEAVES + 1]
        return known[root]

    def _under(self, chosen: tuple[tuple[Expr, Interval], ...]) -> Ranges:
        if chosen not in self._split:
            self._split[chosen] = Ranges(
                self.model.graph, self.model.hints, self.leaf, self.budget, {**self.assumed, **dict(chosen)}
            )
        return self._split[chosen]

    def assuming(self, limits: Mapping[Expr, Interval]) -> Environment:
        """The same where these real expressions lie in these ranges."""
        return Environment(self.model, self.states, self.budget, self.limits, assumed=limits)

    # --- leaves -----------------------------------------------------------------------------------------------------

    def leaf(self, node: Expr) -> Interval:
        if node not in self._leaves:
            self._leaves[node] = self._leaf(node)
        return self._leaves[node]

    def _leaf(self, node: Expr) -> Interval:
        if isinstance(node, Ref):
            return self._named(node, "")
        if isinstance(node, Draw):
            return self._draw(node)
        if isinstance(node, Apply) and node.op in ("real", "imag", "abs") and isinstance(node.args[0], Ref):
            return self._named(node.args[0], node.op)
        return Interval(ZERO, INF, undefined=True) if isinstance(node, Apply) and node.op == "abs" else ANY

    def _named(self, ref: Ref, part: str) -> Interval:
        cell = self.model.cell
        limit = self.limits.get((ref.role, ref.name))
        if limit is not None and not part:
            return self._past(limit, ref) if ref.role == "input" else limit
        match ref.role:
            case "size":
                return SIZE
            case "const":
                region = cell.const(ref.name).region
                return REAL if region is None else self._region(region)
            case "param":
                return NONNEGATIVE if part == "abs" else REAL
            case "buffer":
                return self.plain(part_of(self.model, self.model.expand(cell.param(ref.name).init), part))
            case "input":
                return self._past(self._input(ref, part), ref)
            case "def":
                value = self.model.definitions[ref.name]
                return self._past(self.ranges(part_of(self.model, value, part)), ref)
            case "state":
                return self.states[ref.name, part]

    def _past(self, value: Interval, ref: Ref) -> Interval:
        """Before the first token there is zero."""
        return value.hull(point(0)) if ref.lag else value

    def _input(self, ref: Ref, part: str) -> Interval:
        declared = self.model.cell.input(ref.name)
        if declared.type.kind == "bool":
            return UNIT
        region = declared.region
        if region is None:
            return NONNEGATIVE if part == "abs" else REAL
        found = self._region(region)
        if isinstance(region, ir.Interval):
            return found
        outer = Interval(-found.hi, found.hi, found.hi_open, found.hi_open)
        return found if part == "abs" else outer

    def _region(self, region: Region) -> Interval:
        """The numbers (or, for a disc or an annulus, the moduli) in a region, for some values of its consts."""
        match region:
            case ir.Interval(lo=lo, hi=hi, lo_open=lo_open, hi_open=hi_open):
                low, high = self._end(lo), self._end(hi)
                return Interval(low.lo, high.hi, lo_open or low.lo_open, hi_open or high.hi_open)
            case Disc(radius=radius):
                high = self._end(radius)
                return Interval(ZERO, high.hi, False, high.hi_open)
            case Annulus(inner=inner, outer=outer):
                low, high = self._end(inner), self._end(outer)
                return Interval(max(low.lo, ZERO), high.hi, low.lo_open and low.lo >= 0, high.hi_open)

    def _end(self, end: Expr) -> Interval:
        return self.plain(self.model.real(self.model.expand(end)))

    def _draw(self, node: Draw) -> Interval:
        args = [self.plain(self.model.real(self.model.expand(a))) for a in node.args]
        match node.op:
            case "uniform" | "loguniform":
                return args[0].hull(args[1])
            case "arange":
                return Interval(args[0].lo, INF, args[0].lo_open, True)
            case "eye":
                return UNIT
            case "orthogonal":
                return Interval(-ONE, ONE)
            case _:
                return REAL


def part_of(model: Model, node: Expr, part: str) -> Expr:
    """A part of an expanded value, as a real expression."""
    if not part:
        return model.real(node)
    parts = model.parts(node)
    return {"real": parts.re, "imag": parts.im, "abs": parts.mod}[part]


def _cases(leaf: Interval) -> list[Interval]:
    """A range as its finite part and its infinities."""
    found: list[Interval] = []
    if leaf.has_lo:
        found.append(point(-INF))
    if leaf.has_hi:
        found.append(point(INF))
    if not leaf.point:
        open_ends = replace(leaf, lo_open=leaf.lo_open or leaf.has_lo, hi_open=leaf.hi_open or leaf.has_hi)
        found.append(open_ends)
    return found


# --- states ----------------------------------------------------------------------------------------------------------


def reachable(model: Model, budget: Budget, limits: Limits | None = None) -> Environment:
    """The environment in which every state is in a range that it never leaves."""
    cell = model.cell
    keys = [(s.name, p) for s in cell.states for p in (("real", "imag", "abs") if s.type.kind == "complex" else ("",))]
    updates = {k: part_of(model, model.updates[k[0]], k[1]) for k in keys}
    starts = {k: part_of(model, model.expand(cell.state(k[0]).init), k[1]) for k in keys}
    empty = Environment(model, dict.fromkeys(keys, ANY), budget, limits)
    initial = {k: empty.ranges(e) for k, e in starts.items()}
    steps = _stops(cell_literals(model, updates.values()), initial.values())
    current = dict(initial)
    for i in range(10 * _STEPS):
        env = Environment(model, current, budget, limits, empty.still)
        image = {k: _image(env, e, initial[k], current[k]) for k, e in updates.items()}
        if all(image[k].inside(current[k]) for k in keys):
            return _narrowed(env, initial, updates)
        for k in keys:
            if not image[k].inside(current[k]):
                wide = current[k].hull(image[k])
                current[k] = wide if i < _PLAIN_STEPS else _widen(current[k], wide, steps if i < _STEPS else [])
    return Environment(model, dict.fromkeys(keys, ANY), budget, limits)


def _narrowed(
    env: Environment,
    initial: StateRanges,
    updates: Mapping[tuple[str, str], Expr],
) -> Environment:
    """What an invariant is mapped to is one too, and may be smaller."""
    images = {k: _image(env, e, initial[k], None if env.states[k] != REAL else REAL) for k, e in updates.items()}
    smaller = {k: i.meet(env.states[k]) or env.states[k] for k, i in images.items()}
    return env if smaller == env.states else Environment(env.model, smaller, env.budget, env.limits, env.still)


def _image(env: Environment, update: Expr, initial: Interval, enough: Interval | None) -> Interval:
    """What a state may be: first, or after an update. It need not be tighter than `enough`."""
    quick = env.quick(update).hull(initial)
    if enough is not None and quick.inside(enough):
        return quick
    return env.ranges(update).hull(initial)


def cell_literals(model: Model, roots: Iterable[Expr]) -> set[Fraction]:
    """The numbers of a program, as candidates for ends."""
    found: set[Fraction] = set()
    for node in walk(*roots):
        if isinstance(node, Lit) and not isinstance(node.value, complex | bool):
            value = num(node.value)
            if isinstance(value, Fraction) and len(found) < 40:
                found.add(value)
    return found


def _stops(literals: set[Fraction], initial: Iterable[Interval]) -> list[Fraction]:
    ends = {e for i in initial for e in (i.lo, i.hi) if isinstance(e, Fraction)}
    return sorted({*_SIMPLE, *literals, *(-x for x in literals), *ends})


def _widen(old: Interval, new: Interval, stops: list[Fraction]) -> Interval:
    """`new`, with the ends that moved rounded outwards; at last to unbounded, to infinite, to undefined."""
    lo: Num = new.lo
    hi: Num = new.hi
    lo_open, hi_open = new.lo_open, new.hi_open
    if lo < old.lo:
        stop = max((s for s in stops if s <= lo), default=None)
        lo_open = lo_open if stop == lo else lo != -INF or lo_open
        lo = -INF if stop is None else stop
    if hi > old.hi:
        stop = min((s for s in stops if s >= hi), default=None)
        hi_open = hi_open if stop == hi else hi != INF or hi_open
        hi = INF if stop is None else stop
    return Interval(lo, hi, lo_open, hi_open, new.undefined)
