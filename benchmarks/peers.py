"""Scans of other libraries, `h[t] = a[t] * h[t-1] + b[t]` of two [B, D, T]; importing a missing one raises."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

Scan = Callable[[Tensor, Tensor], Tensor]


def triton_scan() -> Scan:
    """accelerated-scan in Triton."""
    library: Any = import_module("accelerated_scan.scalar")
    return library.scan


def complex_scan() -> Scan:
    """accelerated-scan in Triton, complex."""
    library: Any = import_module("accelerated_scan.complex")
    return library.scan


def warp_scan() -> Scan:
    """accelerated-scan in CUDA, which is compiled when it is imported; T must be a power of two."""
    library: Any = import_module("accelerated_scan.warp")
    return library.scan


def gated(scan: Callable[[], Scan], gates: Callable[..., tuple[Tensor, Tensor]], fused: bool = False) -> Any:
    """What one would write around a scan: its gates in PyTorch; `fused`, by torch.compile."""

    def build() -> Callable[..., Tensor]:
        run = scan()
        made: Any = torch.compile(gates, dynamic=False) if fused else gates
        return lambda *inputs: run(*made(*inputs))

    return build
