"""Affine recurrences: an explicit scan with its own backward, as an operator."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .operator import _Backward, _DifferentiableOperator
from .time import _along, _Run


def _free_namespace(name: str, operator: str) -> str:
    """A namespace for operators that this process has not used: a reload or an edited copy of a file gets its own."""
    names = (f"{name}_{i}" for i in itertools.count())
    return next(n for n in names if not hasattr(getattr(torch.ops, n), operator))


def _carry(a: Tensor, b: Tensor, initial: Tensor, reverse: bool, fresh: Tensor | None = None) -> Tensor:
    """`h[t] = a[t] * h[t-1] + b[t]`, one pass over time. Where `fresh`, [T], the past counts as 0, were it NaN."""
    h = torch.empty_like(b, memory_format=torch.contiguous_format)
    previous = initial
    starts = itertools.repeat(None, b.shape[1]) if fresh is None else fresh.unbind(0)
    steps = zip(a.unbind(1), b.unbind(1), h.unbind(1), starts)
    for a_t, b_t, h_t, fresh_t in reversed(list(steps)) if reverse else steps:
        torch.addcmul(b_t, a_t, previous if fresh_t is None else torch.where(fresh_t, 0.0, previous), out=h_t)
        previous = h_t
    return h


def _carry_in_segments(a: Tensor, b: Tensor, initial: Tensor, reverse: bool, fresh: Tensor | None = None) -> Tensor:
    """The same with time cut into segments that are scanned side by side, then joined. Needs `|a| <= 1`."""
    steps = b.shape[1]
    size = max(1, math.isqrt(steps))
    count = -(-steps // size)
    lacking = (count * size - steps, 0) if reverse else (0, count * size - steps)
    pad = (0, 0) * (b.ndim - 2) + lacking
    a, b = (F.pad(x, pad).unflatten(1, (count, size)) for x in (a.expand_as(b), b))
    if fresh is not None:
        fresh = F.pad(fresh, lacking).reshape(1, count, size, *(1 for _ in b.shape[3:]))
    within = range(size - 1, -1, -1) if reverse else range(size)
    h, product = torch.empty_like(b), torch.empty_like(b)
    last: int | None = None
    a_steps, b_steps, h_steps, p_steps = (x.unbind(2) for x in (a, b, h, product))
    for i in within:
        if last is None:
            h_steps[i].copy_(b_steps[i])
            p_steps[i].copy_(a_steps[i])
        else:
            before = h_steps[last], p_steps[last]
            if fresh is not None:
                before = tuple(torch.where(fresh[:, :, i], 0.0, x) for x in before)
            torch.addcmul(b_steps[i], a_steps[i], before[0], out=h_steps[i])
            torch.mul(a_steps[i], before[1], out=p_steps[i])
        last = i
    assert last is not None
    if fresh is not None:
        fresh = (fresh.flip(2).cumsum(2).flip(2) if reverse else fresh.cumsum(2)) > 0
    cut = None if fresh is None else fresh[:, :, last].flatten()
    carried = _carry(p_steps[last], h_steps[last], initial, reverse, cut)
    initial = initial.expand_as(carried[:, 0]).unsqueeze(1)
    entering = torch.cat([carried[:, 1:], initial] if reverse else [initial, carried[:, :-1]], 1)
    entering = entering.unsqueeze(2) if fresh is None else torch.where(fresh, 0.0, entering.unsqueeze(2))
    h = h.addcmul_(product, entering).flatten(1, 2)
    return h[:, count * size - steps :] if reverse else h[:, :steps]


def _carried(
    a: Tensor, b: Tensor, initial: Tensor, contracting: bool, reverse: bool, fresh: Tensor | None = None
) -> Tensor:
    """The same in whichever way is faster; a broadcasts to b."""
    if b.shape[1] == 0:
        return torch.empty_like(b)
    # In segments there are fewer, larger operations: worth it while one token's work is smaller than a launch.
    small = b[:, 0].numel() <= 8192 or b.device.type != "cpu"
    run = _carry_in_segments if contracting and small and b.shape[1] >= 16 else _carry
    return run(a.expand(-1, b.shape[1], *a.shape[2:]), b, initial, reverse, fresh)


def _scan_operator(namespace: str) -> _DifferentiableOperator:
    """Registers `scan(a, b, initial, contracting, fresh)`: `h[t] = a[t] * h[t-1] + b[t]`, with its own backward.

    b: [B, T, ...]; initial: [B, ...]; a broadcasts to b; `fresh`, [T], marks tokens where a is 0 and a sequence begins.
    The backward is the same recurrence from the last token to the first, `λ[t] = conj(a[t+1]) λ[t+1] + g[t]`, with
    `db = λ` and `da[t] = λ[t] conj(h[t-1])`. Saved: a, initial and h.
    """

    arguments = "Tensor initial, bool contracting, Tensor? fresh"

    def scan(a: Tensor, b: Tensor, initial: Tensor, contracting: bool, fresh: Tensor | None) -> Tensor:
        return _carried(a, b, initial, contracting, False, fresh).contiguous()

    def fake(a: Tensor, b: Tensor, initial: Tensor, contracting: bool, fresh: Tensor | None) -> Tensor:
        return torch.empty_like(b, memory_format=torch.contiguous_format)

    def scan_backward(
        grad: Tensor, a: Tensor, h: Tensor, initial: Tensor, contracting: bool, fresh: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if h.shape[1] == 0:
            return torch.zeros_like(a), torch.zeros_like(h), torch.zeros_like(initial)
        # Conjugates are computed at once: what `conj()` leaves for later is lost where a dispatch mode looks in here.
        later = torch.conj_physical(a).expand(-1, h.shape[1], *a.shape[2:])
        zero = torch.zeros_like(later[:, :1])
        later_fresh = None if fresh is None else fresh.roll(-1)
        adjoint = _carried(
            torch.cat([later[:, 1:], zero], 1), grad, torch.zeros_like(initial), contracting, True, later_fresh
        ).contiguous()
        d_initial = later[:, 0] * adjoint[:, 0]
        first = adjoint[:, :1] * torch.conj_physical(initial).unsqueeze(1)
        d_a = torch.cat([first, adjoint[:, 1:] * torch.conj_physical(h[:, :-1])], 1).sum_to_size(a.shape)
        return d_a.contiguous(), adjoint, d_initial.sum_to_size(initial.shape).contiguous()

    def fake_backward(
        grad: Tensor, a: Tensor, h: Tensor, initial: Tensor, contracting: bool, fresh: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.empty_like(a), torch.empty_like(h), torch.empty_like(initial)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, _, initial, ctx.contracting, fresh = inputs
        ctx.save_for_backward(a, output, initial, fresh)

    def gradient(ctx: Any, backward: Callable[..., tuple[Tensor, ...]], grad: Tensor) -> tuple[Tensor | None, ...]:
        a, h, initial, fresh = ctx.saved_tensors
        return (*backward(grad, a, h, initial, ctx.contracting, fresh), None, None)

    schema = f"(Tensor a, Tensor b, {arguments}) -> Tensor"
    back = _Backward(
        f"(Tensor grad, Tensor a, Tensor h, {arguments}) -> (Tensor, Tensor, Tensor)", scan_backward, fake_backward
    )
    return _DifferentiableOperator(f"{namespace}::scan", schema, scan, fake, back, save, gradient)


def _reject_tangents(*values: Tensor) -> None:
    """Forward-mode derivatives would be lost in an operator, and `torch.func.jvp` would not say so."""
    if torch.compiler.is_compiling():
        return
    if any(torch.autograd.forward_ad.unpack_dual(v).tangent is not None for v in values):
        raise NotImplementedError('no forward-mode derivatives here: construct the cell with backend="reference"')


def _affine(
    run: _Run,
    scan: Callable[[Tensor, Tensor, Tensor, bool, Tensor | None], Tensor],
    a: Any,
    b: Any,
    initial: Tensor,
    contracting: bool,
) -> Tensor:
    """`h[t] = a[t] * h[t-1] + b[t]` from `initial`, [B, ...]; a and b broadcast to [*run.lead, ...]."""
    if len(run.lead) == 1:
        return a * initial + b
    shape = (*run.lead, *initial.shape[1:])
    b = torch.as_tensor(b, dtype=initial.dtype, device=initial.device).expand(shape)
    a = torch.as_tensor(a, dtype=initial.dtype, device=initial.device)
    a = a.reshape((1,) * (len(shape) - a.ndim) + a.shape)
    fresh = None
    if run.position is not None:
        # A sequence that begins here starts from its own initial state.
        fresh = run.position == 0
        first = _along(fresh, b[0])
        b = torch.where(first, a * initial[run.sequence] + b, b)
        a = torch.where(first, 0.0, a)
        initial = torch.zeros_like(initial[:1]) if initial.shape[0] else b.new_zeros((1, *shape[2:]))
    _reject_tangents(a, b, initial)
    return scan(a, b, initial, contracting, fresh)
