"""minGRU: the recurrence from its pre-activations, and once with its projections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from harness import CELLS, EXAMPLES, Case, Peer, both_layouts, main
from peers import gated, triton_scan, warp_scan
from torch import Tensor


def gates(zx: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    z = torch.sigmoid(zx)
    return 1 - z, z * c


def hgrn(name: str) -> Callable[[], Callable[..., Tensor]]:
    """fla's HGRN takes the logarithm of the decay, and what is added."""

    def build() -> Callable[..., Tensor]:
        library: Any = import_module("fla.ops.hgrn")
        function = getattr(library, name)
        return lambda zx, c: function(torch.sigmoid(zx) * c, F.logsigmoid(-zx))[0]

    return build


def log_space(fused: bool) -> Callable[[], Callable[..., Tensor]]:
    """minGRU-pytorch's parallel form (Heinsen 2023, arXiv:2311.06281), as its module calls it."""

    def build() -> Callable[..., Tensor]:
        library: Any = import_module("minGRU_pytorch.minGRU")

        def function(zx: Tensor, cx: Tensor) -> Tensor:
            values = -F.softplus(-zx) + library.log_g(cx)
            return library.heinsen_associative_scan_log(-F.softplus(zx), values)

        made: Any = torch.compile(function, dynamic=False) if fused else function
        return made

    return build


def positive_gates(zx: Tensor, cx: Tensor) -> tuple[Tensor, Tensor]:
    return gates(zx, torch.where(cx >= 0, cx + 0.5, torch.sigmoid(cx)))


def whole() -> Callable[..., Tensor]:
    scan = triton_scan()

    def call(x: Tensor, z_weight: Tensor, c_weight: Tensor) -> Tensor:
        a, b = gates(F.linear(x, z_weight), F.linear(x, c_weight))
        return scan(a.mT.contiguous(), b.mT.contiguous()).mT

    return call


SCANS = [
    *both_layouts("accelerated-scan (Triton)", gated(triton_scan, gates), 2),
    *both_layouts("accelerated-scan (Triton), gates compiled", gated(triton_scan, gates, fused=True), 2)[:1],
    *both_layouts("accelerated-scan (CUDA)", gated(warp_scan, gates), 2)[:1],
]
# fla tunes for half a minute at each width and dtype: once here, the rest in hgrn.py.
BARE = [
    *SCANS,
    Peer("fla chunk_hgrn", hgrn("chunk_hgrn")),
    Peer("fla fused_recurrent_hgrn", hgrn("fused_recurrent_hgrn")),
]
LOG = [
    Peer("minGRU-pytorch, log space", log_space(False)),
    Peer("minGRU-pytorch, log space, torch.compile", log_space(True)),
    *both_layouts("accelerated-scan (Triton)", gated(triton_scan, positive_gates), 2)[:1],
]
WHOLE = [Peer("F.linear and accelerated-scan (Triton)", whole)]


def shapes(quick: bool) -> Sequence[tuple[Case, Sequence[Peer]]]:
    bare, log, all_ = CELLS / "mingru.rnn", CELLS / "mingru_log.rnn", EXAMPLES / "mingru.rnn"
    if quick:
        small = {"D": 32}
        return [(Case(p, 2, 64, small, torch.float32), q) for p, q in ((bare, BARE), (log, LOG), (all_, WHOLE))]
    wide, long = {"D": 2048}, {"D": 1536}
    return [
        (Case(bare, 8, 4096, wide), BARE),
        (Case(bare, 1, 65536, long), SCANS),
        (Case(bare, 8, 4096, wide, torch.float32), SCANS),
        (Case(bare, 1, 65536, long, torch.float32), SCANS),
        (Case(log, 8, 4096, wide, torch.float32), LOG),
        (Case(log, 8, 4096, wide), LOG),
        (Case(all_, 8, 4096, wide), WHOLE),
    ]


if __name__ == "__main__":
    main("minGRU", shapes)
