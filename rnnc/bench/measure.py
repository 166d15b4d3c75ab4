"""Times on a device, and the bandwidth of a copy on it."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch

from rnnc import __version__

_MIB = 1 << 20
_COPIED = {"cuda": 1024 * _MIB, "cpu": 128 * _MIB}
"""Bytes of one copy, well above what caches hold."""


@dataclass(frozen=True)
class Timing:
    """The median of `runs` calls in milliseconds, and their 20th and 80th percentile."""

    ms: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True)
class Copy:
    """A copy on the device; `gb_per_s` counts bytes read and bytes written."""

    bytes: int
    ms: float
    gb_per_s: float


class Clock:
    """Times calls on one device: with its own events on a GPU, caches emptied before each; on a CPU by the wall."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.events = device.type == "cuda"

    @cached_property
    def _cache(self) -> torch.Tensor:
        return torch.empty(256 * _MIB, dtype=torch.int8, device=self.device)

    def wait(self) -> None:
        if self.events:
            torch.cuda.synchronize(self.device)

    def once(self, call: Callable[[], object]) -> float:
        """Seconds of one call by the wall, its device work included."""
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - start

    def median(self, call: Callable[[], object], seconds: float, least: int = 5, most: int = 200) -> Timing:
        """Repeats a warm call for about so many seconds."""
        expected = self.once(call)
        runs = max(least, min(most, int(seconds / max(expected, 1e-6))))
        taken = sorted(self._by_events(call, runs) if self.events else [1e3 * self.once(call) for _ in range(runs)])
        last = len(taken) - 1
        return Timing(statistics.median(taken), taken[last // 5], taken[last - last // 5], runs)

    def _by_events(self, call: Callable[[], object], runs: int) -> list[float]:
        with torch.cuda.device(self.device):
            pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
            for start, end in pairs:
                self._cache.zero_()
                start.record()
                call()
                end.record()
            self.wait()
            return [start.elapsed_time(end) for start, end in pairs]

    def copy(self) -> Copy:
        """What the device's memory gives: the yardstick of this run."""
        size = _COPIED["cuda" if self.events else "cpu"]
        source = torch.ones(size // 4, dtype=torch.float32, device=self.device)
        target = torch.empty_like(source)
        self.once(lambda: target.copy_(source))
        ms = self.median(lambda: target.copy_(source), 0.5).ms
        return Copy(2 * size, ms, 2 * size / ms / 1e6)


def machine(device: torch.device) -> dict[str, Any]:
    """What a result must say of where it was measured."""
    about: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": str(device),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "rnnc": __version__,
        "torch": torch.__version__,
        "triton": version("triton"),
    }
    if device.type == "cuda":
        properties = cast(Any, torch.cuda.get_device_properties(device))  # pyright: ignore
        about |= {"gpu": properties.name, "multiprocessors": properties.multi_processor_count}
        about |= {"cuda": torch.version.cuda or torch.version.hip}
    return about


def version(name: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def reason(error: BaseException) -> str:
    """An error in a line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:160] if text else type(error).__name__
