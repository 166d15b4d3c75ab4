"""Every wrong program under `diagnostics/bad/` gets the exact text beside it, and every code has such a program.

`python tests/test_diagnostics.py --update` rewrites the texts; look at the difference before it is committed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from rnnc.diagnostics import ProgramError, render_all
from rnnc.errors import all_codes, by_code
from rnnc.errors.syntax import TooLong
from rnnc.errors.text import TooLarge
from rnnc.parse import parse_partial
from rnnc.pipeline import compile_source
from rnnc.reading import decode
from rnnc.source import Source, Span

BAD = Path(__file__).resolve().parent / "diagnostics" / "bad"
PROGRAMS = sorted(BAD.glob("*.rnn"))

NO_PROGRAM = {
    "RNN001": "a megabyte of text; tested here",
    "RNN024": "a statement of 20000 words; tested here",
    "RNN900": "a bug in the compiler, of which none is known; tested in test_cli.py",
}
"""Codes that have no bad program, and why."""


def diagnose(path: Path) -> str:
    """What `rnnc check` would say about a program."""
    try:
        source = decode(path.name, path.read_bytes())
        found = [d for compilation in compile_source(source) for d in compilation.diagnostics]
    except ProgramError as error:
        source, found = error.source, error.diagnostics
    return render_all(source, found) + "\n"


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_text(path: Path) -> None:
    said = diagnose(path)
    assert said == path.with_suffix(".err").read_text(encoding="utf-8")
    assert f"[{path.stem[:6]}]" in said, "the code in the file's name is not among the diagnostics"


def test_every_text_has_a_program() -> None:
    assert {path.stem for path in BAD.glob("*.err")} == {path.stem for path in PROGRAMS}


def test_every_code_has_a_program() -> None:
    covered = {path.stem[:6] for path in PROGRAMS}
    assert covered <= set(all_codes())
    assert set(all_codes()) - covered == set(NO_PROGRAM)


@pytest.mark.parametrize("code", all_codes())
def test_page(code: str) -> None:
    kind = by_code(code)
    assert re.fullmatch(r"RNN[0-9]{3}", code)
    assert kind.title
    assert kind.page.strip()
    assert kind.page.count("```") % 2 == 0


def test_edits_mend() -> None:
    """Applied one at a time, each edit leaves fewer errors of syntax than there were."""
    for path in PROGRAMS:
        try:
            source = decode(path.name, path.read_bytes())
        except ProgramError:
            continue
        _, found = parse_partial(source)
        for _ in range(20):
            if not found or found[0].edit() is None:
                break
            edit = found[0].edit()
            assert edit is not None
            source = Source(source.name, source.text[: edit.span.start] + edit.text + source.text[edit.span.end :])
            before, (_, found) = found, parse_partial(source)
            assert len(found) < len(before), f"{path.name}: {before[0].message()} is not mended by {edit}"


def test_too_large() -> None:
    _, found = parse_partial(Source("x.rnn", "#" * (2**20 + 1)))
    assert found == [TooLarge(Span(0, 0), 2**20)]
    assert found[0].message() == "the program is larger than 1024 KiB"


def test_too_long() -> None:
    text = "cell Sum\ny = max(" + "x, " * 10_000 + "x)\nz = ?\n"
    _, found = parse_partial(Source("x.rnn", text))
    assert isinstance(found[0], TooLong)
    assert [d.code for d in found] == ["RNN024", "RNN010"]


def test_lone_surrogate() -> None:
    _, found = parse_partial(Source("x.rnn", "cell Sum # \ud800\n"))
    assert [d.message() for d in found] == ["the program is no UTF-8: a lone surrogate, U+D800"]


def update() -> None:
    for path in PROGRAMS:
        path.with_suffix(".err").write_text(diagnose(path), encoding="utf-8", newline="\n")


if __name__ == "__main__" and sys.argv[1:] == ["--update"]:
    update()
