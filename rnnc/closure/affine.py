"""The affine family, elementwise: `s[t] = a * s[t-1] + b` with `a`, `b` free of the group's states.

Match: the update is split structurally into coefficient and rest, which keeps the author's own terms (`1 - z` stays
`1 - z`); where that fails on an elementwise update, SymPy's polynomial form decides (`(h + 1)**2 - h**2`). Either way
SymPy reduces `update - (a * s + b)` to zero: that identity is the certificate.
Composition: `(a2 * a1, a2 * b1 + b2)`; identity `(1, 0)`; obligation: none.
"""

from __future__ import annotations

from rnnc.closure.base import Affine, Refusal
from rnnc.closure.formula import certify, polynomial
from rnnc.group import Group
from rnnc.ir import Apply, Expr, Graph, Lit, Ref, walk
from rnnc.lower import Stream, System
from rnnc.show import expr_text

FAMILY = "affine"


def match(system: System, group: Group) -> Affine | Refusal:
    name, *others = group.states
    if others:
        names = ", ".join(f"`{n}`" for n in group.states)
        return Refusal(FAMILY, f"the states {names} need each other, and this family holds one state at a time")
    stream = system.stream(name)
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
    holds: set[Expr] = {state}
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
        found = polynomial(graph, stream.expr, state, holds)
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
