"""What a causal convolution reads of earlier tokens, and its gradient."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tl_earlier(here, before, real, there, DTYPE: tl.constexpr):
    """A tile of values of earlier tokens: where these are there, else what was before the first one."""
    values = tl.load(here, mask=real & there, other=0).to(DTYPE)
    return tl.where(there, values, tl.load(before, mask=real & ~there, other=0).to(DTYPE))


@triton.jit(do_not_specialize=["T", "TOKENS"])
def _tl_taps_back(
    flow_ptr,
    weight_ptr,
    made_ptr,
    position_ptr,
    T,
    TOKENS,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    PACKED: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
):
    """`made[t] = sum_j weight[-1-j] * flow[t+j]` within each sequence, `flow` being the gradient of the values.

    flow, made: [TOKENS, SIZE]; weight: [SIZE, WIDTH]. A program has BT tokens and BC entries.
    """
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    lane = tl.program_id(1) * BC + tl.arange(0, BC)
    real_lane = lane < SIZE
    total = tl.zeros((BT, BC), tl.float32)
    for j in tl.static_range(WIDTH):
        later = token + j
        place = tl.load(position_ptr + later, mask=later < TOKENS, other=0) if PACKED else later % T
        # It is of the same sequence if it has as many tokens before it.
        real = ((later < TOKENS) & (place >= j))[:, None] & real_lane[None, :]
        flow = tl.load(flow_ptr + (later * SIZE)[:, None] + lane[None, :], mask=real, other=0)
        weight = tl.load(weight_ptr + lane * WIDTH + (WIDTH - 1 - j), mask=real_lane, other=0).to(tl.float32)
        total += flow * weight[None, :]
    real = (token < TOKENS)[:, None] & real_lane[None, :]
    tl.store(made_ptr + (token * SIZE)[:, None] + lane[None, :], total, mask=real)
