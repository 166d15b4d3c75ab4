"""HGRN's recurrence from its pre-activations, against fla's own kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from harness import CELLS, Case, Peer, both_layouts, main
from peers import gated, triton_scan
from torch import Tensor


def gates(fx: Tensor, ix: Tensor) -> tuple[Tensor, Tensor]:
    f = torch.sigmoid(fx)
    return f, (1 - f) * F.silu(ix)


def log_gates(fx: Tensor, ix: Tensor) -> tuple[Tensor, Tensor]:
    return F.silu(ix) * torch.sigmoid(-fx), F.logsigmoid(fx)


def hgrn(name: str, fused: bool = False) -> Callable[[], Callable[..., Tensor]]:
    def build() -> Callable[..., Tensor]:
        library: Any = import_module("fla.ops.hgrn")
        function = getattr(library, name)
        made: Any = torch.compile(log_gates, dynamic=False) if fused else log_gates
        return lambda fx, ix: function(*made(fx, ix))[0]

    return build


PEERS = [
    Peer("fla chunk_hgrn", hgrn("chunk_hgrn")),
    Peer("fla chunk_hgrn, gates compiled", hgrn("chunk_hgrn", True)),
    Peer("fla fused_recurrent_hgrn", hgrn("fused_recurrent_hgrn")),
    Peer("fla fused_recurrent_hgrn, gates compiled", hgrn("fused_recurrent_hgrn", True)),
    *both_layouts("accelerated-scan (Triton)", gated(triton_scan, gates), 2),
]


def shapes(quick: bool) -> Sequence[tuple[Case, Sequence[Peer]]]:
    cell = CELLS / "hgrn.rnn"
    if quick:
        return [(Case(cell, 2, 64, {"D": 32}, torch.float32), PEERS)]
    return [
        (Case(cell, 8, 4096, {"D": 2048}), PEERS),
        (Case(cell, 1, 65536, {"D": 1536}), PEERS),
        (Case(cell, 8, 4096, {"D": 2048}, torch.float32), PEERS[:-2]),
    ]


if __name__ == "__main__":
    main("HGRN", shapes)
