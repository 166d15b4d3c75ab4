"""Program texts to checked cells."""

from __future__ import annotations

from pathlib import Path

from rnnc.check import check
from rnnc.diagnostics import ProgramError
from rnnc.ir import Cell
from rnnc.parse import parse
from rnnc.source import Source

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def read(text: str) -> Cell:
    """The only cell of a text that is right."""
    source = Source("test.rnn", text)
    cell, diagnostics = check(parse(source).cells[0], source)
    if cell is None:
        raise ProgramError(source, diagnostics)
    return cell


def example(stem: str) -> Cell:
    return read((EXAMPLES / f"{stem}.rnn").read_text(encoding="utf-8"))
