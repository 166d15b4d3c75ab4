"""How long a host takes for calls of generated modules, launches of kernels left out: what a GPU waits for where
sequences are short. Needs no GPU; cells are tiny, on a CPU.

    python -m benchmarks.host [gla mlstm ...] [--through-dispatcher] [--json FILE]

Microseconds of processor time, the lower quartile of calls: forward with a graph, backward, forward without a graph;
and how many kernels a forward and backward launch. Triton's own launch is not in it. `--through-dispatcher` calls
PyTorch's operators, as torch.compile would, instead of what they compute.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tests.cells import EXAMPLES
from tests.modules import as_tuple, checked
from tests.triton_compile import module, noted

CELLS = ("mingru", "gla", "mlstm", "mamba2block", "gateddeltanet", "kda")


@dataclass(frozen=True)
class Row:
    cell: str
    forward: float
    backward: float
    inference: float
    launches: int

    def __str__(self) -> str:
        times = f"{self.forward:6.0f} forward, {self.backward:6.0f} backward, {self.inference:6.0f} without a graph"
        return f"{self.cell:16} {times}; {self.launches} kernels"


def quartile(call: Callable[[], Any], before: Callable[[], Any] = lambda: None, count: int = 200) -> float:
    """Microseconds of processor time of a call."""
    found: list[float] = []
    for _ in range(count):
        before()
        start = time.thread_time()
        call()
        found.append(1e6 * (time.thread_time() - start))
    return sorted(found)[count // 4]


def measured(stem: str, dispatched: bool) -> Row:
    text = (EXAMPLES / f"{stem}.rnn").read_text(encoding="utf-8")
    made = module(text)
    # Here kernels would be interpreted; they are not run at all.
    made._interpreted, made._multiplied_dtype = lambda: True, lambda low: low
    if dispatched:
        made._Operator.__call__ = lambda self, *given: self.operator(*given)
    name, dims = checked(text).name, checked(text).dims
    cell = getattr(made, name)(**{d.name: 2 if d.name in "HJ" else 16 for d in dims}, backend="triton", validate=False)
    inputs = [torch.ones(1, 16, *(getattr(cell, d) for d in own), dtype=torch.bfloat16) for _, own, _ in cell._inputs]
    for x in inputs:
        x.requires_grad_()
    totals: list[Tensor] = []

    def forward() -> None:
        outputs, _ = cell(*inputs)
        totals[:] = [torch.stack([x.real.float().sum() for x in as_tuple(outputs)]).sum()]

    with noted() as found:
        forward()
        totals[0].backward()
        launches = len(found)
        times = quartile(lambda: cell(*inputs)), quartile(lambda: totals[0].backward(), forward)
        with torch.no_grad():
            return Row(stem, *times, quartile(lambda: cell(*inputs)), launches)


def main() -> None:
    parser = argparse.ArgumentParser(description="host time of generated modules, without launches")
    parser.add_argument("cells", nargs="*", default=CELLS)
    parser.add_argument("--through-dispatcher", action="store_true")
    parser.add_argument("--json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measured(stem, given.through_dispatcher) for stem in given.cells]
    for row in rows:
        print(row)
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump([asdict(r) for r in rows], file, indent=1)


if __name__ == "__main__":
    main()
