"""The text of a kernel around its stages: arguments, where matrices lie, the loop over tokens, what is fetched when."""

from __future__ import annotations

from itertools import groupby

from ..clike.host import wrapped
from ..clike.nest import length, size
from ..clike.scalar import TYPES, identifier
from ..clike.stages import Array
from .hazards import barriers
from .kernel import KernelCoder
from .parts import KINDS, Kernel, flat, indented, stride


class FrameCoder(KernelCoder):
    """Writes the whole of a kernel."""

    def kernel(self) -> Kernel:
        body = self._text()
        return Kernel(
            body,
            self.free,
            tuple(self.spaces),
            tuple(self.slots()),
            tuple(self.matrices.values()),
            self.extra,
            self.summed,
            self.tiled,
            frozenset(self.numbers),
            tuple(self._held(i) for i in self.spaces.values()),
        )

    def _held(self, space: int) -> int:
        each = [1 + (a.kind == "complex") for s, a in self.fetched if s == space]
        return sum(each) * (1 if self.tiled else 2) + sum(s == space for s in self.registers.values())

    def arguments(self) -> list[str]:
        """The kernel's pointers, in order."""
        step = self.step
        streams = range(len(step.streams))
        names = [f"hoisted_{i}" for i in range(len(step.hoisted))] + [f"fixed_{i}" for i in range(len(step.fixed))]
        names += [f"history_{i}" for i in streams] + [f"values_{i}" for i in streams]
        names += [f"saved_{i}" for i in range(len(step.saved))]
        if self.back:
            names += [f"grad_{i}" for i in streams] + [f"d_history_{i}" for i in streams]
            names += [a.name for a in self.extra]
        return names

    def _text(self) -> str:
        rings = {name: count for _, (name, count, _) in self._rings()} | {a.name: 2 for a in self.operands}
        waits = barriers(self.items, rings)
        pointers = [f"void *p_{n}" for n in self.arguments()]
        numbers = [f"double k_{identifier(c)}" for c in self.step.consts]
        fixed = ["long long b_count, long long b_every, long long b_keep"]
        fixed.append("const long long *b_ids, const long long *b_starts, const long long *b_lengths")
        head = f"{self.name}({', '.join([*fixed, 'char *b_spills', *pointers, *numbers])}) {{"
        lines = [
            "DYNAMIC;",
            "__shared__ long long b_start[ROWS], b_id[ROWS];",
            "__shared__ int b_length[ROWS];",
            "char *const b_spill = b_spills + (long long)(blockIdx.y * gridDim.x + blockIdx.x) * SPILL;",
            "const int b_tid = threadIdx.x, b_warp = b_tid / 32, b_group = b_tid % 32 / 4, b_quad = b_tid % 4;",
            "const long long b_first = (long long)blockIdx.x * ROWS;",
            "(void)b_spill, (void)b_warp, (void)b_group, (void)b_quad, (void)b_keep;",
        ]
        if self.free:
            n = size(self.free)
            lines += [
                "const int lo = blockIdx.y * PART, hi = lo + PART < " + n + " ? lo + PART : " + n + ";",
                "(void)hi;",
            ]
        lines += [
            "if (b_tid < ROWS) {",
            "  const long long b_at = b_first + b_tid;",
            "  const bool b_there = b_at < b_count;",
            "  b_start[b_tid] = b_there ? b_starts ? b_starts[b_at] : b_at * b_every : 0;",
            "  b_id[b_tid] = b_there ? b_ids ? b_ids[b_at] : b_at : -1;",
            "  b_length[b_tid] = b_there ? (int)(b_lengths ? b_lengths[b_at] : b_every) : 0;",
            "}",
            "__syncthreads();",
            *self._matrices(),
            *self._declared(),
            *self._begin(),
            "__syncthreads();",
            "const int b_steps = b_length[0];",
        ]
        onward = "b_t - 1" if self.back else "b_t + 1"
        loop = (
            "for (int b_t = b_steps - 1; b_t >= 0; --b_t) {"
            if self.back
            else "for (int b_t = 0; b_t < b_steps; ++b_t) {"
        )
        lines += self._fetch("f", "b_steps - 1" if self.back else "0", False)
        # In tiles the next token's numbers come while products are made; else they have a token's time, and registers.
        last = max((i for i, item in enumerate(self.items) if item.reads_tokens), default=0)
        step = [] if self.tiled else self._fetch("g", onward, False)
        for i, item in enumerate(self.items):
            if i in waits:
                step.append("__syncthreads();")
            step += item.lines
            if self.tiled and i == last:
                step += self._fetch("f", onward, False)
        lines += [loop, *indented([*step, *([] if self.tiled else self._passed())]), "}"]
        lines += self._end()
        text = [f'extern "C" __global__ void __launch_bounds__(THREADS, 1) {head}', *indented(lines), "}"]
        return "\n".join(part for line in text for part in wrapped(line))

    def _rings(self) -> list[tuple[Array, tuple[str, int, int]]]:
        arrays = list(self.arriving.values()) if self.back else list(self.new.values())
        return [(a, r) for a in arrays if (r := self.ring(a)) is not None]

    def _matrices(self) -> list[str]:
        """Where matrices lie, and the copies of those that the block keeps."""
        lines: list[str] = []
        for i, (key, m) in enumerate(self.matrices.items()):
            p = next(x for x in self.stages.products if (x.matrix, x.axes, x.kept, x.outs, x.ins) == key)
            n, depth = length(p.outs), length(p.ins)
            kept = [d for d in p.kept if d == self.free]
            offset = ""
            if kept:
                after = length(p.kept[p.kept.index(kept[0]) + 1 :])
                offset = f" + (long long)lo * ({after}) * ({stride(p, 'kept')})"
            source = f"(const ELEMENT *)p_fixed_{m.place}{offset}"
            far, near = stride(p, "out"), stride(p, "in")
            lines += [
                f"if (HELD_{i} == 1) {{",
                f"  ELEMENT *const b_to = (ELEMENT *)(b_shared + AT_{i});",
                f"  for (int b_i = b_tid; b_i < UP({n}) * UP({depth}); b_i += THREADS) {{",
                f"    const int b_u = b_i / UP({depth}), b_k = b_i % UP({depth});",
                f"    const bool b_there = b_u < {n} && b_k < {depth};",
                f"    const long long b_at = (long long)b_u * ({far}) + b_k * ({near});",
                f"    if (LOW || b_there) b_to[b_u * PITCH_{i} + b_k] = b_there ? ({source})[b_at] : ELEMENT();",
                "  }",
                "}",
                f"const int o_{i} = HELD_{i} == 1 ? PITCH_{i} : {far}, d_{i} = HELD_{i} == 1 ? 1 : {near};",
                f"const ELEMENT *const w_{i} =",
                f"    HELD_{i} == 1 ? (const ELEMENT *)(b_shared + AT_{i}) : {source};",
            ]
            if not m.whole:
                continue
            tiles = f"(({depth} + 15) / 16)"
            lines += [
                "#if LOW",
                f"unsigned a_{i}[HELD_{i} == 2 ? 4 * TILES_{m.space} * {tiles} : 4];",
                f"if (HELD_{i} == 2) {{",
                "  #pragma unroll",
                f"  for (int b_tile = 0; b_tile < TILES_{m.space}; ++b_tile) {{",
                "    #pragma unroll",
                f"    for (int b_k = 0; b_k < {tiles}; ++b_k)",
                f"      of_tile(a_{i} + 4 * (b_tile * {tiles} + b_k), w_{i}, UNIT(4 * b_tile), 16 * b_k + 2 * b_quad,",
                f"              {n}, {depth}, o_{i}, d_{i});",
                "  }",
                "}",
                "#endif",
            ]
        return lines

    def _declared(self) -> list[str]:
        lines: list[str] = []
        for array, space in self.registers.items():
            lines.append(f"{KINDS[array.kind]} y_{array.name}[KEEP_{space} ? EACH_{space} : 1];")
        for (space, array), name in self.fetched.items():
            each = f"[KEEP_{space} ? EACH_{space} : 1]"
            names = [name] if array.role == "fixed" or self.tiled else [name, f"g_{name.removeprefix('f_')}"]
            lines.append(f"{TYPES[array.kind]} {', '.join(f'{x}{each}' for x in names)};")
        return [*lines, *self._fetch("f", "0", True)]

    def _fetch(self, prefix: str, at: str, fixed: bool) -> list[str]:
        """Loads of what each thread needs at a token, or at all of them."""
        lines: list[str] = []
        spaces = list(self.spaces)
        for space, group in groupby(sorted(self.fetched, key=lambda x: x[0]), key=lambda x: x[0]):
            loads: list[str] = []
            later: list[str] = []
            env = {d: f"i_{identifier(d)}" for d in spaces[space]}
            for _, array in group:
                if (array.role == "fixed") is not fixed:
                    continue
                text = self.load(array, flat(env, array.dims), "b_at")
                loads.append(f"{prefix}_{array.name}_{space}[b_e] = {text};")
                if not fixed and array.role != "past":
                    pointer, entry = self.address(array, flat(env, array.dims), "b_later")
                    later.append(f"soon({pointer} + ({entry}));")
            if later:
                ahead = "b_at - AHEAD" if self.back else "b_at + AHEAD"
                loads += [f"const int b_later = {ahead};", "if (b_later >= 0 && b_later < b_length[b_row] && FIRST) {"]
                loads += [*indented(later), "}"]
            if loads:
                live = "true" if fixed else "b_at >= 0 && b_at < b_length[b_row]"
                lines += [f"if (KEEP_{space}) {{"]
                lines += [] if fixed else [f"  const int b_at = {at};"]
                lines += [*indented(self.owned(space, spaces[space], loads, live)), "}"]
        return lines

    def _passed(self) -> list[str]:
        """What was fetched for the next token is that of this one from now on."""
        lines: list[str] = []
        for (space, array), name in self.fetched.items():
            if array.role != "fixed":
                lines.append(f"  {name}[b_e] = g_{name.removeprefix('f_')}[b_e]; // {space}")
        out: list[str] = []
        for space in sorted({s for s, _ in self.fetched}):
            mine = [line.split(" //")[0].strip() for line in lines if line.endswith(f"// {space}")]
            if mine:
                out += [f"if (KEEP_{space}) {{", f"  #pragma unroll UNROLL_{space}"]
                out += [f"  for (int b_e = 0; b_e < EACH_{space}; ++b_e) {{", *(f"    {m}" for m in mine), "  }", "}"]
        return out

    def _begin(self) -> list[str]:
        """Rings before the first token: the histories, or nothing that has flowed back."""
        lines: list[str] = []
        for array, (name, count, _) in self._rings():
            if count == 1:
                continue
            total = f"{count if self.back else count - 1} * ({self.count(array.dims)})"
            env = {d: f"i_{identifier(d)}" for d in array.dims}
            n = self.count(array.dims)
            local = self.local(array, env)
            if self.back:
                body = [f"clear(s_{name}[(b_back * ROWS + b_row) * l_{name} + {local}]);"]
            else:
                from_ = f"(b_id[b_row] * {count - 1} + b_back) * ({length(array.dims)}) + {flat(env, array.dims)}"
                slot = f"({2 * count - 1} - b_back) % {count}"
                source = f"get(({KINDS[array.kind]} *)p_history_{array.index}, {from_})"
                body = [f"s_{name}[({slot} * ROWS + b_row) * l_{name} + {local}] = {source};"]
            inner = [f"const int b_back = b_j / ({n}), b_unit = b_j % ({n});", *self.decoded(array.dims, "b_unit")]
            lines += self._all(total, [*inner, *self.guarded(array.dims, body)])
        return lines

    def _all(self, total: str, lines: list[str]) -> list[str]:
        return [
            f"for (int b_i = b_tid; b_i < ROWS * ({total}); b_i += THREADS) {{",
            f"  const int b_row = b_i / ({total}), b_j = b_i % ({total});",
            "  if (b_id[b_row] >= 0) {",
            *indented(indented(lines)),
            "  }",
            "}",
        ]

    def _end(self) -> list[str]:
        """What flowed back to the histories."""
        if not self.back:
            return []
        lines = ["__syncthreads();"]
        for array, (name, count, _) in self._rings():
            depth = self.step.streams[array.index].depth
            n = self.count(array.dims)
            env = {d: f"i_{identifier(d)}" for d in array.dims}
            kind = KINDS[array.kind]
            to = f"(b_id[b_row] * {depth} + b_back) * ({length(array.dims)}) + {flat(env, array.dims)}"
            body = [f"{kind} b_value;", "clear(b_value);"]
            if count > 1:
                slot = f"({2 * count - 1} - b_back) % {count}"
                memory = f"s_{name}[({slot} * ROWS + b_row) * l_{name} + {self.local(array, env)}]"
                body.append(f"if (b_back < {count - 1}) b_value = {memory};")
            body.append(f"put(({kind} *)p_d_history_{array.index}, {to}, b_value);")
            inner = [f"const int b_back = b_j / ({n}), b_unit = b_j % ({n});", *self.decoded(array.dims, "b_unit")]
            lines += self._all(f"{depth} * ({n})", [*inner, *self.guarded(array.dims, body)])
        return lines
