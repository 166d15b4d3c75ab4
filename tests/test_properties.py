"""Random programs through the whole compiler: what is generated agrees with the interpreter of the same source.

Every property of `rnnc test` (values, states, gradients, splits, steps, packed sequences, dtypes) on programs that no
example resembles.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from rnnc.harness import Subject, properties
from rnnc.loading import load_module
from rnnc.pipeline import compile_source, module_text
from rnnc.source import Source
from rnnc.verify import verify, verify_types
from tests.strategies import Program, programs


def examples(count: int) -> settings:
    """Without shrinking: programs are small, and `rnnc test` shrinks the case."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    phases = [Phase.explicit, Phase.reuse, Phase.generate]
    return settings(max_examples=count, deadline=None, suppress_health_check=slow, phases=phases)


def agrees(program: Program, cases: int) -> None:
    source = Source("random.rnn", program.text)
    (made,) = compile_source(source, verify=verify)
    assert made.cell is not None and made.system is not None
    system = made.system
    verify_types([*(s.expr for s in system.streams), *(e for _, e in system.outputs)], system.graph)
    module = load_module(module_text([made], source), source.name)

    def build(*args: Any, **options: Any) -> Any:
        return getattr(module, made.tree.name.text)(*args, **options)

    for run in properties(Subject(made.cell, build), cases):
        result = run()
        assert result.failure is None, f"{result.name}: {result.failure}\n{program.text}"


@examples(25)
@given(programs(2))
def test_small_programs(program: Program) -> None:
    agrees(program, 1)


@examples(12)
@given(programs(3))
def test_larger_programs(program: Program) -> None:
    agrees(program, 1)


@pytest.mark.slow
@examples(300)
@given(programs(3))
def test_many_programs(program: Program) -> None:
    agrees(program, 2)
