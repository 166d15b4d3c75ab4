"""One cell of a plan as the parts of its class, recurrences whose entries do not mix being fused kernels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache, cached_property
from importlib import resources

import jinja2

from rnnc.chunks import Chunks
from rnnc.decode import alone, decodes
from rnnc.fields import StateField
from rnnc.fuse import Kernel, delay, fuse, paired, ranked, streams_of
from rnnc.ir import Expr, Linear, Ref, walk
from rnnc.plan import Loop, Plan, Pointwise, Scan, Step, needs
from rnnc.rank import RankChunks
from rnnc.region import regions
from rnnc.show import expr_text

from ..torch.block import Block, NameTable
from ..torch.cell import CellCode, CellCoder
from ..torch.chunks import chunk_arguments, chunk_targets, column_arguments, together_code
from ..torch.loops import LoopCode
from ..torch.lowrank import rank_arguments, rank_targets
from ..torch.text import cut, mapping, quoted, several, spelled, together, wrap
from .adjoint import BackwardCoder
from .chunks import PairsCoder
from .decode import DecodeCoder
from .document import documented, form
from .entrywise import in_torch
from .forward import ForwardCoder
from .frame import Frame, Leaf
from .kernel import KernelCoder
from .maptext import map_text
from .prune import pruned
from .rank import RankCoder
from .region import RegionCoder

SEQUENTIAL = "cuda: one step after the other in a kernel"
"""The kernel of what neither composes nor is elementwise, in words."""


class FusedBlock(Block):
    """Expressions around the kernels: learned maps run in the dtype `low`, everything else in the computing one."""

    def operand(self, node: Expr) -> str:
        if node.kind == "complex":
            return super().operand(node)
        text = self.raw(node)
        return f"{text if text.replace('.', '').replace('_', '').isalnum() else f'({text})'}.to(low)"

    def raw(self, node: Expr) -> str:
        """Code of a node in the dtype that it has."""
        if isinstance(node, Ref) and node.role == "input":
            return self.leaf(node)
        if isinstance(node, Linear) and node.kind != "complex":
            return self.variable(node)
        return self.aligned_code(node, node.dims)

    def nested(self, node: Expr) -> tuple[str, int]:
        return (self.wide(node), 10) if _narrow(node) and not self.keeps else super().nested(node)

    def wide(self, node: Expr) -> str:
        """The variable of a narrow node in the computing dtype: one, so that gradients are summed in that dtype."""
        if node not in self.widened:
            if node in self.projections:
                self.variable(node)
            text, _ = super().nested(node)
            name = self.names.new(f"{text}_wide" if text.isidentifier() else "wide")
            self.assign(name, f"{text}.to(dtype)")
            self.widened[node] = name
        return self.widened[node]

    def given(self, node: Expr, dims: tuple[str, ...]) -> str:
        """`aligned_code` of a node in the dtype that it has."""
        if not _narrow(node):
            return self.aligned_code(node, dims)
        self.raw(node)
        self.keeps = True
        text = self.aligned(node, dims)[0]
        self.keeps = False
        return text

    keeps = False

    def result(self, node: Expr) -> str:
        """What a learned map makes has the output's dtype in most cases, and else is made so outside."""
        return self.raw(node) if isinstance(node, Linear) and self.uses[node] == 1 else super().result(node)

    # --- what kernels of their own compute ---

    def prepare(self, root: Expr) -> None:
        if root in self.between and root not in self.variables:
            self.compute(self.between[root])
        else:
            super().prepare(root)

    def _below(self, node: Expr) -> tuple[Expr, ...]:
        return self.between[node].region.sources if node in self.between else super()._below(node)

    def _named(self, node: Expr) -> bool:
        return node in self.between or super()._named(node)

    def compute(self, coder: RegionCoder) -> None:
        raise NotImplementedError

    @cached_property
    def between(self) -> dict[Expr, RegionCoder]:
        return {}

    @cached_property
    def widened(self) -> dict[Expr, str]:
        return {}


def _defined(texts: Iterable[str]) -> set[str]:
    """The names that lines of a module begin with, as definitions do."""
    return set(re.findall(r"^(?:def )?(_\w+)", "\n".join(texts), re.MULTILINE))


def _narrow(node: Expr) -> bool:
    """Whether a value may have 16 bits."""
    return (isinstance(node, Linear) or (isinstance(node, Ref) and node.role == "input")) and node.kind == "real"


class FusedCellCoder(CellCoder):
    """`CellCoder` whose class has kernels too, where the plan has something for them."""

    block_class = Block

    def __init__(self, plan: Plan, reserved: frozenset[str], first: int) -> None:
        super().__init__(plan, reserved | {"low", "out"}, first)
        self.kernels_of = fuse(plan)
        self.fusing: dict[int, Kernel] = {}
        self.done: set[int] = set()
        self.lasts: dict[str, str] = {}
        self.function_names = NameTable(())
        self.coders = [KernelCoder(self.system, k, self.function(together(_names(k)))) for k in self.kernels_of]
        self.backwards = [BackwardCoder(c) for c in self.coders]
        self.decoding: dict[int, DecodeCoder] = {}
        self.pairs: dict[int, PairsCoder | RankCoder] = {}
        self.between: list[RegionCoder] = []
        for step in plan.steps:
            if isinstance(step, Scan) and step.chunks is not None and not step.chunks.beside and paired(step):
                beside = [
                    s for s in plan.steps if isinstance(s, Scan) and s.chunks and s.chunks.beside == step.stream.name
                ]
                self.pairs[id(step)] = PairsCoder(
                    self.system,
                    step,
                    step.chunks,
                    beside,
                    self.function(step.stream.name),
                )
            elif isinstance(step, Loop) and isinstance(step.chunks, RankChunks) and ranked(step):
                self.pairs[id(step)] = RankCoder(step, step.chunks, self.function(step.streams[0].name))

    def on_gpu(self) -> set[int]:
        taken = {id(step) for k in fuse(self.plan) for step in k.steps}
        return {id(step) for step in self.plan.steps if isinstance(step, Loop)} - taken

    def function(self, wanted: str, *parts: str) -> str:
        """A new name that begins those of kernels; nothing else has that, nor one of `parts` behind it, as its own."""
        taken = self.function_names.taken
        while True:
            name = self.function_names.new(f"{self.prefix}_{spelled(wanted)}")
            made = {f"{name}_{part}" for part in parts}
            if not made & taken:
                taken |= made
                return name

    def code(self) -> CellCode:
        code = super().code()
        sequential = {id(s): c for s in self.plan.steps if (c := self.loops.get(id(s))) is not None and c.kernels}
        if self.kernels_of or self.pairs or sequential:
            code = self.by_kernels(code, sequential)
        return self.by_token(code)

    def begin(self, block: Block, table: NameTable) -> None:
        if not self.one_token and isinstance(block, FusedBlock):
            block.between.update((r, c) for c in self.between for r in c.region.results)
            block.compute = lambda coder: self.region_lines(coder, block, table)

    def regions(self) -> list[RegionCoder]:
        """What stands between learned maps and kernels, as kernels too."""

        if not self.coders and not self.pairs:
            return []
        return [
            RegionCoder(
                self.system, r, self.prefix, lambda wanted: self.function(wanted, "forward", "backward", "parts")
            )
            for r in regions(self.plan)
        ]

    def region_lines(self, coder: RegionCoder, block: FusedBlock, table: NameTable) -> None:
        """The call of the kernel of a region."""
        region = coder.region
        tokens = [block.wide(n) if n in region.shared and _narrow(n) else block.raw(n) for n in region.inputs]
        fixed = [block.aligned_code(n, n.dims) for n in region.fixed]
        sizes = [f"self.{d}" for d in coder.sizes]
        args = [f"[{', '.join(x)}]" for x in (tokens, fixed, sizes)]
        args.append(f"[{', '.join(f'float({block.number(n)[0]})' for n in coder.number_names)}]")
        if coder.convs:
            args.append(f"[{', '.join(f'self.{c.node.weight}' for c in coder.convs)}]")
            args.append(f"[{', '.join(f'state.{c.node.history}' for c in coder.convs)}]")
        for c in coder.convs:
            if c.node is self.system.convs[c.node.history]:
                self.convs[c.node.history] = tokens[coder.tokens.index(c.leaf)]
        made = [table.new(coder.hint_of(r)) for r in region.results]
        block.variables.update(zip(region.results, made, strict=True))
        targets = ", ".join(made) if len(made) > 1 else several(made)
        called = f"run, {coder.name}_parts, {coder.name}, self.{coder.method_name}, dtype, low, out"
        block.assign(targets, f"_between({called}, {', '.join(args)})")

    def by_kernels(self, code: CellCode, sequential: Mapping[int, LoopCode]) -> CellCode:
        """With the kernels for sequences."""
        self.fusing = {id(step): k for k in self.kernels_of for step in k.steps}
        self.block_class = FusedBlock
        pairs, first = list(self.pairs.values()), self.first + len(code.operators)
        parts = [*(self.kernel_text(b) for b in self.backwards), *(p.text() for p in pairs)]
        operators = [f"fused_{i}" for i, _ in enumerate(self.coders, first)]
        registrations = [self.registration(b, name) for b, name in zip(self.backwards, operators, strict=True)]
        for p in pairs:
            operators.append(f"chunks_{first + len(operators)}")
            registrations.append(p.registration(operators[-1]))
        lines = [*code.registrations, *(line for r in registrations for line in r)]
        self.function_names.taken.update(_defined([*(loop.text for loop in self.loops.values()), *parts, *lines]))
        self.between = self.regions()
        names = self.input_names
        fused = self.equations()
        assert self.input_names == names
        for r in self.between:
            parts.append(r.text())
            operators.append(f"region_{first + len(operators)}")
            lines += r.registration(operators[-1])
        self.helpers |= {name for text in parts for name in re.findall(r"\b_tl_\w+", text)}
        steps = [s for s in self.plan.steps if id(s) in sequential]
        methods = tuple(tuple(r.method(self.plain_block("dtype"))) for r in self.between)
        self.helpers |= {"_Region", "_region_operator", "_between"} if self.between else set()
        self.helpers |= {"_Taps", "_conv"} if any(r.convs for r in self.between) else set()
        kind = "_FusedCell" if self.coders or pairs else "_CudaCell"
        base = kind if code.base == "_Cell" else f"{kind}, {code.base}"
        self.helpers |= {kind}
        self.helpers |= {"_fused_operator", "_kernel"} if self.coders else set()
        kinds = {type(p) for p in pairs}
        self.helpers |= {"_pairs_operator", "_by_kernels"} if PairsCoder in kinds else set()
        self.helpers |= {"_ranked_operator", "_by_rank_kernels"} if RankCoder in kinds else set()
        return replace(
            code,
            base=base,
            parts=tuple(parts),
            fused=tuple(fused),
            fused_kernels=(
                *((", ".join(_names(c.kernel)), c.kernel.form) for c in self.coders),
                *((", ".join(p.states), p.form) for p in pairs),
                *((", ".join(s.name for s in streams_of(step)), SEQUENTIAL) for step in steps),
            ),
            registrations=tuple(lines),
            operators=(*code.operators, *operators),
            helpers=frozenset(self.helpers),
            methods=methods,
        )

    def by_token(self, code: CellCode) -> CellCode:
        """With the kernels for one token."""
        coders = [
            DecodeCoder(self.system, k, self.function(f"{together(s.name for s in k.streams)}_token"))
            for k in decodes(self.plan)
        ]
        if not coders:
            return code
        self.decoding = {id(step): c for c in coders for step in c.kernel.steps}
        self.fusing, self.lasts, self.block_class, self.one_token = {}, {}, FusedBlock, True
        lines = self.equations()
        first = self.first + len(code.operators)
        operators = [f"token_{i}" for i, _ in enumerate(coders, first)]
        parts = tuple(c.text() for c in coders)
        self.helpers |= {
            "_DecodeCell",
            "_Decode",
            "_decode",
            "_decode_operator",
            *(f for c in coders for f in c.functions),
        }
        bases = [b for b in code.base.split(", ") if b != "_Cell"]
        if not code.fused:
            bases = ["_FusedCell", *bases]
            self.helpers |= {"_FusedCell"}
        return replace(
            code,
            base=", ".join(["_DecodeCell", *bases]),
            parts=(*code.parts, *parts),
            token=tuple(lines),
            token_kernels=tuple(f"({c.name}_parts, {several(map(quoted, c.all_dims))})" for c in coders),
            registrations=(
                *code.registrations,
                *(line for c, name in zip(coders, operators, strict=True) for line in c.registration(name)),
            ),
            operators=(*code.operators, *operators),
            helpers=frozenset(self.helpers),
        )

    # --- the equations by kernels ---

    def roots(self, step: Step) -> tuple[Expr, ...]:
        if self.one_token:
            coder = self.decoding.get(id(step))
            if coder is None:
                return needs(alone(step))
            return (*coder.kernel.inputs, *coder.kernel.fixed) if step is coder.kernel.steps[0] else ()
        kernel = self.fusing.get(id(step))
        if kernel is None:
            return super().roots(step)
        return (*kernel.inputs, *kernel.fixed) if step is kernel.steps[0] else ()

    def chunks(self, step: Step) -> Chunks | None:
        return None if self.one_token or id(step) in self.fusing else super().chunks(step)

    def ranks(self, step: Step) -> RankChunks | None:
        return None if self.one_token and id(step) in self.decoding else super().ranks(step)

    def step_lines(self, step: Step, block: Block, table: NameTable, values: dict[str, str]) -> None:
        if self.one_token:
            self.token_lines(step, block, table, values)
            return
        kernel = self.fusing.get(id(step))
        if (paired(step) or ranked(step)) and isinstance(block, FusedBlock):
            coder = self.pairs.get(id(step))
            if isinstance(coder, PairsCoder):
                self.pair_lines(coder, block, table)
            elif coder is not None:
                self.rank_lines(coder, block, table)
            return
        if kernel is None:
            super().step_lines(step, block, table, values)
            if isinstance(step, Pointwise) and isinstance(block, FusedBlock) and _narrow(step.stream.expr):
                # What it gets of the gradient is summed with the rest in the computing dtype.
                values[step.stream.name] = block.wide(step.stream.expr)
            return
        if step is not kernel.steps[0]:
            return
        assert isinstance(block, FusedBlock)
        coder = self.coders[self.kernels_of.index(kernel)]
        for s in kernel.streams:
            if s.declared:
                block.lines.append(cut(f"# {s.name}[t] = {expr_text(self.cell.state(s.name).expr)}"))
        readers = Counter(n for k in self.kernels_of for n in k.inputs)
        tokens = [block.wide(n) if readers[n] > 1 and _narrow(n) else block.raw(n) for n in kernel.inputs]
        fixed = [block.aligned_code(n, n.dims) for n in kernel.fixed]
        initial = [self.before(kernel, i) for i in range(len(kernel.streams))]
        sizes = ", ".join(f"self.{d}" for d in coder.dims)
        args = [f"[{', '.join(x)}]" for x in (tokens, fixed, initial)] + [f"[{sizes}]", "out"]
        if coder.number_names:
            args.append(f"[{', '.join(self.scalars(block, coder))}]")
        made: list[str] = []
        for node in kernel.results:
            made.append(table.new(self.system.names.get(node) or self.output_of(node)))
            block.variables[node] = made[-1]
        for s, kept, lag in zip(kernel.streams, kernel.kept, kernel.lags, strict=True):
            if lag > 1 and coder.stored:
                continue
            made.append(table.new(s.name) if kept else "_")
            if kept:
                values[s.name] = made[-1]
        for s in kernel.streams:
            made.append(table.new(f"{s.name.replace(' ', '_past')}_last"))
            self.lasts[s.name] = made[-1]
        block.assign(", ".join(made), f"_kernel(run, {coder.name}_kernel, {', '.join(args)})")

    def token_lines(self, step: Step, block: Block, table: NameTable, values: dict[str, str]) -> None:
        """One token of a step: the call of its kernel where it is the kernel's first."""
        coder = self.decoding.get(id(step))
        if coder is None:
            super().step_lines(alone(step), block, table, values)
            return
        k = coder.kernel
        if step is not k.steps[0]:
            return
        assert isinstance(block, FusedBlock)
        block.lines += [cut(f"# {s.name}[t] = {expr_text(s.expr, self.system.names)}") for s in k.streams if s.declared]
        tokens = [block.raw(n) for n in k.inputs]
        fixed = [block.aligned_code(n, n.dims) for n in k.fixed]
        states = [self.earlier(s.name, 1) for s in k.streams]
        sizes = [f"self.{d}" for d in coder.all_dims]
        args = [f"[{', '.join(x)}]" for x in (tokens, fixed, states, sizes)] + ["out"]
        if coder.number_names:
            args.append(f"[{', '.join(self.scalars(block, coder))}]")
        made: list[str] = []
        for node in k.results:
            made.append(table.new(self.system.names.get(node) or self.output_of(node)))
            block.variables[node] = made[-1]
        for s in k.streams:
            made.append(table.new(s.name))
            values[s.name] = made[-1]
            if s.declared and s.depth == 1:
                self.finals[s.name] = made[-1]
        targets = ", ".join(made) if len(made) > 1 else several(made)
        block.assign(targets, f"_decode({coder.name}_kernel, {', '.join(args)})")

    def loop_lines(self, step: Loop, block: Block, table: NameTable, values: dict[str, str]) -> None:
        kernels = self.loops[id(step)].kernels
        if kernels is None or self.one_token or not isinstance(block, FusedBlock):
            super().loop_lines(step, block, table, values)
            return
        hoisted = [block.given(n, n.dims) for n in step.hoisted]
        fixed = [block.aligned_code(n, n.dims) for n in step.fixed]
        fixed = [f"({x}).to(low)" if i in kernels.matrices else x for i, x in enumerate(fixed)]
        fixed += [f"self.{w}.to(low)" for w in self.loops[id(step)].weights]
        self.loop_call(step, f"{self.loops[id(step)].name}_kernels", hoisted, fixed, block, table, values)

    def pair_lines(self, pairs: PairsCoder, block: FusedBlock, table: NameTable) -> None:
        """The call of the kernels of a step in chunks."""
        step, chunks, stream = pairs.step, pairs.chunks, pairs.step.stream
        if stream.declared:
            block.lines.append(cut(f"# {stream.name}[t] = {expr_text(self.cell.state(stream.name).expr)}"))
        own = {"keys": chunks.keys, "values": chunks.values}.get(pairs.decay, ())
        sources = Counter(m.read for m in pairs.entrywise.made.values())

        def given(node: Expr, dims: tuple[str, ...]) -> str:
            source = pairs.source(node)
            # What is read more than once is read in the computing dtype, in which its gradients are summed.
            shared = sources[source] > 1 or (source is not node and block.uses[source] > 1)
            return block.aligned_code(source, dims) if shared else block.given(source, dims)

        factor = "None" if pairs.decay == "free" else given(step.closure.a, chunks.heads + own)
        args = chunk_arguments(step, chunks, factor, block, given)
        last = self.finals[stream.name] = table.new(f"{stream.name}_last")
        columns = self.columns(stream.name, table)
        args += [quoted(pairs.decay), together_code(chunks.together), "low"]
        args.append(self.read_dtype(step, {r.node for r in chunks.reads}))
        args += column_arguments(columns, block, block.given)
        made = pairs.entrywise.made
        args += [f"make_{name}=lambda x: {in_torch(m, self.plain_block())}" for name, m in made.items()]
        if pairs.offset is not None:
            args.append(f"offset={block.aligned_code(pairs.offset, chunks.heads + own)}")
        if pairs.entrywise.numbers:
            args.append(f"numbers=[{', '.join(f'float({block.number(n)[0]})' for n in pairs.entrywise.numbers)}]")
        targets = ", ".join(chunk_targets(chunks, block, last, columns))
        block.assign(targets, f"_by_kernels(run, {pairs.name}_chunks, _scan, _chunks, {', '.join(args)})")

    def rank_lines(self, coder: RankCoder, block: FusedBlock, table: NameTable) -> None:
        """The call of the kernels of a step with low-rank transitions."""
        step, chunks, stream = coder.step, coder.chunks, coder.step.streams[0]
        if stream.declared:
            block.lines.append(cut(f"# {stream.name}[t] = {expr_text(self.cell.state(stream.name).expr)}"))
        args = rank_arguments(step, chunks, block, block.given)
        last = self.finals[stream.name] = table.new(f"{stream.name}_last")
        args += [
            quoted(coder.decay),
            together_code(chunks.together),
            "low",
            self.read_dtype(step, {r.read.node for r in chunks.reads}),
        ]
        args += ["columns=(_scan, _chunks)"] if chunks.by_column else []
        targets = ", ".join(rank_targets(chunks, block, [last]))
        block.assign(targets, f"_by_rank_kernels(run, {coder.name}_chunks, _rank, {', '.join(args)})")

    def read_dtype(self, step: Step, reads: set[Expr]) -> str:
        """The dtype that reads are written in: the computing one where they enter anything but outputs and learned
        maps."""
        around = [e for s in self.plan.steps if s is not step for e in needs(s)] + [e for _, e in self.system.outputs]
        wide = any(any(c in reads for c in n.children) and not isinstance(n, Linear) for n in walk(*around))
        return "dtype" if wide else "out"

    def scalars(self, block: Block, coder: Frame) -> list[str]:
        """Code of the numbers that a kernel is given."""
        out: list[str] = []
        for node in coder.number_names:
            text = block.number(node)[0]
            out += [f"({text}).real", f"({text}).imag"] if node.kind == "complex" else [f"float({text})"]
        return out

    def output_of(self, node: Expr) -> str:
        return next((name for name, e in self.system.outputs if e is node), "result")

    def before(self, kernel: Kernel, i: int) -> str:
        """The value of a kernel's state before the first token."""
        lag = kernel.lags[i]
        stream = kernel.streams[i - lag + 1]
        return self.earlier(stream.name, lag)

    def computed(self, field: StateField) -> str | None:
        streams = {s.name: s for s in self.system.streams}
        stream = streams.get(field.of if field.role == "state" else field.name, streams.get(field.of))
        if not self.fusing or stream is None:
            return super().computed(field)
        lasts = [self.lasts.get(delay(stream.name, lag)) for lag in range(1, stream.depth + 1)]
        known = [name for name in lasts if name is not None]
        if len(known) < len(lasts):
            return super().computed(field)
        if field.role == "state":
            return known[0]
        past = known[1:] if stream.declared else known
        return f"torch.stack([{', '.join(past)}], 1)"

    # --- the kernels ---

    def kernel_text(self, backward: BackwardCoder) -> str:
        coder = backward.coder
        forward = ForwardCoder(coder)
        view = {
            "name": coder.name,
            "outer": coder.outer,
            "inner": coder.kernel.inner,
            "lane": coder.lane,
            "counts": coder.counts,
            "stored": coder.stored,
            "tiled": coder.tiled,
            "tiled_back": coder.tiled_back,
            "forward": forward.forward(),
            "carry": forward.carry() if coder.kernel.scan else None,
            "backward": backward.backward(),
            "carry_back": backward.carry() if backward.composition else None,
        }
        functions = _template().render(k=view).strip("\n").split("\n\n\n")
        made = [documented(pruned(f.strip("\n")), backward) for f in functions]
        both = (coder.composition, backward.composition)
        own = [map_text(c, form(c).replace("`", "")) for c in both if c is not None and c.used]
        self.helpers |= coder.functions
        return "\n\n\n".join([*own, *("\n".join(wrap(f.split("\n"))) for f in made)])

    def registration(self, backward: BackwardCoder, operator: str) -> list[str]:
        """Lines that register a kernel as an operator."""
        coder, k = backward.coder, backward.coder.kernel
        found = {*backward.token_gradients, *backward.fixed_gradients}

        def dims(names: tuple[str, ...]) -> str:
            return several(quoted(coder.sizes.get(d, d)) for d in names)

        def named(leaves: list[Leaf]) -> str:
            return mapping((x.name, dims(x.node.dims)) for x in leaves)

        def slots(leaves: list[Leaf]) -> str:
            return several(dims(coder.slot(x)) if x in found else "None" for x in leaves)

        results = zip(coder.result_names, k.results, k.wide_results, strict=True)

        fields = {
            "forward": f"{coder.name}_forward",
            "backward": f"{coder.name}_backward",
            "carry": f"{coder.name}_carry" if k.scan else "None",
            "carry_back": f"{coder.name}_carry_back" if backward.composition else "None",
            "tiled": str(coder.tiled),
            "tiled_back": str(coder.tiled_back),
            "dims": dims(coder.dims),
            "outer": dims(coder.outer),
            "block": dims(coder.block),
            "inner": dims(k.inner),
            "states": several(map(quoted, coder.state_names)),
            "lags": several(map(str, k.lags)),
            **_composed(backward),
            "tokens": named(coder.tokens),
            "token_slots": slots(coder.tokens),
            "fixed": named(coder.fixed),
            "fixed_slots": slots(coder.fixed),
            "numbers": several(quoted(n) for names in coder.number_names.values() for n in names),
            "results": mapping((n, several([dims(r.dims), quoted(r.kind), str(w)])) for n, r, w in results),
            "kept": several(map(str, k.kept)),
            "wide": several(map(str, k.wide)),
            "stored": str(coder.stored),
        }
        lines = [
            f"{coder.name}_kernel = _fused_operator(",
            "    _OPERATORS,",
            f"    {quoted(operator)},",
            "    _Fused(",
        ]
        lines += [w for name, value in fields.items() for w in wrap([f"        {name}={value},"])]
        return [*lines, "    ),", ")"]


def _names(kernel: Kernel) -> list[str]:
    return [s.name for step in kernel.steps for s in streams_of(step)]


def _composed(backward: BackwardCoder) -> dict[str, str]:
    """What segments leave in memory, forward and backward."""
    made: dict[str, str] = {}
    for suffix, composition in (("", backward.coder.composition), ("_back", backward.composition)):
        names, checks = (composition.names, composition.checks()) if composition else ({}, [])
        made[f"maps{suffix}"] = mapping((n, quoted(state)) for n, state in names.items())
        made[f"checks{suffix}"] = several(map(quoted, checks))
    return made


@cache
def _template() -> jinja2.Template:
    text = (resources.files("rnnc.templates") / "triton" / "kernel.py.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return environment.from_string(text)
