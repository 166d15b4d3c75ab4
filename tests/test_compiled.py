"""Loops in C: every operation as the interpreter has it, forward and backward; what is compiled, kept, done without."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.modules import as_tuple, build, load

ANYWHERE = (
    "-@", "abs(@)", "sign(@) * @", "square(@)", "exp(@)", "expm1(@)", "sin(@)", "cos(@)", "erf(@)", "sigmoid(@)",
    "tanh(@)",
    "logsigmoid(@)", "relu(@)", "silu(@)", "gelu(@)", "softplus(@)", "@ ** 2", "@ ** 3", "2 ** @", "clamp(@, -1, 0.5)",
    "where(@ > 0.25, sqrt(@), @)", "where(@ < 1 and not (@ < -1), @, 0)", "(@ > 0) * @ + (@ >= 1)", "max(@, 0.5)",
    "min(@, -0.5)", "3 - c * @", "@ / 3", "stop_gradient(@) * @", "where(@ == 0, 1, @)", "where(@ != 1 or @ > 3, 2, @)",
)  # fmt: skip
POSITIVE = ("sqrt(@)", "rsqrt(@)", "log(@)", "log1p(@)", "@ ** 0.5", "@ ** -1", "@ ** -0.5", "@ ** 1.7", "1 / @")
BINARY = (
    "@ + $", "@ - $", "@ * $", "@ / $", "max(@, $)", "min(@, $)", "abs(@) ** $", "@ ** 2 - $ * @",
    "logaddexp(stop_gradient(@), stop_gradient($)) + @",
)  # fmt: skip
OPERATIONS = {"anywhere": ANYWHERE, "positive": POSITIVE, "binary": BINARY}


def coupled(updates: Iterable[str], more: str = "") -> str:
    """A cell with a state for each update of `h` and `g`, all of one group."""
    updates = list(updates)
    names = [f"s{i}" for i in range(len(updates))]
    lines = ["cell Every", "dim D = 37", "const c = 0.3", "input x[D]", "state h[D], g[D]", more]
    lines += [f"state {', '.join(f'{n}[D]' for n in names)}"]
    # Zero times what they were: all need each other, and none matters to another.
    each = " + ".join(f"where({n}[t-1] > 1e30, x, 0)" for n in names)
    zero = f"sum[D]({each})"
    lines += [f"h[t] = h[t-1] + {zero}", "g[t] = g[t-1] + h[t-1]"]
    lines += [
        f"{n}[t] = {u.replace('@', 'h[t-1]').replace('$', 'g[t-1]')}" for n, u in zip(names, updates, strict=True)
    ]
    return "\n".join([*lines, *(f"output {n}[t]" for n in names), ""])


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    monkeypatch.setenv("RNNC_LOOPS", "compiled")
    monkeypatch.setenv("RNNC_CACHE", str(tmp_path_factory.getbasetemp()))
    yield


def native(module: Any) -> list[Any]:
    """The loops in C of a module."""
    return [v for k, v in vars(module).items() if k.endswith("_native") and hasattr(v, "libraries")]


def libraries(module: Any) -> list[Any]:
    return [x for n in native(module) for x in n.libraries.values()]


NUMBERS = [0.0, -0.0, 1e-8, -1e-8, 0.3, -0.3, 0.5, 0.7, -0.7, 1.0, -1.0, 2.5, -2.5, 9.0, -9.0, 17.3, -17.3, 60.0, -60.0]
NUMBERS += [88.5, -88.5, 95.0, -103.0, 150.0, -150.0, 1e4, -1e4, 1e-30, -1e-30, 1e30, -1e30, 1e-40, 3e38, 0.9999]
NUMBERS += [1.0001, -0.9999, 6.25]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("group", OPERATIONS)
def test_operations(group: str, dtype: torch.dtype) -> None:
    """To a few roundings; infinities and NaN where the interpreter has them in this dtype. A gradient is that of all
    states, so it is looked at where all have one."""
    updates = OPERATIONS[group]
    text = coupled(updates)
    h = torch.tensor(NUMBERS, dtype=torch.float64)
    pairs = [torch.stack([h, h.roll(k)]).to(dtype) for k in (0, 1, 5, 11)]
    results: list[tuple[list[Tensor], list[Tensor]]] = []
    for backend, kind in (("auto", dtype), ("reference", dtype), ("reference", torch.float64)):
        cell = build(text, D=len(NUMBERS), backend=backend, dtype=kind)
        a, b = torch.stack(pairs, 1).to(kind).requires_grad_()
        state = cell.initial_state(len(pairs), dtype=kind)._replace(h=a, g=b)
        outputs = as_tuple(cell(torch.zeros(len(pairs), 1, len(NUMBERS), dtype=kind), state=state)[0])
        grads = [torch.autograd.grad(y.sum(), (a, b), retain_graph=True, allow_unused=True) for y in outputs]
        zero = torch.zeros_like(a)
        results.append(([y[:, 0] for y in outputs], [zero if g is None else g for pair in grads for g in pair]))
    assert libraries(load(text)) and all(libraries(load(text)))
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    (_, _), (_, grads), (_, _) = results
    smooth = torch.stack(grads).isfinite().all(0)
    assert smooth.sum() > 40
    for k in (0, 1):
        labels = updates if k == 0 else [f"d {u}, {of}" for u in updates for of in "@$"]
        for label, got, same, want in zip(labels, results[0][k], results[1][k], results[2][k], strict=True):
            plain = want.isfinite() & same.isfinite()
            # What no number of this dtype is near, and what cancels, is as good as the interpreter's own.
            # So is a slope like `1 - y ** 2`.
            close = (got - want).abs() <= 8 * eps * want.abs() + 3 * (same - want).abs() + (4 * eps if k else 16 * tiny)
            alike = (got == same) | (got.isnan() & same.isnan()) | (got.isfinite() & close)
            bad = torch.where(plain, ~close, ~alike) & (smooth if k else True)
            where = torch.stack(pairs, 1)[:, bad]
            assert not bad.any(), (label, where, got[bad], same[bad], want[bad])
