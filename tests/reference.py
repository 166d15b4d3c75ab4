"""What tests of the reference interpreter share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from backends.reference import Interpreter
from tests.cells import read
from tests.oracles import Tensors

exact = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def leaves(tensors: Tensors) -> Tensors:
    return {n: t.detach().clone().requires_grad_(t.is_floating_point() or t.is_complex()) for n, t in tensors.items()}


def weighed(results: list[Tensor]) -> Tensor:
    """A sum in which every number of the results has a weight of its own."""
    total = torch.zeros((), dtype=torch.float64)
    for i, r in enumerate(results):
        flat = (torch.view_as_real(r.resolve_conj()) if r.is_complex() else r).flatten()
        total = total + (flat * torch.cos(torch.arange(flat.numel(), dtype=torch.float64) + i)).sum()
    return total


def gradients(results: list[Tensor], *groups: Tensors) -> list[Tensor]:
    wrt = [t for group in groups for t in group.values() if t.requires_grad]
    finite = [torch.where(torch.isfinite(r), r, torch.zeros_like(r)) for r in results]
    loss = weighed(finite)
    if not loss.requires_grad:
        return [torch.zeros_like(t) for t in wrt]
    return list(torch.autograd.grad(loss, wrt, allow_unused=True, materialize_grads=True))


def run(text: str, params: Tensors | None = None, **inputs: Sequence[float]) -> Tensor:
    """The first output, without the batch, of inputs without it."""
    given = {n: torch.tensor([x], dtype=torch.float64) for n, x in inputs.items()}
    return Interpreter(read(text)).run(given, params)[0][0][0]


def near(actual: Tensor, expected: Sequence[float] | Sequence[Sequence[float]] | Tensor) -> None:
    exact(actual, torch.as_tensor(expected, dtype=actual.dtype))
