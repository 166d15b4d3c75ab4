"""The forward kernels: the recurrence over tokens, and what a segment of them composes to."""

from __future__ import annotations

from rnnc.ir import Ref, walk

from .kernel import KernelCoder, Lines
from .tile import Tile, Tiles


class ForwardCoder:
    """Lines of the forward of one kernel."""

    def __init__(self, coder: KernelCoder) -> None:
        self.coder = coder

    def forward(self) -> Lines:
        coder = self.coder
        holes, tiles = Lines(), coder.tiles()
        holes.setup = coder.setup(tiles)
        states = coder.states(tiles, "{}_before", "{}_initial_ptr", coder.sequence_row())
        holes.before = tiles.take()
        composition = coder.composition
        sizes = composition.opening(holes, tiles, states) if composition is not None else []
        if not coder.stored:
            coder.keep(tiles, "{}_starts_ptr", coder.row(coder.dims, "(chunk + index)"), states)
            holes.chunk = tiles.take()
        after = self.tile(tiles, states) if coder.tiled else self.token(tiles, states)
        for k, result in enumerate(coder.results):
            place = coder.kernel.results[k].dims
            base = coder.token_row(coder.tiled, place)
            _, axes = coder.at("", base, place, "real")
            parts = tiles.pair(result, axes, 0) if result.kind == "complex" else tiles.aligned(result, axes, 0, False)
            coder.store(tiles, f"{coder.result_names[k]}_ptr", base, place, result.kind, parts)
        if coder.stored:
            coder.keep(tiles, "{}_ptr", coder.token_row(coder.tiled, coder.dims), after, delays=False)
        if not coder.tiled:
            for state, value in zip(states, after, strict=True):
                coder.carried(tiles, state, value)
        if composition is not None:
            composition.grow(tiles, sizes, states)
        holes.loop = tiles.take()
        if composition is not None:
            holes.arrive = composition.arrive(states, sizes)
        coder.keep(tiles, "{}_last_ptr", coder.sequence_row(), states)
        holes.after = tiles.take()
        names = coder.state_names
        outs = [*coder.result_names, *coder.saved_names, *(f"{n}_last" for n in names)]
        holes.arguments = [*coder.inputs(), *coder.pointers(f"{n}_initial" for n in names), *coder.pointers(outs)]
        if composition is not None:
            holes.arguments += coder.pointers([*composition.names, *composition.checks()])
        holes.arguments += coder.constants()
        return holes

    def tile(self, tiles: Tiles, states: list[Tile]) -> list[Tile]:
        """Lines for a tile of tokens side by side; the states after each."""
        coder, composition = self.coder, self.coder.composition
        assert composition is not None
        parameters = [e for m in composition.maps for e in m.parameters]
        coder.read_tokens(tiles, True, [*parameters, *coder.results])
        tiles.expect(*parameters, *coder.results)
        below = set(walk(*coder.results))
        out = list(states)
        for m in composition.maps:
            tiles.lines += [f"# {coder.equations[k]}" for k in m.at if coder.equations[k]]
            elements = composition.elements(tiles, m)
            names = [coder.state_names[k] for k in m.at]
            after, before = composition.walk(
                tiles,
                m,
                elements,
                [states[k] for k in m.at],
                [n if coder.kernel.lags[k] == 1 else None for n, k in zip(names, m.at, strict=True)],
                [f"{n}_past" if coder.prev[k] in below else None for n, k in zip(names, m.at, strict=True)],
            )
            for k, new, old in zip(m.at, after, before, strict=True):
                if old is not None:
                    tiles.values[coder.prev[k]] = old
                if new is not None:
                    out[k] = tiles.values[coder.now[k]] = new
        return out

    def token(self, tiles: Tiles, states: list[Tile]) -> list[Tile]:
        """Lines for one token; the states after it."""
        coder = self.coder
        coder.read_tokens(tiles, False, [*coder.updates, *coder.results])
        tiles.values.update(zip(coder.prev, states, strict=True))
        tiles.expect(*coder.updates, *coder.results)
        out: list[Tile] = []
        for k, (stream, update) in enumerate(zip(coder.streams, coder.updates, strict=True)):
            value = coder.whole(tiles, update, stream.type.kind, coder.state_axes)
            value = coder.handed_on(states, [*states[:k], value, *states[k + 1 :]])[k]
            tiles.lines += [f"# {equation}"] if (equation := coder.equations[k]) else []
            out.append(tiles.assign(coder.state_names[k], value))
            tiles.values[coder.now[k]] = out[-1]
            if not isinstance(update, Ref):
                tiles.values.setdefault(update, out[-1])
        return out

    def carry(self) -> Lines:
        """Lines of the kernel that composes the tokens of a segment."""
        coder, composition = self.coder, self.coder.composition
        assert composition is not None
        holes, tiles = Lines(), coder.tiles()
        holes.setup = coder.setup(tiles)
        composition.begin(tiles)
        holes.before = tiles.take()
        parameters = [e for m in composition.maps for e in m.parameters]
        coder.read_tokens(tiles, coder.tiled, parameters)
        tiles.expect(*parameters)
        (composition.tile if coder.tiled else composition.token)(tiles)
        holes.loop = tiles.take()
        holes.largest = composition.largest(tiles)
        holes.after = composition.store(tiles)
        holes.arguments = [*coder.inputs(), *coder.pointers(composition.names), *coder.constants()]
        return holes
