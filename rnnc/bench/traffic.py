"""The bytes that must move, whoever computes a cell: docs/bench.md says what is counted."""

from __future__ import annotations

from math import prod

from rnnc.bench.contenders import Subject
from rnnc.bench.inputs import complex_of
from rnnc.ir import Ref, Type


def traffic(subject: Subject, tokens: int) -> tuple[int, int]:
    """Bytes forward, and bytes backward."""
    cell, widths = subject.cell, {"real": subject.dtype.itemsize, "complex": complex_of(subject.dtype).itemsize}

    def size(*types: Type) -> int:
        return tokens * sum(widths.get(t.kind, 1) * prod(int(subject.numbers[d]) for d in t.dims) for t in types)

    weights = sum(w.numel() * w.element_size() for w in subject.weights.values())
    inputs, outputs = [i.type for i in cell.inputs], [o.expr for o in cell.outputs]
    # Gradients of all that has one; and of the states only those that were written: others follow from the inputs.
    gradients = [t for t in (*inputs, *(o.type for o in outputs)) if t.kind != "bool"]
    states = [o.type for o in outputs if isinstance(o, Ref) and o.role == "state"]
    forward = size(*inputs) + weights + size(*(o.type for o in outputs))
    return forward, size(*inputs) + size(*gradients) + size(*states) + 2 * weights
