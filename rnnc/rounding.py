"""How far a right cell may be from its equations: what roundings do to the interpreter itself.

Goals: no right cell is rejected, however its numbers cancel, and no wrong one accepted. Non-goals: bounds; a guess for
each size of error.

The cheap estimate is one run in float32. One run may happen to hit a number that a few roundings move, and what cancels
in it exactly need not cancel in another order of the same operations. So whoever would be rejected gets a better one:
runs in which the operands and the result of every operation, forward and backward, are moved by one rounding at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_SLACK = 16.0
"""Times the interpreter's own error."""
_FLOOR = 256.0
"""Roundings that are always allowed."""
_SAMPLES = 8
_HOPELESS = 1000.0
"""Times what is allowed after two samples: more of them would not bring it near."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Comparison:
    """One tensor: its error relative to the largest numbers that it is made of, what is allowed, where it is worst."""

    what: str
    error: float
    allowed: float
    where: str = ""

    @property
    def failed(self) -> bool:
        return not self.error <= self.allowed


class Expected:
    """What the interpreter gets, by name. `run` is called with the dtype to compute in."""

    def __init__(self, run: Callable[[torch.dtype], Tensors], seed: int) -> None:
        self._run, self._seed = run, seed
        self.exact, self._rough = run(torch.float64), run(torch.float32)
        self._moved: dict[float, tuple[Rounding, list[Tensors]]] = {}

    def compare(self, got: Mapping[str, Tensor], dtype: torch.dtype, kind: str = "") -> Iterator[Comparison]:
        """What is expected of this kind beside `got`, with roundings as in `dtype`."""
        for what, want in self.exact.items():
            if not what.startswith(kind):
                continue
            value, rough = got.get(what), self._rough[what]
            if value is None:
                yield Comparison(f"{what} is missing", math.inf, 0.0)
                continue
            if value.shape != want.shape:
                yield Comparison(f"{what}: shape {list(value.shape)} instead of {list(want.shape)}", math.inf, 0.0)
                continue
            samples = [(rough, _EPS32)]
            found = compare(what, value, want, samples, dtype)
            eps = min(_EPS32, torch.finfo(dtype).eps)  # 16-bit types are computed with in float32
            for number in range(_SAMPLES):
                if not found.failed or (number > 1 and found.error > _HOPELESS * found.allowed):
                    break
                samples.append((self._sample(eps, number)[what], eps))
                found = compare(what, value, want, samples, dtype)
            yield found

    def _sample(self, eps: float, number: int) -> Tensors:
        mode, found = self._moved.setdefault(eps, (Rounding(eps, self._seed), []))
        while len(found) <= number:
            with mode:
                found.append(self._run(torch.float64))
        return found[number]


_EPS32 = torch.finfo(torch.float32).eps


def compare(
    what: str, got: Tensor, want: Tensor, samples: Sequence[tuple[Tensor, float]], dtype: torch.dtype
) -> Comparison:
    """`got` beside `want`, of one shape; each sample is what `want` becomes with roundings of that relative size."""
    wide = torch.complex128 if want.is_complex() else torch.float64
    most = torch.finfo(got.dtype).max if got.is_floating_point() else math.inf
    got, want = (x.detach().cpu().to(wide) for x in (got, want))
    rounded = [(s.detach().to(wide), eps) for s, eps in samples]
    # Where the oracle itself has no number, in either precision, nothing can be asked.
    known = ~want.isnan()
    for sample, _ in rounded:
        known &= ~sample.isnan() & (sample.isfinite() == want.isfinite())
    finite = known & want.isfinite()
    some = bool(finite.any())
    size = want[finite].abs().max().item() if some else 0.0
    # How large the numbers are whose rounding the error is made of: they may cancel in the end.
    inner = max(((s - want)[finite].abs().max().item() / eps for s, eps in rounded), default=0.0) if some else 0.0
    scale = size + inner or 1.0
    exact = (got == want) | ~known
    if not want.is_complex():  # what no number of its dtype is as large as
        exact |= got.isinf() & (got.sign() == want.sign()) & (want.abs() > most)
    error = torch.where(exact, 0.0, (got - want).abs() / scale).nan_to_num(nan=math.inf, posinf=math.inf)
    allowed = torch.finfo(dtype).eps * max(_SLACK, (_FLOOR * size + _SLACK * inner) / scale)
    if not error.numel():
        return Comparison(what, 0.0, allowed)
    flat = int(error.argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(flat), error.shape)]
    values = f"{got.flatten()[flat].item():.6g} instead of {want.flatten()[flat].item():.6g}"
    return Comparison(what, error.flatten()[flat].item(), allowed, f"{values} at {index}" if index else values)


class Rounding(TorchDispatchMode):
    """Moves the operands and the results of all operations by `eps`, up or down at random.

    Operands too, for what cancels within one operation: a sum, a matrix product. What is only handed on (selected,
    stacked, the larger of two) stays as it is, so that equal numbers stay equal.
    """

    def __init__(self, eps: float, seed: int) -> None:
        super().__init__()  # pyright: ignore
        self.eps, self.generator = eps, torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [x for x in map(_real, _tensors((args, kwargs))) if x is not None]
        aliases = [r.alias_info for r in func._schema.returns if r.alias_info is not None]
        in_place = any(a.is_write for a in aliases)
        if not given or (aliases and not in_place):
            return func(*args, **kwargs)
        named = {**dict(zip((a.name for a in func._schema.arguments), args, strict=False)), **kwargs}
        numbers = [named.get(a.name) for a in func._schema.arguments if "number" in str(a.type)]
        numbers = torch.tensor([x for x in numbers if isinstance(x, int | float)], dtype=torch.float64)
        known = torch.cat([x.flatten().double() for x in (*given, numbers)]).abs()
        moved = self._moved(args), self._moved(kwargs)
        result = func(*args, **kwargs)
        if all(x is None or _among(x, known).all() for x in map(_real, _tensors(result))):
            return result
        again = func(*moved[0], **moved[1])
        if in_place:
            return result.copy_(self._kept(result, again, known))
        if isinstance(result, Tensor):
            return self._kept(result, again, known)
        return tuple(self._kept(r, a, known) for r, a in zip(result, again, strict=True))

    def _kept(self, result: Tensor, again: Tensor, known: Tensor) -> Tensor:
        """A second result, moved; the first where it is one of the known numbers."""
        first, second = _real(result), _real(again)
        if first is None or second is None:
            return again
        real = torch.where(_among(first, known), first, self._move(second))
        return torch.view_as_complex(real) if result.is_complex() else real

    def _moved(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(self._moved(v) for v in cast(Sequence[Any], value))
        if isinstance(value, dict):
            return {k: self._moved(v) for k, v in cast(dict[str, Any], value).items()}
        real = _real(value) if isinstance(value, Tensor) else None
        if real is None:
            return value
        return torch.view_as_complex(self._move(real)) if value.is_complex() else self._move(real)

    def _move(self, x: Tensor) -> Tensor:
        up = torch.randint(0, 2, x.shape, generator=self.generator, dtype=x.dtype)
        return x * (1 + self.eps * (2 * up - 1))


def _tensors(value: Any) -> Iterator[Tensor]:
    """Those in arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        values = cast(dict[str, Any], value).values() if isinstance(value, dict) else cast(Sequence[Any], value)
        for each in values:
            yield from _tensors(each)


def _real(value: Tensor) -> Tensor | None:
    """Real numbers as they are, complex ones' parts in one more axis; None where there are no such numbers."""
    if value.is_complex():
        return torch.view_as_real(value.resolve_conj())
    return value if value.is_floating_point() else None


def _among(x: Tensor, known: Tensor) -> Tensor:
    return torch.isin(x.abs().to(known.dtype), known)
