"""What `rnnc test` finds: nothing where a module is the interpreter itself, and each kind of mistake elsewhere."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backends.reference import Interpreter
from rnnc.check import check
from rnnc.harness import PROPERTIES, Result, Subject, properties
from rnnc.ir import Cell
from rnnc.parse import parse
from rnnc.source import Source

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


class Oracle(nn.Module):
    """The interpreter in the clothes of a generated module."""

    def __init__(self, cell: Cell, device: str, dtype: torch.dtype, **sizes: int) -> None:
        super().__init__()
        self.cell, self.oracle = cell, Interpreter(cell, sizes, dtype=None, device=device)
        for name, value in Interpreter(cell, sizes, dtype=dtype).init_params().items():
            if cell.param(name).learned:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        self.State = namedtuple("State", [f.name for f in self.oracle.fields])
        self.Output = namedtuple("Output", [o.name for o in cell.outputs])

    def tensors(self) -> dict[str, Tensor]:
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def initial_state(self, batch: int) -> Any:
        return self.State(**self.oracle.initial_state(self.tensors(), batch))

    def forward(self, *inputs: Tensor, state: Any = None, cu_seqlens: Tensor | None = None) -> Any:
        ends = None if cu_seqlens is None else cu_seqlens.tolist()
        outputs, final = self.oracle.run(inputs, self.tensors(), state, ends)
        return (outputs[0] if len(outputs) == 1 else self.Output(*outputs)), self.State(**final)

    def step(self, *arguments: Any) -> Any:
        *inputs, state = arguments
        outputs, final = self.oracle.run([x.unsqueeze(1) for x in inputs], self.tensors(), state)
        first = [y.squeeze(1) for y in outputs]
        return (first[0] if len(first) == 1 else self.Output(*first)), self.State(**final)


def load(name: str) -> Cell:
    source = Source(name, (EXAMPLES / f"{name}.rnn").read_text())
    cell, _ = check(parse(source).cells[0], source)
    assert cell is not None
    return cell


def results(cell: Cell, build: Callable[..., nn.Module], cases: int = 4) -> dict[str, Result]:
    return {r.name: r for r in (one() for one in properties(Subject(cell, build), cases))}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.rnn")), ids=lambda p: p.stem)
def test_the_interpreter_passes(path: Path) -> None:
    cell = load(path.stem)
    found = results(cell, lambda **sizes: Oracle(cell, **sizes), 2)
    assert list(found) == [p.name for p in PROPERTIES]
    assert {name: r.failure for name, r in found.items() if r.failure} == {}


def test_a_wrong_gradient() -> None:
    cell = load("mingru")

    class Wrong(Oracle):
        def forward(self, *inputs: Tensor, state: Any = None, cu_seqlens: Tensor | None = None) -> Any:
            y, final = super().forward(*inputs, state=state, cu_seqlens=cu_seqlens)
            if y.requires_grad:
                y.register_hook(lambda g: g * 1.001)
            return y, final

    found = results(cell, lambda **sizes: Wrong(cell, **sizes))
    failed = {name: r.failure for name, r in found.items() if r.failure}
    assert set(failed) == {"gradients", "float32 gradients"}
    case = failed["gradients"].case
    assert case.batch == 1 and case.length == 1 and set(case.sizes.values()) == {1}


def test_a_state_that_is_not_carried() -> None:
    cell = load("mingru")

    class Forgetful(Oracle):
        def forward(self, *inputs: Tensor, state: Any = None, cu_seqlens: Tensor | None = None) -> Any:
            return super().forward(*inputs, cu_seqlens=cu_seqlens)

    failed = {n: r.failure for n, r in results(cell, lambda **s: Forgetful(cell, **s)).items() if r.failure}
    assert {"final states", "splits"} <= set(failed) and not {"outputs", "stepping", "packed sequences"} & set(failed)
    assert failed["splits"].case.pieces == (1, 0)


def test_what_raises_is_a_failure() -> None:
    cell = load("mingru")

    class Short(Oracle):
        def forward(self, *inputs: Tensor, state: Any = None, cu_seqlens: Tensor | None = None) -> Any:
            if inputs[0].shape[1] == 0:
                raise IndexError("no token")
            return super().forward(*inputs, state=state, cu_seqlens=cu_seqlens)

    found = results(cell, lambda **s: Short(cell, **s), 24)
    failure = found["odd lengths"].failure
    assert failure is not None and failure.case.length == 0 and "no token" in failure.comparison.what
