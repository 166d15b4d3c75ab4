"""Chunks of tokens of a matrix state with low-rank transitions: the triangular system that tokens of a chunk make."""

# Triton's `dot` and `reshape` have no types that say what they return.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl

from .pairs import _tl_pairs


@triton.jit
def _tl_inverse(a, row, LEVELS: tl.constexpr, PRECISION: tl.constexpr):
    """The inverse of `1 - a`, [C, C], of which `a` has nothing from the diagonal on.

    Blocks of 16 tokens, all at once, by substitution; then those of halves joined, `inverse + inverse a inverse`.
    """
    C: tl.constexpr = a.shape[0]
    block = tl.arange(0, C // 16)
    token = tl.arange(0, 16)
    same = block[:, None, None, None] == block[None, None, :, None]
    near = tl.sum(tl.where(same, tl.reshape(a, [C // 16, 16, C // 16, 16]), 0.0), 2)
    inverse = tl.where(token[None, :, None] == token[None, None, :], 1.0, tl.zeros(near.shape, tl.float32))
    for i in range(1, 16):
        now = (token == i)[None, :, None]
        steps = tl.sum(tl.where(now, near, 0.0), 1)
        solved = tl.sum(steps[:, :, None] * inverse, 1)
        inverse = tl.where(now, inverse + solved[:, None, :], inverse)
    whole = tl.reshape(tl.where(same, inverse[:, :, None, :], 0.0), [C, C])
    for level in tl.range(4, LEVELS, num_stages=1):
        across = tl.dot(whole, tl.where(_tl_pairs(row, level), a, 0.0), input_precision=PRECISION)
        whole = tl.dot(across, whole, whole, input_precision=PRECISION)
    return whole
