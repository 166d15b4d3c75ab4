"""An update as a sum over contractions of a group's pasts: `d * s + left * sum[K](right * s) + rest`.

Sums of sums are sums: `sum[K](k * (s - u * sum[K](v * s)))` is `sum[K](k * s) - sum[K](k * u) * sum[K](v * s)`, so what
is left are sums of the pasts themselves, with coefficients that are free of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from rnnc.closure import algebra
from rnnc.closure.view import holding
from rnnc.ir import Apply, Expr, Graph, Lit, Reduce, Ref, Rename, walk
from rnnc.show import expr_text

Failure = tuple[str, str]
"""Why an update is no such sum, and the term that makes it so."""
Names = tuple[tuple[str, str], ...]
"""Dims of a past that go by another name, as `s[t-1][K -> J]`."""


@dataclass(frozen=True)
class Contraction:
    """`sum[over](right * past)`, of which the dims `bound`, that `right` has and the past lacks, are summed once it is
    multiplied by its coefficient."""

    past: Ref
    right: Expr
    over: tuple[str, ...]
    bound: tuple[str, ...] = ()

    @property
    def own(self) -> set[str]:
        """The dims that it has from `right` alone."""
        return set(self.right.dims) - set(self.past.dims) - set(self.bound)

    @property
    def free(self) -> set[str]:
        """The past's dims that are not summed."""
        return set(self.past.dims) - set(self.over)


@dataclass(frozen=True)
class Sum:
    """`direct` holds the factor of each past by its name, `reads` that of each contraction; no `rest` is zero."""

    direct: dict[str, Expr] = field(default_factory=dict[str, Expr])
    reads: dict[Contraction, Expr] = field(default_factory=dict[Contraction, Expr])
    rest: Expr | None = None


@dataclass(frozen=True)
class _Parts:
    """A `Sum` whose pasts may go by other names."""

    direct: dict[tuple[Ref, Names], Expr]
    reads: dict[Contraction, Expr]
    rest: Expr | None


class _NotLowRank(Exception):
    pass


def taken_apart(graph: Graph, update: Expr, pasts: Sequence[Ref], sliced: str | None) -> Sum | Failure:
    """The sum that an update is. Along `sliced` it holds one entry at a time, so that no sum may go over that."""
    builder = _Builder(graph, holding(update, pasts), pasts, sliced)
    for node in walk(update):
        if node in builder.holds and node not in builder.parts:
            try:
                builder.parts[node] = builder.split(node)
            except _NotLowRank as e:
                return str(e), expr_text(node)
    found = builder.of(update)
    if any(names for _, names in found.direct):
        return f"`{expr_text(update)}` takes one entry of a state for another", expr_text(update)
    return Sum({ref.name: d for (ref, _), d in found.direct.items()}, found.reads, found.rest)


class _Builder:
    def __init__(self, graph: Graph, holds: set[Expr], pasts: Sequence[Ref], sliced: str | None) -> None:
        self.graph, self.holds, self.sliced = graph, holds, sliced
        self.parts: dict[Expr, _Parts] = {p: _Parts({(p, ()): graph.lit(1.0)}, {}, None) for p in pasts}

    def of(self, node: Expr) -> _Parts:
        if node in self.holds or node in self.parts:
            return self.parts[node]
        return _Parts({}, {}, None if isinstance(node, Lit) and node.value == 0 else node)

    def split(self, node: Expr) -> _Parts:
        match node:
            case Apply():
                return self.operation(node)
            case Reduce(op="sum", over=over):
                return self.summed(self.of(node.arg), over, node)
            case Reduce(op="mean", over=over):
                size = self.graph.reduce("sum", over, self.graph.lit(1.0))
                return self.each(self.summed(self.of(node.arg), over, node), lambda x: self.over(x, size))
            case Rename(old=old, new=new):
                return self.renamed(self.of(node.arg), old, new, node)
            case _:
                raise _NotLowRank(f"`{expr_text(node)}` mixes entries of a state by more than a few sums")

    def operation(self, node: Apply) -> _Parts:
        graph, args, held = self.graph, node.args, [a in self.holds for a in node.args]
        match node.op:
            case "add" | "sub":
                join = algebra.add if node.op == "add" else algebra.sub
                return self.both(self.of(args[0]), self.of(args[1]), lambda x, y: join(graph, x, y))
            case "neg":
                return self.each(self.of(args[0]), lambda x: algebra.neg(graph, x))
            case "mul" if held[0] != held[1]:
                state, by = (args[0], args[1]) if held[0] else (args[1], args[0])
                return self.scaled(self.of(state), by, node)
            case "div" if not held[1]:
                return self.scaled(self.of(args[0]), graph.apply("div", graph.lit(1.0), args[1]), node)
            case "where" if not held[0]:
                return self.chosen(args[0], self.of(args[1]), self.of(args[2]), node)
            case "only" | "like" if not held[1]:
                return self.of(args[0])
            case "real" | "conj" if args[0].kind != "complex":
                return self.of(args[0])
            case _:
                raise _NotLowRank(f"`{expr_text(node)}` is not affine in a state")

    # --- one operation each ---

    def both(self, x: _Parts, y: _Parts, join: Callable[[Expr | None, Expr | None], Expr | None]) -> _Parts:
        direct = {k: join(x.direct.get(k), y.direct.get(k)) for k in {**x.direct, **y.direct}}
        reads = {k: join(x.reads.get(k), y.reads.get(k)) for k in {**x.reads, **y.reads}}
        return _Parts(
            {k: e for k, e in direct.items() if e is not None},
            {k: e for k, e in reads.items() if e is not None},
            join(x.rest, y.rest),
        )

    def each(self, x: _Parts, change: Callable[[Expr], Expr | None]) -> _Parts:
        return self.both(x, x, lambda e, _: None if e is None else change(e))

    def over(self, x: Expr, by: Expr) -> Expr:
        return self.graph.apply("div", x, by)

    def scaled(self, x: _Parts, by: Expr, node: Expr) -> _Parts:
        self.unbound(x, by.dims, node)
        less = self.graph.lit(-1.0)
        return self.each(x, lambda e: algebra.neg(self.graph, by) if e is less else algebra.mul(self.graph, by, e))

    def unbound(self, x: _Parts, dims: Iterable[str], node: Expr) -> None:
        if any(set(c.bound) & set(dims) for c in x.reads):
            raise _NotLowRank(f"`{expr_text(node)}` uses a dim that was summed, once more")

    def chosen(self, condition: Expr, x: _Parts, y: _Parts, node: Expr) -> _Parts:
        self.unbound(x, condition.dims, node)
        self.unbound(y, condition.dims, node)
        # What is not chosen must not matter, were it infinite: such a sum is one of zeros.
        yes = _Parts(x.direct, self.masked(condition, x.reads, y.reads, False), x.rest)
        no = _Parts(y.direct, self.masked(condition, y.reads, x.reads, True), y.rest)
        return self.both(yes, no, lambda a, b: algebra.choose(self.graph, condition, a, b))

    def masked(
        self, condition: Expr, own: dict[Contraction, Expr], others: dict[Contraction, Expr], negated: bool
    ) -> dict[Contraction, Expr]:
        out: dict[Contraction, Expr] = {}
        zero = self.graph.lit(0.0)
        for c, left in own.items():
            if c not in others and not set(condition.dims) & {*c.over, *c.bound} and self.apart(condition, c):
                pair = (zero, c.right) if negated else (c.right, zero)
                c = Contraction(c.past, self.graph.apply("where", condition, *pair), c.over, c.bound)
            out[c] = left
        return out

    def apart(self, condition: Expr, c: Contraction) -> bool:
        """Whether the condition's dims are the past's or the contraction's already."""
        return set(condition.dims) <= {*c.past.dims, *c.own}

    def renamed(self, x: _Parts, old: str, new: str, node: Expr) -> _Parts:
        graph = self.graph
        self.unbound(x, (old, new), node)

        def rename(e: Expr) -> Expr:
            return graph.rename(e, old, new) if old in e.dims else e

        direct: dict[tuple[Ref, Names], Expr] = {}
        for (past, names), d in x.direct.items():
            called = {d: dict(names).get(d, d) for d in past.dims}
            of = next((d for d, name in called.items() if name == old), None)
            if of is not None:
                called[of] = new
                names = tuple((d, name) for d, name in called.items() if d != name)
            direct[past, names] = rename(d)
        reads: dict[Contraction, Expr] = {}
        for c, left in x.reads.items():
            if old in c.free:
                raise _NotLowRank(f"`{expr_text(node)}` takes one entry of a state for another")
            if old in c.own:
                if new in c.past.dims:
                    raise _NotLowRank(f"`{expr_text(node)}` takes one entry of a state for another")
                c = Contraction(c.past, rename(c.right), c.over, c.bound)
            reads[c] = rename(left)
        return _Parts(direct, reads, None if x.rest is None else rename(x.rest))

    # --- sums ---

    def summed(self, x: _Parts, over: tuple[str, ...], node: Reduce) -> _Parts:
        if self.sliced in over:
            raise _NotLowRank(f"`{expr_text(node)}` sums over `{self.sliced}`, of which an update holds one entry")
        out = _Parts({}, {}, None if x.rest is None else self.sum(over, x.rest))
        for (past, names), d in x.direct.items():
            out = self.both(out, self.of_past(past, names, d, over, node), lambda a, b: algebra.add(self.graph, a, b))
        for c, left in x.reads.items():
            out = self.both(out, self.of_read(c, left, over, node), lambda a, b: algebra.add(self.graph, a, b))
        return out

    def sum(self, over: Iterable[str], e: Expr) -> Expr:
        """What lacks a summed dim counts once for each of its entries."""
        over = tuple(over)
        return self.graph.reduce("sum", over, e) if over else e

    def of_past(self, past: Ref, names: Names, d: Expr, over: tuple[str, ...], node: Expr) -> _Parts:
        called = {dim: dict(names).get(dim, dim) for dim in past.dims}
        back = {name: dim for dim, name in called.items()}
        mixed = [name for name in over if name in back]
        more = [name for name in over if name not in back]
        if not mixed:
            return _Parts({(past, names): self.sum(more, d)}, {}, None)
        if any(dim != name and name not in mixed for dim, name in called.items()):
            raise _NotLowRank(f"`{expr_text(node)}` takes one entry of a state for another")
        left, right = self.apart_by(d, set(mixed))
        for name in mixed:
            dim = back[name]
            if dim != name:
                if dim in right.dims:
                    raise _NotLowRank(f"`{expr_text(node)}` is a full matrix along `{dim}`")
                right = self.graph.rename(right, name, dim)
        found = Contraction(past, right, self.graph.sort(back[name] for name in mixed))
        return self.of_read(found, left, tuple(more), node) if more else _Parts({}, {found: left}, None)

    def of_read(self, c: Contraction, left: Expr, over: tuple[str, ...], node: Expr) -> _Parts:
        self.unbound(_Parts({}, {c: left}, None), over, node)
        graph = self.graph
        if more := [d for d in over if d in c.free]:
            # A sum of a sum of the same state: one over both.
            if c.bound:
                raise _NotLowRank(f"`{expr_text(node)}` sums what was summed over {', '.join(c.bound)}")
            left, factor = self.apart_by(left, {*more})
            if set(factor.dims) & set(c.over):
                raise _NotLowRank(f"`{expr_text(node)}` is a full matrix along `{c.over[0]}`")
            right = algebra.mul(graph, factor, c.right)
            assert right is not None
            c = Contraction(c.past, right, graph.sort((*c.over, *more)))
            over = tuple(d for d in over if d not in more)
        if joint := [d for d in over if d in c.own]:
            if not set(joint) & set(left.dims):
                c = Contraction(c.past, self.sum(joint, c.right), c.over, c.bound)
            else:
                c = Contraction(c.past, c.right, c.over, graph.sort((*c.bound, *joint)))
            over = tuple(d for d in over if d not in joint)
        return _Parts({}, {c: self.sum(over, left)}, None)

    def apart_by(self, e: Expr, dims: set[str]) -> tuple[Expr, Expr]:
        """The factors of a product that lack some dims, and those that do not."""
        flat: list[Expr] = []
        stack, negative = [e], False
        while stack:
            node = stack.pop()
            if isinstance(node, Apply) and node.op == "mul":
                stack.extend(reversed(node.args))
            elif isinstance(node, Apply) and node.op == "neg" and node.args[0].kind != "bool":
                negative = not negative
                stack.append(node.args[0])
            else:
                flat.append(node)
        sides: list[Expr] = []
        for with_dims in (False, True):
            made: Expr | None = self.graph.lit(1.0)
            for f in flat:
                if bool(set(f.dims) & dims) == with_dims:
                    made = algebra.mul(self.graph, made, f)
            sides.append(self.graph.lit(0.0) if made is None else made)
        left = algebra.neg(self.graph, sides[0]) if negative else sides[0]
        assert left is not None
        return left, sides[1]
