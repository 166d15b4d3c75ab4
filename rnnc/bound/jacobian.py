"""How an update depends on a past state: elementwise factors and rank-one terms, in index notation.

Goals: the derivative of an expanded update with respect to a state at a lag, as a sum of `out * S` and
`out * sum[over](inner * S)`, whatever way it is written (an error term defined apart, a `where` around it, another
state's value at `t` in between). Nonlinear elementwise steps give factors that contain the state.
Non-goals: what mixes entries by a learned matrix, a norm of the state and the like: `Dense` says which node it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rnnc.derive import Derivation, depends
from rnnc.ir import Apply, Expr, Graph, Lit, Reduce, Ref, Rename
from rnnc.ir import walk as walk_all

_LINEAR_COMPLEX = frozenset({"add", "sub", "neg", "mul", "div", "where", "like", "only", "stop_gradient"})


class Dense(Exception):
    """The update mixes the entries of the state in another way."""

    def __init__(self, node: Expr) -> None:
        super().__init__()
        self.node = node


@dataclass(frozen=True, slots=True)
class Term:
    """`out * S`, or `out * sum[over](inner * S)`. `renamed` are dims of S under other names, as (old, new)."""

    out: Expr
    inner: Expr | None = None
    over: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """A derivative as `diagonal * S` and rank-one terms along the same or other dims."""

    diagonal: Expr
    ranks: tuple[Term, ...]


def derivative(graph: Graph, root: Expr, state: Ref) -> Block | None:
    """The derivative of an expanded expression; None where it does not depend on the state."""
    live = depends([root], [state])
    if root not in live:
        return None
    found: dict[Expr, list[Term]] = {state: [Term(graph.lit(1))]}
    maker = _Maker(graph, state, live)
    for node in walk_all(root):
        if node in live and node is not state:
            found[node] = maker.terms(node, found)
    return maker.collect(found[root], root)


class _Maker:
    def __init__(self, graph: Graph, state: Ref, live: set[Expr]) -> None:
        self.graph = graph
        self.state = state
        self.live = live

    def terms(self, node: Expr, found: dict[Expr, list[Term]]) -> list[Term]:
        match node:
            case Apply():
                return self._apply(node, found)
            case Reduce(op="sum", arg=arg):
                return [self._summed(t, node) for t in found[arg]]
            case Reduce(op="mean", arg=arg, over=over):
                terms = [self._summed(t, node) for t in found[arg]]
                for d in over:
                    size = self.graph.ref("size", d)
                    terms = [replace(t, out=self.graph.apply("div", t.out, size)) for t in terms]
                return terms
            case Rename(arg=arg, old=old, new=new):
                return [self._renamed(t, old, new, node) for t in found[arg]]
            case _:
                raise Dense(node)

    def _apply(self, node: Apply, found: dict[Expr, list[Term]]) -> list[Term]:
        if any(a.kind == "complex" and a in self.live for a in node.args) and node.op not in _LINEAR_COMPLEX:
            raise Dense(node)
        terms: list[Term] = []
        for arg, factor in zip(node.args, self._factors(node), strict=True):
            if arg in self.live and factor is not None:
                terms.extend(self._times(t, factor) for t in found[arg])
        return terms

    def _factors(self, node: Apply) -> Sequence[Expr | None]:
        """The derivatives with respect to the operands."""
        graph = self.graph
        one = graph.lit(1)
        match node.op, node.args:
            case "add", _:
                return one, one
            case "sub", _:
                return one, graph.lit(-1)
            case "neg", _:
                return (graph.lit(-1),)
            case "mul", (a, b):
                return b, a
            case "div", (a, b) if b not in self.live:
                return graph.apply("div", one, b), None
            case "where", (c, _, _):
                zero = graph.lit(0)
                return None, graph.apply("where", c, one, zero), graph.apply("where", c, zero, one)
            case (("like" | "only"), _):
                return one, None
            case "stop_gradient", _:
                return (one,)
            case _:
                rules = Derivation(graph).operands(node, graph.lit(1.0))
                # They follow PyTorch's convention for complex numbers, the conjugate.
                return [r if r is None or r.kind != "complex" else graph.apply("conj", r) for r in map(_plain, rules)]

    def _times(self, term: Term, factor: Expr) -> Term:
        if isinstance(factor, Lit) and factor.value == 1:
            return term
        if isinstance(factor, Lit) and factor.value == -1 and not isinstance(term.out, Lit):
            return replace(term, out=self.graph.apply("neg", term.out))
        return replace(term, out=self._product(term.out, factor))

    def _product(self, a: Expr, b: Expr) -> Expr:
        """A product, taken into a `where` that is else 0: its branch is understood under its condition."""
        for x, y in ((a, b), (b, a)):
            if isinstance(x, Lit) and x.value == 1:
                return y
            if isinstance(x, Apply) and x.op == "where" and any(_is_zero(e) for e in x.args[1:]):
                condition, *branches = x.args
                return self.graph.apply(
                    "where", condition, *(e if _is_zero(e) else self._product(e, y) for e in branches)
                )
        return self.graph.apply("mul", a, b)

    def _summed(self, term: Term, node: Reduce) -> Term:
        """A term under a sum over dims."""
        names = [new for _, new in term.renamed]
        own = [dict(term.renamed).get(d, d) for d in self.state.dims]
        free = [d for d in own if d not in term.over]
        along = tuple(d for d in node.over if d in free)
        outer = [d for d in node.over if d not in free]
        if outer and term.inner is not None and (set(term.inner.dims) - set(term.over)) & set(outer):
            raise Dense(node)
        if outer:
            term = replace(term, out=self.graph.reduce("sum", outer, term.out))
        if not along:
            return term
        if term.inner is None:
            inner, out, over = term.out, self.graph.lit(1), along
        elif not set(term.out.dims) & set(term.over):
            # One sum within another is a sum over both.
            inner, out, over = self.graph.apply("mul", term.out, term.inner), self.graph.lit(1), (*term.over, *along)
        else:
            raise Dense(node)
        back = {new: old for old, new in term.renamed if new in along}
        for new, old in back.items():
            if old in inner.dims or new not in names:
                raise Dense(node)
            inner = renamed(self.graph, inner, new, old)
        left = tuple((o, n) for o, n in term.renamed if n not in along)
        return Term(out, inner, tuple(back.get(d, d) for d in over), left)

    def _renamed(self, term: Term, old: str, new: str, node: Expr) -> Term:
        own = [dict(term.renamed).get(d, d) for d in self.state.dims]
        out = renamed(self.graph, term.out, old, new)
        if old not in own or old in term.over:
            return replace(term, out=out)
        if term.inner is not None or any(n == old for _, n in term.renamed):
            raise Dense(node)
        return replace(term, out=out, renamed=(*term.renamed, (old, new)))

    def collect(self, terms: list[Term], root: Expr) -> Block:
        graph = self.graph
        diagonal: Expr | None = None
        ranks: list[Term] = []
        for term in terms:
            if term.renamed:
                raise Dense(root)
            if term.inner is None:
                diagonal = term.out if diagonal is None else graph.apply("add", diagonal, term.out)
                continue
            same = next((i for i, r in enumerate(ranks) if r.inner is term.inner and r.over == term.over), None)
            if same is None:
                ranks.append(term)
            else:
                ranks[same] = replace(term, out=graph.apply("add", ranks[same].out, term.out))
        return Block(graph.lit(0) if diagonal is None else diagonal, tuple(ranks))


def _is_zero(node: Expr) -> bool:
    return isinstance(node, Lit) and node.value == 0


def _plain(node: Expr | None) -> Expr | None:
    """Without a factor 1 in front."""
    if isinstance(node, Apply) and node.op == "mul" and isinstance(node.args[0], Lit) and node.args[0].value == 1:
        return node.args[1]
    return node


def renamed(graph: Graph, node: Expr, old: str, new: str) -> Expr:
    """`node[old -> new]`, where two renamings in a row may be none."""
    if old not in node.dims:
        return node
    if isinstance(node, Rename) and node.old == new and node.new == old:
        return node.arg
    if isinstance(node, Apply):
        return graph.rebuild(node, tuple(renamed(graph, a, old, new) for a in node.args))
    return graph.rename(node, old, new)
