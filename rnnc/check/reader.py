"""One expression of the tree → IR: names, arithmetic, brackets. Functions are in `calls`, `maps` and `draws`.

Each form is a generator that yields the operands it wants read and is sent their values, so that no depth of nesting
and no length of a sum reaches Python's recursion limit.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rnnc import ir, tree
from rnnc.check.context import WORDS, Context, Symbol, SymbolRole
from rnnc.check.sizes import require_equal
from rnnc.check.timing import MAX_LAG, lag_of
from rnnc.check.words import BARE_DRAWS, NUMBERS, SIGNATURES, STATEMENTS
from rnnc.diagnostics import Diagnostic
from rnnc.errors import dims, functions, kinds, names, time
from rnnc.source import Span

if TYPE_CHECKING:
    from rnnc.check.maps import MapNames

Value = ir.Expr | None
"""None where the text is wrong, which was said."""
Step = Generator[tree.Expr, Value, Value]

VALUES: frozenset[SymbolRole] = frozenset(("size", "const", "input", "param", "buffer", "state", "def"))

_ARITHMETIC: Mapping[str, str] = {"+": "add", "-": "sub", "*": "mul", "/": "div", "**": "pow"}
_COMPARISONS: Mapping[str, str] = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}


@dataclass(frozen=True)
class Place:
    """Where an expression stands, and what may stand there.

    `step`: read at every token, so time, learned maps and gradients have a meaning. `elementwise`: nothing but that.
    `shape`: the declared dims that draws fill. `before`: what is declared behind this offset is not there yet.
    """

    what: str
    roles: frozenset[SymbolRole] = VALUES
    step: bool = False
    elementwise: bool = False
    shape: tuple[str, ...] | None = None
    before: int | None = None
    owner: str = ""


@dataclass(frozen=True)
class Head:
    """A call of a function: its name, and the dims in brackets behind it."""

    name: tree.Name
    bracket: tree.Bracket | None
    call: tree.Call


@dataclass
class Reader:
    """Reads the expression of one statement."""

    cx: Context
    place: Place
    maps: Mapping[int, MapNames] = field(default_factory=dict[int, "MapNames"])
    """Names for what its calls learn, by the identity of the call."""
    params: list[ir.Param] = field(default_factory=list[ir.Param])
    """What they learn."""
    values: dict[int, Value] = field(default_factory=dict[int, Value])
    """The value of each node read so far, by the node's identity."""

    @property
    def graph(self) -> ir.Graph:
        return self.cx.graph

    def read(self, root: tree.Expr) -> Value:
        stack: list[tuple[tree.Expr, Step]] = []
        node, value = root, self._begin(root)
        while True:
            if isinstance(value, Generator):
                stack.append((node, value))
                sent: Value = None
            else:
                self.values[id(node)] = sent = value
            while stack:
                node, step = stack[-1]
                try:
                    node = step.send(sent)
                    break
                except StopIteration as done:
                    stack.pop()
                    self.values[id(node)] = sent = done.value
            else:
                return sent
            value = self._begin(node)

    def wrong(self, diagnostic: Diagnostic) -> None:
        self.cx.report(diagnostic)

    def text(self, node: tree.Expr) -> str:
        return self.cx.source.slice(node.span)

    def _begin(self, node: tree.Expr) -> Step | Value:
        match node:
            case tree.Number():
                return self.graph.lit(node.value)
            case tree.Name():
                return self._name(node)
            case tree.Unary():
                return self._unary(node)
            case tree.Binary():
                return self._binary(node)
            case tree.Bracket(right=None):
                return self._index(node)
            case tree.Bracket():
                return self._arrow(node)
            case tree.Call():
                return self._call(node)

    # --- names ---------------------------------------------------------------------------------------------------

    def _name(self, node: tree.Name) -> Value:
        name = node.text
        if name in NUMBERS:
            return self.graph.lit(NUMBERS[name])
        if name == "t":
            return self.wrong(time.TimeAsValue(node.span))
        if name in SIGNATURES:
            return self._bare_draw(node) if name in BARE_DRAWS else self._no_value(node)
        if name in STATEMENTS:
            return self.wrong(kinds.NotInPlace(node.span, f"`{name}`", self.place.what, self.place.elementwise))
        symbol = self.symbol(node)
        return None if symbol is None else self.ref(symbol, 0)

    def _no_value(self, node: tree.Name) -> None:
        self.wrong(functions.FunctionAsValue(node.span, node.text, SIGNATURES[node.text]))

    def _bare_draw(self, node: tree.Name) -> Value:
        shape = self.place.shape
        if shape is None:
            return self.wrong(kinds.DrawElsewhere(node.span, node.text, self.place.what))
        if node.text in ("zeros", "ones"):
            return self.graph.lit(0.0 if node.text == "zeros" else 1.0)
        if len(shape) < 2:
            return self.wrong(dims.NeedsMatrix(node.span, node.text, self.place.owner, shape))
        return self.graph.draw(node.text, (), shape)

    def symbol(self, node: tree.Name) -> Symbol | None:
        """A declared name that may stand here."""
        symbol = self.cx.lookup(node)
        if symbol is None:
            return None
        if symbol.role == "output":
            return self.wrong(names.OutputAsValue(node.span, node.text, symbol.span))
        if symbol.role not in self.place.roles:
            allowed = tuple(WORDS[r] for r in WORDS if r in self.place.roles)
            return self.wrong(time.NotHere(node.span, node.text, WORDS[symbol.role], self.place.what, allowed))
        before = self.place.before
        if before is not None and symbol.role in ("buffer", "const") and symbol.span.start >= before:
            return self.wrong(time.DeclaredLater(node.span, node.text, self.place.what, symbol.span))
        return symbol

    def ref(self, symbol: Symbol, lag: int) -> Value:
        if symbol.type is None or symbol.role == "output":
            return None
        return self.graph.ref(symbol.role, symbol.name, symbol.type, lag)

    # --- operators -----------------------------------------------------------------------------------------------

    def _unary(self, node: tree.Unary) -> Step:
        arg = yield node.arg
        if arg is None:
            return None
        if node.op == "not":
            return self.graph.apply("not", arg) if self.boolean(arg, node.arg, "not") else None
        return negative(arg, self.graph) if node.op == "-" else arg

    def _binary(self, node: tree.Binary) -> Step:
        left = yield node.left
        right = yield node.right
        if left is None or right is None:
            return None
        if node.op in _ARITHMETIC:
            return self.graph.apply(_ARITHMETIC[node.op], left, right)
        operands = ((left, node.left), (right, node.right))
        if node.op in _COMPARISONS:
            op = _COMPARISONS[node.op]
            good = [op in ir.COMPLEX_OPS or self.ordered(v, n, node.op) for v, n in operands]
        else:
            op = node.op
            good = [self.boolean(v, n, node.op) for v, n in operands]
        return self.graph.apply(op, left, right) if all(good) else None

    def boolean(self, value: ir.Expr, node: tree.Expr, op: str) -> bool:
        if value.kind != "bool":
            self.wrong(kinds.NotBool(node.span, self.text(node), op, value.kind))
        return value.kind == "bool"

    def ordered(self, value: ir.Expr, node: tree.Expr, op: str) -> bool:
        """Whether a value is no complex one, for which `op` has no meaning."""
        if value.kind == "complex":
            self.wrong(kinds.ComplexOperand(node.span, self.text(node), op))
        return value.kind != "complex"

    # --- brackets ------------------------------------------------------------------------------------------------

    def _index(self, node: tree.Bracket) -> Step | Value:
        """`x[t-1]`, and what looks like it."""
        lag = lag_of(node.left)
        base = node.base
        if lag == "other":
            if isinstance(base, tree.Name) and base.text in SIGNATURES:
                return self._no_value(base)
            return self._dims_on_value(node)
        if not isinstance(base, tree.Name):
            return self._time_on_expression(node)
        if base.text in NUMBERS:
            return self.wrong(time.TimelessIndexed(node.span, base.text, "number", node.inner))
        if base.text in SIGNATURES or base.text == "t":
            return self._name(base)
        symbol = self.symbol(base)
        if symbol is None:
            return None
        if symbol.role in ("size", "const", "param", "buffer"):
            return self.wrong(time.TimelessIndexed(node.span, base.text, WORDS[symbol.role], node.inner))
        if not isinstance(lag, int):
            text = self.cx.source.slice(node.inner)
            return self.wrong(
                time.Future(node.span, base.text, text)
                if lag == "future"
                else time.LagNotConstant(node.span, base.text, text, symbol.role == "state")
            )
        if lag > MAX_LAG:
            return self.wrong(time.LagTooLong(node.span, self.text(node), MAX_LAG))
        return self.ref(symbol, lag)

    def _dims_on_value(self, node: tree.Bracket) -> Step:
        value = yield node.base
        if value is not None:
            dim_names = all(isinstance(i, tree.Name) and i.text in self.cx.sizes for i in node.left)
            self.wrong(dims.BracketOnValue(node.span, self.text(node.base), node.inner, dim_names))
        return None

    def _time_on_expression(self, node: tree.Bracket) -> Step:
        value = yield node.base
        if value is not None:
            self.wrong(time.TimeOnExpression(node.span, self.text(node.base), self.cx.source.slice(node.inner)))
        return None

    def _arrow(self, node: tree.Bracket) -> Step:
        """`e[K -> J]`, `e[D -> H * P]`, `e[H * P -> D]`."""
        value = yield node.base
        if self.place.elementwise:
            return self.wrong(kinds.NotInPlace(node.span, "a renaming", self.place.what, True))
        assert node.right is not None
        if len(node.left) != 1 or len(node.right) != 1:
            return self.wrong(dims.OneDimAtATime(node.inner))
        olds, news = _factors(node.left[0]), _factors(node.right[0])
        if len(olds) > 1 and len(news) > 1:
            return self.wrong(dims.OneDimAtATime(node.inner))
        old, new = self.cx.dims(olds), self.cx.dims(news)
        if value is None or old is None or new is None:
            return None
        for dim, written in zip(old, olds, strict=True):
            if dim not in value.dims:
                near = self.cx.nearest(dim, value.dims)
                return self.wrong(dims.MissingDim(written.span, dim, self.text(node.base), value.dims, near))
        if old == new:
            return value
        for dim, written in zip(new, news, strict=True):
            if dim in value.dims:
                return self.wrong(dims.DimTwice(written.span, dim, value.dims))
        if not require_equal(old, new, node.inner, self.cx):
            return None
        match old, new:
            case (one,), (other,):
                return self.graph.rename(value, one, other)
            case (one,), _:
                return self.graph.split(value, one, new)
            case _:
                return self.graph.merge(value, old, new[0])

    # --- calls ---------------------------------------------------------------------------------------------------

    def _call(self, node: tree.Call) -> Step | Value:
        from rnnc.check.calls import FUNCTIONS

        head = head_of(node)
        if head is None:
            return self.wrong(functions.NotAFunction(node.base.span, self.text(node.base), None, _times(node)))
        name = head.name
        if name.text in FUNCTIONS:
            return FUNCTIONS[name.text](self, head)
        if name.text in BARE_DRAWS:
            return self.wrong(functions.WrongArguments(node.span, name.text, "with brackets", SIGNATURES[name.text]))
        if name.text in SIGNATURES:
            return self.wrong(kinds.RegionAsValue(node.span, name.text))
        symbol = self.cx.symbols.get(name.text)
        if symbol is None:
            return self.cx.function(name)
        as_time = isinstance(lag_of(node.args), int) and not node.options and node.target is None
        index = self.cx.source.slice(node.args[0].span) if as_time else None
        return self.wrong(functions.NotAFunction(node.span, name.text, index, _times(node)))


def _times(node: tree.Call) -> Span | None:
    """Where a `*` would make a product of what looks like a call."""
    single = len(node.args) == 1 and node.target is None and not node.options
    return Span(node.base.span.end, node.base.span.end) if single else None


def head_of(node: tree.Call) -> Head | None:
    """`f(...)` and `f[...](...)`; None where something else than a name is called."""
    match node.base:
        case tree.Name() as name:
            return Head(name, None, node)
        case tree.Bracket(tree.Name() as name) as bracket:
            return Head(name, bracket, node)
        case _:
            return None


def negative(value: ir.Expr, graph: ir.Graph) -> ir.Expr:
    """`-value`, a literal where it is one."""
    if isinstance(value, ir.Lit) and not isinstance(value.value, bool | complex):
        return graph.lit(-value.value)
    return graph.apply("neg", value)


def _factors(node: tree.Expr) -> list[tree.Expr]:
    """`H`, `K`, `V` of `H * K * V`."""
    out: list[tree.Expr] = []
    while isinstance(node, tree.Binary) and node.op == "*":
        out.append(node.right)
        node = node.left
    return [node, *reversed(out)]
