"""Random cells whose states mix no entries: kernels under Triton's interpreter agree with the interpreter in float64.

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

from backends.reference import Interpreter
from rnnc.loading import load_module
from rnnc.pipeline import compile_source, module_text
from rnnc.source import Source
from tests.elementwise import Program, programs
from tests.fused import Trial, disagreements
from tests.interpreted import install

install()
pytestmark = [pytest.mark.triton, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


def examples(count: int, new: bool = False) -> settings:
    """The same programs every time, unless `new`."""
    return settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        phases=[Phase.explicit, Phase.generate],
        derandomize=not new,
        database=None,
    )


def agrees(program: Program, calls: int) -> None:
    """In `calls` random calls: whole sequences and packed ones, from a state or the start, gates saturated or not."""
    source = Source("random.rnn", program.text)
    (made,) = compile_source(source)
    assert made.cell is not None
    module: Any = load_module(module_text([made], source), source.name)

    def build(**options: Any) -> Any:
        return module.Random(**options, backend="triton")

    if "triton" not in module.Random._backends:
        return
    oracle = Interpreter(made.cell, program.sizes)
    for number in range(calls):
        pick = random.Random(f"{number} {program.text}")
        seed = pick.randrange(10**6)
        generator = torch.Generator().manual_seed(seed)
        params = oracle.init_params(generator)
        for p in made.cell.params:
            if p.learned:
                params[p.name] += 0.1 * torch.randn(params[p.name].shape, generator=generator, dtype=torch.float64)
        scale = pick.choice((1.0, 1.0, 1.0, 30.0))
        entries = max(1, max((oracle.sizes["A"] * oracle.sizes.get("B", 1) * oracle.sizes.get("C", 1)) // 8, 1))
        lengths = None
        if number % 2:
            lengths = [pick.choice((0, 1, 1, 2, 5)) for _ in range(3)] + [pick.choice((3, 35 if entries < 3 else 4))]
            pick.shuffle(lengths)
            batch, length = 1, sum(lengths)
        else:
            batch, length = pick.choice((1, 1, 2)), pick.choice((1, 2, 3, 7, 31, 33, 70 if entries < 3 else 5))
        state = None
        if pick.random() < 0.6:
            count = batch if lengths is None else len(lengths)
            with torch.no_grad():
                state = oracle.run(program.draw(count, 2, seed + 1), params)[1]
        inputs = program.draw(batch, length, seed, scale)
        trial = Trial(made.cell, program.sizes, inputs, params, state, lengths, seed % 1000)
        dtype = pick.choice((torch.float64, torch.float64, torch.float32))
        wrong = disagreements(trial.expected(), trial.computed(build, dtype), dtype)
        said = f"B {batch}, T {length}, lengths {lengths}, {dtype}, scale {scale}, state {state is not None}"
        assert not wrong, "\n".join([*wrong, said, program.text])


@examples(6)
@given(programs())
def test_random_cells(program: Program) -> None:
    agrees(program, 2)


@pytest.mark.slow
@examples(50, new=True)
@given(programs())
def test_many_random_cells(program: Program) -> None:
    agrees(program, 4)
