"""Random inputs, as large as wanted, made on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rnnc.harness import scalar
from rnnc.ir import Annulus, Cell, Disc, Input, Interval


def draw(
    cell: Cell,
    numbers: Mapping[str, int | float],
    batch: int,
    length: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, ...]:
    """One tensor [B, T, ...] for each input, inside its declared region and away from its ends."""
    generator = torch.Generator(device).manual_seed(0)

    def one(declared: Input) -> Tensor:
        shape = [batch, length, *(int(numbers[d]) for d in declared.type.dims)]
        normal = torch.randn(shape, generator=generator, device=device)
        if declared.type.kind == "bool":
            return normal < -2  # rarely true, as where sequences or episodes end
        uniform = torch.rand(shape, generator=generator, device=device).mul_(0.98).add_(0.01)
        real: Tensor = normal
        radius = normal
        match declared.region:
            case Interval(lo=lo, hi=hi):
                least, most = scalar(lo, numbers), scalar(hi, numbers)
                if math.isfinite(least):
                    real = least + ((most - least) * uniform if math.isfinite(most) else normal.abs())
                elif math.isfinite(most):
                    real = most - normal.abs()
            case Disc(radius=edge):
                radius = scalar(edge, numbers) * uniform
            case Annulus(inner=inner, outer=outer):
                least, most = scalar(inner, numbers), scalar(outer, numbers)
                radius = least + (most - least) * uniform
            case None:
                pass
        if declared.type.kind == "complex":
            angle = torch.randn(shape, generator=generator, device=device) * math.pi
            return torch.polar(radius.abs(), angle).to(complex_of(dtype))
        return real.to(dtype)

    return tuple(one(declared) for declared in cell.inputs)


def complex_of(dtype: torch.dtype) -> torch.dtype:
    """The complex dtype that goes with a real one; there is none narrower than complex64."""
    return torch.complex128 if dtype == torch.float64 else torch.complex64
