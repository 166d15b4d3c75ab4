"""Plan → Decodes: what one kernel computes of a step of one token.

A step has no recurrence: what was is read, and what will be is one more expression. So states that later tokens would
keep apart may be computed together, entries may be mixed by sums over what a program has, and whatever stands between
two learned maps may be in the kernel.
Goals: find the states that fit, join them, draw each kernel's border. Non-goals: its text; gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from functools import reduce
from typing import TypeGuard

from rnnc.check.sizes import size_at_defaults
from rnnc.derive import depends
from rnnc.fuse import elementwise, reached, streams_of
from rnnc.ir import Apply, Conv, Expr, Graph, Linear, Normalize, Reduce, Ref, Type, walk
from rnnc.lower import Stream
from rnnc.plan import Loop, Plan, Pointwise, Scan, Step, is_number, needs, per_token

LARGEST = 1 << 15
"""Entries of states, at the sizes that are declared, up to which a program has all of them: 128 x 256."""
MOST = 4
"""States in one kernel that a program has all dims of."""


@dataclass(frozen=True)
class Decode:
    """States that one kernel moves by one token, and all that it can compute around them.

    Their dims come apart into `outer`, of which a program has one entry, `inner`, of which it has all, and `block`, of
    which it has some; or all where it is `whole`. So it sums over `inner`, and over `block` where that is whole.
    `inputs` and `fixed`, what only parameters decide, are computed before; `results` are written beside the states.
    `wide_results` says which of them enter further computations, and so keep the computing dtype.
    """

    steps: tuple[Scan | Loop, ...]
    dims: tuple[str, ...]
    outer: tuple[str, ...]
    block: tuple[str, ...]
    inner: tuple[str, ...]
    whole: bool
    inputs: tuple[Expr, ...] = ()
    fixed: tuple[Expr, ...] = ()
    results: tuple[Expr, ...] = ()
    wide_results: tuple[bool, ...] = ()

    @property
    def streams(self) -> tuple[Stream, ...]:
        return tuple(s for step in self.steps for s in streams_of(step))

    @property
    def told(self) -> str:
        """What it has of its states, in words."""
        whole = [*self.inner, *(self.block if self.whole else ())]
        held = f", which has all of {' and '.join(whole)}" if whole else ""
        names = [s.name for s in self.streams if s.declared]
        return f"one kernel for {', '.join(names)}{held}" if len(names) > 1 or held else "one kernel"

    @property
    def counted(self) -> tuple[str, ...]:
        """Dims that none of the states has: a loop goes through the entries of each."""
        found = {d for e in (*self.inputs, *self.fixed, *self.results) for d in e.dims if d not in self.dims}
        return tuple(sorted(found))


@dataclass(frozen=True)
class _Shape:
    """What a kernel sums over: dims of the states, all of which a program has."""

    dims: tuple[str, ...]
    inner: frozenset[str] = frozenset()
    whole: frozenset[str] = frozenset()

    def computes(self, node: Expr) -> bool:
        """Whether a kernel of this shape has the operation."""
        if len(set(node.dims) - set(self.dims)) > 1:
            return False
        match node:
            case Reduce(op="sum" | "mean" | "max" | "min", over=over):
                return self.sums(over) and (node.op in ("sum", "mean") or node.kind != "complex")
            case Normalize(over=over):
                return node.kind == "real" and self.sums(over)
            case Conv():
                return True
            case _:
                return elementwise(node)

    def sums(self, over: Iterable[str]) -> bool:
        over = frozenset(over)
        return bool(over) and over in (self.inner, self.whole, self.inner | self.whole)


def alone(step: Step) -> Step:
    """The step as one token takes it: a scan is one product and one sum."""
    return replace(step, chunks=None) if isinstance(step, Scan) else step


def convolved(graph: Graph, node: Conv) -> Expr:
    """A convolution at one token: a sum of products with what its history holds."""
    weights = [graph.ref("param", node.weight, Type(node.arg.dims), j) for j in range(node.width)]
    values = [node.arg, *(graph.ref("state", node.history, node.arg.type, j) for j in range(1, node.width))]
    products = [graph.apply("mul", w, x) for w, x in zip(weights, values, strict=True)]
    return reduce(lambda a, b: graph.apply("add", a, b), products)


def decodes(plan: Plan) -> tuple[Decode, ...]:
    """The kernels of a step, in the order of their first state."""
    return _Decoding(plan).kernels()


class _Decoding:
    def __init__(self, plan: Plan) -> None:
        self.plan, self.system = plan, plan.system
        self.place = {s.name: i for i, step in enumerate(plan.steps) for s in streams_of(step)}
        self.recurrent = {s.name for step in plan.steps if not isinstance(step, Pointwise) for s in streams_of(step)}
        self.outputs = [e for _, e in self.system.outputs] + [c.arg for c in self.system.convs.values()]
        roots = [*(s.expr for s in self.system.streams), *self.outputs]
        self.made = {c for n in walk(*roots) if isinstance(n, Linear | Conv) for c in n.children}
        """What PyTorch computes in any case."""
        self.written: set[Expr] = set()
        """Results of the kernels so far."""

    def kernels(self) -> tuple[Decode, ...]:
        joined: list[tuple[int, list[Scan | Loop], _Shape]] = []
        for i, step in enumerate(self.plan.steps):
            if isinstance(step, Pointwise):
                continue
            for k, (at, members, _) in enumerate(joined):
                if (found := self.joined([*members, step], at)) is not None:
                    joined[k] = (at, [*members, step], found)
                    break
            else:
                if (found := self.shape([step], i)) is not None:
                    joined.append((i, [step], found))
        taken = {id(s) for _, members, _ in joined for s in members}
        others = self.outputs + [e for s in self.plan.steps if id(s) not in taken for e in needs(alone(s))]
        others += [s.expr for s in self.system.streams if s.name not in self.recurrent]
        out: list[Decode] = []
        for at, members, found in joined:
            around = others + [s.expr for _, m, _ in joined if m is not members for x in m for s in streams_of(x)]
            out.append(self.kernel(at, members, found, around))
        return self.read(out, others)

    # --- what fits, and together ---

    def shape(self, steps: Sequence[Scan | Loop], at: int) -> _Shape | None:
        """What a kernel with these states sums over, if there is one for them at this place."""
        streams = [s for step in steps for s in streams_of(step)]
        dims = max((s.type.dims for s in streams), key=len)
        if not dims or any(not set(s.type.dims) <= set(dims) or s.type.kind == "bool" for s in streams):
            return None
        updates = [s.expr for s in streams]
        reach = self.reach(updates, streams)
        mixed = list(dict.fromkeys(frozenset(n.over) for n in walk(*updates) if n in reach and _sums(n)))
        if any(not over <= set(dims) for over in mixed):
            return None
        inner = next((x for x in [*mixed, *self.reads(streams, dims)] if x < set(dims)), frozenset[str]())
        rest = [x for x in mixed if x != inner]
        whole = rest[0] if rest else frozenset[str]()
        if inner & whole:
            return None
        if not whole:
            whole = self.whole(streams, dims, inner)
        found = _Shape(dims, inner, whole)
        if inner and sum(set(s.type.dims) == set(dims) for s in streams) > MOST:
            return None
        own = {s.name for s in streams}
        extra = {s.over for s in streams}
        for node in walk(*updates):
            if isinstance(node, Ref):
                if not self.available(node, at, own):
                    return None
            elif node in reach and not (found.computes(node) and set(node.dims) <= {*dims, *extra}):
                return None
        return found

    def joined(self, steps: Sequence[Scan | Loop], at: int) -> _Shape | None:
        """The same of several, none of which sums over anything else by itself."""
        found = self.shape(steps, at)
        if found is None:
            return None
        for step in steps:
            streams = streams_of(step)
            dims = max((s.type.dims for s in streams), key=len)
            reach = self.reach([s.expr for s in streams], streams)
            own = [frozenset(n.over) for n in walk(*(s.expr for s in streams)) if n in reach and _sums(n)]
            if any(not found.sums(over) for over in [*own, *self.reads(streams, dims)][:1]):
                return None
        return found

    def reads(self, streams: Sequence[Stream], dims: tuple[str, ...]) -> list[frozenset[str]]:
        """What readers of states sum over."""
        around = [s.expr for s in self.system.streams] + self.outputs
        reach = self.reach(around, streams)
        return [frozenset(n.over) for n in walk(*around) if n in reach and _sums(n) and set(n.over) < set(dims)]

    def whole(self, streams: Sequence[Stream], dims: tuple[str, ...], inner: frozenset[str]) -> frozenset[str]:
        """What a program may have all of besides, so that it can sum over that."""
        count = sum(1 + (s.type.kind == "complex") for s in streams if set(s.type.dims) == set(dims))
        for over in self.reads(streams, dims):
            if not over & inner and count * self.entries([*inner, *over]) <= LARGEST:
                return over
        return frozenset()

    def entries(self, dims: Iterable[str]) -> float:
        """The product of sizes, as declared."""
        sizes: dict[str, int | None] = {}
        for d in self.system.cell.dims:
            size = size_at_defaults(d.size, sizes) if isinstance(d.size, Expr) else d.size
            sizes[d.name] = None if size is None else int(size)
        return math.prod(float(sizes[d] or math.inf) for d in dims)

    def reach(self, roots: Iterable[Expr], streams: Iterable[Stream]) -> set[Expr]:
        """What depends on the states, as they are or were a token ago."""
        own, roots = {s.name for s in streams}, list(roots)
        return depends(roots, [n for n in walk(*roots) if _is_state(n, own) and n.lag <= 1])

    def available(self, node: Expr, at: int, own: Set[str] = frozenset()) -> bool:
        """Whether a value is there before the step at place `at`, or is one of the states `own`."""
        stack, seen = [node], set[Expr]()
        while stack:
            for n in walk(stack.pop()):
                if n in seen or not isinstance(n, Ref) or n.role != "state" or n.lag or n.name in own:
                    continue
                seen.add(n)
                if n.name not in self.recurrent:
                    stack.append(self.system.stream(n.name).expr)
                elif self.place[n.name] >= at:
                    return False
        return True

    # --- the border ---

    def kernel(self, at: int, steps: list[Scan | Loop], shape: _Shape, around: list[Expr]) -> Decode:
        streams = [s for step in steps for s in streams_of(step)]
        reach = self.reach(around, streams)
        inside = self.inside(at, shape, around, reach)
        edge: dict[Expr, None] = {}
        for node in walk(*around):
            if node not in inside:
                edge.update((c, None) for c in node.children if c in inside)
        edge.update((n, None) for n in around if n in inside)
        results = tuple(n for n in edge if not isinstance(n, Ref) and n not in self.written)
        self.written |= set(results)
        outer, block = self.parts(steps, shape, results)
        inner = tuple(d for d in shape.dims if d in shape.inner)
        made = Decode(tuple(steps), shape.dims, outer, block, inner, bool(shape.whole), results=results)
        wide = tuple(self.wide(r, around, inside) for r in results)
        return replace(self.bordered(made, shape), wide_results=wide)

    def inside(self, at: int, shape: _Shape, around: list[Expr], reach: set[Expr]) -> set[Expr]:
        """What of `around` a kernel can compute from its states."""
        inside: set[Expr] = set()
        there: dict[Expr, bool] = {}
        for node in walk(*around):
            for child in node.children:
                if child not in reach and child not in there:
                    there[child] = self.available(child, at)
            if node in reach and (
                isinstance(node, Ref)
                or (shape.computes(node) and all(c in inside if c in reach else there[c] for c in node.children))
            ):
                inside.add(node)
        # Products that PyTorch sums are its own: as large as the state, they are never made as they stand.
        readers: dict[Expr, list[Expr]] = {}
        for node in walk(*around):
            for child in node.children:
                readers.setdefault(child, []).append(node)
        kept = set(around)
        for node in reversed(list(walk(*around))):
            if node in inside and _product(node) and node not in kept:
                outer = [r for r in readers[node] if r not in inside]
                if len(outer) == len(readers[node]) and all(_sums(r) or _product(r) for r in outer):
                    inside.remove(node)
        return inside

    def bordered(self, kernel: Decode, shape: _Shape) -> Decode:
        read = self.border([*(s.expr for s in kernel.streams), *kernel.results], kernel.streams, shape, kernel.results)
        inputs, fixed = (tuple(n for n in read if per_token(n) is token) for token in (True, False))
        return replace(kernel, inputs=inputs, fixed=fixed)

    def parts(
        self, steps: Sequence[Scan | Loop], shape: _Shape, results: Sequence[Expr]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The dims that are not inner as those of which a program has one entry, and the others: what the least of its
        operands that have the inner dims lack, so that a program reads those once."""
        rest = [d for d in shape.dims if d not in shape.inner]
        block = set(shape.whole)
        if not block and shape.inner:
            streams = [s for step in steps for s in streams_of(step)]
            read = self.border([*(s.expr for s in streams), *results], streams, shape, results)
            lacking = [set(rest) - set(n.dims) for n in read if set(n.dims) & shape.inner]
            for lacks in sorted((x for x in lacking if x), key=lambda x: (rest[-1] not in x, len(x))):
                block = (block & lacks) or block or lacks
        block = block or set(rest)
        return tuple(d for d in rest if d not in block), tuple(d for d in rest if d in block)

    def border(
        self, exprs: Iterable[Expr], streams: Iterable[Stream], shape: _Shape, results: Iterable[Expr]
    ) -> list[Expr]:
        """What a kernel reads to compute `exprs`, its own states excepted."""
        exprs, own, results = list(exprs), {s.name for s in streams}, set(results)
        mine = self.reach(exprs, streams)
        found: dict[Expr, None] = {}
        stack, seen = list(reversed(exprs)), set[Expr]()
        while stack:
            node = stack.pop()
            if node in seen or is_number(node):
                continue
            seen.add(node)
            if _is_state(node, own) and node.lag <= 1:
                continue
            free = node not in self.made and (node not in self.written or node in results)
            if isinstance(node, Conv) and shape.computes(node) and free:
                stack.append(convolved(self.system.graph, node))
            elif node in mine or (shape.computes(node) and free):
                stack.extend(reversed(node.children))
            else:
                found[node] = None
        return list(found)

    def read(self, kernels: list[Decode], others: list[Expr]) -> tuple[Decode, ...]:
        """The kernels without results that nothing reads: a later kernel may compute them again."""
        while True:
            made = {r for k in kernels for r in k.results}
            seen = reached(others + [e for k in kernels for e in (*k.inputs, *k.fixed)], made)
            if made <= seen:
                return tuple(kernels)
            for i, k in enumerate(kernels):
                kept = [(r, w) for r, w in zip(k.results, k.wide_results, strict=True) if r in seen]
                shape = _Shape(k.dims, frozenset(k.inner), frozenset(k.block) if k.whole else frozenset())
                trimmed = replace(k, results=tuple(r for r, _ in kept), wide_results=tuple(w for _, w in kept))
                kernels[i] = self.bordered(trimmed, shape)

    def wide(self, node: Expr, around: list[Expr], inside: set[Expr]) -> bool:
        """Whether a result enters anything but outputs as they are and learned maps."""
        outputs = {e for _, e in self.system.outputs}
        readers = (n for n in walk(*around) if n not in inside and node in n.children)
        return any(not isinstance(n, Linear) for n in readers) or (node in around and node not in outputs)


def _sums(node: Expr) -> TypeGuard[Reduce | Normalize]:
    return isinstance(node, Reduce | Normalize)


def _product(node: Expr) -> bool:
    return isinstance(node, Apply) and node.op == "mul"


def _is_state(node: Expr, names: Set[str]) -> TypeGuard[Ref]:
    return isinstance(node, Ref) and node.role == "state" and node.name in names
