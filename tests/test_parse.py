"""The grammar, the tree, and that no text whatever makes the parser fail."""

from __future__ import annotations

import logging
import time
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.lark import from_lark
from lark import Lark

from rnnc import tree
from rnnc.build import MAX_DEPTH, grammar
from rnnc.diagnostics import ProgramError, render_all, to_json
from rnnc.format import expression, tree_text
from rnnc.parse import parse, parse_partial
from rnnc.reading import decode
from rnnc.source import Source

EXAMPLES = sorted((Path(__file__).resolve().parent.parent / "examples").glob("*.rnn"))
GRAMMAR = files("rnnc.grammar").joinpath("rnn.lark").read_text(encoding="utf-8")


def program(*lines: str) -> tree.Cell:
    (cell,) = parse(Source("x.rnn", "\n".join(["cell A", *lines]) + "\n")).cells
    return cell


def statement(line: str) -> tree.Statement:
    (only,) = program(line).statements
    return only


def bracketed(text: str) -> str:
    """An expression with all its brackets: its tree, readable."""
    node = statement(f"output {text}")
    assert isinstance(node, tree.Output)
    return expression(node.target)


def codes(text: str) -> list[str]:
    return [d.code for d in parse_partial(Source("x.rnn", text))[1]]


def test_grammar_has_no_conflicts(caplog: pytest.LogCaptureFixture) -> None:
    """Lark resolves shift against reduce in silence, but for its log; reduce against reduce it refuses."""
    from lark import logger

    caplog.set_level(logging.DEBUG, logger.name)
    Lark(GRAMMAR, parser="lalr", lexer="basic", start=["line", "program"], debug=True)
    assert "conflict" not in caplog.text.lower()


def test_grammar_is_strict() -> None:
    """Strict mode also refuses terminals that match the same text. As one grammar, it reads the examples without us."""
    lark = Lark(GRAMMAR, parser="lalr", lexer="basic", start=["line", "program"], strict=True)
    for path in EXAMPLES:
        lark.parse(path.read_text(encoding="utf-8"), start="program")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples(path: Path) -> None:
    source = decode(path.name, path.read_bytes())
    parsed = parse(source)
    (cell,) = parsed.cells
    assert cell.doc and cell.statements
    again = parse(Source("again.rnn", tree_text(parsed)))
    assert tree_text(again) == tree_text(parsed)
    for node in cell.statements:
        # Every node knows its place.
        text = source.slice(node.span)
        assert "\n" not in text and source.text[node.span.start - 1] == "\n"
        assert source.text[node.span.end : node.span.end + 1] in ("\n", "")


def test_examples_are_read_fast() -> None:
    grammar()
    start = time.perf_counter()
    for path in EXAMPLES:
        parse(decode(path.name, path.read_bytes()))
    assert time.perf_counter() - start < 0.05 * len(EXAMPLES)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("a + b - c", "((a + b) - c)"),
        ("a / b * c", "((a / b) * c)"),
        ("-x ** 2", "(-(x ** 2))"),
        ("K ** -0.5 * y", "((K ** (-0.5)) * y)"),
        ("a ** b ** c", "(a ** (b ** c))"),
        ("- - x", "(-(-x))"),
        ("a + b < c * d", "((a + b) < (c * d))"),
        ("not a and b or c == d", "(((not a) and b) or (c == d))"),
        ("not not a", "(not (not a))"),
        ("((a))", "a"),
        ("f(x)[D -> Q](y)", "f(x)[D -> Q](y)"),
        ("(g * h[t-1])[D -> Q]", "(g * h[(t - 1)])[D -> Q]"),
        ("x[D -> H * P]", "x[D -> (H * P)]"),
        ("linear(x, h[t-1] -> H, V, bias=true)", "linear(x, h[(t - 1)] -> H, V, bias=true)"),
        ("rmsnorm[V, K](o, eps=1e-6)", "rmsnorm[V, K](o, eps=1e-06)"),
        ("zeros()", "zeros()"),
        ("1j * 2.5j + .5e1", "((1.0j * 2.5j) + 5.0)"),
        ("a != b", "(a != b)"),
        ("a -b", "(a - b)"),
    ],
)  # fmt: skip
def test_expressions(text: str, meaning: str) -> None:
    assert bracketed(text) == meaning
    assert bracketed(meaning) == meaning


@pytest.mark.parametrize(
    "line",
    [
        "dim D = 512, H = 8",
        "const c = 8.0",
        "const c in (0, inf) = 8.0",
        "input x[D]",
        "input done: bool, f[H] in [0, 1], q[D] in [0, inf), y",
        "param A[D, N] = zeros",
        "buffer A[D] = arange[D](1)",
        "y = x",
        "y[H, V] = x",
        "gate z = x",
        "gate z[D] in [0, 1] = x",
        "decay a in [(-1), 1] = x",
        "beta in (0, 2] = x",
        "lam in disc(1) = x",
        "state S[H, K, V] = (-inf), n[H], c: complex",
        "state S[D] = param",
        "S[t] = x",
        "S[t] over J = x",
        "eigenvalues S in [(-1), 1]",
        "eigenvalues S in annulus(r, 1)",
        "output y",
        "output y = x",
        "output y in [0, 1] = x",
        "output h[t][(H * P) -> D]",
    ],
)
def test_statements(line: str) -> None:
    cell = program(line)
    assert tree_text(tree.Program((cell,))) == f"cell A\n{line}\n"
    assert codes(f"cell A\n{line}\n{line}") == []


def test_kinds_of_equations() -> None:
    assert isinstance(statement("y[D] = x"), tree.Equation)
    assert isinstance(statement("S[t] = x"), tree.Update)
    # What stands in the brackets of an update is the checker's business.
    assert isinstance(statement("S[t-1] = x"), tree.Update)
    assert isinstance(statement("S[0] = x"), tree.Update)


def test_spans() -> None:
    text = "cell A\ngate z[D] in [0, 1] = (a + b)[D -> Q] # z\n"
    source = Source("x.rnn", text)
    (cell,) = parse(source).cells
    (gate,) = cell.statements
    assert isinstance(gate, tree.Equation) and isinstance(gate.expr, tree.Bracket)
    assert source.slice(cell.span) == text[: text.index(" #")]
    assert source.slice(gate.span) == "gate z[D] in [0, 1] = (a + b)[D -> Q]"
    assert source.slice(gate.target.span) == "z[D] in [0, 1]"
    assert source.slice(gate.expr.base.span) == "(a + b)"
    assert source.slice(gate.expr.inner) == "[D -> Q]"


def test_newlines() -> None:
    cell = program(
        "# a comment",
        "dim D =",
        "  4,   # four",
        "",
        "  H = 2",
        "y = f(",
        "  x",
        "  + 1",
        "",
        ") * # twice",
        "  2",
        "input q in",
        " [0, inf), r[",
        " D] in (0,",
        "inf)",
        "z = linear(x ->",
        "  D)",
        "output not",
        "  y",
    )
    assert tree_text(tree.Program((cell,))).splitlines()[1:] == [
        "dim D = 4, H = 2",
        "y = (f((x + 1)) * 2)",
        "input q in [0, inf), r[D] in (0, inf)",
        "z = linear(x -> D)",
        "output (not y)",
    ]


def test_carriage_returns_and_no_newline_at_the_end() -> None:
    text = '# one\r\n\r\ncell A\r\n"""Two\r\nlines."""\r\ny = x +\r\n  1\r\noutput y'
    (cell,) = parse(Source("x.rnn", text)).cells
    assert cell.doc == "Two\nlines."
    assert len(cell.statements) == 2


def test_several_cells() -> None:
    parsed = parse(Source("x.rnn", 'cell A """one"""\noutput x\ncell B\n\n# two\n"""two"""\noutput y\ncell C\n'))
    assert [(c.name.text, c.doc, len(c.statements)) for c in parsed.cells] == [
        ("A", "one", 1),
        ("B", "two", 1),
        ("C", None, 0),
    ]


def test_byte_order_mark() -> None:
    assert parse(decode("x.rnn", b"\xef\xbb\xbfcell A\noutput x\n")).cells[0].name.text == "A"


def test_names() -> None:
    """NFKC: `κ₁` is `κ1`, and a word of the language in another script is that word."""
    cell = program("κ₁ = x", "y = κ1 + x̂ + ā")
    assert tree_text(tree.Program((cell,))).splitlines()[1:] == ["κ1 = x", "y = ((κ1 + x\u0302) + ā)"]
    assert isinstance(statement("ｏutput x"), tree.Output)
    for name in ("__import__", "lambda", "self", "print", "t2", "_"):
        assert isinstance(statement(f"{name} = x"), tree.Equation)  # whether it may be declared, the checker says


def test_numbers() -> None:
    node = statement("y = f(0, 12, 1., .5, 1e3, 1E-3, 2j, 9223372036854775807)")
    assert isinstance(node, tree.Equation) and isinstance(node.expr, tree.Call)
    values = [arg.value for arg in node.expr.args if isinstance(arg, tree.Number)]
    assert values == [0, 12, 1.0, 0.5, 1e3, 1e-3, 2j, 2**63 - 1]
    assert [type(v) for v in values] == [int, int, float, float, float, float, complex, int]


@pytest.mark.parametrize("depth", [MAX_DEPTH - 1, MAX_DEPTH + 1])
def test_depth(depth: int) -> None:
    for expr in (
        "(" * depth + "x" + ")" * depth,
        "f(" * depth + "x" + ")" * depth,
        "x" + "[D -> E]" * depth,
        "-" * depth + "x",
        "not " * depth + "x",
        "x ** " * depth + "x",
        "x + " * depth + "x",
        "x and " * depth + "x",
        "(x - " * depth + "x" + ")" * depth,
    ):
        assert codes(f"cell A\ny = {expr}\n") == ([] if depth < MAX_DEPTH else ["RNN023"]), expr[:20]
    if depth < MAX_DEPTH:
        tree_text(parse(Source("x.rnn", f"cell A\ny = {expr}\n")))  # those who recurse can


def test_several_diagnostics_and_the_rest_of_the_program() -> None:
    text = "cell A\ninput x\ny = 2x\nz = (x + 1\nw = x\nstate s\ns[t] = s[t-1] + + * x\ncell B\noutput w\n"
    parsed, found = parse_partial(Source("x.rnn", text))
    assert [d.code for d in found] == ["RNN012", "RNN020", "RNN030"]
    a, b = parsed.cells
    assert tree_text(tree.Program((a,))) == "cell A\ninput x\nw = x\nstate s\n"
    assert a.unread == {"y", "z", "x", "s", "t"}
    assert tree_text(tree.Program((b,))) == "cell B\noutput w\n" and not b.unread
    with pytest.raises(ProgramError) as caught:
        parse(Source("x.rnn", text))
    assert caught.value.diagnostics == tuple(found)


@pytest.mark.parametrize(
    "text",
    ["(", "[)", "x+", "a[t]=(\n", "a a\n", '"', "é", "9", "$a", "\n("],
    ids=repr,
)
def test_a_megabyte(text: str) -> None:
    start = time.perf_counter()
    source = Source("x.rnn", f"cell A\ny = {text * (10**6 // len(text))}")
    _, found = parse_partial(source)
    assert found and len(render_all(source, found)) < 20_000
    assert time.perf_counter() - start < 30


def never_fails(text: str) -> None:
    """Any text gives a tree that can be printed and read again, or diagnostics that can be shown."""
    source = Source("x.rnn", text)
    parsed, found = parse_partial(source)
    for diagnostic in found:
        assert diagnostic.message() and diagnostic.code.startswith("RNN0")
        assert 0 <= diagnostic.span.start <= diagnostic.span.end <= len(text)
        to_json(source, diagnostic)
    render_all(source, found)
    printed = tree_text(parsed)
    if not found:
        assert tree_text(parse(Source("again.rnn", printed))) == printed


PIECES = [
    *grammar().words,
    *grammar().spellings.values(),
    *["\n", "\n", " ", "\t", "\r\n", "# c\n", '"""', "'", "cell A\n", "h[t-1]", "in disc(1)"],
    *["x", "t", "D", "1", "2.5", "1e", "08", "1j", "β", "κ₁", "−", "·", "①", "^", ";"],
    *["\u0302", "\x00", "\ufeff", "\ud800"],
]


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    try:
        source = decode("x.rnn", data)
    except ProgramError as error:
        assert str(error)
    else:
        never_fails(source.text)


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=100))
def test_any_text(text: str) -> None:
    never_fails(text)
    never_fails(f"cell A\ny = {text}\noutput y\n")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40), st.sampled_from(["", " "]))
def test_any_pieces(pieces: list[str], blank: str) -> None:
    never_fails(blank.join(pieces))
    never_fails("cell A\n" + blank.join(pieces))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutations_of_the_examples(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(EXAMPLES)).read_text(encoding="utf-8")
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.sampled_from([0, 0, 1, 2, 10])))
        text = text[:start] + data.draw(st.sampled_from(["", *PIECES])) + text[end:]
    never_fails(text)


TERMINALS = {
    "NAME": st.sampled_from(["x", "t", "D", "h", "β", "κ1", "sum", "linear"]),
    "NUMBER": st.sampled_from(["0", "12", ".5", "2e3", "1j"]),
    "SPACE": st.just(" "),
    "COMMENT": st.just("# c"),
}


@settings(max_examples=100, deadline=None)
@given(from_lark(Lark(GRAMMAR, parser="lalr", lexer="basic", start=["program"]), start="program", explicit=TERMINALS))
def test_whatever_the_grammar_makes(text: str) -> None:
    never_fails(text)
