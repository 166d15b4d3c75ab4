"""SymPy, at the border only: an update as a polynomial in its state, and the identity that certifies a split of it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from importlib import import_module
from typing import Any, cast

from rnnc.ir import Apply, Expr, Graph, Lit, walk
from rnnc.show import expr_text

# SymPy has no types: what comes from it is Any, here and nowhere else.
sympy: Any = import_module("sympy")


def certify(update: Expr, state: Expr, a: Expr, b: Expr | None, holds: set[Expr]) -> str | None:
    """The identity that makes the family, once SymPy has reduced `update - (a * s + b)` to zero; None if it does not.

    `holds` are the nodes of the update that depend on the state.
    """
    formula = _Formula(update, state, holds)
    whole, slope = formula.of(update), formula.of(a)
    rest = sympy.Integer(0) if b is None else formula.of(b)
    if whole is None or slope is None or rest is None:
        return None
    if sympy.cancel(sympy.expand(whole - (slope * formula.s + rest))) != 0:
        return None
    past = expr_text(state)
    split = f"a * {past} + b" if b is not None else f"a * {past}"
    return f"update - ({split}) = 0; (a2, b2) after (a1, b1) = (a2 * a1, a2 * b1 + b2)"


def polynomial(graph: Graph, update: Expr, state: Expr, holds: set[Expr]) -> tuple[Expr | None, Expr | None] | None:
    """`(a, b)` of an update that is affine only after its terms cancel. Sums and products only: no domain is lost."""
    if any(isinstance(n, Apply) and n.op not in _POLYNOMIAL for n in holds):
        return None
    formula = _Formula(update, state, holds)
    whole = formula.of(update)
    if whole is None:
        return None
    poly = sympy.Poly(sympy.expand(whole), formula.s)
    if poly.degree() > 1:
        return None
    back = _Back(graph, formula.atoms)
    slope, rest = poly.coeff_monomial(formula.s), poly.coeff_monomial(1)
    return (None if slope == 0 else back(slope)), (None if rest == 0 else back(rest))


class _Formula:
    """IR → SymPy over `s` (the state) and one symbol for each maximal part of the update that is free of it."""

    def __init__(self, root: Expr, state: Expr, holds: set[Expr]) -> None:
        self.s = sympy.Symbol("s")
        self.symbols: dict[Expr, Any] = {state: self.s}
        self.atoms: dict[Any, Expr] = {}
        for node in walk(root):
            if node in holds:
                for child in node.children:
                    if child not in holds and not isinstance(child, Lit) and child not in self.symbols:
                        symbol = sympy.Symbol(f"c{len(self.atoms)}")
                        self.symbols[child] = symbol
                        self.atoms[symbol] = child

    def of(self, root: Expr) -> Any:
        """The formula of an expression over the same parts; None where no formula fits."""
        done = dict(self.symbols)
        stack = [root]
        while stack:
            node = stack[-1]
            if node in done:
                stack.pop()
            elif isinstance(node, Lit):
                number = _number(node.value)
                if number is None:
                    return None
                done[node] = number
            elif not isinstance(node, Apply) or node.op not in _FORMULAS:
                return None
            elif waiting := [c for c in node.args if c not in done]:
                stack.extend(waiting)
            else:
                args = [done[c] for c in node.args]
                if node.op == "pow" and not (args[1].is_Integer and 0 <= int(args[1]) <= 8):
                    return None
                done[node] = _FORMULAS[node.op](*args)
        return done[root]


def _number(value: complex) -> Any:
    if isinstance(value, complex):
        real, imag = _number(value.real), _number(value.imag)
        return None if real is None or imag is None else real + sympy.I * imag
    return sympy.Rational(value) if math.isfinite(value) else None


def _first(x: Any, *_: Any) -> Any:
    return x


def _where(condition: Any, x: Any, y: Any) -> Any:
    """A condition is 0 or 1."""
    return condition * x + (1 - condition) * y


def _over(x: Any, y: Any) -> Any:
    return x / y


def _power(x: Any, y: Any) -> Any:
    return x**y


def _square(x: Any) -> Any:
    return x**2


_FORMULAS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": _over,
    "neg": operator.neg,
    "pow": _power,
    "square": _square,
    "where": _where,
    **dict.fromkeys(("only", "like", "conj", "real"), _first),
}
_POLYNOMIAL = frozenset({"add", "sub", "mul", "neg", "square", "pow"})


class _Back:
    """SymPy → IR, for polynomials; terms in SymPy's fixed order."""

    def __init__(self, graph: Graph, atoms: dict[Any, Expr]) -> None:
        self.graph, self.atoms = graph, atoms

    def __call__(self, e: Any) -> Expr:
        if e.is_Symbol:
            return self.atoms[e]
        if e.is_Integer:
            return self.graph.lit(int(e))
        if e.is_Number:
            return self.graph.lit(float(e))
        if e is sympy.I:
            return self.graph.lit(1j)
        if e.is_Pow:
            return self.graph.apply("pow", self(e.base), self(e.exp))
        op = "add" if e.is_Add else "mul"
        parts = cast("list[Any]", e.as_ordered_terms() if e.is_Add else e.as_ordered_factors())
        out = self(parts[0])
        for part in parts[1:]:
            out = self.graph.apply(op, out, self(part))
        return out
