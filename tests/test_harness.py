"""What `rnnc test` finds: nothing where a module is the interpreter itself, and each kind of mistake elsewhere."""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backends.reference import Interpreter
from rnnc.check import check
from rnnc.cli import main
from rnnc.harness import PROPERTIES, Result, Subject, properties
from rnnc.ir import Cell
from rnnc.loading import load_module
from rnnc.parse import parse
from rnnc.pipeline import Compilation, compile_source, module_text
from rnnc.rounding import compare
from rnnc.source import Source
from tests.marks import some, without

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


class Oracle(nn.Module):
    """The interpreter in the clothes of a generated module."""

    def __init__(self, cell: Cell, device: str, dtype: torch.dtype, **sizes: int) -> None:
        super().__init__()
        self.cell, self.oracle = cell, Interpreter(cell, sizes, dtype=None, device=device)
        for name, value in Interpreter(cell, sizes, dtype=dtype).init_params().items():
            if cell.param(name).learned:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        self.State = namedtuple("State", [f.name for f in self.oracle.fields])
        self.Output = namedtuple("Output", [o.name for o in cell.outputs])

    def tensors(self) -> dict[str, Tensor]:
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def initial_state(self, batch: int) -> Any:
        return self.State(**self.oracle.initial_state(self.tensors(), batch))

    def forward(self, *inputs: Tensor, state: Any = None, cu_seqlens: Tensor | None = None) -> Any:
        ends = None if cu_seqlens is None else cu_seqlens.tolist()
        outputs, final = self.oracle.run(inputs, self.tensors(), state, ends)
        return (outputs[0] if len(outputs) == 1 else self.Output(*outputs)), self.State(**final)

    def step(self, *arguments: Any) -> Any:
        *inputs, state = arguments
        outputs, final = self.oracle.run([x.unsqueeze(1) for x in inputs], self.tensors(), state)
        first = [y.squeeze(1) for y in outputs]
        return (first[0] if len(first) == 1 else self.Output(*first)), self.State(**final)


def load(name: str) -> Cell:
    return checked((EXAMPLES / f"{name}.rnn").read_text())


def checked(text: str) -> Cell:
    source = Source("cell.rnn", text)
    cell, _ = check(parse(source).cells[0], source)
    assert cell is not None
    return cell


def results(cell: Cell, build: Callable[..., nn.Module], cases: int = 4) -> dict[str, Result]:
    return {r.name: r for r in (one() for one in properties(Subject(cell, build), cases))}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.rnn")), ids=lambda p: p.stem)
def test_the_interpreter_passes(path: Path) -> None:
    cell = load(path.stem)
    found = results(cell, lambda **sizes: Oracle(cell, **sizes), 2)
    assert list(found) == [p.name for p in PROPERTIES]
    assert {name: r.failure for name, r in found.items() if r.failure} == {}


def test_a_wrong_gradient() -> None:
    cell = load("mingru")

    class Wrong(Oracle):
        def forward(self, *inputs: Tensor, state: Any = None, cu_seqlens: Tensor | None = None) -> Any:
            y, final = super().forward(*inputs, state=state, cu_seqlens=cu_seqlens)
            if y.requires_grad:
                y.register_hook(lambda g: g * 1.001)
            return y, final

    found = results(cell, lambda **sizes: Wrong(cell, **sizes))
    failed = {name: r.failure for name, r in found.items() if r.failure}
    assert set(failed) == {"gradients", "float32 gradients"}
    case = failed["gradients"].case
    assert case.batch == 1 and case.length == 1 and set(case.sizes.values()) == {1}


def test_what_no_number_of_the_dtype_is_as_large_as() -> None:
    want = torch.tensor([70000.0, -70000.0, 60000.0], dtype=torch.float64)
    samples = [(want, torch.finfo(torch.float32).eps)]

    def failed(*values: float) -> bool:
        return compare("y", torch.tensor(values, dtype=torch.float16), want, samples, torch.float16).failed

    inf = float("inf")
    assert not failed(inf, -inf, 60000.0)
    assert failed(inf, inf, 60000.0) and failed(inf, -inf, inf) and failed(1.0, -inf, 60000.0)


def test_a_state_that_is_not_carried() -> None:
    cell = load("mingru")

    class Forgetful(Oracle):
        def forward(self, *inputs: Tensor, state: Any = None, cu_seqlens: Tensor | None = None) -> Any:
            return super().forward(*inputs, cu_seqlens=cu_seqlens)

    failed = {n: r.failure for n, r in results(cell, lambda **s: Forgetful(cell, **s)).items() if r.failure}
    assert {"final states", "splits"} <= set(failed) and not {"outputs", "stepping", "packed sequences"} & set(failed)
    assert failed["splits"].case.pieces == (1, 0)


def test_what_raises_is_a_failure() -> None:
    cell = load("mingru")

    class Short(Oracle):
        def forward(self, *inputs: Tensor, state: Any = None, cu_seqlens: Tensor | None = None) -> Any:
            if inputs[0].shape[1] == 0:
                raise IndexError("no token")
            return super().forward(*inputs, state=state, cu_seqlens=cu_seqlens)

    found = results(cell, lambda **s: Short(cell, **s), 24)
    failure = found["odd lengths"].failure
    assert failure is not None and failure.case.length == 0 and "no token" in failure.comparison.what


# What is equal in exact arithmetic, and not in roundings: written so, and computed otherwise. The inputs are exact in
# float32 and so are their products there, so that one run in float32 shows no error at all.
REWRITTEN = {
    "cancels to nothing": (
        "1e6 * exp(tanh(x)) - 1e6 * exp(tanh(x))",
        "1e6 * exp(tanh(x) + 0.3) * exp(-0.3) - 1e6 * exp(tanh(x))",
    ),
    "cancels within a sum": (
        "sum[D](1e6 * x * y) - sum[D](1e6 * x * y)",
        "sum[D](1e6 * (x / 3) * (y * 3)) - sum[D](1e6 * x * y)",
    ),
    "exact in float32": (
        "1000 * x * y - 1000 * x * y",
        "1000 * x * (y * 0.3) / 0.3 - 1000 * x * y",
    ),
    "only its gradient cancels": (
        "1e5 * x * exp(p) + stop_gradient(x) - 1e5 * x * exp(p)",
        "1e5 * x * exp(p + x) / exp(x) + stop_gradient(x) - 1e5 * x * exp(p)",
    ),
}


@pytest.mark.parametrize("name", some(["cancels within a sum"], REWRITTEN))
def test_what_cancels_may_be_computed_otherwise(name: str) -> None:
    frame = "cell Rewritten\ndim D = 3\ninput x[D], y[D]\nparam p[D] = 0.3\nstate h[D]\nh[t] = 0.9 * h[t-1] + x\n"
    written, computed = (f"{frame}output out = {text}\noutput h[t]\n" for text in REWRITTEN[name])
    cell = checked(written)

    def failures(text: str) -> set[str]:
        other = checked(text)
        return {n for n, r in results(cell, lambda **sizes: Oracle(other, **sizes), 8).items() if r.failure}

    assert failures(computed) == set()
    assert "outputs" in failures(computed.replace("0.9 * h", "0.9000001 * h"))


# One mistake in a generated module: the example, what stands there, what stands there instead.
MUTANTS = {
    "a sign": ("mingru", "_affine(run, _scan, 1 - z, z * c", "_affine(run, _scan, 1 - z, -z * c"),
    "a gate too strong": (
        "mingru",
        "_affine(run, _scan, 1 - z, z * c",
        "_affine(run, _scan, (1 - z) * (1 + 1e-9), z * c",
    ),
    "another gate": ("lstm", "c = f * c_prev + i * z", "c = i * c_prev + i * z"),
    "another map": ("mingru", "z_in, c = _project(", "c, z_in = _project("),
    "a past too late": ("lstm", "h = o * torch.tanh(c)", "h = o * torch.tanh(c_prev)"),
    "the initial state": ("mingru", "torch.full((batch, self.D), 0.0", "torch.full((batch, self.D), 1e-9"),
    "a final state of one token earlier": ("mingru", "value[:, -1].clone()", "value[:, -2:][:, 0].clone()"),
    "the last token of a packed sequence": ("mingru", "(run.end - 1).clamp(min=0)", "(run.end - 2).clamp(min=0)"),
    "a packed sequence that goes on": ("mingru", "fresh = run.position == 0", "fresh = run.position == -1"),
    "an adjoint one token off": ("mingru", "torch.cat([later[:, 1:], zero], 1)", "torch.cat([zero, later[:, 1:]], 1)"),
    "a gradient's past one token off": ("mingru", "torch.conj_physical(h[:, :-1])", "torch.conj_physical(h[:, 1:])"),
    "an initial state without its gradient": ("mingru", "d_initial = later[:, 0]", "d_initial = 0 * later[:, 0]"),
    "a gradient that is not conjugated": ("lru", "later = torch.conj_physical(a)", "later = a.clone()"),
    "a term of a gradient dropped": (
        "lstm",
        "d_c_total = d_c + d_h * o * (1 - torch.square(value))",
        "d_c_total = d_c + d_h * o",
    ),
    "a small error in a gradient": ("lstm", "d_i = d_c_total * z", "d_i = d_c_total * z * (1 + 1e-9)"),
    "a product with another operand": (
        "lstm",
        "((h_prev, d_o_in), (h_prev, d_f_in)",
        "((h_prev, d_f_in), (h_prev, d_o_in)",
    ),
    "a sign of a gradient": ("gateddeltanet", "back=True).add_(sent[g])", "back=True).sub_(sent[g])"),
    "a history the other way round": (
        "mamba",
        "u_conv=_history(run, x, state.u_conv)",
        "u_conv=_history(run, x, state.u_conv).flip(1)",
    ),
    "an index": ("mamba", "B[..., None, :] * u[..., None], state.S", "C[..., None, :] * u[..., None], state.S"),
}


LONG = ("a sign of a gradient", "a past too late", "another gate", "an index")


@pytest.mark.parametrize("name", without(LONG, MUTANTS))
def test_mutants_are_found(name: str) -> None:
    example, right, wrong = MUTANTS[name]
    source = Source(example, (EXAMPLES / f"{example}.rnn").read_text())
    (made,) = compile_source(source)
    text = module_text([made], source, "torch")
    assert text.count(right) == 1 and made.cell is not None
    module = load_module(text.replace(right, wrong), source.name)
    found = results(made.cell, getattr(module, made.cell.name), 4)
    assert any(r.failure for r in found.values())


@pytest.mark.parametrize(
    ("interpreted", "refuses", "said", "ran"),
    [
        ("1", False, None, ["torch (cpu, float64", "triton (cpu, float32"]),
        ("1", True, "not tested: triton (no kernel for h)", ["torch (cpu, float64"]),
        (
            "0",
            False,
            "not tested: triton (there is no GPU, and TRITON_INTERPRET=1 is not set)",
            ["torch (cpu, float64"],
        ),
    ],
)
def test_every_backend_that_can_run_is_tested(
    interpreted: str,
    refuses: bool,
    said: str | None,
    ran: list[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A module that offers one more backend, which is the torch one under another name."""
    offered = '_backends = ("auto", "torch", "triton", "reference")'
    refusal = "self.backend, self.validate = backend, validate\n"
    refused = f'{refusal}        if backend == "triton":\n            raise ValueError("no kernel for h")\n'

    def more(compilations: Sequence[Compilation], source: Source) -> str:
        text = re.sub(r"_backends = \(.*\)", offered, module_text(compilations, source))
        return text.replace(refusal, refused) if refuses else text

    monkeypatch.setattr("rnnc.pipeline.module_text", more)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", interpreted)
    assert main(["test", str(EXAMPLES / "gru.rnn"), "--cases", "1"]) == 0
    shown = capfd.readouterr().out
    titles = [line for line in shown.splitlines() if line.startswith("GRU, backend ")]
    assert len(titles) == len(ran) and all(name in title for name, title in zip(ran, titles, strict=True))
    assert (said in titles[0]) if said else ("not tested" not in shown)


def test_kernels_for_a_gpu_where_there_is_none(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["test", str(EXAMPLES / "gru.rnn"), "--cases", "1"]) == 0
    shown = capfd.readouterr().out
    assert "GRU, backend torch" in shown and "not tested: cuda (there is no GPU)" in shown
