"""What generated classes with fused kernels share."""

# What functorch wraps has no public name.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import os
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ..torch.module import _Cell
from ..torch.time import _check_packing, _packed, _Run
from .decode import _Decode, _decode_fits


def _interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on tensors of any device."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _product_dtype(out: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of learned maps: that of the outputs, or autocast's."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return out


def _multiplied_dtype(low: torch.dtype) -> torch.dtype:
    """In which dtype products in kernels take their operands."""
    # Triton's interpreter takes the bits of bfloat16 numbers for integers and multiplies those.
    return torch.float32 if low == torch.bfloat16 and _interpreted() else low


class _KernelCell(_Cell):
    """A cell with kernels for some or all of its recurrences, over sequences.

    A subclass has `_fused(run, dtype, low, out, inputs, state)`: the equations by kernels, with learned maps in `low`
    and what kernels write in `out`.
    """

    _fused_kernels: dict[str, str]
    _kernels_of: str
    """Whose kernels are those that say nothing else."""

    @property
    def plan(self) -> dict[str, str]:
        """Which kernel computes each group of states."""
        plain = super().plan
        if self.backend in ("torch", "reference"):
            return plain
        kernels = {name: kernel for states, kernel in self._fused_kernels.items() for name in states.split(", ")}
        out = dict(plain)
        for states, other in plain.items():
            if (kernel := kernels.get(states.split(", ")[0])) is not None:
                named = kernel if ": " in kernel else f"{self._kernels_of}: {kernel}"
                out[states] = named if self._sure(kernel) else f"{named}, on a GPU; {other}"
        return out

    def _sure(self, kernel: str) -> bool:
        """Whether a kernel runs, whatever the inputs are."""
        raise NotImplementedError

    def _runs_kernels(self, device: torch.device) -> bool:
        raise NotImplementedError

    def _sequences(self, values: tuple[Tensor, ...], state: Any, cu_seqlens: Tensor | None) -> tuple[Any, Any]:
        runs = isinstance(values[0], Tensor) and self._runs_kernels(values[0].device)
        if not runs or not self._fused_kernels:
            return super()._sequences(values, state, cu_seqlens)
        inputs, dtype, out = self._prepare(values, "BT")
        batch, steps = count, _ = inputs[0].shape[:2]
        run = _Run((batch, steps), inputs[0])
        if cu_seqlens is not None:
            _check_packing(cu_seqlens, batch, steps, self.validate)
            count = cu_seqlens.shape[0] - 1
            run = _packed(inputs[0], cu_seqlens)
        # Kernels and products read 16-bit numbers as they came.
        inputs = [v if v.dtype in (torch.float16, torch.bfloat16) else x for v, x in zip(values, inputs)]
        state = self._state(state, count, dtype, inputs[0].device)
        low = _product_dtype(out, inputs[0].device)
        outputs, state = self._fused(run, dtype, low, out, *inputs, state)
        return self._result(outputs, out), state

    def _fused(self, run: _Run, *inputs: Any) -> tuple[tuple[Tensor, ...], Any]:
        raise NotImplementedError


class _FusedCell(_KernelCell):
    """A cell with Triton kernels for some or all of its recurrences; it may have CUDA kernels for others."""

    _backends = ("auto", "triton", "torch", "reference")
    _kernels_of = "triton"

    def _sure(self, kernel: str) -> bool:
        return self.backend == "triton" or (_interpreted() and not kernel.startswith("cuda: "))

    def _runs_kernels(self, device: torch.device) -> bool:
        if self.backend in ("torch", "reference"):
            return False
        runs = tl is not None and (device.type == "cuda" or _interpreted())
        if self.backend == "triton" and not runs:
            why = "Triton is not installed" if tl is None else f"Triton runs on a GPU, and the inputs are on {device}"
            raise RuntimeError(f'backend="triton": {why} (TRITON_INTERPRET=1 runs its interpreter anywhere)')
        return runs


class _DecodeCell(_KernelCell):
    """A cell with Triton kernels for one token, which have no gradients: where those may be wanted, in float64, and
    where states are too large for a program, PyTorch steps.

    A subclass has `_token_by_kernels(run, dtype, low, out, inputs, state)`, as `_fused` is for sequences.
    """

    _decodes: tuple[tuple[_Decode, tuple[str, ...]], ...]
    """The kernels, and the dims whose sizes each is given."""

    def _token(self, values: tuple[Tensor, ...], state: Any) -> tuple[Any, Any]:
        if not self._decodes_on(values[0]) or not self._without_gradients(values, state):
            return super()._token(values, state)
        inputs, dtype, out = self._prepare(values, "B")
        fits = (_decode_fits(decode, [getattr(self, d) for d in dims]) for decode, dims in self._decodes)
        if dtype == torch.float64 or not all(fits):
            return super()._token(values, state)
        inputs = [v if v.dtype in (torch.float16, torch.bfloat16) else x for v, x in zip(values, inputs)]
        state = self._state(state, inputs[0].shape[0], dtype, inputs[0].device)
        low = _product_dtype(out, inputs[0].device)
        run = _Run((inputs[0].shape[0],), inputs[0])
        outputs, state = self._token_by_kernels(run, dtype, low, out, *inputs, state)
        return self._result(outputs, out), state

    def _decodes_on(self, value: Any) -> bool:
        """Whether kernels can run on the device of an input."""
        if self.backend in ("torch", "reference") or not isinstance(value, Tensor) or tl is None:
            return False
        return value.device.type == "cuda" or _interpreted()

    def _without_gradients(self, values: tuple[Any, ...], state: Any) -> bool:
        """Whether no derivative can be asked of a call with these inputs and this state, nor many calls at once."""
        held = state if isinstance(state, tuple) else ()
        given = [v for v in (*values, *held, *self.parameters()) if isinstance(v, Tensor)]
        if torch.is_grad_enabled() and any(v.requires_grad for v in given):
            return False
        return torch.compiler.is_compiling() or not any(_is_transformed(v) for v in given)

    def _token_by_kernels(self, run: _Run, *inputs: Any) -> tuple[tuple[Tensor, ...], Any]:
        raise NotImplementedError


def _is_transformed(value: Tensor) -> bool:
    """Whether a forward-mode derivative goes with a value, or it stands for many of `torch.vmap`."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(value)
    return wrapped or torch.autograd.forward_ad.unpack_dual(value).tangent is not None
