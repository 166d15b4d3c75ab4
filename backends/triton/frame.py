"""What a kernel computes with, whatever its loops are: its names, what stands for what it reads, places in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rnnc.fuse import delay
from rnnc.ir import Expr, Linear, Ref, Type, walk
from rnnc.lower import System
from rnnc.plan import is_number, per_token

from ..torch.block import NameTable
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


class Frame:
    """One kernel's names and what it reads. Its states' dims come apart into `outer`, of which a program has one entry,
    `block`, laid along its threads, and `inner`, of which it has all."""

    def __init__(
        self,
        system: System,
        dims: tuple[str, ...],
        parts: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]],
        fixed: Sequence[Expr],
        inputs: Sequence[Expr],
    ) -> None:
        self.system, self.graph, self.dims = system, system.graph, dims
        self.outer, self.block, self.inner = parts
        self.channels = tuple(d for d in dims if d not in self.inner)
        self.names = NameTable(FRAME)
        self.pointers_of: set[str] = set()
        self.sizes: dict[str, str] = {d: self.names.new(d) for d in dims}
        self.lane = "lane" if self.outer else "channel"
        counts = (("WIDTH", self.block), ("ROWS", self.outer), ("INNER", self.inner))
        self.counts = {name: self.sizes[own[0]] if len(own) == 1 else name for name, own in counts}
        self.fixed = [self.leaf(n, False) for n in fixed]
        self.tokens = [self.leaf(n, True) for n in inputs]
        self.roots: dict[Expr, Ref] = {}
        self.of = {leaf.node: leaf.ref for leaf in (*self.tokens, *self.fixed)}
        self.done: dict[Expr, Expr] = {}
        self.number_names: dict[Expr, tuple[str, ...]] = {}
        self.hints: dict[Expr, str] = {}
        self.functions: set[str] = set()
        self.counted: dict[str, str] = {}
        """Other dims that the kernel goes through in loops, and the variables that count."""

    def hint(self) -> None:
        """Names of the program for what the kernel computes."""
        for node, hint in self.system.names.items():
            inner = self.done.get(node)
            if inner is not None and inner.children:
                self.hints.setdefault(inner, hint)
            if not per_token(node) and node.children:
                self.hints.setdefault(self._fixed_inside(node), hint)

    @property
    def taken(self) -> frozenset[str]:
        return FRAME | self.pointers_of | {*self.sizes.values()}

    def stem(self, wanted: str, parameters: Iterable[str]) -> str:
        """A new name whose parameters have new names as well."""
        name, made = self.names.stem(wanted, parameters)
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
            before = "before" if node.role == "state" else str(node.lag)
            wanted = node.name if node.lag == 0 else f"{node.name.removesuffix('_past')}_{before}"
        elif isinstance(node, Linear) and node not in self.system.names:
            wanted = f"{node.weight.removesuffix('_weight')}_in"
        name = self.stem(wanted, READ)
        learns = node.kind != "bool" and not (isinstance(node, Ref) and node.role == "buffer")
        return Leaf(node, self.graph.ref("input", f"in {name}", self.spread(node)), name, token, learns)

    def spread(self, node: Expr) -> Type:
        """The type of a node that is spread over all channels, and over all inner entries if over any."""
        inner = self.inner if set(node.dims) & set(self.inner) else ()
        return Type(self.graph.sort((*self.channels, *inner)), node.kind)

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

    # --- places in memory ---

    def offset(self, dims: tuple[str, ...]) -> tuple[str, str]:
        """Where an entry of something with these dims (`*` for the program's block) stands, and the axes of that."""
        channel = self.channels if self.channels == self.outer + self.block else ()
        groups = [("channel", channel, "c"), (self.lane, self.block, "c"), ("outer", self.outer, "")]
        groups.append(("inner", self.inner, "n"))
        terms: list[tuple[str, str]] = []
        i = 0
        while i < len(dims):
            name, size, axes = self._coordinate(dims[i]), 1, "n" if dims[i] in self.inner else "c"
            if dims[i] in self.outer or dims[i] in self.counted or dims[i] == "*":
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
        if dim in self.counted:
            return self.counted[dim]
        inner = dim in self.inner
        dims, index = (self.inner, "inner") if inner else (self.block, self.lane)
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

    # --- lines ---

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


def _atom(text: str) -> str:
    return text if text.isidentifier() else f"({text})"
