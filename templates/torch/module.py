"""What all generated classes share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .numbers import _complex_of
from .time import _check_packing, _packed, _Run


class _Cell(nn.Module):
    """What all cells share: dtypes, initial states, packed sequences, stepping.

    A subclass says what its inputs and outputs are and has `_equations(run, dtype, inputs, state)`, which serves one
    token, whole sequences and packed ones alike.
    """

    _inputs: tuple[tuple[str, tuple[str, ...], str], ...]
    _fields: tuple[tuple[str, tuple[str | int, ...], str], ...]
    _kernels: dict[str, str]
    _State: Callable[..., Any]
    _backends = ("auto", "torch", "reference")

    def __init__(self, backend: str, validate: bool, dtype: torch.dtype | None) -> None:
        super().__init__()
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype: expected one of floating-point numbers, got {dtype}")
        if backend not in self._backends:
            raise ValueError(f"backend {backend!r} is none of {', '.join(map(repr, self._backends))}")
        self.backend, self.validate = backend, validate

    @property
    def plan(self) -> dict[str, str]:
        """Which kernel computes each group of states."""
        if self.backend == "reference":
            return dict.fromkeys(self._kernels, "reference: one token at a time")
        return {states: f"torch: {kernel}" for states, kernel in self._kernels.items()}

    def extra_repr(self) -> str:
        return f"backend={self.backend!r}"

    def _check(
        self, name: str, value: Tensor, lead: Sequence[tuple[str, int]], dims: tuple[str | int, ...], kind: str
    ) -> None:
        """Raise where a tensor is not [*lead, *dims] of its kind."""
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        sizes = [*lead, *(("", d) if isinstance(d, int) else (d, getattr(self, d)) for d in dims)]
        if value.shape != tuple([n for _, n in sizes]):
            unknown = 0 if value.ndim == len(sizes) else len(lead)
            axes = ", ".join(f"{a}={n}" if a and i >= unknown else a or str(n) for i, (a, n) in enumerate(sizes))
            raise ValueError(f"{name}: expected [{axes}], got {list(value.shape)}")
        if kind == "bool" and value.dtype != torch.bool:
            raise TypeError(f"{name}: expected torch.bool, got {value.dtype}")
        if kind == "real" and value.is_complex():
            raise TypeError(f"{name}: expected real numbers, got {value.dtype}")

    def _prepare(self, values: tuple[Tensor, ...], axes: str) -> tuple[list[Tensor], torch.dtype, torch.dtype]:
        """Inputs in the computing dtype, that dtype, and the dtype of the outputs."""
        lead = list(zip(axes, getattr(values[0], "shape", ())))
        real: torch.dtype | None = None
        for value, (name, dims, kind) in zip(values, self._inputs):
            self._check(name, value, lead, dims, kind)
            if value.is_floating_point() or value.is_complex():
                dtype = value.real.dtype
                real = dtype if real is None else torch.promote_types(real, dtype)
        out = real or torch.float32
        dtype = torch.float64 if out == torch.float64 else torch.float32
        kinds = {"real": dtype, "complex": _complex_of(dtype), "bool": torch.bool}
        cast = [v.to(kinds[kind]) for v, (_, _, kind) in zip(values, self._inputs)]
        if self.validate:
            self._validate(*cast)
        return cast, dtype, out

    def _state(self, state: Any, batch: int, dtype: torch.dtype, device: torch.device) -> Any:
        """The state to start from, in the computing dtype."""
        if state is None:
            return self.initial_state(batch, dtype=dtype, device=device)
        if not isinstance(state, tuple) or len(state) != len(self._fields):
            names = ", ".join(name for name, _, _ in self._fields)
            raise TypeError(
                f"state: expected a tuple of {names}, as an earlier call returned it, got {type(state).__name__}"
            )
        for value, (name, dims, kind) in zip(state, self._fields):
            self._check(f"state.{name}", value, [("B", batch)], dims, kind)
        kinds = {"real": dtype, "complex": _complex_of(dtype), "bool": torch.bool}
        return self._State(*(s.to(kinds[kind]) for s, (_, _, kind) in zip(state, self._fields)))

    def _validate(self, *inputs: Tensor) -> None:
        """Raise ValueError where an input is out of the range that was declared for it."""

    def _sequences(self, values: tuple[Tensor, ...], state: Any, cu_seqlens: Tensor | None) -> tuple[Any, Any]:
        inputs, dtype, out = self._prepare(values, "BT")
        batch, steps = count, _ = inputs[0].shape[:2]
        if cu_seqlens is not None:
            _check_packing(cu_seqlens, batch, steps, self.validate)
            count = cu_seqlens.shape[0] - 1
        state = self._state(state, count, dtype, inputs[0].device)
        run = _Run((batch, steps), inputs[0]) if cu_seqlens is None else _packed(inputs[0], cu_seqlens)
        if self.backend == "reference" and steps:
            outputs, state = self._by_tokens(run, dtype, inputs, state)
        else:
            outputs, state = self._equations(run, dtype, *inputs, state)
        return self._result(outputs, out), state

    def _token(self, values: tuple[Tensor, ...], state: Any) -> tuple[Any, Any]:
        inputs, dtype, out = self._prepare(values, "B")
        state = self._state(state, inputs[0].shape[0], dtype, inputs[0].device)
        outputs, state = self._equations(_Run((inputs[0].shape[0],), inputs[0]), dtype, *inputs, state)
        # An output may be the state itself, which must not change with what is done to the output.
        return self._result(tuple(o.clone() for o in outputs), out), state

    def _by_tokens(self, run: _Run, dtype: torch.dtype, inputs: list[Tensor], state: Any) -> tuple[Any, Any]:
        """The reference: the equations, one token after the other."""
        steps: list[tuple[Tensor, ...]] = []
        one = _Run((run.lead[0],), run.like)
        for t in range(run.lead[1]):
            token = [x[:, t] for x in inputs]
            if run.sequence is None:
                outputs, state = self._equations(one, dtype, *token, state)
            else:
                row = run.sequence[t : t + 1]
                outputs, new = self._equations(
                    one, dtype, *token, type(state)(*(s.index_select(0, row) for s in state))
                )
                state = type(state)(*(s.index_copy(0, row, n) for s, n in zip(state, new)))
            steps.append(outputs)
        return tuple(torch.stack(o, 1) for o in zip(*steps)), state

    def _result(self, outputs: tuple[Tensor, ...], dtype: torch.dtype) -> Any:
        """Outputs in the inputs' dtype; several come as a NamedTuple."""
        cast = [o if o.dtype == torch.bool else o.to(_output_dtype(o, dtype)) for o in outputs]
        return cast[0] if len(cast) == 1 else self._output(*cast)

    def _output(self, *outputs: Tensor) -> Any:
        raise NotImplementedError

    def initial_state(self, batch: int, *, device: Any = None, dtype: torch.dtype = torch.float32) -> Any:
        raise NotImplementedError

    def _equations(self, run: _Run, dtype: torch.dtype, *inputs: Any) -> tuple[tuple[Tensor, ...], Any]:
        raise NotImplementedError


class _ComplexCell(_Cell):
    """A cell with complex parameters: `.to` a real dtype changes their precision, and drops no imaginary part."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def apply(x: Tensor) -> Tensor:
            parts = fn(torch.view_as_real(x.resolve_conj())) if x.is_complex() else x
            if parts.is_complex() or parts is x:
                return fn(x)
            return torch.view_as_complex(parts.to(torch.promote_types(parts.dtype, torch.float32)).contiguous())

        return super()._apply(apply, recurse)


def _output_dtype(value: Tensor, dtype: torch.dtype) -> torch.dtype:
    if not value.is_complex():
        return dtype
    return torch.complex128 if dtype == torch.float64 else torch.complex64
