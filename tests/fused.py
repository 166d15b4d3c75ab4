"""Modules with kernels beside the interpreter in float64: outputs, final states, and the gradients of everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from backends.reference import Interpreter
from rnnc.ir import Cell
from rnnc.rounding import Comparison, Expected, Rounding, Tensors
from tests.modules import as_tuple


def like(value: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a value's kind with numbers as precise as `dtype`; complex ones are at least of float32."""
    if value.dtype == torch.bool or not value.is_complex():
        return torch.bool if value.dtype == torch.bool else dtype
    return torch.complex128 if dtype == torch.float64 else torch.complex64


def computing(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass
class Trial:
    """One call, in float64: inputs, parameters, a state to go on from, the lengths of packed sequences."""

    cell: Cell
    sizes: Mapping[str, int]
    inputs: Tensors
    params: Tensors
    state: Tensors | None = None
    lengths: Sequence[int] | None = None
    seed: int = 0
    weights: Tensors = field(default_factory=dict[str, Tensor])
    oracles: dict[torch.dtype, Interpreter] = field(default_factory=dict[torch.dtype, Interpreter])

    @property
    def ends(self) -> list[int] | None:
        return None if self.lengths is None else list(accumulate(self.lengths, initial=0))

    def expected(self) -> Expected:
        """What the interpreter gets."""
        for dtype in (torch.float32, torch.float64):
            self.oracle(dtype)
        return Expected(self.interpreted, self.seed)

    def oracle(self, dtype: torch.dtype) -> Interpreter:
        """Made once, and not where results are moved by roundings: sizes are whole numbers."""
        if dtype not in self.oracles:
            self.oracles[dtype] = Interpreter(self.cell, self.sizes, dtype=dtype)
        return self.oracles[dtype]

    def interpreted(self, dtype: torch.dtype) -> Tensors:
        oracle = self.oracle(dtype)
        inputs, state = self.leaves(dtype)
        learned = {p.name for p in self.cell.params if p.learned}
        params = {n: self.leaf(p, dtype) if n in learned else p for n, p in self.params.items()}
        outputs, final = oracle.run(inputs, params, state, self.ends)
        return self.gathered(outputs, final, inputs, {n: p for n, p in params.items() if n in learned}, state)

    def computed(self, build: Callable[..., Any], dtype: torch.dtype, device: str = "cpu") -> Tensors:
        """What a module gets from inputs in `dtype`, its parameters and states being at least of float32."""
        return self.called(self.module(build, dtype, device), dtype, device)

    def module(self, build: Callable[..., Any], dtype: torch.dtype, device: str = "cpu") -> Any:
        """A module with these parameters."""
        module = build(**self.sizes, dtype=computing(dtype), device=device)
        own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        with torch.no_grad():
            for name, value in self.params.items():
                own[name].copy_(value)
        return module

    def called(self, module: Any, dtype: torch.dtype, device: str = "cpu") -> Tensors:
        inputs, state = self.leaves(dtype, device)
        given = None
        if state is not None:
            kind = type(module.initial_state(1))
            given = kind(*(state[n] for n in kind._fields))
        ends = None if self.ends is None else torch.tensor(self.ends, dtype=torch.int32, device=device)
        outputs, final = module(*inputs.values(), state=given, cu_seqlens=ends)
        return self.gathered(as_tuple(outputs), final._asdict(), inputs, dict(module.named_parameters()), state)

    def leaf(self, value: Tensor, dtype: torch.dtype, device: str = "cpu") -> Tensor:
        own = value.detach().clone().to(device, like(value, dtype))
        return own if own.dtype == torch.bool else own.requires_grad_()

    def leaves(self, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensors, Tensors | None]:
        """Inputs and state."""
        inputs = {n: self.leaf(x, dtype, device) for n, x in self.inputs.items()}
        state = self.state and {n: self.leaf(x, computing(dtype), device) for n, x in self.state.items()}
        return inputs, state

    def gathered(
        self, outputs: Sequence[Tensor], final: Tensors, inputs: Tensors, params: Tensors, state: Tensors | None
    ) -> Tensors:
        """Values, and gradients of a sum of all of them with fixed weights, by name."""
        values = {f"output {o.name}": v for o, v in zip(self.cell.outputs, outputs, strict=True)}
        values |= {f"final state {n}": v for n, v in final.items()}
        total = torch.zeros((), dtype=torch.float64)
        for name, value in values.items():
            if value.dtype != torch.bool:
                weight = self.weight(name, value)
                total = total + (weight.conj() * torch.where(weight != 0, value, 0)).real.sum().to(total)
        leaves = {f"gradient of input {n}": x for n, x in inputs.items()}
        leaves |= {f"gradient of param {n}": x for n, x in params.items()}
        leaves |= {f"gradient of state {n}": x for n, x in (state or {}).items()}
        leaves = {n: x for n, x in leaves.items() if x.requires_grad}
        grads: Sequence[Tensor] = [torch.zeros_like(x) for x in leaves.values()]
        if total.requires_grad and leaves:
            grads = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        found = {n: v.detach() for n, v in values.items()} | dict(zip(leaves, grads, strict=True))
        return {n: v.cpu() for n, v in found.items()}

    def weight(self, name: str, value: Tensor) -> Tensor:
        """What a value counts in the sum: 0 where it is infinite."""
        if name not in self.weights:
            generator = torch.Generator().manual_seed(100 * self.seed + len(self.weights))
            drawn = torch.randn(value.shape, generator=generator, dtype=like(value, torch.float64))
            self.weights[name] = torch.where(value.detach().cpu().isfinite(), drawn, 0)
        return self.weights[name].to(value.device, value.dtype)


def disagreements(expected: Expected, got: Tensors, dtype: torch.dtype = torch.float64) -> list[str]:
    """What is further from the interpreter than roundings explain."""
    return [_told(c) for c in expected.compare(got, dtype) if c.failed]


def _told(c: Comparison) -> str:
    return f"{c.what}: {c.where}, off by {c.error:.2g} where {c.allowed:.2g} is allowed"


def errors(got: Tensors, want: Tensors) -> Iterator[tuple[str, float, float]]:
    """By name: the error of a tensor relative to its norm, and its largest one relative to the largest number."""
    for name, wanted in want.items():
        value, wide = got[name], like(wanted, torch.float64)
        assert value.shape == wanted.shape, name
        finite = wanted.isfinite() if wanted.dtype != torch.bool else torch.ones_like(wanted)
        assert torch.equal(value[~finite].to(wide), wanted[~finite]), name
        if wanted.dtype == torch.bool:
            assert torch.equal(value, wanted), name
            continue
        off, size = (value.to(wide) - wanted)[finite], wanted[finite]
        if off.numel():
            tiny = 1e-300
            yield name, float(off.norm() / (size.norm() + tiny)), float(off.abs().max() / (size.abs().max() + tiny))


def unexplained(got: list[Tensor], exact: Callable[[], list[Tensor]], most: float) -> list[str]:
    """What is further off than `most` of its norm, and than 4 times what roundings do to the interpreter.

    `exact` runs it in float64; rounded, the operands and results of all its operations are moved by one of float32 at
    random. Gradients may cancel, down to those roundings.
    """
    want = exact()
    assert [x.shape for x in got] == [x.shape for x in want]
    finite = [y.isfinite() for y in want]

    def distances(other: list[Tensor]) -> list[float]:
        pairs = zip(other, want, finite, strict=True)
        return [(x.to(like(y, torch.float64)) * 1.0 - y * 1.0)[here].norm().item() for x, y, here in pairs]

    errors, norms = distances(got), [(y * 1.0)[here].norm().item() for y, here in zip(want, finite, strict=True)]
    if all(error <= most * norm for error, norm in zip(errors, norms, strict=True)):
        return []
    with Rounding(torch.finfo(torch.float32).eps, seed=0):
        samples = [exact() for _ in range(4)]
    roundings = [max(found) for found in zip(*(distances(moved) for moved in samples), strict=True)]
    return [
        f"{place}: {error:.1e} of {norm:.1e}, roundings are {rounding:.1e}"
        for place, (error, norm, rounding) in enumerate(zip(errors, norms, roundings, strict=True))
        if not error <= max(most * norm, 4 * rounding)
    ]


class RoundedOperands(TorchFunctionMode):
    """The operands of products of matrices are rounded as our kernels round them, forward and backward; all else is as
    it was. To bfloat16, or for float16 to TF32, which has as many digits and the range of float32.

    Not for a dispatch mode: under one, chunks are an operator, which hides its products.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.autograd.grad:  # Within a function that it sees, a mode is off.
            with mock.patch.object(torch.autograd, "_engine_run_backward", self.within(RUN_BACKWARD)):
                return func(*args, **(kwargs or {}))
        if (place := PRODUCTS.get(func)) is not None:
            x, y = args[place : place + 2]
            args = (*args[:place], self.rounded(x), self.rounded(y), *args[place + 2 :])
        return func(*args, **(kwargs or {}))

    def within(self, run: Any) -> Any:
        def rounding(*args: Any, **kwargs: Any) -> Any:
            with self:
                return run(*args, **kwargs)

        return rounding

    def rounded(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            return x
        if self.dtype == torch.float16:
            return ((x.view(torch.int32) + 4096) & -8192).view(torch.float32)
        return x.to(self.dtype).to(x.dtype)


RUN_BACKWARD = torch.autograd.graph._engine_run_backward
PRODUCTS = {
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, torch.bmm, Tensor.bmm), 0),
    **dict.fromkeys((torch.baddbmm, Tensor.baddbmm, torch.addmm), 1),
}
"""Where each has what it multiplies."""
