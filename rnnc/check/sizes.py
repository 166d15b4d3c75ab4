"""Sizes: derived dims, values at the defaults, and sizes that must agree."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from fractions import Fraction

from rnnc import ir
from rnnc.check.context import Context
from rnnc.errors import dims as errors
from rnnc.source import Span

SIZE_OPS = ("add", "sub", "mul", "div", "neg")
_UNARY: Mapping[str, Callable[[float], float]] = {
    "neg": lambda a: -a,
    "abs": lambda a: abs(a),
    "sqrt": math.sqrt,
    "rsqrt": lambda a: 1 / math.sqrt(a),
    "square": lambda a: a * a,
    "exp": math.exp,
    "log": math.log,
    "log1p": math.log1p,
    "expm1": math.expm1,
    "sin": math.sin,
    "cos": math.cos,
    "tanh": math.tanh,
    "sigmoid": lambda a: 1 / (1 + math.exp(-a)),
}
_BINARY: Mapping[str, Callable[[float, float], float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": math.pow,
    "max": lambda a, b: max(a, b),
    "min": lambda a, b: min(a, b),
}


def size_at_defaults(expr: ir.Expr, sizes: Mapping[str, int | None]) -> Fraction | None:
    """The exact value of a size; None where a size is unknown. Division by zero raises."""
    values: dict[ir.Expr, Fraction] = {}
    for node in ir.walk(expr):
        if isinstance(node, ir.Lit):
            values[node] = Fraction(int(node.value.real))
        elif isinstance(node, ir.Ref):
            size = sizes.get(node.name)
            if size is None:
                return None
            values[node] = Fraction(size)
        elif isinstance(node, ir.Apply):
            args = [values[a] for a in node.args]
            values[node] = -args[0] if node.op == "neg" else _exact(node.op, *args)
    return values[expr]


def _exact(op: str, a: Fraction, b: Fraction) -> Fraction:
    return a + b if op == "add" else a - b if op == "sub" else a * b if op == "mul" else a / b


def number_at_defaults(expr: ir.Expr, cx: Context) -> float | None:
    """A scalar of literals, consts and sizes at their defaults; None where that is no real number."""
    values: dict[ir.Expr, float] = {}
    for node in ir.walk(expr):
        value: float | None = None
        if isinstance(node, ir.Lit) and not isinstance(node.value, complex):
            value = float(node.value)
        elif isinstance(node, ir.Ref):
            value = cx.consts.get(node.name) if node.role == "const" else cx.sizes.get(node.name)
        elif isinstance(node, ir.Apply):
            try:
                value = _value(node.op, [values[a] for a in node.args])
            except (ArithmeticError, ValueError):
                return None
        if value is None or math.isnan(value):
            return None
        values[node] = value
    return values[expr]


def _value(op: str, args: list[float]) -> float | None:
    if op in _UNARY:
        return _UNARY[op](*args)
    return _BINARY[op](*args) if op in _BINARY else None


def expand(expr: ir.Expr, cx: Context) -> ir.Expr:
    """The same size in terms of dims that are no other's result."""
    done: dict[ir.Expr, ir.Expr] = {}
    for node in ir.walk(expr):
        if isinstance(node, ir.Ref):
            done[node] = cx.derived.get(node.name, node)
        else:
            done[node] = cx.graph.rebuild(node, tuple(done[c] for c in node.children)) if node.children else node
    return done[expr]


def product(names: tuple[str, ...], graph: ir.Graph) -> ir.Expr:
    """The product of sizes, 1 where there are none."""
    if not names:
        return graph.lit(1)
    total: ir.Expr = graph.ref("size", names[0])
    for name in names[1:]:
        total = graph.apply("mul", total, graph.ref("size", name))
    return total


def require_equal(left: tuple[str, ...], right: tuple[str, ...], span: Span, cx: Context) -> bool:
    """The products of two lists of dims must agree: now at the defaults, and again where a cell is made."""
    a, b = product(left, cx.graph), product(right, cx.graph)
    sizes = size_at_defaults(a, cx.sizes), size_at_defaults(b, cx.sizes)
    if None not in sizes and sizes[0] != sizes[1]:
        cx.report(errors.SizesDiffer(span, left, right, str(sizes[0]), str(sizes[1])))
        return False
    forms = _monomial(expand(a, cx)), _monomial(expand(b, cx))
    if forms[0] is None or forms[0] != forms[1]:
        cx.size_checks.setdefault((a, b), span)
    return True


def _monomial(expr: ir.Expr) -> tuple[Fraction, Mapping[str, int]] | None:
    """`D / H * 2` as 2 and the powers of its dims; None for a sum."""
    forms: dict[ir.Expr, tuple[Fraction, Counter[str]]] = {}
    for node in ir.walk(expr):
        if isinstance(node, ir.Lit):
            forms[node] = Fraction(int(node.value.real)), Counter()
        elif isinstance(node, ir.Ref):
            forms[node] = Fraction(1), Counter({node.name: 1})
        elif isinstance(node, ir.Apply) and node.op in ("mul", "div"):
            (a, left), (b, right) = (forms[x] for x in node.args)
            powers = Counter(left)
            (powers.update if node.op == "mul" else powers.subtract)(right)
            forms[node] = (a * b if node.op == "mul" else a / b), powers
        else:
            return None
    factor, powers = forms[expr]
    return factor, {name: p for name, p in powers.items() if p}
