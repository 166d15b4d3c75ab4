"""What an oracle is, how inputs for it are drawn, and what several of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = dict[str, Tensor]
Result = tuple[tuple[Tensor, ...], Tensors]
Oracle = Callable[[Tensors, Tensors, Tensors | None], Result]


@dataclass(frozen=True)
class Case:
    """A program's oracle, small sizes for it, and how its inputs are drawn: `name -> (dims, kind)`.

    Kinds: "real" (normal), "unit" in [0, 1], "positive" in (0, inf), "negative" in (-inf, 0), "bool".
    """

    file: str
    oracle: Oracle
    dims: dict[str, int]
    inputs: dict[str, tuple[str, str]]

    def draw(self, batch: int, length: int, seed: int = 0, sizes: dict[str, int] | None = None) -> Tensors:
        """Inputs in float64."""
        generator = torch.Generator().manual_seed(seed)
        drawn: Tensors = {}
        for name, (dims, kind) in self.inputs.items():
            shape = [batch, length, *((sizes or self.dims)[d] for d in dims)]
            normal = torch.randn(shape, generator=generator, dtype=torch.float64)
            drawn[name] = {
                "real": lambda x: x,
                "unit": torch.sigmoid,
                "positive": lambda x: F.softplus(x) + 0.1,
                "negative": lambda x: -F.softplus(x),
                "bool": lambda x: x > 0.7,
            }[kind](normal)
        return drawn


def to_heads(weight: Tensor, x: Tensor) -> Tensor:
    """`[H, K, D]` on `[B, D]`."""
    return torch.einsum("hkd,bd->bhk", weight, x)


def blocks(weight: Tensor, h: Tensor) -> Tensor:
    """`[H, P, P]` on `[B, H, P]`, a matrix a head."""
    return torch.einsum("hpq,bhq->bhp", weight, h)


def l2norm(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def rmsnorm(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)


def conv(weight: Tensor, window: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """One step of a causal depthwise convolution; `window` holds the inputs before `x`, newest first."""
    y = weight[..., -1] * x
    for j in range(window.shape[1]):
        y = y + weight[..., -2 - j] * window[:, j]
    return y, shifted(window, x)


def shifted(past: Tensor, x: Tensor) -> Tensor:
    """A history one token later."""
    return torch.cat([x[:, None], past[:, :-1]], 1)


def stack(ys: list[Tensor]) -> Tensor:
    return torch.stack(ys, 1)
