"""The reference interpreter: against the oracles, and what the language says about time and dtypes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from backends.reference import Interpreter
from rnnc.fields import state_fields
from tests.cells import example, read
from tests.oracles import CASES, Tensors
from tests.reference import exact, gradients, leaves, near, run, weighed
from tests.strategies import Program, programs

# --- the programs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_oracle(name: str) -> None:
    """Outputs, final states and all gradients, from the initial state and from one that is passed in."""
    case = CASES[name]
    interpreter = Interpreter(example(case.file), case.dims)
    drawn = interpreter.init_params(1)
    learned = {p.name for p in interpreter.cell.params if p.learned}
    params = {n: t if n in learned else t.detach() for n, t in leaves(drawn).items()}
    state: Tensors | None = None
    for length, seed in ((7, 2), (5, 3)):
        inputs = leaves(case.draw(2, length, seed))
        got, got_state = interpreter.run(inputs, params, state)
        want, want_state = case.oracle(params, inputs, state)
        assert list(got_state) == list(want_state)
        results, expected = [*got, *got_state.values()], [*want, *want_state.values()]
        for a, b in zip(results, expected, strict=True):
            exact(a, b)
        groups = (inputs, params, state or {})
        for a, b in zip(gradients(results, *groups), gradients(expected, *groups), strict=True):
            assert torch.isfinite(a).all()
            exact(a, b)
        state = leaves(got_state)


@pytest.mark.parametrize("name", CASES)
def test_splits_and_steps(name: str) -> None:
    """A sequence split anywhere, stepped, or packed with others gives the same outputs and states."""
    case = CASES[name]
    interpreter = Interpreter(example(case.file), case.dims)
    params, inputs = interpreter.init_params(0), case.draw(1, 7)
    whole, final = interpreter.run(inputs, params)
    for cuts in ([0, 3, 7], [0, 0, 1, 7], list(range(8))):
        state: Tensors | None = None
        pieces: list[tuple[Tensor, ...]] = []
        for a, b in pairwise(cuts):
            outputs, state = interpreter.run({n: x[:, a:b] for n, x in inputs.items()}, params, state)
            pieces.append(outputs)
        exact(tuple(torch.cat(p, 1) for p in zip(*pieces, strict=True)), whole)
        exact(state, final)
    apart = [interpreter.run({n: x[:, a:b] for n, x in inputs.items()}, params) for a, b in ((0, 2), (2, 2), (2, 7))]
    packed, states = interpreter.run(inputs, params, cu_seqlens=[0, 2, 2, 7])
    joined = tuple(torch.cat(p, 1) for p in zip(*(o for o, _ in apart), strict=True))
    exact(packed, joined)
    for n in final:
        exact(states[n], torch.cat([s[n] for _, s in apart]))


@pytest.mark.parametrize("name", ["GatedDeltaNet", "SLSTM", "Aaren", "S5Reset"])
def test_packed_sequences_take_states(name: str) -> None:
    case = CASES[name]
    interpreter = Interpreter(example(case.file), case.dims)
    params = interpreter.init_params(0)
    _, incoming = interpreter.run(case.draw(3, 4), params)
    inputs = case.draw(1, 6, 1)
    outputs, states = interpreter.run(inputs, params, incoming, torch.tensor([0, 4, 4, 6]))
    for i, (a, b) in enumerate(((0, 4), (4, 4), (4, 6))):
        own = {n: s[i : i + 1] for n, s in incoming.items()}
        want, final = interpreter.run({n: x[:, a:b] for n, x in inputs.items()}, params, own)
        exact(tuple(o[:, a:b] for o in outputs), want)
        exact({n: s[i : i + 1] for n, s in states.items()}, final)
    for n, s in incoming.items():
        torch.testing.assert_close(states[n][1], s[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["GatedDeltaNet", "MLSTM"])
@pytest.mark.parametrize(("batch", "length"), [(0, 3), (2, 0), (0, 0)])
def test_nothing_to_do(name: str, batch: int, length: int) -> None:
    case = CASES[name]
    interpreter = Interpreter(example(case.file), case.dims)
    params = interpreter.init_params(0)
    (y,), state = interpreter.run(case.draw(batch, length), params)
    assert y.shape[:2] == (batch, length) and y.dtype == torch.float64
    assert all(s.shape[0] == batch for s in state.values())
    torch.testing.assert_close(state, interpreter.initial_state(params, batch))


def test_wrong_calls() -> None:
    interpreter = Interpreter(example("mingru"), {"D": 2})
    params, x = interpreter.init_params(0), torch.zeros(1, 4, 2)
    for cu_seqlens in ([0, 3], [1, 4], [0, 3, 2, 4]):
        with pytest.raises(ValueError, match="cu_seqlens"):
            interpreter.run({"x": x}, params, cu_seqlens=cu_seqlens)
    with pytest.raises(ValueError, match="input x"):
        interpreter.run({"x": x[..., :1]}, params)
    with pytest.raises(ValueError, match="state h"):
        interpreter.run({"x": x}, params, {"h": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="P"):
        Interpreter(example("lstm"), {"D": 5, "H": 2})
    with pytest.raises(ValueError, match="no size `P`"):
        Interpreter(example("lstm"), {"P": 2})


# --- time ------------------------------------------------------------------------------------------------------------


def test_lags_of_a_state() -> None:
    text = """cell Fibonacci
    input x
    state s = 1
    s[t] = s[t-1] + s[t-2] + 0 * x
    output s[t]
    output two = s[t-3]
    """
    near(run(text, x=[0, 0, 0, 0]), [2, 3, 5, 8])
    interpreter = Interpreter(read(text))
    (_, past), state = interpreter.run((torch.zeros(1, 5),))
    near(past[0], [1, 1, 1, 2, 3])
    near(state["s_past"][0], [8, 5])
    assert list(state) == ["s", "s_past"]


def test_lags_of_inputs_and_definitions() -> None:
    text = """cell Lags
    input x
    y = x * x
    state s
    s[t] = x[t-1] + 10 * y[t-2]
    output s[t]
    """
    near(run(text, x=[1, 2, 3, 4]), [0, 1, 2 + 10, 3 + 40])
    _, state = Interpreter(read(text)).run((torch.tensor([[1.0, 2, 3, 4]]),))
    near(state["x_past"][0], [4])
    near(state["y_past"][0], [16, 9])


def test_order_of_the_fields() -> None:
    text = """cell Fields
    dim D = 2, K = 3
    input x[K, D], b: bool
    output e = conv[2](x) + z[t-1]
    z = conv[3](conv[1](x)) * where(b[t-2], 1, 2)
    state q = 0.5
    state p[K]: complex
    q[t] = p_real[t-1] + q[t-1] + q[t-4]
    p[t] = p[t-3] + 1j * p[t-1]
    p_real = sum[K](real(p[t-1]))
    """
    fields = [(f.name, f.role, f.of, f.length, f.dims, f.kind) for f in state_fields(read(text))]
    assert fields == [
        ("q", "state", "q", None, (), "real"),
        ("p", "state", "p", None, ("K",), "complex"),
        ("q_past", "past", "q", 3, (), "real"),
        ("p_past", "past", "p", 2, ("K",), "complex"),
        ("b_past", "past", "b", 2, (), "bool"),
        ("z_past", "past", "z", 1, ("D", "K"), "real"),
        ("p_real_past", "past", "p_real", 1, (), "real"),
        ("z_1_conv", "conv", "z_1_conv", 2, ("D", "K"), "real"),
        ("e_conv", "conv", "e_conv", 1, ("K", "D"), "real"),
    ]


def test_conv_is_conv1d() -> None:
    text = """cell C
    dim D = 3
    input x[D]
    state s[D]
    s[t] = 0 * s[t-1] + conv[4](x, bias=true)
    output s[t]
    """
    interpreter = Interpreter(read(text))
    params, x = interpreter.init_params(0), torch.randn(2, 6, 3, dtype=torch.float64)
    (y,), state = interpreter.run({"x": x}, params)
    padded = torch.nn.functional.pad(x.mT, (3, 0))
    want = torch.nn.functional.conv1d(padded, params["s_weight"][:, None], params["s_bias"], groups=3)
    exact(y, want.mT)
    exact(state["s_conv"], x[:, [5, 4, 3]])


def test_conv_of_a_state() -> None:
    text = """cell C
    input x
    state s = 1
    s[t] = x + conv[3](s[t-1])
    output s[t]
    """
    params = {"s_weight": torch.tensor([0.25, 0.5, 2.0], dtype=torch.float64)}
    # What conv reads is s[t-1], which is zero, not 1, before it was ever read.
    near(run(text, params=params, x=[0, 0, 1]), [2, 2 * 2 + 0.5, 1 + 2 * 4.5 + 0.5 * 2 + 0.25])


def test_updates_see_each_other() -> None:
    text = """cell Pair
    input x
    state a = 1
    state b
    b[t] = a[t] + b[t-1]
    a[t] = x * a[t-1]
    output b[t]
    output c = a[t] - b[t-1]
    """
    near(run(text, x=[2, 3, 4]), [2, 8, 32])


def test_over() -> None:
    """Each write reads what the one before it wrote, through definitions too."""
    text = """cell Writes
    dim J = 3, D = 2
    input x[J, D], c[J]
    error = x - h[t-1]
    state h[D] = 1
    state first[D]
    h[t] over J = h[t-1] + c * mean[J](c) * error
    first[t] = h[t-1] + sum[J](error)
    output h[t]
    output first[t]
    """
    x, c = torch.randn(5, 3, 2, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64)
    (got, first), _ = Interpreter(read(text)).run((x[None], c[None]))
    h = torch.ones(2, dtype=torch.float64)
    for t in range(5):
        near(first[0, t], h + (x[t] - h).sum(0))
        for j in range(3):
            h = h + c[t, j] * c[t].mean() * (x[t, j] - h)
        near(got[0, t], h)


def test_renames_splits_and_merges() -> None:
    text = """cell Shapes
    dim H = 2, P = 3, Q = P, D = H * P
    input x[D]
    param U[P, Q] = normal(1)
    state h[H, P]
    h[t] = x[D -> H * P] + sum[Q](U * h[t-1][P -> Q])
    output h[t][H * P -> D]
    output other = (2 * h[t])[P * H -> D]
    """
    interpreter = Interpreter(read(text))
    params, x = interpreter.init_params(0), torch.randn(1, 3, 6, dtype=torch.float64)
    (y, other), _ = interpreter.run((x,), params)
    h = torch.zeros(2, 3, dtype=torch.float64)
    for t in range(3):
        h = x[0, t].reshape(2, 3) + h @ params["U"].T
        near(y[0, t], h.reshape(6))
        near(other[0, t], 2 * h.T.reshape(6))


def test_linear_in_all_forms() -> None:
    text = """cell Maps
    dim A = 2, B = 3, C = 2
    input x[B, A]
    state h[A]
    h[t] = linear(x, h[t-1] -> A, bias=true)
    output linear[A](x)
    output other = linear[B -> C](x, bias=true)
    output h[t]
    """
    interpreter = Interpreter(read(text))
    params, x = interpreter.init_params(0), torch.randn(1, 2, 3, 2, dtype=torch.float64)
    (along, other, h), _ = interpreter.run((x,), params)
    p = params
    assert {n: tuple(w.shape) for n, w in p.items()} == {
        "h_1_weight": (2, 3, 2),
        "h_2_weight": (2, 2),
        "h_bias": (2,),
        "out_weight": (3, 2, 2),
        "other_weight": (2, 2, 3),
        "other_bias": (2, 2),
    }
    near(along[0, 0], torch.einsum("bca,ba->cb", p["out_weight"], x[0, 0]).mT.mT)
    near(other[0, 1], torch.einsum("acb,ba->ac", p["other_weight"], x[0, 1]) + p["other_bias"])
    now = torch.einsum("cba,ba->c", p["h_1_weight"], x[0, 0]) + p["h_bias"]
    near(h[0, 0], now)
    near(h[0, 1], torch.einsum("cba,ba->c", p["h_1_weight"], x[0, 1]) + p["h_2_weight"] @ now + p["h_bias"])


def test_solve() -> None:
    text = """cell Solve
    dim N = 3, M = N
    input a[N, M], b[N]
    state y[N]
    y[t] = solve[N, M](a, b + y[t-1])
    output y[t]
    output back = sum[M](a * y[t][N -> M]) - y[t-1]
    """
    a, b = torch.randn(1, 2, 3, 3, dtype=torch.float64), torch.randn(1, 2, 3, dtype=torch.float64)
    (_, back), _ = Interpreter(read(text)).run((a, b))
    torch.testing.assert_close(back, b, rtol=1e-8, atol=1e-8)


def test_reductions_and_norms() -> None:
    text = """cell Over
    dim A = 2, B = 3
    input x[A, B]
    state s
    s[t] = s[t-1] + sum[A, B](x) + mean[B](sum[A](x)) + max[A, B](x) + min[B](max[A](x)) + logsumexp[A, B](x)
    output s[t]
    output softmax[A, B](x)
    output n = rmsnorm[B](x, weight=true, bias=true) + l2norm[A](x, eps=0.5) + layernorm[A, B](x)
    output count = sum[B](x + 1)
    """
    interpreter = Interpreter(read(text))
    x = torch.randn(1, 1, 2, 3, dtype=torch.float64)
    params = interpreter.init_params(0)
    params["n_scale"], params["n_shift"] = torch.randn(2, 3, dtype=torch.float64)
    (s, soft, norms, count), _ = interpreter.run((x,), params)
    v = x[0, 0]
    near(s[0, 0], v.sum() + v.sum(0).mean() + v.max() + v.amax(0).amin() + v.exp().sum().log())
    near(soft[0, 0], v.exp() / v.exp().sum())
    rms = v / (v.square().mean(1, keepdim=True) + 1e-6).sqrt() * params["n_scale"] + params["n_shift"]
    l2 = v / (v.square().sum(0, keepdim=True) + 0.5).sqrt()
    layer = (v - v.mean()) / (v.var(correction=0) + 1e-6).sqrt()
    near(norms[0, 0], rms + l2 + layer)
    near(count[0, 0], v.sum(1) + 3)


def test_consts_and_sizes_are_numbers() -> None:
    text = """cell Numbers
    dim K = 4, E = K * 2
    const c in (0, inf) = 3.0
    input x
    state s = c
    s[t] = s[t-1] + c * x * K ** -0.5 + E
    output s[t]
    """
    near(run(text, x=[2]), [3 + 3 + 8])
    interpreter = Interpreter(read(text), {"K": 1}, {"c": 0.5})
    near(interpreter.run((torch.ones(1, 1),))[0][0][0], [0.5 + 0.5 + 2])
    with pytest.raises(ValueError, match="const c"):
        Interpreter(read(text), consts={"c": 0})
    with pytest.raises(ValueError, match="no const `d`"):
        Interpreter(read(text), consts={"d": 0})


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "result", "state"),
    [
        (torch.float32, torch.float32, torch.complex64),
        (torch.float64, torch.float64, torch.complex128),
        (torch.bfloat16, torch.bfloat16, torch.complex64),
        (torch.float16, torch.float16, torch.complex64),
    ],
)
def test_dtypes(given: torch.dtype, result: torch.dtype, state: torch.dtype) -> None:
    case = CASES["S5Reset"]
    interpreter = Interpreter(example(case.file), case.dims, dtype=None)
    params = interpreter.init_params(0)
    inputs = {n: x if x.dtype == torch.bool else x.to(given) for n, x in case.draw(2, 5).items()}
    (y,), final = interpreter.run(inputs, params)
    assert (y.dtype, final["h"].dtype) == (result, state)
    exact = Interpreter(example(case.file), case.dims)
    (want,), _ = exact.run(inputs, params)
    tolerance = max(torch.finfo(result).eps, torch.finfo(torch.float32).eps) * 8
    torch.testing.assert_close(y.double(), want, rtol=tolerance, atol=tolerance)


def test_mixed_dtypes() -> None:
    text = """cell Mixed
    input x, y, on: bool
    state s
    s[t] = s[t-1] + x * y * on
    output s[t]
    output flag = s[t] > 0
    """
    interpreter = Interpreter(read(text), dtype=None)
    ones, on = torch.ones(1, 2), torch.tensor([[True, False]])
    (s, flag), state = interpreter.run((ones.bfloat16(), ones.half(), on))
    assert (s.dtype, state["s"].dtype, flag.dtype) == (torch.float32, torch.float32, torch.bool)
    (s, _), state = interpreter.run((ones.bfloat16(), ones.double(), on))
    assert (s.dtype, state["s"].dtype) == (torch.float64, torch.float64)
    near(s[0], [1, 1])


def test_complex_inputs() -> None:
    text = """cell Turn
    dim N = 2
    input z[N]: complex
    state h[N]: complex
    h[t] = 0.5j * h[t-1] + conj(z)
    output h[t]
    output size = sum[N](abs(h[t]))
    """
    interpreter = Interpreter(read(text), dtype=None)
    z = torch.tensor([[[1 + 2j, 0], [1j, 1]]])
    (h, size), _ = interpreter.run((z,))
    assert (h.dtype, size.dtype) == (torch.complex64, torch.float32)
    torch.testing.assert_close(h[0, 1], torch.tensor([0.5j * (1 - 2j) - 1j, 1 + 0j]))


def test_initial_values() -> None:
    text = """cell Init
    dim H = 2, A = 3, B = 4
    const c = 5.0
    input x[A]
    param a[B, A] = log(arange[B](1))
    buffer base[A] = arange[A](0) * c
    param shifted[H, A] = base + H
    param o[H, A, B] = orthogonal
    param i[A, B] = 2 * eye
    param n[H, A] = normal(0.1)
    param u[A] = uniform(2, 3)
    param l[A] = loguniform(1e-3, 1e-1)
    param z[A]: complex = ones + 1j
    state s[A] = base
    state w[H] = param
    s[t] = linear(s[t-1] -> A, init=orthogonal, bias=true) + x
    w[t] = w[t-1]
    output s[t]
    """
    interpreter = Interpreter(read(text))
    p = interpreter.init_params(3)
    assert list(p) == ["a", "base", "shifted", "o", "i", "n", "u", "l", "z", "w_init", "s_weight", "s_bias"]
    near(p["a"], torch.arange(1, 5, dtype=torch.float64).log()[:, None].expand(4, 3))
    near(p["base"], [0, 5, 10])
    near(p["shifted"], [[2, 7, 12]] * 2)
    near(p["o"] @ p["o"].mT, torch.eye(3).expand(2, 3, 3))
    near(p["i"], 2 * torch.eye(3, 4))
    assert ((p["u"] >= 2) & (p["u"] <= 3)).all() and ((p["l"] >= 1e-3) & (p["l"] <= 1e-1)).all()
    assert p["z"].dtype == torch.complex128 and (p["z"] == 1 + 1j).all()
    near(p["s_weight"] @ p["s_weight"].mT, torch.eye(3))
    assert (p["s_bias"].abs() <= 3**-0.5).all()
    state = interpreter.initial_state(p | {"w_init": torch.tensor([1.0, 2.0])}, 2)
    near(state["s"], [[0, 5, 10]] * 2)
    near(state["w"], [[1, 2]] * 2)
    again = interpreter.init_params(torch.Generator().manual_seed(3))
    torch.testing.assert_close(p, again, rtol=0, atol=0)
    assert not torch.equal(p["n"], interpreter.init_params(4)["n"])


# --- random programs -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(programs(size=2), st.integers(0, 3))
def test_random_programs(program: Program, seed: int) -> None:
    """They check, run with finite results and gradients, and may be split anywhere."""
    interpreter = Interpreter(read(program.text), program.dims)
    params, inputs = leaves(interpreter.init_params(seed)), leaves(program.draw(2, 5, seed))
    outputs, state = interpreter.run(inputs, params)
    assert all(torch.isfinite(r).all() for r in [*outputs, *state.values()])
    assert all(torch.isfinite(g).all() for g in gradients([*outputs, *state.values()], inputs, params))
    first, middle = interpreter.run({n: x[:, :2] for n, x in inputs.items()}, params)
    second, last = interpreter.run({n: x[:, 2:] for n, x in inputs.items()}, params, middle)
    joined = tuple(torch.cat(p, 1) for p in zip(first, second, strict=True))
    exact((joined, last), (outputs, state))


@settings(deadline=None, max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(programs(size=3))
def test_random_programs_against_differences(program: Program) -> None:
    """A directional derivative by autograd and by central differences."""
    assume("stop_gradient" not in program.text)
    interpreter = Interpreter(read(program.text), program.dims)
    params, inputs = leaves(interpreter.init_params(0)), leaves(program.draw(2, 4, 1))
    wrt = {n: x for n, x in (inputs | params).items() if x.requires_grad}
    generator = torch.Generator().manual_seed(0)
    direction = {n: torch.randn(x.shape, generator=generator, dtype=x.dtype) for n, x in wrt.items()}

    def results(step: float) -> list[Tensor]:
        moved = inputs | params | {n: x + step * direction[n] for n, x in wrt.items()}
        outputs, state = interpreter.run({n: moved[n] for n in inputs}, {n: moved[n] for n in params})
        return [*outputs, *state.values()]

    slopes = zip(gradients(results(0), wrt), direction.values(), strict=True)
    slope = sum((g.conj() * d).real.sum().item() for g, d in slopes)
    with torch.no_grad():
        errors = [(weighed(results(e)) - weighed(results(-e))).item() / (2 * e) - slope for e in (1e-5, 1e-6, 1e-7)]
    assert min(map(abs, errors)) < 1e-5 * (1 + abs(slope))
