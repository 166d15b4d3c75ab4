"""What is timed: the module by each of its backends, a compiled loop over its tokens, and scans of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from rnnc.bench.inputs import complex_of
from rnnc.bench.peers import PEERS, Unfit, peer
from rnnc.pipeline import Compilation
from rnnc.target import backend

Call = Callable[..., tuple[Tensor, ...]]
"""Inputs [B, T, ...] to outputs [B, T, ...]."""
LOOP = "compiled loop"
_UNROLLED = 8
"""Tokens in one graph of the compiled loop: compiling takes longer the more there are, whatever the length."""


@dataclass(frozen=True)
class Contender:
    """`call` reads `leaves`, its parameters, beside the inputs."""

    name: str
    call: Call
    leaves: tuple[Tensor, ...]


class Subject:
    """A compiled cell at its sizes. All modules that it makes have the same parameters."""

    def __init__(
        self,
        made: Compilation,
        build: Callable[..., Any],
        options: Mapping[str, int | float],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        assert made.cell is not None
        self.made, self.cell, self.build, self.options = made, made.cell, build, options
        self.device, self.dtype = device, dtype
        torch.manual_seed(0)  # pyright: ignore
        self.weights = build(**options, backend="reference", device=device, dtype=dtype).state_dict()
        self.numbers: dict[str, int | float] = {}
        like = self.module("reference")
        for number in (*self.cell.dims, *self.cell.consts):
            self.numbers[number.name] = getattr(like, number.name)

    def module(self, name: str) -> Any:
        """The module by one backend; ValueError where it has no such one."""
        module = self.build(**self.options, backend=name, device=self.device, dtype=self.dtype)
        module.load_state_dict(self.weights)
        return module

    def contender(self, name: str) -> Contender:
        module = self.module(name)
        return Contender(name, lambda *inputs: _tuple(module(*inputs)[0]), tuple(module.parameters()))

    def oracle(self, dtype: torch.dtype) -> Contender:
        """The interpreter, which shares nothing with the module."""
        kind: Any = backend("reference")
        sizes = {d.name: self.numbers[d.name] for d in self.cell.dims if not d.derived}
        consts = {c.name: self.numbers[c.name] for c in self.cell.consts}
        interpreter: Any = kind.Interpreter(self.cell, sizes, consts, dtype=dtype, device=self.device)
        learned = [name for name, _ in self.module("reference").named_parameters()]
        weights = {n: w.detach().to(complex_of(dtype) if w.is_complex() else dtype) for n, w in self.weights.items()}
        leaves = {name: weights[name].requires_grad_() for name in learned}
        return Contender("interpreter", lambda *inputs: interpreter.run(inputs, weights)[0], tuple(leaves.values()))

    def builders(self) -> dict[str, Callable[[], Contender]]:
        """All contenders by name. Building one raises where it does not apply here."""
        named = [name for name in cast(Sequence[str], getattr(self.build, "_backends")) if name != "auto"]  # noqa: B009
        made = {name: partial(self.contender, name) for name in named}
        return {**made, LOOP: self._loop, **{name: partial(self._peer, name) for name in PEERS}}

    def _peer(self, name: str) -> Contender:
        if self.made.plan is None or self.made.closures is None:
            raise Unfit("the cell has no plan")
        module = self.module("reference")
        weights = {n: w for pairs in (module.named_parameters(), module.named_buffers()) for n, w in pairs}
        call = peer(PEERS[name], self.made.plan.system, self.made.closures, self.numbers, weights)
        return Contender(name, call, tuple(module.parameters()))

    def _loop(self) -> Contender:
        module = self.module("reference")
        real = torch.float64 if self.dtype == torch.float64 else torch.float32

        def tokens(state: Any, *inputs: Tensor) -> tuple[tuple[Tensor, ...], Any]:
            steps: list[tuple[Tensor, ...]] = []
            for t in range(inputs[0].shape[1]):
                y, state = module.step(*(x[:, t] for x in inputs), state)
                steps.append(_tuple(y))
            return tuple(torch.stack(one, 1) for one in zip(*steps, strict=True)), state

        compiled = cast(Callable[..., Any], torch.compile(tokens, dynamic=False))  # pyright: ignore

        def call(*inputs: Tensor) -> tuple[Tensor, ...]:
            state = module.initial_state(inputs[0].shape[0], device=self.device, dtype=real)
            parts: list[tuple[Tensor, ...]] = []
            for start in range(0, inputs[0].shape[1], _UNROLLED):
                # Contiguous, or each length would be another graph.
                outputs, state = compiled(state, *(x[:, start : start + _UNROLLED].contiguous() for x in inputs))
                parts.append(outputs)
            return tuple(torch.cat(one, 1) for one in zip(*parts, strict=True))

        return Contender(LOOP, call, tuple(module.parameters()))


def _tuple(outputs: Any) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
