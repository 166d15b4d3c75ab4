"""What the kernels of matrix states take on devices that are not here, as the host code of a generated module would
launch them: registers, what is spilled of them, shared memory, instructions of tensor cores, seconds to compile.

    python -m benchmarks.static [--targets sm_90,sm_80,gfx942] [--dtypes bfloat16,float16,float32]
        [--sizes 64x64,128x128] [--cells one,keys] [--kernels pairs,backward] [--set BK=32,num_warps=4] [--packed]
        [--bad] [--json FILE]

One line for each kernel of a cell, dtype, size (keys x values) and target; `***` where registers are spilled or shared
memory is above the limit, which is all that `--bad` prints. Spills are bytes; on gfx942 registers. The cells are those
of `tests/chunk_kinds.py`, or examples by name. A sum is at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from tests.cells import EXAMPLES
from tests.chunk_kinds import CHUNKS, RANKS
from tests.triton_compile import SHARED, Case, Launch, build, launches

SIZES = "16x16,32x32,64x64,128x128,256x256,16x256,256x16,64x128,128x64,64x256,256x64"


@dataclass(frozen=True)
class Row:
    cell: str
    kernel: str
    size: str
    dtype: str
    target: str
    warps: int
    stages: int
    tiles: str
    registers: int
    spilled: int
    shared: int
    wgmma: int
    mma: int
    seconds: float

    @property
    def bad(self) -> bool:
        return self.spilled > 0 or self.shared > SHARED[self.target]

    def __str__(self) -> str:
        mark = "***" if self.bad else "   "
        return (
            f"{mark} {self.cell:16} {self.kernel:10} {self.size:7} {self.dtype:8} {self.target} "
            f"{self.tiles} {self.warps}w {self.stages}st: {self.registers} registers, {self.spilled} spilled, "
            f"{self.shared} shared, {self.wgmma} wgmma, {self.mma} mma, {self.seconds:.1f} s"
        )


def rows(
    cell: str,
    size: str,
    dtype: str,
    target: str,
    kernels: Sequence[str] = (),
    packed: bool = False,
    other: Mapping[str, int] | None = None,
) -> Iterator[Row]:
    """Each kernel of a cell once, those of segments included."""
    keys, values = map(int, size.split("x"))
    kinds = CHUNKS | RANKS
    text = kinds[cell] if cell in kinds else (EXAMPLES / f"{cell}.rnn").read_text(encoding="utf-8")
    case = Case(text, {"K": keys, "V": values}, getattr(torch, dtype), packed, 2)
    found: dict[str, Launch] = {x.name: x for x in launches(case, target) if "C" in x.options}
    for name, launch in found.items():
        kernel = name.rsplit("_S_")[-1]
        if kernels and kernel not in kernels:
            continue
        launch = replace(launch, options={**launch.options, **(other or {})})
        started, o = time.perf_counter(), launch.options
        made = build(launch, target)
        seconds = time.perf_counter() - started
        text = made.asm.get("ptx") or made.asm["amdgcn"]
        wgmma, mma = text.count("wgmma.mma_async"), text.count("mma.sync") + text.count("v_mfma")
        tiles = "x".join(str(o[n]) for n in ("C", "BK", "BV") if n in o)
        yield Row(
            *(cell, kernel, size, dtype, target, o["num_warps"], o["num_stages"], tiles),
            *(made.registers, made.spilled, made.shared, wgmma, mma, round(seconds, 1)),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default="sm_90")
    parser.add_argument("--dtypes", default="bfloat16,float16,float32")
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--cells", default=",".join((*CHUNKS, *RANKS)))
    parser.add_argument("--kernels", default="")
    parser.add_argument("--set", default="", help="other sizes and options than those that the host code chooses")
    parser.add_argument("--packed", action="store_true")
    parser.add_argument("--bad", action="store_true")
    parser.add_argument("--json")
    given = parser.parse_args()
    found: list[Row] = []
    kernels = [x for x in given.kernels.split(",") if x]
    other = {name: int(n) for name, n in (x.split("=") for x in given.set.split(",") if x)}
    for target in given.targets.split(","):
        for dtype in given.dtypes.split(","):
            for cell in given.cells.split(","):
                for size in given.sizes.split(","):
                    for row in rows(cell, size, dtype, target, kernels, given.packed, other):
                        found.append(row)
                        if row.bad or not given.bad:
                            print(row, flush=True)
    bad = [r for r in found if r.bad]
    worst = max((r.spilled for r in bad), default=0)
    print(f"{len(found)} kernels, {len(bad)} of them with spills (at most {worst}) or above the limit of shared memory")
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump([asdict(r) for r in found], file, indent=0)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
