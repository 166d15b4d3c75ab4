"""The reference interpreter: against the oracles, and what the language says about time, gradients and dtypes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
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
from tests.strategies import Program, programs

exact = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def leaves(tensors: Tensors) -> Tensors:
    return {n: t.detach().clone().requires_grad_(t.is_floating_point() or t.is_complex()) for n, t in tensors.items()}


def weighed(results: list[Tensor]) -> Tensor:
    """A sum in which every number of the results has a weight of its own."""
    total = torch.zeros((), dtype=torch.float64)
    for i, r in enumerate(results):
        flat = (torch.view_as_real(r.resolve_conj()) if r.is_complex() else r).flatten()
        total = total + (flat * torch.cos(torch.arange(flat.numel(), dtype=torch.float64) + i)).sum()
    return total


def gradients(results: list[Tensor], *groups: Tensors) -> list[Tensor]:
    wrt = [t for group in groups for t in group.values() if t.requires_grad]
    finite = [torch.where(torch.isfinite(r), r, torch.zeros_like(r)) for r in results]
    loss = weighed(finite)
    if not loss.requires_grad:
        return [torch.zeros_like(t) for t in wrt]
    return list(torch.autograd.grad(loss, wrt, allow_unused=True, materialize_grads=True))


def run(text: str, params: Tensors | None = None, **inputs: Sequence[float]) -> Tensor:
    """The first output, without the batch, of inputs without it."""
    given = {n: torch.tensor([x], dtype=torch.float64) for n, x in inputs.items()}
    return Interpreter(read(text)).run(given, params)[0][0][0]


def near(actual: Tensor, expected: Sequence[float] | Sequence[Sequence[float]] | Tensor) -> None:
    exact(actual, torch.as_tensor(expected, dtype=actual.dtype))


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


# --- gradients -------------------------------------------------------------------------------------------------------


def slope(expr: str, points: Sequence[float], *, dims: str = "") -> list[float]:
    """The derivative of the sum of an expression of `x`: at each of the points, or with dims at them as one vector."""
    size = f"dim D = {len(points)}\ninput x[D]" if dims else "input x"
    text = f"cell G\n{size}\nstate s\ns[t] = 0 * s[t-1]\noutput {expr}\n"
    x = torch.tensor([[points] if dims else points], dtype=torch.float64, requires_grad=True)
    (y,), _ = Interpreter(read(text)).run((x,))
    (dx,) = torch.autograd.grad(y.sum(), x)
    return dx.flatten().tolist()


@pytest.mark.parametrize(
    ("expr", "points", "expected"),
    [
        ("abs(x)", [-1, 0, 2], [-1, 0, 1]),
        ("relu(x)", [-1, 0, 2], [0, 0, 1]),
        ("sqrt(x)", [0, 0.25], [0, 1]),
        ("sqrt(x * x)", [0, 2], [0, 1]),
        ("max(x, 0)", [-1, 0, 2], [0, 0.5, 1]),
        ("min(3 * x, x)", [-1, 0, 2], [3, 2, 1]),
        ("clamp(x, -1, 1)", [-2, -1, 0, 1, 3], [0, 0.5, 1, 0.5, 0]),
        ("max(x, x, 2 * x)", [0], [1.5]),
        ("sign(x)", [0, 1], [0, 0]),
        ("x ** 2", [0, 3], [0, 6]),
        ("x ** 0", [0, 3], [0, 0]),
        ("stop_gradient(x) * x", [3], [3]),
        ("logaddexp(x, -inf)", [-math.inf, 0], [0, 1]),
        ("logaddexp(x, x)", [-math.inf, 0], [0, 1]),
        ("where(x > 0, sqrt(x), x * x)", [-2, 0, 0.25], [-4, 0, 1]),
        ("where(x > 0, 1 / x, 0)", [-1, 0, 2], [0, 0, -0.25]),
        ("where(x > 0, log(x), 0) * 2", [0, 2], [0, 1]),
        ("where(x > 0, where(x < 2, log(2 - x), log(x)), 0)", [0, 1, 4], [0, -1, 0.25]),
        ("softplus(x)", [0, 40], [0.5, 1]),
    ],
)
def test_gradient_rules(expr: str, points: list[float], expected: list[float]) -> None:
    assert slope(expr, points) == pytest.approx(expected, abs=1e-12)


def test_ieee_elsewhere() -> None:
    assert slope("log(x)", [0]) == [math.inf]
    assert math.isnan(slope("0 * log(x)", [0])[0])
    assert slope("x ** 0.5", [0]) == [math.inf]


def test_extrema_split_ties() -> None:
    assert slope("max[D](x)", [1, 1, 0, 1], dims="D") == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
    assert slope("min[D](x)", [1, 1, 0, 1], dims="D") == [0, 0, 1, 0]


def test_unselected_branches_through_everything() -> None:
    """Through definitions, contractions, renamed dims, maps and states: exactly 0 for each entry that is not chosen."""
    text = """cell Guarded
    dim D = 3, E = D
    input x[D], c[D]
    param p[E] = ones
    root = sqrt(sum[E](p * (x - 1)[D -> E])) + log(x)
    state s[D] = 1
    s[t] = where(c > 0, root + sum[D](log(s[t-1])) + linear(log(x) -> D), 0.5 * s[t-1])
    output s[t]
    """
    interpreter = Interpreter(read(text))
    params = leaves(interpreter.init_params(0))
    c = torch.tensor([[[-1.0, -1, -1]]], dtype=torch.float64)
    x = torch.tensor([[[0.0, -1, 1]]], dtype=torch.float64, requires_grad=True)
    state = {"s": torch.tensor([[0.0, -1, 1]], dtype=torch.float64, requires_grad=True)}
    (y,), _ = interpreter.run({"x": x, "c": c}, params, state)
    near(y[0, 0], [0, -0.5, 0.5])
    dx, ds, *dp = gradients([y], {"x": x}, state, params)
    weights = torch.cos(torch.arange(3, dtype=torch.float64))
    near(dx, torch.zeros(1, 1, 3))
    near(ds, 0.5 * weights[None])
    assert all((d == 0).all() for d in dp)


def test_partly_selected_branch() -> None:
    """A branch that contracts the condition's own dim is cut off for each entry of the condition alone."""
    text = """cell Partly
    dim D = 2, K = 2
    input x[K], c[K]
    state s[K]
    s[t] = 0 * s[t-1] + where(c > 0, x + log(sum[K](x)), sqrt(x))
    output s[t]
    """
    x = torch.tensor([[[2.0, 2.0]], [[1.0, -1.0]]], dtype=torch.float64, requires_grad=True)
    c = torch.tensor([[[1.0, -1.0]], [[-1.0, 1.0]]], dtype=torch.float64)
    (y,), _ = Interpreter(read(text)).run((x, c))
    (dx,) = torch.autograd.grad(y.nansum(), x)
    near(dx[0, 0], [1 + 0.25, 0.25 + 0.5 / math.sqrt(2)])
    near(dx[1, 0], [0.5 + math.inf, 1 + math.inf])


ENTRYWISE = [
    "s / z",
    "log(z) * s",
    "log(z)[D -> E][E -> D] * rsqrt(z)",
    "(log(z)[D -> H * P] * s)[H * P -> D]",
    "where(z > 2.5, log(z - 2.5), sqrt(z))",
    "max(log(z), sqrt(z - 1))",
    "conv[2](log(z))",
    "sqrt(z * m[t-1])",
]
ENTANGLED = [
    "z * sum[D](log(z))",
    "max[D](log(z)) + logsumexp[D](sqrt(z))",
    "softmax[D](log(z)) * rmsnorm[D](s / z, weight=true)",
    "linear(sqrt(z) -> D, bias=true)",
    "linear[D](1 / z)",
    "solve[D, E](log(z) * z[D -> E], 1 / z)",
    "sum[E](log(z)[D -> E] * z)",
    "grad(sqrt(z) * m[t-1] ** 2, m[t-1])",
]


def branched(branch: str, z: list[float], c: list[float]) -> tuple[Tensor, list[Tensor]]:
    """The value of a branch over a vector where `c > 0`, else 0; and the gradients in `z`, `s` and all params."""
    text = f"""cell Branch
    dim H = 2, P = 2, D = H * P, E = D
    input z[D], s, c[D]
    param m0[D] = ones
    state m[D] = m0
    m[t] = m[t-1]
    inner = {branch}
    output where(c > 0, inner, 0)
    """
    interpreter = Interpreter(read(text))
    params = leaves(interpreter.init_params(0))
    given = leaves({"z": torch.tensor([[z]], dtype=torch.float64), "s": torch.tensor([[1.5]], dtype=torch.float64)})
    (y,), _ = interpreter.run(given | {"c": torch.tensor([[c]], dtype=torch.float64)}, params)
    return y[0, 0], gradients([y], given, params)


@pytest.mark.parametrize("branch", ENTRYWISE + ENTANGLED)
def test_branch_that_is_not_selected(branch: str) -> None:
    y, found = branched(branch, [0, 2, -1, 3], [-1] * 4)
    assert (y == 0).all() and all((g == 0).all() for g in found)


@pytest.mark.parametrize("branch", ENTRYWISE)
def test_branch_that_is_selected_in_places(branch: str) -> None:
    """What stands at the other entries does not matter."""
    y, found = branched(branch, [0, 2, -1, 3], [-1, 1, -1, 1])
    want, expected = branched(branch, [5, 2, 5, 3], [-1, 1, -1, 1])
    assert torch.isfinite(y).all() and (y[::2] == 0).all() and (found[0][0, 0, ::2] == 0).all()
    exact((y, found), (want, expected))


def test_branches_of_running_values() -> None:
    """A branch cuts off what stands in for a state, too: the value of `over`, and what `grad` differentiates by."""
    text = """cell Held
    dim J = 2, D = 3
    input x[J]
    state h[D], W[D]
    h[t] over J = where(x > 0, log(h[t-1]), 0.5 * h[t-1])
    W[t] = W[t-1] - grad(where(W[t-1] > 0, sqrt(W[t-1]), W[t-1] ** 2), W[t-1])
    output h[t]
    output W[t]
    """
    start = torch.tensor([[-1.0, 0.0, 4.0]], dtype=torch.float64)
    state = leaves({"h": start, "W": start})
    (h, w), _ = Interpreter(read(text)).run((torch.tensor([[[-1.0, -1.0]]]),), None, state)
    near(w[0, 0], [-1 + 2, 0, 4 - 0.25])
    (dh,) = torch.autograd.grad(h.sum(), state["h"])
    near(dh[0], [0.25, 0.25, 0.25])


def test_first_token_of_a_running_maximum() -> None:
    """-inf in a state harms no gradient."""
    text = """cell LogSum
    input x
    state m = -inf
    m[t] = logaddexp(m[t-1], x)
    output m[t]
    """
    x = torch.tensor([[-math.inf, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    (y,), _ = Interpreter(read(text)).run((x,))
    (dx,) = torch.autograd.grad(y[0, -1], x)
    near(dx[0], [0, 1 / (1 + math.e), math.e / (1 + math.e)])
    assert y[0, 0] == -math.inf


GRAD = """cell Learner
dim K = 2, V = 3
input k[K], v[V]
state W[K, V] = 0.5
guess = tanh(sum[K](k * W[t-1]))
loss = 0.5 * sum[V](square(guess - v))
W[t] = W[t-1] - 0.3 * grad(loss, W[t-1])
output W[t]
"""


def test_grad_against_its_derivative() -> None:
    k, v = torch.randn(2, 4, 2, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)
    inputs = leaves({"k": k, "v": v})
    (y,), _ = Interpreter(read(GRAD)).run(inputs)
    same = leaves({"k": k, "v": v})
    w = torch.full((2, 2, 3), 0.5, dtype=torch.float64)
    steps: list[Tensor] = []
    for t in range(4):
        guess = torch.tanh(torch.einsum("bk,bkv->bv", same["k"][:, t], w))
        error = (guess - same["v"][:, t]) * (1 - guess**2)
        w = w - 0.3 * same["k"][:, t, :, None] * error[:, None, :]
        steps.append(w)
    want = torch.stack(steps, 1)
    exact(y, want)
    exact(gradients([y], inputs), gradients([want], same))


def test_grad_without_gradients() -> None:
    inputs = leaves({"k": torch.randn(1, 3, 2), "v": torch.randn(1, 3, 3)})
    with torch.no_grad():
        (y,), state = Interpreter(read(GRAD)).run(inputs)
    assert not y.requires_grad and not state["W"].requires_grad
    exact(y, Interpreter(read(GRAD)).run(inputs)[0][0].detach())


def test_grad_in_a_branch() -> None:
    text = GRAD.replace("input", "input c[V]\ninput").replace(
        "grad(loss, W[t-1])", "where(c > 0, grad(loss, W[t-1]), W[t-1])"
    )
    k, v, c = torch.randn(1, 1, 2), torch.randn(1, 1, 3), torch.tensor([[[1.0, -1.0, 1.0]]])
    plain = leaves({"k": k.double(), "v": v.double()})
    given = leaves({"k": k.double(), "v": v.double()}) | {"c": c.double()}
    (y,), _ = Interpreter(read(text)).run(given)
    (want,), _ = Interpreter(read(GRAD)).run(plain)
    chosen = c[:, :, None] > 0
    expected = torch.where(chosen, want, torch.full_like(want, 0.5 - 0.3 * 0.5))
    exact(y, expected)
    ours = gradients([y], {n: given[n] for n in "kv"})
    exact(ours, gradients([expected], plain))


@pytest.mark.parametrize("name", ["MLSTM", "GatedDeltaNet", "S5Reset", "TitansLinear", "DeltaProduct"])
def test_gradcheck(name: str) -> None:
    case = CASES[name]
    interpreter = Interpreter(example(case.file), case.dims)
    inputs, params = leaves(case.draw(1, 3)), leaves(interpreter.init_params(0))
    names = list(inputs)

    def outputs(*tensors: Tensor) -> tuple[Tensor, ...]:
        given, learned = tensors[: len(names)], tensors[len(names) :]
        return interpreter.run(dict(zip(names, given, strict=True)), dict(zip(params, learned, strict=True)))[0]

    assert torch.autograd.gradcheck(outputs, (*inputs.values(), *params.values()))


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
