"""What the comparisons share: equal inputs, numbers checked in float64 first, then times beside a copy's bandwidth.

A script names a cell, shapes, and peers; `main` does the rest. Everyone is checked at every shape, which warms it too,
before anyone is timed. Bytes are counted as `rnnc bench` does (docs/bench.md): what must move, whoever computes it.
Forward is the call of a training step; backward is timed apart. `rnnc` is the module with its kernels where its class
offers any, then with plain PyTorch.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnnc.bench.contenders import Subject
from rnnc.bench.inputs import complex_of, draw
from rnnc.bench.measure import Clock, machine, reason, version
from rnnc.bench.traffic import traffic
from rnnc.loading import load_module
from rnnc.output import write
from rnnc.pipeline import Compilation, compile_source, module_text
from rnnc.source import Source

HERE = Path(__file__).resolve().parent
CELLS, EXAMPLES = HERE / "cells", HERE.parent / "examples"
PACKAGES = ("accelerated-scan", "fla-core", "minGRU-pytorch", "mamba-ssm", "flashrnn")
_ALLOWED = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Relative error in the norm above which a result counts as wrong. What it is exactly is reported beside the time."""
_VANISHES = 1e-9
"""A gradient below this share of all gradients' norm is zero but for rounding, and its error is held against theirs."""
_AT_ONCE = 2**25
"""Numbers of inputs, states and outputs that the reference has at once, unless one sequence has more."""
_SECONDS = 0.25
"""For one time."""
_CHECKING = 0.65
"""The share of all time after which nobody new is checked: peers compile then, and what was checked is to be timed."""


@dataclass(frozen=True)
class Case:
    """A cell at one shape."""

    program: Path
    batch: int
    length: int
    sizes: dict[str, int]
    dtype: torch.dtype = torch.bfloat16

    @property
    def title(self) -> str:
        sizes = " ".join(f"{name}{size}" for name, size in self.sizes.items())
        return f"B{self.batch} T{self.length} {sizes} {str(self.dtype)[6:]}"


@dataclass(frozen=True)
class Peer:
    """`build` gives a function of the cell's inputs and parameters, or raises where that cannot run here.

    With `time_last` its inputs and its output are [B, D, T], contiguous, which is not counted against it.
    """

    name: str
    build: Callable[[], Callable[..., Tensor]]
    time_last: bool = False


def both_layouts(name: str, build: Callable[[], Callable[..., Tensor]], inputs: int) -> list[Peer]:
    """A peer that wants [B, D, T]: given that, and given what everyone else gets."""

    def from_time_first() -> Callable[..., Tensor]:
        function = build()

        def call(*given: Tensor) -> Tensor:
            return function(*(x.mT.contiguous() for x in given[:inputs]), *given[inputs:]).mT.contiguous()

        return call

    return [Peer(name, build, True), Peer(f"{name}, from [B, T, D]", from_time_first)]


@cache
def compiled(program: Path) -> tuple[Compilation, type[Any]]:
    source = Source(program.name, program.read_text(encoding="utf-8"))
    made = compile_source(source)
    return made[0], getattr(load_module(module_text(made, source), source.name), made[0].tree.name.text)


class Trial:
    """A case with its inputs, and what is right."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, (made, cls) = case, compiled(case.program)
        self.subject = Subject(made, cls, case.sizes, device, case.dtype)
        self.names = [name for name in ("triton", "cuda", "torch") if name in cls._backends]
        self.inputs = draw(self.subject.cell, self.subject.numbers, case.batch, case.length, case.dtype, device)
        (output,) = self.subject.cell.outputs
        shape = [case.batch, case.length, *(int(self.subject.numbers[d]) for d in output.expr.dims)]
        dtype = complex_of(case.dtype) if output.expr.kind == "complex" else case.dtype
        generator = torch.Generator(device).manual_seed(1)
        self.weight = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        self.forward_bytes, self.backward_bytes = traffic(self.subject, case.batch * case.length)

    def expected(self) -> list[Tensor]:
        """Output and gradients by plain PyTorch in float64, a few sequences after the other.

        That itself is compared with the interpreter on the first tokens.
        """
        s, double = self.subject, torch.float64
        wide = Subject(s.made, s.build, s.options, s.device, double)
        wide.weights = {name: _wide(w) for name, w in s.weights.items()}
        oracle, interpreter = wide.contender("torch"), wide.oracle(double)
        first = [_wide(x[:1, :32]) for x in self.inputs]
        with torch.no_grad():
            error = _error(oracle.call(*first)[0], interpreter.call(*first)[0])
        if not error < 1e-9:
            raise ArithmeticError(f"plain PyTorch in float64 is off by {error:.1e} from the interpreter")
        rows: list[list[Tensor]] = []
        few = max(1, _AT_ONCE // self._numbers())
        for i in range(0, self.case.batch, few):
            own = [_wide(x[i : i + few]).requires_grad_() for x in self.inputs]
            y = oracle.call(*own)[0]
            rows.append([y.detach(), *torch.autograd.grad(y, [*own, *oracle.leaves], _wide(self.weight[i : i + few]))])
        count = 1 + len(self.inputs)
        columns = list(zip(*rows, strict=True))
        return [torch.cat(c) if i < count else torch.stack(c).sum(0) for i, c in enumerate(columns)]

    def _numbers(self) -> int:
        """Of one sequence."""
        cell, sizes = self.subject.cell, self.subject.numbers
        types = [*(i.type for i in cell.inputs), *(s.type for s in cell.states), *(o.expr.type for o in cell.outputs)]
        return self.case.length * sum(prod(int(sizes[d]) for d in t.dims) for t in types)

    def prepared(self, name: str, peers: Sequence[Peer]) -> Prepared:
        if peer := next((p for p in peers if p.name == name), None):
            leaves = [(x.mT.contiguous() if peer.time_last else x).detach().requires_grad_() for x in self.inputs]
            learned = self.subject.module("torch").parameters()
            return Prepared(peer.build(), [*leaves, *learned], self.weight, len(leaves), peer.time_last)
        contender = self.subject.contender(name.removeprefix("rnnc "))
        leaves = [x.detach().requires_grad_() for x in self.inputs]
        count = len(leaves)
        return Prepared(
            lambda *given: contender.call(*given[:count])[0], [*leaves, *contender.leaves], self.weight, count, False
        )


class Prepared:
    """A contender with its inputs in its own layout."""

    def __init__(
        self, function: Callable[..., Tensor], leaves: list[Tensor], weight: Tensor, inputs: int, time_last: bool
    ) -> None:
        self.function, self.leaves, self.inputs, self.time_last = function, leaves, inputs, time_last
        self.weight = weight.mT.contiguous() if time_last else weight

    def forward(self) -> Tensor:
        return self.function(*self.leaves)

    def backward(self, y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, self.leaves, self.weight, retain_graph=True)

    def results(self) -> list[Tensor]:
        """Output and gradients in the common layout."""
        y = self.forward()
        found = [y.detach(), *self.backward(y)]
        return [x.mT if self.time_last and i <= self.inputs else x for i, x in enumerate(found)]


def _wide(x: Tensor) -> Tensor:
    return x.detach().to(complex_of(torch.float64) if x.is_complex() else torch.float64)


def _error(got: Tensor, want: Tensor, beside: float = 0.0) -> float:
    """Relative to what is wanted, or, where that vanishes, to what is `beside` it."""
    if got.shape != want.shape:
        raise ValueError(f"shape {list(got.shape)} instead of {list(want.shape)}")
    size = want.norm().item()
    return (_wide(got) - want).norm().item() / (size if size > _VANISHES * beside else beside)


class Run:
    """One script's results, written again after each step: what stops it leaves what was there."""

    def __init__(self, title: str, device: torch.device, target: Path | None, seconds: float) -> None:
        self.device, self.target, self.start, self.seconds = device, target, time.monotonic(), seconds
        self.clock = Clock(device)
        packages = {name: version(name) for name in PACKAGES}
        self.found: dict[str, Any] = {"title": title, "machine": machine(device), "packages": packages, "cases": []}

    def late(self, share: float = 1.0) -> bool:
        return time.monotonic() - self.start > share * self.seconds

    def check(self, case: Case, peers: Sequence[Peer]) -> None:
        trial = Trial(case, self.device)
        record: dict[str, Any] = {
            "title": case.title,
            "program": case.program.name,
            "cell": trial.subject.cell.name,
            "batch": case.batch,
            "T": case.length,
            "sizes": case.sizes,
            "dtype": str(case.dtype)[6:],
            "forward_bytes": trial.forward_bytes,
            "backward_bytes": trial.backward_bytes,
            "results": [],
        }
        self.found["cases"].append(record)
        names = [*(f"rnnc {name}" for name in trial.names), *(p.name for p in peers)]
        want, failed = [], ""
        try:
            want = [] if self.late(_CHECKING) else trial.expected()
        except (RuntimeError, ArithmeticError) as error:  # too little memory for float64, or nothing to go by
            failed = f"no reference: {reason(error)}"
        for name in names:
            why = failed or ("no time left" if self.late(_CHECKING) or not want else "")
            result: dict[str, Any] = {"name": name, "reason": why}
            record["results"].append(result)
            if not result["reason"]:
                self._check_one(trial, name, peers, want, result)
            self.save()

    def _check_one(
        self, trial: Trial, name: str, peers: Sequence[Peer], want: list[Tensor], result: dict[str, Any]
    ) -> None:
        try:
            got = trial.prepared(name, peers).results()
            beside = sum(w.norm().item() ** 2 for w in want[1:]) ** 0.5
            errors = [_error(g, w, beside if i else 0.0) for i, (g, w) in enumerate(zip(got, want, strict=True))]
        except Exception as error:  # whatever a peer raises here is its result
            result["reason"] = reason(error)
            return
        result["error_forward"], result["error_gradients"] = errors[0], errors[1:]
        if bad := [e for e in errors if not e <= _ALLOWED[trial.case.dtype]]:
            what = "output" if bad[0] is errors[0] else "gradient"
            result["reason"] = f"wrong: relative error of the {what} {bad[0]:.1e}"

    def time(self, case: Case, peers: Sequence[Peer], record: dict[str, Any]) -> None:
        trial = Trial(case, self.device)
        record["copy"] = copied = self.clock.copy().gb_per_s
        for result in record["results"]:
            if not result["reason"] and self.late():
                result["reason"] = "no time left"
            if result["reason"]:
                continue
            try:
                own = trial.prepared(result["name"], peers)
                y = own.forward()
                own.backward(y)
                forward = self.clock.median(own.forward, _SECONDS)
                backward = self.clock.median(lambda own=own, y=y: own.backward(y), _SECONDS)
            except Exception as error:
                result["reason"] = reason(error)
                continue
            for way, timing, size in (
                ("forward", forward, trial.forward_bytes),
                ("backward", backward, trial.backward_bytes),
            ):
                rate = size / timing.ms / 1e6
                result[way] = {**vars(timing), "gb_per_s": rate, "percent_of_copy": 100 * rate / copied}
            self.save()

    def save(self) -> None:
        if self.target:
            write(self.target, json.dumps(self.found, indent=1) + "\n")


def main(title: str, shapes: Callable[[bool], Sequence[tuple[Case, Sequence[Peer]]]]) -> None:
    """Run a script's comparisons. `shapes` is asked with True for shapes that merely try it out."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to try the script itself")
    parser.add_argument("--seconds", type=float, default=120, help="about so long; who then has not been timed, is not")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    compiler: Any = import_module("torch._functorch.config")
    compiler.donated_buffer = False  # its backwards are run several times here
    run = Run(title, torch.device(args.device), args.json, args.seconds)
    chosen = shapes(args.quick)
    for case, peers in chosen:
        run.check(case, peers)
    for (case, peers), record in zip(chosen, run.found["cases"], strict=True):
        run.time(case, peers, record)
    run.save()
    from report import text

    print(text([run.found]))
