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
HIDDEN = """\
cell Hidden
dim D = 3, E = 7
input x[D]
param U[E, D] = normal(0.5)
state h[D]
a = tanh(mean[D](U * h[t-1]))
h[t] = 0.5 * h[t-1] + tanh(linear(a -> D) + x)
output h[t]
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
SEVERAL = """\
cell Several
dim J = 3, H = 2, P = 4, Q = P, D = 5
input x[J, H, P], y[D], z[J]
param U[J, P, Q] = normal(0.4), w[P] = uniform(0.1, 0.4), v[J, H] = normal(0.5)
state g[D], S[H, P], h[D]
g[t] = tanh(linear(h[t-1], g[t-1] -> D) + y)
e = linear(g[t] -> J, H, P)
seen = x + e * w + v * mean[D](h[t-1])
S[t] over J = 0.7 * S[t-1] + tanh(linear[P](S[t-1]) + sum[Q](U * S[t-1][P -> Q]) + seen) * z + 0.1 * S[t-2]
h[t] = tanh(linear(S[t] -> D)) + 0.2 * h[t-1] * max[H, P](S[t-1])
output h[t]
"""
EACH = """\
cell Each
dim J = 2, P = 4
input x[J, P]
state S[P], R[P]
S[t] over J = tanh(linear[P](x * S[t-1])) + 0.2 * R[t-1]
R[t] over J = 0.5 * R[t-1] + linear[P](layernorm[P](R[t-1] + x)) + S[t] * sigmoid(x)
output R[t]
"""
FORGETS = """\
cell Forgets
dim J = 3, P = 4
input x[J, P], done[J]: bool
state S[P] = 0.3
S[t] over J = where(done, x, 0.5) + S[t-2] * 0.5
output S[t]
output S[t-1]
"""
TURNING = """\
cell Turning
dim J = 2, N = 3
input z[J, N]: complex, x[J]
state s[N]: complex
s[t] over J = 0.5 * s[t-1] / (1 + 0.1 * sum[N](real(s[t-1] * conj(s[t-1])))) + z * x
output s[t]
"""
SOLVING = """\
cell Solving
dim J = 2, P = 3, Q = P
input x[J, P], k[J]
buffer E[P, Q] = eye
state h[P], q[P]
h[t] over J = tanh(solve[P, Q](3 * E + 0.1 * h[t-1] * tanh(h[t-1][P -> Q]), x + h[t-1])) + 0.1 * q[t-1]
q[t] over J = max(q[t-1] * k, x) + softmax[P](h[t] + q[t-1])
output q[t] + h[t]
"""
LEARNING = """\
cell Learning
dim J = 3, H = 2, K = 3, V = 4
input k[J, H, K], v[J, H, V], b[J, H]
state S[H, K, V]
S[t] over J = tanh(S[t-1] - 0.3 * sigmoid(b) * grad(sum[V](square(sum[K](k * S[t-1]) - v)), S[t-1]))
output S[t]
"""
COMMITTEE = """\
cell Committee
dim H = 3, P = 4, Q = P, E = 7, J = 2
const keep in [0, 1] = 0.9
input x[E], k[J, H, P], done: bool
param A[H, P, Q] = normal(0.3), tau[E] = normal(1), bias[J, H] = zeros
buffer band[P, Q] = eye
state fast[H, P], slow[E] = param
gate a = sigmoid(tau)
hint = linear(slow[t-1] -> H, P, bias=true)
old = sum[Q]((A - band) * fast[t-1][P -> Q]) + linear[P](rmsnorm[P](fast[t-1]))
fast[t] over J = where(done, 0, keep * fast[t-1]) + 0.3 * tanh(old + k * hint + bias)
vote = softmax[H](sum[P](fast[t] * hint))
said = linear(sum[H](vote * fast[t]) -> E)
slow[t] = (1 - a) * slow[t-1] + a * tanh(linear(x, slow[t-1] -> E) + said + 0.1 * slow[t-3])
output slow[t]
output y = vote
"""
SWARM = """\
cell Swarm
dim N = 6, D = 5
const dt in (0, 1] = 0.2, K = 1.5
input w[N], x[D], z: complex
param g[D] = uniform(0.1, 0.9), leak[D] = uniform(-1, 1)
state theta[N] = 0.1, v[D], b[D] = 1, f: complex
s = sum[N](sin(theta[t-1])) / N
c = sum[N](cos(theta[t-1])) / N
theta[t] = theta[t-1] + dt * (w + K * (s * cos(theta[t-1]) - c * sin(theta[t-1])) + 0.1 * max[D](v[t-1]))
f[t] = 0.9 * f[t-1] / (1 + abs(f[t-1])) + z * (c + 1j * s) + 0.1 * logsumexp[D](v[t-1])
fire = v[t-1] > b[t-1]
v[t] = where(fire, 0, sigmoid(leak) * v[t-1]) + g * x + 0.1 * real(f[t]) + 0.05 * mean[D](min(v[t-1], v[t-2]))
b[t] = 0.9 * b[t-1] + 0.2 * fire + 0.01 * expm1(-square(v[t-1]))
output v[t]
output field = abs(f[t])
output theta[t]
"""
OVER = {
    "several": SEVERAL,
    "each": EACH,
    "forgets": FORGETS,
    "turning": TURNING,
    "solving": SOLVING,
    "learning": LEARNING,
    "committee": COMMITTEE,
}
"""Updates over a dim: of states that need others, by a matrix for each small step, that forget what was, of complex
numbers, by small systems, of a matrix by a gradient; beside a state of another size."""
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
    "swarm": SWARM,
    "norm": NORM,
    "lags": LAGS,
    "mixed": MIXED,
    "two": TWO,
    "soft": SOFT,
    "complex": COMPLEX,
    "shared": SHARED,
    "solved": SOLVED,
    "hidden": HIDDEN,
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
