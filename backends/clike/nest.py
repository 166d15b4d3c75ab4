"""What a nest of loops does, as C.

Goals: one text per unit that a host's loops and a GPU's threads can both hold: `Body.lines` compute and store for one
entry of the nest's dims, `loops` puts loops around them.
Non-goals: where arrays lie. `Place` says it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from rnnc.ir import Apply, Expr, Merge, Reduce, Ref, Rename, Split
from rnnc.plan import is_number

from ..torch.block import NameTable
from .scalar import ATOM, RESERVED, TYPES, Code, apply, as_complex, identifier, number
from .stages import Array, Nest, Stages, Store, operands

WIDTH = 100


class Place(Protocol):
    """Where arrays lie, and which part of a dim is computed."""

    def at(self, array: Array, index: str) -> str:
        """Code of an entry."""
        ...

    def bounds(self, dim: str) -> tuple[str, str]:
        """The first entry of a dim and the one after the last."""
        ...


def size(dim: str) -> str:
    return f"n_{identifier(dim)}"


def held(dim: str) -> str:
    """The entry of a dim that a small step is at."""
    return f"j_{identifier(dim)}"


def length(dims: Sequence[str]) -> str:
    """How many entries dims have, as code."""
    return " * ".join(size(d) for d in dims) or "1"


def extent(array: Array) -> str:
    """How many numbers an array takes."""
    if array.padded is None:
        return length(array.dims)
    pad = f"PAD({length(array.dims[array.padded :])})"
    return " * ".join([*(size(d) for d in array.dims[: array.padded]), pad])


def index(array: Array, env: Mapping[str, str]) -> str:
    """The place of an entry in an array, row-major."""
    if array.padded is None:
        return _horner([(env[d], size(d)) for d in array.dims])
    inner = _horner([(env[d], size(d)) for d in array.dims[array.padded :]])
    if not array.padded:
        return inner
    outer = _horner([(env[d], size(d)) for d in array.dims[: array.padded]])
    return f"{_product(outer)} * PAD({length(array.dims[array.padded :])}) + {inner}"


def _product(text: str) -> str:
    return text if re.fullmatch(r"\w+", text) else f"({text})"


def _horner(parts: list[tuple[str, str]]) -> str:
    text = ""
    for i, n in parts:
        text = f"{_product(text)} * {n} + {i}" if text else i
    return text or "0"


def leaf(ref: Ref) -> str:
    """Code of a size or a const, as a double."""
    return f"(double){size(ref.name)}" if ref.role == "size" else f"k_{identifier(ref.name)}"


class Body:
    """The innermost lines of a nest: loads, values, stores. Sums are left to whoever has the loops."""

    def __init__(self, nest: Nest, stages: Stages, place: Place, hints: Mapping[Expr, str]) -> None:
        self.nest, self.values, self.place, self.hints = nest, stages.values, place, hints
        self.names = NameTable(RESERVED)
        self.env = {d: f"i_{identifier(d)}" for d in nest.dims}
        if stages.held:
            self.env[stages.held] = held(stages.held)
        self.own = set(nest.nodes)
        self.code: dict[Expr, Code] = {}
        self.loads: dict[str, str] = {}
        """Names of what was read, by its code."""
        self.lines: list[str] = []
        self.uses: Counter[Expr] = Counter()
        for node in nest.nodes:
            self.uses.update(operands(node))
            # Branches that hold no call and no load become a blend.
            if isinstance(node, Apply) and node.op in ("where", "square", "pow"):
                self.uses.update(operands(node))
        self.uses.update(s.node for s in nest.stores)
        self.uses.update(s.node.children[0] for s in nest.sums)
        for node in nest.nodes:
            self._compute(node)
        self.sums = [(s, self._converted(self.value(s.node.children[0]), s.array)) for s in nest.sums]
        # A sum of what another stores for each token is stored by none.
        self.stores = [text for s in nest.stores if (text := self._store(s))]

    def entry(self, array: Array, env: Mapping[str, str]) -> str:
        """Code of an entry of an array; a frame whose memory is not row-major has its own."""
        return self.place.at(array, index(array, env))

    def _converted(self, code: Code, array: Array) -> str:
        return as_complex(code) if array.kind == "complex" else code.text

    def _store(self, store: Store) -> str:
        target = self.entry(store.array, self.env)
        text = self._converted(self.value(store.node), store.array)
        if not store.add:
            return f"{target} = {text};"
        return f"{target} = c_add({target}, {text});" if store.array.kind == "complex" else f"{target} += {text};"

    def _compute(self, node: Expr) -> None:
        assert isinstance(node, Apply)
        code = apply(node, tuple(self.value(c) for c in operands(node)))
        named = node in self.hints or self.uses[node] > 1 or node in self.values or len(code.text) > WIDTH
        if node.op in ("like", "only", "stop_gradient") or not named:
            self.code[node] = code
            return
        wanted = identifier(self.values[node].name if node in self.values else self.hints.get(node) or "v")
        name = self.names.new(wanted)
        self.lines.append(f"const {TYPES[node.kind]} {name} = {code.text};")
        self.code[node] = Code(name, ATOM, node.kind)

    def value(self, node: Expr) -> Code:
        """Code of an operand at this entry."""
        if node in self.code:
            return self.code[node]
        self.code[node] = code = self._read(node, self.env)
        return code

    def _read(self, node: Expr, env: Mapping[str, str]) -> Code:
        if is_number(node):
            return number(node, leaf)
        if node in self.values and node not in self.own:
            return self._load(self.values[node], env)
        match node:
            case Rename(arg=arg, old=old, new=new):
                return self._read_below(arg, {**env, old: env[new]})
            case Split(arg=arg, dim=dim, into=into):
                return self._read_below(arg, {**env, dim: f"({_horner([(env[d], size(d)) for d in into])})"})
            case Merge(arg=arg, merged=merged, into=into):
                inner = dict(env)
                for i, d in enumerate(merged):
                    rest = length(merged[i + 1 :])
                    place = env[into] if rest == "1" else f"{env[into]} / ({rest})"
                    inner[d] = f"({place})" if i == 0 else f"({place} % {size(d)})"
                return self._read_below(arg, inner)
            case _:
                raise AssertionError(f"{type(node).__name__} is in no array")

    def _read_below(self, node: Expr, env: Mapping[str, str]) -> Code:
        """The operand of a view, which must be in memory even where this nest computes it."""
        if node in self.values:
            return self._load(self.values[node], env)
        return self._read(node, env)

    def _load(self, array: Array, env: Mapping[str, str]) -> Code:
        text = self.entry(array, env)
        if text not in self.loads:
            self.loads[text] = self.names.new(array.name)
            kind = TYPES[array.kind]
            self.lines.append(f"const {kind} {self.loads[text]} = {text};")
        return Code(self.loads[text], ATOM, array.kind)


def neutral(store: Store) -> str:
    op = store.node.op if isinstance(store.node, Reduce) else "sum"
    if store.array.kind == "complex":
        return "c_make(0, 0)"
    return {"sum": "0", "max": "(real)-INF", "min": "(real)INF"}[op]


def gathered(store: Store, total: str, text: str) -> str:
    """A statement that takes one more term into a sum."""
    op = store.node.op if isinstance(store.node, Reduce) else "sum"
    if op != "sum":
        return f"{total} = r_{op}({total}, {text});"
    return f"{total} = c_add({total}, {text});" if store.array.kind == "complex" else f"{total} += {text};"


def loops(nest: Nest, stages: Stages, place: Place, hints: Mapping[Expr, str], simd: bool = True) -> list[str]:
    """A nest as loops, the last dim innermost."""
    body = Body(nest, stages, place, hints)
    out: list[str] = []
    for store in nest.sums:
        inner = [f"{place.at(store.array, index(store.array, body.env))} = {neutral(store)};"]
        out += _around(store.array.dims, inner, place, [])
    last = nest.dims[-1] if nest.dims else None
    across = [(s, text) for s, text in body.sums if last is not None and last not in s.array.dims]
    totals = {s: body.names.new(s.array.name) for s, _ in across}
    lines = [*body.lines, *body.stores]
    for s, text in body.sums:
        target = totals.get(s) or place.at(s.array, index(s.array, body.env))
        lines.append(gathered(s, target, text))
    plain = all(isinstance(s.node, Reduce) and s.node.op == "sum" and s.array.kind == "real" for s in totals)
    mark = ["#pragma omp simd" + (f" reduction(+ : {', '.join(totals.values())})" if totals else "")]
    before = [f"{TYPES[s.array.kind]} {name} = {neutral(s)};" for s, name in totals.items()]
    after = [gathered(s, place.at(s.array, index(s.array, body.env)), name) for s, name in totals.items()]
    inner = _around(nest.dims[-1:], lines, place, mark if plain and simd and last else [])
    return [*out, *_around(nest.dims[:-1], [*before, *inner, *after] if last else lines, place, [])]


def _around(dims: Sequence[str], lines: list[str], place: Place, mark: list[str]) -> list[str]:
    for d in reversed(dims):
        lo, hi = place.bounds(d)
        i = f"i_{identifier(d)}"
        lines = [*mark, f"for (long {i} = {lo}; {i} < {hi}; ++{i}) {{", *(f"  {line}" for line in lines), "}"]
        mark = []
    return lines
