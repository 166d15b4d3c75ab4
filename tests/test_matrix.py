"""Matrices of several states or several pasts: their norms, and their products over time."""

from __future__ import annotations

import pytest
import torch

from backends.reference import Interpreter
from rnnc.closure import Block
from rnnc.pipeline import compile_source
from rnnc.source import Source
from tests.cells import read

HEAD = "cell C\ndim D = 3\ninput x[D], g[D]\nr = sigmoid(g)\nstate z[D]\n"
TWO = HEAD + "state y[D]\n"
TURN = "z[t] = a * (cos(x) * z[t-1] - sin(x) * y[t-1]) + g\ny[t] = a * (sin(x) * z[t-1] + cos(x) * y[t-1])\n"

PRODUCTS = {
    "a rotation": (TWO + TURN.replace("a * ", ""), True),
    "a rotation that shrinks": (TWO + TURN.replace("a *", "r *"), True),
    "a rotation that grows": (TWO + TURN.replace("a *", "(1 + 0.1 * r) *"), False),
    "weighted means of each other": (
        TWO + "z[t] = r * z[t-1] + (1 - r) * y[t-1] + x\ny[t] = (1 - r) * z[t-1] + r * y[t-1]\n",
        True,
    ),
    "what one norm does not see": (TWO + "z[t] = 8 * r * y[t-1] + x\ny[t] = 0.125 * z[t-1]\n", True),
    "eigenvalues 0, and products that grow": (TWO + "z[t] = 2 * r * y[t-1] + x\ny[t] = 2 * (1 - r) * z[t-1]\n", False),
    "a delayed sum": (HEAD + "z[t] = 0.5 * z[t-1] - 0.25 * z[t-2] + 0.25 * r * z[t-3] + x\n", True),
    "a delayed sum that is too large": (HEAD + "z[t] = 0.5 * z[t-1] + 0.75 * r * z[t-3] + x\n", False),
    "oscillators whose energy drifts": (
        TWO + "z[t] = (z[t-1] - r * x ** 2 * y[t-1]) / (1 + r ** 2 * x ** 2)\ny[t] = y[t-1] + r * z[t] + g\n",
        False,
    ),
    "complex ones": (
        "cell C\ndim D = 3\ninput x[D], g[D]\nr = sigmoid(g)\nu = exp(1j * x)\nstate z[D]: complex, y[D]: complex\n"
        "z[t] = u * (0.6 * z[t-1] + 0.8j * y[t-1]) + x\ny[t] = u * (0.8 * z[t-1] - 0.6j * y[t-1])\n",
        True,
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str) -> None:
    body, wanted = PRODUCTS[name]
    text = body + "output real(z[t])\n"
    source = Source("test.rnn", text)
    (compilation,) = compile_source(source, until="analysis")
    assert compilation.analysis is not None
    [closure] = list(compilation.closures or ())
    assert isinstance(closure, Block)
    assert compilation.analysis.bounded_products(closure) == wanted
    if wanted:
        # The updates are affine: how far two runs are apart is a product of matrices.
        assert apart(text, 400) < 20


def apart(text: str, length: int) -> float:
    """The largest ratio of the distance of two runs to what it was at first."""
    interpreter = Interpreter(read(text))
    generator = torch.Generator().manual_seed(0)
    inputs = {n: torch.randn([1, length, 3], generator=generator, dtype=torch.float64) for n in ("x", "g")}
    params = interpreter.init_params(0)
    start = interpreter.initial_state(params, 1)
    moved = {n: s + torch.randn(s.shape, generator=generator, dtype=torch.float64) for n, s in start.items()}
    first = max(float((moved[n] - start[n]).abs().max()) for n in start)
    most = 0.0
    states: list[dict[str, torch.Tensor]] = [dict(start), dict(moved)]
    for t in range(length):
        token = {n: x[:, t : t + 1] for n, x in inputs.items()}
        states = [dict(interpreter.run(token, params, s)[1]) for s in states]
        most = max(most, *(float((states[1][n] - states[0][n]).abs().max()) for n in start))
    return most / first
