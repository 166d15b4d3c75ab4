"""Kernels of programs whose names are those of kernels' own variables, of Python and of Triton are right.

Run with `TRITON_INTERPRET=1 pytest -m triton`.
"""

from __future__ import annotations

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 from the start of the process", allow_module_level=True)

import torch

from backends.reference import Interpreter
from tests.interpreted import install
from tests.marks import some
from tests.modules import agree, as_tuple, build, checked, draw_for, with_gradients

install()
pytestmark = [pytest.mark.triton, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

NAMES = {
    # Tiles of tokens, several states, one complex.
    "tiles": """\
cell A
dim BT = 2, D = 3
input tl[D], triton[BT] in [0, 1], DTYPE[BT, D], BLOCKS[D], h[D] in [0, 1], h_ptr[D], h_row[BT], t_[D], place[D]
input d_h[D], h_carry_a[D], live[BT, D], x_[D], later[D]: complex
param float_[D] = uniform(0.1, 0.9)
param real_lane[BT, D] = normal(0.3)
first = triton * 0.5
token = sigmoid(h_ptr + float_)
state a[BT, D], b[D], p[D] = param, q[D]: complex
a[t] = first * a[t-1] + real_lane * (tl + DTYPE) * live
b[t] = h * token * b[t-1] + BLOCKS * h_row_sum
h_row_sum = sum[BT](h_row)
p[t] = 0.5 * float_ * p[t-1] + t_ * place + d_h * h_carry_a
q[t] = (0.3 + 0.4j) * q[t-1] + later * x_
output a[t] * float_
output b[t]
output index = p[t] + real(q[t])
output other = imag(q[t])
""",
    # One token after the other, the state in registers, its values computed again in the backward.
    "registers": """\
cell A
dim CHUNK = 3, BN = 2, INNER = 2
input s[CHUNK], k[BN], i[CHUNK], row[BN], block[CHUNK] in [0, 1], chunk[INNER, CHUNK], slot[BN], S_starts[CHUNK]
param scratch_ptr[CHUNK, BN] = uniform(0.1, 0.9)
param lane[CHUNK] = normal(0.3)
S_before = softplus(s + lane)
state S[CHUNK, BN]
S[t] = exp(-S_before * scratch_ptr) * S[t-1] + S_before * k * i * block
output real_state = sum[BN](slot * S[t]) + S_starts * sum[INNER](chunk)
output offset = sum[BN](row * S[t])
""",
    # Not affine; states that need each other.
    "loop": """\
cell A
dim D = 3, λ = 2
input steps[D], stretch[D], segment[λ], sequence[D], count[λ], end[D], length[D], κ[λ], program[D]
param inner[D] = normal(0.4)
param ω[λ] = uniform(0.1, 0.9)
state range[D], channel[D], μ[λ], d_range[D]
range[t] = tanh(inner * range[t-1] + steps * channel[t-1] + stretch)
channel[t] = sin(channel[t-1] * sequence + range[t] * end) + length
μ[t] = tanh(ω * μ[t-1] + segment * count) + κ
d_range[t] = cos(d_range[t-1] * program)
output range[t] * channel[t]
output begin = μ[t]
output d_range[t]
""",
}

# States that are computed together.
KERNELS = {"tiles": ["a", "b, q", "p"], "registers": ["S"], "loop": ["range, channel", "μ", "d_range"]}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("segments", some([2], [1, 2]))
def test_names_get_in_nobodys_way(name: str, segments: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = NAMES[name]
    module = build(text, dtype=torch.float64, backend="triton")
    monkeypatch.setitem(type(module)._sequences.__globals__, "_segments", lambda *_: segments)
    assert [*module._fused_kernels] == KERNELS[name]
    cell = checked(text)
    inputs = draw_for(cell, module, 2, 37, requires_grad=True)
    params = dict([*module.named_parameters(), *module.named_buffers()])
    interpreter = Interpreter(cell)
    outputs, state = interpreter.run(inputs, params)
    want = with_gradients(module, (outputs, tuple(state.values())), *inputs)
    agree(with_gradients(module, module(*inputs), *inputs), want)
    packed = [x[:1] for x in inputs]
    outputs, state = interpreter.run(packed, params, cu_seqlens=[0, 5, 5, 37])
    got, last = module(*packed, cu_seqlens=torch.tensor([0, 5, 5, 37]))
    agree([*as_tuple(got), *last], [*outputs, *state.values()])
