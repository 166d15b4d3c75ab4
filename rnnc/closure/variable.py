"""Affine after a change of variable, elementwise: `phi(s[t]) = a * phi(s[t-1]) + b`.

Match: for each phi that the update suggests (log, exp, powers, logit, atanh), phi is pushed through the update from its
root down (`change`).
Composition: that of affine maps; identity `(1, 0)`. For phi = exp the parameters are logarithms, `s[t] =
logaddexp(s[t-1] + a, b)`, composed as `(a2 + a1, logaddexp(a2 + b1, b2))`, so that nothing overflows.
Obligation: the domain of phi for the state, and signs of the factors that phi is taken of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from rnnc.closure import algebra
from rnnc.closure.base import Composable, Obligation, Refusal
from rnnc.closure.change import Images, Logarithms, Phi, monomial
from rnnc.closure.formula import free_parts, same_after
from rnnc.closure.proof import composes
from rnnc.closure.view import alone, holding
from rnnc.group import Group
from rnnc.ir import Apply, Expr, Graph, Ref, walk
from rnnc.lower import System
from rnnc.show import expr_text

FAMILY = "variable"


@dataclass(frozen=True)
class Variable(Composable):
    """`parameters` are `(a, b)`: for phi = exp, their logarithms."""

    family: ClassVar[str] = FAMILY
    phi: Phi

    @property
    def logarithmic(self) -> bool:
        return self.phi.name == "exp"

    def grows(self, contracting: bool) -> bool:
        return not self.logarithmic

    def identity(self, graph: Graph) -> tuple[Expr, ...]:
        return (graph.lit(0.0), graph.lit(-math.inf)) if self.logarithmic else (graph.lit(1.0), graph.lit(0.0))

    def compose(self, graph: Graph, later: tuple[Expr, ...], earlier: tuple[Expr, ...]) -> tuple[Expr, ...]:
        (a2, b2), (a1, b1) = later, earlier
        if self.logarithmic:
            return graph.apply("add", a2, a1), graph.apply("logaddexp", _shifted(graph, b1, a2), b2)
        return graph.apply("mul", a2, a1), graph.apply("add", graph.apply("mul", a2, b1), b2)

    def apply(self, graph: Graph, parameters: tuple[Expr, ...], states: tuple[Expr, ...]) -> tuple[Expr, ...]:
        (a, b), (s,) = parameters, states
        if self.logarithmic:
            return (graph.apply("logaddexp", _shifted(graph, s, a), b),)
        scaled = algebra.mul(graph, a, self.phi(graph, s))
        whole = algebra.add(graph, scaled, None if algebra.number(b) == 0 else b)
        return (self.phi.back(graph, graph.lit(0.0) if whole is None else whole),)


def _shifted(graph: Graph, x: Expr, by: Expr) -> Expr:
    """`x + by`; an infinite x stays."""
    return x if algebra.number(by) == 0 else algebra.fixed(graph, x, graph.apply("add", x, by))


def match(system: System, group: Group) -> Variable | Refusal:
    found = alone(FAMILY, system, group)
    if isinstance(found, Refusal):
        return found
    stream, past = found
    if past.kind == "complex":
        return Refusal(FAMILY, f"`{stream.name}` is complex, and its logarithms and roots are not unique")
    holds = holding(stream.expr, (past,))
    for phi in _candidates(system.graph, stream.expr, holds):
        closure = _changed(system.graph, group, stream.expr, past, holds, phi)
        if closure is not None:
            return closure
    changes = "logarithm, exp, power, logit or atanh"
    return Refusal(FAMILY, f"no {changes} of `{stream.name}[t]` is affine in that of `{expr_text(past)}`")


def _changed(graph: Graph, group: Group, update: Expr, past: Ref, holds: set[Expr], phi: Phi) -> Variable | None:
    """The group as one that is affine in `phi`, if it is."""
    pushed = (Logarithms if phi.name == "exp" else Images)(graph, phi, past, holds)
    found = pushed.image(update)
    if found is None:
        return None
    absent = graph.lit(-math.inf if phi.name == "exp" else 0.0)
    parameters = algebra.numbers(graph, (absent if e is None else e for e in found))
    domain = phi.domain(graph)
    why = f"its update is affine in {phi.text}, which tells values apart there"
    inside = () if domain is None else (Obligation(past, domain, why),)
    closure = Variable(group, parameters, "", (*inside, *pushed.obligations), ((past.name, 1),), phi)
    (again,) = closure.apply(graph, parameters, (past,))

    def same(x: Expr, y: Expr) -> bool:
        states = [n for n in walk(x, y) if isinstance(n, Ref) and n.name in (past.name, "s0")]
        return same_after(x, y, states[0], free_parts(x, holding(x, states[:1])), phi.name, phi.power)

    if not same(update, again) or not composes(closure, same):
        return None
    return replace(closure, certificate=_certificate(phi, past))


def _certificate(phi: Phi, past: Ref) -> str:
    s = expr_text(past)
    if phi.name == "exp":
        after = "(a2, b2) after (a1, b1) = (a2 + a1, logaddexp(a2 + b1, b2))"
        return f"exp(update) - (exp(a) * exp({s}) + exp(b)) = 0; {after}"
    shown = f"{s} ** {phi.power:g}" if phi.name == "power" else f"{phi.name}({s})"
    done = f"update ** {phi.power:g}" if phi.name == "power" else f"{phi.name}(update)"
    return f"{done} - (a * {shown} + b) = 0; (a2, b2) after (a1, b1) = (a2 * a1, a2 * b1 + b2)"


def _candidates(graph: Graph, update: Expr, holds: set[Expr]) -> list[Phi]:
    """The changes of variable that operations of an update suggest."""
    found: dict[Phi, None] = {}
    for node in walk(update):
        if node not in holds or not isinstance(node, Apply):
            continue
        match node.op:
            case "logaddexp" | "softplus":
                found[Phi("exp")] = None
            case "log" | "log1p" | "exp":
                found |= dict.fromkeys((Phi("log"), Phi("exp")))
            case "sigmoid":
                found[Phi("logit")] = None
            case "tanh":
                found[Phi("atanh")] = None
            case "mul" | "div" | "pow" | "square" | "sqrt" | "rsqrt":
                power = monomial(graph, node, holds).power
                for p in (power, -1.0) if node.op == "div" else (power,):
                    if p not in (0, 1):
                        found |= dict.fromkeys(Phi("power", q) for q in (p, 1 / p, -p, -1 / p) if q != 1)
                found[Phi("log")] = None
            case _:
                pass
    # What is most special goes first: a power of a state is one of its logarithm too.
    return sorted(found, key=lambda phi: ("power", "exp", "log", "logit", "atanh").index(phi.name))
