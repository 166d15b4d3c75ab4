"""Chunks of tokens of a matrix state with low-rank transitions: the triangular system that tokens of a chunk make."""

# Triton's `dot` and `reshape` have no types that say what they return.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl

from .pairs import _tl_add_dot, _tl_around, _tl_dot, _tl_grouped, _tl_pairs, _tl_together, _tl_within


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
def _tl_writes_read(
    total,
    scores,
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
    """`total`, [C, BK], and what tokens read of the others' k by scores [C, C], decayed as in `_tl_scores`."""
    if LAG == 0:
        total = _tl_add_dot(total, tl.where(_tl_grouped(row, GROUP), scores, 0.0), k, OPERAND, PRECISION)
    if TOGETHER > GROUP:
        start, until = _tl_around(a, a_next, row, LAG, TOGETHER, GROUP)
        near = tl.where(_tl_together(row, TOGETHER, GROUP), scores, 0.0)
        total += _tl_dot(near, k * until, OPERAND, PRECISION) * start
    for level in tl.range(TOGETHER, LEVELS, num_stages=1):
        k_until = k * _tl_within(a_next, row, 1 << level, True, False)
        near = _tl_dot(tl.where(_tl_pairs(row, level), scores, 0.0), k_until, OPERAND, PRECISION)
        total += near * _tl_within(a, row, 1 << level, False, LAG == 0)
    return total
