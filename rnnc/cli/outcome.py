"""What a command came to: reading programs, saying what is wrong with them, exit statuses."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import traceback
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rnnc import __version__
from rnnc.cli.terminal import use_color
from rnnc.diagnostics import Diagnostic, LimitationError, ProgramError, render_all
from rnnc.source import Source, Span

if TYPE_CHECKING:
    from rnnc.pipeline import Compilation, Stage

RIGHT, WRONG, USAGE, LIMITATION, BUG = 0, 1, 2, 3, 70
T = TypeVar("T")


class UsageError(Exception):
    """The command line is wrong; the message says how."""


def read(name: str) -> bytes:
    """The content of a FILE argument."""
    try:
        with open(0 if name == "-" else name, "rb", closefd=name != "-") as stream:
            return stream.read()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise UsageError(f"cannot read {source_name(name)}: {getattr(error, 'strerror', None) or error}") from None


def source_name(name: str) -> str:
    return "<stdin>" if name == "-" else name


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of one program: a value, or the diagnostics that forbid it; and the exit status."""

    source: Source
    value: T | None
    diagnostics: tuple[Diagnostic, ...]
    status: int


def attempt(name: str, data: bytes, action: Callable[[Source], T]) -> Outcome[T]:
    """Run `action` on a program."""
    from rnnc.reading import decode

    source = Source(name, "")
    try:
        source = decode(name, data)
        return Outcome(source, action(source), (), RIGHT)
    except UsageError:
        raise
    except ProgramError as error:
        status = LIMITATION if isinstance(error, LimitationError) else WRONG
        return Outcome(error.source, None, error.diagnostics, status)
    except Exception as error:
        return Outcome(source, None, (internal_error(error),), BUG)


def compiled(source: Source, chosen: argparse.Namespace, until: Stage) -> tuple[Compilation, ...]:
    """The cells of a program, or the one that `--cell` names."""
    from rnnc.pipeline import compile_source

    name: str | None = chosen.cell and unicodedata.normalize("NFKC", chosen.cell)
    found = compile_source(source, cell=name, strict=chosen.strict, until=until)
    if not found:
        from rnnc.parse import parse

        names = ", ".join(f"`{cell.name.text}`" for cell in parse(source).cells)
        raise UsageError(f"{source.name} has no cell `{name}`; it has {names}")
    return found


def say(source: Source, diagnostics: Iterable[Diagnostic], *, notes: bool = True) -> None:
    """Print diagnostics on standard error."""
    chosen = [d for d in diagnostics if notes or d.severity != "note"]
    if chosen:
        text = render_all(source, chosen, color=use_color(sys.stderr))
        # A name that the terminal's encoding lacks must not end the command.
        encoding = sys.stderr.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), end="\n\n", file=sys.stderr)


def internal_error(error: BaseException) -> Diagnostic:
    """A bug as a diagnostic; its traceback goes to standard error under RNNC_DEBUG=1 only."""
    from rnnc.errors.limits import InternalError

    if os.environ.get("RNNC_DEBUG"):
        traceback.print_exception(error)
    return InternalError(Span(0, 0), _what(error), __version__)


def bug(error: BaseException) -> int:
    """Report a bug outside of any program."""
    if os.environ.get("RNNC_DEBUG"):
        traceback.print_exception(error)
    print(
        f"rnnc: error[RNN900]: a bug in rnnc {__version__}: {_what(error)}\n"
        f"Python {platform.python_version()}, {platform.platform()}\n"
        "Please report this, with the command and its output under RNNC_DEBUG=1.",
        file=sys.stderr,
    )
    return BUG


def _what(error: BaseException) -> str:
    frames: Any = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}{': ' + text if text else ''}{place}"
