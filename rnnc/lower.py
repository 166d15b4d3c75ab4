"""Cell → System: the same equations with definitions, histories and gradients expanded into one graph.

Goals: afterwards an expression refers only to sizes, consts, params, inputs at `t` and *streams* (values with a past)
at any lag; `Grad` is gone; the past of an input or definition is a stream like a state; the rule that an unselected
`where` branch contributes exactly 0 is written out as `only`.
Non-goals: anything about how it is computed. Names of definitions survive as hints for readable code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from rnnc.derive import depends, pull_back
from rnnc.fields import StateField, state_fields
from rnnc.ir import (
    Apply,
    Cell,
    Conv,
    Expr,
    Grad,
    Graph,
    Interval,
    Linear,
    Lit,
    Merge,
    Normalize,
    Reduce,
    Ref,
    Region,
    Rename,
    Solve,
    Split,
    Type,
    walk,
)
from rnnc.logspace import LogSpace


@dataclass(frozen=True, slots=True)
class Stream:
    """A value with a past: a declared state, or the history of an input, a definition or a convolution's operand.

    Referred to as `Ref(role="state", name)`; `expr` is its value at `t`, `init` the one before the first token (None
    for zero), `depth` how many past values are kept.
    """

    name: str
    type: Type
    expr: Expr
    init: Expr | None
    depth: int
    declared: bool
    over: str | None = None


@dataclass(frozen=True)
class System:
    """A cell as streams and outputs over one graph.

    `names` gives the nodes that are definitions of the program; `convs` are the convolutions that need no state, by
    the field that holds their history; `fields` is the layout of the cell's state.
    """

    cell: Cell
    streams: tuple[Stream, ...]
    outputs: tuple[tuple[str, Expr], ...]
    convs: Mapping[str, Conv]
    fields: tuple[StateField, ...]
    names: Mapping[Expr, str] = field(repr=False)

    @property
    def graph(self) -> Graph:
        return self.cell.graph

    def stream(self, name: str) -> Stream:
        return next(s for s in self.streams if s.name == name)


def lower(cell: Cell) -> System:
    """Expand a checked cell (see the module's goals)."""
    fields = state_fields(cell)
    risky, logspace = _Risk(cell), LogSpace(cell)
    inliner = _Inliner(cell, risky, logspace)
    streams: list[Stream] = []
    for s in cell.states:
        depth = 1 + sum(f.length or 0 for f in fields if f.role == "past" and f.of == s.name)
        streams.append(Stream(s.name, s.type, inliner.expand(s.expr), s.init, depth, True, s.over))
    outputs = tuple((o.name, inliner.expand(o.expr)) for o in cell.outputs)
    states = {s.name for s in cell.states}
    for f in fields:
        if f.role == "past" and f.of not in states:
            value = inliner.value(f.of)
            streams.append(Stream(f.name, Type(f.dims, f.kind), value, None, f.length or 0, False))
        elif f.role == "conv" and f.name in inliner.apart:
            arg = inliner.apart[f.name]
            streams.append(Stream(f.name, Type(f.dims, f.kind), arg, None, f.length or 0, False))
    guard = _Guard(cell.graph, risky)

    def finished(e: Expr) -> Expr:
        return guard(logspace(e))

    streams = [replace(s, expr=finished(s.expr)) for s in streams]
    outputs = tuple((name, finished(e)) for name, e in outputs)
    convs: dict[str, Conv] = {}
    for f in fields:
        if f.role == "conv" and f.name not in inliner.apart:
            conv = finished(inliner.convs[f.name])
            assert isinstance(conv, Conv)
            convs[f.name] = conv
    roots = [*(s.expr for s in streams), *(e for _, e in outputs), *convs.values()]
    return System(cell, tuple(streams), outputs, convs, fields, _names(inliner, logspace, finished, roots))


def _names(
    inliner: _Inliner, logspace: LogSpace, finished: Callable[[Expr], Expr], roots: Iterable[Expr]
) -> dict[Expr, str]:
    """The nodes that are definitions; where only the logarithm `log_f` of one is used, that."""
    cell = inliner.cell
    names: dict[Expr, str] = {}
    values = {d.name: inliner.value(d.name) for d in cell.definitions}
    for name, value in values.items():
        node = finished(value)
        if node.children:
            names.setdefault(node, name)
    used = set(walk(*roots))
    taken = {x.name for x in (*cell.dims, *cell.consts, *cell.inputs, *cell.params, *cell.definitions, *cell.states)}
    for name, value in values.items():
        log = logspace.log(value)
        alone = log is not None and log.children and log in used and finished(value) not in used
        if log is not None and alone and f"log_{name}" not in taken:
            names.setdefault(log, f"log_{name}")
    return names


class _Inliner:
    """Replaces definitions by their expressions, pasts by streams and gradients by derivatives."""

    def __init__(self, cell: Cell, risky: _Risk, logspace: LogSpace) -> None:
        self.cell, self.risky, self.logspace = cell, risky, logspace
        self.graph = cell.graph
        self.definitions = {d.name: d.expr for d in cell.definitions}
        self.done: dict[Expr, Expr] = {}
        self.apart: dict[str, Expr] = {}
        self.convs: dict[str, Conv] = {}
        self.stateful = self._stateful()
        for d in cell.definitions:
            self.expand(d.expr)

    def value(self, name: str) -> Expr:
        """The value at `t` of an input or a definition."""
        if name in self.definitions:
            return self.expand(self.definitions[name])
        return self.graph.ref("input", name, self.cell.input(name).type)

    def expand(self, root: Expr) -> Expr:
        stack = [root]
        while stack:
            node = stack[-1]
            if node in self.done:
                stack.pop()
                continue
            waiting = [c for c in self._needs(node) if c not in self.done]
            if waiting:
                stack.extend(waiting)
            else:
                self.done[node] = self._step(node)
                stack.pop()
        return self.done[root]

    def _needs(self, node: Expr) -> tuple[Expr, ...]:
        if isinstance(node, Ref):
            return (self.definitions[node.name],) if node.role == "def" and node.lag == 0 else ()
        return node.children

    def _step(self, node: Expr) -> Expr:
        if isinstance(node, Ref):
            if node.role == "def" and node.lag == 0:
                return self.done[self.definitions[node.name]]
            if node.role in ("def", "input") and node.lag > 0:
                return self.graph.ref("state", f"{node.name}_past", node.type, node.lag)
            return node
        if isinstance(node, Grad):
            # What a branch does not select contributes nothing to a gradient that is a value, either.
            loss = _Guard(self.graph, self.risky)(self.logspace(self.done[node.loss]))
            wrt = self.done[node.wrt]
            found = pull_back(self.graph, {loss: self.graph.lit(1.0)}, (wrt,))
            return found.get(wrt, self.graph.lit(0.0))
        new = self.graph.rebuild(node, tuple(self.done[c] for c in node.children))
        if isinstance(new, Conv):
            below = list(walk(new.arg))
            # In a `where` branch the current token's part is guarded, and the history is not: they must come apart.
            apart = any(isinstance(n, Ref) and n.name in self.stateful for n in below) or not self.risky.finite(new.arg)
            if new.width == 1 or apart:
                return self._taps(new)
            self.convs[new.history] = new
        return new

    def _stateful(self) -> set[str]:
        """States, and the histories of definitions that need one."""
        reads = {n: {r.name for r in walk(e) if isinstance(r, Ref)} for n, e in self.definitions.items()}
        found = {s.name for s in self.cell.states}
        while more := {n for n, names in reads.items() if n not in found and names & found}:
            found |= more
        return {s.name for s in self.cell.states} | {f"{n}_past" for n in self.definitions if n in found}

    def _taps(self, conv: Conv) -> Expr:
        """A convolution as products with past values.

        A tap is a reference to the weight whose lag is how far back it reads.
        """
        if conv.width > 1:
            self.apart[conv.history] = conv.arg
        dims = self.cell.param(conv.weight).shape
        total: Expr | None = None
        for j in range(conv.width):
            tap = self.graph.ref("param", conv.weight, Type(dims), j)
            past = self.graph.ref("state", conv.history, conv.arg.type, j) if j else conv.arg
            term = self.graph.apply("mul", tap, past)
            total = term if total is None else self.graph.apply("add", total, term)
        assert total is not None
        return total


# Operations whose derivative is a number, whatever their operands are.
_STRAIGHT = frozenset("add sub neg where only like eq ne lt le gt ge and or not real imag conj stop_gradient".split())
# Operations that are finite, and their derivative too, wherever their operands are.
_TAME = _STRAIGHT | frozenset(
    "mul max min abs sign square sin cos erf sigmoid logsigmoid tanh relu silu gelu softplus".split()
)


class _Risk:
    """Where a cotangent of 0 may become NaN."""

    def __init__(self, cell: Cell) -> None:
        self.known: dict[Expr, bool] = {}
        self.infinite = {i.name for i in cell.inputs if _reaches_infinity(i.region)}
        # Params are real numbers, whatever they begin with.
        starts = [(p.name, p.init) for p in cell.params if not p.learned] + [(s.name, s.init) for s in cell.states]
        for name, init in starts:
            if not self.finite(init):
                self.infinite.add(name)

    def __call__(self, node: Expr) -> bool:
        """Whether a cotangent of 0 may become NaN here: a derivative that may be infinite, or NaN."""
        match node:
            case Solve():
                return True
            case Reduce(op="sum" | "mean"):
                return False
            case Apply(op=op) if op in _STRAIGHT:
                return False
            case Apply() | Reduce() | Normalize() | Linear():
                return not (self._tame(node) and all(self.finite(c) for c in node.children))
            case _:
                return False

    def finite(self, root: Expr) -> bool:
        """Whether a value is finite as long as inputs and params are, apart from overflow of sums and products."""
        stack = [root]
        while stack:
            node = stack[-1]
            if waiting := [c for c in node.children if c not in self.known]:
                stack.extend(waiting)
                continue
            stack.pop()
            self.known[node] = self._tame(node) and all(self.known[c] for c in node.children)
        return self.known[root]

    def _tame(self, node: Expr) -> bool:
        """Whether finite operands make a finite value, with a finite derivative."""
        match node:
            case Apply(op=op):
                return op in _TAME
            case Lit():
                return not _is_infinite(node)
            case Ref(name=name):
                return name not in self.infinite
            case Normalize(op=op, eps=eps):
                return op == "softmax" or eps > 0
            case Reduce(op=op):
                return op != "logsumexp"
            case _:
                return not isinstance(node, Solve)


def _reaches_infinity(region: Region | None) -> bool:
    """Whether an infinity is among the values of an input."""
    match region:
        case Interval(lo=lo, hi=hi):
            ends = ((lo, region.lo_open), (hi, region.hi_open))
            return any(not is_open and any(_is_infinite(n) for n in walk(end)) for end, is_open in ends)
        case _:
            return False


def _is_infinite(node: Expr) -> bool:
    return isinstance(node, Lit) and not isinstance(node.value, complex) and math.isinf(node.value)


def _varies(node: Expr) -> bool:
    """Whether gradients may arrive here, for a reference or for the weight of a map."""
    return isinstance(node, Conv | Linear) or (isinstance(node, Ref) and node.role not in ("const", "size"))


class _Guard:
    """Writes `only` on what enters a `where` branch whose derivative may be infinite or NaN (0 * inf is NaN)."""

    def __init__(self, graph: Graph, risky: _Risk) -> None:
        self.graph, self.risky = graph, risky
        self.done: dict[Expr, Expr] = {}

    def __call__(self, root: Expr) -> Expr:
        for node in walk(root):
            if node in self.done:
                continue
            new = self.graph.rebuild(node, tuple(self.done[c] for c in node.children)) if node.children else node
            if isinstance(new, Apply) and new.op == "where":
                condition, yes, no = new.args
                no_condition = self.graph.apply("not", condition)
                new = self.graph.apply("where", condition, self.branch(yes, condition), self.branch(no, no_condition))
            self.done[node] = new
        return self.done[root]

    def branch(self, root: Expr, condition: Expr) -> Expr:
        """The branch with `only` on the operands of whatever may have an infinite derivative, or NaN, there."""
        varying = depends([root], [n for n in walk(root) if _varies(n)])
        memo: dict[tuple[Expr, Expr], Expr] = {}

        def have(node: Expr, mask: Expr) -> Expr | None:
            leaf = node not in varying or not node.children or isinstance(node, Conv)
            return node if leaf else memo.get((node, mask))

        stack = [(root, condition)]
        while stack:
            node, mask = stack[-1]
            if have(node, mask) is not None:
                stack.pop()
                continue
            inner = self._enter(node, mask)
            if waiting := [c for c in node.children if have(c, inner) is None]:
                stack.extend((c, inner) for c in waiting)
                continue
            children = [memo.get((c, inner), c) for c in node.children]
            if self.risky(node) and isinstance(node, Linear):
                # The weight is no operand that could be guarded: its gradient is a product with this value.
                children = [self.graph.apply("where", inner, children[0], self.graph.lit(0.0))]
            elif self.risky(node):
                guarded = zip(children, node.children, strict=True)
                children = [self._only(c, inner) if n in varying and n.kind != "bool" else c for c, n in guarded]
            memo[node, mask] = self.graph.rebuild(node, tuple(children))
        return memo.get((root, condition), root)

    def _only(self, node: Expr, mask: Expr) -> Expr:
        return self.graph.apply("only", node, mask)

    def _enter(self, node: Expr, mask: Expr) -> Expr:
        """The mask for the operands of `node`: true wherever a selected entry depends on them."""
        match node:
            case Apply():
                return mask
            case Rename(old=old, new=new):
                mask = self._any(mask, (old,))
                return self.graph.rename(mask, new, old) if new in mask.dims else mask
            case Split(dim=dim, into=into):
                mask = self._any(mask, (dim,))
                if set(into) <= set(mask.dims):
                    return self.graph.merge(mask, into, dim)
                return self._any(mask, into)
            case Merge(merged=merged, into=into):
                mask = self._any(mask, merged)
                return self.graph.split(mask, into, merged) if into in mask.dims else mask
            case Reduce(over=over) | Normalize(over=over):
                return self._any(mask, over)
            case Linear(ins=ins, outs=outs):
                return self._any(mask, (*ins, *outs))
            case Solve(row=row, col=col):
                return self._any(mask, (row, col))
            case _:
                raise TypeError(f"no branch goes through {type(node).__name__}")

    def _any(self, mask: Expr, dims: tuple[str, ...]) -> Expr:
        over = [d for d in mask.dims if d in dims]
        if not over:
            return mask
        return self.graph.apply("gt", self.graph.reduce("max", over, mask), self.graph.lit(0.0))
