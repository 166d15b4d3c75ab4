"""What the host code of a generated module would launch, compiled for devices that are not here.

A cell runs on CPU tensors with Triton's launch replaced by a note of the kernel and its arguments; what Triton would
compile for these arguments on a device is then made by Triton itself, under a driver that only says what the device is.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from rnnc.loading import load_module
from tests.cells import EXAMPLES
from tests.modules import as_tuple, checked, generate

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Shared memory that one block may have.
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}
# Arithmetic in 16 bits, but for products of matrices.
_ROUNDED = re.compile(r".*= (?:arith\.(?:add|sub|mul|div)f|math\.\w+) .*: (?:tensor<[0-9x]*)?b?f16\b.*")
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Case:
    """A cell at sizes for which its kernels are compiled."""

    text: str
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])
    dtype: torch.dtype = torch.float32
    packed: bool = False
    segments: int = 1
    lead: tuple[int, int] = (2, 40)


@dataclass(frozen=True)
class Launch:
    """A kernel and what it was launched with."""

    kernel: Any
    args: tuple[Any, ...]
    options: Mapping[str, Any]
    grid: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.kernel.__name__


class _Device:
    """What Triton asks a driver before it launches."""

    def __init__(self, target: str) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.target]

    def get_current_device(self) -> str:
        """A key of Triton's caches."""
        return self.target

    def get_current_stream(self, device: object) -> int:
        return 0


@contextmanager
def noted() -> Iterator[list[Launch]]:
    """No kernel runs; the list gets what would."""
    found: list[Launch] = []
    run = JITFunction.run

    def note(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found.append(Launch(self, args, options, grid))

    JITFunction.run = note
    try:
        yield found
    finally:
        JITFunction.run = run


@cache
def module(text: str) -> Any:
    return load_module(generate(text), "test.rnn")


def launches(case: Case, target: str = "sm_90", step: bool = False) -> list[Launch]:
    """The launches of one call of a cell and of its backward; or of a step of one token, which has none."""
    made = module(case.text)
    made._interpreted = lambda: True
    made._multiplied_dtype = lambda low: low
    made._segments = lambda *_: case.segments
    made._operands_in_shared = lambda device: target == "sm_90"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.version, "hip", "6.4" if TARGETS[target].backend == "hip" else None)
        return _step_launches(made, case) if step else launches_of(made, case)


def _step_launches(made: Any, case: Case) -> list[Launch]:
    cell = getattr(made, checked(case.text).name)(**case.sizes, backend="triton", dtype=torch.float32)
    inputs = [_input(kind, (2, *(getattr(cell, d) for d in dims)), case.dtype) for _, dims, kind in cell._inputs]
    with noted() as found, torch.no_grad():
        cell.step(*inputs)
    return found


def launches_of(made: Any, case: Case) -> list[Launch]:
    """Those of one call of the cell of a module and of its backward."""
    wide = case.dtype if case.dtype == torch.float64 else torch.float32
    cell = getattr(made, checked(case.text).name)(**case.sizes, backend="triton", dtype=wide)
    lead = (1, 80) if case.packed else case.lead
    inputs = [_input(kind, (*lead, *(getattr(cell, d) for d in dims)), case.dtype) for _, dims, kind in cell._inputs]
    with noted() as found:
        outputs, last = cell(*inputs, cu_seqlens=torch.tensor([0, 40, 80]) if case.packed else None)
        values = [v.real.sum() for v in (*as_tuple(outputs), *last) if v.requires_grad]
        torch.stack(values).sum().backward()
    return found


def _input(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if kind == "bool":
        return torch.zeros(shape, dtype=torch.bool)
    if kind == "complex":
        dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    return torch.ones(shape, dtype=dtype, requires_grad=True)


@dataclass(frozen=True)
class Built:
    """A kernel as compiled for one device."""

    target: str
    asm: Mapping[str, Any]
    shared: int

    @cached_property
    def registers(self) -> int:
        if self.target == "gfx942":
            return self._noted("vgpr_count")
        return self._usage["REG"]

    @cached_property
    def spilled(self) -> int:
        """Bytes of registers in memory, or registers, as the assembler counts them."""
        if self.target == "gfx942":
            return self._noted("vgpr_spill_count")
        # A stack is also where sines of large numbers are reduced: no spill.
        return 0 if self._usage["STACK"] == 0 else _ptxas_spills(self.asm["ptx"], TARGETS[self.target].arch)

    @cached_property
    def shuffles(self) -> int:
        """Where data crosses lanes."""
        if self.target == "gfx942":
            return len(re.findall(r"ds_bpermute|ds_swizzle|_dpp|v_permlane", self.asm["amdgcn"]))
        return len(re.findall(r"\bshfl\.", self.asm["ptx"]))

    @cached_property
    def copies(self) -> int:
        """Loads that go to shared memory while the kernel computes."""
        return len(re.findall(r"cp\.async\.c[ag]", self.asm.get("ptx", "")))

    @cached_property
    def loop(self) -> Counter[str]:
        """Instructions of the longest loop."""
        return _loop(self.sass)

    @cached_property
    def sass(self) -> str:
        with self._cubin() as path:
            return _output(_TOOLS / "nvdisasm", "-c", path)

    @cached_property
    def _usage(self) -> dict[str, int]:
        with self._cubin() as path:
            text = _output(_TOOLS / "cuobjdump", "-res-usage", path)
        return {name: int(n) for name, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}

    @contextmanager
    def _cubin(self) -> Iterator[str]:
        with NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.asm["cubin"])
            file.flush()
            yield file.name

    def _noted(self, what: str) -> int:
        (n,) = re.findall(rf"\.{what}:\s*(\d+)", self.asm["amdgcn"])
        return int(n)


def build(launch: Launch, target: str) -> Built:
    """The kernel of a launch, compiled as Triton would on this device."""
    driver: Any = triton.runtime.driver
    before, driver._active = driver._active, _Device(target)
    try:
        made = launch.kernel.run(*launch.args, grid=(1,), warmup=True, **launch.options)
    finally:
        driver._active = before
    rounded = _ROUNDED.search(made.asm["ttir"])
    assert rounded is None, f"{launch.name} computes in 16 bits: {rounded[0]}"
    return Built(target, made.asm, made.metadata.shared)


def _ptxas_spills(ptx: str, arch: Any) -> int:
    with NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        name = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
        text = _output(_TOOLS / "ptxas", "-v", f"--gpu-name={name}", file.name, "-o", os.devnull)
    return sum(int(n) for n in re.findall(r"(\d+) bytes spill", text))


def _output(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _loop(sass: str) -> Counter[str]:
    lines: list[str] = []
    labels: dict[str, int] = {}
    best: list[str] = []
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(lines)
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)", line):
            lines.append(found[1].split(".")[0])
            back = re.search(r"(\.L_\w+)", found[2]) if found[1].startswith("BRA") else None
            if back and back[1] in labels and len(lines) - labels[back[1]] > len(best):
                best = lines[labels[back[1]] :]
    return Counter(best)


def main() -> None:
    """Print what the kernels of an example take: `python -m tests.triton_compile mingru bfloat16 D=2048 sm_90 cut`."""
    stem, dtype, *rest = sys.argv[1:]
    sizes = {k: int(v) for k, v in (x.split("=") for x in rest if "=" in x)}
    cut = "cut" in rest
    text = (EXAMPLES / f"{stem}.rnn").read_text(encoding="utf-8")
    for target in [x for x in rest if x in TARGETS] or ["sm_90"]:
        for launch in launches(Case(text, sizes, getattr(torch, dtype), cut, 2 if cut else 1), target):
            built, options = build(launch, target), launch.options
            sizes_of = [options.get(n, 1) for n in ("BC", "BN", "BT", "BS")]
            entries = math.prod(sizes_of) / (TARGETS[target].warp_size * options["num_warps"])
            steps = f"{sum(built.loop.values()) / entries:.1f} instructions an entry" if target != "gfx942" else ""
            print(
                f"{launch.name} {target}: {built.registers} registers, {built.spilled} spilled, {built.shared} bytes "
                f"shared, {built.shuffles} shuffles, {built.copies} copies ahead, {entries:g} entries a thread, {steps}"
            )


if __name__ == "__main__":
    main()
