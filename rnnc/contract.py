"""System → System: what is summed of a matrix state, as contractions of the state alone.

`sum[K](r * (S[t-1] + u * k * v))` becomes `sum[K](r * S[t-1]) + sum[K](r * u * k) * v`, so that a later stage sees the
reads of a state however they are written (a bonus on the current token, a mean, a scale). Goals: exact identities, and
only where a state of two or more dims is summed over some of them. Non-goals: the sums in a state's own update.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rnnc.derive import depends
from rnnc.ir import Apply, Expr, Graph, Reduce, Ref, walk
from rnnc.lower import System
from rnnc.products import product, split

MOST_TERMS = 8
"""Beyond which multiplying a sum out is not worth it."""


@dataclass(frozen=True)
class _Term:
    """A product of what is free of states and, but for one that is free of all, of a state; divided by what is `below`,
    and of which the `part` (real or imag) is taken in the end."""

    factors: tuple[Expr, ...] = ()
    below: tuple[Expr, ...] = ()
    negative: bool = False
    state: Ref | None = None
    part: str | None = None

    def times(self, factor: Expr) -> _Term | None:
        ours = self.part is None or factor.kind != "complex"
        return replace(self, factors=(*self.factors, factor)) if ours else None

    def over(self, divisor: Expr) -> _Term | None:
        ours = self.part is None or divisor.kind != "complex"
        return replace(self, below=(*self.below, divisor)) if ours else None

    def split(self, dims: set[str]) -> tuple[_Term, tuple[Expr, ...]]:
        """Without the divisors that lack `dims`, and these: they may as well divide the sum over them."""
        outside = tuple(e for e in self.below if not set(e.dims) & dims)
        return replace(self, below=tuple(e for e in self.below if e not in outside)), outside

    def product(self, graph: Graph) -> Expr:
        """Without the state."""
        made = product(graph, list(self.factors))
        for e in self.below:
            made = graph.apply("div", made, e)
        return made


def contracted(system: System) -> System:
    """The same system with its reads of matrix states written so."""
    rewriter = _Rewriter(system)
    streams = tuple(replace(s, expr=rewriter(s.expr, rewriter.feeding(s.name))) for s in system.streams)
    outputs = tuple((name, rewriter(e, set())) for name, e in system.outputs)
    if not rewriter.found:
        return system
    names = dict(system.names)
    for node, name in system.names.items():
        names.setdefault(rewriter(node, set()), name)
    return replace(system, streams=streams, outputs=outputs, names=names)


class _Rewriter:
    def __init__(self, system: System) -> None:
        self.system, self.graph = system, system.graph
        self.sizes = {s.name: set(s.type.dims) for s in system.streams if s.declared and len(s.type.dims) > 1}
        self.reads = {s.name: _states(s.expr) for s in system.streams}
        self.found = False
        self.done: dict[frozenset[str], dict[Expr, Expr]] = {}

    def feeding(self, name: str) -> set[str]:
        """The states that need a stream: where its update reads one, the two are of one group."""
        return {n for n in self.reads if name in self.reached(n)}

    def reached(self, name: str) -> set[str]:
        """The states that the update of one needs, at any distance."""
        seen: set[str] = set()
        stack = [name]
        while stack:
            for n in self.reads[stack.pop()] - seen:
                seen.add(n)
                stack.append(n)
        return seen

    def __call__(self, root: Expr, without: set[str]) -> Expr:
        """`root` with the sums of all states but those `without`."""
        done = self.done.setdefault(frozenset(without), {})
        for node in walk(root):
            if node in done:
                continue
            new = self.graph.rebuild(node, tuple(done[c] for c in node.children)) if node.children else node
            if isinstance(new, Reduce) and new.op in ("sum", "mean") and (made := self.contraction(new, without)):
                self.found = True
                new = made
            done[node] = new
        return done[root]

    def contraction(self, node: Reduce, without: set[str]) -> Expr | None:
        """A sum of contractions and of what needs none of their states; None where there is nothing to do."""
        refs = [
            n
            for n in walk(node.arg)
            if isinstance(n, Ref) and n.role == "state" and n.name not in without and n.name in self.sizes
        ]
        over = set(node.over)
        states = [n for n in refs if over & self.sizes[n.name] < self.sizes[n.name] and over & self.sizes[n.name]]
        found = self.terms(node, states)
        if found is None and states:
            # A smaller state may be part of what a larger one is multiplied with, in any form.
            most = max(len(self.sizes[n.name]) for n in states)
            found = self.terms(node, [n for n in states if len(self.sizes[n.name]) == most])
        if found is None:
            return None
        if any(t.part and t.state and not self.values(t, node) for t in found):
            return None  # no matrix is read: a complex sum is more work than that of real parts
        table: dict[tuple[Ref | None, str | None, tuple[Expr, ...]], list[_Term]] = {}
        for term in found:
            inside, outside = term.split(set(node.over)) if term.state else (term, ())
            table.setdefault((term.state, term.part, outside), []).append(inside)
        parts: list[tuple[Expr, bool]] = []
        for (state, part, below), same in table.items():
            for made, negative in self.rest(node, same) if state is None else [self.read(node, state, same)]:
                for e in below:
                    made = self.graph.apply("div", made, e)
                parts.append((made if part is None else self.graph.apply(part, made), negative))
        total = self.sum(parts)
        assert total is not None
        for dim in node.over if node.op == "mean" else ():
            total = self.graph.apply("div", total, self.graph.ref("size", dim))
        return total if total.dims == node.dims else None

    def terms(self, node: Reduce, states: list[Ref]) -> list[_Term] | None:
        """The terms of a sum that hold one of these states each; None where it is no such sum, or has one that is
        written so."""
        apart = any(set(node.over) - self.sizes[n.name] for n in states)
        if not states or (node.op == "sum" and not apart and _is_product(node.arg, set(states))):
            return None
        found = self.linear(node.arg, depends([node.arg], states))
        if found is None or not any(t.state for t in found) or len(found) > MOST_TERMS:
            return None
        return found

    def values(self, term: _Term, node: Reduce) -> set[str]:
        """The dims of a term's state that are neither summed nor its query's."""
        dims = set(term.state.dims) if term.state else set[str]()
        return dims.difference(node.over, *(f.dims for f in (*term.factors, *term.below)))

    def linear(self, node: Expr, reach: set[Expr]) -> list[_Term] | None:
        """The terms of a sum of products that hold one state each; None where it is no such sum."""
        if isinstance(node, Ref) and node in reach:
            return [_Term(state=node)]
        if node not in reach:
            return [_Term((node,))]
        if not isinstance(node, Apply) or node.op not in ("add", "sub", "neg", "mul", "div", "real", "imag"):
            return None
        if node.op in ("mul", "div"):
            inside, outside = node.args if node.args[0] in reach else node.args[::-1]
            if outside in reach or (node.op == "div" and inside is not node.args[0]):
                return None
            inner = self.linear(inside, reach)
            made = [t.times(outside) if node.op == "mul" else t.over(outside) for t in inner or ()]
            return None if inner is None or None in made else [t for t in made if t is not None]
        parts = [self.linear(a, reach) for a in node.args]
        if None in parts:
            return None
        first, *others = (p for p in parts if p is not None)
        match node.op:
            case "add" | "sub":
                turned = [replace(t, negative=t.negative != (node.op == "sub")) for t in others[0]]
                return None if len(first) + len(turned) > MOST_TERMS else first + turned
            case "neg":
                return [replace(t, negative=not t.negative) for t in first]
            case _:
                return None if any(t.part for t in first) else [replace(t, part=node.op) for t in first]

    def read(self, node: Reduce, state: Ref, same: list[_Term]) -> tuple[Expr, bool]:
        """`sum[over](query * state)`, and whether it is subtracted."""
        turned = all(t.negative for t in same)
        made = [t for t in same if t.factors or t.below]
        query = self.sum([(t.product(self.graph), t.negative != turned) for t in made])
        plain = sum(1 if t.negative == turned else -1 for t in same if t not in made)
        own, apart = [d for d in node.over if d in state.dims], [d for d in node.over if d not in state.dims]
        if query is None and plain == 1 and not apart:
            return self.graph.reduce("sum", own, state), turned
        number = self.graph.lit(float(plain))
        query = number if query is None else self.graph.apply("add", query, number) if plain else query
        # A summed dim that the state lacks is one of what it is multiplied with.
        have = [d for d in apart if d in query.dims]
        query = self.graph.reduce("sum", have, query) if have else query
        query = product(self.graph, [query, *(self.graph.ref("size", d) for d in apart if d not in have)])
        return self.graph.reduce("sum", own, self.graph.apply("mul", query, state)), turned

    def rest(self, node: Reduce, same: list[_Term]) -> list[tuple[Expr, bool]]:
        """What needs no state, summed: what lacks the summed dims is taken out of the sum."""
        over, parts = set(node.over), list[tuple[Expr, bool]]()
        for term in same:
            whole = term.product(self.graph)
            apart = split(self.graph, whole, over, set(whole.dims) - over)
            for factors, negative in apart[0] if apart is not None else [([whole], False)]:
                inside = product(self.graph, [f for f in factors if set(f.dims) & over])
                have = [d for d in node.over if d in inside.dims]
                # What lacks a summed dim counts once for each of its entries.
                outside = [f for f in factors if not set(f.dims) & over]
                outside += [self.graph.ref("size", d) for d in node.over if d not in have]
                summed = [self.graph.reduce("sum", have, inside)] if have else []
                parts.append((product(self.graph, summed + outside), negative != term.negative))
        return parts

    def sum(self, parts: list[tuple[Expr, bool]]) -> Expr | None:
        total: Expr | None = None
        for e, negative in parts:
            if total is None:
                total = self.graph.apply("neg", e) if negative else e
            else:
                total = self.graph.apply("sub" if negative else "add", total, e)
        return total


def _is_product(node: Expr, states: set[Ref]) -> bool:
    """Whether it already is a product with one state."""
    while isinstance(node, Apply) and node.op == "mul":
        inner = [a for a in node.args if any(n in states for n in walk(a))]
        if len(inner) != 1:
            return False
        node = inner[0]
    return node in states


def _states(e: Expr) -> set[str]:
    return {n.name for n in walk(e) if isinstance(n, Ref) and n.role == "state"}
