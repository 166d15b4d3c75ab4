"""All diagnostics, one file a subject; and the codes they go by."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from rnnc.diagnostics import Diagnostic


@cache
def all_codes() -> Mapping[str, type[Diagnostic]]:
    """Every code in order, and its class."""
    found: dict[str, type[Diagnostic]] = {}
    for info in iter_modules(__path__):
        for value in vars(import_module(f"{__name__}.{info.name}")).values():
            if isinstance(value, type) and issubclass(value, Diagnostic) and "code" in vars(value):
                assert found.setdefault(value.code, value) is value, f"two diagnostics {value.code}"
    return dict(sorted(found.items()))


def by_code(code: str) -> type[Diagnostic]:
    """The class of a code; KeyError where there is none."""
    return all_codes()[code]
