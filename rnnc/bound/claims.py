"""The `bound` stage: every claim of a cell proved, refuted or left undecided.

Goals: for each `gate`, `decay`, `in` and `eigenvalues` line a verdict with its reason; the derived range of every named
value; the spectrum of every group; notes for `explain`. Sound: proofs hold in exact arithmetic, refutations are numbers
that were checked in exact arithmetic.
Non-goals: completeness; anything about how the cell is computed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rnnc.bound.analysis import Analysis, Kind, Range, Verdict
from rnnc.bound.interval import INF, NONNEGATIVE, ONE, POSITIVE, UNIT, ZERO, Interval, finite
from rnnc.bound.invariants import Environment, reachable
from rnnc.bound.jacobian import Term
from rnnc.bound.model import Model
from rnnc.bound.ranges import walk_real
from rnnc.bound.relational import Budget
from rnnc.bound.spectrum import Spectrum, groups, spectrum
from rnnc.bound.witness import Target, Witness, search
from rnnc.diagnostics import Edit
from rnnc.ir import Apply, Cell, Disc, Expr, Lit, Ref, Region, walk
from rnnc.ir import Interval as Span
from rnnc.show import expr_text, region_text
from rnnc.source import Source
from rnnc.source import Span as Place

_GUESSES = (
    ("[0, inf)", NONNEGATIVE),
    ("(0, inf)", POSITIVE),
    ("(-inf, 0]", -NONNEGATIVE),
    ("[0, 1]", UNIT),
    ("[-1, 1]", Interval(-ONE, ONE)),
)
_GUESSED_LEAVES = 6


def bound(cell: Cell, source: Source) -> Analysis:
    """Prove, refute or leave undecided every claim of a checked cell."""
    return _Bounder(cell, source).run()


@dataclass(frozen=True)
class _Claim:
    """A claim on values of the model: what lies in the region is `parts`, each a real expression."""

    kind: Kind
    name: str
    region: Region
    place: Place
    value: Expr


class _Bounder:
    def __init__(self, cell: Cell, source: Source) -> None:
        self.cell = cell
        self.source = source
        self.model = Model(cell)
        self.budget = Budget()
        self.env = reachable(self.model, self.budget)

    def run(self) -> Analysis:
        model, cell = self.model, self.cell
        found = tuple(spectrum(self.env, g) for g in groups(model))
        verdicts = [*(self.decide(c) for c in self.claims()), *self.spectral(found)]
        inputs = {i.name: self.range(cell.graph.ref("input", i.name, i.type)) for i in cell.inputs}
        definitions = {d.name: self.range(model.definitions[d.name]) for d in cell.definitions}
        states = {s.name: self._state(s.name, s.type.kind == "complex") for s in cell.states}
        outputs = {o.name: self.range(model.expand(o.expr)) for o in cell.outputs}
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
        )

    def range(self, node: Expr) -> Range:
        if node.kind == "complex":
            return Range(self.env.ranges(self.model.parts(node).mod), True)
        return Range(self.env.ranges(self.model.real(node)))

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
        text = region_text(claim.region)
        found = self.range(claim.value)
        relies = self.relies(claim.value)
        if self.holds(self.env, claim.value, claim.region):
            reason = self.reason(claim.value, found)
            return Verdict(claim.kind, claim.name, text, "proved", reason, claim.place, relies=relies)
        target = self.target(claim.value, claim.region)
        witness = search(self.env, target)
        prove: Callable[[Environment], bool] = lambda env: self.holds(env, claim.value, claim.region)  # noqa: E731
        mend, edit = self.assumption(claim.value, prove)
        derived = f"what can be proved is {_in(claim.name, found)}"
        if witness is not None:
            help_text = f"it would hold with {mend}" if mend else ""
            return Verdict(
                claim.kind, claim.name, text, "refuted", derived, claim.place, "", help_text, edit, witness, relies
            )
        missing = f"it needs {mend}" if mend else self.culprit(claim, found)
        return Verdict(
            claim.kind, claim.name, text, "undecided", derived, claim.place, missing, mend, edit, None, relies
        )

    def holds(self, env: Environment, value: Expr, region: Region) -> bool:
        """Whether a value always lies in a region."""
        if isinstance(region, Span):
            if value.kind == "complex" and env.ranges(self.model.parts(value).im) != Interval(ZERO, ZERO):
                return False
            x = self.model.parts(value).re if value.kind == "complex" else self.model.real(value)
            return self.above(env, x, region.lo, region.lo_open) and self.below(env, x, region.hi, region.hi_open)
        modulus = self.model.parts(value).mod
        if isinstance(region, Disc):
            return self.below(env, modulus, region.radius, False)
        return self.above(env, modulus, region.inner, False) and self.below(env, modulus, region.outer, False)

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

    def target(self, value: Expr, region: Region, shown: tuple[tuple[str, Expr], ...] = ()) -> Target:
        if isinstance(region, Span):
            parts = self.model.parts(value)
            imag = parts.im if value.kind == "complex" else None
            lo, hi = self.end(region.lo), self.end(region.hi)
            return Target(parts.re, lo, hi, region.lo_open, region.hi_open, imag, shown)
        modulus = self.model.parts(value).mod
        if isinstance(region, Disc):
            return Target(modulus, None, self.end(region.radius), shown=shown)
        return Target(modulus, self.end(region.inner), self.end(region.outer), shown=shown)

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
        real = self.model.parts(claim.value).mod if found.modulus else self.model.real(claim.value)
        if found.interval.undefined:
            for node in walk_real(real):
                if self.env.plain(node).undefined and not any(self.env.plain(c).undefined for c in node.children):
                    return f"{_undefined(node)}"
        return f"only {found} could be derived"

    # --- assumptions that would help --------------------------------------------------------------------------------

    def assumption(self, value: Expr, prove: Callable[[Environment], bool]) -> tuple[str, Edit | None]:
        """Ranges of inputs or consts under which the claim would hold, in words, and the edit that states them."""
        names = [key for key in self.support(value) if self._guessable(key)][:_GUESSED_LEAVES]
        groups_ = [[n] for n in names] + ([names] if len(names) > 1 else [])
        for together in groups_:
            for text, interval in _GUESSES:
                limits = dict.fromkeys(together, interval)
                if not prove(reachable(self.model, Budget(20_000), limits)):
                    continue
                params = [n for role, n in together if role == "param"]
                if params:
                    inner = ", ".join(f"`{n}`" for n in params)
                    return (
                        f"{inner} in `{text}`, and a learned value may be any: write `exp({params[0]})` or the like",
                        None,
                    )
                said = " and ".join(f"`{n} in {text}`" for _, n in together)
                return said, self._edit(*together[0], text) if len(together) == 1 else None
        return "", None

    def _guessable(self, key: tuple[str, str]) -> bool:
        role, name = key
        if role == "input":
            declared = self.cell.input(name)
            return declared.region is None and declared.type.kind == "real"
        if role == "const":
            return self.cell.const(name).region is None
        return role == "param" and self.cell.param(name).learned and self.cell.param(name).kind == "real"

    def _edit(self, role: str, name: str, text: str) -> Edit | None:
        """`x[D]` to `x[D] in [0, 1]`, if that is what stands there."""
        place = self.cell.input(name).span if role == "input" else self.cell.const(name).span
        declared = re.match(rf"\s*{re.escape(name)}\s*(\[[^\]]*\])?", self.source.slice(place))
        if declared is None:
            return None
        end = place.start + len(declared.group().rstrip())
        return Edit(Place(end, end), f" in {text}")

    # --- spectra ----------------------------------------------------------------------------------------------------

    def spectral(self, found: tuple[Spectrum, ...]) -> Iterator[Verdict]:
        for claim in self.cell.eigenvalues:
            s = next(x for x in found if claim.state in x.states)
            yield self.decide_spectrum(claim.state, claim.region, claim.span, s)

    def decide_spectrum(self, name: str, region: Region, place: Place, s: Spectrum) -> Verdict:
        text = region_text(region)
        derived = _derived(s)
        roots = [self.model.updates[n] for n in s.states]
        relies = tuple(dict.fromkeys(r for root in roots for r in self.relies(root)))
        if self.encloses(region, s):
            return Verdict("eigenvalues", name, text, "proved", derived, place, relies=relies)
        witness = self.spectral_witness(region, s)
        if witness is not None:
            return Verdict("eigenvalues", name, text, "refuted", derived, place, witness=witness, relies=relies)
        missing = s.missing or f"{derived}, and it is not known whether all of that is reached"
        return Verdict("eigenvalues", name, text, "undecided", derived, place, missing, relies=relies)

    def encloses(self, region: Region, s: Spectrum) -> bool:
        """Whether the enclosure of a spectrum lies in a region."""
        if s.modulus.undefined:
            return False
        if isinstance(region, Span):
            lo, hi = self._known(region.lo), self._known(region.hi)
            limit = Interval(lo.hi, hi.lo, region.lo_open, region.hi_open)
            return s.real is not None and s.real.inside(limit)
        if isinstance(region, Disc):
            return s.modulus.hi <= self._known(region.radius).lo
        inner, outer = self._known(region.inner), self._known(region.outer)
        return s.modulus.hi <= outer.lo and s.modulus.lo >= inner.hi

    def _known(self, end: Expr) -> Interval:
        return self.env.ranges(self.model.real(self.model.expand(end)))

    def spectral_witness(self, region: Region, s: Spectrum) -> Witness | None:
        for value, sizes in ((s.at_one, (1,)), (s.beyond, (2,))):
            if value is None:
                continue
            shown = self.shown(s.terms if value is s.at_one else s.terms[:1])
            found = search(self.env, self.target(value, region, shown), sizes)
            if found is not None:
                return found
        return None

    def shown(self, terms: tuple[Term, ...]) -> tuple[tuple[str, Expr], ...]:
        """The named values in a transition: numbers as they are, vectors along its dim by their norms."""
        graph = self.model.graph
        over = {d for t in terms for d in t.over}
        found: dict[str, Expr] = {}
        stack = [e for t in reversed(terms) for e in (t.inner, t.out) if e is not None]
        seen: set[Expr] = set()
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            name = self.model.names.get(node, node.name if isinstance(node, Ref) and node.role != "size" else "")
            if not name:
                stack.extend(reversed(node.children))
                continue
            parts = self.model.parts(node)
            along = [d for d in node.dims if d in over]
            if along:
                size = graph.apply("sqrt", graph.reduce("sum", along, graph.apply("square", parts.mod)))
                found.setdefault(f"|{name}|", size)
            elif node.kind == "complex":
                found.setdefault(f"|{name}|", parts.mod)
            else:
                found.setdefault(name, parts.re)
        return tuple(found.items())


def _in(name: str, found: Range) -> str:
    return f"`|{name}| in {found.interval}`" if found.modulus else f"`{name} in {found.interval}`"


def _undefined(node: Expr) -> str:
    """What may be outside of the domain of an operation."""
    if isinstance(node, Apply) and node.op == "div":
        return f"`{expr_text(node.args[1])}` may be 0"
    if isinstance(node, Apply) and node.op in ("sqrt", "log", "rsqrt", "log1p"):
        return f"`{expr_text(node.args[0])}` may be outside of the domain of `{node.op}`"
    return f"`{expr_text(node)}` may be no number"


def _derived(s: Spectrum) -> str:
    if s.form == "still":
        return "all eigenvalues are 0"
    if s.real is not None:
        return f"the eigenvalues are real and lie in {s.real}"
    if s.modulus.hi == INF:
        return "no bound on the eigenvalues is known"
    return f"the moduli of the eigenvalues lie in {s.modulus}"


def _notes(name: str, s: Spectrum) -> tuple[str, ...]:
    """What the spectrum of a linear recurrence says of what it can do (Grazzi et al. 2024, arXiv:2411.12537)."""
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
