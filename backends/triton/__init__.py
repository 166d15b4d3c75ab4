"""Plans → one Python module with fused Triton kernels beside the PyTorch code. Imports neither torch nor triton."""

from __future__ import annotations

from collections.abc import Sequence

from rnnc.plan import Plan

from ..torch import RUNTIME as TORCH
from ..torch import module
from .cell import FusedCellCoder

RUNTIME = (
    *TORCH[:-1],
    "cuda/sequential.py",
    *(
        f"triton/{name}.py"
        for name in (
            "numbers",
            "complex",
            "span",
            "scan",
            "pairs",
            "solved",
            "fused",
            "chunked",
            "ranked",
            "taps",
            "region",
            "decode",
        )
    ),
    TORCH[-1],
    "triton/module.py",
    "cuda/module.py",
)


def emit(plans: Sequence[Plan], text: str) -> str:
    """The generated module of all cells of one source; the torch backend's where no recurrence has a kernel."""
    return module(plans, text, FusedCellCoder, RUNTIME)
