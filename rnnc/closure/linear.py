"""An elementwise update as a sum: for each past of the group a coefficient, and a rest that is free of them.

The update is split structurally, which keeps the author's own terms (`1 - z` stays `1 - z`); where that fails, SymPy's
polynomial form decides (`(h + 1)**2 - h**2`). Either way SymPy then reduces `update - sum` to zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rnnc.closure import algebra
from rnnc.closure.formula import certify, polynomial
from rnnc.closure.view import holding
from rnnc.ir import Apply, Expr, Graph, Lit, walk


@dataclass(frozen=True)
class Terms:
    """`sum(slopes[s] * s) + rest`; None for no rest."""

    slopes: Mapping[Expr, Expr]
    rest: Expr | None


def split(graph: Graph, update: Expr, pasts: Sequence[Expr]) -> Terms | Expr:
    """The terms of an update, else the node that is not affine."""
    holds = holding(update, pasts)
    splitter = Splitter(graph, holds, pasts)
    failed = splitter.run(update)
    if failed is None:
        return splitter.of(update)
    found = polynomial(graph, update, pasts, holds)
    return failed if found is None else Terms(*found)


def confirmed(update: Expr, terms: Terms, pasts: Sequence[Expr]) -> bool:
    """Whether SymPy reduces `update - sum` to zero."""
    return certify(update, terms.slopes, terms.rest, holding(update, pasts))


class Splitter:
    """The terms of every node that holds a past; `parts` begins with those of the pasts."""

    def __init__(self, graph: Graph, holds: set[Expr], pasts: Sequence[Expr]) -> None:
        self.graph, self.holds = graph, holds
        self.parts = {p: Terms({p: graph.lit(1.0)}, None) for p in pasts}

    def run(self, root: Expr) -> Expr | None:
        """Fills `parts`; returns the first node that is not affine."""
        for node in walk(root):
            if node in self.holds and node not in self.parts:
                assert isinstance(node, Apply)
                terms = self.split(node)
                if terms is None:
                    return node
                self.parts[node] = terms
        return None

    def of(self, node: Expr) -> Terms:
        if node in self.holds or node in self.parts:
            return self.parts[node]
        return Terms({}, None if isinstance(node, Lit) and node.value == 0 else node)

    def split(self, node: Apply) -> Terms | None:
        graph, args = self.graph, node.args
        match node.op:
            case "add" | "sub":
                join = algebra.add if node.op == "add" else algebra.sub
                return _both(self.of(args[0]), self.of(args[1]), lambda x, y: join(graph, x, y))
            case "neg":
                return _each(self.of(args[0]), lambda x: algebra.neg(graph, x))
            case "mul" if (args[0] in self.holds) != (args[1] in self.holds):
                held, free = (args[0], args[1]) if args[0] in self.holds else (args[1], args[0])
                return _each(self.of(held), lambda x: _scaled(graph, free, x))
            case "div" if args[1] not in self.holds:
                return _each(self.of(args[0]), lambda x: algebra.div(graph, x, args[1]))
            case "where" if args[0] not in self.holds:
                pick = args[0]
                return _both(self.of(args[1]), self.of(args[2]), lambda x, y: algebra.choose(graph, pick, x, y))
            case "only" | "like" if args[1] not in self.holds:
                return self.of(args[0])
            case "real" | "conj" if args[0].kind != "complex":
                return self.of(args[0])
            case _:
                return None


def _scaled(graph: Graph, factor: Expr, x: Expr | None) -> Expr | None:
    return factor if x is graph.lit(1.0) else None if x is None else graph.apply("mul", factor, x)


def _each(terms: Terms, change: Callable[[Expr | None], Expr | None]) -> Terms:
    return _both(terms, terms, lambda x, _: change(x))


def _both(x: Terms, y: Terms, join: Callable[[Expr | None, Expr | None], Expr | None]) -> Terms:
    slopes = {s: join(x.slopes.get(s), y.slopes.get(s)) for s in {**x.slopes, **y.slopes}}
    return Terms({s: a for s, a in slopes.items() if a is not None}, join(x.rest, y.rest))
