"""One kernel of a step of one token as the parts of its text: what it reads, computes and writes."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence

from rnnc.decode import Decode, convolved
from rnnc.derive import depends
from rnnc.fuse import streams_of
from rnnc.ir import Conv, Expr, Normalize, Ref, Type, walk
from rnnc.lower import Stream, System
from rnnc.plan import is_number
from rnnc.show import expr_text

from ..torch.block import NameTable
from ..torch.text import cut, docstring, mapping, quoted, several, wrap
from .frame import Base, Frame, Leaf
from .prune import pruned
from .sums import SumTiles, normalized
from .tile import Tile, Tiles, folded, literal

_READ = ("{}_ptr", "{}_row")
_STATE = ("{}_ptr", "{}_next_ptr")


class DecodeCoder(Frame):
    """A kernel that moves states by one token."""

    def __init__(self, system: System, kernel: Decode, name: str) -> None:
        super().__init__(system, kernel.dims, (kernel.outer, kernel.block, kernel.inner), kernel.fixed, kernel.inputs)
        self.kernel, self.name = kernel, name
        self.all_dims = (*kernel.dims, *kernel.counted)
        self.sizes.update((d, self.names.new(d)) for d in kernel.counted)
        self.counted = {d: self.names.new(d.lower() if d.isascii() else "entry") for d in kernel.counted}
        self.streams = kernel.streams
        self.prev = {s.name: self.graph.ref("state", s.name, s.type, 1) for s in self.streams}
        self.now = {s.name: self.graph.ref("state", s.name, s.type, 0) for s in self.streams}
        self.updates = {s.name: self.inside(s.expr) for s in self.streams}
        self.results = [self.inside(r) for r in kernel.results]
        self.expect_numbers([*self.updates.values(), *self.results])
        self.state_names = {s.name: self.stem(s.name, _STATE) for s in self.streams}
        self.result_names = [self.stem(system.names.get(r) or self._output(r), ("{}_ptr",)) for r in kernel.results]
        self.hint()

    # --- the kernel's expressions ---

    def spread(self, node: Expr) -> Type:
        return Type(self.graph.sort((*super().spread(node).dims, *node.dims)), node.kind)

    def inside(self, root: Expr) -> Expr:
        """An expression over stand-ins, normalisers as what they are made of."""
        stack = [root]
        while stack:
            node = stack[-1]
            if node in self.done:
                stack.pop()
                continue
            if node in self.of:
                self.done[node] = self.of[node]
            elif is_number(node) or isinstance(node, Ref):
                self.done[node] = node
            elif waiting := [c for c in node.children if c not in self.done]:
                stack.extend(waiting)
                continue
            elif isinstance(node, Conv):
                inner = convolved(self.graph, node)
                if inner not in self.done:
                    stack.append(inner)
                    continue
                self.done[node] = self.done[inner]
            elif isinstance(node, Normalize):
                self.done[node] = normalized(self.graph, node, self.done[node.arg])
            else:
                self.done[node] = self.graph.rebuild(node, tuple(self.done[c] for c in node.children))
            stack.pop()
        return self.done[root]

    def hint(self) -> None:
        for node, hint in self.system.names.items():
            inner = self.done.get(node)
            if inner is not None and inner.children:
                self.hints.setdefault(inner, hint)

    def tiles(self) -> SumTiles:
        def number(node: Expr) -> tuple[str, ...]:
            value = folded(node)
            return self.number_names[node] if value is None else literal(value)

        taken = self.taken | {n for names in self.number_names.values() for n in names} | {*self.counted.values()}
        groups = (
            ("c", self.block, self.counts["WIDTH"], "real_lane"),
            ("n", self.inner, self.counts["INNER"], "real_inner"),
        )
        found = SumTiles(NameTable(taken), self.hints, number, groups)
        found.functions = self.functions
        return found

    # --- lines ---

    def lines(self) -> list[str]:
        tiles = self.tiles()
        tiles.expect(*self.updates.values(), *self.results)
        if self.inner:
            self.vectors(tiles)
        for s in self.streams:
            self.read(tiles, [self.updates[s.name], *self.results])
        for step in self.kernel.steps:
            streams = streams_of(step)
            if (over := streams[0].over) is not None:
                self.several(tiles, over, streams)
                continue
            for s in streams:
                value = self.update(tiles, s)
                tiles.values[self.now[s.name]] = made = tiles.assign(self.state_names[s.name], value)
                if not isinstance(self.updates[s.name], Ref):
                    tiles.values.setdefault(self.updates[s.name], made)
        for s in self.streams:
            value = tiles.values[self.now[s.name]]
            pointer = f"{self.state_names[s.name]}_next_ptr"
            self.store(tiles, pointer, self.row(s.type.dims, "sequence"), s.type.dims, s.type.kind, value.parts)
        self.write(tiles, [i for i, r in enumerate(self.kernel.results) if not self.loop_of(r)])
        for d in self.kernel.counted:
            chosen = [i for i, r in enumerate(self.kernel.results) if self.loop_of(r) == d]
            if chosen:
                self.looped(tiles, d, lambda chosen=chosen: self.write(tiles, chosen))
        return tiles.take()

    def vectors(self, tiles: Tiles) -> None:
        """Lines for what is free of the states and smaller than they are: operands take registers beside no state."""
        roots = [*self.updates.values(), *self.results]
        mine = depends(roots, [n for n in walk(*roots) if isinstance(n, Ref) and n.role == "state"])
        dims = {n: set(n.dims) for n in walk(*roots)}
        stack, seen = list(reversed(roots)), set[Expr]()
        while stack:
            node = stack.pop()
            if node in seen or is_number(node) or isinstance(node, Ref):
                continue
            seen.add(node)
            whole = dims[node] & set(self.inner) and dims[node] & set(self.block)
            if node in mine or whole or any(self.loop_of(n) for n in walk(node)):
                stack.extend(reversed(node.children))
                continue
            self.read(tiles, [node])
            tiles.name(node)

    def loop_of(self, node: Expr) -> str | None:
        """The dim that a value has and no state."""
        return next((d for d in node.dims if d in self.counted), None)

    def read(self, tiles: Tiles, used: Iterable[Expr], loop: str | None = None) -> None:
        """Lines that load what `used` needs: in a loop, what has its dim too."""
        below = set(walk(*used))
        for x in (*self.tokens, *self.fixed):
            own = self.loop_of(x.node)
            if x.ref not in below or x.ref in tiles.values or own not in (None, loop):
                continue
            base = Base("sequence", "", f"{x.name}_row") if x.token else None
            tiles.values[x.ref] = self.load(tiles, x.name, f"{x.name}_ptr", base, x.node.dims, x.node.kind)
        for s in self.streams:
            ref, name = self.prev[s.name], self.state_names[s.name]
            if ref in below and ref not in tiles.values:
                base = self.row(s.type.dims, "sequence")
                wanted, pointer = f"{name}_before", f"{name}_ptr"
                tiles.values[ref] = self.load(tiles, wanted, pointer, base, s.type.dims, s.type.kind)

    def update(self, tiles: Tiles, s: Stream) -> Tile:
        """Lines for the new value of a state."""
        value = self.whole(tiles, self.updates[s.name], s.type.kind, self.offset(s.type.dims)[1])
        tiles.lines.append(cut(f"# {s.name}[t] = {expr_text(s.expr, self.system.names)}"))
        return value

    def several(self, tiles: Tiles, over: str, streams: Sequence[Stream]) -> None:
        """Lines that apply the updates for each entry of a dim."""
        before: dict[str, Tile] = {}
        for s in streams:
            self.read(tiles, [self.prev[s.name]])
            held = tiles.values[self.prev[s.name]]
            before[s.name] = tiles.assign(self.state_names[s.name], held)

        def body() -> None:
            self.read(tiles, [self.updates[s.name] for s in streams], over)
            tiles.values |= {self.prev[s.name]: before[s.name] for s in streams}
            for s in streams:
                value = self.update(tiles, s)
                tiles.values[self.now[s.name]] = tiles.assign(f"{self.state_names[s.name]}_next", value)
            for s in streams:
                made = tiles.values[self.now[s.name]]
                tiles.lines += [f"{a} = {b}" for a, b in zip(before[s.name].parts, made.parts, strict=True)]

        self.looped(tiles, over, body)
        tiles.values |= {self.now[s.name]: before[s.name] for s in streams}

    def looped(self, tiles: Tiles, dim: str, body: Callable[[], None]) -> None:
        """A loop through the entries of a dim. What it computes is not there after it."""
        outside, lines = dict(tiles.values), tiles.take()
        body()
        made = tiles.take()
        tiles.values, tiles.named = outside, -1
        tiles.lines = [*lines, f"for {self.counted[dim]} in range(0, {self.sizes[dim]}):", *(f"    {x}" for x in made)]

    def write(self, tiles: Tiles, chosen: Iterable[int]) -> None:
        """Lines that store results."""
        for i in chosen:
            node, result, name = self.kernel.results[i], self.results[i], self.result_names[i]
            self.read(tiles, [result], self.loop_of(node))
            base = self.row(node.dims, "sequence")
            _, axes = self.at("", base, node.dims, "real")
            parts = tiles.pair(result, axes, 0) if node.kind == "complex" else tiles.aligned(result, axes, 0, False)
            self.store(tiles, f"{name}_ptr", base, node.dims, node.kind, parts)

    # --- text ---

    def text(self) -> str:
        k, counts = self.kernel, self.counts
        body = self.lines()
        reads = [p.format(x.name) for x in self.tokens for p in _READ] + [f"{x.name}_ptr" for x in self.fixed]
        made = [*(p.format(n) for n in self.state_names.values() for p in _STATE)]
        made += [f"{n}_ptr" for n in self.result_names]
        numbers = [n for names in self.number_names.values() for n in names]
        sizes = ["DTYPE", *self.sizes.values(), *numbers, *counts, "BN", "BC"]
        sizes = list(dict.fromkeys(sizes))
        head = ['@triton.jit(do_not_specialize=["BLOCKS"])', f"def {self.name}("]
        head += [f"    {n}," for n in [*reads, *made]] + ["    BLOCKS,"] + [f"    {n}: tl.constexpr," for n in sizes]
        lines = ["program = tl.program_id(0)"]
        rows = f" * {counts['ROWS']}" if self.outer else ""
        lines.append(f"sequence = (program // ({f'BLOCKS{rows}'})).to(tl.int64)")
        if self.outer:
            lines.append(f"outer = program // BLOCKS % {counts['ROWS']}")
        lines.append("lane_block = program % BLOCKS")
        lines.append(f"{self.lane} = lane_block * BC + tl.arange(0, BC)")
        if self.outer:
            lines.append(f"channel = outer * {counts['WIDTH']} + lane")
        lines.append(f"real_lane = {self.lane} < {counts['WIDTH']}")
        if k.inner:
            lines += ["inner = tl.arange(0, BN)", f"real_inner = inner < {counts['INNER']}"]
            lines.append("real_state = real_inner[:, None] & real_lane[None, :]")
        doc = docstring(self.told(), "    ").split("\n")
        doc = [f"    {doc[0]}", *doc[1:]]
        text = pruned("\n".join([*head, "):", *doc, *(f"    {x}" for x in [*lines, *body])]))
        return "\n".join(wrap(text.split("\n")))

    def told(self) -> str:
        k = self.kernel
        equations = [cut(f"{s.name}[t] = {expr_text(s.expr, self.system.names)}") for s in self.streams if s.declared]
        block = " and ".join(k.block)
        has = [f"one entry of {' and '.join(k.outer)}"] if k.outer else []
        has += [f"all of {' and '.join(k.inner)}"] if k.inner else []
        has += [f"all of {block}" if k.whole else f"BC of {block}"]
        walk_text = (
            f"One token. A program has one sequence, {', '.join(has)}; it reads and writes each entry of a state once."
        )
        return "\n".join([*equations, "", *textwrap.wrap(walk_text, 112)])

    def registration(self, operator: str) -> list[str]:
        """Lines that register the kernel as an operator."""
        k = self.kernel

        def dims(names: Iterable[str]) -> str:
            return several(quoted(self.sizes[d]) for d in names)

        def leaves(items: Iterable[Leaf]) -> str:
            return several(quoted(x.name) for x in items)

        results = zip(self.result_names, k.results, k.wide_results, strict=True)
        fields: Mapping[str, str] = {
            "kernel": self.name,
            "dims": dims(self.all_dims),
            "outer": dims(k.outer),
            "block": dims(k.block),
            "inner": dims(k.inner),
            "whole": str(k.whole),
            "states": several(quoted(n) for n in self.state_names.values()),
            "tokens": leaves(self.tokens),
            "fixed": leaves(self.fixed),
            "numbers": several(quoted(n) for names in self.number_names.values() for n in names),
            "parts": str(sum(1 + (s.type.kind == "complex") for s in k.streams if set(s.type.dims) == {*k.dims})),
            "results": mapping((n, several([dims(r.dims), quoted(r.kind), str(w)])) for n, r, w in results),
        }
        lines = [f"{self.name}_parts = _Decode("]
        lines += [w for name, value in fields.items() for w in wrap([f"    {name}={value},"])]
        made = f"{self.name}_kernel = _decode_operator(_OPERATORS, {quoted(operator)}, {self.name}_parts)"
        return [*lines, ")", *wrap([made])]
