"""Group → Closure: in which family do the step maps of a group compose?

Each family is one file with `match(system, group) -> Closure | Refusal`. They are tried in order of cost, each refusal
is a worded reason, and the choice is always said.
"""

from __future__ import annotations

from rnnc.closure import affine
from rnnc.closure.base import Affine, Closure, Refusal, Sequential, Still
from rnnc.group import Group
from rnnc.lower import System

__all__ = ["Affine", "Closure", "Refusal", "Sequential", "Still", "close"]

_FAMILIES = (affine.match,)


def close(system: System, group: Group) -> Closure:
    """The first family that the group belongs to, else `Sequential` with every family's refusal."""
    if not group.recurrent:
        return Still(group)
    refusals: list[Refusal] = []
    for match in _FAMILIES:
        found = match(system, group)
        if not isinstance(found, Refusal):
            return found
        refusals.append(found)
    return Sequential(group, tuple(refusals))
