"""SymPy, at the border only: an update as a polynomial or a fraction in its pasts, and the identities that certify."""

from __future__ import annotations

import itertools
import math
import operator
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from importlib import import_module
from typing import Any, cast

from rnnc.closure.algebra import number
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
    """The maximal parts of an update that hold no past, but for literals and signs."""
    parts = [c for node in walk(root) if node in holds for c in node.children if c not in holds]
    while any(isinstance(p, Apply) and p.op == "neg" for p in parts):
        parts = [p.args[0] if isinstance(p, Apply) and p.op == "neg" else p for p in parts]
    return list(dict.fromkeys(p for p in parts if not isinstance(p, Lit) and number(p) is None))


def evaluate(
    root: Expr, known: Mapping[Expr, Any], ops: Mapping[str, Callable[..., Any]], literal: Callable[[complex], Any]
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
            value = literal(node.value)
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


class Field:
    """The field of fractions over some atoms, and over whatever is no arithmetic in some expressions. `atoms` gives the
    generator of each."""

    def __init__(self, roots: Sequence[Expr], atoms: Sequence[Expr], more: Collection[str] = ()) -> None:
        names = list(dict.fromkeys([*atoms, *_opaque(roots, set(atoms), more)]))
        over_i = any(isinstance(n, Lit) and n.kind == "complex" for n in walk(*roots))
        self.domain = sympy.QQ_I if over_i else sympy.QQ
        self.field, *self.generators = sympy.polys.fields.field([f"x{i}" for i in range(len(names))], self.domain)
        self.atoms: dict[Expr, Any] = dict(zip(names, self.generators, strict=True))

    def number(self, value: complex) -> Any:
        found = literal(value)
        return None if found is None else self.field(self.domain.from_sympy(found))

    def of(self, root: Expr, truths: Mapping[Expr, bool]) -> Any:
        """An expression as a fraction, where these conditions hold or do not; None where it is none."""
        chosen = {n: self.number(int(truth)) for n, truth in truths.items()}
        try:
            return evaluate(root, {**self.atoms, **chosen}, {**ARITHMETIC, "pow": _whole_power}, self.number)
        except ZeroDivisionError:
            return None


def same(left: Expr, right: Expr, atoms: Sequence[Expr] = ()) -> bool:
    """Whether two expressions are one fraction over these atoms, and over whatever is no arithmetic."""
    field = Field((left, right), atoms)
    for truths in cases(n for n in field.atoms if n.kind == "bool"):
        x, y = field.of(left, truths), field.of(right, truths)
        if x is None or y is None or x != y:
            return False
    return True


def cases(conditions: Iterable[Expr]) -> Iterator[dict[Expr, bool]]:
    """All ways in which conditions may hold or not."""
    names = list(conditions)
    for truths in itertools.product((True, False), repeat=len(names)):
        yield dict(zip(names, truths, strict=True))


def _whole_power(x: Any, y: Any) -> Any:
    return x ** int(y.as_expr())


def same_after(left: Expr, right: Expr, state: Expr, atoms: Sequence[Expr], name: str, power: float) -> bool:
    """Whether `phi(left) - phi(right)` is zero where the state is `phi**-1(v)`, for positive v and positive atoms: an
    identity of analytic functions, which then holds on all of the domain."""
    forward, back = _CHANGES[name] if name != "power" else _powers(power)
    pasts = {state: back(sympy.Symbol("v", positive=True))}
    # exp(x) is positive however x is written.
    cut = [a.children[0] if isinstance(a, Apply) and a.op == "exp" else a for a in atoms]
    rest = [n for n in dict.fromkeys([*cut, *_opaque((left, right), {state, *cut}, _ANALYTIC)]) if n is not state]
    known = {n: sympy.Symbol(f"x{i}", positive=True) for i, n in enumerate(rest) if n.kind != "bool"}
    for truths in cases(n for n in rest if n.kind == "bool"):
        chosen = {**known, **pasts, **{n: sympy.Integer(int(truth)) for n, truth in truths.items()}}
        x, y = (evaluate(e, chosen, _ANALYTIC, _real) for e in (left, right))
        if x is None or y is None or not _zero(forward(x) - forward(y)):
            return False
    return True


def _zero(e: Any) -> bool:
    e = sympy.expand(sympy.expand_log(e, force=True))
    return e == 0 or sympy.cancel(e) == 0


def _real(value: complex) -> Any:
    if isinstance(value, float) and math.isinf(value):
        return sympy.oo if value > 0 else -sympy.oo
    return _near(value)


def _near(value: complex) -> Any:
    """A number, where an exponent such as 1/3 was rounded to a float."""
    near = Fraction(value.real).limit_denominator(1000)
    return sympy.Rational(near) if math.isclose(near, value.real, rel_tol=1e-15) else sympy.Rational(value.real)


def _logarithm(x: Any) -> Any:
    return sympy.log(sympy.cancel(x))


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + sympy.exp(-x))


def _tanh(x: Any) -> Any:
    return 1 - 2 / (sympy.exp(2 * x) + 1)


def _powers(power: float) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    exact = _near(power)
    return (lambda x: x**exact), (lambda x: x ** (1 / exact))


def _logit(x: Any) -> Any:
    return _logarithm(x / (1 - x))


def _atanh(x: Any) -> Any:
    return _logarithm((1 + x) / (1 - x)) / 2


def _chosen(condition: Any, x: Any, y: Any) -> Any:
    return x if condition else y


def _anything(x: Any, y: Any) -> Any:
    return x**y


def _logaddexp(x: Any, y: Any) -> Any:
    return sympy.log(sympy.exp(x) + sympy.exp(y))


def _root(x: Any) -> Any:
    return sympy.sqrt(x)


def _inverse_root(x: Any) -> Any:
    return 1 / sympy.sqrt(x)


def _log1p(x: Any) -> Any:
    return _logarithm(1 + x)


def _softplus(x: Any) -> Any:
    return _logaddexp(x, sympy.Integer(0))


def _exponential(x: Any) -> Any:
    return sympy.exp(x)


_CHANGES: Mapping[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "log": (_logarithm, _exponential),
    "exp": (_exponential, _logarithm),
    "logit": (_logit, _sigmoid),
    "atanh": (_atanh, _tanh),
}
_ANALYTIC: Mapping[str, Callable[..., Any]] = {
    **ARITHMETIC,
    "where": _chosen,
    "pow": _anything,
    "sqrt": _root,
    "rsqrt": _inverse_root,
    "exp": _exponential,
    "log": _logarithm,
    "log1p": _log1p,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "softplus": _softplus,
    "logaddexp": _logaddexp,
}


def same_modulo(left: Expr, right: Expr) -> bool:
    """Whether two polynomials agree modulo a prime at numbers drawn at random: quick where there are thousands of
    terms, and as good as a proof, since two that differ do so there but for one chance in 2**50."""
    draw = random.Random(0)
    known = {n: draw.randrange(_PRIME) for n in _opaque((left, right), set())}

    def modulo(op: Callable[..., int]) -> Callable[..., int]:
        return lambda *args: op(*args) % _PRIME

    ops = {name: modulo(ARITHMETIC[name]) for name in ("add", "sub", "mul", "neg")}
    values = [evaluate(e, known, ops, _whole) for e in (left, right)]
    return values[0] is not None and values[0] == values[1]


_PRIME = 2**61 - 1


def _whole(value: complex) -> int | None:
    return int(value.real) % _PRIME if value == int(value.real) else None


def _opaque(roots: Sequence[Expr], atoms: set[Expr], more: Collection[str] = ()) -> list[Expr]:
    found: dict[Expr, None] = {}
    stack, seen = list(roots), set[Expr]()
    while stack:
        node = stack.pop()
        if node in seen or node in atoms or isinstance(node, Lit):
            continue
        seen.add(node)
        whole = isinstance(node, Apply) and node.op == "pow" and number(node.args[1]) in range(9)
        if isinstance(node, Apply) and (node.op in ARITHMETIC or node.op in more or whole):
            stack.extend(operands(node))
        else:
            found[node] = None
    return list(found)
