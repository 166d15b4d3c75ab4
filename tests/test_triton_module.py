"""What modules with kernels promise beside their values, under Triton's interpreter.

Run with `TRITON_INTERPRET=1 pytest -m triton`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 from the start of the process", allow_module_level=True)

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from tests.cells import EXAMPLES
from tests.interpreted import install
from tests.marks import some
from tests.modules import PROGRAMS, agree, as_tuple, build, checked, draw, make, some_state, tensors, with_gradients

install()
pytestmark = [pytest.mark.triton, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

NAMES = ("scan", "mingru", "mamba", "mlstm", "kalman", "leakypeak", "s5reset", "mixed")
every = pytest.mark.parametrize("name", NAMES)
MOST = [n for n in NAMES if n != "mlstm"]  # which takes seconds a call
most = pytest.mark.parametrize("name", MOST)
GRAPHS = [(name, packed) for name in ("mingru", "mamba", "kalman", "s5reset") for packed in (False, True)]
HGRN_LIKE = """\
cell Hgrn
dim D = 4
input f[D], c[D], o[D]
param lower[D] = uniform(0, 0.5)
state h[D]
a = sigmoid(lower) + (1 - sigmoid(lower)) * sigmoid(f)
h[t] = a * h[t-1] + (1 - a) * silu(c)
output silu(o) * h[t]
"""


class Launches:
    """Counts the launches of a module's kernels."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
        self.names: list[str] = []
        start = module._start

        def counting(launch: Any, kernel: Any, *rest: Any) -> None:
            self.names.append(kernel.__name__)
            start(launch, kernel, *rest)

        monkeypatch.setattr(module, "_start", counting)


def module_of(cell: Any) -> Any:
    return sys.modules[type(cell).__module__]


# --- which backend ---


@every
def test_auto_is_triton_under_its_interpreter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, inputs = make(name), draw(name, 2, 5, requires_grad=True)
    seen = Launches(monkeypatch, module_of(cell))
    assert cell.backend == "auto" and "triton" in " ".join(cell.plan.values())
    want = with_gradients(cell, cell(*inputs), *inputs)
    # Chunks in float64 are PyTorch's, and CUDA has no interpreter.
    kernels = sum(form.startswith("fused") for form in cell._fused_kernels.values())
    assert sum(n.endswith("_forward") for n in seen.names) == kernels
    assert sum(n.endswith("_backward") for n in seen.names) == kernels
    for backend in ("torch", "reference"):
        seen.names.clear()
        other = make(name, backend=backend)
        agree(with_gradients(other, other(*inputs), *inputs), want)
        assert seen.names == [] and "triton" not in " ".join(other.plan.values())


def test_a_cell_without_kernels_has_no_such_backend() -> None:
    with pytest.raises(ValueError, match="triton"):
        make("gru", backend="triton")


def run(script: str, tmp_path: Path, **environment: str) -> str:
    """What a script prints in a process of its own, without TRITON_INTERPRET unless it is given."""
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    kept |= {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), "CUDA_VISIBLE_DEVICES": "", **environment}
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], env=kept, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


CALL = """
import torch
from tests.modules import draw, make, tensors, with_gradients
inputs = draw("mingru", 2, 5, requires_grad=True)
cell = make("mingru")
values = with_gradients(cell, cell(*inputs), *inputs)
other = make("mingru", backend="reference")
for got, want in zip(values, with_gradients(other, other(*inputs), *inputs)):
    torch.testing.assert_close(got, want)
try:
    make("mingru", backend="triton")(*inputs)
except RuntimeError as error:
    print(error)
"""
BLOCKED = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def test_without_a_gpu_auto_is_torch_and_triton_is_refused(tmp_path: Path) -> None:
    said = run(CALL, tmp_path)
    assert 'backend="triton"' in said and "GPU" in said and "TRITON_INTERPRET=1" in said


def test_without_triton_auto_is_torch_and_triton_is_refused(tmp_path: Path) -> None:
    assert "not installed" in run(BLOCKED + CALL, tmp_path)


# --- operators ---


class Calls(TorchDispatchMode):
    """Records the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def fresh(value: Any, requires_grad: bool) -> Any:
    """Arguments of an operator as leaves."""
    if isinstance(value, list | tuple):
        return [fresh(v, requires_grad) for v in value]
    if isinstance(value, Tensor):
        value = value.detach().clone()
        return value.requires_grad_(requires_grad and (value.is_floating_point() or value.is_complex()))
    return value


@every
@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(name: str, packed: bool) -> None:
    cell, inputs = make(name), draw(name, 1, 5, requires_grad=True)
    with Calls() as seen:
        with_gradients(cell, cell(*inputs, cu_seqlens=torch.tensor([0, 2, 5]) if packed else None), *inputs)
    own = {f.name(): (f, args) for f, args in seen.calls if f.namespace == module_of(cell)._OPERATORS}
    assert sum("fused" in n for n in own) == 2 * sum(f.startswith("fused") for f in cell._fused_kernels.values())
    for n, (operator, args) in own.items():
        if "fused" in n:
            torch.library.opcheck(operator, tuple(fresh(a, "_backward" not in n) for a in args))


@most
def test_operations_do_not_grow_with_length(name: str) -> None:
    cell = make(name)
    counts: list[int] = []
    for length in (8, 40):
        inputs = draw(name, 1, length, requires_grad=True)
        with Calls() as seen:
            with_gradients(cell, cell(*inputs), *inputs)
        counts.append(len(seen.calls))
    assert counts[0] == counts[1]


def size(values: Any) -> int:
    """Bytes of the tensors among arguments."""
    if isinstance(values, list | tuple):
        return sum(size(v) for v in values)
    return values.numel() * values.element_size() if isinstance(values, Tensor) else 0


@pytest.mark.parametrize("name", ["scan", "mingru", "mamba", "s5reset", "hgrn", "lru"])
def test_bytes_saved_for_the_backward(name: str) -> None:
    """At most 1.05 times what a kernel reads and its states at all tokens."""
    if name in PROGRAMS:
        cell, inputs = make(name, dtype=torch.float32), draw(name, 2, 200, dtype=torch.float32, requires_grad=True)
    else:
        text = HGRN_LIKE if name == "hgrn" else (EXAMPLES / "lru.rnn").read_text(encoding="utf-8")
        cell = build(text, **({} if name == "hgrn" else {"D": 4, "N": 8}))
        inputs = [torch.randn(2, 200, 4).requires_grad_() for _ in checked(text).inputs]
    with Calls() as seen:
        cell(*inputs)
    own = [c for c in seen.calls if c[0].namespace == module_of(cell)._OPERATORS]
    ((operator, args),) = [c for c in own if "::fused" in c[0].name()]
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        operator(*fresh(args, True))
    states = 200 * size([getattr(cell.initial_state(2), n) for n in " ".join(cell._fused_kernels).split(", ")])
    assert size(kept) <= 1.05 * (size(args) + states)


# --- memory ---


@pytest.fixture
def poisoned() -> Iterator[None]:
    """New memory is filled with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", some(["scan", "mamba", "leakypeak"], MOST))
def test_no_memory_is_read_that_was_not_written(name: str, monkeypatch: pytest.MonkeyPatch, poisoned: None) -> None:
    length = 41 if name in ("mlstm", "mamba") else 70
    cell, inputs = make(name), draw(name, 1, length, requires_grad=True)
    state = some_state(cell, 1)
    for count in (1, 3):
        monkeypatch.setattr(module_of(cell), "_segments", lambda *_, count=count: count)
        got = with_gradients(cell, cell(*inputs, state=state), *inputs, *state)
        other = make(name, backend="reference")
        agree(got, with_gradients(other, other(*inputs, state=state), *inputs, *state), 1e-8, 1e-9)
        one = [x[:1].detach().requires_grad_(x.requires_grad) for x in inputs]
        packed = with_gradients(cell, cell(*one, cu_seqlens=torch.tensor([0, 0, 1, length])), *one)
        assert not any(v.isnan().any() for v in packed)


@most
def test_the_same_bits_twice(name: str) -> None:
    cell, inputs = make(name, dtype=torch.float32), draw(name, 2, 20, dtype=torch.float32, requires_grad=True)
    first = with_gradients(cell, cell(*inputs), *inputs)
    agree(with_gradients(cell, cell(*inputs), *inputs), first, 0, 0)


@pytest.mark.parametrize("name", some(["scan", "mamba", "mixed"], MOST))
def test_any_strides(name: str) -> None:
    cell, inputs = make(name), draw(name, 2, 6)
    variants = [
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: torch.cat([x, x], 1)[:, :6],
        lambda x: torch.stack([x, x], 2)[:, :, 1],
        lambda x: x.flip(1).flip(1),
    ]

    def called(values: list[Tensor]) -> list[Tensor]:
        leaves = [v.detach().requires_grad_(v.dtype != torch.bool) for v in values]
        return with_gradients(cell, cell(*leaves), *leaves)

    want = called(inputs)
    for variant in variants:
        agree(called([variant(x) for x in inputs]), want)
    stretched = [x[:1, :1].expand_as(x) for x in inputs]
    agree(called(stretched), called([x.contiguous() for x in stretched]))
    # Gradients that arrive come in any strides, too.
    leaves = [x.detach().requires_grad_(x.dtype != torch.bool) for x in inputs]
    got = [o for o in as_tuple(cell(*leaves)[0]) if o.requires_grad and not o.is_complex()]
    asked = [x for x in leaves if x.requires_grad]
    grads = torch.autograd.grad([o.sum() for o in got], asked, retain_graph=True, allow_unused=True)  # expanded
    again = torch.autograd.grad(got, asked, [torch.ones_like(o) for o in got], allow_unused=True)
    agree([g for g in grads if g is not None], [g for g in again if g is not None])


# --- how it is called ---


@every
def test_a_step_goes_on_where_kernels_stopped(name: str) -> None:
    cell, inputs = make(name), draw(name, 2, 9)
    whole, last = cell(*inputs)
    _, state = cell(*(x[:, :8] for x in inputs))
    stepped, after = cell.step(*(x[:, 8] for x in inputs), state)
    agree([*as_tuple(stepped), *after], [*(o[:, 8] for o in as_tuple(whole)), *last])


@pytest.mark.parametrize(("name", "packed"), some([("mingru", False), ("mamba", True)], GRAPHS))
def test_compile_in_one_graph(name: str, packed: bool) -> None:
    torch._dynamo.reset()
    cell, inputs = make(name), draw(name, 1, 7, requires_grad=True)
    ends = torch.tensor([0, 3, 3, 7]) if packed else None
    want = with_gradients(cell, cell(*inputs, cu_seqlens=ends), *inputs)
    faster = torch.compile(cell, fullgraph=True, backend="aot_eager")
    agree(with_gradients(cell, faster(*inputs, cu_seqlens=ends), *inputs), want)


@most
def test_checkpointing(name: str) -> None:
    cell, inputs = make(name), draw(name, 2, 7, requires_grad=True)
    want = with_gradients(cell, cell(*inputs), *inputs)
    agree(with_gradients(cell, checkpoint(cell, *inputs, use_reentrant=False), *inputs), want)


@pytest.mark.parametrize("name", ["mingru", "mamba", "s5reset", "kalman"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes_come_and_go(name: str, dtype: torch.dtype) -> None:
    """16-bit inputs with float32 parameters: outputs and gradients as the inputs, states in float32; autocast."""
    cell, inputs = make(name, dtype=torch.float32), draw(name, 2, 5, dtype=torch.float32)
    low = [x if x.dtype == torch.bool else x.to(dtype).requires_grad_() for x in inputs]
    outputs, final = cell(*low)
    assert all(o.dtype == dtype for o in as_tuple(outputs))
    assert all(s.dtype in (torch.float32, torch.complex64) for s in final)
    grads = torch.autograd.grad(as_tuple(outputs)[0].sum(), [x for x in low if x.requires_grad])
    assert all(g.dtype == dtype for g in grads)
    want = make(name, dtype=torch.float32, backend="torch")(*inputs)
    with torch.autocast("cpu", dtype):
        got = cell(*inputs)
    assert [v.dtype for v in tensors(got)] == [v.dtype for v in tensors(want)]
    agree(tensors(got), tensors(want), 0.05, 0.05)
