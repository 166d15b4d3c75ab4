"""CUDA kernels of a generated module on a host: the same text, its threads played by `emulated.h`."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from torch import Tensor

HEADER = Path(__file__).with_name("emulated.h")


class Call(NamedTuple):
    """A kernel that was launched."""

    name: str
    text: str
    shared: int


class Emulation:
    """What takes the place of a GPU in modules. `order` is whose turn it is among threads, `calls` what was launched;
    `mutant`, a kernel's name and text, is what runs instead of it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.order, self.shared = 0, 160 * 1024
        self.calls: list[Call] = []
        self.mutant: tuple[str, str] | None = None

    def replace(self, target: Any, name: str, value: Any) -> None:
        self.monkeypatch.setattr(target, name, value)

    def install(self, module: ModuleType) -> None:
        self.replace(module, "_cuda_here", lambda *tensors: True)
        self.replace(module, "_cuda_limit", lambda device: self.shared)
        self.replace(module, "_cuda_start", self.start)
        if hasattr(module, "_CudaCell"):
            self.replace(module._CudaCell, "_runs_kernels", lambda cell, device: cell.backend == "auto")

    def start(
        self,
        text: str,
        name: str,
        grid: tuple[int, int],
        threads: int,
        shared: int,
        arguments: Sequence[Any],
        like: Tensor,
    ) -> None:
        self.calls.append(Call(name, text, shared))
        if self.mutant is not None and self.mutant[0] == name:
            text = self.mutant[1]
        library = self.compiled(text, name, arguments)
        floats = [isinstance(x, float) for x in arguments]
        values = [(ctypes.c_double if f else ctypes.c_longlong)(x) for f, x in zip(floats, arguments, strict=True)]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        numbers = (ctypes.c_long(n) for n in (*grid, threads, shared, self.order))
        assert library.emulate(pointers, *numbers) == 0, "threads wait for each other in vain"

    def compiled(self, text: str, name: str, arguments: Sequence[Any]) -> Any:
        types = [*["long long"] * 3, *["const long long *"] * 3, "char *", *["void *"] * (len(arguments) - 7)]
        types = [t if isinstance(a, int) else "double" for t, a in zip(types, arguments, strict=True)]
        call = ", ".join(f"*({t} *)emulated_args[{i}]" for i, t in enumerate(types))
        more = f"""
static void **emulated_args;
static void emulated_call() {{ {name}({call}); }}
extern "C" int emulate(void **args, long x, long y, long threads, long shared, long order) {{
  emulated_args = args;
  return emulated_grid(emulated_call, x, y, threads, shared, order);
}}
"""
        half = int("#define HALF\n" in text)
        whole = f"#define EMULATED_HALF {half}\n{HEADER.read_text(encoding='utf-8')}\n{text}\n{more}"
        path = self.folder / f"{hashlib.sha256(whole.encode()).hexdigest()[:24]}.so"
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=self.folder) as made:
                source, result = os.path.join(made, "kernel.cc"), os.path.join(made, "kernel.so")
                Path(source).write_text(whole, encoding="utf-8")
                flags = "-std=c++17 -O0 -ffp-contract=off -fno-strict-aliasing -shared -fPIC -w".split()
                subprocess.run(["g++", *flags, source, "-o", result], check=True)
                os.replace(result, path)
        return ctypes.CDLL(str(path))
