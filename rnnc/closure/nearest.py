"""The nearest program that would be parallel, for a group that only just fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from rnnc.closure.base import Obligation
from rnnc.closure.view import holding, pasts_of
from rnnc.group import Group
from rnnc.ir import Apply, Expr, Ref, walk
from rnnc.lower import System
from rnnc.show import expr_text, region_text

_BENT = frozenset("tanh sigmoid silu gelu erf sin cos softplus logsigmoid exp abs sign square relu sqrt".split())
_TRIALS = 4


def nearest(
    system: System,
    group: Group,
    unproved: Sequence[tuple[str, Obligation]],
    family_of: Callable[[System, Group], str],
) -> str:
    """What to assume, or what to leave out, and the family that the group is in then; nothing where neither helps."""
    for family, o in unproved:
        text, region = expr_text(o.expr), region_text(o.what)
        if isinstance(o.expr, Ref) and o.expr.role == "param":
            return f"a learned `{text}` may be any number: in {region} it would be parallel ({family})"
        return f"with `{text}` in {region} it would be parallel ({family})"
    streams = [system.stream(n) for n in group.states]
    updates = [s.expr for s in streams]
    pasts = pasts_of(group.states, *updates)
    holds = {n for update in updates for n in holding(update, pasts)}
    bent = [n for n in walk(*updates) if n in holds and isinstance(n, Apply) and n.op in _BENT]
    for node in bent[:_TRIALS]:
        straight = _without(system, node)
        if found := family_of(straight, group):
            return f"without `{node.op}` around `{expr_text(node.args[0])}` it would be parallel ({found})"
    return ""


def _without(system: System, node: Apply) -> System:
    """The system with an operation replaced by its operand."""
    done: dict[Expr, Expr] = {}

    def changed(root: Expr) -> Expr:
        for n in walk(root):
            if n not in done:
                kept = system.graph.rebuild(n, tuple(done[c] for c in n.children)) if n.children else n
                done[n] = done[node.args[0]] if n is node else kept
        return done[root]

    return replace(system, streams=tuple(replace(s, expr=changed(s.expr)) for s in system.streams))
