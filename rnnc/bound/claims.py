"""The `bound` stage: every claim of a cell proved, refuted or left undecided.

Goals: for each `gate`, `decay`, `in` and `eigenvalues` line a verdict with its reason; the derived range of every named
value; the spectrum of every group; notes for `explain`. Sound: proofs hold in exact arithmetic, refutations are numbers
that were checked in exact arithmetic.
Non-goals: completeness; anything about how the cell is computed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from rnnc import ir
from rnnc.bound.analysis import Analysis, Kind, Range, Verdict
from rnnc.bound.behaviour import memory, memory_of, tracking
from rnnc.bound.eigenclaim import Eigenvalue
from rnnc.bound.interval import INF, NONNEGATIVE, ONE, POSITIVE, UNIT, ZERO, Interval, finite, num, point, to_float
from rnnc.bound.invariants import Environment, reachable
from rnnc.bound.jacobian import Term
from rnnc.bound.model import Model, Parts
from rnnc.bound.ranges import walk_real
from rnnc.bound.relational import Budget
from rnnc.bound.spectrum import CLOSED_FORM, Spectrum, groups, spectrum
from rnnc.bound.witness import Outside, Witness, number_text, search, search_budget
from rnnc.diagnostics import Edit
from rnnc.ir import Apply, Cell, Disc, Expr, Lit, Ref, Region, walk
from rnnc.show import expr_text, region_text
from rnnc.source import Source, Span

_GUESSES = (
    ("[0, inf)", NONNEGATIVE, "exp(@)"),
    ("(0, inf)", POSITIVE, "exp(@)"),
    ("(-inf, 0]", -NONNEGATIVE, "-exp(@)"),
    ("[0, 1]", UNIT, "sigmoid(@)"),
    ("[-1, 1]", Interval(-ONE, ONE), "tanh(@)"),
)
"""Ranges that are tried as assumptions, and what brings any number into them."""
_GUESSED_LEAVES = 6
_GUESSING = 12_000
_EFFORT = 120_000


def bound(cell: Cell, source: Source) -> Analysis:
    """Prove, refute or leave undecided every claim of a checked cell."""
    return _Bounder(cell, source).run()


@dataclass(frozen=True)
class _Claim:
    """That an expanded value lies in a region."""

    kind: Kind
    name: str
    region: Region
    place: Span
    value: Expr


class _Bounder:
    def __init__(self, cell: Cell, source: Source) -> None:
        self.cell = cell
        self.source = source
        self.model = Model(cell)
        self.budget = Budget()
        self.env = reachable(self.model, self.budget)
        self.searching = search_budget()
        self.proved: list[tuple[Expr, Region]] = []
        self.guessing = Budget(_GUESSING * 5, _GUESSING)

    @cached_property
    def thorough(self) -> Environment:
        """The same with more effort, for what was not proved at once."""
        return reachable(self.model, Budget(_EFFORT, _EFFORT // 20))

    def run(self) -> Analysis:
        model, cell = self.model, self.cell
        found = tuple(spectrum(self.env, g) for g in groups(model))
        claims = list(self.claims())
        verdicts = [*(self.decide(c) for c in claims), *self.spectral(found)]
        inputs = {i.name: self.range(cell.graph.ref("input", i.name, i.type)) for i in cell.inputs}
        definitions = {d.name: self.range(model.definitions[d.name]) for d in cell.definitions}
        states = {s.name: self._state(s.name, s.type.kind == "complex") for s in cell.states}
        outputs = {o.name: self.range(model.expand(o.expr)) for o in cell.outputs}
        for claim, verdict in zip(claims, verdicts, strict=False):
            if verdict.status == "proved":
                self.proved.append((claim.value, claim.region))
                table = outputs if claim.kind == "output" else definitions
                table[claim.name] = self.within(table[claim.name], claim.region)
        notes = {name: _notes(name, s) for s in found for name in s.states}
        return Analysis(
            cell.name,
            tuple(sorted(verdicts, key=lambda v: v.span.start)),
            inputs,
            definitions,
            states,
            outputs,
            found,
            notes,
            self.always,
            self.lowest,
            lambda s: tracking(self.env, s, fed=self.fed(s, found)),
            lambda s, factor: memory(self.model, s) if factor is None else memory_of(self.model, *factor),
            self.growth,
        )

    def fed(self, s: Spectrum, found: Sequence[Spectrum]) -> bool:
        """Whether a group reads a nonlinear recurrence."""
        reads = {name for n in s.states for role, name in self.support(self.model.updates[n]) if role == "state"}
        return any(not other.linear and set(other.states) & reads for other in found if other is not s)

    def growth(self, s: Spectrum) -> str:
        """Where an eigenvalue exceeds 1, in terms of what the transition is made of; empty where nothing can grow."""
        unit = Disc(self.cell.graph.lit(1))
        # Closer bounds of a larger matrix take longer than a report may; of what is claimed they were found before.
        close = s.matrix is None or s.matrix.size <= 2 or any(c.state in s.states for c in self.cell.eigenvalues)
        verdict = self.decide_spectrum(s.states[0], unit, self.cell.state(s.states[0]).span, s, close=close)
        if verdict.status == "proved":
            return (
                ""
                if s.shrinking or s.form == "still"
                else "no eigenvalue exceeds 1, but that bounds no product of steps"
            )
        mend = f"; it cannot with {verdict.mend}" if verdict.mend else ""
        if verdict.witness is not None:
            said, value = verdict.witness.text().removeprefix("with "), number_text(verdict.witness.result)
            return f"{said}: an eigenvalue is {value}{mend}"
        return f"not excluded: {s.missing or 'the eigenvalues are not known to keep within 1'}{mend}"

    def always(self, value: Expr, region: Region) -> bool:
        """Whether a value, as the cell writes it, was proved to lie in a region."""
        parts = self.model.parts(self.model.expand(value))
        return self.holds(self.env, parts, region) or self.holds(self.thorough, parts, region)

    def lowest(self, value: Expr, declared: bool) -> tuple[float, tuple[str, ...]]:
        """The least that a real value, as the cell writes it, may be (-inf: not known), and the consts that it rests on
        where those are taken to be as `declared`."""
        node = self.model.expand(value)
        names = tuple(n for role, n in self.support(node) if role == "const") if declared else ()
        limits = {("const", n): point(num(self.cell.const(n).value)) for n in names}
        env = reachable(self.model, Budget(_GUESSING, _GUESSING), limits) if limits else self.env
        found = env.ranges(self.model.real(node))
        ends = [r.lo for v, r in self.proved if v is node and isinstance(r, ir.Interval)]
        least = [env.ranges(self.model.real(self.model.expand(end))).lo for end in ends]
        least += [] if found.undefined else [found.lo]
        return to_float(max(least, default=-INF), up=False), names

    def range(self, node: Expr) -> Range:
        if node.kind == "complex":
            return Range(self.env.ranges(self.model.parts(node).mod), True)
        return Range(self.env.ranges(self.model.real(node)))

    def within(self, found: Range, region: Region) -> Range:
        """A range, and a region that was proved to hold it."""
        match region:
            case ir.Interval(lo=lo, hi=hi, lo_open=lo_open, hi_open=hi_open):
                limit = Interval(self._known(lo).lo, self._known(hi).hi, lo_open, hi_open)
            case ir.Disc(radius=radius):
                limit = Interval(ZERO, self._known(radius).hi)
            case ir.Annulus(inner=inner, outer=outer):
                limit = Interval(self._known(inner).lo, self._known(outer).hi)
        return Range(found.interval.meet(limit) or found.interval, found.modulus)

    def _state(self, name: str, modulus: bool) -> Range:
        return Range(self.env.states[name, "abs" if modulus else ""], modulus)

    # --- ranges -----------------------------------------------------------------------------------------------------

    def claims(self) -> Iterator[_Claim]:
        for d in self.cell.definitions:
            if d.claim is not None and d.region is not None:
                yield _Claim(d.claim, d.name, d.region, d.span, self.model.definitions[d.name])
        for o in self.cell.outputs:
            if o.region is not None:
                yield _Claim("output", o.name, o.region, o.span, self.model.expand(o.expr))

    def decide(self, claim: _Claim) -> Verdict:
        found, parts = self.range(claim.value), self.model.parts(claim.value)
        known = Verdict(
            claim.kind,
            claim.name,
            region_text(claim.region),
            "proved",
            self.reason(claim.value, found),
            claim.place,
            relies=self.relies(claim.value),
        )
        if self.holds(self.env, parts, claim.region) or self.holds(self.thorough, parts, claim.region):
            return known
        known = replace(known, reason=_derived_range(claim.name, found))
        witness = search(self.env, self.target(parts, claim.region, claim.value.kind != "complex"), self.searching)
        if witness is not None and not _bounded(found.interval):
            known = self.mended(known, [claim.value], lambda env: self.holds(env, parts, claim.region))
        if witness is not None:
            return replace(known, status="refuted", witness=witness)
        known = self.mended(known, [claim.value], lambda env: self.holds(env, parts, claim.region))
        missing = f"it needs {known.mend}" if known.mend else self.culprit(claim, found)
        return replace(known, status="undecided", missing=missing)

    def holds(self, env: Environment, value: Parts, region: Region) -> bool:
        """Whether a value always lies in a region."""
        if isinstance(region, ir.Interval):
            if env.ranges(value.im) != Interval(ZERO, ZERO):
                return False
            low, high = (region.lo, region.lo_open), (region.hi, region.hi_open)
            return self.above(env, value.re, *low) and self.below(env, value.re, *high)
        if isinstance(region, Disc):
            return self.below(env, value.mod, region.radius, False)
        return self.above(env, value.mod, region.inner, False) and self.below(env, value.mod, region.outer, False)

    def below(self, env: Environment, x: Expr, end: Expr, strict: bool) -> bool:
        """Whether `x <= end` always, `x < end` where `strict`."""
        found = env.ranges(x)
        limit = self.model.real(self.model.expand(end))
        known = env.ranges(limit)
        if found.undefined or known.undefined:
            return False
        if found.hi < known.lo or (found.hi == known.lo and (not strict or found.hi_open or known.lo_open)):
            return True
        if not finite(known.hi) or isinstance(limit, Lit):
            return False
        gap = env.ranges(self.model.graph.apply("sub", limit, x))
        return not gap.undefined and (gap.positive if strict else gap.lo >= 0)

    def above(self, env: Environment, x: Expr, end: Expr, strict: bool) -> bool:
        graph = self.model.graph
        if isinstance(end, Lit) and not isinstance(end.value, complex):
            return self.below(env, graph.apply("neg", x), graph.lit(-end.value), strict)
        return self.below(env, graph.apply("neg", x), graph.apply("neg", end), strict)

    def end(self, end: Expr) -> Expr | None:
        """An end of a region as something that can be computed; None where it is infinite."""
        node = self.model.real(self.model.expand(end))
        return node if finite(self.env.ranges(node).lo) or not self.env.ranges(node).point else None

    def target(self, value: Parts, region: Region, real: bool, shown: tuple[tuple[str, Expr], ...] = ()) -> Outside:
        if isinstance(region, ir.Interval):
            lo, hi = self.end(region.lo), self.end(region.hi)
            return Outside(value.re, lo, hi, region.lo_open, region.hi_open, None if real else value.im, shown)
        if isinstance(region, Disc):
            return Outside(value.mod, None, self.end(region.radius), shown=shown, of=value)
        return Outside(value.mod, self.end(region.inner), self.end(region.outer), shown=shown, of=value)

    # --- words ------------------------------------------------------------------------------------------------------

    def relies(self, value: Expr) -> tuple[str, ...]:
        """The inputs with ranges that a value is made of."""
        return tuple(
            f"{i.name} in {region_text(i.region)}"
            for i in self.cell.inputs
            if i.region is not None and ("input", i.name) in self.support(value)
        )

    def support(self, value: Expr) -> dict[tuple[str, str], None]:
        """The named leaves that a value depends on, through states and pasts."""
        found: dict[tuple[str, str], None] = {}
        todo = [value]
        while todo:
            for node in walk(todo.pop()):
                if not isinstance(node, Ref) or (node.role, node.name) in found:
                    continue
                found[node.role, node.name] = None
                if node.role == "state":
                    todo += [self.model.updates[node.name], self.model.expand(self.cell.state(node.name).init)]
                elif node.role == "def":
                    todo.append(self.model.definitions[node.name])
        return found

    def reason(self, value: Expr, found: Range) -> str:
        states = [
            f"`{n}` stays in {self._state(n, self.cell.state(n).type.kind == 'complex')}"
            for role, n in self.support(value)
            if role == "state" and any(isinstance(r, Ref) and r.role == "state" and r.name == n for r in walk(value))
        ]
        told = f"it lies in {found}" if not found.modulus else f"its modulus lies in {found.interval}"
        known = [s for s in states if not s.endswith("(-inf, inf)")]
        return f"{told}, as {' and '.join(known)}" if known else told

    def culprit(self, claim: _Claim, found: Range) -> str:
        """Why a claim stays undecided where no assumption was found that would help."""
        if not found.interval.undefined:
            return f"only {found} could be derived"
        # Where states are taken to be defined, what is undefined first is the cause.
        states = {k: replace(i, undefined=False) for k, i in self.env.states.items()}
        env = Environment(self.model, states, self.budget)
        names = (name for role, name in self.support(claim.value) if role == "state")
        for root in (claim.value, *(self.model.updates[n] for n in names)):
            parts = self.model.parts(root)
            for node in walk_real(parts.mod if root.kind == "complex" else parts.re):
                if env.plain(node).undefined and not any(env.plain(c).undefined for c in node.children):
                    return _undefined(node)
        return "it may be no number"

    # --- assumptions that would help --------------------------------------------------------------------------------

    def mended(self, verdict: Verdict, values: Sequence[Expr], prove: Callable[[Environment], bool]) -> Verdict:
        """The verdict with ranges of inputs or consts under which the claim would hold, if some were found."""
        support = dict.fromkeys(key for v in values for key in self.support(v))
        guesses = {key: found for key in support if (found := self._guesses(key))}
        names = list(guesses)[:_GUESSED_LEAVES]
        trials = [([n], guess) for n in names for guess in guesses[n]]
        free = [n for n in names if guesses[n] is _GUESSES]
        trials += [(free, guess) for guess in _GUESSES if len(free) > 1]
        guessing = Budget(self.guessing.allowance(0))
        for chosen, (text, interval, into) in trials:
            # Even a guess that needs no look at forms costs a walk over the cell.
            if not guessing.spend(sum(1 for _ in walk(*self.model.updates.values(), *values))):
                return verdict
            if prove(reachable(self.model, guessing, dict.fromkeys(chosen, interval))):
                return self._said(verdict, chosen, text, into)
        return verdict

    def _said(self, verdict: Verdict, chosen: Sequence[tuple[str, str]], text: str, into: str) -> Verdict:
        said = " and ".join(f"`{n} in {text}`" for _, n in chosen)
        params = [n for role, n in chosen if role == "param"]
        if params:
            instead = " and ".join(f"`{into.replace('@', n)}`" for n in params)
            return replace(verdict, mend=f"{said}, but a learned number may be any: write {instead}")
        return replace(verdict, mend=said, edit=self._edit(*chosen[0], text) if len(chosen) == 1 else None)

    def _guesses(self, key: tuple[str, str]) -> Sequence[tuple[str, Interval, str]]:
        """Ranges to try for a leaf: any, where it has none, else its own without the ends."""
        role, name = key
        if role == "input":
            region = self.cell.input(name).region
            usual = self.cell.input(name).type.kind == "real"
        elif role == "const":
            region, usual = self.cell.const(name).region, True
        elif role == "param":
            region, usual = None, self.cell.param(name).kind == "real"
        else:
            return ()
        if region is None:
            return _GUESSES if usual else ()
        if not isinstance(region, ir.Interval) or (region.lo_open and region.hi_open):
            return ()
        inner = replace(region, lo_open=True, hi_open=True)
        lo, hi = self._known(region.lo), self._known(region.hi)
        return [(region_text(inner), Interval(lo.lo, hi.hi, True, True), "")]

    def _edit(self, role: str, name: str, text: str) -> Edit | None:
        """`x[D]` to `x[D] in [0, 1]`, if that is what stands there; a range that stands there is replaced."""
        place = self.cell.input(name).span if role == "input" else self.cell.const(name).span
        pattern = rf"{re.escape(name)}(\s*\[[^\]]*\])?(?P<range>\s+in\s*[\[(][^\])]*[\])])?"
        declared = re.compile(pattern).match(self.source.text, place.start)
        if declared is None:
            return None
        start = declared.end() if declared["range"] is None else declared.start("range")
        return Edit(Span(start, declared.end()), f" in {text}")

    # --- spectra ----------------------------------------------------------------------------------------------------

    def spectral(self, found: tuple[Spectrum, ...]) -> Iterator[Verdict]:
        for claim in self.cell.eigenvalues:
            s = next(x for x in found if claim.state in x.states)
            yield self.decide_spectrum(claim.state, claim.region, claim.span, s)

    def decide_spectrum(self, name: str, region: Region, place: Span, s: Spectrum, *, close: bool = True) -> Verdict:
        roots = [self.model.updates[n] for n in s.states]
        relies = tuple(dict.fromkeys(r for root in roots for r in self.relies(root)))
        known = Verdict("eigenvalues", name, region_text(region), "proved", _derived(s), place, relies=relies)
        if reason := self.proof(self.env, region, s):
            return replace(known, reason=reason)
        # Closer bounds of a matrix cost more than a search for numbers.
        witness = self.spectral_witness(region, s) if s.matrix is not None else None
        if witness is None and not close:
            return replace(known, status="undecided", missing=s.missing)
        if witness is None:
            if reason := self.proof(self.thorough, region, spectrum(self.thorough, s.states)):
                return replace(known, reason=reason)
            witness = self.spectral_witness(region, s) if s.matrix is None else None
        known = self.normalised(known, region, s)
        if not known.mend and witness is None:
            known = self.mended(known, roots, lambda env: self.encloses(env, region, spectrum(env, s.states)))
        if witness is not None:
            return replace(known, status="refuted", witness=witness)
        missing = s.missing or "only a wider range could be derived"
        if isinstance(region, ir.Interval) and s.real is None and not s.missing:
            missing = "only the moduli of the eigenvalues are known, which may be complex"
        return replace(known, status="undecided", missing=f"it needs {known.mend}" if known.mend else missing)

    def normalised(self, verdict: Verdict, region: Region, s: Spectrum) -> Verdict:
        """The verdict with vectors whose norms would have to be at most 1."""
        squares = {n: self._square(node, over) for n, node, over in self._factors(s.terms) if over}
        limits = {n: e for n, e in squares.items() if self.env.ranges(e).hi > 1}
        if not limits:
            return verdict
        env = self.env.assuming(dict.fromkeys(limits.values(), UNIT))
        if not self.encloses(env, region, spectrum(env, s.states)):
            return verdict
        said = " and ".join(f"`|{n}| <= 1`" for n in limits)
        return replace(verdict, mend=f"{said}, as of `l2norm`")

    def encloses(self, env: Environment, region: Region, s: Spectrum) -> bool:
        """Whether a spectrum was proved to lie in a region."""
        return bool(self.proof(env, region, s))

    def proof(self, env: Environment, region: Region, s: Spectrum) -> str:
        """Why a spectrum lies in a region, empty where that was not proved."""
        if s.modulus.undefined:
            return ""
        if s.exact and all(self.holds(env, value, region) for value in (*s.at_one, *s.beyond)):
            return _derived(s)
        if isinstance(region, ir.Interval):
            lo, hi = self._known(region.lo), self._known(region.hi)
            limit = Interval(lo.hi, hi.lo, region.lo_open, region.hi_open)
            closed = not (region.lo_open or region.hi_open)
            inside = s.real is not None and s.real.inside(limit)
            by_pairs = bool(s.pairs) and closed and all(p.within(env, limit) for p in s.pairs)
        else:
            inner, outer = (
                (point(0), self._known(region.radius))
                if isinstance(region, Disc)
                else (self._known(region.inner), self._known(region.outer))
            )
            low, high = inner.hi, outer.lo
            inside = s.modulus.hi <= high and s.modulus.lo >= low
            by_pairs = (
                bool(s.pairs)
                and isinstance(low, Fraction)
                and isinstance(high, Fraction)
                and all(p.within_disc(env, high) and p.beyond_disc(env, low) for p in s.pairs)
            )
        if inside:
            return _derived(s)
        return f"both eigenvalues lie in {region_text(region)}, by {CLOSED_FORM}" if by_pairs else ""

    def _known(self, end: Expr) -> Interval:
        return self.env.ranges(self.model.real(self.model.expand(end)))

    def spectral_witness(self, region: Region, s: Spectrum) -> Witness | None:
        real = s.real is not None
        for values, terms, sizes in ((s.at_one, s.terms, (1,)), (s.beyond, s.terms[:1], (2,))):
            for value in values:
                found = search(self.env, self.target(value, region, real, self.shown(terms)), self.searching, sizes)
                if found is not None:
                    return found
        shown = self.shown(s.terms)
        for matrix, sizes in ((s.matrix, (1, 2)), (s.small, (1,))):
            if matrix is None or (s.at_one and matrix is s.matrix):
                continue
            lo, hi = self._ends(region)
            broken = Eigenvalue(matrix, isinstance(region, ir.Interval), lo, hi, shown)
            found = search(self.env, broken, self.searching, sizes)
            if found is not None:
                return found
        return None

    def _ends(self, region: Region) -> tuple[Expr | None, Expr | None]:
        """What can be computed of the ends of a region."""
        match region:
            case ir.Interval(lo=lo, hi=hi):
                return self.end(lo), self.end(hi)
            case Disc(radius=radius):
                return None, self.end(radius)
            case ir.Annulus(inner=inner, outer=outer):
                return self.end(inner), self.end(outer)

    def _factors(self, terms: Sequence[Term]) -> Iterator[tuple[str, Expr, tuple[str, ...]]]:
        """The named values in a transition, and the dims along which it takes their norms."""
        over = {d for t in terms for d in t.over}
        stack = [e for t in reversed(terms) for e in (t.inner, t.out) if e is not None]
        seen: set[Expr] = set()
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            name = self.model.names.get(node, "")
            if not name and isinstance(node, Ref) and node.role != "size":
                name = f"{node.name}[t-{node.lag}]" if node.lag else node.name
            if name:
                yield name, node, tuple(d for d in node.dims if d in over)
            else:
                stack.extend(reversed(node.children))

    def _square(self, node: Expr, over: tuple[str, ...]) -> Expr:
        parts = self.model.parts(node)
        size = parts.mod if node.kind == "complex" else parts.re
        return self.model.graph.reduce("sum", over, self.model.graph.apply("square", size))

    def shown(self, terms: Sequence[Term]) -> tuple[tuple[str, Expr], ...]:
        """The named values in a transition: numbers as they are, vectors by their norms."""
        found: dict[str, Expr] = {}
        for name, node, over in self._factors(terms):
            parts = self.model.parts(node)
            if over:
                found.setdefault(f"|{name}|", self.model.graph.apply("sqrt", self._square(node, over)))
            elif node.kind == "complex":
                found.setdefault(f"|{name}|", parts.mod)
            else:
                found.setdefault(name, parts.re)
        return tuple(found.items())


def _bounded(found: Interval) -> bool:
    return finite(found.lo) and finite(found.hi) and not found.undefined


def _derived_range(name: str, found: Range) -> str:
    interval = found.interval
    if (interval.lo == -INF and interval.hi == INF) or (found.modulus and interval.hi == INF):
        return f"nothing bounds `{name}`"
    value = f"|{name}|" if found.modulus else name
    return f"what can be proved is `{value} in {interval}`" + (
        ", or that it is undefined" if interval.undefined else ""
    )


def _undefined(node: Expr) -> str:
    """What may be outside of the domain of an operation."""
    if isinstance(node, Apply) and node.op == "div":
        return f"`{expr_text(node.args[1])}` may be 0"
    if isinstance(node, Apply) and node.op in ("sqrt", "log", "rsqrt", "log1p"):
        return f"`{expr_text(node.args[0])}` may be outside of the domain of `{node.op}`"
    return f"`{expr_text(node)}` may be no number"


def _derived(s: Spectrum) -> str:
    by = f", by {s.method}" if s.method else ""
    if s.form == "still":
        return "all eigenvalues are 0"
    if s.real is not None:
        return f"the eigenvalues are real and lie in {s.real}{by}"
    if s.modulus.hi == INF:
        return "no bound on the eigenvalues is known"
    return f"the moduli of the eigenvalues lie in {s.modulus}{by}"


def _notes(name: str, s: Spectrum) -> tuple[str, ...]:
    """What the spectrum of a linear recurrence says of what it can do (`behaviour` says more)."""
    if not s.linear or s.form in ("still", "unknown"):
        return ()
    notes: list[str] = []
    if s.real is not None and s.real.lo >= 0 and s.real.hi <= 1:
        notes.append(f"all eigenvalues of `{name}` lie in [0, 1], so it cannot track parity")
    if s.real is not None and s.elementwise:
        notes.append(f"the transition of `{name}` is diagonal with real eigenvalues, so it cannot count modulo 3")
    if s.modulus.hi > 1:
        notes.append(f"nothing keeps the eigenvalues of `{name}` within 1, so it can explode")
    return tuple(notes)
