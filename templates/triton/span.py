"""Which tokens a program has."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tl_span(cu_seqlens, T, sequence, UNIT: tl.constexpr, PACKED: tl.constexpr):
    """Where a sequence begins in memory, its length, and of it the first token and the end of this program's segment.

    Segments are multiples of UNIT, but for the last.
    """
    if PACKED:
        first = tl.load(cu_seqlens + sequence).to(tl.int64)
        length = (tl.load(cu_seqlens + sequence + 1) - first).to(tl.int32)
    else:
        first = sequence * T
        length = T
    span = tl.cdiv(tl.cdiv(length, UNIT), tl.num_programs(1)) * UNIT
    begin = tl.minimum(tl.program_id(1) * span, length)
    return first, length, begin, tl.minimum(begin + span, length)


@triton.jit
def _tl_differs(entered, arrived, size, group):
    """Whether what was composed is not what steps arrive at: up to 1000 roundings of the state's numbers on the way, or
    32 of the group's, of which it may be what is left."""
    rounding = 2.3e-16 if entered.dtype == tl.float64 else 1.2e-7
    allowed = rounding * tl.maximum(1000.0 * size, 32.0 * group)
    near = (tl.abs(entered - arrived) <= allowed) & (group < float("inf"))
    return ~(near | (entered == arrived) | ((entered != entered) & (arrived != arrived)))
