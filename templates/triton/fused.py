"""Fused kernels as operators: shapes, launches, and what autograd keeps."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ..torch.numbers import _complex_of
from ..torch.operator import _Backward, _DifferentiableOperator
from ..torch.scan import _reject_tangents
from ..torch.time import _Run


class _Fused(NamedTuple):
    """The kernels of one group of states, and what they read and write, by the names of their parameters.

    dims: all dims of the states, in the order of their layout; `outer`, `block` and `inner` say how a kernel uses them.
    A slot holds a gradient before it is summed over what its owner lacks; `*` is a program's share of `block`.
    """

    forward: Any
    backward: Any
    carry: Any
    """Composes the tokens of a segment, where they compose; else None."""
    carry_back: Any
    tiled: bool
    """Whether the forward takes a tile of tokens at a time; else one after the other."""
    tiled_back: bool
    dims: tuple[str, ...]
    outer: tuple[str, ...]
    block: tuple[str, ...]
    inner: tuple[str, ...]
    states: tuple[str, ...]
    lags: tuple[int, ...]
    """How long ago each was a state's value. From 2 on it is a delay: of the one before it."""
    maps: dict[str, str]
    """Parameters of composed segments, and the state that each is shaped like."""
    maps_back: dict[str, str]
    checks: tuple[str, ...]
    """What segments leave to be verified: what each state enters with, arrives at, and its size."""
    checks_back: tuple[str, ...]
    tokens: dict[str, tuple[str, ...]]
    """Dims of the inputs that differ from token to token."""
    token_slots: tuple[tuple[str, ...] | None, ...]
    fixed: dict[str, tuple[str, ...]]
    """Dims of the inputs that do not."""
    fixed_slots: tuple[tuple[str, ...] | None, ...]
    numbers: tuple[str, ...]
    results: dict[str, tuple[tuple[str, ...], str, bool]]
    """Dims and kind of what is written for each token beside the states, and whether it keeps the computing dtype."""
    kept: tuple[bool, ...]
    """Whether a state's values at all tokens are used outside."""
    wide: tuple[bool, ...]
    """Whether they keep the computing dtype."""
    stored: bool
    """Whether the backward reads those values; else the states that enter each chunk, and computes the rest again."""
    chunk: int = 32
    """Tokens of a chunk."""


class _Tile(NamedTuple):
    """How a kernel is launched: channels of a program and of a thread, and tokens of a tile, as stretches of tokens."""

    channels: int
    vector: int
    tokens: int
    stretches: int
    warps: int
    stages: int

    @property
    def unit(self) -> int:
        return self.tokens * self.stretches


def _units(device: torch.device) -> int:
    """Multiprocessors of a device."""
    return 4 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count


def _segments(device: torch.device, programs: int, tokens: int, unit: int, beside: int = 4) -> int:
    """Into how many segments time is cut: one where the programs fill the device, else what fills it with `beside`
    programs on each multiprocessor."""
    units = _units(device)
    return 1 if programs >= units else max(1, min(beside * units // programs, tokens // (2 * unit), 64))


def _flat(x: Tensor) -> Tensor:
    """Real numbers as they are, complex ones as pairs: what a pointer leads to."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x.resolve_neg()


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """`x` [B, T, ...] with its tokens a fixed distance apart and each one's entries side by side; the distance."""
    x = x.resolve_conj().resolve_neg()
    if x.is_contiguous():
        return x, math.prod(x.shape[2:])
    steps, wanted = 1, []
    for n in reversed(x.shape[2:]):
        wanted.append(steps)
        steps *= n
    inside = all(s == w or n == 1 for s, w, n in zip(x.stride()[2:], reversed(wanted), x.shape[2:]))
    row = x.stride(0) if x.shape[1] == 1 else x.stride(1)
    regular = x.shape[0] == 1 or x.shape[1] == 1 or x.stride(0) == row * x.shape[1]
    return (x, row) if inside and regular and row >= steps else (x.contiguous(), steps)


class _Call(NamedTuple):
    """The sizes of one call."""

    size: dict[str, int]
    lead: tuple[int, int]
    sequences: int
    width: int
    inner: int
    rows: int
    dtype: torch.dtype
    out: torch.dtype
    packed: bool
    parts: int
    """Real numbers of one entry of all states."""
    maps: tuple[int, int]
    """The same of the maps that compose them, forward and backward."""


def _call(
    fused: _Fused, initial: Sequence[Tensor], lead: Sequence[int], sizes: Sequence[int], out: torch.dtype, packed: bool
) -> _Call:
    size = dict(zip(fused.dims, sizes))
    width, inner, rows = (math.prod(size[d] for d in dims) for dims in (fused.block, fused.inner, fused.outer))
    dtype = torch.float64 if initial[0].dtype in (torch.float64, torch.complex128) else torch.float32
    batch, steps = lead
    parts = sum(1 + s.is_complex() for s in initial)
    of = {name: 1 + s.is_complex() for name, s in zip(fused.states, initial)}
    maps = sum(of[s] for s in fused.maps.values()), sum(of[s] for s in fused.maps_back.values())
    return _Call(size, (batch, steps), initial[0].shape[0], width, inner, rows, dtype, out, packed, parts, maps)


def _per_token(call: _Call, dims: tuple[str, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
    return like.new_empty((*call.lead, *(call.size[d] for d in dims)), dtype=dtype)


def _outputs(fused: _Fused, call: _Call, initial: Sequence[Tensor]) -> list[Tensor]:
    """Memory for what the forward writes: results, then the states' values or starts, then the last states."""
    made: list[Tensor] = []
    for dims, kind, wide in fused.results.values():
        real = call.dtype if wide else call.out
        dtype = {"real": real, "complex": _complex_of(call.dtype), "bool": torch.bool}[kind]
        made.append(_per_token(call, dims, dtype, initial[0]))
    for state, wide, lag in zip(initial, fused.wide, fused.lags):
        if fused.stored:
            if lag > 1:
                continue
            narrow = not wide and not state.is_complex()
            made.append(_per_token(call, fused.dims, call.out if narrow else state.dtype, state))
        else:
            chunks = call.lead[0] * call.lead[1] // fused.chunk + call.sequences
            made.append(state.new_empty((chunks, *state.shape[1:])))
    return [*made, *(torch.empty_like(s, memory_format=torch.contiguous_format) for s in initial)]


def _tile(fused: _Fused, call: _Call, back: bool, reads: Sequence[Tensor]) -> _Tile:
    """The configuration for a kernel, from what a thread holds for one entry of a state; `reads`: for each token.

    Of a tile, channels lie along the lanes, four neighbours in a thread where rows are aligned (to loads of 2 bytes
    nothing is fetched ahead); stretches along the other lanes and the warps, each in one thread.
    """
    double = call.dtype == torch.float64
    if not (fused.tiled_back if back else fused.tiled):
        return _stepped_tile(call, back, double, reads)
    held = (2 if back else 1) * call.maps[back] + sum(1 + x.is_complex() for x in reads)
    room = 36 if double else 150
    entries = min(8 if double else 16, _power_of_two(room // held + 1) // 2 or 1)
    vector = max(1, entries // 4) if call.width % 16 == 0 else 1
    channels = 64 if vector > 1 and not double else 32
    tokens, stretches = min(8, entries // vector), 128 * vector // channels
    read = channels * tokens * stretches * sum(x.element_size() for x in reads)
    return _Tile(_lanes(channels, call.width), vector, tokens, stretches, 4, max(1, min(4, 1 + 49152 // max(read, 1))))


def _stepped_tile(call: _Call, back: bool, double: bool, reads: Sequence[Tensor]) -> _Tile:
    """The same for a kernel that takes one token after the other."""
    if call.inner == 1:
        vector = 2 if call.width % 16 == 0 and any(x.element_size() == 2 for x in reads) else 1
        return _Tile(_lanes(32 * vector, call.width), vector, 1, 1, 1, 8)
    channels, size = _lanes(32, call.width), _power_of_two(call.inner)
    entries = max(1, 16 // call.parts // (1 if not double else 2 if not back else 8 if torch.version.hip else 4))
    entries *= 64 if torch.version.hip else 32
    warps = max(1, min(8, channels * size // entries))
    while channels > 1 and channels * size > entries * warps:
        channels //= 2
    # Where other warps run meanwhile, a backward keeps its registers instead.
    return _Tile(channels, 1, 1, 1, warps, 2 if back and warps > 1 else 3)


def _lanes(wanted: int, width: int) -> int:
    return min(wanted, _power_of_two(width))


def _power_of_two(n: int) -> int:
    """The least one that is not smaller."""
    return 1 << (n - 1).bit_length()


class _Launch(NamedTuple):
    """How one direction is launched."""

    tile: _Tile
    blocks: int
    programs: int
    segments: int
    constants: dict[str, Any]


def _launch(fused: _Fused, call: _Call, back: bool, device: torch.device, reads: Sequence[Tensor]) -> _Launch:
    tiled = fused.tiled_back if back else fused.tiled
    tile = _tile(fused, call, back, reads)
    blocks = -(-call.width // tile.channels)
    programs = call.sequences * call.rows * blocks
    unit = tile.unit if tiled else fused.chunk
    tokens = call.lead[0] * call.lead[1] // max(call.sequences, 1)
    composes = (fused.carry_back if back else fused.carry) is not None
    segments = _segments(device, programs, tokens, unit) if composes and programs else 1
    constants: dict[str, Any] = {"DTYPE": tl.float64 if call.dtype == torch.float64 else tl.float32}
    constants |= {"WIDTH": call.width, "BLOCKS": blocks, "BC": tile.channels, "VEC": tile.vector}
    constants |= {"PACKED": call.packed, "SEGMENTED": segments > 1, "STAGES": tile.stages}
    constants |= {"SEGMENTS": segments, "REPAIR": False}
    if fused.outer:
        constants["ROWS"] = call.rows
    if fused.inner:
        constants |= {"INNER": call.inner, "BN": _power_of_two(call.inner)}
    if tiled:
        constants |= {"BT": tile.tokens, "BS": tile.stretches}
    elif not fused.stored:
        constants["CHUNK"] = fused.chunk
    return _Launch(tile, blocks, programs, segments, constants)


def _start(launch: _Launch, kernel: Any, arguments: dict[str, Any]) -> None:
    """Launch one kernel with those of the arguments that it has parameters for."""
    given = [arguments[name] for name in kernel.arg_names if name in arguments]
    constants = {name: value for name, value in launch.constants.items() if name in kernel.arg_names}
    # Else the assembler may rather spill a little than let fewer warps run.
    registers = {} if torch.version.hip else {"maxnreg": 255}
    kernel[launch.programs, launch.segments](*given, **constants, num_warps=launch.tile.warps, **registers)


def _run_kernels(launch: _Launch, carry: Any, kernel: Any, arguments: dict[str, Any], verified: bool) -> None:
    """Compose segments if there are several, go through them side by side, and again where that is not confirmed."""
    if launch.segments > 1:
        _start(launch, carry, arguments)
    _start(launch, kernel, arguments)
    if launch.segments > 1 and verified:
        once = launch.constants | {"SEGMENTED": False, "REPAIR": True}
        _start(launch._replace(segments=1, constants=once), kernel, arguments)


def _pointers(pattern: str, names: Iterable[str], values: Iterable[Tensor]) -> dict[str, Tensor]:
    return {pattern.format(name): _flat(x) for name, x in zip(names, values)}


def _segment_memory(fused: _Fused, launch: _Launch, initial: Sequence[Tensor], back: bool) -> dict[str, Tensor]:
    """Memory for what composed segments leave: their parameters, and what is verified."""
    count = launch.segments if launch.segments > 1 else 0
    shaped = dict(fused.maps_back if back else fused.maps)
    checks = fused.checks_back if back else fused.checks
    shaped |= {name: state for state, names in zip(fused.states, _thirds(checks)) for name in names}
    like = dict(zip(fused.states, initial))
    made = {name: like[state].new_empty((count, *like[state].shape)) for name, state in shaped.items()}
    return _pointers("{}_ptr", made, made.values())


def _thirds(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[i : i + 3] for i in range(0, len(names), 3)]


def _scratch(fused: _Fused, launch: _Launch, call: _Call, initial: Sequence[Tensor]) -> dict[str, Tensor]:
    """Memory for the states of one chunk in each program, where a backward computes them again."""
    if fused.stored:
        return {}
    state = launch.constants["BC"] * launch.constants.get("BN", 1) * sum(1 + s.is_complex() for s in initial)
    size = launch.programs * launch.segments * fused.chunk * state
    return {"scratch_ptr": initial[0].new_empty((size,), dtype=call.dtype)}


def _slot(
    call: _Call, blocks: int, dims: tuple[str, ...], slot: tuple[str, ...], lead: Sequence[int], like: Tensor
) -> Tensor:
    """Memory for a gradient before it is summed."""
    whole = slot == dims and len(lead) == 2
    real = call.dtype if not like.is_complex() else _complex_of(call.dtype)
    shape = (*lead, *(blocks if d == "*" else call.size[d] for d in slot))
    return like.new_empty(shape, dtype=like.dtype if whole else real)


def _gathered(dims: tuple[str, ...], slot: tuple[str, ...], memory: Tensor, like: Tensor, lead: int) -> Tensor:
    """The gradient of something with `dims` from its slot, whose first axes are `lead` of tokens or programs."""
    over = [i for i, d in enumerate(slot, lead) if d not in dims]
    if lead == 1:
        over = [0, *over]
    if over:
        memory = memory.sum(over)
    left = [d for d in slot if d in dims]
    first = 2 if lead == 2 else 0
    memory = memory.permute([*range(first), *(first + left.index(d) for d in dims)])
    return memory.to(like.dtype).contiguous()


def _fused_operator(namespace: str, name: str, fused: _Fused) -> _DifferentiableOperator:
    """Registers a fused kernel and its backward.

    Saved for the backward: what the kernel reads, and the states' values (or those at the starts of its chunks).
    """
    arguments = (
        "Tensor[] tokens, Tensor[] fixed, Tensor[] initial, Tensor? cu_seqlens, SymInt[] lead, int[] sizes, "
        "float[] numbers, ScalarType out"
    )

    # Names of what gradients arrive for.
    arriving = [n for n, (_, kind, _) in fused.results.items() if kind != "bool"]
    arriving += [n for n, kept in zip(fused.states, fused.kept) if kept]
    saved_ptr = "{}_ptr" if fused.stored else "{}_starts_ptr"
    saved_names = [n for n, lag in zip(fused.states, fused.lags) if lag == 1 or not fused.stored]

    def fetched(x: Tensor, call: _Call) -> Tensor:
        """Nothing is fetched ahead by loads of 2 bytes a thread, and with one token at a time each would wait."""
        return x.to(call.dtype) if fused.inner and x.element_size() == 2 else x

    def read(tokens, fixed, initial, cu_seqlens, call, sizes, numbers) -> dict[str, Any]:
        """What all kernels may read, by the names of their parameters."""
        named: dict[str, Any] = {"cu_seqlens": cu_seqlens, "T": call.lead[1]}
        for name, x in zip(fused.tokens, tokens):
            x, named[f"{name}_row"] = _rows(fetched(x, call))
            named[f"{name}_ptr"] = _flat(x)
        named |= _pointers("{}_ptr", fused.fixed, (x.contiguous() for x in fixed))
        named |= _pointers("{}_initial_ptr", fused.states, initial)
        return named | dict(zip(fused.dims, sizes)) | dict(zip(fused.numbers, numbers))

    def forward(tokens, fixed, initial, cu_seqlens, lead, sizes, numbers, out):
        call = _call(fused, initial, lead, sizes, out, cu_seqlens is not None)
        made = _outputs(fused, call, initial)
        initial = [s.contiguous() for s in initial]
        if math.prod(call.lead) == 0 or call.sequences == 0:
            for last, first in zip(made[-len(initial) :], initial):
                last.copy_(first)
            return made
        launch = _launch(fused, call, False, initial[0].device, tokens)
        arguments = read(tokens, fixed, initial, cu_seqlens, call, sizes, numbers)
        values = iter(made)
        for pattern, names in (("{}_ptr", fused.results), (saved_ptr, saved_names), ("{}_last_ptr", fused.states)):
            arguments |= _pointers(pattern, names, itertools.islice(values, len(names)))
        arguments |= _segment_memory(fused, launch, initial, False)
        with _on(initial[0].device):
            _run_kernels(launch, fused.carry, fused.forward, arguments, bool(fused.checks))
        return made

    def fake(tokens, fixed, initial, cu_seqlens, lead, sizes, numbers, out):
        return _outputs(fused, _call(fused, initial, lead, sizes, out, cu_seqlens is not None), initial)

    def backward(grads, last_grads, saved, tokens, fixed, initial, cu_seqlens, lead, sizes, numbers, out):
        call = _call(fused, initial, lead, sizes, out, cu_seqlens is not None)
        of_tokens = zip(tokens, fused.tokens.items(), fused.token_slots)
        of_fixed = zip(fixed, fused.fixed.items(), fused.fixed_slots)
        owners = {
            name: (x, dims, slot, axes)
            for axes, owned in ((2, of_tokens), (1, of_fixed))
            for x, (name, dims), slot in owned
            if slot is not None
        }
        if math.prod(call.lead) == 0 or call.sequences == 0:
            return [*(torch.zeros_like(x).contiguous() for x, *_ in owners.values()), *(g.clone() for g in last_grads)]
        initial = [s.contiguous() for s in initial]
        reads = [*tokens, *grads, *(saved if fused.stored else [])]
        launch = _launch(fused, call, True, initial[0].device, reads)
        programs = (call.sequences * launch.segments,)
        slots = [
            _slot(call, launch.blocks, dims, slot, call.lead if axes == 2 else programs, x)
            for x, dims, slot, axes in owners.values()
        ]
        d_initial = [torch.empty_like(s) for s in initial]
        arguments = read(tokens, fixed, initial, cu_seqlens, call, sizes, numbers)
        arguments |= _scratch(fused, launch, call, initial)
        arguments |= _pointers(saved_ptr, saved_names, saved)
        arguments |= _pointers("d_{}_ptr", arriving, (fetched(g, call).contiguous() for g in grads))
        arguments |= _pointers("d_{}_last_ptr", fused.states, (g.contiguous() for g in last_grads))
        arguments |= _pointers("d_{}_ptr", owners, slots) | _pointers("d_{}_initial_ptr", fused.states, d_initial)
        arguments |= _segment_memory(fused, launch, initial, True)
        with _on(initial[0].device):
            _run_kernels(launch, fused.carry_back, fused.backward, arguments, bool(fused.checks_back))
        found = zip(slots, owners.values())
        return [*(_gathered(dims, slot, memory, x, axes) for memory, (x, dims, slot, axes) in found), *d_initial]

    def fake_backward(grads, last_grads, saved, tokens, fixed, initial, cu_seqlens, lead, sizes, numbers, out):
        owners = [x for x, slot in zip((*tokens, *fixed), _slots(fused)) if slot is not None]
        return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (*owners, *initial)]

    def save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
        tokens, fixed, initial, cu_seqlens, ctx.lead, ctx.sizes, ctx.numbers, ctx.out = inputs
        saved = output[len(fused.results) : len(fused.results) + len(saved_names)]
        ctx.counts = (len(tokens), len(fixed), len(initial), len(saved))
        ctx.made = [(x.shape, x.dtype) for x in output]
        ctx.save_for_backward(*tokens, *fixed, *initial, *saved, *([] if cu_seqlens is None else [cu_seqlens]))
        # No zeros for what the forward leaves to the backward alone: that may be as large as an input.
        ctx.set_materialize_grads(False)

    def gradient(ctx: Any, backward: Callable[..., list[Tensor]], grads: list[Tensor | None]) -> tuple[Any, ...]:
        values = iter(ctx.saved_tensors)
        tokens, fixed, initial, saved = ([next(values) for _ in range(n)] for n in ctx.counts)
        cu_seqlens = next(values, None)
        results, states = len(fused.results), len(initial)
        arrived = list(zip(grads, ctx.made))
        used = [x for x, (_, kind, _) in zip(arrived, fused.results.values()) if kind != "bool"]
        # Of the states, delays come after what they delay, which alone may be kept: the others' places are its own.
        kept = [k for k, lag in zip(fused.kept, fused.lags) if lag == 1 or not fused.stored]
        used += [x for x, k in zip(arrived[results:], kept) if k]
        grads, last_grads = (
            [initial[0].new_zeros(shape, dtype=dtype) if g is None else g for g, (shape, dtype) in chosen]
            for chosen in (used, arrived[len(arrived) - states :])
        )
        call = (tokens, fixed, initial, cu_seqlens, ctx.lead, ctx.sizes, ctx.numbers, ctx.out)
        found = iter(backward(grads, last_grads, saved, *call))
        made = [None if slot is None else next(found) for slot in _slots(fused)]
        # PyTorch takes an empty list for one of tensors.
        lists = (None if n else [] for n in (ctx.lead, ctx.sizes, ctx.numbers))
        return made[: len(tokens)], made[len(tokens) :], list(found), None, *lists, None

    schema = f"({arguments}) -> Tensor[]"
    back = _Backward(
        f"(Tensor[] grads, Tensor[] last_grads, Tensor[] saved, {arguments}) -> Tensor[]", backward, fake_backward
    )
    return _DifferentiableOperator(f"{namespace}::{name}", schema, forward, fake, back, save, gradient)


def _slots(fused: _Fused) -> tuple[tuple[str, ...] | None, ...]:
    return (*fused.token_slots, *fused.fixed_slots)


def _on(device: torch.device) -> Any:
    """Where kernels are launched."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _kernel(
    run: _Run,
    operator: Callable[..., list[Tensor]],
    tokens: Sequence[Tensor],
    fixed: Sequence[Tensor],
    initial: Sequence[Tensor],
    sizes: Sequence[int],
    out: torch.dtype,
    numbers: Sequence[float] = (),
) -> list[Tensor]:
    """A fused kernel over whole or packed sequences."""
    _reject_tangents(*tokens, *fixed, *initial)
    return operator(
        list(tokens), list(fixed), list(initial), run.cu_seqlens, list(run.lead), list(sizes), list(numbers), out
    )
