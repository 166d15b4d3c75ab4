"""A cell run on small numbers, in plain Python: for witnesses.

Goals: the value of any real expression of the model after a few tokens, all dims of size 1 (or another small one),
from an assignment of numbers to inputs, params and draws. The same walk runs on floats, to search, and on intervals, to
prove what was found in exact arithmetic.
Non-goals: speed, batches, large sizes; `solve` beyond size 1, `over` beyond size 1 and complex operations that have no
real form: `Unsupported`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product as combinations
from typing import Generic, TypeVar

from rnnc.bound import functions
from rnnc.bound.interval import INF, Interval, point
from rnnc.bound.invariants import part_of
from rnnc.bound.model import Model
from rnnc.bound.ranges import is_leaf
from rnnc.ir import Apply, Conv, Draw, Expr, Linear, Lit, Merge, Normalize, Reduce, Ref, Rename, Solve, Split

V = TypeVar("V")


class Unsupported(Exception):
    """The expression cannot be evaluated here."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One number to be chosen: an entry of an input at a token, of a param, a const, or a draw."""

    kind: str
    name: str
    part: str
    index: tuple[int, ...]
    token: int = 0


@dataclass(frozen=True)
class Algebra(Generic[V]):
    """Numbers and what is done with them."""

    number: Callable[[int | float], V]
    apply: Callable[..., V]


@dataclass(frozen=True, slots=True)
class Array(Generic[V]):
    """Entries in row-major order of `dims`, which are in the graph's order (a weight's are as declared)."""

    dims: tuple[str, ...]
    data: tuple[V, ...]


class Runner(Generic[V]):
    """Runs one cell for some tokens; `slot` chooses the numbers."""

    def __init__(self, model: Model, roots: Sequence[Expr], size: int, algebra: Algebra[V]) -> None:
        self.model = model
        self.graph = model.graph
        self.roots = tuple(roots)
        self.size = size
        self.algebra = algebra
        self.order = self._order()
        if size > 1 and any(model.cell.state(n).over is not None for n in self._states):
            raise Unsupported

    # --- what is needed ---------------------------------------------------------------------------------------------

    def _order(self) -> list[Expr]:
        """Every node that the roots need at some token, operands first."""
        self._states: dict[str, None] = {}
        self._pasts: dict[Expr, int] = {}
        self._updates: dict[tuple[str, str], Expr] = {}
        order: list[Expr] = []
        seen: set[Expr] = set()
        todo = list(self.roots)
        while todo:
            stack: list[tuple[Expr, bool]] = [(todo.pop(), False)]
            while stack:
                node, ready = stack.pop()
                if ready:
                    order.append(node)
                    continue
                if node in seen:
                    continue
                seen.add(node)
                stack.append((node, True))
                for below in self._below(node, todo):
                    if below not in seen:
                        stack.append((below, False))
        return order

    def _below(self, node: Expr, todo: list[Expr]) -> tuple[Expr, ...]:
        """Operands at the same token; what is needed of earlier ones goes to `todo`."""
        ref, part = _named(node)
        if ref is None:
            if is_leaf(node) and not isinstance(node, Draw):
                raise Unsupported
            if isinstance(node, Conv):
                self._pasts[node.arg] = max(self._pasts.get(node.arg, 0), node.width - 1)
            return () if isinstance(node, Draw) else node.children
        if ref.role == "state":
            update = self._update(ref.name, part)
            if ref.lag == 0:
                return (update,)
            todo.append(update)
        elif ref.role == "def":
            value = part_of(self.model, self.model.definitions[ref.name], part)
            self._pasts[value] = max(self._pasts.get(value, 0), ref.lag)
            todo.append(value)
        elif ref.role == "buffer":
            return (self._buffer(ref, part),)
        return ()

    def _buffer(self, ref: Ref, part: str) -> Expr:
        return part_of(self.model, self.model.expand(self.model.cell.param(ref.name).init), part)

    def _update(self, name: str, part: str) -> Expr:
        self._states.setdefault(name)
        key = (name, part)
        if key not in self._updates:
            self._updates[key] = part_of(self.model, self.model.updates[name], part)
        return self._updates[key]

    # --- running ----------------------------------------------------------------------------------------------------

    def run(self, tokens: int, slot: Callable[[Slot], V]) -> list[list[Array[V]]]:
        """The roots' values at every token."""
        self._slot = slot
        self._history: list[dict[Expr, Array[V]]] = []
        results: list[list[Array[V]]] = []
        for token in range(tokens):
            self._token = token
            self._now: dict[Expr, Array[V]] = {}
            for node in self.order:
                self._now[node] = self._value(node)
            self._history.append(self._now)
            results.append([self._now[r] for r in self.roots])
        return results

    def entries(self, dims: Sequence[str]) -> list[tuple[int, ...]]:
        return list(combinations(range(self.size), repeat=len(dims)))

    def _value(self, node: Expr) -> Array[V]:
        ref, part = _named(node)
        if ref is not None:
            return self._leaf(ref, part)
        match node:
            case Lit(value=value) if not isinstance(value, complex):
                return Array((), (self.algebra.number(value if isinstance(value, float) else int(value)),))
            case Apply():
                return self._elementwise(node)
            case Draw():
                return self._draw(node)
            case Reduce():
                return self._reduce(node.op, node.over, self._now[node.arg])
            case Normalize():
                return self._normalize(node)
            case Rename(arg=arg, old=old, new=new):
                value = self._now[arg]
                return self._sorted(tuple(new if d == old else d for d in value.dims), value)
            case Linear():
                return self._linear(node)
            case Conv():
                return self._conv(node)
            case Solve() if self.size == 1:
                matrix, rhs = self._now[node.matrix], self._now[node.rhs]
                return self._spread(node.dims, lambda at: self._op("div", self.at(rhs, at), self.at(matrix, at)))
            case Split() | Merge() if self.size == 1:
                return Array(node.dims, self._now[node.arg].data)
            case _:
                raise Unsupported

    def _op(self, op: str, *args: V) -> V:
        return self.algebra.apply(op, *args)

    def at(self, value: Array[V], where: Mapping[str, int]) -> V:
        index = 0
        for d in value.dims:
            index = index * self.size + where.get(d, 0)
        return value.data[index]

    def _spread(self, dims: tuple[str, ...], entry: Callable[[Mapping[str, int]], V]) -> Array[V]:
        return Array(dims, tuple(entry(dict(zip(dims, at, strict=True))) for at in self.entries(dims)))

    def _sorted(self, dims: tuple[str, ...], value: Array[V]) -> Array[V]:
        """The same entries with dims in the graph's order."""
        named = Array(dims, value.data)
        return self._spread(self.graph.sort(dims), lambda at: self.at(named, at))

    def _fold(self, op: str, values: Sequence[V]) -> V:
        result = values[0]
        for v in values[1:]:
            result = self._op(op, result, v)
        return result

    def _leaf(self, ref: Ref, part: str) -> Array[V]:
        dims = self.graph.sort(ref.type.dims)
        match ref.role:
            case "size":
                return Array((), (self.algebra.number(self.size),))
            case "input":
                token = self._token - ref.lag
                if token < 0:
                    return self._spread(dims, lambda _: self.algebra.number(0))
                return self._chosen(dims, "input", ref.name, part, token)
            case "def":
                value = part_of(self.model, self.model.definitions[ref.name], part)
                return self._past(value, ref.lag, dims)
            case "state":
                return self._state(ref, part, dims)
            case "buffer":
                return self._spread(dims, lambda at: self.at(self._now[self._buffer(ref, part)], at))
            case _:
                return self._chosen(dims, ref.role, ref.name, part, 0)

    def _chosen(self, dims: tuple[str, ...], kind: str, name: str, part: str, token: int) -> Array[V]:
        if part != "abs":
            return Array(dims, tuple(self._slot(Slot(kind, name, part, at, token)) for at in self.entries(dims)))
        pairs = [(self._slot(Slot(kind, name, p, at, token)) for p in ("real", "imag")) for at in self.entries(dims)]
        return Array(dims, tuple(self._hypot(*pair) for pair in pairs))

    def _hypot(self, re: V, im: V) -> V:
        return self._op("sqrt", self._op("add", self._op("square", re), self._op("square", im)))

    def _past(self, node: Expr, lag: int, dims: tuple[str, ...]) -> Array[V]:
        token = self._token - lag
        if token < 0:
            return self._spread(dims, lambda _: self.algebra.number(0))
        return self._history[token][node]

    def _state(self, ref: Ref, part: str, dims: tuple[str, ...]) -> Array[V]:
        update = self._update(ref.name, part)
        token = self._token - ref.lag
        if token >= 0:
            value = self._now[update] if ref.lag == 0 else self._history[token][update]
        else:
            value = self._initial(ref.name, part)
        return self._spread(dims, lambda at: self.at(value, at))

    def _initial(self, name: str, part: str) -> Array[V]:
        init = part_of(self.model, self.model.expand(self.model.cell.state(name).init), part)
        inner = Runner(self.model, [init], self.size, self.algebra)
        return inner.run(1, self._slot)[0][0]

    def _draw(self, node: Draw) -> Array[V]:
        dims = self.graph.sort(node.dims)
        number = str(self.model.number(node))
        return Array(dims, tuple(self._slot(Slot("draw", number, "", at)) for at in self.entries(dims)))

    # --- operations -------------------------------------------------------------------------------------------------

    def _elementwise(self, node: Apply) -> Array[V]:
        args = [self._now[a] for a in node.args]
        if self.size == 1:
            return Array(node.dims, (self._op(node.op, *(a.data[0] for a in args)),))
        return self._spread(node.dims, lambda at: self._op(node.op, *(self.at(a, at) for a in args)))

    def _reduce(self, op: str, over: tuple[str, ...], value: Array[V]) -> Array[V]:
        dims = tuple(d for d in value.dims if d not in over)
        step = {"sum": "add", "mean": "add", "logsumexp": "logaddexp"}.get(op, op)

        def entry(at: Mapping[str, int]) -> V:
            inner = [{**at, **dict(zip(over, more, strict=True))} for more in self.entries(over)]
            total = self._fold(step, [self.at(value, i) for i in inner])
            return self._op("div", total, self.algebra.number(len(inner))) if op == "mean" else total

        return self._spread(dims, entry)

    def _zip(self, op: str, a: Array[V], b: Array[V]) -> Array[V]:
        dims = self.graph.sort((*a.dims, *b.dims))
        return self._spread(dims, lambda at: self._op(op, self.at(a, at), self.at(b, at)))

    def _map(self, op: str, a: Array[V]) -> Array[V]:
        return Array(a.dims, tuple(self._op(op, x) for x in a.data))

    def _normalize(self, node: Normalize) -> Array[V]:
        value = self._now[node.arg]
        if node.op == "softmax":
            top = self._reduce("max", node.over, value)
            grown = self._map("exp", self._zip("sub", value, top))
            return self._zip("div", grown, self._reduce("sum", node.over, grown))
        if node.op == "layernorm":
            value = self._zip("sub", value, self._reduce("mean", node.over, value))
        size = self._reduce("sum" if node.op == "l2norm" else "mean", node.over, self._map("square", value))
        eps: Array[V] = Array((), (self.algebra.number(node.eps),))
        return self._zip("mul", value, self._map("rsqrt", self._zip("add", size, eps)))

    def _weight(self, name: str, index: tuple[int, ...]) -> V:
        return self._slot(Slot("param", name, "", index))

    def _linear(self, node: Linear) -> Array[V]:
        value = self._now[node.arg]
        summed = node.outs if node.transposed else node.ins

        def entry(at: Mapping[str, int]) -> V:
            terms: list[V] = []
            kept = tuple(at[d] for d in node.kept)
            for others in self.entries(summed):
                outs = others if node.transposed else tuple(at[d] for d in node.outs)
                ins = tuple(at[d] for d in node.ins) if node.transposed else others
                index = (*kept, *outs, *ins)
                inner = {**dict(zip(node.kept, kept, strict=True)), **dict(zip(summed, others, strict=True))}
                terms.append(self._op("mul", self._weight(node.weight, index), self.at(value, inner)))
            return self._fold("add", terms)

        return self._spread(node.dims, entry)

    def _conv(self, node: Conv) -> Array[V]:
        shape = self.model.cell.param(node.weight).shape
        values = [self._now[node.arg], *(self._past(node.arg, j, node.arg.dims) for j in range(1, node.width))]

        def entry(at: Mapping[str, int]) -> V:
            terms: list[V] = []
            for j, value in enumerate(values):
                index = (*(at[d] for d in shape), node.width - 1 - j)
                terms.append(self._op("mul", self._weight(node.weight, index), self.at(value, at)))
            return self._fold("add", terms)

        return self._spread(self.graph.sort(node.arg.dims), entry)


def _named(node: Expr) -> tuple[Ref | None, str]:
    """The named value that a leaf stands for, and which part of it."""
    if isinstance(node, Ref):
        return node, ""
    if isinstance(node, Apply) and node.op in ("real", "imag", "abs") and isinstance(node.args[0], Ref):
        return (node.args[0], node.op) if node.args[0].kind == "complex" else (None, "")
    return None, ""


# --- floats ----------------------------------------------------------------------------------------------------------


def _power(x: float, y: float) -> float:
    result = x**y
    return math.nan if isinstance(result, complex) else result


def _logaddexp(x: float, y: float) -> float:
    if -INF in (x, y):
        return max(x, y)
    return max(x, y) + math.log1p(math.exp(-abs(x - y)))


_UNARY: Mapping[str, Callable[[float], float]] = {
    "neg": lambda x: -x,
    "not": lambda x: float(not x),
    "abs": lambda x: abs(x),
    "sign": lambda x: float((x > 0) - (x < 0)),
    "sqrt": lambda x: math.sqrt(x),
    "rsqrt": lambda x: 1 / math.sqrt(x),
    "square": lambda x: x * x,
    "exp": lambda x: math.exp(x),
    "log": lambda x: -INF if x == 0 else math.log(x),
    "log1p": lambda x: -INF if x == -1 else math.log1p(x),
    "expm1": lambda x: math.expm1(x),
    "sin": lambda x: math.sin(x),
    "cos": lambda x: math.cos(x),
    "erf": lambda x: math.erf(x),
    "sigmoid": functions.sigmoid_float,
    "logsigmoid": lambda x: -functions.softplus_float(-x),
    "tanh": lambda x: math.tanh(x),
    "relu": lambda x: max(x, 0.0),
    "silu": functions.silu_float,
    "gelu": functions.gelu_float,
    "softplus": functions.softplus_float,
    "stop_gradient": lambda x: x,
}
_BINARY: Mapping[str, Callable[[float, float], float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": _power,
    "max": lambda a, b: max(a, b),
    "min": lambda a, b: min(a, b),
    "logaddexp": _logaddexp,
    "and": lambda a, b: float(bool(a) and bool(b)),
    "or": lambda a, b: float(bool(a) or bool(b)),
    "only": lambda a, _: a,
    "like": lambda a, _: a,
    "eq": lambda a, b: float(a == b),
    "ne": lambda a, b: float(a != b),
    "lt": lambda a, b: float(a < b),
    "le": lambda a, b: float(a <= b),
    "gt": lambda a, b: float(a > b),
    "ge": lambda a, b: float(a >= b),
}


def _float_apply(op: str, *args: float) -> float:
    if op == "where":
        chosen, yes, no = args
        return chosen if math.isnan(chosen) else yes if chosen else no
    if any(math.isnan(a) for a in args):
        return math.nan
    try:
        result = _UNARY[op](*args) if len(args) == 1 else _BINARY[op](*args)
    except (ArithmeticError, ValueError):
        # Undefined, or too large: harmless in a branch that is not taken, and no witness where it is.
        return math.nan
    if math.isinf(result) and op not in ("log", "log1p") and all(math.isfinite(a) for a in args):
        return math.nan
    return result


FLOATS: Algebra[float] = Algebra(float, _float_apply)
INTERVALS: Algebra[Interval] = Algebra(point, functions.apply)
