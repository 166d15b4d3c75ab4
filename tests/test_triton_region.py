"""What stands between learned maps and recurrences as kernels, under Triton's interpreter: random cells, every kind of
operation, odd sizes, packed and empty sequences, 16 bits, and where PyTorch does it.

Run with `TRITON_INTERPRET=1 pytest -m triton`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 from the start of the process", allow_module_level=True)

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rnnc.loading import load_module
from rnnc.pipeline import compile_source
from rnnc.region import Region, regions
from rnnc.source import Source
from tests.cells import EXAMPLES
from tests.fused import like, unexplained
from tests.interpreted import install
from tests.modules import Interpreted, checked, draw_for, generate, load, some_state, with_gradients

install()
pytestmark = [pytest.mark.triton, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

HEAD = """cell C
dim H = 2, K = 3, V = 5
input x[H, K], y[H, K], u[H, V], w[H, V], g[H], s[K], c, m[H, K]: bool
param p[H, K] = normal(0.5), r[V] = normal(0.5), d[H] = normal(0.5), z = normal(0.5), b[K] = normal(0.5)
"""
TAIL = """state S[H, K, V]
S[t] = sigmoid(a) * S[t-1] + k * v
o = sum[K](q * S[t])
"""
CELL = """a = softplus(g + d) - exp(d) * square(c)
q = l2norm[K](silu(conv[4](x)))
k = sigmoid(a) * l2norm[K](silu(conv[3](y)) * p + g)
v = tanh(u * r) + g
"""
READ = "output rmsnorm[V](o) * r * silu(w) + z\n"


def cell(before: str = CELL, after: str = READ) -> str:
    return HEAD + before + TAIL + after


def planned(text: str) -> tuple[Region, ...]:
    (made,) = compile_source(Source("test.rnn", text))
    assert made.plan is not None
    return regions(made.plan)


def kernels(module: Any) -> list[Any]:
    """The regions that a module has kernels for."""
    return [x for x in vars(module).values() if type(x).__name__ == "_Region"]


def apart(got: list[Tensor], want: list[Tensor]) -> float:
    """The largest distance, in parts of what is wanted."""
    assert [x.shape for x in got] == [x.shape for x in want]
    pairs = [(x.to(like(x, torch.float64)), y) for x, y in zip(got, want, strict=True)]
    pairs = [(x[y.isfinite()] * 1.0, y[y.isfinite()] * 1.0) for x, y in pairs if y.numel()]
    found = [((x - y).norm() / y.norm().clamp_min(1)).item() for x, y in pairs]
    # `max` may pass over a NaN.
    return max(found, key=lambda e: (math.isnan(e), e), default=0.0)


def results(
    each: Any, inputs: list[Tensor], state: Any, kind: torch.dtype | None, ends: list[int] | None
) -> list[Tensor]:
    """Outputs, final states and the gradients of everything."""

    def leaf(x: Tensor) -> Tensor:
        return x if x.dtype == torch.bool else x.detach().to(like(x, kind) if kind else x.dtype).requires_grad_()

    xs, start = [leaf(x) for x in inputs], type(state)(*(leaf(x) for x in state))
    cu_seqlens = None if ends is None else torch.tensor(ends)
    return with_gradients(each, each(*xs, state=start, cu_seqlens=cu_seqlens), *xs, *start)


def computed(
    text: str,
    length: int = 5,
    *,
    batch: int = 2,
    seed: int = 0,
    ends: list[int] | None = None,
    dtype: torch.dtype = torch.float32,
    module: Any = None,
    **sizes: int,
) -> tuple[list[Tensor], Callable[[], list[Tensor]]]:
    """Outputs, final states and all gradients, by the kernels and, when called, by the interpreter in float64."""
    module = module or load(text)
    # As on a GPU: `install` makes the interpreter multiply bfloat16 numbers.
    module._multiplied_dtype = lambda low: low
    torch.manual_seed(1)
    ours, stepped = getattr(module, checked(text).name)(backend="triton", **sizes), Interpreted(text, **sizes)
    stepped.inner.load_state_dict({n: x.to(like(x, torch.float64)) for n, x in ours.state_dict().items()})
    lead = (batch, length) if ends is None else (1, ends[-1])
    drawn = draw_for(checked(text), stepped.inner, *lead, seed=seed)
    inputs = [x.to(like(x, dtype)) for x in drawn]
    state = some_state(ours, batch if ends is None else len(ends) - 1, seed=seed)
    state = type(state)(*(x.detach().to(like(x, torch.float32)) for x in state))
    exact = partial(results, stepped, inputs, state, torch.float64, ends)
    return results(ours, inputs, state, None, ends), exact


def compared(text: str, length: int = 5, **options: Any) -> float:
    """How far outputs, final states and all gradients are from the interpreter's in float64."""
    got, exact = computed(text, length, **options)
    return apart(got, exact())


def test_a_mean_of_a_convolution() -> None:
    """Its size is a number of the kernel's, whatever else there is."""
    text = cell(CELL.replace("l2norm[K](silu(conv[4](x)))", "x * mean[K](conv[4](y))"))
    assert unexplained(*computed(text, 9), 2e-6) == []
    assert compared(HEAD + "state S[H]\nS[t] = 0.9 * S[t-1] + mean[K](conv[3](x))\noutput S[t]\n", 9) < 2e-6


def test_one_kernel_for_each_connected_part() -> None:
    """What only `q` is made of has nothing in common with the rest of what `S` reads."""
    q, before, after = sorted(planned(cell()), key=lambda x: (x.uses == ("out",), len(x.uses)))
    assert len(kernels(load(cell()))) == 3
    assert [c.width for c in q.convs] == [4] and q.uses == ("operand",)
    assert [n.dims for n in before.results] == [("H",), ("H", "K"), ("H", "V")]
    assert (after.spread, after.groups, after.uses) == (("H",), (("V",),), ("out",))


@pytest.mark.parametrize("length", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 5, 70))])
def test_lengths(length: int) -> None:
    """Shorter than a convolution, too: what it reads is of the state, which has a gradient."""
    assert compared(cell(), length) < 1e-5


def test_packed() -> None:
    """Sequences of one token, none, and some of which a convolution reads."""
    assert compared(cell(), ends=[0, 1, 1, 7, 9]) < 1e-5


OPERATIONS = {
    "softmax": "softmax[K](x * p)",
    "softmax of two": "softmax[H, K](x * y)",
    "layernorm": "layernorm[K](x + s) * p",
    "rmsnorm of two": "rmsnorm[H, K](x * c) * p",
    "sum": "x * sum[K](x * y) / (1 + square(g))",
    "mean": "x - mean[K](x + s * c)",
    "max": "x * max[K](x + y)",
    "min": "x * min[K](tanh(x)) + sum[H](g)",
    "where": "where(m, x, s) * where(g > 0, 1, c)",
    "powers": "(1 + square(x)) ** -0.5 * abs(y) ** 1.5 * rsqrt(1 + square(g))",
    "clamp": "max(min(x, y), -0.5) * relu(g + z)",
    "logs": "log1p(square(x)) * logsigmoid(y) - logaddexp(x, y) + expm1(0.5 * g)",
    "rounds": "sin(x) * cos(y) + erf(x) * gelu(y) * sign(g)",
    "shared by all": "x * exp(z) * z + softplus(p) * s",
    "shared by some": "tanh(x * b) * d * x",
    "wide": "conv[8](tanh(x) * p)",
    "conv of a conv": "conv[2](silu(conv[3](x)))",
    "conv twice": "conv[2](x) * conv[3](x) + x",
}
REPLACED = "q = l2norm[K](silu(conv[4](x)))\n"


def test_all_operations() -> None:
    lines = [f"e{i} = {text}\n" for i, text in enumerate(OPERATIONS.values())]
    text = cell(CELL.replace(REPLACED, f"{''.join(lines)}q = {' + '.join(f'e{i}' for i, _ in enumerate(lines))}\n"))
    assert compared(text, 4) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name: str) -> None:
    text = cell(CELL.replace(REPLACED, f"q = {OPERATIONS[name]}\n"))
    assert len(kernels(load(text))) >= 3
    # Gradients may cancel: with `clamp` what roundings do to the interpreter is more than 1e-5 of one.
    assert unexplained(*computed(text, 4), 1e-5) == []


@pytest.mark.slow
def test_conditions_alone() -> None:
    """What has no gradient, of earlier tokens too."""
    after = READ + "output (x > y) and m and not (abs(x) > 1)\noutput where(conv[2](y) > 0, x, -x) * tanh(x)\n"
    assert any(kind == "bool" for r in kernels(load(cell(after=after))) for _, kind, _ in r.results.values())
    assert compared(cell(after=after), 3) < 1e-5


@pytest.mark.slow
def test_several_results_and_readers() -> None:
    """A value that an output, a kernel and a product read, one of booleans, and one that comes twice."""
    after = READ + "output big = m and (tanh(x) > y)\noutput k\noutput same = k\noutput linear(k * silu(x) -> V)\n"
    assert compared(cell(after=after), 3) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.rnn")), ids=lambda p: p.stem)
def test_examples(path: Path) -> None:
    """All that have something between."""
    text = path.read_text(encoding="utf-8")
    if planned(text):
        sizes: dict[str, Any] = {d.name: min(d.size, 4) for d in checked(text).dims if isinstance(d.size, int)}
        assert compared(text, **sizes) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("h", "k", "v"), [(1, 1, 1), (3, 16, 9), (5, 2, 33)])
def test_sizes(h: int, k: int, v: int) -> None:
    assert compared(cell(), 3, batch=1, H=h, K=k, V=v) < 1e-5


MUTANTS = {
    "a token's mask": (r"real_token = token < TOKENS", "real_token = token < TOKENS - 1"),
    "a mask of what is summed over": (r"tl\.where\(real_(?:lane|inner)\[None, None, :\], ([^,]+), 0\.0\)", r"(\1)"),
    "a mask of a sum over tokens": (r"tl\.where\(real_tsc?, (d_\w+), 0\.0\)", r"(\1 + 1e-3)"),
    "a term of a gradient": (r" \+ d_d\b", ""),
    "an earlier token": (r"\(place >= 2\)", "(place >= 1)"),
    "what was before": (r"(sequence \* 2) \+ 1 - place", r"\1 - place"),
    "a tap": (r"\* 3 \+ 2, mask", "* 3 + 1, mask"),
    "a later token": (r"place >= j", "place >= 0"),
    "a partial sum": (r"(d_\w+_sum) \+= ", r"\1 = "),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_mutants(name: str) -> None:
    """A mask, a term or an index that is not there is seen."""
    made = generate(cell())
    pattern, text = MUTANTS[name]
    assert re.search(pattern, made)
    module: Any = load_module(re.sub(pattern, text, made), "mutant.py")
    # Two tiles of tokens for each program, the last of which is not full.
    tiles = module._region_tile
    module._region_tile = lambda *given: tiles(*given)._replace(tokens=4)
    module._units = lambda _: 1 / 16
    assert not compared(cell(), ends=[0, 1, 4, 11], module=module) < 1e-4


LEAVES = {"HK": ("x", "y", "p"), "HV": ("u", "w", "r"), "H": ("g", "d"), "": ("c", "z")}
BELOW = {"HK": ("HK", "H"), "HV": ("HV", "H"), "H": ("H",), "": ("",)}
ONE = ("tanh({})", "sigmoid({})", "silu({})", "softplus({})", "exp(-square({}))", "relu({})", "abs({})")
TWO = ("({} + {})", "({} * {})", "({} - {})", "max({}, {})", "({} / (1 + square({})))", "where({} > 0, {}, z)")
WHOLE = ("l2norm[{}]({})", "rmsnorm[{}]({})", "layernorm[{}]({})", "softmax[{}]({})")


@st.composite
def expressions(draw: Callable[..., Any], dims: str, depth: int = 4) -> str:
    """An expression that has some of these dims, and at least one token in it."""
    if depth == 0:
        return draw(st.sampled_from(LEAVES[dims]))
    if not dims:
        return draw(st.sampled_from(LEAVES[dims]))
    last, kind = dims[1:], draw(st.sampled_from("leaf one two two whole conv".split()))
    if kind == "leaf":
        return draw(st.sampled_from(LEAVES[dims]))
    if kind == "one" or (kind in ("whole", "conv") and not last):
        if kind != "one" and draw(st.booleans()):
            over = draw(st.sampled_from("KV"))
            word = draw(st.sampled_from(("sum", "mean", "max")))
            return f"{word}[{over}]({LEAVES[f'H{over}'][0]} * {draw(expressions(f'H{over}', depth - 1))})"
        return draw(st.sampled_from(ONE)).format(draw(expressions(dims, depth - 1)))
    if kind == "two":
        parts = [draw(expressions(dims, depth - 1)), draw(expressions(draw(st.sampled_from(BELOW[dims])), depth - 1))]
        return draw(st.sampled_from(TWO)).format(*draw(st.permutations(parts)))
    if kind == "conv":
        return f"conv[{draw(st.integers(2, 3))}]({draw(st.sampled_from(LEAVES[dims][:2]))})"
    return draw(st.sampled_from(WHOLE)).format(last, draw(expressions(dims, depth - 1)))


@st.composite
def cells(draw: Callable[..., Any]) -> str:
    def of(dims: str, first: str) -> str:
        return f"{first} * {draw(expressions(dims, draw(st.integers(1, 4))))}"

    before = f"a = {of('H', 'g')}\nq = {of('HK', 'x')}\nk = {of('HK', 'y')}\nv = {of('HV', 'u')}\n"
    return cell(before, f"output one = {of('HV', 'rmsnorm[V](o)')}\noutput two = {of('HV', 'o')}\n")


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cells(), st.sampled_from((0, 1, 2, 9, 40)), st.integers(0, 99))
def test_many_random_cells(text: str, length: int, seed: int) -> None:
    """Norms of what is small, or of numbers that are nearly equal, make roundings of float32 large."""
    assert unexplained(*computed(text, length, seed=seed), 1e-4) == []


@pytest.mark.parametrize(
    ("dtype", "most"),
    [(torch.bfloat16, 0.1), pytest.param(torch.float16, 0.01, marks=pytest.mark.slow)],
    ids=str,
)
def test_sixteen_bits(dtype: torch.dtype, most: float) -> None:
    """Numbers are those that came in, computed with in float32, and rounded where a product or an output is."""
    assert compared(cell(), 6, dtype=dtype) < most


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
def test_pytorch_where_sums_are_too_long(dtype: torch.dtype) -> None:
    """Values and gradients are those of the kernels, rounded as often."""
    module: Any = load(cell())
    module._multiplied_dtype = lambda low: low
    ours = module.C(backend="triton", K=4, V=3)
    inputs = draw_for(checked(cell()), ours, 2, 5, dtype=dtype)
    state = some_state(ours, 2)
    state = type(state)(*(x.detach().float() for x in state))
    by_kernels = results(ours, inputs, state, None, None)
    fits, module._region_fits = module._region_fits, lambda *_: False
    try:
        in_torch = results(ours, inputs, state, None, None)
    finally:
        module._region_fits = fits
    assert apart(by_kernels, in_torch) < (1e-5 if dtype == torch.float32 else 1e-2)
    (region,) = (x for x in kernels(module) if len(x.groups) == 2)
    assert fits(region, dict.fromkeys(region.dims, 64)) and not fits(region, dict.fromkeys(region.dims, 4097))


@pytest.mark.slow
def test_autocast() -> None:
    """Learned maps and operands of products in bfloat16, all else in float32, as PyTorch does it."""
    text = (EXAMPLES / "gateddeltanet.rnn").read_text(encoding="utf-8")
    module: Any = load(text)
    module._multiplied_dtype = lambda low: low
    ours = module.GatedDeltaNet(backend="triton", D=8, H=2, K=4, V=4)
    (x,) = draw_for(checked(text), ours, 1, 6, dtype=torch.float32, requires_grad=True)
    found: list[list[Tensor]] = []
    fits = module._region_fits
    try:
        for chosen in (fits, lambda *_: False):
            module._region_fits = chosen
            with torch.autocast("cpu", torch.bfloat16):
                y, _ = ours(x)
            found.append([y.detach(), *torch.autograd.grad(y.square().sum(), [x, *ours.parameters()])])
    finally:
        module._region_fits = fits
    assert found[0][0].dtype == torch.float32
    assert apart(*found) < 1e-3


def test_pytorch_in_float64_and_with_tangents() -> None:
    """No kernel of a region is launched."""
    module: Any = load(cell())
    ours = module.C(backend="triton", dtype=torch.float64)

    def launched(*_: Any) -> None:
        raise AssertionError("a kernel of a region")

    launch, module._launch_region = module._launch_region, launched
    try:
        ours(*draw_for(checked(cell()), ours, 2, 5))
    finally:
        module._launch_region = launch
    part = next(x for x in kernels(module) if not x.convs)
    tokens = [torch.randn(1, 2, *(2 for _ in dims)) for dims in part.tokens.values()]
    with torch.autograd.forward_ad.dual_level():
        tokens[0] = torch.autograd.forward_ad.make_dual(tokens[0], torch.ones_like(tokens[0]))
        called: list[Any] = []
        given = (part, launched, lambda *args: called.append(args), torch.float32, torch.float32, torch.float32)
        module._between(None, *given, tokens, [], [2 for _ in part.dims], [])
    assert len(called) == 1


def test_opcheck() -> None:
    """PyTorch's checks of an operator with convolutions, and with what tokens share."""
    cell_ = load(cell()).C(backend="triton")
    inputs = draw_for(checked(cell()), cell_, 1, 5, dtype=torch.float32)
    functions = type(cell_)._fused.__globals__
    calls: list[tuple[Any, tuple[Any, ...]]] = []
    between = functions["_between"]

    def noted(run: Any, part: Any, operator: Any, *args: Any) -> Any:
        return between(run, part, lambda *given: calls.append((operator, given)) or operator(*given), *args)

    functions["_between"] = noted
    try:
        cell_(*inputs)
    finally:
        functions["_between"] = between
    for operator, args in calls:
        given = [
            [x.detach().requires_grad_(x.is_floating_point()) for x in a] if a and i < 4 else a
            for i, a in enumerate(args)
        ]
        torch.library.opcheck(operator.operator, (*given[:-1], True), test_utils=("test_schema", "test_faketensor"))
