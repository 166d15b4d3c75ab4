"""Fused kernels of every family under Triton's interpreter: segments composed, entered, and verified.

Run with `TRITON_INTERPRET=1 pytest -m triton`.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 from the start of the process", allow_module_level=True)

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from backends.reference import Interpreter
from rnnc.fuse import fuse
from rnnc.harness import Subject, properties
from rnnc.loading import load_module
from rnnc.pipeline import compile_source, module_text
from rnnc.plan import Loop
from rnnc.source import Source
from tests.elementwise import Program
from tests.families import GRAMMARS, HEAD, INPUTS, SIZES, agrees, compiled
from tests.fused import Trial, disagreements
from tests.interpreted import install
from tests.marks import without

install()
pytestmark = [pytest.mark.triton, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


def cell(update: str, state: str = "h[D]", *more: str) -> Program:
    lines = [f"state {state}", f"h[t] = {update}", *more, "output h[t]"]
    return Program(HEAD + "\n".join(lines) + "\n", SIZES, INPUTS)


@pytest.mark.parametrize("family", GRAMMARS)
def test_random_cells(family: str) -> None:
    """The family is found, and values and gradients are the interpreter's, in float64 and float32."""

    @settings(
        max_examples=5,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(GRAMMARS[family])
    def run(program: Program) -> None:
        made, _ = compiled(program.text)
        assert made.plan is not None
        (loop,) = [s for s in made.plan.steps if isinstance(s, Loop)]
        assert loop.closure.family == ("sequential" if family == "none" else family), program.text
        pick = random.Random(program.text)
        lead = pick.choice((1, 2, 5, 40, [3, 0, 1, 20], [1, 31]))
        dtype = pick.choice((torch.float64, torch.float32))
        wrong = agrees(program, lead, pick.randrange(10**6), dtype, pick.choice((1, 3)))
        assert not wrong, "\n".join([*wrong, f"{lead}, {dtype}", program.text])

    run()


@pytest.mark.slow
@settings(max_examples=100, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(*GRAMMARS.values()), st.integers(0, 10**6))
def test_many_random_cells(program: Program, seed: int) -> None:
    pick = random.Random(seed)
    lead = pick.choice((1, 2, 3, 7, 33, 70, [3, 0, 1, 20], [1, 31], [0, 0, 4]))
    dtype = pick.choice((torch.float64, torch.float64, torch.float32))
    wrong = agrees(program, lead, seed, dtype, pick.choice((1, 2, 5)))
    assert not wrong, "\n".join([*wrong, f"{lead}, {dtype}", program.text])


def launches(module: Any, kernel: str) -> list[bool]:
    """Counts, from now on, launches of a kernel: whether each was the one that repairs."""
    found: list[bool] = []
    start = module._start

    def counted(launch: Any, jit: Any, arguments: dict[str, Any]) -> None:
        if jit.__name__ == kernel:
            found.append(launch.constants["REPAIR"])
        start(launch, jit, arguments)

    module._start = counted
    return found


UNSTABLE = cell("1.5 * h[t-1] - 0.3 * h[t-2] + x")
REPELLING = cell("2 * h[t-1] / (1 + h[t-1]) + x")
LONG = 2000


@pytest.mark.parametrize(
    "program, flows",
    [(UNSTABLE, (1.95, 1.5, 1.0)), pytest.param(REPELLING, (4.0, 2.0, 1.0), marks=pytest.mark.slow)],
)
def test_what_composes_beyond_numbers_is_stepped(program: Program, flows: tuple[float, ...]) -> None:
    """Products overflow, or lose what matters, where the states are all 0: they stay 0, and so do the gradients of
    what does not move them."""
    _, module = compiled(program.text)
    module._segments = lambda *_: 2
    run, back = launches(module, "_Random_h_forward"), launches(module, "_Random_h_backward")
    built = module.Random(backend="triton")
    inputs = {n: torch.zeros_like(v) for n, v in program.draw(1, LONG).items()}
    x = inputs["x"] = inputs["x"].float()[:, :, :1].expand(-1, -1, 3).clone().requires_grad_()
    h, state = built(*(v if v.dtype == torch.bool else v.float() for v in inputs.values()))
    assert torch.equal(h, torch.zeros_like(h)) and torch.equal(state.h, torch.zeros_like(state.h))
    h[:, 2].sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0, :3, 0], torch.tensor(flows))
    assert torch.equal(x.grad[:, 3:], torch.zeros_like(x.grad[:, 3:]))
    assert run == back == [False, True]


def test_a_wrong_composition_is_repaired() -> None:
    """The numbers are right all the same; without the repair they are not."""
    program = cell("(h[t-1] + q) * r / (h[t-1] + q + r)", "h[D] = 1")
    source = Source("random.rnn", program.text)
    (made,) = compile_source(source)
    text = module_text([made], source)
    wrong = text.replace(", h_a_segment, mask=", ", 2.0 * h_a_segment, mask=")
    assert wrong != text and made.cell is not None
    oracle = Interpreter(made.cell, program.sizes)
    trial = Trial(made.cell, program.sizes, program.draw(2, 40, 3), oracle.init_params(0), None, None, 1)
    for code, right in ((wrong, True), (wrong.replace("1000.0 * size", "1e20 * size"), False)):
        module: Any = load_module(code, source.name)
        module._segments = lambda *_: 3
        got = trial.computed(lambda **o: module.Random(**o, backend="triton"), torch.float64)  # noqa: B023
        assert bool(disagreements(trial.expected(), got)) != right


CELLS = {
    "complex block": "state h[D]: complex, g[D]: complex\nh[t] = 0.9 * exp(1j * w) * h[t-1] - 0.1 * g[t-1] + x\n"
    "g[t] = 0.5 * h[t]\noutput real(h[t])\noutput g[t]",
    "complex fraction": "state h[D]: complex = 1\nh[t] = (h[t-1] + 1j * q) / (2 + 1j * w + h[t-1])\noutput h[t]",
    "affine, any factor": "state h[D]\nh[t] = w * h[t-1] + x\noutput h[t]\noutput h[t-3]",
    "affine, read from far": "state h[D]\nh[t] = z * h[t-1] + x\noutput h[t] * h[t-1]\noutput h[t-2]",
    "block, contracted": "state h[D, N], g[D, N] = 1\nparam U[D, N] = normal(1)\n"
    "h[t] = z * h[t-1] + 0.2 * g[t-1] + x * U\ng[t] = 0.5 * h[t-1]\noutput sum[N](U * h[t])",
    "tropical, contracted": "state h[D, N]\nparam U[D, N] = normal(1)\nh[t] = max(h[t-1] - z, x * U)\n"
    "output sum[N](U * h[t])",
    "block in tiles": "gate s = sigmoid(w)\nstate h[D], g[D]\nh[t] = s * (cos(x) * h[t-1] - sin(x) * g[t-1]) + x\n"
    "g[t] = s * (sin(x) * h[t-1] + cos(x) * g[t-1])\noutput h[t]\noutput tanh(g[t-1]) * x",
    "lags in tiles": "state h[D] = u\nh[t] = 0.4 * z * h[t-1] + 0.3 * h[t-2] - 0.2 * h[t-3] + x\noutput h[t] * w",
    "read by nothing": "state m[D] = -inf, g[D], h[D]\nm[t] = max(m[t-1], x)\n"
    "g[t] = 0.5 * h[t-1] + x\nh[t] = w * g[t-1]\noutput x",
    "cascade": "state m[D] = -inf, p[D] = 1, s[D]\nm[t] = max(m[t-1] - z, x)\n"
    "p[t] = (p[t-1] + q) * r / (p[t-1] + q + r)\n"
    "s[t] = exp(m[t-1] - m[t]) * s[t-1] + p[t-1] * mean[D](m[t])\noutput s[t]",
}


@pytest.mark.parametrize("name", without(["complex block", "complex fraction", "block, contracted"], CELLS))
def test_cells(name: str) -> None:
    program = Program(f"{HEAD}{CELLS[name]}\n", SIZES, INPUTS)
    made, _ = compiled(program.text)
    assert made.plan is not None
    kernels = fuse(made.plan)
    assert sum(len(k.steps) for k in kernels) == len(made.plan.steps)
    assert all(k.tiled and k.tiled_back for k in kernels) or "tiles" not in name
    for lead, segments in ((40, 3), ([3, 0, 1, 20], 3), ([1, 9], 1)):
        assert agrees(program, lead, 5, torch.float64, segments) == []


ODD = """\
cell Odd
\"""A thermostat with hysteresis, a drifting oscillator that it drives, and the fraction of energy that is kept.\"""
dim H = 2, P = 3
const limit in (0, inf) = 1.5
input x[H, P], leak[H] in [0, 1], done: bool
param k[P] = uniform(0.05, 0.2)
gate s = sigmoid(linear(x -> H, P, bias=true))
state heat[H, P] = 0.1
state pos[H, P], vel[H, P] = 1
state share[H, P] = 0.5
heat[t] = where(done, 0, clamp((1 - leak) * heat[t-1] + x, -limit, limit))
vel[t] = s * vel[t-1] - k * pos[t-1] + heat[t]
pos[t] = pos[t-1] + 0.1 * vel[t] - 0.05 * pos[t-2]
share[t] = (share[t-1] + square(vel[t-1])) / (1 + share[t-1] + square(vel[t-1]))
output pos[t] * share[t]
output y = sum[P](k * vel[t])
"""


def test_what_rnnc_test_says_of_a_cell_like_no_example() -> None:
    """A clamp with resets, a block with a lag that it drives, a fraction of their energy: every property holds."""
    made, module = compiled(ODD)
    assert made.cell is not None

    def build(**options: Any) -> Any:
        return module.Odd(**options, backend="triton")

    subject = Subject(made.cell, build, dtype=torch.float32, kernels=True)
    failures = [r.failure for run in properties(subject, 3) if (r := run()).failure is not None]
    assert failures == []
