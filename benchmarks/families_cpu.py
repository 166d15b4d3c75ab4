"""Cells of each family of closure on a CPU, forward and backward: the generated module against Python loops of the same
equations under autograd, in one run.

One loop indexes the inputs, `x[:, t]`, as a researcher would write it first: each index costs the backward a gradient
of all tokens. The other takes them apart once, by `unbind`.

    OMP_NUM_THREADS=1 python benchmarks/families_cpu.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rnnc
from benchmarks.mingru_cpu import cpu

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
B, T, D = 4, 1024, 64
OSCILLATOR = """\
cell Oscillator
\"""A damped rotation with an angle and a damping for each token.\"""
dim D = 64
input x[D], angle[D], r[D] in [0, 1]
state h[D], g[D]
h[t] = r * (cos(angle) * h[t-1] - sin(angle) * g[t-1]) + x
g[t] = r * (sin(angle) * h[t-1] + cos(angle) * g[t-1])
output h[t]
"""
CLAMP = """\
cell Clamp
dim D = 64
input x[D]
state h[D]
h[t] = clamp(h[t-1] + x, -1, 1)
output h[t]
"""


Tokens = Callable[..., Iterable[tuple[Tensor, ...]]]


def indexed(*inputs: Tensor) -> Iterable[tuple[Tensor, ...]]:
    return (tuple(x[:, t] for x in inputs) for t in range(inputs[0].shape[1]))


def unbound(*inputs: Tensor) -> Iterable[tuple[Tensor, ...]]:
    return zip(*(x.unbind(1) for x in inputs), strict=True)


def kalman(tokens: Tokens, y: Tensor, q: Tensor, r: Tensor) -> Tensor:
    p, m, out = torch.ones_like(y[:, 0]), torch.zeros_like(y[:, 0]), []
    for y_t, q_t, r_t in tokens(y, q, r):
        p = (p + q_t) * r_t / (p + q_t + r_t)
        m = m + p / r_t * (y_t - m)
        out.append(m)
    return torch.stack(out, 1)


def leaky_peak(tokens: Tokens, x: Tensor, a: Tensor) -> Tensor:
    p, e, peaks, energies = torch.full_like(x[:, 0], -math.inf), torch.zeros_like(x[:, 0]), [], []
    for x_t, a_t in tokens(x, a):
        p = torch.maximum(p - (1 - a_t), x_t)
        e = torch.sqrt(a_t * e**2 + (1 - a_t) * x_t**2)
        peaks.append(p)
        energies.append(e)
    return torch.stack(peaks, 1) + torch.stack(energies, 1)


def oscillator(tokens: Tokens, x: Tensor, angle: Tensor, r: Tensor) -> Tensor:
    h, g, out = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
    for x_t, cos, sin, r_t in tokens(x, torch.cos(angle), torch.sin(angle), r):
        h, g = r_t * (cos * h - sin * g) + x_t, r_t * (sin * h + cos * g)
        out.append(h)
    return torch.stack(out, 1)


def clamp(tokens: Tokens, x: Tensor) -> Tensor:
    h, out = torch.zeros_like(x[:, 0]), []
    for (x_t,) in tokens(x):
        h = torch.clamp(h + x_t, -1, 1)
        out.append(h)
    return torch.stack(out, 1)


def times(calls: dict[str, Callable[[], Tensor]], leaves: list[Tensor], repeats: int) -> dict[str, float]:
    """Median milliseconds of the processor's time, forward and backward; the contenders take turns, so that load falls
    on all alike."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repeats + 2):
        for name, call in calls.items():
            for x in leaves:
                x.grad = None
            start = time.process_time()
            call().sum().backward()
            if i >= 2:
                taken[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(t) for name, t in taken.items()}


def total(result: Any) -> Tensor:
    """All outputs of a cell as one."""
    return sum(result) if isinstance(result, tuple) else result  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    x, y = torch.randn(B, T, D), torch.randn(B, T, D)
    a, q, r = torch.sigmoid(torch.randn(B, T, D)), torch.rand(B, T, D), torch.rand(B, T, D) + 0.1
    contenders: dict[str, tuple[Any, Callable[..., Tensor], list[Tensor]]] = {
        "kalman": (rnnc.compile(EXAMPLES / "kalman.rnn")(D=D), kalman, [x, q, r]),
        "leakypeak": (rnnc.compile(EXAMPLES / "leakypeak.rnn")(D=D), leaky_peak, [x, a]),
        "oscillator": (rnnc.compile(OSCILLATOR)(D=D), oscillator, [x, y, a]),
        "clamp": (rnnc.compile(CLAMP)(D=D), clamp, [x]),
    }
    found: dict[str, dict[str, float]] = {}
    for name, (cell, loop, inputs) in contenders.items():
        leaves = [i.clone().requires_grad_() for i in inputs]
        assert torch.allclose(total(cell(*leaves)[0]), loop(unbound, *leaves), rtol=1e-4, atol=1e-4), name
        calls = {
            "rnnc": lambda c=cell, v=leaves: total(c(*v)[0]),
            "python loop": lambda f=loop, v=leaves: f(indexed, *v),
            "python loop, unbound": lambda f=loop, v=leaves: f(unbound, *v),
        }
        found[name] = times(calls, leaves, args.repeats)
        shown = [f"{n} {ms:8.2f} ms {ms / found[name]['rnnc']:5.1f} x" for n, ms in found[name].items()]
        print(f"{name:12} {'   '.join(shown)}")
    if args.json:
        machine = {"cpu": cpu(), "threads": torch.get_num_threads()}
        shape = {"B": B, "T": T, "D": D, "dtype": "float32"}
        report = {"milliseconds": found, "shape": shape, "torch": torch.__version__, **machine}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
