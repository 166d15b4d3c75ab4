"""What a code-generating backend is, and how one is found. rnnc imports no backend by name: they are entry points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class Accelerated(Backend, Protocol):
    """A backend whose modules have kernels for a GPU."""

    def kernels(self, plan: Plan) -> Mapping[str, str]:
        """In words, what computes each state on a GPU, where there is a kernel for it."""
        ...


@cache
def backend(name: str) -> Backend:
    """The backend `name` of the entry-point group `rnnc.backends`; in a bare checkout, of the folder `backends`."""
    for point in entry_points(group="rnnc.backends", name=name):
        return cast(Backend, point.load())
    return cast(Backend, import_module(f"rnnc.backends.{name}"))


def kernels(plan: Plan) -> Mapping[str, str]:
    """In words, what computes each state on a GPU in the default backend's module, where there is a kernel for it."""
    return cast(Accelerated, backend("triton")).kernels(plan)
