"""Parameters of tests of which `make test` runs some, and `make test-full` all."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest


def some(quick: Container[Any], of: Iterable[Any]) -> list[Any]:
    """All parameters, those that are not quick ones under the marker `slow`."""
    return [_marked(p, p not in quick) for p in of]


def without(slow: Container[Any], of: Iterable[Any]) -> list[Any]:
    """All parameters, these under the marker `slow`."""
    return [_marked(p, p in slow) for p in of]


def _marked(parameters: Any, slow: bool) -> Any:
    several = parameters if isinstance(parameters, tuple) else (parameters,)
    return pytest.param(*several, marks=pytest.mark.slow) if slow else parameters
