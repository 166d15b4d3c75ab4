"""Delta rules in chunks of tokens, on fla's six shapes, against fla's kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from harness import CELLS, Case, Peer, main
from matrix import SHAPES
from torch import Tensor


def chunked(module: str, name: str, decays: bool) -> Callable[[], Callable[..., Tensor]]:
    """A function of fla that takes q, k, v, log-decays if it has some, and beta."""

    def build() -> Callable[..., Tensor]:
        function: Any = getattr(import_module(module), name)
        options = {"scale": 1.0, "use_qk_l2norm_in_kernel": True}
        if decays:
            return lambda q, k, v, g, b: function(q, k, v, g=g, beta=b, **options)[0]
        return lambda q, k, v, b: function(q, k, v, beta=b, **options)[0]

    return build


PEERS = {
    "delta": Peer("fla chunk_delta_rule", chunked("fla.ops.delta_rule", "chunk_delta_rule", False)),
    "onedelta": Peer("fla chunk_gated_delta_rule", chunked("fla.ops.gated_delta_rule", "chunk_gated_delta_rule", True)),
    "keydelta": Peer("fla chunk_kda", chunked("fla.ops.kda", "chunk_kda", True)),
}


def shapes(quick: bool) -> Sequence[tuple[Case, Sequence[Peer]]]:
    if quick:
        sizes = {"H": 2, "K": 16, "V": 16}
        return [(Case(CELLS / f"{cell}.rnn", 1, 40, sizes, torch.float32), [peer]) for cell, peer in PEERS.items()]
    return [
        (Case(CELLS / f"{cell}.rnn", b, t, {"H": h, "K": d, "V": d}), [peer])
        for cell, peer in PEERS.items()
        for b, t, h, d in SHAPES
    ]


if __name__ == "__main__":
    main("Delta rules", shapes)
