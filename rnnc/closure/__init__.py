"""Group → Closure: in which family do the step maps of a group compose?

Each family is one file with `match(system, group) -> Closure | Refusal`. They are tried in order of cost, each refusal
is a worded reason, and the choice is always said. What a family rests on that only ranges can tell is an obligation;
`obligations.settle` closes again those groups that have some, once there are ranges.
"""

from __future__ import annotations

from rnnc.closure import affine, block, lowrank, moebius, tropical, variable
from rnnc.closure.base import Affine, Closure, Composable, Obligation, Prove, Refusal, Sequential, Still
from rnnc.closure.block import Block
from rnnc.closure.lowrank import LowRank
from rnnc.closure.moebius import Moebius
from rnnc.closure.nearest import nearest
from rnnc.closure.tropical import Tropical
from rnnc.closure.variable import Variable
from rnnc.group import Group
from rnnc.lower import System
from rnnc.show import expr_text, region_text

__all__ = [
    "FAMILIES",
    "Affine",
    "Block",
    "Closure",
    "Composable",
    "LowRank",
    "Moebius",
    "Obligation",
    "Refusal",
    "Sequential",
    "Still",
    "Tropical",
    "Variable",
    "close",
]

_MATCHES = (affine.match, tropical.match, variable.match, moebius.match, block.match, lowrank.match)
FAMILIES = (affine.FAMILY, tropical.FAMILY, variable.FAMILY, moebius.FAMILY, block.FAMILY, lowrank.FAMILY)


def close(system: System, group: Group, prove: Prove | None = None) -> Closure:
    """The first family that the group belongs to, else `Sequential` with every family's refusal.

    Obligations stay open without `prove`; with it, a family whose obligations it does not prove refuses the group.
    """
    if not group.recurrent:
        return Still(group)
    refusals: list[Refusal] = []
    unproved: list[tuple[str, Obligation]] = []
    for match in _MATCHES:
        found = match(system, group)
        if isinstance(found, Refusal):
            refusals.append(found)
            continue
        if not isinstance(found, Composable) or prove is None:
            return found
        lacking = next((o for o in found.obligations if not prove(o)), None)
        if lacking is None:
            return found
        refusals.append(_unproved(found.family, lacking))
        unproved.append((found.family, lacking))
    return Sequential(group, tuple(refusals), nearest(system, group, unproved, _found))


def _found(system: System, group: Group) -> str:
    """The family of a group whose obligations are not asked for, or nothing."""
    for match in _MATCHES:
        found = match(system, group)
        if not isinstance(found, Refusal):
            return found.family
    return ""


def _unproved(family: str, o: Obligation) -> Refusal:
    text = expr_text(o.expr)
    return Refusal(family, f"`{text}` was not proved to lie in {region_text(o.what)}, and {o.why}", text)
