"""How a call goes through time: one token, whole sequences, packed ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .operator import _unwatched


class _Run(NamedTuple):
    """How a call goes through time.

    lead: (B,) for one token, (B, T) for whole sequences. Packed sequences, (1, total), have for each token the sequence
    it belongs to and its position there, and for each sequence its length and where it ends.
    """

    lead: tuple[int, ...]
    like: Tensor
    """Any input: where new tensors go."""
    sequence: Tensor | None = None
    position: Tensor | None = None
    length: Tensor | None = None
    end: Tensor | None = None
    cu_seqlens: Tensor | None = None


def _check_packing(cu_seqlens: Tensor, batch: int, total: int, values: bool) -> None:
    """Raise where `cu_seqlens` does not fit inputs of [batch, total, ...]. On a GPU its `values` are only looked at
    where that is asked: the host would wait for them."""
    if (
        not isinstance(cu_seqlens, Tensor)
        or cu_seqlens.is_floating_point()
        or cu_seqlens.ndim != 1
        or not len(cu_seqlens)
    ):
        got = (
            f"{cu_seqlens.dtype} {list(cu_seqlens.shape)}"
            if isinstance(cu_seqlens, Tensor)
            else type(cu_seqlens).__name__
        )
        raise TypeError(f"cu_seqlens: expected a tensor of N + 1 integers for N sequences, got {got}")
    if batch != 1:
        raise ValueError(f"cu_seqlens goes with inputs of [1, total, ...], got a batch of {batch}")
    here = cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling() and _unwatched([cu_seqlens])
    if values or here:
        ends = cu_seqlens.tolist()
        if ends[0] != 0 or ends[-1] != total or ends != sorted(ends):
            raise ValueError(f"cu_seqlens: expected numbers that rise from 0 to {total}, got {ends}")


def _packed(like: Tensor, cu_seqlens: Tensor) -> _Run:
    total = like.shape[1]
    cu_seqlens = cu_seqlens.long().contiguous()
    tokens = torch.arange(total, device=cu_seqlens.device)
    sequence = torch.searchsorted(cu_seqlens, tokens, right=True) - 1
    length = cu_seqlens[1:] - cu_seqlens[:-1]
    return _Run((1, total), like, sequence, tokens - cu_seqlens[sequence], length, cu_seqlens[1:], cu_seqlens)


def _along(mask: Tensor, like: Tensor) -> Tensor:
    """A mask over the first axes of `like` with its other axes added."""
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))


def _spread(run: _Run, value: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A value with all of its axes, [*run.lead, *shape]."""
    value = torch.as_tensor(value, dtype=dtype, device=run.like.device).expand(*run.lead, *shape)
    # A view of a parameter asks for gradients even under `no_grad`, and is the parameter for who writes to it.
    return value.clone(memory_format=torch.contiguous_format)


def _past(run: _Run, value: Tensor, history: Tensor, lag: int) -> Tensor:
    """`value` as it was `lag` tokens ago; before the first token the history, [B, length, ...], newest first."""
    if len(run.lead) == 1:
        return history[:, lag - 1]
    if run.position is None:
        return torch.cat([history[:, :lag].flip(1), value], 1)[:, : value.shape[1]]
    shifted = torch.cat([value.new_zeros((1, lag, *value.shape[2:])), value], 1)[:, : value.shape[1]]
    early = history[run.sequence, (lag - 1 - run.position).clamp(min=0)]
    return torch.where(_along(run.position < lag, early), early, shifted[0]).unsqueeze(0)


def _previous(run: _Run, value: Tensor, initial: Tensor) -> Tensor:
    """`value` one token ago; before the first token `initial`, [B, ...]."""
    return initial if len(run.lead) == 1 else _past(run, value, initial.unsqueeze(1), 1)


def _last(run: _Run, value: Tensor, initial: Tensor, shared: bool = False) -> Tensor:
    """`value` at the last token of each sequence, [B, ...]; `initial` for a sequence without tokens.

    A copy: a view would keep the values at all tokens alive as long as the state is. One token's value is copied only
    where it is `shared`, a view of what came in.
    """
    if len(run.lead) == 1:
        return value.clone() if shared else value
    if value.shape[1] == 0:
        return initial
    if run.length is None or run.end is None:
        return value[:, -1].clone()
    return torch.where(_along(run.length > 0, initial), value[0, (run.end - 1).clamp(min=0)], initial)


def _history(run: _Run, value: Tensor, history: Tensor) -> Tensor:
    """The history after the last token: [B, length, ...], newest first."""
    if len(run.lead) == 1:
        return torch.cat([value.unsqueeze(1), history[:, :-1]], 1)
    size = history.shape[1]
    if value.shape[1] == 0:
        return history
    if run.length is None or run.end is None:
        # A compiled graph would be one for lengths above `size`, and another for those below.
        late = value if torch.compiler.is_compiling() else value[:, -size:]
        return torch.cat([history.flip(1), late], 1)[:, -size:].flip(1)
    back = torch.arange(size, device=value.device)
    late = value[0, (run.end[:, None] - 1 - back).clamp(min=0)]
    rows = torch.arange(history.shape[0], device=value.device)[:, None]
    early = history[rows, (back - run.length[:, None]).clamp(min=0)]
    return torch.where(_along(back < run.length[:, None], late), late, early)


def _conv(run: _Run, x: Tensor, history: Tensor, weight: Tensor) -> Tensor:
    """Causal depthwise convolution: `sum_j weight[..., -1-j] * x[t-j]`."""
    taps = weight.to(x.dtype).unbind(-1)[::-1]
    y = taps[0] * x
    for lag, tap in enumerate(taps[1:], 1):
        y = y + tap * _past(run, x, history, lag)
    return y
