"""What the `bound` stage knows of a cell: verdicts on its claims, ranges, spectra; and how that is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from rnnc.bound.behaviour import Memory, Tracking
from rnnc.bound.interval import Interval
from rnnc.bound.spectrum import Spectrum
from rnnc.bound.witness import Witness, number_text
from rnnc.diagnostics import Diagnostic, Edit
from rnnc.errors import claims as errors
from rnnc.ir import Expr, Region
from rnnc.source import Span

Status = Literal["proved", "refuted", "undecided"]
Kind = Literal["gate", "decay", "range", "output", "eigenvalues"]


@dataclass(frozen=True)
class Verdict:
    """On one claim.

    `region` is its text; `reason` says in words why it holds, or what was derived instead; `missing` names the
    assumption without which it is undecided; `mend` an assumption under which it would hold, `edit` how to write that.
    `relies` are the inputs whose declared ranges the claim may rest on.
    """

    kind: Kind
    name: str
    region: str
    status: Status
    reason: str
    span: Span
    missing: str = ""
    mend: str = ""
    edit: Edit | None = None
    witness: Witness | None = None
    relies: tuple[str, ...] = ()

    @property
    def claim(self) -> str:
        """`gate z`, `eigenvalues h in disc(1)`."""
        word = {"range": "", "output": "output "}.get(self.kind, f"{self.kind} ")
        return f"{word}{self.name}" if self.kind == "gate" else f"{word}{self.name} in {self.region}"


@dataclass(frozen=True)
class Range:
    """The derived range of a named value: of the value itself, or of its modulus where it is complex."""

    interval: Interval
    modulus: bool = False

    def __str__(self) -> str:
        text = f"|.| in {self.interval}" if self.modulus else str(self.interval)
        return f"{text}, or undefined" if self.interval.undefined else text


class _Group(Protocol):
    @property
    def states(self) -> tuple[str, ...]: ...


class _OfGroup(Protocol):
    @property
    def group(self) -> _Group: ...


@dataclass(frozen=True)
class Analysis:
    """Every claim of a cell with its verdict, in the order of the file; what is known of every named value.

    `inputs`, `definitions`, `states` and `outputs` give ranges by name (`states`: of every value that a state may have,
    the initial one included). `spectra` has one entry for each group of states that need each other. `notes` are
    sentences on what a state can or cannot do, by state. `always` says whether an expression of the cell was proved to
    lie in a region, `lowest` what is the least that it may be, and which consts, taken as declared, that rests on.
    `tracking`, `memory` and `growth` are worked out when they are asked for: what a group can track, how long it
    remembers at first (by its eigenvalues, or by a factor and its name), and where it can explode.
    """

    cell: str
    verdicts: tuple[Verdict, ...]
    inputs: Mapping[str, Range]
    definitions: Mapping[str, Range]
    states: Mapping[str, Range]
    outputs: Mapping[str, Range]
    spectra: tuple[Spectrum, ...]
    notes: Mapping[str, tuple[str, ...]]
    always: Callable[[Expr, Region], bool] = field(repr=False, compare=False)
    lowest: Callable[[Expr, bool], tuple[float, tuple[str, ...]]] = field(repr=False, compare=False)
    tracking: Callable[[Spectrum], Tracking] = field(repr=False, compare=False)
    memory: Callable[[Spectrum, tuple[Expr, str] | None], Memory] = field(repr=False, compare=False)
    growth: Callable[[Spectrum], str] = field(repr=False, compare=False)

    def verdict(self, name: str, kind: Kind | None = None) -> Verdict | None:
        """The verdict on a claim about a name."""
        return next((v for v in self.verdicts if v.name == name and kind in (None, v.kind)), None)

    def spectrum(self, state: str) -> Spectrum:
        return next(s for s in self.spectra if state in s.states)

    def contracting(self, closure: _OfGroup) -> bool:
        """Whether the transition of this group was proved never to exceed 1 in modulus, entry by entry."""
        name = closure.group.states[0]
        found = next((s for s in self.spectra if name in s.states), None)
        return found is not None and found.elementwise and found.modulus.hi <= 1 and not found.modulus.undefined

    def bounded_products(self, closure: _OfGroup) -> bool:
        """Whether products of this group's matrices, of any number of tokens, were proved not to grow: one norm, the
        same at all steps, is at most 1. It is asked of a `Block`, whose entries do not mix."""
        own = set(closure.group.states)
        return any(s.shrinking for s in self.spectra if set(s.states) == own)

    def diagnostics(self, strict: bool = False) -> list[Diagnostic]:
        """Refuted claims are errors, undecided ones warnings; under `strict` errors too."""
        found: list[Diagnostic] = []
        for v in self.verdicts:
            if v.status == "refuted":
                assert v.witness is not None
                values, result = v.witness.text(), number_text(v.witness.result)
                if v.kind == "eigenvalues":
                    constant = not v.witness.values and not v.witness.rest and v.witness.tokens == 1
                    values = "" if constant else values.removeprefix("with ")
                kind = errors.SpectrumRefuted if v.kind == "eigenvalues" else errors.ClaimRefuted
                mend = f"it would hold with {v.mend}" if v.mend else ""
                found.append(kind(v.span, v.claim, v.name, v.region, values, result, v.reason, mend, v.edit))
            elif v.status == "undecided":
                if v.kind == "eigenvalues":
                    undecided = errors.SpectrumUnproved if strict else errors.SpectrumUndecided
                else:
                    undecided = errors.ClaimUnproved if strict else errors.ClaimUndecided
                found.append(undecided(v.span, v.claim, v.missing, v.reason, v.edit))
        return found


def analysis_text(analysis: Analysis) -> str:
    """The analysis as text, for `--emit analysis`."""
    lines = [f"cell {analysis.cell}"]
    if analysis.verdicts:
        lines.append("  claims")
        for v in analysis.verdicts:
            lines.append(f"    {v.claim}: {v.status}")
            said = [v.reason, v.missing and f"missing: {v.missing}", v.mend and f"would hold: {v.mend}"]
            if v.witness is not None:
                said.insert(0, f"{v.witness.text()} gives {number_text(v.witness.result)}")
            lines.extend(f"      {s}" for s in said if s)
            if v.relies:
                lines.append(f"      given {', '.join(v.relies)}")
    for title, table in (
        ("inputs", analysis.inputs),
        ("definitions", analysis.definitions),
        ("states", analysis.states),
        ("outputs", analysis.outputs),
    ):
        if table:
            lines.append(f"  {title}")
            lines.extend(f"    {name}: {range_}" for name, range_ in table.items())
    if analysis.spectra:
        lines.append("  eigenvalues")
    for s in analysis.spectra:
        lines.append(f"    {', '.join(s.states)}: {spectrum_text(s)}")
        lines.extend(f"      {note}" for name in s.states for note in analysis.notes.get(name, ()))
    return "\n".join(lines) + "\n"


def spectrum_text(s: Spectrum) -> str:
    """What is known of a spectrum, in a few words."""
    if s.form == "still":
        return "all 0"
    if s.real is not None:
        return f"real, in {s.real} ({s.form})"
    if s.form == "unknown" and s.modulus.hi > 1:
        return f"unknown: {s.missing}"
    return f"moduli in {s.modulus} ({s.form})"
