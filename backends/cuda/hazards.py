"""Where the threads of a block must wait for each other, within a token and from one to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Place = tuple[str, int | None]
"""An array in memory; of a ring of tokens, with how many tokens ago."""


@dataclass(frozen=True)
class Access:
    """A read or write of an array. `owner` is the numbering of threads by which each touches only its own entries;
    None where a thread may touch any."""

    place: Place
    write: bool
    owner: int | None


@dataclass(frozen=True)
class Item:
    """Some lines, what they touch, and whether they read numbers of this token from outside the block. `within` is what
    they touch behind barriers of their own."""

    lines: tuple[str, ...]
    accesses: tuple[Access, ...]
    reads_tokens: bool = False
    within: tuple[Access, ...] = ()


def _clash(a: Access, b: Access) -> bool:
    return a.place == b.place and (a.write or b.write) and (a.owner is None or a.owner != b.owner)


def barriers(items: Sequence[Item], rings: dict[str, int]) -> frozenset[int]:
    """The items of a loop before which all threads wait. `rings` are the lengths of rings that turn with it."""
    found: set[int] = set()
    pending: list[Access] = []
    # What one round leaves is what the next one meets: by the third nothing changes.
    for _ in range(max([2, *(n + 1 for n in rings.values())])):
        for i, item in enumerate(items):
            if i in found or any(_clash(a, b) for a in item.accesses for b in pending):
                found.add(i)
                pending = []
            pending.extend(item.accesses)
        pending = list(dict.fromkeys(_later(a, rings) for a in pending))
    return frozenset(found)


def _later(access: Access, rings: dict[str, int]) -> Access:
    """The same entry, one token on."""
    name, lag = access.place
    if lag is None or name not in rings:
        return access
    return Access((name, (lag + 1) % rings[name]), access.write, access.owner)
