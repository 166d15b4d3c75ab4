"""What `explain` says of eigenvalues: what a group can track, how long it remembers at first, where it can explode."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from backends.reference import Interpreter
from rnnc.bound.sample import half_life
from rnnc.explain import report
from rnnc.pipeline import compile_source
from rnnc.source import Source
from tests.cells import EXAMPLES, read

HEAD = (
    "cell C\ndim D = 64, K = 8, V = 4\ninput x[D], k[K], v[V], w[D] in [0, 1]\n"
    "κ = l2norm[K](k)\nβ = sigmoid(sum[D](x))\n"
)
REAL = "state h[D]\n"
MATRIX = "state h[K, V]\n"
TAIL = "output z = sum[V](v) * sum[K](κ) * sum[D](x * w) * β\noutput y = real(h[t])\n"


def explained(text: str, state: str = "h") -> dict[str, Any]:
    """The group of a state."""
    source = Source("test.rnn", text)
    return next(g for g in report(source, compile_source(source))["groups"] if state in g["states"])


# --- what it can track ------------------------------------------------------------------------------------------------

DIAGONAL = ["modulo 3, as the transition is diagonal", "permutations"]
TRACKING = {
    "a gate": (REAL, "sigmoid(linear(x -> D)) * h[t-1] + x", ["star-free"], ["parity", *DIAGONAL]),
    "a gate that cannot close": (REAL, "(0.5 + 0.5 * sigmoid(x)) * h[t-1] + x", [], ["parity", *DIAGONAL]),
    # One entry would need two values of the param.
    "a gate of which a param is half": (
        "param p[D] = zeros\n" + REAL,
        "sigmoid(p) * (0.5 + 0.5 * sigmoid(x)) * h[t-1] + x",
        [],
        ["parity", *DIAGONAL],
    ),
    "a gate by another state": (
        "state m[D] = -inf\nm[t] = max(m[t-1], x)\n" + REAL,
        "exp(m[t-1] - m[t]) * h[t-1] + x",
        [],
        ["parity by itself", "modulo 3 by itself, as the transition is diagonal", "permutations"],
    ),
    "a signed gate": (REAL, "tanh(x) * h[t-1] + x", ["parity"], DIAGONAL),
    "the same at every token": (REAL, "-0.5 * h[t-1] + x", [], ["same at every token", *DIAGONAL]),
    "complex": ("state h[D]: complex\n", "exp(1j * x) * h[t-1] + x", [], ["permutations"]),
    "a delta rule": (MATRIX, "h[t-1] - β * κ * sum[K](κ * h[t-1]) + κ * v", [], ["parity", "modulo 3 in one layer"]),
    "reflections": (MATRIX, "h[t-1] - 2 * β * κ * sum[K](κ * h[t-1]) + κ * v", ["swaps"], ["modulo 3 in one layer"]),
    "reflections, decayed per key": (
        "decay a = sigmoid(k)\nW = a * h[t-1]\n" + MATRIX,
        "W - 2 * β * κ * sum[K](κ * W) + κ * v",
        ["swaps"],
        ["modulo 3 in one layer"],
    ),
    # Its factors sum to 1: all but one of them are small.
    "reflections, decayed by shares": (
        "W = softmax[K](k) * h[t-1]\n" + MATRIX,
        "W - 2 * β * κ * sum[K](κ * W) + κ * v",
        [],
        ["modulo 3 in one layer"],
    ),
    "two reflections": (
        "π = l2norm[K](linear(k -> K))\nA = h[t-1] - 2 * β * κ * sum[K](κ * h[t-1])\n" + MATRIX,
        "A - 2 * sigmoid(sum[V](v)) * π * sum[K](π * A) + κ * v",
        ["permutations of 3 things"],
        [],
    ),
    "two reflections by one vector": (
        "π = l2norm[K](exp(k))\nA = h[t-1] - 2 * β * κ * sum[K](κ * h[t-1])\n" + MATRIX,
        "A - 2 * sigmoid(sum[V](v)) * π * sum[K](π * A) + κ * v",
        [],
        [],
    ),
    "nonlinear": (REAL, "tanh(w * h[t-1] + x)", [], []),
    "a learned matrix": (REAL, "tanh(linear(h[t-1] -> D) + x)", [], []),
}


@pytest.mark.parametrize("name", TRACKING)
def test_tracking(name: str) -> None:
    head, update, can, cannot = TRACKING[name]
    found = explained(f"{HEAD}{head}h[t] = {update}\n{TAIL}")
    assert [len(found["tracks"]), len(found["cannot_track"])] == [len(can), len(cannot)], found
    assert all(word in text for word, text in zip(can, found["tracks"], strict=True))
    assert all(word in text for word, text in zip(cannot, found["cannot_track"], strict=True))


def test_products_of_reflections() -> None:
    text = (EXAMPLES / "deltaproduct.rnn").read_text(encoding="utf-8")
    found = explained(text, "S")
    assert [("permutations" in t, "regular language" in t) for t in found["tracks"]] == [(True, False), (False, True)]
    assert not explained(text.replace("2 * sigmoid", "sigmoid").replace("2]", "1]"), "S")["tracks"]


# --- how long it remembers --------------------------------------------------------------------------------------------

FACTORS = {
    "mingru": ("1 - z", ("D = 512", "D = 64")),
    "gla": ("a", ("D = 1024, H = 4, K = 128", "D = 64, H = 4, K = 32")),
    "rglru": ("a", ("D = 256", "D = 64")),
    "lru": ("abs(lam)", ("D = 256, N = 256", "D = 16, N = 256")),
    "mamba": ("a", ("E = 1024, N = 16", "E = 64, N = 16")),
    "mamba2": ("a", ("H = 16", "H = 64")),
    "minlstm": ("f / (f + i)", ("D = 512", "D = 64")),
    "hgrn": ("f", ("D = 256", "D = 64")),
    "gateddeltanet": ("a", ("D = 1024, H = 8, K = 128, V = 128", "D = 64, H = 128, K = 2, V = 2")),
}


@pytest.mark.parametrize("stem", FACTORS)
def test_half_lives_against_the_interpreter(stem: str) -> None:
    factor, (old, new) = FACTORS[stem]
    text = (EXAMPLES / f"{stem}.rnn").read_text(encoding="utf-8").replace(old, new)
    assert new in text
    cell = read(f"{text.rstrip()}\noutput factor = {factor}\n")
    interpreter = Interpreter(cell)
    values: list[float] = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        inputs: dict[str, torch.Tensor] = {}
        for i in cell.inputs:
            x = torch.randn(
                [1, 8, *(interpreter.sizes[d] for d in i.type.dims)], generator=generator, dtype=torch.float64
            )
            inputs[i.name] = x if i.region is None else x.abs()
        outputs, _ = interpreter.run(inputs, interpreter.init_params(seed))
        values += outputs[-1][:, -1].reshape(-1).tolist()
    wanted = half_life(values)
    assert wanted is not None
    (state,) = [s.name for s in cell.states]
    said = explained(text, state)["half_life"]
    (compilation,) = compile_source(Source("test.rnn", text))
    assert compilation.analysis is not None
    found = compilation.analysis.memory(compilation.analysis.spectrum(state), None).found
    assert found is not None
    assert said.startswith(str(found))
    assert found.growing == wanted.growing == 0
    # Of the few hundred draws that either has, the quantiles are off by some percent.
    for mine, other, allowed in (
        (found.median, wanted.median, 0.2),
        (found.low, wanted.low, 0.35),
        (found.high, wanted.high, 0.6),
    ):
        assert abs(math.log(mine / other)) < math.log1p(allowed) + 0.1, (found, wanted)


HALVES = {
    "a constant": (REAL, "0.5 * h[t-1] + x", "1 token"),
    "a sum": (REAL, "h[t-1] + x", "unlimited, "),
    "what grows": (REAL, "1.5 * h[t-1] + x", "unlimited; 100 % grow, "),
    "a reset": ("state h[D]\n", "0 * h[t-1] + x", "0 tokens, "),
    "by eigenvalues": (
        REAL,
        "0.75 * h[t-1] - 0.125 * h[t-2] + x",
        "1 token, by the largest eigenvalue of its 2 x 2 matrix",
    ),
    "a change of variable": (REAL, "sqrt(0.5 * h[t-1] ** 2 + x ** 2)", "1 token, by its factor in the square"),
    "a maximum": (REAL, "max(h[t-1], x)", "none: "),
    "a learned matrix": (REAL, "tanh(linear(h[t-1] -> D) + x)", "not known: "),
    "a rank-one term": (
        MATRIX,
        "0.5 * h[t-1] - 0.5 * β * κ * sum[K](κ * h[t-1]) + κ * v",
        "1 token, by the factor of what",
    ),
}


@pytest.mark.parametrize("name", HALVES)
def test_half_lives(name: str) -> None:
    head, update, wanted = HALVES[name]
    text = f"{HEAD}{head}h[t] = {update}\n{TAIL}"
    said = explained(text)["half_life"]
    assert said.startswith(wanted)
    assert said == explained(text)["half_life"]


def test_half_life_of_numbers() -> None:
    found = half_life([0.5] * 90 + [1.0] * 10)
    assert found is not None
    assert (found.low, found.median, found.high) == (1, 1, math.inf)
    assert str(found) == "median 1 token (5 % 1, 95 % unlimited)"
    assert half_life([math.nan] * 10) is None


# --- where it can explode ---------------------------------------------------------------------------------------------

EXPLODES = {
    "a gate": (REAL, "w * h[t-1] + x", ""),
    "what nothing bounds": (REAL, "x * h[t-1] + x", "an eigenvalue is"),
    "a mend": (MATRIX, "h[t-1] - β * k * sum[K](k * h[t-1]) + k * v", "it cannot with `|k| <= 1`"),
    "a delta rule": (MATRIX, "h[t-1] - β * κ * sum[K](κ * h[t-1]) + κ * v", ""),
    # All eigenvalues are 0, and the product of two different steps is not.
    "products of steps": (
        REAL + "state u[D]\nu[t] = 2 * (1 - w) * h[t-1]\n",
        "2 * w * u[t-1] + x",
        "no eigenvalue exceeds 1, but that bounds no product",
    ),
    "a learned matrix": (REAL, "tanh(linear(h[t-1] -> D) + x)", "at sizes of 1: an eigenvalue is"),
}


@pytest.mark.parametrize("name", EXPLODES)
def test_where_it_can_explode(name: str) -> None:
    head, update, wanted = EXPLODES[name]
    said = explained(f"{HEAD}{head}h[t] = {update}\n{TAIL}")["explodes"]
    assert wanted in said
    assert bool(wanted) == bool(said)
