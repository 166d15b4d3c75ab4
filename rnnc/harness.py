"""A compiled cell against its equations as written: what `rnnc test` runs.

Goals: the user's own cell, at small random sizes, in every way in which it can be called; a failure is shrunk to the
smallest case that still shows it. Non-goals: speed; proofs.

Every comparison is with the interpreter in float64. What a case may deviate follows from its own conditioning, see
`rnnc/rounding.py`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial, reduce
from importlib import import_module
from itertools import accumulate, pairwise
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn import Module

from rnnc.ir import Annulus, Cell, Disc, Expr, Input, Interval
from rnnc.rounding import Comparison, Expected, Tensors
from rnnc.target import backend

_Singular = cast(type[Exception], torch.linalg.LinAlgError)  # pyright: ignore


Called = tuple[Tensors, Tensors]
"""Outputs and final states by name."""


class Interpreter(Protocol):
    """What is used of the reference backend's."""

    sizes: dict[str, int]
    consts: dict[str, int | float]

    def init_params(self, seed: torch.Generator) -> Tensors: ...

    def run(
        self,
        inputs: Tensors,
        params: Tensors,
        state: Tensors | None = None,
        cu_seqlens: Sequence[int] | None = None,
    ) -> tuple[tuple[Tensor, ...], Tensors]: ...


def interpreter(cell: Cell, sizes: Mapping[str, int], dtype: torch.dtype = torch.float64) -> Interpreter:
    """The cell as written; ValueError for sizes that it does not allow."""
    return cast(Any, backend("reference")).Interpreter(cell, sizes, dtype=dtype)


def scalar(node: Expr, numbers: Mapping[str, int | float]) -> float:
    """A number made of literals and of named ones."""
    return cast(Any, import_module("rnnc.backends.reference.initial")).scalar(node, numbers)


@dataclass(frozen=True)
class Case:
    """One call. `sizes` are the dims that are arguments; `pieces` the lengths that a sequence falls into."""

    seed: int
    sizes: Mapping[str, int]
    batch: int
    pieces: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    limits: bool = False
    """Inputs large, or at the ends of their ranges."""

    @property
    def length(self) -> int:
        return sum(self.pieces)

    def __str__(self) -> str:
        sizes = "".join(f", {name}={size}" for name, size in self.sizes.items())
        parts = f" = {' + '.join(map(str, self.pieces))}" if len(self.pieces) > 1 else ""
        limits = ", inputs at their limits" if self.limits else ""
        return f"B={self.batch}, T={self.length}{parts}{sizes}, {str(self.dtype)[6:]}{limits}, seed {self.seed}"


@dataclass(frozen=True)
class Failure:
    case: Case
    comparison: Comparison


@dataclass(frozen=True)
class Result:
    """One property: the comparison that came nearest to what was allowed, and the smallest case that fails."""

    name: str
    cases: int
    worst: Comparison | None
    failure: Failure | None


@dataclass(frozen=True)
class Property:
    """`vary` makes a random case this property's own; `check` gives its comparisons."""

    name: str
    vary: Callable[[random.Random, Case], Case]
    check: Callable[[_Trial], Iterable[Comparison]]


class Subject:
    """What is tested: a cell, and what makes a module of it from sizes and a dtype; `dtype` is the finest to test.

    `kernels`: learned maps run in the outputs' dtype, as those of modules with kernels do; else in the computing one.
    """

    def __init__(
        self,
        cell: Cell,
        build: Callable[..., Module],
        device: str = "cpu",
        dtype: torch.dtype = torch.float64,
        kernels: bool = False,
    ) -> None:
        self.cell, self.build, self.device, self.dtype = cell, build, device, dtype
        self.narrow_maps = kernels and any(p.matrix is not None for p in cell.params)

    def sizes(self, pick: random.Random) -> dict[str, int]:
        """Small sizes that the cell allows; the declared ones where none are found."""
        declared = {d.name: d.size for d in self.cell.dims if isinstance(d.size, int)}
        for attempt in range(300):
            chosen = {name: pick.randint(1, 4 + attempt // 100) for name in declared}
            if self.allows(chosen):
                return chosen
        return declared

    def allows(self, sizes: Mapping[str, int]) -> bool:
        try:
            numbers = interpreter(self.cell, sizes).sizes
        except ValueError:
            return False
        return all(scalar(left, numbers) == scalar(right, numbers) for left, right, _ in self.cell.size_checks)


def properties(subject: Subject, cases: int, seed: int = 0) -> list[Callable[[], Result]]:
    """What checks each property, one call each."""
    return [partial(_run, subject, prop, cases, seed) for prop in PROPERTIES]


def _run(subject: Subject, prop: Property, cases: int, seed: int) -> Result:
    worst: Comparison | None = None
    for number in range(cases):
        pick = random.Random(f"{seed} {prop.name} {number}")
        case = Case(
            seed=pick.randrange(10**6),
            sizes=subject.sizes(pick),
            batch=pick.choice((1, 1, 2, 3)),
            pieces=(pick.randint(1, 12),),
            limits=number % 4 == 3,
        )
        case = prop.vary(pick, case)
        case = replace(case, dtype=max(case.dtype, subject.dtype, key=lambda d: torch.finfo(d).eps))
        found = _worst(subject, prop, case)
        if found is not None and found.failed:
            failure = _shrink(subject, prop, Failure(case, found))
            return Result(prop.name, number + 1, failure.comparison, failure)
        if found is not None and (worst is None or found.error * worst.allowed > worst.error * found.allowed):
            worst = found
    return Result(prop.name, cases, worst, None)


def _worst(subject: Subject, prop: Property, case: Case) -> Comparison | None:
    try:
        found = list(prop.check(_Trial(subject, case)))
    except _Singular:  # of the interpreter: a system of equations without a solution
        return None
    except _Rejected as error:
        return Comparison(f"the module raises {error}", math.inf, 0.0)
    failed = [c for c in found if c.failed]
    return max(failed or found, key=lambda c: c.error / c.allowed if c.allowed else math.inf, default=None)


def _shrink(subject: Subject, prop: Property, failure: Failure) -> Failure:
    """The smallest case that still fails, as far as taking one thing away at a time leads."""
    smaller = True
    while smaller:
        smaller = False
        for case in _smaller(failure.case):
            if not subject.allows(case.sizes):
                continue
            found = _worst(subject, prop, case)
            if found is not None and found.failed:
                failure, smaller = Failure(case, found), True
                break
    return failure


def _smaller(case: Case) -> Iterator[Case]:
    if case.limits:
        yield replace(case, limits=False)
    if case.batch > 1:
        yield replace(case, batch=1)
    for i, piece in enumerate(case.pieces):
        rest = case.pieces[:i], case.pieces[i + 1 :]
        if len(case.pieces) > 2:
            yield replace(case, pieces=(*rest[0], *rest[1]))
        for less in sorted({0, 1, piece // 2, piece - 1}):
            if 0 <= less < piece:
                yield replace(case, pieces=(*rest[0], less, *rest[1]))
    for name, size in case.sizes.items():
        for less in sorted({1, 2, size // 2, size - 1}):
            if 0 < less < size:
                yield replace(case, sizes={**case.sizes, name: less})


# --- one case --------------------------------------------------------------------------------------------------------


class _Rejected(Exception):
    """The module raised where the interpreter does not."""


@contextmanager
def _ours() -> Generator[None]:
    """Around calls of the module that is tested."""
    try:
        yield
    except Exception as error:
        raise _Rejected(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


class _Trial:
    """A module and an interpreter with the same params, and inputs for them."""

    def __init__(self, subject: Subject, case: Case) -> None:
        self.subject, self.case, self.cell = subject, case, subject.cell
        self.generator = torch.Generator().manual_seed(case.seed)
        self.oracle = interpreter(self.cell, case.sizes)
        self.oracles = {torch.float64: self.oracle, torch.float32: interpreter(self.cell, case.sizes, torch.float32)}
        self.params = self.oracle.init_params(self.generator)
        for p in self.cell.params:
            if p.learned:  # so that ones and zeros do not hide what they multiply
                self.params[p.name] += 0.1 * self.normal(self.params[p.name])
        self.inputs = {i.name: self._input(i, case.batch, case.length) for i in self.cell.inputs}
        state = self._input_state()
        self.state = {name: s.detach() for name, s in state.items()}

    # --- numbers ---

    def normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)

    def _input(self, declared: Input, batch: int, length: int) -> Tensor:
        shape = [batch, length, *(self.oracle.sizes[d] for d in declared.type.dims)]
        uniform = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        at_limit = torch.rand(shape, generator=self.generator) < (0.3 if self.case.limits else 0.0)
        if declared.type.kind == "bool":
            return uniform < 0.3
        complex_ = declared.type.kind == "complex"
        normal = torch.randn(shape, generator=self.generator, dtype=torch.complex128 if complex_ else torch.float64)
        values: Tensor
        match declared.region:
            case Interval(lo=lo, hi=hi, lo_open=lo_open, hi_open=hi_open):
                least, most = (scalar(e, self.oracle.consts) for e in (lo, hi))
                span = most - least if math.isfinite(most - least) else 1.0
                if math.isfinite(least):
                    values = least + span * uniform if math.isfinite(most) else least + normal.abs()
                else:
                    values = most - normal.abs() if math.isfinite(most) else normal
                # Open ends are approached, closed ones met, infinite ones stood for by a large number.
                low = least + span * 1e-3 * lo_open if math.isfinite(least) else values.clamp(max=0) * 20
                high = most - span * 1e-3 * hi_open if math.isfinite(most) else values.clamp(min=0) * 20
                values = torch.where(at_limit, torch.where(uniform < 0.5, low, high), values)
            case Disc(radius=radius):
                values = torch.polar(scalar(radius, self.oracle.consts) * uniform, normal.abs() * 6.3)
            case Annulus(inner=inner, outer=outer):
                least, most = (scalar(e, self.oracle.consts) for e in (inner, outer))
                values = torch.polar(least + (most - least) * uniform, normal.abs() * 6.3)
            case None:
                values = torch.where(at_limit, normal * 20, normal)
        # What every dtype can hold, so that all of them see the same numbers.
        kept = values.real.to(torch.bfloat16).double()
        return torch.complex(kept, values.imag.to(torch.bfloat16).double()) if complex_ else kept

    def _input_state(self) -> Tensors:
        """A state that the cell can reach: after a few other tokens."""
        others = {i.name: self._input(i, self.case.batch, 2) for i in self.cell.inputs}
        with torch.no_grad():
            return self.oracle.run(others, self.params)[1]

    # --- the module ---

    def module(self, dtype: torch.dtype | None = None) -> Module:
        with _ours():
            dtype = dtype or self.case.dtype
            module = self.subject.build(**self.case.sizes, device=self.subject.device, dtype=dtype)
            own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            with torch.no_grad():
                for name, value in self.params.items():
                    own[name].copy_(value)
        return module

    def given(self) -> Tensors:
        return {n: x.to(self.subject.device, _like(x, self.case.dtype)) for n, x in self.inputs.items()}

    def call(self, module: Any, inputs: Tensors, state: Tensors | None = None, **options: Any) -> Called:
        with _ours():
            own = None if state is None else self._pack(module, state)
            outputs, final = module(*inputs.values(), state=own, **options)
            return self._named(outputs, final)

    def step(self, module: Any, inputs: Tensors, state: Tensors | None) -> Called:
        with _ours():
            own = None if state is None else self._pack(module, state)
            outputs, final = module.step(*inputs.values(), own)
            return self._named(outputs, final)

    def _pack(self, module: Any, state: Tensors) -> Any:
        """The module's own tuple of states."""
        like = module.initial_state(1)
        return type(like)(*(state[name] for name in like._fields))

    def _named(self, outputs: Any, final: Any) -> Called:
        single = isinstance(outputs, Tensor)
        names = [o.name for o in self.cell.outputs]
        return dict(zip(names, (outputs,) if single else outputs, strict=True)), final._asdict()

    # --- the oracle ---

    def run_oracle(
        self, inputs: Tensors, params: Tensors, state: Tensors | None, dtype: torch.dtype, ends: Sequence[int] | None
    ) -> Called:
        outputs, final = self.oracles[dtype].run(inputs, params, state, ends)
        return dict(zip((o.name for o in self.cell.outputs), outputs, strict=True)), final

    def expected(self, state: Tensors | None = None, ends: Sequence[int] | None = None) -> Expected:
        """Outputs and final states."""

        def run(dtype: torch.dtype) -> Tensors:
            with torch.no_grad():
                return _named(self.run_oracle(self.inputs, self.params, state, dtype, ends))

        return Expected(run, self.case.seed)


def _named(called: Called) -> Tensors:
    return {**_tagged("output", called[0]), **_tagged("final state", called[1])}


def _tagged(kind: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {f"{kind} `{name}`": value for name, value in tensors.items()}


def _like(value: Tensor, dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or what stands for it where the value is bool or complex."""
    if value.dtype == torch.bool:
        return torch.bool
    if value.is_complex():  # there is no narrower one that is computed with
        return torch.complex128 if dtype == torch.float64 else torch.complex64
    return dtype


# --- properties ------------------------------------------------------------------------------------------------------


def _outputs(trial: _Trial) -> Iterator[Comparison]:
    got = trial.call(trial.module(), trial.given())
    yield from trial.expected().compare(_named(got), trial.case.dtype, "output")


def _states(trial: _Trial) -> Iterator[Comparison]:
    got = trial.call(trial.module(), trial.given(), trial.state)
    yield from trial.expected(trial.state).compare(_named(got), trial.case.dtype)


def _gradients(trial: _Trial) -> Iterator[Comparison]:
    learned = [p.name for p in trial.cell.params if p.learned]
    weights: Tensors = {}

    def gradients(called: Called, leaves: Tensors) -> Tensors:
        """Of a random weighted sum of all that is returned and has a number."""
        total = torch.zeros((), dtype=torch.float64)
        for name, value in _named(called).items():
            if value.dtype == torch.bool:
                continue
            if name not in weights:
                weights[name] = trial.normal(value.detach().cpu().to(_like(value, torch.float64)))
                weights[name][~value.detach().cpu().isfinite()] = 0
            weight = weights[name].to(value.device, value.dtype)
            kept = torch.where(weight != 0, value, 0)
            total = total + (weight.conj() * kept).real.sum().to(total)
        asked = {n: leaf for n, leaf in leaves.items() if leaf.requires_grad}
        if not total.requires_grad:  # nothing that is returned depends on any of them
            return {n: torch.zeros_like(leaf) for n, leaf in asked.items()}
        found = torch.autograd.grad(total, list(asked.values()), materialize_grads=True)
        return dict(zip(asked, found, strict=True))

    def leaf(value: Tensor, dtype: torch.dtype) -> Tensor:
        own = value.detach().clone().to(_like(value, dtype))
        return own if own.dtype == torch.bool else own.requires_grad_()

    def leaves(inputs: Tensors, params: Mapping[str, Tensor], state: Tensors) -> Tensors:
        return {
            **_tagged("gradient of input", inputs),
            **_tagged("gradient of param", params),
            **_tagged("gradient of state", state),
        }

    def of_oracle(dtype: torch.dtype) -> Tensors:
        inputs = {n: leaf(x, dtype) for n, x in trial.inputs.items()}
        params = {n: leaf(p, dtype) if n in learned else p for n, p in trial.params.items()}
        state = {n: leaf(s, dtype) for n, s in trial.state.items()}
        return gradients(trial.run_oracle(inputs, params, state, dtype, None), leaves(inputs, params, state))

    expected = Expected(of_oracle, trial.case.seed)
    dtype, module = trial.case.dtype, trial.module()
    inputs = {n: leaf(x, dtype) for n, x in trial.given().items()}
    state = {n: leaf(s.to(trial.subject.device), dtype) for n, s in trial.state.items()}
    called = trial.call(module, inputs, state)
    with _ours():
        params = {n: p for n, p in module.named_parameters() if n in learned}
        got = gradients(called, leaves(inputs, params, state))
    yield from expected.compare(got, dtype)


def _dtypes(trial: _Trial) -> Iterator[Comparison]:
    given = trial.given()
    got = trial.call(trial.module(torch.float32), given)
    dtypes = [x.dtype.to_real() for x in given.values() if x.dtype != torch.bool]
    results = reduce(torch.promote_types, dtypes) if dtypes else torch.float32
    computing = torch.float64 if results == torch.float64 else torch.float32
    expected = trial.expected()
    for kind, tensors, real in (("output", got[0], results), ("final state", got[1], computing)):
        for what, value in _tagged(kind, tensors).items():
            right = _like(expected.exact[what], real)
            if value.dtype != right:
                yield Comparison(f"{what}: {value.dtype} instead of {right}", math.inf, 0.0)
    # The module's params are float32 here, so nothing can be nearer than that.
    coarse = max(results, torch.float32, key=lambda d: torch.finfo(d).eps)
    yield from expected.compare(_named(got), coarse, "output")
    yield from expected.compare(_named(got), coarse if trial.subject.narrow_maps else torch.float32, "final state")


def _splits(trial: _Trial) -> Iterator[Comparison]:
    module, given = trial.module(), trial.given()
    parts: list[Tensors] = []
    state: Tensors | None = None
    for start, end in pairwise(_ends(trial.case.pieces)):
        outputs, state = trial.call(module, {n: x[:, start:end] for n, x in given.items()}, state)
        parts.append(outputs)
    yield from trial.expected().compare(_named((_joined(parts), state or {})), trial.case.dtype)


def _steps(trial: _Trial) -> Iterator[Comparison]:
    module, given = trial.module(), trial.given()
    parts: list[Tensors] = []
    state: Tensors | None = None
    for t in range(trial.case.length):
        outputs, state = trial.step(module, {n: x[:, t] for n, x in given.items()}, state)
        parts.append({n: y.unsqueeze(1) for n, y in outputs.items()})
    if state is not None:
        yield from trial.expected().compare(_named((_joined(parts), state)), trial.case.dtype)


def _packed(trial: _Trial) -> Iterator[Comparison]:
    ends = _ends(trial.case.pieces)
    lengths = torch.tensor(ends, dtype=torch.int32, device=trial.subject.device)
    got = trial.call(trial.module(), trial.given(), cu_seqlens=lengths)
    yield from trial.expected(ends=ends).compare(_named(got), trial.case.dtype)


def _ends(pieces: Sequence[int]) -> list[int]:
    return list(accumulate(pieces, initial=0))


def _joined(parts: Sequence[Tensors]) -> Tensors:
    return {name: torch.cat([p[name] for p in parts], 1) for name in parts[0]}


def _same(pick: random.Random, case: Case) -> Case:
    return case


def _odd(pick: random.Random, case: Case) -> Case:
    return replace(case, batch=pick.choice((0, 1, 2)), pieces=(pick.choice((0, 1, 2, 3, 5, 7, 17, 31, 33, 65)),))


def _precision(*choices: torch.dtype) -> Callable[[random.Random, Case], Case]:
    return lambda pick, case: replace(case, dtype=pick.choice(choices))


def _pieces(pick: random.Random, case: Case) -> Case:
    return replace(case, pieces=tuple(pick.choice((0, 1, 1, 2, 3, 5)) for _ in range(pick.randint(2, 4))))


def _sequences(pick: random.Random, case: Case) -> Case:
    return replace(_pieces(pick, case), batch=1)


_ALL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
PROPERTIES = (
    Property("outputs", _same, _outputs),
    Property("final states", _same, _states),
    Property("gradients", _precision(torch.float64), _gradients),
    Property("float32 gradients", _precision(torch.float32), _gradients),
    Property("odd lengths", _odd, _states),
    Property("dtypes", _precision(*_ALL), _dtypes),
    Property("splits", _pieces, _splits),
    Property("stepping", _same, _steps),
    Property("packed sequences", _sequences, _packed),
)
