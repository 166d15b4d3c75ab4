"""GLA on a CPU, forward and backward: the generated module, by chunks of tokens, against a scan of every token's state
(what the module does where the state itself is an output), against stepping by the interpreter (`backend="reference"`)
and against a Python loop under autograd, in one run, projections included on every side.

    python benchmarks/gla_cpu.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnnc.loading import load_module
from rnnc.pipeline import compile_source, module_text
from rnnc.source import Source

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
B, T, D, H, K, V = 2, 1024, 256, 4, 64, 64


def times(calls: dict[str, Callable[[], Tensor]], x: Tensor, repeats: int) -> dict[str, float]:
    """Median milliseconds of forward and backward; the contenders take turns, so that load falls on all alike."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repeats + 1):
        for name, call in calls.items():
            x.grad = None
            start = time.perf_counter()
            call().sum().backward()
            if i:
                taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(t) for name, t in taken.items()}


def cpu() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def build(text: str, **options: Any) -> Any:
    source = Source("gla.rnn", text)
    torch.manual_seed(0)
    module: Any = load_module(module_text(compile_source(source), source, "torch"), "gla.rnn")
    return module.GLA(D=D, H=H, K=K, V=V, **options)


def loop(cell: Any, x: Tensor) -> Tensor:
    """The same cell as a researcher would write it first."""

    def along(weight: Tensor) -> Tensor:
        return torch.einsum("btd,hkd->bthk", x, weight)

    q, k, v = along(cell.q_weight) * K**-0.5, along(cell.k_weight), along(cell.v_weight)
    a = torch.exp(torch.nn.functional.logsigmoid(along(cell.a_weight) + cell.a_bias) / 16)
    state, reads = x.new_zeros(x.shape[0], H, K, V), []
    for t in range(x.shape[1]):
        state = a[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None]
        reads.append((q[:, t, :, :, None] * state).sum(2))
    o = torch.stack(reads, 1)
    o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + 1e-6)
    return torch.einsum("bthv,dhv->btd", o * torch.nn.functional.silu(along(cell.out_2_weight)), cell.out_1_weight)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    text = (EXAMPLES / "gla.rnn").read_text(encoding="utf-8")
    cell, scanned, stepped = build(text), build(text + "output S[t]\n"), build(text, backend="reference")
    assert cell.plan["S"].startswith("torch: chunks") and scanned.plan["S"] == "torch: affine scan"
    x = torch.randn(B, T, D, requires_grad=True)
    want = loop(cell, x)
    two, many = torch.arange(0, B * T + 1, T), torch.arange(0, B * T + 1, 16)

    def packed(ends: Tensor) -> Tensor:
        return cell(x.reshape(1, B * T, D), cu_seqlens=ends)[0].reshape(B, T, D)

    for got in (cell(x)[0], scanned(x)[0][0], stepped(x)[0], packed(two)):
        assert torch.allclose(got, want, atol=1e-4)
    found = times(
        {
            "chunks": lambda: cell(x)[0],
            "packed": lambda: packed(two),
            "packed, 16 tokens each": lambda: packed(many),
            "scan": lambda: scanned(x)[0][0],
            "interpreter": lambda: stepped(x)[0],
            "python loop": lambda: loop(cell, x),
        },
        x,
        args.repeats,
    )
    for name, ms in found.items():
        print(f"{name:22} {ms:8.2f} ms   {ms / found['chunks']:5.1f} x")
    if args.json:
        machine = {"cpu": cpu(), "threads": torch.get_num_threads()}
        shape = {"B": B, "T": T, "D": D, "H": H, "K": K, "V": V, "dtype": "float32"}
        report = {"milliseconds": found, "shape": shape, "torch": torch.__version__, **machine}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
