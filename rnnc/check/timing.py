"""Time indices, what an expression refers to at which lag, and circles."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Literal

import networkx as nx

from rnnc import tree
from rnnc.check.words import SIGNATURES
from rnnc.source import Span

MAX_LAG = 64
NotALag = Literal["future", "variable", "absolute", "other"]


def lag_of(index: tuple[tree.Expr, ...]) -> int | NotALag:
    """How many tokens back `[t]`, `[t-1]`, ... reaches, or what is wrong with the brackets.

    "future": `t+1`. "variable": `t` with something that is no constant. "absolute": a number. "other": no time at all.
    """
    if len(index) != 1:
        return "other"
    match index[0]:
        case tree.Name("t"):
            return 0
        case tree.Binary("-", tree.Name("t"), tree.Number(int(lag))):
            return lag
        case tree.Binary("+", tree.Name("t"), tree.Number(int(lag))) | tree.Binary(
            "+", tree.Number(int(lag)), tree.Name("t")
        ):
            return "future" if lag else "variable"
        case tree.Number() | tree.Unary("-", tree.Number()):
            return "absolute"
        case expr:
            return "variable" if any(isinstance(n, tree.Name) and n.text == "t" for n in nodes(expr)) else "other"


def nodes(root: tree.Expr) -> Iterator[tree.Expr]:
    """Every node of an expression, in the order of the text: a call before its arguments. Not what stands in brackets
    or after an arrow."""
    stack = [root]
    while stack:
        node = stack.pop()
        yield node
        match node:
            case tree.Unary():
                stack.append(node.arg)
            case tree.Binary():
                stack += (node.right, node.left)
            case tree.Bracket():
                stack.append(node.base)
            case tree.Call():
                stack += (*reversed(node.args), node.base)
            case _:
                pass


@dataclass(frozen=True, slots=True)
class Reference:
    """A use of a name at a lag. `span` covers the index."""

    name: str
    lag: int
    span: Span


def references(root: tree.Expr) -> Iterator[Reference]:
    """The names that an expression uses as values; not those whose use is an error in itself."""
    seen: set[int] = set()
    for node in nodes(root):
        match node:
            case tree.Bracket(tree.Name(name) as base, left, None):
                lag = lag_of(left)
                if lag != "other":
                    seen.add(id(base))
                if isinstance(lag, int):
                    yield Reference(name, lag, node.span)
            case tree.Call(tree.Name() as base):
                seen.add(id(base))
            case tree.Name(name) if name not in SIGNATURES and id(node) not in seen:
                yield Reference(name, 0, node.span)
            case _:
                pass


Uses = Mapping[str, Mapping[str, Reference]]
"""For each name, which it uses, and where first."""


def circles(uses: Uses) -> tuple[list[str], list[list[str]]]:
    """An order in which every name follows what it uses, and the circles, whose names are left out of it.

    A circle `[a, b]` says that `a` uses `b` and `b` uses `a`; each knot of circles gives its shortest through its first
    name.
    """
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(uses)
    graph.add_edges_from((name, used) for name, all_used in uses.items() for used in all_used if used in uses)
    rank = {name: i for i, name in enumerate(uses)}
    knots: list[list[str]] = []
    for members in nx.strongly_connected_components(graph):
        first = min(members, key=rank.__getitem__)
        if len(members) > 1 or graph.has_edge(first, first):
            knots.append(sorted(members, key=rank.__getitem__))
    broken = {name for knot in knots for name in knot}
    free = {n: [u for u in used if u in uses and u not in broken] for n, used in uses.items() if n not in broken}
    found = [_circle(uses, knot) for knot in knots]
    return list(TopologicalSorter(free).static_order()), sorted(found, key=lambda circle: rank[circle[0]])


def _circle(uses: Uses, knot: list[str]) -> list[str]:
    start, members = knot[0], set(knot)
    came: dict[str, str] = {}
    queue = deque([start])
    while start not in came:
        name = queue.popleft()
        for used in uses[name]:
            if used in members and used not in came:
                came[used] = name
                queue.append(used)
    circle = [came[start]]
    while circle[-1] != start:
        circle.append(came[circle[-1]])
    return circle[::-1]
