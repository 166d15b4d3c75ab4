"""The tropical family, elementwise: `s[t] = min(max(a * s[t-1] + b, c), d)` with `a >= 0`: max-plus, min-plus, clamps.

Match: structurally, from the state up; a part that is free of the state is the clamp to its value.
Composition: `(a2 a1, a2 b1 + b2, max(a2 c1 + b2, c2), min(max(a2 d1 + b2, c2), d2))`; identity
`(1, 0, -inf, inf)`. Which of the four a group needs is fixed: `m[t] = max(m[t-1], x)` composes by `max(c1, c2)` alone.
Infinities: `c = -inf` and `d = inf` stand for no bound, and a state may begin at either. Where a bound, `b` or a state
is infinite it stays so under `a * x + b`: the program either says the same or has no value there.
Obligation: `a >= 0`, and the same of factors on the way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from rnnc.closure import algebra
from rnnc.closure.base import Composable, Obligation, Refusal
from rnnc.closure.lattice import same_order
from rnnc.closure.proof import LATER, composes
from rnnc.closure.view import alone, holding
from rnnc.group import Group
from rnnc.ir import Apply, Expr, Graph, Interval, Ref, walk
from rnnc.lower import System
from rnnc.show import expr_text

FAMILY = "tropical"
_NEUTRAL = {"a": 1.0, "b": 0.0, "c": -math.inf, "d": math.inf}
_FLIPPED = {"max": "min", "min": "max"}


@dataclass(frozen=True)
class Form:
    """`min(max(a * s + b, c), d)`; None for 1, 0 and no bound."""

    a: Expr | None = None
    b: Expr | None = None
    c: Expr | None = None
    d: Expr | None = None

    @property
    def bounded(self) -> bool:
        return self.c is not None or self.d is not None


@dataclass(frozen=True)
class Tropical(Composable):
    """`roles` names the parameters, in order, out of `a`, `b`, `c`, `d`."""

    family: ClassVar[str] = FAMILY
    roles: str

    def form(self, parameters: tuple[Expr, ...]) -> Form:
        return Form(**dict(zip(self.roles, parameters, strict=True)))

    def grows(self, contracting: bool) -> bool:
        return "a" in self.roles and not contracting

    def identity(self, graph: Graph) -> tuple[Expr, ...]:
        return tuple(graph.lit(_NEUTRAL[role]) for role in self.roles)

    def compose(self, graph: Graph, later: tuple[Expr, ...], earlier: tuple[Expr, ...]) -> tuple[Expr, ...]:
        f, g = self.form(later), self.form(earlier)
        found = {"b": _moved(graph, f, g.b) if g.b is not None else f.b}
        if f.a is not None and g.a is not None:
            found["a"] = graph.apply("mul", f.a, g.a)
        c, d = _moved(graph, f, g.c), _moved(graph, f, g.d)
        found["c"] = _better(graph, "max", c, f.c)
        found["d"] = _better(graph, "min", d if d is None else _better(graph, "max", d, f.c), f.d)
        return tuple(graph.lit(_NEUTRAL[role]) if (e := found[role]) is None else e for role in self.roles)

    def apply(self, graph: Graph, parameters: tuple[Expr, ...], states: tuple[Expr, ...]) -> tuple[Expr, ...]:
        form = self.form(parameters)
        moved = _moved(graph, form, states[0])
        found = _better(graph, "min", _better(graph, "max", moved, form.c), form.d)
        assert found is not None
        return (found,)


def _moved(graph: Graph, form: Form, x: Expr | None) -> Expr | None:
    """`a * x + b`; an infinite x stays."""
    if x is None or (form.a is None and form.b is None):
        return x
    scaled = x if form.a is None else graph.apply("mul", form.a, x)
    return algebra.fixed(graph, x, scaled if form.b is None else graph.apply("add", scaled, form.b))


def _better(graph: Graph, op: str, x: Expr | None, y: Expr | None) -> Expr | None:
    return y if x is None else x if y is None else graph.apply(op, x, y)


def match(system: System, group: Group) -> Tropical | Refusal:
    found = alone(FAMILY, system, group)
    if isinstance(found, Refusal):
        return found
    stream, past = found
    if past.kind == "complex":
        return Refusal(FAMILY, f"`{stream.name}` is complex, and complex numbers have no order")
    graph, update = system.graph, stream.expr
    splitter = _Splitter(graph, past, holding(update, (past,)))
    form = splitter.run(update)
    if isinstance(form, Refusal):
        return form
    if not form.bounded:
        return Refusal(FAMILY, f"nothing bounds `{stream.name}` by `max`, `min`, `clamp` or `relu`")
    slope, positive = form.a, {o.expr for o in splitter.obligations}
    if slope is not None:
        known = algebra.number(slope)
        if known is not None and known < 0:
            reason = f"the coefficient of `{expr_text(past)}` is {known:g}, which turns the order round"
            return Refusal(FAMILY, reason, expr_text(slope))
        if known is None:
            splitter.needs(
                slope, f"it multiplies `{expr_text(past)}` below a `max` or `min`, which must keep their order"
            )
    given = {"a": form.a, "b": form.b, "c": form.c, "d": form.d}
    roles = "".join(role for role, e in given.items() if e is not None)
    parameters = algebra.numbers(graph, (e for e in given.values() if e is not None))
    closure = Tropical(group, parameters, "", tuple(splitter.obligations), ((stream.name, 1),), roles)
    (again,) = closure.apply(graph, parameters, (past,))
    if not same_order(update, again, positive, holding(update, (past,))):
        return Refusal(FAMILY, f"the split of `{stream.name}` could not be confirmed")
    if not composes(closure, _order_kept):
        return Refusal(FAMILY, "the composition could not be confirmed")
    return replace(closure, certificate=_certificate(roles, past))


def _order_kept(left: Expr, right: Expr) -> bool:
    slopes: set[Expr] = {n for n in walk(left, right) if isinstance(n, Ref) and n.name == f"{LATER}0"}
    return same_order(left, right, slopes, set())


def _certificate(roles: str, past: Ref) -> str:
    moved = "a * " if "a" in roles else ""
    shown = f"{moved}{expr_text(past)}" + (" + b" if "b" in roles else "")
    shown = f"max({shown}, c)" if "c" in roles else shown
    shown = f"min({shown}, d)" if "d" in roles else shown

    def after(x: str) -> str:
        return ("a2 * " if "a" in roles else "") + f"{x}1" + (" + b2" if "b" in roles else "")

    made = {"a": "a2 * a1", "b": after("b"), "c": f"max({after('c')}, c2)"}
    made["d"] = f"min(max({after('d')}, c2), d2)" if "c" in roles else f"min({after('d')}, d2)"
    names = [", ".join(f"{r}{i}" for r in roles) for i in (2, 1)]
    left, right = (f"({n})" if len(roles) > 1 else n for n in names)
    result = ", ".join(made[r] for r in roles)
    whole = f"({result})" if len(roles) > 1 else result
    return f"update = {shown} in each case; {left} after {right} = {whole}"


class _Splitter:
    """The form of every node that holds the state."""

    def __init__(self, graph: Graph, past: Expr, holds: set[Expr]) -> None:
        self.graph, self.past, self.holds = graph, past, holds
        self.forms: dict[Expr, Form] = {past: Form()}
        self.obligations: list[Obligation] = []

    def needs(self, e: Expr, why: str, strict: bool = False) -> None:
        if all(o.expr is not e for o in self.obligations):
            zero, infinity = self.graph.lit(0), self.graph.lit(math.inf)
            self.obligations.append(Obligation(e, Interval(zero, infinity, strict, True), why))

    def run(self, root: Expr) -> Form | Refusal:
        for node in walk(root):
            if node in self.holds and node not in self.forms:
                assert isinstance(node, Apply)
                form = self.split(node)
                if form is None:
                    reason = f"`{expr_text(node)}` is no `max` or `min` with something free of `{expr_text(self.past)}`"
                    return Refusal(FAMILY, reason, expr_text(node))
                self.forms[node] = form
        return self.forms[root]

    def of(self, node: Expr) -> Form:
        """What is free of the state is a clamp to its value: right for an infinite state, too."""
        return self.forms[node] if node in self.holds else Form(c=node, d=node)

    def split(self, node: Apply) -> Form | None:
        held = [a for a in node.args if a in self.holds]
        match node.op, node.args:
            case ("max" | "min") as op, (x, y) if len(held) == 1:
                return self.clamped(op, self.forms[held[0]], y if x in self.holds else x)
            case ("max" | "min") as op, (x, y):
                return self.better(op, self.forms[x], self.forms[y])
            case "relu", (x,):
                return self.clamped("max", self.forms[x], self.graph.lit(0.0))
            case ("add" | "sub") as op, (x, y):
                return self.sum(op, x, y)
            case "neg", (x,):
                return self.turned(self.forms[x])
            case "mul", (x, y) if len(held) == 1:
                return self.scaled(self.forms[held[0]], y if x in self.holds else x)
            case "div", (x, y) if y not in self.holds:
                if self.forms[x].bounded and algebra.number(y) is None:
                    self.needs(y, "it divides a `max` or `min`, whose order it must keep", strict=True)
                return self.scaled(self.forms[x], self.graph.apply("div", self.graph.lit(1.0), y), known=True)
            case "where", (condition, x, y) if condition not in self.holds:
                return self.chosen(condition, self.of(x), self.of(y))
            case (("only" | "like"), (x, y)) if y not in self.holds:
                return self.forms[x]
            case (("real" | "conj"), (x,)):
                return self.forms[x]
            case _:
                return None

    def clamped(self, op: str, f: Form, bound: Expr) -> Form:
        if op == "min":
            return replace(f, d=_better(self.graph, "min", f.d, bound))
        d = None if f.d is None else self.graph.apply("max", f.d, bound)
        return replace(f, c=_better(self.graph, "max", f.c, bound), d=d)

    def better(self, op: str, f: Form, g: Form) -> Form | None:
        """`max(max(a * s + b, c), max(a * s + b2, c2)) = max(a * s + max(b, b2), max(c, c2))`; so for `min`."""
        other = "d" if op == "max" else "c"
        if f.a is not g.a or getattr(f, other) is not None or getattr(g, other) is not None:
            return None
        graph, zero = self.graph, self.graph.lit(0.0)
        b = graph.apply(op, zero if f.b is None else f.b, zero if g.b is None else g.b)
        return Form(f.a, f.b if f.b is g.b else b, _better(graph, op, f.c, g.c), _better(graph, op, f.d, g.d))

    def sum(self, op: str, x: Expr, y: Expr) -> Form | None:
        graph = self.graph
        if x in self.holds and y in self.holds:
            f, g = self.forms[x], self.forms[y]
            if f.bounded or g.bounded:
                return None
            join = algebra.add if op == "add" else algebra.sub
            one = graph.lit(1.0)
            slope = join(graph, one if f.a is None else f.a, one if g.a is None else g.a)
            return Form(graph.lit(0.0) if slope is None else slope, join(graph, f.b, g.b))
        free, f = (y, self.forms[x]) if x in self.holds else (x, self.forms[y])
        turned = algebra.neg(graph, free)
        if op == "sub" and x in self.holds and turned is not None:
            free = turned
        elif op == "sub":
            f = self.turned(f)
        if algebra.number(free) == 0:
            return f

        def moved(e: Expr | None) -> Expr | None:
            return None if e is None else free if algebra.number(e) == 0 else graph.apply("add", e, free)

        return Form(f.a, algebra.add(graph, f.b, free), moved(f.c), moved(f.d))

    def turned(self, f: Form) -> Form:
        """`-min(max(x, c), d) = min(max(-x, -d), max(-c, -d))`."""
        graph = self.graph
        a = algebra.neg(graph, graph.lit(1.0) if f.a is None else f.a)
        c, d = algebra.neg(graph, f.d), algebra.neg(graph, f.c)
        if c is not None and d is not None and c is not d:
            d = graph.apply("max", d, c)
        return Form(None if algebra.number(a) == 1 else a, algebra.neg(graph, f.b), c, d)

    def scaled(self, f: Form, factor: Expr, known: bool = False) -> Form:
        """The form times a factor; `known` not to be negative."""
        graph, value = self.graph, algebra.number(factor)
        positive = algebra.neg(graph, factor)
        negative = (value is not None and value < 0) or (isinstance(factor, Apply) and factor.op == "neg")
        if f.bounded and negative and positive is not None:
            return self.scaled(self.turned(f), positive)
        if f.bounded and value is None and not known:
            self.needs(factor, "it multiplies a `max` or `min`, whose order it must keep")
        a = factor if f.a is None else algebra.mul(graph, factor, f.a)

        def bound(e: Expr | None) -> Expr | None:
            if e is None:
                return None
            product = algebra.mul(graph, factor, e)
            return algebra.fixed(graph, e, graph.lit(0.0) if product is None else product)

        slope = graph.lit(0.0) if a is None else a
        return Form(
            None if algebra.number(slope) == 1 else slope, algebra.mul(graph, factor, f.b), bound(f.c), bound(f.d)
        )

    def chosen(self, condition: Expr, f: Form, g: Form) -> Form:
        def pick(role: str) -> Expr | None:
            x, y = (getattr(form, role) for form in (f, g))
            return algebra.choose(self.graph, condition, x, y, _NEUTRAL[role])

        return Form(*(pick(role) for role in "abcd"))
