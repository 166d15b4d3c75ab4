"""A step as a C file for a host compiler: tokens inside, rows (sequences) in tiles, results per row.

Goals: all of a loop in one call, forward or backward; the same numbers for a row whatever tile and thread it is in.
Non-goals: compiling, threads: the generated module does both (`templates/torch/compiled.py`).

A call is `forward(p, id, start, length, first, last, tile, lo, hi, consts, stride, keep)`: `p` points to the arrays
(hoisted, fixed, packed matrices, histories, values, what is saved, for the backward the gradients of values and the
cotangents of histories, and `File.extra`); row `m` has the tokens `start[m]`... and the history `id[m]`, longest rows
first; of rows `first` to `last`, and of the free dim's entries `lo` to `hi`, results are written. `stride` says how far
apart the tokens of each hoisted array are, and those of each gradient. Where `keep` is 0, what is saved has one token
for each row, which nobody reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from itertools import groupby

from .nest import extent, held, index, length, loops, size
from .scalar import functions, identifier
from .stages import Array, Nest, Product, Repeat, Stage, Stages, System
from .step import Half, Step

WIDTH = 112
POINTERS = {"real": "real", "complex": "cplx", "bool": "unsigned char"}


@dataclass(frozen=True)
class File:
    """The text, without the sizes, and for each half the results that are no values of streams, in their order."""

    text: str
    extra: tuple[Array, ...]
    products: bool


def host_file(step: Step) -> File:
    """The C file of a step and its backward."""
    frames = [_Frame(step, half, back) for half, back in ((step.forward, False), (step.backward, True))]
    packed = _Packed([(p, f.back) for f in frames for p in f.half.stages.products])
    parts = [f.text(packed) for f in frames]
    body = "\n\n".join([packed.text(step), *parts])
    body = "\n".join(part for line in body.split("\n") for part in wrapped(line))
    tools = [_template("product.h")] if packed.matrices else []
    tools += [_template("system.h")] if any(isinstance(s, System) for f in frames for s in f.half.stages.all) else []
    used = library("".join([*tools, body]))
    cplx = "typedef struct {\n  real re, im;\n} cplx;\n" if "cplx" in body + "".join(used) else ""
    text = "\n\n".join(p.rstrip() for p in [_template("host.h") + cplx, *used, *tools, body]) + "\n"
    return File(text, tuple(frames[1].extra), bool(packed.matrices))


@cache
def _template(name: str) -> str:
    return (resources.files("rnnc.templates") / "clike" / name).read_text(encoding="utf-8")


@cache
def _functions() -> dict[str, str]:
    """The functions of the library by name, each with the comment above it, in order."""
    out: dict[str, str] = {}
    for file in ("numbers.h", "complex.h"):
        for block in re.split(r"\n\n(?=FN |//)", _template(file))[1:]:
            found = re.search(r"^FN \w+ (\w+)\(", block, re.M)
            assert found, block
            out[found[1]] = block.rstrip()
    return out


def library(text: str) -> list[str]:
    """The functions that a text uses, and all that they use."""
    wanted, stack = set[str](), list(functions(text))
    while stack:
        name = stack.pop()
        if name not in wanted:
            wanted.add(name)
            stack.extend(functions(_functions()[name]) - {name})
    return [block for name, block in _functions().items() if name in wanted]


class _Packed:
    """The matrices of products, each once, in panels. A call packs those that its half reads."""

    def __init__(self, products: Iterable[tuple[Product, bool]]) -> None:
        self.matrices: dict[tuple[object, ...], Product] = {}
        self.halves: dict[tuple[object, ...], set[bool]] = {}
        for p, back in products:
            self.matrices.setdefault(self.key(p), p)
            self.halves.setdefault(self.key(p), set()).add(back)

    def key(self, p: Product) -> tuple[object, ...]:
        return p.matrix, p.axes, p.kept, p.outs, p.ins

    def extent(self, p: Product) -> str:
        kept = [f"{length(p.kept)} * "] if p.kept else []
        return f"{''.join(kept)}PAD({length(p.outs)}) * ({length(p.ins)})"

    def place(self, p: Product) -> str:
        """Where a matrix begins, as code."""
        return f"w_{list(self.matrices).index(self.key(p))}"

    def offsets(self) -> list[str]:
        """Lines that say where each matrix begins in `packed`."""
        lines: list[str] = []
        start = "packed"
        for i, p in enumerate(self.matrices.values()):
            lines.append(f"real *const w_{i} = {start};")
            start = f"w_{i} + {self.extent(p)}"
        return lines

    def text(self, step: Step) -> str:
        total = " + ".join(self.extent(p) for p in self.matrices.values()) or "0"
        lines = [f"SHARED long packed_size(void) {{ return {total}; }}", ""]
        lines.append("SHARED void pack(void *const *p, real *packed, long back) {")
        body = self.offsets()
        for i, (key, p) in enumerate(self.matrices.items()):
            halves = self.halves[key]
            when = "" if len(halves) > 1 else "if (back) " if halves == {True} else "if (!back) "
            strides = [_stride(p, role) for role in ("kept", "out", "in")]
            n, depth = length(p.outs), length(p.ins)
            source = f"(const real *)p[{len(step.hoisted) + p.matrix.index}]"
            if not p.kept:
                body.append(f"{when}panels({source}, w_{i}, {n}, {depth}, {strides[1]}, {strides[2]});")
                continue
            body.append(f"{when}for (long i = 0; i < {length(p.kept)}; ++i)")
            where = f"w_{i} + i * PAD({n}) * ({depth})"
            body.append(f"  panels({source} + i * ({strides[0]}), {where}, {n}, {depth}, {strides[1]}, {strides[2]});")
        return "\n".join([*lines, *_indented(["(void)p, (void)packed, (void)back;", *body]), "}"])


def _stride(p: Product, role: str) -> str:
    """How far apart the entries of a stretch of the matrix's axes lie."""
    last = max((i for i, (r, _) in enumerate(p.axes) if r == role), default=len(p.axes) - 1)
    return length([d for _, d in p.axes[last + 1 :]])


def _flat(names: Sequence[str], dims: Sequence[str]) -> str:
    text = ""
    for n, d in zip(names, dims, strict=True):
        text = f"({text}) * {size(d)} + {n}" if text else n
    return text or "0"


def _indented(lines: Iterable[str]) -> list[str]:
    return [line if line.startswith("#pragma") else f"  {line}" for line in lines]


class _Frame:
    """The step or its backward, with rows and tokens around it. Is the `Place` of the nests."""

    def __init__(self, step: Step, half: Half, back: bool) -> None:
        self.step, self.half, self.back = step, half, back
        before, streams = len(step.hoisted) + len(step.fixed), len(step.streams)
        self.first = {"hoisted": 0, "fixed": len(step.hoisted), "packed": before, "history": before + 1}
        self.first["values"] = self.first["history"] + streams
        self.first["saved"] = self.first["values"] + streams
        self.first["d_values"] = self.first["saved"] + len(step.saved)
        self.first["d_history"] = self.first["d_values"] + streams
        self.extra = [r.array for r in half.results if r.array.role not in ("new", "d_past", "saved")]
        # How many tokens back the cotangent of each stream flows: so many are on their way, in a ring.
        flows = [r.array for r in half.results if r.array.role == "d_past"]
        self.reach = {a.index: max(x.lag for x in flows if x.index == a.index) for a in flows}
        self.used: dict[Array, None] = {}
        self.asked: set[Array] = set()
        self.stages = half.stages
        self.repeat: Repeat | None = None

    # --- Place ---

    def at(self, array: Array, index: str) -> str:
        self.used[array] = None
        return f"{self.pointer(array)}[{index}]"

    def pointer(self, array: Array) -> str:
        return f"p_{array.name}"

    def bounds(self, dim: str) -> tuple[str, str]:
        if dim == self.stages.held:
            return held(dim), f"{held(dim)} + 1"
        return ("lo", "hi") if dim == self.half.free else ("0", size(dim))

    # --- text ---

    def text(self, packed: _Packed) -> str:
        name = "backward" if self.back else "forward"
        indent = " " * (13 + len(name))
        head = [
            f"SHARED void {name}(void *const *p, const long *id, const long *start, const long *length, long first,",
            f"{indent}long last, long tile, long lo, long hi, const double *consts,",
            f"{indent}const long *stride, long keep) {{",
        ]
        scratch = self._scratch()
        lines = [f"const double k_{identifier(c)} = consts[{i}];" for i, c in enumerate(self.step.consts)]
        rooms = [*map(_room, self.half.stages.scratch), *(n for _, n in self._rings())]
        total = " + ".join(f"({n})" for n in rooms) or "0"
        lines += [f"real *const scratch = malloc(sizeof(real) * tile * ({total}) + 64);"]
        lines += scratch
        if self.half.stages.products:
            lines.append("const real **const a = malloc(2 * sizeof(real *) * tile), **const b = a + tile;")
            lines.append(f"real *const packed = p[{self.first['packed']}];")
            lines += packed.offsets()
            lines.append("(void)b;")
        body = self._order(self.half.stages, packed)
        rows = "last - row < tile ? last - row : tile"
        if self.back:
            count = ["while (rows < most && length[row + rows] > t) ++rows;"]
            loop = ["long rows = 0;", "for (long t = length[row] - 1; t >= 0; --t) {"]
        else:
            count = ["while (rows && length[row + rows - 1] <= t) --rows;"]
            loop = ["long rows = most;", "for (long t = 0; t < length[row]; ++t) {"]
        body = [*self._arriving(), *body]
        clear = [f"memset({r}, 0, sizeof(real) * tile * ({n}));" for r, n in self._rings()]
        inside = [f"const long most = {rows};", *clear, *loop, *_indented([*count, *body]), "}"]
        lines += ["for (long row = first; row < last; row += tile) {", *_indented(inside), "}", "free(scratch);"]
        lines += ["free(a);"] if self.half.stages.products else []
        unused = ["(void)lo, (void)hi, (void)consts, (void)stride, (void)id, (void)keep;"]
        return "\n".join([*head, *_indented([*unused, *lines]), "}"])

    def _scratch(self) -> list[str]:
        lines: list[str] = []
        start = "scratch"
        for a in self.half.stages.scratch:
            lines.append(f"real *const s_{a.name} = {start};")
            start = f"s_{a.name} + tile * ({_room(a)})"
        for ring, room in self._rings():
            lines.append(f"real *const {ring} = {start};")
            start = f"{ring} + tile * ({room})"
        return lines

    def _rings(self) -> list[tuple[str, str]]:
        """The names of rings, and what they take for a row."""
        streams = self.step.streams
        arrays = [(i, n, Array("", streams[i].type.dims, streams[i].type.kind)) for i, n in self.reach.items()]
        return [(f"s_ring_{i}", f"{n + 1} * ({_room(a)})") for i, n, a in arrays]

    def _arriving(self) -> list[str]:
        """What comes from outside joins what has flowed back to this token."""
        found = {a.index: a for a in self.half.stages.values.values() if a.role == "d_new" and a.index in self.reach}
        lines: list[str] = []
        for a in found.values():
            names = {d: f"i_{identifier(d)}" for d in a.dims}
            at, kind = index(a, names), POINTERS[a.kind]
            text = f"c_add(ring[{at}], arriving[{at}])" if a.kind == "complex" else f"ring[{at}] + arriving[{at}]"
            inner = [f"ring[{at}] = {text};"]
            for d in a.dims[::-1]:
                lo, hi = self.bounds(d)
                head = ["#pragma omp simd"] if d == a.dims[-1] and a.kind == "real" else []
                inner = [
                    *head,
                    f"for (long {names[d]} = {lo}; {names[d]} < {hi}; ++{names[d]}) {{",
                    *_indented(inner),
                    "}",
                ]
            lines += self._rows(
                [
                    f"{kind} *restrict ring = {self._address(a)};",
                    f"const {kind} *restrict arriving = {self._from_outside(a)};",
                    *self._ask("arriving", a, f"stride[{len(self.step.hoisted) + a.index}]"),
                    *inner,
                ]
            )
        return lines

    def _from_outside(self, a: Array) -> str:
        """The cotangent of a stream's values at this token, but for what flows back."""
        place, step = self.first["d_values"] + a.index, len(self.step.hoisted) + a.index
        return f"({POINTERS[a.kind]} *)p[{place}] + token * stride[{step}]"

    def _ring(self, a: Array, t: str) -> str:
        """The cotangent of a stream at token `t` so far."""
        room = _room(Array("", a.dims, a.kind))
        return f"({POINTERS[a.kind]} *)(s_ring_{a.index} + ({t} % {self.reach[a.index] + 1} * tile + m) * ({room}))"

    def _order(self, stages: Stages, packed: _Packed) -> list[str]:
        lines: list[str] = []
        before, self.stages = self.stages, stages
        for is_product, group in groupby(stages.order, _operand):
            if is_product:
                lines += self._products([p for p in group if isinstance(p, Product)], packed)
            else:
                lines += [line for stage in group for line in self._stage(stage, packed)]
        self.stages = before
        return lines

    def _stage(self, stage: Stage, packed: _Packed) -> list[str]:
        match stage:
            case Nest():
                self.used = {}
                inner = loops(stage, self.stages, self, self.half.hints)
                return self._rows([*self._pointers(self.used), *self._soon(self.used), *inner])
            case System():
                return self._system(stage)
            case Repeat():
                return self._repeat(stage, packed)
            case Product():
                raise AssertionError("products go in groups")

    def _repeat(self, s: Repeat, packed: _Packed) -> list[str]:
        i, n = held(s.over), size(s.over)
        self.repeat = s
        lines = [f"memset(s_{a.name}, 0, sizeof(real) * rows * ({_room(a)}));" for a in s.sums]
        most = n if s.back is None else f"{n} - 1"
        lines += [f"for (long {i} = 0; {i} < {most}; ++{i}) {{", *_indented(self._order(s.steps, packed)), "}"]
        if s.back is not None:
            lines += [f"for (long {i} = {n} - 1; {i} >= 0; --{i}) {{", *_indented(self._order(s.back, packed)), "}"]
        self.repeat = None
        return lines

    def _run(self, a: Array) -> str:
        """Where what small steps hand on begins: at the outermost one it is another array."""
        assert self.repeat is not None
        run, i = self.repeat.runs[a], held(self.repeat.over)
        slot = f"({i}{f' {run.shift:+}'.replace('-', '- ').replace('+', '+ ') if run.shift else ''})"
        room = f"({POINTERS[a.kind]} *)(s_{run.room.name} + m * ({_room(run.room)})) + {slot} * ({length(a.dims)})"
        if run.end is None:
            return room
        inner = i if run.first else f"{i} + 1 < {size(self.repeat.over)}"
        return f"{inner} ? {room} : ({self._address(run.end)})"

    def _rows(self, lines: list[str]) -> list[str]:
        token = ["const long token = start[row + m] + t;"] if any("token" in x for x in lines) else []
        return ["for (long m = 0; m < rows; ++m) {", *_indented([*token, *lines]), "}"]

    def _pointers(self, arrays: Iterable[Array]) -> list[str]:
        lines: list[str] = []
        for a in arrays:
            known = ("hoisted", "fixed", "past", "run", *(("new", "saved", "d_new") if self.back else ()))
            const = "const " if a.role in known else ""
            kind = f"{const}{POINTERS[a.kind]}"
            lines.append(f"{kind} *restrict {self.pointer(a)} = {self._address(a)};")
        return lines

    def _soon(self, arrays: Iterable[Array]) -> list[str]:
        """Asks for the next token's numbers: those of many rows and arrays are more stretches than a chip foresees."""
        lines: list[str] = []
        # Of a stream the backward reads first what is farthest behind.
        past = [a for a in arrays if a.role == "past"] if self.back else []
        far = {a.index: max((x for x in past if x.index == a.index), key=lambda x: x.lag) for a in past}
        for a in arrays:
            ours = a.role in ("hoisted", "d_hoisted", "left", "right", "saved", "new") or a in far.values()
            if not ours or a in self.asked or (a.role == "new" and a.index in far):
                continue
            self.asked.add(a)
            lines += self._ask(self.pointer(a), a, self._apart(a))
        return lines

    def _ask(self, pointer: str, a: Array, step: str) -> list[str]:
        if self.half.free not in (None, *a.dims[:1]):
            return []
        rest = length(a.dims[1:])
        lo, hi = ("0", length(a.dims)) if self.half.free is None else (f"lo * ({rest})", f"hi * ({rest})")
        return [f"SOON({pointer} {'-' if self.back else '+'} {step}, {lo}, {hi});"]

    def _apart(self, a: Array) -> str:
        """How far apart a row's tokens are."""
        if a.role == "hoisted":
            return f"stride[{a.index}]"
        if a.role in ("d_hoisted", "left", "right"):
            return f"stride[{len(self.step.hoisted) + len(self.step.streams) + self.extra.index(a)}]"
        n = length(a.dims)
        return n if re.fullmatch(r"\w+", n) else f"({n})"

    def _address(self, a: Array) -> str:
        """Where this token's numbers of a row begin."""
        kind, n = POINTERS[a.kind], length(a.dims)

        def of(role: str, place: str) -> str:
            return f"({kind} *)p[{self.first[role] + a.index}] + {place}"

        whole = n if re.fullmatch(r"\w+", n) else f"({n})"
        match a.role:
            case "run" | "next":
                return self._run(a)
            case "scratch":
                return f"({kind} *)(s_{a.name} + m * ({_room(a)}))"
            case "hoisted":
                return of("hoisted", f"token * stride[{a.index}]")
            case "fixed":
                return of("fixed", "0")
            case "new":
                return of("values", f"token * {whole}")
            case "saved":
                return of("saved", f"(keep ? token : id[row + m]) * {whole}")
            case "d_new":
                return self._ring(a, "t") if a.index in self.reach else self._from_outside(a)
            case "past" | "d_past":
                slot = f"id[row + m] * {self.step.streams[a.index].depth} + {a.lag - 1} - t"
                if a.role == "past":
                    late, early = of("values", f"(token - {a.lag}) * {whole}"), "history"
                else:
                    late, early = self._ring(a, f"(t - {a.lag})"), "d_history"
                return f"t >= {a.lag} ? {late} : {of(early, f'({slot}) * {whole}')}"
            case _:
                place = self.first["d_history"] + len(self.step.streams) + self.extra.index(a)
                at = f"id[row + m] * {whole}" if a.role == "d_fixed" else f"token * {self._apart(a)}"
                return f"({kind} *)p[{place}] + {at}"

    def _products(self, group: Sequence[Product], packed: _Packed) -> list[str]:
        """Products of one operand."""
        arg, kept, depth = group[0].arg, group[0].kept, length(group[0].ins)
        point = self._rows([f"a[m] = (const real *)({self._address(arg)});"])
        names = [f"i_{identifier(d)}" for d in kept]
        entry = _flat(names, kept)
        lines: list[str] = []
        if kept:
            lines = [f"for (long m = 0; m < rows; ++m) b[m] = a[m] + ({entry}) * ({depth});"]
        for p in group:
            columns = f"PAD({length(p.outs)})"
            where = packed.place(p) + (f" + ({entry}) * {columns} * ({depth})" if kept else "")
            out = f"s_{p.out.name}" + (f" + ({entry}) * {columns}" if kept else "")
            rows = "b" if kept else "a"
            lines.append(f"product(rows, {rows}, {where}, {out}, {extent(p.out)}, {depth}, {columns} / LANES);")
        for n, d in list(zip(names, kept, strict=True))[::-1]:
            lo, hi = self.bounds(d)
            lines = [f"for (long {n} = {lo}; {n} < {hi}; ++{n}) {{", *_indented(lines), "}"]
        return [*point, *lines]

    def _system(self, s: System) -> list[str]:
        n = size(s.row)
        lead = tuple(d for d in s.out.dims if d != s.row)
        env = {d: f"i_{identifier(d)}" for d in lead}
        env_ij = {**env, s.row: "i", s.col: "j"}
        matrix, rhs = (
            index(replace(array, dims=dims), env_ij) for array, dims in ((s.matrix, s.matrix_dims), (s.rhs, s.rhs_dims))
        )
        out = index(s.out, env_ij)
        inner = [
            f"real system[{n} * {n}], y[{n}];",
            f"for (long i = 0; i < {n}; ++i) {{",
            f"  y[i] = {self.pointer(s.rhs)}[{rhs}];",
            f"  for (long j = 0; j < {n}; ++j) system[i * {n} + j] = {self.pointer(s.matrix)}[{matrix}];",
            "}",
            f"solve(system, y, {n});",
            f"for (long i = 0; i < {n}; ++i) {self.pointer(s.out)}[{out}] = y[i];",
        ]
        for d in lead[::-1]:
            lo, hi = self.bounds(d)
            i = env[d]
            inner = [f"for (long {i} = {lo}; {i} < {hi}; ++{i}) {{", *_indented(inner), "}"]
        return self._rows([*self._pointers([s.matrix, s.rhs, s.out]), *inner])


def _operand(stage: Stage) -> tuple[object, ...] | None:
    """What stages that are done together have in common."""
    return (stage.arg, stage.kept) if isinstance(stage, Product) else None


def wrapped(line: str) -> list[str]:
    """A line of C cut where it may be."""
    indent = line[: len(line) - len(line.lstrip())]
    out: list[str] = []
    while len(line) > WIDTH:
        cuts = [m.start() for m in re.finditer(r" (?=[-+*/?:&|] )|(?<=[,;]) ", line[:WIDTH])]
        cuts = [c for c in cuts if c > len(indent) + 8]
        if not cuts:
            break
        out.append(line[: cuts[-1]])
        line = f"{indent}    {line[cuts[-1] + 1 :]}"
    return [*out, line]


def _room(a: Array) -> str:
    return f"2 * ({extent(a)})" if a.kind == "complex" else extent(a)
