"""Phrases that several diagnostics share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_SHOWN = 8


def quoted(words: Iterable[str], last: str = "and") -> str:
    """`a`, `b` and `c`."""
    found = [f"`{w}`" for w in words]
    if len(found) < 2:
        return "".join(found)
    return f"{', '.join(found[:-1])} {last} {found[-1]}"


def dims_of(dims: Sequence[str]) -> str:
    """What a value has: "the dims `H` and `K`", "no dims"."""
    if not dims:
        return "no dims"
    return f"the dim{'s' if len(dims) > 1 else ''} {quoted(dims)}"


def article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def circle_text(circle: Sequence[str]) -> str:
    """`a` → `b` → `a`; a long one without its middle."""
    names = [f"`{n}`" for n in (*circle, circle[0])]
    if len(names) > _SHOWN:
        names = [*names[: _SHOWN // 2], "…", *names[-_SHOWN // 2 :]]
    return " → ".join(names)
