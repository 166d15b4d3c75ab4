"""Kernels of what stands between learned maps and recurrences, as operators: shapes, launches, what autograd keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ..torch.operator import _Backward, _DifferentiableOperator
from ..torch.time import _Run
from .fused import _flat, _gathered, _on, _pointers, _power_of_two, _rows, _units
from .module import _multiplied_dtype
from .taps import _tl_taps_back


class _Taps(NamedTuple):
    """A convolution in a region, by the names of parameters: its weights, what it reads, what that was before the first
    token, and the gradient of its value; the dims of that, and of a weight's gradient before it is summed."""

    weight: str
    source: str
    past: str
    flow: str
    dims: tuple[str, ...]
    slot: tuple[str, ...]


class _Region(NamedTuple):
    """Kernels that compute values of each token together, and what they read and write, by the names of their
    parameters.

    A program has some tokens, some entries of the dims that are `spread`, and all of those of each of the `groups`;
    `lumps` are the groups that one value has all of.
    """

    forward: Any
    backward: Any
    spread: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    lumps: tuple[tuple[int, ...], ...]
    dims: tuple[str, ...]
    tokens: dict[str, tuple[str, ...]]
    """Dims of what differs from token to token."""
    fixed: dict[str, tuple[str, ...]]
    """Dims of what does not."""
    learned: tuple[str, ...]
    """What of both has a gradient."""
    slots: dict[str, tuple[str, ...]]
    """Dims of a gradient that tokens share before it is summed; `*` for programs side by side."""
    convs: tuple[_Taps, ...]
    numbers: tuple[str, ...]
    results: dict[str, tuple[tuple[str, ...], str, str]]
    """Dims and kind of what is written, and what it becomes."""


class _RegionTile(NamedTuple):
    """Tokens, spread entries and entries of each group that a program has, and its warps."""

    tokens: int
    spread: int
    groups: tuple[int, ...]
    warps: int


def _region_tile(region: _Region, size: dict[str, int], back: bool) -> _RegionTile:
    groups = tuple(_power_of_two(math.prod([size[d] for d in g])) for g in region.groups)
    lump = max((math.prod([groups[i] for i in lump]) for lump in region.lumps), default=1)
    # Neighbours in memory fill a line of the cache. A thread has 8 entries, and 4 where each is of several tokens: that
    # leaves registers for as many values as are alive.
    spread = min(_power_of_two(math.prod([size[d] for d in region.spread])), max(1, 128 // lump))
    tokens = max(1, 1024 // (lump * spread))
    each = (4 if back and region.convs else 8) * (64 if torch.version.hip else 32)
    return _RegionTile(tokens, spread, groups, max(1, min(16, tokens * spread * lump // each)))


def _region_fits(region: _Region, size: dict[str, int]) -> bool:
    """Whether a program can have all that it sums over."""
    groups = [_power_of_two(math.prod([size[d] for d in g])) for g in region.groups]
    return all(math.prod([groups[i] for i in lump]) <= 4096 for lump in region.lumps)


def _region_dtype(use: str, kind: str, low: torch.dtype, out: torch.dtype) -> torch.dtype:
    """In which dtype a result is written: rounded where it will be in any case. Products of float16 numbers in kernels
    are computed as those of float32, and keep what these have."""
    if kind == "bool":
        return torch.bool
    operand = torch.float32 if low == torch.float16 else _multiplied_dtype(low)
    return {"low": low, "out": out, "operand": operand}.get(use, torch.float32)


class _RegionCall(NamedTuple):
    """What one call is given. Tokens' values are [B, T, ...]; `past` what convolutions read before the first token."""

    tokens: Sequence[Tensor]
    fixed: Sequence[Tensor]
    weights: Sequence[Tensor]
    past: Sequence[Tensor]
    place: Sequence[Tensor]
    """Of packed sequences for each token, where in its own it is and which that is, and where they begin."""
    lead: Sequence[int]
    sizes: Sequence[int]
    numbers: Sequence[float]
    low: torch.dtype
    out: torch.dtype


def _region_arguments(
    region: _Region, call: _RegionCall, back: bool
) -> tuple[dict[str, Any], dict[str, int], _RegionTile]:
    """What both kernels read, by the names of their parameters; the sizes; and the configuration."""
    size = dict(zip(region.dims, call.sizes))
    tile = _region_tile(region, size, back)
    named: dict[str, Any] = size | dict(zip(region.numbers, call.numbers)) | {"DTYPE": tl.float32}
    for name, x in zip(region.tokens, call.tokens):
        x, named[f"{name}_row"] = _rows(x)
        named[f"{name}_ptr"] = _flat(x)
    named |= _pointers("{}_ptr", region.fixed, (x.contiguous() for x in call.fixed))
    named |= _pointers("{}_ptr", (c.weight for c in region.convs), (x.contiguous() for x in call.weights))
    named |= _pointers("{}_ptr", (c.past for c in region.convs), (x.contiguous() for x in call.past))
    named["position_ptr"], named["sequence_ptr"], _ = call.place or (None, None, None)
    counts = [math.prod([size[d] for d in g]) for g in region.groups]
    axes = ("LANES", "BC") if len(counts) == 1 else ("INNER", "BN", "LANES", "BC")
    named |= dict(zip(axes, (n for pair in zip(counts, tile.groups) for n in pair)))
    named |= {"OUTER": math.prod([size[d] for d in region.spread]), "BS": tile.spread, "BT": tile.tokens}
    named |= {"T": call.lead[1], "TOKENS": call.lead[0] * call.lead[1], "PACKED": bool(call.place)}
    named["BLOCKS"] = -(-named["OUTER"] // tile.spread)
    return named, size, tile


def _launch_region(kernel: Any, named: dict[str, Any], rows: int, tile: _RegionTile) -> None:
    wanted = {n: named[n] for n in kernel.arg_names}
    # Else the assembler may rather spill a little than let fewer warps run. With a limit it does not look whether the
    # threads of a program can have so many: they share 65,536.
    registers = {} if torch.version.hip else {"maxnreg": min(255, 65536 // (32 * tile.warps))}
    kernel[rows, named["BLOCKS"]](**wanted, num_warps=tile.warps, **registers)


def _region_outputs(region: _Region, call: _RegionCall) -> list[Tensor]:
    size = dict(zip(region.dims, call.sizes))
    return [
        call.tokens[0].new_empty(
            (*call.lead, *(size[d] for d in dims)), dtype=_region_dtype(use, kind, call.low, call.out)
        )
        for dims, kind, use in region.results.values()
    ]


def _region_owners(region: _Region, call: _RegionCall) -> dict[str, Tensor]:
    """What has a gradient, by name."""
    named = dict(zip((*region.tokens, *region.fixed), (*call.tokens, *call.fixed)))
    convolved = {c.source: named[c.source] for c in region.convs}
    return convolved | {n: named[n] for n in region.learned} | dict(zip((c.weight for c in region.convs), call.weights))


def _region_backward(region: _Region, call: _RegionCall, grads: Sequence[Tensor], moved: bool) -> list[Tensor]:
    """Gradients of all that has one, and of what convolutions read before the first token where that is asked for."""
    owners = _region_owners(region, call)
    past = call.past if moved else ()
    if not math.prod(call.lead):
        return [torch.zeros_like(x).contiguous() for x in (*owners.values(), *past)]
    named, size, tile = _region_arguments(region, call, True)
    blocks = -(-named["TOKENS"] // tile.tokens)
    slots = region.slots | {c.weight: c.slot for c in region.convs}
    # Programs that sum what tokens share are as many as fill the device some times over.
    rows = min(blocks, max(1, 16 * _units(call.tokens[0].device) // named["BLOCKS"])) if slots else blocks
    named["STEPS"] = -(-blocks // rows)
    rows = -(-blocks // named["STEPS"])
    taps = {c.weight: w.shape[-1:] for c, w in zip(region.convs, call.weights)}
    made: dict[str, Tensor] = {}
    for name, x in owners.items():
        shape = [named["BLOCKS"] if d == "*" else size[d] for d in slots.get(name, ())]
        slot = x.new_empty((rows, *shape, *taps.get(name, ())), dtype=torch.float32) if name in slots else None
        made[name] = x.new_empty(x.shape) if slot is None else slot
    arriving = [n for n, (_, kind, _) in region.results.items() if kind != "bool"]
    named |= _pointers("d_{}_ptr", arriving, (g.contiguous() for g in grads)) | _pointers(
        "d_{}_ptr", made, made.values()
    )
    flows = {c.flow: made[c.source].new_empty(made[c.source].shape, dtype=torch.float32) for c in region.convs}
    named |= _pointers("d_{}_ptr", flows, flows.values())
    with _on(call.tokens[0].device):
        _launch_region(region.backward, named, rows, tile)
        for c, weight in zip(region.convs, call.weights):
            _taps_backward(call, flows[c.flow], weight.contiguous(), made[c.source])
    dims = region.fixed | {c.weight: (*c.dims, "taps") for c in region.convs}
    slots |= {c.weight: (*c.slot, "taps") for c in region.convs}
    found = [_gathered(dims[n], slots[n], made[n], x, 1) if n in slots else made[n] for n, x in owners.items()]
    return [*found, *(_past_backward(call, flows[c.flow], w, p) for c, w, p in zip(region.convs, call.weights, past))]


def _taps_backward(call: _RegionCall, flow: Tensor, weight: Tensor, made: Tensor) -> None:
    """Write the gradient of what a convolution reads."""
    size, tokens = math.prod(flow.shape[2:]), flow.shape[0] * flow.shape[1]
    lanes = min(128, _power_of_two(size))
    rows = max(1, 1024 // lanes)
    position = call.place[0] if call.place else None
    grid = (-(-tokens // rows), -(-size // lanes))
    kernel: Any = _tl_taps_back
    kernel[grid](
        *(flow, weight, made, position, call.lead[1], tokens, size, weight.shape[-1], bool(call.place), rows, lanes)
    )


def _past_backward(call: _RegionCall, flow: Tensor, weight: Tensor, past: Tensor) -> Tensor:
    """The gradient of what was before the first token, newest first: of what the first tokens make of it."""
    ends = call.place[2] if call.place else torch.arange(past.shape[0] + 1, device=past.device) * call.lead[1]
    newest, count = weight.to(flow.dtype).movedim(-1, 0).flip(0), past.shape[1]
    tokens = ends[:-1, None] + torch.arange(count, device=past.device)
    real = (tokens < ends[1:, None]).reshape(*tokens.shape, *(1,) * (past.ndim - 2))
    early = torch.where(real, flow.flatten(0, 1)[tokens.clamp(max=flow.shape[0] * flow.shape[1] - 1)], 0.0)
    found = [(early[:, : count - i] * newest[i + 1 :]).sum(1) for i in range(count)]
    return torch.stack(found, 1).to(past.dtype)


def _region_operator(namespace: str, name: str, region: _Region) -> _DifferentiableOperator:
    """Registers `results = op(tokens, fixed, weights, past, place, lead, sizes, numbers, low, out, moved)` and its
    backward, for which it keeps what it reads; `moved` says whether `past` has a gradient."""
    arguments = (
        "Tensor[] tokens, Tensor[] fixed, Tensor[] weights, Tensor[] past, Tensor[] place, SymInt[] lead, int[] sizes, "
        "float[] numbers, ScalarType low, ScalarType out, bool moved"
    )

    def forward(tokens, fixed, weights, past, place, lead, sizes, numbers, low, out, moved):
        call = _RegionCall(tokens, fixed, weights, past, place, lead, sizes, numbers, low, out)
        made = _region_outputs(region, call)
        if math.prod(lead):
            named, _, tile = _region_arguments(region, call, False)
            named |= _pointers("{}_ptr", region.results, made)
            with _on(tokens[0].device):
                _launch_region(region.forward, named, -(-named["TOKENS"] // tile.tokens), tile)
        return made

    def fake(tokens, fixed, weights, past, place, lead, sizes, numbers, low, out, moved):
        return _region_outputs(region, _RegionCall(tokens, fixed, weights, past, place, lead, sizes, numbers, low, out))

    def backward(grads, tokens, fixed, weights, past, place, lead, sizes, numbers, low, out, moved):
        call = _RegionCall(tokens, fixed, weights, past, place, lead, sizes, numbers, low, out)
        return _region_backward(region, call, grads, moved)

    def fake_backward(grads, tokens, fixed, weights, past, place, lead, sizes, numbers, low, out, moved):
        call = _RegionCall(tokens, fixed, weights, past, place, lead, sizes, numbers, low, out)
        owners = [*_region_owners(region, call).values(), *(past if moved else [])]
        return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in owners]

    def save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
        tensors, ctx.rest = inputs[:5], inputs[5:]
        ctx.counts = [len(x) for x in tensors]
        ctx.save_for_backward(*(x for group in tensors for x in group))

    def gradient(ctx: Any, backward: Callable[..., list[Tensor]], grads: list[Tensor]) -> tuple[Any, ...]:
        values = iter(ctx.saved_tensors)
        tensors = [[next(values) for _ in range(n)] for n in ctx.counts]
        given: list[Any] = [*tensors, *ctx.rest[:-1]]
        call = _RegionCall(*given)
        used = [g for g, (_, kind, _) in zip(grads, region.results.values()) if kind != "bool"]
        owners = _region_owners(region, call)
        found = backward(used, *tensors, *ctx.rest) if owners else []
        of = dict(zip(owners, found))
        names = (region.tokens, region.fixed, (c.weight for c in region.convs))
        past = found[len(owners) :] or [None] * ctx.counts[3]
        # PyTorch takes an empty list for one of tensors.
        lists = (None if n else [] for n in ctx.rest[:3])
        return *([of.get(n) for n in group] for group in names), past, [None] * ctx.counts[4], *lists, None, None, None

    schema = f"({arguments}) -> Tensor[]"
    back = _Backward(f"(Tensor[] grads, {arguments}) -> Tensor[]", backward, fake_backward)
    return _DifferentiableOperator(f"{namespace}::{name}", schema, forward, fake, back, save, gradient)


def _between(
    run: _Run,
    region: _Region,
    operator: Callable[..., list[Tensor]],
    in_torch: Callable[..., tuple[Tensor, ...]],
    dtype: torch.dtype,
    low: torch.dtype,
    out: torch.dtype,
    tokens: Sequence[Tensor],
    fixed: Sequence[Tensor],
    sizes: Sequence[int],
    numbers: Sequence[float],
    weights: Sequence[Tensor] = (),
    past: Sequence[Tensor] = (),
) -> Sequence[Tensor]:
    """Values of each token by a kernel; by PyTorch in float64, where a program cannot have all that it sums over, and
    where a forward-mode derivative goes with what it reads."""
    given = (*tokens, *fixed, *weights, *past)
    tangents = not torch.compiler.is_compiling() and any(_has_tangent(x) for x in given)
    if dtype != torch.float32 or tangents or not _region_fits(region, dict(zip(region.dims, sizes))):
        convs = (x for pair in zip(weights, past) for x in pair)
        return in_torch(run, dtype, *tokens, *fixed, *convs)
    place = [x for x in (run.position, run.sequence, run.cu_seqlens) if x is not None]
    moved = any(x.requires_grad for x in past)
    tensors = [list(x) for x in (tokens, fixed, weights, past)]
    return operator(*tensors, place, list(run.lead), list(sizes), list(numbers), low, out, moved)


def _has_tangent(x: Tensor) -> bool:
    return torch.autograd.forward_ad.unpack_dual(x).tangent is not None
