"""One cell of a plan as the parts of its class: its equations, and what they call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rnnc.chunks import Chunks
from rnnc.fields import StateField
from rnnc.ir import Apply, Conv, Expr, Kind, Merge, Ref, Rename, Split, walk
from rnnc.lower import Stream
from rnnc.plan import Loop, Plan, Pointwise, Projection, Scan, Step, needs, per_token
from rnnc.rank import RankChunks
from rnnc.show import expr_text

from .block import Block, NameTable
from .chunks import Column, chunk_line
from .construct import Construction
from .loops import LoopCode, LoopCoder, past_name
from .lowrank import rank_line
from .text import cut, docstring, quoted, several, together, wrap


@dataclass(frozen=True)
class CellCode:
    """The text of one cell's parts, for the template. `helpers` are the runtime's definitions that it uses."""

    name: str
    base: str
    doc: str
    arguments: tuple[str, ...]
    setup: tuple[str, ...]
    building: tuple[str, ...]
    reset: tuple[str, ...]
    inputs: tuple[str, ...]
    input_names: tuple[str, ...]
    input_table: tuple[str, ...]
    field_table: tuple[str, ...]
    state_fields: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    initial: tuple[str, ...]
    equations: tuple[str, ...]
    checks: tuple[str, ...]
    kernels: tuple[tuple[str, str], ...]
    loops: tuple[LoopCode, ...]
    registrations: tuple[str, ...]
    scans: bool
    chunks: bool
    ranks: bool
    operators: tuple[str, ...]
    """Names of the operators that it registers, the shared scan excepted."""
    helpers: frozenset[str]
    parts: tuple[str, ...] = ()
    """Whole definitions that stand before the class."""
    fused: tuple[str, ...] = ()
    """The equations once more, by kernels."""
    fused_kernels: tuple[tuple[str, str], ...] = ()
    token: tuple[str, ...] = ()
    """The equations of one token once more, by kernels."""
    token_kernels: tuple[str, ...] = ()
    methods: tuple[tuple[str, ...], ...] = ()
    """Further methods of the class."""


class CellCoder(Construction):
    """Turns one plan into `CellCode`. Other backends' coders derive from it."""

    block_class: type[Block] = Block
    one_token = False
    """Whether the equations are written for a step alone."""

    def __init__(self, plan: Plan, reserved: frozenset[str], first: int) -> None:
        super().__init__(plan, reserved)
        self.loops: dict[int, LoopCode] = {}
        on_gpu = self.on_gpu()
        for step in (s for s in plan.steps if isinstance(s, Loop) and self.ranks(s) is None):
            name = f"{self.prefix}_{together(s.name for s in step.streams)}"
            coder = LoopCoder(
                self.system, step, name, self.system.names, plan.projections, self.reserved, id(step) in on_gpu
            )
            self.loops[id(step)] = coder.code()
            self.helpers |= {*self.loops[id(step)].helpers, "_steps", "_loop_operator"}
            if not self.loops[id(step)].packs:
                self.helpers.add("_nothing")
        self.first = first

    def on_gpu(self) -> set[int]:
        """The loops that have kernels of their own on a GPU, by `id`."""
        return set()

    def code(self) -> CellCode:
        cell = self.cell
        equations = self.equations()
        setup, reset, initial, checks = self.setup(), self.reset(), self.initial(), self.checks(self.input_names)
        loops = tuple(self.loops.values())
        base = "_ComplexCell" if any(p.kind == "complex" for p in cell.params) else "_Cell"
        self.helpers.add(base)
        return CellCode(
            cell.name,
            base,
            docstring(self.docs(), "    "),
            tuple(self.arguments()),
            tuple(setup),
            tuple(self.building()),
            tuple(reset),
            tuple(i.name for i in cell.inputs),
            self.input_names,
            self.input_table(),
            self.field_table(),
            tuple((f.name, self.field_note(f)) for f in self.system.fields),
            tuple((o.name, self.shape(o.expr.dims, "[B, T")) for o in cell.outputs),
            tuple(initial),
            tuple(equations),
            tuple(checks),
            tuple((", ".join(n), k) for n, k in self.kernels()),
            loops,
            tuple(self.registrations(loops)),
            any(isinstance(s, Scan) or _by_column(self.ranks(s)) for s in self.plan.steps),
            any(self.chunks(s) is not None or _by_column(self.ranks(s)) for s in self.plan.steps),
            any(self.ranks(s) is not None for s in self.plan.steps),
            tuple(f"loop_{i}" for i, _ in enumerate(loops, self.first)),
            frozenset(self.helpers),
        )

    # --- equations ---

    def equations(self) -> list[str]:
        table = NameTable(self.reserved)
        local = {i.name: table.new(i.name) for i in self.cell.inputs}
        self.input_names = tuple(local.values())
        past: dict[tuple[str, int], str] = {}
        values: dict[str, str] = {}
        convs = self.convs = dict[str, str]()

        def field(name: str) -> str:
            return f"state.{name}"

        def leaf(ref: Ref) -> str:
            if ref.role == "input":
                return local[ref.name]
            if ref.role == "const":
                return f"self.{ref.name}"
            if ref.role in ("param", "buffer"):
                return self.parameter(ref, block, table)
            if ref.lag == 0:
                return values[ref.name]
            key = (ref.name, ref.lag)
            if self.one_token:
                return self.earlier(ref.name, ref.lag)
            if key not in past:
                stream = self.system.stream(ref.name)
                name = past[key] = table.new(past_name(ref.name.removesuffix("_past"), ref.lag))
                value = values.get(ref.name) or block.variable(stream.expr)
                if ref.lag == 1 and stream.declared:
                    self.helpers.add("_previous")
                    block.assign(name, f"_previous(run, {value}, {field(ref.name)})")
                else:
                    self.helpers.add("_past")
                    block.assign(name, f"_past(run, {value}, {self.queue(stream, block, table)}, {ref.lag})")
            return past[key]

        def conv(node: Conv, text: str) -> str:
            self.helpers.add("_conv")
            if not per_token(node.arg):
                text = self.spread(text, node.arg.dims, node.kind)
            if node is self.system.convs[node.history]:
                convs[node.history] = text
            return f"_conv(run, {text}, {field(node.history)}, self.{node.weight})"

        def packed(projection: Projection) -> str:
            first = projection.maps[0]
            self.helpers.add("_pack")
            weights = ", ".join(f"self.{m.weight}" for m in projection.maps)
            return f"_pack({len(first.kept)}, {len(first.ins)}, {weights})"

        hints = dict(self.system.names)
        block = self.block_class(
            table,
            leaf,
            lambda d: f"self.{d}",
            hints,
            # One token would copy the weights for a product that reads them once.
            {} if self.one_token else self.plan.projections,
            lambda w: f"self.{w}",
            packed,
            conv,
            "dtype",
        )
        block.helpers = self.helpers
        self.begin(block, table)
        self.queues: dict[str, str] = {}
        self.finals: dict[str, str] = {}
        # What contractions read is never computed from the state.
        for step in self.plan.steps:
            reads = list(chunks.reads) if (chunks := self.chunks(step)) else []
            reads += [r.read for r in ranks.reads] if (ranks := self.ranks(step)) else []
            for read in reads:
                block.variables[read.node] = table.new(self.system.names.get(read.node) or "read")
        roots = [e for step in self.plan.steps for e in self.roots(step)]
        block.expect(*roots, *(e for _, e in self.system.outputs))
        for node in [n for _, e in self.system.outputs for n in walk(e)] + [n for r in roots for n in walk(r)]:
            if isinstance(node, Conv):
                block.uses[node.arg] += 1
        for step in self.plan.steps:
            self.step_lines(step, block, table, values)
        results: list[str] = []
        for _, e in self.system.outputs:
            text = block.result(e)
            if not per_token(e):
                text = self.spread(text, e.dims, e.kind)
            elif self.one_token and self.shared(e):
                text = f"{text}.clone()"
            results.append(text)
        fields = self.final(block, table, values, convs)
        outputs = f"({', '.join(results)}{',' if len(results) == 1 else ''})"
        name = table.new("outputs")
        block.assign(name, outputs)
        block.lines.append(f"return {name}, {self.cell.name}State({', '.join(fields)})")
        return wrap(block.lines, 8)

    def begin(self, block: Block, table: NameTable) -> None:
        """Called before there are lines of the equations."""

    def earlier(self, name: str, lag: int) -> str:
        """Code of a past value of a stream, or of what a convolution reads, as the state has it."""
        if not any(s.name == name for s in self.cell.states):
            return f"state.{name}[:, {lag - 1}]"
        return f"state.{name}" if lag == 1 else f"state.{name}_past[:, {lag - 2}]"

    def shared(self, node: Expr) -> bool:
        """Whether an output may have the memory of an input, of a state, or of another output."""
        outputs = [e for _, e in self.system.outputs]
        return outputs.count(node) > 1 or node in {s.expr for s in self.system.streams} or _shares_memory(node, outputs)

    def roots(self, step: Step) -> tuple[Expr, ...]:
        """What PyTorch computes for a step."""
        return needs(step)

    def chunks(self, step: Step) -> Chunks | None:
        """The parts of a step that PyTorch computes by chunks."""
        return step.chunks if isinstance(step, Scan) else None

    def ranks(self, step: Step) -> RankChunks | None:
        """The same of states with low-rank transitions."""
        return step.chunks if isinstance(step, Loop) else None

    def parameter(self, ref: Ref, block: Block, table: NameTable) -> str:
        """A parameter in the computing dtype; a tap is one slice of a convolution's weight."""
        p = self.cell.param(ref.name)
        name = table.new(ref.name if not p.taps else f"{ref.name}_{ref.lag}")
        kind = "_complex_of(dtype)" if p.kind == "complex" else "dtype"
        if p.kind == "complex":
            self.helpers.add("_complex_of")
        tap = f"[..., {-1 - ref.lag}]" if p.taps else ""
        block.assign(name, f"self.{ref.name}{tap}" + ("" if p.kind == "bool" else f".to({kind})"))
        block.variables[ref] = name
        return name

    def queue(self, stream: Stream, block: Block, table: NameTable) -> str:
        """The history of a stream before the first token, newest first."""
        if not stream.declared:
            return f"state.{stream.name}"
        if stream.depth == 1:
            return f"state.{stream.name}.unsqueeze(1)"
        if stream.name not in self.queues:
            name = self.queues[stream.name] = table.new(f"{stream.name}_history")
            block.assign(name, f"torch.cat([state.{stream.name}.unsqueeze(1), state.{stream.name}_past], 1)")
        return self.queues[stream.name]

    def step_lines(self, step: Step, block: Block, table: NameTable, values: dict[str, str]) -> None:
        if step.closure.group.states[0] in self.finals:
            return  # a column of another state
        beside = self.columns(step.closure.group.states[0], table) if self.chunks(step) else []
        for name in (*step.closure.group.states, *(s.stream.name for s, _, _ in beside)):
            if any(s.name == name for s in self.cell.states):
                text = expr_text(self.cell.state(name).expr)
                over = f" over {step_over}" if (step_over := self.cell.state(name).over) else ""
                block.lines.append(cut(f"# {name}[t]{over} = {text}"))
        match step:
            case Pointwise(stream=s):
                if s.declared or not per_token(s.expr):
                    values[s.name] = self.full(s, block, table)
                else:
                    values[s.name] = block.variable(s.expr)
            case Scan(stream=s, chunks=Chunks() as chunks):
                self.helpers |= {"_chunked", "_chunks_operator", "_scan_operator"}
                last = self.finals[s.name] = table.new(f"{s.name}_last")
                block.assign(*chunk_line(step, chunks, block, last, beside))
            case Scan(stream=s, closure=c):
                a = block.aligned_code(c.a, s.type.dims)
                b = "0.0" if c.b is None else block.aligned_code(c.b, s.type.dims)
                name = values[s.name] = table.new(s.name)
                self.helpers |= {"_affine", "_scan_operator"}
                block.assign(name, f"_affine(run, _scan, {a}, {b}, state.{s.name}, {step.contracting})")
            case Loop(chunks=RankChunks() as ranks, streams=streams):
                self.helpers |= {"_low_rank", "_low_rank_operator"}
                if ranks.by_column:
                    self.helpers |= {"_low_rank_columns", "_chunks_operator", "_scan_operator"}
                self.finals |= {s.name: table.new(f"{s.name}_last") for s in streams}
                block.assign(*rank_line(step, ranks, block, [self.finals[s.name] for s in streams]))
            case Loop():
                self.loop_lines(step, block, table, values)

    def columns(self, host: str, table: NameTable) -> list[Column]:
        """The states that are computed with another's chunks."""
        found: list[Column] = []
        for step in self.plan.steps:
            own = self.chunks(step)
            if isinstance(step, Scan) and own is not None and own.beside == host:
                name = self.finals[step.stream.name] = table.new(f"{step.stream.name}_last")
                found.append((step, own, name))
        return found

    def full(self, s: Stream, block: Block, table: NameTable) -> str:
        """The value of a pointwise state with all of its axes."""
        text = block.aligned_code(s.expr, s.type.dims)
        name = table.new(s.name)
        if s.expr.dims != s.type.dims or not per_token(s.expr) or s.expr.kind != s.type.kind:
            text = self.spread(text, s.type.dims, s.type.kind)
        block.assign(name, text)
        if s.expr.dims == s.type.dims and per_token(s.expr):
            block.variables.setdefault(s.expr, name)
        return name

    def spread(self, text: str, dims: tuple[str, ...], kind: Kind) -> str:
        """Code of a value with all of its axes, in the dtype of its kind."""
        self.helpers.add("_spread")
        if kind == "complex":
            self.helpers.add("_complex_of")
        dtype = {"complex": "_complex_of(dtype)", "real": "dtype", "bool": "torch.bool"}[kind]
        return f"_spread(run, {text}, {several(f'self.{d}' for d in dims)}, {dtype})"

    def loop_lines(self, step: Loop, block: Block, table: NameTable, values: dict[str, str]) -> None:
        code = self.loops[id(step)]
        hoisted = [block.aligned_code(n, n.dims) for n in step.hoisted]
        fixed = [block.aligned_code(n, n.dims) for n in step.fixed]
        fixed += [f"self.{w}.to(dtype)" for w in code.weights]
        self.loop_call(step, code.name, hoisted, fixed, block, table, values)

    def loop_call(
        self,
        step: Loop,
        operator: str,
        hoisted: list[str],
        fixed: list[str],
        block: Block,
        table: NameTable,
        values: dict[str, str],
    ) -> None:
        code = self.loops[id(step)]
        history = [self.queue(s, block, table) for s in step.streams]
        args = [f"[{', '.join(hoisted)}]", f"[{', '.join(fixed)}]", f"[{', '.join(history)}]"]
        if code.sizes or code.consts:
            args.append(f"[{', '.join(f'self.{d}' for d in code.sizes)}]")
        if code.consts:
            args.append(f"[{', '.join(f'self.{c}' for c in code.consts)}]")
        for s in step.streams:
            values[s.name] = table.new(s.name)
        names = ", ".join(values[s.name] for s in step.streams)
        target = names if len(step.streams) > 1 else f"({names},)"
        block.assign(target, f"_steps(run, {operator}, {', '.join(args)})")

    def computed(self, field: StateField) -> str | None:
        """Code of a part of the final state that something has computed already."""
        return self.finals.get(field.of) if field.role == "state" else None

    def final(self, block: Block, table: NameTable, values: dict[str, str], convs: dict[str, str]) -> list[str]:
        out: list[str] = []
        for f in self.system.fields:
            if (done := self.computed(f)) is not None:
                out.append(f"{f.name}={done}")
            elif f.role == "state":
                stream = self.system.stream(f.of)
                if stream.depth == 1:
                    self.helpers.add("_last")
                    shared = ", shared=True" if _shares_memory(stream.expr) else ""
                    out.append(f"{f.name}=_last(run, {values[f.of]}, state.{f.name}{shared})")
                else:
                    self.helpers.add("_history")
                    queue = self.queue(stream, block, table)
                    name = self.queues[stream.name] = table.new(f"{stream.name}_history")
                    block.assign(name, f"_history(run, {values[f.of]}, {queue})")
                    out.append(f"{f.name}={name}[:, 0]")
            elif f.role == "past" and f.of in self.queues:
                out.append(f"{f.name}={self.queues[f.of]}[:, 1:]")
            else:
                self.helpers.add("_history")
                streams = {s.name: s for s in self.system.streams}
                if f.name in streams:
                    value = values[f.name]
                    node = streams[f.name].expr
                else:
                    node = self.system.convs[f.name].arg
                    value = convs.get(f.name) or block.code(node)
                if not per_token(node) and f.name not in convs and f.name not in streams:
                    value = self.spread(value, f.dims, f.kind)
                out.append(f"{f.name}=_history(run, {value}, state.{f.name})")
        return out

    def registrations(self, loops: tuple[LoopCode, ...]) -> list[str]:
        lines: list[str] = []
        for i, code in enumerate(loops, self.first):
            pack = f"{code.name}_pack" if code.packs else "_nothing"
            products = several(f"({w}, {quoted(e)}, {n}, {m})" for w, e, n, m in code.products)
            functions = f"{code.name}_step, {code.name}_back, {pack}, {products}, {code.run}, {code.sweep}"
            saved = f", {code.saved}" if code.saved != "()" else ""
            line = f'{code.name} = _loop_operator(_OPERATORS, "loop_{i}", {functions}{saved})'
            lines.extend(wrap([line]))
            if (k := code.kernels) is not None:
                functions = f"{code.name}_step, {code.name}_back, {pack}, {products}, {k.run}, {k.sweep}"
                saved = f", {code.saved}, True" if saved else ""
                line = f'{code.name}_kernels = _loop_operator(_OPERATORS, "loop_{i}_cuda", {functions}{saved})'
                lines.extend(wrap([line]))
        return lines


def _by_column(ranks: RankChunks | None) -> bool:
    return ranks is not None and ranks.by_column


def _shares_memory(node: Expr, others: Sequence[Expr] = ()) -> bool:
    """Whether a value may be a view of an input, of a state or of a parameter, or of one of `others`."""
    first = node
    while not isinstance(node, Ref) and (node is first or node not in others):
        views = isinstance(node, Apply) and node.op in ("real", "imag", "only", "like", "stop_gradient")
        if not views and not isinstance(node, Rename | Split | Merge):
            return False
        node = node.children[0]
    return True
