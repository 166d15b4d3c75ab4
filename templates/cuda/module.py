"""What generated classes share whose kernels are CUDA's."""

from __future__ import annotations

import torch

from ..triton.module import _KernelCell


class _CudaCell(_KernelCell):
    """A cell whose recurrences have CUDA kernels, and none Triton's."""

    _backends = ("auto", "cuda", "torch", "reference")
    _kernels_of = "cuda"

    def _sure(self, kernel: str) -> bool:
        return self.backend == "cuda"

    def _runs_kernels(self, device: torch.device) -> bool:
        if self.backend == "cuda" and device.type != "cuda":
            raise RuntimeError(f'backend="cuda": the inputs are on {device}')
        return self.backend in ("auto", "cuda") and device.type == "cuda"
