"""Expressions of one token as stages: matrix products, small systems, and nests of loops over units.

Goals: what a step computes, in an order in which everything is there when it is read, with as few arrays between as
follow from that. `Stager` gives each node a level; within a level products and systems come first, then nests, those
with fewer dims before those with more. A node is an array only where another nest, or another index, reads it.
Non-goals: text.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rnnc.ir import Apply, Expr, Graph, Kind, Linear, Merge, Normalize, Reduce, Rename, Solve, Split, Type
from rnnc.plan import is_number


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


Stage = Nest | Product | System


@dataclass(frozen=True)
class Stages:
    """The order of the work, the arrays between stages, and how many products depend on each other in a row."""

    order: tuple[Stage, ...]
    scratch: tuple[Array, ...]
    depth: int
    values: Mapping[Expr, Array]
    """Where each node is that some stage reads from memory."""

    @property
    def products(self) -> tuple[Product, ...]:
        return tuple(s for s in self.order if isinstance(s, Product))


def primitive(graph: Graph, roots: Iterable[Expr], stop: Iterable[Expr]) -> dict[Expr, Expr]:
    """The same expressions with norms, means and `logsumexp` written out; nothing below `stop` is looked at."""
    stop, done = set(stop), dict[Expr, Expr]()
    stack = [(r, False) for r in roots]
    while stack:
        node, ready = stack.pop()
        if node in done:
            continue
        if node in stop or not node.children or is_number(node):
            done[node] = node
        elif ready:
            done[node] = _primitive(graph, graph.rebuild(node, tuple(done[c] for c in node.children)))
        else:
            stack.append((node, True))
            stack.extend((c, False) for c in node.children)
    return done


def _primitive(graph: Graph, node: Expr) -> Expr:
    match node:
        case Reduce(op="sum", over=over, arg=arg) if any(d not in arg.dims for d in over):
            inner = [d for d in over if d in arg.dims]
            value = graph.reduce("sum", inner, arg) if inner else arg
            for d in over:
                if d not in arg.dims:
                    value = graph.apply("mul", graph.ref("size", d), value)
            return value
        case Linear(arg=arg) if arg.kind == "complex":
            # The matrix is real.
            parts = [graph.rebuild(node, (graph.apply(part, arg),)) for part in ("real", "imag")]
            return graph.apply("add", parts[0], graph.apply("mul", graph.lit(1j), parts[1]))
        case Linear(arg=arg) if arg.kind == "bool":
            return graph.rebuild(node, (graph.apply("mul", arg, graph.lit(1.0)),))
        case Reduce(op="mean", over=over, arg=arg):
            return _mean(graph, [d for d in over if d in arg.dims], arg)
        case Reduce(op="max" | "min" as op, over=over, arg=arg):
            inner = [d for d in over if d in arg.dims]
            return graph.reduce(op, inner, arg) if inner else arg
        case Reduce(op="logsumexp", over=over, arg=arg):
            inner = [d for d in over if d in arg.dims]
            return _logsumexp(graph, inner, arg) if inner else arg
        case Normalize(op="softmax", over=over, arg=arg):
            power = graph.apply("exp", graph.apply("sub", arg, graph.reduce("max", over, arg)))
            return graph.apply("div", power, graph.reduce("sum", over, power))
        case Normalize(op=op, over=over, arg=arg, eps=eps):
            if op == "layernorm":
                arg = graph.apply("sub", arg, _mean(graph, over, arg))
            square = graph.apply("square", arg)
            if arg.kind == "complex":
                square = graph.apply("real", graph.apply("mul", arg, graph.apply("conj", arg)))
            size = graph.reduce("sum", over, square) if op == "l2norm" else _mean(graph, over, square)
            return graph.apply("mul", arg, graph.apply("rsqrt", graph.apply("add", size, graph.lit(eps))))
        case _:
            return node


def _mean(graph: Graph, over: Sequence[str], arg: Expr) -> Expr:
    if not over:
        return arg
    size: Expr = graph.lit(1.0)
    for d in over:
        size = graph.apply("mul", size, graph.ref("size", d))
    return graph.apply("div", graph.reduce("sum", over, arg), size)


def _logsumexp(graph: Graph, over: Sequence[str], arg: Expr) -> Expr:
    most = graph.reduce("max", over, arg)
    infinite = graph.apply("eq", graph.apply("abs", most), graph.lit(float("inf")))
    shift = graph.apply("where", infinite, graph.lit(0.0), most)
    total = graph.reduce("sum", over, graph.apply("exp", graph.apply("sub", arg, shift)))
    return graph.apply("add", graph.apply("log", total), shift)


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

    `hint` names nodes, `new` makes distinct names.
    """

    def __init__(
        self,
        graph: Graph,
        given: Mapping[Expr, Array],
        weight: Mapping[str, Array],
        results: Sequence[Store],
        hint: Mapping[Expr, str],
        new: Callable[[str], str],
    ) -> None:
        self.graph, self.weight, self.new = graph, weight, new
        self.values: dict[Expr, Array] = dict(given)
        self.given = frozenset(given)
        done = primitive(graph, [r.node for r in results], given)
        self.hint = {**{done[n]: h for n, h in hint.items() if n in done}, **hint}
        self.results = [Store(r.array, self._spread(done[r.node], r.array), r.add) for r in results]
        self.fixed = {n for n, a in given.items() if a.role == "fixed"}
        self.matrices: dict[Expr, _Matrix] = {}
        self.nodes = self._below([r.node for r in self.results])
        self.level: dict[Expr, int] = {}
        self.scratch: list[Array] = []

    def _spread(self, node: Expr, array: Array) -> Expr:
        """A node with all dims of the array that it goes to."""
        if set(node.dims) == set(array.dims):
            return node
        return self.graph.apply("like", node, self.graph.ref("input", "", Type(array.dims)))

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
                if not isinstance(node, Apply | Reduce | Rename | Split | Merge | Linear | Solve):
                    raise NotImplementedError(type(node).__name__)
                if (found := self._matrix(node)) is not None:
                    self.matrices[node] = found
                below = operands(node) if found is None else (found.operand,)
                stack.append((node, True))
                stack.extend((c, False) for c in below[::-1])
        return out

    def _matrix(self, node: Expr) -> _Matrix | None:
        """A node as the product with a matrix that no token changes."""
        if isinstance(node, Linear) and node.kind == "real":
            axes = [("kept", d) for d in node.kept]
            axes += [("in" if node.transposed else "out", d) for d in node.outs]
            axes += [("out" if node.transposed else "in", d) for d in node.ins]
            outs, ins = (node.ins, node.outs) if node.transposed else (node.outs, node.ins)
            return _Matrix(self.weight[node.weight], node.arg, node.kept, outs, ins, tuple(axes))
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
                axes = tuple(("in" if d in node.over else "kept" if d in kept else "out", d) for d in names)
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
        return found[0] if found is not None and found[1] == dims and found[0].padded is None else None

    def _ask(self) -> None:
        for node in self.nodes:
            if node in self.matrices:
                m = self.matrices[node]
                self.level[node] = self.in_memory(m.operand, (*m.kept, *m.ins))
            elif isinstance(node, Solve):
                matrix, rhs = self._system_dims(node)
                self.level[node] = max(self.in_memory(node.matrix, matrix), self.in_memory(node.rhs, rhs))
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
        self._share()
        order: list[Stage] = []
        keys = {(self.level[n], n.dims) for n in self.nodes if self.pointwise(n)} | {*self._stores, *self._sums}
        for level in range(max([*first, *(k[0] for k in keys)], default=-1) + 1):
            order.extend(first.get(level, []))
            for key in sorted((k for k in keys if k[0] == level), key=lambda k: (len(k[1]), k[1])):
                nodes = tuple(n for n in self.nodes if self.pointwise(n) and (self.level[n], n.dims) == key)
                stores, sums = self._stores.get(key, []), self._sums.get(key, [])
                order.append(Nest(key[1], nodes, tuple(stores), tuple(sums)))
        return Stages(tuple(order), tuple(self.scratch), self._depth(), self.values)

    def _depth(self) -> int:
        """The longest chain of products that need each other."""
        deep: dict[Expr, int] = {}
        for node in self.nodes:
            below = (self.matrices[node].operand,) if node in self.matrices else operands(node)
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
        if node.kind == "complex":
            raise NotImplementedError("complex operands")
        at = self.level[node] if self.pointwise(node) else level - 1
        for store in self._stores.get((at, node.dims), []):
            if store.node is node and store.array.dims == dims and not store.add:
                return store.array
        array = Array(self.new(self.hint.get(node) or "operand"), dims, "real", "scratch", len(self.scratch))
        self.scratch.append(array)
        self._stores.setdefault((at, node.dims), []).append(Store(array, node))
        if self.pointwise(node):
            self.values.setdefault(node, array)
        return array

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
