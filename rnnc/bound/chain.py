"""An update as maps of the same state, one after the other: `A = f(S)`, `S[t] = g(A)`.

A norm of a product is at most the product of norms, which a sum of rank-one terms does not show.
"""

from __future__ import annotations

from rnnc.derive import depends
from rnnc.ir import Expr, Graph, Ref, walk


def chain(graph: Graph, root: Expr, state: Ref) -> list[Expr]:
    """The maps, first to last, each as an expression of `state`; only `root` where there is one alone.

    A value of the state's dims on which all that follows rests is where one map ends.
    """
    live = depends([root], [state])
    order = [n for n in walk(root) if n in live and n is not state]
    marks = {n: graph.ref("input", " ", n.type) for n in order}
    cuts = [n for n in order if set(n.dims) == set(state.dims) and n.kind == state.kind and n is not root]
    before: Expr = state
    out: list[Expr] = []
    for node in [*cuts, root]:
        # Everything after `node` must read it, and not what it is made of.
        if node is root or state not in set(walk(_replaced(graph, root, {node: marks[node]}))):
            out.append(_replaced(graph, node, {before: state}) if before is not state else node)
            before = node
    return out


def _replaced(graph: Graph, root: Expr, table: dict[Expr, Expr]) -> Expr:
    """An expression with some nodes exchanged."""
    done: dict[Expr, Expr] = dict(table)
    stack = [root]
    while stack:
        node = stack[-1]
        if node in done:
            stack.pop()
            continue
        waiting = [c for c in node.children if c not in done]
        if waiting:
            stack.extend(waiting)
            continue
        done[node] = graph.rebuild(node, tuple(done[c] for c in node.children)) if node.children else node
        stack.pop()
    return done[root]
