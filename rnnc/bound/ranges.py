"""Ranges of real expressions, given ranges of their leaves.

Goals: a sound range for every node, from intervals, from what sums of squares and weighted means satisfy, and from
forms (`relational`) where a value occurs twice. A `where` branch is looked at under its condition.
Non-goals: where ranges of leaves come from (`invariants`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from rnnc.bound import functions
from rnnc.bound.forms import Forms
from rnnc.bound.interval import ANY, INF, ONE, REAL, UNIT, ZERO, Interval, hull, point
from rnnc.bound.model import pending
from rnnc.bound.relational import Bounds, Budget
from rnnc.ir import (
    COMPARISONS,
    Apply,
    Conv,
    Draw,
    Expr,
    Graph,
    Linear,
    Lit,
    Merge,
    Normalize,
    Reduce,
    Ref,
    Rename,
    Split,
)

_ARITHMETIC = frozenset({"add", "sub", "mul", "div"})
_NESTING = 3
SIZE = Interval(ONE, INF, False, True)


def is_leaf(node: Expr) -> bool:
    """A named or drawn value, or what is said of a complex one."""
    return isinstance(node, Ref | Draw) or any(c.kind == "complex" for c in node.children)


def walk_real(*roots: Expr, hints: Mapping[Expr, Expr] | None = None) -> Iterator[Expr]:
    """Every node below real expressions once, operands (and what bounds a node) first; leaves are not entered."""
    seen: set[Expr] = set()
    stack: list[tuple[Expr, bool]] = [(r, False) for r in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            if not is_leaf(node):
                stack.extend((c, False) for c in reversed(node.children) if c not in seen)
                if hints and node in hints and hints[node] not in seen:
                    stack.append((hints[node], False))


class Ranges:
    """Ranges of nodes under one set of assumptions.

    `hints` are upper bounds of nodes, `leaf` gives the ranges of leaves; `assumed` narrows any nodes, because a
    condition holds. `quick` leaves forms out. `still` knows the ranges of what holds no state.
    """

    def __init__(
        self,
        graph: Graph,
        hints: Mapping[Expr, Expr],
        leaf: Callable[[Expr], Interval],
        budget: Budget,
        assumed: Mapping[Expr, Interval] | None = None,
        nesting: int = 0,
        quick: bool = False,
        still: Ranges | None = None,
    ) -> None:
        self.graph = graph
        self.hints = hints
        self.leaf = leaf
        self.budget = budget
        self.assumed = dict(assumed or {})
        self.nesting = nesting
        self.quick = quick
        self.still = still
        self._moving: dict[Expr, bool] = {}
        self.known: dict[Expr, Interval] = {}
        self.forms = Forms(self)
        self.bounds = Bounds(self.forms, budget)

    def __call__(self, root: Expr) -> Interval:
        if root not in self.known:
            for node in pending(root, self.known.__contains__, self._below):
                if self.still is not None and not self._moves(node):
                    self.known[node] = self.still(node)
                    self.forms.of(node)
                    continue
                self.known[node] = self._narrowed(node, self._range(node))
                if not self.quick:
                    self.known[node] = self._related(node, self.known[node])
        return self.known[root]

    def _below(self, node: Expr) -> tuple[Expr, ...]:
        if is_leaf(node):
            return ()
        hint = self.hints.get(node)
        return node.children if hint is None else (*node.children, hint)

    def _moves(self, node: Expr) -> bool:
        """Whether a node, whose operands were asked for before, holds a state or a past."""
        if node not in self._moving:
            if is_leaf(node):
                below = node if isinstance(node, Ref) else node.children[0] if node.children else node
                moves = not isinstance(below, Ref | Draw) or (isinstance(below, Ref) and below.role in ("state", "def"))
            else:
                moves = any(self._moves(c) for c in self._below(node))
            self._moving[node] = moves
        return self._moving[node]

    def _narrowed(self, node: Expr, found: Interval) -> Interval:
        if node in self.hints:
            most = self.known[self.hints[node]]
            found = found.meet(Interval(-INF, most.hi, False, most.hi_open, True)) or found
        limit = self.assumed.get(node)
        if limit is None:
            return found
        # What the condition excludes cannot be undefined either: a comparison with it would not hold.
        inner = found.meet(limit)
        return found if inner is None else inner

    def _related(self, node: Expr, found: Interval) -> Interval:
        """The range after a look at the node's form."""
        form = self.forms.of(node)
        arithmetic = (isinstance(node, Apply) and node.op in _ARITHMETIC) or isinstance(node, Reduce)
        if not arithmetic or form is None or self.budget.left <= 0:
            return found
        if (value := form.value) is not None:
            return point(value)
        taken_apart = isinstance(node, Reduce) and len(form.atoms) > 1
        if not taken_apart and not self._shared(node) and not self.bounds.worth(form):
            return found
        return found.meet(self.bounds(form)) or found

    def _shared(self, node: Expr) -> bool:
        """Whether the operands have an atom in common, which may have cancelled."""
        forms = [self.forms.of(c) for c in node.children]
        first, *others = [set[int]() if f is None else f.atoms for f in forms]
        return any(first & o for o in others)

    # --- by kind of node --------------------------------------------------------------------------------------------

    def _range(self, node: Expr) -> Interval:
        if is_leaf(node):
            return self.leaf(node)
        match node:
            case Lit(value=value):
                return ANY if isinstance(value, complex) or value != value else point(value)
            case Apply():
                return self._apply(node)
            case Reduce():
                return self._reduce(node)
            case Normalize():
                return self._normalize(node)
            case Rename() | Split() | Merge():
                return self.known[node.children[0]]
            case Linear() | Conv():
                arg = self.known[node.arg]
                return point(0) if arg == point(0) else REAL if arg.real else ANY
            case _:
                return ANY

    def _apply(self, node: Apply) -> Interval:
        args = [self.known[a] for a in node.args]
        if len(args) > 1 and node.args[0] is node.args[1] and node.op != "where":
            return self._twice(node.op, args[0])
        if node.op == "where":
            return self._where(node, args)
        return functions.apply(node.op, *args)

    def _twice(self, op: str, x: Interval) -> Interval:
        """An operation on a value and itself."""
        match op:
            case "mul":
                return x.power(2)
            case "sub" if x.real:
                return point(0)
            case "div" if x.real and x.nonzero:
                return point(1)
            case "max" | "min" | "and" | "or":
                return x
            case _:
                return functions.apply(op, x, x)

    def _where(self, node: Apply, args: list[Interval]) -> Interval:
        condition, yes, no = node.args
        chosen, *values = args
        if chosen.point or self.nesting >= _NESTING or self.budget.left <= 0:
            return functions.where(chosen, *values)
        branches: list[Interval] = []
        for branch, value, truth in ((yes, values[0], True), (no, values[1], False)):
            limits = self.assume(condition, truth)
            if limits is None:
                continue
            branches.append(self._under(branch, value, limits))
        if not branches:
            return functions.where(chosen, *values)
        found = branches[0] if len(branches) == 1 else branches[0].hull(branches[1])
        return found.maybe_undefined(chosen.undefined)

    def _under(self, branch: Expr, value: Interval, limits: Mapping[Expr, Interval]) -> Interval:
        """The range of a branch where its condition holds."""
        below = list(walk_real(branch, hints=self.hints))
        if not self.budget.spend(len(below)) or not any(n in limits for n in below):
            return value
        self.budget.spend(20 * len(below))
        inner = Ranges(
            self.graph, self.hints, self.leaf, self.budget, {**self.assumed, **limits}, self.nesting + 1, self.quick
        )
        return inner(branch).meet(value) or value

    def assume(self, condition: Expr, truth: bool) -> dict[Expr, Interval] | None:
        """What a condition that has this truth value says of the ranges of nodes; None where it cannot have it."""
        known = self(condition)
        if (truth and known.hi <= 0) or (not truth and known.positive):
            return None
        limits = {condition: point(int(truth))}
        if not isinstance(condition, Apply):
            return limits
        match condition.op:
            case "not":
                inner = self.assume(condition.args[0], not truth)
                return None if inner is None else limits | inner
            case ("and" | "or") as op if truth == (op == "and"):
                for part in condition.args:
                    inner = self.assume(part, truth)
                    if inner is None:
                        return None
                    limits = {**limits, **{n: i.meet(limits[n]) or i if n in limits else i for n, i in inner.items()}}
                return limits
            case op if op in COMPARISONS:
                return limits | self._compared(op, condition.args[0], condition.args[1], truth)
            case _:
                return limits

    def _compared(self, op: str, a: Expr, b: Expr, truth: bool) -> dict[Expr, Interval]:
        if any(x.kind == "complex" for x in (a, b)):
            return {}
        x, y = self(a), self(b)
        if (truth == (op == "ne")) and (x.undefined or y.undefined):
            # What is no number is unequal to all, and all other comparisons with it are false.
            return {}
        if not truth:
            op = {"lt": "ge", "ge": "lt", "gt": "le", "le": "gt", "eq": "ne", "ne": "eq"}[op]
        found: dict[Expr, Interval] = {}
        for node, mine, other, sense in ((a, x, y, op), (b, y, x, _mirrored(op))):
            limit = _limit(sense, mine, other)
            if limit is not None and (inner := mine.meet(limit)) is not None:
                found[node] = inner
        return found

    # --- over dims --------------------------------------------------------------------------------------------------

    def _reduce(self, node: Reduce) -> Interval:
        arg = self.known[node.arg]
        match node.op:
            case "max" | "min":
                return arg
            case "mean":
                # Infinities of both signs have no mean.
                return arg.maybe_undefined(arg.has_lo and arg.has_hi)
            case "logsumexp":
                return Interval(arg.lo, INF, arg.lo_open, not arg.has_hi, arg.undefined)
            case _:
                found = self._total(arg)
                better = self._products(node)
                return found if better is None else found.meet(better) or found

    def _total(self, each: Interval) -> Interval:
        """The sum of one or more values."""
        if each == point(0):
            return each
        lo, lo_open = (each.lo, each.lo_open) if each.lo >= 0 else (-INF, not each.has_lo)
        hi, hi_open = (each.hi, each.hi_open) if each.hi <= 0 else (INF, not each.has_hi)
        return Interval(lo, hi, lo_open, hi_open, each.undefined or (each.has_lo and each.has_hi))

    def _products(self, node: Reduce) -> Interval | None:
        """Sums of squares of normalised vectors, inner products of two, and means weighted by a softmax."""
        outside, factors = self._factors(node.arg, node.over)
        if not all(self(f).real for f, _ in (*factors, *outside)) or len(factors) > 2:
            return None
        scale = point(1)
        for f, n in outside:
            if n < 0 and not self(f).nonzero:
                return None
            scale = scale * self(f).power(n)
        factors.sort(key=lambda f: -f[1])
        powers = [n for _, n in factors]
        if powers[:1] == [2] and powers[1:] in ([], [1]):
            # A mean of the other factor, weighted by the squares, times their sum.
            others = [self(f) for f, _ in factors[1:]]
            return hull([scale * o for o in others] or [scale]) * self.norm2(factors[0][0], node.over)
        if powers == [1]:
            return scale * point(1) if self._weights(factors[0][0], node.over) else None
        if powers != [1, 1]:
            return None
        (a, _), (b, _) = factors
        size = self.norm2(a, node.over) * self.norm2(b, node.over)
        bound = functions.sqrt(Interval(ZERO, size.hi, False, size.hi_open))
        found = (-bound).hull(bound)
        for weights, values in ((a, b), (b, a)):
            if self._weights(weights, node.over):
                found = found.meet(self.known[values]) or found
        return scale * found

    def _factors(self, arg: Expr, over: tuple[str, ...]) -> tuple[list[tuple[Expr, int]], list[tuple[Expr, int]]]:
        """A product as its factors without and with a summed dim, and their powers."""
        outside: dict[Expr, int] = {}
        inside: dict[Expr, int] = {}
        stack: list[tuple[Expr, int]] = [(arg, 1)]
        outside[self.graph.lit(1)] = 1
        while stack and len(inside) + len(outside) < 12:
            node, n = stack.pop()
            free = not set(node.dims) & set(over)
            if isinstance(node, Apply) and node.op == "mul" and not free:
                stack.extend((a, n) for a in reversed(node.args))
            elif isinstance(node, Apply) and node.op == "neg" and not free:
                stack.append((node.args[0], n))
                outside[self.graph.lit(-1)] = outside.get(self.graph.lit(-1), 0) + n
            elif isinstance(node, Apply) and node.op == "square" and not free:
                stack.append((node.args[0], 2 * n))
            elif isinstance(node, Apply) and node.op == "abs" and n % 2 == 0 and not is_leaf(node):
                stack.append((node.args[0], n))
            elif isinstance(node, Apply) and node.op == "div" and not set(node.args[1].dims) & set(over) and not free:
                stack.append((node.args[0], n))
                outside[node.args[1]] = outside.get(node.args[1], 0) - n
            else:
                table = outside if free else inside
                table[node] = table.get(node, 0) + n
        if stack:
            return [], [(arg, 1)]
        return list(outside.items()), list(inside.items())

    def norm2(self, node: Expr, over: tuple[str, ...]) -> Interval:
        """The sum of squares along dims."""
        self(node)
        dims = frozenset(over)
        unknown = (
            self._total(self.known[node].power(2)) if self.known[node].real else Interval(ZERO, INF, undefined=True)
        )
        while True:
            match node:
                case Rename(arg=arg, old=old, new=new):
                    dims = frozenset(old if d == new else d for d in dims)
                    node = arg
                case Apply(op="neg" | "abs" | "tanh" | "relu" | "sin" | "silu", args=(arg,)) if not is_leaf(node):
                    # None of these makes a number larger.
                    node = arg
                case Normalize(op="l2norm", over=all_dims, eps=eps) if dims <= set(all_dims) and self.known[node].real:
                    return Interval(ZERO, ONE, False, eps > 0)
                case Normalize(op="softmax", over=all_dims) if dims <= set(all_dims) and self.known[node].real:
                    return Interval(ZERO, ONE, True, False)
                case Apply(op="mul", args=(a, b)) if self.known[a].real and self.known[b].real:
                    one, two = self._scaled(a, b, dims), self._scaled(b, a, dims)
                    return one.meet(two) or one
                case Apply(op="div", args=(a, b)) if (
                    self.known[a].real and self.known[b].nonzero and self.known[b].real
                ):
                    rest = self.known[b].power(2).inverse()
                    found = rest * self.norm2(a, tuple(sorted(dims)))
                    return found.meet(unknown) or unknown
                case _:
                    return unknown

    def _scaled(self, factor: Expr, vector: Expr, dims: frozenset[str]) -> Interval:
        """A bound on the sum of squares of `factor * vector`."""
        if not dims & set(vector.dims):
            return Interval(ZERO, INF, False, True)
        size = self.known[factor].power(2)
        if dims & set(factor.dims):
            size = Interval(ZERO, size.hi, False, size.hi_open)
        return size * self.norm2(vector, tuple(sorted(dims)))

    def _weights(self, node: Expr, over: tuple[str, ...]) -> bool:
        """Whether the values are positive and sum to 1."""
        dims = set(over)
        while isinstance(node, Rename):
            dims = {node.old if d == node.new else d for d in dims}
            node = node.arg
        return isinstance(node, Normalize) and node.op == "softmax" and dims == set(node.over) and self(node).real

    def _normalize(self, node: Normalize) -> Interval:
        arg = self.known[node.arg]
        if node.op == "softmax":
            if arg.real:
                return Interval(ZERO, ONE, True, False)
            return UNIT.maybe_undefined()
        if not arg.real or node.eps < 0 or (node.eps == 0 and not arg.nonzero):
            return ANY
        if node.op == "l2norm":
            strict = node.eps > 0
            low = 0 if arg.lo >= 0 else -1
            high = 0 if arg.hi <= 0 else 1
            lo_open = arg.positive if low == 0 else strict
            hi_open = arg.negative if high == 0 else strict
            return Interval(point(low).lo, point(high).hi, lo_open, hi_open)
        if node.op == "rmsnorm" and arg.lo >= 0:
            return Interval(ZERO, INF, arg.positive, True)
        if node.op == "rmsnorm" and arg.hi <= 0:
            return Interval(-INF, ZERO, True, arg.negative)
        return ANY if node.op == "layernorm" and node.eps == 0 else REAL


def _mirrored(op: str) -> str:
    return {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}.get(op, op)


def _limit(op: str, mine: Interval, other: Interval) -> Interval | None:
    """What `x op y` says of x, for some y of a range."""
    match op:
        case "lt" | "le":
            return Interval(-INF, other.hi, False, other.hi_open or op == "lt")
        case "gt" | "ge":
            return Interval(other.lo, INF, other.lo_open or op == "gt", False)
        case "eq":
            return Interval(other.lo, other.hi, other.lo_open, other.hi_open)
        case _:
            if other.point and mine.lo == other.lo:
                return Interval(mine.lo, INF, True, False)
            if other.point and mine.hi == other.lo:
                return Interval(-INF, mine.hi, False, True)
            return None
