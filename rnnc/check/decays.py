"""A `decay` must be a factor beside something that contains a previous state, in some update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rnnc import ir
from rnnc.check.context import Context
from rnnc.errors.time import DecayOfNothing


def check_decays(cx: Context, definitions: Sequence[ir.Definition], states: Sequence[ir.State]) -> None:
    decays = [d for d in definitions if d.claim == "decay"]
    if not decays:
        return
    products = {n for s in states for n, _ in cx.reach(s.expr) if isinstance(n, ir.Apply) and n.op == "mul"}
    past = _past(cx, states)
    for decay in decays:
        factor = _factor(cx, states, decay.name)
        pairs = ((a, b) for n in products for a, b in (n.children, n.children[::-1]))
        if not any(factor[a] and past[b] for a, b in pairs):
            cx.report(DecayOfNothing(decay.span, decay.name))


def _nodes(cx: Context, states: Sequence[ir.State]) -> Iterator[ir.Expr]:
    """Definitions before what uses them (that is the order in which they were read), then updates."""
    return ir.walk(*cx.definitions.values(), *(s.expr for s in states))


def _past(cx: Context, states: Sequence[ir.State]) -> dict[ir.Expr, bool]:
    """Which values contain a previous state."""
    now: dict[ir.Expr, bool] = {}
    past: dict[ir.Expr, bool] = {}
    for node in _nodes(cx, states):
        current = any(now[c] for c in node.children)
        before = any(past[c] for c in node.children)
        if isinstance(node, ir.Ref) and node.role == "state":
            current, before = True, node.lag > 0
        elif isinstance(node, ir.Ref) and node.name in cx.definitions:
            value = cx.definitions[node.name]
            current, before = now[value], past[value] or (node.lag > 0 and now[value])
        elif isinstance(node, ir.Conv) and node.width > 1:
            before = current
        now[node], past[node] = current, before
    return past


def _factor(cx: Context, states: Sequence[ir.State], name: str) -> dict[ir.Expr, bool]:
    """Which values are products with `name` among their factors."""
    found: dict[ir.Expr, bool] = {}
    for node in _nodes(cx, states):
        through: tuple[ir.Expr, ...] = ()
        match node:
            case ir.Ref() if node.name in cx.definitions:
                through = () if node.name == name else (cx.definitions[node.name],)
            case ir.Apply(op="mul" | "neg" | "stop_gradient" | "conj"):
                through = node.args
            case ir.Apply(op="div"):
                through = node.args[:1]
            case ir.Apply(op="where"):
                through = node.args[1:]
            case ir.Rename() | ir.Split() | ir.Merge():
                through = node.children
            case _:
                pass
        found[node] = (isinstance(node, ir.Ref) and node.name == name) or any(found[c] for c in through)
    return found
