"""Random programs through the whole compiler: what is generated agrees with the interpreter of the same source.

Every property of `rnnc test` (values, states, gradients, splits, steps, packed sequences, dtypes) on programs that no
example resembles.
"""

from __future__ import annotations

from textwrap import dedent
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from rnnc.harness import Subject, properties
from rnnc.loading import load_module
from rnnc.pipeline import compile_source, module_text
from rnnc.source import Source
from rnnc.verify import verify, verify_types
from tests.strategies import Program, programs


def examples(count: int, new: bool = False) -> settings:
    """The same programs every time, unless `new`. Nothing shrinks: they are small, and `rnnc test` shrinks the case."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    phases = [Phase.explicit, Phase.reuse, Phase.generate]
    return settings(
        max_examples=count, deadline=None, suppress_health_check=slow, phases=phases, derandomize=not new, database=None
    )


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


@examples(8)
@given(programs(2))
def test_at_the_limits(program: Program) -> None:
    """The fourth case of each property has inputs that are large, or at the ends of their ranges."""
    agrees(program, 4)


@pytest.mark.slow
@examples(100, new=True)
@given(programs(3))
def test_many_programs(program: Program) -> None:
    agrees(program, 4)


# Programs that went wrong once.
CORNERS = {
    "an update over a dim that forgets": """\
        dim J = 2, D = 3
        input k[J, D]
        state h[D], g[D]
        h[t] over J = k * h[t-2]
        g[t] over J = sin(k) + h[t-1]
        output h[t] + g[t]""",
    "a bool history in a loop": """\
        dim D = 3
        input x[D]
        u = h[t-1] > 0.1
        state h[D]
        h[t] = where(u[t-2], sin(h[t-1]), 0.3) + where(u, x, u[t-1])
        output h[t]""",
    "bools and numbers as branches": """\
        dim D = 3
        input x[D], m[D]: bool, c[D]: bool
        state h[D]
        h[t] = 0.5 * h[t-1] + where(c, m, 0.3)
        output where(where(c, true, false), x, h[t])""",
    "powers of zero": """\
        dim D = 3
        const n = 0
        input x[D], p[D] in [0, 1]
        state h[D]
        h[t] = relu(h[t-1]) ** p + 0.1 * x + abs(h[t-1]) ** n
        output h[t]""",
    "numbers beyond Python's functions": """\
        dim D = 3
        const e = 1e-9, b = 1e200
        input x[D]
        output x * log1p(e) * 1e9 + x * expm1(e) * 1e9 + x / square(b) + x / b ** 2""",
    "what a branch does not select is NaN": """\
        dim D = 3
        input x[D], done: bool, c[D]: bool
        state h[D], g[D]
        h[t] = where(done, 0.3, sigmoid(log(abs(x) - 0.5) + h[t-1])) * 0.9
        g[t] = where(x > 0, softmax[D](log(abs(x)) + g[t-1]), h[t])
        output where(done, 1, linear(log(x + 9) -> D)) + g[t]
        output where(c, linear(log(abs(x) + 0.1) * g[t] -> D), h[t])""",
    "a map of a number in a branch": """\
        dim D = 3
        input x[D]
        u = tanh(conv[2](2))
        output x * where(u > 0.5, sqrt(u - 0.5), 1) * where(u < 0.5, log(0.5 - u), 1)""",
    "solutions in a branch": """\
        dim N = 2, M = 2
        input A[N, M], b[N], d[N]: bool
        param E[N, M] = eye
        state z[N]
        z[t] = where(d, tanh(solve[N, M](9 * E + exp(tanh(A)), exp(b) + z[t-1])), z[t-1])
        output z[t]""",
    "a gradient through a branch": """\
        dim D = 3
        input x[D], c: bool
        state W[D]
        loss = sum[D](square(where(x > 0, log(x) * W[t-1], sqrt(-x) + W[t-1])))
        W[t] = W[t-1] - 0.1 * where(c, grad(loss, W[t-1]), 0)
        output W[t]""",
}


@pytest.mark.parametrize("name", CORNERS)
def test_corners(name: str) -> None:
    agrees(Program("cell Corner\n" + dedent(CORNERS[name]), {}, (), (), ()), 1)
