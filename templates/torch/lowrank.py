"""Matrix states with low-rank transitions, `S[t] = (D + U Vᵀ) S[t-1] + K v`, by chunks of tokens, as an operator.

With `c[t] = Vᵀ S[t-1]` all that is written are products, `S[t] = D S[t-1] + U c + K v`, and what a token reads of
earlier ones in its chunk are scores of readers (V and queries) and writers (U and K). So the `c` of a chunk solve a
triangular system with ones on its diagonal, whose forward substitution is the recurrence in other coordinates: no
transition is multiplied by another, and nothing is asked of keys or of the transitions' norms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunks import _chunked
from .composed import _true
from .loop import _without_autocast
from .operator import _Backward, _DifferentiableOperator
from .scan import _reject_tangents
from .scores import _into_chunks, _into_tokens, _matrix, _Placed, _placed, _Scores, _scores, _scores_back, _transposed
from .time import _Run


def _solved(system: Tensor, rank: int, right: Tensor, back: bool = False) -> Tensor:
    """The y of `y + system y = right`, or of `y + systemᴴ y = right`, both over kinds and tokens; `system` reaches back
    to earlier tokens alone, so that it is a substitution."""
    size = right.shape[1] // rank if rank else 0
    if size <= 1:
        return right

    def by_token(x: Tensor, axis: int) -> Tensor:
        return x.unflatten(axis, (rank, size)).transpose(axis, axis + 1).flatten(axis, axis + 1) if rank > 1 else x

    system, right = by_token(by_token(system, 1), 2), by_token(right, 1)
    system = torch.conj_physical(system).mT if back else system
    found = torch.linalg.solve_triangular(system, right, upper=back, unitriangular=True)
    return found.unflatten(1, (size, rank)).transpose(1, 2).flatten(1, 2) if rank > 1 else found


class _Chunked(NamedTuple):
    """All that is of chunks: what stands in them, their scores, what the `c` are beside the state that enters, what is
    written beside the `c`, and the number of rows that are V's or U's."""

    at: _Placed
    d: Tensor
    z: Tensor
    x: Tensor
    v: Tensor
    parts: _Scores
    rows: int

    @property
    def scores(self) -> Tensor:
        return self.parts.scores.flatten(3).flatten(1, 2)


def _chunks_of(
    d: Tensor, z: Tensor, x: Tensor, v: Tensor, rank: int, before: int, size: int, cu_seqlens: Tensor | None
) -> _Chunked:
    at = _placed(z, size, cu_seqlens)
    unit = torch.eye(d.shape[-3], dtype=d.dtype, device=d.device).unsqueeze(-1)
    valid = at.valid.repeat_interleave(at.heads, 0)[..., None, None, None]
    d = torch.where(valid, _into_chunks(d.unsqueeze(3), at).squeeze(1), unit)
    z, x, v = (_into_chunks(y, at) for y in (z, x, v))
    return _Chunked(at, d, z, x, v.flatten(1, 2), _scores(d, z, x, before), rank * at.size)


def _in_order(state: Tensor, at: _Placed) -> Tensor:
    """[S, H, ...] as [sequences times heads, ...], the longest sequence first."""
    return (state if at.order is None else state[at.order]).flatten(0, 1)


def _out_of_order(state: Tensor, at: _Placed, like: Tensor) -> Tensor:
    state = state.reshape(like.shape)
    return state if at.order is None else torch.empty_like(state).index_copy_(0, at.order, state)


def _moved(whole: Tensor, state: Tensor, back: bool = False) -> Tensor:
    """What a factor leaves of a state, [g, n * K, M]."""
    n = whole.shape[-3]
    if n == 1:
        factor = whole.squeeze(-3).mT
        return (torch.conj_physical(factor) if back else factor) * state
    state = state.unflatten(1, (n, -1))
    whole = _transposed(whole) if back else whole
    return (whole.unsqueeze(-1) * state.unsqueeze(1)).sum(2).flatten(1, 2)


def _solve_chunks(c: _Chunked, rank: int, initial: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The states that enter chunks; what their tokens write, the c and v; and the last states.

    Each c is made of the state that has come so far: were the c of all tokens known before, errors of states would not
    be corrected.
    """
    first, last, rows, heads = _matrix(c.parts.start), _matrix(c.parts.end), c.rows, c.at.heads
    scores, whole = c.scores, c.parts.whole
    system, beside, writes = -scores[:, :rows, :rows], scores[:, :rows, rows:] @ c.v, last[:, rows:].mT @ c.v
    state = _in_order(initial, c.at).flatten(1, 2)
    entering: list[Tensor] = []
    solved: list[Tensor] = []
    done = 0
    for count in c.at.counts:
        g = slice(done, done := done + count * heads)
        now = state[: count * heads]
        entering.append(now)
        solved.append(_solved(system[g], rank, torch.baddbmm(beside[g], first[g, :rows], now)))
        new = torch.baddbmm(_moved(whole[g], now).add_(writes[g]), last[g, :rows].mT, solved[-1])
        state = new if count * heads == len(state) else torch.cat([new, state[count * heads :]])
    return torch.cat(entering), torch.cat([torch.cat(solved), c.v], 1), state


def _low_rank_forward(
    d: Tensor,
    z: Tensor,
    x: Tensor,
    v: Tensor,
    initial: Tensor,
    rank: int,
    before: int,
    size: int,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The reads of z, the first of which are the c, and the states after the last tokens."""
    c = _chunks_of(d, z, x, v, rank, before, size, cu_seqlens)
    entering, y, state = _solve_chunks(c, rank, initial)
    reads = torch.baddbmm(c.scores[:, c.rows :] @ y, _matrix(c.parts.start)[:, c.rows :], entering)
    reads = torch.cat([y[:, : c.rows], reads], 1).unflatten(1, (-1, size))
    return _into_tokens(reads, c.at, *z.shape[:2]), _out_of_order(state, c.at, initial)


def _low_rank_backward(
    grad: Tensor,
    d_final: Tensor,
    d: Tensor,
    z: Tensor,
    x: Tensor,
    v: Tensor,
    initial: Tensor,
    rank: int,
    before: int,
    size: int,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, ...]:
    """Gradients of d, z, x, v and the initial states. What flows back is the same recurrence with U and V exchanged,
    and readers and writers; the states that enter chunks are computed again."""
    c, conj = _chunks_of(d, z, x, v, rank, before, size, cu_seqlens), torch.conj_physical
    entering, y, _ = _solve_chunks(c, rank, initial)
    arriving = _into_chunks(grad, c.at).flatten(1, 2)
    first, last, whole = conj(_matrix(c.parts.start)), conj(_matrix(c.parts.end)), c.parts.whole
    scores, rows, heads = c.scores, c.rows, c.at.heads
    system, back = -scores[:, :rows, :rows], conj(scores).mT
    direct = torch.baddbmm(arriving[:, :rows], back[:, :rows, rows:], arriving[:, rows:])
    sent = first[:, rows:].mT @ arriving[:, rows:]
    flow, done = _in_order(d_final, c.at).flatten(1, 2), len(entering)
    leaving: list[Tensor] = []
    solved: list[Tensor] = []
    for count in reversed(c.at.counts):
        g = slice(done := done - count * heads, done + count * heads)
        now = flow[: count * heads]
        leaving.append(now)
        solved.append(_solved(system[g], rank, torch.baddbmm(direct[g], last[g, :rows], now), back=True))
        new = torch.baddbmm(_moved(whole[g], now, back=True).add_(sent[g]), first[g, :rows].mT, solved[-1])
        flow = new if count * heads == len(flow) else torch.cat([new, flow[count * heads :]])
    left, entered = torch.cat(leaving[::-1]), conj(entering)
    arriving = torch.cat([torch.cat(solved[::-1]), arriving[:, rows:]], 1)
    d_scores = (arriving @ conj(y).mT).reshape(c.parts.scores.shape)
    d_start = (arriving @ entered.mT).reshape(c.z.shape)
    d_end = (conj(y) @ left.mT).reshape(c.x.shape)
    d_v = torch.baddbmm(back[:, rows:] @ arriving, last[:, rows:], left)
    n = d.shape[-3]
    d_whole = left.unflatten(1, (n, -1)).unsqueeze(2) * entered.unflatten(1, (n, -1)).unsqueeze(1)
    d_whole = d_whole.sum(-1).sum_to_size(whole.shape)
    d_d, d_z, d_x = _scores_back(c.parts, c.d, c.z, c.x, before, d_scores, d_start, d_end, d_whole)
    found = [_into_tokens(g, c.at, *z.shape[:2]) for g in (d_d.unsqueeze(1), d_z, d_x, d_v.unflatten(1, (-1, size)))]
    return found[0].squeeze(3), *found[1:], _out_of_order(flow, c.at, initial)


def _by_length(
    call: Callable[[int], tuple[Tensor, ...]], d: Tensor, mixed: int, rank: int, bounded: bool
) -> tuple[Tensor, ...]:
    """Chunks of the length that suits; of one token where the products of factors over more may overflow where states
    do not, or something came out that is not finite: then no token is touched by a later one.

    What is overwritten cancels in a chunk, where steps would shrink it: so there are no more tokens in one than numbers
    that its transitions can overwrite.
    """
    rows = min(64 // max(1, rank), mixed // max(1, rank), 1 << max(0, d.shape[1] - 1).bit_length())
    length = 1 << max(0, rows.bit_length() - 1)
    recording = d.is_cuda and torch.cuda.is_current_stream_capturing()
    if not bounded and (recording or not _true((d.abs() <= 1).all())):
        return call(1)
    found = call(length)
    if length > 1 and not recording and not _true(torch.stack([x.sum().isfinite() for x in found]).all()):
        found = call(1)
    return found


def _low_rank_operator(namespace: str) -> _DifferentiableOperator:
    """Registers `low_rank(d, z, x, v, initial, cu_seqlens, rank, before, bounded)`: `S[t] = (D + U Vᵀ) S[t-1] + K v`
    and its reads `z S`, with its own backward.

    d: [B, T, H, n, n, K or 1]; z: [B, T, H, readers, n, K], V first, the first `before` of which read `S[t-1]`;
    x: [B, T, H, writers, n, K], U first; v: [B, T, H, writers - rank, M]; initial: [S, H, n, K, M]. `bounded` says that
    |d| <= 1. Saved: what it is given.
    """
    tensors = (
        "Tensor d, Tensor z, Tensor x, Tensor v, Tensor initial, Tensor? cu_seqlens, int rank, int before, bool bounded"
    )

    def low_rank(d, z, x, v, initial, cu_seqlens, rank, before, bounded):
        if z.numel() == 0 or initial.numel() == 0:
            return z.new_zeros((*z.shape[:4], v.shape[-1])), initial.clone()
        mixed = initial.shape[2] * initial.shape[3]
        with _without_autocast(initial):
            reads, final = _by_length(
                lambda size: _low_rank_forward(d, z, x, v, initial, rank, before, size, cu_seqlens),
                d,
                mixed,
                rank,
                bounded,
            )
            return reads, final.clone(memory_format=torch.contiguous_format)

    def fake(d, z, x, v, initial, cu_seqlens, rank, before, bounded):
        return z.new_empty((*z.shape[:4], v.shape[-1])), torch.empty_like(initial)

    def low_rank_backward(grad, d_final, d, z, x, v, initial, cu_seqlens, rank, before, bounded):
        if z.numel() == 0 or initial.numel() == 0:
            return *(torch.zeros_like(y) for y in (d, z, x, v)), d_final.clone()
        inputs, mixed = (grad, d_final, d, z, x, v, initial), initial.shape[2] * initial.shape[3]
        with _without_autocast(initial):
            found = _by_length(
                lambda size: _low_rank_backward(*inputs, rank, before, size, cu_seqlens), d, mixed, rank, bounded
            )
            return tuple(y.clone(memory_format=torch.contiguous_format) for y in found)

    def fake_backward(grad, d_final, d, z, x, v, initial, cu_seqlens, rank, before, bounded):
        return tuple(torch.empty_like(y, memory_format=torch.contiguous_format) for y in (d, z, x, v, initial))

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.rank, ctx.before, ctx.bounded = inputs
        ctx.save_for_backward(*tensors)

    def gradient(
        ctx: Any, backward: Callable[..., tuple[Tensor, ...]], grad: Tensor, d_final: Tensor
    ) -> tuple[Any, ...]:
        found = backward(grad, d_final, *ctx.saved_tensors, ctx.rank, ctx.before, ctx.bounded)
        return (*found, None, None, None, None)

    schema = f"({tensors}) -> (Tensor, Tensor)"
    back = _Backward(
        f"(Tensor grad, Tensor d_final, {tensors}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        low_rank_backward,
        fake_backward,
    )
    return _DifferentiableOperator(f"{namespace}::low_rank", schema, low_rank, fake, back, save, gradient)


def _low_rank(
    run: _Run,
    operator: Callable[..., tuple[Tensor, Tensor]],
    factors: Sequence[Sequence[Any]],
    terms: Sequence[tuple[int, Any, Sequence[Any], tuple[int, ...]]],
    writes: Sequence[tuple[Sequence[Any], Any]],
    queries: Sequence[tuple[int, Any, tuple[int, ...]]],
    before: int,
    initial: Sequence[Tensor],
    orders: Sequence[tuple[int, ...]],
    counts: tuple[int, int],
    over: int | None,
    bounded: bool,
) -> tuple[Tensor, ...]:
    """What the queries read of states with low-rank transitions, and the states after the last token.

    `orders` lay out each state's axes as heads, mixed ones and columns, `counts` of the first two. `factors[i][j]`:
    heads and mixed axes, the factor of state j in state i; each term: the state that is read, V (heads, axes of its own
    of the given sizes, mixed), U for each state; each write: K for each state (heads, mixed) and v (heads, columns);
    each query: the state, heads, its own axes, mixed; the first `before` read what was before the token. 0 where
    nothing is. Where there are `over` maps a token, all but queries have an axis of these in front.
    """
    states = [s.permute(0, *(i + 1 for i in order)) for s, order in zip(initial, orders)]
    sizes = states[0].shape[1:]
    heads, mixed, columns = sizes[: counts[0]], sizes[counts[0] : sum(counts)], sizes[sum(counts) :]
    state = torch.stack([s.reshape(s.shape[0], heads.numel(), mixed.numel(), columns.numel()) for s in states], 2)
    like, n = initial[0], len(initial)
    lead, maps = run.lead, () if over is None else (over,)

    def laid(value: Any, maps: tuple[int, ...], *groups: tuple[int, ...]) -> Tensor:
        """With all of its axes, one for the maps of a token, and those of each group merged."""
        value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
        value = value.expand(*lead, *maps, *(size for g in groups for size in g))
        return value.reshape(*lead, *(maps or (1,)), *(torch.Size(g).numel() for g in groups))

    def stacked(values: Sequence[Any], own: tuple[int, ...]) -> Tensor:
        """Vectors of all states: [..., own, n, K]."""
        return torch.stack([laid(x, maps, heads, own, mixed) for x in values], -2)

    def at(index: int, value: Any) -> list[Any]:
        return [value if i == index else 0.0 for i in range(n)]

    entries = [[torch.as_tensor(e, dtype=like.dtype, device=like.device) for e in row] for row in factors]
    alike = all(size == 1 for row in entries for e in row for size in e.shape[max(0, e.ndim - len(mixed)) :])
    along = (1,) * len(mixed) if alike else mixed
    d = torch.stack([torch.stack([laid(e, maps, heads, along) for e in row], -2) for row in entries], -3)
    readers = [stacked(at(index, right), own) for index, right, _, own in terms]
    writers = [stacked(left, own) for _, _, left, own in terms] + [stacked(left, ()) for left, _ in writes]
    rank = sum(r.shape[-3] for r in readers)
    for i, (index, query, own) in enumerate(queries):
        asked = torch.stack([laid(q, (), heads, own, mixed) for q in at(index, query)], -2)
        gap = d.shape[len(lead)] - 1
        lacking = (0, gap) if i < before else (gap, 0)
        readers.append(F.pad(asked, (0, 0) * 4 + lacking))
    z, x = torch.cat(readers, -3), torch.cat(writers, -3) if writers else d.new_zeros(())
    v = [laid(right, maps, heads, columns) for _, right in writes]
    values = torch.stack(v, -2) if v else x.new_zeros((*x.shape[:-3], 0, columns.numel()))
    before = rank + sum(torch.Size(own).numel() for _, _, own in queries[:before])
    if len(lead) == 1:
        with _without_autocast(state):
            reads, final = _low_rank_steps(d, z, x, values, state, rank, before)
    else:
        inputs = [y.flatten(1, 2) for y in (d, z, x, values)]
        _reject_tangents(*inputs, state)
        ends = None if run.cu_seqlens is None else run.cu_seqlens * d.shape[2]
        reads, final = operator(*inputs, state.contiguous(), ends, rank, before, bounded)
        reads = reads.unflatten(1, d.shape[1:3])
    reads = torch.cat(
        [
            reads[(slice(None),) * len(lead) + (0,)][..., rank:before, :],
            reads[(slice(None),) * len(lead) + (-1,)][..., before:, :],
        ],
        -2,
    )
    found = reads.split([torch.Size(own).numel() for _, _, own in queries], -2)
    finals = (
        s.reshape(s.shape[0], *sizes).permute(0, *(order.index(i) + 1 for i in range(len(order))))
        for s, order in zip(final.unbind(2), orders)
    )
    return *(y.reshape(*lead, *heads, *own, *columns) for y, (_, _, own) in zip(found, queries)), *finals


def _low_rank_steps(
    d: Tensor, z: Tensor, x: Tensor, v: Tensor, state: Tensor, rank: int, before: int
) -> tuple[Tensor, Tensor]:
    """One token's maps: all are [B, maps, H, ...]."""
    reads: list[Tensor] = []
    for d_j, z_j, x_j, v_j in zip(*(y.unbind(1) for y in (d, z, x, v))):
        z_j, x_j, past = z_j.flatten(-2), x_j.flatten(-2), state.flatten(2, 3)
        early = z_j[:, :, :before] @ past
        written = x_j.mT @ torch.cat([early[:, :, :rank], v_j], -2)
        state = (d_j.unsqueeze(-1) * state.unsqueeze(2)).sum(3) + written.reshape(state.shape)
        reads.append(torch.cat([early, z_j[:, :, before:] @ state.flatten(2, 3)], -2))
    return torch.stack(reads, 1), state


def _low_rank_columns(
    run: _Run,
    scan: Callable[..., Tensor],
    chunks: Callable[..., tuple[Tensor, Tensor]],
    operator: Callable[..., tuple[Tensor, Tensor]],
    factors: Sequence[Sequence[Any]],
    terms: Sequence[tuple[int, Any, Sequence[Any], tuple[int, ...]]],
    writes: Sequence[tuple[Sequence[Any], Any]],
    queries: Sequence[tuple[int, Any, tuple[int, ...]]],
    before: int,
    initial: Sequence[Tensor],
    orders: Sequence[tuple[int, ...]],
    counts: tuple[int, int],
    over: int | None,
    bounded: bool,
) -> tuple[Tensor, ...]:
    """The same of one state, for queries that sum over its columns: what V reads is known first, and then written like
    all else."""
    (order,), (state,) = orders, initial
    sizes = [state.shape[i + 1] for i in order]
    heads, columns = counts[0], len(order) - sum(counts)
    asked = [(0, right, own) for _, right, _, own in terms]
    *found, _ = _low_rank(
        run, operator, factors, terms, writes, asked, len(terms), initial, orders, counts, over, bounded
    )
    pairs = [(right, left) for (left,), right in writes]
    for c, (_, _, (left,), own) in zip(found, terms):
        size = torch.Size(own).numel()
        left = torch.as_tensor(left, dtype=state.dtype, device=state.device)
        left = left.expand(*run.lead, *sizes[:heads], *own, *sizes[heads : sum(counts)])
        lead = len(run.lead) + heads
        c, left = (x.reshape(*x.shape[:lead], size, *x.shape[lead + len(own) :]).unbind(lead) for x in (c, left))
        pairs += zip(c, left)
    turned = (*order[:heads], *order[sum(counts) :], *order[heads : sum(counts)])
    reads = [(query, own) for _, query, own in queries]
    return _chunked(run, scan, chunks, factors[0][0], reads, before, pairs, state, turned, (heads, columns), False)
