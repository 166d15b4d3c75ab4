"""The command line, as a user meets it."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import rnnc.pipeline
from rnnc.cli import main
from rnnc.cli.terminal import progress
from rnnc.pipeline import Compilation
from rnnc.source import Source

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.rnn"))
GOOD = """\
cell Sum
dim D = 4
input x[D]
state s[D]
s[t] = s[t-1] + x
output s[t]
"""
WRONG = GOOD.replace("+ x", "+ y")
TWO = GOOD + GOOD.replace("Sum", "Other")
UNDECIDED = GOOD + "claimed in [0, 1] = x * x * exp(-x * x)\n"


def environment(**extra: str) -> dict[str, str]:
    own = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "RNNC_DEBUG")}
    return {**own, "PYTHONPATH": str(ROOT), **extra}


def command_line(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    env = environment(**options.pop("env", {}))  # type: ignore[arg-type]
    command = [sys.executable, "-m", "rnnc", *map(str, arguments)]
    return subprocess.run(command, text=True, capture_output=True, timeout=120, env=env, **options)  # type: ignore[call-overload]


def processor_seconds() -> float:
    """What the commands so far took of it: others may be at work on this machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "sum.rnn"
    path.write_text(GOOD)
    return path


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    path = tmp_path / "wrong.rnn"
    path.write_text(WRONG)
    return path


# --- compile ---------------------------------------------------------------------------------------------------------


def test_compile_is_quiet_and_writes_beside_the_program(good: Path) -> None:
    done = command_line("compile", good)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "class Sum" in good.with_suffix(".py").read_text()
    assert sorted(os.listdir(good.parent)) == ["sum.py", "sum.rnn"]


def test_compile_to_standard_output_and_from_standard_input(good: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", str(good), "-o", "-"]) == 0
    text = capfd.readouterr().out
    compile(text, "module", "exec")
    piped = command_line("compile", "-", input=GOOD)
    assert (piped.returncode, piped.stdout) == (0, text)
    assert os.listdir(good.parent) == ["sum.rnn"]


def test_the_same_bytes_each_time(good: Path, tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    for name, seed in (("a.py", "1"), ("else/b.py", "2")):
        assert command_line("compile", good, "-o", tmp_path / name, env={"PYTHONHASHSEED": seed}).returncode == 0
    assert (tmp_path / "a.py").read_bytes() == (tmp_path / "else" / "b.py").read_bytes()


def test_several_files_go_to_a_folder(good: Path, wrong: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "wrong.py").write_text("old")
    assert main(["compile", str(good), str(wrong), "-o", str(tmp_path / "out")]) == 1
    assert "class Sum" in (tmp_path / "out" / "sum.py").read_text()  # a wrong one is no reason to stop
    assert (tmp_path / "out" / "wrong.py").read_text() == "old"
    assert sorted(os.listdir(tmp_path / "out")) == ["sum.py", "wrong.py"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["compile"], "FILE"),
        (["compile", "sum.rnn", "sum.rnn"], "both"),
        (["compile", "sum.rnn", "missing.rnn"], "cannot read missing.rnn"),
        (["compile", "."], "cannot read"),
        (["compile", "sum.rnn", "-o", "none/sum.py"], "no such folder"),
        (["compile", "sum.rnn", "-o", "sum.rnn"], "itself a program"),
        (["compile", "sum.rnn", "two.rnn", "-o", "-"], "one FILE"),
        (["compile", "sum.rnn", "two.rnn", "-o", "none"], "no such folder"),
        (["compile", "sum.rnn", "--emit", "plan,text"], "no such stage: text"),
        (["compile", "two.rnn", "--cell", "Othr"], "`Sum`, `Other`"),
        (["check", "--format", "yaml", "sum.rnn"], "yaml"),
        (["explain", "RNN999"], "RNN900"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_a_wrong_command_line(
    arguments: list[str], said: str, good: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(good.parent)
    Path("two.rnn").write_text(TWO)
    assert main(arguments) == 2
    captured = capfd.readouterr()
    assert said in captured.err and captured.out == ""
    assert sorted(os.listdir()) == ["sum.rnn", "two.rnn"]


def test_emit_prints_every_stage(capfd: pytest.CaptureFixture[str]) -> None:
    stages = ["tree", "ir", "groups", "analysis", "plan", "module"]
    assert main(["compile", str(ROOT / "examples" / "gla.rnn"), "--emit", ",".join(stages)]) == 0
    text = capfd.readouterr().out
    assert re.findall(r"^# (\w+) of GLA$", text, re.MULTILINE) == stages
    assert not (ROOT / "examples" / "gla.py").exists()


def test_cell_chooses_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "two.rnn").write_text(TWO)
    assert main(["compile", str(tmp_path / "two.rnn"), "--cell", "Other", "-o", "-"]) == 0
    text = capfd.readouterr().out
    assert "class Other" in text and "class Sum" not in text


# --- what is written, and when ----------------------------------------------------------------------------------------


def test_a_wrong_program_keeps_the_old_module(wrong: Path) -> None:
    old = wrong.with_suffix(".py")
    old.write_text("old")
    done = command_line("compile", wrong)
    assert done.returncode == 1 and "`y`" in done.stderr and "wrong.rnn:5" in done.stderr
    assert "Traceback" not in done.stderr
    assert old.read_text() == "old" and sorted(os.listdir(wrong.parent)) == ["wrong.py", "wrong.rnn"]


def test_outputs_that_are_no_regular_files(good: Path) -> None:
    assert command_line("compile", good, "-o", "/dev/null").returncode == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert "class Sum" in command_line("compile", good, "-o", "/dev/stdout").stdout
    link, target = good.parent / "link.py", good.parent / "target.py"
    target.write_text("old")
    link.symlink_to(target.name)
    assert command_line("compile", good, "-o", link).returncode == 0
    assert link.is_symlink() and "class Sum" in target.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_command_leaves_nothing(number: signal.Signals, good: Path) -> None:
    target = good.with_suffix(".py")
    target.write_text("old")
    # Stops where it matters most: the new text is written, and not yet in its place.
    stall = (
        f"import os, signal, time; signal.signal({int(number)}, signal.SIG_DFL)\n"  # whoever started us may ignore it
        "os.fsync = lambda _: (print(flush=True), time.sleep(60)); from rnnc.cli import main; main()"
    )
    command = [sys.executable, "-c", stall, "compile", str(good)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        assert len(os.listdir(good.parent)) == 3
        process.send_signal(number)
        assert process.wait(30) == -number
        assert process.stderr.read() == b""
    assert target.read_text() == "old" and sorted(os.listdir(good.parent)) == ["sum.py", "sum.rnn"]


def test_a_reader_that_leaves_is_no_error(good: Path) -> None:
    command = [sys.executable, "-m", "rnnc", "compile", str(good), "--emit", ",".join(["module"])]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, env=environment(), stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert done.returncode == -signal.SIGPIPE and done.stderr == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_said(good: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "rnnc", "compile", str(good), "-o", "-"]
        done = subprocess.run(command, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 2 and "No space left" in done.stderr and "Traceback" not in done.stderr


# --- check -----------------------------------------------------------------------------------------------------------


def test_check_as_json(good: Path, wrong: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--format", "json", str(good), str(wrong)]) == 1
    captured = capfd.readouterr()
    (found,) = [d for d in json.loads(captured.out)["diagnostics"] if d["severity"] == "error"]
    assert list(found) == ["code", "severity", "file", "line", "column", "end_line", "end_column", "message", "help"]
    assert re.fullmatch(r"RNN\d{3}", found["code"]) and found["file"] == str(wrong)
    assert (found["line"], found["column"], found["end_line"], found["end_column"]) == (5, 17, 5, 18)
    assert "`y`" in found["message"] and captured.err == ""


def test_check_writes_nothing(good: Path) -> None:
    done = command_line("check", good)
    assert (done.returncode, done.stdout) == (0, "")
    assert os.listdir(good.parent) == ["sum.rnn"]


def test_strict_makes_an_undecided_claim_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "undecided.rnn"
    path.write_text(UNDECIDED)
    assert main(["check", "--format", "json", str(path)]) == 0
    severities = {d["code"]: d["severity"] for d in json.loads(capfd.readouterr().out)["diagnostics"]}
    assert "warning" in severities.values()
    assert main(["check", "--strict", "--format", "json", str(path)]) == 1
    strict = {d["code"]: d["severity"] for d in json.loads(capfd.readouterr().out)["diagnostics"]}
    assert "error" in strict.values() and "warning" not in strict.values()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe\x00\x01",
        b"\x00" * 100,
        os.urandom(4096),
        b"(" * (1 << 20),
        b"cell A\ny = " + b"-" * 5000 + b"1\n",
    ],
    ids=["empty", "utf-16", "zeros", "binary", "brackets", "nested"],
)
def test_what_is_no_program_is_a_diagnostic_within_seconds(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.rnn"
    path.write_bytes(data)
    start = processor_seconds()
    done = command_line("check", path)
    assert done.returncode == 1 and re.match(r"error\[RNN\d{3}\]: ", done.stderr), done.stderr[:500]
    assert "Traceback" not in done.stderr and len(done.stderr) < 100_000
    assert processor_seconds() - start < 10


# --- explain ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_explain_as_json(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(path), "--format", "json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert bool(report["groups"]) is ("\nstate " in path.read_text("utf-8"))
    for group in report["groups"]:
        fields = ["states", "family", "certificate", "kernel", "triton", "device", "step", "reason", "spectrum"]
        assert list(group) == [*fields, "spectrum_proved", "tracks", "cannot_track", "half_life", "explodes"]
        assert group["family"] and group["kernel"] and group["states"]
        assert group["reason"] if group["family"] == "sequential" else group["certificate"] or group["family"] == "none"
    assert main(["explain", str(path)]) == 0
    text = capfd.readouterr().out
    assert "\x1b" not in text
    for group in report["groups"]:
        assert group["kernel"] in text and all(state in text for state in group["states"])


@pytest.mark.parametrize("code", ["RNN900", "rnn900"])
def test_explain_a_code(code: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", code]) == 0
    assert capfd.readouterr().out.startswith("RNN900: a bug in the compiler\n")


def test_every_code_has_one_page() -> None:
    from rnnc.cli.explain import page_text
    from rnnc.errors import all_codes

    for code, kind in all_codes().items():
        assert re.fullmatch(r"RNN[0-69]\d\d", code)
        assert kind.title and not kind.title.endswith("."), code
        assert len(page_text(kind)) > len(kind.title) + 50, code


# --- the house rules of a command -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["compile", "check", "explain", "test"])
def test_help_has_examples_and_exit_statuses(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capfd.readouterr().out
    assert f"  rnnc {command} gla.rnn" in text and "exit status:" in text


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    from rnnc import __version__

    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"rnnc {__version__}\n"


def test_colour_only_where_wanted(wrong: Path) -> None:
    assert "\x1b[" not in command_line("check", wrong).stderr
    assert "\x1b[" in command_line("check", wrong, env={"FORCE_COLOR": "1"}).stderr
    assert "\x1b[" not in command_line("check", wrong, env={"FORCE_COLOR": "1", "NO_COLOR": "1"}).stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "seconds", "shown"), [(Terminal, 0.1, 0), (Terminal, 0.7, 2), (io.StringIO, 9, 0)])
def test_progress_only_on_a_terminal_and_after_a_second(
    stream: type[io.StringIO], seconds: float, shown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, now = stream(), [0.0]
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for _ in progress(range(4), "compile"):
        now[0] += seconds
    assert written.getvalue().count("compile") == shown
    assert not shown or written.getvalue().endswith("\r\x1b[K")  # and nothing of it stays


def test_names_beyond_the_locale(tmp_path: Path) -> None:
    (tmp_path / "a.rnn").write_text(GOOD.replace("+ x", "+ ξ"), encoding="utf-8")
    done = command_line("check", tmp_path / "a.rnn", env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert done.returncode == 1 and "error[RNN" in done.stderr and "Traceback" not in done.stderr


def test_a_bug_is_said_in_a_few_lines(good: Path) -> None:
    code = "import rnnc.pipeline as p; p.check = lambda *_: 1 / 0; from rnnc.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", code, "check", "--format", "json", str(good)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    (found,) = json.loads(done.stdout)["diagnostics"]
    assert done.returncode == 70 and found["code"] == "RNN900" and "ZeroDivisionError" in found["message"]
    assert "Traceback" not in done.stderr
    done = subprocess.run(command, env=environment(RNNC_DEBUG="1"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 70 and "Traceback" in done.stderr


def test_compiling_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from rnnc.cli import main\n"
        "gla = sys.argv.pop(1)\n"
        "for command in (['compile', gla, '-o', '/dev/null'], ['check', gla], ['explain', gla]):\n"
        "    assert main(command) == 0\n"
        "print([m for m in ('torch', 'triton', 'numpy', 'rich') if m in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, str(ROOT / "examples" / "gla.rnn")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("paths", [EXAMPLES[::4], pytest.param(EXAMPLES, marks=pytest.mark.slow)], ids=["some", "all"])
def test_compiling_is_fast(paths: list[Path]) -> None:
    # Not what Python takes to compile rnnc itself, as it would for each command where bytecode is not kept.
    env = {k: v for k, v in environment().items() if k != "PYTHONDONTWRITEBYTECODE"}

    def seconds(*command: str) -> float:
        start = processor_seconds()
        subprocess.run([sys.executable, *command], env=env, check=True, capture_output=True, timeout=60)
        return processor_seconds() - start

    imports = min(seconds("-c", "import sympy, lark, networkx, jinja2") for _ in range(5))
    for path in paths:
        command = ("-m", "rnnc", "compile", str(path), "-o", "/dev/null")
        taken = [seconds(*command)]
        while taken[-1] >= 4 * imports and len(taken) < 3:
            taken.append(seconds(*command))
        assert min(taken) < 4 * imports, f"{path.name}: {min(taken):.2f} s, the imports alone {imports:.2f} s"


# --- test ------------------------------------------------------------------------------------------------------------


def test_test_says_the_worst_error_of_each_property(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["test", str(ROOT / "examples" / "mingru.rnn"), "--cases", "2"]) == 0
    captured = capfd.readouterr()
    lines = captured.out.splitlines()[1:]
    assert len(lines) == 9 and all(re.search(r" ok +worst error \d\.\de[+-]\d\d, allowed", line) for line in lines)
    assert captured.err == ""


def test_test_shows_the_smallest_failing_case(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = rnnc.pipeline.module_text

    def broken(compilations: Sequence[Compilation], source: Source) -> str:
        return right(compilations, source).replace("torch.sigmoid(", "torch.tanh(")

    monkeypatch.setattr(rnnc.pipeline, "module_text", broken)
    assert main(["test", str(ROOT / "examples" / "mingru.rnn"), "--cases", "2"]) == 1
    text = capfd.readouterr().out
    assert re.search(r"outputs +FAILED +worst error .* allowed", text)
    assert re.search(r"smallest failing case: B=1, T=1, D=1, float64, seed \d+\n.* instead of ", text)


def test_test_of_a_wrong_program(wrong: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["test", str(wrong)]) == 1
    captured = capfd.readouterr()
    assert captured.out == "" and "`y`" in captured.err
