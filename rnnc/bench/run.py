"""One run: everybody is checked, then warmed at every length, and only then timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from rnnc.bench.contenders import Contender, Subject
from rnnc.bench.inputs import complex_of, draw
from rnnc.bench.measure import Clock, Copy, Timing, reason
from rnnc.bench.peers import Unfit
from rnnc.bench.traffic import traffic
from rnnc.rounding import compare

Direction = Literal["forward", "both"]
"""`forward` is without gradients; `both` is a training step: forward, then the gradients of inputs and parameters."""
_CHECKED = 256
"""Tokens on which a contender's numbers are checked."""
_DIRECTIONS: tuple[Direction, ...] = ("forward", "both")


@dataclass(frozen=True)
class Row:
    """A contender at one length. Without a timing `reason` says why."""

    contender: str
    length: int
    direction: Direction
    tokens: int
    bytes: int
    timing: Timing | None = None
    reason: str = ""

    @property
    def tokens_per_s(self) -> float | None:
        return self.timing and 1e3 * self.tokens / self.timing.ms

    @property
    def gb_per_s(self) -> float | None:
        return self.timing and self.bytes / self.timing.ms / 1e6


@dataclass
class Bench:
    """What is measured; `steps` does it, and fills the rest."""

    subject: Subject
    batch: int
    lengths: tuple[int, ...]
    names: tuple[str, ...]
    seconds: float
    rows: list[Row] = field(default_factory=list[Row])
    copy: Copy | None = None

    def __post_init__(self) -> None:
        self.clock = Clock(self.subject.device)
        self.contenders: dict[str, Contender] = {}
        self.failed: dict[tuple[str, int], str] = {}
        self.took: dict[tuple[str, int], float] = {}
        self.expected: list[list[Tensor]] = []
        self.weights: list[Tensor] = []
        self.longest: tuple[Tensor, ...] = ()

    def steps(self) -> list[Callable[[], None]]:
        """To be called in order."""
        pairs = [(name, length) for length in sorted(self.lengths) for name in self.names]
        return [
            self._draw,
            self._expect,
            *(partial(self._check, name) for name in self.names),
            *(partial(self._warm, *pair) for pair in pairs),
            self._measure_copy,
            *(partial(self._time, *pair, direction) for pair in pairs for direction in _DIRECTIONS),
        ]

    @property
    def share(self) -> float:
        """Seconds for one line of the table."""
        lines = [(name, length) for name in self.names for length in self.lengths if (name, length) not in self.failed]
        return self.seconds / max(1, len(_DIRECTIONS) * len(lines))

    # --- steps ---

    def _draw(self) -> None:
        s = self.subject
        self.longest = draw(s.cell, s.numbers, self.batch, max(self.lengths), s.dtype, s.device)

    def _measure_copy(self) -> None:
        self.copy = self.clock.copy()

    def _check(self, name: str) -> None:
        try:
            contender = self.contenders[name] = self.subject.builders()[name]()
            wrong = self._wrong(contender)
        except Unfit as error:
            wrong = f"does not apply: {error}" if str(error) != "not installed" else str(error)
        except Exception as error:  # whatever a compiler or a library raises here is a line of the table
            wrong = reason(error)
        if wrong:
            self.failed |= {(name, length): wrong for length in self.lengths}

    def _expect(self) -> None:
        """What the interpreter gets, in float64 and in float32."""
        s, inputs = self.subject, self._inputs(min(_CHECKED, *self.lengths))
        for dtype in (torch.float64, torch.float32):
            wide = tuple(_wide(x, dtype) for x in inputs)
            found, self.weights = _results(s.oracle(dtype), wide, self.weights)
            self.expected.append([x.cpu() for x in found])

    def _wrong(self, contender: Contender) -> str:
        """The first output or gradient that is further from the interpreter's than rounding explains."""
        s, eps = self.subject, torch.finfo(torch.float32).eps
        got, _ = _results(contender, self._inputs(min(_CHECKED, *self.lengths)), self.weights)
        for i, (g, want, rough) in enumerate(zip(got, *self.expected, strict=True)):
            outputs = len(s.cell.outputs)
            what = f"output {i + 1}" if i < outputs else f"gradient {i + 1 - outputs}"
            if g.shape != want.shape:
                return f"wrong: {what} has the shape {list(g.shape)} instead of {list(want.shape)}"
            found = compare(what, g, want, [(rough, eps)], s.dtype)
            if found.failed:
                return f"wrong: {found.what} is {found.where}"
        return ""

    def _warm(self, name: str, length: int) -> None:
        if (name, length) in self.failed:
            return
        shorter = max((n for other, n in self.took if other == name and n < length), default=None)
        if shorter is not None and (guess := self.took[name, shorter] * length / shorter) > self.share:
            self.failed[name, length] = f"a call takes about {guess:.0f} s" if guess >= 1 else "no time left for it"
            return
        try:
            for direction in _DIRECTIONS:
                call = self._call(name, length, direction)
                call()
                self.took[name, length] = min(self.clock.once(call) for _ in range(2))
        except Exception as error:  # such as too little memory
            self.failed[name, length] = reason(error)

    def _time(self, name: str, length: int, direction: Direction) -> None:
        tokens = self.batch * length
        forward, backward = traffic(self.subject, tokens)
        size = forward if direction == "forward" else forward + backward
        timing, why = None, self.failed.get((name, length), "")
        if not why:
            try:
                timing = self.clock.median(self._call(name, length, direction), self.share, least=3)
            except Exception as error:
                why = reason(error)
        self.rows.append(Row(name, length, direction, tokens, size, timing, why))

    # --- parts of them ---

    def _inputs(self, length: int) -> tuple[Tensor, ...]:
        return tuple(x[:, :length].contiguous() for x in self.longest)

    def _call(self, name: str, length: int, direction: Direction) -> Callable[[], object]:
        contender, inputs = self.contenders[name], self._inputs(length)
        if direction == "forward":
            return torch.no_grad()(lambda: contender.call(*inputs))
        inputs, leaves = _leaves(contender, inputs)
        weights = [torch.randn_like(y) for y in _differentiable(contender.call(*inputs))]

        def both() -> object:
            outputs = _differentiable(contender.call(*inputs))
            return torch.autograd.grad(outputs, leaves, weights, allow_unused=True) if outputs and leaves else None

        return both


def _wide(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == torch.bool else x.to(complex_of(dtype) if x.is_complex() else dtype)


def _leaves(contender: Contender, inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """The inputs as leaves, and all that gradients are asked of."""
    own = tuple(x if x.dtype == torch.bool else x.detach().clone().requires_grad_() for x in inputs)
    return own, [x for x in (*own, *contender.leaves) if x.requires_grad]


def _differentiable(outputs: Sequence[Tensor]) -> list[Tensor]:
    return [y for y in outputs if y.requires_grad]


def _results(
    contender: Contender, inputs: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, then the gradients of a weighted sum of them; and the weights, drawn where none are given."""
    inputs, leaves = _leaves(contender, inputs)
    outputs = contender.call(*inputs)
    if not weights:
        generator = torch.Generator(inputs[0].device).manual_seed(1)
        weights = [torch.randn(y.shape, generator=generator, device=y.device, dtype=torch.float64) for y in outputs]
    chosen = [(y, w.to(y.dtype)) for y, w in zip(outputs, weights, strict=True) if y.requires_grad]
    found: Sequence[Tensor] = ()
    if chosen and leaves:
        ys, ws = zip(*chosen, strict=True)
        found = torch.autograd.grad(ys, leaves, ws, materialize_grads=True)
    return [*(y.detach() for y in outputs), *found], list(weights)
