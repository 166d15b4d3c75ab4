"""The backward kernels: the adjoint recurrence, derived in the IR, and the gradients of what a kernel reads."""

from __future__ import annotations

from dataclasses import replace

from rnnc.closure.block import Matrix, dense
from rnnc.derive import pull_back
from rnnc.ir import Expr, Ref, walk
from rnnc.plan import Scan, is_number

from ..torch.block import NameTable
from .frame import Base, Leaf
from .kernel import KernelCoder, Lines
from .maps import Composition, Maps
from .tile import Tile, Tiles, align, shape


class BackwardCoder:
    """Lines of the backward of one kernel.

    With `λ[t]` the gradient of a state after all of its uses, and `μ[t]` what flows from token `t` into the state of
    the token before: `λ[t] = g[t] + μ[t+1]` and `μ[t] = a'[t] λ[t] + p[t]`, where `g` and `p` come from what is written
    for token `t` and `a'` is the derivative of the update. Where tokens are composed, the scan is one over `μ`, and the
    tokens of a tile are read from the last to the first.
    """

    def __init__(self, coder: KernelCoder) -> None:
        self.coder, self.graph = coder, coder.graph
        self.tiled = coder.tiled_back
        self.axes = "ts" if self.tiled else ""
        graph = self.graph
        self.arriving = [
            None if r.kind == "bool" else graph.ref("input", f"arriving {i}", r.type)
            for i, r in enumerate(coder.results)
        ]
        self.kept = [
            graph.ref("input", f"kept {s.name}", s.type) if kept else None
            for s, kept in zip(coder.streams, coder.kernel.kept, strict=True)
        ]
        self.adjoint = [graph.ref("input", f"λ {s.name}", s.type) for s in coder.streams]
        outputs: dict[Expr, Expr] = {}
        for r, d in zip(coder.results, self.arriving, strict=True):
            if d is not None:
                outputs[r] = self.plus(outputs.get(r), d) or d
        found = pull_back(graph, outputs, (*coder.now, *coder.prev))
        self.g = [self.plus(found.get(n), k) for n, k in zip(coder.now, self.kept, strict=True)]
        self.p = [found.get(n) for n in coder.prev]
        kernel = coder.kernel
        self.composition = Composition(coder, self._maps(), True, kernel.verified_back) if kernel.scan_back else None
        learned = [x for x in (*coder.tokens, *coder.fixed) if x.learns]
        ends = {x.ref for x in learned if not x.token}
        roots = list(dict.fromkeys(r for e, r in coder.roots.items() if r.kind != "bool" and ends & set(walk(e))))
        whole = dict(outputs)
        for update, d in zip(coder.updates, self.adjoint, strict=True):
            whole[update] = self.plus(whole.get(update), d) or d
        targets = (*(x.ref for x in learned if x.token), *roots, *coder.prev)
        found = pull_back(graph, whole, targets, coder.hints)
        for node, name in (*coder.hints.items(), *((x.ref, x.name) for x in learned)):
            if node in found:
                coder.hints.setdefault(found[node], f"d_{name}")
        self.found = {t: found[t] for t in targets if t in found}
        self.token_gradients = {x: self.found[x.ref] for x in learned if x.token and x.ref in self.found}
        self.root_gradients = {r: self.found[r] for r in roots if r in self.found}
        self.sums = {r: graph.ref("input", f"sum {i}", r.type) for i, r in enumerate(self.root_gradients)}
        of_roots: dict[Expr, Expr] = {e: self.sums[r] for e, r in coder.roots.items() if r in self.sums}
        fixed = pull_back(graph, of_roots, [x.ref for x in learned if not x.token]) if of_roots else {}
        rest = [*self.g, *(e for m in (self.composition.maps if self.composition else ()) for e in m.parameters)]
        coder.expect_numbers([*self.found.values(), *fixed.values(), *coder.roots, *(e for e in rest if e is not None)])
        self.fixed_gradients = {x: fixed[x.ref] for x in learned if not x.token and x.ref in fixed}

    def plus(self, x: Expr | None, y: Expr | None) -> Expr | None:
        if x is None or y is None:
            return x if y is None else y
        return self.graph.apply("add", x, y)

    def _maps(self) -> list[Maps]:
        """`μ[t] = A (g[t] + μ[t+1]) + p[t]`, `A` the transposed Jacobian of a token, for each step of the kernel."""
        coder, graph = self.coder, self.graph
        out: list[Maps] = []
        at = 0
        for step in coder.kernel.steps:
            if isinstance(step, Scan):
                a = coder.coefficients[at][0]
                a = graph.apply("conj", a) if a.kind == "complex" else a
                out.append(coder.affine(at, a, self._flowing(at, {(0, 0): a}, 0), "d_"))
                at += 1
                continue
            assert step.flow is not None
            flow = step.flow
            matrix = {place: coder.inside(e) for place, e in flow.matrix(flow.parameters).items()}
            size = len(flow.components)
            if size == 1:
                out.append(coder.affine(at, matrix.get((0, 0), graph.lit(0.0)), self._flowing(at, matrix, 0), "d_"))
                at += 1
                continue
            offset = {i: e for i in range(size) if (e := self._flowing(at, matrix, i)) is not None}
            parameters, entries, rows = dense(graph, flow.components, matrix, offset)
            block = replace(flow, parameters=parameters, entries=entries, rows=rows)
            out.append(coder.maps(block, tuple(range(at, at + size)), "d_"))
            at += size
        return out

    def _flowing(self, at: int, matrix: Matrix, i: int) -> Expr | None:
        """What of the gradients that arrive for a token flows into state `i` of the one before."""
        total = self.p[at + i]
        for (row, column), a in sorted(matrix.items()):
            if row == i and (g := self.g[at + column]) is not None:
                total = self.plus(self.graph.apply("mul", a, g), total)
        return total

    # --- what is read ---

    def needs_past(self, exprs: list[Expr]) -> bool:
        below = set(walk(*exprs))
        return any(n in below for n in (*self.coder.prev, *self.coder.now))

    def read(self, tiles: Tiles, exprs: list[Expr], initial: list[Tile]) -> None:
        """Lines that load the tokens' values: inputs, the states before, and the gradients that arrive."""
        coder = self.coder
        needed = set(walk(*exprs))
        wanted = [k for k, n in enumerate(coder.now) if n in needed]
        if wanted:
            needed |= set(walk(*coder.updates))
        coder.read_tokens(tiles, self.tiled, list(needed))
        for k, (r, d) in enumerate(zip(coder.results, self.arriving, strict=True)):
            if d is not None and d in needed:
                dims, name = coder.kernel.results[k].dims, f"d_{coder.result_names[k]}"
                base = coder.token_row(self.tiled, dims)
                tiles.values[d] = coder.load(tiles, name, f"{name}_ptr", base, dims, r.kind)
        for k, (stream, name) in enumerate(zip(coder.streams, coder.state_names, strict=True)):
            d, base = self.kept[k], coder.token_row(self.tiled, coder.dims)
            if d is not None and d in needed:
                tiles.values[d] = coder.load(
                    tiles, f"d_{name}_kept", f"d_{name}_ptr", base, coder.dims, stream.type.kind
                )
            if coder.prev[k] not in needed:
                continue
            if coder.stored:
                tiles.values[coder.prev[k]] = self.saved(tiles, k, base, initial)
            else:
                parts = tuple(f"tl.load({at})" for at in coder.scratch(k))
                tiles.values[coder.prev[k]] = tiles.assign(f"{name}_past", Tile(parts, coder.state_axes))
        tiles.expect(*exprs, *(coder.updates[k] for k in wanted))
        for k in wanted:
            value = coder.whole(tiles, coder.updates[k], coder.streams[k].type.kind, self.axes + coder.state_axes)
            tiles.values[coder.now[k]] = tiles.assign(coder.state_names[k], value)

    def saved(self, tiles: Tiles, k: int, base: Base, initial: list[Tile]) -> Tile:
        """Lines that load a state as it was before a token; of a delay, what it delays, further back."""
        coder, lag, kind = self.coder, self.coder.kernel.lags[k], self.coder.streams[k].type.kind
        name, source = coder.state_names[k], coder.state_names[k - lag + 1]
        place = f"place > {lag - 1} - t" if self.tiled else f"t > {lag - 1}"
        earlier = Base(f"(token - {lag})", self.axes, base.size, 6, place.replace("0 - t", "-t"))
        past = coder.load(tiles, f"{name}_saved", f"{source}_ptr", earlier, coder.dims, kind)
        axes, parts = self.axes + coder.state_axes, past.parts
        for early in range(lag):
            test = f"t + place == {early}" if self.tiled else f"t == {early}"
            start = align(test, Tile((test,), "ts", 0), axes) if self.tiled else test
            pairs = zip(initial[k - early].parts, parts, strict=True)
            parts = tuple(f"tl.where({start}, {align(i, initial[k], axes)}, {p})" for i, p in pairs)
        return tiles.assign(f"{name}_past", Tile(parts, axes))

    def again(self, holes: Lines, tiles: Tiles) -> None:
        """Lines that compute the states before each token of a chunk again."""
        coder = self.coder
        inside = coder.tiles()
        inside.names, inside.values = NameTable(tiles.names.taken), dict(tiles.values)
        states = coder.states(inside, "{}_before", "{}_starts_ptr", coder.row(coder.dims, "(chunk + index)"))
        holes.chunk = inside.take()
        # The loop after this one gives the other names anew.
        tiles.names.taken.update(p for x in states for p in x.parts)
        coder.read_tokens(inside, False, coder.updates)
        inside.values.update(zip(coder.prev, states, strict=True))
        inside.expect(*coder.updates)
        for k, state in enumerate(states):
            for at, part in zip(coder.scratch(k), state.parts, strict=True):
                inside.lines.append(f"tl.store({at}, {part})")
        made = [
            coder.whole(inside, update, stream.type.kind, coder.state_axes)
            for update, stream in zip(coder.updates, coder.streams, strict=True)
        ]
        coder.move(inside, states, made, "{}_after")
        holes.again = inside.take()

    # --- the kernels ---

    def backward(self) -> Lines:
        coder = self.coder
        holes, tiles = Lines(), coder.tiles()
        holes.setup = coder.setup(tiles)
        composition = self.composition
        elements = [e for m in composition.maps for e in m.parameters] if composition and self.tiled else []
        flows = [] if self.tiled else [self.found[n] for n in coder.prev if n in self.found]
        gradients = [*self.token_gradients.values(), *self.root_gradients.values()]
        exprs = [*elements, *(g for g in self.g if g is not None), *flows, *gradients]
        past = self.needs_past(exprs)
        row = coder.sequence_row()
        initial = coder.states(tiles, "{}_initial", "{}_initial_ptr", row) if past and coder.stored else []
        flowing = coder.states(tiles, "d_{}_later", "d_{}_last_ptr", row)
        totals: dict[Ref, Tile] = {}
        for root in self.root_gradients:
            axes = "nc" if set(root.dims) & set(coder.kernel.inner) else "c"
            zeros = (f"tl.zeros({shape(axes)}, DTYPE)",) * (2 if root.kind == "complex" else 1)
            name = tiles.values[root].parts[0].removesuffix("_re" if root.kind == "complex" else "")
            totals[root] = tiles.assign(f"d_{name}_sum", Tile(zeros, axes))
        holes.before = tiles.take()
        sizes = composition.opening(holes, tiles, flowing) if composition is not None else []
        if past and not coder.stored:
            self.again(holes, tiles)
        self.read(tiles, exprs, initial)
        nexts = self.scanned(tiles, flowing) if self.tiled else flowing
        for k, name in enumerate(coder.state_names):
            tiles.values[self.adjoint[k]] = self.total(tiles, k, nexts[k], name)
        for x, node in self.token_gradients.items():
            self.write(tiles, x, node, coder.row(coder.slot(x), "token", self.axes))
        for root, node in self.root_gradients.items():
            self.add(tiles, totals[root], node)
        if not self.tiled:
            made = [
                coder.whole(tiles, self.found.get(n), stream.type.kind, coder.state_axes)
                for n, stream in zip(coder.prev, coder.streams, strict=True)
            ]
            coder.move(tiles, flowing, made, "d_{}_past")
        if composition is not None:
            composition.grow(tiles, sizes, flowing)
        holes.loop = tiles.take()
        if composition is not None:
            holes.arrive = composition.arrive(flowing, sizes)
        coder.keep(tiles, "d_{}_initial_ptr", row, flowing)
        holes.after = tiles.take()
        tiles.values.update({self.sums[root]: total for root, total in totals.items()})
        tiles.expect(*self.fixed_gradients.values())
        for x, node in self.fixed_gradients.items():
            self.write(tiles, x, node, coder.row(coder.slot(x), "program_row"), "other == 0" if sizes else "")
        holes.sums = tiles.take()
        holes.arguments = self.arguments(whole=True)
        return holes

    def carry(self) -> Lines:
        """Lines of the kernel that composes a segment's tokens, from the last to the first."""
        coder = self.coder
        holes, tiles = Lines(), coder.tiles()
        holes.setup = coder.setup(tiles)
        composition = self.composition
        assert composition is not None
        exprs = [e for m in composition.maps for e in m.parameters]
        past = self.needs_past(exprs)
        row = coder.sequence_row()
        initial = coder.states(tiles, "{}_initial", "{}_initial_ptr", row) if past and coder.stored else []
        composition.begin(tiles)
        holes.before = tiles.take()
        if past and not coder.stored:
            self.again(holes, tiles)
        self.read(tiles, exprs, initial)
        (composition.tile if self.tiled else composition.token)(tiles)
        holes.loop = tiles.take()
        holes.largest = composition.largest(tiles)
        holes.after = composition.store(tiles)
        holes.arguments = self.arguments(whole=False)
        return holes

    def scanned(self, tiles: Tiles, flowing: list[Tile]) -> list[Tile]:
        """Lines that scan a tile of tokens; what flows into the gradient of each state from the next token."""
        composition, names = self.composition, self.coder.state_names
        assert composition is not None
        nexts = list(flowing)
        for m in composition.maps:
            tiles.lines += [f"# {self.comment(k)}" for k in m.at]
            elements = composition.elements(tiles, m)
            states, wanted = [flowing[k] for k in m.at], [f"d_{names[k]}_next" for k in m.at]
            _, before = composition.walk(tiles, m, elements, states, [None] * len(m.at), wanted)
            for k, found in zip(m.at, before, strict=True):
                assert found is not None
                nexts[k] = found
        return nexts

    def comment(self, k: int) -> str:
        """What a scan over gradients computes."""
        name = self.coder.state_names[k]
        return f"d_{name}_next: what flows into the gradient of {name}[t] from the next token."

    def total(self, tiles: Tiles, k: int, later: Tile, name: str) -> Tile:
        """`λ`: what arrives here and what flows from the next token."""
        g, coder = self.g[k], self.coder
        if g is None:
            return later
        axes = self.axes + coder.state_axes
        parts = tiles.pair(g, axes, 3) if coder.streams[k].type.kind == "complex" else tiles.aligned(g, axes, 3)
        sums = tuple(f"{x} + {y}" for x, y in zip(parts, later.parts, strict=True))
        tiles.lines.append(f"# The gradient of {name}[t]: what arrives for it, and what flows from the next token.")
        return tiles.assign(f"d_{name}", Tile(sums, axes, 3))

    def write(self, tiles: Tiles, leaf: Leaf, node: Expr, base: Base, where: str = "") -> None:
        """Store a gradient, summed over the lanes if the leaf has no entry for each; 0 but for `where`."""
        coder = self.coder
        dims = coder.slot(leaf)
        _, place = coder.offset(dims)
        lanes = "c" in place
        axes = base.axes + place if lanes else base.axes + place + "c"
        parts = tiles.pair(node, axes, 0) if leaf.node.kind == "complex" else tiles.aligned(node, axes, 0)
        if not lanes:
            if "c" not in tiles.tile(node).axes or is_number(node):
                parts = tuple(f"tl.broadcast_to({p}, {shape(axes)})" for p in parts)
            mask = align("real_lane", Tile(("real_lane",), "c"), axes)
            parts = tuple(f"tl.sum(tl.where({mask}, {p}, 0.0), {len(axes) - 1})" for p in parts)
        if where:
            parts = tuple(f"tl.where({where}, {p}, 0.0)" for p in parts)
        coder.store(tiles, f"d_{leaf.name}_ptr", base, dims, leaf.node.kind, parts)

    def add(self, tiles: Tiles, total: Tile, node: Expr) -> None:
        """Sum a gradient over the tokens."""
        axes = self.axes + total.axes
        pair = len(total.parts) == 2
        parts = tiles.pair(node, axes, 0) if pair else tiles.aligned(node, axes, 0)
        if self.tiled:
            live = align("live", Tile(("live",), "ts"), axes)
            parts = tuple(f"tl.sum(tl.sum(tl.where({live}, {p}, 0.0), 0), 0)" for p in parts)
        tiles.lines.extend(f"{name} += {part}" for name, part in zip(total.parts, parts, strict=True))

    def arguments(self, whole: bool) -> list[str]:
        """The parameters of a backward kernel; the host passes them in this order."""
        coder = self.coder
        names = coder.state_names
        lines = [*coder.inputs(), *coder.pointers(f"{n}_initial" for n in names)]
        lines += coder.pointers(coder.saved_names)
        found = zip((*coder.result_names, *names), (*self.arriving, *self.kept), strict=True)
        lines += coder.pointers(f"d_{n}" for n, d in found if d is not None)
        if whole:
            lines += coder.pointers(f"d_{n}_last" for n in names)
            lines += coder.pointers(f"d_{x.name}" for x in (*self.token_gradients, *self.fixed_gradients))
            lines += coder.pointers(f"d_{n}_initial" for n in names)
        if self.composition is not None:
            lines += coder.pointers(self.composition.names)
            lines += coder.pointers(self.composition.checks()) if whole else []
        return [*lines, *([] if coder.stored else ["scratch_ptr,"]), *coder.constants()]
