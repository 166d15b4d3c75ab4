"""The tree: a program as written, before any name is looked up. Every node knows its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rnnc.source import Span


@dataclass(frozen=True, slots=True)
class Number:
    """An int, float or complex literal (`1j`); `inf`, `pi`, `true`, `false` are names until the checker."""

    value: int | float | complex
    span: Span


@dataclass(frozen=True, slots=True)
class Name:
    """NFKC-normalised."""

    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class Unary:
    """op: `-`, `+` or `not`."""

    op: str
    arg: Expr
    span: Span


@dataclass(frozen=True, slots=True)
class Binary:
    """op: `+ - * / **`, a comparison, `and` or `or`."""

    op: str
    left: Expr
    right: Expr
    span: Span


@dataclass(frozen=True, slots=True)
class Bracket:
    """One postfix `[...]`: a time index, dims of a reduction, a size, or a renaming `left -> right`.

    `left` are the items before `->`, `right` those after it (None where there is no arrow).
    """

    base: Expr
    left: tuple[Expr, ...]
    right: tuple[Expr, ...] | None
    span: Span
    inner: Span
    """From the opening bracket to the closing one."""


@dataclass(frozen=True, slots=True)
class Call:
    """One postfix `(...)`: arguments, targets after `->` (None where there is no arrow), options `name=value`."""

    base: Expr
    args: tuple[Expr, ...]
    target: tuple[Expr, ...] | None
    options: tuple[tuple[Name, Expr], ...]
    span: Span


Expr = Number | Name | Unary | Binary | Bracket | Call


@dataclass(frozen=True, slots=True)
class Range:
    """`[a, b]`, `(a, b)` and mixed."""

    lo: Expr
    hi: Expr
    lo_open: bool
    hi_open: bool
    span: Span


Region = Range | Call
"""A `Call` is `disc(r)` or `annulus(r, s)`."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A declared name: `x`, `x[D, N]`, `done: bool`, `h[N]: complex`, `f[H] in [0, 1]`, `D = 512`."""

    name: Name
    dims: tuple[Name, ...] | None
    annotation: Name | None
    region: Region | None
    value: Expr | None
    span: Span


@dataclass(frozen=True, slots=True)
class Declaration:
    """`dim`, `const`, `input`, `param`, `buffer` or `state` and its names."""

    keyword: Literal["dim", "const", "input", "param", "buffer", "state"]
    items: tuple[Declared, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Equation:
    """`y = e`, `y[H, V] = e`, `gate z = e`, `decay a in r = e`, `beta in r = e`."""

    keyword: Literal["", "gate", "decay"]
    target: Declared
    expr: Expr
    span: Span


@dataclass(frozen=True, slots=True)
class Update:
    """`S[t] = e`, `S[t] over J = e`. `index` is what stands in the brackets (the checker wants `t`)."""

    name: Name
    index: Expr
    over: Name | None
    expr: Expr
    span: Span


@dataclass(frozen=True, slots=True)
class Eigenvalues:
    state: Name
    region: Region
    span: Span


@dataclass(frozen=True, slots=True)
class Output:
    """`output e`, `output y = e`, `output y in r = e`: `target` is the expression before `in` or `=`.

    `expr` is None where nothing follows: then `target` is the value itself.
    """

    target: Expr
    region: Region | None
    expr: Expr | None
    span: Span


Statement = Declaration | Equation | Update | Eigenvalues | Output


@dataclass(frozen=True, slots=True)
class Cell:
    """`unread` are the words of those of its lines that could not be read (diagnostics say why): what these may have
    declared, `output` included, is not missing."""

    name: Name
    doc: str | None
    statements: tuple[Statement, ...]
    span: Span
    unread: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Program:
    cells: tuple[Cell, ...]


Node = Expr | Range | Declared | Statement | Cell | Program


def parts(node: Node) -> Iterator[tuple[str, object]]:
    """The fields of a node and their values, in order; the spans are left out."""
    for name in node.__slots__:
        value: object = getattr(node, name)
        if not isinstance(value, Span):
            yield name, value
