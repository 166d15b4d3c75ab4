"""Chunks of tokens, and what their tokens read of each other's writes, decayed on its way: scores `z · D..D x`.

In a chunk: g are chunks times heads; kinds of vectors come before tokens; vectors are [n, K], n states of K numbers,
and factors [n, n, K] or [n, n, 1].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def _scaled(d: Tensor, x: Tensor) -> Tensor:
    """D x, x: [..., n, K]."""
    return d.squeeze(-3) * x if d.shape[-3] == 1 else (d * x.unsqueeze(-3)).sum(-2)


def _scaled_back(d: Tensor, x: Tensor) -> Tensor:
    """Dᵀ x."""
    return d.squeeze(-3) * x if d.shape[-3] == 1 else (d * x.unsqueeze(-2)).sum(-3)


def _outer(x: Tensor, y: Tensor, shape: torch.Size) -> Tensor:
    """x yᵀ for each of the K numbers, summed to a shape."""
    return (x.unsqueeze(-2) * y.unsqueeze(-3)).sum_to_size(shape)


def _joined(later: Tensor, earlier: Tensor) -> Tensor:
    if later.shape[-3] == 1:
        return later * earlier
    return (later.unsqueeze(-2) * earlier.unsqueeze(-4)).sum(-3)


def _transposed(d: Tensor) -> Tensor:
    return torch.conj_physical(d).transpose(-3, -2)


class _Placed(NamedTuple):
    """Where tokens stand in chunks of `size`: first the first chunks of all sequences, the longest one first, then the
    second ones, as many as `counts` says. `valid` says at which places there is a token; of packed sequences `place` is
    that token, and `order` the sequences from the longest to the shortest."""

    size: int
    counts: list[int]
    heads: int
    valid: Tensor
    place: Tensor | None
    order: Tensor | None


def _placed(x: Tensor, size: int, cu_seqlens: Tensor | None) -> _Placed:
    batch, steps, heads = x.shape[:3]
    inside = torch.arange(size, device=x.device)
    if cu_seqlens is None:
        count = -(-steps // size)
        chunk = torch.arange(count, device=x.device).repeat_interleave(batch)
        return _Placed(size, [batch] * count, heads, chunk[:, None] * size + inside < steps, None, None)
    starts, lengths = cu_seqlens[:-1], cu_seqlens[1:] - cu_seqlens[:-1]
    order = torch.argsort(lengths, descending=True, stable=True)
    starts, lengths = starts[order], lengths[order]
    begins = torch.arange(0, steps, size, device=x.device)
    counts = [n for n in (lengths > begins[:, None]).sum(1).tolist() if n]
    first = torch.cat([starts[:n] + i * size for i, n in enumerate(counts)])
    place = first[:, None] + inside
    valid = place < torch.cat([(starts + lengths)[:n] for n in counts])[:, None]
    return _Placed(size, counts, heads, valid, torch.where(valid, place, 0), order)


def _into_chunks(x: Tensor, at: _Placed) -> Tensor:
    """[B, T, H, kinds, ...] as [g, kinds, size, ...], zeros where no token is."""
    rest = range(5, x.ndim + 1)
    if at.place is None:
        count = len(at.counts)
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, count * at.size - x.shape[1])).unflatten(1, (count, at.size))
        return x.permute(1, 0, 3, 4, 2, *rest).flatten(0, 2).contiguous()
    x = torch.where(at.valid.reshape(*at.valid.shape, *(1 for _ in x.shape[2:])), x[0, at.place], 0.0)
    return x.permute(0, 2, 3, 1, *(i - 1 for i in rest)).flatten(0, 1).contiguous()


def _into_tokens(x: Tensor, at: _Placed, batch: int, steps: int) -> Tensor:
    """The reverse."""
    rest = range(5, x.ndim + 2)
    if at.place is None:
        x = x.unflatten(0, (len(at.counts), batch, at.heads)).permute(1, 0, 4, 2, 3, *rest)
        return x.flatten(1, 2)[:, :steps].contiguous()
    x = x.unflatten(0, (-1, at.heads)).permute(0, 3, 1, 2, *(i - 1 for i in rest))
    out = x.new_zeros((1, steps, *x.shape[2:]))
    out[0, at.place[at.valid]] = x[at.valid]
    return out


class _Join(NamedTuple):
    """How blocks of `size` tokens were joined in pairs: the readers of the right ones and the writers of the left ones,
    [g, pairs, kinds, size, n, K], and the factors of both."""

    size: int
    late: Tensor
    early: Tensor
    left: Tensor
    right: Tensor


def _sides(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The halves, `size` tokens each, of all blocks of a chunk: [g, kinds, blocks, size, ...]."""
    pairs = x.unflatten(2, (x.shape[2] // (2 * size), 2, size))
    return pairs[:, :, :, 0], pairs[:, :, :, 1]


def _below(scores: Tensor, size: int) -> Tensor:
    """What the right halves of blocks read of the left ones, a view: [g, readers, size, writers, size, blocks]."""
    count = scores.shape[2] // (2 * size)
    blocks = scores.unflatten(4, (count, 2, size)).unflatten(2, (count, 2, size))
    return blocks[:, :, :, 1, :, :, :, 0].diagonal(dim1=2, dim2=5)


def _matrix(x: Tensor) -> Tensor:
    """[..., kinds, size, n, K] as matrices."""
    return x.flatten(-2).flatten(-3, -2)


def _at_once(scores: Tensor) -> Tensor:
    """What tokens read of their own writes, a view: [g, readers, writers, tokens]."""
    return scores.diagonal(dim1=2, dim2=4)


def _products(z: Tensor, x: Tensor) -> Tensor:
    return (z[:, :, None] * x[:, None]).sum((-2, -1))


class _Scores(NamedTuple):
    """Of a chunk: `scores`, [g, readers, size, writers, size]; the readers moved to its start and the writers moved to
    its end, [g, kinds, size, n, K]; its `whole` factor; and what the backward needs."""

    scores: Tensor
    start: Tensor
    end: Tensor
    whole: Tensor
    saved: Any


def _scores_by_halves(d: Tensor, z: Tensor, x: Tensor, before: int) -> _Scores:
    """Blocks of 1, 2, 4, ... tokens are joined: nothing is divided by, so zeros and signs are exact."""
    own = d.unsqueeze(1)
    start = torch.cat([z[:, :before], _scaled_back(own, z[:, before:])], 1)
    end, whole = x.clone(), d
    size, tokens = 1, x.shape[2]
    scores = x.new_zeros(x.shape[0], z.shape[1], tokens, x.shape[1], tokens)
    _at_once(scores[:, before:]).copy_(_products(z[:, before:], x))
    levels: list[_Join] = []
    while size < tokens:
        late, early = _sides(start, size)[1], _sides(end, size)[0]
        left, right = whole.unflatten(1, (-1, 2)).unbind(2)
        levels.append(_Join(size, late.transpose(1, 2).contiguous(), early.transpose(1, 2).contiguous(), left, right))
        found = _matrix(levels[-1].late) @ _matrix(levels[-1].early).mT
        found = found.unflatten(3, (x.shape[1], size)).unflatten(2, (z.shape[1], size))
        _below(scores, size).copy_(found.movedim(1, -1))
        late.copy_(_scaled_back(left[:, None, :, None], late))
        early.copy_(_scaled(right[:, None, :, None], early))
        whole = _joined(right, left)
        size *= 2
    return _Scores(scores, start, end, whole.squeeze(1), levels)


def _scores_by_halves_back(
    parts: _Scores,
    d: Tensor,
    z: Tensor,
    x: Tensor,
    before: int,
    d_scores: Tensor,
    d_start: Tensor,
    d_end: Tensor,
    d_whole: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of d, z and x; `d_start` and `d_end` are overwritten."""
    d_whole, conj = d_whole.unsqueeze(1), torch.conj_physical
    for size, late, early, left, right in reversed(parts.saved):
        to_late, to_early = _sides(d_start, size)[1], _sides(d_end, size)[0]
        shape = left[:, :, None, None].shape
        d_left = _outer(conj(late), to_late.transpose(1, 2), shape)[:, :, 0, 0]
        d_right = _outer(to_early.transpose(1, 2), conj(early), shape)[:, :, 0, 0]
        d_left = d_left + _joined(_transposed(right), d_whole)
        d_right = d_right + _joined(d_whole, _transposed(left))
        below = _below(d_scores, size).movedim(-1, 1).flatten(4, 5).flatten(2, 3)
        more_late = (below @ conj(_matrix(early))).reshape(late.shape)
        more_early = (below.mT @ conj(_matrix(late))).reshape(early.shape)
        to_late.copy_(_scaled(conj(left)[:, None, :, None], to_late) + more_late.transpose(1, 2))
        to_early.copy_(_scaled_back(conj(right)[:, None, :, None], to_early) + more_early.transpose(1, 2))
        d_whole = torch.stack([d_left, d_right], 2).flatten(1, 2)
    own, now, after = d.unsqueeze(1), _at_once(d_scores[:, before:]).unsqueeze(-1).unsqueeze(-1), d_start[:, before:]
    d_d = d_whole + _outer(conj(z[:, before:]), after, own.shape).squeeze(1)
    d_z = torch.cat([d_start[:, :before], _scaled(conj(own), after) + (now * conj(x)[:, None]).sum(2)], 1)
    return d_d, d_z, d_end + (now * conj(z[:, before:])[:, :, None]).sum(1)


def _scores_by_products(d: Tensor, z: Tensor, x: Tensor, before: int) -> _Scores:
    """The same where a token's factor is one number: products of it over every stretch of tokens are a matrix."""
    d, tokens = d.flatten(1), d.shape[1]
    place = torch.arange(tokens + 1, device=d.device)
    # Entry [i, j] is the product over the tokens after the j-th, up to the i-th.
    steps = torch.where(place[1:, None] > place, d.unsqueeze(-1), 1.0)
    spans = torch.cat([torch.ones_like(steps[:, :1]), steps], 1).cumprod(1).tril()
    raw = (_matrix(z) @ _matrix(x).mT).unflatten(2, (x.shape[1], tokens)).unflatten(1, (z.shape[1], tokens))
    scores = raw * _by_kind(spans[:, :-1, 1:], spans[:, 1:, 1:], raw.shape[1], before).unsqueeze(3)
    starts = _by_kind(spans[:, :-1, 0], spans[:, 1:, 0], raw.shape[1], before)[..., None, None]
    ends = spans[:, -1, 1:, None, None].unsqueeze(1)
    return _Scores(scores, z * starts, x * ends, spans[:, -1, 0, None, None, None], (spans, raw, starts, ends))


def _by_kind(first: Tensor, later: Tensor, kinds: int, before: int) -> Tensor:
    """[g, kinds, ...] of which `before` are the first."""
    parts = (x.unsqueeze(1).expand(-1, n, *x.shape[1:]) for x, n in ((first, before), (later, kinds - before)))
    return torch.cat([*parts], 1)


def _scores_by_products_back(
    parts: _Scores,
    d: Tensor,
    z: Tensor,
    x: Tensor,
    before: int,
    d_scores: Tensor,
    d_start: Tensor,
    d_end: Tensor,
    d_whole: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of d, z and x."""
    (spans, raw, starts, ends), conj = parts.saved, torch.conj_physical
    kinds = z.shape[1]
    factor = _by_kind(spans[:, :-1, 1:], spans[:, 1:, 1:], kinds, before).unsqueeze(3)
    d_raw = (d_scores * conj(factor)).flatten(3).flatten(1, 2)
    d_z = (d_raw @ conj(_matrix(x))).reshape(z.shape) + d_start * conj(starts)
    d_x = (d_raw.mT @ conj(_matrix(z))).reshape(x.shape) + d_end * conj(ends)
    to_factor = (d_scores * conj(raw)).sum(3)
    to_start, to_end = (d_start * conj(z)).sum((-2, -1)), (d_end * conj(x)).sum((1, -2, -1))
    d_spans = torch.zeros_like(spans)
    for rows, chosen in ((slice(0, -1), slice(0, before)), (slice(1, None), slice(before, None))):
        d_spans[:, rows, 1:] += to_factor[:, chosen].sum(1)
        d_spans[:, rows, 0] += to_start[:, chosen].sum(1)
    d_spans[:, -1, 1:] += to_end
    d_spans[:, -1, 0] += d_whole.flatten(1).squeeze(1)
    # The m-th factor is in every product that begins before it and does not end before it.
    through = conj(spans).mT @ d_spans.tril()
    return (through[:, 1:] * conj(spans[:, :-1])).sum(-1)[..., None, None, None], d_z, d_x


def _scores(d: Tensor, z: Tensor, x: Tensor, before: int) -> _Scores:
    return (_scores_by_products if d[0, 0].numel() == 1 else _scores_by_halves)(d, z, x, before)


def _scores_back(parts: _Scores, d: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return (_scores_by_products_back if d[0, 0].numel() == 1 else _scores_by_halves_back)(parts, d, *rest)
