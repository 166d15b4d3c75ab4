"""The reference interpreter: its gradients, through branches and `grad` too."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from backends.reference import Interpreter
from tests.cells import example, read
from tests.oracles import CASES
from tests.reference import exact, gradients, leaves, near


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
