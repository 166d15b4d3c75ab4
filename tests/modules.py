"""Programs as generated modules at small sizes, and what the tests of them share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from backends.reference import Interpreter
from rnnc.ir import Cell, Interval, Lit
from rnnc.loading import load_module
from rnnc.pipeline import compile_source, module_text
from rnnc.source import Source
from tests.cells import EXAMPLES


@dataclass(frozen=True)
class Program:
    """A text with one cell, and small sizes for it."""

    text: str
    sizes: dict[str, int] = field(default_factory=dict)


def _example(stem: str, **sizes: int) -> Program:
    return Program((EXAMPLES / f"{stem}.rnn").read_text(encoding="utf-8"), sizes)


LAGS = """\
cell Lags
dim D = 3
input x[D], y[D]
param w[D] = uniform(0.1, 0.4)
u = tanh(x) + x[t-2]
state h[D] = param
state e[D] = w
state r[D]
h[t] = 0.5 * h[t-1] - w * h[t-2] + u
e[t] = w * e[t-1] + u[t-1] * y[t-3]
r[t] = tanh(r[t-1] + e[t-1] - w * r[t-3])
output h[t] + e[t-2]
output r[t]
"""
MIXED = """\
cell Mixed
\"""Bools in and out, complex values, params and consts inside a loop, and one output that no token changes.\"""
dim D = 3, N = 2
const c in (0, 1] = 0.5, shift = 0.25
input x[D], z[N]: complex, keep: bool, g[D] in [0, 1]
param w[D] = normal(0.4)
param λ[N]: complex = 0.4 + 0.3j
buffer order[D] = arange[D](1)
state h[D] = 0.5
state s[N]: complex
h[t] = where(keep, c * tanh(g * h[t-1] + linear(h[t-1] -> D)), shift) + w * x / order
s[t] = where(keep, λ, 0) * s[t-1] + z
output h[t]
output big = x > 0 and keep
output s[t]
output power = sum[N](real(s[t] * conj(s[t])))
output still = w
"""
SCAN = "cell Scan\ndim D = 3\ninput a[D] in [0, 1], b[D]\nstate h[D]\nh[t] = a * h[t-1] + b\noutput h[t]\n"
PROGRAMS = {
    "scan": Program(SCAN),
    "lags": Program(LAGS),
    "mixed": Program(MIXED),
    "mingru": _example("mingru", D=4),
    "gru": _example("gru", D=3),
    "lstm": _example("lstm", D=4, H=2),
    "mamba": _example("mamba", E=3, N=2),
    "mlstm": _example("mlstm", H=2, K=3, V=2),
    "kalman": _example("kalman", D=3),
    "leakypeak": _example("leakypeak", D=3),
    "deltaproduct": _example("deltaproduct", J=2, H=2, K=3, V=2),
    "gateddeltanet": _example("gateddeltanet", D=4, H=2, K=2, V=3),
    "titanslinear": _example("titanslinear", H=2, K=2, V=3),
    "s5reset": _example("s5reset", D=3, N=2),
}


@cache
def checked(text: str) -> Cell:
    """The cell of a text in the IR."""
    cell = compile_source(Source("test.rnn", text), until="ir")[0].cell
    assert cell is not None
    return cell


@cache
def generate(text: str) -> str:
    """The generated file."""
    source = Source("test.rnn", text)
    return module_text(compile_source(source), source)


def load(text: str) -> ModuleType:
    """The generated module of all cells of a text."""
    return load_module(generate(text), "test.rnn")


def build(text: str, **options: Any) -> Any:
    """An instance of the only cell of a text, its parameters always the same."""
    torch.manual_seed(1)
    return getattr(load(text), checked(text).name)(**options)


def make(name: str, **options: Any) -> Any:
    """An instance of a program of the table."""
    program = PROGRAMS[name]
    return build(program.text, **{"dtype": torch.float64, **program.sizes, **options})


class Interpreted(nn.Module):
    """The interpreter of a text's only cell, called as the generated module is, with the same parameters.

    Unlike a module with `backend="reference"`, which steps its own equations, nothing of it is generated.
    """

    def __init__(self, text: str, **sizes: int) -> None:
        super().__init__()
        self.inner = build(text, dtype=torch.float64, **sizes)
        cell = checked(text)
        known = {d.name: getattr(self.inner, d.name) for d in cell.dims}
        self.interpreter = Interpreter(cell, {d.name: known[d.name] for d in cell.dims if isinstance(d.size, int)})
        for name, size in known.items():
            setattr(self, name, size)

    def initial_state(self, batch: int, **options: Any) -> Any:
        return self.inner.initial_state(batch, **options)

    def forward(self, *inputs: Tensor, state: Any = None, cu_seqlens: Tensor | None = None) -> tuple[Any, Any]:
        params = {**dict(self.inner.named_parameters()), **dict(self.inner.named_buffers())}
        outputs, last = self.interpreter.run(inputs, params, state and state._asdict(), cu_seqlens)
        kind = type(self.initial_state(1))
        single, *more = outputs
        return (outputs if more else single), kind(*(last[n] for n in kind._fields))


def draw(
    name: str, *lead: int, seed: int = 0, dtype: torch.dtype = torch.float64, requires_grad: bool = False
) -> list[Tensor]:
    """Inputs `[*lead, ...]` of a program of the table, within their ranges."""
    program = PROGRAMS[name]
    return draw_for(checked(program.text), make(name), *lead, seed=seed, dtype=dtype, requires_grad=requires_grad)


def draw_for(
    cell: Cell,
    module: nn.Module,
    *lead: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    requires_grad: bool = False,
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    out: list[Tensor] = []
    for i in cell.inputs:
        shape = [*lead, *(getattr(module, d) for d in i.type.dims)]
        x, y = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
        if i.type.kind == "bool":
            out.append(x > -0.5)
            continue
        if i.type.kind == "complex":
            x = torch.complex(x, y).to(dtype.to_complex())
        elif isinstance(i.region, Interval):
            assert isinstance(i.region.hi, Lit)
            x = (torch.sigmoid(x) if i.region.hi.value == 1 else x.abs() + 0.1).to(dtype)
        out.append(x.to(dtype.to_complex() if x.is_complex() else dtype).requires_grad_(requires_grad))
    return out


def some_state(module: Any, batch: int, seed: int = 0) -> Any:
    """A state that is not the initial one, with gradients; what is infinite stays."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        state = module.initial_state(batch, dtype=torch.float64)
        values = [s + 0.2 * torch.rand(s.shape, generator=generator, dtype=torch.float64) for s in state]
    return type(state)(*(v.requires_grad_() for v in values))


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return tuple(outputs) if isinstance(outputs, tuple) else (outputs,)


def tensors(result: tuple[Any, Any]) -> list[Tensor]:
    """All outputs and final states of a call."""
    outputs, state = result
    return [*as_tuple(outputs), *state]


def gradients(values: Iterable[Tensor], leaves: Iterable[Tensor]) -> list[Tensor]:
    """Gradients of a sum with fixed weights of all finite entries."""
    generator = torch.Generator().manual_seed(9)
    total = torch.zeros((), dtype=torch.float64)
    for value in values:
        if value.dtype == torch.bool:
            continue
        for part in (value.real, value.imag) if value.is_complex() else (value,):
            weights = torch.randn(part.shape, generator=generator, dtype=torch.float64)
            total = total + (torch.where(part.isfinite(), part, 0.0) * weights).sum()
    leaves = [x for x in leaves if x.requires_grad]
    grads = torch.autograd.grad(total, leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)]


def with_gradients(module: nn.Module, result: tuple[Any, Any], *leaves: Tensor) -> list[Tensor]:
    """All values of a call, then its gradients: of parameters, and of `leaves`."""
    values = tensors(result)
    return [*(v.detach() for v in values), *gradients(values, [*module.parameters(), *leaves])]


def agree(
    got: Iterable[Tensor], want: Iterable[Tensor], rtol: float = 1e-9, atol: float = 1e-10, dtype: bool = True
) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=False, check_dtype=dtype)
