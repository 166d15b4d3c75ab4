"""Stepped cells on a CPU, forward and backward: the generated module, its loop in C and in Python, against Python loops
of the same equations under autograd, and PyTorch's own LSTM and GRU, in one run.

One loop indexes the inputs, `x[:, t]`, as a researcher would write it first; the other takes them apart once. Both
compute what needs no state for all tokens at once.

    OMP_NUM_THREADS=1 python benchmarks/loops_cpu.py [--json FILE]

With one thread the time is the processor's; with more it is the clock's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rnnc
from benchmarks.families_cpu import Tokens, indexed, unbound
from benchmarks.mingru_cpu import cpu

LSTM = """\
cell LSTM
\"""Hochreiter & Schmidhuber 1997, in PyTorch's form.\"""
dim D = 256, P = 256
input x[D]
gate i = sigmoid(linear(x, h[t-1] -> P, bias=true))
gate f = sigmoid(linear(x, h[t-1] -> P, bias=true))
z = tanh(linear(x, h[t-1] -> P, bias=true))
gate o = sigmoid(linear(x, h[t-1] -> P, bias=true))
state h[P], c[P]
c[t] = f * c[t-1] + i * z
h[t] = o * tanh(c[t])
output h[t]
"""
GRU = (Path(__file__).resolve().parent.parent / "examples" / "gru.rnn").read_text(encoding="utf-8")
INDRNN = """\
cell IndRNN
\"""Independently recurrent units: Li et al. 2018, arXiv:1803.04831; a tanh, of which no family is.\"""
dim D = 64
input x[D]
param u[D] = uniform(-1, 1)
state h[D]
h[t] = tanh(u * h[t-1] + x)
output h[t]
"""


def lstm(tokens: Tokens, xs: Tensor, r: Tensor) -> Tensor:
    h = c = torch.zeros_like(xs[:, 0, : r.shape[1]])
    out: list[Tensor] = []
    for (x,) in tokens(xs):
        i, f, z, o = (x + h @ r.T).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
        h = torch.sigmoid(o) * torch.tanh(c)
        out.append(h)
    return torch.stack(out, 1)


def gru(tokens: Tokens, xs: Tensor, r: Tensor) -> Tensor:
    h = torch.zeros_like(xs[:, 0, : r.shape[1]])
    out: list[Tensor] = []
    for (x,) in tokens(xs):
        (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, -1), (h @ r.T).chunk(3, -1)
        z = torch.sigmoid(x_z + h_z)
        h = (1 - z) * torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n) + z * h
        out.append(h)
    return torch.stack(out, 1)


def indrnn(tokens: Tokens, xs: Tensor, u: Tensor) -> Tensor:
    h = torch.zeros_like(xs[:, 0])
    out: list[Tensor] = []
    for (x,) in tokens(xs):
        h = torch.tanh(u * h + x)
        out.append(h)
    return torch.stack(out, 1)


@dataclass(frozen=True)
class Case:
    text: str
    loop: Callable[..., Tensor]
    batch: int
    length: int
    size: int
    gates: int = 0
    peer: Callable[..., torch.nn.Module] | None = None
    options: tuple[str, ...] = ("D",)

    def contenders(self) -> tuple[dict[str, Callable[[], Tensor]], list[Tensor]]:
        x = torch.randn(self.batch, self.length, self.size, requires_grad=True)
        cell: Any = rnnc.compile(self.text)(**dict.fromkeys(self.options, self.size))

        def ours(way: str) -> Callable[[], Tensor]:
            def call() -> Tensor:
                os.environ["RNNC_LOOPS"] = way
                return cell(x)[0]

            return call

        found = {"rnnc": ours("compiled"), "rnnc, without a compiler": ours("python")}
        leaves = [x, *cell.parameters()]
        if self.gates:
            w = torch.nn.Linear(self.size, self.gates * self.size)
            r = (torch.randn(self.gates * self.size, self.size) * self.size**-0.5).requires_grad_()
            found["python loop"] = lambda: self.loop(indexed, w(x), r)
            found["python loop, unbound"] = lambda: self.loop(unbound, w(x), r)
            leaves += [*w.parameters(), r]
        else:
            u = torch.rand(self.size, requires_grad=True)
            found["python loop"] = lambda: self.loop(indexed, x, u)
            found["python loop, unbound"] = lambda: self.loop(unbound, x, u)
            leaves += [u]
        if self.peer is not None:
            peer: Any = self.peer(self.size, self.size, batch_first=True)
            found[f"torch.nn.{type(peer).__name__}"] = lambda: peer(x)[0]
            leaves += [*peer.parameters()]
        return found, leaves


CASES = {
    "lstm 256": Case(LSTM, lstm, 16, 256, 256, 4, torch.nn.LSTM, ("D", "P")),
    "lstm 64": Case(LSTM, lstm, 16, 256, 64, 4, torch.nn.LSTM, ("D", "P")),
    "gru 256": Case(GRU, gru, 16, 256, 256, 3, torch.nn.GRU),
    "gru 64": Case(GRU, gru, 16, 256, 64, 3, torch.nn.GRU),
    "gru 64, one sequence": Case(GRU, gru, 1, 1024, 64, 3, torch.nn.GRU),
    "indrnn 64": Case(INDRNN, indrnn, 16, 1024, 64),
}


def times(calls: dict[str, Callable[[], Tensor]], leaves: list[Tensor], repeats: int) -> dict[str, float]:
    """Median milliseconds, forward and backward; the contenders take turns, so that load falls on all alike."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repeats + 2):
        for name, call in calls.items():
            for x in leaves:
                x.grad = None
            start = clock()
            call().sum().backward()
            if i >= 2:
                taken[name].append(1e3 * (clock() - start))
    return {name: statistics.median(t) for name, t in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", help="run one case")
    args = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    for name, case in CASES.items():
        if args.only and name != args.only:
            continue
        torch.manual_seed(0)
        found[name] = times(*case.contenders(), args.repeats)
        ours = found[name]["rnnc"]
        print(name, *(f"{n} {t:.2f} ms ({t / ours:.2f} x)" for n, t in found[name].items()), sep="   ", flush=True)
    if args.json:
        shapes = {n: {"B": c.batch, "T": c.length, "D": c.size} for n, c in CASES.items() if n in found}
        about = {"torch": torch.__version__, "cpu": cpu(), "threads": torch.get_num_threads(), "dtype": "float32"}
        args.json.write_text(json.dumps({"milliseconds": found, "shapes": shapes, **about}, indent=2) + "\n")


if __name__ == "__main__":
    main()
