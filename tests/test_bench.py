"""`rnnc bench`: who is timed, who is not and why, what is counted, and what is written."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rnnc.pipeline
from rnnc.bench.contenders import LOOP, Subject
from rnnc.bench.peers import PEERS
from rnnc.bench.run import Bench, Row
from rnnc.cli import main
from rnnc.pipeline import Compilation, compile_source
from rnnc.source import Source
from tests.cells import EXAMPLES
from tests.modules import load

ROOT = Path(__file__).resolve().parent.parent
GATED = """\
cell Gated
dim D = 8
input zx[D], c[D]
gate z = sigmoid(zx)
state h[D]
h[t] = (1 - z) * h[t-1] + z * c
output h[t]
"""
QUICK = ("--batch", "2", "--lengths", "3,8", "--seconds", "1")
BACKENDS = ("--backends", "torch,reference")


@pytest.fixture
def gated(tmp_path: Path) -> Path:
    path = tmp_path / "gated.rnn"
    path.write_text(GATED)
    return path


def bench(
    text: str, *names: str, lengths: tuple[int, ...] = (4,), seconds: float = 1, dtype: torch.dtype = torch.float32
) -> dict[str, Row]:
    """The rows of the longest length of a run, by contender and direction."""
    source = Source("test.rnn", text)
    (made,) = compile_source(source)
    assert made.cell is not None
    run = Bench(
        Subject(made, getattr(load(text), made.cell.name), {}, torch.device("cpu"), dtype), 2, lengths, names, seconds
    )
    for step in run.steps():
        step()
    return {f"{row.contender} {row.direction}": row for row in run.rows if row.length == max(lengths)}


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_table_json_and_a_plot(gated: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = gated.parent / "out.json", gated.parent / "out.png"
    command = ["bench", str(gated), *QUICK, *BACKENDS, "--set", "D=5", "--json", str(files[0]), "--plot", str(files[1])]
    assert main(command) == 0
    captured = capfd.readouterr()
    assert captured.err == "" and "Gated: B 2, D 5, float32" in captured.out
    lines = [line.split() for line in captured.out.splitlines() if line.startswith("  ")]
    assert [line[:2] for line in lines] == [[name, t] for t in ("3", "8") for name in ("torch", "reference")] * 2
    found = json.loads(files[0].read_text())
    assert found["machine"]["torch"] == torch.__version__ and found["sizes"] == {"D": 5} and found["batch"] == 2
    for row in found["results"]:
        assert row["reason"] == "" and row["runs"] >= 3 and row["ms_20"] <= row["ms"] <= row["ms_80"]
        assert row["tokens_per_s"] == pytest.approx(2 * row["T"] / row["ms"] * 1e3)
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["ms"] / 1e6)
        assert row["percent_of_copy"] == pytest.approx(100 * row["gb_per_s"] / found["copy"]["gb_per_s"])
    assert files[1].read_bytes().startswith(b"\x89PNG")


def test_fields_of_the_json_are_documented(gated: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = gated.parent / "out.json"
    assert main(["bench", str(gated), *QUICK, *BACKENDS, "--json", str(target)]) == 0
    found, page = json.loads(target.read_text()), (ROOT / "docs" / "bench.md").read_text("utf-8")
    for name in (*found, *found["copy"], *found["results"][0]):
        assert f"`{name}`" in page, name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backends", "torch,cuda"], "no such backend: cuda (valid: "),
        (["--set", "E=4"], "no `E` to set; it has D"),
        (["--set", "D"], "not NAME=NUMBER"),
        (["--set", "D=0.5"], "0.5"),
        (["--lengths", "4,x"], "'x'"),
        (["--device", "cuda:99"], "cannot run on cuda:99"),
        (["--device", "abacus"], "cannot run on abacus"),
        (["--dtype", "int8"], "int8"),
        (["--json", "none/out.json"], "no such folder: none"),
        (["--plot", "."], "it is a folder"),
        (["--json", "gated.rnn"], "itself the program"),
    ],
)
def test_a_wrong_command_line(
    arguments: list[str], said: str, gated: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(gated.parent)
    assert main(["bench", "gated.rnn", *QUICK, *arguments]) == 2
    captured = capfd.readouterr()
    assert said in captured.err and captured.out == ""
    assert os.listdir() == ["gated.rnn"]


def test_a_wrong_program(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.rnn").write_text(GATED.replace("* c", "* d"))
    assert main(["bench", str(tmp_path / "wrong.rnn"), *QUICK]) == 1
    (tmp_path / "two.rnn").write_text(GATED + GATED.replace("Gated", "Other"))
    assert main(["bench", str(tmp_path / "two.rnn"), *QUICK]) == 2
    assert "--cell" in capfd.readouterr().err
    assert main(["bench", str(tmp_path / "two.rnn"), *QUICK, *BACKENDS, "--cell", "Other"]) == 0


def test_help_has_examples_and_exit_statuses(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    text = capfd.readouterr().out
    assert "  rnnc bench gla.rnn" in text and "exit status:" in text


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_an_interrupt_leaves_the_old_file(option: str, gated: Path) -> None:
    target = gated.parent / "out"
    target.write_text("old")
    stall = (
        "import os, signal, time; signal.signal(signal.SIGINT, signal.SIG_DFL)\n"  # whoever started us may ignore it
        "os.fsync = lambda _: (print('written', flush=True), time.sleep(60))\n"
        "from rnnc.cli import main; main()"
    )
    command = [sys.executable, "-c", stall, "bench", str(gated), *QUICK, *BACKENDS, option, str(target)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        while b"written" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        assert len(os.listdir(gated.parent)) == 3
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
        assert process.stderr.read() == b""
    assert target.read_text() == "old" and sorted(os.listdir(gated.parent)) == ["gated.rnn", "out"]


# --- who is timed ----------------------------------------------------------------------------------------------------


def test_what_computes_something_else_is_not_timed(
    gated: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = rnnc.pipeline.module_text

    def broken(compilations: Sequence[Compilation], source: Source) -> str:
        return right(compilations, source).replace("torch.sigmoid(", "torch.tanh(")

    monkeypatch.setattr(rnnc.pipeline, "module_text", broken)
    assert main(["bench", str(gated), *QUICK, *BACKENDS]) == 0
    text = capfd.readouterr().out
    assert re.search(r"torch +wrong: output 1 is .* instead of ", text) and "tokens/s" not in text


def test_a_wrong_gradient_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def scan(a: Tensor, b: Tensor) -> Tensor:
        return straight(a.detach(), b)

    monkeypatch.setitem(PEERS, "detached", lambda: scan)  # type: ignore[arg-type]
    row = bench(GATED, "detached")["detached both"]
    assert row.timing is None and re.match(r"wrong: gradient 1 is .* instead of ", row.reason)


def test_a_loop_that_cannot_be_compiled_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def call(*_: Any) -> Any:
            raise RuntimeError("no compiler\n  was found")

        return call

    monkeypatch.setattr(torch, "compile", compile)
    rows = bench(GATED, LOOP, "torch")
    assert rows[f"{LOOP} both"].reason == "RuntimeError: no compiler was found" and rows["torch both"].timing


def test_the_compiled_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    whole: Any = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: whole(f, backend="eager", **options))
    rows = bench(GATED, LOOP, lengths=(3, 19))
    assert rows[f"{LOOP} forward"].timing and rows[f"{LOOP} both"].timing
    torch._dynamo.reset()


def test_what_takes_too_long_is_not_timed() -> None:
    rows = bench(GATED, "torch", lengths=(2, 1000), seconds=1e-7)
    assert rows["torch both"].timing is None and rows["torch both"].reason == "no time left for it"


def test_every_backend_of_the_module_is_found() -> None:
    source = Source("test.rnn", GATED)
    (made,) = compile_source(source)
    module = load(GATED)
    subject = Subject(made, module.Gated, {}, torch.device("cpu"), torch.float32)
    assert {*module.Gated._backends} - {"auto"} < {*subject.builders()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_bytes_that_must_move(dtype: torch.dtype) -> None:
    """The three tensors of a gated cell forward, and six more for the backward."""
    rows = bench(GATED, "torch", dtype=dtype)
    tensor = 2 * 4 * 8 * dtype.itemsize
    assert rows["torch forward"].bytes == 3 * tensor and rows["torch both"].bytes == 9 * tensor


def test_bytes_of_parameters_and_of_hidden_states() -> None:
    text = "cell P\ndim D = 8\ninput x[D], go: bool\nparam w[D] = ones\nstate h[D]\nstate k: complex\n"
    text += "h[t] = where(go, w, 0) * h[t-1] + x\nk[t] = 0.5 * k[t-1] + 1\noutput y = h[t] + 1\noutput k[t]\n"
    rows = bench(text, "torch")
    tokens, weight = 2 * 4, 8 * 4
    assert rows["torch forward"].bytes == tokens * (32 + 1 + 32 + 8) + weight
    # Inputs again, gradients of outputs, the trajectory of `k` but not of `h`, gradients of `x` and of `w`.
    assert rows["torch both"].bytes - rows["torch forward"].bytes == tokens * (33 + 40 + 8 + 32) + 2 * weight


# --- peers -----------------------------------------------------------------------------------------------------------


def straight(a: Tensor, b: Tensor) -> Tensor:
    steps: list[Tensor] = []
    for t in range(b.shape[1]):
        steps.append(a[:, t] * steps[-1] + b[:, t] if steps else b[:, t])
    return torch.stack(steps, 1)


@pytest.mark.parametrize(
    ("stem", "fits"),
    [
        *((stem, "") for stem in ("mingru", "minlstm", "lru", "s5reset", "mamba2", "gla")),
        ("gru", "does not apply: `h` is no elementwise affine recurrence"),
        ("mlstm", "does not apply: `m` "),
        ("kalman", "does not apply: "),
        ("mamba", "does not apply: parts of the cell other than its recurrences read the past"),
    ],
)
def test_a_scan_of_others_computes_the_cell(stem: str, fits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "straight", lambda: straight)  # type: ignore[arg-type]
    text = re.sub(r"\b(D|E|N|K|V|P) = \d+", r"\1 = 4", (EXAMPLES / f"{stem}.rnn").read_text("utf-8"))
    row = bench(text, "straight")["straight both"]
    assert row.reason.startswith(fits) and bool(row.timing) == (not fits)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_that_is_missing_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, package: str | None = None) -> Any:
        if name.startswith(("fla", "accelerated_scan")):
            raise ModuleNotFoundError(name)
        return found(name, package)

    found = importlib.import_module
    monkeypatch.setattr("rnnc.bench.peers.import_module", missing)
    assert bench(GATED, name)[f"{name} both"].reason == "not installed"


# --- benchmarks/ -----------------------------------------------------------------------------------------------------


def test_a_comparison_on_a_cpu(tmp_path: Path) -> None:
    target = tmp_path / "lru.json"
    command = [sys.executable, ROOT / "benchmarks" / "lru.py", "--device", "cpu", "--quick", "--json", target]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (case,) = json.loads(target.read_text())["cases"]
    results = {result["name"]: result for result in case["results"]}
    assert case["forward_bytes"] == 2 * 64 * 16 * 8 * 2 + 2 * 16 * 4
    for name in ("rnnc torch", "torch.fft convolution"):
        own = results[name]
        assert own["reason"] == "" and own["error_forward"] < 1e-5 and max(own["error_gradients"]) < 1e-4
        assert own["backward"]["percent_of_copy"] == pytest.approx(
            100 * case["backward_bytes"] / own["backward"]["ms"] / 1e6 / case["copy"]
        )
        assert f"| {name} | {own['forward']['ms']:.4g} | " in done.stdout
    missing = results["accelerated-scan (Triton, complex)"]
    assert "forward" not in missing and f"| {missing['name']} | {missing['reason']} |" in done.stdout


def test_a_wrong_or_late_peer_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    harness: Any = importlib.import_module("harness")

    def broken() -> Callable[..., Tensor]:
        return lambda zx, c: straight(1 - torch.sigmoid(zx), torch.sigmoid(zx.detach()) * c)

    case = harness.Case(harness.CELLS / "mingru.rnn", 2, 8, {"D": 4}, torch.float32)
    for seconds, said in ((60.0, "wrong: relative error of the gradient"), (0.0, "no time left")):
        run = harness.Run("test", torch.device("cpu"), None, seconds)
        run.check(case, [harness.Peer("broken", broken)])
        (record,) = run.found["cases"]
        assert record["results"][-1]["reason"].startswith(said)
        run.time(case, [harness.Peer("broken", broken)], record)
        assert "forward" not in record["results"][-1]


def test_others_compute_the_cells_with_recurrent_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The odd ones: GRU's candidate has a bias of its own, the gradient of the bias of sLSTM's input gate is zero."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setitem(sys.modules, "flashrnn", None)
    harness: Any = importlib.import_module("harness")
    run = harness.Run("test", torch.device("cpu"), None, 60.0)
    for case, peers in importlib.import_module("recurrent").shapes(True):
        if case.program.stem in ("gru", "slstm"):
            run.check(case, peers)
    for record in run.found["cases"]:
        why = {result["name"]: result["reason"] for result in record["results"]}
        assert why["rnnc torch"] == why["a Python loop"] == "" and "SLOW" in why["a Python loop, torch.compile"]
        assert why["PyTorch's own"] == ("" if record["cell"] == "GRU" else "Missing: it has no slstm")
        assert all("flashrnn" in reason for name, reason in why.items() if name.startswith("FlashRNN"))
        assert all(
            max(result["error_gradients"], default=0) < 1e-5 for result in record["results"] if not result["reason"]
        )
