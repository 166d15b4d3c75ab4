"""Reads of matrix states that are written within larger sums, and normalisers that ride along with one: what is found,
and its values and gradients against the float64 interpreter; packed sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rnnc.chunks import Chunks
from rnnc.pipeline import compile_source
from rnnc.plan import Plan, Scan
from rnnc.show import expr_text
from rnnc.source import Source
from tests.cells import EXAMPLES
from tests.modules import Interpreted, agree, build, some_state, tensors, with_gradients
from tests.oracles import CASES
from tests.test_chunks import BY_VALUE, MIXED, cell, compared, inputs_of

UPDATE = "g * S[t-1] + k * v"


def plan_of(text: str) -> Plan:
    (made,) = compile_source(Source("test.rnn", text))
    assert made.plan is not None
    return made.plan


def chunked(text: str) -> dict[str, Chunks]:
    return {s.stream.name: s.chunks for s in plan_of(text).steps if isinstance(s, Scan) and s.chunks}


# --- what is summed --------------------------------------------------------------------------------------------------


READS = {
    "a bonus": ("sum[K](p * (S[t-1] + λ * k * v))", "sum[K](p * S[t-1]) + sum[K](λ * k * p) * v"),
    "a bonus, subtracted": ("sum[K]((S[t-1] - k * v) * p)", "sum[K](p * S[t-1]) - sum[K](k * p) * v"),
    "two bonuses": ("sum[K](p * (S[t] + k * v - λ * w))", None),
    "before and after": ("sum[K](p * (S[t] - S[t-1]))", "sum[K](p * S[t]) - sum[K](p * S[t-1])"),
    "twice": ("sum[K](p * S[t] + k * S[t])", "sum[K]((p + k) * S[t])"),
    "once more": ("sum[K](p * S[t] + S[t])", "sum[K]((p + 1.0) * S[t])"),
    "a mean": ("mean[K](p * S[t])", "sum[K](p * S[t]) / K"),
    "divided": ("sum[K](p * S[t] / (1 + d * d))", "sum[K](p * S[t]) / (1 + d * d)"),
    "divided by key": ("sum[K](p * S[t] / (2 + tanh(k)))", "sum[K](p / (2 + tanh(k)) * S[t])"),
    "divided with a bonus": (
        "sum[K](p * (S[t-1] + k * v) / (1 + d * d))",
        "sum[K](p * S[t-1]) / (1 + d * d) + sum[K](k / (1 + d * d) * p) * v",
    ),
    "only divided": ("sum[K](S[t] / (1 + d * d))", "sum[K](S[t]) / (1 + d * d)"),
    "negated": ("sum[K](-p * S[t])", None),
    "a sign outside": ("sum[K](-(p * S[t]))", "-sum[K](p * S[t])"),
    "what lacks the keys": ("sum[K](S[t] + v)", "sum[K](S[t]) + v * K"),
    "what is no product": ("sum[K](p * S[t] + tanh(k * v))", "sum[K](p * S[t]) + sum[K](tanh(k * v))"),
}


@pytest.mark.parametrize("name", READS)
def test_reads_within_sums(name: str) -> None:
    read, want = READS[name]
    text = cell(UPDATE, read)
    assert "S" in chunked(text)
    if want is not None:
        ((_, found),) = plan_of(text).system.outputs
        assert expr_text(found) == want
    compared(text, 17)


ROTATED = """cell C
dim H = 2, K = 3, V = 4, G = 2
input q[H, K], p[H, K], k[H, K], v[H, V], w[H, K], g[H] in [0, 1], f[G, H, K]
state φ[H, K], S[H, K, V], R[H, K, V]
φ[t] = φ[t-1] + w
S[t] = g * S[t-1] + k * cos(φ[t]) * v
R[t] = g * R[t-1] + k * sin(φ[t]) * v
output READ
"""


@pytest.mark.parametrize(
    "read",
    ["sum[K](q * cos(φ[t]) * S[t] + p * sin(φ[t]) * R[t])", "sum[G, K](f * S[t]) + mean[K, G](f * R[t] - S[t-1])"],
    ids=["a smaller state in the query", "over a dim that the state lacks"],
)
def test_reads_of_two_states(read: str) -> None:
    text = ROTATED.replace("READ", read)
    assert set(chunked(text)) == {"S", "R"}
    compared(text, 17)


KEPT = {
    "a product": "sum[K](p * S[t] * v)",
    "not of the state's sum": "sum[K](p * (k * v + w)) + sum[K](S[t])",
    "squared": "sum[K](S[t] * (S[t] + v))",
    "within a function": "sum[K](p * tanh(S[t] + k * v))",
    "below": "sum[K](p / (S[t] + k * v))",
    "all is summed": "sum[H, K, V](p * w * (S[t] + k * v))",
    "too many terms": "sum[K](S[t] + k + v + w + d + λ + p + e + s)",
}


@pytest.mark.parametrize("name", KEPT)
def test_sums_that_are_left_alone(name: str) -> None:
    (made,) = compile_source(Source("test.rnn", cell(UPDATE, KEPT[name])))
    assert made.cell is not None and made.plan is not None
    ((_, found),) = made.plan.system.outputs
    assert expr_text(found) == expr_text(made.cell.outputs[0].expr)


def test_the_sum_in_an_own_update_is_left_alone() -> None:
    """What a state is corrected with is for its family to read."""
    text = cell("S[t-1] + d * k * (v - sum[K](k * (S[t-1] + p)))", "sum[K](p * (S[t] + k * v))")
    plan = plan_of(text)
    assert "sum[K](k * (S[t-1] + p))" in expr_text(plan.system.stream("S").expr)
    assert "sum[K](k * p) * v" in expr_text(plan.system.outputs[0][1])


def test_a_part_of_a_complex_sum() -> None:
    text = """cell C
dim K = 3, V = 4
input q[K]: complex, k[K], v[V]: complex, a[K]: complex in disc(1)
state S[K, V]: complex
S[t] = a * S[t-1] + k * v
output sum[K](real(q * (S[t-1] + k * v)) * k)
"""
    assert "S" in chunked(text)
    compared(text, 17)


def test_a_read_keeps_its_name() -> None:
    text = cell(UPDATE, "tanh(o) + o").replace("state S", "o = sum[K](p * (S[t-1] + λ * k * v))\nstate S")
    system = plan_of(text).system
    assert "o" in {name for node, name in system.names.items() if "S[t-1]" in expr_text(node)}


# --- normalisers -----------------------------------------------------------------------------------------------------


def normalised(n: str, update: str = UPDATE, reads: str = "sum[K](p * S[t]) / (1 + square(sum[K](p * n[t])))") -> str:
    return cell(update, reads).replace("state S", f"state n[H, K]\nn[t] = {n}\nstate S")


BESIDE = {
    "mLSTM's": normalised("g * n[t-1] + k"),
    "with a gate": normalised("g * n[t-1] + d * k", "g * S[t-1] + d * k * v"),
    "the gate at the values": normalised("g * n[t-1] + d * k", "g * S[t-1] + k * (v * d)"),
    "written first": normalised("k * d + g * n[t-1]", "v * (k * d) + g * S[t-1]"),
    "two writes": normalised("g * n[t-1] + k - p", "g * S[t-1] - p * w + k * v"),
    "one of two writes": normalised("g * n[t-1] - p", "g * S[t-1] + k * v - p * w"),
    "a key twice": normalised("g * n[t-1] + k + d * k"),
    "read before the write": normalised("g * n[t-1] + k", reads="sum[K](p * S[t-1]); sum[K](p * n[t-1])"),
    "one of two reads": normalised("g * n[t-1] + k", reads="sum[K](p * S[t-1]); sum[K](k * S[t]); sum[K](k * n[t])"),
    "read with a bonus": normalised("g * n[t-1] + k", reads="sum[K](p * S[t]); sum[K](p * (n[t] + λ * k))"),
    "grouped queries": normalised("g * n[t-1] + k", reads="sum[K](q * S[t]); sum[K](q * n[t])"),
    "the same read in two ways": normalised(
        "g * n[t-1] + k", reads="sum[K](p * S[t]); sum[K](S[t] * p); sum[K](p * n[t]); sum[K](n[t] * p)"
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_normalisers(name: str) -> None:
    found = chunked(BESIDE[name])["n"]
    assert (found.heads, found.keys, found.values, found.beside) == (("H",), ("K",), (), "S")
    compared(BESIDE[name], 17)
    compared(BESIDE[name], 1)


ALONE = {
    "another decay": normalised("e * n[t-1] + k"),
    "another key": normalised("g * n[t-1] + p"),
    "another query": normalised("g * n[t-1] + k", reads="sum[K](p * S[t]) + sum[K](k * n[t])"),
    "an output": normalised("g * n[t-1] + k", reads="sum[K](p * S[t]) + sum[K](p * n[t]); n[t]"),
    "one for all heads": normalised("0.9 * n[t-1] + λ", "0.9 * S[t-1] + λ * v").replace("n[H, K]", "n[K]"),
    "by value": normalised("e * n[t-1] + k", "r * S[t-1] + k * v"),
    "the query needs it": normalised("g * n[t-1] + k", reads="sum[K](p * sum[K](p * n[t]) * S[t])"),
}


@pytest.mark.parametrize("name", ALONE)
def test_normalisers_that_stay_scans(name: str) -> None:
    found = chunked(ALONE[name])
    assert "S" in found and "n" not in found
    compared(ALONE[name], 17)


def test_a_normaliser_that_is_declared_later_or_read_by_a_stepped_state() -> None:
    text = cell(UPDATE, "y[t]", "S[H, K, V] = 0.5").replace(
        "output", "state n[H, K] = param\nn[t] = g * n[t-1] + k\nstate y[H, V]\ny[t] = tanh(y[t-1] + o)\noutput"
    )
    text += "o = sum[K](p * S[t]) / (1 + square(sum[K](p * n[t])))\n"
    assert chunked(text)["n"].beside == "S"
    compared(text, 17)


@st.composite
def cells(draw: st.DrawFn) -> str:
    factor = draw(st.sampled_from(["0.9", "s", "g", "sigmoid(λ)", "e"]))
    keys = draw(st.lists(st.sampled_from(["k", "p", "λ"]), min_size=1, max_size=2, unique=True))
    gate = draw(st.sampled_from(["", "d * ", "e * "]))
    values = draw(st.lists(st.sampled_from(["v", "w", "tanh(v)"]), min_size=len(keys), max_size=len(keys)))
    update = f"{factor} * S[t-1]" + "".join(f" + {gate}{k} * {v}" for k, v in zip(keys, values, strict=True))
    n = f"{factor} * n[t-1]" + "".join(f" + {gate}{k}" for k in keys)
    query, at = draw(st.sampled_from(["p", "q", "λ"])), draw(st.sampled_from(["t", "t-1"]))
    bonus = draw(st.sampled_from(["", " + k * v", " - λ * w + k * v"]))
    also = draw(st.sampled_from(["", " + k"]))
    reads = f"sum[K]({query} * (S[{at}]{bonus})) / (1 + square(sum[K]({query} * (n[{at}]{also}))))"
    return normalised(n, update, reads)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cells(), st.sampled_from((0, 1, 5, 64, 70)), st.integers(0, 3))
def test_random_cells(text: str, length: int, seed: int) -> None:
    assert set(chunked(text)) == {"S", "n"}
    compared(text, length, seed=seed)


# --- packed sequences ------------------------------------------------------------------------------------------------


NORMALISED = BESIDE["one of two reads"]
ENDS = {
    "one": [0, 70],
    "of one token": [0, 1, 2, 3, 4],
    "one long one": [0, 1, 2, 150, 151],
    "empty ones": [0, 0, 20, 20, 41, 70, 70],
    "whole chunks": [0, 64, 128],
    "a token more": [0, 65, 130],
    "no token": [0, 0, 0],
}


@pytest.mark.parametrize("text", [MIXED, BY_VALUE, NORMALISED], ids=["by key", "by value", "normalised"])
@pytest.mark.parametrize("name", ENDS)
def test_packed_sequences(text: str, name: str) -> None:
    """Outputs, final states and all gradients, those of the initial states among them."""
    ends = ENDS[name]
    ours, stepped = build(text, dtype=torch.float64), Interpreted(text)
    inputs, state = inputs_of(text, ours, 1, ends[-1], seed=2), some_state(ours, len(ends) - 1)
    packed = torch.tensor(ends)
    want = with_gradients(stepped, stepped(*inputs, state=state, cu_seqlens=packed), *inputs, *state)
    agree(with_gradients(ours, ours(*inputs, state=state, cu_seqlens=packed), *inputs, *state), want, rtol=1e-11)


def test_packed_complex_states() -> None:
    text, sizes = (EXAMPLES / "retnet.rnn").read_text(encoding="utf-8"), CASES["RetNet"].dims
    ours, stepped = (build(text, dtype=torch.float64, backend=b, **sizes) for b in ("auto", "reference"))
    stepped.load_state_dict(ours.state_dict())
    x, state = torch.randn(1, 90, ours.D, dtype=torch.float64, requires_grad=True), some_state(ours, 4)
    packed = torch.tensor([0, 3, 3, 80, 90])
    want = with_gradients(stepped, stepped(x, state=state, cu_seqlens=packed), x, *state)
    agree(with_gradients(ours, ours(x, state=state, cu_seqlens=packed), x, *state), want, rtol=1e-9)


def test_one_sequence_does_not_touch_another() -> None:
    ours = build(MIXED, dtype=torch.float64)
    inputs, ends = [x.detach() for x in inputs_of(MIXED, ours, 1, 100)], torch.tensor([0, 10, 11, 100])
    want = ours(*inputs, cu_seqlens=ends)
    for x in inputs:
        if x.is_floating_point():
            x[:, 10] = torch.nan
    got = ours(*inputs, cu_seqlens=ends)
    for now, before in zip(tensors(got)[:-1], tensors(want)[:-1], strict=True):
        assert torch.equal(now[:, :10], before[:, :10]) and torch.equal(now[:, 11:], before[:, 11:])
    assert torch.equal(tensors(got)[-1][[0, 2]], tensors(want)[-1][[0, 2]])


def test_packed_sequences_keep_no_token_states() -> None:
    text = cell(UPDATE)
    ours = build(text, K=32, V=32)
    saved: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    inputs = inputs_of(text, ours, 1, 256, dtype=torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = ours(*inputs, cu_seqlens=torch.tensor([0, 100, 256]))[0]
    assert sum(saved.values()) < 256 * 2 * 32 * 32 * 4 / 6
    out.sum().backward()


def test_packed_compiles_once() -> None:
    torch._dynamo.reset()
    ours: Any = build(MIXED, dtype=torch.float64)
    faster = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for ends in ([0, 5, 9], [0, 30, 31, 70]):
        inputs, packed = inputs_of(MIXED, ours, 1, ends[-1]), torch.tensor(ends)
        want = with_gradients(ours, ours(*inputs, cu_seqlens=packed), *inputs)
        agree(with_gradients(ours, faster(*inputs, cu_seqlens=packed), *inputs), want)


# --- the prefix of JRT-RNN -------------------------------------------------------------------------------------------


def test_a_prefix_by_state() -> None:
    """Arora et al. 2024, equation 6: every token reads all of the prefix, as the encoder's keys and values have it, and
    the decoder's up to itself."""
    case = CASES["JRT"]
    jrt = build((EXAMPLES / "jrt.rnn").read_text(encoding="utf-8"), dtype=torch.float64, **case.dims)
    encoder, decoder = (case.draw(2, n, seed) for n, seed in ((6, 1), (9, 2)))
    _, prefix = jrt(encoder["q"], encoder["k"], encoder["v"])
    found, _ = jrt(*decoder.values(), state=prefix)
    q, k, v = (decoder[n] for n in "qkv")
    scale = q.shape[-1] ** -0.5

    def scores(keys: torch.Tensor) -> torch.Tensor:
        products = scale * torch.einsum("bthk,bihk->bhti", q, keys)
        return 1 + products + products**2 / 2

    own = scores(k).tril()
    weights = torch.cat([scores(encoder["k"]), own], -1)
    want = torch.einsum("bhti,bihv->bthv", weights, torch.cat([encoder["v"], v], 1)) / weights.sum(-1).mT[..., None]
    torch.testing.assert_close(found, want)
