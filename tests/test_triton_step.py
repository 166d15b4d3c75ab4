"""A step of one token by its kernel, under Triton's interpreter: values, what is launched, where PyTorch steps instead.

Run with `TRITON_INTERPRET=1 pytest -m triton`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 from the start of the process", allow_module_level=True)

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests import test_chunks, test_lowrank
from tests.cells import EXAMPLES
from tests.interpreted import install
from tests.modules import agree, as_tuple, build, checked, draw_for, load, some_state, tensors, with_gradients

install()
pytestmark = [pytest.mark.triton, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

SIZES = {"B": 3, "D": 12, "E": 6, "G": 2, "H": 2, "J": 3, "K": 3, "L": 3, "M": 4, "N": 3, "P": 2, "R": 2, "V": 5}
TEXTS = {p.stem: p.read_text(encoding="utf-8") for p in sorted(EXAMPLES.glob("*.rnn"))}
OTHERS = {"tttlinear": {"D": 6, "H": 2}, "mlstmblock": {"D": 6, "H": 2, "K": 4, "P": 2}}
WITHOUT = ("elman fsmn gru gruv1 irnn lstm mgu peepholelstm pgn pvrnn ratenetwork slstm sparsernn ugrnn").split()
MATRICES = (
    "deltaproduct gateddeltanet gla gsa jrt kda mamba mesanet mlstmblock retnet rwkv6 titanslinear tttlinear"
).split()


def sizes_of(name: str) -> dict[str, int]:
    found = OTHERS.get(name, SIZES)
    return {d.name: found[d.name] for d in checked(TEXTS[name]).dims if not d.derived and d.name in found}


def like(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == torch.bool else x.to(dtype.to_complex() if x.is_complex() else dtype)


@contextmanager
def noted(cell: Any) -> Iterator[list[None]]:
    """One entry for each step that kernels take."""
    found: list[None] = []
    by_kernels = cell._token_by_kernels

    def note(*args: Any) -> Any:
        found.append(None)
        return by_kernels(*args)

    cell._token_by_kernels = note
    yield found
    del cell._token_by_kernels


def steps(
    text: str,
    sizes: dict[str, int] | None = None,
    dtype: torch.dtype = torch.float32,
    batch: int = 3,
    count: int = 2,
    seed: int = 0,
) -> float:
    """The largest distance of outputs and states from those of the equations in float64, after two tokens, in parts of
    what is wanted; kernels did it."""
    ours = build(text, dtype=torch.float32, **(sizes or {}))
    reference = build(text, dtype=torch.float64, backend="reference", **(sizes or {}))
    reference.load_state_dict({n: like(x, torch.float64) for n, x in ours.state_dict().items()})
    inputs = draw_for(checked(text), ours, batch, count, seed=seed, dtype=dtype)
    given = some_state(ours, batch, seed)
    kind, now = type(given), [like(x.detach(), torch.float32) for x in given]
    want = [like(x, torch.float64) for x in now]
    out: Any = None
    expected: Any = None
    with torch.no_grad(), noted(ours) as found:
        for t in range(count):
            out, now = ours.step(*(x[:, t] for x in inputs), kind(*now))
            expected, want = reference.step(*(like(x[:, t], torch.float64) for x in inputs), kind(*want))
    assert len(found) == count
    assert all(o.dtype in (torch.bool, dtype, torch.float32.to_complex()) for o in as_tuple(out))
    assert all(s.dtype in (torch.bool, torch.float32, torch.complex64) for s in now)
    pairs = zip([*as_tuple(out), *now], [*as_tuple(expected), *want], strict=True)
    return max(_apart(like(a, torch.float64), b) for a, b in pairs)


def _apart(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    finite = want.isfinite()
    assert torch.equal(got[~finite], want[~finite])
    if want.dtype == torch.bool or not finite.any():
        return float(not torch.equal(got, want))
    return ((got - want)[finite].norm() / want[finite].norm().clamp_min(1e-3)).item()


# --- values ---


def test_which_have_none() -> None:
    """Who mix their state by learned maps, or have no recurrence."""
    for name in ("elman", "lstm", "fsmn", "pvrnn"):
        assert not hasattr(build(TEXTS[name]), "_decodes"), name


@pytest.mark.parametrize("name", MATRICES)
def test_examples_with_matrices(name: str) -> None:
    assert steps(TEXTS[name], sizes_of(name)) < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in TEXTS if n not in (*MATRICES, *WITHOUT)])
def test_other_examples(name: str) -> None:
    assert steps(TEXTS[name], sizes_of(name)) < 5e-6


@pytest.mark.parametrize("name", ["mingru", "s5reset", "kalman", "holtwinters"])
def test_entry_by_entry(name: str) -> None:
    assert steps(TEXTS[name], sizes_of(name)) < 2e-6


@pytest.mark.parametrize("sizes", [{"K": 1, "V": 1}, {"K": 300, "V": 40}, {"K": 16, "V": 300}], ids=str)
def test_sizes(sizes: dict[str, int]) -> None:
    """A number; several blocks of values in a program that has some of them; in one that has all."""
    for name in ("mlstm", "deltaproduct", "rwkv6"):
        own = sizes if name != "rwkv6" else {**sizes_of(name), "K": min(sizes["K"], 64), "V": sizes["V"]}
        assert steps(TEXTS[name], {**sizes_of(name), **own}) < 3e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(dtype: torch.dtype) -> None:
    """Inputs and products of learned maps have 16 bits, states 32."""
    for name in ("gateddeltanet", "mlstm"):
        assert steps(TEXTS[name], sizes_of(name), dtype) < 16 * torch.finfo(dtype).eps


few = settings(
    max_examples=2,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)


@few
@given(test_chunks.cells(), st.integers(0, 99))
def test_random_matrix_states(text: str, seed: int) -> None:
    assert steps(text, seed=seed) < 2e-6


@few
@given(test_lowrank.cells(), st.integers(0, 99), st.sampled_from([1, 5, 16]))
def test_random_low_rank_states(text: str, seed: int, keys: int) -> None:
    assert steps(text, {"K": keys}, seed=seed) < 2e-6


# They sum over a dim that the state does not have, R or L, which no kernel of a step does: PyTorch steps.
ANOTHER_DIM = ("a sum over a rank", "a matrix in factors")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*test_lowrank.WRITTEN])
def test_ways_of_writing(name: str) -> None:
    text = test_lowrank.cell(test_lowrank.WRITTEN[name][0])
    if name in ANOTHER_DIM:
        assert not hasattr(load(text).C(backend="triton"), "_token_by_kernels")
    else:
        assert steps(text, {"K": 5}) < 2e-6


BOTH_SIDES = test_lowrank.cell(
    "S[t-1] - b * n * c - 0.1 * u * sum[V](u * S[t-1])", "sum[K](p * S[t]); sum[V](u * S[t-1]); max[K](k * S[t])"
)
NORMED = """cell C
dim H = 2, K = 3, V = 4, W = 2
input q[H, K], k[H, K], v[H, V], r[W, H, V], s[H] in [0, 1], far[V]
state S[H, K, V]
state m[H] = -inf
m[t] = max(m[t-1] * s, s)
S[t] = s * S[t-1] + layernorm[K](k) * v
p = softmax[V](sum[K](l2norm[K](q) * S[t]))
output r * rmsnorm[V](p) + far[t-2]
output mean[K, V](S[t]) + m[t]
output min[V](sum[K](S[t-1]))
output S[t] > 0
"""


def test_sums_along_both_dims() -> None:
    assert steps(BOTH_SIDES) < 2e-6
    assert steps(NORMED, {"K": 5, "V": 7}) < 2e-6


@pytest.mark.parametrize("name", ["gla", "gateddeltanet", "gsa", "mamba"])
def test_a_step_goes_on_where_sequences_stopped(name: str) -> None:
    cell = build(TEXTS[name], dtype=torch.float32, **sizes_of(name))
    inputs = draw_for(checked(TEXTS[name]), cell, 2, 5, dtype=torch.float32)
    with torch.no_grad(), noted(cell) as found:
        whole, last = cell(*inputs)
        _, state = cell(*(x[:, :4] for x in inputs))
        out, after = cell.step(*(x[:, 4] for x in inputs), state)
    assert found
    agree([*as_tuple(out), *after], [*(o[:, 4] for o in as_tuple(whole)), *last], 1e-4, 1e-5)


# --- what runs ---


class _Operations(TorchDispatchMode):
    """Counts what PyTorch computes or copies, views left out."""

    views = frozenset(
        "view unsqueeze squeeze unflatten split select slice expand t transpose permute alias detach unbind as_strided "
        "empty empty_like new_empty _unsafe_view promote_types".split()
    )

    def __init__(self) -> None:
        super().__init__()
        self.found = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")
        if name[1] not in self.views:
            self.found["kernel" if name[0].startswith("rnnc_") else name[1]] += 1
        return func(*args, **(kwargs or {}))


# Kernels, matrix products, and histories of convolutions, which move on by a copy.
COUNTS = {
    "gla": (1, 6, 0),
    "retnet": (1, 7, 0),
    "mamba2": (1, 0, 0),
    "mlstm": (1, 0, 0),
    "deltanet": (1, 5, 3),
    "gateddeltanet": (1, 7, 3),
    "kda": (1, 9, 3),
    "rwkv7": (1, 0, 0),
    "deltaproduct": (1, 0, 0),
    "titanslinear": (1, 0, 0),
    "tttlinear": (1, 5, 0),
    "mingru": (1, 2, 0),
}


@pytest.mark.parametrize("name", COUNTS)
def test_one_kernel_between_learned_maps(name: str) -> None:
    """And nothing else, but for a copy of an output that is the state."""
    cell = build(TEXTS[name], dtype=torch.float32, **sizes_of(name))
    inputs = draw_for(checked(TEXTS[name]), cell, 3, dtype=torch.float32)
    state = cell.initial_state(3)
    with torch.no_grad(), _Operations() as seen:
        cell.step(*inputs, state)
    copies = {"clone": 1} if name == "mingru" else {}
    assert seen.found - Counter(copies) == Counter(
        {k: n for k, n in zip(("kernel", "mm", "cat"), COUNTS[name], strict=True) if n}
    )


@pytest.mark.parametrize("name", ["gla", "gateddeltanet", "mlstm"])
def test_where_gradients_may_be_wanted_pytorch_steps(name: str) -> None:
    """Of inputs, states and parameters; those that arrive are the reference's."""
    cell = build(TEXTS[name], dtype=torch.float32, **sizes_of(name))
    other = build(TEXTS[name], dtype=torch.float32, backend="reference", **sizes_of(name))
    inputs = draw_for(checked(TEXTS[name]), cell, 2, dtype=torch.float32, requires_grad=True)
    state = some_state(cell, 2)
    state = type(state)(*(s.detach().float().requires_grad_() for s in state))
    with noted(cell) as found:
        got = with_gradients(cell, cell.step(*inputs, state), *inputs, *state)
        assert not found
        plain = [x.detach() for x in inputs]
        for p in cell.parameters():
            p.requires_grad_(False)
        cell.step(*plain, type(state)(*(s.detach() for s in state)))
        assert found
        found.clear()
        cell.step(*plain, state)
        cell.step(*inputs, None)
        assert not found
    agree(got, with_gradients(other, other.step(*inputs, state), *inputs, *state), 1e-4, 1e-5)


def test_forward_derivatives_are_not_lost() -> None:
    cell = build(TEXTS["mlstm"], dtype=torch.float32, **sizes_of("mlstm"))
    inputs = draw_for(checked(TEXTS["mlstm"]), cell, 2, dtype=torch.float32)
    with torch.no_grad():
        moved = torch.func.jvp(
            lambda v: cell.step(inputs[0], inputs[1], v, *inputs[3:])[0], (inputs[2],), (inputs[2],)
        )[1]
        out = cell.step(*inputs)[0]
    torch.testing.assert_close(moved, out, rtol=1e-4, atol=1e-5)  # linear in v, from a state of zeros


def test_many_at_once() -> None:
    """`torch.vmap` of a step: kernels have no rule for it, PyTorch has."""
    cell = build(TEXTS["mingru"], backend="triton", D=8).requires_grad_(False)
    x = torch.randn(3, 2, 8)
    together = torch.vmap(lambda x: cell.step(x)[0])(x)
    torch.testing.assert_close(together, torch.stack([cell.step(each)[0] for each in x]))


def test_what_pytorch_steps() -> None:
    """float64, states that no program can hold, other backends; an empty batch takes the kernel."""
    text = TEXTS["mlstm"]
    cases: list[tuple[dict[str, Any], torch.dtype, int, int]] = [
        ({}, torch.float64, 2, 0),
        ({"K": 1 << 13, "V": 8, "H": 1}, torch.float32, 1, 0),
        ({"backend": "torch"}, torch.float32, 2, 0),
        ({}, torch.float32, 0, 1),
    ]
    for options, dtype, batch, kernels in cases:
        cell = build(text, **{**sizes_of("mlstm"), **options})
        inputs = draw_for(checked(text), cell, batch, dtype=dtype)
        with torch.no_grad(), noted(cell) as found:
            out, state = cell.step(*inputs)
        assert len(found) == kernels and out.shape == (batch, cell.H, cell.V) and state.C.shape[0] == batch


def test_outputs_are_no_part_of_the_state() -> None:
    text = "cell C\ndim D = 4\ninput x[D]\nstate h[D], y[D]\nh[t] = 0.5 * h[t-1] + x\ny[t] = 2 * x\n"
    text += "output a = h[t]\noutput b = h[t]\noutput c = y[t]\noutput d = 2 * x\noutput e = x\n"
    cell = build(text, dtype=torch.float32)
    x = torch.ones(2, 4)
    with torch.no_grad(), noted(cell) as found:
        outputs, state = cell.step(x)
    assert found
    kept = [s.clone() for s in state]
    for i, o in enumerate(outputs):
        o.fill_(7.0 + i)
    agree(state, kept)
    assert [o[0, 0].item() for o in outputs] == [7.0, 8.0, 9.0, 10.0, 11.0] and (x == 1).all()


def test_strides_of_inputs_and_states() -> None:
    text = TEXTS["mamba2"]
    cell = build(text, dtype=torch.float32, **sizes_of("mamba2"))
    inputs = draw_for(checked(text), cell, 4, dtype=torch.float32)
    state = some_state(cell, 4)
    state = type(state)(*(s.detach().float() for s in state))
    with torch.no_grad():
        want = tensors(cell.step(*inputs, state))
        odd = [x.repeat_interleave(2, 0)[::2] for x in inputs]
        turned = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in inputs]
        for given in (odd, turned):
            agree(tensors(cell.step(*given, type(state)(*(s.mT.contiguous().mT for s in state)))), want, 0, 0)
        one = [x[:1].expand_as(x) for x in inputs]
        agree(tensors(cell.step(*one, state)), tensors(cell.step(*(x.contiguous() for x in one), state)), 0, 0)


def test_one_graph() -> None:
    torch._dynamo.reset()
    cell = build(TEXTS["gateddeltanet"], dtype=torch.float32, **sizes_of("gateddeltanet"))
    inputs = draw_for(checked(TEXTS["gateddeltanet"]), cell, 2, dtype=torch.float32)
    state = cell.initial_state(2)
    with torch.no_grad():
        want = tensors(cell.step(*inputs, state))
        with noted(cell) as found:
            got = tensors(torch.compile(cell.step, fullgraph=True, backend="aot_eager")(*inputs, state))
    assert found
    agree(got, want, 1e-6, 1e-6)
