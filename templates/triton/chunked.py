"""Matrix states in chunks of tokens by kernels, as operators: layouts, launches, and what autograd keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ..torch.chunks import _chunk_results, _chunked
from ..torch.operator import _Backward, _DifferentiableOperator
from ..torch.scan import _reject_tangents
from ..torch.time import _Run
from .fused import _flat, _on, _power_of_two, _segments, _units
from .module import _multiplied_dtype


class _Pairs(NamedTuple):
    """The kernels of one matrix state. `decay`: along what its factor lies: "free" (there is none), "one" (the same for
    all entries), "keys" or "values"; `learned`: whether the factor has a gradient. `pairs` and `pairs_back` are what
    tokens of a chunk read of each other; with a factor along values of the states too, which `forward` writes for it.
    `numbers`: parameters of the functions that make operands of what is read; `offset`: whether something is added to
    what factors are made of."""

    carry: Any
    forward: Any
    carry_back: Any
    backward: Any
    pairs: Any
    pairs_back: Any
    decay: str
    learned: bool
    offset: bool
    numbers: tuple[str, ...]


class _Chunk(NamedTuple):
    """A configuration: tokens of a chunk, keys and values of a program, warps, and loads that are in flight."""

    tokens: int
    keys: int
    values: int
    warps: int
    stages: int


def _operands_in_shared(device: torch.device) -> bool:
    """Whether products read their operands from shared memory (Hopper and later); else registers hold them."""
    if torch.version.hip or device.type != "cuda" or not torch.cuda.is_available():
        return not torch.version.hip
    return torch.cuda.get_device_capability(device)[0] >= 9


def _chunk(call: _PairsCall, back: bool) -> _Chunk:
    """The configuration of what goes through chunks, for the sizes of a call."""
    q, v, mixed = call.q, call.v, _mixed(call)
    keys, values = (max(16, _power_of_two(x.shape[-1])) for x in (q, v))
    narrow = v.dtype == torch.bfloat16
    # Loads of rows that are not aligned take registers.
    regular, aligned = q.shape[-1] % 16 == 0, q.shape[-1] % 16 == 0 == v.shape[-1] % 16
    wide = not back and keys <= 128 and aligned and not mixed and _operands_in_shared(q.device)
    room = (8192 if wide else 4096 if regular else 2048) if narrow else 2048 if keys > 64 else 1024
    # Products of float32 numbers have their operands in registers, where nothing can be in flight as well; nor are
    # rows that begin at any 2 bytes.
    stages = 1 if torch.version.hip or (keys > 64 and not narrow) or q.shape[-1] % 2 else 2
    tokens = 64 if narrow and q.shape[-1] % (16 if mixed else 2) == 0 else 32
    tokens = 16 if mixed and not narrow and q.shape[-1] % 2 else tokens
    return _Chunk(tokens, keys, max(16, min(values, 64, room // keys)), 8, stages)


def _mixed(call: _PairsCall) -> bool:
    """Whether tokens read both `S[t-1]` and `S[t]`: in one loop that takes registers."""
    return 0 < call.before < call.q.shape[-2]


def _filling(chunk: _Chunk, call: _PairsCall) -> _Chunk:
    """The configuration of what goes from chunk to chunk where a call has few programs: half as many values rather than
    idle multiprocessors. Segments of time would be one more launch, and two passes through what they hold."""
    owners, size = call.initial.shape[0] * call.q.shape[2], call.v.shape[-1]
    idle = 2 * owners * -(-size // chunk.values) <= _units(call.q.device)
    return chunk._replace(values=min(32, chunk.values)) if idle else chunk


def _key_blocks(keys: int) -> int:
    """Into how many blocks keys are cut, each a head of its own whose reads are summed: a program with more than 128
    has so few values that queries and keys are read too often. One where they cannot be cut evenly."""
    fewest = -(-keys // 128)
    return next((n for n in range(fewest, 2 * fewest) if keys % n == 0), 1)


def _spaced(x: Tensor) -> tuple[Tensor, list[int]]:
    """`x` [B, T, ...] with its last axis side by side and its tokens, of all sequences, a fixed distance apart; the
    distances of the axes from the second on."""
    x = _flat(x)
    regular = x.shape[0] == 1 or x.shape[1] == 1 or x.stride(0) == x.stride(1) * x.shape[1]
    if not regular or (x.shape[-1] > 1 and x.stride(-1) != 1):
        x = x.contiguous()
    steps = list(x.stride())
    return x, [steps[0] if x.shape[1] == 1 else steps[1], *steps[2:]]


class _PairsCall(NamedTuple):
    """The operands of one call. `together`: the tokens of a block over half of which factors may be divided by, a power
    of two; 1 where they have no such bound."""

    a: Tensor | None
    offset: Tensor | None
    q: Tensor
    k: Tensor
    v: Tensor
    initial: Tensor
    cu_seqlens: Tensor | None
    before: int
    together: int
    numbers: Sequence[float]


def _together(decay: str, learned: bool, together: int, back: bool) -> int:
    """The tokens of a block that are read in one product.

    A factor's gradient is then what two sums differ by. Where 64 tokens are possible it is at least a quarter of the
    larger; else halves are taken, as with a factor along values, where the state leaves no registers."""
    return 1 if back and (decay == "values" or (learned and together < 64)) else together


def _pair_chunk(pairs: _Pairs, call: _PairsCall, back: bool) -> _Chunk:
    """The configuration of what tokens of a chunk read of each other: one that spills no registers, as
    `benchmarks/static.py` shows. With fewer keys at a time values are read more often, mostly from a cache."""
    keys, values = (max(16, _power_of_two(x.shape[-1])) for x in (call.q, call.v))
    # Tokens that are read in one product take registers, as do the gradient of an offset and products of float32.
    mixed, narrow = _mixed(call), call.v.dtype == torch.bfloat16
    block, width, warps = 32, 64, 8
    if back and narrow:
        shared, regular = _operands_in_shared(call.q.device), call.q.shape[-1] % 16 == 0
        full = mixed or _together(pairs.decay, pairs.learned, call.together, back) > 1
        block, width = {
            "free": (32, 64),
            "one": (16, 16) if torch.version.hip else (32, 16 if mixed else 32),
            "keys": (16 if full else 32, 16 if pairs.offset else 32) if shared and regular else (16, 16),
            "values": (32 if shared and not mixed else 16, 16),
        }[pairs.decay]
        warps = 4 if not regular and mixed and pairs.decay == "keys" and call.together == 1 else 8
    elif back:
        block, width = 16, 16 if pairs.decay in ("keys", "values") else 32
    stages = 1 if torch.version.hip else 2
    return _Chunk(_chunk(call, back).tokens, min(keys, block), min(values, width), warps, stages)


def _memory(pairs: _Pairs, call: _PairsCall, keep: bool) -> dict[str, Tensor]:
    """Memory for what is kept of chunks: the states that enter them, what their tokens read of each other, and of
    factors along keys what is decayed."""
    q, k = call.q, call.k
    dtype = torch.bfloat16 if call.v.dtype == torch.bfloat16 else torch.float32
    tokens, (batch, steps, heads, reads, size) = _chunk(call, False).tokens, q.shape
    chunks = batch * steps // tokens + call.initial.shape[0]
    kept = chunks if keep or pairs.decay == "values" else 0
    made = {"states_ptr": call.initial.new_empty((kept, *call.initial.shape[1:]), dtype=dtype)}
    made["scores_ptr"] = q.new_empty((chunks, heads, reads, tokens, tokens), dtype=dtype)
    if pairs.decay == "keys":
        made["q_since_ptr"], made["k_until_ptr"] = q.new_empty(q.shape, dtype=dtype), k.new_empty(k.shape, dtype=dtype)
    sizes = {"keys": {"over_chunk_ptr": (size,)}, "one": {"over_chunk_ptr": ()}}.get(pairs.decay, {})
    if pairs.decay == "one":
        sizes |= dict.fromkeys(("since_ptr", "since_previous_ptr", "until_ptr"), (tokens,))
    return made | {n: q.new_empty((chunks, heads, *own), dtype=torch.float32) for n, own in sizes.items()}


def _arguments(pairs: _Pairs, call: _PairsCall, back: bool) -> dict[str, Any]:
    """What all kernels are given, by the names of their parameters."""
    _, steps, heads, reads, size = call.q.shape
    chunk = _chunk(call, back)
    given: dict[str, Any] = {"cu_seqlens": call.cu_seqlens, "T": steps, "HEADS": heads}
    given |= {"READS": reads, "BEFORE": call.before}
    given |= {"K": size, "V": call.v.shape[-1], "C": chunk.tokens}
    given |= {"LEVELS": chunk.tokens.bit_length() - 1, "PACKED": call.cu_seqlens is not None}
    given |= {"offset_ptr": call.offset} | dict(zip(pairs.numbers, call.numbers))
    given["APART"] = back
    given["TOGETHER"] = min(call.together, chunk.tokens).bit_length() - 1
    for name, x in {"a": call.a, "q": call.q, "k": call.k, "v": call.v}.items():
        if x is not None:
            x, distances = _spaced(x)
            given[f"{name}_ptr"] = x
            given |= dict(zip((f"{name}_token", f"{name}_head", f"{name}_read"), distances))
    # Decays take operands out of the range of float16; as TF32 they have no less of a mantissa.
    given["OPERAND"] = tl.bfloat16 if call.v.dtype == torch.bfloat16 else tl.float32
    exact = "ieee" if torch.version.hip else "parts"
    narrow = call.v.dtype == torch.bfloat16 or all(x.dtype == torch.float16 for x in (call.q, call.k, call.v))
    given["PRECISION"] = "tf32" if narrow and not torch.version.hip else exact
    return given


def _launch_pairs(kernel: Any, given: dict[str, Any], chunk: _Chunk, programs: int, segments: int) -> None:
    named = {name: given[name] for name in kernel.arg_names if name not in ("BK", "BV")}
    sizes = {name: n for name, n in (("BK", chunk.keys), ("BV", chunk.values)) if name in kernel.arg_names}
    registers = {} if torch.version.hip else {"maxnreg": 255}
    options = {"num_warps": chunk.warps, "num_stages": chunk.stages, **registers}
    kernel[programs, segments](**named, **sizes, **options)


def _within_chunks(pairs: _Pairs, given: dict[str, Any], call: _PairsCall, back: bool) -> None:
    """Launch a kernel for which chunks do not wait for each other."""
    chunk, programs = _pair_chunk(pairs, call, back), call.initial.shape[0] * call.q.shape[2]
    chunks = -(-call.q.shape[0] * call.q.shape[1] // (chunk.tokens * call.initial.shape[0]))
    segments = max(1, min(chunks, 65535, 8 * _units(call.q.device) // programs))
    together = min(_together(pairs.decay, pairs.learned, call.together, back), chunk.tokens)
    given = given | {"TOGETHER": together.bit_length() - 1}
    if back and (_mixed(call) or together > 1) and pairs.decay == "keys" and given["PRECISION"] == "parts":
        given["PRECISION"] = "tf32x3"  # fewer registers, here alone
    _launch_pairs(pairs.pairs_back if back else pairs.pairs, given, chunk, programs, segments)


def _through_chunks(pairs: _Pairs, given: dict[str, Any], call: _PairsCall, back: bool) -> None:
    """Launch the kernel that goes from chunk to chunk; if there are several segments, after that which joins them."""
    q, initial = call.q, call.initial
    chunk = _filling(_chunk(call, back), call)
    tiles = -(-call.v.shape[-1] // chunk.values)
    programs, tokens = initial.shape[0] * q.shape[2] * tiles, q.shape[0] * q.shape[1] // initial.shape[0]
    # A program takes most of a multiprocessor, and what joins segments goes through all of them: eight chunks or more.
    segments = _segments(q.device, programs, tokens, 4 * chunk.tokens, 1)
    given = given | {
        "TILES": tiles,
        "SEGMENTS": segments,
        "SEGMENTED": segments > 1,
        "segment_ptr": initial,
        "over_segment_ptr": initial,
    }
    if segments > 1:
        given["segment_ptr"] = initial.new_empty((segments, *initial.shape))
        along = {"keys": (q.shape[-1],), "values": (call.v.shape[-1],)}.get(pairs.decay, ())
        given["over_segment_ptr"] = initial.new_empty((segments, *initial.shape[:2], *along))
        _launch_pairs(pairs.carry_back if back else pairs.carry, given, chunk, programs, segments)
    _launch_pairs(pairs.backward if back else pairs.forward, given, chunk, programs, segments)


def _pairs_forward(pairs: _Pairs, call: _PairsCall, keep: bool, out: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    reads = call.q.new_empty((*call.q.shape[:-1], call.v.shape[-1]), dtype=out)
    last = torch.empty_like(call.initial)
    memory = _memory(pairs, call, keep)
    if reads.numel() == 0 or call.q.shape[-1] == 0:
        return reads.zero_(), last.copy_(call.initial), memory["states_ptr"]
    with _on(call.q.device):
        given = _arguments(pairs, call, False) | memory
        given |= {"initial_ptr": call.initial, "read_ptr": reads, "last_ptr": last, "KEEP": keep}
        order = [_within_chunks, _through_chunks]
        for launch in reversed(order) if pairs.decay == "values" else order:
            launch(pairs, given, call, False)
    return reads, last, memory["states_ptr"]


def _pairs_backward(pairs: _Pairs, call: _PairsCall, grad: Tensor, d_last: Tensor, states: Tensor) -> list[Tensor]:
    """Gradients of a and the offset (if they have one), q, k, v and the initial state."""
    named = {"a": call.a, "offset": call.offset, "q": call.q, "k": call.k, "v": call.v}
    owners = {name: x for name, x in named.items() if x is not None and (name != "a" or pairs.learned)}
    if grad.numel() == 0 or call.q.shape[-1] == 0:
        return [*(torch.zeros_like(x).contiguous() for x in owners.values()), d_last.clone()]
    with _on(call.q.device):
        given = _arguments(pairs, call, True)
        # Reads that are summed over blocks of keys are float32 numbers, but products' operands are no more than v's.
        grad = grad.to(call.v.dtype) if call.v.dtype == torch.bfloat16 else grad
        given |= {"d_read_ptr": grad.contiguous(), "d_last_ptr": d_last.contiguous()}
        given["d_initial_ptr"] = d_initial = call.initial.new_empty(call.initial.shape)
        made = {name: x.new_empty(x.shape) for name, x in owners.items()}
        given |= {f"d_{name}_ptr": x for name, x in made.items()}
        given |= _memory(pairs, call, False) | {"states_ptr": states, "leaving_ptr": torch.empty_like(states)}
        # Where they are summed over tiles of values in memory, in float32.
        scores = given["scores_ptr"]
        wide = torch.float32 if pairs.decay == "values" else scores.dtype
        given["d_scores_ptr"] = torch.empty_like(scores, dtype=wide)
        if pairs.decay != "values":
            _within_chunks(pairs, given, call, False)
        _through_chunks(pairs, given, call, True)
        _within_chunks(pairs, given, call, True)
    if call.offset is not None:
        made["offset"] = made["a"].sum((0, 1), dtype=torch.float32)
    return [*(made[n] for n in owners), d_initial]


def _pairs_operator(namespace: str, name: str, pairs: _Pairs) -> _DifferentiableOperator:
    """Registers `reads, last, states = op(a, offset, q, k, v, initial, cu_seqlens, before, together, numbers, keep,
    out)` and its backward.

    a: [B, T, H], or with K or V; offset: [H, K], added to what a is made of; q: [B, T, H, R, K], the first `before` of
    which read `S[t-1]`; k: [B, T, H, K]; v: [B, T, H, V]; initial: [N, H, K, V], float32. Reads, [B, T, H, R, V], have
    the dtype `out`. Where `keep`, the states that enter chunks are written, which the backward needs beside what it is
    given.
    """
    tensors = "Tensor? a, Tensor? offset, Tensor q, Tensor k, Tensor v, Tensor initial, Tensor? cu_seqlens"
    operands = f"{tensors}, int before, int together, float[] numbers"

    def forward(a, offset, q, k, v, initial, cu_seqlens, before, together, numbers, keep, out):
        return _pairs_forward(
            pairs,
            _PairsCall(a, offset, q, k, v, initial.contiguous(), cu_seqlens, before, together, numbers),
            keep,
            out,
        )

    def fake(a, offset, q, k, v, initial, cu_seqlens, before, together, numbers, keep, out):
        reads = q.new_empty((*q.shape[:-1], v.shape[-1]), dtype=out)
        last = torch.empty_like(initial, memory_format=torch.contiguous_format)
        return (
            reads,
            last,
            _memory(pairs, _PairsCall(a, offset, q, k, v, initial, cu_seqlens, before, together, numbers), keep)[
                "states_ptr"
            ],
        )

    def backward(grad, d_last, states, a, offset, q, k, v, initial, cu_seqlens, before, together, numbers):
        call = _PairsCall(a, offset, q, k, v, initial.contiguous(), cu_seqlens, before, together, numbers)
        return _pairs_backward(pairs, call, grad, d_last, states)

    def fake_backward(grad, d_last, states, a, offset, q, k, v, initial, cu_seqlens, before, together, numbers):
        owners = [*([a] if pairs.learned else []), *([offset] if pairs.offset else []), q, k, v, initial]
        return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in owners]

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *operands, ctx.before, ctx.together, ctx.numbers, _, _ = inputs
        ctx.save_for_backward(output[2], *operands)
        ctx.mark_non_differentiable(output[2])
        ctx.made = [(x.shape, x.dtype) for x in output[:2]]
        # No zeros for what enters chunks.
        ctx.set_materialize_grads(False)

    def gradient(ctx: Any, backward: Callable[..., list[Tensor]], *grads: Tensor | None) -> tuple[Any, ...]:
        states, *operands = ctx.saved_tensors
        arrived = [states.new_zeros(n, dtype=d) if g is None else g for g, (n, d) in zip(grads, ctx.made)]
        found = backward(*arrived, states, *operands, ctx.before, ctx.together, ctx.numbers)
        own = pairs.learned + pairs.offset
        return (*found[:own], *([None] * (2 - own)), *found[own:], None, None, None, None, None, None)

    schema = f"({operands}, bool keep, ScalarType out) -> (Tensor, Tensor, Tensor)"
    back = _Backward(f"(Tensor grad, Tensor d_last, Tensor states, {operands}) -> Tensor[]", backward, fake_backward)
    return _DifferentiableOperator(f"{namespace}::{name}", schema, forward, fake, back, save, gradient)


def _laid_out(
    x: Any, dtype: torch.dtype | None, device: torch.device, lead: Sequence[int], groups: Sequence[tuple[int, ...]]
) -> Tensor:
    """An operand with all of its axes, those of each group merged, in a dtype for products if there is one."""
    x = torch.as_tensor(x, device=device)
    # Products of float16 numbers are computed as those of float32: what has that already keeps it.
    if dtype is torch.float16 and x.dtype in (torch.float16, torch.float32):
        dtype = None
    if dtype is not None or not x.is_floating_point():
        x = x.to(dtype or torch.float32)
    x = x.expand(*lead, *(n for g in groups for n in g))
    return x.reshape(*lead, *(torch.Size(g).numel() for g in groups))


def _by_kernels(
    run: _Run,
    operator: Callable[..., Any],
    scan: Callable[..., Tensor],
    chunks: Callable[..., tuple[Tensor, Tensor]],
    a: Any,
    queries: Sequence[tuple[Any, tuple[int, ...]]],
    before: int,
    writes: Sequence[tuple[Any, Any]],
    initial: Tensor,
    order: tuple[int, ...],
    counts: tuple[int, int],
    decay: str,
    together: int,
    low: torch.dtype,
    out: torch.dtype,
    beside: Sequence[tuple[Tensor, tuple[int, ...], Sequence[Any]]] = (),
    make_a: Callable[[Tensor], Tensor] | None = None,
    make_q: Callable[[Tensor], Tensor] | None = None,
    make_k: Callable[[Tensor], Tensor] | None = None,
    offset: Any = None,
    numbers: Sequence[float] = (),
) -> tuple[Tensor, ...]:
    """`_chunked` by the kernels of `operator`, products' operands in `low` and what is read in `out`; `together` are
    the tokens that a product may hold (`_PairsCall`). Where there is a function for the factor, the only query or the
    only key, kernels make it of what is given, with these `numbers`; the factor of that plus an `offset`.

    Several writes are as many tokens: the first has the factor, and reads what was before; the last reads what is
    after. PyTorch computes it in float64, and where a key is too long for a program.
    """
    state = initial.permute(0, *(i + 1 for i in order))
    sizes = state.shape[1:]
    heads, keys, values = sizes[: counts[0]], sizes[counts[0] : sum(counts)], sizes[sum(counts) :]
    if initial.dtype != torch.float32 or keys.numel() > 256:

        def whole(x: Any, make: Callable[[Tensor], Tensor] | None) -> Any:
            return x if make is None else make(x.to(initial.dtype))

        queries = [(whole(x, make_q), own) for x, own in queries]
        writes = [(whole(x, make_k), y) for x, y in writes]
        a = a if offset is None else a + offset
        factor, keyed = 1.0 if a is None else whole(a, make_a), decay != "values"
        if decay == "one" and isinstance(a, Tensor):
            factor = a.reshape(*a.shape, *(1 for _ in keys))
        return _chunked(run, scan, chunks, factor, queries, before, writes, initial, order, counts, keyed, beside)
    lead, width, low = run.lead, values.numel(), _multiplied_dtype(low)
    before = sum(torch.Size(shape).numel() for _, shape in queries[:before])
    state = state.reshape(state.shape[0], heads.numel(), keys.numel(), width)

    def laid(x: Any, dtype: torch.dtype | None, *groups: tuple[int, ...]) -> Tensor:
        """With all of its axes, those of each group merged."""
        return _laid_out(0.0 if x is None else x, dtype, initial.device, lead, groups)

    own = {"keys": [keys], "values": [values]}.get(decay, [])
    if a is not None:
        a = laid(a, None, heads, *own)
    if offset is not None:
        offset = offset.float().expand(*heads, *keys).reshape(heads.numel(), keys.numel())
    found = [laid(x, None if make_q else low, heads, shape, keys) for x, shape in queries]
    count = len(writes)
    k = _woven([laid(x, None if make_k else low, heads, keys) for x, _ in writes])
    v = _woven([laid(x, low, heads, values) for _, x in writes])
    q = found[0] if len(found) == 1 else torch.cat(found, -2)
    if beside:
        columns = [x.permute(0, *(i + 1 for i in axes)).reshape(*state.shape[:3], 1) for x, axes, _ in beside]
        v = torch.cat([v, *(_woven([laid(x, low, heads, (1,)) for x in xs]) for _, _, xs in beside)], -1)
        state = torch.cat([state, *columns], -1)
    if count > 1:
        a = None if a is None else _woven([a] + [torch.ones_like(a)] * (count - 1))
        early, late = q[..., :before, :], q[..., before:, :]
        between = torch.zeros_like(q)
        first, last = torch.cat([early, between[..., before:, :]], -2), torch.cat([between[..., :before, :], late], -2)
        q = _woven([first, *[between] * (count - 2), last])
    given = [x for x in (a, offset, q, k, v, state) if x is not None]
    _reject_tangents(*given)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    ends = None if run.cu_seqlens is None else run.cu_seqlens * count
    blocks, whole_state = _key_blocks(keys.numel()), state.shape
    if blocks > 1:
        a, offset, q, k, v, state = _by_key_blocks(blocks, decay, a, offset, q, k, v, state)
    made = torch.float32 if blocks > 1 else out
    reads, final, _ = operator(a, offset, q, k, v, state, ends, before, together, numbers, keep, made)
    if blocks > 1:
        reads = reads.unflatten(2, (-1, blocks)).sum(3).to(out)
        final = final.reshape(whole_state)
    if count > 1:
        reads = torch.cat([reads[:, ::count, :, :before], reads[:, count - 1 :: count, :, before:]], -2)
    axes = (heads, keys, values)
    return _chunk_results(
        lead, reads, final, [shape for _, shape in queries], axes, order, [own for _, own, _ in beside]
    )


def _by_key_blocks(
    blocks: int, decay: str, a: Tensor | None, offset: Tensor | None, q: Tensor, k: Tensor, v: Tensor, state: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor, Tensor, Tensor]:
    """Operands with as many heads for each as there are blocks of its keys."""
    if a is not None:
        a = a.unflatten(3, (blocks, -1)).flatten(2, 3) if decay == "keys" else a.repeat_interleave(blocks, 2)
    if offset is not None:
        offset = offset.unflatten(1, (blocks, -1)).flatten(0, 1)
    q = q.unflatten(4, (blocks, -1)).transpose(3, 4).flatten(2, 3)
    k, v = k.unflatten(3, (blocks, -1)).flatten(2, 3), v.repeat_interleave(blocks, 2)
    return a, offset, q, k, v, state.unflatten(2, (blocks, -1)).flatten(1, 2)


def _woven(values: Sequence[Tensor]) -> Tensor:
    """Values [B, T, ...] one after the other for each token: [B, T * their number, ...]."""
    return values[0] if len(values) == 1 else torch.stack(list(values), 2).flatten(1, 2)
