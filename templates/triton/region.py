"""Kernels of what stands between learned maps and recurrences, as operators: shapes, launches, what autograd keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from .fused import _flat, _gathered, _on, _pointers, _power_of_two, _rows, _units


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
    numbers: tuple[str, ...]
    results: dict[str, tuple[tuple[str, ...], str, str]]
    """Dims and kind of what is written, and what it becomes."""


class _RegionTile(NamedTuple):
    """Tokens, spread entries and entries of each group that a program has, and its warps."""

    tokens: int
    spread: int
    groups: tuple[int, ...]
    warps: int


def _region_tile(region: _Region, size: dict[str, int]) -> _RegionTile:
    groups = tuple(_power_of_two(math.prod([size[d] for d in g])) for g in region.groups)
    lump = max((math.prod([groups[i] for i in lump]) for lump in region.lumps), default=1)
    # Neighbours in memory fill a line of the cache; 8 entries a thread leave registers for as many values as are alive.
    spread = min(_power_of_two(math.prod([size[d] for d in region.spread])), max(1, 128 // lump))
    tokens = max(1, 1024 // (lump * spread))
    return _RegionTile(tokens, spread, groups, max(1, min(16, tokens * spread * lump // 256)))


def _region_fits(region: _Region, size: dict[str, int]) -> bool:
    """Whether a program can have all that it sums over."""
    groups = [_power_of_two(math.prod([size[d] for d in g])) for g in region.groups]
    return all(math.prod([groups[i] for i in lump]) <= 4096 for lump in region.lumps)


def _region_dtype(use: str, kind: str, low: torch.dtype, out: torch.dtype) -> torch.dtype:
    """In which dtype a result is written: rounded where it will be in any case. Products of float16 numbers in kernels
    are computed as those of float32, and keep what these have."""
    if kind == "bool":
        return torch.bool
    operand = torch.float32 if low == torch.float16 else low
    return {"low": low, "out": out, "operand": operand}.get(use, torch.float32)


def _region_operator(namespace: str, name: str, region: _Region) -> Callable[..., list[Tensor]]:
    """Registers `results = op(tokens, fixed, lead, sizes, numbers, low, out)` and its backward, for which it keeps what
    it reads; tokens' are [B, T, ...]."""
    arguments = "Tensor[] tokens, Tensor[] fixed, SymInt[] lead, int[] sizes, float[] numbers, ScalarType low, ScalarType out"
    arriving = [n for n, (_, kind, _) in region.results.items() if kind != "bool"]
    learned = [n in region.learned for n in (*region.tokens, *region.fixed)]

    def outputs(tokens: Sequence[Tensor], lead: Sequence[int], sizes: Sequence[int], low: Any, out: Any) -> list[Tensor]:
        size = dict(zip(region.dims, sizes))
        return [
            tokens[0].new_empty((*lead, *(size[d] for d in dims)), dtype=_region_dtype(use, kind, low, out))
            for dims, kind, use in region.results.values()
        ]

    def given(tokens, fixed, sizes, numbers) -> tuple[dict[str, Any], dict[str, int], _RegionTile]:
        """What both kernels read, by the names of their parameters; the sizes; and the configuration."""
        size = dict(zip(region.dims, sizes))
        named: dict[str, Any] = size | dict(zip(region.numbers, numbers)) | {"DTYPE": tl.float32}
        for name, x in zip(region.tokens, tokens):
            x, named[f"{name}_row"] = _rows(x)
            named[f"{name}_ptr"] = _flat(x)
        named |= _pointers("{}_ptr", region.fixed, (x.contiguous() for x in fixed))
        tile = _region_tile(region, size)
        counts = [math.prod([size[d] for d in g]) for g in region.groups]
        axes = ("LANES", "BC") if len(counts) == 1 else ("INNER", "BN", "LANES", "BC")
        named |= dict(zip(axes, (n for pair in zip(counts, tile.groups) for n in pair)))
        named |= {"OUTER": math.prod([size[d] for d in region.spread]), "BS": tile.spread, "BT": tile.tokens}
        named["TOKENS"] = tokens[0].shape[0] * tokens[0].shape[1]
        named["BLOCKS"] = -(-named["OUTER"] // tile.spread)
        return named, size, tile

    def launch(kernel: Any, named: dict[str, Any], rows: int, tile: _RegionTile) -> None:
        wanted = {n: named[n] for n in kernel.arg_names}
        kernel[rows, named["BLOCKS"]](**wanted, num_warps=tile.warps)

    @torch.library.custom_op(f"{namespace}::{name}", mutates_args=(), schema=f"({arguments}) -> Tensor[]")
    def forward(tokens, fixed, lead, sizes, numbers, low, out):
        made = outputs(tokens, lead, sizes, low, out)
        if math.prod(lead):
            named, _, tile = given(tokens, fixed, sizes, numbers)
            with _on(tokens[0].device):
                named |= _pointers("{}_ptr", region.results, made)
                launch(region.forward, named, -(-named["TOKENS"] // tile.tokens), tile)
        return made

    @forward.register_fake
    def _(tokens, fixed, lead, sizes, numbers, low, out):
        return outputs(tokens, lead, sizes, low, out)

    @torch.library.custom_op(
        f"{namespace}::{name}_backward",
        mutates_args=(),
        schema=f"(Tensor[] grads, {arguments}) -> Tensor[]",
    )
    def backward(grads, tokens, fixed, lead, sizes, numbers, low, out):
        owners = [x for x, own in zip((*tokens, *fixed), learned) if own]
        if not math.prod(lead):
            return [torch.zeros_like(x).contiguous() for x in owners]
        named, size, tile = given(tokens, fixed, sizes, numbers)
        blocks = -(-named["TOKENS"] // tile.tokens)
        # Programs that sum what tokens share are as many as fill the device some times over.
        rows = min(blocks, max(1, 16 * _units(tokens[0].device) // named["BLOCKS"])) if region.slots else blocks
        named["STEPS"] = -(-blocks // rows)
        rows = -(-blocks // named["STEPS"])
        made: dict[str, Tensor] = {}
        for name, x in zip(region.learned, owners):
            shape = [named["BLOCKS"] if d == "*" else size[d] for d in region.slots.get(name, ())]
            slot = x.new_empty((rows, *shape), dtype=torch.float32) if name in region.slots else None
            made[name] = x.new_empty(x.shape) if slot is None else slot
        named |= _pointers("d_{}_ptr", arriving, (g.contiguous() for g in grads)) | _pointers("d_{}_ptr", made, made.values())
        with _on(tokens[0].device):
            launch(region.backward, named, rows, tile)
        return [
            _gathered(region.fixed[name], region.slots[name], made[name], x, 1) if name in region.slots else made[name]
            for name, x in zip(region.learned, owners)
        ]

    @backward.register_fake
    def _(grads, tokens, fixed, lead, sizes, numbers, low, out):
        owners = [x for x, own in zip((*tokens, *fixed), learned) if own]
        return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in owners]

    def save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
        tokens, fixed, *ctx.rest = inputs
        ctx.counts = len(tokens), len(fixed)
        ctx.save_for_backward(*tokens, *fixed)

    def gradient(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
        values = list(ctx.saved_tensors)
        tokens, fixed = values[: ctx.counts[0]], values[ctx.counts[0] :]
        used = [g for g, (_, kind, _) in zip(grads, region.results.values()) if kind != "bool"]
        found = iter(backward(used, tokens, fixed, *ctx.rest) if region.learned else ())
        made = [next(found) if own else None for own in learned]
        # PyTorch takes an empty list for one of tensors.
        lists = (None if n else [] for n in ctx.rest[:3])
        return made[: len(tokens)], made[len(tokens) :] or [], *lists, None, None

    forward.register_autograd(gradient, setup_context=save)
    return forward


def _between(
    region: _Region,
    operator: Callable[..., list[Tensor]],
    in_torch: Callable[..., tuple[Tensor, ...]],
    dtype: torch.dtype,
    low: torch.dtype,
    out: torch.dtype,
    tokens: Sequence[Tensor],
    fixed: Sequence[Tensor],
    sizes: Sequence[int],
    numbers: Sequence[float] = (),
) -> Sequence[Tensor]:
    """Values of each token by a kernel; by PyTorch in float64, where a program cannot have all that it sums over, and
    where a forward-mode derivative goes with what it reads."""
    given = (*tokens, *fixed)
    tangents = not torch.compiler.is_compiling() and any(_has_tangent(x) for x in given)
    if dtype != torch.float32 or tangents or not _region_fits(region, dict(zip(region.dims, sizes))):
        return in_torch(dtype, *given)
    return operator(list(tokens), list(fixed), list(tokens[0].shape[:2]), list(sizes), list(numbers), low, out)


def _has_tangent(x: Tensor) -> bool:
    return torch.autograd.forward_ad.unpack_dual(x).tangent is not None
