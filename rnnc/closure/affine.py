"""The affine family, elementwise: `s[t] = a * s[t-1] + b` with `a`, `b` free of the group's states.

Match: the update is split structurally into coefficient and rest, which keeps the author's own terms (`1 - z` stays
`1 - z`); where that fails on an elementwise update, SymPy's polynomial form decides (`(h + 1)**2 - h**2`). Either way
SymPy reduces `update - (a * s + b)` to zero: that identity is the certificate.
Composition: `(a2 * a1, a2 * b1 + b2)`; identity `(1, 0)`; obligation: none.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import sympy

from rnnc.closure.base import Affine, Refusal
from rnnc.group import Group
from rnnc.ir import Apply, Expr, Graph, Lit, Ref, walk
from rnnc.lower import Stream, System
from rnnc.show import expr_text

FAMILY = "affine"


def match(system: System, group: Group) -> Affine | Refusal:
    if len(group.states) > 1:
        names = ", ".join(f"`{n}`" for n in group.states)
        return Refusal(FAMILY, f"the states {names} need each other, and this family holds one state at a time")
    stream = system.stream(group.states[0])
    if stream.over:
        return Refusal(FAMILY, f"`{stream.name}` is updated several times a token, over `{stream.over}`")
    return match_update(system.graph, stream)


def match_update(graph: Graph, stream: Stream, reverse: bool = False) -> Affine | Refusal:
    """Split `stream.expr` as `a * s + b`, where `s` is the stream at lag 1."""
    name = stream.name
    past = [n for n in walk(stream.expr) if isinstance(n, Ref) and n.role == "state" and n.name == name]
    if far := next((n for n in past if n.lag != 1), None):
        reason = f"`{name}` reads `{expr_text(far)}`, and this family reaches back one token"
        return Refusal(FAMILY, reason, expr_text(far))
    state = past[0]
    holds = {state}
    for node in walk(stream.expr):
        if any(c in holds for c in node.children):
            holds.add(node)
            if not isinstance(node, Apply):
                reason = f"`{expr_text(node)}` mixes entries of `{name}`"
                return Refusal(FAMILY, reason, expr_text(node))
    parts: dict[Expr, tuple[Expr | None, Expr | None]] = {state: (graph.lit(1.0), None)}
    split = _Split(graph, holds, parts)
    failed = split.run(stream.expr)
    if failed is None:
        a, b = parts[stream.expr]
    else:
        found = _polynomial(graph, stream.expr, state, holds)
        if found is None:
            reason = f"`{expr_text(failed)}` is not affine in `{expr_text(state)}`"
            return Refusal(FAMILY, reason, expr_text(failed))
        a, b = found
    a = graph.lit(0.0) if a is None else a
    certificate = certify(stream.expr, state, a, b, holds)
    if certificate is None:
        return Refusal(FAMILY, f"the split of `{name}` could not be confirmed")
    return Affine(Group((name,), True, ()), a, b, certificate, reverse)


class _Split:
    """Coefficient and rest of every node that holds the state; None stands for zero."""

    def __init__(self, graph: Graph, holds: set[Expr], parts: dict[Expr, tuple[Expr | None, Expr | None]]) -> None:
        self.graph, self.holds, self.parts = graph, holds, parts

    def run(self, root: Expr) -> Expr | None:
        """Fills `parts`; returns the first node that is not affine."""
        for node in walk(root):
            if node in self.holds and node not in self.parts:
                assert isinstance(node, Apply)
                pair = self.split(node)
                if pair is None:
                    return node
                self.parts[node] = pair
        return None

    def of(self, node: Expr) -> tuple[Expr | None, Expr | None]:
        if node in self.holds:
            return self.parts[node]
        return None, None if isinstance(node, Lit) and node.value == 0 else node

    def split(self, node: Apply) -> tuple[Expr | None, Expr | None] | None:
        args = node.args
        match node.op:
            case "add" | "sub":
                (a1, b1), (a2, b2) = self.of(args[0]), self.of(args[1])
                return self.join(node.op, a1, a2), self.join(node.op, b1, b2)
            case "neg":
                a, b = self.of(args[0])
                return self.neg(a), self.neg(b)
            case "mul" if (args[0] in self.holds) != (args[1] in self.holds):
                held, free = (args[0], args[1]) if args[0] in self.holds else (args[1], args[0])
                a, b = self.of(held)
                return self.times(free, a), self.times(free, b)
            case "div" if args[1] not in self.holds:
                a, b = self.of(args[0])
                return self.over(a, args[1]), self.over(b, args[1])
            case "where" if args[0] not in self.holds:
                (a1, b1), (a2, b2) = self.of(args[1]), self.of(args[2])
                return self.choose(args[0], a1, a2), self.choose(args[0], b1, b2)
            case "only" if args[1] not in self.holds:
                return self.of(args[0])
            case "like" if args[1] not in self.holds:
                return self.of(args[0])
            case "real" | "conj" if args[0].kind != "complex":
                return self.of(args[0])
            case _:
                return None

    def join(self, op: str, x: Expr | None, y: Expr | None) -> Expr | None:
        if y is None:
            return x
        if x is None:
            return y if op == "add" else self.neg(y)
        return self.graph.apply(op, x, y)

    def neg(self, x: Expr | None) -> Expr | None:
        return None if x is None else self.graph.apply("neg", x)

    def times(self, free: Expr, x: Expr | None) -> Expr | None:
        if x is None:
            return None
        return free if x is self.graph.lit(1.0) else self.graph.apply("mul", free, x)

    def over(self, x: Expr | None, free: Expr) -> Expr | None:
        return None if x is None else self.graph.apply("div", x, free)

    def choose(self, condition: Expr, x: Expr | None, y: Expr | None) -> Expr | None:
        if x is None and y is None:
            return None
        zero = self.graph.lit(0.0)
        return self.graph.apply("where", condition, zero if x is None else x, zero if y is None else y)


# --- SymPy, at the border only ---------------------------------------------------------------------------------------


class _Formula:
    """IR → SymPy over `s` (the state) and one symbol for each maximal part of the update that is free of it."""

    def __init__(self, root: Expr, state: Expr, holds: set[Expr]) -> None:
        self.s = sympy.Symbol("s")
        self.symbols: dict[Expr, sympy.Expr] = {state: self.s}
        self.atoms: dict[sympy.Symbol, Expr] = {}
        for node in walk(root):
            if node in holds:
                for child in node.children:
                    if child not in holds and not isinstance(child, Lit) and child not in self.symbols:
                        symbol = sympy.Symbol(f"c{len(self.atoms)}")
                        self.symbols[child] = symbol
                        self.atoms[symbol] = child

    def of(self, root: Expr) -> sympy.Expr | None:
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


def _number(value: complex) -> sympy.Expr | None:
    if isinstance(value, complex):
        real, imag = _number(value.real), _number(value.imag)
        return None if real is None or imag is None else real + sympy.I * imag
    return sympy.Rational(value) if math.isfinite(value) else None


# A condition is 0 or 1, so `where` is a convex combination.
_FORMULAS: dict[str, Callable[..., sympy.Expr]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "neg": lambda x: -x,
    "square": lambda x: x**2,
    "pow": lambda x, y: x**y,
    "where": lambda c, x, y: c * x + (1 - c) * y,
    "only": lambda x, c: x,
    "like": lambda x, y: x,
    "conj": lambda x: x,
    "real": lambda x: x,
}
_POLYNOMIAL = frozenset({"add", "sub", "mul", "neg", "square", "pow"})


def certify(update: Expr, state: Expr, a: Expr, b: Expr | None, holds: set[Expr]) -> str | None:
    """The identity that makes the family, once SymPy has reduced `update - (a * s + b)` to zero; None if it does not."""
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


def _polynomial(graph: Graph, update: Expr, state: Expr, holds: set[Expr]) -> tuple[Expr | None, Expr | None] | None:
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


class _Back:
    """SymPy → IR, for polynomials; terms in SymPy's fixed order."""

    def __init__(self, graph: Graph, atoms: dict[sympy.Symbol, Expr]) -> None:
        self.graph, self.atoms = graph, atoms

    def __call__(self, e: sympy.Expr) -> Expr:
        if isinstance(e, sympy.Symbol):
            return self.atoms[e]
        if e.is_Integer:
            return self.graph.lit(int(e))
        if e.is_Number:
            return self.graph.lit(float(e))
        if e is sympy.I:
            return self.graph.lit(1j)
        if isinstance(e, sympy.Pow):
            return self.graph.apply("pow", self(e.base), self(e.exp))
        op = "add" if isinstance(e, sympy.Add) else "mul"
        parts = e.as_ordered_terms() if op == "add" else e.as_ordered_factors()
        out = self(parts[0])
        for part in parts[1:]:
            out = self.graph.apply(op, out, self(part))
        return out
