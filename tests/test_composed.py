"""Groups whose step maps compose, in PyTorch: cells drawn from a grammar of each family and of none, long enough that
time is cut into segments; that what was composed is verified; sequences of any length."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rnnc import harness
from rnnc.closure import Affine, Block, Composable, Moebius, Sequential, Tropical, Variable
from rnnc.harness import PROPERTIES, Case, Property, Subject
from rnnc.loading import load_module
from rnnc.pipeline import compile_source
from rnnc.source import Source
from tests.modules import agree, checked, draw_for, generate, gradients, load, some_state, tensors, with_gradients
from tests.test_families import CELLS, cell
from tests.test_module_autograd import Calls, fresh

T = 130
NONE = {
    "tanh": cell("tanh(z * h[t-1] + x)"),
    "gated": cell("z * sin(h[t-1]) + (1 - z) * sigmoid(w * h[t-1])", "h[D] = 0.3"),
    "coupled": cell("tanh(g[t-1]) + 0.1 * x", "h[D], g[D]", "g[t] = sin(h[t] + z * g[t-1]) * z"),
    "far back": cell("tanh(h[t-1] - z * h[t-3]) + x", "h[D] = 0.5"),
    "read far back": cell("tanh(h[t-1]) + 0.1 * x * sum[N](U)") + "output h[t-4]\n",
    "constant": cell("max(0.9 * h[t-1], -1)", "h[D] = 3"),
    "five": cell(" + ".join(f"0.1 * z * h[t-{i}]" for i in (1, 2, 3, 5)) + " + x", "h[D] = 1"),
    "of another layout": """cell C
dim D = 3, E = 2
input x[D, E], z[E] in [0, 1]
state h[D, E], g[E, D]
h[t] = z * g[t-1] - 0.3 * h[t-1] + x
g[t] = 0.5 * h[t-1] + 0.1
output h[t]
""",
    "complex": """cell C
dim D = 3
input x[D]: complex, a[D] in [0, 1]
param λ[D]: complex = 0.6 + 0.3j
state h[D]: complex, g[D]: complex
h[t] = λ * h[t-1] + a * g[t-1] * 0.3 + x
g[t] = h[t] * 0.2j - g[t-1] * 0.5
output h[t]
output g[t-1]
""",
}
COMPOSE = ("five", "constant", "of another layout", "complex")
ALL = {**CELLS, **NONE}
every = pytest.mark.parametrize("name", ALL)


def build(module: ModuleType, **options: Any) -> Any:
    torch.manual_seed(1)
    return module.C(**{"dtype": torch.float64, **options})


def counted(module: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> list[None]:
    """An entry for each time that a function of a generated module is called."""
    calls: list[None] = []
    own = getattr(module, name, None)
    if own is not None:
        monkeypatch.setattr(module, name, lambda *args: calls.append(None) or own(*args))
    return calls


def same(got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    """Equal in float64, and NaN where that is: the slope of `exp(w) * h` at an infinite state."""
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, equal_nan=True)


# --- what is composed is what is stepped -----------------------------------------------------------------------------


@every
@pytest.mark.parametrize("length", [16, 17, 63, 64, T])
def test_values_and_gradients(name: str, length: int) -> None:
    module = load(ALL[name])
    ours, stepped = build(module), build(module, backend="reference")
    inputs = draw_for(checked(ALL[name]), ours, 2, length, requires_grad=True)
    state = some_state(ours, 2)
    want = with_gradients(stepped, stepped(*inputs, state=state), *inputs, *state)
    same(with_gradients(ours, ours(*inputs, state=state), *inputs, *state), want)


@every
def test_packed_sequences(name: str) -> None:
    module = load(ALL[name])
    ours, stepped = build(module), build(module, backend="reference")
    inputs = draw_for(checked(ALL[name]), ours, 1, T, requires_grad=True)
    ends, state = torch.tensor([0, 1, 9, 9, 30, 32, T]), some_state(ours, 6)
    want = with_gradients(stepped, stepped(*inputs, state=state, cu_seqlens=ends), *inputs, *state)
    same(with_gradients(ours, ours(*inputs, state=state, cu_seqlens=ends), *inputs, *state), want)


@every
@pytest.mark.parametrize("dtype, length", [(torch.float64, T), (torch.float32, 1000)])
def test_nothing_is_stepped_forwards_where_a_family_was_found_nor_backwards(
    name: str, dtype: torch.dtype, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Roundings of float32 over a thousand tokens, too, are no reason to."""
    module = load(ALL[name])
    forwards, backwards = (counted(module, monkeypatch, f) for f in ("_stepped", "_applied"))
    tokens = counted(module, monkeypatch, "_sweep_tokens")
    ours = build(module, dtype=dtype)
    inputs = draw_for(checked(ALL[name]), ours, 2, length, dtype=dtype, requires_grad=True)
    state = some_state(ours, 2)
    state = type(state)(*(s.detach().to(s.dtype if s.is_complex() else dtype).requires_grad_() for s in state))
    with_gradients(ours, ours(*inputs, state=state), *inputs, *state)
    assert not forwards and not backwards and not tokens
    (plan,) = [c.plan for c in compile_source(Source("test.rnn", ALL[name]))]
    assert plan is not None
    stepped = any(isinstance(s.closure, Sequential) for s in plan.steps)
    assert stepped == (name in NONE and name not in COMPOSE) and stepped != hasattr(module, "_composed")


def test_a_call_takes_as_many_operations_as_the_root_of_its_tokens() -> None:
    for name in ("kalman", "oscillator", "tanh"):
        ours = build(load(ALL[name]))
        counts: list[int] = []
        for length in (1024, 4096):
            inputs = draw_for(checked(ALL[name]), ours, 1, length, requires_grad=True)
            out = ours(*inputs)[0].sum() if name == "tanh" else None
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
                (ours(*inputs)[0].sum() if out is None else out).backward()
            counts.append(sum(e.count for e in found.key_averages() if e.key.startswith("aten::")))
        assert counts[1] < 2.5 * counts[0], (name, counts)


@every
def test_nan_stays_with_its_sequence(name: str) -> None:
    module = build(load(ALL[name]))
    inputs = draw_for(checked(ALL[name]), module, 1, T, requires_grad=True)
    ends, state = torch.tensor([0, 40, 80, T]), some_state(module, 3)
    clean = tensors(module(*inputs, cu_seqlens=ends, state=state))
    of_clean = gradients(clean, [*inputs, *state])
    with torch.no_grad():
        for x in inputs:
            if x.dtype != torch.bool:
                x[0, 44] = math.nan
    broken = tensors(module(*inputs, cu_seqlens=ends, state=state))
    pairs = zip([*broken, *gradients(broken, [*inputs, *state])], [*clean, *of_clean], strict=True)
    for got, want in pairs:
        if got.shape[0] == 1:
            parts = ((got[:, :40], want[:, :40]), (got[:, 80:], want[:, 80:]))
        else:
            parts = ((got[[0, 2]], want[[0, 2]]),)
        for a, b in parts:
            same([a], [b])


@pytest.mark.parametrize("name", ["oscillator", "kalman", "AR(3)", "clamp", "coupled", "complex", "logaddexp"])
def test_operators_are_sound(name: str) -> None:
    """Their derivatives by finite differences, their fake versions, no aliasing."""
    module = build(load(ALL[name]))
    inputs = draw_for(checked(ALL[name]), module, 1, 20, requires_grad=True)
    state = some_state(module, 1)

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors(module(*values[: len(inputs)], state=type(state)(*values[len(inputs) :]))))

    assert torch.autograd.gradcheck(run, (*inputs, *state), atol=1e-6)
    with Calls(load(ALL[name])._OPERATORS) as seen:
        with_gradients(module, module(*inputs, state=state), *inputs, *state)
    for operator, args in seen.calls.values():
        forward = not operator.name().split(".")[0].endswith("_backward")
        torch.library.opcheck(operator, tuple(fresh(a, forward) for a in args))


@pytest.mark.parametrize("name", ["oscillator", "kalman", "coupled"])
def test_it_compiles_as_a_whole(name: str) -> None:
    module = build(load(ALL[name]))
    inputs = draw_for(checked(ALL[name]), module, 2, 40, requires_grad=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    same(with_gradients(module, compiled(*inputs), *inputs), with_gradients(module, module(*inputs), *inputs))


def test_a_branch_that_is_not_taken_stops_what_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state without a value, and the gradient of it, end at the token that resets."""
    text = cell("where(done, 0.3, sigmoid(log(x) + h[t-1])) * 0.9")
    module = load(text)
    tokens = counted(module, monkeypatch, "_sweep_tokens")
    ours = build(module)
    inputs = draw_for(checked(text), ours, 1, T, requires_grad=True)
    by_name = dict(zip((i.name for i in checked(text).inputs), inputs, strict=True))
    with torch.no_grad():
        by_name["x"].abs_()[:, 70] = -1
        by_name["done"][:, :] = False
        by_name["done"][:, (60, 80)] = True
    out = ours(*inputs)[0]
    assert out.isnan().any(1).all() and out[:, 80:].isfinite().all()
    (grad,) = torch.autograd.grad(torch.where(out.isfinite(), out, 0.0).sum(), by_name["x"])
    assert grad[:, :60].isfinite().all() and grad[:, 81:].isfinite().all() and len(tokens) == 1


# --- what composing cannot give --------------------------------------------------------------------------------------

LOST = {
    # Products of a matrix that overflow on a state of zero.
    "unstable": (cell("20 * h[t-1] - 3 * h[t-2] + x"), {"x": 0.0}, 0.0),
    # A fraction whose product has rank one at the fixed point that repels.
    "repelling": (cell("(30 * h[t-1] + x) / (29 * h[t-1] + 1)"), {"x": 0.0}, 0.0),
}


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("verified", [True, False])
def test_verification_is_needed(name: str, verified: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    text, values, wanted = LOST[name]
    module = load(text)
    stepped = counted(module, monkeypatch, "_stepped")
    ours = build(module, dtype=torch.float32)
    inputs = draw_for(checked(text), ours, 1, 2000, dtype=torch.float32)
    inputs = [
        torch.full_like(x, values[i.name]) if i.name in values else x
        for x, i in zip(inputs, checked(text).inputs, strict=True)
    ]
    if not verified:
        monkeypatch.setattr(module, "_true", lambda _: True)
    (out, _) = ours(*inputs)
    assert len(stepped) == verified
    assert bool((out == wanted).all()) == verified


def exchanged(text: str, function: str) -> Any:
    """The module of a cell in which one function takes the earlier map for the later one."""
    code = generate(text)
    head = re.search(rf"def (_C_\w+_{function})\(([^)]*)\)", code)
    assert head is not None
    names = [n.strip() for n in head.group(2).split(",") if n.strip()]
    half = len(names) // 2
    wrong = code.replace(head.group(), f"def {head.group(1)}({', '.join(names[half:] + names[:half])})")
    return load_module(wrong, "wrong.rnn")


@pytest.mark.parametrize(
    "name", ["kalman", "energy", "stabiliser", "clamp", "oscillator", "AR(3)", "logaddexp", "relu", "inverse square"]
)
def test_a_wrong_composition_is_found_and_stepped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later and earlier exchanged: values and gradients are right all the same, by steps."""
    module, right = exchanged(CELLS[name], "compose"), load(CELLS[name])
    stepped = counted(module, monkeypatch, "_stepped")
    ours, reference = build(module), build(right, backend="reference")
    inputs = draw_for(checked(CELLS[name]), ours, 2, T, requires_grad=True)
    want = with_gradients(reference, reference(*inputs), *inputs)
    agree(with_gradients(ours, ours(*inputs), *inputs), want)
    assert len(stepped) == 1


@pytest.mark.parametrize("name", ["kalman", "oscillator", "coupled"])
def test_a_wrong_composition_backwards_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, right = exchanged(ALL[name], "compose_back"), load(ALL[name])
    applied = counted(module, monkeypatch, "_applied")
    ours, reference = build(module), build(right, backend="reference")
    inputs = draw_for(checked(ALL[name]), ours, 2, T, requires_grad=True)
    agree(with_gradients(ours, ours(*inputs), *inputs), with_gradients(reference, reference(*inputs), *inputs))
    assert len(applied) == 1


# --- long ------------------------------------------------------------------------------------------------------------

LONG = 100_000


def test_a_hundred_thousand_tokens_of_a_filter() -> None:
    text = CELLS["kalman"]
    ours = build(load(text), dtype=torch.float32)
    inputs = draw_for(checked(text), ours, 1, LONG, dtype=torch.float32, requires_grad=True)
    out = ours(*inputs)[0]
    out.sum().backward()
    by_name = dict(zip((i.name for i in checked(text).inputs), inputs, strict=True))
    q, r = (by_name[n].detach().double() for n in "qr")
    p, wanted = torch.ones(1, 3, dtype=torch.float64), []
    for q_t, r_t in zip(q.unbind(1), r.unbind(1), strict=True):
        p = (p + q_t) * r_t / (p + q_t + r_t)
        wanted.append(p)
    torch.testing.assert_close(out.double(), torch.stack(wanted, 1), rtol=1e-5, atol=1e-6)
    assert all(x.grad is None or x.grad.isfinite().all() for x in inputs)


@pytest.mark.parametrize("name", ["running maximum", "logaddexp"])
def test_a_hundred_thousand_tokens_from_minus_infinity(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = CELLS[name]
    module = load(text)
    stepped = counted(module, monkeypatch, "_stepped")
    ours = build(module, dtype=torch.float32)
    inputs = draw_for(checked(text), ours, 2, LONG, dtype=torch.float32, requires_grad=True)
    by_name = dict(zip((i.name for i in checked(text).inputs), inputs, strict=True))
    with torch.no_grad():
        by_name["x"][0, :50] = -math.inf
        by_name["w"].zero_()
    x = by_name["x"]
    out = ours(*inputs)[0]
    wanted = x.double().cummax(1)[0] if name == "running maximum" else x.double().logcumsumexp(1)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-6)
    (grad,) = torch.autograd.grad(torch.where(out.isfinite(), out, 0.0).sum() / LONG, [x])
    assert grad.isfinite().all() and not stepped
    torch.testing.assert_close(grad.sum().item(), (2 * LONG - 50) / LONG * 3, rtol=1e-3, atol=0.0)


# --- drawn at random -------------------------------------------------------------------------------------------------


def long(prop: Property) -> Property:
    """The same of sequences that are cut into segments."""
    pieces = {"splits": (50, 0, 1, 79), "packed sequences": (1, 45, 0, 84), "stepping": (20,)}.get(prop.name, (T,))

    def vary(pick: Any, case: Case) -> Case:
        return replace(prop.vary(pick, case), pieces=pieces, batch=1 if prop.name == "packed sequences" else 2)

    return replace(prop, vary=vary)


def agrees(text: str, family: type[Any] | tuple[type[Any], ...]) -> None:
    (made,) = compile_source(Source("random.rnn", text))
    assert made.cell is not None and made.plan is not None
    assert all(isinstance(s.closure, family) for s in made.plan.steps if "h" in s.closure.group.states), text
    subject = Subject(made.cell, load(text).C)
    for run in harness.properties(subject, 1):
        result = run()
        assert result.failure is None, f"{result.name}: {result.failure}\n{text}"


@pytest.fixture(autouse=True)
def long_properties(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "PROPERTIES", tuple(long(p) for p in PROPERTIES))


def some(count: int, new: bool = False) -> settings:
    slow = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture]
    phases = [Phase.explicit, Phase.generate]
    return settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=slow,
        phases=phases,
        derandomize=not new,
        database=None,
    )


def nested(start: str, forms: list[str], leaves: int = 3) -> st.SearchStrategy[str]:
    def put(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of([st.builds(lambda e, f=form: f.replace("@", e), inner) for form in forms])

    return st.recursive(st.just(start), put, max_leaves=leaves).filter(lambda e: e != start)


FRACTIONS = ["(@) * r / (@ + r)", "(@ + q)", "z * (@)", "1 / (1 / (@) + r)", "(@) / (1 + r * (@))", "(@ + q) / (@ + 1)"]
CHANGES = [
    "sqrt(z * (@) ** 2 + q)",
    "(z * (@) ** 3 + q) ** (1 / 3)",
    "log(z * exp(@) + r)",
    "logaddexp(@ - 1, x)",
    "exp(z * log(@) + 0.1 * x)",
    "rsqrt(z / (@) ** 2 + r)",
]
FACTOR = st.sampled_from(["0.3", "-0.2", "0.4 * z", "-0.3 * sin(w)", "0.2 * cos(x)", "0"])
OTHER = ["tanh(@ + x)", "z * sin(@)", "sigmoid(@) * w", "max(@, 0.1 * x) * (@)", "(@) / (1 + (@) ** 2)", "abs(@) - z"]


ORDERED = [
    "(@ + x)",
    "max(@, w)",
    "min(x, @)",
    "relu(@)",
    "clamp(@, -1, 1)",
    "z * (@)",
    "(@ - 0.1)",
    "where(done, x, @)",
]


def block(a: str, b: str, c: str, d: str, e: str) -> str:
    h = f"0.5 * h[t-1] + {a} * g[t-1] + {b} * h[t-2] + x"
    return cell(h, "h[D] = 1, g[D]", f"g[t] = {c} * h[t] + {d} * g[t-1] + {e} * h[t-1] + 0.1 * h[t-3]")


def two(update: str, other: str) -> str:
    return cell(f"0.5 * {update} + 0.2 * g[t-1]", "h[D] = 0.4, g[D]", f"g[t] = {other} + 0.1 * g[t-2]")


TROPICAL = nested("h[t-1]", ORDERED, 4).map(lambda e: cell(e, "h[D] = -1"))
CHANGED = st.sampled_from(CHANGES).map(lambda e: cell(e.replace("@", "h[t-1]"), "h[D] = 0.7"))
MOEBIUS = nested("h[t-1]", FRACTIONS).map(lambda e: cell(e, "h[D] = 1"))
BLOCKS = st.builds(block, *(FACTOR for _ in range(5)))
ALONE = nested("h[t-1]", OTHER, 2).map(lambda e: cell(e, "h[D] = 0.4"))
COUPLED = st.builds(two, nested("h[t-1]", OTHER, 2), nested("h[t]", OTHER, 2))


@some(6)
@given(TROPICAL)
def test_tropical_cells(text: str) -> None:
    agrees(text, (Tropical, Affine))


@some(6)
@given(CHANGED)
def test_cells_after_a_change_of_variable(text: str) -> None:
    agrees(text, Variable)


@some(6)
@given(MOEBIUS)
def test_fractions(text: str) -> None:
    agrees(text, (Moebius, Variable, Affine))


@some(6)
@given(BLOCKS)
def test_blocks(text: str) -> None:
    agrees(text, Block)


@some(6)
@given(ALONE | COUPLED)
def test_cells_of_no_family(text: str) -> None:
    agrees(text, (Sequential, Composable))


@pytest.mark.slow
@some(100, new=True)
@given(TROPICAL | CHANGED | MOEBIUS | BLOCKS | ALONE | COUPLED)
def test_many_cells(text: str) -> None:
    agrees(text, object)
