"""LRU's recurrence, complex, with its learned and fixed decay."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from harness import CELLS, Case, Peer, both_layouts, main
from peers import complex_scan
from torch import Tensor


def decay(nu: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    return torch.exp(torch.complex(-nu.exp(), theta.exp())), (1 - (-2 * nu.exp()).exp()).sqrt()


def scan() -> Callable[..., Tensor]:
    run = complex_scan()

    def call(u: Tensor, nu: Tensor, theta: Tensor) -> Tensor:
        λ, g = decay(nu, theta)
        return run(λ[:, None].expand_as(u).contiguous(), g[:, None] * u)

    return call


def convolution() -> Callable[..., Tensor]:
    """The decay is the same at every token, so it is a convolution: by FFT, as state-space models do."""

    def call(u: Tensor, nu: Tensor, theta: Tensor) -> Tensor:
        steps = u.shape[-1]
        times = torch.arange(steps, device=u.device)
        kernel = torch.exp(torch.complex(-nu.exp(), theta.exp())[:, None] * times)
        g = (1 - (-2 * nu.exp()).exp()).sqrt()[:, None]
        spectrum = torch.fft.fft(g * u, 2 * steps) * torch.fft.fft(kernel, 2 * steps)
        return torch.fft.ifft(spectrum)[..., :steps]

    return call


PEERS = [
    *both_layouts("accelerated-scan (Triton, complex)", scan, 1),
    *both_layouts("torch.fft convolution", lambda: convolution(), 1)[:1],
]


def shapes(quick: bool) -> Sequence[tuple[Case, Sequence[Peer]]]:
    cell = CELLS / "lru.rnn"
    if quick:
        return [(Case(cell, 2, 64, {"N": 16}, torch.float32), PEERS)]
    return [
        (Case(cell, 8, 4096, {"N": 1024}, torch.float32), PEERS),
        (Case(cell, 1, 65536, {"N": 1024}, torch.float32), PEERS),
    ]


if __name__ == "__main__":
    main("LRU", shapes)
