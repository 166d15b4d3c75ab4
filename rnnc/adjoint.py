"""Closure → Closure: the backward recurrence, derived in the same IR.

With `λ[t]` the gradient of the loss with respect to `s[t]`, all of its future included, an affine group has
`λ[t] = conj(a[t+1]) λ[t+1] + g[t]`, where `g` is what arrives from outside: an affine recurrence that runs from the
last token to the first. The step is differentiated by `rnnc.derive` and the result goes through the same `match` as any
recurrence of a program, so the backward pass is the same compiler again.
"""

from __future__ import annotations

from dataclasses import dataclass

from rnnc.closure.affine import match_update
from rnnc.closure.base import Affine, Refusal
from rnnc.derive import pull_back
from rnnc.ir import Expr
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
