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
    past = _past(cx, states)
    factors = _factors(cx, states, frozenset(d.name for d in decays))
    used: set[str] = set()
    for state in states:
        for node, _ in cx.reach(state.expr):
            if isinstance(node, ir.Apply) and node.op == "mul":
                for factor, beside in (node.args, node.args[::-1]):
                    used |= factors[factor] if past[beside] else frozenset()
    for decay in decays:
        if decay.name not in used:
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


def _factors(cx: Context, states: Sequence[ir.State], decays: frozenset[str]) -> dict[ir.Expr, frozenset[str]]:
    """Which decays are factors of each value."""
    found: dict[ir.Expr, frozenset[str]] = {}
    for node in _nodes(cx, states):
        through: tuple[ir.Expr, ...] = ()
        match node:
            case ir.Ref() if node.name in cx.definitions:
                through = (cx.definitions[node.name],)
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
        own = frozenset((node.name,)) & decays if isinstance(node, ir.Ref) else frozenset[str]()
        found[node] = own.union(*(found[c] for c in through))
    return found
