"""Expressions of one token as stages: matrix products, small systems, and nests of loops over units.

Goals: what a step computes, in an order in which everything is there when it is read, with as few arrays between as
follow from that. `Stager` gives each node a level; within a level products and systems come first, then nests, those
with fewer dims before those with more. A node is an array only where another nest, or another index, reads it.
Non-goals: text.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from rnnc.ir import Apply, Expr, Graph, Kind, Linear, Merge, Normalize, Reduce, Rename, Solve, Split, Type
from rnnc.plan import is_number

from .primitive import primitive

if TYPE_CHECKING:
    from .over import Over


@dataclass(frozen=True)
class Array:
    """Numbers in memory: row-major in the order of `dims`, which may name one twice for a matrix.

    `role` and `index` say to whoever lays them out what they are; `padded` that each stretch of the dims from the
    `padded`-th on takes a whole number of vectors.
    """

    name: str
    dims: tuple[str, ...]
    kind: Kind = "real"
    role: str = "scratch"
    index: int = 0
    lag: int = 0
    padded: int | None = None


@dataclass(frozen=True)
class Store:
    """`array = node`, or `+=`."""

    array: Array
    node: Expr
    add: bool = False


@dataclass(frozen=True)
class Nest:
    """For each entry of `dims`: the nodes, operands first; then what is stored and what is summed up over some dims.

    Sums (also `max`, `min`) start at their neutral element; `array` lacks the dims that are reduced.
    """

    dims: tuple[str, ...]
    nodes: tuple[Expr, ...]
    stores: tuple[Store, ...]
    sums: tuple[Store, ...]


@dataclass(frozen=True)
class Product:
    """`out[kept, outs] = sum over ins of matrix * arg[kept, ins]`; `axes` tells what each axis of the matrix is."""

    out: Array
    arg: Array
    matrix: Array
    kept: tuple[str, ...]
    outs: tuple[str, ...]
    ins: tuple[str, ...]
    axes: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class System:
    """`out` solves `sum[col](matrix * out[row -> col]) = rhs` for each entry of the other dims. All are arrays, but
    `matrix` and `rhs` may be views of arrays of other dims, and have here `matrix_dims` and `rhs_dims`."""

    out: Array
    matrix: Array
    rhs: Array
    matrix_dims: tuple[str, ...]
    rhs_dims: tuple[str, ...]
    row: str
    col: str


@dataclass(frozen=True)
class Run:
    """An array that small steps hand on. It lies in `room`, at the entry of this small step and `shift`; at the first
    entry of all, or at the last, it is `end`."""

    room: Array
    end: Array | None
    first: bool
    shift: int


@dataclass(frozen=True)
class Repeat:
    """Small steps, one for each entry of `over`; within, arrays with that dim are at that entry.

    Where there is `back`, `steps` only make the running values that it reads, without the last one, and it goes from
    the last entry to the first. `sums` begin at 0.
    """

    over: str
    steps: Stages
    back: Stages | None
    runs: Mapping[Array, Run]
    sums: tuple[Array, ...] = ()


Stage = Nest | Product | System | Repeat


@dataclass(frozen=True)
class Stages:
    """The order of the work, the arrays between stages, and how many products depend on each other in a row."""

    order: tuple[Stage, ...]
    scratch: tuple[Array, ...]
    depth: int
    values: Mapping[Expr, Array]
    """Where each node is that some stage reads from memory."""
    held: str | None = None
    """The dim that arrays are at one entry of."""

    @property
    def all(self) -> Iterator[Stage]:
        """The stages, and those within small steps."""
        for stage in self.order:
            yield stage
            if isinstance(stage, Repeat):
                yield from stage.steps.all
                yield from stage.back.all if stage.back else ()

    @property
    def products(self) -> tuple[Product, ...]:
        return tuple(s for s in self.all if isinstance(s, Product))


def base(node: Expr) -> Expr:
    """What a chain of renamed, split and merged dims is a view of."""
    while isinstance(node, Rename | Split | Merge):
        node = node.arg
    return node


def operands(node: Expr) -> tuple[Expr, ...]:
    """The children whose numbers matter."""
    return node.children[:1] if isinstance(node, Apply) and node.op in ("like", "only") else node.children


class Stager:
    """Orders the computation of `results`. `given` are the nodes that are in memory; `weight` the learned matrices.

    `hint` names nodes, `new` makes distinct names. `overs` are the results of updates over a dim, which are one
    operation each; `held` the dim that arrays are at an entry of.
    """

    def __init__(
        self,
        graph: Graph,
        given: Mapping[Expr, Array],
        weight: Mapping[str, Array],
        results: Sequence[Store],
        hint: Mapping[Expr, str],
        new: Callable[[str], str],
        overs: Mapping[Expr, Over] | None = None,
        held: str | None = None,
    ) -> None:
        self.graph, self.weight, self.new, self.overs, self.held = graph, weight, new, overs or {}, held
        self.values: dict[Expr, Array] = dict(given)
        self.given = frozenset(given)
        inputs = {o: o.inputs for o in self.overs.values()}
        done = primitive(graph, [*(r.node for r in results), *(e for i in inputs.values() for e in i)], given)
        self.inputs = {o: {done[e]: dims for e, dims in i.items()} for o, i in inputs.items()}
        self.done = done
        self.hint = {**{done[n]: h for n, h in hint.items() if n in done}, **hint}
        self.results = [Store(r.array, self._spread(done[r.node], r.array), r.add) for r in results]
        self.fixed = {n for n, a in given.items() if a.role == "fixed"}
        self.matrices: dict[Expr, _Matrix] = {}
        self.nodes = self._below([*(r.node for r in self.results), *self.overs])
        self.level: dict[Expr, int] = {}
        self.scratch: list[Array] = []

    def _spread(self, node: Expr, array: Array) -> Expr:
        """A node with all dims of the array that it goes to."""
        dims = tuple(d for d in array.dims if d != self.held)
        if set(node.dims) == set(dims):
            return node
        return self.graph.apply("like", node, self.graph.ref("input", "", Type(dims)))

    def _below(self, roots: Iterable[Expr]) -> list[Expr]:
        """What is to be computed, operands first. Finds the products with matrices on the way."""
        out: list[Expr] = []
        seen: set[Expr] = set()
        stack = [(r, False) for r in list(roots)[::-1]]
        while stack:
            node, ready = stack.pop()
            if ready:
                out.append(node)
            elif node not in seen and node not in self.given and not is_number(node):
                seen.add(node)
                known = isinstance(node, Apply | Reduce | Rename | Split | Merge | Linear | Solve)
                if not known and node not in self.overs:
                    raise NotImplementedError(type(node).__name__)
                if (found := self._matrix(node)) is not None:
                    self.matrices[node] = found
                below = self.operands(node) if found is None else (found.operand,)
                stack.append((node, True))
                stack.extend((c, False) for c in below[::-1])
        return out

    def operands(self, node: Expr) -> tuple[Expr, ...]:
        return tuple(self.inputs[self.overs[node]]) if node in self.overs else operands(node)

    def _matrix(self, node: Expr) -> _Matrix | None:
        """A node as the product with a matrix that no token changes."""
        if isinstance(node, Linear) and node.kind == "real":
            array = self.weight[node.weight]
            # One that has a matrix for each small step has that dim among the kept ones.
            kept = array.dims[: len(array.dims) - len(node.outs) - len(node.ins)]
            axes = [("kept", d) for d in kept]
            axes += [("in" if node.transposed else "out", d) for d in node.outs]
            axes += [("out" if node.transposed else "in", d) for d in node.ins]
            outs, ins = (node.ins, node.outs) if node.transposed else (node.outs, node.ins)
            return _Matrix(array, node.arg, kept, outs, ins, tuple(axes))
        if not isinstance(node, Reduce) or node.op != "sum" or node.kind != "real":
            return None
        factors = list(_factors(node.arg, self.given))
        still = [f for f in factors if base(f) in self.fixed and f.kind == "real" and self.renamed(f)]
        for f in still:
            rest = [x for x in factors if x is not f]
            dims = {d for x in rest for d in x.dims}
            outs = tuple(d for d in node.dims if d not in dims)
            kept = tuple(d for d in node.dims if d in dims)
            if outs and set(f.dims) == {*node.dims, *node.over} and dims == {*kept, *node.over}:
                operand = rest[0]
                for x in rest[1:] or ([self.graph.lit(1.0)] if operand.kind == "bool" else []):
                    operand = self.graph.apply("mul", operand, x)
                array, names = self.renamed(f) or (self.values[base(f)], ())
                each = {*kept, self.held}
                axes = tuple(("in" if d in node.over else "kept" if d in each else "out", d) for d in names)
                parts = [tuple(d for r, d in axes if r == role) for role in ("kept", "out", "in")]
                # Rows and columns must each be one stretch of axes.
                if sum(a[0] != b[0] for a, b in pairwise(axes)) < len([p for p in parts if p]):
                    return _Matrix(array, operand, parts[0], parts[1], parts[2], axes)
        return None

    def renamed(self, node: Expr) -> tuple[Array, tuple[str, ...]] | None:
        """The array that a node is in, and what its dims are called here; None where it is in none as it is."""
        if node in self.values:
            return self.values[node], self.values[node].dims
        if not isinstance(node, Rename | Split | Merge):
            return None
        inner = self.renamed(node.arg)
        if inner is None:
            return None
        array, dims = inner
        match node:
            case Rename(old=old, new=new):
                return array, tuple(new if d == old else d for d in dims)
            case Split(dim=dim, into=into):
                return array, tuple(e for d in dims for e in (into if d == dim else (d,)))
            case Merge(merged=merged, into=into):
                at = dims.index(merged[0])
                if dims[at : at + len(merged)] != merged:
                    return None
                return array, (*dims[:at], into, *dims[at + len(merged) :])

    # --- levels ---

    def pointwise(self, node: Expr) -> bool:
        return isinstance(node, Apply) and node not in self.given and not is_number(node)

    def there(self, node: Expr) -> int:
        """The first level at which a nest can read a node: at its own index if it is pointwise, else at any."""
        if node in self.given or is_number(node):
            return 0
        if isinstance(node, Rename | Split | Merge):
            below = base(node)
            return self.there(below) + (1 if self.pointwise(below) else 0)
        return self.level[node] + (1 if isinstance(node, Reduce) and node not in self.matrices else 0)

    def in_memory(self, node: Expr, dims: tuple[str, ...]) -> int:
        """The first level at whose start a node is an array laid out as `dims`."""
        found = self.renamed(base(node)) if base(node) in self.given else None
        if found is not None and self.direct(node, dims) is not None:
            return 0
        stays = not self.pointwise(node) and not isinstance(node, Rename | Split | Merge) and node not in self.given
        return self.there(node) + (0 if stays and self._lies_as(node, dims) else 1)

    def _lies_as(self, node: Expr, dims: tuple[str, ...]) -> bool:
        """Whether a sum, product or solution comes out in this order."""
        return node not in self.matrices and node.dims == dims

    def direct(self, node: Expr, dims: tuple[str, ...]) -> Array | None:
        """The array that holds a node in this order."""
        found = self.renamed(node)
        if found is None or found[1] != dims or found[0].padded is not None:
            return None
        # What small steps hand on is now here, now there.
        return found[0] if found[0].role != "run" else None

    def _ask(self) -> None:
        for node in self.nodes:
            if node in self.matrices:
                m = self.matrices[node]
                self.level[node] = self.in_memory(m.operand, (*m.kept, *m.ins))
            elif isinstance(node, Solve):
                matrix, rhs = self._system_dims(node)
                self.level[node] = max(self.in_memory(node.matrix, matrix), self.in_memory(node.rhs, rhs))
            elif node in self.overs:
                self.level[node] = max((self.in_memory(*e) for e in self.inputs[self.overs[node]].items()), default=0)
            elif isinstance(node, Rename | Split | Merge):
                continue
            else:
                self.level[node] = max((self.there(c) for c in operands(node)), default=0)

    def _system_dims(self, node: Solve) -> tuple[tuple[str, ...], tuple[str, ...]]:
        lead = tuple(d for d in node.dims if d != node.row)
        matrix, rhs = (tuple(d for d in lead if d in n.dims) for n in (node.matrix, node.rhs))
        return (*matrix, node.row, node.col), (*rhs, node.row)

    def _delay(self) -> None:
        """Move what is not read until later to where it is read."""
        latest: dict[Expr, int] = {}

        def by(node: Expr, level: int) -> None:
            """`node` is read by a nest of this level."""
            if isinstance(node, Rename | Split | Merge):
                below = base(node)
                if below in self.level:
                    late = level - (1 if self.pointwise(below) else 0)
                    latest[below] = min(latest.get(below, late), late)
            elif node in self.level:
                latest[node] = min(latest.get(node, level), level)

        def before(node: Expr, dims: tuple[str, ...], level: int) -> None:
            """`node` is read in memory at the start of this level."""
            if base(node) in self.level:
                stays = self._lies_as(node, dims) and not self.pointwise(node)
                by(node, level if stays else level - 1)

        for r in self.results:
            if not self.pointwise(r.node):
                by(r.node, self.there(r.node))
        for node in reversed(self.nodes):
            if node in self.matrices:
                m = self.matrices[node]
                before(m.operand, (*m.kept, *m.ins), self.level[node])
            elif isinstance(node, Solve):
                for part, dims in zip((node.matrix, node.rhs), self._system_dims(node), strict=True):
                    before(part, dims, self.level[node])
            elif node in self.overs:
                for e, dims in self.inputs[self.overs[node]].items():
                    before(e, dims, self.level[node])
            elif node in self.level:
                if node in latest:
                    late = latest[node] - (1 if isinstance(node, Reduce) else 0)
                    self.level[node] = max(self.level[node], late)
                for c in operands(node):
                    by(c, self.level[node])

    # --- stages ---

    def stages(self) -> Stages:
        self._ask()
        self._delay()
        self._stores: dict[tuple[int, tuple[str, ...]], list[Store]] = {}
        self._sums: dict[tuple[int, tuple[str, ...]], list[Store]] = {}
        first: dict[int, list[Stage]] = {}
        for r in self.results:
            level = self.level[r.node] if self.pointwise(r.node) else self.there(r.node)
            self._stores.setdefault((level, r.node.dims), []).append(r)
        for node in self.nodes:
            if isinstance(node, Reduce) and node not in self.matrices:
                array = self._array(node, node.dims)
                self._sums.setdefault((self.level[node], node.arg.dims), []).append(Store(array, node))
        for node in self.nodes:
            if node in self.matrices:
                m = self.matrices[node]
                arg = self._operand(m.operand, (*m.kept, *m.ins), self.level[node])
                out = self._array(node, (*m.kept, *m.outs), len(m.kept))
                product = Product(out, arg, m.array, m.kept, m.outs, m.ins, m.axes)
                first.setdefault(self.level[node], []).append(product)
            elif isinstance(node, Solve):
                if node.kind != "real":
                    raise NotImplementedError("a complex system")
                matrix_dims, rhs_dims = self._system_dims(node)
                matrix = self._operand(node.matrix, matrix_dims, self.level[node])
                rhs = self._operand(node.rhs, rhs_dims, self.level[node])
                out = self._array(node, (*(d for d in node.dims if d != node.row), node.row))
                made = System(out, matrix, rhs, matrix_dims, rhs_dims, node.row, node.col)
                first.setdefault(self.level[node], []).append(made)
            elif node in self.overs and node not in self.values:
                first.setdefault(self.level[node], []).append(self._repeat(self.overs[node], self.level[node]))
        self._share()
        order: list[Stage] = []
        keys = {(self.level[n], n.dims) for n in self.nodes if self.pointwise(n)} | {*self._stores, *self._sums}
        for level in range(max([*first, *(k[0] for k in keys)], default=-1) + 1):
            order.extend(first.get(level, []))
            for key in sorted((k for k in keys if k[0] == level), key=lambda k: (len(k[1]), k[1])):
                nodes = tuple(n for n in self.nodes if self.pointwise(n) and (self.level[n], n.dims) == key)
                stores, sums = self._stores.get(key, []), self._sums.get(key, [])
                order.append(Nest(key[1], nodes, tuple(stores), tuple(sums)))
        return Stages(tuple(order), tuple(self.scratch), self._depth(), self.values, self.held)

    def _depth(self) -> int:
        """The longest chain of products that need each other."""
        deep: dict[Expr, int] = {}
        for node in self.nodes:
            below = (self.matrices[node].operand,) if node in self.matrices else self.operands(node)
            deep[node] = max((deep.get(c, 0) for c in below), default=0) + (1 if node in self.matrices else 0)
        return max(deep.values(), default=0)

    def _array(self, node: Expr, dims: tuple[str, ...], padded: int | None = None) -> Array:
        name = self.new(self.hint.get(node) or ("product" if padded is not None else "value"))
        array = Array(name, dims, node.kind, "scratch", len(self.scratch), padded=padded)
        self.scratch.append(array)
        self.values[node] = array
        return array

    def _operand(self, node: Expr, dims: tuple[str, ...], level: int) -> Array:
        """Where a node lies in this order; has it stored there if it does not."""
        if (array := self.direct(node, dims)) is not None:
            return array
        at = self.level[node] if self.pointwise(node) else level - 1
        for store in self._stores.get((at, node.dims), []):
            if store.node is node and store.array.dims == dims and not store.add:
                return store.array
        array = Array(self.new(self.hint.get(node) or "operand"), dims, node.kind, "scratch", len(self.scratch))
        self.scratch.append(array)
        self._stores.setdefault((at, node.dims), []).append(Store(array, node))
        if self.pointwise(node):
            self.values.setdefault(node, array)
        return array

    def _repeat(self, over: Over, level: int) -> Repeat:
        small = over.small
        at = {e: self._operand(self.done[e], dims, level) for e, dims in over.inputs.items()}
        given = {part: at[whole] for part, whole in small.given.items() if whole in at}

        def between(name: str) -> tuple[Array, Array, Array]:
            """Room for what goes from one small step to the next, and what reads and writes it."""
            room = Array(self.new(f"{name}_room"), (small.over, *small.type.dims), small.type.kind)
            self.scratch.append(room)
            read, write = (
                Array(self.new(f"{name}{end}"), small.type.dims, small.type.kind, role)
                for end, role in (("_run", "run"), ("_next", "next"))
            )
            return room, read, write

        def staged(stores: Sequence[Store], more: Mapping[Expr, Array]) -> Stages:
            hints = {**small.hints, **self.hint}
            inner = Stager(self.graph, {**given, **more}, self.weight, stores, hints, self.new, held=small.over)
            stages = inner.stages()
            self.scratch.extend(stages.scratch)
            return stages

        name = over.past.name.removesuffix("_prev")
        room, run, after = between(name)
        runs = {run: Run(room, over.past, True, -1), after: Run(room, over.out, False, 0)}
        steps = staged([Store(after, small.expr)], {small.running: run})
        if over.arriving is None or over.cotangent is None or over.flows is None:
            assert over.out is not None
            self.values.update({node: over.out for node, o in self.overs.items() if o is over})
            return Repeat(small.over, steps, None, runs)
        back_room, flow, flown = between(f"d_{name}")
        (_, onward), *others = over.flows.items()
        arrays = [self._array(node, node.dims) for node in over.flows]
        runs |= {flow: Run(back_room, at[over.arriving], False, 1), flown: Run(back_room, arrays[0], True, 0)}
        stores = [Store(flown, self.graph.lit(0.0) if onward is None else onward)]
        stores += [
            Store(a, value, small.over not in a.dims)
            for a, (_, value) in zip(arrays[1:], others, strict=True)
            if value is not None
        ]
        back = staged([*stores, *(Store(a, e) for a, e in over.kept)], {small.running: run, over.cotangent: flow})
        return Repeat(small.over, steps, back, runs, tuple(s.array for s in stores if s.add))

    def _share(self) -> None:
        """An array for each pointwise node that another nest reads, or a view."""
        needed: dict[Expr, None] = {}

        def reads(node: Expr, level: int, dims: tuple[str, ...]) -> None:
            below = base(node)
            if self.pointwise(below) and below not in self.values:
                elsewhere = self.level[below] != level or below.dims != dims
                if below is not node or elsewhere:
                    needed[below] = None

        for node in self.nodes:
            if self.pointwise(node):
                for c in operands(node):
                    reads(c, self.level[node], node.dims)
            elif isinstance(node, Reduce) and node not in self.matrices:
                reads(node.arg, self.level[node], node.arg.dims)
        for (level, dims), stores in self._stores.items():
            for s in stores:
                reads(s.node, level, dims)
        for node in needed:
            array = self._array(node, node.dims)
            self._stores.setdefault((self.level[node], node.dims), []).append(Store(array, node))


@dataclass(frozen=True)
class _Matrix:
    array: Array
    operand: Expr
    kept: tuple[str, ...]
    outs: tuple[str, ...]
    ins: tuple[str, ...]
    axes: tuple[tuple[str, str], ...]


def _factors(node: Expr, whole: Container[Expr]) -> Iterable[Expr]:
    """The factors of a product; those of `whole` are not taken apart."""
    stack = [node]
    while stack:
        e = stack.pop()
        if isinstance(e, Apply) and e.op == "mul" and e.kind == "real" and e not in whole:
            stack.extend(e.args[::-1])
        else:
            yield e


def mixed_dims(roots: Iterable[Expr], stop: Iterable[Expr]) -> set[str]:
    """The dims along which entries meet: all others may be computed apart."""
    stop, found, seen = set(stop), set[str](), set[Expr]()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node in seen or node in stop:
            continue
        seen.add(node)
        stack.extend(operands(node))
        match node:
            case Reduce(over=over) | Normalize(over=over):
                found.update(over)
            case Rename(old=old, new=new):
                found.update((old, new))
            case Split(dim=dim, into=into):
                found.update((dim, *into))
            case Merge(merged=merged, into=into):
                found.update((into, *merged))
            case Linear(ins=ins, outs=outs):
                found.update((*ins, *outs))
            case Solve(row=row, col=col):
                found.update((row, col))
            case _:
                pass
    return found
