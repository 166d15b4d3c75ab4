"""The checker: what it makes of right programs, and how it speaks of wrong ones.

The exact texts are in `diagnostics/bad/`; here are the IR's facts, and what holds of all diagnostics.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from rnnc import ir
from rnnc.check import check
from rnnc.check.words import MODULE_ATTRIBUTES, SIGNATURES
from rnnc.diagnostics import Diagnostic, has_errors, render_all
from rnnc.parse import parse, parse_partial
from rnnc.show import cell_text, expr_text
from rnnc.source import Source
from rnnc.verify import verify

HERE = Path(__file__).resolve().parent
EXAMPLES = sorted((HERE.parent / "examples").glob("*.rnn"))
BAD = sorted((HERE / "diagnostics" / "bad").glob("RNN[1-4]*.rnn"))

HEAD = """cell Sum
dim D = 4, H = 2, K = 3, P = D / H
input x[D], q[H, K], v[H], z[D], done: bool
state h[D]
h[t] = 0.5 * h[t-1] + x
output h[t]
"""


def diagnose(text: str) -> tuple[ir.Cell | None, list[Diagnostic]]:
    source = Source("test.rnn", text)
    return check(parse(source).cells[0], source)


def accept(text: str) -> ir.Cell:
    cell, found = diagnose(text)
    assert cell is not None, render_all(Source("test.rnn", text), found)
    verify(cell)
    return cell


def codes(text: str) -> list[str]:
    return [d.code for d in diagnose(text)[1]]


# --- right programs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples(path: Path) -> None:
    source = Source(path.name, path.read_text(encoding="utf-8"))
    cell, found = check(parse(source).cells[0], source)
    assert not found
    assert cell is not None
    verify(cell)
    assert cell_text(cell).startswith(f"cell {cell.name}\n")


def params(cell: ir.Cell) -> dict[str, tuple[str, ...]]:
    return {p.name: (*p.shape, *([str(p.taps)] if p.taps is not None else [])) for p in cell.params}


MAPS = {
    "z = linear(x -> D)": {"z_weight": "D D"},
    "z = linear(x -> D, bias=true)": {"z_weight": "D D", "z_bias": "D"},
    "z = linear(x -> D) + linear(h[t-1] -> D)": {"z_1_weight": "D D", "z_2_weight": "D D"},
    "z = linear(x, h[t-1] -> D, bias=true)": {"z_1_weight": "D D", "z_2_weight": "D D", "z_bias": "D"},
    "z = linear(x, x -> D, bias=true) + linear(x -> D, bias=true)": {
        "z_1_weight": "D D",
        "z_2_weight": "D D",
        "z_1_bias": "D",
        "z_3_weight": "D D",
        "z_3_bias": "D",
    },
    "z = linear(q -> D)": {"z_weight": "D H K"},
    "z = linear(x -> H, K)": {"z_weight": "H K D"},
    "z = linear[K](q)": {"z_weight": "H K K"},
    "z = linear[K -> D](q, bias=true)": {"z_weight": "H D K", "z_bias": "H D"},
    "z = linear[H, K -> D](q)": {"z_weight": "D H K"},
    "z = linear(linear(x -> H) -> K)": {"z_1_weight": "K H", "z_2_weight": "H D"},
    "z = linear(sum[D](x) -> K)": {"z_weight": "K"},
    "z = conv[4](q, bias=true)": {"z_weight": "H K 4", "z_bias": "H K"},
    "z = conv[4](linear(x -> H, K))": {"z_1_weight": "H K 4", "z_2_weight": "H K D"},
    "z = rmsnorm[K](q, weight=true)": {"z_scale": "K"},
    "z = layernorm[H, K](q, weight=true, bias=true)": {"z_scale": "H K", "z_shift": "H K"},
    "z = rmsnorm[K](q, weight=true) * l2norm[H](q) + l2norm[H](q, bias=true)": {"z_1_scale": "K", "z_2_shift": "H"},
    "z = linear(rmsnorm[K](q, weight=true) -> D)": {"z_weight": "D H K", "z_scale": "K"},
}


@pytest.mark.parametrize("equation", MAPS)
def test_learned_maps(equation: str) -> None:
    cell = accept(HEAD.replace(", z[D]", "") + equation)
    assert params(cell) == {name: tuple(shape.split()) for name, shape in MAPS[equation].items()}
    assert not any(p.declared for p in cell.params)
    assert {p.owner for p in cell.params} == {"z"}


def test_maps_of_states_and_outputs() -> None:
    cell = accept(
        """cell Two
dim D = 4
input x[D]
state h[D]
output linear(h[t] -> D)
h[t] = h[t-1] + linear(x -> D)
output linear(x -> D)
output y = conv[2](x)
"""
    )
    assert list(params(cell)) == ["out_weight", "h_weight", "out_2_weight", "y_weight"]
    assert [o.name for o in cell.outputs] == ["out", "out_2", "y"]


def test_initial_values_of_maps() -> None:
    cell = accept(HEAD + "u = linear(q -> D, bias=true) + linear(x -> D, init=orthogonal) + conv[4](x)")
    inits = {p.name: expr_text(p.init) for p in cell.params}
    bound = "(H * K) ** -0.5"
    assert inits == {
        "u_1_weight": f"uniform(-{bound}, {bound})",
        "u_1_bias": f"uniform(-{bound}, {bound})",
        "u_2_weight": "orthogonal",
        "u_3_weight": "uniform(-0.5, 0.5)",
    }


def test_params_in_the_order_of_the_file() -> None:
    cell = accept(
        HEAD + "u = w + linear(x -> D)\nparam b[D] = ones\nw = linear(x -> D) * b\nstate s[D] = param\ns[t] = u"
    )
    assert [p.name for p in cell.params] == ["u_weight", "b", "w_weight", "s_init"]


def test_layout() -> None:
    cell = accept(
        """cell Layout
dim A = 2, B = 3
input x[B, A], y[A, B]
param p[B, A] = ones
state s[B]
s[t] = s[t-1] + sum[A](x)
u = x * 1
w[B, A] = y
output s[t]
"""
    )
    assert cell.input("x").type.dims == ("B", "A")
    assert cell.param("p").shape == ("B", "A")
    assert cell.definition("u").type.dims == cell.definition("w").type.dims == ("A", "B")


def test_derived_dims_are_made_of_the_others() -> None:
    cell = accept("cell Sizes\ndim Q = P / 2, P = D / H, D = 16, H = 2\ninput x[Q]\noutput x")
    assert [d.name for d in cell.dims] == ["Q", "P", "D", "H"]
    sizes = {d.name: d.size if isinstance(d.size, int) else expr_text(d.size) for d in cell.dims}
    assert sizes == {"Q": "D / H / 2", "P": "D / H", "D": 16, "H": 2}


def test_sizes_that_must_agree() -> None:
    text = "cell Sizes\ndim D = 8, H = 2, P = D / H, M = 8, N = 4, L = 2\ninput x[D], y[P]\n"
    cell = accept(text + "a = x[D -> M]\nb = x[D -> H * P]\nc = x[D -> L * N]\nd = b[H * P -> D]\noutput c * y[P -> N]")
    found = [(expr_text(a), expr_text(b)) for a, b, _ in cell.size_checks]
    assert found == [("D", "M"), ("D", "L * N"), ("P", "N")]


KINDS = {
    "x > 0": "bool",
    "x + done": "real",
    "-done": "real",
    "done and not (x > 0)": "bool",
    "where(done, done, x > 0)": "bool",
    "where(done, 1j, x)": "complex",
    "sum[D](x > 0)": "real",
    "max(done, done)": "real",
    "abs(1j * x)": "real",
    "real(1j * x)": "real",
    "conj(1j * x)": "complex",
    "exp(1j * x)": "complex",
    "conv[2](done)": "real",
    "linear(done -> D)": "real",
    "1j * x == 0": "bool",
    "stop_gradient(done)": "bool",
    "D ** -0.5": "real",
    "h": "real",
}


@pytest.mark.parametrize("text", KINDS)
def test_kinds(text: str) -> None:
    assert accept(HEAD + f"u = {text}").definition("u").type.kind == KINDS[text]


def test_kinds_of_params_and_buffers() -> None:
    cell = accept(
        HEAD + "param a[D] = exp(1j * uniform(0, 1))\nparam b: complex = 1\nbuffer c[D] = arange[D](0) < 2\n"
        "param d[D] = arange[D](0) < 2\nstate s: complex = param\ns[t] = sum[D](where(c, s[t-1], 0))"
    )
    assert {p.name: (p.kind, p.learned) for p in cell.params} == {
        "a": ("complex", True),
        "b": ("complex", True),
        "c": ("bool", False),
        "d": ("real", True),
        "s_init": ("complex", True),
    }


DECAYS = [
    "h[t] = a * h[t-1]",
    "h[t] = -h[t-1] * a / 2 + x",
    "h[t] = x * (a * x) * h[t-1]",
    "h[t] = a * (h[t-1] - x)",
    "h[t] = where(done, 0, a * h[t-1])",
    "h[t] = where(done, 0, a) * h[t-1]",
    "m = a * h[t-1]\nh[t] = m + x",
    "b = a * x\nh[t] = b * h[t-1]",
    "m = 2 * h[t-1]\nh[t] = a[t-1] * m",
    "m = h[t] + x\nh[t] = x + a * m[t-1]",
    "u = conv[2](h[t])\nh[t] = x + a[t-1] * u[t-1]",
    "decay b = a * z\nh[t] = x + b * h[t-2]",
    "h[t] = tanh(linear(a * h[t-1] -> D))",
    "h[t] = sqrt(a * h[t-1] ** 2)",
]


@pytest.mark.parametrize("equations", DECAYS)
def test_decays(equations: str) -> None:
    accept(HEAD.replace("h[t] = 0.5 * h[t-1] + x\n", "") + "decay a = sigmoid(z)\n" + equations)


@pytest.mark.parametrize("update", ["h[t] = (1 - a) * h[t-1]", "h[t] = h[t-1] + a", "h[t] = a ** 2 * h[t-1]"])
def test_no_decays(update: str) -> None:
    text = HEAD.replace("h[t] = 0.5 * h[t-1] + x\n", "") + "decay a = sigmoid(z)\n" + update
    assert codes(text) == ["RNN318"]


def test_claims() -> None:
    cell = accept(HEAD + "gate a = sigmoid(x)\nb in disc(2) = x\nc in disc(1) = 1j * x\nd = 1")
    claims = {d.name: (d.claim, d.region) for d in cell.definitions}
    lit = cell.graph.lit
    assert claims == {
        "a": ("gate", ir.Interval(lit(0), lit(1))),
        "b": ("range", ir.Interval(lit(-2), lit(2))),
        "c": ("range", ir.Disc(lit(1))),
        "d": (None, None),
    }


def test_complex_decay_lies_in_the_disc() -> None:
    cell = accept("cell C\ninput x\ndecay a = exp(1j * x)\nstate h: complex\nh[t] = a * h[t-1]\noutput real(h)")
    assert cell.definition("a").region == ir.Disc(cell.graph.lit(1))


def test_definitions_in_any_order() -> None:
    names = [f"y{i}" for i in range(300)]
    text = "cell Chain\ninput x\noutput y0\n" + "".join(f"{a} = {b} + 1\n" for a, b in pairwise([*names, "x"]))
    cell = accept(text)
    assert [d.name for d in cell.definitions] == names


def test_a_cell_without_states() -> None:
    assert accept("cell Plain\ninput x\noutput 2 * x").states == ()


def test_over() -> None:
    cell = accept(
        """cell Over
dim J = 2, K = 3
input k[J, K], b[J]
u = b * k * sum[K](k * S[t-1])
state S[K]
S[t] over J = S[t-1] - u + sum[J](k)
output S[t]
"""
    )
    assert cell.state("S").over == "J"
    assert cell.state("S").expr.dims == ("J", "K")


def test_one_meaning_of_shared_text() -> None:
    cell = accept(HEAD + "u = (x + 1) * (x + 1)")
    product = cell.definition("u").expr
    assert isinstance(product, ir.Apply)
    assert product.args[0] is product.args[1]


# --- text ----------------------------------------------------------------------------------------------------------

ROUND = [
    "a + b - (a - b)",
    "a - (b + c)",
    "a * b / (c * a)",
    "-a ** 2",
    "(-a) ** -b",
    "a ** b ** c",
    "(a ** b) ** c",
    "-(a + b) * -c",
    "2 * -1",
    "(-2) ** a",
    "a == (b == c)",
    "not (a > b and b > c) or c < 0",
    "(a > b or b > c) and a != b",
    "where(a > 0, a + 1j, inf) - pi",
    "min(max(a, -1), 1e-06)",
    "sum[K](m * k) + max[H, K](m)",
    "(m + 1)[K -> J] + k[K -> J]",
    "r[R -> H * K] + m[H * K -> R]",
    "rmsnorm[K](k, eps=0.1) + softmax[K](k)",
    "linear[K](m) + linear[K -> J](m) + linear(m -> H, J)",
    "conv[3](a) + x[t-1] + s[t-2] + s[t]",
    "solve[K, J](k * k[K -> J], k)",
    "grad(a * s[t-1], s[t-1])",
    "true == false",
]


@pytest.mark.parametrize("text", ROUND)
def test_expressions_are_shown_as_they_are_written(text: str) -> None:
    head = """cell Round
dim H = 2, K = 3, J = K, R = H * K
input a, b, c, x, k[K], m[H, K], r[R]
state s
s[t] = s[t-1] + a
output s[t]
"""
    assert expr_text(accept(head + f"u = {text}").definition("u").expr) == text


# --- wrong programs ------------------------------------------------------------------------------------------------


def errors(found: list[Diagnostic]) -> list[Diagnostic]:
    return [d for d in found if d.severity == "error"]


@pytest.mark.parametrize("path", BAD, ids=lambda p: p.stem)
def test_edits_mend(path: Path) -> None:
    """Each edit leaves fewer errors than there were, and none that is new."""
    text = path.read_text(encoding="utf-8")
    found = diagnose(text)[1]
    for diagnostic in found:
        if (edit := diagnostic.edit()) is not None:
            mended = text[: edit.span.start] + edit.text + text[edit.span.end :]
            left = errors(diagnose(mended)[1])
            assert len(left) < len(errors(found)), f"{diagnostic.message()} is not mended by {edit}"


@pytest.mark.parametrize("path", BAD, ids=lambda p: p.stem)
def test_each_error_says_what_to_do(path: Path) -> None:
    found = diagnose(path.read_text(encoding="utf-8"))[1]
    spans = [(d.code, d.span) for d in found]
    assert len(set(spans)) == len(spans), "said twice"
    for diagnostic in found:
        assert diagnostic.label()
        assert diagnostic.help()
        assert "`" in diagnostic.message() or diagnostic.code == "RNN212"
        assert "``" not in diagnostic.message()


ONE_CAUSE = {
    "u = foo\nw = u + u\ny[D] = w * u": "RNN101",
    "u = sum[K](x)\ngate g = u": "RNN203",
    "input k[Q]\nu = sum[D](k) + k": "RNN102",
    "dim W = 0\ninput k[W]\nu = k[W -> D]": "RNN205",
    "u = u + 1\nw = 2 * u\noutput w": "RNN305",
    "u = u[t-1] + 1\nstate s = 1j\ns[t] = s[t-1] + u": "RNN306 RNN403",
    "u[t] = u[t-1] + x\nw = u[t-1]": "RNN303",
    "param A[D] = nothing\nparam B[D] = ones\nstate s[D] = A\ns[t] = A * B": "RNN101",
    "state s: complx\ns[t] = 1j * s[t-1]\neigenvalues s in disc(1)": "RNN113",
    "c = x\nstate c[D]\nc[t] = c[t-1] + q": "RNN104",
}


@pytest.mark.parametrize("text", ONE_CAUSE)
def test_one_cause_is_said_once(text: str) -> None:
    assert " ".join(codes(HEAD + text)) == ONE_CAUSE[text]


def test_order_of_the_text() -> None:
    found = diagnose(HEAD + "a = foo\ninput b[Q]\noutput bar\nparam c = x")[1]
    assert [d.span.start for d in found] == sorted(d.span.start for d in found)
    assert len(found) == 4


def test_what_could_not_be_read_is_not_missing() -> None:
    source = Source("test.rnn", "cell A\ninput x\nstate h\ny = x +* 1\nh[t] = = h[t-1]\noutput y h\n")
    program, syntax = parse_partial(source)
    assert len(syntax) == 3
    assert not check(program.cells[0], source)[1]


def test_long_and_deep() -> None:
    deep = "(" * 150 + "x" + ")" * 150
    accept(HEAD + f"u = {deep}\nw = max({', '.join(['x'] * 2000)})\nm = {' + '.join(['x'] * 150)}")


def test_mutations_of_programs_are_checked_without_a_crash() -> None:
    """Programs with a few words exchanged: a diagnostic, or a cell that the verifier accepts."""
    word = re.compile(r'\n|"""(?:.|\n)*?"""|[^\W\d]\w*|\d+\.?\d*|->|\*\*|[<>=!]=|.')
    programs = [word.findall(p.read_text(encoding="utf-8")) for p in (*EXAMPLES, *BAD)]
    pool = sorted({w for words in programs for w in words if not w.startswith('"')} | set(SIGNATURES))
    rng = random.Random(0)
    accepted = 0
    for _ in range(2000):
        words = list(rng.choice(programs))
        for _ in range(rng.choice((1, 1, 2))):
            words[rng.randrange(len(words))] = rng.choice(words if rng.random() < 0.7 else pool)
        source = Source("test.rnn", "".join(words))
        program, syntax = parse_partial(source)
        for tree_cell in program.cells:
            cell, found = check(tree_cell, source)
            assert has_errors([*found, *syntax]) == (cell is None) or syntax
            render_all(source, found)
            if cell is not None:
                verify(cell)
                cell_text(cell)
                accepted += 1
    assert accepted > 50


# --- the frozen lists, and what is imported --------------------------------------------------------------------------


def test_module_attributes() -> None:
    attributes = {name for name in dir(torch.nn.Module()) if not name.startswith("_")}
    assert attributes <= MODULE_ATTRIBUTES


def test_checks_without_torch() -> None:
    script = "import sys, rnnc.check, rnnc.verify, rnnc.parse; print(*{'torch', 'numpy', 'sympy'} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=HERE.parent, timeout=60
    )
    assert run.stdout.strip() == ""
