"""Recurrences that are stepped: a loop over tokens and its backward, as an operator."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .operator import _Backward, _DifferentiableOperator
from .scan import _reject_tangents
from .time import _Run


def _without_autocast(like: Tensor) -> torch.autocast:
    """Where recurrences run: in the computing dtype, whatever autocast says of the caller."""
    kind = like.device.type
    return torch.autocast(kind if torch.amp.is_autocast_available(kind) else "cpu", enabled=False)


class _Loop(NamedTuple):
    """A recurrence that is stepped, and its operator.

    step(*hoisted, *fixed, *packed, *past, *sizes, *consts) gives the new value of each stream; `past` holds each stream
    1, 2, ... tokens ago. `pack(*fixed)` makes what the steps share.
    """

    step: Callable[..., tuple[Tensor, ...]]
    pack: Callable[..., tuple[Tensor, ...]]
    operator: Callable[..., list[Tensor]]
    on_gpu: bool


def _nothing(*_: Tensor) -> tuple[Tensor, ...]:
    """For loops whose steps share no packed weights."""
    return ()


def _places(sequence: Tensor | None, position: Tensor | None) -> Any:
    """For each token of packed sequences the one it belongs to, and where it stands there."""
    return None if sequence is None or position is None else (sequence.unbind(0), position.unbind(0))


def _pasts(values: Sequence[Sequence[Tensor]], history: Sequence[Tensor], t: int, where: Any) -> list[Tensor]:
    """Every stream 1, 2, ... tokens before `t`."""
    out: list[Tensor] = []
    for value, before in zip(values, history):
        for lag in range(1, before.shape[1] + 1):
            if where is None:
                out.append(value[t - lag] if t >= lag else before[:, lag - 1 - t])
                continue
            sequence, position = where[0][t], where[1][t]
            early = before[sequence, (lag - 1 - position).clamp(min=0)].unsqueeze(0)
            out.append(torch.where(position < lag, early, value[t - lag]) if t >= lag else early)
    return out


def _stepped(
    step: Callable[..., tuple[Tensor, ...]],
    hoisted: Sequence[Tensor],
    shared: Sequence[Tensor],
    _fixed: Sequence[Tensor],
    history: Sequence[Tensor],
    numbers: Sequence[float],
    steps: int,
    sequence: Tensor | None,
    position: Tensor | None,
) -> list[Tensor]:
    """The streams of a loop, token after token."""
    where = _places(sequence, position)
    tokens = [x.unbind(1) for x in hoisted]
    values: list[list[Tensor]] = [[] for _ in history]
    batch = history[0].shape[0] if where is None else 1
    for t in range(steps):
        new = step(*(x[t] for x in tokens), *shared, *_pasts(values, history, t, where), *numbers)
        for value, now, before in zip(values, new, history):
            value.append(now.to(before.dtype).expand(batch, *before.shape[2:]))
    return [torch.stack(v, 1) if v else h.new_empty(batch, 0, *h.shape[2:]) for v, h in zip(values, history)]


def _sweep_tokens(
    back: Callable[..., tuple[tuple[Tensor, ...], ...]],
    products: tuple[tuple[int, str, int, int], ...],
    grads: Sequence[Tensor],
    values: Sequence[Tensor],
    hoisted: Sequence[Tensor],
    shared: Sequence[Tensor],
    fixed: Sequence[Tensor],
    history: Sequence[Tensor],
    numbers: Sequence[float],
    sequence: Tensor | None,
    position: Tensor | None,
) -> list[Tensor]:
    """The backward of a loop, from the last token to the first.

    Gives the gradients of hoisted and fixed values, weights and histories.
    """
    weights = {p[0] for p in products}
    where = _places(sequence, position)
    tokens = [x.unbind(1) for x in hoisted]
    d_values = [list(g.unbind(1)) for g in grads]
    series = [v.unbind(1) for v in values]
    live = [i for i, x in enumerate(hoisted) if x.dtype != torch.bool]
    free = [i for i, x in enumerate(fixed) if x.dtype != torch.bool and i not in weights]
    d_hoisted: list[list[Tensor]] = [[] for _ in live]
    d_fixed = [torch.zeros_like(fixed[i]) for i in free]
    d_history = [torch.zeros_like(h) for h in history]
    operands: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in products]
    for t in range(values[0].shape[1] - 1, -1, -1):
        d_past, d_tokens, d_free, pairs = back(
            *(d[t] for d in d_values),
            *(x[t] for x in tokens),
            *shared,
            *_pasts(series, history, t, where),
            *(v[t] for v in series),
            *numbers,
        )
        slots = iter(d_past)
        for d_value, d_before in zip(d_values, d_history):
            for lag in range(1, d_before.shape[1] + 1):
                d = next(slots)
                if where is None:
                    if t >= lag:
                        d_value[t - lag] = d_value[t - lag] + d
                    else:
                        d_before[:, lag - 1 - t] += d
                    continue
                sequence_t, position_t = where[0][t], where[1][t]
                early = position_t < lag
                if t >= lag:
                    d_value[t - lag] = d_value[t - lag] + torch.where(early, 0.0, d)
                slot = (lag - 1 - position_t).clamp(min=0)
                share = torch.where(early, d, 0.0).to(d_before.dtype).expand(1, *d_before.shape[2:])[0]
                d_before.index_put_((sequence_t, slot), share, accumulate=True)
        for total, d in zip(d_hoisted, d_tokens):
            total.append(d)
        for i, (index, d) in enumerate(zip(free, d_free)):
            d_fixed[i] += d.sum_to_size(fixed[index].shape)
        for (left, right), (x, y) in zip(operands, pairs):
            left.append(x)
            right.append(y)
    out = [
        torch.stack([d.expand_as(hoisted[i][:, 0]) for d in reversed(total)], 1)
        if total
        else torch.zeros_like(hoisted[i])
        for i, total in zip(live, d_hoisted)
    ]
    d_weights = [torch.zeros_like(fixed[i]) for i in sorted(weights)]
    for (index, equation, n, m), (left, right) in zip(products, operands):
        if left:
            x, y = (torch.stack(z) for z in (left, right))
            x, y = (z.reshape(-1, *z.shape[z.ndim - k :]) for z, k in ((x, n), (y, m)))
            d_weight = torch.einsum(equation, torch.conj_physical(x), y)
            total = d_weights[sorted(weights).index(index)]
            total += d_weight if total.is_complex() else d_weight.real
    return [*(x.contiguous() for x in out), *d_fixed, *d_weights, *d_history]


def _loop_operator(
    namespace: str,
    name: str,
    step: Callable[..., tuple[Tensor, ...]],
    back: Callable[..., tuple[tuple[Tensor, ...], ...]],
    pack: Callable[..., tuple[Tensor, ...]],
    products: tuple[tuple[int, str, int, int], ...],
    run: Callable[..., list[Tensor]],
    sweep: Callable[..., list[Tensor]],
    saved: tuple[tuple[tuple[int, int], ...], ...] = (),
    on_gpu: bool = False,
) -> _Loop:
    """Registers a loop over tokens and its backward.

    back(*grads, *hoisted, *fixed, *packed, *past, *new, *sizes, *consts) gives the gradients of past, of the hoisted
    and fixed values that have one, and the operands of `products`: for each (index of a weight among the fixed values,
    einsum of its gradient, axes of the first operand, axes of the second), multiplied once after the loop. `run` takes
    the step through time, `sweep` its backward. Saved are what comes in, the values of the streams, and what `run`
    writes for `sweep` on a CPU (with `on_gpu` there too): `saved` says of each axis which of the histories and fixed
    values has it, and where. When none is to be kept, there is room for one token of each sequence.
    """
    arguments = (
        "Tensor[] hoisted, Tensor[] fixed, Tensor[] history, int[] sizes, float[] consts, SymInt steps, "
        "Tensor? sequence, Tensor? position"
    )
    weights = {p[0] for p in products}

    def room(fixed, history, *lead):
        like = (*history, *fixed)
        here = on_gpu or history[0].device.type == "cpu"
        shapes = [[like[i].shape[axis] for i, axis in dims] for dims in saved] if here else []
        return [history[0].real.new_empty(*lead, *shape) for shape in shapes]

    def forward(hoisted, fixed, history, sizes, consts, steps, sequence, position, keep):
        with _without_autocast(history[0]):
            shared, numbers = (*fixed, *pack(*fixed)), (*sizes, *consts)
            batch = history[0].shape[0]
            more = room(fixed, history, *((batch if sequence is None else 1, steps) if keep else (batch,)))
            values = run(step, hoisted, shared, fixed, history, numbers, steps, sequence, position, *more)
            return [*values, *more] if keep else values

    def fake(hoisted, fixed, history, sizes, consts, steps, sequence, position, keep):
        lead = (history[0].shape[0] if sequence is None else 1, steps)
        return [*(h.new_empty(*lead, *h.shape[2:]) for h in history), *(room(fixed, history, *lead) if keep else [])]

    def backward(grads, values, hoisted, fixed, history, sizes, consts, steps, sequence, position):
        with _without_autocast(history[0]):
            shared, numbers = (*fixed, *pack(*fixed)), (*sizes, *consts)
            values, more = values[: len(history)], values[len(history) :]
            call = (grads, values, hoisted, shared, fixed, history, numbers, sequence, position, *more)
            return sweep(back, products, *call)

    def fake_backward(grads, values, hoisted, fixed, history, sizes, consts, steps, sequence, position):
        free = [x for i, x in enumerate(fixed) if x.dtype != torch.bool and i not in weights]
        kept = [x for x in hoisted if x.dtype != torch.bool] + free + [fixed[i] for i in sorted(weights)] + history
        return [torch.empty_like(x) for x in kept]

    def save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
        hoisted, fixed, history, ctx.sizes, ctx.consts, ctx.steps, sequence, position, _ = inputs
        ctx.counts = (len(hoisted), len(fixed), len(history), len(output))
        ctx.packed = sequence is not None
        packed = [sequence, position] if ctx.packed else []
        ctx.save_for_backward(*hoisted, *fixed, *history, *output, *packed)

    def gradient(ctx: Any, backward: Callable[..., list[Tensor]], grads: list[Tensor | None]) -> tuple[Any, ...]:
        tensors = iter(ctx.saved_tensors)
        hoisted, fixed, history, values = ([next(tensors) for _ in range(n)] for n in ctx.counts)
        sequence, position = (next(tensors), next(tensors)) if ctx.packed else (None, None)
        full = [v.new_zeros(()).expand_as(v) if g is None else g for g, v, _ in zip(grads, values, history)]
        out = iter(
            backward(full, values, hoisted, fixed, history, ctx.sizes, ctx.consts, ctx.steps, sequence, position)
        )
        d_hoisted = [None if x.dtype == torch.bool else next(out) for x in hoisted]
        d_fixed = [None if x.dtype == torch.bool or i in weights else next(out) for i, x in enumerate(fixed)]
        for i in sorted(weights):
            d_fixed[i] = next(out)
        # PyTorch takes an empty list for one of tensors.
        numbers = (None if n else [] for n in (ctx.sizes, ctx.consts))
        return d_hoisted, d_fixed, [next(out) for _ in history], *numbers, None, None, None, None

    schema = f"({arguments}, bool keep) -> Tensor[]"
    sweeps = _Backward(f"(Tensor[] grads, Tensor[] values, {arguments}) -> Tensor[]", backward, fake_backward)
    operator = _DifferentiableOperator(f"{namespace}::{name}", schema, forward, fake, sweeps, save, gradient)
    return _Loop(step, pack, operator, on_gpu)


def _steps(
    run: _Run,
    loop: _Loop,
    hoisted: Sequence[Tensor],
    fixed: Sequence[Tensor],
    history: Sequence[Tensor],
    sizes: Sequence[int] = (),
    consts: Sequence[float] = (),
) -> Sequence[Tensor]:
    """The streams of a loop: histories are [B, depth, ...], newest first; results [*run.lead, ...]."""
    if len(run.lead) == 1:
        with _without_autocast(history[0]):
            past = [x for h in history for x in h.unbind(1)]
            new = loop.step(*hoisted, *fixed, *loop.pack(*fixed), *past, *sizes, *consts)
            return [x.to(h.dtype).expand(run.lead[0], *h.shape[2:]) for x, h in zip(new, history)]
    _reject_tangents(*hoisted, *fixed, *history)
    # A loop in Python saves nothing more.
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (*hoisted, *fixed, *history))
    keep = keep and (loop.on_gpu or os.environ.get("RNNC_LOOPS") != "python")
    given = (list(hoisted), list(fixed), list(history), list(sizes), list(consts), run.lead[1])
    return loop.operator(*given, run.sequence, run.position, keep)[: len(history)]
