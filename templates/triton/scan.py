"""How two tokens of an affine recurrence compose: what the scans of a tile combine."""

from __future__ import annotations

import triton


@triton.jit
def _tl_affine(a1, b1, a2, b2):
    """`h -> a2 (a1 h + b1) + b2`: the later token after the earlier one."""
    return a2 * a1, a2 * b1 + b2


@triton.jit
def _tl_affine_previous(a1, b1, p1, q1, a2, b2, p2, q2):
    """The same, with the coefficients up to the token before the last: (1, 0) for a single one."""
    return a2 * a1, a2 * b1 + b2, p2 * a1, p2 * b1 + q2


@triton.jit
def _tl_complex_affine(ar1, ai1, br1, bi1, ar2, ai2, br2, bi2):
    """`h -> a2 (a1 h + b1) + b2` in real and imaginary parts."""
    return (
        ar2 * ar1 - ai2 * ai1,
        ar2 * ai1 + ai2 * ar1,
        ar2 * br1 - ai2 * bi1 + br2,
        ar2 * bi1 + ai2 * br1 + bi2,
    )


@triton.jit
def _tl_complex_affine_previous(ar1, ai1, br1, bi1, pr1, pi1, qr1, qi1, ar2, ai2, br2, bi2, pr2, pi2, qr2, qi2):
    """The same, with the coefficients up to the token before the last: (1, 0) for a single one."""
    return (
        ar2 * ar1 - ai2 * ai1,
        ar2 * ai1 + ai2 * ar1,
        ar2 * br1 - ai2 * bi1 + br2,
        ar2 * bi1 + ai2 * br1 + bi2,
        pr2 * ar1 - pi2 * ai1,
        pr2 * ai1 + pi2 * ar1,
        pr2 * br1 - pi2 * bi1 + qr2,
        pr2 * bi1 + pi2 * br1 + qi2,
    )
