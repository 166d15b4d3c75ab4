"""What the closure stage says of a group."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from rnnc.group import Group
from rnnc.ir import Expr, Graph, Region


@dataclass(frozen=True)
class Refusal:
    """Why a group is not in a family: the reason in words, and the term that makes it so (text of the language)."""

    family: str
    reason: str
    term: str = ""


@dataclass(frozen=True)
class Obligation:
    """That `expr` (of the lowered program) lies in `what`, always; `why` says what rests on it."""

    expr: Expr
    what: Region
    why: str


Prove = Callable[[Obligation], bool]


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
class Composable(Closure):
    """A group whose step maps compose elementwise: `s[t] = apply(parameters, s[t-1])`.

    `parameters` are one token's, over the states' dims or fewer and free of the group's own pasts. `certificate` is
    what SymPy reduced to zero; it holds where the `obligations` do. `components` are what `apply` takes, states of the
    group with their lags, newest first; it returns each of them one token later.
    """

    parameters: tuple[Expr, ...]
    certificate: str
    obligations: tuple[Obligation, ...]
    components: tuple[tuple[str, int], ...]

    def grows(self, contracting: bool) -> bool:
        """Whether the parameters of many tokens may overflow, or lose what matters, where states do not.

        `contracting`: the derivative of a step was proved to be at most 1.
        """
        return True

    @abstractmethod
    def identity(self, graph: Graph) -> tuple[Expr, ...]:
        """Parameters of the map that changes nothing."""

    @abstractmethod
    def compose(self, graph: Graph, later: tuple[Expr, ...], earlier: tuple[Expr, ...]) -> tuple[Expr, ...]:
        """Parameters of `later` after `earlier`. It is associative."""

    @abstractmethod
    def apply(self, graph: Graph, parameters: tuple[Expr, ...], states: tuple[Expr, ...]) -> tuple[Expr, ...]:
        """The new values of the `components`."""


@dataclass(frozen=True)
class Sequential(Closure):
    """No family: stepped token by token. One refusal for each family; `nearest` is a program that would be parallel,
    for a group that only just fails."""

    family: ClassVar[str] = "sequential"
    refusals: tuple[Refusal, ...]
    nearest: str = ""
