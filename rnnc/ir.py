"""The typed IR: what a checked cell means, with no word on how it is computed.

An expression is a node of a directed acyclic graph. Nodes are immutable, compare by identity and are interned by the
`Graph` that makes them: the same operation on the same operands is one node, so a pass may keep tables keyed by node.

Every value at one time step has *named* dims; broadcasting is by name. Batch and time are never dims of the IR: a
node stands for its value at token `t` of one sequence, and `Ref.lag` reaches back to `t - lag`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar, cast

from rnnc.source import Span

Kind = Literal["bool", "real", "complex"]
Role = Literal["const", "size", "param", "buffer", "input", "def", "state"]

NOWHERE = Span(0, 0)
E = TypeVar("E", bound="Expr")


@dataclass(frozen=True, slots=True)
class Type:
    """Dims (layout order) and number kind of a value at one step. Numbers have no dims."""

    dims: tuple[str, ...] = ()
    kind: Kind = "real"

    def __str__(self) -> str:
        return f"{self.kind}[{', '.join(self.dims)}]"


@dataclass(frozen=True, slots=True, eq=False)
class Expr:
    """Base of all nodes. Make them through `Graph` only."""

    type: Type

    @property
    def dims(self) -> tuple[str, ...]:
        return self.type.dims

    @property
    def kind(self) -> Kind:
        return self.type.kind

    @property
    def children(self) -> tuple[Expr, ...]:
        return ()


@dataclass(frozen=True, slots=True, eq=False)
class Lit(Expr):
    """A literal. Integers stay integers (`x ** 2`); `inf` and `pi` are floats."""

    value: bool | int | float | complex


@dataclass(frozen=True, slots=True, eq=False)
class Ref(Expr):
    """A named value: `lag` tokens back for inputs, definitions and states, else lag 0.

    role "size" is the size of a dim used as a number (`K ** -0.5`). In an update with `over`, the updated state at lag
    1 is the running value. Before the first token an input or definition is zero, a state its initial value.
    """

    role: Role
    name: str
    lag: int


@dataclass(frozen=True, slots=True, eq=False)
class Apply(Expr):
    """An elementwise operation of `OPS` on operands that broadcast by name."""

    op: str
    args: tuple[Expr, ...]

    @property
    def children(self) -> tuple[Expr, ...]:
        return self.args


@dataclass(frozen=True, slots=True, eq=False)
class Reduce(Expr):
    """`sum mean max min logsumexp` over `over`, jointly. What lacks a summed dim counts once for each entry."""

    op: str
    over: tuple[str, ...]
    arg: Expr

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.arg,)


@dataclass(frozen=True, slots=True, eq=False)
class Normalize(Expr):
    """`softmax l2norm rmsnorm layernorm` over `over`, jointly; shape kept. Learned scales are separate products."""

    op: str
    over: tuple[str, ...]
    arg: Expr
    eps: float

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.arg,)


@dataclass(frozen=True, slots=True, eq=False)
class Rename(Expr):
    """`e[old -> new]`: the same numbers, one dim under another name."""

    arg: Expr
    old: str
    new: str

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.arg,)


@dataclass(frozen=True, slots=True, eq=False)
class Split(Expr):
    """`e[dim -> into...]`, row-major."""

    arg: Expr
    dim: str
    into: tuple[str, ...]

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.arg,)


@dataclass(frozen=True, slots=True, eq=False)
class Merge(Expr):
    """`e[dims... -> into]`, row-major in the order of `merged`."""

    arg: Expr
    merged: tuple[str, ...]
    into: str

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.arg,)


@dataclass(frozen=True, slots=True, eq=False)
class Linear(Expr):
    """A learned map: `sum[ins](W * arg)`, a separate matrix for each entry of `kept`.

    `weight` names a `Param` of shape `[*kept, *outs, *ins]` (a dim may stand both in outs and in ins).
    `transposed` maps `outs` back to `ins`; only derivatives have it.
    """

    weight: str
    arg: Expr
    kept: tuple[str, ...]
    ins: tuple[str, ...]
    outs: tuple[str, ...]
    transposed: bool = False

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.arg,)


@dataclass(frozen=True, slots=True, eq=False)
class Conv(Expr):
    """`conv[width](arg)`: `sum_j W[..., width-1-j] * arg[t-j]`, zero before the first token.

    `weight` names a `Param` of shape `[*arg.dims, width]` (last axis: oldest first, as in `torch.nn.Conv1d`).
    `history` is the name of the state field that holds the last `width - 1` values of `arg`.
    """

    weight: str
    history: str
    width: int
    arg: Expr

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.arg,)


@dataclass(frozen=True, slots=True, eq=False)
class Solve(Expr):
    """`solve[row, col](matrix, rhs)`: the `y` (with dim `row`) such that `sum[col](matrix * y[row -> col]) = rhs`."""

    row: str
    col: str
    matrix: Expr
    rhs: Expr

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.matrix, self.rhs)


@dataclass(frozen=True, slots=True, eq=False)
class Grad(Expr):
    """`grad(loss, wrt)`: gradient of the sum of `loss` with respect to a state at a lag, through definitions."""

    loss: Expr
    wrt: Ref

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.loss, self.wrt)


@dataclass(frozen=True, slots=True, eq=False)
class Draw(Expr):
    """An initialiser: `normal(std) uniform(a, b) loguniform(a, b) arange[dim](start) orthogonal eye`.

    Only inside `Param.init`. Drawn for each element of the declared shape; orthogonal and eye act on its last two axes
    (`Param.matrix` for a learned map: on [prod(outs), prod(ins)]). `zeros` and `ones` are plain literals.
    """

    op: str
    args: tuple[Expr, ...]

    @property
    def children(self) -> tuple[Expr, ...]:
        return self.args


# Elementwise operations and how many operands they take. `clamp(x, lo, hi)` is `min(max(x, lo), hi)`; `max` and `min`
# of several are nested. Only lowering makes the next two: `only(u, c)` is `u`, with a gradient of exactly 0 where `c`
# is false; `like(u, v)` is `u` broadcast to the dims of `v` too.
OPS: Mapping[str, int] = {
    **dict.fromkeys(("add", "sub", "mul", "div", "pow", "max", "min", "logaddexp", "and", "or", "only", "like"), 2),
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), 2),
    **dict.fromkeys(("neg", "not", "abs", "sign", "sqrt", "rsqrt", "square", "exp", "log", "log1p", "expm1"), 1),
    **dict.fromkeys(("sin", "cos", "erf", "sigmoid", "logsigmoid", "tanh", "relu", "silu", "gelu", "softplus"), 1),
    **dict.fromkeys(("real", "imag", "conj", "stop_gradient"), 1),
    "where": 3,
}
COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})
LOGIC = frozenset({"and", "or", "not"})
# What a complex operand may enter; the rest are errors of the checker.
COMPLEX_OPS = frozenset(
    "add sub mul div pow neg eq ne abs sqrt rsqrt square exp log sin cos tanh real imag conj stop_gradient where only "
    "like".split()
)
REDUCTIONS = frozenset({"sum", "mean", "max", "min", "logsumexp"})
NORMALIZERS = frozenset({"softmax", "l2norm", "rmsnorm", "layernorm"})
DRAWS = frozenset({"normal", "uniform", "loguniform", "arange", "orthogonal", "eye"})


def op_kind(op: str, args: tuple[Expr, ...]) -> Kind:
    """The number kind of `op` on operands that the checker has accepted."""
    if op in COMPARISONS or op in LOGIC:
        return "bool"
    if op in {"abs", "real", "imag"}:
        return "real"
    values = args[1:] if op == "where" else args[:1] if op in {"only", "like"} else args
    kinds = {a.kind for a in values}
    if "complex" in kinds:
        return "complex"
    if kinds == {"bool"} and op in {"where", "stop_gradient", "only", "like"}:
        return "bool"
    return "real"


# --- regions: what `in ...` claims -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Interval:
    """`[lo, hi]`, open where said. The ends are scalars of literals and consts."""

    lo: Expr
    hi: Expr
    lo_open: bool = False
    hi_open: bool = False


@dataclass(frozen=True, slots=True)
class Disc:
    """`disc(radius)`: modulus at most `radius`."""

    radius: Expr


@dataclass(frozen=True, slots=True)
class Annulus:
    """`annulus(inner, outer)`: modulus between the two."""

    inner: Expr
    outer: Expr


Region = Interval | Disc | Annulus


# --- declarations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dim:
    """A named size. `size` is an int (a constructor argument's default) or, for a derived dim, a scalar `Expr` of sizes
    (`Ref` role "size", `Lit`, mul/div/add/sub) that must come out a whole number >= 1."""

    name: str
    size: int | Expr
    span: Span = NOWHERE

    @property
    def derived(self) -> bool:
        return isinstance(self.size, Expr)


@dataclass(frozen=True, slots=True)
class Const:
    """A scalar hyperparameter: constructor argument with a default, checked there against `region`."""

    name: str
    value: int | float
    region: Interval | None = None
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Input:
    """A per-token stream: positional argument `[B, T, *dims]`. `region` is an assumption about the caller."""

    name: str
    type: Type
    region: Region | None = None
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Param:
    """A value that is the same at every `t`: learned, or (`learned=False`) a buffer.

    `shape` may repeat a dim only for the weight of a learned map, whose axes are `[*kept, *outs, *ins]` with
    `matrix = (len(kept), len(outs))`; a `conv` weight has `taps` as an extra last axis. `declared` is false for the
    parameters of `linear`, `conv` and norms. `owner` is the statement that they are named after.
    """

    name: str
    shape: tuple[str, ...]
    init: Expr
    kind: Kind = "real"
    learned: bool = True
    declared: bool = True
    matrix: tuple[int, int] | None = None
    taps: int | None = None
    owner: str | None = None
    span: Span = NOWHERE

    @property
    def type(self) -> Type:
        return Type(self.shape, self.kind)


@dataclass(frozen=True, slots=True)
class Definition:
    """A name for an expression at every `t`.

    `claim` is "gate" or "decay" for those keywords, "range" for a plain `in`; `region` what must be proved (`[0, 1]`,
    or `disc(1)` for a complex decay, where the text leaves it out); both None where nothing is claimed.
    """

    name: str
    expr: Expr
    claim: Literal["gate", "decay", "range"] | None = None
    region: Region | None = None
    span: Span = NOWHERE
    expr_span: Span = NOWHERE

    @property
    def type(self) -> Type:
        return self.expr.type


@dataclass(frozen=True, slots=True)
class State:
    """A state, its value before the first token (dims among its own, broadcast), and its update.

    `over` names the dim of `S[t] over J = ...`, else None. `expr` may lack dims of the state (it broadcasts).
    """

    name: str
    type: Type
    init: Expr
    expr: Expr
    over: str | None = None
    span: Span = NOWHERE
    expr_span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Output:
    """A result `[B, T, *expr.dims]`, in the order of the file."""

    name: str
    expr: Expr
    region: Region | None = None
    span: Span = NOWHERE
    expr_span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Eigenvalues:
    """`eigenvalues S in region`."""

    state: str
    region: Region
    span: Span = NOWHERE


@dataclass(frozen=True)
class Cell:
    """A checked cell. Tuples keep the order of the file; `params` holds buffers and learned maps too."""

    name: str
    doc: str
    dims: tuple[Dim, ...]
    consts: tuple[Const, ...]
    inputs: tuple[Input, ...]
    params: tuple[Param, ...]
    definitions: tuple[Definition, ...]
    states: tuple[State, ...]
    outputs: tuple[Output, ...]
    eigenvalues: tuple[Eigenvalues, ...]
    graph: Graph = field(repr=False, compare=False)
    text: str = field(default="", repr=False)
    """The source text of this cell alone, from `cell` to the line before the next one."""
    size_checks: tuple[tuple[Expr, Expr, Span], ...] = ()
    """Pairs of sizes that must be equal (`e[K -> J]`, `e[D -> H * P]`): at the defaults, which was checked, and again
    where a cell is made."""

    def definition(self, name: str) -> Definition:
        return next(d for d in self.definitions if d.name == name)

    def state(self, name: str) -> State:
        return next(s for s in self.states if s.name == name)

    def param(self, name: str) -> Param:
        return next(p for p in self.params if p.name == name)

    def input(self, name: str) -> Input:
        return next(i for i in self.inputs if i.name == name)

    def const(self, name: str) -> Const:
        return next(c for c in self.consts if c.name == name)

    def dim(self, name: str) -> Dim:
        return next(d for d in self.dims if d.name == name)


# --- making and walking ----------------------------------------------------------------------------------------------


class Graph:
    """Makes nodes and interns them. `order` is the `dim` order of the cell, the layout of all computed values."""

    def __init__(self, order: Iterable[str]) -> None:
        self.order: dict[str, int] = {d: i for i, d in enumerate(order)}
        self._nodes: dict[tuple[object, ...], Expr] = {}

    def _intern(self, node: E, *key: object) -> E:
        full = (type(node), node.type, *(id(k) if isinstance(k, Expr) else k for k in key))
        return cast(E, self._nodes.setdefault(full, node))

    def sort(self, dims: Iterable[str]) -> tuple[str, ...]:
        """Distinct dims in `dim` order."""
        return tuple(sorted(set(dims), key=self.order.__getitem__))

    def union(self, args: Iterable[Expr]) -> tuple[str, ...]:
        """Dims of a broadcast, in `dim` order."""
        return self.sort(d for a in args for d in a.dims)

    def lit(self, value: bool | int | float | complex) -> Lit:
        kind: Kind = "bool" if isinstance(value, bool) else "complex" if isinstance(value, complex) else "real"
        return self._intern(Lit(Type((), kind), value), type(value), repr(value))

    def ref(self, role: Role, name: str, type: Type = Type(), lag: int = 0) -> Ref:
        return self._intern(Ref(type, role, name, lag), role, name, lag)

    def apply(self, op: str, *args: Expr) -> Apply:
        if len(args) != OPS[op]:
            raise ValueError(f"{op} takes {OPS[op]} operands, not {len(args)}")
        return self._intern(Apply(Type(self.union(args), op_kind(op, args)), op, args), op, *args)

    def reduce(self, op: str, over: Iterable[str], arg: Expr) -> Reduce:
        over = self.sort(over)
        dims = self.sort(d for d in arg.dims if d not in over)
        kind: Kind = "complex" if arg.kind == "complex" else "real"
        return self._intern(Reduce(Type(dims, kind), op, over, arg), op, over, arg)

    def normalize(self, op: str, over: Iterable[str], arg: Expr, eps: float = 1e-6) -> Normalize:
        over = self.sort(over)
        kind: Kind = "complex" if arg.kind == "complex" else "real"
        return self._intern(Normalize(Type(self.sort(arg.dims), kind), op, over, arg, eps), op, over, arg, eps)

    def rename(self, arg: Expr, old: str, new: str) -> Rename:
        dims = self.sort(new if d == old else d for d in arg.dims)
        return self._intern(Rename(replace(arg.type, dims=dims), arg, old, new), arg, old, new)

    def split(self, arg: Expr, dim: str, into: tuple[str, ...]) -> Split:
        dims = self.sort([d for d in arg.dims if d != dim] + list(into))
        return self._intern(Split(replace(arg.type, dims=dims), arg, dim, into), arg, dim, into)

    def merge(self, arg: Expr, merged: tuple[str, ...], into: str) -> Merge:
        dims = self.sort([d for d in arg.dims if d not in merged] + [into])
        return self._intern(Merge(replace(arg.type, dims=dims), arg, merged, into), arg, merged, into)

    def linear(
        self,
        weight: str,
        arg: Expr,
        kept: tuple[str, ...],
        ins: tuple[str, ...],
        outs: tuple[str, ...],
        transposed: bool = False,
    ) -> Linear:
        dims = self.sort(kept + (ins if transposed else outs))
        kind: Kind = "complex" if arg.kind == "complex" else "real"
        node = Linear(Type(dims, kind), weight, arg, kept, ins, outs, transposed)
        return self._intern(node, weight, arg, kept, ins, outs, transposed)

    def conv(self, weight: str, history: str, width: int, arg: Expr) -> Conv:
        kind: Kind = "complex" if arg.kind == "complex" else "real"
        node = Conv(Type(self.sort(arg.dims), kind), weight, history, width, arg)
        return self._intern(node, weight, history, width, arg)

    def solve(self, row: str, col: str, matrix: Expr, rhs: Expr) -> Solve:
        dims = self.sort([d for d in matrix.dims if d not in (row, col)] + [d for d in rhs.dims if d != row] + [row])
        kind: Kind = "complex" if "complex" in (matrix.kind, rhs.kind) else "real"
        return self._intern(Solve(Type(dims, kind), row, col, matrix, rhs), row, col, matrix, rhs)

    def grad(self, loss: Expr, wrt: Ref) -> Grad:
        return self._intern(Grad(wrt.type, loss, wrt), loss, wrt)

    def draw(self, op: str, args: tuple[Expr, ...] = (), dims: tuple[str, ...] = ()) -> Draw:
        """`dims` is the declared shape; for arange the one dim it counts along."""
        return self._intern(Draw(Type(dims), op, args), op, *args)

    def rebuild(self, node: Expr, children: tuple[Expr, ...]) -> Expr:
        """The same operation on other operands; types follow from them."""
        if all(a is b for a, b in zip(node.children, children, strict=True)):
            return node
        match node:
            case Apply(op=op):
                return self.apply(op, *children)
            case Reduce(op=op, over=over):
                return self.reduce(op, over, children[0])
            case Normalize(op=op, over=over, eps=eps):
                return self.normalize(op, over, children[0], eps)
            case Rename(old=old, new=new):
                return self.rename(children[0], old, new)
            case Split(dim=dim, into=into):
                return self.split(children[0], dim, into)
            case Merge(merged=merged, into=into):
                return self.merge(children[0], merged, into)
            case Linear():
                return self.linear(node.weight, children[0], node.kept, node.ins, node.outs, node.transposed)
            case Conv():
                return self.conv(node.weight, node.history, node.width, children[0])
            case Solve(row=row, col=col):
                return self.solve(row, col, *children)
            case Grad():
                return self.grad(children[0], cast(Ref, children[1]))
            case Draw():
                return self.draw(node.op, children, node.dims)
            case _:
                raise TypeError(f"{type(node).__name__} has no operands")


def walk(*roots: Expr) -> Iterator[Expr]:
    """Every node once, operands before what uses them. Does not look inside definitions."""
    seen: set[Expr] = set()
    stack: list[tuple[Expr, bool]] = [(r, False) for r in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((c, False) for c in reversed(node.children) if c not in seen)
