"""The text of a generated module: the same bytes each time, readable, safe, and enough by itself."""

from __future__ import annotations

import ast
import hashlib
import keyword
import os
import re
import subprocess
import sys
import warnings
from importlib import resources
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import rnnc
from backends.reference import Interpreter
from backends.triton.frame import FRAME
from rnnc.diagnostics import ProgramError
from rnnc.pipeline import compile_source, module_text
from rnnc.source import Source
from tests.cells import EXAMPLES
from tests.modules import (
    LAGS,
    MIXED,
    SCAN,
    agree,
    as_tuple,
    build,
    checked,
    draw_for,
    generate,
    tensors,
    with_gradients,
)

ROOT = Path(__file__).resolve().parent.parent
TEXTS = {p.stem: p.read_text(encoding="utf-8") for p in sorted(EXAMPLES.glob("*.rnn"))}
TEXTS |= {"lags": LAGS, "mixed": MIXED, "several": TEXTS["gru"] + TEXTS["mamba"] + SCAN}
every = pytest.mark.parametrize("name", TEXTS)


def too_long(text: str) -> list[str]:
    """Lines of the generated file that are too long, besides those that repeat a line of the user's own."""
    own = {line.replace("\\", "\\\\").strip(' "\\') for line in text.split("\n")}
    return [line for line in generate(text).split("\n") if len(line) > 120 and line.strip(' "\\') not in own]


# --- the same bytes ---


def test_the_same_bytes_in_every_process() -> None:
    code = (
        "import hashlib, sys; from pathlib import Path\n"
        "from rnnc.pipeline import compile_source, module_text; from rnnc.source import Source\n"
        "for path in sys.argv[1:]:\n"
        "    source = Source(path, Path(path).read_text(encoding='utf-8'))\n"
        "    print(hashlib.sha256(module_text(compile_source(source), source).encode()).hexdigest())\n"
    )
    files = sorted(str(p) for p in EXAMPLES.glob("*.rnn"))
    found: list[list[str]] = []
    for seed in ("0", "1"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code, *files], check=True, env=env, capture_output=True, text=True)
        found.append(done.stdout.split())
    here = [hashlib.sha256(generate(TEXTS[Path(f).stem]).encode()).hexdigest() for f in files]
    assert found == [here, here]


@every
def test_no_path_and_the_same_twice(name: str) -> None:
    texts: list[str] = []
    for where in ("a.rnn", "/somewhere/else/b.rnn"):
        source = Source(where, TEXTS[name])
        texts.append(module_text(compile_source(source), source))
    assert texts[0] == texts[1] == generate(TEXTS[name])
    assert "b.rnn" not in texts[0] and "somewhere" not in texts[0] and str(ROOT) not in texts[0]


# --- readable ---


@every
def test_the_head_says_what_it_is(name: str) -> None:
    text = TEXTS[name]
    doc = ast.get_docstring(ast.parse(generate(text)), clean=False)
    assert doc is not None
    assert hashlib.sha256(text.encode()).hexdigest() in doc and f"rnnc {rnnc.__version__} " in doc
    assert "is yours" in doc
    for line in text.rstrip().split("\n"):
        assert f"    {line}".rstrip() in doc.split("\n")


@every
def test_the_file_is_tidy(name: str) -> None:
    code = generate(TEXTS[name])
    assert code.endswith("\n") and not code.endswith("\n\n") and "\t" not in code and "\r" not in code
    assert not too_long(TEXTS[name])
    assert all(line == line.rstrip() for line in code.split("\n"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile(code, "generated.py", "exec", dont_inherit=True)


@every
def test_it_imports_torch_and_the_standard_library(name: str) -> None:
    """And triton, where it is there: nothing fails without."""
    tree = ast.parse(generate(TEXTS[name]))
    found: set[str] = set()
    guarded = [n for n in tree.body if isinstance(n, ast.Try)]
    kernels = "@triton.jit" in generate(TEXTS[name])
    assert [ast.unparse(x) for n in guarded for x in n.body] == (
        ["import triton", "import triton.language as tl"] if kernels else []
    )
    assert all(ast.unparse(h.type or n) == "ImportError" for n in guarded for h in n.handlers)
    within = {id(x) for n in guarded for x in n.body}
    for node in ast.walk(tree):
        if id(node) in within:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module
            found.add(node.module.split(".")[0])
    assert "torch" in found and found <= {"torch", *sys.stdlib_module_names}
    code = generate(TEXTS[name])
    body = code[code.index("from torch import Tensor") :]
    for imported in found - {"__future__"}:
        assert f"{imported}." in body or imported in ("typing", "collections", "types"), imported
    assert "SimpleNamespace" in body or "types" not in found


@every
def test_every_helper_is_used(name: str) -> None:
    code = generate(TEXTS[name])
    tree = ast.parse(code)
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name.startswith("_"):
            assert node.name in used or code.count(node.name) > 1, node.name


@every
def test_the_equations_are_there(name: str) -> None:
    code = generate(TEXTS[name])
    comments = [line.strip() for line in code.split("\n") if line.strip().startswith("# ")]
    for compilation in compile_source(Source("test.rnn", TEXTS[name]), until="ir"):
        assert compilation.cell is not None
        for state in compilation.cell.states:
            assert any(c.startswith(f"# {state.name}[t]") for c in comments), state.name


# --- safe ---

DOC = 'cell Doc\n"""{}"""\ndim D = 2\ninput x[D]\nstate h[D]\nh[t] = x\noutput h[t]\n'


def skeleton(code: str, text: str) -> str:
    """The syntax tree without docstrings, and without the hash of the source."""
    tree = ast.parse(code.replace(hashlib.sha256(text.encode()).hexdigest()[:12], "HASH"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def words(text: str) -> list[str]:
    return text.split()


def is_harmless(text: str, doc: str) -> None:
    """The program compiles to what any such program compiles to, with `doc` in its docstring and nowhere else."""
    plain = DOC.format("plain")
    try:
        source = Source("test.rnn", text)
        code = module_text(compile_source(source), source)
    except ProgramError:
        assume(False)
        return
    assert all(ch.isprintable() or ch == "\n" for ch in code)
    assert skeleton(code, text) == skeleton(generate(plain), plain)
    tree = ast.parse(code)
    head = ast.get_docstring(tree, clean=False)
    cls = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Doc")
    inner = ast.get_docstring(cls, clean=False)
    assert head is not None and inner is not None
    for line in text.rstrip().split("\n"):
        assert line.rstrip() in [h[4:].rstrip() for h in head.split("\n")]
    assert words(doc) == words(inner)[: len(words(doc))]


NASTY = [
    "it's \\",
    "\\",
    "\\\\\\",
    "\\N{BULLET} \\x41 \\u0041 \\U0001F600 \\0",
    "{{ 7 * 7 }} {% raw %} {# no #} {{ namespace }} {% endfor %}",
    "'; import os; os.system('true') #",
    "'''",
    '" "" " x',
    "a\"b'c",
    "\u202e\u2066 reversed \u2069 \u200b \ufeff",
    "a\u2028b\u2029c\x85d\x0ce",
    "%s {0} {} $x `y`",
    "tab\there",
    "# rnnc: ignore\nimport os\nclass Doc: pass",
    "    indented\n  less\nleast",
    "é ß Ω 漢字 😀",
]


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=60).filter(lambda d: '"""' not in d))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_a_docstring_cannot_break_out(doc: str) -> None:
    is_harmless(DOC.format(doc), doc)


@pytest.mark.parametrize("doc", NASTY)
def test_nasty_docstrings(doc: str) -> None:
    try:
        is_harmless(DOC.format(doc), doc)
    except BaseException as error:
        # What the language refuses is refused in words; `assume` says so here too.
        if type(error).__name__ != "UnsatisfiedAssumption":
            raise


def test_the_nasty_ones_are_mostly_taken() -> None:
    taken = 0
    for doc in NASTY:
        try:
            compile_source(Source("test.rnn", DOC.format(doc)), until="ir")
            taken += 1
        except ProgramError:
            pass
    assert taken >= len(NASTY) - 3


@pytest.mark.parametrize(
    "comment", ['"""', "'''", '\\"""', '"""\\', "{{ x }}", '""" + __import__("os").getcwd() + """', "\\N{DASH}", '"']
)
def test_comments_cannot_break_out(comment: str) -> None:
    text = DOC.format("words").replace("dim D = 2\n", f"dim D = 2  # {comment}\n") + f"# {comment}"
    is_harmless(text, "words")


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
@example('"""')
@example("\\")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_no_comment_breaks_out(comment: str) -> None:
    assume("\n" not in comment)
    is_harmless(DOC.format("words") + f"# {comment}\n", "words")


# --- names ---

NAMES = {
    "locals": """\
cell A
dim D = 3
input run[D], F[D], math[D] in [0, inf), torch[D] in [0, 1], zip[D], range[D], Tensor[D]
param nn[D] = uniform(0.1, 0.9)
value = tanh(run) + F
outputs = value + linear(math -> D) * linear(math -> D) + linear(value -> D)
packed = linear(h_prev[t-1] -> D) + linear(h_prev[t-1] -> D)
d_h = tanh(packed)
state h[D], h_prev[D], tuple[D], self_[D], dtype[D], state_[D], self[D]
h[t] = torch * h[t-1] + outputs
h_prev[t] = tanh(h_prev[t-1] + d_h * zip + nn * range)
tuple[t] = tanh(tuple[t-1]) + Tensor
self_[t] = 0.5 * self_[t-1] + value
dtype[t] = 0.5 * dtype[t-1] + tuple[t]
state_[t] = tanh(state_[t-1]) + run
self[t] = 0.5 * self[t-1] + value
output h[t]
output h_prev[t] + self[t]
output tuple[t]
output y = self_[t] + dtype[t] * state_[t]
""",
    "arguments": """\
cell A
dim torch = 4, nn = 2, super = 3, batch = 2, count = 2, Q = torch / nn
const math in (0, inf) = 0.5, index = 2
input dtype_[torch], F[nn], len[super], device_[batch], isinstance[count] in [0, 1]
param getattr[torch] = uniform(0.1, 0.9)
buffer property[torch] = arange[torch](1)
param backends[torch] = ones
state h[torch], index_[batch] = 0.5, count_[count]
h[t] = math * tanh(h[t-1]) + dtype_ + sum[nn](F) * getattr / property * backends + Q
index_[t] = 0.5 * index_[t-1] + device_ * index
count_[t] = isinstance * count_[t-1] + 1
output h[t]
output sum[super](len)
output index_[t]
output print = count_[t]
""",
    "gradients": """\
cell A
dim D = 3, d_x = 2
input x[D], d_h[D], h_run[D], left[D], right[D], values[d_x], grads[d_x]
param weight[D] = normal(0.3)
param packed[D, d_x] = normal(0.3)
state h[D] = param, d_past[D], operands[d_x]
h[t] = tanh(weight * h[t-1] + linear(h[t-1] -> D, bias=true) + x * d_h + sum[d_x](packed * operands[t-1]))
d_past[t] = tanh(d_past[t-1] * h[t] + left - right * h_run) + d_past[t-1] * d_hoisted
operands[t] = 0.3 * operands[t-1] * sin(operands[t-2]) + values * grads
d_hoisted = sigmoid(x)
output d_fixed = h[t] * d_past[t]
output operands[t]
""",
    "cotangents": """\
cell A
dim D = 3, J = 2
input x[D], k[J, D], d_g[D], k_j[D]
state h[D], d_h[D], S[D], d_S_run[D], S_run[D], g[D]
h[t] = tanh(h[t-1] + d_h[t-1] * x)
d_h[t] = tanh(d_h[t-1] * 0.5 + h[t])
S[t] over J = S[t-1] + k * tanh(S[t-1] * d_S_run[t-1] - k_j)
d_S_run[t] = tanh(d_S_run[t-1] + S[t] * d_h[t] * S_run[t-1])
S_run[t] = tanh(S_run[t-1] + d_S_run[t])
g[t] = tanh(g[t-1] * d_g + S[t])
output d_h[t] * g[t]
output S_run[t]
""",
    "letters": """\
cell β
dim κ = 3, a = 2, b = 2
input x̂[κ], κ₁[a], 漢[b], ñ[κ]
param ξ[a, κ] = normal(0.3)
decay λ = sigmoid(ñ)
state é[κ], Ж[a, b]
é[t] = λ * é[t-1] + sum[a](ξ * κ₁) + linear(x̂ -> κ)
Ж[t] = tanh(Ж[t-1]) + κ₁ * 漢
output é[t]
output ω = sum[a, b](Ж[t])
""",
    "long": """\
cell AverageOfSomethingSmooth
dim NumberOfFeatures = 3, NumberOfHeads = 2
input the_first_of_the_inputs[NumberOfFeatures], the_second_of_the_inputs[NumberOfHeads]
input the_third_of_the_inputs[NumberOfFeatures] in [0, 1], the_fourth_of_the_inputs[NumberOfHeads]
param the_learned_parameter[NumberOfHeads, NumberOfFeatures] = normal(0.1)
everything = the_first_of_the_inputs + sum[NumberOfHeads](the_learned_parameter * the_second_of_the_inputs)
state the_state_that_is_kept[NumberOfFeatures] = 0.5, the_other_state[NumberOfHeads] = 1.5
the_state_that_is_kept[t] = everything + the_third_of_the_inputs * tanh(
    the_state_that_is_kept[t-1] + linear(the_state_that_is_kept[t-1] -> NumberOfFeatures))
the_other_state[t] = tanh(the_other_state[t-1]) * the_fourth_of_the_inputs + sum[NumberOfFeatures](
    the_state_that_is_kept[t-1])
output the_state_that_is_kept[t] * everything
output the_name_of_the_second_output = the_other_state[t]
""",
}


def test_kernels_keep_the_names_of_their_frame_for_it() -> None:
    text = (resources.files("rnnc.templates") / "triton" / "kernel.py.jinja").read_text(encoding="utf-8")
    code = re.sub(r"\{[%{].*?[%}]\}|#.*|\"\"\".*?\"\"\"", " ", text)
    found = {n for n in re.findall(r"(?<![\w.])[A-Za-z]\w*(?!\w*=)", code) if not keyword.iskeyword(n)}
    assert found - {"jit", "def"} <= FRAME


@pytest.mark.parametrize("name", NAMES)
def test_names_get_in_nobodys_way(name: str) -> None:
    text = NAMES[name]
    module = build(text, dtype=torch.float64, validate=True)
    cell = checked(text)
    inputs = draw_for(cell, module, 2, 6, requires_grad=True)
    params = dict([*module.named_parameters(), *module.named_buffers()])
    interpreter = Interpreter(cell)
    outputs, state = interpreter.run(inputs, params)
    want = with_gradients(module, (outputs, tuple(state.values())), *inputs)
    agree(with_gradients(module, module(*inputs), *inputs), want)
    ends = [0, 2, 2, 6]
    packed = [x[:1] for x in inputs]
    outputs, state = interpreter.run(packed, params, cu_seqlens=ends)
    agree(tensors(module(*packed, cu_seqlens=torch.tensor(ends))), [*outputs, *state.values()])
    outputs, now = module(*inputs)
    stepped, state = None, None
    for t in range(6):
        stepped, state = module.step(*(x[:, t] for x in inputs), state)
    agree([*as_tuple(stepped), *(state or ())], [*(o[:, -1] for o in as_tuple(outputs)), *now])
    assert module.plan and repr(module)


def test_long_names_are_broken_into_lines() -> None:
    assert not too_long(NAMES["long"])


# --- alone ---


def test_it_runs_where_there_is_nothing_but_torch(tmp_path: Path) -> None:
    code = "\n\n".join(
        [
            "import sys",
            "from importlib.machinery import PathFinder",
            "find = PathFinder.find_spec",
            "absent = {'rnnc', 'backends', 'triton', 'cuda', 'numpy', 'lark', 'jinja2', 'networkx'}",
            "PathFinder.find_spec = lambda name, *rest: None if name.split('.')[0] in absent else find(name, *rest)",
            "sys.path.insert(0, sys.argv[1])",
            "import torch, lstm, kalman, several",
            "for cell, x in (\n"
            "    (lstm.LSTM(D=4, H=2), [torch.randn(2, 5, 4, requires_grad=True)]),\n"
            "    (kalman.Kalman(D=3), [torch.rand(2, 5, 3, requires_grad=True) + 0.1 for _ in range(3)]),\n"
            "    (several.Mamba(E=4, N=2), [torch.randn(2, 5, 4)]),\n"
            "    (several.GRU(D=4), [torch.randn(2, 5, 4)]),\n"
            "    (several.Scan(D=4), [torch.rand(2, 5, 4, requires_grad=True), torch.randn(2, 5, 4)]),\n"
            "):\n"
            "    y, state = cell(*x)\n"
            "    y.sum().backward()\n"
            "    cell.step(*(v[:, 0] for v in x), state)\n"
            "assert not [m for m in sys.modules if m.split('.')[0] in ('rnnc', 'triton')]",
        ]
    )
    for name in ("lstm", "kalman", "several"):
        (tmp_path / f"{name}.py").write_text(generate(TEXTS[name]), encoding="utf-8")
    (tmp_path / "main.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", tmp_path / "main.py", tmp_path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    # The file itself runs too, and says nothing.
    done = subprocess.run([sys.executable, "-I", tmp_path / "kalman.py"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
