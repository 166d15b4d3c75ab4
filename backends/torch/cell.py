"""One cell of a plan as the parts of its class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rnnc.chunks import Chunks
from rnnc.fields import StateField
from rnnc.ir import (
    Annulus,
    Apply,
    Conv,
    Disc,
    Draw,
    Expr,
    Interval,
    Kind,
    Merge,
    Param,
    Ref,
    Region,
    Rename,
    Split,
    walk,
)
from rnnc.lower import Stream
from rnnc.plan import Loop, Plan, Pointwise, Projection, Scan, Step, is_number, needs, per_token
from rnnc.rank import RankChunks
from rnnc.show import expr_text, region_text

from .block import Block, NameTable
from .chunks import Column, chunk_line
from .loops import LoopCode, LoopCoder, past_name
from .lowrank import rank_line
from .text import constant, cut, decimal, docstring, quoted, several, together, wrap

LOCALS = frozenset(
    {"self", "run", "dtype", "state", "torch", "F", "math", "cmath", "nn", "batch", "device", "zip", "range"}
)


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


class CellCoder:
    """Turns one plan into `CellCode`. Other backends' coders derive from it."""

    block_class: type[Block] = Block
    one_token = False
    """Whether the equations are written for a step alone."""

    def __init__(self, plan: Plan, reserved: frozenset[str], first: int) -> None:
        self.plan, self.system, self.cell = plan, plan.system, plan.system.cell
        self.graph = self.system.graph
        self.reserved = reserved | LOCALS
        self.helpers: set[str] = {"_Cell"}
        self.loops: dict[int, LoopCode] = {}
        on_gpu = self.on_gpu()
        for step in (s for s in plan.steps if isinstance(s, Loop) and self.ranks(s) is None):
            name = f"_{self.cell.name}_{together(s.name for s in step.streams)}"
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
        setup, reset, initial, checks = self.setup(), self.reset(), self.initial(), self.checks()
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

    # --- small words ---

    def shape(self, dims: tuple[str, ...], lead: str = "[B") -> str:
        return "".join([lead, *(f", {d}" for d in dims), "]"])

    def field_note(self, f: StateField) -> str:
        lead = "[B" if f.length is None else f"[B, {f.length}"
        note = {
            "state": "",
            "past": f", {f.of} before that, newest first",
            "conv": ", what the convolution reads, newest first",
        }
        return self.shape(f.dims, lead) + note[f.role]

    def kernels(self) -> list[tuple[tuple[str, ...], str]]:
        return [
            (step.closure.group.states, step.kernel)
            for step in self.plan.steps
            if any(s.name in step.closure.group.states for s in self.cell.states)
        ]

    def size_code(self, node: Expr) -> str:
        return self.plain_block().number(node)[0]

    def plain_block(self, dtype: str = "") -> Block:
        """A block for expressions outside the equations. With `dtype`, parameters are read in that one."""

        def leaf(ref: Ref) -> str:
            code = f"self.{ref.name}"
            if not dtype or ref.role not in ("param", "buffer") or ref.kind == "bool":
                return code
            if ref.kind == "complex":
                self.helpers.add("_complex_of")
            return f"{code}.to({'_complex_of(dtype)' if ref.kind == 'complex' else dtype})"

        def nothing(*_: object) -> str:
            raise AssertionError("no learned map here")

        block = Block(
            NameTable(self.reserved),
            leaf,
            lambda d: f"self.{d}",
            {},
            {},
            nothing,
            nothing,
            nothing,
            dtype or "torch.float32",
        )
        block.helpers = self.helpers
        return block

    # --- construction ---

    def arguments(self) -> list[str]:
        sizes = [f"{d.name}: int = {d.size}" for d in self.cell.dims if not d.derived]
        return sizes + [f"{c.name}: float = {constant(c.value)}" for c in self.cell.consts]

    def setup(self) -> list[str]:
        sizes = [d.name for d in self.cell.dims if not d.derived]
        if sizes:
            self.helpers.add("_whole")
        return wrap(
            [
                *(f"self.{d} = _whole({quoted(d)}, {d})" for d in sizes),
                *(f"self.{c.name} = float({c.name})" for c in self.cell.consts),
            ]
        )

    def building(self) -> list[str]:
        """What follows from the arguments: in a method of its own, where they hide no other name."""
        lines: list[str] = []
        for d in self.cell.dims:
            if isinstance(d.size, Expr):
                self.helpers.add("_whole")
                lines.append(
                    f"self.{d.name} = _whole({quoted(f'{d.name} = {expr_text(d.size)}')}, {self.size_code(d.size)})"
                )
        for left, right, _span in self.cell.size_checks:
            text = f"{expr_text(left)} = {expr_text(right)}"
            lines.append(f"_require({self.size_code(left)} == {self.size_code(right)}, {quoted(text)})")
            self.helpers.add("_require")
        for c in self.cell.consts:
            if c.region is not None:
                text = f"{c.name} in {region_text(c.region)}"
                lines.append(f"_require({self.inside(f'self.{c.name}', c.region)}, {quoted(text)})")
                self.helpers.add("_require")
        for p in self.cell.params:
            shape = [*(f"self.{d}" for d in p.shape), *([str(p.taps)] if p.taps else [])]
            size = f"({', '.join(shape)}{',' if len(shape) == 1 else ''})"
            kind = {"complex": ", dtype=_complex_of(dtype)", "real": ", dtype=dtype", "bool": ", dtype=torch.bool"}[
                p.kind
            ]
            if p.kind == "complex":
                self.helpers.add("_complex_of")
            blank = f"torch.empty({size}{kind}, device=device)"
            if p.learned:
                lines.append(f"self.{p.name} = nn.Parameter({blank})")
            else:
                lines.append(f'self.register_buffer("{p.name}", {blank})')
        return wrap(lines, 8)

    def inside(self, name: str, region: Region) -> str:
        """A Python condition on a number or, elementwise, on a tensor."""
        block = self.plain_block()
        match region:
            case Interval(lo=lo, hi=hi):
                parts: list[str] = []
                for end, mark in ((lo, ">" if region.lo_open else ">="), (hi, "<" if region.hi_open else "<=")):
                    text = block.number(end)[0]
                    parts.append(f"({name} {mark} {text})")
                return " & ".join(parts)
            case Disc(radius=radius):
                return f"(abs({name}) <= {block.number(radius)[0]})"
            case Annulus(inner=inner, outer=outer):
                low, high = block.number(inner)[0], block.number(outer)[0]
                return f"(abs({name}) >= {low}) & (abs({name}) <= {high})"

    def reset(self) -> list[str]:
        lines: list[str] = []
        for p in self.cell.params:
            lines.extend(self.draws(p))
        return wrap(lines, 8)

    def draws(self, p: Param) -> list[str]:
        """Lines that initialise one parameter, as declared."""
        target = f"self.{p.name}"
        block = self.plain_block()
        init = p.init
        if is_number(init):
            return [f"{target}.fill_({block.number(init)[0]})"]
        if isinstance(init, Draw) and init.op == "uniform":
            lo, hi = (block.number(a)[0] for a in init.args)
            return [f"{target}.uniform_({lo}, {hi})"]
        if isinstance(init, Draw) and init.op == "normal":
            return [f"{target}.normal_(0.0, {block.number(init.args[0])[0]})"]

        def draw(node: Draw) -> str:
            args = [block.number(a)[0] for a in node.args]
            if node.op == "arange":
                return block.call("_counted", target, f"self.{node.dims[0]}", args[0] if args else "0")
            self.helpers.add("_blank")
            if node.op in ("orthogonal", "eye"):
                kept, outs = p.matrix or (max(0, len(p.shape) - 2), 1)
                return block.call(f"_{node.op}", f"_blank({target})", str(kept), str(outs))
            if node.op == "normal":
                return f"_blank({target}).normal_(0.0, {args[0]})"
            if node.op == "uniform":
                return f"_blank({target}).uniform_({args[0]}, {args[1]})"
            return f"torch.exp(_blank({target}).uniform_(math.log({args[0]}), math.log({args[1]})))"

        block = Block(
            NameTable(self.reserved),
            lambda r: f"self.{r.name}",
            lambda d: f"self.{d}",
            {},
            {},
            block.weight,
            block.packed,
            block.conv,
            "torch.float32",
            draw,
        )
        block.helpers = self.helpers
        block.expect(init)
        text = block.aligned_code(init, p.shape)
        return [*block.lines, f"{target}.copy_({text})"]

    def initial(self) -> list[str]:
        items: list[str] = []
        block = self.plain_block("dtype")
        for f in self.system.fields:
            lead = ["batch"] if f.length is None else ["batch", str(f.length)]
            shape = (
                f"({', '.join([*lead, *(f'self.{d}' for d in f.dims)])}{',' if len(lead) + len(f.dims) == 1 else ''})"
            )
            kind = {"complex": "_complex_of(dtype)", "real": "dtype", "bool": "torch.bool"}[f.kind]
            if f.kind == "complex":
                self.helpers.add("_complex_of")
            value = f.init if f.init is not None else self.graph.lit(0.0)
            if is_number(value):
                number = "False" if f.kind == "bool" else decimal(block.number(value)[0])
                text = f"torch.full({shape}, {number}, dtype={kind}, device=device)"
            else:
                block.expect(value)
                code = block.aligned(value, f.dims, arithmetic=True)[0]
                atom = code.removesuffix(f".to({kind})")
                if not atom.replace(".", "").replace("_", "").isalnum():
                    atom = f"({code})"
                # A copy: a state that is written to must not change a parameter.
                text = f"{atom}.to({kind}).expand({shape}).clone(memory_format=torch.contiguous_format)"
            items.append(f"{f.name}={text},")
        return wrap(items, 12)

    def checks(self) -> list[str]:
        lines: list[str] = []
        for i, name in zip(self.cell.inputs, self.input_names, strict=True):
            if i.region is not None:
                self.helpers.add("_require")
                text = f"{i.name} in {region_text(i.region)}"
                lines.append(f"_require(bool(({self.inside(name, i.region)}).all()), {quoted(text)})")
        return wrap(lines, 8)

    def input_table(self) -> tuple[str, ...]:
        items = [
            several([quoted(i.name), several(quoted(d) for d in i.type.dims), quoted(i.type.kind)])
            for i in self.cell.inputs
        ]
        return tuple(wrap([f"_inputs = {several(items)}"], 4))

    def field_table(self) -> tuple[str, ...]:
        items: list[str] = []
        for f in self.system.fields:
            shape = [*([] if f.length is None else [str(f.length)]), *(quoted(d) for d in f.dims)]
            items.append(several([quoted(f.name), several(shape), quoted(f.kind)]))
        return tuple(wrap([f"_fields = {several(items)}"], 4))

    # --- equations ---

    def equations(self) -> list[str]:
        table = NameTable(self.reserved)
        local = {i.name: table.new(i.name) for i in self.cell.inputs}
        self.input_names = tuple(local.values())
        past: dict[tuple[str, int], str] = {}
        values: dict[str, str] = {}
        convs: dict[str, str] = {}

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
            text = block.variable(e) if e in block.hints or block.uses[e] > 1 else block.aligned_code(e, e.dims)
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
            line = f'{code.name} = _loop_operator(_OPERATORS, "loop_{i}", {functions})'
            lines.extend(wrap([line]))
            if (k := code.kernels) is not None:
                functions = f"{code.name}_step, {code.name}_back, {pack}, {products}, {k.run}, {k.sweep}"
                line = f'{code.name}_kernels = _loop_operator(_OPERATORS, "loop_{i}_cuda", {functions})'
                lines.extend(wrap([line]))
        return lines

    # --- documentation ---

    def docs(self) -> str:
        cell = self.cell
        lines = [cell.doc.strip() or cell.name, ""]
        lines.append("Inputs, one token each at [B, T, ...]:")
        for i in cell.inputs:
            region = (
                f", in {region_text(i.region)} (relied on; `validate=True` checks it)" if i.region is not None else ""
            )
            kind = f", {i.type.kind}" if i.type.kind != "real" else ""
            lines.append(f"    {i.name}: {self.shape(i.type.dims, '[B, T')}{kind}{region}")
        lines.append("Outputs:")
        lines += [f"    {o.name}: {self.shape(o.expr.dims, '[B, T')}" for o in cell.outputs]
        lines.append("State, one entry for each sequence:")
        lines += [f"    {f.name}: {self.field_note(f)}" for f in self.system.fields] or ["    none"]
        if cell.params:
            lines.append("Parameters and buffers:")
        for p in cell.params:
            taps = f", {p.taps}" if p.taps else ""
            lines.append(f"    {p.name}: [{', '.join(p.shape)}{taps}]{'' if p.learned else ', not learned'}")
        return "\n".join(lines)


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
