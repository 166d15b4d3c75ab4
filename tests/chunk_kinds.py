"""A cell for each kind of matrix state that kernels in chunks tell apart: whether there is a factor, along what, if it
is learned, bounded from below, or made in the kernel; reads of the state before the token, after it, or both."""

from __future__ import annotations

from tests.cells import EXAMPLES

HEAD = """cell C
dim H = 4, K = 64, V = 64
input q[H, K], p[H, K], k[H, K], v[H, V], w[H, V], m[H]
input s[H] in [0, 1], g[H, K] in [0, 1], r[H, V] in [0, 1], x[H, K]
param b[H, K] = uniform(-1, 1)
buffer c[K] = 0.9 - 0.1 / (1 + arange[K](1))
buffer d[V] = 0.9 - 0.1 / (1 + arange[V](1))
state S[H, K, V]
"""
ONCE, BEFORE, TWICE = "q * S[t]", "q * S[t-1]", "q * S[t]; p * S[t-1]"


def _cell(update: str, reads: str = ONCE) -> str:
    return f"{HEAD}S[t] = {update}\n" + "".join(f"output sum[K]({r})\n" for r in reads.split("; "))


CHUNKS = {
    "free": _cell("S[t-1] + k * v"),
    "free reads": _cell("S[t-1] + k * v", TWICE),
    "one": _cell("s * S[t-1] + k * v"),
    "one before": _cell("s * S[t-1] + k * v", BEFORE),
    "one reads": _cell("s * S[t-1] + k * v", TWICE),
    "one fixed": _cell("0.9 * S[t-1] + k * v"),
    "keys": _cell("g * S[t-1] + k * v"),
    "keys before": _cell("g * S[t-1] + k * v", BEFORE),
    "keys reads": _cell("g * S[t-1] + k * v", TWICE),
    "keys fixed": _cell("c * S[t-1] + k * v"),
    "keys of 64": _cell("(0.5 + 0.5 * g) * S[t-1] + k * v"),
    "keys of 64 reads": _cell("(0.5 + 0.5 * g) * S[t-1] + k * v", TWICE),
    "keys of 16": _cell("(0.01 + 0.99 * g) * S[t-1] + k * v"),
    "keys made": _cell("exp(logsigmoid(x + b) / 16) * S[t-1] + silu(k) * v", "q * K ** -0.5 * S[t]"),
    "keys made of 64": _cell("(0.5 + 0.5 * sigmoid(x)) * S[t-1] + (1 - (0.5 + 0.5 * sigmoid(x))) * v"),
    "values": _cell("r * S[t-1] + k * v"),
    "values before": _cell("r * S[t-1] + k * v", BEFORE),
    "values reads": _cell("r * S[t-1] + k * v", TWICE),
    "values fixed": _cell("d * S[t-1] + k * v"),
    "values of 64": _cell("(0.5 + 0.5 * r) * S[t-1] + k * v"),
}

# Corrections of a state, several that read the same one or one along values, which is not what reads sum over.
CORRECTED = """\
cell Corrected
dim H = 4, K = 128, V = 128
input q[H, K], k[H, K], p[H, K], v[H, V], u[H, V], b[H] in [0, 2], e[H] in [0, 1], g[H, AXIS] in [0, 1], s[H] in [0, 1]
state S[H, K, V]
S[t] = FACTOR * S[t-1] CORRECTION + k * v
output sum[K](q * S[t])
"""
_TWICE = "- b * k * sum[K](k * S[t-1]) - e * p * sum[K](p * S[t-1])"


def _corrected(factor: str, correction: str, axis: str = "K") -> str:
    return CORRECTED.replace("FACTOR", factor).replace("CORRECTION", correction).replace("AXIS", axis)


RANKS = {
    "gateddeltanet": (EXAMPLES / "gateddeltanet.rnn").read_text(encoding="utf-8"),
    "kda": (EXAMPLES / "kda.rnn").read_text(encoding="utf-8"),
    "rwkv7": (EXAMPLES / "rwkv7.rnn").read_text(encoding="utf-8"),
    "twice": _corrected("s", _TWICE),
    "twice by key": _corrected("g", _TWICE),
    "along values": _corrected("s", "- b * u * sum[V](u * S[t-1])"),
    "along values by value": _corrected("g", "- b * u * sum[V](u * S[t-1])", "V"),
}
"""Low-rank transitions."""
