"""Matrix states that are only read through contractions: chunks of tokens in matrix products, as an operator.

Within a chunk, halves of blocks of 2, 4, 8, ... tokens: what the right half reads of the left one is a product of
queries times the decays from the right half's start and of keys times the decays to the left half's end. Each is a
product of the factors themselves, so zeros, signs and complex factors are exact, nothing is divided by, and `|a| <= 1`
keeps all of it from overflowing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .loop import _without_autocast
from .operator import _Backward, _DifferentiableOperator
from .scan import _affine, _carried, _reject_tangents
from .time import _along, _Run


class _Layout(NamedTuple):
    """Where tokens stand in `chunks` of `size` places, of each of B sequences of T tokens. Packed sequences have chunks
    of their own, some of which may stay empty."""

    batch: int
    steps: int
    size: int
    chunks: int
    packed: _PackedLayout | None = None


class _PackedLayout(NamedTuple):
    """The token of each place (T where it has none) and the place of each token; the sequence of each chunk, and
    whether it is that one's first or last; for each sequence, whether it has tokens, its first chunk and its last."""

    token: Tensor
    place: Tensor
    owner: Tensor
    is_first: Tensor
    is_last: Tensor
    some: Tensor
    first: Tensor
    last: Tensor


def _layout(like: Tensor, cu_seqlens: Tensor | None) -> _Layout:
    """like: [B, T, ...]."""
    batch, steps = like.shape[:2]
    count = 1 if cu_seqlens is None else len(cu_seqlens) - 1
    # No longer than packed sequences are on average: what is padded is at most about twice what is there. How many
    # chunks there are is bounded rather than counted, which would wait for the device.
    size = min(64, 1 << max(0, -(-steps // count) - 1).bit_length())
    if cu_seqlens is None:
        return _Layout(batch, steps, size, -(-steps // size))
    chunks = (steps + count * (size - 1)) // size
    cu_seqlens = cu_seqlens.to(like.device)
    starts = cu_seqlens[:-1].contiguous()
    length = cu_seqlens[1:] - starts
    taken = (length + size - 1) // size
    end = taken.cumsum(0)
    first = end - taken

    def of(bounds: Tensor, at: Tensor) -> Tensor:
        return torch.searchsorted(bounds, at, right=True).clamp(0, count - 1)

    chunk = torch.arange(chunks, device=like.device)
    owner = of(end, chunk)
    within = (chunk - first[owner])[:, None] * size + torch.arange(size, device=like.device)
    token = torch.where(within < length[owner, None], starts[owner, None] + within, steps).flatten()
    at = torch.arange(steps, device=like.device)
    sequence = of(cu_seqlens[1:].contiguous(), at)
    place = first[sequence] * size + at - starts[sequence]
    is_first, is_last = chunk == first[owner], chunk == end[owner] - 1
    return _Layout(
        1, steps, size, chunks, _PackedLayout(token, place, owner, is_first, is_last, length > 0, first, end - 1)
    )


def _in_chunks(x: Tensor, layout: _Layout, value: float = 0.0) -> Tensor:
    """[B, T, H, R, F] as [B * chunks * H, size, R, F], with `value` where there is no token."""
    lacking = 1 if layout.packed is not None else layout.chunks * layout.size - layout.steps
    x = F.pad(x, (0, 0) * 3 + (0, lacking), value=value)
    if layout.packed is not None:
        x = x.index_select(1, layout.packed.token)
    return x.unflatten(1, (layout.chunks, layout.size)).movedim(3, 2).flatten(0, 2)


def _in_tokens(x: Tensor, layout: _Layout) -> Tensor:
    """The reverse."""
    x = x.unflatten(0, (layout.batch, layout.chunks, -1)).movedim(2, 3).flatten(1, 2)
    if layout.packed is not None:
        return x.index_select(1, layout.packed.place)
    return x[:, : layout.steps].contiguous()


def _halves(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The halves, `size` tokens each, of all blocks of a chunk: [chunks, blocks, size, ...]."""
    pairs = x.unflatten(1, (x.shape[1] // (2 * size), 2, size))
    return pairs[:, :, 0], pairs[:, :, 1]


class _Level(NamedTuple):
    """How blocks of so many tokens are joined in pairs: the decays from the right one's start to its reads and from the
    left one's writes to its end, [chunks, pairs, size, ...], and over each of the two."""

    size: int
    start: Tensor
    end: Tensor
    left: Tensor
    right: Tensor


def _decays(a: Tensor, before: int, after: int) -> tuple[list[_Level], tuple[Tensor, Tensor, Tensor]]:
    """The levels, and the decays from a chunk's start to each read, from each write to the chunk's end, and over the
    chunk. a: [chunks, size, 1, F]."""
    end, whole = torch.ones_like(a), a
    start = torch.cat([end] * before + [a] * after, 2)
    levels: list[_Level] = []
    size = 1
    while size < a.shape[1]:
        late, early = _halves(start, size)[1], _halves(end, size)[0]
        left, right = _halves(whole, 1)
        levels.append(_Level(size, late.clone(), early.clone(), left, right))
        late.mul_(left)
        early.mul_(right)
        whole = (left * right).squeeze(2)
        size *= 2
    return levels, (start, end, whole)


def _decays_back(d_start: Tensor, d_end: Tensor, d_whole: Tensor, level: _Level) -> Tensor:
    """Gradients of the decays of blocks, from those of pairs: `d_start` and `d_end` in place, and the whole's."""
    late, early = _halves(d_start, level.size)[1], _halves(d_end, level.size)[0]
    left, right = torch.conj_physical(level.left), torch.conj_physical(level.right)
    d_whole = d_whole.unsqueeze(2)
    d_left = (late * torch.conj_physical(level.start)).sum((2, 3), keepdim=True) + d_whole * right
    d_right = (early * torch.conj_physical(level.end)).sum((2, 3), keepdim=True) + d_whole * left
    late.mul_(left)
    early.mul_(right)
    return torch.cat([d_left, d_right], 2).flatten(1, 2)


def _of_state(q: Tensor, start: Tensor, state: Tensor, keyed: bool) -> Tensor:
    """What [..., tokens, R, K] reads of [..., K, V], decayed on its way along keys (`keyed`) or values."""
    shape = q.shape[-3:-1]
    if keyed:
        return ((q * start).flatten(-3, -2) @ state).unflatten(-2, shape)
    return (q.flatten(-3, -2) @ state).unflatten(-2, shape) * start


def _of_state_back(grad: Tensor, q: Tensor, start: Tensor, state: Tensor, keyed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, start and the state."""
    shape, flat = q.shape[-3:-1], q.flatten(-3, -2)
    q, start, back = torch.conj_physical(q), torch.conj_physical(start), torch.conj_physical(state).mT
    if keyed:
        d_read = (grad.flatten(-3, -2) @ back).unflatten(-2, shape)
        d_state = (q * start).flatten(-3, -2).mT @ grad.flatten(-3, -2)
        return d_read * start, (d_read * q).sum_to_size(start.shape), d_state
    d_start = grad * torch.conj_physical((flat @ state).unflatten(-2, shape))
    grad = (grad * start).flatten(-3, -2)
    d_state = q.flatten(-3, -2).mT @ grad
    return (grad @ back).unflatten(-2, shape), d_start.sum_to_size(start.shape), d_state


def _of_tokens(q: Tensor, start: Tensor, k: Tensor, v: Tensor, end: Tensor, keyed: bool) -> Tensor:
    """What tokens, [..., tokens, R, K], read of earlier ones, [..., tokens, N, K] and [..., tokens, N, V]."""
    shape, k, v = q.shape[-3:-1], k * end if keyed else k, v if keyed else v * end
    if keyed:
        q = q * start
    read = (q.flatten(-3, -2) @ k.flatten(-3, -2).mT @ v.flatten(-3, -2)).unflatten(-2, shape)
    return read if keyed else read * start


def _of_tokens_back(
    grad: Tensor, q: Tensor, start: Tensor, k: Tensor, v: Tensor, end: Tensor, keyed: bool
) -> tuple[Tensor, ...]:
    """Gradients of q, start, k, v and end."""
    readers, writers = q.shape[-3:-1], k.shape[-3:-1]
    q_in, k_in, v_in = q * start if keyed else q, k * end if keyed else k, v if keyed else v * end
    q_in, k_in, v_in = q_in.flatten(-3, -2), k_in.flatten(-3, -2), v_in.flatten(-3, -2)
    scores, d_start = q_in @ k_in.mT, None
    if not keyed:
        d_start = grad * torch.conj_physical((scores @ v_in).unflatten(-2, readers))
        grad = grad * torch.conj_physical(start)
    grad = grad.flatten(-3, -2)
    d_scores = grad @ torch.conj_physical(v_in).mT
    d_v = (torch.conj_physical(scores).mT @ grad).unflatten(-2, writers)
    d_q = (d_scores @ torch.conj_physical(k_in)).unflatten(-2, readers)
    d_k = (d_scores.mT @ torch.conj_physical(q_in)).unflatten(-2, writers)
    end_back = torch.conj_physical(end)
    if d_start is not None:
        d_end = d_v * torch.conj_physical(v)
        return d_q, d_start.sum_to_size(start.shape), d_k, d_v * end_back, d_end.sum_to_size(end.shape)
    d_start, d_end = d_q * torch.conj_physical(q), d_k * torch.conj_physical(k)
    d_q, d_k = d_q * torch.conj_physical(start), d_k * end_back
    return d_q, d_start.sum_to_size(start.shape), d_k, d_v, d_end.sum_to_size(end.shape)


def _write(k: Tensor, v: Tensor, end: Tensor, keyed: bool) -> Tensor:
    """What a chunk leaves in the state, [..., K, V]."""
    k, v = (k * end, v) if keyed else (k, v * end)
    return k.flatten(-3, -2).mT @ v.flatten(-3, -2)


def _write_back(grad: Tensor, k: Tensor, v: Tensor, end: Tensor, keyed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of k, v and end."""
    shape = k.shape[-3:-1]
    k, v, end = torch.conj_physical(k), torch.conj_physical(v), torch.conj_physical(end)
    k_in, v_in = (k * end, v) if keyed else (k, v * end)
    d_k = (v_in.flatten(-3, -2) @ grad.mT).unflatten(-2, shape)
    d_v = (k_in.flatten(-3, -2) @ grad).unflatten(-2, shape)
    if keyed:
        return d_k * end, d_v, (d_k * k).sum_to_size(end.shape)
    return d_k, d_v * end, (d_v * v).sum_to_size(end.shape)


def _between_chunks(
    layout: _Layout, whole: Tensor, written: Tensor, initial: Tensor, keyed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The factor of each chunk, the states that enter chunks, [B, chunks, H, K, V], and those after the last ones."""
    shape = layout.batch, layout.chunks, initial.shape[1]
    factor = (whole.mT if keyed else whole).squeeze(1).unflatten(0, shape)
    written = written.unflatten(0, shape)
    packed = layout.packed
    if packed is None:
        states = _carried(factor, written, initial, True, False)
        return factor, torch.cat([initial.unsqueeze(1), states[:, :-1]], 1), states[:, -1]
    fresh, own = _along(packed.is_first, written[0]), initial[packed.owner]
    written = torch.where(fresh, factor * own + written, written)
    zero = torch.zeros_like(written[:, 0])
    states = _carried(torch.where(fresh, 0.0, factor), written, zero, True, False, packed.is_first)
    entering = torch.where(fresh, own, torch.cat([zero.unsqueeze(1), states[:, :-1]], 1))
    return factor, entering, torch.where(_along(packed.some, initial), states[0, packed.last], initial)


def _between_chunks_back(layout: _Layout, factor: Tensor, d_states: Tensor, d_final: Tensor) -> tuple[Tensor, Tensor]:
    """What arrives at the states that leave chunks, from the last one to the first, and at the initial ones."""
    back = torch.conj_physical(factor)
    later = torch.cat([back[:, 1:], torch.zeros_like(back[:, :1])], 1)
    zero = torch.zeros_like(d_states[:, 0])
    packed = layout.packed
    if packed is None:
        direct = torch.cat([d_states[:, 1:], d_final.unsqueeze(1)], 1)
        leaving = _carried(later, direct, zero, True, True)
        return leaving, d_states[:, 0] + back[:, 0] * leaving[:, 0]
    ends = _along(packed.is_last, d_states[0])
    direct = torch.where(ends, d_final[packed.owner], torch.cat([d_states[:, 1:], zero.unsqueeze(1)], 1))
    leaving = _carried(torch.where(ends, 0.0, later), direct, zero, True, True, packed.is_last)
    first = packed.first.clamp(max=layout.chunks - 1)
    d_initial = d_states[0, first] + back[0, first] * leaving[0, first]
    return leaving, torch.where(_along(packed.some, d_initial), d_initial, d_final)


def _chunked_forward(
    a: Tensor, q: Tensor, k: Tensor, v: Tensor, initial: Tensor, before: int, keyed: bool, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    if q.shape[1] == 0 or q.numel() == 0 or initial.numel() == 0:
        return q.new_zeros((*q.shape[:-1], v.shape[-1])), initial.clone()
    layout = _layout(q, cu_seqlens)
    a = _in_chunks(a.unsqueeze(3), layout, 1.0)
    q, k, v = (_in_chunks(x, layout) for x in (q, k, v))
    reads = q.new_zeros((*q.shape[:-1], v.shape[-1]))
    reads[:, :, before:] = (q[:, :, before:] @ k.mT) @ v
    levels, (start, end, whole) = _decays(a, before, q.shape[2] - before)
    for size, late, early, *_ in levels:
        into = _halves(reads, size)[1]
        into += _of_tokens(_halves(q, size)[1], late, _halves(k, size)[0], _halves(v, size)[0], early, keyed)
    _, states, final = _between_chunks(layout, whole, _write(k, v, end, keyed), initial, keyed)
    reads += _of_state(q, start, states.flatten(0, 2), keyed)
    return _in_tokens(reads, layout), final.clone()


def _chunked_backward(
    grad: Tensor,
    d_final: Tensor,
    a: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    initial: Tensor,
    before: int,
    keyed: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, ...]:
    """Gradients of a, q, k, v and the initial state; the states that enter chunks are computed again."""
    if q.shape[1] == 0 or q.numel() == 0 or initial.numel() == 0:
        return *(torch.zeros_like(x) for x in (a, q, k, v)), d_final.clone()
    layout = _layout(q, cu_seqlens)
    a = _in_chunks(a.unsqueeze(3), layout, 1.0)
    grad, q, k, v = (_in_chunks(x, layout) for x in (grad, q, k, v))
    levels, (start, end, whole) = _decays(a, before, q.shape[2] - before)
    factor, states, _ = _between_chunks(layout, whole, _write(k, v, end, keyed), initial, keyed)
    d_q, d_start, d_states = _of_state_back(grad, q, start, states.flatten(0, 2), keyed)
    leaving, d_initial = _between_chunks_back(layout, factor, d_states.unflatten(0, states.shape[:3]), d_final)
    d_factor = (leaving * torch.conj_physical(states)).sum_to_size(factor.shape).flatten(0, 2).unsqueeze(1)
    d_whole = d_factor.mT if keyed else d_factor
    d_k, d_v, d_end = _write_back(leaving.flatten(0, 2), k, v, end, keyed)
    while levels:
        level = levels.pop()
        d_whole = _decays_back(d_start, d_end, d_whole, level)
        size = level.size
        tokens = _halves(q, size)[1], level.start, _halves(k, size)[0], _halves(v, size)[0], level.end
        found = _of_tokens_back(_halves(grad, size)[1], *tokens, keyed)
        into = [(d_q, 1), (d_start, 1), (d_k, 0), (d_v, 0), (d_end, 0)]
        for (total, half), more in zip(into, found):
            _halves(total, size)[half].add_(more)
    d_a = d_whole + d_start[:, :, before:].sum(2, keepdim=True)
    q_now, grad_now = q[:, :, before:], grad[:, :, before:]
    d_scores = grad_now @ torch.conj_physical(v).mT
    d_q[:, :, before:] += d_scores @ torch.conj_physical(k)
    d_k += d_scores.mT @ torch.conj_physical(q_now)
    d_v += torch.conj_physical(q_now @ k.mT).mT @ grad_now
    d_a = _in_tokens(d_a, layout).squeeze(3)
    return d_a, *(_in_tokens(x, layout) for x in (d_q, d_k, d_v)), d_initial


def _chunks_operator(namespace: str) -> _DifferentiableOperator:
    """Registers `chunks(a, q, k, v, initial, before, keyed, cu_seqlens)`: `S[t] = a[t] * S[t-1] + sum(k[t] v[t])` and
    its reads `sum[K](q S)`, with its own backward.

    a: [B, T, H, 1, K or V]; q: [B, T, H, R, K], the first `before` of which read `S[t-1]`; k, v: [B, T, H, N, K or V];
    initial: [B, H, K, V]; of packed sequences B is 1, and `initial` [N, H, K, V]. The factor is along keys where
    `keyed`, else along values. Saved: what it is given.
    """

    def chunks(
        a: Tensor, q: Tensor, k: Tensor, v: Tensor, initial: Tensor, before: int, keyed: bool, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        with _without_autocast(initial):
            return _chunked_forward(a, q, k, v, initial, before, keyed, cu_seqlens)

    def fake(
        a: Tensor, q: Tensor, k: Tensor, v: Tensor, initial: Tensor, before: int, keyed: bool, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return q.new_empty((*q.shape[:-1], v.shape[-1])), torch.empty_like(initial)

    def chunks_backward(
        grad: Tensor,
        d_final: Tensor,
        a: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        initial: Tensor,
        before: int,
        keyed: bool,
        cu_seqlens: Tensor | None,
    ) -> tuple[Tensor, ...]:
        with _without_autocast(initial):
            found = _chunked_backward(grad, d_final, a, q, k, v, initial, before, keyed, cu_seqlens)
        return tuple(x.contiguous() for x in found)

    def fake_backward(
        grad: Tensor,
        d_final: Tensor,
        a: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        initial: Tensor,
        before: int,
        keyed: bool,
        cu_seqlens: Tensor | None,
    ) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (a, q, k, v, initial))

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.before, ctx.keyed, cu_seqlens = inputs
        ctx.save_for_backward(*tensors, cu_seqlens)

    def gradient(
        ctx: Any, backward: Callable[..., tuple[Tensor, ...]], grad: Tensor, d_final: Tensor
    ) -> tuple[Any, ...]:
        *tensors, cu_seqlens = ctx.saved_tensors
        found = backward(grad, d_final, *tensors, ctx.before, ctx.keyed, cu_seqlens)
        return (*found, None, None, None)

    given = "Tensor a, Tensor q, Tensor k, Tensor v, Tensor initial, int before, bool keyed, Tensor? cu_seqlens"
    schema = f"({given}) -> (Tensor, Tensor)"
    back = _Backward(
        f"(Tensor grad, Tensor d_final, {given}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        chunks_backward,
        fake_backward,
    )
    return _DifferentiableOperator(f"{namespace}::chunks", schema, chunks, fake, back, save, gradient)


def _chunked(
    run: _Run,
    scan: Callable[..., Tensor],
    chunks: Callable[..., tuple[Tensor, Tensor]],
    a: Any,
    queries: Sequence[tuple[Any, tuple[int, ...]]],
    before: int,
    writes: Sequence[tuple[Any, Any]],
    initial: Tensor,
    order: tuple[int, ...],
    counts: tuple[int, int],
    keyed: bool,
    beside: Sequence[tuple[Tensor, tuple[int, ...], Sequence[Any]]] = (),
) -> tuple[Tensor, ...]:
    """What the queries read of `S[t] = a * S[t-1] + sum(k * v)`, and the state after the last token.

    `order` lays out the state's axes as heads, keys and values, `counts` of the first two. a: heads, then keys or
    values; each query: heads, axes of its own of the given sizes, keys; the first `before` read `S[t-1]`. Of `writes`,
    k: heads and keys, v: heads and values. All broadcast. States `beside` it have no values: each is its initial value,
    the order of its axes, and for each write what its keys are multiplied with. They follow in the result likewise.
    """
    state = initial.permute(0, *(i + 1 for i in order))
    sizes = state.shape[1:]
    heads, keys, values = sizes[: counts[0]], sizes[counts[0] : sum(counts)], sizes[sum(counts) :]
    lead = run.lead
    before = sum(torch.Size(shape).numel() for _, shape in queries[:before])
    wide = state.reshape(state.shape[0], heads.numel(), keys.numel(), values.numel())
    columns = [x.permute(0, *(i + 1 for i in own)).reshape(*wide.shape[:3], 1) for x, own, _ in beside]

    def laid(x: Any, *groups: tuple[int, ...]) -> Tensor:
        """With all of its axes, those of each group merged."""
        x = torch.as_tensor(0.0 if x is None else x, dtype=initial.dtype, device=initial.device)
        x = x.expand(*lead, *(n for g in groups for n in g))
        return x.reshape(*lead, *(torch.Size(g).numel() for g in groups))

    own = keys if keyed else values
    a = torch.as_tensor(a, dtype=initial.dtype, device=initial.device)
    scalar = all(n == 1 for n in a.shape[max(0, a.ndim - len(own)) :])
    a = laid(a, heads, (1,) * len(own) if scalar else own)
    q = torch.cat([laid(x, heads, shape, keys) for x, shape in queries], -2)
    k = torch.stack([laid(x, heads, keys) for x, _ in writes], -2)
    v = torch.stack([laid(x, heads, values) for _, x in writes], -2)
    if columns:
        more = [torch.stack([laid(x, heads) for x in factors], -1) for _, _, factors in beside]
        v, wide = torch.cat([v, torch.stack(more, -1)], -1), torch.cat([wide, *columns], -1)
    if len(lead) == 2:
        _reject_tangents(a, q, k, v, wide)
        reads, final = chunks(a, q, k, v, wide.contiguous(), before, keyed, run.cu_seqlens)
    else:
        with _without_autocast(wide):
            final = _affine(run, scan, a.unsqueeze(-1 if keyed else -2), k.mT @ v, wide, True)
            reads = torch.cat([q[..., :before, :] @ wide, q[..., before:, :] @ final], -2)
    axes = (heads, keys, values)
    return _chunk_results(
        lead, reads, final, [shape for _, shape in queries], axes, order, [own for _, own, _ in beside]
    )


def _chunk_results(
    lead: Sequence[int],
    reads: Tensor,
    final: Tensor,
    queries: Sequence[tuple[int, ...]],
    axes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    order: tuple[int, ...],
    beside: Sequence[tuple[int, ...]],
) -> tuple[Tensor, ...]:
    """What each query read, and the last state, with all their axes; then the same of what is `beside` it.

    reads: [lead, H, R, V]; final: [B, H, K, V], those beside it being the last columns; `queries`: their own axes.
    """
    heads, keys, values = axes
    found = reads.split([torch.Size(own).numel() for own in queries], -2)
    width = torch.Size(values).numel()

    def read(end: tuple[int, ...], at: int, size: int) -> list[Tensor]:
        return [x[..., at : at + size].reshape(*lead, *heads, *own, *end) for x, own in zip(found, queries)]

    def last(x: Tensor, axes: Sequence[int], order: tuple[int, ...]) -> Tensor:
        return x.reshape(x.shape[0], *axes).permute(0, *(order.index(i) + 1 for i in range(len(order))))

    results = [*read(values, 0, width), last(final[..., :width], (*heads, *keys, *values), order)]
    for i, own in enumerate(beside, width):
        results += [*read((), i, 1), last(final[..., i], (*heads, *keys), own)]
    return tuple(results)
