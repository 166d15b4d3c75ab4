"""Definitions that generated modules are put together from: each module takes those that its cells use, with their
dependencies, in this order. Generated code needs torch alone, so nothing here imports anything else."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# --- checks and numbers ---


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"{what} does not hold")


def _whole(what: str, value: float) -> int:
    """A size: a whole number of at least 1."""
    if isinstance(value, bool) or value != value // 1 or value < 1:
        raise ValueError(f"{what} is {value}, not a whole number of at least 1")
    return int(value)


def _complex_of(dtype: torch.dtype | None) -> torch.dtype:
    """The complex dtype of a real one, at least complex64; the default one's for None."""
    return torch.complex128 if (dtype or torch.get_default_dtype()) == torch.float64 else torch.complex64


# --- functions of numbers, with IEEE's results where Python raises ---


def _log_of(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf if x == 0 else math.nan


def _log1p_of(x: float) -> float:
    return math.log1p(x) if x > -1 else _log_of(1 + x)


def _sqrt_of(x: float) -> float:
    return math.sqrt(x) if x >= 0 else math.nan


def _exp_of(x: float) -> float:
    return math.exp(x) if x < 709.7 else math.inf


def _expm1_of(x: float) -> float:
    return math.expm1(x) if x < 709.7 else math.inf


def _ratio(x: float, y: float) -> float:
    if y == 0:
        return math.nan if x == 0 or x != x else math.copysign(math.inf, x) * math.copysign(1.0, y)
    return x / y


def _power(x: float, y: float) -> float:
    if x == 0 and y < 0:
        return math.inf
    try:
        value = x**y
    except OverflowError:
        return -math.inf if x < 0 and y % 2 == 1 else math.inf
    return math.nan if isinstance(value, complex) else value


# --- initial values ---


def _blank(parameter: Tensor) -> Tensor:
    """A real tensor like a parameter, at least float32, to draw into."""
    real = parameter.real.dtype if parameter.is_complex() else parameter.dtype
    return torch.empty_like(parameter, dtype=torch.promote_types(real, torch.float32))


def _orthogonal(blank: Tensor, kept: int, outs: int) -> Tensor:
    """(Semi-)orthogonal matrices, one for each entry of the first `kept` axes: Saxe et al. 2013, arXiv:1312.6120."""
    rows = math.prod(blank.shape[kept : kept + outs])
    flat = blank.reshape(-1, rows, blank[(0,) * kept].numel() // rows) if blank.numel() else blank.reshape(0, 1, 1)
    for matrix in flat:
        nn.init.orthogonal_(matrix)
    return flat.reshape(blank.shape)


def _eye(blank: Tensor, kept: int, outs: int) -> Tensor:
    """Identity matrices, one for each entry of the first `kept` axes."""
    rows = math.prod(blank.shape[kept : kept + outs])
    columns = math.prod(blank.shape[kept + outs :])
    return torch.eye(rows, columns, dtype=blank.dtype, device=blank.device).reshape(blank.shape[kept:]).expand_as(blank)


# --- elementwise, with the language's gradients ---


def _sqrt(x: Tensor) -> Tensor:
    """Square root with gradient 0 at 0."""
    zero = x == 0
    return torch.where(zero, 0.0, torch.sqrt(torch.where(zero, 1.0, x)))


def _pair(x: Tensor | float, y: Tensor | float) -> tuple[Tensor, Tensor]:
    """Two operands as tensors; at least one is."""
    if isinstance(x, Tensor):
        return x, y if isinstance(y, Tensor) else torch.full_like(x, y)
    assert isinstance(y, Tensor)
    return torch.full_like(y, x), y


def _maximum(x: Tensor | float, y: Tensor | float) -> Tensor:
    return torch.maximum(*_pair(x, y))


def _minimum(x: Tensor | float, y: Tensor | float) -> Tensor:
    return torch.minimum(*_pair(x, y))


def _logaddexp(x: Tensor | float, y: Tensor | float) -> Tensor:
    """`log(exp(x) + exp(y))`; minus infinity, with gradient 0, where both are."""
    x, y = _pair(x, y)
    empty = (x == -math.inf) & (y == -math.inf)
    total = torch.logaddexp(torch.where(empty, 0.0, x), torch.where(empty, 0.0, y))
    return torch.where(empty, -math.inf, total)


def _logsumexp(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """`log(sum(exp(x)))`; minus infinity, with gradient 0, where all entries are."""
    empty = (
        (x == -math.inf).all(dim, keepdim=True) if isinstance(dim, int) else (x.amax(dim, keepdim=True) == -math.inf)
    )
    total = torch.logsumexp(torch.where(empty, 0.0, x), dim, keepdim=True)
    return torch.where(empty, -math.inf, total).squeeze(dim)


def _choose(condition: bool, x: Tensor | float, y: Tensor | float) -> Tensor:
    """`where` on a condition that is the same for all tokens; at least one operand is a tensor."""
    x, y = _pair(x, y)
    return torch.where(torch.full((), condition, device=x.device), x, y)


def _only(x: Tensor, selected: Tensor | bool) -> Tensor:
    """`x`, with a gradient of exactly 0 where it is not selected."""
    if not isinstance(selected, Tensor):
        return x if selected else x.detach()
    return torch.where(selected, x, x.detach())


def _like(x: Tensor | float, y: Tensor) -> Tensor:
    """`x` broadcast to the shape of `y`."""
    return torch.broadcast_tensors(x, y)[0] if isinstance(x, Tensor) else torch.full_like(y, x)


# --- over named dims ---


def _softmax(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    if isinstance(dim, int):
        return torch.softmax(x, dim)
    return torch.exp(x - torch.logsumexp(x, dim, keepdim=True))


def _l2norm(x: Tensor, dim: int | tuple[int, ...], eps: float) -> Tensor:
    return x * torch.rsqrt((x * torch.conj_physical(x)).real.sum(dim, keepdim=True) + eps)


def _rmsnorm(x: Tensor, dim: int | tuple[int, ...], eps: float) -> Tensor:
    return x * torch.rsqrt((x * torch.conj_physical(x)).real.mean(dim, keepdim=True) + eps)


def _layernorm(x: Tensor, dim: int | tuple[int, ...], eps: float) -> Tensor:
    return _rmsnorm(x - x.mean(dim, keepdim=True), dim, eps)


def _solve(matrix: Tensor, rhs: Tensor) -> Tensor:
    """The `y` with `matrix @ y = rhs`: [..., N, M] and [..., N] to [..., M]."""
    # Of equal rank, or PyTorch may take one right-hand side for a batch of them.
    lead = torch.broadcast_shapes(matrix.shape[:-2], rhs.shape[:-1])
    columns = rhs.expand(*lead, rhs.shape[-1]).unsqueeze(-1)
    return torch.linalg.solve(matrix.expand(*lead, *matrix.shape[-2:]), columns).squeeze(-1)


# --- learned maps ---


def _linear(x: Tensor, weight: Tensor, ins: int = 1) -> Tensor:
    """`x` [..., *ins] through `weight` [*outs, *ins] to [..., *outs]: one matrix product."""
    flat = F.linear(x.flatten(-ins), weight.flatten(-ins).flatten(0, -2).to(x.dtype))
    return flat.to(x.dtype).unflatten(-1, weight.shape[: weight.ndim - ins])


def _contract(equation: str, weight: Tensor, x: Tensor) -> Tensor:
    """A learned map with a matrix for each entry of the dims that it keeps."""
    return torch.einsum(equation, weight.to(x.dtype), x).to(x.dtype)


def _pack(kept: int, ins: int, *weights: Tensor) -> Tensor:
    """Weights [*kept, *outs, *ins] of maps of one value as one matrix [*kept, sum of outs, prod of ins]."""
    return torch.cat([w.flatten(-ins).flatten(kept, -2) for w in weights], -2)


def _project(x: Tensor, weight: Tensor, outs: Sequence[tuple[int, ...]], kept: int, ins: int) -> tuple[Tensor, ...]:
    """`x` [..., *kept, *ins] through packed weights: one product for several maps, [..., *kept, *outs] each."""
    x = x.flatten(-ins)
    weight = weight.to(x.dtype)
    if kept:
        # One product for each entry of the kept dims, with the tokens as its rows.
        weight = weight.flatten(0, kept - 1)
        rows = x.reshape(-1, weight.shape[0], x.shape[-1])
        y = torch.bmm(rows.transpose(0, 1), weight.mT).transpose(0, 1).reshape(*x.shape[:-1], weight.shape[1])
    else:
        y = F.linear(x, weight)
    parts = y.to(x.dtype).split([math.prod(o) for o in outs], -1)
    return tuple(p.unflatten(-1, o) for p, o in zip(parts, outs))


# --- time ---


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


def _check_packing(cu_seqlens: Tensor, batch: int, total: int, values: bool) -> None:
    """Raise where `cu_seqlens` does not fit inputs of [batch, total, ...]. Its `values` only where asked: it waits."""
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
    if values:
        ends = cu_seqlens.tolist()
        if ends[0] != 0 or ends[-1] != total or ends != sorted(ends):
            raise ValueError(f"cu_seqlens: expected numbers that rise from 0 to {total}, got {ends}")


def _packed(like: Tensor, cu_seqlens: Tensor) -> _Run:
    total = like.shape[1]
    cu_seqlens = cu_seqlens.long().contiguous()
    tokens = torch.arange(total, device=cu_seqlens.device)
    sequence = torch.searchsorted(cu_seqlens, tokens, right=True) - 1
    length = cu_seqlens[1:] - cu_seqlens[:-1]
    return _Run((1, total), like, sequence, tokens - cu_seqlens[sequence], length, cu_seqlens[1:])


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
        return torch.cat([history.flip(1), value], 1)[:, -size:].flip(1)
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


# --- affine recurrences ---


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


def _scan_operator(namespace: str) -> Callable[[Tensor, Tensor, Tensor, bool, Tensor | None], Tensor]:
    """Registers `scan(a, b, initial, contracting, fresh)`: `h[t] = a[t] * h[t-1] + b[t]`, with its own backward.

    b: [B, T, ...]; initial: [B, ...]; a broadcasts to b; `fresh`, [T], marks tokens where a is 0 and a sequence begins.
    The backward is the same recurrence from the last token to the first, `λ[t] = conj(a[t+1]) λ[t+1] + g[t]`, with
    `db = λ` and `da[t] = λ[t] conj(h[t-1])`. Saved: a, initial and h.
    """

    def carry(a: Tensor, b: Tensor, initial: Tensor, contracting: bool, reverse: bool, fresh: Tensor | None) -> Tensor:
        if b.shape[1] == 0:
            return torch.empty_like(b)
        # In segments there are fewer, larger operations: worth it while one token's work is smaller than a launch.
        small = b[:, 0].numel() <= 8192 or b.device.type != "cpu"
        run = _carry_in_segments if contracting and small and b.shape[1] >= 16 else _carry
        return run(a.expand(-1, b.shape[1], *a.shape[2:]), b, initial, reverse, fresh)

    @torch.library.custom_op(
        f"{namespace}::scan",
        mutates_args=(),
        schema="(Tensor a, Tensor b, Tensor initial, bool contracting, Tensor? fresh) -> Tensor",
    )
    def scan(a: Tensor, b: Tensor, initial: Tensor, contracting: bool, fresh: Tensor | None) -> Tensor:
        return carry(a, b, initial, contracting, False, fresh).contiguous()

    @scan.register_fake
    def _(a: Tensor, b: Tensor, initial: Tensor, contracting: bool, fresh: Tensor | None) -> Tensor:
        return torch.empty_like(b, memory_format=torch.contiguous_format)

    @torch.library.custom_op(
        f"{namespace}::scan_backward",
        mutates_args=(),
        schema="(Tensor grad, Tensor a, Tensor h, Tensor initial, bool contracting, Tensor? fresh) "
        "-> (Tensor, Tensor, Tensor)",
    )
    def scan_backward(
        grad: Tensor, a: Tensor, h: Tensor, initial: Tensor, contracting: bool, fresh: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if h.shape[1] == 0:
            return torch.zeros_like(a), torch.zeros_like(h), torch.zeros_like(initial)
        # Conjugates are computed at once: what `conj()` leaves for later is lost where a dispatch mode looks in here.
        later = torch.conj_physical(a).expand(-1, h.shape[1], *a.shape[2:])
        zero = torch.zeros_like(later[:, :1])
        later_fresh = None if fresh is None else fresh.roll(-1)
        adjoint = carry(
            torch.cat([later[:, 1:], zero], 1), grad, torch.zeros_like(initial), contracting, True, later_fresh
        ).contiguous()
        d_initial = later[:, 0] * adjoint[:, 0]
        first = adjoint[:, :1] * torch.conj_physical(initial).unsqueeze(1)
        d_a = torch.cat([first, adjoint[:, 1:] * torch.conj_physical(h[:, :-1])], 1).sum_to_size(a.shape)
        return d_a.contiguous(), adjoint, d_initial.sum_to_size(initial.shape).contiguous()

    @scan_backward.register_fake
    def _(
        grad: Tensor, a: Tensor, h: Tensor, initial: Tensor, contracting: bool, fresh: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.empty_like(a), torch.empty_like(h), torch.empty_like(initial)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, _, initial, ctx.contracting, fresh = inputs
        ctx.save_for_backward(a, output, initial, fresh)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        a, h, initial, fresh = ctx.saved_tensors
        return (*scan_backward(grad, a, h, initial, ctx.contracting, fresh), None, None)

    scan.register_autograd(backward, setup_context=save)
    return scan


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


# --- loops ---


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


def _nothing(*_: Tensor) -> tuple[Tensor, ...]:
    """For loops whose steps share no packed weights."""
    return ()


def _loop_operator(
    namespace: str,
    name: str,
    step: Callable[..., tuple[Tensor, ...]],
    back: Callable[..., tuple[tuple[Tensor, ...], ...]],
    pack: Callable[..., tuple[Tensor, ...]],
    products: tuple[tuple[int, str, int, int], ...],
) -> _Loop:
    """Registers a loop over tokens and its backward.

    back(*grads, *hoisted, *fixed, *packed, *past, *new, *sizes, *consts) gives the gradients of past, of the hoisted
    and fixed values that have one, and the operands of `products`: for each (index of a weight among the fixed values,
    einsum of its gradient, axes of the first operand, axes of the second), multiplied once after the loop.
    Saved: what comes in, and the values of the streams.
    """
    arguments = (
        "Tensor[] hoisted, Tensor[] fixed, Tensor[] history, int[] sizes, float[] consts, SymInt steps, "
        "Tensor? sequence, Tensor? position"
    )
    weights = {p[0] for p in products}

    def past(values: Sequence[Sequence[Tensor]], history: Sequence[Tensor], t: int, where: Any) -> list[Tensor]:
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

    def places(sequence: Tensor | None, position: Tensor | None) -> Any:
        return None if sequence is None or position is None else (sequence.unbind(0), position.unbind(0))

    @torch.library.custom_op(f"{namespace}::{name}", mutates_args=(), schema=f"({arguments}) -> Tensor[]")
    def forward(hoisted, fixed, history, sizes, consts, steps, sequence, position):
        with _without_autocast(history[0]):
            where = places(sequence, position)
            tokens = [x.unbind(1) for x in hoisted]
            shared = (*fixed, *pack(*fixed))
            values: list[list[Tensor]] = [[] for _ in history]
            batch = history[0].shape[0] if where is None else 1
            for t in range(steps):
                new = step(*(x[t] for x in tokens), *shared, *past(values, history, t, where), *sizes, *consts)
                for value, now, before in zip(values, new, history):
                    value.append(now.to(before.dtype).expand(batch, *before.shape[2:]))
            return [torch.stack(v, 1) if v else h.new_empty(batch, 0, *h.shape[2:]) for v, h in zip(values, history)]

    @forward.register_fake
    def _(hoisted, fixed, history, sizes, consts, steps, sequence, position):
        return [h.new_empty(h.shape[0] if sequence is None else 1, steps, *h.shape[2:]) for h in history]

    @torch.library.custom_op(
        f"{namespace}::{name}_backward",
        mutates_args=(),
        schema=f"(Tensor[] grads, Tensor[] values, {arguments}) -> Tensor[]",
    )
    def backward(grads, values, hoisted, fixed, history, sizes, consts, steps, sequence, position):
        with _without_autocast(history[0]):
            where = places(sequence, position)
            tokens = [x.unbind(1) for x in hoisted]
            shared = (*fixed, *pack(*fixed))
            d_values = [list(g.unbind(1)) for g in grads]
            series = [v.unbind(1) for v in values]
            live = [i for i, x in enumerate(hoisted) if x.dtype != torch.bool]
            free = [i for i, x in enumerate(fixed) if x.dtype != torch.bool and i not in weights]
            d_hoisted: list[list[Tensor]] = [[] for _ in live]
            d_fixed = [torch.zeros_like(fixed[i]) for i in free]
            d_history = [torch.zeros_like(h) for h in history]
            operands: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in products]
            for t in range(steps - 1, -1, -1):
                d_past, d_tokens, d_free, pairs = back(
                    *(d[t] for d in d_values),
                    *(x[t] for x in tokens),
                    *shared,
                    *past(series, history, t, where),
                    *(v[t] for v in series),
                    *sizes,
                    *consts,
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

    @backward.register_fake
    def _(grads, values, hoisted, fixed, history, sizes, consts, steps, sequence, position):
        free = [x for i, x in enumerate(fixed) if x.dtype != torch.bool and i not in weights]
        kept = [x for x in hoisted if x.dtype != torch.bool] + free + [fixed[i] for i in sorted(weights)] + history
        return [torch.empty_like(x) for x in kept]

    def save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
        hoisted, fixed, history, ctx.sizes, ctx.consts, ctx.steps, sequence, position = inputs
        ctx.counts = (len(hoisted), len(fixed), len(history))
        ctx.packed = sequence is not None
        packed = [sequence, position] if ctx.packed else []
        ctx.save_for_backward(*hoisted, *fixed, *history, *output, *packed)

    def gradient(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
        saved = iter(ctx.saved_tensors)
        hoisted, fixed, history = ([next(saved) for _ in range(n)] for n in ctx.counts)
        values = [next(saved) for _ in history]
        sequence, position = (next(saved), next(saved)) if ctx.packed else (None, None)
        full = [torch.zeros_like(v) if g is None else g for g, v in zip(grads, values)]
        out = iter(
            backward(full, values, hoisted, fixed, history, ctx.sizes, ctx.consts, ctx.steps, sequence, position)
        )
        d_hoisted = [None if x.dtype == torch.bool else next(out) for x in hoisted]
        d_fixed = [None if x.dtype == torch.bool or i in weights else next(out) for i, x in enumerate(fixed)]
        for i in sorted(weights):
            d_fixed[i] = next(out)
        # PyTorch takes an empty list for one of tensors.
        numbers = (None if n else [] for n in (ctx.sizes, ctx.consts))
        return d_hoisted, d_fixed, [next(out) for _ in history], *numbers, None, None, None

    forward.register_autograd(gradient, setup_context=save)
    return _Loop(step, pack, forward)


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
    return loop.operator(
        list(hoisted), list(fixed), list(history), list(sizes), list(consts), run.lead[1], run.sequence, run.position
    )


# --- the module ---


class _Cell(nn.Module):
    """What all cells share: dtypes, initial states, packed sequences, stepping.

    A subclass says what its inputs and outputs are and has `_equations(run, dtype, inputs, state)`, which serves one
    token, whole sequences and packed ones alike.
    """

    _inputs: tuple[tuple[str, tuple[str, ...], str], ...]
    _fields: tuple[tuple[str, tuple[str | int, ...], str], ...]
    _kernels: dict[str, str]
    _State: Callable[..., Any]
    _backends = ("auto", "torch", "reference")

    def __init__(self, backend: str, validate: bool, dtype: torch.dtype | None) -> None:
        super().__init__()
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype: expected one of floating-point numbers, got {dtype}")
        if backend not in self._backends:
            raise ValueError(f"backend {backend!r} is none of {', '.join(map(repr, self._backends))}")
        self.backend, self.validate = backend, validate

    @property
    def plan(self) -> dict[str, str]:
        """Which kernel computes each group of states."""
        if self.backend == "reference":
            return dict.fromkeys(self._kernels, "reference: one token at a time")
        return {states: f"torch: {kernel}" for states, kernel in self._kernels.items()}

    def extra_repr(self) -> str:
        return f"backend={self.backend!r}"

    def _check(
        self, name: str, value: Tensor, lead: Sequence[tuple[str, int]], dims: tuple[str | int, ...], kind: str
    ) -> None:
        """Raise where a tensor is not [*lead, *dims] of its kind."""
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        sizes = [*lead, *(("", d) if isinstance(d, int) else (d, getattr(self, d)) for d in dims)]
        if value.shape != tuple([n for _, n in sizes]):
            unknown = 0 if value.ndim == len(sizes) else len(lead)
            axes = ", ".join(f"{a}={n}" if a and i >= unknown else a or str(n) for i, (a, n) in enumerate(sizes))
            raise ValueError(f"{name}: expected [{axes}], got {list(value.shape)}")
        if kind == "bool" and value.dtype != torch.bool:
            raise TypeError(f"{name}: expected torch.bool, got {value.dtype}")
        if kind == "real" and value.is_complex():
            raise TypeError(f"{name}: expected real numbers, got {value.dtype}")

    def _prepare(self, values: tuple[Tensor, ...], axes: str) -> tuple[list[Tensor], torch.dtype, torch.dtype]:
        """Inputs in the computing dtype, that dtype, and the dtype of the outputs."""
        lead = list(zip(axes, getattr(values[0], "shape", ())))
        real: torch.dtype | None = None
        for value, (name, dims, kind) in zip(values, self._inputs):
            self._check(name, value, lead, dims, kind)
            if value.is_floating_point() or value.is_complex():
                dtype = value.real.dtype
                real = dtype if real is None else torch.promote_types(real, dtype)
        out = real or torch.float32
        dtype = torch.float64 if out == torch.float64 else torch.float32
        kinds = {"real": dtype, "complex": _complex_of(dtype), "bool": torch.bool}
        cast = [v.to(kinds[kind]) for v, (_, _, kind) in zip(values, self._inputs)]
        if self.validate:
            self._validate(*cast)
        return cast, dtype, out

    def _state(self, state: Any, batch: int, dtype: torch.dtype, device: torch.device) -> Any:
        """The state to start from, in the computing dtype."""
        if state is None:
            return self.initial_state(batch, dtype=dtype, device=device)
        if not isinstance(state, tuple) or len(state) != len(self._fields):
            names = ", ".join(name for name, _, _ in self._fields)
            raise TypeError(
                f"state: expected a tuple of {names}, as an earlier call returned it, got {type(state).__name__}"
            )
        for value, (name, dims, kind) in zip(state, self._fields):
            self._check(f"state.{name}", value, [("B", batch)], dims, kind)
        kinds = {"real": dtype, "complex": _complex_of(dtype), "bool": torch.bool}
        return self._State(*(s.to(kinds[kind]) for s, (_, _, kind) in zip(state, self._fields)))

    def _validate(self, *inputs: Tensor) -> None:
        """Raise ValueError where an input is out of the range that was declared for it."""

    def _sequences(self, values: tuple[Tensor, ...], state: Any, cu_seqlens: Tensor | None) -> tuple[Any, Any]:
        inputs, dtype, out = self._prepare(values, "BT")
        batch, steps = count, _ = inputs[0].shape[:2]
        if cu_seqlens is not None:
            _check_packing(cu_seqlens, batch, steps, self.validate)
            count = cu_seqlens.shape[0] - 1
        state = self._state(state, count, dtype, inputs[0].device)
        run = _Run((batch, steps), inputs[0]) if cu_seqlens is None else _packed(inputs[0], cu_seqlens)
        if self.backend == "reference" and steps:
            outputs, state = self._by_tokens(run, dtype, inputs, state)
        else:
            outputs, state = self._equations(run, dtype, *inputs, state)
        return self._result(outputs, out), state

    def _token(self, values: tuple[Tensor, ...], state: Any) -> tuple[Any, Any]:
        inputs, dtype, out = self._prepare(values, "B")
        state = self._state(state, inputs[0].shape[0], dtype, inputs[0].device)
        outputs, state = self._equations(_Run((inputs[0].shape[0],), inputs[0]), dtype, *inputs, state)
        # An output may be the state itself, which must not change with what is done to the output.
        return self._result(tuple(o.clone() for o in outputs), out), state

    def _by_tokens(self, run: _Run, dtype: torch.dtype, inputs: list[Tensor], state: Any) -> tuple[Any, Any]:
        """The reference: the equations, one token after the other."""
        steps: list[tuple[Tensor, ...]] = []
        one = _Run((run.lead[0],), run.like)
        for t in range(run.lead[1]):
            token = [x[:, t] for x in inputs]
            if run.sequence is None:
                outputs, state = self._equations(one, dtype, *token, state)
            else:
                row = run.sequence[t : t + 1]
                outputs, new = self._equations(
                    one, dtype, *token, type(state)(*(s.index_select(0, row) for s in state))
                )
                state = type(state)(*(s.index_copy(0, row, n) for s, n in zip(state, new)))
            steps.append(outputs)
        return tuple(torch.stack(o, 1) for o in zip(*steps)), state

    def _result(self, outputs: tuple[Tensor, ...], dtype: torch.dtype) -> Any:
        """Outputs in the inputs' dtype; several come as a NamedTuple."""
        cast = [o if o.dtype == torch.bool else o.to(_output_dtype(o, dtype)) for o in outputs]
        return cast[0] if len(cast) == 1 else self._output(*cast)

    def _output(self, *outputs: Tensor) -> Any:
        raise NotImplementedError

    def initial_state(self, batch: int, *, device: Any = None, dtype: torch.dtype = torch.float32) -> Any:
        raise NotImplementedError

    def _equations(self, run: _Run, dtype: torch.dtype, *inputs: Any) -> tuple[tuple[Tensor, ...], Any]:
        raise NotImplementedError


class _ComplexCell(_Cell):
    """A cell with complex parameters: `.to` a real dtype changes their precision, and drops no imaginary part."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def apply(x: Tensor) -> Tensor:
            parts = fn(torch.view_as_real(x.resolve_conj())) if x.is_complex() else x
            if parts.is_complex() or parts is x:
                return fn(x)
            return torch.view_as_complex(parts.to(torch.promote_types(parts.dtype, torch.float32)).contiguous())

        return super()._apply(apply, recurse)


def _output_dtype(value: Tensor, dtype: torch.dtype) -> torch.dtype:
    if not value.is_complex():
        return dtype
    return torch.complex128 if dtype == torch.float64 else torch.complex64
