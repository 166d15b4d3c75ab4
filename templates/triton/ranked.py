"""Matrix states with low-rank transitions in chunks of tokens by kernels, as operators: layouts and launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ..torch.lowrank import _low_rank, _low_rank_columns
from ..torch.operator import _Backward, _DifferentiableOperator
from ..torch.scan import _reject_tangents
from ..torch.time import _Run
from .chunked import _Chunk, _laid_out, _spaced, _together
from .fused import _on, _power_of_two, _units
from .module import _multiplied_dtype


class _Ranked(NamedTuple):
    """The kernels of one matrix state, `S[t] = a S[t-1] + u (wᵀ S[t-1]) + k vᵀ`. `decay`: along what its factor lies:
    "free" (there is none), "one" (the same for all entries) or "keys"; `learned`: whether the factor has a gradient,
    which `factors_back` computes if it is one (else None). `columns` is for reads that sum over values, else None."""

    system: Any
    solve: Any
    pairs: Any
    forward: Any
    backward: Any
    flows: Any
    solve_back: Any
    pairs_back: Any
    factors_back: Any
    columns: Any
    decay: str
    learned: bool


class _RankedCall(NamedTuple):
    """The operands of one call, their tokens in groups of `group`, a power of two, that read the same state; `together`
    as for `_PairsCall`."""

    a: Tensor | None
    w: Tensor
    u: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    initial: Tensor
    cu_seqlens: Tensor | None
    before: int
    together: int
    group: int


def _rank_chunk(kind: str, decay: str, q: Tensor, v: Tensor) -> _Chunk:
    """The configuration of a kernel: what a chunk's tokens overwrite cancels in it, so they are no more than keys."""
    keys, values = (max(16, _power_of_two(x.shape[-1])) for x in (q, v))
    narrow = q.dtype == torch.bfloat16
    fewest = keys if keys == q.shape[-1] else max(16, keys // 2)
    # Rows that are not aligned take registers, and so do factors.
    irregular = q.shape[-1] % {"free": 1, "one": 2, "keys": 16}[decay]
    tokens = min(64 if narrow and not irregular else 32, fewest)
    stages = 1 if torch.version.hip else 2
    if kind in ("forward", "backward"):
        # Of more keys there is no shared memory for two chunks.
        own = stages if keys <= 128 else 1
        most = 32 if q.shape[-1] % 16 or v.shape[-1] % 16 else 64
        return _Chunk(tokens, keys, max(16, min(values, most, (4096 if narrow else 2048) // keys)), 8, own)
    # What factors take in registers leaves room for fewer keys, as do products of TF32 numbers, which warps hold whole.
    held = ("pairs", "pairs_back", "columns") if decay == "keys" else ()
    held = (*held, "flows", "solve_back") if q.dtype == torch.float16 else held
    held = (*held, "pairs", "pairs_back", "solve_back", "factors_back") if q.shape[-1] % 16 else held
    # A tile of 32 tokens and 16 keys has no more than 4 warps can use.
    warps = 4 if (kind, decay) == ("pairs_back", "keys") and tokens <= 32 else 8
    own = 1 if kind == "factors_back" else stages
    width = 16 if kind == "solve_back" and q.shape[-1] % 16 else 32
    return _Chunk(tokens, min(keys, 16 if kind in held else 32), min(values, width), warps, own)


def _operand_dtype(q: Tensor) -> torch.dtype:
    return torch.bfloat16 if q.dtype == torch.bfloat16 else torch.float32


def _rank_memory(call: _RankedCall, decay: str, keep: bool) -> dict[str, Tensor]:
    """What the kernel of pairs leaves for others; `keep`: for the backward too."""
    q, dtype = call.q, _operand_dtype(call.q)
    tokens = _rank_chunk("pairs", decay, q, call.v).tokens
    batch, steps, heads, reads, size = q.shape
    chunks = batch * steps // tokens + call.initial.shape[0]
    pairs = ("reads", "scores", *(("early", "of_u") if keep else ()))
    made: dict[str, Tensor] = {}
    for name in (*pairs, "q_in", "w_in", "u_out", "k_out"):
        own = (reads,) if name in ("scores", "of_u", "q_in") else ()
        made[f"{name}_ptr"] = q.new_empty((chunks, heads, *own, tokens, tokens if name in pairs else size), dtype=dtype)
    for name in ("system_ptr", "inverse_ptr"):
        made[name] = q.new_empty((chunks, heads, tokens, tokens), dtype=torch.float32)
    # What the factors' gradients are made with.
    made["between_ptr"] = torch.empty_like(made["system_ptr"]) if keep else made["system_ptr"]
    if decay != "free":
        along = (size,) if decay == "keys" else ()
        made["over_chunk_ptr"] = q.new_empty((chunks, heads, *along), dtype=torch.float32)
    return made


def _rank_arguments(ranked: _Ranked, call: _RankedCall, keep: bool) -> dict[str, Any]:
    """What all kernels are given, by the names of their parameters."""
    _, steps, heads, reads, size = call.q.shape
    tokens = _rank_chunk("pairs", ranked.decay, call.q, call.v).tokens
    given: dict[str, Any] = {"cu_seqlens": call.cu_seqlens, "T": steps, "HEADS": heads, "READS": reads}
    given |= {"BEFORE": call.before, "K": size, "V": call.v.shape[-1], "C": tokens, "LEVELS": tokens.bit_length() - 1}
    given |= {"GROUP": call.group.bit_length() - 1, "KEEP": keep, "PACKED": call.cu_seqlens is not None}
    for name in ("a", "w", "u", "q", "k", "v"):
        x = getattr(call, name)
        if x is not None:
            x, distances = _spaced(x)
            given[f"{name}_ptr"] = x
            given |= dict(zip((f"{name}_token", f"{name}_head", f"{name}_read"), distances))
    given["OPERAND"] = tl.bfloat16 if call.q.dtype == torch.bfloat16 else tl.float32
    given["EXACT"] = "ieee" if torch.version.hip else "tf32x3"
    # Decays take operands out of the range of float16, and what tokens overwrite cancels: TF32 has too few digits.
    low = all(x.dtype == torch.bfloat16 for x in call[1:6])
    given["PRECISION"] = "ieee" if torch.version.hip else "tf32" if low else "parts"
    return given


def _launch_rank(ranked: _Ranked, kind: str, given: dict[str, Any], call: _RankedCall) -> None:
    kernel, chunk = getattr(ranked, kind), _rank_chunk(kind, ranked.decay, call.q, call.v)
    owners, across = call.initial.shape[0] * call.q.shape[2], kind in ("forward", "backward")
    size, block = (call.v.shape[-1], chunk.values) if across else (call.q.shape[-1], chunk.keys)
    tiles = -(-size // block) if across or kind == "flows" else 1
    chunks = -(-call.q.shape[0] * call.q.shape[1] // (chunk.tokens * call.initial.shape[0]))
    # Chunks that do not wait for each other are spread over programs.
    spread = 1 if across else max(1, min(chunks, 65535, 8 * _units(call.q.device) // (owners * tiles)))
    together = _together(ranked.decay, ranked.learned, call.together, kind == "pairs_back") * call.group
    together = min(together, chunk.tokens)
    given = given | {"TILES": tiles, "BK": chunk.keys, "BV": chunk.values, "TOGETHER": together.bit_length() - 1}
    registers = {} if torch.version.hip else {"maxnreg": 255}
    options = {"num_warps": chunk.warps, "num_stages": chunk.stages, **registers}
    kernel[owners * tiles, spread](**{name: given[name] for name in kernel.arg_names}, **options)


def _launch_pairs_of_rank(ranked: _Ranked, given: dict[str, Any], call: _RankedCall) -> None:
    for kind in ("system", "solve", "pairs"):
        _launch_rank(ranked, kind, given, call)


def _rank_states(call: _RankedCall, decay: str, keep: bool) -> list[Tensor]:
    """For the backward: the states that enter chunks, and what the tokens of chunks read of them."""
    dtype = _operand_dtype(call.q)
    tokens = _rank_chunk("pairs", decay, call.q, call.v).tokens
    chunks = call.q.shape[0] * call.q.shape[1] // tokens + call.initial.shape[0] if keep else 0
    size = (chunks, call.q.shape[2], tokens, call.v.shape[-1])
    return [call.initial.new_empty((chunks, *call.initial.shape[1:]), dtype=dtype), call.q.new_empty(size, dtype=dtype)]


def _ranked_forward(ranked: _Ranked, call: _RankedCall, keep: bool, out: torch.dtype) -> tuple[Tensor, ...]:
    reads = call.q.new_empty((*call.q.shape[:-1], call.v.shape[-1]), dtype=out)
    last = torch.empty_like(call.initial)
    states, c = _rank_states(call, ranked.decay, keep)
    if call.w.numel() == 0 or call.v.numel() == 0:
        return reads.zero_(), last.copy_(call.initial), states, c
    with _on(call.q.device):
        given = _rank_arguments(ranked, call, keep) | _rank_memory(call, ranked.decay, False)
        none = given["scores_ptr"]
        _launch_pairs_of_rank(ranked, given | {"KEEP": False, "of_u_ptr": none, "early_ptr": none}, call)
        given |= {"initial_ptr": call.initial, "read_ptr": reads, "last_ptr": last, "states_ptr": states, "c_ptr": c}
        _launch_rank(ranked, "forward", given, call)
    return reads, last, states, c


def _ranked_backward(
    ranked: _Ranked, call: _RankedCall, grad: Tensor, d_last: Tensor, states: Tensor, c: Tensor
) -> list[Tensor]:
    """Gradients of a (if it has one), w, u, q, k, v and the initial state."""
    owners = {name: getattr(call, name) for name in ("a", "w", "u", "q", "k", "v")}
    owners = {name: x for name, x in owners.items() if x is not None and (name != "a" or ranked.learned)}
    if call.w.numel() == 0 or call.v.numel() == 0:
        return [*(torch.zeros_like(x).contiguous() for x in owners.values()), d_last.clone()]
    with _on(call.q.device):
        memory = _rank_memory(call, ranked.decay, True)
        given = _rank_arguments(ranked, call, True) | memory
        _launch_pairs_of_rank(ranked, given, call)
        made = {name: x.new_empty(x.shape) for name, x in owners.items()}
        d_initial = call.initial.new_empty(call.initial.shape)
        given |= {f"d_{name}_ptr": x for name, x in made.items()}
        given |= {"states_ptr": states, "c_ptr": c, "leaving_ptr": torch.empty_like(states), "d_initial_ptr": d_initial}
        given |= {"flow_ptr": torch.empty_like(c), "d_read_ptr": grad.contiguous(), "d_last_ptr": d_last.contiguous()}
        _launch_rank(ranked, "backward", given, call)
        for name in ("q_in", "w_in", "u_out", "k_out"):
            given[f"d_{name}_ptr"] = torch.empty_like(memory[f"{name}_ptr"])
        chunks, heads, _, size = memory["w_in_ptr"].shape
        if ranked.learned:
            given["d_over_chunk_ptr"] = c.new_empty((chunks, heads, size), dtype=torch.float32)
        _launch_rank(ranked, "flows", given, call)
        for name, like in {"w_since": "w_in", "u_until": "u_out", "of_u": "of_u", "of_k": "of_u"}.items():
            given[f"d_{name}_ptr"] = torch.empty_like(memory[f"{like}_ptr"])
        given |= {f"d_{name}_ptr": torch.empty_like(memory["early_ptr"]) for name in ("system", "early")}
        _launch_rank(ranked, "solve_back", given, call)
        _launch_rank(ranked, "pairs_back", given, call)
        if ranked.factors_back is not None:
            _launch_rank(ranked, "factors_back", given, call)
    return [*made.values(), d_initial]


def _columns_forward(ranked: _Ranked, call: _RankedCall, out: torch.dtype) -> tuple[Tensor, ...]:
    """What `q`, [B, T, H, R, V], reads: nothing as states go from chunk to chunk, but of those that entered chunks."""
    through = call._replace(q=call.w.unsqueeze(-2)[..., :0, :], before=0)
    reads = call.w.new_empty((*call.q.shape[:-1], call.w.shape[-1]), dtype=out)
    last = torch.empty_like(call.initial)
    if call.w.numel() == 0 or call.v.numel() == 0:
        return reads.zero_(), last.copy_(call.initial)
    with _on(call.q.device):
        given = _rank_arguments(ranked, through, True) | _rank_memory(through, ranked.decay, True)
        _launch_pairs_of_rank(ranked, given, through)
        states, c = _rank_states(through, ranked.decay, True)
        given |= {"initial_ptr": call.initial, "read_ptr": reads, "last_ptr": last, "states_ptr": states, "c_ptr": c}
        _launch_rank(ranked, "forward", given, through)
        given |= {"READS": call.q.shape[-2], "BEFORE": call.before, "d_read_ptr": call.q.contiguous(), "d_q_ptr": reads}
        _launch_rank(ranked, "columns", given, through)
    return reads, last


def _columns_backward(ranked: _Ranked, call: _RankedCall, grad: Tensor, d_last: Tensor) -> list[Tensor]:
    """As `_ranked_backward`. What is read is the gradient that `q` would have of reads whose gradient reads with: so
    the gradients here are those of such reads, and of what reads with these reads themselves."""
    narrow = call.q.dtype == torch.bfloat16
    turned = call._replace(q=grad.to(torch.bfloat16 if narrow else torch.float32))
    reads, _, states, c = _ranked_forward(ranked, turned, True, call.q.dtype)
    found = _ranked_backward(ranked, turned, call.q, d_last, states, c)
    found[3 if ranked.learned else 2] = reads
    return found


def _ranked_operator(namespace: str, name: str, ranked: _Ranked) -> _DifferentiableOperator:
    """Registers `reads, last, states, c = op(a, w, u, q, k, v, initial, cu_seqlens, before, together, group, keep,
    out)` and its backward.

    a: [B, T, H] or [B, T, H, K]; w, u, k: [B, T, H, K]; q: [B, T, H, R, K], the first `before` of which read `S[t-1]`;
    v: [B, T, H, V]; initial: [N, H, K, V], float32. Tokens come in groups that read the same state, the factor of one
    at its first, at the others ones, whose gradients mean nothing; chunks have no fewer tokens. Reads, [B, T, H, R, V],
    have the dtype `out`. Where `keep`, what enters chunks is written, which the backward needs beside what it is given.
    If the kernels have `columns`, q is [B, T, H, R, V], reads are [B, T, H, R, K], and nothing is kept.
    """
    tensors = "Tensor w, Tensor u, Tensor q, Tensor k, Tensor v, Tensor initial, Tensor? cu_seqlens"
    operands = f"Tensor? a, {tensors}, int before, int together, int group"

    def forward(a, w, u, q, k, v, initial, cu_seqlens, before, together, group, keep, out):
        call = _RankedCall(a, w, u, q, k, v, initial.contiguous(), cu_seqlens, before, together, group)
        if ranked.columns is not None:
            return *_columns_forward(ranked, call, out), *_rank_states(call, ranked.decay, False)
        return _ranked_forward(ranked, call, keep, out)

    def fake(a, w, u, q, k, v, initial, cu_seqlens, before, together, group, keep, out):
        columns = ranked.columns is not None
        reads = q.new_empty((*q.shape[:-1], (w if columns else v).shape[-1]), dtype=out)
        last = torch.empty_like(initial, memory_format=torch.contiguous_format)
        call = _RankedCall(a, w, u, q, k, v, initial, cu_seqlens, before, together, group)
        return reads, last, *_rank_states(call, ranked.decay, keep and not columns)

    def backward(grad, d_last, states, c, a, w, u, q, k, v, initial, cu_seqlens, before, together, group):
        call = _RankedCall(a, w, u, q, k, v, initial.contiguous(), cu_seqlens, before, together, group)
        if ranked.columns is not None:
            return _columns_backward(ranked, call, grad, d_last)
        return _ranked_backward(ranked, call, grad, d_last, states, c)

    def fake_backward(grad, d_last, states, c, a, w, u, q, k, v, initial, cu_seqlens, before, together, group):
        owners = [*([a] if ranked.learned else []), w, u, q, k, v, initial]
        return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in owners]

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *operands, ctx.before, ctx.together, ctx.group, _, _ = inputs
        ctx.save_for_backward(*output[2:], *operands)
        ctx.mark_non_differentiable(*output[2:])
        ctx.made = [(x.shape, x.dtype) for x in output[:2]]
        # No zeros for what enters chunks.
        ctx.set_materialize_grads(False)

    def gradient(ctx: Any, backward: Callable[..., list[Tensor]], *grads: Tensor | None) -> tuple[Any, ...]:
        states, *operands = ctx.saved_tensors
        arrived = [states.new_zeros(n, dtype=d) if g is None else g for g, (n, d) in zip(grads, ctx.made)]
        found = backward(*arrived, states, *operands, ctx.before, ctx.together, ctx.group)
        return (*([] if ranked.learned else [None]), *found, *(None,) * 6)

    schema = f"({operands}, bool keep, ScalarType out) -> (Tensor, Tensor, Tensor, Tensor)"
    back = _Backward(
        f"(Tensor grad, Tensor d_last, Tensor states, Tensor c, {operands}) -> Tensor[]", backward, fake_backward
    )
    return _DifferentiableOperator(f"{namespace}::{name}", schema, forward, fake, back, save, gradient)


def _by_rank_kernels(
    run: _Run,
    operator: Callable[..., Any],
    rank: Callable[..., tuple[Tensor, Tensor]],
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
    decay: str,
    together: int,
    low: torch.dtype,
    out: torch.dtype,
    *,
    columns: tuple[Any, Any] | None = None,
) -> tuple[Tensor, ...]:
    """`_low_rank` of one state by the kernels of `operator`, products' operands in `low`, reads in `out`; or what
    `_low_rank_columns` computes by the operators `columns`.

    Maps of a token are tokens of their own, and so are its terms, in groups, and writes beyond those. PyTorch computes
    it in float64, where a key is too long for a program or a group longer than a chunk, and of one token.
    """
    (state,), (order,), lead = initial, orders, run.lead
    state = state.permute(0, *(i + 1 for i in order))
    sizes = state.shape[1:]
    heads, mixed, others = sizes[: counts[0]], sizes[counts[0] : sum(counts)], sizes[sum(counts) :]
    asking, found = (mixed, others) if columns is None else (others, mixed)
    group = _power_of_two(max(1, sum(torch.Size(own).numel() for _, _, _, own in terms)))
    if state.dtype != torch.float32 or mixed.numel() > 256 or group > 16 or len(lead) == 1:
        laid_out = (factors, terms, writes, queries, before, initial, orders, counts, over, bounded)
        if columns is not None:
            return _low_rank_columns(run, *columns, rank, *laid_out)
        return _low_rank(run, rank, *laid_out)
    low = _multiplied_dtype(low)
    maps, count = over or 1, -(-max(1, len(writes)) // group) * group
    each, inner = maps * count, () if over is None else (maps,)

    def laid(x: Any, dtype: torch.dtype | None, *groups: tuple[int, ...], maps: tuple[int, ...] = inner) -> Tensor:
        """With all of its axes, those of each group merged."""
        return _laid_out(x, dtype, state.device, (*lead, *maps), groups)

    def tokens(given: list[Tensor], rest: float, axes: int) -> Tensor:
        """One number, or vector, of each token of a map, whose last axes these are; `rest` of those that have none."""
        if each > 1:
            given = given + [torch.full_like(given[0], rest)] * (count - len(given))
            given = [torch.stack(given, len(lead) + len(inner))]
        return given[0].reshape(lead[0], lead[1] * each, *given[0].shape[-axes:])

    def corrections(side: int) -> Tensor:
        """V's or U's vectors."""
        given = [(right, left[0])[side] for _, right, left, _ in terms]
        laid_out = [laid(x, low, heads, own, mixed) for x, (*_, own) in zip(given, terms)]
        return tokens([x for y in laid_out for x in y.unbind(-2)] or [laid(0.0, low, heads, mixed)], 0.0, 2)

    def at_its_row(index: int, x: Tensor) -> Tensor:
        if each == 1:
            return x
        padded = x.new_zeros((*lead, each, *x.shape[2:]))
        padded[:, :, 0 if index < before else -1] = x
        return padded.flatten(1, 2)

    a = None
    if decay != "free":
        a = laid(factors[0][0], None, heads, mixed if decay == "keys" else (1,) * len(mixed))
        a = tokens([a], 1.0, 2) if decay == "keys" else tokens([a], 1.0, 2).squeeze(-1)
    w, u = corrections(0), corrections(1)
    k = tokens([laid(left, low, heads, mixed) for (left,), _ in writes] or [laid(0.0, low, heads, mixed)], 0.0, 2)
    v = tokens([laid(right, low, heads, others) for _, right in writes] or [laid(0.0, low, heads, others)], 0.0, 2)
    shapes = [own for _, _, own in queries]
    asked = [at_its_row(i, laid(x, low, heads, own, asking, maps=())) for i, (_, x, own) in enumerate(queries)]
    q = asked[0] if len(asked) == 1 else torch.cat(asked, -2)
    state = state.reshape(state.shape[0], heads.numel(), mixed.numel(), others.numel())
    _reject_tangents(*(x for x in (a, w, u, q, k, v, state) if x is not None))
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (a, w, u, q, k, v, state))
    ends = None if run.cu_seqlens is None else run.cu_seqlens * each
    early = sum(torch.Size(own).numel() for own in shapes[:before])
    reads, final, _, _ = operator(a, w, u, q, k, v, state, ends, early, together, group, keep, out)
    if each > 1:
        reads = reads.unflatten(1, (lead[1], each))
        reads = torch.cat([reads[:, :, 0, :, :early], reads[:, :, -1, :, early:]], -2)
    split = reads.split([torch.Size(own).numel() for own in shapes], -2)
    final = final.reshape(final.shape[0], *sizes).permute(0, *(order.index(i) + 1 for i in range(len(order))))
    return *(x.reshape(*lead, *heads, *own, *found) for x, own in zip(split, shapes)), final
