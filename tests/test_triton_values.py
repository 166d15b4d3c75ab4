"""Fused kernels under Triton's interpreter: values and all gradients of the examples beside the interpreter in float64.

Run with `TRITON_INTERPRET=1 pytest -m triton`.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 from the start of the process", allow_module_level=True)

import torch
from torch import Tensor

from backends.reference import Interpreter
from rnnc.loading import load_module
from rnnc.rounding import Tensors
from tests.cells import EXAMPLES
from tests.fused import RoundedOperands, Trial, disagreements, errors
from tests.interpreted import install
from tests.modules import checked, generate, load
from tests.oracles import CASES
from tests.stepped import check, results

install()
pytestmark = [pytest.mark.triton, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

TEXTS = {n: (EXAMPLES / f"{c.file}.rnn").read_text(encoding="utf-8") for n, c in CASES.items()}
FUSED = [
    n for n in CASES if any(k[:4] != "cuda" for k in getattr(getattr(load(TEXTS[n]), n), "_fused_kernels", {}).values())
]
# Kernels that take long to interpret; those of GLA, Mamba, Mamba-2, mLSTM and the gated delta rule stand for
# them in `make test`.
LIKE_OTHERS = {
    "LinearAttention",
    "RetNet",
    "TransNormerLLM",
    "Mamba2Block",
    "HGRN2",
    "MLSTMBlock",
    "GSA",
    "JRT",
    "MesaNet",
    "MambaSigned",
    "DeltaNet",
    "KDA",
    "Comba",
    "DeltaProduct",
    "RWKV7",
    "RWKV6",
    "Longhorn",
    "OmegaNet",
}
MARKED = [pytest.param(n, marks=pytest.mark.slow) if n in LIKE_OTHERS else n for n in FUSED]
every = pytest.mark.parametrize("name", MARKED)
PACKED = (1, 0, 3, 33, 0, 1)


def build(name: str, **options: Any) -> Any:
    """An instance that computes by kernels."""
    return getattr(load(TEXTS[name]), name)(**{"backend": "triton", **options})


def trial(
    name: str,
    length: int | Sequence[int],
    batch: int = 2,
    start: bool = False,
    seed: int = 0,
    inputs: Tensors | None = None,
    sizes: dict[str, int] | None = None,
) -> Trial:
    """A call with inputs that bfloat16 can hold; packed for a sequence of lengths; `start`: from a state."""
    cell, case = checked(TEXTS[name]), CASES[name]
    sizes = sizes or case.dims
    oracle = Interpreter(cell, sizes)
    params = oracle.init_params(seed)
    lengths = None if isinstance(length, int) else length
    lead = (batch, length) if isinstance(length, int) else (1, sum(length))
    state = None
    if start:
        with torch.no_grad():
            count = batch if lengths is None else len(lengths)
            state = oracle.run(case.draw(count, 3, seed + 1, sizes), params)[1]
    given = inputs or case.draw(*lead, seed, sizes)
    given = {n: x if x.dtype == torch.bool else x.bfloat16().double() for n, x in given.items()}
    return Trial(cell, sizes, given, params, state, lengths, seed)


def right(made: Trial, name: str) -> None:
    """In float64: to 1e-12, or where more digits cancel as near as roundings explain."""
    got = made.computed(lambda **options: build(name, **options), torch.float64)
    if any(max(norm, most) > 1e-12 for _, norm, most in errors(got, made.interpreted(torch.float64))):
        assert disagreements(made.expected(), got) == []


@dataclass
class Errors:
    """The errors beyond docs/design, in the mean of squares over these calls: by norm 1e-5 in float32; in 16 bit 1.5
    times PyTorch's, and never above 1e-2.

    PyTorch's are those of the torch backend, with learned maps in the same dtype and the operands of all products
    rounded as in the kernels. Where they are above 1e-5 or 1e-2 themselves, the gradient cancels, and 1.5 times them is
    allowed. Where two kernels read one input, each rounds its share of the gradient to 16 bit: half a unit in the last
    place more.
    """

    name: str
    dtype: torch.dtype
    found: dict[str, list[tuple[float, float]]] = field(default_factory=dict[str, list[tuple[float, float]]])

    def add(self, made: Trial) -> None:
        low = self.dtype.itemsize == 2
        want = made.interpreted(torch.float64)
        got = made.computed(lambda **options: build(self.name, **options), self.dtype)
        products = RoundedOperands(self.dtype) if low else contextlib.nullcontext()
        with products, torch.autocast("cpu", self.dtype, enabled=low):
            plain = made.computed(lambda **options: build(self.name, **{**options, "backend": "torch"}), self.dtype)
        for (n, ours, _), (_, theirs, _) in zip(errors(got, want), errors(plain, want), strict=True):
            self.found.setdefault(n, []).append((ours, theirs))

    def too_far(self) -> list[str]:
        low, name = self.dtype.itemsize == 2, self.name
        several = len(getattr(load(TEXTS[name]), name)._fused_kernels) > 1
        shared = torch.finfo(self.dtype).eps / 2 if several else 1e-6
        least, most, wrong = shared if low else 1e-5, 1e-2 if low else math.inf, list[str]()
        for n, pairs in self.found.items():
            ours, theirs = (math.hypot(*each) / len(pairs) ** 0.5 for each in zip(*pairs, strict=True))
            if not ours <= min(max(1.5 * theirs, least), most if theirs <= most else 1.5 * theirs):
                wrong.append(f"{n}: {ours:.1e}, PyTorch {theirs:.1e}")
        return wrong


def test_these_examples_have_kernels() -> None:
    """The others mix entries or have no states."""
    assert set(CASES) - set(FUSED) == {
        *("LSTM", "GRU", "SLSTM", "Elman", "GRUv1", "IRNN", "MGU", "PeepholeLSTM", "PVRNN", "RateNetwork", "SparseRNN"),
        "UGRNN",
        "TitansLinear",
        "TTTLinear",
        "PGN",
        "FSMN",
    }


@every
@pytest.mark.parametrize("length", [0, 1, 2, *(pytest.param(n, marks=pytest.mark.slow) for n in (31, 70)), 33])
def test_whole_sequences(name: str, length: int) -> None:
    right(trial(name, length, start=length % 2 == 0), name)


@every
@pytest.mark.parametrize("start", [pytest.param(False, marks=pytest.mark.slow), True])
def test_packed_sequences(name: str, start: bool) -> None:
    right(trial(name, PACKED, start=start), name)


@every
@pytest.mark.parametrize("lengths", [(0, 0), (1, 1, 0)])
def test_short_packed_sequences(name: str, lengths: tuple[int, ...]) -> None:
    right(trial(name, lengths, start=True), name)


@every
def test_no_sequence_at_all(name: str) -> None:
    right(trial(name, 3, batch=0, start=True), name)


@every
@pytest.mark.parametrize("length", [pytest.param(17, marks=pytest.mark.slow), PACKED], ids=["whole", "packed"])
def test_float32(name: str, length: int | Sequence[int]) -> None:
    """Gradients that cancel, as those of LRU's angles, may be as far off as roundings of the interpreter explain."""
    made = trial(name, length, start=True)
    found = Errors(name, torch.float32)
    found.add(made)
    if found.too_far():
        got = made.computed(lambda **options: build(name, **options), torch.float32)
        assert disagreements(made.expected(), got, torch.float32) == []


CHUNKED = {n for n in FUSED if "tensor cores" in str(getattr(load(TEXTS[n]), n)._fused_kernels)}
SELDOM = {torch.float16: LIKE_OTHERS, torch.bfloat16: LIKE_OTHERS | CHUNKED}
LOW = [
    pytest.param(n, d, marks=pytest.mark.slow) if n in names else (n, d) for d, names in SELDOM.items() for n in FUSED
]


def test_operands_are_rounded_backward_too() -> None:
    """By what 16-bit kernels are compared with. An initial state's gradient has nothing of what was rounded forward."""
    made, plain = trial("Mamba2", 33, start=True), []
    for rounding in (contextlib.nullcontext(), RoundedOperands(torch.bfloat16)):
        with rounding:
            plain.append(made.computed(lambda **o: build("Mamba2", **{**o, "backend": "torch"}), torch.float32))
    exact, rounded = (found["gradient of state S"] for found in plain)
    assert 1e-4 < float((rounded - exact).norm() / exact.norm()) < 1e-2


MISSED = {"Mamba2Block": "C_1_weight", "RWKV6": "λv", "MLSTMBlock": "i_bias"}
"""What docs/design asks that bfloat16 does not keep: these gradients are 1.0e-2 to 1.2e-2 off. PyTorch's are 9.4e-3 to
9.7e-3, most of it by learned maps in bfloat16."""


@pytest.mark.parametrize(("name", "dtype"), LOW, ids=str)
def test_low_precision(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a GPU: `install` makes the interpreter multiply bfloat16 numbers.
    monkeypatch.setattr(load(TEXTS[name]), "_multiplied_dtype", lambda low: low, raising=False)
    # What one call's few roundings add up to is chance; where it decides, more calls are made.
    found, wrong = Errors(name, dtype), list[str]()
    for seed in range(16):
        found.add(trial(name, 33, start=True, seed=seed))
        if seed in (0, 3, 15) and not (wrong := found.too_far()):
            break
    if dtype == torch.bfloat16 and [w.split(":")[0] for w in wrong] == [f"gradient of param {MISSED.get(name)}"]:
        pytest.xfail(f"above 1e-2: {wrong[0]}")
    assert wrong == []


# --- segments ---

SLOW = ("MLSTM", "S5Reset", "GLA", "Mamba2", "RGLRU", "MinLSTM", "Aaren")
SCANS = ("MinGRU", "LRU", "Mamba", "HGRN", "Kalman", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW))


@pytest.mark.parametrize("length", [70, (1, 0, 40, 1, 70)], ids=["whole", "packed"])
@pytest.mark.parametrize("name", SCANS)
def test_segments_are_the_whole(name: str, length: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than there are tokens, even: some begin behind the end."""
    made = trial(name, length, start=True)
    for count in (2, 5) if name in ("MinGRU", "LRU") else (3,):
        monkeypatch.setattr(load(TEXTS[name]), "_segments", lambda *_, count=count: count)
        right(made, name)


COMPOSED = {
    "_tl_affine": ("MinGRU", "return a2 * a1, a2 * b1 + b2", "return a2 * a1, a1 * b2 + b1"),
    "_tl_affine_previous": ("MinGRU", "p2 * a1, p2 * b1 + q2", "p2 * a1, p2 * b1 - q2"),
    "_tl_complex_affine": ("LRU", "ar2 * ar1 - ai2 * ai1,", "ar2 * ar1 + ai2 * ai1,"),
    "_tl_complex_affine_previous": ("LRU", "pr2 * ai1 + pi2 * ar1,", "pr2 * ai1 - pi2 * ar1,"),
}
"""Functions that compose tokens: an example that uses each, a part of its body, and another one in its place."""


@pytest.mark.parametrize("function", COMPOSED)
def test_another_composition_is_noticed(function: str) -> None:
    """The comparisons of this file fail where a compose function is another: in values, and in gradients."""
    name, body, other = COMPOSED[function]
    text = generate(TEXTS[name])
    start = text.index(f"def {function}(")
    at = text.index(body, start)
    assert at < text.find("@triton.jit", start), "that is another function's body"
    changed = load_module(text[:at] + other + text[at + len(body) :], "changed.rnn")
    made = trial(name, 33, start=True)
    want = made.interpreted(torch.float64)
    got = made.computed(lambda **options: getattr(changed, name)(backend="triton", **options), torch.float64)
    wrong = {n for n, norm, _ in errors(got, want) if norm > 1e-3}
    assert any(n.startswith("output") for n in wrong) and any(n.startswith("gradient") for n in wrong)


@pytest.mark.parametrize("name", ["MinGRU", "LRU"])
@pytest.mark.parametrize("kernel", ["carry", "carry_back"])
def test_another_carry_is_noticed(name: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of segments: forward, and in the backward, the states that enter them are wrong without what is carried."""
    text = generate(TEXTS[name])
    start = text.index(f"def _{name}_h_{kernel}(")
    end = text.index("@triton.jit", start)
    body, count = re.subn(r"(_b_segment(?:_re)?),(\s+)mask=", r"\1 * 0.5,\2mask=", text[start:end])
    assert count == 1
    changed = load_module(text[:start] + body + text[end:], "changed.rnn")
    monkeypatch.setattr(changed, "_segments", lambda *_: 2)
    made = trial(name, 70, start=True)
    got = made.computed(lambda **options: getattr(changed, name)(backend="triton", **options), torch.float64)
    wrong = {n.split()[0] for n, norm, _ in errors(got, made.interpreted(torch.float64)) if norm > 1e-6}
    assert wrong == ({"output", "final", "gradient"} if kernel == "carry" else {"gradient"})


# --- adversarial inputs ---


@every
@pytest.mark.parametrize("value", [0.0, 40.0, *(pytest.param(v, marks=pytest.mark.slow) for v in (1.0, -40.0))])
def test_constant_inputs(name: str, value: float) -> None:
    """Gates at 0, at 1, saturated."""
    case = CASES[name]
    drawn = case.draw(2, 5)
    inputs: dict[str, Tensor] = {}
    for n, (_, kind) in case.inputs.items():
        low = {"unit": 0.0, "positive": 0.5}.get(kind, -40.0)
        high = {"unit": 1.0, "negative": 0.0}.get(kind, 40.0)
        inputs[n] = torch.full_like(drawn[n], value > 0 if kind == "bool" else min(max(value, low), high))
    made = trial(name, 5, inputs=inputs, start=True)
    got = made.computed(lambda **options: build(name, **options), torch.float64)
    assert disagreements(made.expected(), got) == []


@pytest.mark.parametrize("value", [-110.0, 80.0, -1e4])
def test_gates_that_vanish(value: float) -> None:
    """minLSTM in float32 where both its gates are 0 or 1 to float32: beside the equations in float64, and where these
    are 0 / 0 or have a gradient of 0, beside those of the gates' logarithms."""
    logs = ("logsigmoid", "exp(f - m) / (exp(f - m) + exp(i - m))", "exp(i - m) / (exp(f - m) + exp(i - m))")
    kind, a, b = ("sigmoid", "f / (f + i)", "i / (f + i)") if value == -110 else logs
    head = "cell C\ndim D = 3\ninput u[D], v[D], x[D]\n"
    body = "state h[D]\nh[t] = {} * h[t-1] + {} * x\noutput h[t]\n"
    text = head + "f = sigmoid(u)\ni = sigmoid(v)\n" + body.format("f / (f + i)", "i / (f + i)")
    same = head + f"f = {kind}(u)\ni = {kind}(v)\nm = max(f, i)\n" + body.format(a, b)
    generator = torch.Generator().manual_seed(0)
    drawn = {n: torch.randn(2, 33, 3, generator=generator) + (value if n != "x" else 0) for n in ("u", "v", "x")}
    given = {n: x.double() for n, x in drawn.items()}
    state = {"h": torch.randn(2, 3, generator=generator, dtype=torch.float64)}
    made = Trial(checked(text), {"D": 3}, given, {}, state)
    got = made.computed(lambda **options: load(text).C(backend="triton", **options), torch.float32)
    want = Trial(checked(same), {"D": 3}, given, {}, state).interpreted(torch.float64)
    assert all(v.isfinite().all() for v in got.values())
    # What is known of a difference of pre-activations.
    most = max(1e-5, 4 * abs(value) * torch.finfo(torch.float32).eps if value < -1000 else 0.0)
    assert [e for e in errors(got, want) if e[1] > most] == []


@every
def test_wider_than_a_block(name: str) -> None:
    """Channels in several blocks, the last not full."""
    sizes = dict.fromkeys(CASES[name].dims, 3)
    wide = {"Mamba": {"E": 67}, "QLSTM": {"D": 3 * 67}, "MLSTMBlock": {"K": 67, "P": 1}}.get(
        name, {list(sizes)[-1]: 67}
    )
    right(trial(name, 3, batch=1, sizes={**sizes, **wide}), name)


CONDITIONS = """\
cell Conditions
dim D = 5
const c in [0, 2] = 1, p in [1, 3] = 2.5
input x[D], on: bool
state h[D], g[D]
h[t] = where(c > 0.5 and x > 0, 0.5 * h[t-1], where(D > 3 or on, tanh(h[t-1]), h[t-1])) + (c < p) * abs(x) ** p
g[t] = where(not (c > 1), 0.5, 0.25) * g[t-1] + x
output where(not (c > 1), h[t], x) + (c > 1)
output both = c > 0.5 and x > 0
output g[t]
"""


@pytest.mark.filterwarnings("error::UserWarning")
def test_conditions_of_numbers_alone() -> None:
    """They come from the host as floating-point numbers; so does that of a power's gradient, `p == 0`."""
    got, want = (results(CONDITIONS, {}, 9, b, d) for b, d in (("triton", torch.float32), ("reference", torch.float64)))
    check(got, want, 1e-5)
