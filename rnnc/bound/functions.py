"""The elementwise operations of the language on intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from math import isqrt

from rnnc.bound.interval import (
    ANY,
    HALF,
    INF,
    ONE,
    UNIT,
    ZERO,
    End,
    Interval,
    Num,
    finite,
    monotone,
    point,
    tame,
    to_float,
)

TRUE, FALSE, EITHER = point(1), point(0), UNIT


def _at(argument: int, value: Fraction) -> Callable[[Fraction], Num | None]:
    return lambda x: value if x == argument else None


def _within(x: Interval, lo: Num, lo_open: bool = False) -> Interval | None:
    """The part of `x` in the domain `[lo, inf]`; what is outside makes the value undefined."""
    inside = x.meet(Interval(lo, INF, lo_open))
    if inside is None:
        return None
    outside = x.lo < lo or (x.lo == lo and lo_open and not x.lo_open)
    return inside.maybe_undefined(outside or x.undefined)


# --- one operand -----------------------------------------------------------------------------------------------------


def exp(x: Interval) -> Interval:
    return monotone(math.exp, x, limits=(ZERO, INF), exact=_at(0, ONE))


def log(x: Interval) -> Interval:
    inside = _within(x, ZERO)
    if inside is None:
        return ANY
    return monotone(_log, inside, limits=(-INF, INF), exact=_known_log)


def _log(x: float) -> float:
    return -INF if x <= 0 else math.log(x)


def _known_log(x: Fraction) -> Num | None:
    return -INF if x == 0 else ZERO if x == 1 else None


def log1p(x: Interval) -> Interval:
    return log(x + point(1))


def expm1(x: Interval) -> Interval:
    return monotone(math.expm1, x, limits=(-ONE, INF), exact=_at(0, ZERO))


def root(x: Fraction) -> Fraction | None:
    """The square root where it is rational."""
    if x < 0 or x.numerator.bit_length() + x.denominator.bit_length() > 2000:
        return None
    n, d = isqrt(x.numerator), isqrt(x.denominator)
    return Fraction(n, d) if n * n == x.numerator and d * d == x.denominator else None


def sqrt(x: Interval) -> Interval:
    inside = _within(x, ZERO)
    return ANY if inside is None else monotone(_sqrt, inside, limits=(ZERO, INF), exact=root)


def _sqrt(x: float) -> float:
    return math.sqrt(max(x, 0.0))


def rsqrt(x: Interval) -> Interval:
    return sqrt(x).inverse()


def sigmoid(x: Interval) -> Interval:
    return monotone(sigmoid_float, x, limits=(ZERO, ONE), exact=_at(0, HALF))


def sigmoid_float(x: float) -> float:
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    return math.exp(x) / (1 + math.exp(x)) if x > -745 else 0.0


def softplus(x: Interval) -> Interval:
    return monotone(softplus_float, x, limits=(ZERO, INF))


def softplus_float(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def logsigmoid(x: Interval) -> Interval:
    return -softplus(-x)


def tanh(x: Interval) -> Interval:
    return monotone(math.tanh, x, limits=(-ONE, ONE), exact=_at(0, ZERO))


def erf(x: Interval) -> Interval:
    return monotone(math.erf, x, limits=(-ONE, ONE), exact=_at(0, ZERO))


def silu_float(x: float) -> float:
    return x * sigmoid_float(x)


def gelu_float(x: float) -> float:
    return 0.5 * x * math.erfc(-x * math.sqrt(0.5))


def _dip(f: Callable[[float], float], x: Interval, where: float, least: float) -> Interval:
    """`silu` and `gelu`: they fall to a least value, then rise; both ends at -inf and 0 are 0. inf stays inf."""
    left, right = Fraction(where - 1e-6), Fraction(where + 1e-6)
    undefined = x.undefined or x.has_lo
    if x.lo >= right:
        rising = monotone(f, x, limits=(-INF, INF), exact=_at(0, ZERO))
        return rising.maybe_undefined(undefined)
    bottom = Fraction(least)
    # Left of the dip, or across it: at most 0 or what the right end gives.
    if x.hi <= left or x.hi <= 0:
        top = Interval(bottom, ZERO, False, x.hi < 0 or x.hi_open)
    else:
        end = monotone(f, Interval(x.hi, x.hi, x.hi_open, x.hi_open), limits=(-INF, INF), exact=_at(0, ZERO))
        top = Interval(bottom, end.hi, False, end.hi_open).hull(Interval(bottom, ZERO, False, True))
    return top.maybe_undefined(undefined)


def silu(x: Interval) -> Interval:
    return _dip(silu_float, x, -1.2784645427610738, -0.27846454276108)


def gelu(x: Interval) -> Interval:
    return _dip(gelu_float, x, -0.7517915241, -0.16997120747991)


def _wave(f: Callable[[float], float], x: Interval) -> Interval:
    """`sin` and `cos`: exact enough on narrow intervals, [-1, 1] elsewhere; undefined at infinity."""
    undefined = x.undefined or x.has_lo or x.has_hi
    if finite(x.lo) and finite(x.hi):
        if x.point and x.lo == 0:
            return point(round(f(0.0))).maybe_undefined(undefined)
        lo, hi = to_float(x.lo, False), to_float(x.hi, True)
        if hi - lo < 0.125 and abs(lo) < 1e6:
            middle = f(lo)
            slack = (hi - lo) + 1e-15
            low, high = max(middle - slack, -1.0), min(middle + slack, 1.0)
            return Interval(Fraction(low), Fraction(high), undefined=undefined)
    return Interval(-ONE, ONE, undefined=undefined)


def sin(x: Interval) -> Interval:
    return _wave(math.sin, x)


def cos(x: Interval) -> Interval:
    return _wave(math.cos, x)


def sign(x: Interval) -> Interval:
    lo = ONE if x.positive else ZERO if x.lo >= 0 else -ONE
    hi = -ONE if x.negative else ZERO if x.hi <= 0 else ONE
    return Interval(lo, hi, undefined=x.undefined)


def relu(x: Interval) -> Interval:
    return maximum(x, point(0))


def negate(x: Interval) -> Interval:
    """`not`."""
    return Interval(ONE - x.hi, ONE - x.lo, undefined=x.undefined) if finite(x.hi) and finite(x.lo) else EITHER


# --- two and three operands ------------------------------------------------------------------------------------------


def maximum(a: Interval, b: Interval) -> Interval:
    lo = max(a.lo, b.lo)
    hi = max(a.hi, b.hi)
    lo_open = (a.lo == lo and a.lo_open) or (b.lo == lo and b.lo_open)
    hi_open = (a.hi < hi or a.hi_open) and (b.hi < hi or b.hi_open)
    return Interval(lo, hi, lo_open, hi_open, a.undefined or b.undefined)


def minimum(a: Interval, b: Interval) -> Interval:
    return -maximum(-a, -b)


def power(base: Interval, exponent: Interval) -> Interval:
    """`base ** exponent`: whole constant powers of anything; else of what is positive (0 to a positive power is 0)."""
    undefined = base.undefined or exponent.undefined
    if (
        exponent.point
        and isinstance(exponent.lo, Fraction)
        and exponent.lo.denominator == 1
        and abs(exponent.lo) < 4096
    ):
        return base.power(int(exponent.lo)).maybe_undefined(undefined)
    if exponent.point and exponent.lo == HALF:
        return sqrt(base)
    if exponent.point and exponent.lo == -HALF:
        return rsqrt(base)
    if base.positive and base.real and exponent.real:
        return exp(exponent * log(base)).maybe_undefined(undefined)
    if base.lo >= 0 and exponent.positive and base.real and exponent.real:
        above = exp(exponent * log(Interval(ZERO, base.hi, True, base.hi_open))) if base.hi > 0 else FALSE
        return above.hull(point(0)).maybe_undefined(undefined)
    return ANY


def logaddexp(a: Interval, b: Interval) -> Interval:
    lo, lo_open = _logaddexp((a.lo, a.lo_open), (b.lo, b.lo_open), False)
    hi, hi_open = _logaddexp((a.hi, a.hi_open), (b.hi, b.hi_open), True)
    return Interval(lo, hi, lo_open, hi_open, a.undefined or b.undefined)


def _logaddexp(a: End, b: End, up: bool) -> End:
    (x, x_open), (y, y_open) = a, b
    is_open = x_open or y_open
    if x == INF or y == INF:
        # Reached where either is.
        return INF, (x != INF or x_open) and (y != INF or y_open)
    if not (isinstance(x, Fraction) and isinstance(y, Fraction)):
        return max(x, y), is_open
    gap = softplus(point(-abs(x - y)))
    return tame(max(x, y) + (gap.hi if up else gap.lo), up), is_open


def compare(op: str, a: Interval, b: Interval) -> Interval:
    match op:
        case "lt" | "ge":
            yes = a.hi < b.lo or (a.hi == b.lo and (a.hi_open or b.lo_open))
            no = a.lo >= b.hi
        case "gt" | "le":
            yes = a.lo > b.hi or (a.lo == b.hi and (a.lo_open or b.hi_open))
            no = a.hi <= b.lo
        case _:
            yes = a.point and b.point and a.lo == b.lo
            no = a.meet(b) is None
    if op in ("ge", "le", "ne"):
        yes, no = no, yes
    known = TRUE if yes else FALSE if no else EITHER
    return EITHER if a.undefined or b.undefined else known


def where(c: Interval, a: Interval, b: Interval) -> Interval:
    chosen = b if c.hi <= 0 else a if c.positive else a.hull(b)
    return chosen.maybe_undefined(c.undefined)


UNARY: Mapping[str, Callable[[Interval], Interval]] = {
    "neg": lambda x: -x,
    "not": negate,
    "abs": abs,
    "sign": sign,
    "sqrt": sqrt,
    "rsqrt": rsqrt,
    "square": lambda x: x.power(2),
    "exp": exp,
    "log": log,
    "log1p": log1p,
    "expm1": expm1,
    "sin": sin,
    "cos": cos,
    "erf": erf,
    "sigmoid": sigmoid,
    "logsigmoid": logsigmoid,
    "tanh": tanh,
    "relu": relu,
    "silu": silu,
    "gelu": gelu,
    "softplus": softplus,
    "stop_gradient": lambda x: x,
}
BINARY: Mapping[str, Callable[[Interval, Interval], Interval]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": power,
    "max": maximum,
    "min": minimum,
    "logaddexp": logaddexp,
    "and": minimum,
    "or": maximum,
    "only": lambda a, _: a,
    "like": lambda a, _: a,
    **{op: (lambda a, b, op=op: compare(op, a, b)) for op in ("eq", "ne", "lt", "le", "gt", "ge")},
}


def apply(op: str, *args: Interval) -> Interval:
    """An elementwise operation of `ir.OPS` on intervals."""
    if op == "where":
        return where(*args)
    return UNARY[op](*args) if len(args) == 1 else BINARY[op](*args)
