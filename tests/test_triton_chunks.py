"""Matrix states in chunks by kernels, under Triton's interpreter: random cells, strong decays, packed sequences.

Run with `TRITON_INTERPRET=1 pytest -m triton`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 from the start of the process", allow_module_level=True)

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rnnc.loading import load_module
from rnnc.pipeline import compile_source
from rnnc.plan import Plan, Scan
from rnnc.source import Source
from tests.fused import unexplained
from tests.interpreted import install
from tests.modules import Interpreted, as_tuple, build, checked, generate, load, some_state, with_gradients
from tests.test_chunks import CHAINED, MANY, cell, cells, inputs_of

install()
pytestmark = [pytest.mark.triton, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

BY_ONE = cell("s * S[t-1] + k * (v - w)", "sum[K](q * S[t]); sum[K](p * S[t-1])", "S[V, H, K] = 0.5")
BY_KEY = cell("g * S[t-1] + k * (v - w)", "sum[K](q * S[t]); sum[K](p * S[t-1])", "S[V, H, K] = 0.5")
ALONG_VALUES = cell("r * S[t-1] + k * (v - w)", "sum[K](q * S[t]); sum[K](p * S[t-1])", "S[V, H, K] = 0.5")
FREE = cell("S[t-1] + k * (v - w)", "sum[K](p * S[t])")
NORMALISED = """cell C
dim H = 2, K = 3, V = 4
input q[H, K], k[H, K], v[H, V], s[H] in [0, 1]
state S[H, K, V]
state n[H, K]
S[t] = s * S[t-1] + k * v
n[t] = s * n[t-1] + k
output sum[K](q * S[t]) / max(abs(sum[K](q * n[t])), 1)
"""
FORMS = {"one": BY_ONE, "keys": BY_KEY, "values": ALONG_VALUES, "none": FREE, "normalised": NORMALISED}
forms = pytest.mark.parametrize("form", FORMS)


def _plan(text: str) -> Plan:
    (made,) = compile_source(Source("test.rnn", text))
    assert made.plan is not None
    return made.plan


def apart(got: list[Tensor], want: list[Tensor]) -> float:
    """The largest distance, in parts of what is wanted; of NaN it is NaN, which is below nothing."""
    assert [x.shape for x in got] == [x.shape for x in want]
    pairs = [(x.double(), y.double()) for x, y in zip(got, want, strict=True) if y.numel()]
    return (
        torch.stack([torch.zeros(()).double(), *((x - y).norm() / y.norm().clamp_min(1e-3) for x, y in pairs)])
        .max()
        .item()
    )


def computed(
    text: str,
    length: int,
    *,
    batch: int = 2,
    seed: int = 0,
    segments: int = 1,
    ends: list[int] | None = None,
    dtype: torch.dtype = torch.float32,
    module: Any = None,
    **sizes: int,
) -> tuple[list[Tensor], Callable[[], list[Tensor]]]:
    """Outputs, final states and all gradients, by the kernels and, when called, by the interpreter in float64."""
    made: Any = module or load(text)
    before, made._segments = getattr(made, "_segments", None), lambda *_: segments
    # As on a GPU: `install` makes the interpreter multiply bfloat16 numbers.
    made._multiplied_dtype = lambda low: low
    torch.manual_seed(seed)
    ours = made.C(backend="triton", **sizes)
    stepped = Interpreted(text, **sizes)
    stepped.inner.load_state_dict({n: x.double() for n, x in ours.state_dict().items()})
    lead = (batch, length) if ends is None else (1, ends[-1])
    inputs = [
        x.detach() if x.dtype == torch.bool else x.detach().to(dtype)
        for x in inputs_of(text, stepped, *lead, seed=seed)
    ]
    state = [x.detach().float() for x in some_state(ours, batch if ends is None else len(ends) - 1)]
    cu_seqlens = None if ends is None else torch.tensor(ends)

    def run(each: Any, kind: torch.dtype | None) -> list[Tensor]:
        xs = [x if x.dtype == torch.bool else x.detach().to(kind or x.dtype).requires_grad_() for x in inputs]
        start = type(each.initial_state(1))(*(x.detach().to(kind or x.dtype).requires_grad_() for x in state))
        return with_gradients(each, each(*xs, state=start, cu_seqlens=cu_seqlens), *xs, *start)

    try:
        return run(ours, None), lambda: run(stepped, torch.float64)
    finally:
        made._segments = before


def compared(text: str, length: int, **options: Any) -> float:
    """How far outputs, final states and all gradients are from the interpreter's in float64."""
    got, exact = computed(text, length, **options)
    return apart(got, exact())


def too_far(text: str, length: int, most: float = 1e-5, **options: Any) -> list[str]:
    """What roundings do not explain."""
    return unexplained(*computed(text, length, **options), most)


@forms
def test_the_kernels_are_used(form: str) -> None:
    assert "tensor cores" in load(FORMS[form]).C(backend="triton").plan["S"]


@forms
@pytest.mark.parametrize(
    ("length", "segments"),
    [(0, 1), (1, 1), (35, 2), *(pytest.param(*x, marks=pytest.mark.slow) for x in ((63, 1), (65, 2), (130, 3)))],
)
def test_lengths_and_segments(form: str, length: int, segments: int) -> None:
    assert compared(FORMS[form], length, segments=segments) < 2e-6


@forms
def test_packed(form: str) -> None:
    """Sequences of one token, none, and more than a chunk, in segments."""
    assert compared(FORMS[form], 0, ends=[0, 1, 1, 34, 35], segments=2) < 2e-6


@pytest.mark.slow
@forms
def test_long_packed(form: str) -> None:
    assert compared(FORMS[form], 0, ends=[0, 1, 1, 34, 35, 120]) < 2e-6


@settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(cells(), st.sampled_from((1, 2, 33)), st.integers(1, 3), st.integers(0, 3))
def test_random_cells(text: str, length: int, segments: int, seed: int) -> None:
    assert compared(text, length, seed=seed, segments=segments) < 2e-6


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cells(), st.sampled_from((0, 1, 2, 15, 33, 64, 70, 130)), st.integers(1, 3), st.integers(0, 99))
def test_many_random_cells(text: str, length: int, segments: int, seed: int) -> None:
    assert too_far(text, length, 2e-6, seed=seed, segments=segments) == []


READ_TWICE = "sum[K](q * S[t]); sum[K](p * S[t-1])"
SEVERAL = {
    "one": cell("s * S[t-1] + k * v - p * w", READ_TWICE, "S[V, H, K] = 0.5"),
    "keys": cell("g * S[t-1] + d * k * v - p * w", READ_TWICE),
    "values": cell("r * S[t-1] + k * v - λ * tanh(v) + p * w", READ_TWICE),
    "none, before": cell("S[t-1] + k * v - p * w", "sum[K](k * S[t-1])"),
    "chosen": cell("where(m, g * S[t-1] + k * v - p * w, S[t-1])"),
    "normalised": NORMALISED.replace("k * v\n", "k * v - tanh(q) * sigmoid(v)\n").replace("+ k\n", "+ k - tanh(q)\n"),
}


@pytest.mark.parametrize(
    "form", [pytest.param(x, marks=() if x == "normalised" else pytest.mark.slow) for x in SEVERAL]
)
def test_several_writes_are_as_many_tokens(form: str) -> None:
    """Before and after all of them; packed, and in segments."""
    text, module = SEVERAL[form], load(SEVERAL[form])
    assert "tensor cores" in module.C(backend="triton").plan["S"]
    (step,) = (s for s in _plan(text).steps if isinstance(s, Scan) and s.stream.name == "S")
    assert step.chunks is not None and len(step.chunks.writes) == (3 if form == "values" else 2)
    assert compared(text, 21, segments=2, module=module) < 2e-6
    assert compared(text, 0, ends=[0, 1, 1, 18, 20], segments=2, module=module) < 2e-6


@pytest.mark.slow
def test_several_dims_of_each_part_and_chained_states() -> None:
    assert compared(MANY, 70, segments=2) < 2e-6
    chained = CHAINED.replace("FIRST", "R[H, M, K]").replace("SECOND", "S[H, M, V]")
    assert compared(chained, 70, segments=2) < 2e-6


SIXTEEN = {"float16": (torch.float16, 1e-3), "bfloat16": (torch.bfloat16, 1e-2)}


@pytest.mark.parametrize(
    ("form", "dtype", "most"),
    [
        pytest.param(form, *SIXTEEN[name], marks=[] if (form, name) in quick else pytest.mark.slow, id=f"{form} {name}")
        for quick in [(("one", "bfloat16"), ("one", "float16"))]
        for form in ("one", "keys", "values")
        for name in SIXTEEN
    ],
)
def test_sixteen_bits(form: str, dtype: torch.dtype, most: float) -> None:
    """float16 has products of float32 operands: only what comes in and goes out is rounded. bfloat16 has its own."""
    assert compared(FORMS[form], 70, batch=1, dtype=dtype) < most


def opchecked(text: str, **sizes: int) -> None:
    """PyTorch's checks of the operator that computes S, as it is called."""
    cell = load(text).C(backend="triton", **sizes)
    inputs = [x if x.dtype == torch.bool else x.detach().float() for x in inputs_of(text, cell, 1, 5)]
    functions = type(cell)._fused.__globals__
    name = next(n for n in functions if n.endswith("_S_chunks"))
    calls: list[tuple[Any, ...]] = []
    call = functions[name]
    functions[name] = lambda *args: calls.append(args) or call(*args)
    try:
        cell(*inputs)
    finally:
        functions[name] = call
    (args,) = calls
    for keep in (False, True):
        given = [a.detach().requires_grad_(keep) if isinstance(a, Tensor) else a for a in args]
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(call.operator, (*given[:-2], keep, given[-1]), test_utils=checks)


@pytest.mark.parametrize("form", [*FORMS, "entrywise"])
def test_opcheck(form: str) -> None:
    opchecked(OTHERS[form])


def exact(text: str) -> Any:
    """The module with products of float32 operands as they are, not of their TF32 parts."""
    code = generate(text)
    for there, then in (
        ("_tl_tf32(x), _tl_tf32(y)", "x, y"),
        ('total, input_precision="tf32")', 'total, input_precision="ieee")'),
    ):
        assert there in code
        code = code.replace(there, then)
    return load_module(code, "exact.rnn")


STRONG = """cell C
dim H = 2, K = 3, V = 4
input q[H, K], p[H, K], k[H, K], v[H, V], a[FORM] in [-1, 1]
state S[H, K, V]
S[t] = a * S[t-1] + k * v
output sum[K](q * S[t])
output sum[K](p * S[t-1])
"""


@pytest.mark.parametrize("form", ["H", "H, K", "H, V"])
@pytest.mark.parametrize("strong", [1e-9, pytest.param(1e-30, marks=pytest.mark.slow), 0.0])
def test_gradients_of_strong_decays_beside_weak_ones(form: str, strong: float) -> None:
    """Each by itself: nothing cancels. With TF32 parts, but for a rounding of the largest of its token."""
    text = STRONG.replace("FORM", form)
    ours, stepped = build(text, backend="triton"), Interpreted(text)
    whole = exact(text).C(backend="triton")
    inputs = inputs_of(text, stepped, 1, 40)
    with torch.no_grad():
        rare = torch.rand(inputs[4].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        inputs[4].copy_(torch.where(rare < 0.3, strong, 1 - 1e-3 * rare).float().double())
    grads: list[Tensor] = []
    for each, dtype in ((whole, torch.float32), (ours, torch.float32), (stepped, torch.float64)):
        xs = [x.detach().float().to(dtype).requires_grad_() for x in inputs]
        total = torch.cat([y.flatten() for y in each(*xs)[0]]).square().sum()
        grads.append(torch.autograd.grad(total, xs[4])[0].double())
    got, parts, want = grads
    assert ((got - want).abs() <= 1e-5 * want.abs() + 1e-5).all()
    largest = want.flatten(2).abs().amax(2).reshape(*want.shape[:2], *[1] * (want.dim() - 2))
    assert ((parts - want).abs() <= 1e-5 * want.abs() + torch.finfo(torch.float32).eps * largest).all()


BOUNDED = """cell C
dim H = 1, K = 2, V = 3
input q[H, K], p[H, K], k[H, K], v[H, V], e[FORM] in [0, 1]
state S[H, K, V]
a = LEAST + (1 - LEAST) * e
S[t] = a * S[t-1] + k * v
output sum[K](q * S[t])
output sum[K](p * S[t-1])
"""


def bounded(form: str, least: float) -> str:
    return BOUNDED.replace("FORM", form).replace("LEAST", str(least))


@pytest.mark.parametrize(
    ("form", "least"),
    [
        ("H, K", 0.006),
        ("H, V", 0.5),
        *(pytest.param(*x, marks=pytest.mark.slow) for x in (("H, K", 0.5), ("H, V", 0.1))),
    ],
)
def test_tokens_read_in_one_product(form: str, least: float) -> None:
    """Whole chunks, or blocks of them that are joined by halves."""
    assert compared(bounded(form, least), 40, batch=1, segments=2) < 2e-6
    assert compared(bounded(form, least), 0, ends=[0, 1, 1, 34, 35]) < 2e-6


def test_tokens_of_low_rank_transitions_read_in_one_product() -> None:
    text = BOUNDED.replace("FORM", "H, K").replace("LEAST", "0.5").replace("K = 2, V = 3", "K = 32, V = 16")
    text = text.replace("k * v", "k / 6 * (v - sum[K](k / 6 * S[t-1]))")
    module: Any = load(text)
    module._segments = None
    assert "solved, on tensor cores" in module.C(backend="triton").plan["S"]
    assert compared(text, 40, batch=1, module=module) < 2e-6


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(("H, K", "H, V")),
    st.floats(0.001, 0.999).map(lambda x: round(x, 4)),
    st.sampled_from((1, 2, 15, 33, 64, 70)),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_many_bounds(form: str, least: float, length: int, segments: int, seed: int) -> None:
    assert compared(bounded(form, least), length, seed=seed, segments=segments) < 2e-6


def at_the_edge(module: Any, form: str, least: float, small: float = 2.0**-30) -> float:
    """How far gradients, of small queries and small gradients, are where all factors are the least possible, and chunks
    have 64 tokens; the largest distance of any, in parts of the largest of its tensor."""
    whole, module._chunk = module._chunk, lambda *args: whole(*args)._replace(tokens=64)
    found: list[list[Tensor]] = []
    text = bounded(form, least)
    ours, stepped = module.C(backend="triton"), Interpreted(text)
    inputs = [x.detach() * s for x, s in zip(inputs_of(text, stepped, 1, 70), (small, small, 1, 1, 0), strict=True)]
    try:
        for each, dtype in ((ours, torch.float32), (stepped, torch.float64)):
            xs = [x.to(dtype).requires_grad_() for x in inputs]
            total = sum((y * small).sum() for y in each(*xs)[0])
            assert isinstance(total, Tensor)
            found.append([x.double() for x in torch.autograd.grad(total, xs)])
    finally:
        module._chunk = whole
    got, want = found
    return max(((x - y).abs().max() / y.abs().max()).item() for x, y in zip(got, want, strict=True))


@pytest.mark.parametrize("form", ["H, K", "H, V"])
def test_a_factor_below_its_declared_range_is_no_wrong_number(form: str) -> None:
    """What its inverse takes out of float32's range is NaN; what was read before it is right."""
    text = bounded(form, 0.5)
    ours, stepped = build(text, backend="triton"), Interpreted(text)
    inputs = [x if x.dtype == torch.bool else x.detach() for x in inputs_of(text, stepped, 1, 32)]
    place = next(i for i, x in enumerate(checked(text).inputs) if x.region is not None)
    inputs[place].clamp_(0, 1)
    inputs[place][:, 10:] = -0.94  # a factor of 0.03
    got = as_tuple(ours(*(x if x.dtype == torch.bool else x.float() for x in inputs))[0])
    for x, y in zip(got, as_tuple(stepped(*inputs)[0]), strict=True):
        assert x[:, 12:].isnan().any()
        assert ((x - y).abs() <= 1e-5 * y.abs().max()).logical_or(x.isnan()).all()


@pytest.mark.parametrize("form", ["H, K", "H, V"])
def test_small_gradients_of_the_strongest_decays(form: str) -> None:
    assert at_the_edge(load(bounded(form, 0.274)), form, 0.274) < 1e-5


def test_what_the_rules_for_blocks_keep_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more of float32's range, small numbers are lost; a factor's gradient as a difference of sums cancels."""
    monkeypatch.setattr("rnnc.together.BITS", 120)
    code = generate(bounded("H, K", 0.08))
    assert re.search(r'"keys",\s+64,', code)
    assert not at_the_edge(load_module(code, "test.rnn"), "H, K", 0.08) < 1e-3
    monkeypatch.undo()
    code, rule = generate(bounded("H, K", 0.006)), "learned and together < 64"
    assert rule in code
    assert at_the_edge(load_module(code, "test.rnn"), "H, K", 0.006) < 1e-5
    assert not at_the_edge(load_module(code.replace(rule, "False"), "test.rnn"), "H, K", 0.006) < 1e-5


ENTRYWISE = """cell C
dim H = 1, K = 2, V = 3
const c in [0, 1] = 0.25
input x[H, K], y[H, K], k[H, K], v[H, V]
param b[H, K] = uniform(-1, 1)
param d[K] = uniform(-1, 1)
decay a = FACTOR
state S[H, K, V]
S[t] = a * S[t-1] + (KEY) * v
output sum[K](QUERY * S[LAG])
"""
FACTORS = (
    "c + (1 - c) * sigmoid(x)",
    "exp(-softplus(x) / 16)",
    "min(exp(-exp(-x)), 1 - c)",
    "tanh(x + b) ** 2",
    "exp(-softplus(d + x))",
)
KEYS = ("1 - a", "k", "silu(k) * K ** -0.5", "max(k, c)", "where(k > 0, k + 1, exp(k))")
QUERIES = ("y", "y * K ** -0.5", "exp(min(y, 1)) / c", "tanh(k)", "square(relu(y))")


def entrywise(factor: str, key: str, query: str, lag: str) -> str:
    return ENTRYWISE.replace("FACTOR", factor).replace("KEY", key).replace("QUERY", query).replace("LAG", lag)


GATED = entrywise(FACTORS[0], KEYS[0], QUERIES[1], "t")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(GATED, id="shared source"),
        pytest.param(entrywise(FACTORS[2], KEYS[3], QUERIES[3], "t-1"), id="branches", marks=pytest.mark.slow),
        pytest.param(entrywise(FACTORS[4], KEYS[1], QUERIES[0], "t"), id="an offset"),
    ],
)
def test_what_kernels_make_themselves(text: str) -> None:
    """Gates, feature maps and scales, and their gradients."""
    fused = generate(text).split("def _fused(")[-1]
    assert all(f"make_{x}=" in fused for x in ("a" if "+ x" in text else "aqk"))
    assert ("offset=" in fused) == ("+ x" in text) and "(x" not in fused.split("_by_kernels(")[0]
    assert compared(text, 40, batch=1, segments=2) < 2e-6
    assert compared(text, 0, ends=[0, 1, 1, 34]) < 2e-6
    assert compared(text, 34, batch=1, dtype=torch.float16) < 1e-3


def test_what_another_state_makes() -> None:
    """A factor of another state's value, which that state's kernel makes and may keep to itself."""
    text = entrywise("sigmoid(m[t])", "k", QUERIES[1], "t").replace(
        "decay", "state m[H, K]\nm[t] = 0.5 * m[t-1] + x\ndecay"
    )
    fused = generate(text).split("def _fused(")[-1]
    assert "make_a=" not in fused and "make_q=" in fused
    assert compared(text, 40, batch=1) < 2e-6


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(FACTORS),
    st.sampled_from(KEYS),
    st.sampled_from(QUERIES),
    st.sampled_from(("t", "t-1")),
    st.integers(1, 70),
    st.integers(0, 99),
)
def test_many_made_operands(factor: str, key: str, query: str, lag: str, length: int, seed: int) -> None:
    assert compared(entrywise(factor, key, query, lag), length, seed=seed) < 2e-6


def test_pytorch_makes_them_where_kernels_do_not() -> None:
    text = OTHERS["entrywise"]
    module: Any = load(text)
    ours, stepped = module.C(backend="triton", dtype=torch.float64), Interpreted(text)
    stepped.inner.load_state_dict(ours.state_dict())
    inputs = inputs_of(text, stepped, 2, 9)
    results = [with_gradients(each, each(*inputs), *inputs) for each in (ours, stepped)]
    assert apart(*results) < 1e-12


MUTANTS = {
    "entrywise": ("_C_S_d_q(q_source.to(tl.float32), d_q", "_C_S_d_q(q_source.to(tl.float32) + 1, d_q"),
    "bounded": ("size // 2 - 1 + LAG", "size // 2 - 1"),
    "one": (
        "steps = tl.where(row[:, None] > row[None, :] + 1, a_previous",
        "steps = tl.where(row[:, None] > row[None, :], a_previous",
    ),
    "keys": ("(half[None, :] == half[:, None] - 1)", "(half[None, :] == half[:, None])"),
    "values": ("entering * tl.cumprod(a, 0)", "entering"),
    "none": ("row[:, None] >= row[None, :] + LAG", "row[:, None] >= row[None, :]"),
    "normalised": ("segment_ptr + place * K * V", "segment_ptr + owner * K * V"),
}


OTHERS = FORMS | {"bounded": bounded("H, K", 0.5), "entrywise": entrywise(FACTORS[4], KEYS[2], QUERIES[2], "t")}


@pytest.mark.parametrize("form", MUTANTS)
def test_mutants_disagree(form: str) -> None:
    text = FREE.replace("S[t])", "S[t-1])") if form == "none" else OTHERS[form]
    whole, broken = MUTANTS[form]
    code = generate(text)
    assert whole in code
    module = load_module(code.replace(whole, broken), "test.rnn")
    assert not compared(text, 70, segments=3, module=module) < 1e-3


@pytest.mark.parametrize("form", ["keys", *(pytest.param(x, marks=pytest.mark.slow) for x in ("one", "entrywise"))])
def test_keys_in_blocks(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each a head of its own, with the same values; their reads are added."""
    module: Any = load(OTHERS[form])
    assert [module._key_blocks(n) for n in (128, 131, 200, 255, 256)] == [1, 1, 2, 3, 2]
    calls: list[int] = []
    monkeypatch.setattr(module, "_key_blocks", lambda keys: calls.append(keys) or 2)
    assert compared(OTHERS[form], 35, batch=1, segments=2, module=module, K=4) < 2e-6
    assert calls == [4]
