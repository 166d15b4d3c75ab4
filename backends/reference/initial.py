"""Sizes, consts and initial parameters of a cell."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor

from rnnc.ir import Apply, Cell, Draw, Expr, Interval, Kind, Lit, Param, Ref

from .values import ELEMENTWISE

Number = int | float
_DTYPES: Mapping[Kind, torch.dtype] = {"bool": torch.bool, "real": torch.float64, "complex": torch.complex128}


def evaluate(node: Expr, leaf: Callable[[Ref | Draw], Tensor]) -> Tensor:
    """An elementwise expression in float64, operands broadcast as tensors; every `Draw` is drawn anew."""
    match node:
        case Lit(value=value):
            dtype = torch.complex128 if isinstance(value, complex) else torch.float64
            return torch.tensor(value, dtype=dtype)
        case Ref() | Draw():
            return leaf(node)
        case Apply(op=op, args=args):
            operands = [evaluate(a, leaf) for a in args]
            if op == "where":
                operands[0] = operands[0].bool()
            result = ELEMENTWISE[op](*operands)
            return result if result.is_complex() else result.to(torch.float64)
        case _:
            raise TypeError(f"{type(node).__name__} does not belong in an initial value")


def scalar(node: Expr, numbers: Mapping[str, Number]) -> float:
    return evaluate(node, lambda leaf: torch.tensor(numbers[_name(leaf)], dtype=torch.float64)).item()


def resolve_dims(cell: Cell, chosen: Mapping[str, int]) -> dict[str, int]:
    """The size of every dim, the derived ones too, where the caller chose some."""
    free = [d.name for d in cell.dims if not d.derived]
    for name, size in chosen.items():
        if name not in free:
            raise ValueError(f"{cell.name} has no size `{name}` to choose; it has {', '.join(free) or 'none'}")
        if size < 1:
            raise ValueError(f"dim {name} = {size} must be at least 1")
    sizes = {d.name: chosen.get(d.name, d.size) for d in cell.dims if isinstance(d.size, int)}
    for dim in cell.dims:
        if isinstance(dim.size, Expr):
            size = scalar(dim.size, sizes)
            if size != round(size) or size < 1:
                raise ValueError(f"dim {dim.name} comes out as {size:g}, which is no whole number of at least 1")
            sizes[dim.name] = round(size)
    for a, b, _ in cell.size_checks:
        if scalar(a, sizes) != scalar(b, sizes):
            raise ValueError(f"sizes that must agree are {scalar(a, sizes):g} and {scalar(b, sizes):g}")
    return {d.name: sizes[d.name] for d in cell.dims}


def resolve_consts(cell: Cell, chosen: Mapping[str, Number]) -> dict[str, Number]:
    names = [c.name for c in cell.consts]
    for name in chosen:
        if name not in names:
            raise ValueError(f"{cell.name} has no const `{name}`; it has {', '.join(names) or 'none'}")
    consts = {c.name: chosen.get(c.name, c.value) for c in cell.consts}
    for const in cell.consts:
        if const.region is not None and not _within(consts[const.name], const.region, consts):
            raise ValueError(f"const {const.name} = {consts[const.name]} is outside its range")
    return consts


def _within(value: Number, region: Interval, consts: Mapping[str, Number]) -> bool:
    lo, hi = scalar(region.lo, consts), scalar(region.hi, consts)
    return (lo < value if region.lo_open else lo <= value) and (value < hi if region.hi_open else value <= hi)


def init_params(
    cell: Cell, sizes: Mapping[str, int], consts: Mapping[str, Number], generator: torch.Generator
) -> dict[str, Tensor]:
    """Every param, buffer and learned map, in file order, in float64, complex128 or bool."""
    numbers = {**sizes, **consts}
    params: dict[str, Tensor] = {}
    for param in cell.params:
        shape = [*(sizes[d] for d in param.shape), *([param.taps] if param.taps else [])]

        def leaf(node: Ref | Draw, param: Param = param, shape: list[int] = shape) -> Tensor:
            if isinstance(node, Draw):
                args = [evaluate(a, leaf).item() for a in node.args]
                return _draw(node, args, param, shape, generator)
            if node.role in ("size", "const"):
                return torch.tensor(numbers[node.name], dtype=torch.float64)
            earlier = params[node.name].to(_DTYPES["complex" if node.kind == "complex" else "real"])
            axes = cell.param(node.name).shape
            ordered = earlier.permute([axes.index(d) for d in param.shape if d in axes])
            return ordered[tuple(slice(None) if d in axes else None for d in param.shape)]

        params[param.name] = evaluate(param.init, leaf).to(_DTYPES[param.kind]).expand(shape).clone()
    return params


def _draw(node: Draw, args: list[float], param: Param, shape: list[int], generator: torch.Generator) -> Tensor:
    match node.op:
        case "normal":
            return torch.randn(shape, generator=generator, dtype=torch.float64) * args[0]
        case "uniform":
            return args[0] + (args[1] - args[0]) * torch.rand(shape, generator=generator, dtype=torch.float64)
        case "loguniform":
            lo, hi = math.log(args[0]), math.log(args[1])
            return torch.exp(lo + (hi - lo) * torch.rand(shape, generator=generator, dtype=torch.float64))
        case "arange":
            axis = param.shape.index(node.dims[0])
            count = args[0] + torch.arange(shape[axis], dtype=torch.float64)
            return count.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        case "orthogonal" | "eye":
            kept, rows = param.matrix or (len(shape) - 2, 1)
            matrices = (
                math.prod(shape[:kept]),
                math.prod(shape[kept : kept + rows]),
                math.prod(shape[kept + rows :]),
            )
            return (_eye(matrices) if node.op == "eye" else _orthogonal(matrices, generator)).reshape(shape)
        case _:
            raise ValueError(node.op)


def _eye(shape: tuple[int, int, int]) -> Tensor:
    return torch.eye(shape[1], shape[2], dtype=torch.float64).repeat(shape[0], 1, 1)


def _orthogonal(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Haar-distributed: orthonormal rows or columns, whichever are fewer."""
    count, rows, columns = shape
    tall = torch.randn(count, max(rows, columns), min(rows, columns), generator=generator, dtype=torch.float64)
    q, r = cast(tuple[Tensor, Tensor], torch.linalg.qr(tall))  # pyright: ignore[reportUnknownMemberType]
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return q if rows >= columns else q.mT


def _name(leaf: Ref | Draw) -> str:
    if isinstance(leaf, Draw):
        raise TypeError(f"`{leaf.op}` is no number")
    return leaf.name
