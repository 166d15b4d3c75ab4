"""The functions of a stepped group whose maps compose: their parameters, how two become one, how one is applied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rnnc.closure import Block as Matrices
from rnnc.closure import Composable, Tropical
from rnnc.ir import Apply, Expr, Graph, Type, walk
from rnnc.plan import is_number

from .block import ATOM, SUM, Block, NameTable
from .text import quoted, several

if TYPE_CHECKING:
    from .loops import LoopCoder

LARGEST = 3
"""Up to here maps of matrices are written out."""
Function = tuple[str, list[str] | None, list[str], str]
"""Name, arguments (None: those of a step), body, docstring."""


class _Sums(Block):
    """Adds products in one operation each."""

    def apply(self, node: Apply) -> tuple[str, int]:
        terms = self._terms(node) if node.op == "add" else []
        products = [t for t in terms if isinstance(t, Apply) and t.op == "mul" and t not in self.variables]
        factors = [a for t in products for a in t.args]
        if not products or any(map(is_number, (*terms, *factors))) or any(e.kind != "real" for e in (*terms, *factors)):
            return super().apply(node)
        plain = [self.aligned(t, node.dims)[0] for t in terms if t not in products]
        text = " + ".join(plain) if plain else super().apply(products.pop(0))[0]
        for product in products:
            text = f"torch.addcmul({text}, {', '.join(self.aligned(a, node.dims)[0] for a in product.args)})"
        # Calls bind as names do; what is left is the sum or product that all began with.
        return text, ATOM if text.startswith("torch.addcmul") and products else SUM

    def _terms(self, node: Expr) -> list[Expr]:
        """The operands of a sum of sums."""
        if isinstance(node, Apply) and node.op == "add" and node not in self.variables:
            return [t for a in node.args for t in self._terms(a)]
        return [node]


class MapsCoder:
    """Writes `_NAME_maps`, `_NAME_compose` and `_NAME_apply`; of a flow backwards `_NAME_slopes` and the other two."""

    def __init__(self, coder: LoopCoder, maps: Composable, back: bool) -> None:
        self.coder, self.maps, self.back = coder, maps, back
        self.streams = coder.loop.streams
        self.graph = Graph(coder.graph.order)
        self.layouts = self.parameter_dims()
        self.name, self.after = coder.name, "_back" if back else ""
        self.parameters_name = f"{self.name}_{'slopes' if back else 'maps'}"

    def parameter_dims(self) -> list[tuple[str, ...]]:
        """Dims of each parameter: what is added to a stream has the stream's own order."""
        maps, sorted_dims = self.maps, self.graph.sort(self.streams[0].type.dims)
        if not isinstance(maps, Matrices):
            return [sorted_dims for _ in maps.parameters]
        own = {s.name: s.type.dims for s in self.streams}
        return [*(sorted_dims for _ in maps.entries), *(own[maps.components[row][0]] for row in maps.rows)]

    def functions(self) -> list[Function]:
        made = [self.given(self.parameters())]
        return made if self.large else [*made, self.compose(), self.apply()]

    @property
    def large(self) -> bool:
        """Whether written out it would be many lines: `n ** 3` products."""
        alike = len({s.type.dims for s in self.streams}) == 1
        return isinstance(self.maps, Matrices) and len(self.maps.components) > LARGEST and alike

    def given(self, body: list[str]) -> Function:
        if self.back:
            return self.parameters_name, None, body, "How the gradient of each past depends on that of the new values."
        return self.parameters_name, None, body, "Parameters of the maps of all tokens."

    @property
    def text(self) -> str:
        """Code of a `_Maps` of the runtime."""
        lags = [sum(name == s.name for name, _ in self.maps.components) for s in self.streams]
        parts = [self.parameters_name, f"{self.name}_compose{self.after}", f"{self.name}_apply{self.after}"]
        if self.large:
            parts[1:] = [f"*{self.matrices()}"]
        parts.append(several(map(str, lags)))
        if self.back:
            parts.append(several(map(str, self.arriving())))
        return f"_Maps({', '.join(parts)})"

    def matrices(self) -> str:
        assert isinstance(self.maps, Matrices)
        size, entries = range(len(self.maps.components)), set(self.maps.entries)
        pattern = [quoted("".join("x" if (i, j) in entries else "." for j in size)) for i in size]
        self.coder.helpers.add("_matrices")
        return f"_matrices({several(pattern)}, {several(map(str, self.maps.rows))})"

    def arriving(self) -> list[int]:
        """For each offset of a flow, the stream whose gradient it is."""
        assert isinstance(self.maps, Matrices)
        newest = {self.maps.components.index((s.name, 1)): i for i, s in enumerate(self.streams)}
        return [newest.get(row, -1) for row in self.maps.rows]

    # --- one function each ---

    def parameters(self) -> list[str]:
        coder, roots = self.coder, self.maps.parameters
        if isinstance(self.maps, Matrices) and self.back:
            roots = roots[: len(self.maps.entries)]
        block = coder.block(NameTable(coder.table.taken), coder.leaves() if self.back else {})
        if not self.back:
            # There is no past; where all that comes in are conditions, the runtime rounds the numbers chosen between.
            real = [f"{name}.dtype" for n, name in coder.names.items() if n.kind == "real" and n.dims]
            block.dtype = next(iter(real), "torch.float64")
        below = set(walk(*roots))
        block.hints = {n: h for n, h in coder.all_hints.items() if n in below and n not in coder.names}
        block.expect(*roots)
        results = [block.aligned_code(e, dims) for e, dims in zip(roots, self.layouts, strict=False)]
        block.lines.append(f"return {several(results)}")
        return block.lines

    def compose(self) -> Function:
        later, earlier = self.letters("2"), self.letters("1")
        found = self.maps.compose(self.graph, self.refs(later), self.refs(earlier))
        body = self.body([*later, *earlier], list(zip(found, self.layouts, strict=True)))
        return f"{self.name}_compose{self.after}", [*later, *earlier], body, "The map of two stretches of tokens."

    def apply(self) -> Function:
        letters = self.letters("")
        by_name = {s.name: s for s in self.streams}
        held = [by_name[name] for name, _ in self.maps.components]
        names = NameTable(letters)
        states = [names.new(self.held(name, lag)) for name, lag in self.maps.components]
        refs = tuple(self.graph.ref("input", n, s.type) for n, s in zip(states, held, strict=True))
        found = self.maps.apply(self.graph, self.refs(letters), refs)
        body = self.body([*letters, *states], [(e, s.type.dims) for e, s in zip(found, held, strict=True)])
        return f"{self.name}_apply{self.after}", [*letters, *states], body, self.says()

    def says(self) -> str:
        return "What flows back to the token before." if self.back else "What is held after a stretch of tokens."

    def held(self, name: str, lag: int) -> str:
        return (
            f"d_{name}" + ("" if lag == 1 else f"_prev{lag - 1}" if lag > 2 else "_prev")
            if self.back
            else self.coder.past[name, lag]
        )

    # --- opaque arguments ---

    def letters(self, mark: str) -> list[str]:
        """Names of the parameters of one map."""
        match self.maps:
            case Matrices(entries=entries, rows=rows) if len(self.maps.components) > 1:
                return [*(f"a{mark}_{i}_{j}" for i, j in entries), *(f"b{mark}_{i}" for i in rows)]
            case Tropical(roles=roles):
                return [f"{role}{mark}" for role in roles]
            case _:
                return [f"{letter}{mark}" for letter, _ in zip("abcd", self.maps.parameters, strict=False)]

    def refs(self, names: list[str]) -> tuple[Expr, ...]:
        """Parameters of which nothing is known but their kind."""
        types = [Type(d, e.kind) for d, e in zip(self.layouts, self.maps.parameters, strict=True)]
        return tuple(self.graph.ref("input", n, t) for n, t in zip(names, types, strict=True))

    def body(self, arguments: list[str], results: list[tuple[Expr, tuple[str, ...]]]) -> list[str]:
        def nothing(*_: object) -> str:
            raise AssertionError("maps are elementwise")

        real = f"{arguments[0]}{'.real' if self.maps.parameters[0].kind == 'complex' else ''}.dtype"
        table = NameTable({*self.coder.reserved, *arguments})
        block = _Sums(table, lambda r: r.name, nothing, {}, {}, nothing, nothing, nothing, real)
        block.helpers = self.coder.helpers
        assert not any(is_number(e) for e, _ in results)
        block.expect(*(e for e, _ in results))
        block.lines.append(f"return {several([block.aligned_code(e, dims) for e, dims in results])}")
        return block.lines
