"""Derivatives in the IR against autograd: `grad(e, h[t-1])` is expanded by the compiler, and left to PyTorch by the
interpreter; and the derived backward of a loop against autograd through the interpreter."""

from __future__ import annotations

import pytest
import torch

from backends.reference import Interpreter
from rnnc.loading import load_module
from rnnc.pipeline import compile_source, module_text
from rnnc.source import Source

HEAD = """cell C
dim D = 3, N = 2, P = D * N
input x[D, N], s[N]
param W[D, N] = normal(0.5)
state h[D, N] = 0.3
"""


def compare(text: str, tolerance: float = 1e-11) -> None:
    """Values and all gradients, generated module against interpreter, in float64."""
    source = Source("derive.rnn", text)
    (made,) = compile_source(source)
    assert made.cell is not None
    torch.manual_seed(0)
    module = load_module(module_text([made], source), source.name).C(dtype=torch.float64)
    named = dict(module.named_parameters())
    inputs = [torch.randn(2, 4, *(3 if d == "D" else 2 for d in i.type.dims)) for i in made.cell.inputs]
    leaves = [x.double().requires_grad_() for x in inputs]
    outputs, _ = Interpreter(made.cell).run(leaves, named | dict(module.named_buffers()))
    value, _ = module(*leaves)
    torch.testing.assert_close(value, outputs[0], rtol=tolerance, atol=tolerance)
    weight = torch.randn_like(value)
    wanted = torch.autograd.grad((outputs[0] * weight).sum(), [*leaves, *named.values()], allow_unused=True)
    found = torch.autograd.grad((value * weight).sum(), [*leaves, *named.values()], allow_unused=True)
    for f, w in zip(found, wanted, strict=True):
        f, w = (torch.zeros(()) if g is None else g for g in (f, w))
        torch.testing.assert_close(*torch.broadcast_tensors(f.double(), w.double()), rtol=1e-9, atol=tolerance)


@pytest.mark.parametrize(
    "loss",
    [
        *(
            f"{f}(u)"
            for f in "abs sign square exp expm1 sin cos erf sigmoid logsigmoid tanh relu silu gelu softplus".split()
        ),
        *(f"{f}(square(u) + 0.5)" for f in "sqrt rsqrt log log1p".split()),
        "u * x + u / (2 + square(u)) - u ** 3",
        "max(u, x) + min(u, 0.1, x) + clamp(u, -0.2, 0.2)",
        "logaddexp(u, x)",
        "where(x > 0, sqrt(abs(u) + 1), u)",
        "softmax[D, N](u) * x",
        "l2norm[D](u) * x",
        "rmsnorm[N](u) * x + layernorm[D](u) * x",
        "logsumexp[D](u) + mean[N](u) + max[D](u) * s",
        "sum[D](u * x) ** 2",
        "u[D * N -> P] ** 2",
        "u * stop_gradient(u)",
        "real((u + 1j * x) * exp(1j * u)) + abs(u + 2j)",
        "square(linear[D](u)) + linear(u -> N, bias=true)",
        "solve[D, Q](I * 3 + 0.1 * sum[N](u) * sum[N](u)[D -> Q], sum[N](u))",
    ],
)
def test_gradients_of_a_loss(loss: str) -> None:
    more = "dim Q = D\nbuffer I[D, Q] = eye\n" if "solve" in loss else ""
    update = f"h[t] = 0.5 * h[t-1] + 0.1 * x - 0.1 * grad({loss}, h[t-1])"
    compare(f"{HEAD}{more}u = 0.7 * h[t-1] + 0.2 * W\n{update}\noutput h[t]\n")


def test_a_gradient_through_a_gradient() -> None:
    compare(
        HEAD
        + "inner = square(tanh(h[t-1]) - x)\n"
        + "step = h[t-1] - 0.1 * grad(inner, h[t-1])\n"
        + "h[t] = h[t-1] - 0.1 * grad(square(step), h[t-1])\noutput h[t]\n"
    )


@pytest.mark.parametrize(
    "update",
    [
        "tanh(linear(h[t-1] -> D, N, bias=true) + x * W)",
        "W * h[t-1] * sigmoid(s) + linear[N](tanh(h[t-1]) * x)",
        "tanh(h[t-1]) + where(x > 0, log(1 + square(h[t-1])), s * h[t-1])",
        "l2norm[D](x + linear[D](h[t-1] * linear(s, h[t-1] -> N)))",
    ],
)
def test_the_backward_of_a_loop(update: str) -> None:
    compare(f"{HEAD}h[t] = {update}\noutput h[t]\n")
