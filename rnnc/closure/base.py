"""What the closure stage says of a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rnnc.group import Group
from rnnc.ir import Expr


@dataclass(frozen=True)
class Refusal:
    """Why a group is not in a family: the reason in words, and the term that makes it so (text of the language)."""

    family: str
    reason: str
    term: str = ""


@dataclass(frozen=True)
class Closure:
    """Base: the family of a group."""

    family: ClassVar[str]
    group: Group


@dataclass(frozen=True)
class Still(Closure):
    """No recurrence: the value at `t` does not reach its own past."""

    family: ClassVar[str] = "none"


@dataclass(frozen=True)
class Affine(Closure):
    """`s[t] = a * s[t-1] + b`, elementwise: `a` and `b` hold no state of the group. `b` is None for zero.

    The composition `(a2, b2) after (a1, b1) = (a2 a1, a2 b1 + b2)` is associative. `certificate` is the identity that
    was checked; `reverse` marks an adjoint, which runs from the last token to the first with `a` taken one token later.
    """

    family: ClassVar[str] = "affine"
    a: Expr
    b: Expr | None
    certificate: str
    reverse: bool = False


@dataclass(frozen=True)
class Sequential(Closure):
    """No family: stepped token by token. One refusal for each family."""

    family: ClassVar[str] = "sequential"
    refusals: tuple[Refusal, ...]
