"""Changes of variable, pushed through an update: `image(e)` is phi of an expression, `value(e)` the expression itself,
both as `a * u + b` with `u = phi(s[t-1])`. None where they are no such sum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rnnc.closure import algebra
from rnnc.closure.base import Obligation
from rnnc.closure.linear import Terms, split
from rnnc.ir import Apply, Expr, Graph, Interval, Lit

_NAMES = {2.0: "the square", 0.5: "the square root", -1.0: "the reciprocal", -2.0: "the inverse square"}

Sum = tuple[Expr | None, Expr | None]
"""`(a, b)`, None for zero. For phi = exp, the logarithms of both."""


@dataclass(frozen=True)
class Phi:
    """A change of variable. `power` is its exponent."""

    name: Literal["log", "exp", "power", "logit", "atanh"]
    power: float = 1.0

    @property
    def text(self) -> str:
        return _NAMES.get(self.power, f"the power {self.power:g}") if self.name == "power" else self.name

    def __call__(self, graph: Graph, x: Expr) -> Expr:
        """`phi(x)`."""
        one = graph.lit(1.0)
        match self.name:
            case "log" | "exp":
                return graph.apply(self.name, x)
            case "power":
                return raised(graph, x, self.power)
            case "logit":
                return graph.apply("log", graph.apply("div", x, graph.apply("sub", one, x)))
            case "atanh":
                ratio = graph.apply("div", graph.apply("add", one, x), graph.apply("sub", one, x))
                return graph.apply("mul", graph.lit(0.5), graph.apply("log", ratio))

    def back(self, graph: Graph, u: Expr) -> Expr:
        """The x with `phi(x) = u`."""
        match self.name:
            case "power":
                return raised(graph, u, 1 / self.power)
            case _:
                return graph.apply({"log": "exp", "exp": "log", "logit": "sigmoid", "atanh": "tanh"}[self.name], u)

    def domain(self, graph: Graph) -> Interval | None:
        """Where phi is one to one, of a state; None for everywhere."""
        low, high = {"exp": (-math.inf, math.inf), "logit": (0, 1), "atanh": (-1, 1)}.get(self.name, (0, math.inf))
        if self.name == "exp":
            return None
        return Interval(graph.lit(low), graph.lit(high), not (self.name == "power" and self.power > 0), True)


def raised(graph: Graph, x: Expr, power: float) -> Expr:
    """`x ** power`, as the cheapest operation that there is."""
    match power:
        case 1.0:
            return x
        case -1.0:
            return graph.apply("div", graph.lit(1.0), x)
        case 2.0 | 0.5 | -0.5:
            return graph.apply({2.0: "square", 0.5: "sqrt", -0.5: "rsqrt"}[power], x)
        case _:
            return graph.apply("pow", x, graph.lit(int(power) if power == int(power) else power))


@dataclass(frozen=True)
class Monomial:
    """`free * base ** power`; None for a factor of 1, and for no base."""

    free: Expr | None
    base: Expr | None
    power: float


_ROOTS = {"square": 2.0, "sqrt": 0.5, "rsqrt": -0.5}


def monomial(graph: Graph, e: Expr, holds: set[Expr]) -> Monomial:
    """A product of powers of one thing that holds the state, however it is written; else `e` as its own base."""
    alone = Monomial(None, e, 1.0)
    if e not in holds:
        return Monomial(e, None, 0.0)
    match e:
        case Apply(op="mul", args=(x, y)):
            f, g = monomial(graph, x, holds), monomial(graph, y, holds)
            free = algebra.mul(graph, f.free, g.free) if f.free and g.free else f.free or g.free
        case Apply(op="div", args=(x, y)):
            f, g = monomial(graph, x, holds), monomial(graph, y, holds)
            g = Monomial(g.free, g.base, -g.power)
            free = algebra.div(graph, f.free or graph.lit(1.0), g.free) if g.free else f.free
            free = None if free is not None and algebra.number(free) == 1 else free
        case Apply(op="square" | "sqrt" | "rsqrt" | "pow" as op, args=(x, *rest)):
            value = _ROOTS[op] if op != "pow" else algebra.number(rest[0])
            f = monomial(graph, x, holds)
            if value is None or not math.isfinite(value):
                return alone
            return Monomial(None, x, value) if f.free is not None else Monomial(None, f.base, f.power * value)
        case _:
            return alone
    if f.base is not None and g.base is not None and f.base is not g.base:
        return alone
    return Monomial(free, f.base or g.base, f.power + g.power)


def _same(x: float, y: float) -> bool:
    return abs(x - y) < 1e-12


class Pusher:
    """What both ways of writing coefficients share. `obligations` are noted on the way."""

    absent = 0.0
    """What None stands for."""

    def __init__(self, graph: Graph, phi: Phi, past: Expr, holds: set[Expr]) -> None:
        self.graph, self.phi, self.past, self.holds = graph, phi, past, holds
        self.obligations: list[Obligation] = []

    def needs(self, e: Expr, region: Interval) -> None:
        if all(o.expr is not e for o in self.obligations):
            self.obligations.append(Obligation(e, region, f"{self.phi.text} is taken of it"))

    def positive(self, e: Expr, strict: bool) -> Expr:
        value = algebra.number(e)
        if value is None or value < 0 or (value == 0 and strict):
            self.needs(e, Interval(self.graph.lit(0), self.graph.lit(math.inf), strict, True))
        return e

    def image(self, e: Expr) -> Sum | None:
        raise NotImplementedError

    def through(self, e: Expr, inner: Callable[[Expr], Sum | None]) -> Sum | None:
        """An operation that phi passes."""
        match e:
            case Apply(op="where", args=(condition, x, y)) if condition not in self.holds:
                f, g = inner(x), inner(y)
                if f is None or g is None:
                    return None
                a, b = (algebra.choose(self.graph, condition, p, q, self.absent) for p, q in zip(f, g, strict=True))
                return a, b
            case Apply(op="only" | "like", args=(x, y)) if y not in self.holds:
                return inner(x)
            case Apply(op="real" | "conj", args=(x,)):
                return inner(x)
            case _:
                return None


class Images(Pusher):
    """phi = log, power, logit, atanh."""

    def free(self, e: Expr) -> Expr | None:
        """phi of what is free of the state."""
        graph, phi = self.graph, self.phi
        if phi.name in ("logit", "atanh"):
            low = 0 if phi.name == "logit" else -1
            self.needs(e, Interval(graph.lit(low), graph.lit(1), True, True))
            return phi(graph, e)
        strict = phi.name == "log" or phi.power < 0
        value = algebra.number(e)
        if value is not None and (value > 0 or (value == 0 and not strict)):
            known = math.log(value) if phi.name == "log" else float(value) ** phi.power
            return None if known == 0 else graph.lit(known)
        if isinstance(e, Apply) and e.op == "exp" and phi.name == "log":
            return e.args[0]
        return phi(graph, self.positive(e, strict))

    def image(self, e: Expr) -> Sum | None:
        if e is self.past:
            return self.graph.lit(1.0), None
        if e not in self.holds:
            return None, self.free(e)
        match self.phi.name, e:
            case "log", Apply(op="exp", args=(x,)):
                return self.value(x)
            case "logit", Apply(op="sigmoid", args=(x,)):
                return self.value(x)
            case "atanh", Apply(op="tanh", args=(x,)):
                return self.value(x)
            case "log", Apply():
                found = self.logarithm(e)
            case "power", Apply():
                found = self.powered(e)
            case _:
                found = None
        return self.through(e, self.image) if found is None else found

    def logarithm(self, e: Apply) -> Sum | None:
        match e.op, e.args:
            case ("mul" | "div") as op, (x, y):
                return self.joined("add" if op == "mul" else "sub", self.image(x), self.image(y))
            case "pow", (x, y) if y not in self.holds:
                return self.times(y, self.image(x))
            case (("square" | "sqrt" | "rsqrt"), (x,)):
                factor = {"square": 2.0, "sqrt": 0.5, "rsqrt": -0.5}[e.op]
                return self.times(self.graph.lit(factor), self.image(x))
            case _:
                return None

    def powered(self, e: Apply) -> Sum | None:
        power, m = self.phi.power, monomial(self.graph, e, self.holds)
        if m.base is None:
            return None
        if _same(m.power * power, 1) and m.base is not e:
            found = self.value(m.base)
        elif m.power == 1 and m.free is not None:
            found = self.image(m.base)
        elif e.op == "div" and power == -1:
            return self.quotient(*e.args)
        else:
            return None
        factor = self.graph.lit(1.0) if m.free is None else self.free(m.free)
        return None if factor is None else self.times(factor, found)

    def quotient(self, x: Expr, y: Expr) -> Sum | None:
        """`y / x` in `1 / s`, for `x = k s` and `y = c s + d`: `c / k + d / k * u`."""
        above, below = (split(self.graph, e, (self.past,)) for e in (x, y))
        if not isinstance(above, Terms) or not isinstance(below, Terms) or above.rest is not None:
            return None
        return self.over((below.rest, below.slopes.get(self.past)), above.slopes[self.past])

    def value(self, e: Expr) -> Sum | None:
        graph, phi = self.graph, self.phi
        if e not in self.holds:
            return None, None if isinstance(e, Lit) and e.value == 0 else e
        m = monomial(graph, e, self.holds)
        if phi.name == "power" and m.base not in (None, e) and _same(m.power, phi.power):
            return self.times(graph.lit(1.0) if m.free is None else m.free, self.image(m.base))
        match e:
            case Apply(op="log", args=(x,)) if phi.name == "log":
                return self.image(x)
            case Apply(op="log" | "sub") if phi.name in ("logit", "atanh") and (x := self.spelled(e)) is not None:
                return self.times(graph.lit(1.0 if phi.name == "logit" else 2.0), self.image(x))
            case Apply(op="add" | "sub" as op, args=(x, y)):
                return self.joined(op, self.value(x), self.value(y))
            case Apply(op="neg", args=(x,)):
                return self.times(graph.lit(-1.0), self.value(x))
            case Apply(op="mul", args=(x, y)) if (x in self.holds) != (y in self.holds):
                held, free = (x, y) if x in self.holds else (y, x)
                return self.times(free, self.value(held))
            case Apply(op="div", args=(x, y)) if y not in self.holds:
                return self.over(self.value(x), y)
            case _:
                return self.through(e, self.value)

    def spelled(self, e: Apply) -> Expr | None:
        """x of `log(x / (1 - x))`, or of `log((1 + x) / (1 - x))` for atanh, in one logarithm or in two."""
        match e:
            case Apply(op="log", args=(Apply(op="div", args=(above, below)),)):
                pass
            case Apply(op="sub", args=(Apply(op="log" | "log1p") as f, Apply(op="log" | "log1p") as g)):
                above, below = (
                    x.args[0] if x.op == "log" else self.graph.apply("add", self.graph.lit(1), x.args[0])
                    for x in (f, g)
                )
            case _:
                return None
        x = above if self.phi.name == "logit" else _beside_one(above, "add")
        return x if x is not None and _beside_one(below, "sub") is x else None

    def joined(self, op: str, f: Sum | None, g: Sum | None) -> Sum | None:
        if f is None or g is None:
            return None
        join = algebra.add if op == "add" else algebra.sub
        return join(self.graph, f[0], g[0]), join(self.graph, f[1], g[1])

    def times(self, factor: Expr, f: Sum | None) -> Sum | None:
        return None if f is None else (algebra.mul(self.graph, factor, f[0]), algebra.mul(self.graph, factor, f[1]))

    def over(self, f: Sum | None, k: Expr | None) -> Sum | None:
        return None if f is None or k is None else (algebra.div(self.graph, f[0], k), algebra.div(self.graph, f[1], k))


def _beside_one(e: Expr, op: str) -> Expr | None:
    """x of `1 + x` or `x + 1` (op "add"), or of `1 - x` or `1 + -x`."""
    match e:
        case Apply(op="add", args=(x, y)) if algebra.number(x) == 1 or algebra.number(y) == 1:
            other = y if algebra.number(x) == 1 else x
            negative = isinstance(other, Apply) and other.op == "neg"
            return other if op == "add" else other.children[0] if negative else None
        case Apply(op="sub", args=(x, y)) if op == "sub" and algebra.number(x) == 1:
            return y
        case _:
            return None


class Logarithms(Pusher):
    """phi = exp: sums are `exp(a) * exp(s) + exp(b)`, so that nothing overflows."""

    absent = -math.inf

    def image(self, e: Expr) -> Sum | None:
        graph = self.graph
        if e is self.past:
            return graph.lit(0.0), None
        if e not in self.holds:
            return None, e
        match e:
            case Apply(op="logaddexp", args=(x, y)):
                return self.joined(self.image(x), self.image(y))
            case Apply(op="softplus", args=(x,)):
                return self.joined(self.image(x), (None, graph.lit(0.0)))
            case Apply(op="log", args=(x,)):
                return self.value(x)
            case Apply(op="log1p", args=(x,)):
                return self.joined(self.value(x), (None, graph.lit(0.0)))
            case Apply(op="add", args=(x, y)) if (x in self.holds) != (y in self.holds):
                held, free = (x, y) if x in self.holds else (y, x)
                return self.shifted(self.image(held), free)
            case Apply(op="sub", args=(x, y)) if y not in self.holds:
                return self.shifted(self.image(x), graph.apply("neg", y))
            case _:
                return self.through(e, self.image)

    def value(self, e: Expr) -> Sum | None:
        if e not in self.holds:
            return None, self.logarithm(e)
        match e:
            case Apply(op="exp", args=(x,)):
                return self.image(x)
            case Apply(op="add", args=(x, y)):
                return self.joined(self.value(x), self.value(y))
            case Apply(op="mul", args=(x, y)) if (x in self.holds) != (y in self.holds):
                held, free = (x, y) if x in self.holds else (y, x)
                return self.shifted(self.value(held), self.logarithm(free))
            case Apply(op="div", args=(x, y)) if y not in self.holds:
                return self.shifted(self.value(x), algebra.neg(self.graph, self.logarithm(y)))
            case _:
                return self.through(e, self.value)

    def logarithm(self, e: Expr) -> Expr:
        if isinstance(e, Apply) and e.op == "exp":
            return e.args[0]
        value = algebra.number(e)
        if value is not None and value >= 0:
            return self.graph.lit(math.log(value) if value else -math.inf)
        return self.graph.apply("log", self.positive(e, False))

    def joined(self, f: Sum | None, g: Sum | None) -> Sum | None:
        if f is None or g is None:
            return None
        a, b = (
            y if x is None else x if y is None else self.graph.apply("logaddexp", x, y)
            for x, y in zip(f, g, strict=True)
        )
        return a, b

    def shifted(self, f: Sum | None, by: Expr | None) -> Sum | None:
        if f is None or by is None:
            return None
        a, b = (x if x is None else by if algebra.number(x) == 0 else self.graph.apply("add", x, by) for x in f)
        return a, b
