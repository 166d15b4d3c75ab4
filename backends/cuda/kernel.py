"""A step, or its backward, as a CUDA kernel: tokens inside, a few sequences and an entry of the free dim per block.

Goals: one text for the chip and for a host that plays a block's threads; as few barriers as the step allows. Threads
own entries: a unit (an entry of a nest's dims) of a sequence is always the same thread's, in all stages of one space,
and comes out of a product in that thread's registers.
Non-goals: sizes, and what lies where. Who compiles the text knows the sizes and defines the macros (`templates/cuda/
sequential.py`): COUNT, TILES, EACH, KEEP of each space, `s_`, `l_` of each slot, HELD, AT, PITCH of each matrix,
STEP from token to token of what is hoisted.

States lie in rings, a slot for each token that is looked back at and one that is written. The backward's rings hold
what has flowed back to a token so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from rnnc.ir import Reduce

from ..clike.nest import Body, gathered, held, length, neutral, size
from ..clike.scalar import TYPES, identifier
from ..clike.stages import Array, Nest, Product, Repeat, Stages, Store, System
from ..clike.step import Half, Step, Unsupported
from .hazards import Access, Item, barriers
from .parts import KINDS, Matrix, Slot, below, flat, grouped, indented, stride, with_inner


class _Unit(Body):
    """The lines of a nest, for one entry. Remembers what they touch."""

    def __init__(self, coder: KernelCoder, nest: Nest, owner: int | None) -> None:
        self.coder, self.owner = coder, owner
        self.accesses: list[Access] = []
        self.reads_tokens = False
        super().__init__(nest, coder.stages, coder, coder.half.hints)

    def entry(self, array: Array, env: Mapping[str, str]) -> str:
        return self.coder.read(array, env, self)

    def owned_by(self, array: Array, env: Mapping[str, str]) -> int | None:
        """The space by which an entry is the thread's own."""
        same = env is self.env and len(array.dims) == len(self.nest.dims) and set(array.dims) == set(self.nest.dims)
        return self.owner if same else None

    def _store(self, store: Store) -> str:
        return self.coder.write(store, self._converted(self.value(store.node), store.array), self)


class KernelCoder:
    """Writes one kernel."""

    def __init__(self, step: Step, half: Half, back: bool) -> None:
        self.step, self.half, self.back, self.stages = step, half, back, half.stages
        self.repeat: Repeat | None = None
        self.name = "backward" if back else "forward"
        self.free = half.free
        self.summed = _summed(half.results)
        known = ("new", "d_past")
        self.extra = tuple(r.array for r in half.results if r.array.role not in known and r.array not in self.summed)
        products = self.stages.products
        for s in with_inner(self.stages):
            for p in (p for p in s.order if isinstance(p, Product)):
                if s.held in p.kept and {*p.kept} - {s.held, self.free}:
                    raise Unsupported("a matrix for each small step and more")
        self.tiled = bool(products)
        given = {a for a in self.stages.values.values() if a.role in ("d_new", "past")}
        self.arriving = {a.index: a for a in sorted(given, key=lambda a: a.index) if a.role == "d_new"}
        # How many tokens back a cotangent flows at most.
        self.reach = {
            i: max((r.array.lag for r in half.results if r.array.role == "d_past" and r.array.index == i), default=0)
            for i in self.arriving
        }
        self.new = {r.array.index: r.array for r in half.results if r.array.role == "new"}
        self.shadows = {
            a
            for s in self.stages.all
            for a in ([s.arg] if isinstance(s, Product) else [s.matrix, s.rhs] if isinstance(s, System) else [])
            if a in self.extra
        }
        self.operands = {p.arg for p in products if p.arg.role == "scratch" or p.arg in self.shadows}
        for p in products:
            if not self.slotted(p.arg):
                raise Unsupported(f"a product of {p.arg.name}")
        self.spaces: dict[tuple[str, ...], int] = {}
        self.matrices: dict[tuple[object, ...], Matrix] = {}
        self.registers: dict[Array, int] = {}
        self.numbers: set[int] = set()
        self.fetched: dict[tuple[int, Array], str] = {}
        first = self._items()
        self.registers = self._own(first)
        self.items = self._items()

    # --- what lies where ---

    def slotted(self, array: Array) -> bool:
        """Whether a block has an array of its own for this one."""
        rings = ("d_new", "d_past") if self.back else ("new", "past")
        return array.role in ("scratch", "run", "next", *rings) or array in self.shadows

    def ring(self, array: Array) -> tuple[str, int, int] | None:
        """The name of the ring that an array is part of, its length, and how many tokens ago."""
        if not self.back and array.role in ("new", "past"):
            return self.new[array.index].name, self.step.streams[array.index].depth + 1, array.lag
        if self.back and array.role in ("d_new", "d_past"):
            return self.arriving[array.index].name, self.reach[array.index] + 1, array.lag
        # Of what all threads read of others there are two: the next token's is written while this one's is read.
        return (array.name, 2, 0) if array in self.operands else None

    def place(self, array: Array) -> tuple[str, int | None]:
        if array.role in ("run", "next"):
            assert self.repeat is not None
            return self.repeat.runs[array].room.name, None
        ring = self.ring(array)
        return (array.name, None) if ring is None else (ring[0], ring[2])

    def memory(self, array: Array, row: str, local: str) -> str:
        """An entry in memory of the block; `local` is its place among those of a sequence."""
        if array.role not in ("run", "next"):
            return f"{self.slot(array)}[{self.row(array, row)} + {local}]"
        assert self.repeat is not None
        run, i = self.repeat.runs[array], held(self.repeat.over)
        slot = f"({i}{f' + ({run.shift})' if run.shift else ''})"
        return f"s_{run.room.name}[{row} * l_{run.room.name} + {slot} * ({self.count(array.dims)}) + {local}]"

    def outermost(self, array: Array) -> str:
        """Whether a small step is the one at which what is handed on lies elsewhere."""
        assert self.repeat is not None
        i = held(self.repeat.over)
        return f"{i} == 0" if self.repeat.runs[array].first else f"{i} + 1 == {size(self.repeat.over)}"

    def row(self, array: Array, row: str) -> str:
        """Where the entries of a sequence begin, in memory of the block."""
        ring = self.ring(array)
        if ring is None:
            return f"{row} * l_{array.name}"
        name, count, lag = ring
        slot = f"(b_t + {count - lag}) % {count}" if count > 1 else "0"
        return f"({slot} * ROWS + {row}) * l_{name}"

    def slot(self, array: Array) -> str:
        ring = self.ring(array)
        return f"s_{array.name if ring is None else ring[0]}"

    def local(self, array: Array, env: Mapping[str, str]) -> str:
        """The place of an entry among those of the block."""
        text = ""
        for d in array.dims:
            i, n = (f"({env[d]} - lo)", "PART") if d == self.free else (env[d], size(d))
            text = f"({text}) * {n} + {i}" if text else i
        return text or "0"

    def space(self, dims: tuple[str, ...]) -> int:
        return self.spaces.setdefault(dims, len(self.spaces))

    def slots(self) -> list[Slot]:
        out: list[Slot] = []
        arrays = list(self.arriving.values()) if self.back else list(self.new.values())
        for a in arrays:
            found = self.ring(a)
            assert found is not None
            out.append(Slot(a.name, a.dims, a.kind, found[1], None))
        for a in [*self.stages.scratch, *(x for x in self.extra if x in self.shadows)]:
            out.append(Slot(a.name, a.dims, a.kind, 2 if a in self.operands else 1, self.registers.get(a)))
        return out

    # --- Place, for the parts of a nest that ask it ---

    def at(self, array: Array, index: str) -> str:
        raise AssertionError("entries are asked for by their dims")

    def bounds(self, dim: str) -> tuple[str, str]:
        raise AssertionError("threads hold the loops")

    # --- entries ---

    def read(self, array: Array, env: Mapping[str, str], body: _Unit) -> str:
        if self.slotted(array):
            own = body.owned_by(array, env)
            body.accesses.append(Access(self.place(array), False, own))
            memory = self.memory(array, "b_row", self.local(array, env))
            run = self.repeat.runs[array] if self.repeat and array.role == "run" else None
            if run is not None and run.end is not None:
                return f"({self.outermost(array)} ? {self.read(run.end, env, body)} : {memory})"
            if array in self.registers:
                return f"(KEEP_{self.registers[array]} ? y_{array.name}[b_e] : {memory})"
            return memory
        load = self.load(array, flat(env, array.dims), "b_t")
        each = self.stages.held is not None and self.stages.held in array.dims
        if body.owner is None or env is not body.env or each:
            return load
        body.reads_tokens = True
        name = self.fetched.setdefault((body.owner, array), f"f_{array.name}_{body.owner}")
        return f"(KEEP_{body.owner} ? {name}[b_e] : {load})"

    def write(self, store: Store, text: str, body: _Unit) -> str:
        array = store.array
        lines: list[str] = []
        if self.slotted(array):
            own = body.owned_by(array, body.env)
            body.accesses.append(Access(self.place(array), True, own))
            memory = self.memory(array, "b_row", self.local(array, body.env))
            run = self.repeat.runs[array] if self.repeat and array.role == "next" else None
            if run is not None and run.end is not None:
                last = self.write(Store(run.end, store.node), text, body)
                return f"if ({self.outermost(array)}) {{ {last} }} else {memory} = {text};"
            if array in self.registers:
                memory = f"(KEEP_{self.registers[array]} ? y_{array.name}[b_e] : {memory})"
            # The first cotangent that reaches a token comes from the farthest.
            added = store.add and (array.role == "scratch" or array.lag < self.reach.get(array.index, 0))
            lines.append(f"{memory} = {f'plus({memory}, {text})' if added else text};")
        if array.role == "new" or array in self.extra:
            n = length(array.dims)
            known = {"new": f"p_values_{array.index}", "saved": f"p_saved_{array.index}"}
            place, kind = known.get(array.role, f"p_{array.name}"), self.stored(array)
            token = "b_id[b_row]" if array.role == "d_fixed" else "(b_start[b_row] + b_t)"
            token = f"(b_keep ? {token} : b_id[b_row])" if array.role == "saved" else token
            where = f"{token} * ({n}) + {flat(body.env, array.dims)}"
            if store.add:
                text = f"plus(get(({kind} *){place}, {where}), {text})"
            lines.append(f"put(({kind} *){place}, {where}, {text});")
        return " ".join(lines)

    def stored(self, array: Array) -> str:
        """The type of an array's numbers outside the block."""
        if array.role in ("hoisted", "fixed"):
            return f"t_{array.role}_{array.index}"
        return KINDS[array.kind]

    def load(self, array: Array, entry: str, at: str) -> str:
        """Code of an entry of an array outside the block, at a token."""
        if array.role == "fixed":
            self.numbers.add(array.index)
        if array.role != "past":
            return f"get({', '.join(self.address(array, entry, at))})"
        n, kind = length(array.dims), self.stored(array)
        depth = self.step.streams[array.index].depth
        slot = f"(b_id[b_row] * {depth} + {array.lag - 1} - {at}) * ({n}) + {entry}"
        now = f"get({', '.join(self.address(array, entry, at))})"
        return f"({at} >= {array.lag} ? {now} : get(({kind} *)p_history_{array.index}, {slot}))"

    def address(self, array: Array, entry: str, at: str) -> tuple[str, str]:
        """Where an entry of an array outside the block is at a token that its sequence has."""
        n, kind = length(array.dims), self.stored(array)
        if array.role == "fixed":
            return f"({kind} *)p_fixed_{array.index}", entry
        names = {"hoisted": f"hoisted_{array.index}", "d_new": f"grad_{array.index}", "saved": f"saved_{array.index}"}
        name = names.get(array.role, f"values_{array.index}")
        token = f"(b_start[b_row] + {at}{f' - {array.lag}' if array.role == 'past' else ''})"
        step = f"STEP_{array.index}" if array.role == "hoisted" else f"({n})"
        return f"({kind} *)p_{name}", f"{token} * {step} + {entry}"

    # --- loops of threads ---

    def decoded(self, dims: Sequence[str], unit: str) -> list[str]:
        lines: list[str] = []
        for i, d in enumerate(dims):
            rest = " * ".join("PART" if x == self.free else size(x) for x in dims[i + 1 :])
            text = f"{unit} / ({rest})" if rest else unit
            text = f"{text} % {'PART' if d == self.free else size(d)}" if i else text
            lines.append(f"const int i_{identifier(d)} = {f'lo + {text}' if d == self.free else text};")
        return lines

    def guarded(self, dims: Sequence[str], lines: list[str]) -> list[str]:
        """Only entries of the free dim that there are."""
        if self.free is None or self.free not in dims:
            return lines
        return [f"if (i_{identifier(self.free)} < hi) {{", *indented(lines), "}"]

    def owned(
        self, space: int, dims: Sequence[str], lines: list[str], live: str = "b_t < b_length[b_row]"
    ) -> list[str]:
        """Each thread's own entries."""
        inner = [*self.decoded(dims, "b_unit"), *self.guarded(dims, lines)]
        return [
            f"#pragma unroll UNROLL_{space}",
            f"for (int b_e = 0; b_e < EACH_{space}; ++b_e) {{",
            "  const int b_unit = UNIT(b_e), b_row = ROW(b_e);",
            f"  if (b_unit < COUNT_{space} && {live}) {{",
            *indented(indented(inner)),
            "  }",
            "}",
        ]

    def any(self, count: str, dims: Sequence[str], lines: list[str], live: str = "b_t < b_length[b_row]") -> list[str]:
        """Entries of all sequences of the block, wherever."""
        inner = [*self.decoded(dims, "b_unit"), *self.guarded(dims, lines)]
        return [
            f"for (int b_i = b_tid; b_i < ROWS * ({count}); b_i += THREADS) {{",
            f"  const int b_row = b_i / ({count}), b_unit = b_i % ({count});",
            f"  if ({live}) {{",
            *indented(indented(inner)),
            "  }",
            "}",
        ]

    def count(self, dims: Iterable[str]) -> str:
        return " * ".join("PART" if d == self.free else size(d) for d in dims) or "1"

    # --- stages ---

    def _items(self) -> list[Item]:
        return [*(self._arrive(a) for a in self.arriving.values()), *self._staged(self.half.stages)]

    def _staged(self, stages: Stages) -> list[Item]:
        items: list[Item] = []
        before, self.stages = self.stages, stages
        for group in grouped(stages.order):
            stage = group[0]
            match stage:
                case Nest():
                    items += self._nest(stage)
                case Product():
                    items.append(self._products([p for p in group if isinstance(p, Product)]))
                case System():
                    items.append(self._system(stage))
                case Repeat():
                    items.append(self._repeat(stage))
        self.stages = before
        return items

    def _repeat(self, s: Repeat) -> Item:
        """Small steps: all threads wait before, after, and where they must within."""
        i, n = held(s.over), size(s.over)
        self.repeat = s
        lines = ["__syncthreads();"] if s.sums else []
        # Neither is a number of one thread's.
        whole = (*s.sums, *(r.room for r in s.runs.values()))
        inner: list[Item] = [Item((), tuple(Access((a.name, None), True, None) for a in whole))]
        for a in s.sums:
            env = {d: f"i_{identifier(d)}" for d in a.dims}
            memory = f"s_{a.name}[b_row * l_{a.name} + {self.local(a, env)}]"
            lines += self.any(self.count(a.dims), a.dims, [f"clear({memory});"])
        halves = [(s.steps, f"int {i} = 0; {i} < {n if s.back is None else f'{n} - 1'}; ++{i}")]
        halves += [(s.back, f"int {i} = {n} - 1; {i} >= 0; --{i}")] if s.back else []
        for stages, head in halves:
            items = self._staged(stages)
            inner += items
            waits = barriers(items, {})
            lines += ["__syncthreads();", f"for ({head}) {{"]
            for k, item in enumerate(items):
                lines += indented([*(["__syncthreads();"] if k in waits else []), *item.lines])
            lines.append("}")
        self.repeat = None
        touched = tuple(a for item in inner for a in item.accesses)
        return Item((*lines, "__syncthreads();"), (), any(item.reads_tokens for item in inner), touched)

    def _arrive(self, array: Array) -> Item:
        """The cotangent of a state at this token: what flowed back, and what comes from outside."""
        space = self.space(array.dims)
        env = {d: f"i_{identifier(d)}" for d in array.dims}
        memory = f"{self.slot(array)}[{self.row(array, 'b_row')} + {self.local(array, env)}]"
        name = self.fetched.setdefault((space, array), f"f_{array.name}_{space}")
        load = self.load(array, flat(env, array.dims), "b_t")
        text = f"(KEEP_{space} ? {name}[b_e] : {load})"
        line = f"{memory} = plus({memory}, {text});" if self.reach[array.index] else f"{memory} = {text};"
        lines = self.owned(space, array.dims, [line])
        return Item(tuple(lines), (Access(self.place(array), True, space),), True)

    def _nest(self, nest: Nest) -> list[Item]:
        items: list[Item] = []
        space = self.space(nest.dims)
        if nest.stores:
            body = _Unit(self, Nest(nest.dims, nest.nodes, nest.stores, ()), space)
            lines = self.owned(space, nest.dims, [*body.lines, *body.stores])
            items.append(Item(tuple(lines), tuple(dict.fromkeys(body.accesses)), body.reads_tokens))
        return [*items, *(self._sum(nest, s) for s in nest.sums)]

    def _sum(self, nest: Nest, store: Store) -> Item:
        """A warp for each entry of the sum."""
        needed = below(store.node.children[0], nest.nodes)
        body = _Unit(self, Nest(nest.dims, needed, (), (store,)), None)
        outs = store.array.dims
        ins = [d for d in nest.dims if d not in outs]
        ((_, text),) = body.sums
        total = body.names.new(store.array.name)
        op = {"sum": 0, "max": 1, "min": 2}[store.node.op] if isinstance(store.node, Reduce) else 0
        inner = [*self.decoded(ins, "b_in"), *body.lines, gathered(store, total, text)]
        target = f"{self.slot(store.array)}[{self.row(store.array, 'b_row')} + {self.local(store.array, body.env)}]"
        loop = [
            f"{TYPES[store.array.kind]} {total} = {neutral(store)};",
            f"for (int b_in = b_tid % 32; b_in < {self.count(ins)}; b_in += 32) {{",
            *indented(inner),
            "}",
            f"{total} = over_lanes({total}, {op});",
            f"if (b_tid % 32 == 0) {target} = {total};",
        ]
        lines = [
            f"for (int b_i = b_warp; b_i < ROWS * ({self.count(outs)}); b_i += WARPS) {{",
            f"  const int b_row = b_i / ({self.count(outs)}), b_unit = b_i % ({self.count(outs)});",
            "  if (b_t < b_length[b_row]) {",
            *indented(indented([*self.decoded(outs, "b_unit"), *self.guarded(outs, loop)])),
            "  }",
            "}",
        ]
        written = Access(self.place(store.array), True, None)
        return Item(tuple(lines), (*dict.fromkeys(body.accesses), written))

    def _system(self, s: System) -> Item:
        n = size(s.row)
        lead = tuple(d for d in s.out.dims if d != s.row)
        at = {**{d: f"i_{identifier(d)}" for d in lead}, s.row: "i", s.col: "j"}

        def entry(array: Array, dims: tuple[str, ...]) -> str:
            if self.slotted(array):
                place = self.local(replace(array, dims=dims), at)
                return f"{self.slot(array)}[{self.row(array, 'b_row')} + {place}]"
            return self.load(array, flat(at, dims), "b_t")

        matrix, rhs = entry(s.matrix, s.matrix_dims), entry(s.rhs, s.rhs_dims)
        lines = [
            f"real system[{n} * {n}], y[{n}];",
            f"for (int i = 0; i < {n}; ++i) {{",
            f"  y[i] = {rhs};",
            f"  for (int j = 0; j < {n}; ++j) system[i * {n} + j] = {matrix};",
            "}",
            f"solve(system, y, {n});",
            f"for (int i = 0; i < {n}; ++i) {entry(s.out, s.out.dims)} = y[i];",
        ]
        accesses = [Access(self.place(a), a is s.out, None) for a in (s.matrix, s.rhs, s.out) if self.slotted(a)]
        return Item(tuple(self.any(self.count(lead), lead, lines)), tuple(accesses))

    # --- products ---

    def matrix(self, p: Product) -> int:
        inner = [d for d in p.kept if d != self.free]
        key = p.matrix, p.axes, p.kept, p.outs, p.ins
        self.matrices.setdefault(key, Matrix(p.matrix.index, self.product_space(p), p.outs, p.ins, not inner))
        return list(self.matrices).index(key)

    def product_space(self, p: Product) -> int:
        return self.space((*(d for d in p.kept if d != self.stages.held), *p.outs))

    def step_of(self, dims: Sequence[str], lengths: Callable[[Sequence[str]], str]) -> str:
        """How far into an array this small step's numbers begin, as code to be added."""
        if self.stages.held is None or self.stages.held not in dims:
            return ""
        return f" + {held(self.stages.held)} * ({lengths(dims[dims.index(self.stages.held) + 1 :])})"

    def _products(self, group: list[Product]) -> Item:
        """Products of one operand: 16 units by 8 sequences a warp, as the fragments of `mma` lie."""
        p = group[0]
        space = self.product_space(p)
        inner = tuple(d for d in p.kept if d not in (self.free, self.stages.held))
        n, depth = length(p.outs), length(p.ins)
        outs = [(self.matrix(x), x.out) for x in group]
        arg = f"{self.slot(p.arg)}{self.step_of(p.arg.dims, self.count)}"
        at = [f"w_{m}{self.step_of(x.kept, length)}" for (m, _), x in zip(outs, group, strict=True)]
        if self.stages.held in p.kept:
            at = [f"{w} * ({stride(x, 'kept')})" for w, x in zip(at, group, strict=True)]
        lines = [f"for (int b_tile = 0; b_tile < TILES_{space}; ++b_tile) {{", "  const int b_u = UNIT(4 * b_tile);"]
        lines.append(f"  real {', '.join(f'b_sum{m}[4] = {{0, 0, 0, 0}}' for m, _ in outs)};")
        if not inner:
            # Only in registers must places be known; all loads of a row at once would take too many.
            held = " || ".join(f"HELD_{m} == 2" for m, _ in outs)
            lines.append("#if LOW")
            lines += indented(
                [
                    f"const real *const b_x = {arg} + {self.row(p.arg, 'b_group')};",
                    f"#pragma unroll {held} ? ({depth} + 15) / 16 : DEEP",
                    f"for (int b_k = 0; b_k < ({depth} + 15) / 16; ++b_k) {{",
                    f"  const unsigned b_0 = of_vector(b_x, 16 * b_k + 2 * b_quad, {depth});",
                    f"  const unsigned b_1 = of_vector(b_x, 16 * b_k + 2 * b_quad + 8, {depth});",
                    *(
                        line
                        for (m, _), w in zip(outs, at, strict=True)
                        for line in indented(self._tile(m, w, n, depth))
                    ),
                    "}",
                ]
            )
            lines.append("#else")
        lines += indented(self._plain(group, outs, at, arg, inner, n, depth))
        if not inner:
            lines.append("#endif")
        stores: list[str] = []
        accesses = [Access(self.place(p.arg), False, None)]
        for m, out in outs:
            memory = f"s_{out.name}[b_row * l_{out.name}{self.step_of(out.dims, self.count)} + b_unit]"
            if out in self.registers:
                memory = f"(KEEP_{space} ? y_{out.name}[b_e] : {memory})"
            stores.append(f"{memory} = b_sum{m}[b_part];")
            accesses.append(Access(self.place(out), True, space))
        lines += [
            "  #pragma unroll",
            "  for (int b_part = 0; b_part < 4; ++b_part) {",
            "    const int b_e = 4 * b_tile + b_part, b_unit = UNIT(b_e), b_row = ROW(b_e);",
            f"    if (b_unit < COUNT_{space}) {{",
            *indented(indented(indented(stores))),
            "    }",
            "  }",
            "}",
        ]
        return Item((f"#pragma unroll UNROLL_{space}", *lines), tuple(accesses))

    def _tile(self, m: int, w: str, n: str, depth: str) -> list[str]:
        tile = f"{w}, b_u, 16 * b_k + 2 * b_quad, {n}, {depth}, o_{m}, d_{m}"
        if not list(self.matrices.values())[m].whole:
            return ["{", "  unsigned b_a[4];", f"  of_tile(b_a, {tile});", f"  mma(b_sum{m}, b_a, b_0, b_1);", "}"]
        return [
            f"if (HELD_{m} == 2) {{",
            f"  mma(b_sum{m}, a_{m} + 4 * (b_tile * (({depth} + 15) / 16) + b_k), b_0, b_1);",
            "} else {",
            "  unsigned b_a[4];",
            f"  if (HELD_{m} == 1)",
            f"    of_copy(b_a, w_{m}, b_u < ({n} + 15) / 16 * 16 ? b_u : b_group, 16 * b_k + 2 * b_quad, PITCH_{m});",
            "  else",
            f"    of_tile(b_a, {tile});",
            f"  mma(b_sum{m}, b_a, b_0, b_1);",
            "}",
        ]

    def _plain(
        self,
        group: list[Product],
        outs: list[tuple[int, Array]],
        matrices: list[str],
        arg: str,
        inner: tuple[str, ...],
        n: str,
        depth: str,
    ) -> list[str]:
        """Sums of products, one after the other."""
        p = group[0]
        space = self.product_space(p)
        lines: list[str] = []
        for h in (0, 1):
            lines.append(f"const int b_u{h} = b_u + {8 * h} < COUNT_{space} ? b_u + {8 * h} : COUNT_{space} - 1;")
            if inner:
                lines.append(f"const int b_g{h} = b_u{h} / ({n}), b_n{h} = b_u{h} % ({n});")
            else:
                lines.append(f"const int b_n{h} = b_u{h};")
            for r in (0, 1):
                entry = f" + b_g{h} * ({depth})" if inner else ""
                start = f"{arg} + {self.row(p.arg, f'(2 * b_quad + {r})')}{entry}"
                lines.append(f"const real *const b_x{h}{r} = {start if inner or not h else f'b_x0{r}'};")
        for (m, _), w, x in zip(outs, matrices, group, strict=True):
            for h in (0, 1):
                at = f" + b_g{h} * ({stride(x, 'kept')})" if inner else ""
                lines.append(f"const ELEMENT *const b_w{m}{h} = {w}{at} + b_n{h} * o_{m};")
        sides = [(h, r) for h in (0, 1) for r in (0, 1)]
        terms = [f"const real b_a{h}{r} = b_x{h}{r}[b_k];" for h, r in sides]
        fours = [f"const four b_a{h}{r} = *(const four *)(b_x{h}{r} + b_k);" for h, r in sides]
        for m, _ in outs:
            for h in (0, 1):
                terms.append(f"const real b_m{m}{h} = get(b_w{m}{h}, b_k * d_{m});")
                fours.append(f"const four b_m{m}{h} = *(const four *)(b_w{m}{h} + b_k);")
                for r in (0, 1):
                    total = f"b_sum{m}[{2 * h + r}]"
                    terms.append(f"{total} = fused(b_m{m}{h}, b_a{h}{r}, {total});")
                    fours.append(f"{total} = fused(b_m{m}{h}, b_a{h}{r}, {total});")
        lines.append("int b_k = 0;")
        if not inner:
            whole = " && ".join(f"HELD_{m} == 1" for m, _ in outs)
            lines += [
                "#if !LOW",
                f"if ({whole}) {{",
                "  #pragma unroll DEEP",
                f"  for (; b_k + 4 <= {depth}; b_k += 4) {{",
                *indented(indented(fours)),
                "  }",
                "}",
                "#endif",
            ]
        return [*lines, "#pragma unroll 4 * DEEP", f"for (; b_k < {depth}; ++b_k) {{", *indented(terms), "}"]

    def _own(self, items: Sequence[Item]) -> dict[Array, int]:
        """The arrays between stages of which each thread only touches entries of its own."""
        owners: dict[str, set[int | None]] = {}
        for a in (a for item in items for a in (*item.accesses, *item.within)):
            owners.setdefault(a.place[0], set()).add(a.owner)
        out: dict[Array, int] = {}
        for array in self.stages.scratch:
            found = owners.get(array.name, set())
            if len(found) == 1 and (owner := next(iter(found))) is not None:
                out[array] = owner
        return out


def _summed(results: Sequence[Store]) -> dict[Array, Array]:
    """The gradients of fixed values that are sums, over all tokens, of what is written for each of them anyway."""
    whole = [r for r in results if set(r.node.dims) == set(r.array.dims)]
    written = {(r.node, r.array.dims): r.array for r in whole if r.array.role == "d_hoisted" and not r.add}
    sums = [r for r in whole if r.array.role == "d_fixed"]
    return {r.array: written[r.node, r.array.dims] for r in sums if (r.node, r.array.dims) in written}
