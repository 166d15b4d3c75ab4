"""Mamba's selective scan from its pre-activations.

mamba-ssm is no wheel that could be carried: `gpu.sh` compiles its scan (`selective_scan_cuda`) from its own sources
where they are given, see there. fla has no selective scan. Without mamba-ssm there is left what one writes in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from harness import CELLS, Case, Peer, both_layouts, main
from peers import triton_scan
from torch import Tensor


def mamba_ssm() -> Callable[..., Tensor]:
    """mamba-ssm's CUDA scan, called as its `selective_scan_fn` does, parameters in float32."""
    library: Any = import_module("selective_scan_cuda")

    class Scan(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, bias: Tensor
        ) -> Any:
            b, c = b[:, None], c[:, None]
            out, x, *_ = library.fwd(u, dt, a, b, c, skip, None, bias, True)
            ctx.save_for_backward(u, dt, a, b, c, skip, bias, x)
            return out

        @staticmethod
        def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
            u, dt, a, b, c, skip, bias, x = ctx.saved_tensors
            grad = grad_outputs[0].contiguous()
            found = library.bwd(u, dt, a, b, c, skip, None, bias, grad, x, None, None, True, False)
            du, ddt, da, db, dc, dskip, dbias = found[:7]
            return du, ddt, da, db[:, 0], dc[:, 0], dskip, dbias

    def call(u: Tensor, dt: Tensor, b: Tensor, c: Tensor, a_log: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
        return Scan.apply(u, dt, -a_log.float().exp(), b, c, skip.float(), bias.float())  # type: ignore[no-any-return]

    return call


def written_out() -> Callable[..., Tensor]:
    """The states of all tokens in memory, by accelerated-scan."""
    scan = triton_scan()

    def call(u: Tensor, dt: Tensor, b: Tensor, c: Tensor, a_log: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
        delta = F.softplus(dt + bias[:, None])
        decay = torch.exp(-delta[:, :, None] * a_log.exp()[:, :, None])
        fed = (delta * u)[:, :, None] * b[:, None]
        states = scan(decay.flatten(1, 2), fed.flatten(1, 2)).view_as(decay)
        return (c[:, None] * states).sum(2) + skip[:, None] * u

    return call


def loop() -> Callable[..., Tensor]:
    """One token after the other."""

    def call(u: Tensor, dt: Tensor, b: Tensor, c: Tensor, a_log: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
        delta, a = F.softplus(dt + bias), -a_log.exp()
        state, outputs = torch.zeros_like(delta[:, 0, :, None] * a), []
        for t in range(u.shape[1]):
            fed = (delta[:, t] * u[:, t])[:, :, None] * b[:, t, None]
            state = torch.exp(delta[:, t, :, None] * a) * state + fed
            outputs.append((state * c[:, t, None]).sum(-1))
        return torch.stack(outputs, 1) + skip * u

    return call


FUSED = both_layouts("mamba-ssm (CUDA)", mamba_ssm, 4)
WRITTEN = both_layouts("accelerated-scan (Triton), states in memory", written_out, 4)[:1]
PEERS = [*FUSED, *WRITTEN, Peer("PyTorch, token by token", loop)]


def shapes(quick: bool) -> Sequence[tuple[Case, Sequence[Peer]]]:
    cell = CELLS / "mamba.rnn"
    if quick:
        return [(Case(cell, 2, 64, {"E": 16, "N": 4}, torch.float32), PEERS)]
    sizes = {"E": 2048, "N": 16}
    return [
        (Case(cell, 8, 2048, sizes), PEERS),
        (Case(cell, 1, 16384, sizes), [*FUSED, *WRITTEN]),
        (Case(cell, 8, 2048, sizes, torch.float32), FUSED),
    ]


if __name__ == "__main__":
    main("Mamba", shapes)
