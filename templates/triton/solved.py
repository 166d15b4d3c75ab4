"""Chunks of tokens of a matrix state with low-rank transitions: the triangular system that tokens of a chunk make."""

# Triton's `dot` and `reshape` have no types that say what they return.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl

from .pairs import (
    _tl_add_dot,
    _tl_around,
    _tl_crossing,
    _tl_dot,
    _tl_grouped,
    _tl_operand,
    _tl_pairs,
    _tl_together,
    _tl_within,
    _tl_within_back,
)


@triton.jit
def _tl_solve(system_ptr, inverse_ptr, C: tl.constexpr, PRECISION: tl.constexpr):
    """The inverse of `1 - system`, [C, C] both, of which the system has nothing from the diagonal on.

    Blocks of 16 rows: those on the diagonal by substitution, all at once; then rows of blocks from the first to the
    last, each from what it reads of those before.
    """
    row = tl.arange(0, C)
    block = tl.arange(0, C // 16)
    token = tl.arange(0, 16)
    corner = (block * 16)[:, None, None]
    near = tl.load(system_ptr + (corner + token[None, :, None]) * C + corner + token[None, None, :])
    near = tl.where(token[None, :, None] > token[None, None, :], near, 0.0)
    unit = token[None, :, None] == token[None, None, :]
    inverse = tl.where(unit, 1.0, tl.zeros(near.shape, tl.float32))
    for i in range(1, 16):
        now = (token == i)[None, :, None]
        steps = tl.sum(tl.where(now, near, 0.0), 1)
        inverse += tl.where(now, tl.sum(steps[:, :, None] * inverse, 1)[:, None, :], 0.0)
    whole = tl.zeros([C // 16, 16, C], tl.float32)
    for i in range(C // 16):
        place = (i * 16 + token)[:, None] * C + row[None, :]
        far = tl.load(system_ptr + place, mask=(row < i * 16)[None, :], other=0.0)
        own = tl.sum(tl.where((block == i)[:, None, None], inverse, 0.0), 0)
        right = tl.dot(far, tl.reshape(whole, [C, C]), input_precision=PRECISION)
        right += tl.where(row[None, :] == (i * 16 + token)[:, None], 1.0, 0.0)
        rows = tl.dot(own, right, input_precision=PRECISION)
        tl.store(inverse_ptr + place, rows)
        whole = tl.where((block == i)[:, None, None], rows[None, :, :], whole)


@triton.jit
def _tl_level(a, a_next, row, level, LAG: tl.constexpr, TOGETHER: tl.constexpr, GROUP: tl.constexpr):
    """Of one level: decays of reads and of writes, and which pairs it has. What reads of its own group are a level too,
    the first, without decays."""
    start = _tl_within(a, row, 1 << level, False, LAG == 0)
    until = _tl_within(a_next, row, 1 << level, True, False)
    pairs = _tl_pairs(row, level)
    if LAG == 0 and GROUP > 0:
        start, until = tl.where(level < TOGETHER, 1.0, start), tl.where(level < TOGETHER, 1.0, until)
        pairs = tl.where(level < TOGETHER, _tl_grouped(row, GROUP), pairs)
    return start, until, pairs


@triton.jit
def _tl_reads(
    of_u,
    of_k,
    q,
    u,
    k,
    a,
    a_next,
    row,
    LAG: tl.constexpr,
    LEVELS: tl.constexpr,
    TOGETHER: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr = 0,
):
    """`_tl_scores` of q with both u and k: the decays of both are made once."""
    apart: tl.constexpr = LAG == 0 and GROUP > 0
    if LAG == 0 and GROUP == 0:
        own = row[:, None] == row[None, :]
        of_u += tl.where(own, tl.sum(q.to(tl.float32) * u.to(tl.float32), 1)[:, None], 0.0)
        of_k += tl.where(own, tl.sum(q.to(tl.float32) * k.to(tl.float32), 1)[:, None], 0.0)
    if TOGETHER > GROUP:
        start, until = _tl_around(a, a_next, row, LAG, TOGETHER, GROUP)
        together = _tl_together(row, TOGETHER, GROUP)
        of_u += tl.where(together, _tl_dot(q * start, tl.trans(u * until), OPERAND, PRECISION), 0.0)
        of_k += tl.where(together, _tl_dot(q * start, tl.trans(k * until), OPERAND, PRECISION), 0.0)
    for level in tl.range(TOGETHER - apart, LEVELS, num_stages=1):
        start, until, pairs = _tl_level(a, a_next, row, level, LAG, TOGETHER, GROUP)
        of_u += tl.where(pairs, _tl_dot(q * start, tl.trans(u * until), OPERAND, PRECISION), 0.0)
        of_k += tl.where(pairs, _tl_dot(q * start, tl.trans(k * until), OPERAND, PRECISION), 0.0)
    return of_u, of_k


@triton.jit
def _tl_writes_read_back(
    d_q,
    d_u,
    d_k,
    flow_own,
    flow,
    flow_next,
    of_u,
    of_k,
    q,
    u,
    k,
    a,
    a_next,
    row,
    LAG: tl.constexpr,
    LEVELS: tl.constexpr,
    TOGETHER: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr = 0,
):
    """The gradients of what q reads of both u and k, added to those that are given: the decays of both are made
    once."""
    apart: tl.constexpr = LAG == 0 and GROUP > 0
    if LAG == 0 and GROUP == 0:
        own = row[:, None] == row[None, :]
        own_u = tl.sum(tl.where(own, of_u.to(tl.float32), 0.0), 1)[:, None]
        own_k = tl.sum(tl.where(own, of_k.to(tl.float32), 0.0), 1)[:, None]
        d_q += own_u * u + own_k * k
        d_u += own_u * q
        d_k += own_k * q
    if TOGETHER > GROUP:
        start, until = _tl_around(a, a_next, row, LAG, TOGETHER, GROUP)
        q_start = _tl_operand(q * start, OPERAND, PRECISION)
        u_until, k_until = (
            _tl_operand(u * until, OPERAND, PRECISION),
            _tl_operand(k * until, OPERAND, PRECISION),
        )
        together = _tl_together(row, TOGETHER, GROUP)
        near_u, near_k = tl.where(together, of_u, 0.0), tl.where(together, of_k, 0.0)
        to_q = _tl_dot(near_u, u_until, OPERAND, PRECISION)
        to_q = _tl_add_dot(to_q, near_k, k_until, OPERAND, PRECISION)
        to_u = _tl_dot(tl.trans(near_u), q_start, OPERAND, PRECISION)
        to_k = _tl_dot(tl.trans(near_k), q_start, OPERAND, PRECISION)
        d_q += to_q * start
        d_u += to_u * until
        d_k += to_k * until
        flow_own += _tl_crossing(q_start * to_q, u_until * to_u + k_until * to_k, row, LAG, TOGETHER, GROUP)
    for level in tl.range(TOGETHER - apart, LEVELS, num_stages=1):
        start, until, pairs = _tl_level(a, a_next, row, level, LAG, TOGETHER, GROUP)
        q_start = (q * start).to(OPERAND)
        u_until, k_until = (u * until).to(OPERAND), (k * until).to(OPERAND)
        near_u, near_k = tl.where(pairs, of_u, 0.0), tl.where(pairs, of_k, 0.0)
        to_q = _tl_dot(near_u, u_until, OPERAND, PRECISION)
        to_q = _tl_add_dot(to_q, near_k, k_until, OPERAND, PRECISION)
        d_q += to_q * start
        # A group's own reads have no factor between them.
        read = tl.where(level < TOGETHER, 0.0, q_start * to_q) if apart else q_start * to_q
        flow += _tl_within_back(read, row, 1 << level, False, LAG == 0)
        to_u = _tl_dot(tl.trans(near_u), q_start, OPERAND, PRECISION)
        d_u += to_u * until
        to_k = _tl_dot(tl.trans(near_k), q_start, OPERAND, PRECISION)
        d_k += to_k * until
        written = u_until * to_u + k_until * to_k
        if apart:
            written = tl.where(level < TOGETHER, 0.0, written)
        flow_next += _tl_within_back(written, row, 1 << level, True, False)
    return d_q, d_u, d_k, flow_own, flow, flow_next


@triton.jit
def _tl_writes_read(
    total,
    of_u,
    of_k,
    u,
    k,
    a,
    a_next,
    row,
    LAG: tl.constexpr,
    LEVELS: tl.constexpr,
    TOGETHER: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr = 0,
):
    """`total`, [C, BK], and what tokens read of the others' u and k by scores [C, C], decayed as in `_tl_scores`."""
    apart: tl.constexpr = LAG == 0 and GROUP > 0
    if LAG == 0 and GROUP == 0:
        own = row[:, None] == row[None, :]
        total += tl.sum(tl.where(own, of_u.to(tl.float32), 0.0), 1)[:, None] * u
        total += tl.sum(tl.where(own, of_k.to(tl.float32), 0.0), 1)[:, None] * k
    if TOGETHER > GROUP:
        start, until = _tl_around(a, a_next, row, LAG, TOGETHER, GROUP)
        together = _tl_together(row, TOGETHER, GROUP)
        near = _tl_dot(tl.where(together, of_u, 0.0), u * until, OPERAND, PRECISION)
        near = _tl_add_dot(near, tl.where(together, of_k, 0.0), k * until, OPERAND, PRECISION)
        total += near * start
    for level in tl.range(TOGETHER - apart, LEVELS, num_stages=1):
        start, until, pairs = _tl_level(a, a_next, row, level, LAG, TOGETHER, GROUP)
        near = _tl_dot(tl.where(pairs, of_u, 0.0), u * until, OPERAND, PRECISION)
        near = _tl_add_dot(near, tl.where(pairs, of_k, 0.0), k * until, OPERAND, PRECISION)
        total += near * start
    return total
