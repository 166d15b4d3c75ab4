"""What a code-generating backend is, and how one is found. rnnc imports no backend by name: they are entry points."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Protocol, cast

from rnnc.plan import Plan


class Backend(Protocol):
    """A backend's one entry point."""

    def emit(self, plans: Sequence[Plan], text: str) -> str:
        """The text of one module with all cells of the source `text`."""
        ...


@cache
def backend(name: str) -> Backend:
    """The backend `name` of the entry-point group `rnnc.backends`; in a bare checkout, of the folder `backends`."""
    for point in entry_points(group="rnnc.backends", name=name):
        return cast(Backend, point.load())
    return cast(Backend, import_module(f"rnnc.backends.{name}"))
