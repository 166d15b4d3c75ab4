"""minGRU on a CPU, forward and backward: the generated module against a Python loop under autograd and against the
log-space scan of minGRU-pytorch (Heinsen 2023, arXiv:2311.06281), in one run, projections included on every side.

    pip install --no-deps minGRU-pytorch==0.2.1 einops
    python benchmarks/mingru_cpu.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rnnc

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
B, T, D = 4, 1024, 256


def loop(x: Tensor, z_weight: Tensor, c_weight: Tensor) -> Tensor:
    """The same cell as a researcher would write it first."""
    z, c = torch.sigmoid(x @ z_weight.T), x @ c_weight.T
    h, out = x.new_zeros(x.shape[0], x.shape[2]), []
    for t in range(x.shape[1]):
        h = (1 - z[:, t]) * h + z[:, t] * c[:, t]
        out.append(h)
    return torch.stack(out, 1)


def times(calls: dict[str, Callable[[], Tensor]], x: Tensor, repeats: int) -> dict[str, float]:
    """Median milliseconds of forward and backward; the contenders take turns, so that load falls on all alike."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repeats + 2):
        for name, call in calls.items():
            x.grad = None
            start = time.perf_counter()
            call().sum().backward()
            if i >= 2:
                taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(t) for name, t in taken.items()}


def cpu() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    cell: Any = rnnc.compile(EXAMPLES / "mingru.rnn")(D=D)
    try:
        peer = import_module("minGRU_pytorch.minGRU").minGRU(D, expansion_factor=1.0, proj_out=False)
    except ModuleNotFoundError:
        raise SystemExit("the peer is missing: pip install --no-deps minGRU-pytorch==0.2.1 einops") from None
    x = torch.randn(B, T, D, requires_grad=True)
    z_weight, c_weight = cell.z_weight, cell.c_weight
    assert torch.allclose(cell(x)[0], loop(x, z_weight, c_weight), atol=1e-5)
    found = times(
        {
            "rnnc": lambda: cell(x)[0],
            "python loop": lambda: loop(x, z_weight, c_weight),
            "minGRU-pytorch": lambda: peer(x),
        },
        x,
        args.repeats,
    )
    for name, ms in found.items():
        print(f"{name:16} {ms:8.2f} ms   {ms / found['rnnc']:5.1f} x")
    if args.json:
        machine = {"cpu": cpu(), "threads": torch.get_num_threads()}
        shape = {"B": B, "T": T, "D": D, "dtype": "float32"}
        report = {"milliseconds": found, "shape": shape, "torch": torch.__version__, **machine}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
