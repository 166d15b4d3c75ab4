"""Elementwise functions of complex tiles: pairs of real ones, float32 or float64. Branches are PyTorch's.

Products are left to the caller. What would overflow on the way to a number that does not is scaled.
"""

# pyright: reportGeneralTypeIssues=false
# To pyright, the call of one kernel function by another never returns.

import triton
import triton.language as tl

from .numbers import _tl_expm1, _tl_is_negative, _tl_log1p, _tl_maximum, _tl_minimum, _tl_tanh


@triton.jit
def _tl_size_and_ratio(re, im):
    """The larger of both in size, and the smaller over it: 0 at the origin, 1 where both are infinite."""
    x, y = tl.abs(re), tl.abs(im)
    size, least = _tl_maximum(x, y), _tl_minimum(x, y)
    return size, tl.where(size > 0.0, tl.where(least == size, 1.0, least / size), size)


@triton.jit
def _tl_arctan_unit(t):
    """`atan(t)` for 0 <= t <= 1."""
    z = t * t
    tail = -0.075522136 + z * (0.0432118529 + z * (-0.0163679232 + z * 0.00292069104))
    tail = -0.333331527 + z * (0.199937728 + z * (-0.142110552 + z * (0.106660043 + z * tail)))
    angle = t + t * z * tail
    if t.dtype == tl.float64:
        # Turned back by the estimate, the point is so close to the axis that its angle is its slope.
        c, s = tl.cos(angle), tl.sin(angle)
        angle += (t * c - s) / (c + t * s)
    return angle


@triton.jit
def _tl_atan2(y, x):
    """The angle of (x, y), 0 at the origin; of two on the negative axis, the one that the sign of a zero `y` says."""
    _, ratio = _tl_size_and_ratio(x, y)
    angle = _tl_arctan_unit(ratio)
    angle = tl.where(tl.abs(y) > tl.abs(x), 1.5707963267948966 - angle, angle)
    angle = tl.where(_tl_is_negative(x), 3.141592653589793 - angle, angle)
    return tl.where(_tl_is_negative(y), -angle, angle)


@triton.jit
def _tl_complex_abs(re, im):
    size, ratio = _tl_size_and_ratio(re, im)
    return size * tl.sqrt(1.0 + ratio * ratio)


@triton.jit
def _tl_complex_div(re, im, by_re, by_im):
    """Smith's: both parts of the divisor over its larger one."""
    swap = tl.abs(by_re) < tl.abs(by_im)
    large, small = tl.where(swap, by_im, by_re), tl.where(swap, by_re, by_im)
    a, b = tl.where(swap, im, re), tl.where(swap, re, im)
    ratio = tl.where(large == 0.0, 0.0, small / large)
    by = large + small * ratio
    q_re, q_im = (a + b * ratio) / by, (b - a * ratio) / by
    return q_re, tl.where(swap, -q_im, q_im)


@triton.jit
def _tl_complex_exp(re, im):
    # Two factors where one could overflow beside a small cosine; else one, whose rounding does not count twice.
    half = tl.where(re > 80.0, _tl_minimum(re * 0.5, 350.0), 0.0)
    size, rest = tl.exp(re - half), tl.exp(half)
    return size * tl.cos(im) * rest, tl.where(im == 0.0, im, size * tl.sin(im) * rest)


@triton.jit
def _tl_complex_log(re, im):
    size, ratio = _tl_size_and_ratio(re, im)
    # Near the unit circle the two terms could cancel, and close to 1 the distance from it decides.
    near = (size > 0.5) & (size < 2.0)
    least = ratio * size
    beyond = tl.where(near, (size - 1.0) * (size + 1.0) + least * least, ratio * ratio)
    return tl.where(near, 0.0, tl.log(size)) + 0.5 * _tl_log1p(beyond), _tl_atan2(im, re)


@triton.jit
def _tl_complex_sqrt(re, im):
    """The root with a part that is not negative, on the side of the sign of `im`, be it of a zero."""
    size, ratio = _tl_size_and_ratio(re, im)
    along = tl.where(tl.abs(re) < tl.abs(im), ratio, 1.0)
    # sqrt((|re| + |z|) / 2), through a number that neither overflows nor vanishes.
    large = tl.sqrt(size * (0.25 * (along + tl.sqrt(1.0 + ratio * ratio)))) * 1.4142135623730951
    height = tl.abs(im)
    small = tl.where((height == 0.0) | (height == float("inf")), height, 0.5 * height / large)
    left = re < 0.0
    root_im = tl.where(left, large, small)
    return tl.where(left, small, large), tl.where(_tl_is_negative(im), -root_im, root_im)


@triton.jit
def _tl_complex_rsqrt(re, im):
    root_re, root_im = _tl_complex_sqrt(re, im)
    one = tl.full(root_re.shape, 1.0, root_re.dtype)
    return _tl_complex_div(one, tl.zeros_like(one), root_re, root_im)


@triton.jit
def _tl_cosh_and_sinh(x):
    a = tl.abs(x)
    # Half of the exponential, which itself would overflow first.
    root = tl.exp(a * 0.5)
    half = 0.5 * root * root
    inverse = 0.25 / half
    e = _tl_expm1(a)
    sinh = tl.where(a < 1.0, 0.5 * (e + e / (e + 1.0)), half - inverse)
    return half + inverse, tl.where(x < 0.0, -sinh, sinh)


@triton.jit
def _tl_complex_sin(re, im):
    c, s = tl.cos(re), tl.sin(re)
    cosh, sinh = _tl_cosh_and_sinh(im)
    return tl.where(s == 0.0, s, s * cosh), c * sinh


@triton.jit
def _tl_complex_cos(re, im):
    c, s = tl.cos(re), tl.sin(re)
    cosh, sinh = _tl_cosh_and_sinh(im)
    return c * cosh, tl.where(s == 0.0, s, -s * sinh)


@triton.jit
def _tl_complex_tanh(re, im):
    """Its quotient of hyperbolic functions, over `cosh(re)**2`: none of them overflows."""
    c, s = tl.cos(im), tl.sin(im)
    e = tl.exp(tl.abs(re) * -2.0)
    rest = 4.0 * e / ((1.0 + e) * (1.0 + e))
    t = _tl_tanh(re)
    by = t * t + c * c * rest
    return t / by, s * c * rest / by


@triton.jit
def _tl_complex_pow(re, im, to_re, to_im):
    """`exp(to * log(z))`; of 0, 1 to the power 0 and 0 to one on the right of the imaginary axis."""
    log_re, log_im = _tl_complex_log(re, im)
    p_re, p_im = _tl_complex_exp(to_re * log_re - to_im * log_im, to_re * log_im + to_im * log_re)
    zero = (re == 0.0) & (im == 0.0)
    none = (to_re == 0.0) & (to_im == 0.0)
    p_re = tl.where(none, 1.0, tl.where(zero & (to_re > 0.0), 0.0, p_re))
    return p_re, tl.where(none | (zero & (to_re > 0.0)), 0.0, p_im)
