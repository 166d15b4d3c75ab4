"""Triton's interpreter for these tests, nearer to a GPU. It needs TRITON_INTERPRET=1 from the start of the process."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, ScanOps, TensorHandle

_cast, _dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot


def _rounded(self: Any, source: Any, kind: Any) -> Any:
    """A cast; to bfloat16 rounded to the nearest, which the interpreter cuts."""
    if source.dtype.scalar == tl.float32 and kind.scalar == tl.bfloat16:
        data = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16()
        return TensorHandle(data.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)
    return _cast(self, source, kind)


def _scanned(self: Any, inputs: Any) -> list[Any]:
    """A scan that combines whole rows, in a tree as compiled ones do.

    The interpreter's own goes entry by entry, from the first to the last, at 55 µs each; and a function that is not
    associative would not show.
    """
    data = [x.handle.data for x in inputs]
    size = data[0].shape[self.axis]
    places = np.arange(size).reshape([-1 if i == self.axis else 1 for i in range(data[0].ndim)])
    distance = 1
    while distance < size:
        earlier = [np.roll(d, distance, self.axis) for d in data]
        operands = [self.to_tensor(d, x.dtype) for part in (earlier, data) for d, x in zip(part, inputs, strict=True)]
        made = self.combine_fn.fn(*operands)
        made = made if isinstance(made, tuple) else (made,)
        data = [np.where(places >= distance, m.handle.data, d) for m, d in zip(made, data, strict=True)]
        distance *= 2
    return [self.to_tensor(d, x.dtype) for d, x in zip(data, inputs, strict=True)]


def _multiplied(self: Any, a: Any, b: Any, total: Any, *options: Any) -> Any:
    """A product; of bfloat16 numbers, of whose bits the interpreter makes integers."""
    a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
    return _dot(self, a, b, total, *options)


def install() -> None:
    for owner, name, method in (
        (InterpreterBuilder, "cast_impl", _rounded),
        (InterpreterBuilder, "create_dot", _multiplied),
        (ScanOps, "generic_scan", _scanned),
    ):
        setattr(owner, name, method)
