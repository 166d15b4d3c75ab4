"""Steps of a recurrence as CUDA kernels: one block of threads for some sequences and a head, all tokens inside.

Built on the stages and texts of `backends/clike`. `kernel` does the stages, `frame` the text around them, `hazards`
the barriers, `code` the definitions of a module, which the Triton backend's modules carry.
"""

from __future__ import annotations

from collections.abc import Sequence

from rnnc.plan import Plan


def emit(plans: Sequence[Plan], text: str) -> str:
    """The kernels of all cells, to be read: what needs sizes is left to the generated module."""
    from ..triton.cell import FusedCellCoder

    parts: list[str] = []
    for plan in plans:
        found = [c.kernels.text for c in FusedCellCoder(plan, frozenset(), 0).loops.values() if c.kernels]
        parts += found or [f"// {plan.system.cell.name} has no recurrence that is stepped by CUDA kernels.\n"]
    return "\n".join(parts)
