"""What is in a class of one cell besides its equations: sizes, parameters, initial states, checks, documentation."""

from __future__ import annotations

from collections.abc import Iterable

from rnnc.fields import StateField
from rnnc.ir import Annulus, Disc, Draw, Expr, Interval, Param, Ref, Region
from rnnc.plan import Plan, is_number
from rnnc.show import expr_text, region_text

from .block import Block, NameTable
from .text import constant, decimal, quoted, several, spelled, wrap

LOCALS = frozenset(
    {"self", "run", "dtype", "state", "torch", "F", "math", "cmath", "nn", "batch", "device", "zip", "range"}
)


def _prefix(name: str, others: frozenset[str]) -> str:
    """What begins the names of a cell's own functions, in ASCII. Those of a cell `C` go on with a name in it, and none
    begins with a digit: one stands after `_C_` in those of a cell `C_D`."""
    spellings = _spellings(others | {name})
    found, own = "", spellings[name]
    while outer := max((o for o in spellings.values() if own.startswith(f"{o}_")), key=len, default=""):
        found, own = f"_0{own.removeprefix(f'{outer}_')}{found}", outer
    return f"_{own}{found}"


def _spellings(names: Iterable[str]) -> dict[str, str]:
    """Each name in ASCII, apart from all others: `β` beside `beta` is `beta_`."""
    table = NameTable(())
    return {n: table.new(spelled(n)) for n in sorted(names, key=lambda n: (not n.isascii(), n))}


class Construction:
    """The parts that say what a cell is made of."""

    def __init__(self, plan: Plan, reserved: frozenset[str]) -> None:
        self.plan, self.system, self.cell = plan, plan.system, plan.system.cell
        self.graph = self.system.graph
        self.reserved = reserved | LOCALS
        self.prefix = _prefix(self.cell.name, reserved)
        self.helpers: set[str] = {"_Cell"}

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

    def checks(self, names: Iterable[str]) -> list[str]:
        lines: list[str] = []
        for i, name in zip(self.cell.inputs, names, strict=True):
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
