"""Cells that keep a running maximum so that no exponential overflows, mLSTM and Aaren: in float32, for gates of 80 and
-80 and for 100,000 tokens, beside closed forms in float64 that need no maximum.

Errors are told in units of float32's epsilon, relative to what a value is the sum of: a numerator is a sum over tokens
of weights times products, and a quotient is as good as its numerator and its denominator. What is allowed:

- Aaren's weights are `exp(s - m)`, its factors `exp(m[t-1] - m[t])`. Where they matter, the exponents are at most 88 in
  size, and known to half an epsilon of that: 44, and a few for sums, which are taken in segments.
- mLSTM's factors are `exp(logsigmoid(f) + (m[t-1] - m[t]))`, each known to half an epsilon of `logsigmoid(f)`. Of what
  is remembered, these add up to 88 plus 160, the difference between the largest `i` and the smallest: 124, and a few.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rnnc.loading import load_module
from rnnc.logspace import LogSpace
from rnnc.pipeline import compile_source, module_text
from rnnc.source import Source
from tests.cells import EXAMPLES
from tests.modules import load

EPS = torch.finfo(torch.float32).eps
AAREN = (EXAMPLES / "aaren.rnn").read_text(encoding="utf-8")
MLSTM = (EXAMPLES / "mlstm.rnn").read_text(encoding="utf-8")

GATES: dict[str, Callable[[int], Tensor]] = {
    "80": lambda n: torch.full([n], 80.0),
    "-80": lambda n: torch.full([n], -80.0),
    "both": lambda n: torch.where(torch.rand(n) > 0.5, 80.0, -80.0),
    "any": lambda n: 160 * torch.rand(n) - 80,
    "ordinary": torch.randn,
    # exp(-13) is 2e-6: a factor that forgets in half a million tokens, beside an `m` of 80 whose digits are larger.
    "13": lambda n: torch.full([n], 13.0),
}


def aaren(length: int, s: str) -> tuple[list[Tensor], Callable[..., tuple[Tensor, Tensor]]]:
    """Inputs, and the closed form: a mean of `v` over the prefix with weights `exp(s)`, and what it is the sum of."""
    torch.manual_seed(length)

    def want(s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        weights = torch.exp(s)[..., None]
        total = weights.cumsum(1)
        y = (weights * v).cumsum(1) / total
        return y, (weights * v.abs()).cumsum(1) / total + y.abs()

    return [GATES[s](length).view(1, length, 1), torch.randn(1, length, 1, 2)], want


def mlstm(length: int, f: str, i: str, positive: bool = False) -> tuple[list[Tensor], Callable[..., Any]]:
    """Inputs, and the closed form, a matrix of weights between tokens in each of many pieces."""
    torch.manual_seed(length)
    q, k = torch.randn(2, 1, length, 1, 2)
    v = torch.randn(1, length, 1, 2)
    if positive:
        q, k = q.abs() + 0.1, k.abs() + 0.1

    def want(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        parts = zip(*(x[0, :, 0].split(500) for x in (q, k, v, i, F.logsigmoid(f))), strict=True)
        memory = torch.zeros(2, 2, 3, dtype=torch.float64)
        found: list[Tensor] = []
        sizes: list[Tensor] = []
        for q_, k_, v_, i_, log in parts:
            kept = log.cumsum(0)
            weights = torch.exp((kept[:, None] - kept + i_).tril() + torch.ones(2 * [len(kept)]).triu(1) * -1e9)
            one = torch.cat([v_, torch.ones_like(v_[:, :1])], 1)
            sums: list[Tensor] = []
            later: list[Tensor] = []
            # The values, and what they are the sums of.
            for at, part in enumerate(((q_, k_, one), (q_.abs(), k_.abs(), one.abs()))):
                a, b, c = part
                sums.append((weights * (a @ b.T)) @ c + torch.exp(kept)[:, None] * (a @ memory[at]))
                later.append(torch.exp(kept[-1]) * memory[at] + (weights[-1][:, None] * b).T @ c)
            memory = torch.stack(later)
            below = sums[0][:, 2:].abs().clamp(min=1)
            y = sums[0][:, :2] / below
            found.append(y)
            sizes.append((sums[1][:, :2] + sums[1][:, 2:] * y.abs()) / below + y.abs())
        return torch.cat(found)[None, :, None], torch.cat(sizes)[None, :, None]

    return [q, k, v, GATES[i](length).view(1, length, 1), GATES[f](length).view(1, length, 1)], want


def off(y: Tensor, want: tuple[Tensor, Tensor]) -> float:
    """The largest error, in epsilons; infinite for a NaN."""
    errors = (y.double() - want[0]).abs() / (want[1] * EPS)
    return errors.nan_to_num(nan=float("inf")).max().item()


def forward(module: Any, given: list[Tensor], want: Callable[..., tuple[Tensor, Tensor]]) -> float:
    with torch.no_grad():
        return off(module(*given)[0], want(*(x.double() for x in given)))


def gradients(run: Callable[..., Tensor], given: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    leaves = [x.to(dtype).requires_grad_() for x in given]
    y = run(*leaves)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return list(torch.autograd.grad((y * weight).sum(), leaves))


def make_aaren() -> Any:
    return load(AAREN).Aaren(H=1, V=2, backend="torch")


def make_mlstm() -> Any:
    return load(MLSTM).MLSTM(H=1, K=2, V=2, backend="torch")


PAIRS = [(f, i) for f in GATES for i in GATES if i != "13"]
LONG = [("80", "80"), ("80", "-80"), ("-80", "both"), ("both", "both"), ("any", "any"), ("13", "80"), ("13", "any")]
SHORT, FULL = 1300, 100_000


def allowed(f: str, length: int) -> float:
    """Epsilons for mLSTM: beside what exponents are known to, a factor near 1 is rounded itself, and when it is always
    the same one, always to the same side."""
    if f != "13":
        return 130
    factor = torch.sigmoid(torch.tensor(13.0, dtype=torch.float64))
    return 130 + length * abs((factor.float() / factor - 1).item()) / EPS


@pytest.mark.parametrize("length", [SHORT, pytest.param(FULL, marks=pytest.mark.slow)])
@pytest.mark.parametrize("s", [s for s in GATES if s != "13"])
def test_aaren_is_exact(s: str, length: int) -> None:
    assert forward(make_aaren(), *aaren(length, s)) < 50


@pytest.mark.parametrize(
    ("f", "i", "length"),
    [*((*p, SHORT) for p in PAIRS), *(pytest.param(*p, FULL, marks=pytest.mark.slow) for p in LONG)],
)
def test_mlstm_is_exact(f: str, i: str, length: int) -> None:
    assert forward(make_mlstm(), *mlstm(length, f, i)) < allowed(f, length)


def test_aaren_step_by_step() -> None:
    """One token at a time: the same numbers."""
    given, want = aaren(200, "any")
    module, state, outputs = make_aaren(), None, list[Tensor]()
    for t in range(200):
        y, state = module.step(*(x[:, t] for x in given), state)
        outputs.append(y)
    assert off(torch.stack(outputs, 1), want(*(x.double() for x in given))) < 50


@pytest.mark.parametrize(("f", "i"), [("13", "any"), ("13", "80"), ("ordinary", "any")])
def test_as_written_it_would_forget_wrongly(f: str, i: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `logsigmoid(f) + m[t-1]` first, a factor is off by a digit of `m`."""
    monkeypatch.setattr(LogSpace, "exponent", lambda self, x: x)
    source = Source("mlstm.rnn", MLSTM)
    changed = load_module(module_text(compile_source(source), source, "torch"), "changed.rnn")
    given, want = mlstm(SHORT, f, i)
    good, bad = (forward(m(H=1, K=2, V=2, backend="torch"), given, want) for m in (load(MLSTM).MLSTM, changed.MLSTM))
    assert bad > 20 * good
    if f == "13":
        assert bad > allowed(f, SHORT)


def near(got: list[Tensor], want: list[Tensor]) -> None:
    """Gradients within 1e-5 of their norm, or, where they cancel, within 1e-6 of the largest one's.

    Entries below 1e-30 are taken for 0: in those of a quotient by `exp(80)` the square of this would be needed.
    """
    largest = max(x.norm().item() for x in want)
    for a, b in zip(got, want, strict=True):
        assert a.isfinite().all()
        assert (a.double() - b).norm() <= max(1e-5 * b.norm().item(), 1e-6 * largest, 1e-30 * b.numel() ** 0.5)


def test_gradients_of_aaren() -> None:
    for s in ("80", "-80", "both", "any", "ordinary"):
        given, want = aaren(SHORT, s)
        module = make_aaren()
        got = gradients(lambda *xs, module=module: module(*xs)[0], given, torch.float32)
        near(got, gradients(lambda *xs, want=want: want(*xs)[0], given, torch.float64))


@pytest.mark.parametrize(
    ("f", "i", "length"),
    [*((*p, SHORT) for p in PAIRS), *(pytest.param(*p, FULL, marks=pytest.mark.slow) for p in LONG[:4])],
)
def test_gradients_of_mlstm(f: str, i: str, length: int) -> None:
    """With keys and queries that are positive, so that no denominator is close to 0."""
    given, want = mlstm(length, f, i, positive=True)
    module = make_mlstm()
    got = gradients(lambda *xs: module(*xs)[0], given, torch.float32)
    near(got, gradients(lambda *xs: want(*xs)[0], given, torch.float64))
