"""Eigenvalues of the Jacobian of a group of states.

Goals: an enclosure of the spectrum for elementwise transitions, for a decay times or plus a rank-one matrix along a
dim, for products of such factors (`over`), and for states that need each other (lags in companion form): from trace and
determinant where they are two values, else by norms and Gershgorin's discs.
Non-goals: learned matrices. What cannot be enclosed is said, with the term that makes it so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import networkx as nx

from rnnc.bound import functions
from rnnc.bound.chain import chain
from rnnc.bound.interval import INF, ONE, ZERO, Interval, hull, point
from rnnc.bound.invariants import Environment
from rnnc.bound.jacobian import Block, Dense, Term, derivative
from rnnc.bound.matrix import Matrix, Norms
from rnnc.bound.model import Model, Parts, pending
from rnnc.bound.pair import Pair
from rnnc.bound.parts import Arithmetic
from rnnc.bound.poly import Mono, Poly, Rat, TooLarge, add, divide, freeze, mul, product
from rnnc.derive import pull_back
from rnnc.ir import Conv, Expr, Grad, Linear, Normalize, Reduce, Ref, Solve
from rnnc.ir import walk as walk_all
from rnnc.show import expr_text

Place = tuple[str, str, int]
"""A block of the Jacobian: of which state, with respect to which one, at which lag."""
Form = Literal["still", "elementwise", "rank one", "coupled", "unknown"]


@dataclass(frozen=True)
class Spectrum:
    """What is known of the eigenvalues of one group, at every step and reachable state.

    `real` encloses them where all are real, else None; `modulus` encloses their moduli. `linear`: the Jacobian holds no
    state of the group. `pairs` are the traces and determinants of 2 x 2 matrices whose eigenvalues they are, where the
    group is made of such. `missing` says what keeps the enclosure from being better, empty where nothing does.

    `at_one` are eigenvalues where all dims have size 1, `beyond` some at size 2 and more; `exact` says that these are
    all there are at any size. `terms` are the factors that they are made of.

    `matrix` is the Jacobian of one entry of each state, where these do not mix; else `small` is the one where all dims
    have size 1, if it has three or more rows. `shrinking` says that one norm of `matrix`, the same at all steps, is at
    most 1. `method` says what the enclosure of states that need each other comes from. `reflects`: one factor can come
    near the reflection that swaps two entries, each of the `factors` whose product a token's transition is.
    """

    states: tuple[str, ...]
    form: Form
    linear: bool
    modulus: Interval
    real: Interval | None
    missing: str = ""
    pairs: tuple[Pair, ...] = ()
    at_one: tuple[Parts, ...] = ()
    beyond: tuple[Parts, ...] = ()
    exact: bool = False
    terms: tuple[Term, ...] = ()
    matrix: Matrix | None = None
    small: Matrix | None = None
    shrinking: bool = False
    method: str = ""
    reflects: bool = False
    factors: int = 1

    @property
    def bounded(self) -> bool:
        """Whether it was proved that no modulus exceeds some number."""
        return self.modulus.hi < INF and not self.modulus.undefined

    @property
    def elementwise(self) -> bool:
        return self.form in ("elementwise", "still")


ANYWHERE = Interval(ZERO, INF, False, True)
CLOSED_FORM = "trace and determinant of its 2 x 2 matrix"
_BLOCKS = "the largest sum of norms in a row or column of its blocks"
LARGEST = 16
"""How many values from token to token a group may have for its matrix to be looked at as a whole."""


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
        self.numbers = Arithmetic(env.model)
        self.states = states
        self.updates = self._substituted()

    def _substituted(self) -> dict[str, Expr]:
        """The updates, with states of the group at lag 0 that the model leaves in (`held`) put in place too.

        Where none of them is updated over a dim, the past of another state means the same in all of them.
        """
        updates = {n: self.model.updates[n] for n in self.states}
        if any(self.model.cell.state(n).over is not None for n in self.states):
            return updates

        def below(node: Expr) -> tuple[Expr, ...]:
            match node:
                case Ref(role="state", name=name, lag=0) if name in updates:
                    return (updates[name],)
                case _:
                    return node.children

        done: dict[Expr, Expr] = {}
        for root in updates.values():
            for node in pending(root, done.__contains__, below):
                new = tuple(done[c] for c in below(node))
                done[node] = (new[0] if isinstance(node, Ref) else self.graph.rebuild(node, new)) if new else node
        return {n: done[e] for n, e in updates.items()}

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
        found = self._enclosure()
        if found.at_one or found.matrix is not None:
            return found
        at_one, small = self._at_size_one()
        return replace(found, at_one=at_one, small=small)

    def _enclosure(self) -> Spectrum:
        for name in self.states:
            hidden = self._hidden(name)
            if hidden is not None:
                return self._unknown(hidden)
        try:
            blocks = self._blocks()
        except Dense as dense:
            text = expr_text(dense.node, self.model.names)
            return self._unknown(f"`{text}` mixes the entries of {self._names()}, and its eigenvalues are not known")
        if not blocks:
            return Spectrum(self.states, "still", True, point(0), point(0))
        linear = not any(
            reached(self.model, e) & set(self.states)
            for block in blocks.values()
            for e in (block.diagonal, *(x for t in block.ranks for x in (t.out, t.inner) if x is not None))
        )
        cell = self.model.cell
        over = [n for n in self.states if cell.state(n).over is not None]
        if len(self.states) == 1 and all(lag == 1 for _, _, lag in blocks):
            block = next(iter(blocks.values()))
            return self._repeated(block, linear) if over else self._single(block, linear)
        if over:
            return self._unknown(f"{self._names()} need each other, and one has several updates a token")
        if len({frozenset(cell.state(n).type.dims) for n in self.states}) > 1:
            return self._unknown(f"{self._names()} need each other, and have different dims")
        return self._coupled(blocks, linear)

    def _names(self) -> str:
        return ", ".join(f"`{n}`" for n in self.states)

    def _unknown(self, missing: str, linear: bool = False) -> Spectrum:
        return Spectrum(self.states, "unknown", linear, ANYWHERE, None, missing)

    def _hidden(self, name: str) -> str | None:
        """A way into the past that is no state's."""
        for node in walk_all(self.updates[name]):
            if not isinstance(node, Ref) or node.role != "def":
                continue
            if reached(self.model, self.model.definitions[node.name]) & set(self.states):
                return f"`{name}` reads the past of `{node.name}`, which holds a state too"
        return None

    def _reads(self, name: str) -> list[Ref]:
        """The references of an update to states of the group."""
        nodes = (n for n in walk_all(self.updates[name]) if isinstance(n, Ref) and n.role == "state")
        inside = {n for n in nodes if n.name in self.states}
        return sorted(inside, key=lambda r: (self.states.index(r.name), r.lag))

    def _blocks(self) -> dict[Place, Block]:
        """The derivatives, by state, state that it reads, and lag."""
        found: dict[Place, Block] = {}
        for name in self.states:
            for ref in self._reads(name):
                if ref.lag == 0:
                    raise Dense(ref)
                block = derivative(self.graph, self.updates[name], ref)
                if block is not None:
                    found[name, ref.name, ref.lag] = block
        return found

    def _at_size_one(self) -> tuple[tuple[Parts, ...], Matrix | None]:
        """The eigenvalues where every dim has size 1, by gradients; of three or more only their matrix."""
        found: dict[Place, Parts] = {}
        for name in self.states:
            update = self.updates[name]
            held = any(isinstance(n, Conv | Grad) for n in walk_all(update))
            reads = self._reads(name)
            if held or self._hidden(name) or update.kind == "complex" or any(r.lag == 0 for r in reads):
                return (), None
            slopes = pull_back(self.graph, {update: self.graph.lit(1.0)}, reads)
            if any(e.kind == "complex" for e in slopes.values()):
                return (), None
            found.update({(name, r.name, r.lag): self.model.parts(slopes[r]) for r in reads if r in slopes})
        matrix = self._companion(found)
        if matrix is None or matrix.size > 2:
            return (), matrix
        if matrix.size == 1:
            return (matrix.entry(0, 0, self.numbers.zero),), None
        return self._pair(matrix).roots(self.graph), None

    # --- one state --------------------------------------------------------------------------------------------------

    def _single(self, block: Block, linear: bool) -> Spectrum:
        d = block.diagonal
        diagonal = self.model.parts(d)
        if len(block.ranks) == 0:
            modulus = self.modulus(d)
            known = Spectrum(self.states, "elementwise", linear, modulus, self.real(d), self._loose(d, modulus))
            known = replace(known, shrinking=_keeps_within(modulus))
            return replace(known, at_one=(diagonal,), beyond=(diagonal,), exact=True, terms=(Term(d),))
        rank, *more = block.ranks
        last = self._along(block)
        values = Spectrum(self.states, "rank one", linear, ANYWHERE, None, at_one=(self.model.parts(last),))
        values = replace(values, terms=(Term(d), *block.ranks), reflects=self._reflects(block))
        values = replace(values, shrinking=_keeps_within(self._factor_norm(block)))
        scalar = not set(d.dims) & {k for t in block.ranks for k in t.over}
        if scalar and (not more or self._aligned([block])):
            one, two = self.real(d), self.real(last)
            real = None if one is None or two is None else one.hull(two)
            modulus = self.modulus(d).hull(self.modulus(last))
            missing = self._loose(last, modulus)
            return replace(values, modulus=modulus, real=real, missing=missing, beyond=(diagonal,), exact=True)
        if more:
            values = self._product(values) if linear else values
        factors = values.modulus if more else self._factor_norm(block)
        modulus = self._norm(block)
        modulus = modulus.meet(Interval(ZERO, factors.hi, False, factors.hi_open, factors.undefined)) or modulus
        if more:
            real = self._symmetric_sum(block)
            if real is not None:
                return replace(values, form="coupled", modulus=modulus.meet(abs(real)) or modulus, real=real)
            missing = "" if modulus.hi <= 1 else "a sum of several rank-one terms is bounded by their norms alone"
            return replace(values, form="coupled", modulus=modulus, missing=missing)
        real = self._symmetric(d, rank)
        if real is not None:
            modulus = modulus.meet(abs(real)) or modulus
        return replace(values, modulus=modulus, real=real, missing=self._loose(last, modulus))

    def _along(self, block: Block) -> Expr:
        """The eigenvalue of a number times the identity plus `u v'` that belongs to `u`: the number plus `v' u`."""
        total = block.diagonal
        for rank in block.ranks:
            assert rank.inner is not None
            inner = self.graph.reduce("sum", rank.over, self.graph.apply("mul", rank.out, rank.inner))
            total = self.graph.apply("add", total, inner)
        return total

    def _aligned(self, blocks: Sequence[Block]) -> bool:
        """Whether all rank-one terms are multiples of one `v v'`, and all diagonals the same along it."""
        ranks = [t for b in blocks for t in b.ranks]
        first = ranks[0]
        assert first.inner is not None
        return all(
            t.over == first.over
            and t.inner is not None
            and self._proportional(t.inner, first.inner, t.over)
            and self._proportional(t.out, first.inner, t.over)
            for t in ranks
        ) and all(not set(b.diagonal.dims) & set(first.over) for b in blocks)

    def _symmetric(self, d: Expr, rank: Term) -> Interval | None:
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
        total = self.real(self._along(Block(graph.lit(0), (rank,))))
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

    def _symmetric_sum(self, block: Block) -> Interval | None:
        """A diagonal plus several `c v v'`: by Weyl its eigenvalues lie in the range of the diagonal, widened by the
        eigenvalue of each."""
        graph, found = self.graph, self.real(block.diagonal)
        for rank in block.ranks:
            assert rank.inner is not None
            if found is None or rank.out.kind == "complex" or rank.inner.kind == "complex":
                return None
            total = self.real(self._along(Block(graph.lit(0), (rank,))))
            if total is None or not total.real or not self._proportional(rank.out, rank.inner, rank.over):
                return None
            found = found + total.hull(point(0))
        return found

    def _product(self, known: Spectrum) -> Spectrum:
        """With the modulus that the norms of a product of maps allow, if the update is one."""
        (name,) = self.states
        (ref,) = self._reads(name)
        maps = chain(self.graph, self.updates[name], ref)
        blocks = [derivative(self.graph, m, ref) for m in maps] if len(maps) > 1 else []
        total, ranked = point(1), [b for b in blocks if b is not None and b.ranks]
        for block in blocks:
            if block is None:
                return known
            total = total * (self._factor_norm(block) if block.ranks else self.modulus(block.diagonal))
        if not blocks or total.undefined:
            return known
        known = replace(known, shrinking=known.shrinking or _keeps_within(total))
        if len(ranked) > 1 and all(map(self._reflects, ranked)) and _apart(ranked):
            known = replace(known, reflects=True, factors=len(ranked))
        return replace(known, modulus=Interval(ZERO, total.hi, False, total.hi_open))

    def _rat(self, node: Expr) -> Rat | None:
        if node.kind == "complex":
            return None
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
            left = self._grouped(mul(a.num, product(b.den, forms.squares), forms.squares), over)
            right = self._grouped(mul(b.num, product(a.den, forms.squares), forms.squares), over)
            if not left or left.keys() != right.keys():
                return not left
            first = min(left)
            return all(freeze(mul(left[k], right[first])) == freeze(mul(left[first], right[k])) for k in left)
        except TooLarge:
            return False

    def _grouped(self, p: Poly, over: tuple[str, ...]) -> dict[Mono, Poly]:
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
        at_one = (self.model.parts(self._along(block)),)
        if len(block.ranks) == 0:
            real = self.real(d)
            many = _powers(self.modulus(d))
            if real is not None:
                real = many if real.lo >= 0 else many.hull(-many)
            known = Spectrum(self.states, "elementwise", linear, many, real, self._loose(d, many))
            return replace(known, at_one=at_one, terms=(Term(d),), shrinking=_keeps_within(many))
        size = self._factor_norm(block)
        many = _powers(Interval(ZERO, size.hi, False, size.hi_open, size.undefined))
        missing = "" if many.hi <= 1 else "each factor is bounded by its norm alone, and a norm may exceed 1"
        known = Spectrum(self.states, "rank one", linear, many, None, missing)
        known = replace(known, shrinking=_keeps_within(many), reflects=self._reflects(block))
        return replace(known, at_one=at_one, terms=(Term(d), *block.ranks))

    def _reflects(self, block: Block) -> bool:
        """Whether a factor plus `u v'`, `u` along `v`, can be 1 across `v` and -1 along it, as near as one likes.

        A factor for each entry, that nothing ties to those of the others, can be 1 in all of them.
        """
        rank, *more = block.ranks
        if more or rank.inner is None:
            return False
        across, along = self.real(block.diagonal), self.real(self._along(block))
        if across is None or along is None or across.hi < 1 or along.lo > -1:
            return False
        if not set(block.diagonal.dims) & set(rank.over):
            return self._proportional(rank.out, rank.inner, rank.over)
        if any(isinstance(n, Normalize | Reduce | Solve | Linear) for n in walk_all(block.diagonal)):
            return False
        sides = ((rank.out, rank.inner), (rank.inner, rank.out))
        quotients = [(self._quotient(whole, block.diagonal), rest) for whole, rest in sides]
        return any(q is not None and self._proportional(q, rest, rank.over) for q, rest in quotients)

    def _factor_norm(self, block: Block) -> Interval:
        """The operator norm of one factor."""
        found = self._norm(block)
        rank, *more = block.ranks
        if more:
            return found
        d, graph = block.diagonal, self.graph
        assert rank.inner is not None
        better: Interval | None = None
        if not set(d.dims) & set(rank.over) and self._proportional(rank.out, rank.inner, rank.over):
            better = self.modulus(d).hull(self.modulus(self._along(block)))
        else:
            for whole, rest in ((rank.out, rank.inner), (rank.inner, rank.out)):
                quotient = self._quotient(whole, d)
                if quotient is not None and self._proportional(quotient, rest, rank.over):
                    inner = graph.reduce("sum", rank.over, graph.apply("mul", quotient, rest))
                    one = self.modulus(graph.apply("add", graph.lit(1), inner)).hull(point(1))
                    better = self.modulus(d) * one
        return found if better is None else found.meet(better) or found

    # --- several states, or several lags ----------------------------------------------------------------------------

    def _coupled(self, blocks: Mapping[Place, Block], linear: bool) -> Spectrum:
        """Two values: their 2 x 2 matrices. More: norms of their matrix, or of the blocks of the companion form."""
        known = Spectrum(self.states, "coupled", linear, ANYWHERE, None, pairs=self._pairs(blocks))
        terms = (t for b in blocks.values() for t in (Term(b.diagonal), *b.ranks))
        known = replace(known, terms=tuple(dict.fromkeys(terms)))
        if not any(b.ranks for b in blocks.values()):
            diagonals = {at: self.model.parts(b.diagonal) for at, b in blocks.items()}
            known = replace(known, matrix=self._companion(diagonals))
        known = self._bounded(known, blocks)
        if known.modulus.hi <= 1 and not known.modulus.undefined:
            return known
        return replace(known, missing=f"the joint Jacobian of {self._names()} is not known to keep within 1")

    def _bounded(self, known: Spectrum, blocks: Mapping[Place, Block]) -> Spectrum:
        """With what is known of where the eigenvalues lie."""
        if known.matrix is None:
            known = replace(known, modulus=self._summed(blocks), method=_BLOCKS)
        else:
            norms = Norms(self.env, known.matrix)
            found = norms.enclosure()
            known = replace(known, modulus=found.modulus, real=found.real, method=found.method)
            known = replace(known, shrinking=norms.shrinking())
        if not known.pairs:
            return known
        if all(p.real for p in known.pairs):
            first, last = known.pairs[0], known.pairs[-1]
            known = replace(known, at_one=last.roots(self.graph), beyond=first.roots(self.graph))
        moduli, reals = zip(*(p.enclosure(self.env) for p in known.pairs), strict=True)
        closed = hull(moduli)
        if all(p.within_disc(self.env, ONE) for p in known.pairs):
            closed = closed.meet(Interval(ZERO, ONE)) or Interval(ZERO, ONE)
        better = closed.meet(known.modulus) or closed
        if better != known.modulus:
            known = replace(known, modulus=better, method=CLOSED_FORM)
        real = [r for r in reals if r is not None]
        if len(real) == len(reals):
            known = replace(known, real=hull(real), method=CLOSED_FORM)
        return known

    def _companion(self, entries: Mapping[Place, Parts]) -> Matrix | None:
        """A Jacobian in companion form, over the states and their pasts."""
        deepest = {n: max((lag for _, r, lag in entries if r == n), default=1) for n in self.states}
        components = tuple((n, lag) for n in self.states for lag in range(1, deepest[n] + 1))
        index = {c: i for i, c in enumerate(components)}
        found = {(index[n, 1], index[r, lag]): e for (n, r, lag), e in entries.items()}
        shift = self.numbers.real(self.graph.lit(1))
        found.update({(i, index[n, lag - 1]): shift for (n, lag), i in index.items() if lag > 1})
        return Matrix(components, found) if len(components) <= LARGEST else None

    def _pair(self, matrix: Matrix) -> Pair:
        return Pair.of(self.model, [matrix.entry(i, j, self.numbers.zero) for i in range(2) for j in range(2)])

    def _pairs(self, blocks: Mapping[Place, Block]) -> tuple[Pair, ...]:
        """The 2 x 2 matrices that the Jacobian comes apart into: across, and along a common `v`."""
        ranked = any(b.ranks for b in blocks.values())
        if ranked and not self._aligned(list(blocks.values())):
            return ()
        entries: list[Callable[[Block], Expr]] = [lambda block: block.diagonal, *([self._along] if ranked else [])]
        found = [self._companion({at: self.model.parts(e(b)) for at, b in blocks.items()}) for e in entries]
        return tuple(self._pair(m) for m in found if m is not None and m.size == 2)

    def _summed(self, blocks: Mapping[Place, Block]) -> Interval:
        """The largest sum of norms in a row, or in a column, whichever is smaller."""
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
        return Interval(ZERO, best.hi, False, best.hi_open, by_rows.undefined)


def _apart(blocks: Sequence[Block]) -> bool:
    """Whether the vectors of each can be chosen whatever those of the others are: one after another has an input or a
    learned map that those left do not read."""
    left = [_sources(*(t.inner for t in b.ranks if t.inner is not None)) for b in blocks]
    while left:
        free = next((i for i, own in enumerate(left) if own.difference(*left[:i], *left[i + 1 :])), None)
        if free is None:
            return False
        del left[free]
    return True


def _sources(*roots: Expr) -> set[str]:
    nodes = list(walk_all(*roots))
    refs = {f"{n.role} {n.name}" for n in nodes if isinstance(n, Ref) and n.role in ("input", "param")}
    return refs | {f"param {n.weight}" for n in nodes if isinstance(n, Linear | Conv)}


def _keeps_within(norm: Interval) -> bool:
    return norm.hi <= 1 and not norm.undefined


def _powers(modulus: Interval) -> Interval:
    """Products of one or more moduli."""
    lo, lo_open = (modulus.lo, modulus.lo_open) if modulus.lo >= 1 else (ZERO, modulus.positive)
    hi, hi_open = (modulus.hi, modulus.hi_open) if modulus.hi <= 1 else (INF, True)
    return Interval(lo, hi, lo_open, hi_open, modulus.undefined)
