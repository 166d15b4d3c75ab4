"""The values of expressions at one token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
)

from .values import BATCH, ELEMENTWISE, Value, contract, masked, merge, normalize, pointwise, reduce, solve, split

Tensors = Mapping[str, Tensor]
_TAP = "tap of a conv"


def dtype_of(kind: Kind, real: torch.dtype) -> torch.dtype:
    if kind == "bool":
        return torch.bool
    if kind == "real":
        return real
    return torch.complex128 if real == torch.float64 else torch.complex64


@dataclass(frozen=True)
class Setting:
    """What stays the same from token to token. `sizes` has the batch too; `real` is the dtype that is computed in."""

    cell: Cell
    sizes: Mapping[str, int]
    consts: Mapping[str, int | float]
    params: Tensors
    real: torch.dtype
    device: torch.device

    def dtype(self, kind: Kind) -> torch.dtype:
        return dtype_of(kind, self.real)

    def number(self, value: complex, kind: Kind = "real") -> Value:
        return Value(torch.tensor(value, dtype=self.dtype(kind), device=self.device), ())


class Token:
    """What can be read at one token: the inputs, and the state as it came in."""

    def __init__(self, setting: Setting, inputs: Tensors, state: Tensors) -> None:
        self.setting = setting
        self.inputs = inputs
        self.state = state
        self.states = {s.name: s for s in setting.cell.states}
        self.definitions = {d.name: d.expr for d in setting.cell.definitions}
        self.root = Scope(self, setting.sizes)
        self._updated: dict[str, Value] = {}

    def now(self, node: Expr) -> Value:
        """The value of an expression that stands in no branch."""
        return self.root.value(node)

    def updated(self, name: str) -> Value:
        """State `name` at this token."""
        if name not in self._updated:
            self._updated[name] = self._update(self.states[name])
        return self._updated[name]

    def _update(self, state: State) -> Value:
        dims, kind = (BATCH, *state.type.dims), self.setting.dtype(state.type.kind)
        if state.over is None:
            return self.root.value(state.expr).cast(kind).with_dims(dims, self.setting.sizes)
        running = Value(self.state[state.name], dims)
        for j in range(self.setting.sizes[state.over]):
            scope = self.root.holding(state.name, 1, running)
            running = scope.value(state.expr).select(state.over, j).cast(kind).with_dims(dims, self.setting.sizes)
        return running

    def read(self, ref: Ref) -> Value:
        """The value that a name has, of anything but a definition at `t`."""
        s = self.setting
        match ref.role:
            case "size":
                return s.number(s.sizes[ref.name])
            case "const":
                return s.number(s.consts[ref.name])
            case "param" | "buffer":
                return Value(s.params[ref.name], s.cell.param(ref.name).shape)
            case "input" if not ref.lag:
                return Value(self.inputs[ref.name].to(s.device, s.dtype(ref.kind)), (BATCH, *ref.dims))
            case "state" if not ref.lag:
                return self.updated(ref.name)
            case "state" if ref.lag == 1:
                return Value(self.state[ref.name], (BATCH, *ref.dims))
            case "state":
                return self.past(f"{ref.name}_past", ref.lag - 1, ref.dims)
            case _:
                return self.past(f"{ref.name}_past", ref.lag, ref.dims)

    def past(self, field: str, lag: int, dims: tuple[str, ...]) -> Value:
        """The entry of a history that lies `lag` tokens before the first thing that it does not hold."""
        return Value(self.state[field][:, lag - 1], (BATCH, *dims))


class Scope:
    """Values of expressions at one token, where leaves may be replaced.

    `masks`: the expressions stand in branches of `where`s. Every leaf is read with the dims of the masks, as if the
    expression were computed apart for each of their entries, and its gradient is exactly 0 where one is false.
    `held`: values of states, by name and lag, that stand in for the token's; for each, how many masks it knows of.
    """

    def __init__(
        self,
        token: Token,
        sizes: Mapping[str, int],
        masks: tuple[Value, ...] = (),
        held: Mapping[tuple[str, int], tuple[Value, int]] | None = None,
        depth: int = 0,
    ) -> None:
        self.token = token
        self.setting = token.setting
        self.sizes = sizes
        self.masks = masks
        self.held = held or {}
        self.depth = depth
        self._memo: dict[Expr, Value] = {}

    def value(self, node: Expr) -> Value:
        """The value of a node. It has the node's dims, and may have the batch and dims of masks."""
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

    def holding(self, state: str, lag: int, value: Value) -> Scope:
        held = {**self.held, (state, lag): (value, len(self.masks))}
        return Scope(self.token, self.sizes, self.masks, held, self.depth)

    def _branch(self, chosen: Value) -> Scope:
        if not torch.is_grad_enabled():
            return self
        return Scope(self.token, self.sizes, (*self.masks, chosen), self.held, self.depth)

    def _inside(self, node: Expr) -> tuple[Scope, Mapping[str, str]]:
        """The scope for the operands of `node`, and the new names of dims of masks there.

        Where the node contracts a dim of a mask, that dim of the operand has nothing to do with the mask's: the
        mask's gets a fresh name. A dim that the node merely renames, splits or merges is followed.
        """
        bound = _bound(node)
        in_masks = {d for m in self.masks for d in m.dims}
        fresh = {d: f"{d}'{self.depth}" for d in bound if d in in_masks}
        if not fresh and not any(d in in_masks for d in _made(node)):
            return self, {}
        sizes = {**self.sizes, **{new: self.sizes[d] for d, new in fresh.items()}}
        masks = tuple(_before(node, m.rename(fresh), sizes) for m in self.masks)
        return Scope(self.token, sizes, masks, self.held, self.depth + 1), fresh

    def _needs(self, node: Expr) -> Sequence[Expr]:
        """What is evaluated in this scope first."""
        match node:
            case Ref(role="def", lag=0):
                return (self.token.definitions[node.name],)
            case Ref(role="state", lag=0) if self is self.token.root and self.token.states[node.name].over is None:
                return (self.token.states[node.name].expr,)
            case Apply(op="where", args=args):
                return args[:1]
            case Apply():
                return node.args
            case Conv():
                return node.children
            case _:
                return node.children if not self.masks and not isinstance(node, Grad) else ()

    def _compute(self, node: Expr) -> Value:
        match node:
            case Lit(value=value):
                return self.setting.number(value, node.kind)
            case Ref():
                return self._ref(node)
            case Apply(op="where"):
                return self._where(node)
            case Apply():
                return self._apply(node)
            case Conv():
                return self._conv(node)
            case _:
                scope, fresh = self._inside(node)
                value = scope._structural(node)
                for dim, new in fresh.items():
                    if new in value.dims:
                        value = value.diagonal(dim, new) if dim in value.dims else value.rename({new: dim})
                return value

    def _structural(self, node: Expr) -> Value:
        """An operation on named dims, its operands evaluated in this scope."""
        match node:
            case Reduce(op=op, over=over, arg=arg):
                return reduce(op, over, self._number(arg), self.sizes)
            case Normalize(op=op, over=over, arg=arg, eps=eps):
                return normalize(op, over, self._number(arg), eps, self.sizes)
            case Rename(arg=arg, old=old, new=new):
                return self.value(arg).rename({old: new})
            case Split(arg=arg, dim=dim, into=into):
                return split(self.value(arg), dim, into, self.sizes)
            case Merge(arg=arg, merged=merged, into=into):
                return merge(self.value(arg), merged, into)
            case Linear():
                return self._linear(node)
            case Solve(row=row, col=col, matrix=matrix, rhs=rhs):
                return solve(row, col, self._number(matrix, node.kind), self._number(rhs, node.kind), self.sizes)
            case Grad():
                return self._grad(node)
            case _:
                raise TypeError(f"{type(node).__name__} has no value at a token")

    def _number(self, node: Expr, kind: Kind | None = None) -> Value:
        """An operand as a number: bools count as 0 and 1."""
        kind = kind or node.kind
        return self.value(node).cast(self.setting.dtype("real" if kind == "bool" else kind))

    def _masked(self, value: Value, known: int = 0) -> Value:
        for chosen in self.masks[known:]:
            value = masked(value, chosen)
        return value

    def _ref(self, ref: Ref) -> Value:
        if ref.role == "def" and not ref.lag:
            return self.value(self.token.definitions[ref.name])
        if ref.role == "state" and (ref.name, ref.lag) in self.held:
            return self._masked(*self.held[ref.name, ref.lag])
        return self._masked(self.token.read(ref))

    def _apply(self, node: Apply) -> Value:
        if node.op == "pow" and isinstance(exponent := node.args[1], Lit) and not isinstance(exponent.value, bool):
            base = self._number(node.args[0], node.kind)
            return Value(torch.pow(base.data, exponent.value), base.dims)
        if node.op in LOGIC:
            args = [self.value(a) for a in node.args]
        else:
            kind: Kind = "complex" if any(a.kind == "complex" for a in node.args) else "real"
            args = [self._number(a, kind) for a in node.args]
        return pointwise(ELEMENTWISE[node.op], *args).cast(self.setting.dtype(node.kind))

    def _where(self, node: Apply) -> Value:
        chosen, kind = self.value(node.args[0]), self.setting.dtype(node.kind)
        yes = self._branch(chosen).value(node.args[1]).cast(kind)
        no = self._branch(pointwise(torch.logical_not, chosen)).value(node.args[2]).cast(kind)
        return pointwise(torch.where, chosen, yes, no)

    def _linear(self, node: Linear) -> Value:
        # Inputs and outputs may share a dim, so the weight's output axes have names of their own.
        outs = tuple(f"-> {d}" for d in node.outs)
        weight = self._masked(Value(self.setting.params[node.weight], (*node.kept, *outs, *node.ins)))
        arg = self._number(node.arg, node.kind)
        return contract(weight.cast(arg.data.dtype), arg, node.ins).rename(dict(zip(outs, node.outs, strict=True)))

    def _conv(self, node: Conv) -> Value:
        param = self.setting.cell.param(node.weight)
        weight = self._masked(Value(self.setting.params[node.weight], (*param.shape, _TAP)))
        total = pointwise(torch.mul, weight.select(_TAP, node.width - 1), self._number(node.arg))
        for j in range(1, node.width):
            earlier = self._masked(self.token.past(node.history, j, node.arg.dims))
            term = pointwise(torch.mul, weight.select(_TAP, node.width - 1 - j), earlier)
            total = pointwise(torch.add, total, term)
        return total

    def _grad(self, node: Grad) -> Value:
        tracking = torch.is_grad_enabled()
        # One copy for every entry of the masks: the sum over copies of the loss must not mix them.
        own = self.value(node.wrt).with_dims((d for m in self.masks for d in m.dims), self.sizes)
        with torch.enable_grad():
            leaf = own.data.view_as(own.data) if own.data.requires_grad else own.data.detach().requires_grad_()
            loss = self.holding(node.wrt.name, node.wrt.lag, Value(leaf, own.dims)).value(node.loss)
            gradient = torch.zeros_like(leaf)
            if loss.data.requires_grad:
                (gradient,) = torch.autograd.grad(
                    loss.data.sum(), leaf, create_graph=True, allow_unused=True, materialize_grads=True
                )
        return Value(gradient if tracking else gradient.detach(), own.dims)


def _bound(node: Expr) -> tuple[str, ...]:
    """Dims that an operation contracts, or along which an entry of its result depends on many of its operand."""
    match node:
        case Reduce(over=over) | Normalize(over=over):
            return over
        case Rename(old=old):
            return (old,)
        case Split(dim=dim):
            return (dim,)
        case Merge(merged=merged):
            return merged
        case Linear(ins=ins, outs=outs):
            return *ins, *(d for d in outs if d not in ins)
        case Solve(row=row, col=col):
            return row, col
        case Grad(loss=loss, wrt=wrt):
            return tuple(dict.fromkeys((*loss.dims, *wrt.dims)))
        case _:
            return ()


def _made(node: Expr) -> tuple[str, ...]:
    """Dims of the result that are dims of the operand under other names."""
    match node:
        case Rename(new=new):
            return (new,)
        case Split(into=into):
            return into
        case Merge(into=into):
            return (into,)
        case _:
            return ()


def _before(node: Expr, mask: Value, sizes: Mapping[str, int]) -> Value:
    """A mask of the result of `node` as one of its operand."""
    if not any(d in mask.dims for d in _made(node)):
        return mask
    match node:
        case Rename(old=old, new=new):
            return mask.rename({new: old})
        case Split(dim=dim, into=into):
            return merge(mask.with_dims(into, sizes), into, dim)
        case Merge(merged=merged, into=into):
            return split(mask, into, merged, sizes)
        case _:
            return mask
