"""What the state of a cell consists of, and in which order: shared by the interpreter and the code generator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rnnc.ir import Cell, Conv, Expr, Kind, Ref, walk


@dataclass(frozen=True, slots=True)
class StateField:
    """One tensor of the state: `[B, *dims]`, or `[B, length, *dims]` for a history, newest first.

    role "state": the value of state `of` at t-1. "past": of a state, its values at t-2, t-3, ...; of an input or a
    definition, at t-1, t-2, ... "conv": the values at t-1, t-2, ... of what `conv` reads; `of` is `Conv.history`.
    `init` is the value before the first token of every entry, None for zero.
    """

    name: str
    role: Literal["state", "past", "conv"]
    of: str
    length: int | None
    dims: tuple[str, ...]
    kind: Kind
    init: Expr | None


def state_fields(cell: Cell) -> tuple[StateField, ...]:
    """States, then the pasts of states, of inputs and of definitions, then conv histories.

    Each in the order of the file; conv histories in that of their first occurrence in definitions, updates, outputs.
    """
    lags: dict[tuple[str, str], int] = {}
    convs: dict[str, Conv] = {}
    for node in walk(*_roots(cell)):
        if isinstance(node, Ref) and node.lag:
            key = (node.role, node.name)
            lags[key] = max(lags.get(key, 0), node.lag)
        elif isinstance(node, Conv) and node.width > 1:
            convs[node.history] = node
    fields = [StateField(s.name, "state", s.name, None, s.type.dims, s.type.kind, s.init) for s in cell.states]
    for s in cell.states:
        if (lag := lags.get(("state", s.name), 1)) > 1:
            fields.append(StateField(f"{s.name}_past", "past", s.name, lag - 1, s.type.dims, s.type.kind, s.init))
    for role, values in (("input", cell.inputs), ("def", cell.definitions)):
        for v in values:
            if lag := lags.get((role, v.name), 0):
                fields.append(StateField(f"{v.name}_past", "past", v.name, lag, v.type.dims, v.type.kind, None))
    for name, conv in convs.items():
        kind = "complex" if conv.kind == "complex" else "real"
        fields.append(StateField(name, "conv", name, conv.width - 1, conv.arg.dims, kind, None))
    return tuple(fields)


def _roots(cell: Cell) -> Iterator[Expr]:
    for d in cell.definitions:
        yield d.expr
    for s in cell.states:
        yield s.expr
    for o in cell.outputs:
        yield o.expr
