"""One fused kernel as the parts of its text: what it reads, computes and writes, forward and backward."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from rnnc.closure import Block, Composable
from rnnc.fuse import Kernel, delay, held, updates
from rnnc.ir import Expr, Linear, Ref, Type, walk
from rnnc.lower import System
from rnnc.plan import Scan, is_number, per_token
from rnnc.show import expr_text

from ..torch.block import NameTable
from ..torch.text import cut
from .maps import Composition, Maps, labels
from .tile import AXES, Tile, Tiles, align, folded, literal, numbers, shape

FRAME = frozenset(
    "tl triton float range DTYPE T BT BS BC BN VEC CHUNK WIDTH INNER ROWS BLOCKS PACKED SEGMENTED STAGES cu_seqlens "
    "scratch_ptr program program_row sequence sequences segment outer lane_block lane channel inner real_lane "
    "real_inner real_state real real_ahead live ahead place first length begin end count chunk left largest tokens "
    "token t index offset other slot before differs SEGMENTS REPAIR _".split()
)
# What the parameters for a value that is read, for one that is written, and for a state are called.
READ = ("{}_ptr", "{}_row", "d_{}_ptr")
WRITTEN = ("{}_ptr", "d_{}_ptr")
STATE = (
    *WRITTEN,
    *(f"{{}}_{part}_ptr" for part in ("initial", "last", "starts")),
    *("d_{}_last_ptr", "d_{}_initial_ptr"),
    *(f"{d}{{}}_{part}_ptr" for d in ("", "d_") for part in ("entered", "arrived", "size")),
)


@dataclass(frozen=True)
class Leaf:
    """A value that a kernel reads: the node that PyTorch computes, and what stands for it in the kernel's expressions.

    The stand-in has all channels, so that derivatives are summed over them last.
    """

    node: Expr
    ref: Ref
    name: str
    token: bool
    learns: bool


@dataclass(frozen=True)
class Base:
    """A row of memory: its index, with axes and strength of its own, and how far rows are apart.

    `mask` says where it exists, for one that may not.
    """

    index: str
    axes: str
    size: str
    binds: int = 6
    mask: str = ""


@dataclass
class Lines:
    """The holes of one kernel."""

    arguments: list[str] = field(default_factory=list[str])
    verify: list[str] = field(default_factory=list[str])
    setup: list[str] = field(default_factory=list[str])
    before: list[str] = field(default_factory=list[str])
    chunk: list[str] = field(default_factory=list[str])
    again: list[str] = field(default_factory=list[str])
    largest: str = ""
    loop: list[str] = field(default_factory=list[str])
    arrive: list[str] = field(default_factory=list[str])
    after: list[str] = field(default_factory=list[str])
    sums: list[str] = field(default_factory=list[str])

    def holes(self) -> dict[str, list[str] | str]:
        return dict(vars(self))


class KernelCoder:
    """What the forward and the backward of one `Kernel` share."""

    def __init__(self, system: System, kernel: Kernel, name: str) -> None:
        self.system, self.kernel, self.name = system, kernel, name
        self.graph = system.graph
        self.streams = kernel.streams
        self.dims = self.streams[0].type.dims
        self.tiled, self.tiled_back, self.stored = kernel.tiled, kernel.tiled_back, kernel.stored
        self.names = NameTable(FRAME)
        self.pointers_of: set[str] = set()
        self.outer, self.block = self._split()
        self.sizes = {d: self.names.new(d) for d in self.dims}
        self.lane = "lane" if self.outer else "channel"
        counts = (("WIDTH", self.block), ("ROWS", self.outer), ("INNER", kernel.inner))
        self.counts = {name: self.sizes[dims[0]] if len(dims) == 1 else name for name, dims in counts}
        self.fixed = [self.leaf(n, False) for n in kernel.fixed]
        self.tokens = [self.leaf(n, True) for n in kernel.inputs]
        self.roots: dict[Expr, Ref] = {}
        self.of = {leaf.node: leaf.ref for leaf in (*self.tokens, *self.fixed)}
        self.done: dict[Expr, Expr] = {}
        self.prev = [self.graph.ref("state", s.name, s.type, 1) for s in self.streams]
        self.now = [self.graph.ref("state", s.name, s.type, 0) for s in self.streams]
        self.coefficients, self.updates = self._updates()
        self.results = [self.inside(r) for r in kernel.results]
        self.number_names: dict[Expr, tuple[str, ...]] = {}
        self.expect_numbers([*self.updates, *self.results, *self.roots])
        self.state_names = [self.stem(s.name.replace(" ", "_past"), STATE) for s in self.streams]
        self.result_names = [self.stem(system.names.get(r) or self._output(r), WRITTEN) for r in kernel.results]
        self.hints: dict[Expr, str] = {}
        for node, hint in system.names.items():
            inner = self.done.get(node)
            if inner is not None and inner.children:
                self.hints.setdefault(inner, hint)
            if not per_token(node) and node.children:
                self.hints.setdefault(self._fixed_inside(node), hint)
        self.functions = {"_tl_span"}
        pairs = list(zip(self.streams, kernel.lags, strict=True))
        texts = [f"{s.name}[t] = {expr_text(s.expr, system.names)}" if lag == 1 else "" for s, lag in pairs]
        self.equations = [cut(text) for text in texts]
        self.composition = Composition(self, self._maps(), False, kernel.verified) if kernel.scan else None

    @property
    def taken(self) -> frozenset[str]:
        return FRAME | self.pointers_of | {*self.sizes.values()}

    def stem(self, wanted: str, parameters: Iterable[str]) -> str:
        """A new name whose parameters have new names as well."""
        while True:
            name = self.names.new(wanted)
            made = {p.format(name) for p in parameters}
            if not made & self.names.taken:
                self.names.taken |= made
                self.pointers_of |= made
                return name

    def expect_numbers(self, roots: Iterable[Expr]) -> None:
        """Name the scalars below `roots` that the host computes."""
        for n in numbers(roots):
            if n in self.number_names:
                continue
            wanted = self.system.names.get(n) or (n.name if isinstance(n, Ref) else "number")
            parts = [f"{wanted}_re", f"{wanted}_im"] if n.kind == "complex" else [wanted]
            self.number_names[n] = tuple(self.names.new(p) for p in parts)

    def _output(self, node: Expr) -> str:
        return next((name for name, e in self.system.outputs if e is node), "result")

    # --- the kernel's expressions ---

    def leaf(self, node: Expr, token: bool) -> Leaf:
        wanted = self.system.names.get(node) or "value"
        if isinstance(node, Ref):
            wanted = node.name if node.lag == 0 else f"{node.name.removesuffix('_past')}_before"
        elif isinstance(node, Linear) and node not in self.system.names:
            wanted = f"{node.weight.removesuffix('_weight')}_in"
        name = self.stem(wanted, READ)
        learns = node.kind != "bool" and not (isinstance(node, Ref) and node.role == "buffer")
        return Leaf(node, self.graph.ref("input", f"in {name}", self.spread(node)), name, token, learns)

    def spread(self, node: Expr) -> Type:
        """The type of a node that is spread over all channels, and over all inner entries if over any."""
        inner = self.kernel.inner if set(node.dims) & set(self.kernel.inner) else ()
        return Type(self.graph.sort((*self.kernel.channels, *inner)), node.kind)

    def inside(self, root: Expr) -> Expr:
        """An expression over stand-ins; what only parameters decide is one stand-in for each greatest part."""
        stack = [root]
        while stack:
            node = stack[-1]
            if node in self.done:
                stack.pop()
                continue
            if node in self.of:
                ref = self.done[node] = self.of[node]
                if not per_token(node):
                    self.roots[ref] = ref
            elif is_number(node) or isinstance(node, Ref):
                self.done[node] = self._value(node)
            elif not per_token(node):
                inner = self._fixed_inside(node)
                ref = self.graph.ref("input", f"root {len(self.roots)}", self.spread(node))
                self.roots[inner] = ref
                self.done[node] = ref
            elif waiting := [c for c in node.children if c not in self.done]:
                stack.extend(waiting)
                continue
            else:
                self.done[node] = self.graph.rebuild(node, tuple(self.done[c] for c in node.children))
            stack.pop()
        return self.done[root]

    def _value(self, node: Expr) -> Expr:
        """A number; or a state's value, which a delay holds where it is of more than one token ago."""
        if isinstance(node, Ref) and node.role == "state" and node.lag > 1:
            return self.graph.ref("state", delay(node.name, node.lag), node.type, 1)
        return node

    def _fixed_inside(self, root: Expr) -> Expr:
        done: dict[Expr, Expr] = {}
        for node in walk(root):
            if node in self.of:
                done[node] = self.of[node]
            elif is_number(node) or not node.children:
                done[node] = node
            else:
                done[node] = self.graph.rebuild(node, tuple(done[c] for c in node.children))
        return done[root]

    def _updates(self) -> tuple[list[tuple[Expr, Expr | None]], list[Expr]]:
        """Coefficients of the scans, and the new value of each state in terms of values one token ago."""
        graph = self.graph
        coefficients: list[tuple[Expr, Expr | None]] = []
        made: list[Expr] = []
        for step in self.kernel.steps:
            if isinstance(step, Scan):
                a, *b = (self.inside(e) for e in updates(step))
                prev = self.prev[len(made)]
                coefficients.append((a, b[0] if b else None))
                product = graph.apply("mul", a, prev)
                made.append(graph.apply("add", product, b[0]) if b else product)
            else:
                exprs = {s.name: self.inside(s.expr) for s in step.streams}
                fresh: dict[Expr, Expr] = {}
                for s in step.streams:
                    # In the order in which a step computes them: what is read of this token is there already.
                    for node in walk(exprs[s.name]):
                        if node in fresh:
                            continue
                        children = tuple(fresh[c] for c in node.children)
                        fresh[node] = graph.rebuild(node, children) if children else node
                    fresh[graph.ref("state", s.name, s.type, 0)] = fresh[exprs[s.name]]
                for value, lag in held(graph, step):
                    made.append(fresh[exprs[value.name]] if lag == 1 else value.expr)
        return coefficients, made

    def _maps(self) -> list[Maps]:
        """What composes tokens: a family for each step."""
        found: list[Maps] = []
        at = 0
        for step in self.kernel.steps:
            count = len(held(self.graph, step))
            if isinstance(step, Scan):
                a, b = self.coefficients[at]
                found.append(self.affine(at, a, b))
            else:
                assert step.maps is not None
                closure = replace(step.maps, parameters=tuple(self.inside(e) for e in step.maps.parameters))
                found.append(self.maps(closure, tuple(range(at, at + count)), ""))
            at += count
        return found

    def affine(self, at: int, a: Expr, b: Expr | None, prefix: str = "") -> Maps:
        """The maps of a state that is affine in its past."""
        stream, zero = self.streams[at], self.graph.lit(0.0)
        group = self.kernel.steps[0].closure.group
        closure = Block(group, (a, zero if b is None else b), "", (), ((stream.name, 1),), ((0, 0),), (0,))
        return self.maps(closure, (at,), prefix)

    def maps(self, closure: Composable, at: tuple[int, ...], prefix: str) -> Maps:
        name = f"{prefix}{self.state_names[at[0]]}"
        names = tuple(self.stem(f"{name}_{x}", ("{}_ptr",)) for x in labels(closure))
        return Maps(closure, at, names, self.streams[at[0]].type.kind)

    # --- places in memory ---

    def _split(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The channels as outer dims, of which a program has one entry, and those along its threads.

        An input that lacks the last dims has its gradient summed over them: within a program, then.
        """
        channels = self.kernel.channels
        lacking: list[int] = []
        for node in (*self.kernel.inputs, *self.kernel.fixed):
            have = [i for i, d in enumerate(channels) if d in node.dims]
            if have and have[-1] < len(channels) - 1 and node.kind != "bool":
                lacking.append(have[-1] + 1)
        at = max(lacking, default=0)
        return channels[:at], channels[at:]

    def offset(self, dims: tuple[str, ...]) -> tuple[str, str]:
        """Where an entry of something with these dims (`*` for the program's block) stands, and the axes of that."""
        groups = [("channel", self.kernel.channels, "c"), (self.lane, self.block, "c"), ("outer", self.outer, "")]
        groups.append(("inner", self.kernel.inner, "n"))
        terms: list[tuple[str, str]] = []
        i = 0
        while i < len(dims):
            name, size, axes = self._coordinate(dims[i]), 1, "n" if dims[i] in self.kernel.inner else "c"
            if dims[i] in self.outer or dims[i] == "*":
                axes = ""
            for group, members, group_axes in groups:
                if members and dims[i : i + len(members)] == members:
                    name, size, axes = group, len(members), group_axes
                    break
            i += size
            stride = self.product(dims[i:])
            terms.append((name if stride == "1" else f"{_atom(name)} * {stride}", axes))
        axes = "".join(a for a in AXES if any(a in x for _, x in terms))
        parts = [align(t, Tile((t,), a, 6 if t.isidentifier() else 4), axes) for t, a in terms]
        return " + ".join(parts) or "0", axes

    def _coordinate(self, dim: str) -> str:
        if dim == "*":
            return "lane_block"
        inner = dim in self.kernel.inner
        dims, index = (self.kernel.inner, "inner") if inner else (self.block, self.lane)
        if dim in self.outer:
            dims, index = self.outer, "outer"
        after = self.product(dims[dims.index(dim) + 1 :])
        text = index if after == "1" else f"{index} // ({after})" if " " in after else f"{index} // {after}"
        return text if dims[0] == dim else f"{text} % {self.sizes[dim]}"

    def product(self, dims: Iterable[str]) -> str:
        return " * ".join("BLOCKS" if d == "*" else self.sizes[d] for d in dims) or "1"

    def mask(self, axes: str, ahead: bool) -> str:
        """What is real of a tile with these axes, by the names that the template gives it; `ahead`: for a load."""
        names = {"": "", "n": "real_inner", "c": "real_lane", "nc": "real_state", "ts": "live", "tsc": "real"}
        names |= {"ts": "ahead", "tsc": "real_ahead"} if ahead else {}
        return names[axes]

    def at(self, pointer: str, base: Base | None, dims: tuple[str, ...], kind: str) -> tuple[list[str], str]:
        """Addresses of the parts of a value with these dims, and their axes."""
        text, axes = self.offset(dims)
        start = ""
        if base is not None:
            # A tile of tokens: where it begins, in 64 bits, and from there.
            index = "place" if base.axes else base.index
            times = "" if base.size == "1" else f" * {base.size}"
            start = f"{base.index}{times} + " if base.axes else ""
            whole = "".join(a for a in AXES if a in axes + base.axes)
            row = align(index, Tile((index,), base.axes, 6 if base.axes else base.binds), whole, 4 if times else 0)
            text = (
                f"{row}{times}"
                if text == "0"
                else f"{row}{times} + {align(text, Tile((text,), axes, 6 if text.isidentifier() else 3), whole, 3)}"
            )
            axes = whole
        if axes == "tsc":
            # Orders the layout: channels along lanes, stretches along warps, the tokens of one in one thread.
            text = f"tl.max_contiguous({text}, [1, 2, BC])"
        if kind != "complex":
            return [f"{pointer} + {start}{text}"], axes
        start = f"2 * {start}" if start else ""
        return [f"{pointer} + {start}2 * ({text}){part}" for part in ("", " + 1")], axes

    def load(
        self, tiles: Tiles, wanted: str, pointer: str, base: Base | None, dims: tuple[str, ...], kind: str
    ) -> Tile:
        addresses, axes = self.at(pointer, base, dims, kind)
        mask = self.mask(axes, True)
        if base is not None and base.mask:
            # For a row that may not exist.
            real = align(base.mask, Tile((base.mask,), base.axes, 0), axes, 4)
            mask = f"{mask} & {real}" if mask else real
        masked = f", mask={mask}, other=0" if mask else ""
        cast = "tl.int1" if kind == "bool" else "DTYPE"
        return tiles.assign(wanted, Tile(tuple(f"tl.load({a}{masked}).to({cast})" for a in addresses), axes))

    def store(
        self,
        tiles: Tiles,
        pointer: str,
        base: Base | None,
        dims: tuple[str, ...],
        kind: str,
        parts: tuple[str, ...],
    ) -> None:
        addresses, axes = self.at(pointer, base, dims, kind)
        mask = self.mask(axes, False)
        for address, part in zip(addresses, parts, strict=True):
            tiles.lines.append(f"tl.store({address}, {part}{f', mask={mask}' if mask else ''})")

    def row(self, dims: tuple[str, ...], index: str, axes: str = "", binds: int = 6) -> Base:
        """A row of memory that holds one value of these dims for each index."""
        size = self.product(dims)
        return Base(index, axes, size if size.isidentifier() or size == "1" else f"({size})", binds)

    def token_row(self, tiled: bool, dims: tuple[str, ...]) -> Base:
        return self.row(dims, "token", "ts" if tiled else "")

    def sequence_row(self) -> Base:
        return self.row(self.dims, "sequence")

    @property
    def saved_names(self) -> list[str]:
        """What the backward reads of the states: of all tokens, where delays are read from what they delay; or those
        that enter chunks."""
        if self.stored:
            return [n for n, lag in zip(self.state_names, self.kernel.lags, strict=True) if lag == 1]
        return [f"{n}_starts" for n in self.state_names]

    @property
    def state_axes(self) -> str:
        return "nc" if self.kernel.inner else "c"

    # --- what all kernels do ---

    def tiles(self) -> Tiles:
        def number(node: Expr) -> tuple[str, ...]:
            value = folded(node)
            return self.number_names[node] if value is None else literal(value)

        taken = self.taken | {n for names in self.number_names.values() for n in names}
        found = Tiles(NameTable(taken), self.hints, number, self.counts["INNER"])
        found.functions = self.functions
        return found

    def setup(self, tiles: Tiles) -> list[str]:
        """Lines before the loop: parameters, and what only they decide."""
        for x in self.fixed:
            tiles.values[x.ref] = self.load(tiles, x.name, f"{x.name}_ptr", None, x.node.dims, x.node.kind)
        tiles.expect(*self.roots)
        for expr, ref in self.roots.items():
            if expr is not ref:
                tiles.values[ref] = tiles.name(expr)
        return tiles.take()

    def read_tokens(self, tiles: Tiles, tiled: bool, used: Iterable[Expr]) -> None:
        """Lines that load what `used` needs of each token."""
        used = set(walk(*used))
        for x in self.tokens:
            if x.ref in used:
                base = Base("token", "ts" if tiled else "", f"{x.name}_row")
                tiles.values[x.ref] = self.load(tiles, x.name, f"{x.name}_ptr", base, x.node.dims, x.node.kind)

    def whole(self, tiles: Tiles, node: Expr | None, kind: str, axes: str) -> Tile:
        """A value with all of the axes, in the kind of a state."""
        pair = kind == "complex"
        if node is None:
            return Tile((f"tl.zeros({shape(axes)}, DTYPE)",) * (1 + pair), axes)
        parts = tiles.pair(node, axes, 0) if pair else tiles.aligned(node, axes, 0)
        if is_number(node):
            parts = tuple(f"tl.full({shape(axes)}, {p}, DTYPE)" for p in parts)
        elif tiles.tile(node).axes != axes:
            parts = tuple(p if p == "0.0" else f"tl.broadcast_to({p}, {shape(axes)})" for p in parts)
        return Tile(tuple(f"tl.zeros({shape(axes)}, DTYPE)" if p == "0.0" else p for p in parts), axes)

    def carried(self, tiles: Tiles, names: Tile, value: Tile) -> None:
        """Assign to variables that the loop carries, all at once."""
        tiles.lines.append(f"{', '.join(names.parts)} = {', '.join(p for p in value.parts if p)}")

    def carried_all(self, tiles: Tiles, names: Sequence[Tile], values: Sequence[Tile]) -> None:
        """The same for several variables, none of whose new values may be seen by another."""
        values = self.handed_on(names, values)
        if sum(len(p) + 2 for x in names for p in x.parts) > _TARGETS:
            made = [self._next(tiles, n, v) for n, v in zip(names, values, strict=True)]
            for name, value in zip(names, made, strict=True):
                tiles.lines += [f"{n} = {v}" for n, v in zip(name.parts, value.parts, strict=True) if n != v]
            return
        if len(values) > 1:
            values = [v if v.parts[-1] else tiles.assign("value", v) for v in values]
        self.carried(
            tiles, *(Tile(tuple(p for x in group for p in x.parts), self.state_axes) for group in (names, values))
        )

    def handed_on(self, names: Sequence[Tile], values: Sequence[Tile]) -> list[Tile]:
        """Values of variables that a loop carries; what goes from one to another as something that is computed, for
        Triton fetches nothing ahead in a loop that hands a variable on as it is."""
        held = {p for n in names for p in n.parts}
        moved = [held.issuperset(v.parts) and v.parts != n.parts for n, v in zip(names, values, strict=True)]
        return [
            Tile(tuple(f"tl.where(token >= first, {p}, 0.0)" for p in v.parts), v.axes) if m else v
            for v, m in zip(values, moved, strict=True)
        ]

    def _next(self, tiles: Tiles, name: Tile, value: Tile) -> Tile:
        """A new value under a name of its own, where it is not what the variable holds."""
        if value.parts == name.parts:
            return value
        stem = name.parts[0].removesuffix("_re" if len(name.parts) == 2 else "")
        return tiles.assign(f"{stem}_next", value)

    def move(self, tiles: Tiles, names: list[Tile], values: list[Tile], wanted: str) -> None:
        """Assign to the variables of all states; new values, where there are several, are all made before."""
        values = self.handed_on(names, values)
        if len(names) > 1:
            values = [tiles.assign(wanted.format(n), v) for n, v in zip(self.state_names, values, strict=True)]
        for name, value in zip(names, values, strict=True):
            self.carried(tiles, name, value)

    def states(self, tiles: Tiles, wanted: str, pointer: str, base: Base) -> list[Tile]:
        """One load for each state."""
        return [
            self.load(tiles, wanted.format(n), pointer.format(n), base, self.dims, s.type.kind)
            for n, s in zip(self.state_names, self.streams, strict=True)
        ]

    def keep(self, tiles: Tiles, pointer: str, base: Base, values: Iterable[Tile], delays: bool = True) -> None:
        """One store for each state."""
        lags = self.kernel.lags
        for name, stream, lag, value in zip(self.state_names, self.streams, lags, values, strict=True):
            if not delays and lag > 1:
                continue
            self.store(tiles, pointer.format(name), base, self.dims, stream.type.kind, value.parts)

    # --- parameters ---

    def pointers(self, names: Iterable[str]) -> list[str]:
        return [f"{n}_ptr," for n in names]

    def inputs(self) -> list[str]:
        lines = [line for x in self.tokens for line in (f"{x.name}_ptr,", f"{x.name}_row,")]
        return [*lines, *self.pointers(x.name for x in self.fixed)]

    def constants(self) -> list[str]:
        names = [*self.sizes.values(), *(n for names in self.number_names.values() for n in names)]
        return ["cu_seqlens,", "T,", *(f"{n}: tl.constexpr," for n in names)]

    def scratch(self, k: int) -> list[str]:
        """Addresses of one state in the memory that a program has for a chunk: one for each part."""
        stream = self.streams[k]
        parts = sum(2 if s.type.kind == "complex" else 1 for s in self.streams)
        before = sum(2 if s.type.kind == "complex" else 1 for s in self.streams[:k])
        inner = "BN * BC" if self.kernel.inner else "BC"
        lanes = (
            "tl.arange(0, BN)[:, None] * BC + tl.arange(0, BC)[None, :]" if self.kernel.inner else "tl.arange(0, BC)"
        )
        out: list[str] = []
        for i in range(2 if stream.type.kind == "complex" else 1):
            size = f"{parts} * {inner}" if parts > 1 else inner
            at = f"scratch_ptr + (slot * CHUNK + offset) * ({size}) + {before + i} * ({inner}) + {lanes}"
            out.append(at if before + i else at.replace(f"0 * ({inner}) + ", ""))
        return out

    def slot(self, leaf: Leaf) -> tuple[str, ...]:
        """Dims of the memory that holds a leaf's gradient before what it lacks is summed; `*` for blocks of lanes."""
        dims = leaf.node.dims
        inner = self.kernel.inner if set(dims) & set(self.kernel.inner) else ()
        if set(dims) == {*self.kernel.channels, *inner}:
            return dims
        block = self.block if set(dims) & set(self.block) else ("*",)
        return (*self.outer, *block, *inner)


_TARGETS = 90
"""Characters that the targets of one assignment may have."""


def _atom(text: str) -> str:
    return text if text.isidentifier() else f"({text})"
