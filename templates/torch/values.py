"""Operations on values at any number of tokens: elementwise, over named dims, learned maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _sqrt(x: Tensor) -> Tensor:
    """Square root with gradient 0 at 0."""
    zero = x == 0
    return torch.where(zero, 0.0, torch.sqrt(torch.where(zero, 1.0, x)))


def _pair(x: Tensor | float, y: Tensor | float) -> tuple[Tensor, Tensor]:
    """Two operands as tensors; at least one is."""
    if isinstance(x, Tensor):
        return x, y if isinstance(y, Tensor) else torch.full_like(x, y)
    assert isinstance(y, Tensor)
    return torch.full_like(y, x), y


def _maximum(x: Tensor | float, y: Tensor | float) -> Tensor:
    return torch.maximum(*_pair(x, y))


def _minimum(x: Tensor | float, y: Tensor | float) -> Tensor:
    return torch.minimum(*_pair(x, y))


def _logaddexp(x: Tensor | float, y: Tensor | float) -> Tensor:
    """`log(exp(x) + exp(y))`; minus infinity, with gradient 0, where both are."""
    x, y = _pair(x, y)
    empty = (x == -math.inf) & (y == -math.inf)
    total = torch.logaddexp(torch.where(empty, 0.0, x), torch.where(empty, 0.0, y))
    return torch.where(empty, -math.inf, total)


def _logsumexp(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """`log(sum(exp(x)))`; minus infinity, with gradient 0, where all entries are."""
    empty = (
        (x == -math.inf).all(dim, keepdim=True) if isinstance(dim, int) else (x.amax(dim, keepdim=True) == -math.inf)
    )
    total = torch.logsumexp(torch.where(empty, 0.0, x), dim, keepdim=True)
    return torch.where(empty, -math.inf, total).squeeze(dim)


def _choose(condition: bool, x: Tensor | float, y: Tensor | float) -> Tensor:
    """`where` on a condition that is the same for all tokens; at least one operand is a tensor."""
    x, y = _pair(x, y)
    return torch.where(torch.full((), condition, device=x.device), x, y)


def _only(x: Tensor, selected: Tensor | bool) -> Tensor:
    """`x`, with a gradient of exactly 0 where it is not selected."""
    if not isinstance(selected, Tensor):
        return x if selected else x.detach()
    return torch.where(selected, x, x.detach())


def _like(x: Tensor | float, y: Tensor) -> Tensor:
    """`x` broadcast to the shape of `y`."""
    return torch.broadcast_tensors(x, y)[0] if isinstance(x, Tensor) else torch.full_like(y, x)


def _softmax(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    if isinstance(dim, int):
        return torch.softmax(x, dim)
    return torch.exp(x - torch.logsumexp(x, dim, keepdim=True))


def _l2norm(x: Tensor, dim: int | tuple[int, ...], eps: float) -> Tensor:
    return x * torch.rsqrt((x * torch.conj_physical(x)).real.sum(dim, keepdim=True) + eps)


def _rmsnorm(x: Tensor, dim: int | tuple[int, ...], eps: float) -> Tensor:
    return x * torch.rsqrt((x * torch.conj_physical(x)).real.mean(dim, keepdim=True) + eps)


def _layernorm(x: Tensor, dim: int | tuple[int, ...], eps: float) -> Tensor:
    return _rmsnorm(x - x.mean(dim, keepdim=True), dim, eps)


def _solve(matrix: Tensor, rhs: Tensor) -> Tensor:
    """The `y` with `matrix @ y = rhs`: [..., N, M] and [..., N] to [..., M]."""
    # Of equal rank, or PyTorch may take one right-hand side for a batch of them.
    lead = torch.broadcast_shapes(matrix.shape[:-2], rhs.shape[:-1])
    columns = rhs.expand(*lead, rhs.shape[-1]).unsqueeze(-1)
    return torch.linalg.solve(matrix.expand(*lead, *matrix.shape[-2:]), columns).squeeze(-1)


def _linear(x: Tensor, weight: Tensor, ins: int = 1) -> Tensor:
    """`x` [..., *ins] through `weight` [*outs, *ins] to [..., *outs]: one matrix product."""
    flat = F.linear(x.flatten(-ins), weight.flatten(-ins).flatten(0, -2).to(x.dtype))
    return flat.to(x.dtype).unflatten(-1, weight.shape[: weight.ndim - ins])


def _contract(equation: str, weight: Tensor, x: Tensor) -> Tensor:
    """A learned map with a matrix for each entry of the dims that it keeps."""
    return torch.einsum(equation, weight.to(x.dtype), x).to(x.dtype)


def _pack(kept: int, ins: int, *weights: Tensor) -> Tensor:
    """Weights [*kept, *outs, *ins] of maps of one value as one matrix [*kept, sum of outs, prod of ins]."""
    return torch.cat([w.flatten(-ins).flatten(kept, -2) for w in weights], -2)


def _project(x: Tensor, weight: Tensor, outs: Sequence[tuple[int, ...]], kept: int, ins: int) -> tuple[Tensor, ...]:
    """`x` [..., *kept, *ins] through packed weights: one product for several maps, [..., *kept, *outs] each."""
    x = x.flatten(-ins)
    weight = weight.to(x.dtype)
    if kept:
        # One product for each entry of the kept dims, with the tokens as its rows.
        weight = weight.flatten(0, kept - 1)
        rows = x.reshape(-1, weight.shape[0], x.shape[-1])
        y = torch.bmm(rows.transpose(0, 1), weight.mT).transpose(0, 1).reshape(*x.shape[:-1], weight.shape[1])
    else:
        y = F.linear(x, weight)
    y = y.to(x.dtype)
    if not torch.compiler.is_compiling():
        # Loops over tokens take it whole: nobody else has parts of it.
        y.parted_here = True  # type: ignore[attr-defined]
    parts = y.split([math.prod(o) for o in outs], -1)
    return tuple(p.unflatten(-1, o) for p, o in zip(parts, outs))
