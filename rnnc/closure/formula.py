"""SymPy, at the border only: an update as a polynomial or a fraction in its pasts, and the identities that certify."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from importlib import import_module
from typing import Any, cast

from rnnc.ir import Apply, Expr, Graph, Lit, walk

# SymPy has no types: what comes from it is Any, here and nowhere else.
sympy: Any = import_module("sympy")


def certify(update: Expr, slopes: Mapping[Expr, Expr], rest: Expr | None, holds: set[Expr]) -> bool:
    """Whether SymPy reduces `update - (sum(slope * past) + rest)` to zero; `holds` are the nodes that hold a past."""
    formula = _Formula(update, [n for n in walk(update) if n in holds and not n.children], holds)
    whole = formula.of(update)
    found = sympy.Integer(0) if rest is None else formula.of(rest)
    for past, slope in slopes.items():
        part = formula.of(slope)
        if part is None or found is None:
            return False
        found += part * formula.of(past)
    return whole is not None and found is not None and sympy.cancel(sympy.expand(whole - found)) == 0


def polynomial(
    graph: Graph, update: Expr, pasts: Sequence[Expr], holds: set[Expr]
) -> tuple[dict[Expr, Expr], Expr | None] | None:
    """Coefficients and rest of an update that is affine only after its terms cancel. Sums and products only: no domain
    is lost."""
    if any(isinstance(n, Apply) and n.op not in _POLYNOMIAL for n in holds):
        return None
    formula = _Formula(update, pasts, holds)
    whole = formula.of(update)
    if whole is None:
        return None
    poly = sympy.Poly(sympy.expand(whole), *(formula.symbols[p] for p in pasts))
    if poly.total_degree() > 1:
        return None
    back = _Back(graph, formula.atoms)
    slopes = {p: poly.coeff_monomial(formula.symbols[p]) for p in pasts}
    rest = poly.coeff_monomial(1)
    return {p: back(a) for p, a in slopes.items() if a != 0}, None if rest == 0 else back(rest)


def fraction(graph: Graph, update: Expr, past: Expr, holds: set[Expr]) -> tuple[Expr | None, ...] | None:
    """`(a, b, c, d)` of an update that is `(a s + b) / (c s + d)` once it is one fraction without common factors."""
    if any(isinstance(n, Apply) and n.op not in _POLYNOMIAL | {"div"} for n in holds):
        return None
    formula = _Formula(update, (past,), holds)
    whole = formula.of(update)
    if whole is None:
        return None
    s = formula.symbols[past]
    parts = [sympy.Poly(p, s) for p in sympy.fraction(sympy.cancel(sympy.together(whole)))]
    if any(p.degree() > 1 for p in parts):
        return None
    back = _Back(graph, formula.atoms)
    found = [p.coeff_monomial(m) for p in parts for m in (s, 1)]
    return tuple(None if e == 0 else back(e) for e in found)


class _Formula:
    """IR → SymPy over one symbol for each past and each maximal part of the update that is free of them."""

    def __init__(self, root: Expr, pasts: Collection[Expr], holds: set[Expr]) -> None:
        self.symbols: dict[Expr, Any] = {p: sympy.Symbol(f"s{i}") for i, p in enumerate(pasts)}
        self.atoms: dict[Any, Expr] = {}
        for child in free_parts(root, holds):
            symbol = sympy.Symbol(f"c{len(self.atoms)}")
            self.symbols[child] = symbol
            self.atoms[symbol] = child

    def of(self, root: Expr) -> Any:
        """The formula of an expression over the same parts; None where no formula fits."""
        return evaluate(root, self.symbols, _FORMULAS, literal)


def free_parts(root: Expr, holds: set[Expr]) -> list[Expr]:
    """The maximal parts of an update that hold no past, but for literals."""
    found: dict[Expr, None] = {}
    for node in walk(root):
        if node in holds:
            found.update(dict.fromkeys(c for c in node.children if c not in holds and not isinstance(c, Lit)))
    return list(found)


def evaluate(
    root: Expr, known: Mapping[Expr, Any], ops: Mapping[str, Callable[..., Any]], number: Callable[[complex], Any]
) -> Any:
    """An expression over other values: `known` gives those of some nodes, `ops` what operations make of them. None
    where one of them says so, or where there is no such operation."""
    done = dict(known)
    stack = [root]
    while stack:
        node = stack[-1]
        if node in done:
            stack.pop()
            continue
        if isinstance(node, Lit):
            value = number(node.value)
        elif not isinstance(node, Apply) or node.op not in ops:
            return None
        elif waiting := [c for c in operands(node) if c not in done]:
            stack.extend(waiting)
            continue
        elif (kept := absorbing(node)) is not None:
            value = done[kept]
        else:
            value = ops[node.op](*(done[c] for c in node.args))
        if value is None:
            return None
        done[node] = value
    return done[root]


def operands(node: Apply) -> tuple[Expr, ...]:
    kept = absorbing(node)
    return node.args if kept is None else (kept,)


def absorbing(node: Apply) -> Expr | None:
    """The value at finite numbers of `where(abs(x) == inf, ..., value)`, which certificates are about."""
    match node:
        case Apply(op="where", args=(Apply(op="eq", args=(Apply(op="abs"), Lit(value=math.inf))), _, value)):
            return value
        case _:
            return None


def literal(value: complex) -> Any:
    if isinstance(value, complex):
        real, imag = literal(value.real), literal(value.imag)
        return None if real is None or imag is None else real + sympy.I * imag
    return sympy.Rational(value) if math.isfinite(value) else None


def first(x: Any, *_: Any) -> Any:
    return x


def where(condition: Any, x: Any, y: Any) -> Any:
    """A condition is 0 or 1."""
    return condition * x + (1 - condition) * y


def _over(x: Any, y: Any) -> Any:
    return x / y


def _power(x: Any, y: Any) -> Any:
    return x**y if y.is_Integer and 0 <= int(y) <= 8 else None


def square(x: Any) -> Any:
    return x**2


ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": _over,
    "neg": operator.neg,
    "square": square,
    "where": where,
    **dict.fromkeys(("only", "like", "conj", "real"), first),
}
_FORMULAS: Mapping[str, Callable[..., Any]] = {**ARITHMETIC, "pow": _power}
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


# --- identities ------------------------------------------------------------------------------------------------------


def same(left: Expr, right: Expr, atoms: Collection[Expr]) -> bool:
    """Whether two fractions are one in the field of fractions over these atoms, and whatever is no arithmetic."""
    names = list(dict.fromkeys([*atoms, *_opaque((left, right), set(atoms))]))
    over_i = any(isinstance(n, Lit) and n.kind == "complex" for n in walk(left, right))
    domain = sympy.QQ_I if over_i else sympy.QQ
    made = sympy.polys.fields.field([f"x{i}" for i in range(len(names))], domain)
    symbols = dict(zip(names, made[1:], strict=True))

    def number(value: complex) -> Any:
        found = literal(value)
        return None if found is None else made[0](domain.from_sympy(found))

    def power(x: Any, y: Any) -> Any:
        exponent = Fraction(str(y.as_expr())) if y.as_expr().is_Rational else Fraction(1, 2)
        return x ** int(exponent) if exponent.denominator == 1 and abs(exponent) <= 8 else None

    ops = {**ARITHMETIC, "pow": power}
    a, b = evaluate(left, symbols, ops, number), evaluate(right, symbols, ops, number)
    return a is not None and b is not None and a == b


def _opaque(roots: Sequence[Expr], atoms: set[Expr]) -> list[Expr]:
    found: dict[Expr, None] = {}
    stack, seen = list(roots), set[Expr]()
    while stack:
        node = stack.pop()
        if node in seen or node in atoms or isinstance(node, Lit):
            continue
        seen.add(node)
        if isinstance(node, Apply) and (node.op in ARITHMETIC or node.op == "pow"):
            stack.extend(operands(node))
        else:
            found[node] = None
    return list(found)
