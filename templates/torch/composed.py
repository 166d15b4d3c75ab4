"""Recurrences in segments of time side by side: those whose step maps compose, and the backward of any whose entries do
not mix."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .loop import _stepped, _sweep_tokens
from .time import _along, _past, _Run


class _Maps(NamedTuple):
    """What each token does to all that a recurrence holds, and how such maps compose.

    Held are the newest pasts of each stream, `lags` of them: forwards their values, backwards their gradients.
    `compose(*later, *earlier)` gives the parameters of both maps as one, `apply(*parameters, *held)` what is held a
    token later. Forwards `parameters(*hoisted, *fixed, *sizes, *consts)` gives those of all tokens. Backwards it takes
    `past` and the new values too, and gives matrices; what is added to their products follows: for each further
    parameter the stream whose gradient arrives there (-1: none).
    """

    parameters: Callable[..., tuple[Any, ...]]
    compose: Callable[..., tuple[Tensor, ...]]
    apply: Callable[..., tuple[Tensor, ...]]
    lags: tuple[int, ...]
    arriving: tuple[int, ...] = ()


def _matrices(
    pattern: Sequence[str], rows: Sequence[int]
) -> tuple[Callable[..., tuple[Tensor, ...]], Callable[..., tuple[Tensor, ...]]]:
    """`compose` and `apply` of `A s + b`: parameters are the entries of A where `pattern` has an x, then those of b."""
    entries = [(i, j) for i, row in enumerate(pattern) for j, mark in enumerate(row) if mark == "x"]
    count, whole, size = len(entries), len(entries) + len(rows), range(len(pattern))

    def dot(pairs: Sequence[tuple[Tensor, Tensor]], total: Tensor | None = None) -> Tensor:
        for x, y in pairs:
            alike = total is not None and x.dtype == y.dtype == total.dtype
            total = x * y if total is None else torch.addcmul(total, x, y) if alike else total + x * y
        assert total is not None
        return total

    def compose(*maps: Tensor) -> tuple[Tensor, ...]:
        a2, a1 = dict(zip(entries, maps)), dict(zip(entries, maps[whole:]))
        b2, b1 = dict(zip(rows, maps[count:whole])), dict(zip(rows, maps[whole + count :]))
        matrix = [dot([(a2[i, k], a1[k, j]) for k in size if (i, k) in a2 and (k, j) in a1]) for i, j in entries]
        return (*matrix, *(dot([(a2[i, k], b1[k]) for k in rows if (i, k) in a2], b2[i]) for i in rows))

    def apply(*given: Tensor) -> tuple[Tensor, ...]:
        a, b, held = dict(zip(entries, given)), dict(zip(rows, given[count:whole])), given[whole:]
        return tuple(dot([(a[i, j], held[j]) for j in size if (i, j) in a], b.get(i)) for i in size)

    return compose, apply


class _Segments(NamedTuple):
    """Tokens cut into segments of `size`, gone through from the last to the first if `reverse`.

    Segments stand in the order of time; the one that is gone through last may be shorter.
    """

    steps: int
    size: int
    reverse: bool

    @property
    def many(self) -> int:
        return -(-self.steps // self.size)

    def at(self, i: int) -> slice:
        """The tokens that come as number `i` in each segment."""
        return slice((self.steps - 1 - i) % self.size if self.reverse else i, None, self.size)

    def cut(self, x: Tensor, axis: int = 1) -> Tensor:
        """The tokens of all segments but the one gone through last: [..., many - 1, size, ...]."""
        some = (self.many - 1) * self.size
        x = x.narrow(axis, self.steps - some if self.reverse else 0, some)
        return x.unflatten(axis, (self.many - 1, self.size))

    def leaving(self, x: Tensor) -> Tensor:
        """Of something for each segment, those of all but the one gone through last."""
        return x[:, x.shape[1] - self.many + 1 :] if self.reverse else x[:, : self.many - 1]

    def entered(self, x: Tensor) -> Tensor:
        """Of something for each segment, those of all but the one gone through first."""
        return x[:, :-1] if self.reverse else x[:, 1:]


def _spread_map(parameters: Sequence[Any], like: Tensor) -> list[Tensor]:
    """Parameters with axes for the batch and the tokens, of size 1 where they do not differ; `like` is [B, T, ...]."""
    tensors = [
        torch.full((), p, dtype=like.dtype, device=like.device) if not isinstance(p, Tensor) else p for p in parameters
    ]
    real = like.real.dtype
    tensors = [p.to(real) if p.is_floating_point() else p for p in tensors]
    return [p[(None,) * (like.ndim - p.ndim)] for p in tensors]


def _of(parameters: Sequence[Tensor], at: slice) -> list[Tensor]:
    """The parameters at some tokens."""
    return [p if p.shape[1] == 1 else p[:, at] for p in parameters]


def _each(parameters: Sequence[Tensor], count: int) -> list[tuple[Tensor, ...]]:
    """The parameters of `count` maps, one map after the other."""
    return list(zip(*(p.unbind(1) if p.shape[1] > 1 else (p[:, 0],) * count for p in parameters)))


def _totals(
    compose: Callable[..., tuple[Tensor, ...]], parameters: Sequence[Tensor], fresh: Tensor | None, way: _Segments
) -> tuple[list[Tensor], Tensor | None]:
    """Each segment as one map, pairs of neighbours composed again and again; and whether a sequence begins in it."""
    maps = [p.unsqueeze(2) if p.shape[1] == 1 else way.cut(p) for p in parameters]
    begins = None if fresh is None else way.cut(fresh, 0)
    size = way.size
    while size > 1:
        even, odd = ([m if m.shape[2] == 1 else m[:, :, i::2] for m in maps] for i in (0, 1))
        earlier, later = (odd, even) if way.reverse else (even, odd)
        maps = list(compose(*later, *earlier))
        if begins is not None:
            # What was before the first token of a sequence is not for it.
            cut = begins[:, 0::2] if way.reverse else begins[:, 1::2]
            maps = [torch.where(_along(cut, m[0]), q, m) for m, q in zip(maps, later)]
            begins = begins[:, 0::2] | begins[:, 1::2]
        size //= 2
    return [m.squeeze(2) for m in maps], None if begins is None else begins.squeeze(1)


def _in_segments(
    maps: _Maps,
    parameters: Sequence[Tensor],
    step: Callable[[slice, list[Tensor]], Sequence[Tensor]],
    initial: Sequence[Tensor],
    way: _Segments,
    fresh: Tensor | None,
    begin: Callable[[slice], Sequence[Tensor | float]],
) -> list[Tensor] | None:
    """What is held after each token, of every stream the newest; None where products lost what a state needs.

    The maps of each segment are composed, which gives what enters every segment; from there `step(tokens, held)` goes
    through all segments side by side. Where it arrives at the end of one must be what enters the next. Where `fresh`,
    [T], `begin(tokens)` takes the place of what is held.
    """
    shapes = [x.shape[1:] for x in initial]
    heads = list(itertools.accumulate(maps.lags[:-1], initial=0))
    totals, begins = _totals(maps.compose, parameters, fresh, way)
    held, entering = list(initial), [list(initial)]
    starts = [] if begins is None else begin(way.at(way.size - 1))
    rows = _each(totals, way.many - 1)
    for k in range(way.many - 2, -1, -1) if way.reverse else range(way.many - 1):
        if begins is not None:
            # The last token of a segment is of the sequence that began last.
            start = [x[:, k] if isinstance(x, Tensor) else x for x in starts]
            held = [torch.where(begins[k], x, h) for x, h in zip(start, held)]
        held = [h.expand(x.shape) for h, x in zip(maps.apply(*rows[k], *held), initial)]
        entering.append(held)
    ordered = reversed(entering) if way.reverse else entering
    entered = held = [torch.stack(x, 1) for x in zip(*ordered)]
    values = [initial[i].new_empty(initial[i].shape[0], way.steps, *shapes[i]) for i in heads]
    for i in range(way.size):
        at = way.at(i)
        count = len(range(*at.indices(way.steps)))
        if count < held[0].shape[1]:
            held = [x[:, 1:] if way.reverse else x[:, :-1] for x in held]
        if fresh is not None:
            held = [torch.where(_along(fresh[at], h[0]), x, h) for x, h in zip(begin(at), held)]
        held = [x.expand(h.shape) for x, h in zip(step(at, held), held)]
        for value, head in zip(values, heads):
            value[:, at] = held[head]
    return values if _holds(maps.lags, values, entered, held, way) else None


def _holds(
    lags: Sequence[int],
    values: Sequence[Tensor],
    entered: Sequence[Tensor],
    held: Sequence[Tensor],
    way: _Segments,
) -> bool:
    """Whether the segments arrive at what composing gave for the next ones' entry, up to some roundings.

    A thousand of them of the stream's own largest number within the segment, or some tens of the whole group's: what
    cancels in one stream may be made of another's numbers. What is not finite must be the same.
    """
    sizes: list[Tensor] = []
    first = 0
    for value, lag in zip(values, lags):
        largest = torch.nan_to_num_(way.cut(value).abs(), 0.0, 0.0).amax(2)
        for x in entered[first : first + lag]:
            largest = torch.maximum(largest, way.leaving(x).abs().nan_to_num(0.0, 0.0))
        sizes.append(largest)
        first += lag
    alike = len(sizes) > 1 and len({x.shape for x in sizes}) == 1
    group = torch.stack(sizes).amax(0) if alike else sizes[0]
    eps = torch.finfo(values[0].dtype).eps
    right: list[Tensor] = []
    which = itertools.chain.from_iterable(itertools.repeat(i, lag) for i, lag in enumerate(lags))
    for i, arrived, composed in zip(which, held, entered):
        x, y = way.leaving(arrived), way.entered(composed)
        allowed = 1000 * eps * sizes[i] + torch.finfo(values[0].dtype).tiny
        if alike:
            allowed = torch.maximum(allowed, 32 * eps * group)
        # An infinite difference is within no bound, and NaN is equal to nothing.
        right.append((((x - y).abs() <= allowed) | (x == y) | ((x != x) & (y != y))).all())
    return _true(torch.stack(right).all())


def _true(answer: Tensor) -> bool:
    """The only numbers that a call reads from a tensor: on a GPU, the host waits for them."""
    return bool(answer)


def _worthwhile(like: Tensor) -> bool:
    """Whether to cut time into segments: [B, T, ...] with fewer, larger operations than tokens.

    Not where one token's operations take longer than their launch. Not while a CUDA graph is recorded, when the host
    cannot ask whether what was composed holds.
    """
    if like.shape[1] < 16 or (like[:, 0].numel() > 1024 and like.device.type == "cpu"):
        return False
    return not _recorded(like)


def _recorded(like: Tensor) -> bool:
    return like.is_cuda and torch.cuda.is_current_stream_capturing()


def _way(steps: int, reverse: bool = False) -> _Segments:
    """As many segments as each has tokens, about; their size a power of two."""
    return _Segments(steps, 1 << (steps.bit_length() // 2), reverse)


def _composed(maps: _Maps) -> Callable[..., list[Tensor]]:
    """A loop's way forwards, where its step maps compose. Stepped where that does not hold, or would not be faster."""

    def run(
        step: Callable[..., tuple[Tensor, ...]],
        hoisted: Sequence[Tensor],
        shared: Iterable[Tensor],
        fixed: Sequence[Tensor],
        history: Sequence[Tensor],
        numbers: Sequence[float],
        steps: int,
        sequence: Tensor | None,
        position: Tensor | None,
    ) -> list[Tensor]:
        batch = history[0].shape[0] if sequence is None else 1
        like = history[0][:batch, :1].expand(-1, steps, *history[0].shape[2:])
        values = None
        if _worthwhile(like):
            ends = [*itertools.accumulate(maps.lags)]
            depths = [h.shape[1] for h in history]

            def advance(at: slice, held: list[Tensor]) -> list[Tensor]:
                # No step reads further back than what is held.
                streams = [held[end - lag : end] for end, lag in zip(ends, maps.lags)]
                past = [x for xs, depth in zip(streams, depths) for x in (*xs, *xs[-1:] * (depth - len(xs)))]
                new = step(*(x[:, at] for x in hoisted), *shared, *past, *numbers)
                now = [x.to(h.dtype).expand(xs[0].shape) for x, h, xs in zip(new, history, streams)]
                return [y for x, xs in zip(now, streams) for y in (x, *xs[:-1])]

            def begin(at: slice) -> list[Tensor]:
                assert sequence is not None
                return [h[sequence[at], i].unsqueeze(0) for h, lag in zip(history, maps.lags) for i in range(lag)]

            initial = [h[:batch, i] for h, lag in zip(history, maps.lags) for i in range(lag)]
            parameters = _spread_map(maps.parameters(*hoisted, *fixed, *numbers), like)
            fresh = None if position is None else position == 0
            values = _in_segments(maps, parameters, advance, initial, _way(steps), fresh, begin)
        if values is None:
            values = _stepped(step, hoisted, shared, fixed, history, numbers, steps, sequence, position)
        return values

    return run


def _sweep_scan(flow: _Maps) -> Callable[..., list[Tensor]]:
    """The backward of a loop whose entries do not mix, in a few operations over all tokens.

    With `λ[t]` the gradient of all that is held after token t and `J[t]` the derivative of its step, the backward of
    any recurrence is affine, `λ[t-1] = J[t]ᵀ λ[t] + g[t-1]`: whatever the forward is, maps that compose. Where a `λ` is
    not finite tokens are gone through one after the other: a branch that was not taken gives 0, and `0 * inf` is not.
    """

    def sweep(
        back: Callable[..., tuple[tuple[Tensor, ...], ...]],
        products: tuple[tuple[int, str, int, int], ...],
        grads: Sequence[Tensor],
        values: Sequence[Tensor],
        hoisted: Sequence[Tensor],
        shared: Iterable[Tensor],
        fixed: Sequence[Tensor],
        history: Sequence[Tensor],
        numbers: Sequence[float],
        sequence: Tensor | None,
        position: Tensor | None,
    ) -> list[Tensor]:
        call = (back, products, grads, values, hoisted, shared, fixed, history, numbers, sequence, position)
        if _recorded(values[0]):
            return _sweep_tokens(*call)
        live, free = ([x for x in xs if x.dtype != torch.bool] for xs in (hoisted, fixed))
        d_history = [torch.zeros_like(h) for h in history]
        steps = values[0].shape[1]
        if steps == 0:
            return [*(torch.zeros_like(x) for x in (*live, *free)), *d_history]
        run = _Run((values[0].shape[0], steps), values[0], sequence, position)
        past: list[Tensor] = []
        for value, before, lags in zip(values, history, flow.lags):
            read = [_past(run, value, before, lag) for lag in range(1, lags + 1)]
            past += [*read, *read[-1:] * (before.shape[1] - lags)]
        slopes = flow.parameters(*hoisted, *fixed, *past, *values, *numbers)
        fresh = None if position is None else position == 0
        arriving = _cotangents(flow, _spread_map(slopes, values[0]), grads, fresh)
        if not _true(torch.stack([x.sum().isfinite() for x in arriving]).all()):
            return _sweep_tokens(*call)
        d_past, d_tokens, d_free, _ = back(*arriving, *hoisted, *shared, *past, *values, *numbers)
        slots = iter(d_past)
        for value, d_before, lags in zip(values, d_history, flow.lags):
            for lag in range(1, d_before.shape[1] + 1):
                d = next(slots)
                if lag > lags:
                    continue
                if sequence is None or position is None:
                    early = min(lag, steps)
                    d_before[:, lag - early : lag] += d.expand_as(value)[:, :early].flip(1)
                else:
                    share = torch.where(_along(position < lag, value[0]), d.expand_as(value)[0], 0.0)
                    slot = sequence * d_before.shape[1] + (lag - 1 - position).clamp(min=0)
                    d_before.view(-1, *d_before.shape[2:]).index_add_(0, slot, share.to(d_before.dtype))
        made = [d.expand_as(x) for d, x in zip(d_tokens, live)]
        made += [d.sum_to_size(x.shape) for d, x in zip(d_free, free)]
        return _apart([*made, *d_history], [*grads, *values, *hoisted, *fixed, *history])

    return sweep


def _cotangents(
    flow: _Maps, slopes: Sequence[Tensor], grads: Sequence[Tensor], fresh: Tensor | None
) -> Sequence[Tensor]:
    """The gradients of each stream's values, those that flow from later tokens included."""
    steps = grads[0].shape[1] - 1
    if steps == 0:
        return grads
    zero = grads[0].new_zeros((1,) * grads[0].ndim)
    parameters = [x if x.shape[1] == 1 else x[:, 1:] for x in slopes]
    parameters += [zero if i < 0 else grads[i][:, :-1] for i in flow.arriving]
    initial = [
        x for grad, lags in zip(grads, flow.lags) for x in (grad[:, -1], *[torch.zeros_like(grad[:, -1])] * (lags - 1))
    ]
    fresh = None if fresh is None else fresh[1:]

    def step(at: slice, held: list[Tensor]) -> Sequence[Tensor]:
        return flow.apply(*_of(parameters, at), *held)

    values = None
    if _worthwhile(grads[0]):
        way = _way(steps, reverse=True)
        values = _in_segments(flow, parameters, step, initial, way, fresh, lambda _: [0.0] * len(initial))
    if values is None:
        values = _applied(flow, parameters, initial, steps, fresh)
    return [torch.cat([value, grad[:, -1:]], 1) for value, grad in zip(values, grads)]


def _applied(
    flow: _Maps, parameters: Sequence[Tensor], initial: Sequence[Tensor], steps: int, fresh: Tensor | None
) -> list[Tensor]:
    """The same, one token after the other."""
    heads = list(itertools.accumulate(flow.lags[:-1], initial=0))
    rows: list[list[Tensor]] = [[] for _ in heads]
    held = list(initial)
    each = _each(parameters, steps)
    for t in range(steps - 1, -1, -1):
        if fresh is not None:
            held = [torch.where(fresh[t], 0.0, h) for h in held]
        held = [x.expand(h.shape) for x, h in zip(flow.apply(*each[t], *held), held)]
        for row, head in zip(rows, heads):
            row.append(held[head])
    return [torch.stack(row[::-1], 1) for row in rows]


def _apart(made: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous tensors, none of which shares memory with another or with what was given: results of an operator."""
    taken = {x.untyped_storage().data_ptr() for x in given}
    out: list[Tensor] = []
    for x in made:
        own = x.contiguous()
        own = own.clone() if own.untyped_storage().data_ptr() in taken else own
        taken.add(own.untyped_storage().data_ptr())
        out.append(own)
    return out
