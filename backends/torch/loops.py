"""The functions of a stepped group: one step, and the step's backward, derived in the IR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_lowercase

from rnnc.derive import depends, pull_back
from rnnc.ir import Conv, Expr, Linear, Ref, Type, walk
from rnnc.lower import Stream, System
from rnnc.plan import Loop, Projection, inside, is_number

from ..cuda.code import definitions as cuda_definitions
from ..cuda.code import kernels as cuda_kernels
from ..cuda.code import matrices as cuda_matrices
from ..cuda.code import text as cuda_text
from .block import Block, NameTable
from .compiled import native_code, native_step
from .maps import MapsCoder
from .text import several, wrap


@dataclass(frozen=True)
class LoopCode:
    """The text of one loop's functions, and how the equations call it.

    `weights` are names of parameters, which follow the loop's fixed values; `sizes` and `consts` dims and consts that
    the functions take as numbers; `products` the gradients of weights (see `_loop_operator` of the runtime).
    """

    name: str
    text: str
    weights: tuple[str, ...]
    sizes: tuple[str, ...]
    consts: tuple[str, ...]
    products: tuple[tuple[int, str, int, int], ...]
    packs: bool
    run: str
    """Code of what takes the step through time,"""
    sweep: str
    """and of what takes its backward."""
    helpers: frozenset[str]
    saved: str = "()"
    """Code of the shapes of what the step writes for its backward."""
    kernels: LoopKernels | None = None


@dataclass(frozen=True)
class LoopKernels:
    """What runs a loop on a GPU: code of both ways through time, the fixed values that are operands of products and
    nothing else, and the kernels themselves."""

    run: str
    sweep: str
    matrices: tuple[int, ...]
    text: str


def past_name(stream: str, lag: int) -> str:
    return f"{stream}_prev" if lag == 1 else f"{stream}_prev{lag}"


class LoopCoder:
    """Writes `_NAME_step`, `_NAME_pack` and `_NAME_back`."""

    def __init__(
        self,
        system: System,
        loop: Loop,
        name: str,
        hints: Mapping[Expr, str],
        projections: Mapping[Expr, Projection],
        reserved: frozenset[str],
        on_gpu: bool = False,
    ) -> None:
        self.system, self.loop, self.name, self.on_gpu = system, loop, name, on_gpu
        self.graph = system.graph
        self.body = inside(loop)
        self.all_hints, self.reserved = hints, reserved
        self.hints = {n: h for n, h in hints.items() if n in self.body}
        self.projections = {n: p for n, p in projections.items() if n in self.body}
        # The gradients that arrive at a step have fixed names, whatever the program calls its own.
        self.table = NameTable({*reserved, *(f"d_{s.name}" for s in loop.streams)})
        self.sizes: dict[str, str] = {}
        self.consts: dict[str, str] = {}
        self.helpers: set[str] = set()
        used = {n.weight for n in self.body if isinstance(n, Linear)}
        order = [n.weight for s in loop.streams for n in walk(s.expr) if isinstance(n, Linear) and n.weight in used]
        self.weights = tuple(dict.fromkeys(order))
        # A weight that is also read as a number (a tap) is an ordinary fixed value besides.
        self.names: dict[Expr, str] = {}
        owners = self._owners(hints)
        for node in (*loop.hoisted, *loop.fixed):
            self.names[node] = self.table.new(hints.get(node) or _own_name(node) or f"{owners[node]}_in")
        self.weight_names = {w: self.table.new(w) for w in self.weights}
        packs = dict.fromkeys(id(p) for p in self.projections.values())
        self.packs = [next(p for p in self.projections.values() if id(p) == i) for i in packs]
        self.pack_names = {id(p): self.table.new("packed") for p in self.packs}
        self.past = {
            (s.name, j): self.table.new(past_name(s.name, j)) for s in loop.streams for j in range(1, s.depth + 1)
        }
        self.new = {s.name: self.table.new(s.name) for s in loop.streams}

    def _owners(self, hints: Mapping[Expr, str]) -> dict[Expr, str]:
        """The definition or state that each node first belongs to."""
        owners: dict[Expr, str] = {}
        stack = [(s.expr, s.name) for s in reversed(self.loop.streams)]
        while stack:
            node, owner = stack.pop()
            if node not in owners:
                owners[node] = owner = hints.get(node, owner)
                stack.extend((c, owner) for c in node.children)
        return owners

    def code(self) -> LoopCode:
        step = self.step()
        back, products = self.back()
        pack = self.pack()
        native = native_step(self.system, self.loop, self.all_hints, self.weights)
        for d in native.sizes if native else ():
            self.sizes.setdefault(d, self.table.new(d))
        maps = MapsCoder(self, self.loop.maps, False) if self.loop.maps else None
        flow = MapsCoder(self, self.loop.flow, True) if self.loop.flow else None
        functions = [(m.back, *f) for m in (maps, flow) if m for f in m.functions()]
        inputs = [self.names[n] for n in (*self.loop.hoisted, *self.loop.fixed)]
        weights = [self.weight_names[w] for w in self.weights]
        tensors = [*inputs, *weights, *self.pack_names.values(), *self.past.values()]
        numbers = [*self.sizes.values(), *self.consts.values()]
        updates = [f"{s.name}[t]" for s in self.loop.streams]
        whole = [*tensors, *self.new.values(), *numbers]
        parts = [
            _function(f"{self.name}_step", [*tensors, *numbers], step, f"One token of {', '.join(updates)}."),
            *([pack] if pack else []),
            _function(
                f"{self.name}_back",
                [*(f"d_{n}" for n in self.new), *whole],
                back,
                "Gradients of one token's step: for the past, what was computed before the loop, parameters, products.",
            ),
        ]
        given = {False: [*inputs, *numbers], True: whole}
        parts += [_function(n, given[b] if args is None else args, body, doc) for b, n, args, body, doc in functions]
        run = f"_composed({maps.text})" if maps else "_stepped"
        sweep = f"_sweep_scan({flow.text})" if flow else "_sweep_tokens"
        if native:
            code = native_code(native, self.name, tuple(self.sizes), tuple(self.consts))
            parts.append(code.text)
            run, sweep = f"_native_run({code.name}, {run})", f"_native_sweep({code.name}, {sweep})"
            self.helpers |= {"_native", "_NativePart", "_native_run", "_native_sweep"}
        kernels = None
        if native and self.on_gpu and (found := cuda_kernels(native.step)):
            parts.append(cuda_definitions(native.step, found, self.name, tuple(self.sizes), tuple(self.consts)))
            made = f"{self.name}_cuda"
            kernels = LoopKernels(
                f"_cuda_run({made}, {run})",
                f"_cuda_sweep({made}, {sweep})",
                cuda_matrices(found),
                cuda_text(native.step, found),
            )
            self.helpers |= {"_Cuda", "_CudaKernel", "_NativePart", "_cuda_run", "_cuda_sweep"}
        self.helpers |= {"_composed" if maps else "_stepped", "_sweep_scan" if flow else "_sweep_tokens"}
        return LoopCode(
            self.name,
            "\n\n\n".join(parts),
            self.weights,
            tuple(self.sizes),
            tuple(self.consts),
            tuple(products),
            bool(pack),
            run,
            sweep,
            frozenset(self.helpers),
            several([several([f"({i}, {axis})" for i, axis in p]) for p in native.step.places]) if native else "()",
            kernels,
        )

    def named(self, node: Expr) -> str:
        """The name of a state's value that a step is given."""
        assert isinstance(node, Ref)
        return self.past[node.name, node.lag] if node.lag else self.new[node.name]

    # --- blocks ---

    def block(self, table: NameTable, leaves: Mapping[tuple[str, int], str]) -> Block:
        def leaf(ref: Ref) -> str:
            if ref.role == "const":
                return self.consts.setdefault(ref.name, self.table.new(ref.name))
            return leaves[ref.name, ref.lag]

        def size(dim: str) -> str:
            if dim not in self.sizes:
                self.sizes[dim] = self.table.new(dim)
                table.taken.add(self.sizes[dim])
            return self.sizes[dim]

        def no_conv(node: Conv, _code: str) -> str:
            raise AssertionError(f"{node.history} is no part of a loop")

        block = Block(
            table,
            leaf,
            size,
            self.hints,
            self.projections,
            lambda w: self.weight_names[w],
            lambda p: self.pack_names[id(p)],
            no_conv,
            f"{next(iter(self.past.values()))}.real.dtype"
            if self._complex()
            else f"{next(iter(self.past.values()))}.dtype",
        )
        block.variables.update(self.names)
        block.helpers = self.helpers
        return block

    def _complex(self) -> bool:
        return self.loop.streams[0].type.kind == "complex"

    def leaves(self) -> dict[tuple[str, int], str]:
        return {**self.past, **{(n, 0): name for n, name in self.new.items()}}

    # --- forward ---

    def step(self) -> list[str]:
        table = NameTable(self.table.taken)
        leaves: dict[tuple[str, int], str] = dict(self.past)
        block = self.block(table, leaves)
        block.expect(*(s.expr for s in self.loop.streams if not s.over))
        for s in self.loop.streams:
            if s.over:
                self._over_step(block, s, leaves)
            else:
                text = block.aligned_code(s.expr, s.type.dims)
                block.assign(self.new[s.name], text)
                if s.expr.dims == s.type.dims and s.expr not in self.names:
                    block.variables[s.expr] = self.new[s.name]
            leaves[s.name, 0] = self.new[s.name]
        results = [self.new[s.name] for s in self.loop.streams]
        block.lines.append(f"return {several(results)}")
        return block.lines

    def _over_step(self, block: Block, stream: Stream, leaves: Mapping[tuple[str, int], str]) -> None:
        new, old = self.new[stream.name], self.past[stream.name, 1]
        table = NameTable(block.names.taken)
        micro = _Micro(self, stream, table)
        micro.before(block)
        inner = self.block(table, {**leaves, **micro.leaves, (stream.name, 1): new})
        inner.variables.update(micro.given)
        inner.expect(micro.expr)
        text = inner.aligned_code(micro.expr, stream.type.dims)
        block.lines.append(f"{new} = {old}")
        block.lines.append(micro.head(inner))
        block.lines.extend(f"    {line}" for line in [*inner.lines, f"{new} = {text}"])

    def pack(self) -> str:
        if not self.packs:
            return ""
        args = [*(self.names[n] for n in self.loop.fixed), *(self.weight_names[w] for w in self.weights)]
        self.helpers.add("_pack")
        items: list[str] = []
        for p in self.packs:
            first = p.maps[0]
            weights = ", ".join(self.weight_names[m.weight] for m in p.maps)
            items.append(f"_pack({len(first.kept)}, {len(first.ins)}, {weights})")
        body = [f"return {several(items)}"]
        return _function(f"{self.name}_pack", args, body, "Weights of maps of one value as one matrix.")

    # --- backward ---

    def back(self) -> tuple[list[str], list[tuple[int, str, int, int]]]:
        graph, streams = self.graph, self.loop.streams
        table = NameTable(self.table.taken)
        leaves = self.leaves()
        sums: dict[Expr, Expr] = {}
        pairs: dict[Expr, Expr] = {}
        loops: list[_OverBack] = []
        cotangents: dict[Expr, str] = {}

        def add(total: dict[Expr, Expr], key: Expr, value: Expr) -> None:
            total[key] = graph.apply("add", total[key], value) if key in total else value

        for s in reversed(streams):
            # No name of a program begins with this sign.
            arriving: Expr = graph.ref("state", f"∂{s.name}", s.type)
            leaves[f"∂{s.name}", 0] = f"d_{s.name}"
            here = next(
                (n for n in sums if isinstance(n, Ref) and n.role == "state" and (n.name, n.lag) == (s.name, 0)), None
            )
            if here is not None:
                arriving = graph.apply("add", arriving, sums.pop(here))
                cotangents[arriving] = f"d_{s.name}_total"
            targets, watch = self._targets(s)
            if s.over:
                over = _OverBack(self, s, arriving, targets, watch, table)
                loops.append(over)
                found = dict(over.results)
                whole = {n: found[n] for n in over.micro.whole if n in found}
                for n, d in pull_back(graph, whole, targets, watch).items():
                    found[n] = graph.apply("add", found[n], d) if n in found else d
            else:
                named = [n for n in walk(s.expr) if n in self.hints and n not in watch]
                found = pull_back(graph, {s.expr: arriving}, targets, (*watch, *named))
                for n in (*targets, *named):
                    if n in found and found[n].children and (n in self.hints or n in self.names):
                        cotangents.setdefault(found[n], f"d_{self.hints.get(n) or self.names[n]}")
            for node in targets:
                if node in found:
                    add(sums, node, found[node])
            for node in watch:
                if node in found:
                    add(pairs, node, found[node])
        block = self.block(table, leaves)
        block.hints = {**self.hints, **{n: name for n, name in cotangents.items() if n not in self.hints}}
        for s in streams:
            if not s.over and s.expr.dims == s.type.dims and s.expr in self.body and not isinstance(s.expr, Ref):
                block.variables[s.expr] = self.new[s.name]
        past = [next((n for n in sums if isinstance(n, Ref) and (n.name, n.lag) == key), None) for key in self.past]
        live = [n for n in self.loop.hoisted if n.kind != "bool"]
        free = [n for n in self.loop.fixed if n.kind != "bool"]
        products = [(n, *self._product(n)) for n in pairs]
        for over in loops:
            block.expect(over.arriving)
        block.expect(*(sums[n] for n in (*past, *live, *free) if n is not None and n in sums))
        plain = [n for n in pairs if not any(n in o.pairs for o in loops)]
        block.expect(*(pairs[n] for n in plain), *(n.children[0] for n in plain))
        for over in loops:
            over.emit(block, table, leaves)

        def total(node: Expr | None, dims: tuple[str, ...], zero: str, full: bool = False) -> str:
            if node is None or node not in sums:
                return f"torch.zeros_like({zero})"
            value = sums[node]
            if full and set(value.dims) != set(dims):
                value = graph.apply("like", value, node)
            return block.aligned_code(value, dims)

        by_stream = {s.name: s for s in streams}
        d_past = [
            total(n, by_stream[name].type.dims, self.past[name, lag])
            for n, (name, lag) in zip(past, self.past, strict=True)
        ]
        d_hoisted = [total(n, n.dims, self.names[n]) for n in live]
        d_fixed = [total(n, n.dims, self.names[n], True) for n in free]
        operands: list[str] = []
        table_of: list[tuple[int, str, int, int]] = []
        for node, x_dims, y_dims, equation in products:
            assert isinstance(node, Linear)
            over = next((o for o in loops if node in o.pairs), None)
            if over is not None:
                operands.append(several(list(over.pairs[node])))
            else:
                y = pairs[node]
                if set(y.dims) != set(y_dims):
                    y = graph.apply("like", y, node)
                operands.append(several([block.aligned_code(node.arg, x_dims), block.aligned_code(y, y_dims)]))
            index = len(self.loop.fixed) + self.weights.index(node.weight)
            table_of.append((index, equation, len(x_dims), len(y_dims)))
        results: list[str] = []
        for name, items in (("d_past", d_past), ("d_hoisted", d_hoisted), ("d_fixed", d_fixed), ("operands", operands)):
            results.append(table.new(name))
            block.assign(results[-1], several(items))
        block.lines.append(f"return {', '.join(results)}")
        return block.lines, table_of

    def _targets(self, stream: Stream) -> tuple[list[Expr], list[Expr]]:
        own = {s.name for s in self.loop.streams}
        below = list(walk(stream.expr))
        past = [n for n in below if isinstance(n, Ref) and n.role == "state" and n.name in own]
        before = [n for n in below if n in self.names]
        targets: list[Expr] = [n for n in (*past, *before) if n.kind != "bool"]
        watch: list[Expr] = [n for n in below if isinstance(n, Linear) and n in self.body]
        return targets, watch

    def _product(self, node: Expr) -> tuple[tuple[str, ...], tuple[str, ...], str]:
        """Dims of the two operands of a weight's gradient, and the einsum over all tokens (`z`)."""
        assert isinstance(node, Linear)
        letters = iter(ascii_lowercase[:-1])
        kept, outs, ins = ("".join(next(letters) for _ in dims) for dims in (node.kept, node.outs, node.ins))
        x, y = (outs, ins) if node.transposed else (ins, outs)
        return (*self.operand_dims(node), f"z{kept}{x},z{kept}{y}->{kept}{outs}{ins}")

    def operand_dims(self, node: Linear) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Dims of what a map reads and gives, as its weight has them."""
        x_dims, y_dims = (node.outs, node.ins) if node.transposed else (node.ins, node.outs)
        return (*node.kept, *x_dims), (*node.kept, *y_dims)


class _Micro:
    """One small step of an `over` update: its expression with what has the dim replaced by slices.

    What does not read the running value is `given`: computed whole, before the small steps.
    """

    def __init__(self, coder: LoopCoder, stream: Stream, table: NameTable) -> None:
        assert stream.over
        graph, self.over = coder.graph, stream.over
        running = graph.ref("state", stream.name, stream.type, 1)
        moving = depends([stream.expr], [running])
        border = dict.fromkeys(c for n in walk(stream.expr) if n in moving for c in n.children if c not in moving)
        if stream.expr not in moving:
            border = {stream.expr: None}
        whole = [n for n in border if n not in coder.names and n.children and not is_number(n)]
        self.whole = {n: table.new(coder.hints.get(n, f"{stream.name}_with")) for n in whole}
        self.given = {**coder.names, **self.whole}
        self.slices: dict[Expr, Ref] = {}
        self.names: dict[str, str] = {}
        """The loop's variables, and what each runs over."""
        self.origin: dict[Expr, Linear] = {}
        done: dict[Expr, Expr] = {}
        for node in walk(stream.expr):
            if node in self.given:
                done[node] = node
                if self.over in node.dims:
                    name = table.new(f"{self.given[node]}_{self.over.lower()}")
                    dims = tuple(d for d in node.dims if d != self.over)
                    done[node] = self.slices[node] = graph.ref("input", name, Type(dims, node.kind))
                    self.names[name] = f"{self.given[node]}.unbind({node.dims.index(self.over) - len(node.dims)})"
            elif isinstance(node, Linear) and node in moving:
                weight, kept = node.weight, node.kept
                if self.over in kept:
                    whole = coder.weight_names[weight]
                    weight = table.new(f"{whole}_{self.over.lower()}")
                    self.names[weight] = f"{whole}.unbind({kept.index(self.over)})"
                    coder.weight_names[weight] = weight
                    kept = tuple(d for d in kept if d != self.over)
                done[node] = graph.linear(weight, done[node.arg], kept, node.ins, node.outs, node.transposed)
                self.origin[done[node]] = node
            elif node in moving and node.children:
                done[node] = graph.rebuild(node, tuple(done[c] for c in node.children))
            else:
                done[node] = node
        self.expr = done[stream.expr]
        self.leaves = {(r.name, 0): r.name for r in self.slices.values()}

    def before(self, block: Block) -> None:
        """Lines for what the small steps share."""
        block.expect(*self.whole)
        for node, name in self.whole.items():
            text = block.aligned_code(node, node.dims)
            if text != name:
                block.assign(name, text)
            block.variables[node] = name

    def head(self, block: Block) -> str:
        """The line that opens the loop."""
        if not self.names:
            return f"for _ in range({block.size(self.over)}):"
        unbound = ", ".join(self.names.values())
        return f"for {', '.join(self.names)} in {unbound if len(self.names) == 1 else f'zip({unbound})'}:"


class _OverBack:
    """The backward of an `over` update: its small steps again, then from the last to the first."""

    def __init__(
        self, coder: LoopCoder, stream: Stream, arriving: Expr, targets: list[Expr], watch: list[Expr], table: NameTable
    ) -> None:
        self.coder, self.stream, self.arriving = coder, stream, arriving
        graph = coder.graph
        self.micro = _Micro(coder, stream, table)
        self.running = graph.ref("state", stream.name, stream.type, 1)
        self.cotangent = graph.ref("state", f"∂{stream.name}_run", stream.type)
        # Each target as it appears in the small step, and as it is outside.
        targets = [*targets, *(n for n in self.micro.whole if n.kind != "bool")]
        outer: dict[Expr, Expr] = {self.micro.slices.get(n, n): n for n in targets}
        found = pull_back(graph, {self.micro.expr: self.cotangent}, list(outer), list(self.micro.origin))
        self.found = {n: d for n, d in found.items() if n in outer}
        self.outer = outer
        self.results: dict[Expr, Expr] = {}
        for i, n in enumerate(self.found):
            type_ = stream.type if n is self.running else outer[n].type
            self.results[outer[n]] = graph.ref("state", f"∂{i}_{stream.name}", type_)
        self.cotangents = {n: d for n, d in found.items() if n in self.micro.origin}
        self.pairs: dict[Expr, tuple[str, str]] = {}
        for n in self.cotangents:
            origin = self.micro.origin[n]
            self.pairs[origin] = ("", "")
            self.results[origin] = self.cotangents[n]

    def emit(self, block: Block, table: NameTable, leaves: dict[tuple[str, int], str]) -> None:
        coder, stream, micro = self.coder, self.stream, self.micro
        d_run = table.new(f"d_{stream.name}_run")
        block.assign(d_run, block.aligned_code(self.arriving, stream.type.dims))
        run, old = table.new(f"{stream.name}_run"), coder.past[stream.name, 1]
        lines = block.lines
        micro.before(block)
        forward = coder.block(table, {**leaves, **micro.leaves, (stream.name, 1): f"{run}[-1]"})
        forward.variables.update(micro.given)
        forward.expect(micro.expr)
        text = forward.aligned_code(micro.expr, stream.type.dims)
        lines.append(f"{run} = [{old}]")
        lines.append(micro.head(forward))
        lines.extend(f"    {line}" for line in [*forward.lines, f"{run}.append({text})"])

        now = table.new(f"{stream.name}_now")
        keys = {(stream.name, 1): now, (self.cotangent.name, 0): d_run}
        backward = coder.block(table, {**leaves, **micro.leaves, **keys})
        backward.variables.update(micro.given)
        values = {n: self._full(d, n) for n, d in self.found.items() if n is not self.running}
        operands: dict[Expr, tuple[Expr, Expr]] = {}
        for n, d in self.cotangents.items():
            operands[n] = (n.children[0], self._full(d, n))
        backward.expect(*values.values(), *(e for pair in operands.values() for e in pair))
        if self.running in self.found:
            backward.expect(self.found[self.running])
        body: list[str] = []
        for n, value in values.items():
            node = self.outer[n]
            ref = self.results[node]
            assert isinstance(ref, Ref)
            of = micro.given.get(node) or coder.named(node)
            name = table.new(f"d_{of}_sum" if n is node else f"d_{of}")
            text = backward.aligned_code(value, n.dims)
            if n is node:
                lines.append(f"{name} = 0.0")
                body.append(f"{name} = {name} + {text}")
                leaves[ref.name, 0] = name
            else:
                axis = node.dims.index(micro.over) - len(node.dims)
                lines.append(f"{name} = []")
                body.append(f"{name}.append({text})")
                leaves[ref.name, 0] = f"torch.stack({name}[::-1], {axis})"
        for n, pair in operands.items():
            assert isinstance(n, Linear)
            origin = micro.origin[n]
            left, right = table.new("left"), table.new("right")
            lines.append(f"{left}, {right} = [], []")
            parts: list[str] = []
            outside = coder.operand_dims(origin)
            for name, value, dims, whole in zip((left, right), pair, coder.operand_dims(n), outside, strict=True):
                body.append(f"{name}.append({backward.aligned_code(value, dims)})")
                axis = whole.index(micro.over) - len(whole) if micro.over in whole else 0
                parts.append(f"torch.stack({name}[::-1], {axis})")
            self.pairs[origin] = (parts[0], parts[1])
        if self.running in self.found:
            body.append(f"{d_run} = {backward.aligned_code(self.found[self.running], stream.type.dims)}")
            ref = self.results[self.running]
            assert isinstance(ref, Ref)
            leaves[ref.name, 0] = d_run
        else:
            # Each small step forgets what the ones before it made.
            body.append(f"{d_run} = torch.zeros_like({d_run})")
        backs = [*(f"{u}[::-1]" for u in micro.names.values()), f"{run}[-2::-1]"]
        if micro.names:
            lines.append(f"for {', '.join([*micro.names, now])} in zip({', '.join(backs)}):")
        else:
            lines.append(f"for {now} in {backs[0]}:")
        lines.extend(f"    {line}" for line in [*backward.lines, *body])

    def _full(self, value: Expr, node: Expr) -> Expr:
        return self.coder.graph.apply("like", value, node) if set(value.dims) != set(node.dims) else value


def _own_name(node: Expr) -> str | None:
    return node.name if isinstance(node, Ref) else None


def _function(name: str, args: list[str], body: list[str], doc: str) -> str:
    head = f"def {name}({', '.join(args)}):"
    if len(head) > 110:
        head = "\n".join([f"def {name}(", *(f"    {a}," for a in args), "):"])
    return "\n".join([head, f'    """{doc}"""', *wrap(f"    {line}" for line in body)])
