"""One fused kernel as the parts of its text: what it reads, computes and writes, forward and backward."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from rnnc.closure import Block, Composable
from rnnc.fuse import Kernel, held, updates
from rnnc.ir import Expr, walk
from rnnc.lower import System
from rnnc.plan import Scan
from rnnc.show import expr_text

from ..torch.text import cut
from .frame import STATE, WRITTEN, Base, Frame, Leaf
from .maps import Composition, Maps, labels
from .tile import Tile, Tiles


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


class KernelCoder(Frame):
    """What the forward and the backward of one `Kernel` share."""

    def __init__(self, system: System, kernel: Kernel, name: str) -> None:
        dims = kernel.streams[0].type.dims
        outer, block = _split(kernel)
        super().__init__(system, dims, (outer, block, kernel.inner), kernel.fixed, kernel.inputs)
        self.kernel, self.name = kernel, name
        self.streams = kernel.streams
        self.tiled, self.tiled_back, self.stored = kernel.tiled, kernel.tiled_back, kernel.stored
        self.prev = [self.graph.ref("state", s.name, s.type, 1) for s in self.streams]
        self.now = [self.graph.ref("state", s.name, s.type, 0) for s in self.streams]
        self.coefficients, self.updates = self._updates()
        self.results = [self.inside(r) for r in kernel.results]
        self.expect_numbers([*self.updates, *self.results, *self.roots])
        self.state_names = [self.stem(s.name.replace(" ", "_past"), STATE) for s in self.streams]
        self.result_names = [self.stem(system.names.get(r) or self._output(r), WRITTEN) for r in kernel.results]
        self.hint()
        self.functions = {"_tl_span"}
        pairs = list(zip(self.streams, kernel.lags, strict=True))
        texts = [f"{s.name}[t] = {expr_text(s.expr, system.names)}" if lag == 1 else "" for s, lag in pairs]
        self.equations = [cut(text) for text in texts]
        self.composition = Composition(self, self._maps(), False, kernel.verified) if kernel.scan else None

    # --- the kernel's expressions ---

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


def _split(kernel: Kernel) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The channels as outer dims, of which a program has one entry, and those along its threads.

    An input that lacks the last dims has its gradient summed over them: within a program, then.
    """
    lacking: list[int] = []
    for node in (*kernel.inputs, *kernel.fixed):
        have = [i for i, d in enumerate(kernel.channels) if d in node.dims]
        if have and have[-1] < len(kernel.channels) - 1 and node.kind != "bool":
            lacking.append(have[-1] + 1)
    at = max(lacking, default=0)
    return kernel.channels[:at], kernel.channels[at:]
