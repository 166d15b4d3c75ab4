"""Reverse-mode differentiation of the IR, in the IR.

Goals: exact derivatives of every node, with the language's conventions (ties of `max` split equally; `abs`, `relu` and
`sqrt` have gradient 0 at 0; an unselected branch contributes 0), for `grad(e, S[t-1])` and for adjoints.
Non-goals: simplification. Cotangents follow PyTorch's convention for complex numbers (the conjugate Wirtinger
derivative), and may lack dims of what they belong to: they broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from rnnc.ir import Apply, Expr, Graph, Linear, Lit, Merge, Normalize, Reduce, Rename, Solve, Split, walk

Rule = Callable[["Derivation", Apply, Expr], tuple[Expr | None, ...]]


def depends(roots: Iterable[Expr], targets: Iterable[Expr]) -> set[Expr]:
    """The nodes below `roots` that reach one of `targets`, those included."""
    found = set(targets)
    for node in walk(*roots):
        if any(c in found for c in node.children):
            found.add(node)
    return found


def pull_back(
    graph: Graph, cotangents: Mapping[Expr, Expr], targets: Iterable[Expr], watch: Iterable[Expr] = ()
) -> dict[Expr, Expr]:
    """Gradients with respect to `targets` of the sum of `cotangent * node`; targets that matter to no node are absent.

    Targets are leaves: nothing below them is looked at. Nodes in `watch` are reported as well, and passed through.

    The expressions must be free of definitions, of `Conv` and of `Grad` (lowering sees to it).
    """
    return Derivation(graph).run(cotangents, tuple(targets), tuple(watch))


class Derivation:
    """One reverse sweep. `graph` makes the nodes of the result."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def run(
        self, cotangents: Mapping[Expr, Expr], targets: tuple[Expr, ...], watch: tuple[Expr, ...]
    ) -> dict[Expr, Expr]:
        live = depends(cotangents, (*targets, *watch))
        total: dict[Expr, Expr] = {}

        def add(node: Expr, cotangent: Expr) -> None:
            if node.kind != "complex" and cotangent.kind == "complex":
                cotangent = self.graph.apply("real", cotangent)
            total[node] = self.plus(total[node], cotangent) if node in total else cotangent

        for node, cotangent in cotangents.items():
            if node in live:
                extra = [d for d in cotangent.dims if d not in node.dims]
                add(node, self.graph.reduce("sum", extra, cotangent) if extra else cotangent)
        for node in reversed([n for n in walk(*cotangents) if n in live]):
            if node not in total or node in targets:
                continue
            for child, cotangent in zip(node.children, self.operands(node, total[node]), strict=True):
                if cotangent is not None and child in live:
                    add(child, self.sum_to(cotangent, node, child) if isinstance(node, Apply) else cotangent)
        return {t: total[t] for t in (*targets, *watch) if t in total}

    def sum_to(self, cotangent: Expr, node: Expr, operand: Expr) -> Expr:
        """Sum over the dims along which `operand` was broadcast."""
        extra = [d for d in (*node.dims, *cotangent.dims) if d not in operand.dims]
        return self.graph.reduce("sum", extra, cotangent) if extra else cotangent

    def operands(self, node: Expr, g: Expr) -> tuple[Expr | None, ...]:
        graph = self.graph
        match node:
            case Apply(op=op):
                return _RULES[op](self, node, g)
            case Reduce():
                return (self.reduction(node, g),)
            case Normalize():
                return (self.normalizer(node, g),)
            case Rename(old=old, new=new):
                return (graph.rename(g, new, old) if new in g.dims else g,)
            case Split(dim=dim, into=into):
                return (graph.merge(self.full(g, node), into, dim),)
            case Merge(merged=merged, into=into):
                return (graph.split(g, into, merged) if into in g.dims else g,)
            case Linear(weight=weight, kept=kept, ins=ins, outs=outs, transposed=back):
                return (graph.linear(weight, self.full(g, node), kept, ins, outs, not back),)
            case Solve(row=row, col=col, matrix=matrix, rhs=rhs):
                z = graph.solve(col, row, self.conj(matrix), graph.rename(self.full(g, node), row, col))
                to_rhs = graph.rename(z, col, row)
                to_matrix = graph.apply("neg", self.mul(to_rhs, self.conj(graph.rename(node, row, col))))
                return (self.sum_to(to_matrix, node, matrix), self.sum_to(to_rhs, node, rhs))
            case _:
                raise TypeError(f"no derivative for {type(node).__name__}")

    def reduction(self, node: Reduce, g: Expr) -> Expr:
        graph, arg = self.graph, node.arg
        inner = [d for d in node.over if d in arg.dims]
        outer = [d for d in node.over if d not in arg.dims]
        match node.op:
            case "sum":
                return graph.reduce("sum", outer, g) if outer else g
            case "mean":
                for d in inner:
                    g = graph.apply("div", g, graph.ref("size", d))
                return g
            case "logsumexp":
                return self.mul(g, graph.apply("exp", graph.apply("sub", arg, node)))
            case _:
                hit = graph.apply("where", graph.apply("eq", arg, node), graph.lit(1.0), graph.lit(0.0))
                return self.mul(g, graph.apply("div", hit, graph.reduce("sum", inner, hit)))

    def normalizer(self, node: Normalize, g: Expr) -> Expr:
        graph, over = self.graph, node.over
        inner = self.mul(g, self.conj(node))
        if inner.kind == "complex":
            inner = graph.apply("real", inner)
        if node.op == "softmax":
            return self.mul(node, self.minus(g, graph.reduce("sum", over, inner)))
        size = graph.apply("square", graph.apply("abs", node.arg) if node.arg.kind == "complex" else node.arg)
        if node.op == "l2norm":
            scale, along = graph.reduce("sum", over, size), graph.reduce("sum", over, inner)
        else:
            scale, along = graph.reduce("mean", over, size), graph.reduce("mean", over, inner)
        rest = self.minus(g, self.mul(node, along))
        if node.op == "layernorm":
            centred = self.minus(node.arg, graph.reduce("mean", over, node.arg))
            scale = graph.reduce("mean", over, graph.apply("square", centred))
            rest = self.minus(rest, graph.reduce("mean", over, g))
        return self.mul(graph.apply("rsqrt", graph.apply("add", scale, graph.lit(node.eps))), rest)

    # --- small words ---

    def mul(self, a: Expr, b: Expr) -> Expr:
        if isinstance(a, Lit) and isinstance(b, Lit):
            return self.graph.lit(a.value * b.value)
        if isinstance(a, Lit) and a.value == 1:
            return b
        if isinstance(b, Lit) and b.value == 1:
            return a
        return self.graph.apply("mul", a, b)

    def plus(self, a: Expr, b: Expr) -> Expr:
        if isinstance(b, Apply) and b.op == "neg":
            return self.graph.apply("sub", a, b.args[0])
        return self.graph.apply("add", a, b)

    def minus(self, a: Expr, b: Expr) -> Expr:
        return self.graph.apply("sub", a, b)

    def conj(self, x: Expr) -> Expr:
        return self.graph.apply("conj", x) if x.kind == "complex" else x

    def full(self, g: Expr, node: Expr) -> Expr:
        """`g` with every dim of `node`."""
        return g if set(g.dims) >= set(node.dims) else self.graph.apply("like", g, node)

    def times(self, g: Expr, factor: Expr) -> Expr:
        return self.mul(g, self.conj(factor))

    def number(self, value: float) -> Expr:
        return self.graph.lit(value)


def _zero(_d: Derivation, node: Apply, _g: Expr) -> tuple[Expr | None, ...]:
    return (None,) * len(node.args)


def _chain(factor: Callable[[Derivation, Expr, Expr], Expr]) -> Rule:
    """A rule for one operand, from its derivative in terms of (operand, result)."""
    return lambda d, node, g: (d.times(g, factor(d, node.args[0], node)),)


def _pow(d: Derivation, node: Apply, g: Expr) -> tuple[Expr | None, ...]:
    base, exponent = node.args
    graph, zero = d.graph, d.number(0.0)
    slope = d.mul(exponent, graph.apply("pow", base, graph.apply("sub", exponent, d.number(1))))
    if not isinstance(exponent, Lit) or exponent.value == 0:
        slope = graph.apply("where", graph.apply("eq", exponent, zero), zero, slope)
    # 0 ** y is 0 for all y > 0, where the logarithm is infinite.
    empty = graph.apply("and", graph.apply("eq", node, zero), graph.apply("eq", base, zero))
    to_exponent = graph.apply("where", empty, zero, d.mul(node, graph.apply("log", base)))
    return d.times(g, slope), d.times(g, to_exponent)


def _div(d: Derivation, node: Apply, g: Expr) -> tuple[Expr | None, ...]:
    over = d.graph.apply("div", g, d.conj(node.args[1]))
    return over, d.graph.apply("neg", d.times(over, node))


def _extremum(better: str) -> Rule:
    def rule(d: Derivation, node: Apply, g: Expr) -> tuple[Expr | None, ...]:
        a, b = node.args
        tie = d.graph.apply("where", d.graph.apply("eq", a, b), d.mul(d.number(0.5), g), d.number(0.0))

        def share(x: Expr, y: Expr) -> Expr:
            return d.graph.apply("where", d.graph.apply(better, x, y), g, tie)

        return share(a, b), share(b, a)

    return rule


def _logaddexp(d: Derivation, node: Apply, g: Expr) -> tuple[Expr | None, ...]:
    def share(x: Expr, y: Expr) -> Expr:
        # Of the operands alone: the result has no digits left, at large ones, to tell how far it is from either.
        empty = d.graph.apply("eq", x, d.number(-math.inf))
        weight = d.graph.apply("sigmoid", d.graph.apply("sub", x, y))
        return d.mul(g, d.graph.apply("where", empty, d.number(0.0), weight))

    a, b = node.args
    return share(a, b), share(b, a)


def _abs(d: Derivation, x: Expr, y: Expr) -> Expr:
    if x.kind != "complex":
        return d.graph.apply("sign", x)
    at_zero = d.graph.apply("eq", y, d.number(0.0))
    return d.graph.apply("conj", d.graph.apply("where", at_zero, d.number(0.0), d.graph.apply("div", x, y)))


def _silu(d: Derivation, x: Expr, y: Expr) -> Expr:
    s = d.graph.apply("sigmoid", x)
    return d.graph.apply("add", s, d.mul(y, d.graph.apply("sub", d.number(1), s)))


def _gelu(d: Derivation, x: Expr, _y: Expr) -> Expr:
    add = d.graph.apply("add", d.number(1), d.graph.apply("erf", d.mul(x, d.number(math.sqrt(0.5)))))
    density = d.graph.apply("exp", d.mul(d.number(-0.5), d.graph.apply("square", x)))
    return d.graph.apply(
        "add", d.mul(d.number(0.5), add), d.mul(x, d.mul(d.number(1 / math.sqrt(2 * math.pi)), density))
    )


def _erf(d: Derivation, x: Expr, _y: Expr) -> Expr:
    bell = d.graph.apply("exp", d.graph.apply("neg", d.graph.apply("square", x)))
    return d.mul(d.number(2 / math.sqrt(math.pi)), bell)


def _sqrt(d: Derivation, x: Expr, y: Expr) -> Expr:
    at_zero = d.graph.apply("eq", x, d.number(0.0))
    return d.graph.apply("where", at_zero, d.number(0.0), d.graph.apply("div", d.number(0.5), y))


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "sign", "stop_gradient"), _zero),
    "add": lambda d, n, g: (g, g),
    "sub": lambda d, n, g: (g, d.graph.apply("neg", g)),
    "neg": lambda d, n, g: (d.graph.apply("neg", g),),
    "mul": lambda d, n, g: (d.times(g, n.args[1]), d.times(g, n.args[0])),
    "div": _div,
    "pow": _pow,
    "max": _extremum("gt"),
    "min": _extremum("lt"),
    "logaddexp": _logaddexp,
    "where": lambda d, n, g: (
        None,
        d.graph.apply("where", n.args[0], g, d.number(0.0)),
        d.graph.apply("where", n.args[0], d.number(0.0), g),
    ),
    "only": lambda d, n, g: (d.graph.apply("where", n.args[1], g, d.number(0.0)), None),
    "like": lambda d, n, g: (g, None),
    "abs": _chain(_abs),
    "sqrt": _chain(_sqrt),
    "rsqrt": _chain(lambda d, x, y: d.graph.apply("div", d.mul(d.number(-0.5), y), x)),
    "square": _chain(lambda d, x, y: d.mul(d.number(2), x)),
    "exp": _chain(lambda d, x, y: y),
    "log": lambda d, n, g: (d.graph.apply("div", g, d.conj(n.args[0])),),
    "log1p": _chain(lambda d, x, y: d.graph.apply("div", d.number(1), d.graph.apply("add", d.number(1), x))),
    "expm1": _chain(lambda d, x, y: d.graph.apply("add", y, d.number(1))),
    "sin": _chain(lambda d, x, y: d.graph.apply("cos", x)),
    "cos": _chain(lambda d, x, y: d.graph.apply("neg", d.graph.apply("sin", x))),
    "erf": _chain(_erf),
    "sigmoid": _chain(lambda d, x, y: d.mul(y, d.graph.apply("sub", d.number(1), y))),
    "logsigmoid": _chain(lambda d, x, y: d.graph.apply("sigmoid", d.graph.apply("neg", x))),
    "tanh": _chain(lambda d, x, y: d.graph.apply("sub", d.number(1), d.graph.apply("square", y))),
    "relu": lambda d, n, g: (d.graph.apply("where", d.graph.apply("gt", n.args[0], d.number(0.0)), g, d.number(0.0)),),
    "silu": _chain(_silu),
    "gelu": _chain(_gelu),
    "softplus": _chain(lambda d, x, y: d.graph.apply("sigmoid", x)),
    "real": lambda d, n, g: (g,),
    "imag": lambda d, n, g: (d.mul(g, d.graph.lit(1j)),),
    "conj": lambda d, n, g: (d.conj(g),),
}
