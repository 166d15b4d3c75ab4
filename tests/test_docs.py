"""What the documents say is so: codes, links, programs, and the README's first minute."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rnnc.diagnostics import render_all
from rnnc.explain import report
from rnnc.pipeline import compile_source
from rnnc.source import Source

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def run(*command: str | Path, cwd: Path) -> str:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_codes_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "make_codes.py", "--check"], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, "docs/codes.md is out of date: make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links(page: Path) -> None:
    for target in re.findall(
        r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    ):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "language.md"], ids=lambda p: p.name)
def test_whole_programs_are_right(page: Path) -> None:
    programs = [text for text in blocks(page, "rnn") if text.startswith("cell ")]
    assert programs
    for text in programs:
        source = Source(page.name, text)
        (made,) = compile_source(source)
        assert not made.diagnostics, render_all(source, made.diagnostics)


def test_the_table_of_cells_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "make_cells.py", "--check"], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, "the README's table of cells is out of date: make docs"


def test_fields_of_the_report_are_documented() -> None:
    path = ROOT / "examples" / "gla.rnn"
    source = Source(path.name, path.read_text("utf-8"))
    said, page = report(source, compile_source(source)), (ROOT / "docs" / "explain.md").read_text("utf-8")
    cell = said["cells"][0]
    for part in (said, said["groups"][0], cell, cell["claims"][0], cell["inputs"][0], cell["parameters"][0]):
        for name in part:
            assert f"`{name}`" in page, name


def test_the_first_minute(tmp_path: Path) -> None:
    """The README's second program and its Python, as a reader would type them."""
    readme = ROOT / "README.md"
    program = next(text for text in blocks(readme, "rnn") if text.startswith("cell Smoother"))
    (tmp_path / "smoother.rnn").write_text(program, "utf-8")
    (console,) = (text for text in blocks(readme, "console") if "smoother" in text)
    commands = re.findall(r"^\$ rnnc (\w+) ([^#\n]*)", console, re.MULTILINE)
    assert [name for name, _ in commands] == ["check", "compile", "explain", "test"]
    for name, arguments in commands:
        run(sys.executable, "-m", "rnnc", name, *arguments.split(), cwd=tmp_path)
    (tmp_path / "train.py").write_text(blocks(readme, "python")[0], "utf-8")
    run(sys.executable, "train.py", cwd=tmp_path)
