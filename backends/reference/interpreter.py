"""Runs a checked cell step by step, exactly as written. Autograd flows through everything.

Goals: to be obviously right, in any float dtype. Non-goals: speed, memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce as fold
from itertools import pairwise

import torch
from torch import Tensor

from rnnc.fields import StateField, state_fields
from rnnc.ir import (
    LOGIC,
    Apply,
    Cell,
    Conv,
    Expr,
    Grad,
    Kind,
    Linear,
    Lit,
    Merge,
    Normalize,
    Reduce,
    Ref,
    Rename,
    Solve,
    Split,
    State,
    walk,
)

from .initial import Number, init_params, resolve_consts, resolve_dims
from .values import (
    BATCH,
    ELEMENTWISE,
    Value,
    contract,
    masked,
    merge,
    normalize,
    pointwise,
    reduce,
    solve,
    split,
)

Tensors = Mapping[str, Tensor]
_TAP = "tap of a conv"


class Interpreter:
    """A cell at given sizes.

    `dtype` is what everything is computed and returned in. With None the language's rule holds: float32, or float64 if
    any input is; outputs take the inputs' promoted dtype, states keep the computing one.
    """

    def __init__(
        self,
        cell: Cell,
        dims: Mapping[str, int] | None = None,
        consts: Mapping[str, Number] | None = None,
        dtype: torch.dtype | None = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        self.cell = cell
        self.sizes = resolve_dims(cell, dims or {})
        self.consts = resolve_consts(cell, consts or {})
        self.dtype = dtype
        self.device = torch.device(device)
        self.fields = state_fields(cell)
        roots = [x.expr for x in (*cell.definitions, *cell.states, *cell.outputs)]
        self.convs = {n.history: n for n in walk(*roots) if isinstance(n, Conv)}
        self._bound: dict[Expr, frozenset[str]] = {}

    def init_params(self, seed: int | torch.Generator = 0) -> dict[str, Tensor]:
        """Params, buffers and learned maps as declared, drawn in file order."""
        generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        drawn = init_params(self.cell, self.sizes, self.consts, generator)
        real = self.dtype or torch.float32
        return {p.name: drawn[p.name].to(self.device, dtype_of(p.kind, real)) for p in self.cell.params}

    def initial_state(self, params: Tensors, batch: int) -> dict[str, Tensor]:
        """The state before the first token."""
        return _Run(self, params, batch, self.dtype or torch.float32).initial_state()

    def run(
        self,
        inputs: Tensors | Sequence[Tensor],
        params: Tensors | None = None,
        state: Tensors | Sequence[Tensor] | None = None,
        cu_seqlens: Tensor | Sequence[int] | None = None,
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Outputs `[B, T, *dims]` and the state after the last token, by field.

        With `cu_seqlens` inputs are `[1, total, ...]` and states `[N, ...]`: each sequence starts afresh from its own
        initial state; an empty one returns it.
        """
        named = self._named(inputs)
        params = params or {}
        if state is not None and not isinstance(state, Mapping):
            state = dict(zip((f.name for f in self.fields), state, strict=True))
        batch, length = next(iter(named.values())).shape[:2]
        if cu_seqlens is not None:
            return self._packed(named, params, state, [int(c) for c in cu_seqlens])
        real, result = self._dtypes(named)
        tensors = [*named.values(), *params.values(), *(state or {}).values()]
        tracking = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        with torch.set_grad_enabled(tracking):
            run = _Run(self, params, batch, real)
            now = run.initial_state() if state is None else run.incoming(state)
            steps: list[list[Tensor]] = []
            for t in range(length):
                outputs, now = run.step({n: x[:, t] for n, x in named.items()}, now)
                steps.append(outputs)
            results: list[Tensor] = []
            for i, o in enumerate(self.cell.outputs):
                empty = torch.zeros([batch, 0, *(self.sizes[d] for d in o.expr.dims)], device=self.device)
                stacked = torch.stack([s[i] for s in steps], 1) if steps else empty
                results.append(stacked.to(dtype_of(o.expr.kind, result)))
        return tuple(results), now

    def _packed(
        self, inputs: Tensors, params: Tensors, state: Tensors | None, ends: list[int]
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        total = next(iter(inputs.values())).shape[1]
        if ends[0] != 0 or ends[-1] != total or ends != sorted(ends):
            raise ValueError(f"cu_seqlens must rise from 0 to {total}, not {ends}")
        nothing = {n: x[:, :0] for n, x in inputs.items()}
        outputs, finals = self.run(nothing, params)
        pieces, states = [outputs], [{n: s[:0] for n, s in finals.items()}]
        for i, (start, end) in enumerate(pairwise(ends)):
            own = None if state is None else {n: s[i : i + 1] for n, s in state.items()}
            outputs, final = self.run({n: x[:, start:end] for n, x in inputs.items()}, params, own)
            pieces.append(outputs)
            states.append(final)
        whole = tuple(torch.cat(parts, 1) for parts in zip(*pieces, strict=True))
        return whole, {n: torch.cat([s[n] for s in states]) for n in finals}

    def _named(self, inputs: Tensors | Sequence[Tensor]) -> dict[str, Tensor]:
        declared = self.cell.inputs
        if not isinstance(inputs, Mapping):
            inputs = dict(zip((i.name for i in declared), inputs, strict=True))
        named = {i.name: inputs[i.name] for i in declared}
        lead = next(iter(named.values())).shape[:2]
        for i in declared:
            want = (*lead, *(self.sizes[d] for d in i.type.dims))
            if tuple(named[i.name].shape) != want:
                raise ValueError(f"input {i.name} is {tuple(named[i.name].shape)}, not {want}")
        return named

    def _dtypes(self, inputs: Tensors) -> tuple[torch.dtype, torch.dtype]:
        """The real dtypes that are computed in and returned."""
        if self.dtype is not None:
            return self.dtype, self.dtype
        given = [x.dtype.to_real() for x in inputs.values() if x.is_floating_point() or x.is_complex()]
        result = fold(torch.promote_types, given) if given else torch.float32
        return (torch.float64 if result == torch.float64 else torch.float32), result

    def bound_dims(self, node: Expr) -> frozenset[str]:
        """The dims along which a value is not computed entry by entry, definitions looked into."""
        if node not in self._bound:
            found: set[str] = set()
            seen: set[Expr] = set()
            roots = [node]
            while roots:
                for n in walk(roots.pop()):
                    if n in seen:
                        continue
                    seen.add(n)
                    found.update(_binds(n))
                    if isinstance(n, Ref) and n.role == "def" and not n.lag:
                        roots.append(self.cell.definition(n.name).expr)
            self._bound[node] = frozenset(found)
        return self._bound[node]


def dtype_of(kind: Kind, real: torch.dtype) -> torch.dtype:
    if kind == "bool":
        return torch.bool
    if kind == "real":
        return real
    return torch.complex128 if real == torch.float64 else torch.complex64


def _binds(node: Expr) -> tuple[str, ...]:
    match node:
        case Reduce(over=over) | Normalize(over=over):
            return over
        case Rename(old=old, new=new):
            return old, new
        case Split(dim=dim, into=into):
            return dim, *into
        case Merge(merged=merged, into=into):
            return *merged, into
        case Linear(ins=ins, outs=outs):
            return *ins, *outs
        case Solve(row=row, col=col):
            return row, col
        case Grad(loss=loss, wrt=wrt):
            return tuple(d for d in loss.dims if d not in wrt.dims)
        case _:
            return ()


class _Run:
    """What stays the same from token to token."""

    def __init__(self, interpreter: Interpreter, params: Tensors, batch: int, real: torch.dtype) -> None:
        self.interpreter = interpreter
        self.cell = interpreter.cell
        self.consts = interpreter.consts
        self.sizes = {BATCH: batch, **interpreter.sizes}
        self.device = interpreter.device
        self.real = real
        self.params = {p.name: params[p.name].to(self.device, self.dtype(p.kind)) for p in self.cell.params}

    def dtype(self, kind: Kind) -> torch.dtype:
        return dtype_of(kind, self.real)

    def number(self, value: complex, kind: Kind = "real") -> Value:
        return Value(torch.tensor(value, dtype=self.dtype(kind), device=self.device), ())

    def initial_state(self) -> dict[str, Tensor]:
        scope = _Token(self, {}, {}).root
        state: dict[str, Tensor] = {}
        for f in self.interpreter.fields:
            dims = (BATCH, *f.dims)
            first = self.number(0) if f.init is None else scope.value(f.init)
            value = first.cast(self.dtype(f.kind)).to(dims, self.sizes)
            state[f.name] = value if f.length is None else torch.stack([value] * f.length, 1)
        return state

    def incoming(self, state: Tensors) -> dict[str, Tensor]:
        """A state that was passed in, checked and in the computing dtype."""
        result: dict[str, Tensor] = {}
        for f in self.interpreter.fields:
            history = () if f.length is None else (f.length,)
            want = (self.sizes[BATCH], *history, *(self.sizes[d] for d in f.dims))
            if tuple(state[f.name].shape) != want:
                raise ValueError(f"state {f.name} is {tuple(state[f.name].shape)}, not {want}")
            result[f.name] = state[f.name].to(self.device, self.dtype(f.kind))
        return result

    def step(self, inputs: Tensors, state: Tensors) -> tuple[list[Tensor], dict[str, Tensor]]:
        token = _Token(self, inputs, state)

        def layout(value: Value, kind: Kind, dims: Sequence[str]) -> Tensor:
            return value.cast(self.dtype(kind)).to((BATCH, *dims), self.sizes)

        def newest(f: StateField) -> Tensor:
            if f.of in token.states:
                return state[f.of]
            if f.of in inputs:
                return layout(token.input(f.of), f.kind, f.dims)
            recorded = self.interpreter.convs[f.of].arg if f.role == "conv" else self.cell.definition(f.of).expr
            return layout(token.root.value(recorded), f.kind, f.dims)

        outputs = [layout(token.root.value(o.expr), o.expr.kind, o.expr.dims) for o in self.cell.outputs]
        after: dict[str, Tensor] = {}
        for f in self.interpreter.fields:
            if f.role == "state":
                after[f.name] = layout(token.updated(f.of), f.kind, f.dims)
            else:
                after[f.name] = torch.cat([newest(f).unsqueeze(1), state[f.name][:, :-1]], 1)
        return outputs, after


class _Token:
    """What can be read at one token: everything but definitions."""

    def __init__(self, run: _Run, inputs: Tensors, state: Tensors) -> None:
        self.run = run
        self.inputs = inputs
        self.state = state
        self.states = {s.name: s for s in run.cell.states}
        self.root = _Scope(self, run.sizes)
        self._updated: dict[str, Value] = {}

    def input(self, name: str) -> Value:
        declared = self.run.cell.input(name).type
        data = self.inputs[name].to(self.run.device, self.run.dtype(declared.kind))
        return Value(data, (BATCH, *declared.dims))

    def history(self, name: str, index: int, dims: tuple[str, ...]) -> Value:
        return Value(self.state[name][:, index], (BATCH, *dims))

    def updated(self, name: str) -> Value:
        """State `name` at this token."""
        if name not in self._updated:
            self._updated[name] = self._update(self.states[name])
        return self._updated[name]

    def _update(self, state: State) -> Value:
        dims, kind = (BATCH, *state.type.dims), self.run.dtype(state.type.kind)
        if state.over is None:
            return self.root.value(state.expr).cast(kind).with_dims(dims, self.run.sizes)
        running = self.before(state.name)
        for j in range(self.run.sizes[state.over]):
            scope = self.root.holding((state.name, 1), running)
            running = scope.value(state.expr).select(state.over, j).cast(kind).with_dims(dims, self.run.sizes)
        return running

    def read(self, ref: Ref) -> Value:
        match ref.role:
            case "size":
                return self.run.number(self.run.sizes[ref.name])
            case "const":
                return self.run.number(self.run.consts[ref.name])
            case "param" | "buffer":
                return Value(self.run.params[ref.name], self.run.cell.param(ref.name).shape)
            case "input" if not ref.lag:
                return self.input(ref.name)
            case "state" if not ref.lag:
                return self.updated(ref.name)
            case "state" if ref.lag == 1:
                return self.before(ref.name)
            case "state":
                return self.history(f"{ref.name}_past", ref.lag - 2, ref.dims)
            case _:
                return self.history(f"{ref.name}_past", ref.lag - 1, ref.dims)

    def before(self, name: str) -> Value:
        """State `name` as it came in."""
        return Value(self.state[name], (BATCH, *self.states[name].type.dims))


class _Scope:
    """Values of expressions at one token, where some leaves are replaced.

    `masks`: the expressions stand in a branch of `where`s; the gradient of each leaf is exactly 0 where a mask is
    false. `held`: values of states by name and lag that stand in for those of the token.
    """

    def __init__(
        self,
        token: _Token,
        sizes: Mapping[str, int],
        masks: tuple[Value, ...] = (),
        held: Mapping[tuple[str, int], Value] | None = None,
    ) -> None:
        self.token = token
        self.run = token.run
        self.sizes = sizes
        self.masks = masks
        self.held = held or {}
        self._memo: dict[Expr, Value] = {}

    def value(self, node: Expr) -> Value:
        """The value of a node, its dims a superset of the node's (masks and the batch are the rest)."""
        stack = [node]
        while stack:
            top = stack[-1]
            missing = [] if top in self._memo else [n for n in self._needs(top) if n not in self._memo]
            if missing:
                stack += missing
                continue
            if top not in self._memo:
                self._memo[top] = self._compute(top).with_dims(top.dims, self.sizes)
            stack.pop()
        return self._memo[node]

    def branch(self, chosen: Value, sizes: Mapping[str, int]) -> _Scope:
        held = {key: masked(v, chosen) for key, v in self.held.items()}
        return _Scope(self.token, sizes, (*self.masks, chosen), held)

    def holding(self, key: tuple[str, int], value: Value) -> _Scope:
        return _Scope(self.token, self.sizes, self.masks, {**self.held, key: value})

    def _needs(self, node: Expr) -> Sequence[Expr]:
        """What is evaluated in this scope first."""
        match node:
            case Ref(role="def", lag=0):
                return (self.run.cell.definition(node.name).expr,)
            case Ref(role="state", lag=0) if self is self.token.root and self.token.states[node.name].over is None:
                return (self.token.states[node.name].expr,)
            case Apply(op="where", args=args):
                return args[:1]
            case Grad(wrt=wrt):
                return (wrt,)
            case _:
                return node.children

    def _masked(self, value: Value) -> Value:
        for chosen in self.masks:
            value = masked(value, chosen)
        return value

    def _cast(self, node: Expr, kind: Kind | None = None) -> Value:
        """An operand as a number: bools count as 0 and 1."""
        kind = kind or node.kind
        return self._memo[node].cast(self.run.dtype("real" if kind == "bool" else kind))

    def _compute(self, node: Expr) -> Value:
        match node:
            case Lit(value=value):
                return self.run.number(value, node.kind)
            case Ref():
                return self._ref(node)
            case Apply(op="where"):
                return self._where(node)
            case Apply():
                return self._apply(node)
            case Reduce(op=op, over=over, arg=arg):
                return reduce(op, over, self._cast(arg), self.sizes)
            case Normalize(op=op, over=over, arg=arg, eps=eps):
                return normalize(op, over, self._cast(arg), eps, self.sizes)
            case Rename(arg=arg, old=old, new=new):
                return self._memo[arg].rename({old: new})
            case Split(arg=arg, dim=dim, into=into):
                return split(self._memo[arg], dim, into, self.sizes)
            case Merge(arg=arg, merged=merged, into=into):
                return merge(self._memo[arg], merged, into)
            case Linear():
                return self._linear(node)
            case Conv():
                return self._conv(node)
            case Solve(row=row, col=col, matrix=matrix, rhs=rhs):
                return solve(row, col, self._cast(matrix, node.kind), self._cast(rhs, node.kind), self.sizes)
            case Grad():
                return self._grad(node)
            case _:
                raise TypeError(f"{type(node).__name__} has no value at a token")

    def _ref(self, ref: Ref) -> Value:
        if ref.role == "def" and not ref.lag:
            return self._memo[self.run.cell.definition(ref.name).expr]
        if ref.role == "state" and (ref.name, ref.lag) in self.held:
            return self.held[ref.name, ref.lag]
        return self._masked(self.token.read(ref))

    def _apply(self, node: Apply) -> Value:
        if node.op == "pow" and isinstance(exponent := node.args[1], Lit) and not isinstance(exponent.value, bool):
            base = self._cast(node.args[0], node.kind)
            return Value(torch.pow(base.data, exponent.value), base.dims)
        if node.op in LOGIC:
            args = [self._memo[a] for a in node.args]
        else:
            kind: Kind = "complex" if any(a.kind == "complex" for a in node.args) else "real"
            args = [self._cast(a, kind) for a in node.args]
        return pointwise(ELEMENTWISE[node.op], *args).cast(self.run.dtype(node.kind))

    def _where(self, node: Apply) -> Value:
        """Each branch is computed apart for every entry of the condition, so that its gradient can be cut off there.

        A dim of the condition that a branch contracts or renames becomes an axis under a fresh name, and the diagonal
        is taken in the end; along the others a branch is computed entry by entry anyhow.
        """
        interpreter, chosen = self.run.interpreter, self._memo[node.args[0]]
        fresh = {
            d: f"{d}'{len(self.masks)}"
            for d in chosen.dims
            if any(d in interpreter.bound_dims(branch) for branch in node.args[1:])
        }
        chosen = chosen.rename(fresh)
        sizes = {**self.sizes, **{new: self.sizes[d] for d, new in fresh.items()}}
        values: list[Value] = []
        for branch, where in zip(node.args[1:], (chosen, pointwise(torch.logical_not, chosen)), strict=True):
            value = self.branch(where, sizes).value(branch).cast(self.run.dtype(node.kind))
            for d, new in fresh.items():
                if new in value.dims:
                    value = value.diagonal(d, new) if d in value.dims else value.rename({new: d})
            values.append(value)
        return pointwise(torch.where, self._memo[node.args[0]], *values)

    def _linear(self, node: Linear) -> Value:
        # Inputs and outputs may share a dim, so the weight's output axes have names of their own.
        outputs = tuple(f"-> {d}" for d in node.outs)
        weight = Value(self.run.params[node.weight], (*node.kept, *outputs, *node.ins))
        arg = self._cast(node.arg, node.kind)
        if node.transposed:
            arg = arg.rename(dict(zip(node.outs, outputs, strict=True)))
        result = contract(self._masked(weight).cast(arg.data.dtype), arg, outputs if node.transposed else node.ins)
        return result.rename(dict(zip(outputs, node.outs, strict=True)))

    def _conv(self, node: Conv) -> Value:
        weight = self._masked(Value(self.run.params[node.weight], (*self.run.cell.param(node.weight).shape, _TAP)))
        newest = self._cast(node.arg)
        total = pointwise(torch.mul, weight.select(_TAP, node.width - 1), newest)
        for j in range(1, node.width):
            earlier = self._masked(self.token.history(node.history, j - 1, node.arg.dims))
            term = pointwise(torch.mul, weight.select(_TAP, node.width - 1 - j), earlier)
            total = pointwise(torch.add, total, term)
        return total

    def _grad(self, node: Grad) -> Value:
        tracking = torch.is_grad_enabled()
        # One copy for every entry of the masks: the sum over copies of the loss must not mix them.
        own = self._memo[node.wrt].with_dims((d for m in self.masks for d in m.dims), self.sizes)
        with torch.enable_grad():
            leaf = own.data.view_as(own.data) if own.data.requires_grad else own.data.detach().requires_grad_()
            scope = self.holding((node.wrt.name, node.wrt.lag), Value(leaf, own.dims))
            loss = scope.value(node.loss)
            gradient = torch.zeros_like(leaf)
            if loss.data.requires_grad:
                (gradient,) = torch.autograd.grad(
                    loss.data.sum(), leaf, create_graph=True, allow_unused=True, materialize_grads=True
                )
        return Value(gradient if tracking else gradient.detach(), own.dims)
