"""Closure → Closure: the backward recurrence, derived in the same IR.

With `λ[t]` the gradient of the loss with respect to `s[t]`, all of its future included, an affine group has
`λ[t] = conj(a[t+1]) λ[t+1] + g[t]`, where `g` is what arrives from outside: an affine recurrence that runs from the
last token to the first. The step is differentiated by `rnnc.derive` and the result goes through the same `match` as any
recurrence of a program, so the backward pass is the same compiler again. Of any other group whose entries do not mix
the backward is a small block, `λ[t-1] = J[t]ᵀ λ[t] + g[t-1]`, whatever the forward is (`flow`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rnnc.closure.affine import match_update
from rnnc.closure.base import Affine, Closure, Refusal
from rnnc.closure.block import Block, Matrix, components_of, dense, substituted
from rnnc.closure.view import pasts_of
from rnnc.derive import depends, pull_back
from rnnc.ir import COMPLEX_OPS, Apply, Expr, Ref
from rnnc.lower import Stream, System


@dataclass(frozen=True)
class Adjoint:
    """The backward pass of one affine group.

    `closure` is the recurrence of `λ` (its `a` is one token later); `to_a` and `to_b` the gradients of the coefficients
    in terms of `λ[t]` (an input named `λ`) and `s[t-1]`, before they are summed to the coefficients' own dims.
    """

    closure: Affine
    to_a: Expr
    to_b: Expr


def adjoint(system: System, closure: Affine) -> Adjoint:
    """Differentiate `s[t] = a * s[t-1] + b` and match the recurrence of its cotangent."""
    graph = system.graph
    stream = system.stream(closure.group.states[0])
    past = graph.ref("state", stream.name, stream.type, 1)
    # The coefficients as opaque inputs: what is differentiated is the step, not the gates.
    a = graph.ref("input", "a", closure.a.type)
    b = graph.ref("input", "b", stream.type)
    cotangent = graph.ref("state", "λ", stream.type, 1)
    step = graph.apply("add", graph.apply("mul", a, past), b)
    found = pull_back(graph, {step: cotangent}, (past, b))
    to_a = graph.apply("mul", cotangent, graph.apply("conj", past) if past.kind == "complex" else past)
    arriving = graph.ref("input", "g", stream.type)
    update = graph.apply("add", found[past], arriving)
    match = match_update(graph, Stream("λ", stream.type, update, None, 1, False), reverse=True)
    if isinstance(match, Refusal):
        raise AssertionError(f"the adjoint of an affine group is affine: {match.reason}")
    return Adjoint(match, to_a, found[b])


_CONJUGATING = frozenset({"real", "imag", "conj", "abs"})
"""Operations that are not complex differentiable: what flows back through them is no product."""


def flow(system: System, closure: Closure, streams: Sequence[Stream]) -> Block | None:
    """How the cotangents of a stepped group flow from a token to the one before, if its entries do not mix.

    Cotangents are of the values one, two, ... tokens ago (the block's `components`); what arrives from outside is
    `g`, an input for each stream named `∂` and the stream's name.
    """
    graph = system.graph
    if any(s.over for s in streams) or len({(frozenset(s.type.dims), s.type.kind) for s in streams}) > 1:
        return None
    updates = substituted(graph, list(streams))
    pasts = pasts_of([s.name for s in streams], *updates)
    body = depends(updates, pasts)
    if streams[0].type.kind == "bool" or not all(isinstance(n, Apply | Ref) for n in body):
        return None
    if streams[0].type.kind == "complex" and any(
        isinstance(n, Apply) and (n.op in _CONJUGATING or n.op not in COMPLEX_OPS) for n in body
    ):
        return None
    components = components_of(streams, pasts)
    index = {c: i for i, c in enumerate(components)}
    matrix: Matrix = {}
    for stream, update in zip(streams, updates, strict=True):
        found = pull_back(graph, {update: graph.lit(1.0)}, pasts)
        for past, slope in found.items():
            assert isinstance(past, Ref)
            matrix[index[past.name, past.lag], index[stream.name, 1]] = slope
    for (name, lag), i in index.items():
        if lag > 1:
            matrix[index[name, lag - 1], i] = graph.lit(1.0)
    arriving = {index[s.name, 1]: graph.ref("input", f"∂{s.name}", s.type) for s in streams}
    parameters, entries, rows = dense(graph, components, matrix, arriving)
    certificate = "λ[t-1] = J[t]ᵀ λ[t] + g[t-1]"
    return Block(closure.group, parameters, certificate, (), components, entries, rows)
