"""What every family looks at first: the pasts of a group in its updates, and whether these are elementwise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rnnc.closure.base import Refusal
from rnnc.group import Group
from rnnc.ir import Apply, Expr, Ref, walk
from rnnc.lower import Stream, System
from rnnc.show import expr_text


def holding(root: Expr, pasts: Iterable[Expr]) -> set[Expr]:
    """The pasts, and the nodes below `root` that depend on one."""
    holds = set(pasts)
    for node in walk(root):
        if any(c in holds for c in node.children):
            holds.add(node)
    return holds


def pasts_of(names: Sequence[str], *roots: Expr) -> list[Ref]:
    return [n for n in walk(*roots) if isinstance(n, Ref) and n.role == "state" and n.name in names]


def alone(family: str, system: System, group: Group) -> tuple[Stream, Ref] | Refusal:
    """The only stream of a group and its past, which the update reads at lag 1, entry by entry."""
    name, *others = group.states
    if others:
        names = ", ".join(f"`{n}`" for n in group.states)
        return Refusal(family, f"the states {names} need each other, and this family holds one state at a time")
    stream = system.stream(name)
    if stream.over:
        return Refusal(family, f"`{stream.name}` is updated several times a token, over `{stream.over}`")
    return lagging(family, stream)


def lagging(family: str, stream: Stream) -> tuple[Stream, Ref] | Refusal:
    """The past of a stream, if its update reads only the one at lag 1, entry by entry."""
    name = stream.name
    past = pasts_of((name,), stream.expr)
    if far := next((n for n in past if n.lag != 1), None):
        reason = f"`{name}` reads `{expr_text(far)}`, and this family reaches back one token"
        return Refusal(family, reason, expr_text(far))
    mixed = mixing(family, name, stream.expr, past)
    return mixed if mixed is not None else (stream, past[0])


def mixing(family: str, name: str, update: Expr, pasts: Sequence[Expr]) -> Refusal | None:
    """Whether an update takes more than one entry of a past to make one."""
    holds = holding(update, pasts)
    for node in walk(update):
        if node in holds and node not in pasts and not isinstance(node, Apply):
            return Refusal(family, f"`{expr_text(node)}` mixes entries of `{name}`", expr_text(node))
    return None
