"""What a cell's values are at initialisation: many draws of one entry at once, in plain Python.

Goals: the spread of an expression, its params drawn as declared, its inputs standard normal (or within their declared
ranges; a bool is false), all dims at their default sizes. A column holds independent draws of one entry; what goes over
a dim (a sum, a learned map) meets other draws of the same column in the other places, or, where there are many, a
normal number of the right spread.
Non-goals: how entries depend on each other; `solve`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rnnc.bound.eigen import eigenvalues
from rnnc.bound.evaluate import FLOATS, Algebra, Array, Runner, Slot, Unsupported
from rnnc.bound.matrix import Matrix
from rnnc.bound.model import Model
from rnnc.ir import Annulus, Apply, Conv, Disc, Draw, Expr, Interval, Linear, Lit, Normalize, Ref, Region, Solve, walk

_DRAWS, _FEWER = 1000, 200
_TOKENS = 16
"""How long a cell runs before its values are looked at, where they depend on its past."""
_MANY = 16
"""From here on a sum over a dim is taken to be normal."""

Column = list[float]


@dataclass(frozen=True)
class HalfLife:
    """After how many tokens half is left, of the draws in the middle, and 5 % from either end."""

    low: float
    median: float
    high: float
    growing: float
    """The share of the draws that grow."""

    def __str__(self) -> str:
        if self.low == self.high:
            text = _tokens(self.median)
        else:
            text = f"median {_tokens(self.median)} (5 % {_number(self.low)}, 95 % {_number(self.high)})"
        return text + (f"; {100 * self.growing:.3g} % grow" if self.growing else "")


def _number(x: float) -> str:
    return "unlimited" if math.isinf(x) else f"{x:.2g}" if x < 100 else f"{float(f'{x:.2g}'):.0f}"


def _tokens(x: float) -> str:
    return _number(x) if math.isinf(x) else f"{_number(x)} token{'' if _number(x) == '1' else 's'}"


def half_life(moduli: Sequence[float]) -> HalfLife | None:
    """Of factors or eigenvalues with these moduli."""
    known = sorted(_half(x) for x in moduli if x == x)
    if len(known) < len(moduli) / 2 or not known:
        return None
    low, median, high = (known[round(q * (len(known) - 1))] for q in (0.05, 0.5, 0.95))
    return HalfLife(low, median, high, sum(1 for x in moduli if x > 1 + 1e-9) / len(moduli))


def _half(modulus: float) -> float:
    if modulus >= 1 - 1e-15:
        return math.inf
    return math.log(2) / -math.log(modulus) if modulus > 0 else 0.0


def moduli(model: Model, root: Expr) -> list[float]:
    """Draws of the modulus of an expanded value; `Unsupported` where it cannot be drawn."""
    (column,) = _columns(model, [model.parts(root).mod])
    return [abs(x) for x in column]


def largest(model: Model, matrix: Matrix) -> list[float]:
    """Draws of the largest modulus of an eigenvalue."""
    places = list(matrix.entries)
    re = _columns(model, [e for at in places for e in (matrix.entries[at].re, matrix.entries[at].im)])
    found: list[float] = []
    draws = len(re[0]) if matrix.size <= 3 else _FEWER
    for k in range(draws):
        numbers = [[0j] * matrix.size for _ in range(matrix.size)]
        for i, (row, column) in enumerate(places):
            numbers[row][column] = complex(re[2 * i][k], re[2 * i + 1][k])
        found.append(max((abs(x) for x in eigenvalues(numbers)), default=math.nan))
    return found


def _columns(model: Model, roots: Sequence[Expr]) -> list[Column]:
    sampler = _Sampler(model, roots)
    tokens = _TOKENS if sampler.moving else 1
    return [array.data[0] for array in sampler.run(tokens, sampler.slot)[-1]]


class _Sampler(Runner[Column]):
    """A cell run on columns: one entry of every value, and what stands for the others."""

    def __init__(self, model: Model, roots: Sequence[Expr]) -> None:
        super().__init__(model, roots, 1, Algebra(self._number, self._applied))
        self.moving = any(isinstance(n, Ref) and n.lag > 0 for e in self.order for n in (e, *e.children))
        self.moving = self.moving or any(isinstance(n, Conv) for n in self.order)
        self.draws = _FEWER if self.moving else _DRAWS
        self.random = random.Random(0)
        self.sizes = _sizes(model)
        self.consts = {c.name: c.value for c in model.cell.consts}
        self.known: dict[Slot, Column] = {}
        self.drawn: dict[tuple[Slot, Expr], Column] = {}

    def _number(self, x: float) -> Column:
        return [float(x)] * self.draws

    def _applied(self, op: str, *args: Column) -> Column:
        return [FLOATS.apply(op, *xs) for xs in zip(*args, strict=True)]

    def _normal(self, spread: float) -> Column:
        return [self.random.gauss(0.0, spread) for _ in range(self.draws)]

    def _uniform(self, lo: Column, hi: Column) -> Column:
        return [a + (b - a) * self.random.random() for a, b in zip(lo, hi, strict=True)]

    def _others(self, column: Column, count: int) -> list[Column]:
        """The same value in other places."""
        return [self.random.sample(column, len(column)) for _ in range(count)]

    def _count(self, dims: Sequence[str]) -> int:
        return math.prod(self.sizes[d] for d in dims)

    # --- leaves -----------------------------------------------------------------------------------------------------

    def slot(self, slot: Slot) -> Column:
        if slot not in self.known:
            self.known[slot] = self._chosen_column(slot)
        return self.known[slot]

    def _chosen_column(self, slot: Slot) -> Column:
        cell = self.model.cell
        match slot.kind:
            case "const":
                return self._number(self.consts[slot.name])
            case "input":
                declared = cell.input(slot.name)
                if declared.type.kind == "bool":
                    return self._number(0)
                return self._input(slot, declared.region)
            case "draw":
                nodes = (n for p in cell.params for n in walk(p.init) if isinstance(n, Draw))
                draw = next(n for n in nodes if str(self.model.number(n)) == slot.name)
                owner = next(p.name for p in cell.params if draw in set(walk(p.init)))
                return self._evaluated(Slot("param", owner, "", ()), draw)
            case _:
                init = self.model.expand(cell.param(slot.name).init)
                parts = self.model.parts(init)
                part = parts.im if slot.part == "imag" else parts.re
                return self._evaluated(Slot("param", slot.name, "", slot.index), part)

    def _input(self, slot: Slot, region: Region | None) -> Column:
        if region is None:
            return self._normal(1.0)
        if isinstance(region, Interval):
            lo, hi = (self._evaluated(slot, e) for e in (region.lo, region.hi))
            if math.isfinite(lo[0]) and math.isfinite(hi[0]):
                return self._uniform(lo, hi)
            if math.isfinite(lo[0]) or math.isfinite(hi[0]):
                away = [abs(x) for x in self._normal(1.0)]
                return self._applied("add", lo, away) if math.isfinite(lo[0]) else self._applied("sub", hi, away)
            return self._normal(1.0)
        # Both parts of one number are drawn together.
        inner = self._evaluated(slot, region.inner) if isinstance(region, Annulus) else self._number(0)
        size = self._uniform(inner, self._evaluated(slot, region.radius if isinstance(region, Disc) else region.outer))
        turn = self._uniform(self._number(0), self._number(2 * math.pi))
        pairs = (("real", math.cos), ("imag", math.sin))
        for part, wave in pairs:
            other = Slot(slot.kind, slot.name, part, slot.index, slot.token)
            self.known[other] = [r * wave(x) for r, x in zip(size, turn, strict=True)]
        return self.known[slot]

    def _evaluated(self, slot: Slot, root: Expr) -> Column:
        """An initialiser, or an end of a range."""
        match root:
            case Lit(value=value) if not isinstance(value, complex):
                return self._number(value)
            case Ref(role="size"):
                return self._number(self.sizes[root.name])
            case Ref(role="const"):
                return self._number(self.consts[root.name])
            case Ref():
                return self.slot(Slot("param", root.name, "", ()))
            case Apply(op="real" | "imag", args=(Ref() as ref,)):
                return self.slot(Slot("param", ref.name, root.op, ()))
            case Apply():
                return self._applied(root.op, *(self._evaluated(slot, a) for a in root.args))
            case Draw():
                if (slot, root) not in self.drawn:
                    self.drawn[slot, root] = self._draw_column(slot, root)
                return self.drawn[slot, root]
            case _:
                raise Unsupported

    def _draw_column(self, slot: Slot, node: Draw) -> Column:
        args = [self._evaluated(slot, a) for a in node.args]
        match node.op:
            case "normal":
                return self._applied("mul", args[0], self._normal(1.0))
            case "uniform":
                return self._uniform(*args)
            case "loguniform":
                return [math.exp(x) for x in self._uniform(*([math.log(x) for x in a] for a in args))]
            case "arange":
                count = self.sizes[node.dims[0]]
                return [x + self.random.randrange(count) for x in args[0]]
            case _:
                # The rows of an orthogonal matrix have norm 1, as those of the identity.
                last = self.model.cell.param(slot.name).shape[-1:]
                return self._normal(self._count(last) ** -0.5)

    def _leaf(self, ref: Ref, part: str) -> Array[Column]:
        if ref.role == "size":
            return Array((), (self._number(self.sizes[ref.name]),))
        return super()._leaf(ref, part)

    def _chosen(self, dims: tuple[str, ...], kind: str, name: str, part: str, token: int) -> Array[Column]:
        # A param is one number at every use: a learned map's and a convolution's have more, by their index.
        if part == "abs":
            both = [self.slot(Slot(kind, name, p, (), token)) for p in ("real", "imag")]
            return Array(dims, ([math.hypot(*xs) for xs in zip(*both, strict=True)],))
        return Array(dims, (self.slot(Slot(kind, name, part, (), token)),))

    # --- over dims --------------------------------------------------------------------------------------------------

    def _value(self, node: Expr) -> Array[Column]:
        if isinstance(node, Solve):
            raise Unsupported
        return super()._value(node)

    def _summed(self, column: Column, count: int) -> Column:
        """The sum of a value over `count` places."""
        if count <= _MANY:
            return [sum(xs) for xs in zip(column, *self._others(column, count - 1), strict=True)]
        mean = sum(column) / len(column)
        spread = math.sqrt(sum((x - mean) * (x - mean) for x in column) / len(column) * (count - 1))
        return [x + (count - 1) * mean + y for x, y in zip(column, self._normal(spread), strict=True)]

    def _reduce(self, op: str, over: tuple[str, ...], value: Array[Column]) -> Array[Column]:
        count = self._count(over)
        dims = tuple(d for d in value.dims if d not in over)
        (column,) = value.data
        if op in ("sum", "mean"):
            total = self._summed(column, count)
            return Array(dims, ([x / count for x in total] if op == "mean" else total,))
        step = {"logsumexp": "logaddexp"}.get(op, op)
        found = column
        for other in self._others(column, min(count, _MANY) - 1):
            found = self._applied(step, found, other)
        if op == "logsumexp" and count > _MANY:
            found = [x + math.log(count / _MANY) for x in found]
        return Array(dims, (found,))

    def _normalize(self, node: Normalize) -> Array[Column]:
        value = self._now[node.arg]
        (column,) = value.data
        count = self._count(node.over)
        if node.op == "softmax":
            grown = self._applied("exp", column)
            return Array(value.dims, (self._applied("div", grown, self._summed(grown, count)),))
        if node.op == "layernorm":
            mean = [x / count for x in self._summed(column, count)]
            column = self._applied("sub", column, mean)
        squares = self._summed([x * x for x in column], count)
        size = [abs(x) / (1 if node.op == "l2norm" else count) + node.eps for x in squares]
        return Array(value.dims, (self._applied("mul", column, self._applied("rsqrt", size)),))

    def _linear(self, node: Linear) -> Array[Column]:
        (column,) = self._now[node.arg].data
        count = self._count(node.outs if node.transposed else node.ins)
        weights = self.slot(Slot("param", node.weight, "", (0,)))
        if count <= _MANY:
            places = [column, *self._others(column, count - 1)]
            rows = [self.slot(Slot("param", node.weight, "", (i,))) for i in range(count)]
            products = [self._applied("mul", w, x) for w, x in zip(rows, places, strict=True)]
            return Array(node.dims, ([sum(xs) for xs in zip(*products, strict=True)],))
        power = sum(w * w for w in weights) / len(weights) * sum(x * x for x in column) / len(column)
        return Array(node.dims, (self._normal(math.sqrt(count * power)) if math.isfinite(power) else column,))


def _sizes(model: Model) -> Mapping[str, int]:
    """The default sizes, the derived ones too."""
    sizes: dict[str, int] = {}
    for d in model.cell.dims:
        sizes[d.name] = d.size if isinstance(d.size, int) else round(_size(d.size, sizes))
    return sizes


def _size(node: Expr, sizes: Mapping[str, int]) -> float:
    if isinstance(node, Lit) and not isinstance(node.value, complex):
        return float(node.value)
    if isinstance(node, Ref):
        return float(sizes[node.name])
    assert isinstance(node, Apply)
    return FLOATS.apply(node.op, *(_size(a, sizes) for a in node.args))
