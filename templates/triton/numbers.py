"""Elementwise functions of real tiles, float32 or float64, of which Triton has none or one of few digits.

On a GPU float32 `tl.exp` is `exp2` of a rounded product, to 2 ulp, and so is `/`; `tl.log` may be good in absolute
terms only where it is close to 0; a product and a sum are rounded once or twice as the compiler likes. No function
here takes the logarithm of a rounded `1 + x` that is close to 1, and none needs products to cancel. `libdevice` has
most of them, but not in the interpreter. Polynomials are minimax, of the degree that float32 asks for. A factor -1.0
goes into the one that `tl.exp` has anyway, where `-x` is a subtraction.
"""

# pyright: reportGeneralTypeIssues=false
# To pyright, the call of one kernel function by another never returns.

import triton
import triton.language as tl


@triton.jit
def _tl_is_negative(x):
    """The sign bit: of -0.0 too, unlike `x < 0`."""
    return x.to(tl.int64 if x.dtype == tl.float64 else tl.int32, bitcast=True) < 0


@triton.jit
def _tl_maximum(x, y):
    """NaN where either is."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _tl_minimum(x, y):
    """NaN where either is."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _tl_sign(x):
    """0 at NaN, as in PyTorch."""
    return (x > 0.0).to(x.dtype) - (x < 0.0).to(x.dtype)


@triton.jit
def _tl_relu(x):
    """NaN stays."""
    return tl.where(x < 0.0, 0.0, x)


@triton.jit
def _tl_exp(x):
    """`tl.exp` of float32 takes three more instructions, for results below 2**-126 alone: here 0."""
    return tl.exp(x) if x.dtype == tl.float64 else tl.exp2(x * 1.4426950408889634)


@triton.jit
def _tl_sigmoid(x):
    if x.dtype == tl.float64:
        y = 1.0 / (1.0 + tl.exp(x * -1.0))
    else:
        # A quotient takes twice as many instructions as a root.
        y = tl.rsqrt(1.0 + tl.exp2(x * -1.4426950408889634))
        y = y * y
    return y


@triton.jit
def _tl_silu(x):
    return x * _tl_sigmoid(x)


@triton.jit
def _tl_gelu(x):
    """The exact one."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _tl_log1p_small(x):
    """`log(1 + x)` for -0.5 <= x <= 1."""
    if x.dtype == tl.float64:
        u = 1.0 + x
        y = tl.log(u) + (x - (u - 1.0)) / u
    else:
        # 2 atanh(x / (2 + x)): no logarithm.
        s = x / (2.0 + x)
        z = s * s
        tail = z * (0.333332066 + z * (0.200108495 + z * (0.139995705 + z * 0.140122295)))
        y = 2.0 * (s + s * tail)
    return y


@triton.jit
def _tl_log1p(x):
    return tl.where((x >= -0.5) & (x <= 1.0), _tl_log1p_small(x), tl.log(1.0 + x))


@triton.jit
def _tl_expm1(x):
    if x.dtype == tl.float64:
        # Kahan: the error of `u` is the same in both factors.
        u = tl.exp(x)
        above = u - 1.0
        small = tl.where(above == 0.0, x, above * x / tl.log(u))
        y = tl.where(tl.abs(x) < 1.0, small, above)
    else:
        tail = 0.0416653586 + x * (0.00833357903 + x * (0.00139961764 + x * 0.0001984981))
        small = x + x * x * (0.500000039 + x * (0.16666664 + x * tail))
        y = tl.where(tl.abs(x) < 0.5, small, tl.exp(x) - 1.0)
    return y


@triton.jit
def _tl_tanh(x):
    a = tl.abs(x)
    if x.dtype == tl.float64:
        e = _tl_expm1(a * -2.0)
        y = e / (2.0 + e)
        y = tl.where(x < 0.0, y, -y)
    else:
        z = x * x
        tail = z * (-0.333325975 + z * (0.133131167 + z * (-0.0522118069 + z * 0.0156126331)))
        large = 1.0 - 2.0 / (1.0 + tl.exp2(a * 2.8853900817779268))
        y = tl.where(a < 0.6, x + x * tail, tl.where(x < 0.0, -large, large))
    return y


@triton.jit
def _tl_softplus(x):
    return tl.maximum(x, 0.0) + _tl_log1p_small(tl.exp(tl.abs(x) * -1.0))


@triton.jit
def _tl_logsigmoid(x):
    return tl.minimum(x, 0.0) - _tl_log1p_small(tl.exp(tl.abs(x) * -1.0))


@triton.jit
def _tl_logaddexp(x, y):
    """Minus infinity where both are."""
    distance = tl.where(x == y, 0.0, tl.abs(x - y))
    return tl.maximum(x, y) + _tl_log1p_small(tl.exp(distance * -1.0))


@triton.jit
def _tl_short(x):
    """A float32 cut to its first 12 bits: products of two such are exact."""
    return (x.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)


@triton.jit
def _tl_log2_pair(x):
    """`log2` of a positive finite float32 as a number of 12 bits and the rest, to about 2**-30."""
    tiny = x < 1.1754943508222875e-38
    bits = tl.where(tiny, x * 16777216.0, x).to(tl.int32, bitcast=True)
    # The mantissa between sqrt(0.5) and sqrt(2), so that only x = 1 is close to a logarithm of 0.
    exponent = (bits - 1060439283) >> 23
    above = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    whole = exponent.to(tl.float32) - tl.where(tiny, 24.0, 0.0)
    # log2(1 + above) = 2 / log(2) * atanh(s) with s = above / (2 + above) in two parts.
    inverse = 1.0 / (2.0 + above)
    s = above * inverse
    high = _tl_short(s)
    below = _tl_short(2.0 + above)
    low = ((above - high * below) - high * (above - (below - 2.0))) * inverse
    z = s * s
    tail = s * z * (0.333333333 + z * (0.200000614 + z * (0.142753707 + z * 0.116661339)))
    # 2 / log(2) = 2.884765625 + 0.000624456777928: the first has 12 bits.
    first = high * 2.884765625
    rest = low * 2.885390043258667 + (high * 0.000624456777928 + tail * 2.885390043258667)
    total = whole + first
    rest += first - (total - whole)
    short = _tl_short(total + rest)
    return short, (total - short) + rest


@triton.jit
def _tl_pow_positive(x, y):
    """`x ** y` for x > 0, both finite; y may be infinite."""
    if x.dtype == tl.float64:
        power = tl.exp(y * tl.log(x))
    else:
        high, low = _tl_log2_pair(x)
        # Farther out every x but 1 has long overflowed or vanished.
        y = tl.minimum(tl.maximum(y, -4294967296.0), 4294967296.0)
        short = _tl_short(y)
        rest = (y - short) * high + y * low
        # Small beside the product, unless that is out of range anyway.
        power = tl.exp2(short * high) * tl.exp2(tl.minimum(tl.maximum(rest, -1.0), 1.0))
    return power


@triton.jit
def _tl_pow(x, y):
    """IEEE's, as in PyTorch: `x ** 0` and `1 ** y` are 1, NaN for a fraction of a negative number."""
    size = tl.abs(x)
    power = _tl_pow_positive(size, y)
    power = tl.where(size == 1.0, 1.0, power)
    end = tl.where(y < 0.0, float("inf"), 0.0)
    other_end = tl.where(y < 0.0, 0.0, float("inf"))
    power = tl.where(size == 0.0, end, tl.where(size == float("inf"), other_end, power))
    whole = tl.floor(y) == y
    odd = whole & (tl.floor(y * 0.5) * 2.0 != y)
    power = tl.where(_tl_is_negative(x) & odd, -power, power)
    power = tl.where(whole | (x >= 0.0) | (size == float("inf")), power, float("nan"))
    power = tl.where((x != x) | (y != y), float("nan"), power)
    return tl.where((x == 1.0) | (y == 0.0), 1.0, power)
