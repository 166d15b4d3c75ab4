"""From a program to a class, in this process: `rnnc.compile`."""

from __future__ import annotations

import difflib
import hashlib
import linecache
import os
import re
import sys
import threading
import unicodedata
import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rnnc.diagnostics import render_all
from rnnc.reading import decode
from rnnc.source import Source

if TYPE_CHECKING:
    from rnnc.tree import Program


_LOADING = threading.RLock()


class ProgramWarning(UserWarning):
    """What the compiler warns of, such as a claim that it could neither prove nor refute."""


def load(program: str | os.PathLike[str], *, cell: str | None = None, strict: bool = False) -> type[Any]:
    """See `rnnc.compile`."""
    from rnnc.parse import parse
    from rnnc.pipeline import compile_source, module_text

    source = _source(program)
    name = _choose(parse(source), source, cell)
    compilations = compile_source(source, cell=name, strict=strict)
    said = [d for each in compilations for d in each.diagnostics if d.severity == "warning"]
    if said:
        warnings.warn(ProgramWarning("\n" + render_all(source, said)), stacklevel=3)
    return getattr(load_module(module_text(compilations, source), source.name), name)


def load_module(text: str, origin: str) -> ModuleType:
    """The module of a generated text, made once for each text and origin.

    Its name, and that of its pretended file, hold a hash of both: another program never gets in the way, whatever its
    cells are called, and an older version of this one keeps its own lines.
    """
    stem = re.sub(r"\W", "_", Path(origin).stem.strip("<>"))
    digest = hashlib.sha256(f"{origin}\0{text}".encode()).hexdigest()[:16]
    name = f"rnnc_{stem}_{digest}"
    with _LOADING:
        if name in sys.modules:
            return sys.modules[name]
        module = ModuleType(name)
        module.__file__ = filename = f"<rnnc {Path(origin).name.strip('<>')} {digest}>"
        # The text is our own: templates and expressions, with strings of the program as escaped literals only.
        # Without a modification time `linecache` keeps the entry: tracebacks and `inspect.getsource` find the lines.
        linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
        sys.modules[name] = module
        try:
            exec(compile(text, filename, "exec", dont_inherit=True), module.__dict__)  # noqa: S102
        except BaseException:
            del sys.modules[name]
            raise
        return module


def _source(program: str | os.PathLike[str]) -> Source:
    """A path, or the text itself: what has several lines or begins with `cell`."""
    if isinstance(program, str):
        one_line = re.match(r"\s*cell(\s|$)", program) and not program.endswith(".rnn") and not os.path.exists(program)
        if "\n" in program or one_line:
            return Source("<text>", program)
    path = Path(program)
    return decode(str(path), path.read_bytes())


def _choose(program: Program, source: Source, cell: str | None) -> str:
    names = [c.name.text for c in program.cells]
    shown = ", ".join(names)
    if cell is None:
        if len(names) > 1:
            raise ValueError(f"{source.name} holds several cells: {shown}; choose one, as in cell={names[0]!r}")
        return names[0]
    cell = unicodedata.normalize("NFKC", cell)
    if cell not in names:
        near = difflib.get_close_matches(cell, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {shown}"
        raise ValueError(f"{source.name} has no cell {cell!r}; {hint}")
    return cell
