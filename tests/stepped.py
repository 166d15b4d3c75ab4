"""Stepped cells, and one call of each with all that comes out of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.cells import EXAMPLES
from tests.modules import checked, draw_for, gradients, load, some_state, tensors
from tests.oracles import CASES

STEPPED = ("Elman", "GRU", "GRUD", "GRUv1", "IRNN", "LSTM", "MGU", "PeepholeLSTM", "PVRNN", "RateNetwork", "SLSTM")
STEPPED += ("SparseRNN", "TTTLinear", "UGRNN")
TEXTS = {n: (EXAMPLES / f"{CASES[n].file}.rnn").read_text(encoding="utf-8") for n in STEPPED}

NORM = (
    "cell Norm\ndim D = 37\ninput x[D]\nstate h[D]\nh[t] = tanh(layernorm[D](linear(h[t-1] -> D) + x))\noutput h[t]\n"
)
LAGS = """\
cell Lagged
dim D = 4
input x[D], y[D]
param w[D] = uniform(0.1, 0.4)
state h[D] = param
h[t] = tanh(linear(h[t-1] -> D) + w * h[t-3] + x * y[t-2]) + 0.1 * h[t-2]
output h[t] + h[t-2]
"""
MIXED = """\
cell Mixed
dim D = 3
const c in (0, 1] = 0.5, shift = 0.25
input x[D], keep: bool, g[D] in [0, 1]
param w[D] = normal(0.4)
buffer order[D] = arange[D](1)
state h[D] = 0.5, q[D]
h[t] = where(keep and q[t-1] < 1, c * tanh(g * h[t-1] + linear(h[t-1] -> D)), shift) + w * x / order
q[t] = 0.5 * q[t-1] + (h[t] > 0.3 or h[t-1] > 1)
output h[t]
output big = q[t] > 0.7
"""
TWO = """\
cell Two
dim D = 5, E = 19
input x[D]
state h[D], g[E]
h[t] = tanh(linear(g[t-1] -> D) + x)
g[t] = tanh(linear(h[t] -> E)) * 0.9 + 0.1 * g[t-1]
output h[t]
output g[t]
"""
SOFT = """\
cell Soft
dim D = 6
input x[D]
state h[D]
p = softmax[D](h[t-1] + x)
h[t] = 0.5 * h[t-1] + p * max[D](h[t-1]) + logsumexp[D](x * h[t-1])
output h[t]
"""
COMPLEX = """\
cell Complex
dim N = 5
input z[N]: complex
param λ[N]: complex = 0.4 + 0.3j
state s[N]: complex
s[t] = λ * s[t-1] / (1 + 0.1 * sum[N](real(s[t-1] * conj(s[t-1])))) + z + 0.05 * sum[N](s[t-1])
output s[t]
"""
WIDE = "cell Wide\ndim D = 530\ninput x[D]\nstate h[D]\nh[t] = tanh(linear(h[t-1] -> D) + x)\noutput h[t]\n"
SHARED = """\
cell Shared
dim H = 3, P = 4
input x[H, P]
param w[P] = uniform(0.1, 0.4)
state h[H, P]
h[t] = tanh(linear[P](h[t-1]) + w * h[t-1] + x)
output h[t]
"""
MATRIX = """\
cell Matrix
dim H = 3, K = 4, V = 5
input k[H, K], v[H, V], b[H]
state S[H, K, V]
u = sum[K](S[t-1] * k)
S[t] = tanh(S[t-1] + b * k * (v - u))
output sum[K](S[t] * k)
"""
SOLVED = """\
cell Solved
dim H = 2, P = 3, N = H * P, M = N
input u[H, P], g[N] in [0, 1]
param L[N, M] = normal(0.3)
buffer I[N, M] = eye
state x[H, P]
s = x[t-1][H * P -> N]
x[t] = (solve[N, M](I + 0.1 * (L + g * I), s) + 0.1 * tanh(linear(s -> N)))[N -> H * P] + u
output x[t]
"""
CELLS = {
    "matrix": MATRIX,
    "norm": NORM,
    "lags": LAGS,
    "mixed": MIXED,
    "two": TWO,
    "soft": SOFT,
    "complex": COMPLEX,
    "shared": SHARED,
    "solved": SOLVED,
}
PACKED = (2, 0, 5, 1, 3, 1, 1, 4, 2, 0)


def results(
    text: str,
    sizes: dict[str, int],
    lead: int | Sequence[int],
    backend: str,
    dtype: torch.dtype,
    device: str = "cpu",
    batch: int = 3,
) -> list[Tensor]:
    """Outputs, final states and all gradients of a call, from some state; `lead` sequences' lengths where packed.

    Everything is drawn in float64 and rounded to `dtype`; parameters and states keep at least float32.
    """
    packed = not isinstance(lead, int)
    lengths = list(lead) if isinstance(lead, Sequence) else [lead] * batch
    wide = dtype if dtype == torch.float64 else torch.float32
    torch.manual_seed(1)
    cell = getattr(load(text), checked(text).name)
    drawn, used = cell(**sizes, dtype=torch.float64), cell(**sizes, dtype=wide, backend=backend, device=device)
    used.load_state_dict(drawn.state_dict())
    shape = (1, sum(lengths)) if packed else (batch, lengths[0])

    def cast(x: Tensor, to: torch.dtype) -> Tensor:
        x = x.detach().to(device)
        kept = x.dtype == torch.bool
        return x if kept else x.to(to.to_complex() if x.is_complex() else to).requires_grad_()

    low = torch.bfloat16
    inputs = [cast(x if x.is_complex() or x.dtype == torch.bool else x.to(low), dtype) for x in draw_for(
        checked(text), drawn, *shape)]  # fmt: skip
    state = some_state(drawn, len(lengths))
    state = type(state)(*(cast(s, wide) for s in state))
    ends = torch.tensor([0, *torch.tensor(lengths, dtype=torch.long).cumsum(0).tolist()])
    ends = ends.to(device)
    result = used(*inputs, state=state, **({"cu_seqlens": ends} if packed else {}))
    leaves = [*used.parameters(), *inputs, *state]
    values = tensors(result)
    return [*(v.detach() for v in values), *gradients([v.double() if v.dtype == low else v for v in values], leaves)]


def check(got: Sequence[Tensor], want: Sequence[Tensor], least: float) -> None:
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.shape == b.shape
        if b.dtype == torch.bool or not b.numel():
            assert torch.equal(a, b.to(a.dtype)), i
            continue
        assert a.isfinite().all(), (i, a)
        a, b = (torch.view_as_real(x) if x.is_complex() else x for x in (a.to(b.dtype), b))
        assert (a.double() - b).norm() <= least * b.norm().clamp(min=1e-3), (i, (a.double() - b).norm(), b.norm())
