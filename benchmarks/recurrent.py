"""Cells with recurrent matrices, projections included: sequential kernels against cuDNN's LSTM and GRU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from harness import CELLS, EXAMPLES, Case, Peer, main
from torch import Tensor

WIDTHS = {torch.bfloat16: (64, 128), torch.float16: (64, 128), torch.float32: (64,)}
SHAPES = ((16, 1024), (64, 1024), (1, 4096))
"""B, T."""


def cudnn_lstm() -> Callable[..., Tensor]:
    """cuDNN's on a GPU; its matrices are put together for each call, which a trained `nn.LSTM` has done before."""

    def call(x: Tensor, *learned: Tensor) -> Tensor:
        weights = [torch.cat(learned[i::3]) for i in range(3)]
        start = x.new_zeros(1, x.shape[0], learned[1].shape[1])
        params = [*weights, torch.zeros_like(weights[2])]
        return torch.lstm(x, [start, start], params, True, 1, 0.0, True, False, True)[0]

    return call


def cudnn_gru() -> Callable[..., Tensor]:
    def call(x: Tensor, *learned: Tensor) -> Tensor:
        r_x, r_h, r_b, z_x, z_h, z_b, n_x, n_b, n_h, n_hb = learned
        start = x.new_zeros(1, x.shape[0], r_h.shape[1])
        bias = torch.cat([torch.zeros_like(r_b), torch.zeros_like(z_b), n_hb])
        params = [torch.cat([r_x, z_x, n_x]), torch.cat([r_h, z_h, n_h]), torch.cat([r_b, z_b, n_b]), bias]
        return torch.gru(x, start, params, True, 1, 0.0, True, False, True)[0]

    return call


def loop_lstm() -> Callable[..., Tensor]:
    """As a researcher would write it, inputs projected and taken apart once."""

    def call(x: Tensor, *learned: Tensor) -> Tensor:
        w, r, b = (torch.cat(learned[i::3]) for i in range(3))
        h = c = x.new_zeros(x.shape[0], r.shape[1])
        out: list[Tensor] = []
        for u in (x @ w.T + b).unbind(1):
            i, f, z, o = (u + h @ r.T).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
            h = torch.sigmoid(o) * torch.tanh(c)
            out.append(h)
        return torch.stack(out, 1)

    return call


LSTM = [Peer("PyTorch's LSTM", cudnn_lstm), Peer("a Python loop", loop_lstm)]
GRU = [Peer("PyTorch's GRU", cudnn_gru)]


def shapes(quick: bool) -> Sequence[tuple[Case, Sequence[Peer]]]:
    lstm, gru = CELLS / "lstm.rnn", EXAMPLES / "gru.rnn"
    if quick:
        both = (
            (Case(lstm, 2, 9, {"D": 8, "P": 8}, torch.float32), LSTM),
            (Case(gru, 2, 9, {"D": 8}, torch.float32), GRU),
        )
        return list(both)
    found: list[tuple[Case, Sequence[Peer]]] = []
    for dtype, widths in WIDTHS.items():
        for b, t in SHAPES:
            for d in widths:
                found.append((Case(lstm, b, t, {"D": d, "P": d}, dtype), LSTM))
                found.append((Case(gru, b, t, {"D": d}, dtype), GRU))
    return found


if __name__ == "__main__":
    main("Recurrent matrices", shapes)
