"""Checks, functions of numbers, and initial values."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"{what} does not hold")


def _whole(what: str, value: float) -> int:
    """A size: a whole number of at least 1."""
    number = isinstance(value, float) or (hasattr(value, "__index__") and not isinstance(value, bool))
    if not number or value != value // 1 or value < 1:
        raise ValueError(f"{what} is {value!r}, not a whole number of at least 1")
    return int(value)


def _complex_of(dtype: torch.dtype | None) -> torch.dtype:
    """The complex dtype of a real one, at least complex64; the default one's for None."""
    return torch.complex128 if (dtype or torch.get_default_dtype()) == torch.float64 else torch.complex64


def _log_of(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf if x == 0 else math.nan


def _log1p_of(x: float) -> float:
    return math.log1p(x) if x > -1 else _log_of(1 + x)


def _sqrt_of(x: float) -> float:
    return math.sqrt(x) if x >= 0 else math.nan


def _exp_of(x: float) -> float:
    return math.exp(x) if x < 709.7 else math.inf


def _expm1_of(x: float) -> float:
    return math.expm1(x) if x < 709.7 else math.inf


def _ratio(x: float, y: float) -> float:
    if y == 0:
        return math.nan if x == 0 or x != x else math.copysign(math.inf, x) * math.copysign(1.0, y)
    return x / y


def _power(x: float, y: float) -> float:
    if x == 0 and y < 0:
        return math.inf
    try:
        value = x**y
    except OverflowError:
        return -math.inf if x < 0 and y % 2 == 1 else math.inf
    return math.nan if isinstance(value, complex) else value


def _blank(parameter: Tensor) -> Tensor:
    """A real tensor like a parameter, at least float32, to draw into."""
    real = parameter.real.dtype if parameter.is_complex() else parameter.dtype
    return torch.empty_like(parameter, dtype=torch.promote_types(real, torch.float32))


def _counted(parameter: Tensor, count: int, start: float) -> Tensor:
    """`start`, `start + 1`, ...; not whole numbers, whose negative powers PyTorch makes 0."""
    real = parameter.real.dtype if parameter.is_complex() else parameter.dtype
    return start + torch.arange(count, dtype=torch.promote_types(real, torch.float32), device=parameter.device)


def _orthogonal(blank: Tensor, kept: int, outs: int) -> Tensor:
    """(Semi-)orthogonal matrices, one for each entry of the first `kept` axes: Saxe et al. 2013, arXiv:1312.6120."""
    rows = math.prod(blank.shape[kept : kept + outs])
    flat = blank.reshape(-1, rows, blank[(0,) * kept].numel() // rows) if blank.numel() else blank.reshape(0, 1, 1)
    for matrix in flat:
        nn.init.orthogonal_(matrix)
    return flat.reshape(blank.shape)


def _eye(blank: Tensor, kept: int, outs: int) -> Tensor:
    """Identity matrices, one for each entry of the first `kept` axes."""
    rows = math.prod(blank.shape[kept : kept + outs])
    columns = math.prod(blank.shape[kept + outs :])
    return torch.eye(rows, columns, dtype=blank.dtype, device=blank.device).reshape(blank.shape[kept:]).expand_as(blank)
