"""Runs a checked cell step by step, exactly as written. Autograd flows through everything.

Goals: to be obviously right, in any float dtype. Non-goals: speed, memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce as fold
from itertools import pairwise

import torch
from torch import Tensor

from rnnc.fields import StateField, state_fields
from rnnc.ir import Cell, Conv, Kind, walk

from .initial import Number, init_params, resolve_consts, resolve_dims
from .token import Setting, Tensors, Token, dtype_of
from .values import BATCH, Value


class Interpreter:
    """A cell at given sizes.

    `dtype` is what everything is computed and returned in. With None the language's rule holds: float32, or float64 if
    any input is; outputs take the inputs' promoted dtype, states keep the computing one.
    """

    def __init__(
        self,
        cell: Cell,
        dims: Mapping[str, int] | None = None,
        consts: Mapping[str, Number] | None = None,
        dtype: torch.dtype | None = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        self.cell = cell
        self.sizes = resolve_dims(cell, dims or {})
        self.consts = resolve_consts(cell, consts or {})
        self.dtype = dtype
        self.device = torch.device(device)
        self.fields = state_fields(cell)
        roots = [x.expr for x in (*cell.definitions, *cell.states, *cell.outputs)]
        self.convs = {n.history: n for n in walk(*roots) if isinstance(n, Conv)}

    def init_params(self, seed: int | torch.Generator = 0) -> dict[str, Tensor]:
        """Params, buffers and learned maps as declared, drawn in file order."""
        generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        drawn = init_params(self.cell, self.sizes, self.consts, generator)
        real = self.dtype or torch.float32
        return {p.name: drawn[p.name].to(self.device, dtype_of(p.kind, real)) for p in self.cell.params}

    def initial_state(self, params: Tensors, batch: int) -> dict[str, Tensor]:
        """The state before the first token."""
        return self._initial(self._setting(params, batch, self.dtype or torch.float32))

    def run(
        self,
        inputs: Tensors | Sequence[Tensor],
        params: Tensors | None = None,
        state: Tensors | Sequence[Tensor] | None = None,
        cu_seqlens: Tensor | Sequence[int] | None = None,
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Outputs `[B, T, *dims]` and the state after the last token, by field.

        With `cu_seqlens` inputs are `[1, total, ...]` and states `[N, ...]`: each sequence starts afresh from its own
        initial state; an empty one returns it.
        """
        named = self._named(inputs)
        params = params or {}
        if state is not None and not isinstance(state, Mapping):
            state = dict(zip((f.name for f in self.fields), state, strict=True))
        batch, length = next(iter(named.values())).shape[:2]
        if cu_seqlens is not None:
            return self._packed(named, params, state, [int(c) for c in cu_seqlens])
        real, result = self._dtypes(named)
        tensors = [*named.values(), *params.values(), *(state or {}).values()]
        tracking = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        with torch.set_grad_enabled(tracking):
            setting = self._setting(params, batch, real)
            now = self._initial(setting) if state is None else self._incoming(setting, state)
            steps: list[list[Tensor]] = []
            for t in range(length):
                outputs, now = self._step(Token(setting, {n: x[:, t] for n, x in named.items()}, now))
                steps.append(outputs)
            results: list[Tensor] = []
            for i, o in enumerate(self.cell.outputs):
                empty = torch.zeros([batch, 0, *(self.sizes[d] for d in o.expr.dims)], device=self.device)
                stacked = torch.stack([s[i] for s in steps], 1) if steps else empty
                results.append(stacked.to(dtype_of(o.expr.kind, result)))
        return tuple(results), now

    def _packed(
        self, inputs: Tensors, params: Tensors, state: Tensors | None, ends: list[int]
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        total = next(iter(inputs.values())).shape[1]
        if ends[0] != 0 or ends[-1] != total or ends != sorted(ends):
            raise ValueError(f"cu_seqlens must rise from 0 to {total}, not {ends}")
        nothing = {n: x[:, :0] for n, x in inputs.items()}
        outputs, finals = self.run(nothing, params)
        pieces, states = [outputs], [{n: s[:0] for n, s in finals.items()}]
        for i, (start, end) in enumerate(pairwise(ends)):
            own = None if state is None else {n: s[i : i + 1] for n, s in state.items()}
            outputs, final = self.run({n: x[:, start:end] for n, x in inputs.items()}, params, own)
            pieces.append(outputs)
            states.append(final)
        whole = tuple(torch.cat(parts, 1) for parts in zip(*pieces, strict=True))
        return whole, {n: torch.cat([s[n] for s in states]) for n in finals}

    def _named(self, inputs: Tensors | Sequence[Tensor]) -> dict[str, Tensor]:
        declared = self.cell.inputs
        if not declared:
            raise ValueError(f"{self.cell.name} has no inputs, which would say how many tokens there are")
        if not isinstance(inputs, Mapping):
            inputs = dict(zip((i.name for i in declared), inputs, strict=True))
        named = {i.name: inputs[i.name] for i in declared}
        lead = next(iter(named.values())).shape[:2]
        for i in declared:
            want = (*lead, *(self.sizes[d] for d in i.type.dims))
            if tuple(named[i.name].shape) != want:
                raise ValueError(f"input {i.name} is {tuple(named[i.name].shape)}, not {want}")
        return named

    def _dtypes(self, inputs: Tensors) -> tuple[torch.dtype, torch.dtype]:
        """The real dtypes that are computed in and returned."""
        if self.dtype is not None:
            return self.dtype, self.dtype
        given = [x.dtype.to_real() for x in inputs.values() if x.is_floating_point() or x.is_complex()]
        result = fold(torch.promote_types, given) if given else torch.float32
        return (torch.float64 if result == torch.float64 else torch.float32), result

    def _setting(self, params: Tensors, batch: int, real: torch.dtype) -> Setting:
        own = {p.name: params[p.name].to(self.device, dtype_of(p.kind, real)) for p in self.cell.params}
        return Setting(self.cell, {BATCH: batch, **self.sizes}, self.consts, own, real, self.device)

    def _initial(self, setting: Setting) -> dict[str, Tensor]:
        token = Token(setting, {}, {})
        state: dict[str, Tensor] = {}
        for f in self.fields:
            first = _layout(setting, setting.number(0) if f.init is None else token.now(f.init), f.kind, f.dims)
            state[f.name] = first if f.length is None else torch.stack([first] * f.length, 1)
        return state

    def _incoming(self, setting: Setting, state: Tensors) -> dict[str, Tensor]:
        """A state that was passed in, checked and in the computing dtype."""
        result: dict[str, Tensor] = {}
        for f in self.fields:
            history = () if f.length is None else (f.length,)
            want = (setting.sizes[BATCH], *history, *(self.sizes[d] for d in f.dims))
            if tuple(state[f.name].shape) != want:
                raise ValueError(f"state {f.name} is {tuple(state[f.name].shape)}, not {want}")
            result[f.name] = state[f.name].to(self.device, setting.dtype(f.kind))
        return result

    def _step(self, token: Token) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The outputs at a token and the state after it."""
        outputs = [_layout(token.setting, token.now(o.expr), o.expr.kind, o.expr.dims) for o in self.cell.outputs]
        after: dict[str, Tensor] = {}
        for f in self.fields:
            newest = _layout(token.setting, self._newest(token, f), f.kind, f.dims)
            past = token.state[f.name]
            after[f.name] = newest if f.length is None else torch.cat([newest.unsqueeze(1), past[:, :-1]], 1)
        return outputs, after

    def _newest(self, token: Token, f: StateField) -> Value:
        """What a field takes up at a token."""
        if f.role == "conv":
            return token.now(self.convs[f.of].arg)
        if f.of in token.definitions:
            return token.now(token.definitions[f.of])
        if f.role == "state":
            return token.updated(f.of)
        dims = (BATCH, *f.dims)
        return Value(token.state[f.of], dims) if f.of in token.states else Value(token.inputs[f.of], dims)


def _layout(setting: Setting, value: Value, kind: Kind, dims: Sequence[str]) -> Tensor:
    return value.cast(setting.dtype(kind)).to((BATCH, *dims), setting.sizes)
