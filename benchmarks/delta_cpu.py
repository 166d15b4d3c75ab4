"""Delta rules on a CPU, forward and backward, with one decay a token and with one for each key: the generated module,
by chunks of tokens, against the loop over tokens that it is where the state itself is an output, against the
interpreter (`backend="reference"`) and against a Python loop under autograd, in one run.

    python benchmarks/delta_cpu.py [--json FILE]
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

B, T, H, K, V = 2, 1024, 4, 64, 64
SIZES = f"dim H = {H}, K = {K}, V = {V}\n"
CELLS = {
    "gated delta": f"""cell Delta
{SIZES}input q[H, K], k[H, K], v[H, V], b[H], g[H]
κ = l2norm[K](k)
β = 2 * sigmoid(b)
state S[H, K, V]
S[t] = sigmoid(g) * (S[t-1] - β * κ * sum[K](κ * S[t-1])) + β * κ * v
output sum[K](q * S[t])
""",
    "decay per key": f"""cell Delta
{SIZES}input q[H, K], k[H, K], v[H, V], b[H], g[H, K]
κ = l2norm[K](k)
β = 2 * sigmoid(b)
a = sigmoid(g)
state S[H, K, V]
S[t] = a * S[t-1] + β * κ * (v - sum[K](κ * (a * S[t-1])))
output sum[K](q * S[t])
""",
}


def times(calls: dict[str, Callable[[], Tensor]], leaves: list[Tensor], repeats: int) -> dict[str, float]:
    """Median milliseconds of the processor, forward and backward; the contenders take turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repeats + 1):
        for name, call in calls.items():
            start = time.process_time()
            torch.autograd.grad(call().sum(), leaves)
            if i:
                taken[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(t) for name, t in taken.items()}


def cpu() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def build(text: str, **options: Any) -> Any:
    source = Source("delta.rnn", text)
    module: Any = load_module(module_text(compile_source(source), source, "torch"), "delta.rnn")
    return module.Delta(**options)


def loop(q: Tensor, k: Tensor, v: Tensor, b: Tensor, g: Tensor) -> Tensor:
    """The same cells as a researcher would write them first, of inputs that were taken apart once."""
    key = k * torch.rsqrt(k.square().sum(-1, keepdim=True) + 1e-6)
    decay = torch.sigmoid(g).reshape(*g.shape[:3], -1, 1)
    write = 2 * torch.sigmoid(b).unsqueeze(-1) * key
    state, reads = q.new_zeros(q.shape[0], H, K, V), []
    for q_t, k_t, w_t, v_t, a_t in zip(*(x.unbind(1) for x in (q, key, write, v, decay)), strict=True):
        if a_t.shape[-2] == 1:
            held = (k_t.unsqueeze(-2) @ state).squeeze(-2)
            state = a_t * (state - w_t.unsqueeze(-1) * held.unsqueeze(-2)) + w_t.unsqueeze(-1) * v_t.unsqueeze(-2)
        else:
            state = a_t * state
            held = (k_t.unsqueeze(-2) @ state).squeeze(-2)
            state = state + w_t.unsqueeze(-1) * (v_t - held).unsqueeze(-2)
        reads.append((q_t.unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(reads, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    report: dict[str, Any] = {}
    for name, text in CELLS.items():
        cell, stepped = build(text), build(text + "output S[t]\n")
        interpreter = build(text, backend="reference")
        assert cell.plan["S"].startswith("torch: chunks") and stepped.plan["S"] == "torch: loop over tokens"
        shapes = [(H, K), (H, K), (H, V), (H,), (H,) if name == "gated delta" else (H, K)]
        inputs = [torch.randn(B, T, *shape) for shape in shapes]
        inputs[-1] += 2
        leaves = [x.requires_grad_() for x in inputs]
        want = loop(*inputs)
        for got in (cell(*inputs)[0], stepped(*inputs)[0][0], interpreter(*inputs)[0]):
            assert torch.allclose(got, want, atol=1e-3)
        found = times(
            {
                "chunks": lambda: cell(*inputs)[0],  # noqa: B023
                "loop over tokens": lambda: stepped(*inputs)[0][0],  # noqa: B023
                "interpreter": lambda: interpreter(*inputs)[0],  # noqa: B023
                "python loop": lambda: loop(*inputs),  # noqa: B023
            },
            leaves,
            args.repeats,
        )
        print(name)
        for contender, ms in found.items():
            print(f"  {contender:18} {ms:8.1f} ms   {ms / found['chunks']:5.1f} x")
        report[name] = {"milliseconds": found}
    if args.json:
        machine = {"cpu": cpu(), "threads": torch.get_num_threads(), "time": "processor time"}
        shape = {"B": B, "T": T, "H": H, "K": K, "V": V, "dtype": "float32"}
        args.json.write_text(
            json.dumps({**report, "shape": shape, "torch": torch.__version__, **machine}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
