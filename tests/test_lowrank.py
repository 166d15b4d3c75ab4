"""States whose transitions are a factor plus something of low rank (delta rules, reflections): which they are, however
they are written; that a wrong composition has no certificate; values and all gradients of their chunks against the
float64 interpreter for cells drawn at random; what is saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rnnc.closure import LowRank, Sequential, close, lowrank
from rnnc.explain import reason
from rnnc.group import group
from rnnc.ir import Expr, Graph
from rnnc.lower import lower
from rnnc.pipeline import compile_source
from rnnc.plan import Loop
from rnnc.rank import RankChunks
from rnnc.source import Source
from tests.cells import EXAMPLES, read
from tests.modules import agree, build, load, some_state, tensors, with_gradients
from tests.test_chunks import inputs_of

HEAD = """cell C
dim G = 2, J = 2, R = 2, H = 2, K = 32, V = 16, L = K
input q[G, H, K], p[H, K], k[H, K], v[H, V], w[V], u[H, V], m[H]: bool, f[H, K]: bool
input s[H] in [-1, 1], g[H, K] in [-1, 1], e in [0, 1], b[H] in [-2, 2], d[H]
input kj[J, H, K], vj[J, H, V], bj[J, H] in [-2, 2], sj[J, H] in [-1, 1], kr[R, H, K], ur[R, H, K]
param λ[K] = uniform(0.1, 0.9)
n = l2norm[K](k)
c = sum[K](n * S[t-1])
"""
CHUNKS = "chunks of tokens, low-rank transitions solved"


def cell(update: str, reads: str = "sum[K](p * S[t])", state: str = "S[H, K, V]", over: str = "") -> str:
    outputs = "".join(f"output {read}\n" for read in reads.split("; "))
    return f"{HEAD}state {state}\nS[t]{over} = {update}\n{outputs}"


def closed(text: str, state: str = "S") -> Any:
    system = lower(read(text))
    (found,) = [c for c in (close(system, g) for g in group(system)) if state in c.group.states]
    return found


def parts(text: str) -> RankChunks | None:
    (made,) = compile_source(Source("test.rnn", text))
    assert made.plan is not None
    (step,) = (s for s in made.plan.steps if isinstance(s, Loop) and "S" in s.closure.group.states)
    assert step.kernel == (CHUNKS if step.chunks else "loop over tokens")
    return step.chunks


# --- which groups ----------------------------------------------------------------------------------------------------

WRITTEN = {
    "delta": ("S[t-1] + b * n * (v - c)", 1),
    "the decay before": ("s * S[t-1] + b * n * (v - sum[K](n * (s * S[t-1])))", 1),
    "the decay after": ("s * (S[t-1] - b * n * c) + b * n * v", 1),
    "a decay per key before": ("g * S[t-1] + b * n * (v - sum[K](n * (g * S[t-1])))", 1),
    "a decay per key after": ("g * (S[t-1] - b * n * c + b * n * v)", 1),
    "diagonal plus rank one": ("g * S[t-1] + 0.2 * p * sum[K](n * S[t-1]) + k * v", 1),
    "two writes": ("S[t-1] - b * n * c - e * p * sum[K](p * (S[t-1] - b * n * c)) / (1 + sum[K](p * p)) + p * v", 2),
    "one after another": ("s * S[t-1] - b * n * sum[K](n * (s * S[t-1])) - e * λ * c + p * v", 1),
    "a gradient": ("S[t-1] - 0.3 * grad(sum[V](square(c - v)), S[t-1])", 1),
    "a sum over a rank": ("S[t-1] - 0.1 * sum[R](ur * sum[K](kr * S[t-1])) + k * v", 1),
    "a matrix in factors": ("s * S[t-1] - b * sum[L](n * n[K -> L] * S[t-1][K -> L]) + k * v", 1),
    "divided": ("(S[t-1] - b * n * c + k * v) / (1 + e)", 1),
    "a mean": ("S[t-1] - b * n * mean[K](k * S[t-1]) + k * v", 1),
    "where a token counts": ("where(m, S[t-1] - b * n * c + k * v, S[t-1])", 1),
    "started afresh": ("where(m, 0, s * (S[t-1] - b * n * c)) + k * v", 1),
    "no decay at all": ("b * n * c + k * v", 1),
    "the same twice": ("s * S[t-1] - b * n * c - b * n * c + k * v + k * v", 1),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_ways_of_writing(name: str) -> None:
    text, rank = WRITTEN[name]
    found = closed(cell(text))
    assert isinstance(found, LowRank) and found.inner == ("K",) and len(found.map.terms) == rank
    chunks = parts(cell(text))
    assert chunks is not None and not chunks.by_column
    assert (chunks.heads, chunks.mixed, chunks.columns) == (("H",), ("K",), ("V",))


BY_VALUE = cell(
    "g * (S[t-1] - e * u * sum[V](u * S[t-1]) / (1 + sum[V](u * u))) + k * v", "sum[K](p * S[t-1])"
).replace("g * (", "s * (")
PER_VALUE = BY_VALUE.replace("s * (S", "sigmoid(u) * (S")
TITANS = """cell C
dim H = 2, K = 32, V = 16
input q[H, K], k[H, K], v[H, V], s[H] in [0, 1], e[H] in [0, 1], g[H, K] in [0, 1]
state S[H, K, V], M[V, K, H] = 0.5
n = l2norm[K](k)
S[t] = s * S[t-1] - e * grad(0.5 * sum[V](square(sum[K](n * M[t-1]) - v)), M[t-1])
M[t] = g * M[t-1] + S[t]
output sum[K](q * M[t])
output sum[K](k * S[t-1])
"""
OVER = cell("sj * S[t-1] + bj * l2norm[K](kj) * (vj - sum[K](l2norm[K](kj) * S[t-1]))", over=" over J")


def test_a_correction_of_values() -> None:
    for text in (BY_VALUE, PER_VALUE):
        found = parts(text)
        assert found is not None and found.by_column
        assert (found.heads, found.mixed, found.columns) == (("H",), ("V",), ("K",))


def test_several_maps_a_token() -> None:
    found = closed(OVER)
    assert isinstance(found, LowRank) and found.over == "J"
    assert parts(OVER) is not None


UNMIXED = cell("(sj * g) * S[t-1] + kj * vj", "sum[K](q * S[t]); sum[K](p * S[t-1])", over=" over J")


def test_several_maps_that_take_no_sum() -> None:
    found = parts(UNMIXED)
    assert found is not None and (found.heads, found.mixed, found.columns) == (("H",), ("K",), ("V",))
    compared(UNMIXED, 21, K=16)
    assert parts(UNMIXED.replace("* g)", "* v)")) is None


def test_a_pair_of_states() -> None:
    found = closed(TITANS)
    assert isinstance(found, LowRank) and found.triangular
    assert [[e is not None for e in row] for row in found.map.factors] == [[True, False], [True, True]]
    assert parts(TITANS) is not None


@pytest.mark.parametrize("stem", ["gateddeltanet", "deltaproduct", "rwkv7", "titanslinear"])
def test_examples(stem: str) -> None:
    assert parts((EXAMPLES / f"{stem}.rnn").read_text(encoding="utf-8")) is not None


REFUSED = {
    "S[t-1] - b * n * tanh(c) + k * v": "`tanh(sum[K](l2norm[K](k) * S[t-1]))` is not affine in a state",
    "S[t-1] + linear[K](S[t-1]) * 0.1": "`linear[K](S[t-1])` mixes entries of a state by more than a few sums",
    "S[t-1] - b * n * c - 0.1 * u * sum[V](u * S[t-1])": "`S` is summed over K and V apart, so entries of both",
    "S[t-1] - 0.1 * sum[L](exp(n * n[K -> L]) * S[t-1][K -> L])": "is a full matrix along `K`",
    "S[t-1] - b * n * max[K](k * S[t-1])": "mixes entries of a state by more than a few sums",
    "S[t-1] - b * n * c * c": "is not affine in a state",
    "S[t-1] - b * n * sum[K](n * S[t-2])": "`S[t-2]` reaches back further than one token",
}


@pytest.mark.parametrize("update", REFUSED)
def test_what_is_not_of_low_rank(update: str) -> None:
    text = cell(update)
    found = closed(text)
    assert isinstance(found, Sequential)
    (refusal,) = (r for r in found.refusals if r.family == "low rank")
    assert REFUSED[update] in refusal.reason
    assert refusal.reason in reason(lower(read(text)), found)


STEPPED = {
    "the state is an output": cell(WRITTEN["delta"][0], "S[t]"),
    "an entry by itself": cell(WRITTEN["delta"][0], "sum[K](p * tanh(S[t]))"),
    "sums of both sides": cell(WRITTEN["delta"][0], "sum[K](p * S[t]); sum[V](w * S[t])"),
    "a write that is no product": cell("S[t-1] - b * n * c + tanh(k * v)", "sum[V](w * S[t])"),
    "matrices of few entries": cell(WRITTEN["delta"][0]).replace("V = 16", "V = 8"),
    "columns with factors of their own": cell("sigmoid(v) * S[t-1] - b * n * c + k * v"),
}


@pytest.mark.parametrize("name", STEPPED)
def test_what_is_stepped(name: str) -> None:
    assert isinstance(closed(STEPPED[name]), LowRank)
    assert parts(STEPPED[name]) is None
    (made,) = compile_source(Source("test.rnn", STEPPED[name]))
    assert made.plan is not None
    (whole,) = (s.whole for s in made.plan.steps if isinstance(s, Loop))
    assert ("fewer than 512 entries" in whole) == ("few" in name or "columns" in name) and whole


def _keeps_left(c: Callable[..., Any]) -> Callable[..., Any]:
    """U1 as it was."""

    def compose(graph: Graph, inner: tuple[str, ...], later: Any, earlier: Any) -> Any:
        made = c(graph, inner, later, earlier)
        kept = [replace(t, left=e.left) for t, e in zip(made.terms, earlier.terms, strict=False)]
        return replace(made, terms=(*kept, *made.terms[len(kept) :]))

    return compose


def _keeps_right(c: Callable[..., Any]) -> Callable[..., Any]:
    """V2 as it was."""

    def compose(graph: Graph, inner: tuple[str, ...], later: Any, earlier: Any) -> Any:
        made = c(graph, inner, later, earlier)
        return replace(made, terms=(*made.terms[: len(earlier.terms)], *later.terms))

    return compose


def _keeps_written(c: Callable[..., Any]) -> Callable[..., Any]:
    """B1 + B2."""

    def compose(graph: Graph, inner: tuple[str, ...], later: Any, earlier: Any) -> Any:
        total = tuple(graph.apply("add", x, y) for x, y in zip(earlier.rest, later.rest, strict=True))
        return replace(c(graph, inner, later, earlier), rest=total)

    return compose


def _swaps(c: Callable[..., Any]) -> Callable[..., Any]:
    def compose(graph: Graph, inner: tuple[str, ...], later: Any, earlier: Any) -> Any:
        return c(graph, inner, earlier, later)

    return compose


@pytest.mark.parametrize("mutant", [_keeps_left, _keeps_right, _keeps_written, _swaps])
def test_a_wrong_composition_has_no_certificate(mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(closed(cell(WRITTEN["a decay per key after"][0])), LowRank)
    monkeypatch.setattr(lowrank, "compose", mutant(lowrank.compose))
    found = closed(cell(WRITTEN["a decay per key after"][0]))
    assert isinstance(found, Sequential)
    assert found.refusals[-1].reason == "the composition could not be confirmed"


def test_a_wrong_split_has_no_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    right = lowrank.taken_apart

    def wrong(graph: Graph, update: Expr, *more: Any) -> Any:
        found: Any = right(graph, update, *more)
        return replace(found, reads={c: graph.apply("neg", e) for c, e in found.reads.items()})

    monkeypatch.setattr(lowrank, "taken_apart", wrong)
    found = closed(cell(WRITTEN["delta"][0]))
    assert isinstance(found, Sequential)
    assert found.refusals[-1].reason == "the sums of `S` could not be confirmed"


# --- values and gradients --------------------------------------------------------------------------------------------


def compared(text: str, length: int, batch: int = 2, seed: int = 0, rtol: float = 1e-10, **sizes: int) -> None:
    """All outputs, final states and gradients against the interpreter."""
    sizes = {"K": 5, "V": 4, **sizes}
    ours = build(text, dtype=torch.float64, **sizes)
    stepped = build(text, dtype=torch.float64, backend="reference", **sizes)
    stepped.load_state_dict(ours.state_dict())
    assert CHUNKS in ours.plan[next(n for n in ours.plan if "S" in n)]
    inputs, state = inputs_of(text, ours, batch, length, seed=seed), some_state(ours, batch)
    want = with_gradients(stepped, stepped(*inputs, state=state), *inputs, *state)
    agree(with_gradients(ours, ours(*inputs, state=state), *inputs, *state), want, rtol=rtol, atol=rtol)


LENGTHS = (0, 1, 2, 15, 16, 17, 64, 70, 130)


@pytest.mark.parametrize("name", WRITTEN)
def test_ways_of_writing_agree(name: str) -> None:
    compared(cell(WRITTEN[name][0], "sum[K](q * S[t]); sum[K](p * S[t-1])"), 21, K=16)


@st.composite
def cells(draw: st.DrawFn) -> str:
    """Factors, corrections nested in each other, writes, readers, layouts."""
    factor = draw(st.sampled_from(["", "0.9 * ", "s * ", "g * ", "(e * s) * ", "sigmoid(λ) * ", "(g * e) * "]))
    inner = f"{factor}S[t-1]"
    pairs = {"b * n": "n", "e * l2norm[K](p)": "l2norm[K](p)", "0.3 * l2norm[K](p)": "n", "b * where(m, n, 0)": "n"}
    for left in draw(st.lists(st.sampled_from(list(pairs)), min_size=1, max_size=2)):
        value = draw(st.sampled_from(["", "v - ", "tanh(v) - "]))
        sign = "+" if value else "-"
        inner = f"({inner} {sign} {left} * ({value}sum[K]({pairs[left]} * {inner})))"
    key, value = st.sampled_from(["k", "d * k", "λ", "f", "(k - p)"]), st.sampled_from(["v", "w", "(v * w)", "1"])
    for _ in range(draw(st.integers(0, 2))):
        inner += f" {draw(st.sampled_from(['+', '-']))} {draw(key)} * {draw(value)}"
    update = draw(st.sampled_from([inner, inner, f"where(m, {inner}, S[t-1])", f"where(m, 0, {inner})"]))
    query = st.sampled_from(["p", "(λ * p)", "d * p", "k", "q"])
    reads = draw(st.lists(st.tuples(query, st.sampled_from(["S[t]", "S[t-1]"])), min_size=1, max_size=3, unique=True))
    layout = ", ".join(draw(st.permutations(["H", "K", "V"])))
    start = draw(st.sampled_from(["", " = 0.5", " = param"]))
    return cell(update, "; ".join(f"sum[K]({q} * {s})" for q, s in reads), f"S[{layout}]{start}")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cells(), st.sampled_from(LENGTHS[:-1]), st.integers(0, 3), st.sampled_from([1, 5, 16]))
def test_random_cells(text: str, length: int, seed: int, keys: int) -> None:
    compared(text, length, seed=seed, K=keys)


MIXED = cell("s * S[t-1] + b * n * (v - c) - p * w", "sum[K](q * S[t]); sum[K](p * S[t-1])", "S[V, H, K] = 0.5")
BY_KEY = MIXED.replace("s * S[t-1]", "g * S[t-1]")
TWO = cell(WRITTEN["two writes"][0], "sum[K](q * S[t]); sum[K](p * S[t-1])")
SHAPES = {"scalar": MIXED, "per key": BY_KEY, "rank two": TWO, "pair": TITANS, "over": OVER, "by value": BY_VALUE}
both = pytest.mark.parametrize("text", [MIXED, BY_KEY], ids=["scalar", "per key"])
every = pytest.mark.parametrize("text", SHAPES.values(), ids=SHAPES)


def _unsolved(system: Tensor, rank: int, right: Tensor, back: bool = False) -> Tensor:
    return right


def _unmoved(whole: Tensor, state: Tensor, back: bool = False) -> Tensor:
    return state.clone()


def _undecayed(d: Tensor, x: Tensor) -> Tensor:
    return x.clone()


MUTANTS = {"_solved": _unsolved, "_moved": _unmoved, "_scaled": _undecayed, "_scaled_back": _undecayed}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_chunk_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What these comparisons are worth: each part that is left out shows."""
    monkeypatch.setattr(load(BY_KEY), name, MUTANTS[name])
    ours = build(BY_KEY, dtype=torch.float64, K=16)
    stepped = build(BY_KEY, dtype=torch.float64, backend="reference", K=16)
    inputs = inputs_of(BY_KEY, ours, 2, 40)
    want = with_gradients(stepped, stepped(*inputs), *inputs)
    with pytest.raises(AssertionError):
        agree(with_gradients(ours, ours(*inputs), *inputs), want)


@every
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths(text: str, length: int) -> None:
    compared(text, length, K=16)


def test_a_factor_for_each_value_that_is_mixed() -> None:
    compared(PER_VALUE, 21)


COMPLEX = """cell C
dim H = 2, K = 32, V = 16
input q[H, K]: complex, k[H, K]: complex, v[V]: complex, a[AXES]: complex in disc(1), b
state S[H, K, V]: complex
S[t] = a * S[t-1] - 0.05 * b * k * sum[K](conj(k) * S[t-1]) + k * v
output sum[K](q * S[t])
output real(sum[K](k * S[t-1]))
"""


@pytest.mark.parametrize("axes", ["H", "H, K"])
@pytest.mark.parametrize("length", [1, 21])
def test_complex(axes: str, length: int) -> None:
    compared(COMPLEX.replace("AXES", axes), length, K=8)


@every
def test_an_empty_batch(text: str) -> None:
    compared(text, 5, batch=0)


@every
def test_packed_sequences_and_steps(text: str) -> None:
    ours = build(text, dtype=torch.float64, K=16)
    stepped = build(text, dtype=torch.float64, backend="reference", K=16)
    stepped.load_state_dict(ours.state_dict())
    inputs, state = inputs_of(text, ours, 1, 70), some_state(ours, 4)
    ends = torch.tensor([0, 20, 20, 21, 70])
    want = with_gradients(stepped, stepped(*inputs, state=state, cu_seqlens=ends), *inputs, *state)
    agree(with_gradients(ours, ours(*inputs, state=state, cu_seqlens=ends), *inputs, *state), want, rtol=1e-10)
    now, outs = None, []
    for t in range(5):
        out, now = ours.step(*(x[:, t] for x in inputs), now)
        outs.append(out[0] if isinstance(out, tuple) else out)
    whole = ours(*(x[:, :5] for x in inputs))[0]
    agree([torch.stack(outs, 1)], [whole[0] if isinstance(whole, tuple) else whole])


@both
@pytest.mark.parametrize("strong", [1e-9, 1e-30, 0.0])
def test_strong_decays_that_mix_with_weak_ones(text: str, strong: float) -> None:
    """Gradients of small factors are those of the interpreter, each by itself: nothing cancels."""
    ours = build(text, dtype=torch.float64, K=16)
    stepped = build(text, dtype=torch.float64, backend="reference", K=16)
    inputs = inputs_of(text, ours, 1, 70)
    index = 8 if text is MIXED else 9
    with torch.no_grad():
        rare = torch.rand(inputs[index].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        inputs[index].copy_(torch.where(rare < 0.3, strong, 1 - 1e-3 * rare))
    found, want = (
        torch.autograd.grad(torch.cat([y.flatten() for y in m(*inputs)[0]]).square().sum(), inputs[index])
        for m in (ours, stepped)
    )
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("scale", [1.0, 3.0, 30.0])
def test_keys_of_any_norm(scale: float) -> None:
    """Transitions that grow from token to token, as far as the equations themselves do."""
    text = cell("s * S[t-1] - b * k * sum[K](k * S[t-1]) + k * v", "sum[K](q * S[t]); sum[K](p * S[t-1])")
    ours = build(text, dtype=torch.float64, K=16)
    stepped = build(text, dtype=torch.float64, backend="reference", K=16)
    inputs = inputs_of(text, ours, 2, 40)
    with torch.no_grad():
        inputs[2].mul_(scale)
    want = with_gradients(stepped, stepped(*inputs), *inputs)
    for a, b in zip(with_gradients(ours, ours(*inputs), *inputs), want, strict=True):
        assert (a - b).norm() <= 1e-9 * b.norm() + 1e-12


def test_factors_that_are_not_bounded_are_stepped_where_they_exceed_one() -> None:
    """What a factor of 3 makes and a correction takes away again would cancel: 3 ** 40 of it."""
    text = cell("d * S[t-1] - (d - 0.5) * n * c + k * v", "sum[K](q * S[t])")
    ours, stepped = build(text, dtype=torch.float64, K=1), build(text, dtype=torch.float64, backend="reference", K=1)
    inputs = inputs_of(text, ours, 2, 40)
    for factor in (3.0, 0.9):
        with torch.no_grad():
            inputs[12].fill_(factor)
        want = with_gradients(stepped, stepped(*inputs), *inputs)
        agree(with_gradients(ours, ours(*inputs), *inputs), want, rtol=1e-9, atol=1e-9)


@every
def test_float32(text: str) -> None:
    ours, exact = build(text, dtype=torch.float32, K=32), build(text, dtype=torch.float64, backend="reference", K=32)
    exact.load_state_dict(ours.state_dict())
    inputs = inputs_of(text, ours, 2, 200, dtype=torch.float32)
    wide = [x.detach().double().requires_grad_() if x.is_floating_point() else x for x in inputs]
    got, want = with_gradients(ours, ours(*inputs), *inputs), with_gradients(exact, exact(*wide), *wide)
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm() + 1e-6


@every
def test_nothing_of_later_tokens_is_read(text: str) -> None:
    ours = build(text, dtype=torch.float64, K=16)
    inputs = [x.detach() for x in inputs_of(text, ours, 1, 70)]
    want = tensors(ours(*inputs))[0]
    for x in inputs:
        if x.is_floating_point():
            x[:, 40:] = torch.nan
    got = tensors(ours(*inputs))[0]
    agree([got[:, :40]], [want[:, :40]], rtol=1e-11)
    assert got[:, 41:].isnan().all()


def test_what_is_not_chosen_does_not_matter() -> None:
    text = cell(WRITTEN["where a token counts"][0])
    ours = build(text, dtype=torch.float64, K=16)
    inputs = inputs_of(text, ours, 1, 70)
    want = torch.autograd.grad(ours(*inputs)[0].sum(), inputs[2])
    with torch.no_grad():
        inputs[2].masked_fill_(~inputs[6][..., None], torch.nan)
        inputs[3].masked_fill_(~inputs[6][..., None], torch.inf)
    (found,) = torch.autograd.grad(ours(*inputs)[0].sum(), inputs[2])
    chosen = inputs[6][..., None].expand_as(found)
    agree([found[chosen]], [want[0][chosen]])


@both
def test_autocast_changes_nothing(text: str) -> None:
    ours = build(text, dtype=torch.float32, K=16)
    inputs = [x.float() if x.is_floating_point() else x for x in inputs_of(text, ours, 1, 20)]
    want = tensors(ours(*inputs))
    with torch.autocast("cpu", torch.bfloat16):
        agree(tensors(ours(*inputs))[-1:], want[-1:], rtol=1e-6, atol=1e-6)


# --- under PyTorch's own tools ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("factors", [(1, 1, 1), (1, 1, 6), (2, 2, 1)], ids=["scalar", "per key", "pair"])
def test_opcheck(factors: tuple[int, ...]) -> None:
    """The operators' own checks: schema, fakes, autograd registration, dynamic shapes."""
    module, n = load(MIXED), factors[0]

    def drawn(*shape: int) -> Tensor:
        return (0.3 * torch.randn(shape, dtype=torch.float64)).requires_grad_()

    d = torch.rand(2, 5, 2, *factors, dtype=torch.float64).tril().requires_grad_()
    z, x, v = drawn(2, 5, 2, 3, n, 6), drawn(2, 5, 2, 2, n, 6), drawn(2, 5, 2, 1, 4)
    torch.library.opcheck(module._rank.operator, (d, z, x, v, drawn(2, 2, n, 6, 4), None, 1, 2, True))


def test_one_graph_for_all_lengths() -> None:
    text = BY_KEY
    torch._dynamo.reset()
    graphs: list[Any] = []

    def backend(graph: Any, given: list[Tensor]) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, given)

    ours = build(text, dtype=torch.float64)
    faster = torch.compile(ours, fullgraph=True, backend=backend)
    for batch, length in ((2, 5), (3, 7), (2, 70)):
        inputs = inputs_of(text, ours, batch, length)
        want = with_gradients(ours, ours(*inputs), *inputs)
        agree(with_gradients(ours, faster(*inputs), *inputs), want)
    assert len(graphs) <= 2


def test_saved_is_what_was_given() -> None:
    """No state of a token is kept, nor of a chunk."""
    text = cell("S[t-1] - b * n * c + k * v")
    ours = build(text, K=32, V=32)
    saved: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    inputs = inputs_of(text, ours, 1, 256, dtype=torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = ours(*inputs)[0]
    state = 2 * 32 * 32 * 4
    assert sum(saved.values()) <= 256 * 12 * 2 * 32 * 4 < 256 * state / 2
    out.sum().backward()


def test_second_derivatives_are_an_error() -> None:
    ours = build(MIXED, dtype=torch.float64)
    inputs = inputs_of(MIXED, ours, 1, 5)
    (first,) = torch.autograd.grad(ours(*inputs)[0][0].square().sum(), inputs[2], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        first.sum().backward()
