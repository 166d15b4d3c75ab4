"""Eigenvalues of the Jacobian of a group of states.

Goals: an enclosure of the spectrum for elementwise transitions, for a decay times or plus a rank-one matrix along a
dim, for products of such factors (`over`), and, by norms, for states that need each other (lags in companion form).
Non-goals: learned matrices. What cannot be enclosed is said, with the term that makes it so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import networkx as nx

from rnnc.bound import functions
from rnnc.bound.interval import INF, ZERO, Interval, hull, point
from rnnc.bound.invariants import Environment
from rnnc.bound.jacobian import Block, Dense, Term, derivative
from rnnc.bound.model import Model
from rnnc.bound.poly import Mono, Poly, Rat, TooLarge, add, divide, freeze, mul, product
from rnnc.ir import Expr, Ref
from rnnc.ir import walk as walk_all
from rnnc.show import expr_text

Form = Literal["still", "elementwise", "rank one", "coupled", "unknown"]


@dataclass(frozen=True)
class Spectrum:
    """What is known of the eigenvalues of one group, at every step and reachable state.

    `real` encloses them where all are real, else None; `modulus` encloses their moduli. `linear`: the Jacobian holds no
    state of the group. `at_one` is an eigenvalue where all dims have size 1, `beyond` one at size 2 and more; `terms`
    are the factors that they are made of. `missing` says what keeps the enclosure from being better, empty where
    nothing does.
    """

    states: tuple[str, ...]
    form: Form
    linear: bool
    modulus: Interval
    real: Interval | None
    missing: str = ""
    at_one: Expr | None = None
    beyond: Expr | None = None
    terms: tuple[Term, ...] = ()

    @property
    def elementwise(self) -> bool:
        return self.form in ("elementwise", "still")


ANYWHERE = Interval(ZERO, INF, False, True)


def groups(model: Model) -> tuple[tuple[str, ...], ...]:
    """States that need each other, groups and members in the order of the file."""
    names = [s.name for s in model.cell.states]
    reads: nx.DiGraph[str] = nx.DiGraph()
    reads.add_nodes_from(names)
    for name in names:
        reads.add_edges_from((other, name) for other in reached(model, model.updates[name]))
    order = {n: i for i, n in enumerate(names)}
    found = [tuple(sorted(c, key=order.__getitem__)) for c in nx.strongly_connected_components(reads)]
    return tuple(sorted(found, key=lambda g: order[g[0]]))


def reached(model: Model, root: Expr) -> set[str]:
    """The states that an expanded expression uses, at any lag, through pasts of definitions too."""
    states: set[str] = set()
    done: set[str] = set()
    todo = [root]
    while todo:
        for node in walk_all(todo.pop()):
            if isinstance(node, Ref) and node.role == "state":
                states.add(node.name)
            elif isinstance(node, Ref) and node.role == "def" and node.name not in done:
                done.add(node.name)
                todo.append(model.definitions[node.name])
    return states


def spectrum(env: Environment, states: tuple[str, ...]) -> Spectrum:
    """The spectrum of one group."""
    return _Analysis(env, states).run()


class _Analysis:
    def __init__(self, env: Environment, states: tuple[str, ...]) -> None:
        self.env = env
        self.model = env.model
        self.graph = env.model.graph
        self.states = states

    # --- ranges of expanded expressions -----------------------------------------------------------------------------

    def modulus(self, node: Expr) -> Interval:
        return self.env.ranges(self.model.parts(node).mod)

    def real(self, node: Expr) -> Interval | None:
        """The range of a value that is always real."""
        parts = self.model.parts(node)
        if node.kind == "complex" and self.env.ranges(parts.im) != point(0):
            return None
        return self.env.ranges(parts.re)

    def norm(self, node: Expr, over: tuple[str, ...]) -> Interval:
        """The Euclidean norm along dims."""
        square = self.graph.apply("square", self.model.parts(node).mod)
        return functions.sqrt(self.env.ranges(self.graph.reduce("sum", over, square)))

    # --- the group --------------------------------------------------------------------------------------------------

    def run(self) -> Spectrum:
        for name in self.states:
            hidden = self._hidden(name)
            if hidden is not None:
                return self._unknown(hidden)
        try:
            blocks = self._blocks()
        except Dense as dense:
            text = expr_text(dense.node)
            return self._unknown(
                f"`{text}` mixes the entries of {self._names()} in a way whose eigenvalues are not known"
            )
        linear = not any(
            reached(self.model, e) & set(self.states)
            for block in blocks.values()
            for e in (block.diagonal, *(x for t in block.ranks for x in (t.out, t.inner) if x is not None))
        )
        if not blocks:
            return Spectrum(self.states, "still", True, point(0), point(0))
        lags = max(lag for _, _, lag in blocks)
        over = [n for n in self.states if self.model.cell.state(n).over is not None]
        if len(self.states) == 1 and lags == 1:
            block = next(iter(blocks.values()))
            return self._repeated(block, linear) if over else self._single(block, linear)
        if over:
            return self._unknown(
                f"an update `over` a dim in a group of several states ({self._names()}) is not analysed"
            )
        return self._coupled(blocks, linear)

    def _names(self) -> str:
        return ", ".join(f"`{n}`" for n in self.states)

    def _unknown(self, missing: str, linear: bool = False) -> Spectrum:
        return Spectrum(self.states, "unknown", linear, ANYWHERE, None, missing)

    def _hidden(self, name: str) -> str | None:
        """A way into the past that is no state's."""
        for node in walk_all(self.model.updates[name]):
            if not isinstance(node, Ref) or node.role != "def":
                continue
            if reached(self.model, self.model.definitions[node.name]) & set(self.states):
                return f"`{name}` reads the past of `{node.name}`, which holds a state too"
        return None

    def _blocks(self) -> dict[tuple[str, str, int], Block]:
        """The derivatives, by state, state that it reads, and lag."""
        found: dict[tuple[str, str, int], Block] = {}
        for name in self.states:
            update = self.model.updates[name]
            reads = {n for n in walk_all(update) if isinstance(n, Ref) and n.role == "state" and n.name in self.states}
            for ref in sorted(reads, key=lambda r: (self.states.index(r.name), r.lag)):
                if ref.lag == 0:
                    raise Dense(ref)
                block = derivative(self.graph, update, ref)
                if block is not None:
                    found[name, ref.name, ref.lag] = block
        return found

    # --- one state --------------------------------------------------------------------------------------------------

    def _single(self, block: Block, linear: bool) -> Spectrum:
        d = block.diagonal
        if len(block.ranks) == 0:
            real = self.real(d)
            modulus = self.modulus(d)
            terms = (Term(d),)
            return Spectrum(self.states, "elementwise", linear, modulus, real, self._loose(d, modulus), d, d, terms)
        if len(block.ranks) > 1:
            modulus = self._norm(block)
            return Spectrum(
                self.states,
                "unknown",
                linear,
                modulus,
                None,
                "the sum of several rank-one terms is bounded by their norms alone",
            )
        rank = block.ranks[0]
        assert rank.inner is not None
        product_ = self.graph.reduce("sum", rank.over, self.graph.apply("mul", rank.out, rank.inner))
        last = self.graph.apply("add", d, product_)
        terms = (Term(d), rank)
        if not set(d.dims) & set(rank.over):
            real, modulus = self._scalar(d, last)
            return Spectrum(self.states, "rank one", linear, modulus, real, self._loose(last, modulus), last, d, terms)
        real = self._symmetric(d, rank, product_)
        modulus = self._norm(block)
        if real is not None:
            modulus = modulus.meet(abs(real)) or modulus
        missing = self._loose(last, modulus)
        return Spectrum(self.states, "rank one", linear, modulus, real, missing, last, None, terms)

    def _scalar(self, d: Expr, last: Expr) -> tuple[Interval | None, Interval]:
        """A number times the identity plus `u v'`: the eigenvalues are it and it plus `v' u`."""
        one, two = self.real(d), self.real(last)
        real = None if one is None or two is None else one.hull(two)
        return real, self.modulus(d).hull(self.modulus(last))

    def _symmetric(self, d: Expr, rank: Term, along: Expr) -> Interval | None:
        """A diagonal plus `u v'` with entries `u_k v_k` of one sign, which is similar to a symmetric matrix.

        By Weyl the eigenvalues lie in the range of `d`, widened by `v' u`. Where `u` or `v` holds `d` as a factor the
        matrix is `d (1 + q v')`, and they lie in the range of `d` times that of 1 and `1 + v' q`.
        """
        assert rank.inner is not None
        graph = self.graph
        if any(e.kind == "complex" for e in (d, rank.out, rank.inner)):
            return None
        size = self.real(d)
        pairs = self.real(graph.apply("mul", rank.out, rank.inner))
        total = self.real(along)
        if size is None or pairs is None or total is None or not size.real or not total.real:
            return None
        found: Interval | None = None
        if pairs.lo >= 0 or pairs.hi <= 0:
            found = size + total.hull(point(0))
        if size.lo >= 0:
            for whole, rest in ((rank.out, rank.inner), (rank.inner, rank.out)):
                quotient = self._quotient(whole, d)
                if quotient is None:
                    continue
                each = self.real(graph.apply("mul", quotient, rest))
                inner = self.real(graph.reduce("sum", rank.over, graph.apply("mul", quotient, rest)))
                if each is not None and inner is not None and (each.lo >= 0 or each.hi <= 0):
                    better = size * (inner + point(1)).hull(point(1))
                    found = better if found is None else found.meet(better) or found
        return found

    def _rat(self, node: Expr) -> Rat | None:
        real = self.model.real(node)
        self.env.plain(real)
        return self.env.plain.forms.of(real)

    def _quotient(self, whole: Expr, part: Expr) -> Expr | None:
        """`whole / part` where `part` is a factor of it."""
        a, b = self._rat(whole), self._rat(part)
        if a is None or b is None or a.den != b.den or not b.num:
            return None
        quotient = divide(a.num, b.num)
        return None if quotient is None else self.env.plain.forms.expression(quotient)

    def _proportional(self, u: Expr, v: Expr, over: tuple[str, ...]) -> bool:
        """Whether `u` is `v` times something that does not vary along `over`."""
        a, b = self._rat(u), self._rat(v)
        if a is None or b is None:
            return False
        forms = self.env.plain.forms
        try:
            left = self._along(mul(a.num, product(b.den, forms.squares), forms.squares), over)
            right = self._along(mul(b.num, product(a.den, forms.squares), forms.squares), over)
            if not left or left.keys() != right.keys():
                return not left
            first = min(left)
            return all(freeze(mul(left[k], right[first])) == freeze(mul(left[first], right[k])) for k in left)
        except TooLarge:
            return False

    def _along(self, p: Poly, over: tuple[str, ...]) -> dict[Mono, Poly]:
        """A polynomial by its monomials that vary along dims, with coefficients that do not."""
        atoms = self.env.plain.forms.atoms
        found: dict[Mono, Poly] = {}
        for mono, c in p.items():
            inside = tuple((i, e) for i, e in mono if atoms[i].dims & set(over))
            outside = tuple((i, e) for i, e in mono if not atoms[i].dims & set(over))
            found[inside] = add(found.get(inside, {}), {outside: c})
        return found

    def _norm(self, block: Block) -> Interval:
        """A bound by norms: of the diagonal and of each rank-one term."""
        total = self.modulus(block.diagonal)
        for rank in block.ranks:
            assert rank.inner is not None
            total = total + self.norm(rank.out, rank.over) * self.norm(rank.inner, rank.over)
        return Interval(ZERO, total.hi, False, total.hi_open, total.undefined)

    def _loose(self, node: Expr, modulus: Interval) -> str:
        """Which leaves keep the modulus from being bounded."""
        if modulus.hi <= 1 and not modulus.undefined:
            return ""
        return f"nothing bounds {self.describe(node)}"

    def describe(self, node: Expr) -> str:
        return f"`{expr_text(node, self.model.names)}`"

    # --- several writes a token -------------------------------------------------------------------------------------

    def _repeated(self, block: Block, linear: bool) -> Spectrum:
        """A product of factors, one for each entry of `over`: eigenvalues of elementwise ones, norms of others."""
        d = block.diagonal
        if len(block.ranks) == 0:
            real = self.real(d)
            modulus = self.modulus(d)
            many = _powers(modulus)
            signed = (
                None
                if real is None
                else many
                if real.lo >= 0
                else Interval(-many.hi, many.hi, many.hi_open, many.hi_open)
            )
            return Spectrum(self.states, "elementwise", linear, many, signed, self._loose(d, many), d, None, (Term(d),))
        size = self._factor_norm(block)
        last: Expr | None = None
        if len(block.ranks) == 1:
            rank = block.ranks[0]
            assert rank.inner is not None
            last = self.graph.apply(
                "add", d, self.graph.reduce("sum", rank.over, self.graph.apply("mul", rank.out, rank.inner))
            )
        many = _powers(Interval(ZERO, size.hi, False, size.hi_open, size.undefined))
        missing = "" if many.hi <= 1 else "each factor is bounded by its norm alone, and a norm may exceed 1"
        return Spectrum(self.states, "rank one", linear, many, None, missing, last, None, (Term(d), *block.ranks))

    def _factor_norm(self, block: Block) -> Interval:
        """The operator norm of one factor."""
        found = self._norm(block)
        rank, *more = block.ranks
        if more:
            return found
        d = block.diagonal
        assert rank.inner is not None
        graph = self.graph
        along = graph.reduce("sum", rank.over, graph.apply("mul", rank.out, rank.inner))
        better: Interval | None = None
        if not set(d.dims) & set(rank.over) and self._proportional(rank.out, rank.inner, rank.over):
            better = self.modulus(d).hull(self.modulus(graph.apply("add", d, along)))
        else:
            for whole, rest in ((rank.out, rank.inner), (rank.inner, rank.out)):
                quotient = self._quotient(whole, d)
                if quotient is not None and self._proportional(quotient, rest, rank.over):
                    inner = graph.reduce("sum", rank.over, graph.apply("mul", quotient, rest))
                    one = self.modulus(graph.apply("add", graph.lit(1), inner)).hull(point(1))
                    better = self.modulus(d) * one
        return found if better is None else found.meet(better) or found

    # --- several states, or several lags ----------------------------------------------------------------------------

    def _coupled(self, blocks: dict[tuple[str, str, int], Block], linear: bool) -> Spectrum:
        """A bound by the largest sum of norms of a row, or of a column, of the companion form."""
        rows: dict[str, Interval] = {}
        columns: dict[tuple[str, int], Interval] = {}
        deepest = {n: max((lag for _, r, lag in blocks if r == n), default=1) for n in self.states}
        for (name, read, lag), block in blocks.items():
            size = self._norm(block)
            rows[name] = rows.get(name, point(0)) + size
            columns[read, lag] = columns.get((read, lag), point(0)) + size
        for name, depth in deepest.items():
            for lag in range(1, depth):
                columns[name, lag] = columns.get((name, lag), point(0)) + point(1)
        shifts = [point(1)] if any(depth > 1 for depth in deepest.values()) else []
        by_rows, by_columns = hull([*rows.values(), *shifts]), hull(columns.values())
        best = by_rows if (by_rows.hi, not by_rows.hi_open) <= (by_columns.hi, not by_columns.hi_open) else by_columns
        modulus = Interval(ZERO, best.hi, False, best.hi_open, by_rows.undefined)
        missing = "" if modulus.hi <= 1 else f"the joint Jacobian of {self._names()} is bounded by sums of norms alone"
        return Spectrum(self.states, "coupled", linear, modulus, None, missing)


def _powers(modulus: Interval) -> Interval:
    """Products of one or more moduli."""
    lo, lo_open = (modulus.lo, modulus.lo_open) if modulus.lo >= 1 else (ZERO, modulus.positive)
    hi, hi_open = (modulus.hi, modulus.hi_open) if modulus.hi <= 1 else (INF, True)
    return Interval(lo, hi, lo_open, hi_open, modulus.undefined)
