"""Every example, compiled, against the loop that was written for it by hand, which shares nothing with the compiler;
and how long it takes to analyse."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from sympy.core.cache import clear_cache
from torch import Tensor

from rnnc.loading import load
from rnnc.pipeline import compile_source
from rnnc.source import Source
from tests.oracles import CASES, Tensors

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def leaf(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_(value.dtype != torch.bool)


def gradients(results: list[Tensor], *groups: Tensors) -> list[Tensor]:
    """Of a sum in which every number of the results has a weight of its own."""
    total = torch.zeros((), dtype=torch.float64)
    for i, result in enumerate(results):
        flat = (torch.view_as_real(result.resolve_conj()) if result.is_complex() else result).flatten()
        total = total + (flat * torch.cos(torch.arange(flat.numel(), dtype=torch.float64) + i)).sum()
    wanted = [t for group in groups for t in group.values() if t.requires_grad]
    return list(torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True))


def test_every_example_has_a_loop() -> None:
    assert {case.file for case in CASES.values()} == {path.stem for path in EXAMPLES.glob("*.rnn")}


@pytest.mark.parametrize("name", CASES)
def test_the_module_is_the_loop(name: str) -> None:
    """Outputs, final states and all gradients, from the initial state and from one that is passed in."""
    case = CASES[name]
    torch.manual_seed(1)
    module: Any = load(EXAMPLES / f"{case.file}.rnn")(**case.dims, dtype=torch.float64)
    params = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    state: Any = None
    for length, seed in ((7, 2), (130, 3)):
        inputs = {n: leaf(x) for n, x in case.draw(2, length, seed).items()}
        outputs, final = module(*inputs.values(), state=state)
        incoming = {} if state is None else state._asdict()
        want, want_state = case.oracle(params, inputs, incoming or None)
        assert list(final._fields) == list(want_state)
        results = [*((outputs,) if isinstance(outputs, Tensor) else outputs), *final]
        expected = [*want, *want_state.values()]
        torch.testing.assert_close(results, expected, rtol=1e-9, atol=1e-10)
        found, right = (gradients(r, inputs, params, incoming) for r in (results, expected))
        torch.testing.assert_close(found, right, rtol=1e-8, atol=1e-9)
        state = type(final)(*(leaf(s) for s in final))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.rnn")), ids=lambda p: p.stem)
def test_analysis_takes_under_a_second(path: Path) -> None:
    """From the text to the plan, and nothing remembered of a run before; the best of three, for a busy machine."""
    source = Source(path.name, path.read_text("utf-8"))
    best = float("inf")
    for _ in range(3):
        clear_cache()
        start = time.perf_counter()
        compile_source(source, until="plan")
        best = min(best, time.perf_counter() - start)
        if best < 1:
            break
    assert best < 1
