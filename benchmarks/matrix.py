"""Matrix states in chunks of tokens, on fla's six shapes, against the kernels of fla, mlstm-kernels and mamba-ssm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from harness import CELLS, Case, Peer, main
from torch import Tensor

FLA = ((1, 8192, 96, 128), (2, 16384, 16, 128), (4, 2048, 16, 128), (4, 4096, 64, 128), (8, 2048, 32, 256))
SHAPES = (*FLA, (8, 1024, 8, 64))
"""fla's own: B, T, H, and D of keys and values."""


def chunked(module: str, name: str) -> Callable[[], Callable[..., Tensor]]:
    """A function of fla that takes q, k, v and log-decays."""

    def build() -> Callable[..., Tensor]:
        function: Any = getattr(import_module(module), name)
        # Its backward refuses Hopper with Triton before 3.7.1; at a head of 128 numbers are right, and checked here.
        chunk_o: Any = import_module("fla.ops.common.chunk_o")
        chunk_o.TRITON_ABOVE_3_7_1 = True
        return lambda q, k, v, g: function(q, k, v, g, scale=1.0)[0]

    return build


def mlstm() -> Callable[..., Tensor]:
    """mlstm-kernels': heads before tokens. Its backward leaves the normaliser's gradient out, and so does less work."""
    function: Any = import_module("mlstm_kernels.torch.chunkwise.triton_xl_chunk").mlstm_chunkwise__xl_chunk

    def call(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
        given = (x.transpose(1, 2).contiguous() for x in (q, k, v, i, f))
        # At its default number of warps it is wrong in 16 bits.
        return function(*given, autocast_kernel_dtype=q.dtype, num_warps_intra=8).transpose(1, 2)

    return call


def ssd() -> Callable[..., Tensor]:
    """Mamba-2's, every head being a group."""
    function: Any = import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined

    def call(q: Tensor, k: Tensor, v: Tensor, d: Tensor) -> Tensor:
        rate = torch.full((q.shape[2],), -1.0, device=q.device)
        return function(v, d, rate, k, q, chunk_size=256)

    return call


PEERS = {
    "onedecay": [Peer("fla chunk_simple_gla", chunked("fla.ops.simple_gla", "chunk_simple_gla"))],
    "keydecay": [Peer("fla chunk_gla", chunked("fla.ops.gla", "chunk_gla"))],
    "mlstm": [Peer("mlstm-kernels xl_chunk", mlstm)],
    "ssd": [Peer("mamba-ssm ssd_combined", ssd)],
}


def shapes(quick: bool) -> Sequence[tuple[Case, Sequence[Peer]]]:
    if quick:
        sizes = {"H": 2, "K": 16, "V": 16}
        return [(Case(CELLS / f"{cell}.rnn", 1, 40, sizes, torch.float32), peers) for cell, peers in PEERS.items()]
    return [
        (Case(CELLS / f"{cell}.rnn", b, t, {"H": h, "K": d, "V": d}), peers)
        for cell, peers in PEERS.items()
        for b, t, h, d in SHAPES
    ]


if __name__ == "__main__":
    main("Matrix states", shapes)
