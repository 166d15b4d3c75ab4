"""What a group can do, as far as theorems on linear recurrences go, and how long it remembers at first.

Goals: sentences for `explain`. Each limit rests on what was proved of the spectrum; what a group can track is said only
where its factors were proved to come as near as one likes to those that the construction needs, and the text says whose
result it is. All of these are about what holds at some weights, not about what training finds.
Non-goals: nonlinear recurrences, of which none of this is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rnnc.bound.evaluate import Unsupported
from rnnc.bound.invariants import Environment
from rnnc.bound.model import Model
from rnnc.bound.sample import HalfLife, half_life, largest, moduli
from rnnc.bound.spectrum import Spectrum
from rnnc.bound.witness import reached
from rnnc.ir import Expr, Ref, walk

GRAZZI = "Grazzi et al. 2024, arXiv:2411.12537"
SARROF = "Sarrof et al. 2024, arXiv:2405.17394"
KHAVARI = "Khavari et al. 2025, arXiv:2508.07395"
SHAKERINAVA = "Shakerinava et al. 2026, arXiv:2603.01959"


@dataclass(frozen=True)
class Tracking:
    """What a group can track, and what it cannot, each with the reason."""

    can: tuple[str, ...] = ()
    cannot: tuple[str, ...] = ()


def tracking(env: Environment, s: Spectrum, *, fed: bool) -> Tracking:
    """What is known of a linear recurrence with this spectrum; nothing of others.

    `fed`: it reads a nonlinear one, which may track for it what it cannot by itself.
    """
    if not s.linear or s.form in ("still", "unknown"):
        return Tracking()
    real = s.real if s.real is not None and not s.real.undefined else None
    cannot: list[str] = []
    alone = " by itself" if fed else ""
    if real is not None and real.lo >= 0 and real.hi <= 1:
        cannot.append(f"parity{alone}, as all eigenvalues lie in [0, 1] ({GRAZZI}, Theorem 1)")
    elif s.elementwise and not _driven(s):
        cannot.append(f"parity{alone}, as the transition is the same at every token ({KHAVARI})")
    if s.elementwise and real is not None:
        why = "as the transition is diagonal with real eigenvalues"
        cannot.append(f"counting modulo 3{alone}, {why} ({GRAZZI}, Theorem 2)")
    elif real is not None:
        cannot.append(f"counting modulo 3 in one layer, as all eigenvalues are real ({GRAZZI}, Theorem 2)")
    if s.elementwise:
        cannot.append(f"permutations of three things in one layer, as the transition is diagonal ({SHAKERINAVA})")
    return Tracking(tuple(_can(env, s)), tuple(cannot))


def _can(env: Environment, s: Spectrum) -> Iterator[str]:
    """What the inputs of a token can do to a transition: only where they alone decide it."""
    parts = [e for t in s.terms for e in (t.out, t.inner) if e is not None]
    if (
        any(isinstance(n, Ref) and (n.role in ("state", "def") or n.lag > 0) for n in walk(*parts))
        or len(s.at_one) != 1
    ):
        return
    (factor,) = s.at_one
    if s.elementwise and s.real is not None and env.model.cell.state(s.states[0]).over is None:
        if s.real.lo >= 0 and reached(env, factor.re, (0, 1)):
            yield f"star-free regular languages, in enough layers: its factors come near 0 and 1 ({SARROF})"
        if s.real.lo < 0 and reached(env, factor.re, (-1, 1)):
            yield "parity, as its factors come near 1 and -1"
    if s.reflects and reached(env, factor.re, (-1, 1)):
        over = env.model.cell.state(s.states[0]).over
        if over is None and s.factors == 1:
            yield "parity and swaps of two things, as its factor comes near a reflection"
        elif over is None:
            which = f"permutations of {s.factors + 1} things by its {s.factors} factors a token"
            yield f"parity, and {which}, each near a reflection that swaps two ({GRAZZI}, Theorem 3)"
        else:
            which = "permutations of n + 1 things by n factors a token"
            yield f"parity, and {which}, each near a reflection that swaps two ({GRAZZI}, Theorem 3)"
            yield f"any regular language, in enough factors (`{over}`) and layers ({GRAZZI}, Theorem 4)"


def _driven(s: Spectrum) -> bool:
    """Whether the transition differs from token to token."""
    parts = [e for t in s.terms for e in (t.out, t.inner) if e is not None]
    return any(isinstance(n, Ref) and n.role in ("input", "state", "def") for n in walk(*parts))


# --- memory ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """How long a group remembers at initialisation; `of` says what it is the half-life of, or why there is none."""

    found: HalfLife | None
    of: str

    def __str__(self) -> str:
        return self.of if self.found is None else f"{self.found}, {self.of}"


def memory(model: Model, s: Spectrum) -> Memory:
    """By the eigenvalues of the transition."""
    try:
        if s.form == "still":
            return Memory(None, "none: the next value does not depend on the last")
        if s.matrix is not None:
            what = f"by the largest eigenvalue of its {s.matrix.size} x {s.matrix.size} matrix"
            return _known(half_life(largest(model, s.matrix)), what if s.linear else f"{what} at the states it reaches")
        if s.form == "unknown" or s.form == "coupled" or not s.terms:
            return Memory(None, "not known: its transition mixes entries, and has no one factor for each")
        what = {"rank one": "by the factor of what is not overwritten"}.get(s.form, "by its factor")
        return _known(
            half_life(moduli(model, s.terms[0].out)), what if s.linear else "by its slope at the states it reaches"
        )
    except Unsupported:
        return Memory(None, "not known: its factor cannot be drawn apart from the rest")


def memory_of(model: Model, factor: Expr, of: str) -> Memory:
    """By a factor that the cell itself does not write."""
    try:
        return _known(half_life(moduli(model, model.expand(factor))), of)
    except Unsupported:
        return Memory(None, "not known: its factor cannot be drawn apart from the rest")


def _known(found: HalfLife | None, of: str) -> Memory:
    return Memory(None, "not known: at initialisation its factor is no number") if found is None else Memory(found, of)
