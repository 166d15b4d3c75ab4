"""Triton's interpreter for these tests, nearer to a GPU. It needs TRITON_INTERPRET=1 from the start of the process."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, ScanOps, TensorHandle

_cast, _dot, _patch = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot, interpreter._patch_lang
_seen: set[Any] = set()
_done: set[str] = set()


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


def _multiplied(self: Any, a: Any, b: Any, total: Any, precision: Any, *options: Any) -> Any:
    """A product; of bfloat16 numbers, of whose bits the interpreter makes integers; of the bits that TF32 has."""
    a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
    if precision == ir.INPUT_PRECISION.TF32:
        a, b = (_as_tf32(x) if x.dtype.scalar == tl.float32 else x for x in (a, b))
    return _dot(self, a, b, total, precision, *options)


def _as_tf32(x: Any) -> TensorHandle:
    """The last 13 bits of float32 are not looked at."""
    return TensorHandle((np.ascontiguousarray(x.data).view(np.int32) & -8192).view(np.float32), tl.float32)


def _patched(fn: Any) -> Any:
    """The language as interpreted, made so once for all kernels: otherwise each call within one looks for what to do
    among all names of the language, a quarter of the time of these tests."""
    if fn not in _seen:
        _seen.add(fn)
        names = {m.__name__ for m in fn.__globals__.values() if inspect.ismodule(m) and m in (tl, tl.core)}
        if not names <= _done:
            _done.update(names)
            _patch(fn)
    return interpreter._LangPatchScope()


def install() -> None:
    for owner, name, method in (
        (InterpreterBuilder, "cast_impl", _rounded),
        (InterpreterBuilder, "create_dot", _multiplied),
        (ScanOps, "generic_scan", _scanned),
        (interpreter, "_patch_lang", _patched),
    ):
        setattr(owner, name, method)
