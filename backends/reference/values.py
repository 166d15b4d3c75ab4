"""Tensors with named axes, and every operation of the IR on them, with the gradients that the language defines.

The order of axes inside a `Value` has no meaning; only `Value.to` fixes one. The batch is an axis like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

BATCH = ""
"""The name of the batch axis, which no program can write."""


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    data: Tensor
    dims: tuple[str, ...]

    def to(self, dims: Sequence[str], sizes: Mapping[str, int]) -> Tensor:
        """The tensor with exactly these axes; those it lacks are broadcast."""
        return self.view(dims).expand([-1 if d in self.dims else sizes[d] for d in dims])

    def view(self, dims: Sequence[str]) -> Tensor:
        """The tensor with these axes, of size 1 where it lacks them. `dims` must hold all of its own."""
        present = self.data.permute([self.dims.index(d) for d in dims if d in self.dims])
        return present[tuple(slice(None) if d in self.dims else None for d in dims)]

    def with_dims(self, dims: Iterable[str], sizes: Mapping[str, int]) -> Value:
        """Broadcast along those of `dims` that it lacks."""
        full = (*self.dims, *(d for d in dims if d not in self.dims))
        return self if full == self.dims else Value(self.to(full, sizes), full)

    def rename(self, names: Mapping[str, str]) -> Value:
        return Value(self.data, tuple(names.get(d, d) for d in self.dims))

    def select(self, dim: str, index: int) -> Value:
        """One entry of `dim`; unchanged without it."""
        if dim not in self.dims:
            return self
        return Value(self.data.select(self.dims.index(dim), index), tuple(d for d in self.dims if d != dim))

    def diagonal(self, first: str, second: str) -> Value:
        """The entries where two axes of equal size agree, as one axis, `first`."""
        i, j = self.dims.index(first), self.dims.index(second)
        rest = tuple(d for d in self.dims if d not in (first, second))
        return Value(self.data.diagonal(dim1=i, dim2=j), (*rest, first))

    def cast(self, dtype: torch.dtype) -> Value:
        return self if self.data.dtype == dtype else Value(self.data.to(dtype), self.dims)


def union(values: Iterable[Value]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(d for v in values for d in v.dims))


def pointwise(function: Callable[..., Tensor], *args: Value) -> Value:
    """An elementwise function of operands that broadcast by name."""
    dims = union(args)
    return Value(function(*(a.view(dims) for a in args)), dims)


def masked(value: Value, chosen: Value) -> Value:
    """The same numbers, on the union of the dims; the gradient is exactly 0 where not chosen."""
    if not value.data.requires_grad:
        return value
    return pointwise(_only, value, chosen)


# --- elementwise -----------------------------------------------------------------------------------------------------


def _sqrt(x: Tensor) -> Tensor:
    zero = x == 0
    return torch.where(zero, x.detach(), torch.sqrt(torch.where(zero, torch.ones_like(x), x)))


def _logaddexp(a: Tensor, b: Tensor) -> Tensor:
    nothing = torch.isneginf(a) & torch.isneginf(b)
    zero = torch.zeros((), dtype=a.dtype, device=a.device)
    sure = torch.logaddexp(torch.where(nothing, zero, a), torch.where(nothing, zero, b))
    return torch.where(nothing, torch.full_like(sure, -math.inf), sure)


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))  # torch's own gives up digits above 20


def _real(x: Tensor) -> Tensor:
    return x.real if x.is_complex() else x


def _imag(x: Tensor) -> Tensor:
    return x.imag if x.is_complex() else torch.zeros_like(x)


def _only(u: Tensor, c: Tensor) -> Tensor:
    return torch.where(c, u, u.detach())


ELEMENTWISE: Mapping[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "pow": torch.pow,
    "max": torch.maximum,  # splits ties equally, and so does `minimum`
    "min": torch.minimum,
    "logaddexp": _logaddexp,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
    "eq": torch.eq,
    "ne": torch.ne,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "neg": torch.neg,
    "abs": torch.abs,
    "sign": torch.sign,
    "sqrt": _sqrt,
    "rsqrt": torch.rsqrt,
    "square": torch.square,
    "exp": torch.exp,
    "log": torch.log,
    "log1p": torch.log1p,
    "expm1": torch.expm1,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "sigmoid": torch.sigmoid,
    "logsigmoid": F.logsigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "softplus": _softplus,
    "real": _real,
    "imag": _imag,
    "conj": torch.conj,
    "stop_gradient": torch.detach,
    "where": torch.where,
}


# --- over named dims -------------------------------------------------------------------------------------------------


def reduce(op: str, over: Sequence[str], arg: Value, sizes: Mapping[str, int]) -> Value:
    """An operand that lacks a reduced dim counts once for each of its entries."""
    axes = tuple(i for i, d in enumerate(arg.dims) if d in over)
    absent = math.prod(sizes[d] for d in over if d not in arg.dims)
    rest = tuple(d for d in arg.dims if d not in over)
    if op == "logsumexp":
        data = torch.logsumexp(arg.data, axes) if axes else arg.data
        return Value(data + math.log(absent), rest)
    if not axes:
        return Value(arg.data * absent if op == "sum" else arg.data, rest)
    if op == "sum":
        return Value(arg.data.sum(axes) * absent, rest)
    function = {"mean": torch.mean, "max": torch.amax, "min": torch.amin}[op]
    return Value(function(arg.data, axes), rest)


def normalize(op: str, over: Sequence[str], arg: Value, eps: float, sizes: Mapping[str, int]) -> Value:
    if op == "softmax":
        total = reduce("logsumexp", over, arg, sizes)
        return Value(torch.exp(pointwise(torch.sub, arg, total).data), arg.dims)
    if op == "layernorm":
        arg = pointwise(torch.sub, arg, reduce("mean", over, arg, sizes))
    squares = Value(_real(arg.data) ** 2 + _imag(arg.data) ** 2, arg.dims)
    size = reduce("sum" if op == "l2norm" else "mean", over, squares, sizes)
    return pointwise(torch.mul, arg, Value(torch.rsqrt(size.data + eps), size.dims))


def split(arg: Value, dim: str, into: Sequence[str], sizes: Mapping[str, int]) -> Value:
    i = arg.dims.index(dim)
    shape = [*arg.data.shape[:i], *(sizes[d] for d in into), *arg.data.shape[i + 1 :]]
    return Value(arg.data.reshape(shape), (*arg.dims[:i], *into, *arg.dims[i + 1 :]))


def merge(arg: Value, merged: Sequence[str], into: str) -> Value:
    rest = tuple(d for d in arg.dims if d not in merged)
    return Value(arg.view((*rest, *merged)).flatten(len(rest)), (*rest, into))


def contract(a: Value, b: Value, over: Sequence[str]) -> Value:
    """`sum[over](a * b)`, where both have all of `over`."""
    axes = {d: i for i, d in enumerate(union((a, b)))}
    rest = tuple(d for d in axes if d not in over)
    data = torch.einsum(a.data, [axes[d] for d in a.dims], b.data, [axes[d] for d in b.dims], [axes[d] for d in rest])
    return Value(data, rest)


def solve(row: str, col: str, matrix: Value, rhs: Value, sizes: Mapping[str, int]) -> Value:
    matrix, rhs = matrix.with_dims((row, col), sizes), rhs.with_dims((row,), sizes)
    rest = tuple(d for d in union((matrix, rhs)) if d not in (row, col))
    a, b = matrix.view((*rest, row, col)), rhs.view((*rest, row)).unsqueeze(-1)
    y = cast(Tensor, torch.linalg.solve(a, b))  # pyright: ignore[reportUnknownMemberType]
    return Value(y.squeeze(-1), (*rest, row))
