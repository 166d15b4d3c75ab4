"""Norms, means and `logsumexp` in terms of sums, maxima and elementwise operations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rnnc.ir import Expr, Graph, Linear, Normalize, Reduce
from rnnc.plan import is_number


def primitive(graph: Graph, roots: Iterable[Expr], stop: Iterable[Expr]) -> dict[Expr, Expr]:
    """The same expressions with norms, means and `logsumexp` written out; nothing below `stop` is looked at."""
    stop, done = set(stop), dict[Expr, Expr]()
    stack = [(r, False) for r in roots]
    while stack:
        node, ready = stack.pop()
        if node in done:
            continue
        if node in stop or not node.children or is_number(node):
            done[node] = node
        elif ready:
            done[node] = _primitive(graph, graph.rebuild(node, tuple(done[c] for c in node.children)))
        else:
            stack.append((node, True))
            stack.extend((c, False) for c in node.children)
    return done


def _primitive(graph: Graph, node: Expr) -> Expr:
    match node:
        case Reduce(op="sum", over=over, arg=arg) if any(d not in arg.dims for d in over):
            inner = [d for d in over if d in arg.dims]
            value = graph.reduce("sum", inner, arg) if inner else arg
            for d in over:
                if d not in arg.dims:
                    value = graph.apply("mul", graph.ref("size", d), value)
            return value
        case Linear(arg=arg) if arg.kind == "complex":
            # The matrix is real.
            parts = [graph.rebuild(node, (graph.apply(part, arg),)) for part in ("real", "imag")]
            return graph.apply("add", parts[0], graph.apply("mul", graph.lit(1j), parts[1]))
        case Linear(arg=arg) if arg.kind == "bool":
            return graph.rebuild(node, (graph.apply("mul", arg, graph.lit(1.0)),))
        case Reduce(op="mean", over=over, arg=arg):
            return _mean(graph, [d for d in over if d in arg.dims], arg)
        case Reduce(op="max" | "min" as op, over=over, arg=arg):
            inner = [d for d in over if d in arg.dims]
            return graph.reduce(op, inner, arg) if inner else arg
        case Reduce(op="logsumexp", over=over, arg=arg):
            inner = [d for d in over if d in arg.dims]
            return _logsumexp(graph, inner, arg) if inner else arg
        case Normalize(op="softmax", over=over, arg=arg):
            power = graph.apply("exp", graph.apply("sub", arg, graph.reduce("max", over, arg)))
            return graph.apply("div", power, graph.reduce("sum", over, power))
        case Normalize(op=op, over=over, arg=arg, eps=eps):
            if op == "layernorm":
                arg = graph.apply("sub", arg, _mean(graph, over, arg))
            square = graph.apply("square", arg)
            if arg.kind == "complex":
                square = graph.apply("real", graph.apply("mul", arg, graph.apply("conj", arg)))
            size = graph.reduce("sum", over, square) if op == "l2norm" else _mean(graph, over, square)
            return graph.apply("mul", arg, graph.apply("rsqrt", graph.apply("add", size, graph.lit(eps))))
        case _:
            return node


def _mean(graph: Graph, over: Sequence[str], arg: Expr) -> Expr:
    if not over:
        return arg
    size: Expr = graph.lit(1.0)
    for d in over:
        size = graph.apply("mul", size, graph.ref("size", d))
    return graph.apply("div", graph.reduce("sum", over, arg), size)


def _logsumexp(graph: Graph, over: Sequence[str], arg: Expr) -> Expr:
    most = graph.reduce("max", over, arg)
    infinite = graph.apply("eq", graph.apply("abs", most), graph.lit(float("inf")))
    shift = graph.apply("where", infinite, graph.lit(0.0), most)
    total = graph.reduce("sum", over, graph.apply("exp", graph.apply("sub", arg, shift)))
    return graph.apply("add", graph.apply("log", total), shift)
