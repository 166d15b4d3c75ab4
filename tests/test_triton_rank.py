"""Low-rank transitions in chunks by kernels, under Triton's interpreter: random cells, strong decays, packed sequences.

Run with `TRITON_INTERPRET=1 pytest -m triton`.
"""

from __future__ import annotations

import os
from typing import Any

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
from tests.marks import some
from tests.modules import Interpreted, build, generate, load
from tests.test_chunks import inputs_of
from tests.test_lowrank import BY_KEY, MIXED, OVER, TITANS, UNMIXED, WRITTEN, cell, cells
from tests.test_triton_chunks import compared, exact, opchecked, too_far

install()
pytestmark = [pytest.mark.triton, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

NONE = cell("S[t-1] + b * n * (v - c)", "sum[K](p * S[t])")
UNWRITTEN = cell("s * (S[t-1] - b * n * c)", "sum[K](p * S[t-1])", "S[K, V, H] = 0.5")
FORMS = {"one": MIXED, "keys": BY_KEY, "none": NONE, "over": OVER, "unwritten": UNWRITTEN}
forms = pytest.mark.parametrize("form", FORMS)
SEVERAL = "S[t-1] - b * n * c - 0.2 * p * sum[K](l2norm[K](p) * S[t-1]){} + k * v - λ * w + p * v"
THREE = SEVERAL.format(" + 0.1 * λ * sum[K](k * S[t-1]) / K")
BOTH_READ = "sum[K](q * S[t]); sum[K](p * S[t-1])"
TOGETHER = {
    "one": cell(f"s * {THREE}", BOTH_READ),
    "keys": cell(f"g * {THREE}", BOTH_READ),
    "bounded": cell(f"(0.5 + 0.5 * sigmoid(p)) * {SEVERAL.format('')}", BOTH_READ),
    "no sums": UNMIXED,
    "none": cell(SEVERAL.format("").removesuffix(" - λ * w + p * v")),
    "rank": cell("s * S[t-1] - 0.1 * sum[R](ur * sum[K](kr * S[t-1])) / K"),
    "over": cell(
        f"sj * S[t-1] + bj * kj * (vj - c) / K - {SEVERAL.format('').partition(' - ')[2]}", BOTH_READ, over=" over J"
    ),
}
"""Several corrections in one map, or none: more writes than those, and fewer."""
ALONG_V = "S[t-1] - e * u * sum[V](u * S[t-1]) / (1 + sum[V](u * u))"
VALUES = {
    "one": cell(f"s * ({ALONG_V}) + k * v - p * w", BOTH_READ, "S[V, H, K] = 0.5"),
    "keys": cell(f"sigmoid(u) * ({ALONG_V}) + k * v", BOTH_READ),
    "bounded": cell(f"(0.5 + 0.5 * sigmoid(u)) * ({ALONG_V}) + k * v", BOTH_READ),
    "none": cell(f"{ALONG_V} + k * v"),
    "two": cell(f"sigmoid(u) * {ALONG_V} - 0.1 * v * sum[V](w * S[t-1]) / V + k * v", BOTH_READ),
}
"""Corrections along values, read along keys."""


@forms
def test_the_kernels_are_used(form: str) -> None:
    assert load(FORMS[form]).C(backend="triton").plan["S"] == f"triton: {SOLVED}"


def test_a_pair_of_states_is_pytorchs() -> None:
    """And says so."""
    assert not any(kernel.startswith("triton") for kernel in load(TITANS).C().plan.values())


QUICK = ("diagonal plus rank one",)


@pytest.mark.parametrize(
    "name",
    some(QUICK, WRITTEN),
)
def test_ways_of_writing(name: str) -> None:
    text = cell(WRITTEN[name][0], "sum[K](q * S[t]); sum[K](p * S[t-1])")
    assert load(text).C(backend="triton").plan["S"] == f"triton: {SOLVED}"
    # Where keys are not normalised states grow from token to token, and roundings with them.
    assert compared(text, 10, batch=1, K=8, V=8) < 1e-5


@pytest.mark.parametrize("form", some(("one", "over"), FORMS))
@pytest.mark.parametrize("length", [0, 20, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 16, 70))])
def test_lengths(form: str, length: int) -> None:
    assert compared(FORMS[form], length, batch=1, K=20, V=18) < 5e-6


@pytest.mark.parametrize("form", some(["one"], TOGETHER))
def test_corrections_that_read_the_same_state(form: str) -> None:
    """Over chunks whose last map is not whole, and packed."""
    text = TOGETHER[form]
    assert load(text).C(backend="triton").plan["S"] == f"triton: {SOLVED}"
    assert compared(text, 0, ends=[0, 1, 10], K=16, V=4) < 5e-6


@pytest.mark.slow
@pytest.mark.parametrize("form", TOGETHER)
@pytest.mark.parametrize("length", [0, 1, 16, 35, 70])
@pytest.mark.parametrize("keys", [5, 40])
def test_corrections_over_lengths_and_sizes(form: str, length: int, keys: int) -> None:
    assert compared(TOGETHER[form], length, K=keys, V=18) < 1e-5


@pytest.mark.slow
def test_more_corrections_than_a_chunk_has_tokens_are_pytorchs() -> None:
    text = TOGETHER["rank"]
    assert compared(text, 5, K=16, V=4, R=16) < 5e-6
    assert compared(text, 5, K=16, V=4, R=17) < 5e-6


@pytest.mark.parametrize("form", some(["one"], VALUES))
def test_reads_that_sum_over_what_is_not_mixed(form: str) -> None:
    text = VALUES[form]
    assert load(text).C(backend="triton").plan["S"] == f"triton: {SOLVED}"
    assert compared(text, 0, ends=[0, 1, 18], K=4, V=16) < 5e-6


@pytest.mark.slow
@pytest.mark.parametrize("form", VALUES)
@pytest.mark.parametrize("length", [0, 1, 16, 35, 70])
@pytest.mark.parametrize("values", [5, 40])
def test_values_over_lengths_and_sizes(form: str, length: int, values: int) -> None:
    assert compared(VALUES[form], length, K=18, V=values) < 1e-5


@pytest.mark.parametrize("form", some(["keys"], FORMS))
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
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(cells(), st.sampled_from((0, 1, 2, 15, 33, 64, 70)), st.integers(0, 99), st.sampled_from((5, 16, 40)))
def test_many_random_cells(text: str, length: int, seed: int, keys: int) -> None:
    assume(SOLVED in load(text).C(backend="triton").plan["S"])
    assert too_far(text, length, seed=seed, K=keys, V=8) == []


ONCE = "(0.9 * S[t-1] + b * n * (v - sum[K](n * 0.9 * S[t-1])))"
CANCELLING = cell(
    f"where(m, {ONCE} + b * n * (v - sum[K](n * {ONCE})) + k * w - (k - p) * w, S[t-1])",
    "sum[K](d * p * S[t-1]); sum[K](k * S[t]); sum[K](k * S[t-1])",
    "S[H, K, V] = 0.5",
)
"""A gradient of which roundings leave 4 digits, in PyTorch's chunks too."""


@pytest.mark.slow
def test_what_cancels_is_as_near_as_roundings_and_no_further() -> None:
    given: dict[str, Any] = {"batch": 1, "seed": 11, "K": 16, "V": 8}
    assert too_far(CANCELLING, 2, **given) == []
    code, whole = generate(CANCELLING), "d_k = d_k_out * until"
    assert whole in code
    for broken in ("d_k = 0.9999 * d_k_out * until", "d_k = float('nan') * d_k_out * until"):
        assert too_far(CANCELLING, 2, module=load_module(code.replace(whole, broken), "test.rnn"), **given)


@pytest.mark.parametrize(
    ("form", "dtype", "most"),
    [("one", torch.bfloat16, 1e-2), pytest.param("keys", torch.float16, 2e-3, marks=pytest.mark.slow)],
)
def test_sixteen_bits(form: str, dtype: torch.dtype, most: float) -> None:
    """float16 has products of float32 operands: only what comes in and goes out is rounded. bfloat16 has its own."""
    assert compared(FORMS[form], 20, batch=1, dtype=dtype, K=32, V=8) < most


OTHER_FORMS = {"several sums": TOGETHER["one"], "by column": VALUES["keys"]}


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("form", OTHER_FORMS)
def test_sixteen_bits_of_other_forms(form: str, dtype: torch.dtype, most: float) -> None:
    assert compared(OTHER_FORMS[form], 20, batch=1, dtype=dtype, K=32, V=32) < most


STRONG = {
    "one": FORMS["one"],
    "keys": FORMS["keys"],
    "several, one": TOGETHER["one"],
    "several, keys": TOGETHER["keys"],
    "by column": VALUES["one"],
}


@pytest.mark.parametrize("form", some(["one"], STRONG))
@pytest.mark.parametrize("strong", [1e-9, *(pytest.param(x, marks=pytest.mark.slow) for x in (1e-30, 0.0))])
def test_gradients_of_strong_decays_beside_weak_ones(form: str, strong: float) -> None:
    """Each by itself: nothing cancels. With TF32 parts, in units of the largest of its token."""
    text = STRONG[form]
    torch.manual_seed(0)
    ours, stepped = build(text, backend="triton", K=16, V=8), Interpreted(text, K=16, V=8)
    whole = exact(text).C(backend="triton", K=16, V=8)
    whole.load_state_dict(ours.state_dict())
    stepped.inner.load_state_dict({n: x.double() for n, x in ours.state_dict().items()})
    inputs = inputs_of(text, stepped, 1, 24)
    index = 9 if "keys" in form else 8
    with torch.no_grad():
        rare = torch.rand(inputs[index].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        inputs[index].copy_(torch.where(rare < 0.3, strong, 1 - 1e-3 * rare).float().double())
    grads: list[Tensor] = []
    for each, dtype in ((whole, torch.float32), (ours, torch.float32), (stepped, torch.float64)):
        xs = [x if x.dtype == torch.bool else x.detach().float().to(dtype).requires_grad_() for x in inputs]
        total = torch.cat([y.flatten() for y in each(*xs)[0]]).square().sum()
        grads.append(torch.autograd.grad(total, xs[index])[0].double())
    got, parts, want = grads
    assert ((got - want).abs() <= 1e-4 * want.abs() + 1e-4).all()
    largest = want.flatten(2).abs().amax(2).reshape(*want.shape[:2], *[1] * (want.dim() - 2))
    assert ((parts - want).abs() <= 1e-4 * want.abs() + 1e-6 * largest).all()


@pytest.mark.parametrize("form", ["keys", "none", *(pytest.param(f, marks=pytest.mark.slow) for f in OTHER_FORMS)])
def test_opcheck(form: str) -> None:
    opchecked({**FORMS, **OTHER_FORMS}[form], K=16, V=8)


MUTANTS = {
    "substitution": ("inverse += tl.where(now, tl.sum(steps", "inverse += tl.where(now, 0.0 * tl.sum(steps"),
    "rows of blocks": ("right = tl.dot(far, tl.reshape(whole", "right = tl.dot(0.0 * far, tl.reshape(whole"),
    "a correction's write": ("_tl_add_dot(state, tl.trans(u_out), c,", "_tl_add_dot(state, tl.trans(u_out), 0.0 * c,"),
    "its gradient": ("_tl_add_dot(d_state, tl.trans(w_in), flow,", "_tl_add_dot(d_state, tl.trans(w_in), 0.0 * flow,"),
    "of the system": ("d_early, tl.trans(early), OPERAND", "0.0 * d_early, tl.trans(early), OPERAND"),
}
OTHERS = {
    "one waits for another": ("one", "_tl_between(a_previous, (row >> GROUP))", "_tl_between(a_previous, row)"),
    "a factor of each": ("one", "(row >> GROUP << GROUP) * a_token", "row * a_token"),
    "one product waits": (
        "bounded",
        "block, place = row >> TOGETHER, row >> GROUP",
        "block, place = row >> TOGETHER, row",
    ),
    "what is read by column": ("by column", "of_u = _tl_add_dot(of_u, of_k,", "of_u = _tl_add_dot(of_u, 0.0 * of_k,"),
    "its decays": ("by column", "total += near * start", "total += near"),
    "its crossings": ("bounded", "reads = _tl_within_back(reads, row, 2**GROUP, False, True)", "pass"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_disagree(name: str) -> None:
    whole, broken = MUTANTS[name]
    form = "one"
    code = generate(FORMS[form])
    assert whole in code
    module = load_module(code.replace(whole, broken), "test.rnn")
    assert not compared(FORMS[form], 24, batch=1, module=module, K=32, V=8) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_mutants_disagree(name: str) -> None:
    form, whole, broken = OTHERS[name]
    text = VALUES["two"] if form == "by column" else TOGETHER[form]
    code = generate(text)
    assert whole in code
    module = load_module(code.replace(whole, broken), "test.rnn")
    assert not compared(text, 12, batch=1, module=module, K=16, V=16) < 1e-3
