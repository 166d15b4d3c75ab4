"""What a generated class promises besides its numbers: arguments, errors, parameters, copies, documentation."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.modules import (
    PROGRAMS,
    SCAN,
    agree,
    as_tuple,
    build,
    draw,
    generate,
    load,
    make,
    some_state,
    tensors,
    with_gradients,
)

every = pytest.mark.parametrize("name", PROGRAMS)
SIZES = """\
cell Sizes
dim Q = P / 2, P = D / H, D = 8, H = 2, B = 3
const c in [0, 1] = 0.5, tau in (0, inf) = 1.0, e = 2
input x[D], y[B], on: bool
param w[H, P] = normal(0.1)
state h[D]
h[t] = c * h[t-1] + where(on, x, 0) + sum[B](y) / e + sum[H, P](w) / tau + Q
output h[t]
"""
DRAWS = """\
cell Draws
dim D = 40, H = 3, P = 5, Q = 2
const low = 2.0
input x[D]
buffer start[D] = 2 * arange[D](1)
buffer mask[D] = start + low
buffer tiny[D] = 1 - 2 ** (-arange[D](1))
param a[D] = arange[D](low)
param b[D] = normal(0.5)
param c[D] = uniform(low, 3)
param d[D] = loguniform(1e-3, 1e-1)
param e[H, D] = log(uniform(1, 16))
param f[D] = ones
param g[D] = 0.25 * zeros + 0.5
param u[H, P, Q] = orthogonal
param i[H, P, Q] = eye
param k[D] = mask / start
param z[D]: complex = 1 + 2j
state s[H, P] = param
s[t] = tanh(linear[P](s[t-1], init=orthogonal) + linear(x -> H, P, init=orthogonal) + sum[Q](u * i))
y = linear(x -> D, bias=true)
output s[t]
output y + conv[4](x)
output rmsnorm[D](x * (a + b + c + d + f + g + k + real(z)) + sum[H](e), weight=true)
"""


# --- construction ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"D": 0}, "D is 0, not a whole number of at least 1"),
        ({"D": -2}, "D is -2"),
        ({"D": 7.5}, "D is 7.5, not a whole number"),
        ({"D": "8"}, "D is '8', not a whole number"),
        ({"D": True}, "D is True"),
        ({"D": float("nan")}, "D is nan"),
        ({"D": float("inf")}, "D is inf"),
        ({"D": 9}, r"D / H.* is .*, not a whole number"),
        ({"D": 6}, r"D / H / 2 is 1.5, not a whole number"),
        ({"c": 1.5}, r"c in \[0, 1\]"),
        ({"c": float("nan")}, r"c in \[0, 1\]"),
        ({"tau": 0}, r"tau in \(0, inf\)"),
        ({"tau": float("inf")}, r"tau in \(0, inf\)"),
        ({"e": "two"}, "could not convert string to float: 'two'"),
        ({"backend": "cuda"}, "backend 'cuda' is none of 'auto', 'triton', 'torch', 'reference'"),
        ({"dtype": torch.int32}, "dtype: expected one of floating-point numbers, got torch.int32"),
        ({"dtype": "float32"}, "dtype: expected one of floating-point numbers, got float32"),
        ({"dtype": torch.complex64}, "dtype: expected one of floating-point numbers"),
        ({"Z": 3}, "unexpected keyword argument 'Z'"),
        ({"P": 4}, "unexpected keyword argument 'P'"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        build(SIZES, **options)


def test_dims_and_consts_are_keywords() -> None:
    module = build(SIZES)
    assert (module.D, module.H, module.P, module.Q, module.B) == (8, 2, 4, 2, 3)
    assert (module.c, module.tau, module.e) == (0.5, 1.0, 2.0)
    module = build(SIZES, D=12.0, H=3, e=4, c=0)
    assert (module.D, module.P, module.Q, module.e, module.c) == (12, 4, 2, 4.0, 0.0)
    assert isinstance(module.D, int) and module.w.shape == (3, 4)
    signature = inspect.signature(type(module))
    assert list(signature.parameters) == ["D", "H", "B", "c", "tau", "e", "device", "dtype", "backend", "validate"]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in signature.parameters.values())
    assert signature.parameters["D"].default == 8 and signature.parameters["tau"].default == 1.0
    with pytest.raises(TypeError):
        type(module)(8)


def test_consts_are_used() -> None:
    x, y, on = torch.ones(1, 1, 8), torch.ones(1, 1, 3), torch.ones(1, 1, dtype=torch.bool)
    for e, c in ((1.0, 1.0), (2.0, 0.25)):
        module = build(SIZES, e=e, c=c)
        nn.init.zeros_(module.w)
        state = type(module.initial_state(1))(torch.full((1, 8), 4.0))
        agree([module(x, y, on, state=state)[0]], [torch.full((1, 1, 8), 4 * c + 1 + 3 / e + 2)], 1e-6)


def test_sizes_that_must_agree_are_checked() -> None:
    text = "cell A\ndim D = 4, E = 4\ninput x[D]\nstate h[E]\nh[t] = tanh(h[t-1]) + x[D -> E]\noutput h[t]\n"
    assert build(text, D=3, E=3)(torch.ones(1, 2, 3))[0].shape == (1, 2, 3)
    with pytest.raises(ValueError, match=r"D = E|E = D"):
        build(text, D=3)


def test_plan_says_which_kernel_each_group_uses() -> None:
    assert make("mingru").plan == {"h": "triton: fused scan over tiles of tokens, on a GPU; torch: affine scan"}
    assert make("mingru", backend="triton").plan == {"h": "triton: fused scan over tiles of tokens"}
    assert make("mingru", backend="torch").plan == {"h": "torch: affine scan"}
    assert make("mingru", backend="reference").plan == {"h": "reference: one token at a time"}
    assert make("kalman", backend="torch").plan == {"P": "torch: moebius scan in segments", "m": "torch: affine scan"}
    assert list(make("lstm").plan) == ["c, h"]


def test_device_and_dtype() -> None:
    module = build(DRAWS, dtype=torch.bfloat16)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        assert tensor.dtype == (torch.complex64 if name == "z" else torch.bfloat16), name
    assert all(p.dtype == torch.float64 for n, p in build(DRAWS, dtype=torch.float64).named_parameters() if n != "z")
    assert all(p.device.type == "meta" for p in build(DRAWS, device="meta").parameters())


# --- inputs, states ---


def wrong_calls() -> Iterator[tuple[str, list[Any], dict[str, Any], str]]:
    x, y, on = torch.ones(2, 3, 8), torch.ones(2, 3, 3), torch.ones(2, 3, dtype=torch.bool)
    one = [x[:1], y[:1], on[:1]]
    h = x[:, 0]
    yield "forward", [x], {}, "missing 2 required positional arguments: 'y' and 'on'"
    yield "forward", [x, y, on, x], {}, "takes 4 positional arguments but 5"
    yield "forward", [x[..., :7], y, on], {}, r"x: expected \[B=2, T=3, D=8\], got \[2, 3, 7\]"
    yield "forward", [x[0], y, on], {}, r"x: expected \[B, T, D=8\], got \[3, 8\]"
    yield "forward", [x, y[:, :2], on], {}, r"y: expected \[B=2, T=3, B=3\], got \[2, 2, 3\]"
    yield "forward", [x, y, on[..., None]], {}, r"on: expected \[B, T\], got \[2, 3, 1\]"
    yield "forward", [x, y, on.float()], {}, "on: expected torch.bool, got torch.float32"
    yield "forward", [x + 1j, y, on], {}, "x: expected real numbers, got torch.complex64"
    yield "forward", [x.numpy(), y, on], {}, "x: expected a tensor, got ndarray"
    yield "forward", [x, [1.0], on], {}, "y: expected a tensor, got list"
    yield "forward", [x, y, on], {"state": 3}, "state: expected a tuple of h, as an earlier call returned it, got int"
    yield "forward", [x, y, on], {"state": (h, h)}, "state: expected a tuple of h"
    yield "forward", [x, y, on], {"state": h}, "state: expected a tuple of h.*got Tensor"
    yield "forward", [x, y, on], {"state": (h[:1],)}, r"state.h: expected \[B=2, D=8\], got \[1, 8\]"
    yield "forward", [x, y, on], {"state": (h + 1j,)}, "state.h: expected real numbers"
    yield "forward", [x, y, on], {"state": (None,)}, "state.h: expected a tensor, got NoneType"
    yield "forward", [x, y, on], {"cu_seqlens": torch.tensor([0, 3])}, r"\[1, total, ...\], got a batch of 2"
    yield "forward", one, {"cu_seqlens": [0, 3]}, "cu_seqlens: expected a tensor of N \\+ 1 integers.*got list"
    yield "forward", one, {"cu_seqlens": torch.tensor([0.0, 3.0])}, r"cu_seqlens: .*got torch.float32 \[2\]"
    yield "forward", one, {"cu_seqlens": torch.tensor([[0, 3]])}, r"cu_seqlens: .*got torch.int64 \[1, 2\]"
    yield "forward", one, {"cu_seqlens": torch.tensor([0, 1, 3]), "state": (h[:1],)}, r"state.h: expected \[B=2, D=8\]"
    yield "step", [x, y[:, 0], on[:, 0]], {}, r"x: expected \[B, D=8\], got \[2, 3, 8\]"
    yield "step", [x[:, 0], y[:, 0], on[:, 0]], {"state": (x,)}, r"state.h: expected \[B, D=8\], got \[2, 3, 8\]"


@pytest.mark.parametrize(("method", "inputs", "options", "message"), list(wrong_calls()))
def test_wrong_calls_are_refused_in_words(
    method: str, inputs: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        getattr(build(SIZES), method)(*inputs, **options)


def test_states_and_several_outputs_are_named_tuples() -> None:
    module = make("mixed")
    outputs, state = module(*draw("mixed", 2, 3))
    assert outputs._fields == ("h", "big", "s", "power", "still") and type(outputs).__name__ == "MixedOutput"
    assert state._fields == ("h", "s") and type(state).__name__ == "MixedState"
    agree([outputs.h[:, -1], outputs.s[:, -1]], state)
    module = make("scan")
    outputs, state = module(*draw("scan", 2, 3))
    assert isinstance(outputs, Tensor)
    # What was pickled by another copy of the class, or written by hand, is a state too.
    inputs = draw("scan", 2, 3)
    agree(tensors(module(*inputs, state=(state.h,))), tensors(module(*inputs, state=state)))


def test_learned_initial_states() -> None:
    module = make("lags")
    assert isinstance(module.h_init, nn.Parameter)
    with torch.no_grad():
        module.h_init.copy_(torch.tensor([1.0, 2.0, 3.0]))
    state = module.initial_state(2, dtype=torch.float64)
    agree([state.h], [module.h_init.expand(2, 3)])
    agree([state.e], [module.w.expand(2, 3)])
    agree([state.h_past[:, 0]], [module.h_init.expand(2, 3)])
    grads = with_gradients(module, module(*draw("lags", 2, 4)))
    assert len(grads) > 2 and all(p.any() for p in grads[-2:])


def test_validate_checks_the_ranges_and_nothing_else_does() -> None:
    text = (
        "cell Ranges\ndim D = 2\n"
        "input a[D] in [0, 1], b[D] in (0, inf), c[D] in (-inf, 0], d[D] in [-inf, inf), e[D] in (-1, 1), f[D]\n"
        "state h[D]\nh[t] = a * h[t-1] + b + c + e + f\noutput h[t]\noutput d * 0\n"
    )
    loose, strict = build(text), build(text, validate=True)
    good = {"a": 0.5, "b": 1.0, "c": -1.0, "d": 0.0, "e": 0.5, "f": 0.0}
    wrong = {"a": 1.25, "b": 0.0, "c": 0.5, "d": float("inf"), "e": 1.0}
    infinite = {"b": float("inf"), "c": float("-inf")}
    for case, fine in (
        (good, True),
        ({**good, "a": 0.0, "c": 0.0, "d": float("-inf"), "f": 1e30}, True),
        *(({**good, k: v}, False) for k, v in (*wrong.items(), *infinite.items())),
        *(({**good, k: float("nan")}, False) for k in wrong),
    ):
        inputs = [torch.full((2, 3, 2), good[k]) for k in "abcdef"]
        for i, k in enumerate("abcdef"):
            inputs[i][1, 2, 0] = case[k]
        loose(*inputs)
        bad = next((k for k in case if case[k] != good[k]), None)
        for call, given in ((strict, inputs), (strict.step, [x[:, 2] for x in inputs])):
            if fine:
                call(*given)
            else:
                with pytest.raises(ValueError, match=f"^{bad} in .* does not hold"):
                    call(*given)


@pytest.mark.parametrize("validate", [True, False])
def test_packings_are_checked(validate: bool) -> None:
    x = draw("scan", 1, 5)
    strict = make("scan", validate=validate)
    strict(*x, cu_seqlens=torch.tensor([0, 2, 2, 5]))
    for ends in ([0, 4], [1, 5], [0, 6], [0, 3, 2, 5]):
        with pytest.raises(ValueError, match="cu_seqlens: expected numbers that rise from 0 to 5"):
            strict(*x, cu_seqlens=torch.tensor(ends))


# --- parameters ---


def test_parameters_are_initialised_as_declared() -> None:
    module = build(DRAWS)
    # Beyond the first 40 whole numbers, `arange` has nothing random.
    whole = torch.arange(40.0)
    agree([module.start, module.mask, module.a], [2 * (whole + 1), 2 * (whole + 1) + 2, whole + 2])
    agree([module.tiny], [1 - 0.5 ** (whole + 1)])
    agree([module.f, module.g, module.k], [torch.ones(40), torch.full((40,), 0.5), module.mask / module.start])
    agree([module.z], [torch.full((40,), 1 + 2j)])
    assert 2 <= module.c.min() < module.c.max() <= 3
    assert 1e-3 <= module.d.min() < 2e-2 < module.d.max() <= 1e-1
    assert 0 <= module.e.min() < module.e.max() <= torch.log(torch.tensor(16.0))
    assert 0.3 < module.b.std() < 0.7 and abs(module.b.mean()) < 0.3
    for u in module.u:
        agree([u.T @ u], [torch.eye(2)], 1e-5, 1e-6)
    assert (module.u[0] - module.u[1]).abs().max() > 1e-3
    agree([module.i], [torch.eye(5, 2).expand(3, 5, 2)])
    for w in module.s_1_weight:
        agree([w.T @ w], [torch.eye(5)], 1e-5, 1e-6)
    w = module.s_2_weight.reshape(15, 40)
    agree([w @ w.T], [torch.eye(15)], 1e-5, 1e-6)
    for weight, fan_in in ((module.y_weight, 40), (module.y_bias, 40), (module.out_weight, 4)):
        bound = fan_in**-0.5
        assert 0.5 * bound < weight.abs().max() <= bound, fan_in
    agree([module.out_2_scale, module.s_init], [torch.ones(40), torch.zeros(3, 5)])


def test_what_is_learned_is_a_parameter() -> None:
    module = build(DRAWS)
    names = "a b c d e f g u i k z s_init s_1_weight s_2_weight y_weight y_bias out_weight out_2_scale"
    assert {n for n, _ in module.named_parameters()} == set(names.split())
    assert {n for n, _ in module.named_buffers()} == {"start", "mask", "tiny"}
    assert all(p.requires_grad for p in module.parameters()) and not module.start.requires_grad
    assert not list(make("kalman").parameters())


def test_reset_draws_anew() -> None:
    module = build(DRAWS)
    drawn = {n: p.clone() for n, p in module.state_dict().items()}
    with torch.no_grad():
        for p in [*module.parameters(), *module.buffers()]:
            p.fill_(-7)
    module.reset_parameters()
    for name, value in module.state_dict().items():
        assert not (value == -7).any(), name
        fixed = name in {"start", "mask", "tiny", "a", "f", "g", "i", "k", "z", "out_2_scale", "s_init"}
        assert torch.equal(value, drawn[name]) == fixed, name
    torch.manual_seed(3)
    module.reset_parameters()
    first = copy.deepcopy(module.state_dict())
    torch.manual_seed(3)
    again = build(DRAWS)
    torch.manual_seed(3)
    again.reset_parameters()
    agree(again.state_dict().values(), first.values(), 0, 0)
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("text", [DRAWS, *(p.text for p in PROGRAMS.values())])
def test_meta_device(text: str) -> None:
    torch.manual_seed(0)
    want = build(text).state_dict()
    with torch.device("meta"):
        module = build(text)
    assert all(p.is_meta for p in [*module.parameters(), *module.buffers()])
    module.to_empty(device="cpu")
    torch.manual_seed(1)
    module.reset_parameters()
    got = module.state_dict()
    assert list(got) == list(want)
    agree(got.values(), want.values(), 0, 0)
    assert all(s.is_meta for s in build(text, device="meta").initial_state(2, device="meta"))


def test_keys_do_not_depend_on_the_order_of_equations() -> None:
    text = PROGRAMS["gru"].text
    head, body = text.split("input x[D]\n")
    lines = body.splitlines()
    keys = set(make("gru").state_dict())
    values = make("gru").state_dict()
    x = draw("gru", 2, 4)
    want = make("gru")(*x)
    for order in (lines[::-1], [*lines[2:], *lines[:2]]):
        # `output` and `state` keep their places among themselves: there is one of each.
        module = build(head + "input x[D]\n" + "\n".join(order) + "\n", D=3, dtype=torch.float64)
        assert set(module.state_dict()) == keys
        module.load_state_dict(values)
        agree(tensors(module(*x)), tensors(want))
    assert keys >= {"r_1_weight", "r_2_weight", "r_bias", "n_1_bias"}


@every
def test_state_dict_round_trip(name: str, tmp_path: Path) -> None:
    module, other = make(name), make(name)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    inputs = draw(name, 2, 3)
    torch.save(module.state_dict(), tmp_path / "weights")
    other.load_state_dict(torch.load(tmp_path / "weights", weights_only=True))
    agree(tensors(other(*inputs)), tensors(module(*inputs)), 0, 0)


@every
def test_copies_and_pickles(name: str) -> None:
    module, inputs = make(name), draw(name, 2, 3)
    want = module(*inputs)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), copy.copy(module)):
        assert type(other) is type(module) and other.plan == module.plan and other.backend == module.backend
        agree(tensors(other(*inputs)), tensors(want), 0, 0)
    state = some_state(module, 2)
    detached = type(state)(*(s.detach() for s in state))
    for again in (pickle.loads(pickle.dumps(detached)), copy.deepcopy(detached)):
        assert type(again) is type(state)
        agree(again, detached, 0, 0)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    agree(tensors(module(*inputs)), tensors(want), 0, 0)


@every
def test_conversions(name: str) -> None:
    inputs = draw(name, 2, 3, dtype=torch.float32)
    want = tensors(make(name, dtype=torch.float32)(*inputs))
    for convert in (
        lambda m: m.to(torch.bfloat16),
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.double(),
        lambda m: m.to(torch.float64).float(),
        lambda m: m.to("cpu"),
        lambda m: m.to(device="cpu", dtype=torch.float32),
    ):
        module = convert(make(name, dtype=torch.float32))
        for got, value in zip(tensors(module(*inputs)), want, strict=True):
            if value.dtype != torch.bool:
                agree([got], [value], 0.05, 0.05)
    kinds = {n: p.is_complex() for n, p in make(name).named_parameters()}
    module = make(name, dtype=torch.float32).to(torch.float64)
    assert {n: p.dtype == torch.complex128 for n, p in module.named_parameters()} == kinds
    assert {n: p.dtype == torch.float64 for n, p in module.named_parameters()} == {n: not c for n, c in kinds.items()}
    module.to("meta")
    assert all(p.is_meta for p in module.parameters())


def test_complex_parameters_stay_complex() -> None:
    for convert in (
        lambda m: m.to(torch.float16),
        lambda m: m.half(),
        lambda m: m.to(torch.float64),
        lambda m: m.double(),
    ):
        module = build(PROGRAMS["mixed"].text)
        (torch.view_as_real(module.λ).sum() * 2).backward()
        convert(module)
        agree([module.λ], [torch.full((2,), 0.4 + 0.3j)], 1e-3, dtype=False)
        assert module.λ.grad.is_complex() and isinstance(module.λ, nn.Parameter)


# --- several of them in one process ---


def imported(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def slope(module: ModuleType, at: float = 1.0) -> tuple[float, float]:
    """The value of the last token, and its gradient with respect to the first."""
    x = torch.full((1, 3, 2), at, requires_grad=True)
    y, _ = module.A(D=2)(x)
    y[:, -1].sum().backward()
    assert x.grad is not None
    return y[0, -1, 0].item(), x.grad[0, 0, 0].item()


@pytest.mark.parametrize("update", ["0.5 * h[t-1] + x", "0.5 * h[t-1] + 0 * h[t-1] ** 3 + x"])
def test_copies_edits_and_reloads_stay_right(update: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"cell A\ndim D = 2\ninput x[D]\nstate h[D]\nh[t] = {update}\noutput h[t]\n"
    path = tmp_path / "rnnc_test_a.py"
    path.write_text(generate(text))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    first = importlib.import_module("rnnc_test_a")
    old = first.A(D=2)
    assert slope(first) == (1.75, 0.25)
    # The user edits a copy: same cell, same source in the head, other numbers. Its operators are its own.
    edited = shutil.copy(path, tmp_path / "rnnc_test_b.py")
    code = Path(edited).read_text()
    assert "0.5 * h_prev" in code or "_affine(run, _scan, 0.5, " in code
    changed = code.replace("0.5 * h_prev", "2.0 * h_prev").replace("(run, _scan, 0.5, ", "(run, _scan, 2.0, ")
    changed = changed.replace("d_h * 0.5", "d_h * 2.0").replace("0.5 * d_h", "2.0 * d_h")
    Path(edited).write_text(changed.replace(", state.h, True)", ", state.h, False)"))
    second = importlib.import_module("rnnc_test_b")
    assert slope(second) == (7.0, 4.0)
    assert slope(first) == (1.75, 0.25)
    # The first file is compiled again from another program, and reloaded.
    path.write_text(generate(text.replace("0.5", "0.25")))
    importlib.invalidate_caches()
    again = importlib.reload(first)
    assert slope(again) == (1.3125, 0.0625)
    assert old(torch.ones(1, 3, 2))[0][0, -1, 0].item() == 1.75
    assert slope(second) == (7.0, 4.0)
    for name in ("rnnc_test_a", "rnnc_test_b"):
        del sys.modules[name]


def test_cells_of_one_name_from_several_texts() -> None:
    texts = [SCAN.replace("+ b", f"+ {n} * b") for n in (1, 2, 3)]
    a, b = draw("scan", 1, 4)
    modules = [load(t) for t in texts]
    values = [m.Scan()(a, b)[0] for m in modules]
    agree(values, [values[0] * n for n in (1, 2, 3)])
    assert len({m.Scan for m in modules}) == 3 and len({m._OPERATORS for m in modules}) == 3


def test_several_cells_in_a_file() -> None:
    gru = PROGRAMS["gru"].text
    text = SCAN + gru + PROGRAMS["leakypeak"].text + SCAN.replace("Scan", "Other").replace("+ b", "- b")
    module = load(text)
    for name, cls in (("scan", "Scan"), ("gru", "GRU"), ("leakypeak", "LeakyPeak")):
        inputs = draw(name, 2, 4, requires_grad=True)
        torch.manual_seed(1)
        cell = getattr(module, cls)(**PROGRAMS[name].sizes, dtype=torch.float64)
        alone = make(name)
        agree(with_gradients(cell, cell(*inputs), *inputs), with_gradients(alone, alone(*inputs), *inputs))
    a, b = draw("scan", 2, 4)
    agree([module.Other()(a, -b)[0]], [module.Scan()(a, b)[0]])


def test_a_written_module_is_pickled_by_name(tmp_path: Path) -> None:
    (tmp_path / "mixed.py").write_text(generate(PROGRAMS["mixed"].text))
    save = (
        "import mixed, pickle, torch; m = mixed.Mixed(); x = torch.ones(1, 2, 3); z = torch.ones(1, 2, 2) + 0j\n"
        "y = m(x, z, x[..., 0] > 0, x)\n"
        "pickle.dump((m, y), open('saved', 'wb')); torch.save((m, y), 'saved.pt')\n"
    )
    read = (
        "import pickle, torch; m, y = pickle.load(open('saved', 'rb')); x = torch.ones(1, 2, 3)\n"
        "for m, y in ((m, y), torch.load('saved.pt', weights_only=False)):\n"
        "    again = m(x, torch.ones(1, 2, 2) + 0j, x[..., 0] > 0, x)\n"
        "    assert type(y[1]) is type(again[1]) and type(y[0]).__name__ == 'MixedOutput'\n"
        "    assert all(torch.equal(a, b) for a, b in zip((*y[0], *y[1]), (*again[0], *again[1])))\n"
    )
    for code in (save, read):
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


# --- what it says of itself ---


def test_the_docstring_has_shapes_and_ranges() -> None:
    doc = inspect.getdoc(type(make("mixed")))
    assert doc is not None
    for line in (
        "Bools in and out, complex values",
        "x: [B, T, D]",
        "z: [B, T, N], complex",
        "keep: [B, T], bool",
        "g: [B, T, D], in [0, 1] (relied on; `validate=True` checks it)",
        "power: [B, T]",
        "s: [B, N]",
        "w: [D]",
        "λ: [N]",
        "order: [D], not learned",
    ):
        assert line in doc, line
    doc = inspect.getdoc(type(make("lags")))
    assert doc is not None and "h_past: [B, 1, D], h before that, newest first" in doc and "h_init: [D]" in doc
    for cls, method in ((type(make("scan")), m) for m in ("forward", "step", "reset_parameters", "initial_state")):
        assert getattr(cls, method).__doc__, method
    assert "backend='reference'" in repr(make("scan", backend="reference"))


def test_signatures_name_the_inputs() -> None:
    cls = type(make("mixed"))
    assert list(inspect.signature(cls.forward).parameters) == ["self", "x", "z", "keep", "g", "state", "cu_seqlens"]
    assert list(inspect.signature(cls.step).parameters) == ["self", "x", "z", "keep", "g", "state"]
    inputs = draw("scan", 2, 3)
    module = make("scan")
    agree(tensors(module(b=inputs[1], a=inputs[0])), tensors(module(*inputs)))
    stepped = module.step(b=inputs[1][:, 0], a=inputs[0][:, 0], state=None)
    agree(as_tuple(stepped[0]), [module(*inputs)[0][:, 0]])
