"""What a step that is compiled writes for its backward, so that no matrix product is made twice."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.modules import agree, build, load, with_gradients
from tests.stepped import CELLS, TEXTS
from tests.test_module_autograd import Calls

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RNNC_LOOPS", "compiled")
    monkeypatch.setenv("RNNC_CACHE", str(tmp_path))


def halves(module: Any) -> tuple[str, str]:
    """The step's C text, and its backward's."""
    (native,) = (v for k, v in vars(module).items() if k.endswith("_native") and hasattr(v, "libraries"))
    forward, _, backward = native.text.partition("SHARED void backward(")
    return forward.partition("SHARED void forward(")[2], backward


@pytest.mark.parametrize(
    ("text", "saved"),
    [
        (TEXTS["Elman"], ()),
        (TEXTS["LSTM"], ("f", "i", "o", "z")),
        (TEXTS["GRU"], ("r", "saved", "z")),
        (TEXTS["GRUv1"], ("n", "r", "z")),
        (TEXTS["MGU"], ("c", "f")),
        (CELLS["hidden"], ("a", "saved")),
    ],
    ids=("Elman", "LSTM", "GRU", "GRUv1", "MGU", "hidden"),
)
def test_no_product_is_made_twice(text: str, saved: tuple[str, ...]) -> None:
    """A value for each product, of those that are operations on one the last: the state itself where that is it."""
    forward, backward = halves(load(text))
    products = [part.count(" product(") for part in (forward, backward)]
    assert products[0] == products[1] > 0
    names = sorted(re.findall(r"real \*restrict p_(\w+) = \(real \*\)p\[\d+\] \+ \(keep", forward))
    assert tuple(n.rstrip("_0123456789") for n in names) == saved


@pytest.mark.parametrize("text", [TEXTS["GRUv1"], CELLS["two"], CELLS["hidden"]], ids=("GRUv1", "two", "hidden"))
@pytest.mark.parametrize("ends", [None, torch.tensor([0, 2, 2, 7])], ids=("padded", "packed"))
def test_a_loop_in_python_saves_nothing(text: str, ends: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a backward in C does not take what is not there for numbers."""
    module = build(text)
    x = torch.randn(1 if ends is not None else 3, 7, module.D, requires_grad=True)
    want = with_gradients(module, module(x, cu_seqlens=ends), x)
    monkeypatch.setenv("RNNC_LOOPS", "python")
    result = module(x, cu_seqlens=ends)
    monkeypatch.setenv("RNNC_LOOPS", "compiled")
    agree(with_gradients(module, result, x), want, 1e-4, 1e-5)


def test_without_a_backward_nothing_is_kept() -> None:
    text = TEXTS["LSTM"]
    module, x = build(text, D=6, H=2), torch.randn(2, 5, 6)
    want = module(x)
    with Calls(load(text)._OPERATORS) as seen, torch.no_grad():
        got = module(x)
    agree([got[0], *got[1]], [want[0], *want[1]], 0, 0)
    ((operator, args),) = seen.calls.values()
    assert [len(operator(*args[:-1], keep)) for keep in (args[-1], True)] == [2, 6]


@pytest.mark.parametrize(
    ("text", "tensors", "places"),
    [(TEXTS["GRU"], 1, 12), (CELLS["hidden"], None, 0), (TEXTS["LSTM"], 1, 20)],
    ids=("GRU", "hidden", "LSTM"),
)
def test_what_one_product_made_has_one_gradient(text: str, tensors: int | None, places: int) -> None:
    """And what nobody asked the gradient of comes as one zero, not as all of its tokens."""
    module = build(text)
    x = torch.randn(2, 5, module.D, requires_grad=True)
    with Calls(load(text)._OPERATORS) as seen:
        module(x)[0].sum().backward()
    forward, backward = (args for _, args in seen.calls.values())
    assert len(forward[-2]) == places and backward[-1] == forward[-2]
    assert tensors is None or len(forward[0]) == len(backward[2]) == tensors
    assert all(g.stride() == (0,) * g.ndim for g in backward[0])


def test_what_comes_next_is_asked_for() -> None:
    """Each array of tokens once a token, in both halves; none that lies in the block."""
    for half in halves(load(TEXTS["LSTM"])):
        asked = re.findall(r"SOON\(p_(\w+) ", half)
        held = set(re.findall(r"restrict p_(\w+) = \(real \*\)\(s_", half))
        assert len(asked) == len(set(asked)) > 8 and not held & set(asked)


def test_inputs_that_are_views_have_their_own_gradients() -> None:
    """Parts of one tensor, which a caller may ask for the gradients of."""
    text = "cell C\ndim D = 3\ninput x[D], y[D]\nstate h[D]\nh[t] = tanh(linear(h[t-1] -> D) + x) * y\noutput h[t]\n"
    module, whole = build(text), torch.randn(2, 5, 6, requires_grad=True)
    parts = (whole * 1).split(3, -1)
    alone = [p.detach().clone().requires_grad_() for p in parts]
    got, want = (torch.autograd.grad(module(*given)[0].sum(), given) for given in (parts, alone))
    agree([*got], [*want], 0, 0)
