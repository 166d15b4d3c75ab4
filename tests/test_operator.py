"""Generated operators are called as they are where nobody watches, and are PyTorch's own where somebody does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from tests.modules import PROGRAMS, agree, draw, load, make, tensors, with_gradients

several = pytest.mark.parametrize("name", ["scan", "gru", "mlstm", "deltaproduct"])


def operators(name: str) -> list[Any]:
    """Those that a module's class calls."""
    found = list(vars(load(PROGRAMS[name].text)).values())
    found += [x.operator for x in found if type(x).__name__ == "_Loop"]
    return [x for x in found if type(x).__name__ == "_DifferentiableOperator"]


def refused(*_: Any) -> Any:
    raise AssertionError("called through PyTorch's dispatcher")


@several
def test_eager_calls_are_direct(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers and gradients of PyTorch's operators, of which none is called, with and without a graph."""
    module, inputs = make(name), draw(name, 2, 5, requires_grad=True)
    assert operators(name)
    with monkeypatch.context() as patch:
        for x in operators(name):
            patch.setattr(x, "differentiated", lambda given, _, x=x: x.operator(*given))
        want = with_gradients(module, module(*inputs), *inputs)
    for x in operators(name):
        monkeypatch.setattr(x, "operator", refused)
        monkeypatch.setattr(x.backward, "operator", refused)
    agree(with_gradients(module, module(*inputs), *inputs), want, 0, 0)
    with torch.no_grad():
        agree(tensors(module(*inputs)), want[: len(tensors(module(*inputs)))], 0, 0)


@several
def test_fake_tensors(name: str) -> None:
    """Nothing is computed of what has no numbers, and shapes and dtypes are right."""
    module, inputs = make(name), draw(name, 2, 5)
    want = tensors(module(*inputs))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        got = tensors(module(*(mode.from_tensor(x) for x in inputs)))
    assert all(isinstance(x, FakeTensor) for x in got)
    assert [(x.shape, x.dtype) for x in got] == [(x.shape, x.dtype) for x in want]
    got = tensors(make(name).to("meta")(*(x.to("meta") for x in inputs)))
    assert all(x.is_meta for x in got) and [x.shape for x in got] == [x.shape for x in want]


@several
def test_traces_have_operators(name: str) -> None:
    """A traced call computes of other inputs what the module does: no result of the first ones is in it."""
    module, inputs, others = make(name), draw(name, 2, 5), draw(name, 2, 5, seed=1)
    want = tensors(module(*others))
    own = load(PROGRAMS[name].text)._OPERATORS
    with torch.no_grad():
        traced = make_fx(lambda *x: tensors(module(*x)))(*inputs)
    assert any(getattr(n.target, "namespace", "") == own for n in traced.graph.nodes)
    agree(traced(*others), want, 0, 0)


@several
def test_derivatives_by_functions_are_refused(name: str) -> None:
    """PyTorch's operators have none under torch.func; the reference does."""
    module, inputs = make(name), draw(name, 2, 5)

    def total(x: Tensor) -> Tensor:
        return sum((x.sum() for x in tensors(module(x, *inputs[1:])) if x.is_floating_point()), torch.zeros(()))

    with pytest.raises(NotImplementedError, match=r'torch.func .* backend="reference"'):
        torch.func.grad(total)(inputs[0])
    module.backend = "reference"
    x = inputs[0].requires_grad_()
    agree([torch.func.grad(total)(inputs[0])], list(torch.autograd.grad(total(x), x)))
