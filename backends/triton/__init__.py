"""Plans → one Python module with fused Triton kernels beside the PyTorch code. Imports neither torch nor triton."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def kernels(plan: Plan) -> Mapping[str, str]:
    """In words, what computes each state on a GPU, where there is a kernel for it."""
    found = FusedCellCoder(plan, frozenset(), 0).code().fused_kernels
    return {name: told for names, told in found for name in names.split(", ")}
