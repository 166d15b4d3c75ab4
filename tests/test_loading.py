"""`rnnc.compile`: from a program to a class in this process."""

from __future__ import annotations

import copy
import inspect
import pickle
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch

import rnnc
from rnnc.diagnostics import ProgramError
from rnnc.loading import ProgramWarning

ROOT = Path(__file__).resolve().parent.parent
SUM = "cell Sum\ndim D = 4\ninput x[D]\nstate s[D]\ns[t] = s[t-1] + x\noutput s[t]\n"
DECAYED = SUM.replace("s[t-1]", "0.5 * s[t-1]")
LEARNED = "cell Net\ndim D = 3\ninput x[D]\nstate h[D]\nh[t] = tanh(linear(x, h[t-1] -> D))\noutput h[t]\n"


def call(cls: type[torch.nn.Module], x: torch.Tensor) -> torch.Tensor:
    return cls(D=x.shape[-1])(x)[0]


def test_text_and_path_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "sum.rnn"
    path.write_text(SUM)
    x = torch.randn(2, 5, 3)
    for cls in (rnnc.compile(SUM), rnnc.compile(path), rnnc.compile(str(path))):
        assert issubclass(cls, torch.nn.Module) and cls.__name__ == "Sum"
        torch.testing.assert_close(call(cls, x), x.cumsum(1))


def test_a_file_with_several_cells() -> None:
    both = SUM + DECAYED.replace("Sum", "Decayed")
    with pytest.raises(ValueError, match="several cells: Sum, Decayed"):
        rnnc.compile(both)
    with pytest.raises(ValueError, match="did you mean 'Decayed'"):
        rnnc.compile(both, cell="Decayd")
    assert rnnc.compile(both, cell="Decayed").__name__ == "Decayed"


def test_what_is_wrong_is_in_the_message() -> None:
    with pytest.raises(ProgramError) as caught:
        rnnc.compile(SUM.replace("+ x", "+ y"))
    assert "<text>:5:17" in str(caught.value) and "^" in str(caught.value)
    with pytest.raises(ProgramError):
        rnnc.compile("cell")
    with pytest.raises(FileNotFoundError):
        rnnc.compile("missing.rnn")


def test_an_undecided_claim_is_a_warning_and_under_strict_an_error() -> None:
    undecided = SUM + "claimed in [0, 1] = x * x * exp(-x * x)\n"
    with pytest.warns(ProgramWarning, match="RNN502") as caught:
        rnnc.compile(undecided)
    assert [w.filename for w in caught] == [__file__]
    with pytest.raises(ProgramError, match="RNN502"):
        rnnc.compile(undecided, strict=True)


def test_two_cells_of_one_name_a_reload_and_a_copy_stay_right(tmp_path: Path) -> None:
    x = torch.ones(1, 3, 1)
    path, copied = tmp_path / "sum.rnn", tmp_path / "copy.rnn"
    path.write_text(SUM)
    first = rnnc.compile(path)
    shutil.copy(path, copied)
    second = rnnc.compile(copied)
    path.write_text(DECAYED)
    third = rnnc.compile(path)
    assert len({first, second, third}) == 3 and {first.__name__, second.__name__, third.__name__} == {"Sum"}
    for cls, last in ((first, 3.0), (second, 3.0), (third, 1.75)):
        x_ = x.clone().requires_grad_()
        y = call(cls, x_)
        assert y[0, -1, 0].item() == last
        y.sum().backward()
        assert x_.grad is not None
    assert rnnc.compile(path) is third


def test_copies_and_pickles() -> None:
    module = rnnc.compile(LEARNED)(D=3)
    x = torch.randn(2, 4, 3)
    y, state = module(x)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(other) is type(module)
        torch.testing.assert_close(other(x)[0], y)
    again = pickle.loads(pickle.dumps(state))
    assert type(again) is type(state)


def test_another_process_unpickles_a_written_module(tmp_path: Path) -> None:
    (tmp_path / "net.rnn").write_text(LEARNED)
    subprocess.run([sys.executable, "-m", "rnnc", "compile", tmp_path / "net.rnn"], check=True, cwd=ROOT)
    make = "import pickle, sys, net; pickle.dump(net.Net(D=3), open('net.pickle', 'wb'))"
    read = "import pickle, sys; print(type(pickle.load(open('net.pickle', 'rb'))).__module__)"
    for code in (make, read):
        done = subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "net"


def test_tracebacks_and_inspect_show_real_lines() -> None:
    cls = rnnc.compile(LEARNED)
    source = inspect.getsource(cls)
    assert source.startswith("class Net(") and "def forward" in source
    module = cls(D=3)
    try:
        module(torch.randn(2, 4, 5))
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith("<rnnc ")]
        assert frames and all(f.line for f in frames)
        assert frames[-1].line in inspect.getsource(inspect.getmodule(cls))  # type: ignore[arg-type, operator]
    else:
        pytest.fail("a wrong shape was taken")


def test_torch_compile() -> None:
    module = rnnc.compile(LEARNED)(D=3)
    x = torch.randn(2, 4, 3)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x)[0], module(x)[0])


def test_importing_rnnc_is_light() -> None:
    code = "import sys, rnnc; print([m for m in ('torch', 'sympy', 'lark', 'jinja2', 'networkx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
