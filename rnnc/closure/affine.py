"""The affine family, elementwise: `s[t] = a * s[t-1] + b` with `a`, `b` free of the group's states.

Match: the update as a sum (`linear`), whose identity with the update is the certificate.
Composition: `(a2 * a1, a2 * b1 + b2)`; identity `(1, 0)`; obligation: none.
"""

from __future__ import annotations

from rnnc.closure.base import Affine, Refusal
from rnnc.closure.linear import Terms, confirmed, split
from rnnc.closure.view import alone, lagging
from rnnc.group import Group
from rnnc.ir import Graph
from rnnc.lower import Stream, System
from rnnc.show import expr_text

FAMILY = "affine"


def match(system: System, group: Group) -> Affine | Refusal:
    found = alone(FAMILY, system, group)
    return found if isinstance(found, Refusal) else match_update(system.graph, found[0])


def match_update(graph: Graph, stream: Stream, reverse: bool = False) -> Affine | Refusal:
    """Split `stream.expr` as `a * s + b`, where `s` is the stream at lag 1."""
    found = lagging(FAMILY, stream)
    if isinstance(found, Refusal):
        return found
    past = found[1]
    terms = split(graph, stream.expr, (past,))
    if not isinstance(terms, Terms):
        return Refusal(FAMILY, f"`{expr_text(terms)}` is not affine in `{expr_text(past)}`", expr_text(terms))
    if not confirmed(stream.expr, terms, (past,)):
        return Refusal(FAMILY, f"the split of `{stream.name}` could not be confirmed")
    a, b = terms.slopes.get(past, graph.lit(0.0)), terms.rest
    shown = f"a * {expr_text(past)}" + (" + b" if b is not None else "")
    certificate = f"update - ({shown}) = 0; (a2, b2) after (a1, b1) = (a2 * a1, a2 * b1 + b2)"
    return Affine(Group((stream.name,), True, ()), a, b, certificate, reverse)
