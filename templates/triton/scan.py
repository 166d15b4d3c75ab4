"""Affine recurrences over tiles [BT, BS, BC]: BS stretches of BT tokens, each stretch in one thread.

A zero that is only added to is -0.0: a compiler leaves out sums with that one.
"""

# Triton says of `associative_scan` that it returns nothing.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl


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


@triton.jit
def _tl_last(x):
    """The last entry along the first axis."""
    last = tl.arange(0, x.shape[0]) == x.shape[0] - 1
    last = last[:, None, None] if len(x.shape) == 3 else last[:, None]
    return tl.sum(tl.where(last, x, 0.0), 0)


@triton.jit
def _tl_stretches(a, b):
    """The stretches of a tile composed: coefficients up to each, and up to the one before."""
    a, b = _tl_last(a), _tl_last(b)
    one, zero = tl.full(a.shape, 1.0, a.dtype), tl.zeros(a.shape, a.dtype) * -1.0
    return tl.associative_scan((a, b, one, zero), 0, _tl_affine_previous)


@triton.jit
def _tl_total(a, b):
    """All tokens of a tile composed."""
    a, b = tl.associative_scan((a, b), 0, _tl_affine)
    a, b, _, _ = _tl_stretches(a, b)
    return _tl_last(a), _tl_last(b)


@triton.jit
def _tl_states(a, b, state):
    """The states after each token of a tile, and after all of them."""
    a, b = tl.associative_scan((a, b), 0, _tl_affine)
    a_all, b_all, p, q = _tl_stretches(a, b)
    entering = p * state[None, :] + q
    return a * entering[None, :, :] + b, _tl_last(a_all * state[None, :] + b_all)


@triton.jit
def _tl_states_previous(a, b, state):
    """The states after each token of a tile, before each of them, and after all of them."""
    one, zero = tl.full(a.shape, 1.0, a.dtype), tl.zeros(a.shape, a.dtype) * -1.0
    a, b, p, q = tl.associative_scan((a, b, one, zero), 0, _tl_affine_previous)
    a_all, b_all, p_all, q_all = _tl_stretches(a, b)
    entering = p_all * state[None, :] + q_all
    after, before = a * entering[None, :, :] + b, p * entering[None, :, :] + q
    return after, before, _tl_last(a_all * state[None, :] + b_all)


@triton.jit
def _tl_complex_apply(ar, ai, re, im, br, bi):
    """`a z + b`."""
    return ar * re - ai * im + br, ar * im + ai * re + bi


@triton.jit
def _tl_complex_stretches(ar, ai, br, bi):
    """The stretches of a tile composed: coefficients up to each, and up to the one before."""
    ar, ai, br, bi = _tl_last(ar), _tl_last(ai), _tl_last(br), _tl_last(bi)
    one, zero = tl.full(ar.shape, 1.0, ar.dtype), tl.zeros(ar.shape, ar.dtype) * -1.0
    return tl.associative_scan((ar, ai, br, bi, one, zero, zero, zero), 0, _tl_complex_affine_previous)


@triton.jit
def _tl_complex_total(ar, ai, br, bi):
    """All tokens of a tile composed."""
    ar, ai, br, bi = tl.associative_scan((ar, ai, br, bi), 0, _tl_complex_affine)
    ar, ai, br, bi, _, _, _, _ = _tl_complex_stretches(ar, ai, br, bi)
    return _tl_last(ar), _tl_last(ai), _tl_last(br), _tl_last(bi)


@triton.jit
def _tl_complex_states(ar, ai, br, bi, re, im):
    """The states after each token of a tile, and after all of them."""
    ar, ai, br, bi = tl.associative_scan((ar, ai, br, bi), 0, _tl_complex_affine)
    ar_all, ai_all, br_all, bi_all, pr, pi, qr, qi = _tl_complex_stretches(ar, ai, br, bi)
    re, im = re[None, :], im[None, :]
    in_re, in_im = _tl_complex_apply(pr, pi, re, im, qr, qi)
    out_re, out_im = _tl_complex_apply(ar_all, ai_all, re, im, br_all, bi_all)
    after_re, after_im = _tl_complex_apply(ar, ai, in_re[None, :, :], in_im[None, :, :], br, bi)
    return after_re, after_im, _tl_last(out_re), _tl_last(out_im)


@triton.jit
def _tl_complex_states_previous(ar, ai, br, bi, re, im):
    """The states after each token of a tile, before each of them, and after all of them."""
    one, zero = tl.full(ar.shape, 1.0, ar.dtype), tl.zeros(ar.shape, ar.dtype) * -1.0
    ar, ai, br, bi, pr, pi, qr, qi = tl.associative_scan(
        (ar, ai, br, bi, one, zero, zero, zero), 0, _tl_complex_affine_previous
    )
    ar_all, ai_all, br_all, bi_all, pr_all, pi_all, qr_all, qi_all = _tl_complex_stretches(ar, ai, br, bi)
    re, im = re[None, :], im[None, :]
    in_re, in_im = _tl_complex_apply(pr_all, pi_all, re, im, qr_all, qi_all)
    out_re, out_im = _tl_complex_apply(ar_all, ai_all, re, im, br_all, bi_all)
    in_re, in_im = in_re[None, :, :], in_im[None, :, :]
    after_re, after_im = _tl_complex_apply(ar, ai, in_re, in_im, br, bi)
    before_re, before_im = _tl_complex_apply(pr, pi, in_re, in_im, qr, qi)
    return after_re, after_im, before_re, before_im, _tl_last(out_re), _tl_last(out_im)
