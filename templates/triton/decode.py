"""One kernel for a step of one token, as an operator: shapes and launches. It has no gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ..torch.numbers import _complex_of
from ..torch.operator import _Operator
from .fused import _flat, _on, _pointers, _power_of_two, _rows


class _Decode(NamedTuple):
    """The kernel of one group of states, and what it reads and writes, by the names of its parameters.

    dims: all that have a size here; `outer`, `block` and `inner` say how the kernel uses those of the states. Of
    `block` a program has some entries, or all where it is `whole`.
    """

    kernel: Any
    dims: tuple[str, ...]
    outer: tuple[str, ...]
    block: tuple[str, ...]
    inner: tuple[str, ...]
    whole: bool
    states: tuple[str, ...]
    tokens: tuple[str, ...]
    fixed: tuple[str, ...]
    numbers: tuple[str, ...]
    parts: int
    """Real numbers of the states at one entry of all dims."""
    results: dict[str, tuple[tuple[str, ...], str, bool]]
    """Dims and kind of what is written beside the states, and whether it keeps the computing dtype."""


def _decode_tile(decode: _Decode, width: int, inner: int) -> tuple[int, int, int]:
    """Inner entries and entries of the block that a program has, and its warps."""
    rows, columns = _power_of_two(max(inner, 1)), _power_of_two(max(width, 1))
    if not decode.whole:
        columns = min(columns, max(16, 4096 // rows) if decode.inner else 256)
    # 32 numbers of states in a thread, and as many others.
    warps = rows * columns * decode.parts // (64 * 32 if torch.version.hip else 32 * 32)
    return rows, columns, max(1, min(16, _power_of_two(warps)))


def _decode_fits(decode: _Decode, sizes: Sequence[int]) -> bool:
    """Whether a program can hold its part of a state in registers."""
    size = dict(zip(decode.dims, sizes))
    width, inner = math.prod([size[d] for d in decode.block]), math.prod([size[d] for d in decode.inner])
    rows, columns, _ = _decode_tile(decode, width, inner)
    return rows * columns * decode.parts <= 1 << 15


def _decode_operator(namespace: str, name: str, decode: _Decode) -> _Operator:
    """Registers `results, states = op(tokens, fixed, states, sizes, numbers, out)`; all but `fixed` are [B, ...]."""

    def outputs(states: Sequence[Tensor], sizes: Sequence[int], out: torch.dtype) -> list[Tensor]:
        size = dict(zip(decode.dims, sizes))
        dtype = states[0].real.dtype
        made: list[Tensor] = []
        for dims, kind, wide in decode.results.values():
            real = {"bool": torch.bool, "complex": _complex_of(dtype)}.get(kind, dtype if wide else out)
            made.append(states[0].new_empty((states[0].shape[0], *(size[d] for d in dims)), dtype=real))
        return [*made, *(torch.empty_like(s, memory_format=torch.contiguous_format) for s in states)]

    def forward(tokens, fixed, states, sizes, numbers, out):
        made = outputs(states, sizes, out)
        size = dict(zip(decode.dims, sizes))
        width, inner, rows = (math.prod(size[d] for d in dims) for dims in (decode.block, decode.inner, decode.outer))
        batch = states[0].shape[0]
        if not batch * width * inner * rows:
            return made
        given: dict[str, Any] = size | dict(zip(decode.numbers, numbers)) | {"DTYPE": tl.float32}
        for name, x in zip(decode.tokens, tokens):
            x, given[f"{name}_row"] = _rows(x.unsqueeze(1))
            given[f"{name}_ptr"] = _flat(x)
        given |= _pointers("{}_ptr", decode.fixed, (x.contiguous() for x in fixed))
        given |= _pointers("{}_ptr", decode.states, (s.contiguous() for s in states))
        given |= _pointers("{}_ptr", decode.results, made)
        given |= _pointers("{}_next_ptr", decode.states, made[len(decode.results) :])
        given["BN"], given["BC"], warps = _decode_tile(decode, width, inner)
        given["BLOCKS"] = -(-width // given["BC"])
        given |= {"WIDTH": width, "INNER": inner, "ROWS": rows}
        named = {n: given[n] for n in decode.kernel.arg_names}
        with _on(states[0].device):
            decode.kernel[(batch * rows * given["BLOCKS"],)](**named, num_warps=warps)
        return made

    def fake(tokens, fixed, states, sizes, numbers, out):
        return outputs(states, sizes, out)

    given = "Tensor[] tokens, Tensor[] fixed, Tensor[] states, int[] sizes, float[] numbers, ScalarType out"
    return _Operator(f"{namespace}::{name}", f"({given}) -> Tensor[]", forward, fake)


def _decode(
    operator: Callable[..., list[Tensor]],
    tokens: Sequence[Tensor],
    fixed: Sequence[Tensor],
    states: Sequence[Tensor],
    sizes: Sequence[int],
    out: torch.dtype,
    numbers: Sequence[float] = (),
) -> list[Tensor]:
    """One token of a group of states by its kernel."""
    return operator(list(tokens), list(fixed), list(states), list(sizes), list(numbers), out)
