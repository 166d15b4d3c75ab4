"""Whether two expressions with sums over dims are equal: every sum written out at small sizes, at random numbers modulo
a prime. As good as a proof for polynomials, since two that differ do so there but for one chance in 2**50."""

from __future__ import annotations

import itertools
import operator
import random
from collections.abc import Callable, Iterable
from fractions import Fraction

from rnnc.ir import Apply, Expr, Graph, Lit, Reduce, Ref, Rename, walk

_PRIME = 2**61 - 1
_SIZES = (2, 3)
Entries = dict[tuple[int, ...], int]
"""The entries of a value, by their places along its dims."""


def agree(graph: Graph, pairs: Iterable[tuple[Expr, Expr]]) -> bool:
    """Whether the two of each pair are equal, whatever the values of what is no arithmetic are."""
    pairs = list(pairs)
    for size in _SIZES:
        expansion = _Expansion(graph, size)
        for left, right in pairs:
            x, y = expansion.of(left), expansion.of(right)
            dims = graph.union((left, right))
            places = itertools.product(range(size), repeat=len(dims))
            if any(_at(x, left.dims, dims, p) != _at(y, right.dims, dims, p) for p in places):
                return False
    return True


def _at(entries: Entries, own: tuple[str, ...], dims: tuple[str, ...], place: tuple[int, ...]) -> int:
    """The entry of a value with the dims `own` at a place along `dims`."""
    where = dict(zip(dims, place, strict=True))
    return entries[tuple(where[d] for d in own)]


class _Expansion:
    """Values of expressions with all dims of one size."""

    def __init__(self, graph: Graph, size: int) -> None:
        self.graph, self.size = graph, size
        self.draw = random.Random(size)
        self.done: dict[Expr, Entries] = {}

    def of(self, root: Expr) -> Entries:
        for node in walk(root):
            if node not in self.done:
                self.done[node] = self.entries(node)
        return self.done[root]

    def places(self, dims: tuple[str, ...]) -> Iterable[tuple[int, ...]]:
        return itertools.product(range(self.size), repeat=len(dims))

    def entries(self, node: Expr) -> Entries:
        known = self.known(node)
        if known is not None:
            return known
        # What is no arithmetic may be anything.
        top = 2 if node.kind == "bool" else _PRIME
        return {p: self.draw.randrange(top) for p in self.places(node.dims)}

    def known(self, node: Expr) -> Entries | None:
        match node:
            case Lit(value=value) if not isinstance(value, complex) and abs(value) != float("inf"):
                exact = Fraction(value)
                return {(): exact.numerator * pow(exact.denominator, -1, _PRIME) % _PRIME}
            case Ref(role="size"):
                return {(): self.size}
            case Apply(op="real" | "conj", args=(arg,)) if arg.kind == "complex":
                return None
            case Apply(op=op, args=args) if op in _OPS and (op != "div" or all(self.done[args[1]].values())):
                operands = [(self.done[a], a.dims) for a in args]
                return {
                    p: _OPS[op](*(_at(x, d, node.dims, p) for x, d in operands)) % _PRIME
                    for p in self.places(node.dims)
                }
            case Reduce(op="sum" | "mean", over=over, arg=arg):
                dims = tuple(dict.fromkeys((*node.dims, *over)))
                out = dict.fromkeys(self.places(node.dims), 0)
                for p in self.places(dims):
                    short = p[: len(node.dims)]
                    out[short] = (out[short] + _at(self.done[arg], arg.dims, dims, p)) % _PRIME
                count = pow(self.size ** len(over), -1, _PRIME) if node.op == "mean" else 1
                return {p: x * count % _PRIME for p, x in out.items()}
            case Rename(arg=arg, old=old, new=new):
                names = tuple(new if d == old else d for d in arg.dims)
                return {p: _at(self.done[arg], names, node.dims, p) for p in self.places(node.dims)}
            case _:
                return None


def _first(x: int, *_: int) -> int:
    return x


def _divided(x: int, y: int) -> int:
    return x * pow(y, -1, _PRIME)


def _where(condition: int, x: int, y: int) -> int:
    return x if condition else y


def _square(x: int) -> int:
    return x * x


def _negated(x: int) -> int:
    return -x


_OPS: dict[str, Callable[..., int]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "neg": _negated,
    "square": _square,
    "div": _divided,
    "where": _where,
    **dict.fromkeys(("only", "like", "real", "conj"), _first),
}
