"""Many tokens as one: the maps of a kernel's recurrences, composed over a segment, applied to what enters the next one,
and held against what steps arrive at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rnnc.closure import Block, Composable, Tropical, algebra
from rnnc.ir import Expr, Kind, Lit, Type

from ..torch.block import NameTable
from .tile import Tile, Tiles, align, literal, shape

if TYPE_CHECKING:
    from .kernel import KernelCoder, Lines


@dataclass(frozen=True)
class Maps:
    """The maps of some of a kernel's states: those `at` these places among them.

    `closure` is a family with the parameters of one token as the kernel has them; `names` says what they are called.
    """

    closure: Composable
    at: tuple[int, ...]
    names: tuple[str, ...]
    kind: Kind

    @property
    def parameters(self) -> tuple[Expr, ...]:
        return self.closure.parameters

    @property
    def simple(self) -> bool:
        """Whether the library's functions serve: one state, `a * s + b`."""
        return isinstance(self.closure, Block) and len(self.at) == 1


def labels(closure: Composable) -> tuple[str, ...]:
    """A letter for each parameter, as in the family's certificate; entries of a matrix are numbered from 1."""
    match closure:
        case Block(components=(_,)):
            return ("a", "b")[: len(closure.parameters)]
        case Block(entries=entries, rows=rows):
            gap = "_" if len(closure.components) > 9 else ""
            return (*(f"a{i + 1}{gap}{j + 1}" for i, j in entries), *(f"b{i + 1}" for i in rows))
        case Tropical(roles=roles):
            return tuple(roles)
        case _:
            return tuple("abcd"[: len(closure.parameters)])


class Composition:
    """The lines that compose tokens, forward or of what flows back (whose names begin with `d_`)."""

    def __init__(self, coder: KernelCoder, maps: Sequence[Maps], back: bool, verified: bool) -> None:
        self.coder, self.graph = coder, coder.graph
        self.maps, self.back, self.verified = maps, back, verified
        self.prefix = "d_" if back else ""
        dims = coder.graph.sort((*coder.kernel.channels, *coder.kernel.inner))
        self.types = [Type(dims, m.kind) for m in maps]
        self.sums = [
            [self.graph.ref("input", f"sum of {n}", t) for n in m.names] for m, t in zip(maps, self.types, strict=True)
        ]
        self.used: set[str] = set()
        """Which functions over tiles the kernels call."""
        coder.expect_numbers(self._composed(list(m.parameters) for m in maps))

    @property
    def names(self) -> dict[str, str]:
        """The parameters in memory, and a state that each is shaped like."""
        return {n: self.coder.state_names[m.at[0]] for m in self.maps for n in m.names}

    # --- composing ---

    def _composed(self, later: Iterable[Sequence[Expr]]) -> list[Expr]:
        """The parameters so far with one more token after them."""
        pairs = zip(self.maps, later, self.sums, strict=True)
        return [e for m, one, sums in pairs for e in m.closure.compose(self.graph, tuple(one), tuple(sums))]

    def begin(self, tiles: Tiles) -> None:
        """Lines that start from the map that changes nothing."""
        for m, sums in zip(self.maps, self.sums, strict=True):
            for name, ref, number in zip(m.names, sums, m.closure.identity(self.graph), strict=True):
                assert isinstance(number, Lit)
                value = self.coder.whole(tiles, number, m.kind, self.coder.state_axes)
                tiles.values[ref] = tiles.assign(f"{name}_segment", value)

    def token(self, tiles: Tiles) -> None:
        """Lines that compose one more token."""
        self._move(tiles, self._composed(m.parameters for m in self.maps))

    def tile(self, tiles: Tiles) -> None:
        """Lines that compose a tile of tokens with those so far: it comes before them."""
        exprs: list[Expr] = []
        for m, type_, sums in zip(self.maps, self.types, self.sums, strict=True):
            elements = self.elements(tiles, m)
            parts = [tiles.variables(f"{n}_tile", len(e.parts), "c") for n, e in zip(m.names, elements, strict=True)]
            call = self._call("total", m, elements)
            tiles.lines.append(f"{', '.join(p for x in parts for p in x.parts)} = {call}")
            refs = [self.graph.ref("input", f"tile of {n}", type_) for n in m.names]
            tiles.values.update(zip(refs, parts, strict=True))
            exprs += m.closure.compose(self.graph, tuple(sums), tuple(refs))
        self._move(tiles, exprs)

    def _move(self, tiles: Tiles, exprs: Sequence[Expr]) -> None:
        coder, refs = self.coder, [r for sums in self.sums for r in sums]
        tiles.expect(*exprs)
        made = [coder.whole(tiles, e, r.kind, coder.state_axes) for e, r in zip(exprs, refs, strict=True)]
        names = [tiles.values[r] for r in refs]
        coder.carried_all(tiles, names, made)

    def largest(self, tiles: Tiles) -> str:
        """Whether anything before can still matter: the largest modulus of the products, where there are some."""
        if not all(isinstance(m.closure, Block) for m in self.maps):
            return ""
        factors = [
            ref
            for m, sums in zip(self.maps, self.sums, strict=True)
            if isinstance(m.closure, Block)
            for ref, _ in zip(sums, m.closure.entries, strict=False)
        ]
        parts = [f"tl.abs({p})" for ref in factors for p in tiles.values[ref].parts]
        text = parts[0]
        for part in parts[1:]:
            text = f"tl.maximum({text}, {part})"
        return f"tl.max(tl.where(real_lane, {text}, 0.0), 0)"

    def store(self, tiles: Tiles) -> list[str]:
        """Lines that leave a segment's parameters in memory."""
        coder, base = self.coder, self.coder.row(self.coder.dims, "slot")
        for m, sums in zip(self.maps, self.sums, strict=True):
            for name, ref in zip(m.names, sums, strict=True):
                coder.store(tiles, f"{name}_ptr", base, coder.dims, m.kind, tiles.values[ref].parts)
        return ["slot = (segment * sequences + sequence).to(tl.int64)", *tiles.take()]

    # --- a tile of tokens at once ---

    def elements(self, tiles: Tiles, m: Maps) -> list[Tile]:
        """Lines for the parameters of each token of a tile: those of the identity where there is none."""
        axes = f"ts{self.coder.state_axes}"
        live = align("live", Tile(("live",), "ts"), axes)
        found: list[Tile] = []
        for name, e, dead in zip(m.names, m.parameters, m.closure.identity(self.graph), strict=True):
            assert isinstance(dead, Lit)
            value = self.coder.whole(tiles, e, m.kind, axes)
            if algebra.number(e) != dead.value:
                others = (*literal(dead.value), "0.0")
                parts = (f"tl.where({live}, {p}, {x})" for p, x in zip(value.parts, others, strict=False))
                value = Tile(tuple(parts), axes)
            found.append(tiles.assign(name, value))
        return found

    def walk(
        self,
        tiles: Tiles,
        m: Maps,
        elements: Sequence[Tile],
        states: Sequence[Tile],
        after: Sequence[str | None],
        before: Sequence[str | None],
    ) -> tuple[list[Tile | None], list[Tile | None]]:
        """The states after each token of a tile and before, where they are given names; moves `states` on."""
        n = 2 if m.kind == "complex" else 1
        axes = elements[0].axes
        found = [[tiles.variables(x, n, axes) if x else None for x in names] for names in (after, before)]
        earlier = any(before)
        call = self._call("states_previous" if earlier else "states", m, [*elements, *states])
        made = [x for group in found[: 2 if earlier else 1] for x in group]
        targets = [p for x in made for p in (x.parts if x else ("_",) * n)]
        tiles.lines.append(f"{', '.join([*targets, *(p for s in states for p in s.parts)])} = {call}")
        return found[0], found[1]

    def _call(self, what: str, m: Maps, operands: Sequence[Tile]) -> str:
        """A call of a function over tiles: the library's, or one of this kernel's own."""
        if m.simple:
            name = f"_tl_{'complex_' if m.kind == 'complex' else ''}{what}"
            self.coder.functions.add(name)
        else:
            name = f"{self.own_name}_{what}"
            self.used.add(what)
        return f"{name}({', '.join(p for x in operands for p in x.parts)})"

    @property
    def own_name(self) -> str:
        """What the functions of these maps are called, before what they do."""
        return f"{self.coder.name}_{'back' if self.back else 'maps'}"

    # --- entering a segment, and what it arrives at ---

    def enter(self, tiles: Tiles, states: Sequence[Tile]) -> list[str]:
        """Lines that take states over the segments before (in a backward: after)."""
        coder = self.coder
        bounds = "tl.num_programs(1) - 1, segment, -1" if self.back else "0, segment"
        inside = Tiles(NameTable(tiles.names.taken), {}, tiles.number, tiles.inner_size)
        inside.functions = tiles.functions
        base = coder.row(coder.dims, "slot")
        made: list[Expr] = []
        for m, type_ in zip(self.maps, self.types, strict=True):
            refs = [self.graph.ref("input", f"segment's {n}", type_) for n in m.names]
            for name, ref in zip(m.names, refs, strict=True):
                inside.values[ref] = coder.load(inside, name, f"{name}_ptr", base, coder.dims, m.kind)
            past = [self.graph.ref("input", f"entering {coder.state_names[k]}", type_) for k in m.at]
            inside.values.update((r, states[k]) for r, k in zip(past, m.at, strict=True))
            made += m.closure.apply(self.graph, tuple(refs), tuple(past))
        inside.expect(*made)
        kinds = [m.kind for m in self.maps for _ in m.at]
        values = [coder.whole(inside, e, k, coder.state_axes) for e, k in zip(made, kinds, strict=True)]
        coder.carried_all(inside, [states[k] for m in self.maps for k in m.at], values)
        return [
            "if SEGMENTED:",
            f"    for other in range({bounds}):",
            "        slot = (other * sequences + sequence).to(tl.int64)",
            *(f"        {x}" for x in inside.lines),
            *([f"    {x}" for x in self._kept("entered", states)] if self.verified else []),
        ]

    def opening(self, holes: Lines, tiles: Tiles, states: Sequence[Tile]) -> list[Tile]:
        """Lines before the loop; the variables of the states' largest moduli, where these are verified."""
        holes.before += self.enter(tiles, states)
        if not self.verified:
            return []
        holes.verify = self.verify(tiles)
        sizes = [
            tiles.assign(f"{name}_size", Tile(tuple(f"tl.abs({p})" for p in state.parts), state.axes))
            for name, state in zip(self._stems(), states, strict=True)
        ]
        holes.before += tiles.take()
        return sizes

    def grow(self, tiles: Tiles, sizes: Sequence[Tile], states: Sequence[Tile]) -> None:
        """Lines that take one more token's states into their sizes."""
        for size, state in zip(sizes, states, strict=False):
            for p, x in zip(size.parts, state.parts, strict=True):
                tiles.lines.append(f"{p} = tl.maximum({p}, tl.abs({x}))")

    def arrive(self, states: Sequence[Tile], sizes: Sequence[Tile]) -> list[str]:
        """Lines that leave what a segment's steps arrived at, where that is verified."""
        if not sizes:
            return []
        lines = [*self._kept("arrived", states), *self._kept("size", sizes)[1:]]
        return ["if SEGMENTED:", *(f"    {x}" for x in lines)]

    def checks(self) -> list[str]:
        """The names of what is kept for that."""
        kept = ("entered", "arrived", "size") if self.verified else ()
        return [f"{n}_{what}" for n in self._stems() for what in kept]

    def verify(self, tiles: Tiles) -> list[str]:
        """Lines that find out whether a sequence must be stepped from its beginning."""
        coder, axes = self.coder, self.coder.state_axes
        inside = Tiles(NameTable(tiles.names.taken), {}, tiles.number, tiles.inner_size)
        here, there = coder.row(coder.dims, "slot"), coder.row(coder.dims, "before")
        found: list[list[Tile]] = []
        for stem, stream in zip(self._stems(), coder.streams, strict=True):
            kept = (("entered", here), ("arrived", there), ("size", there))
            pointers = [(f"{stem}_{what}", base) for what, base in kept]
            kind = stream.type.kind
            found.append([coder.load(inside, n, f"{n}_ptr", base, coder.dims, kind) for n, base in pointers])
        tests: list[str] = []
        for m in self.maps:
            sizes = [p for k in m.at for p in found[k][2].parts]
            largest = sizes[0]
            for size in sizes[1:]:
                largest = f"tl.maximum({largest}, {size})"
            group = inside.held("size", Tile((largest,), axes)).parts[0]
            for k in m.at:
                parts = zip(*(x.parts for x in found[k]), strict=True)
                tests += [f"_tl_differs({', '.join(x)}, {group})" for x in parts]
        coder.functions.add("_tl_differs")
        step, bounds = ("+", "0, SEGMENTS - 1") if self.back else ("-", "1, SEGMENTS")
        return [
            "# Where composed states are not what the steps arrived at, the sequence is stepped from its beginning.",
            f"differs = tl.zeros({shape(axes)}, tl.int1)",
            f"for other in range({bounds}):",
            "    slot = (other * sequences + sequence).to(tl.int64)",
            f"    before = ((other {step} 1) * sequences + sequence).to(tl.int64)",
            *(f"    {x}" for x in inside.lines),
            *(f"    differs = differs | {x}" for x in tests),
            "end = tl.where(tl.max(differs.to(tl.int32)) > 0, end, begin)",
        ]

    def _stems(self) -> list[str]:
        return [f"{self.prefix}{n}" for n in self.coder.state_names]

    def _kept(self, what: str, values: Sequence[Tile]) -> list[str]:
        """Lines that store one value of each state for a segment."""
        coder = self.coder
        tiles = coder.tiles()
        base = coder.row(coder.dims, "slot")
        for stem, stream, value in zip(self._stems(), coder.streams, values, strict=True):
            coder.store(tiles, f"{stem}_{what}_ptr", base, coder.dims, stream.type.kind, value.parts)
        return ["slot = (segment * sequences + sequence).to(tl.int64)", *tiles.take()]
