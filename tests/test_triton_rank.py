"""Low-rank transitions in chunks by kernels, under Triton's interpreter: random cells, strong decays, packed sequences.

Run with `TRITON_INTERPRET=1 pytest -m triton`.
"""

from __future__ import annotations

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 from the start of the process", allow_module_level=True)

import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rnnc.fuse import SOLVED
from rnnc.loading import load_module
from tests.interpreted import install
from tests.modules import Interpreted, build, generate, load
from tests.test_chunks import inputs_of
from tests.test_lowrank import BY_KEY, BY_VALUE, MIXED, OVER, TITANS, TWO, WRITTEN, cell, cells
from tests.test_triton_chunks import compared, opchecked

install()
pytestmark = [pytest.mark.triton, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

NONE = cell("S[t-1] + b * n * (v - c)", "sum[K](p * S[t])")
UNWRITTEN = cell("s * (S[t-1] - b * n * c)", "sum[K](p * S[t-1])", "S[K, V, H] = 0.5")
FORMS = {"one": MIXED, "keys": BY_KEY, "none": NONE, "over": OVER, "unwritten": UNWRITTEN}
forms = pytest.mark.parametrize("form", FORMS)


@forms
def test_the_kernels_are_used(form: str) -> None:
    assert load(FORMS[form]).C(backend="triton").plan["S"] == f"triton: {SOLVED}"


@pytest.mark.parametrize("text", [TWO, TITANS, BY_VALUE], ids=["rank two", "pair", "by value"])
def test_what_is_pytorchs(text: str) -> None:
    """And says so."""
    assert not any(kernel.startswith("triton") for kernel in load(text).C().plan.values())


QUICK = ("diagonal plus rank one",)


@pytest.mark.parametrize(
    "name",
    [
        n if n in QUICK else pytest.param(n, marks=pytest.mark.slow)
        for n, (_, rank) in WRITTEN.items()
        if rank == 1 and n not in ("a sum over a rank", "a matrix in factors")
    ],
)
def test_ways_of_writing(name: str) -> None:
    text = cell(WRITTEN[name][0], "sum[K](q * S[t]); sum[K](p * S[t-1])")
    assert load(text).C(backend="triton").plan["S"] == f"triton: {SOLVED}"
    # Where keys are not normalised states grow from token to token, and roundings with them.
    assert compared(text, 10, batch=1, K=8, V=8) < 1e-5


@pytest.mark.parametrize(
    "form", [f if f in ("one", "over") else pytest.param(f, marks=pytest.mark.slow) for f in FORMS]
)
@pytest.mark.parametrize("length", [0, 20, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 16, 70))])
def test_lengths(form: str, length: int) -> None:
    assert compared(FORMS[form], length, batch=1, K=20, V=18) < 5e-6


@pytest.mark.parametrize("form", [f if f == "keys" else pytest.param(f, marks=pytest.mark.slow) for f in FORMS])
def test_packed(form: str) -> None:
    """Sequences of one token, none, and more than a chunk."""
    assert compared(FORMS[form], 0, ends=[0, 1, 17], K=16, V=4) < 5e-6


@pytest.mark.slow
@pytest.mark.parametrize("keys", [1, 16, 33, 64, 130])
def test_sizes(keys: int) -> None:
    """Chunks of 16 and 32 tokens, keys of one block and of several, and more values than a program has."""
    for form in ("one", "keys"):
        assert compared(FORMS[form], 40, K=keys, V=70) < 1e-5


@settings(
    max_examples=2,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(cells(), st.sampled_from((1, 2, 17)), st.integers(0, 3))
def test_random_cells(text: str, length: int, seed: int) -> None:
    assume(SOLVED in load(text).C(backend="triton").plan["S"])
    assert compared(text, length, batch=1, seed=seed, K=16, V=8) < 5e-6


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(cells(), st.sampled_from((0, 1, 2, 15, 33, 64, 70)), st.integers(0, 99), st.sampled_from((5, 16, 40)))
def test_many_random_cells(text: str, length: int, seed: int, keys: int) -> None:
    assume(SOLVED in load(text).C(backend="triton").plan["S"])
    assert compared(text, length, seed=seed, K=keys, V=8) < 1e-5


@pytest.mark.parametrize(
    ("form", "dtype", "most"),
    [("one", torch.bfloat16, 1e-2), pytest.param("keys", torch.float16, 2e-3, marks=pytest.mark.slow)],
)
def test_sixteen_bits(form: str, dtype: torch.dtype, most: float) -> None:
    """float16 has products of float32 operands: only what comes in and goes out is rounded. bfloat16 has its own."""
    assert compared(FORMS[form], 20, batch=1, dtype=dtype, K=32, V=8) < most


@pytest.mark.parametrize("form", ["one", pytest.param("keys", marks=pytest.mark.slow)])
@pytest.mark.parametrize("strong", [1e-9, *(pytest.param(x, marks=pytest.mark.slow) for x in (1e-30, 0.0))])
def test_gradients_of_strong_decays_beside_weak_ones(form: str, strong: float) -> None:
    """Each by itself, in units of what its neighbours have: nothing cancels."""
    text = FORMS[form]
    ours, stepped = build(text, backend="triton", K=16, V=8), Interpreted(text, K=16, V=8)
    inputs = inputs_of(text, stepped, 1, 24)
    index = 8 if form == "one" else 9
    with torch.no_grad():
        rare = torch.rand(inputs[index].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        inputs[index].copy_(torch.where(rare < 0.3, strong, 1 - 1e-3 * rare).float().double())
    grads: list[Tensor] = []
    for each, dtype in ((ours, torch.float32), (stepped, torch.float64)):
        xs = [x if x.dtype == torch.bool else x.detach().float().to(dtype).requires_grad_() for x in inputs]
        total = torch.cat([y.flatten() for y in each(*xs)[0]]).square().sum()
        grads.append(torch.autograd.grad(total, xs[index])[0].double())
    got, want = grads
    assert ((got - want).abs() <= 1e-4 * want.abs() + 1e-4).all()


@pytest.mark.parametrize("form", ["keys", "none"])
def test_opcheck(form: str) -> None:
    opchecked(FORMS[form], K=16, V=8)


MUTANTS = {
    "substitution": ("inverse += tl.where(now, tl.sum(steps", "inverse += tl.where(now, 0.0 * tl.sum(steps"),
    "rows of blocks": ("right = tl.dot(far, tl.reshape(whole", "right = tl.dot(0.0 * far, tl.reshape(whole"),
    "a correction's write": ("_tl_add_dot(state, tl.trans(u_out), c,", "_tl_add_dot(state, tl.trans(u_out), 0.0 * c,"),
    "its gradient": ("_tl_add_dot(d_state, tl.trans(w_in), flow,", "_tl_add_dot(d_state, tl.trans(w_in), 0.0 * flow,"),
    "of the system": ("d_early, tl.trans(early), OPERAND", "0.0 * d_early, tl.trans(early), OPERAND"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_disagree(name: str) -> None:
    whole, broken = MUTANTS[name]
    form = "one"
    code = generate(FORMS[form])
    assert whole in code
    module = load_module(code.replace(whole, broken), "test.rnn")
    assert not compared(FORMS[form], 24, batch=1, module=module, K=32, V=8) < 1e-3
