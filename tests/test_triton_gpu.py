"""Fused kernels on a GPU: values and gradients of the examples beside the interpreter in float64, and how they run.

Run without TRITON_INTERPRET: `pytest -m gpu tests/test_triton_gpu.py`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs compiled Triton", allow_module_level=True)

import torch
from hypothesis import Phase, given, settings
from torch import Tensor

from backends.reference import Interpreter
from rnnc.rounding import Tensors
from tests.cells import EXAMPLES
from tests.elementwise import Program
from tests.families import GRAMMARS, agrees
from tests.fused import Trial, errors, like
from tests.modules import as_tuple, checked, load
from tests.oracles import CASES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
TEXTS = {n: (EXAMPLES / f"{c.file}.rnn").read_text(encoding="utf-8") for n, c in CASES.items()}
FUSED = [n for n in CASES if "triton" in getattr(load(TEXTS[n]), n)._backends]
every = pytest.mark.parametrize("name", FUSED)
PACKED = (1, 0, 3, 129, 0, 1, 63)


def build(name: str, **options: Any) -> Any:
    return getattr(load(TEXTS[name]), name)(**{"backend": "triton", **options})


def trial(name: str, length: int | Sequence[int], start: bool = False, sizes: dict[str, int] | None = None) -> Trial:
    """A call with inputs that bfloat16 can hold; packed for a sequence of lengths; `start`: from a state."""
    cell, case = checked(TEXTS[name]), CASES[name]
    sizes = sizes or case.dims
    oracle = Interpreter(cell, sizes)
    params = oracle.init_params(0)
    lengths = None if isinstance(length, int) else length
    lead = (2, length) if isinstance(length, int) else (1, sum(length))
    state = None
    if start:
        with torch.no_grad():
            state = oracle.run(case.draw(2 if lengths is None else len(lengths), 3, 1, sizes), params)[1]
    given = {n: x if x.dtype == torch.bool else x.bfloat16().double() for n, x in case.draw(*lead, 0, sizes).items()}
    return Trial(cell, sizes, given, params, state, lengths)


def too_far(made: Trial, name: str, dtype: torch.dtype) -> list[str]:
    """The errors beyond docs/design, by norm: float64 1e-10, float32 1e-5, 16 bit 1.5 times PyTorch's and never 1e-2.

    PyTorch's are those of the torch backend on this GPU, with learned maps in the same dtype. Where they are above a
    limit themselves, the gradient cancels, and 1.5 times them is allowed. Where two kernels read one input, each rounds
    its share of the gradient to 16 bit: half a unit in the last place more.
    """

    def plain(**options: Any) -> Any:
        return build(name, **{**options, "backend": "torch"})

    want, low = made.interpreted(torch.float64), dtype.itemsize == 2
    got = made.computed(lambda **options: build(name, **options), dtype, "cuda")
    with torch.autocast("cuda", dtype if low else None, enabled=low):
        same = {n: norm for n, norm, _ in errors(made.computed(plain, dtype, "cuda"), want)}
    kernels = len(getattr(load(TEXTS[name]), name)._fused_kernels)
    least = 1e-10 if dtype == torch.float64 else 1e-5
    if low:
        least = torch.finfo(dtype).eps / 2 if kernels > 1 else 1e-6
    most = 1e-2 if low else least
    limits = {n: min(max(1.5 * e, least), most if e <= most else 1.5 * e) for n, e in same.items()}
    return [f"{n}: {norm:.1e}, PyTorch {same[n]:.1e}" for n, norm, _ in errors(got, want) if norm > limits[n]]


@pytest.fixture(autouse=True)
def plain_products() -> None:
    """Learned maps of float32 in float32: it is the kernels that are tested."""
    torch.backends.cuda.matmul.allow_tf32 = False


DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)


@every
@DTYPES
@pytest.mark.parametrize("length", [1, 65, PACKED], ids=["one", "whole", "packed"])
def test_values_and_gradients(name: str, dtype: torch.dtype, length: int | Sequence[int]) -> None:
    assert too_far(trial(name, length, start=True), name, dtype) == []


@pytest.mark.parametrize("family", GRAMMARS)
def test_random_cells_of_each_family(family: str) -> None:
    @settings(max_examples=6, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    @given(GRAMMARS[family])
    def run(program: Program) -> None:
        pick = random.Random(program.text)
        dtype, segments = pick.choice((torch.float64, torch.float32)), pick.choice((1, 5))
        lead = pick.choice((200, [3, 0, 1, 150]))
        wrong = agrees(program, lead, pick.randrange(10**6), dtype, segments, "cuda")
        assert not wrong, "\n".join([*wrong, f"{lead}, {dtype}, {segments} segments", program.text])

    run()


@every
@DTYPES
def test_wider_than_a_block(name: str, dtype: torch.dtype) -> None:
    """Widths that are multiples of 16, and not: other configurations."""
    for wide in (67, 160):
        sizes = dict.fromkeys(CASES[name].dims, 3)
        last = {"Mamba": "E", "LRU": "N", "S5Reset": "N"}.get(name, list(sizes)[-1])
        assert too_far(trial(name, 17, sizes={**sizes, last: wide}), name, dtype) == []


def called(cell: Any, inputs: list[Tensor], **options: Any) -> list[Tensor]:
    """Values, and the gradients of a sum of what is finite."""
    leaves = [x.detach().requires_grad_(x.dtype != torch.bool) for x in inputs]
    outputs, final = cell(*leaves, **options)
    values = [*as_tuple(outputs), *final]
    total = sum(v.abs().double().where(v.isfinite(), 0).sum() for v in values if v.dtype != torch.bool)
    assert isinstance(total, Tensor)
    asked = [x for x in [*leaves, *cell.parameters()] if x.requires_grad]
    return [*(v.detach() for v in values), *torch.autograd.grad(total, asked, materialize_grads=True)]


def on_gpu(made: Tensors, dtype: torch.dtype, device: str = "cuda") -> list[Tensor]:
    return [x.to(device, like(x, dtype)) for x in made.values()]


@every
@pytest.mark.parametrize("segments", [1, 7])
def test_long_sequences(name: str, segments: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one pass and in segments, beside the torch backend in float64."""
    sizes = dict.fromkeys(CASES[name].dims, 4)
    monkeypatch.setattr(load(TEXTS[name]), "_segments", lambda *_: segments)
    inputs = on_gpu(CASES[name].draw(2, 3001, 0, sizes), torch.float64)
    torch.manual_seed(0)
    cell = build(name, **sizes, dtype=torch.float64, device="cuda")
    other = build(name, **sizes, dtype=torch.float64, device="cuda", backend="torch")
    other.load_state_dict(cell.state_dict())
    for got, want in zip(called(cell, inputs), called(other, inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9 * float(want.abs().nan_to_num(0, 0, 0).max() + 1))


@every
def test_the_same_bits_twice(name: str) -> None:
    cell, inputs = build(name, **CASES[name].dims, device="cuda"), on_gpu(CASES[name].draw(2, 500), torch.float32)
    for first, second in zip(called(cell, inputs), called(cell, inputs), strict=True):
        assert torch.equal(first, second)


@every
def test_another_stream(name: str) -> None:
    cell, inputs = build(name, **CASES[name].dims, device="cuda"), on_gpu(CASES[name].draw(2, 300), torch.float32)
    want = called(cell, inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # what is launched on another stream would run before
        late = [x.clone() for x in inputs]
        for x in inputs:
            x.zero_()
        got = called(cell, late)
    torch.cuda.synchronize()
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@every
def test_another_device(name: str) -> None:
    """The current device stays cuda:0."""
    drawn = CASES[name].draw(2, 100)
    cell = build(name, **CASES[name].dims, device="cuda")
    other = build(name, **CASES[name].dims, device="cuda:1")
    other.load_state_dict(cell.state_dict())
    want = called(cell, on_gpu(drawn, torch.float32))
    for a, b in zip(called(other, on_gpu(drawn, torch.float32, "cuda:1")), want, strict=True):
        assert a.device.index == 1
        torch.testing.assert_close(a.cpu(), b.cpu())


@every
def test_a_captured_step(name: str) -> None:
    """`step` in a CUDA graph, replayed with other inputs, goes on where kernels stopped."""
    cell = build(name, **CASES[name].dims, device="cuda")
    inputs = on_gpu(CASES[name].draw(2, 12), torch.float32)
    with torch.no_grad():
        whole, last = cell(*inputs)
        _, state = cell(*(x[:, :8] for x in inputs))
        held = type(state)(*(s.clone() for s in state))
        token = [x[:, 8].clone() for x in inputs]
        warm = torch.cuda.Stream()
        warm.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm):
            cell.step(*token, held)
        torch.cuda.current_stream().wait_stream(warm)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs, after = cell.step(*token, held)
            for old, new in zip(held, after, strict=True):
                old.copy_(new)
        for t in range(8, 12):
            for x, given in zip(token, inputs, strict=True):
                x.copy_(given[:, t])
            graph.replay()
            for got, want in zip(as_tuple(outputs), as_tuple(whole), strict=True):
                torch.testing.assert_close(got, want[:, t], rtol=1e-4, atol=1e-4)
        for got, want in zip(held, last, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_more_entries_than_32_bits_count() -> None:
    """Addresses are of 64 bits: the end of a tensor of more than 2^31 entries is right."""
    width, length = 4096, 2**31 // 4096 + 4096
    if torch.cuda.mem_get_info()[0] < 8 * width * length * 2:
        pytest.skip("needs more memory")
    text = "cell Scan\ndim D = 4\ninput a[D] in [0, 1], b[D]\nstate h[D]\nh[t] = a * h[t-1] + b\noutput h[t]\n"
    cell = load(text).Scan(D=width, backend="triton", device="cuda")
    a = torch.full((1, length, width), 0.5, dtype=torch.bfloat16, device="cuda").requires_grad_()
    b = torch.ones_like(a).requires_grad_()
    outputs, state = cell(a, b)
    assert (outputs[:, 16:].float().sub(2).abs() < 0.02).all() and (state.h - 2).abs().max() < 1e-4
    (db,) = torch.autograd.grad(outputs, b, torch.ones_like(outputs))
    assert (db[:, :-16].float().sub(2).abs() < 0.02).all() and (db[:, -1] == 1).all()
