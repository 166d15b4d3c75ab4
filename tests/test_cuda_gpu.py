"""Sequential CUDA kernels on a GPU: beside the interpreter in float64, and how they run. `pytest -m gpu`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.modules import load
from tests.oracles import CASES
from tests.stepped import CELLS, LAGS, OVER, PACKED, STEPPED, TEXTS, WIDE, check, results

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
ALL = {**{n: (TEXTS[n], CASES[n].dims) for n in STEPPED}, **{n: (t, {}) for n, t in CELLS.items()}}
EXACT = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
every = pytest.mark.parametrize("name", ALL)


@pytest.fixture(autouse=True)
def plain_products() -> None:
    """Learned maps of float32 in float32: it is the kernels that are tested."""
    torch.backends.cuda.matmul.allow_tf32 = False


def on_gpu(name: str, lead: int | Sequence[int], dtype: torch.dtype, sizes: dict[str, int] | None = None) -> Any:
    text, own = ALL[name]
    return [x.cpu() for x in results(text, own if sizes is None else sizes, lead, "auto", dtype, "cuda")]


@every
@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("lead", [1, 65, PACKED], ids=["one", "whole", "packed"])
def test_values_and_gradients(name: str, dtype: torch.dtype, lead: int | Sequence[int]) -> None:
    text, sizes = ALL[name]
    check(on_gpu(name, lead, dtype), results(text, sizes, lead, "reference", torch.float64), EXACT[dtype])


@pytest.mark.parametrize("lead", [9, PACKED], ids=["whole", "packed"])
@pytest.mark.parametrize("name", OVER)
def test_updates_over_a_dim(name: str, lead: int | Sequence[int]) -> None:
    got = [x.cpu() for x in results(OVER[name], {}, lead, "auto", torch.float32, "cuda")]
    check(got, results(OVER[name], {}, lead, "reference", torch.float64), 1e-5)


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("head", [16, 64, 100, 128, 256])
@pytest.mark.parametrize("name", ["LSTM", "SLSTM"])
def test_heads(name: str, head: int, dtype: torch.dtype) -> None:
    """Matrices in registers, in memory of the block, and in the chip's."""
    sizes = {"D": 2 * head, "H": 2}
    check(on_gpu(name, 9, dtype, sizes), results(TEXTS[name], sizes, 9, "reference", torch.float64), EXACT[dtype])


def test_wide() -> None:
    got = [x.cpu() for x in results(WIDE, {}, 9, "auto", torch.bfloat16, "cuda")]
    check(got, results(WIDE, {}, 9, "reference", torch.float64), 1e-2)


def test_without_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load(LAGS), "_cuda_limit", lambda device: 0)
    got = [x.cpu() for x in results(LAGS, {}, PACKED, "auto", torch.float32, "cuda")]
    check(got, results(LAGS, {}, PACKED, "reference", torch.float64), 1e-5)


@every
def test_the_same_bits_twice(name: str) -> None:
    first, second = on_gpu(name, 200, torch.float32), on_gpu(name, 200, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def call(cell: Any, x: Tensor, **options: Any) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y, state = cell(x, **options)
    return [y, *state, *torch.autograd.grad(y.sum() + sum(s.sum() for s in state), [x, *cell.parameters()])]


def test_nothing_waits() -> None:
    """No call, packed or not, asks the chip for anything."""
    cell, x = load(TEXTS["LSTM"]).LSTM(D=64, H=2, device="cuda"), torch.randn(1, 20, 64, device="cuda")
    ends = torch.tensor([0, 3, 20], device="cuda")
    for options in ({}, {"cu_seqlens": ends}):
        call(cell, x, **options)
        torch.cuda.set_sync_debug_mode("error")
        try:
            call(cell, x, **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_another_stream() -> None:
    cell, x = load(TEXTS["LSTM"]).LSTM(D=64, H=2, device="cuda"), torch.randn(2, 300, 64, device="cuda")
    want = call(cell, x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # what is launched on another stream would run before
        late = x.clone()
        x.zero_()
        got = call(cell, late)
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_captured_call() -> None:
    """In a CUDA graph, replayed with other numbers."""
    cell, x = load(TEXTS["LSTM"]).LSTM(D=64, H=2, device="cuda"), torch.randn(2, 30, 64, device="cuda")
    y = torch.randn_like(x)
    with torch.no_grad():
        want = cell(y)[0]
        cell(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = cell(x)[0]
        x.copy_(y)
        graph.replay()
    torch.testing.assert_close(got, want)


def test_compiled() -> None:
    cell, x = load(TEXTS["LSTM"]).LSTM(D=64, H=2, device="cuda"), torch.randn(2, 30, 64, device="cuda")
    torch.testing.assert_close(torch.compile(cell, fullgraph=True)(x)[0], cell(x)[0])
