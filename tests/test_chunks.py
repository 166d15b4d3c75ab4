"""Matrix states that are only read through contractions, by chunks of tokens: which they are, however they are written;
values and all gradients against the float64 interpreter for cells drawn at random; what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rnnc.chunks import Chunks
from rnnc.pipeline import compile_source
from rnnc.plan import Scan
from rnnc.show import expr_text
from rnnc.source import Source
from tests.cells import EXAMPLES
from tests.modules import Interpreted, agree, build, checked, load, some_state, tensors, with_gradients

HEAD = """cell C
dim G = 2, H = 2, K = 3, V = 4
input q[G, H, K], p[H, K], k[H, K], v[H, V], w[V], d[H], f[H, K]: bool, m[H]: bool
input s[H] in [-1, 1], g[H, K] in [-1, 1], r[H, V] in [-1, 1], e in [0, 1], z[H, K, V] in [0, 1]
param λ[K] = uniform(0.1, 0.9)
"""


def cell(update: str, reads: str = "sum[K](p * S[t])", state: str = "S[H, K, V]") -> str:
    outputs = "".join(f"output {read}\n" for read in reads.split("; "))
    return f"{HEAD}state {state}\nS[t] = {update}\n{outputs}"


def parts(text: str) -> Chunks | None:
    """How the only state of a cell, or the one called `C` or `S`, is computed."""
    (made,) = compile_source(Source("test.rnn", text))
    assert made.plan is not None
    (step,) = (s for s in made.plan.steps if isinstance(s, Scan) and s.stream.name in ("C", "S"))
    assert step.kernel == ("chunks of tokens, in matrix products" if step.chunks else "affine scan")
    return step.chunks


# --- which states ----------------------------------------------------------------------------------------------------


CHUNKED = {
    "gla": {"S": "H | K | V"},
    "gsa": {"R": "H | K | M, by value", "S": "H | M | V"},
    "hgrn2": {"S": "H | K | V"},
    "jrt": {"S1": "H | K | V", "n1": "H | K | beside S1", "S2": "H | K J | V", "n2": "H | K J | beside S2"},
    "linearattention": {"S": "H | K | V", "z": "H | K | beside S"},
    "mamba2": {"S": "H | K | V"},
    "mamba2block": {"S": "H | K | V"},
    "mesanet": {"G": "H | K | V"},
    "mlstm": {"C": "H | K | V", "n": "H | K | beside C"},
    "mlstmblock": {"C": "H | K | V", "n": "H | K | beside C"},
    "retnet": {"S": "H | K | V"},
    "rwkv6": {"S": "H | K | V"},
    "transnormerllm": {"S": "H | K | V"},
}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.rnn")), ids=lambda p: p.stem)
def test_examples(path: Path) -> None:
    """What of each example is computed by chunks: heads, keys and values."""
    (made,) = compile_source(Source(path.name, path.read_text(encoding="utf-8")))
    assert made.plan is not None
    found: dict[str, str] = {}
    for step in made.plan.steps:
        if isinstance(step, Scan) and (c := step.chunks):
            values = " ".join(c.values) or f"beside {c.beside}"
            by_value = "" if c.keyed else ", by value"
            found[step.stream.name] = f"{' '.join(c.heads)} | {' '.join(c.keys)} | {values}{by_value}"
    assert found == CHUNKED.get(path.stem, {})


WRITTEN = {
    "gated": "g * S[t-1] + d * k * v",
    "grouped from the right": "g * S[t-1] + k * (v * w)",
    "the write first": "k * v + g * S[t-1]",
    "subtracted": "g * S[t-1] - k * v",
    "divided": "g * S[t-1] + k * v / (1 + d * d)",
    "convex": "g * S[t-1] + (1 - g) * v",
    "one gate for both": "e * (S[t-1] + k * v)",
    "a sum of products": "S[t-1] * s + d * (k * v - p * (v + w))",
    "multiplied out": "e * S[t-1] + (k + p) * (v - w)",
    "no decay": "S[t-1] + k * v",
    "a constant": "0.9 * S[t-1] + k * v",
    "what parameters decide": "sigmoid(λ) * S[t-1] + k * v",
    "per value": "r * S[t-1] + k * v",
    "no key": "g * S[t-1] + v",
    "where a token counts": "where(m, g * S[t-1] + k * v, S[t-1])",
    "one write or another": "g * S[t-1] + where(m, k * v, -p * w)",
    "a product of functions": "g * S[t-1] + softmax[K](k) * tanh(v)",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_ways_of_writing(name: str) -> None:
    found = parts(cell(WRITTEN[name]))
    assert found is not None
    assert (found.heads, found.keys, found.values) == (("H",), ("K",), ("V",))
    assert found.keyed == (name != "per value")


PUT_TOGETHER = {
    "k * v + k * w": [("k", "v + w")],
    "d * k * v - k * w": [("k", "d * v - w")],
    "k * v - p * v": [("k - p", "v")],
    "k * (d * v) + p * e * v": [("d * k + p * e", "v")],
    "k * v + k * w - p * v - p * w": [("k - p", "v + w")],
    "k * v + p * w": [("k", "v"), ("p", "w")],
    "k * v + k * p * w": [("k", "v"), ("k * p", "w")],
    "-k * v + v * k": [("k", "v - v")],
}


@pytest.mark.parametrize("written", PUT_TOGETHER)
def test_products_of_one_key_or_one_value_are_one(written: str) -> None:
    found = parts(cell(f"g * S[t-1] + {written}"))
    assert found is not None
    assert [(expr_text(k), expr_text(v)) for k, v in found.writes] == PUT_TOGETHER[written]


def test_dims_that_only_values_have_are_values() -> None:
    text = "cell C\ndim H = 2, K = 3, V = 4\ninput q[K], k[K], v[H, V], a[K] in [0, 1]\n"
    found = parts(f"{text}state S[H, K, V]\nS[t] = a * S[t-1] + k * v\noutput sum[K](q * S[t])\n")
    assert found is not None and (found.heads, found.values) == ((), ("H", "V"))


READS = {
    "before the write": "sum[K](p * S[t-1])",
    "both": "sum[K](p * S[t]); sum[K](k * S[t-1])",
    "grouped queries": "sum[K](q * S[t])",
    "through a product": "sum[K](d * (S[t] * p) * λ)",
    "no query": "sum[K](S[t])",
    "within more": "tanh(sum[K](p * S[t]) * r) / (1 + e)",
}


@pytest.mark.parametrize("name", READS)
def test_ways_of_reading(name: str) -> None:
    assert parts(cell("g * S[t-1] + k * v", READS[name])) is not None


REFUSED = {
    "the state is an output": cell("g * S[t-1] + k * v", "S[t]; sum[K](p * S[t])"),
    "an entry by itself": cell("g * S[t-1] + k * v", "sum[K](p * tanh(S[t]))"),
    "read further back": cell("g * S[t-1] + k * v", "sum[K](p * S[t-2])"),
    "two sums": cell("g * S[t-1] + k * v", "sum[K](p * S[t]); sum[V](w * S[t])"),
    "all is summed": cell("g * S[t-1] + k * v", "sum[H, K, V](p * w * S[t])"),
    "another reduction": cell("g * S[t-1] + k * v", "max[K](p * S[t])"),
    "squared": cell("g * S[t-1] + k * v", "sum[K](S[t] * S[t])"),
    "a query from an earlier read": cell("g * S[t-1] + k * v", "sum[K](sum[K](S[t]) * S[t])"),
    "a learned map": cell("g * S[t-1] + k * v", "sum[K](p * S[t]); linear[V](S[t])"),
    "a factor for each entry": cell("z * S[t-1] + k * v"),
    "a write that is no product": cell("g * S[t-1] + tanh(k * v)"),
    "a choice for each key": cell("g * S[t-1] + where(f, k * v, 0)"),
    "unbounded": cell("(2 * g) * S[t-1] + k * v"),
    "read by another state": cell("g * S[t-1] + k * v").replace(
        "state S", "state n[H, K, V]\nn[t] = tanh(n[t-1] + S[t])\nstate S"
    ),
}


WHY = {
    "the state is an output": "each of its entries is asked for",
    "an entry by itself": "`tanh(S[t])` reads it otherwise than by sums of products of it",
    "read further back": "it is read 2 tokens back",
    "two sums": "`sum[K](p * S[t])` and `sum[V](w * S[t])` sum over different dims",
    "all is summed": "`sum[H, K, V](p * w * S[t])` sums over all of its dims",
    "a factor for each entry": "its factor differs along H, K, V at once",
    "a write that is no product": "",
    "unbounded": "its factor was not proved to lie in [-1, 1], as one in a declared range is",
}
"""What could be in chunks, had it other readers or factors."""


@pytest.mark.parametrize("name", REFUSED)
def test_what_stays_a_scan(name: str) -> None:
    (made,) = compile_source(Source("test.rnn", REFUSED[name]))
    assert made.plan is not None
    assert not any(isinstance(s, Scan) and s.chunks for s in made.plan.steps)
    (whole,) = (s.whole for s in made.plan.steps if isinstance(s, Scan) and s.stream.name == "S")
    assert whole == WHY.get(name, whole)


# --- values and gradients --------------------------------------------------------------------------------------------


def inputs_of(text: str, module: Any, *lead: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Inputs with gradients; factors are now and then exactly 0, 1 or -1."""
    generator = torch.Generator().manual_seed(seed)
    out: list[Tensor] = []
    for i in checked(text).inputs:
        shape = [*lead, *(getattr(module, d) for d in i.type.dims)]
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        if i.type.kind == "bool":
            out.append(x > 0)
            continue
        if i.type.kind == "complex":
            x = torch.polar(torch.rand(shape, generator=generator, dtype=torch.float64), 3 * x)
        elif i.region is not None:
            rare = torch.rand(shape, generator=generator, dtype=torch.float64)
            x = torch.where(rare < 0.1, x.round().clamp(-1, 1), torch.tanh(3 * x))
            x = x.abs() if i.name in "ez" else x
        out.append(x.to(dtype.to_complex() if x.is_complex() else dtype).requires_grad_())
    return out


def compared(text: str, length: int, batch: int = 2, seed: int = 0, rtol: float = 1e-11) -> None:
    """All outputs, final states and gradients against the interpreter."""
    ours, stepped = build(text, dtype=torch.float64), Interpreted(text)
    assert "chunks" in ours.plan["S"]
    inputs, state = inputs_of(text, ours, batch, length, seed=seed), some_state(ours, batch)
    want = with_gradients(stepped, stepped(*inputs, state=state), *inputs, *state)
    agree(with_gradients(ours, ours(*inputs, state=state), *inputs, *state), want, rtol=rtol, atol=1e-11)


LENGTHS = (0, 1, 2, 15, 16, 17, 64, 70, 130)
FACTOR = ("0.9", "s", "g", "r", "sigmoid(λ)", "(e * s)", "(g * e)", "e")
QUERY = ("p", "(λ * p)", "d * p", "k", "1")


@st.composite
def cells(draw: st.DrawFn) -> str:
    factor = draw(
        st.sampled_from(["", "0.9 * ", "s * ", "g * ", "r * ", "sigmoid(λ) * ", "(e * s) * ", "(g * e) * ", "e * "])
    )
    key, value = st.sampled_from(["k", "d * k", "λ", "f", "(k - p)"]), st.sampled_from(["v", "w", "(v * w)", "tanh(v)"])
    writes = draw(st.lists(st.tuples(st.sampled_from(["+", "-"]), key, value), min_size=1, max_size=2))
    update = f"{factor}S[t-1]" + "".join(f" {sign} {k} * {v}" for sign, k, v in writes)
    update = draw(st.sampled_from([update, update, f"where(m, {update}, S[t-1])"]))
    query = st.sampled_from([*QUERY, "q"])
    reads = draw(st.lists(st.tuples(query, st.sampled_from(["S[t]", "S[t-1]"])), min_size=1, max_size=3, unique=True))
    layout = ", ".join(draw(st.permutations(["H", "K", "V"])))
    start = draw(st.sampled_from(["", " = 0.5", " = param"]))
    return cell(update, "; ".join(f"sum[K]({q} * {s})" for q, s in reads), f"S[{layout}]{start}")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cells(), st.sampled_from(LENGTHS), st.integers(0, 3))
def test_random_cells(text: str, length: int, seed: int) -> None:
    compared(text, length, seed=seed)


MIXED = cell("g * S[t-1] + k * v - p * w", "sum[K](q * S[t]); sum[K](p * S[t-1])", "S[V, H, K] = 0.5")
BY_VALUE = cell("r * S[t-1] + k * v - p * w", "sum[K](q * S[t]); sum[K](p * S[t-1])", "S[V, H, K] = 0.5")
both = pytest.mark.parametrize("text", [MIXED, BY_VALUE], ids=["by key", "by value"])
COMPLEX = """cell C
dim K = 3, V = 4
input q[K]: complex, k[K], v[V]: complex, a[AXIS]: complex in disc(1)
state S[K, V]: complex
S[t] = a * S[t-1] + k * v
output sum[K](q * S[t])
output real(sum[K](k * S[t-1]))
"""


@both
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths(text: str, length: int) -> None:
    compared(text, length)


CHAINED = """cell C
dim H = 2, M = 3, K = 2, V = 4
input q[H, K], k[H, K], v[H, V], a[H, M] in [0, 1]
state FIRST
state SECOND
state n[V]
R[t] = a * R[t-1] + (1 - a) * k
S[t] = a * S[t-1] + (1 - a) * v
o = sum[M](softmax[M](sum[K](q * R[t])) * S[t])
n[t] = tanh(n[t-1] + sum[H](o))
output o
output n[t]
"""
MANY = """cell C
dim A = 2, B = 2, K = 3, N = 2, V = 2, W = 3
input q[N, B, K], k[K, A, N], v[B, V, W, A], g[B, N] in [-1, 1]
state S[W, K, A, N, B, V]
S[t] = g * S[t-1] + k * v
output sum[N, K](q * S[t-1] * k)
"""


@pytest.mark.parametrize("order", [("R[H, M, K]", "S[H, M, V]"), ("S[H, M, V]", "R[H, M, K]")], ids=["in order", "not"])
def test_chained_states(order: tuple[str, str]) -> None:
    """Gated slot attention: what one state is read for is the query of the next, however they are declared; and a state
    that is stepped reads both."""
    text = CHAINED.replace("FIRST", order[0]).replace("SECOND", order[1])
    assert "chunks" in build(text).plan["R"]
    compared(text, 17)
    compared(text, 70)


def test_several_dims_of_each_part() -> None:
    found = parts(MANY)
    assert found is not None
    assert (found.heads, found.keys, found.values) == (("A", "B"), ("K", "N"), ("W", "V"))
    compared(MANY, 17)
    compared(MANY, 70)


@pytest.mark.parametrize("name", ["where a token counts", "one write or another", "divided"])
def test_choices(name: str) -> None:
    compared(cell(WRITTEN[name]), 70)


def test_what_is_not_chosen_does_not_matter() -> None:
    text = cell(WRITTEN["where a token counts"])
    ours = build(text, dtype=torch.float64)
    inputs = dict(zip((i.name for i in checked(text).inputs), inputs_of(text, ours, 1, 70), strict=True))
    want = torch.autograd.grad(ours(*inputs.values())[0].sum(), inputs["k"])
    skipped = ~inputs["m"][..., None]
    with torch.no_grad():
        inputs["k"].masked_fill_(skipped, torch.nan)
        inputs["v"].masked_fill_(skipped, torch.inf)
    agree(torch.autograd.grad(ours(*inputs.values())[0].sum(), inputs["k"]), want)


@pytest.mark.parametrize("axis", ["K", "V"])
@pytest.mark.parametrize("length", [1, 17, 70])
def test_complex(axis: str, length: int) -> None:
    compared(COMPLEX.replace("AXIS", axis), length)


@both
def test_an_empty_batch(text: str) -> None:
    compared(text, 5, batch=0)


@both
def test_packed_sequences_and_steps(text: str) -> None:
    ours, stepped = build(text, dtype=torch.float64), Interpreted(text)
    inputs, state = inputs_of(text, ours, 1, 70), some_state(ours, 4)
    ends = torch.tensor([0, 20, 20, 21, 70])
    want = with_gradients(stepped, stepped(*inputs, state=state, cu_seqlens=ends), *inputs, *state)
    agree(with_gradients(ours, ours(*inputs, state=state, cu_seqlens=ends), *inputs, *state), want, rtol=1e-11)
    now, outs = None, []
    for t in range(5):
        (out, *_), now = ours.step(*(x[:, t] for x in inputs), now)
        outs.append(out)
    agree([torch.stack(outs, 1)], [ours(*(x[:, :5] for x in inputs))[0][0]])


@both
@pytest.mark.parametrize("strong", [1e-9, 1e-30, 0.0])
def test_strong_decays_that_mix_with_weak_ones(text: str, strong: float) -> None:
    """Gradients of small factors are those of the interpreter, each by itself: nothing cancels."""
    ours, stepped = build(text, dtype=torch.float64), Interpreted(text)
    inputs = inputs_of(text, ours, 1, 70)
    names = [i.name for i in checked(text).inputs]
    chosen = [names.index(n) for n in ("g", "r")]
    with torch.no_grad():
        for i in chosen:
            rare = torch.rand(inputs[i].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            inputs[i].copy_(torch.where(rare < 0.3, strong, 1 - 1e-3 * rare))
    leaves = [inputs[i] for i in chosen]
    found, want = (
        torch.autograd.grad(torch.cat([y.flatten() for y in m(*inputs)[0]]).square().sum(), leaves, allow_unused=True)
        for m in (ours, stepped)
    )
    for a, b in zip(found, want, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


@both
def test_float32(text: str) -> None:
    ours, exact = build(text, dtype=torch.float32), Interpreted(text)
    exact.inner.load_state_dict(ours.state_dict())
    inputs = inputs_of(text, ours, 2, 200, dtype=torch.float32)
    wide = [x.detach().double().requires_grad_() if x.is_floating_point() else x for x in inputs]
    got, want = with_gradients(ours, ours(*inputs), *inputs), with_gradients(exact, exact(*wide), *wide)
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm() + 1e-6


def test_nothing_of_later_tokens_is_read() -> None:
    ours = build(MIXED, dtype=torch.float64)
    inputs = [x.detach() for x in inputs_of(MIXED, ours, 1, 70)]
    want = ours(*inputs)[0]
    for x in inputs:
        if x.is_floating_point():
            x[:, 40:] = torch.nan
    for got, all_of in zip(ours(*inputs)[0], want, strict=True):
        assert torch.equal(got[:, :40], all_of[:, :40]) and got[:, 41:].isnan().all()


@both
def test_autocast_changes_nothing(text: str) -> None:
    ours = build(text, dtype=torch.float32)
    inputs = [x.float() if x.is_floating_point() else x for x in inputs_of(text, ours, 1, 20)]
    want = tensors(ours(*inputs))
    with torch.autocast("cpu", torch.bfloat16):
        agree([y.float() for y in tensors(ours(*inputs))], want, rtol=0, atol=1e-2, dtype=False)
        agree(tensors(ours(*inputs))[-1:], want[-1:], rtol=0, atol=0)


# --- under PyTorch's own tools ---------------------------------------------------------------------------------------


@both
def test_opcheck(text: str) -> None:
    """The operators' own checks: schema, fakes, autograd registration, dynamic shapes."""
    module = load(text)
    keyed = text is MIXED
    q, k, v = (torch.randn(2, 5, 2, 2, n, dtype=torch.float64, requires_grad=True) for n in (3, 3, 4))
    a = torch.rand(2, 5, 2, 3 if keyed else 4, dtype=torch.float64, requires_grad=True)
    initial = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(module._chunks.operator, (a, q, k, v, initial, 1, keyed, None))
    one = [x[:1].detach().requires_grad_() for x in (a, q, k, v)]
    torch.library.opcheck(module._chunks.operator, (*one, initial, 1, keyed, torch.tensor([0, 4, 5])))


def test_one_graph_for_all_lengths() -> None:
    torch._dynamo.reset()
    graphs: list[Any] = []

    def backend(graph: Any, given: list[Tensor]) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, given)

    ours = build(MIXED, dtype=torch.float64)
    faster = torch.compile(ours, fullgraph=True, backend=backend)
    for batch, length in ((2, 5), (3, 7), (2, 70), (4, 16), (2, 300)):
        inputs = inputs_of(MIXED, ours, batch, length)
        want = with_gradients(ours, ours(*inputs), *inputs)
        agree(with_gradients(ours, faster(*inputs), *inputs), want)
    assert len(graphs) == 2


def test_saved_is_what_was_given() -> None:
    """No state of a token is kept, nor of a chunk."""
    ours = build(cell("g * S[t-1] + k * v"), K=32, V=32)
    saved: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    inputs = inputs_of(cell("g * S[t-1] + k * v"), ours, 1, 256, dtype=torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = ours(*inputs)[0]
    state = 2 * 32 * 32 * 4
    assert sum(saved.values()) <= 256 * 4 * 2 * 32 * 4 + state < 256 * state / 7
    out.sum().backward()


def test_second_derivatives_are_an_error() -> None:
    ours = build(MIXED, dtype=torch.float64)
    inputs = inputs_of(MIXED, ours, 1, 5)
    (first,) = torch.autograd.grad(ours(*inputs)[0][0].square().sum(), inputs[2], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        first.sum().backward()
