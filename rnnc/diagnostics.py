"""Diagnostics: what they are, and the one place that renders them.

A diagnostic is a frozen dataclass: class variables are its code, severity, title and page (what `rnnc explain CODE`
prints), fields are the facts of one case. The classes live in `rnnc/errors/`, one file a subject.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rnnc.source import Source, Span

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Edit:
    """Replace `span` by `text` to mend the program."""

    span: Span
    text: str


@dataclass(frozen=True)
class Diagnostic:
    """Base of all diagnostics. Names of the program stand in backquotes in messages.

    Codes: RNN0xx text and syntax, 1xx names, 2xx dims and sizes, 3xx time, states and circles, 4xx operations and
    kinds, 5xx claims (ranges and spectra), 6xx limitations of the compiler (exit status 3), 9xx the compiler's own.
    """

    code: ClassVar[str]
    severity: ClassVar[Severity] = "error"
    title: ClassVar[str]
    page: ClassVar[str]
    """Markdown: what the rule is, a wrong program, the right one."""

    span: Span

    def message(self) -> str:
        """One sentence: what was found."""
        raise NotImplementedError

    def label(self) -> str:
        """A few words beside the carets; empty for none."""
        return ""

    def help(self) -> str:
        """What would be valid, or how to mend it; empty for none."""
        return ""

    def edit(self) -> Edit | None:
        """The one edit that mends it, where there is one."""
        return None

    def related(self) -> Sequence[tuple[Span, str]]:
        """Other places that matter, with a label each."""
        return ()


class ProgramError(Exception):
    """The program is wrong: carries every diagnostic found, warnings included."""

    def __init__(self, source: Source, diagnostics: Sequence[Diagnostic]) -> None:
        super().__init__(render_all(source, diagnostics))
        self.source = source
        self.diagnostics = tuple(diagnostics)


class LimitationError(ProgramError):
    """The program is right, but the compiler cannot do it (exit status 3)."""


def has_errors(diagnostics: Iterable[Diagnostic]) -> bool:
    return any(d.severity == "error" for d in diagnostics)


_BOLD, _RESET = "\x1b[1m", "\x1b[0m"
_COLOUR = {"error": "\x1b[31m", "warning": "\x1b[33m", "note": "\x1b[36m", "help": "\x1b[32m", "bar": "\x1b[34m"}
_WIDTH = 160


def render(source: Source, diagnostic: Diagnostic, *, color: bool = False) -> str:
    """One diagnostic as text: headline, place, source line with carets, help, and the mended line.

    Long lines are cut around the carets; control characters of the source are shown as U+FFFD.
    """

    def paint(text: str, *names: str) -> str:
        codes = "".join(_BOLD if n == "bold" else _COLOUR[n] for n in names)
        return f"{codes}{text}{_RESET}" if color else text

    kind = diagnostic.severity
    out = [f"{paint(f'{kind}[{diagnostic.code}]', 'bold', kind)}{paint(': ' + diagnostic.message(), 'bold')}"]
    places = [(diagnostic.span, diagnostic.label(), "^"), *((s, label, "-") for s, label in diagnostic.related())]
    gutter = max(len(str(source.position(s.start)[0])) for s, _, _ in places)
    for i, (span, label, mark) in enumerate(places):
        line, column = source.position(span.start)
        arrow = "-->" if i == 0 else ":::"
        out.append(f"{' ' * gutter}{paint(arrow, 'bar')} {source.name}:{line}:{column}")
        text, shift = _window(source.line(line), column)
        end_line, end_column = source.position(span.end)
        stop = end_column if end_line == line else len(source.line(line)) + 1
        width = max(1, min(stop, shift + len(text) + 1) - column)
        bar = paint("|", "bar")
        out.append(f"{' ' * gutter} {bar}")
        out.append(f"{paint(str(line).rjust(gutter), 'bar')} {bar} {text}".rstrip())
        carets = paint(mark * width + (f" {label}" if label else ""), kind if i == 0 else "bar")
        out.append(f"{' ' * gutter} {bar} {_indent(text, column - 1 - shift)}{carets}")
    if help_text := diagnostic.help():
        out.append(f"{' ' * gutter} {paint('=', 'bar')} {paint('help', 'bold', 'help')}: {help_text}")
    edit = diagnostic.edit()
    if edit is not None:
        mended = Source(source.name, source.text[: edit.span.start] + edit.text + source.text[edit.span.end :])
        line, column = mended.position(edit.span.start)
        text, shift = _window(mended.line(line), column)
        out.append(f"{paint(str(line).rjust(gutter), 'bar')} {paint('+', 'help')} {text}")
    return "\n".join(out)


def _window(line: str, column: int) -> tuple[str, int]:
    """At most `_WIDTH` characters of a line around a column, and how many were cut on the left."""
    shift = 0 if len(line) <= _WIDTH else max(0, min(column - 1 - _WIDTH // 2, len(line) - _WIDTH))
    shown = line[shift : shift + _WIDTH]
    return "".join(ch if ch.isprintable() or ch == "\t" else "\ufffd" for ch in shown), shift


def _indent(text: str, width: int) -> str:
    """Blanks as wide as the first `width` characters of `text`: tabs stay, wide characters take two."""
    from unicodedata import combining, east_asian_width

    cells = (
        ch if ch == "\t" else "" if combining(ch) else "  " if east_asian_width(ch) in "WF" else " "
        for ch in text[:width]
    )
    return "".join(cells)


def render_all(source: Source, diagnostics: Iterable[Diagnostic], *, color: bool = False) -> str:
    return "\n\n".join(render(source, d, color=color) for d in diagnostics)


def to_json(source: Source, diagnostic: Diagnostic) -> dict[str, Any]:
    """The documented form of `rnnc check --format json`."""
    line, column = source.position(diagnostic.span.start)
    end_line, end_column = source.position(diagnostic.span.end)
    return {
        "code": diagnostic.code,
        "severity": diagnostic.severity,
        "file": source.name,
        "line": line,
        "column": column,
        "end_line": end_line,
        "end_column": end_column,
        "message": diagnostic.message(),
        "help": diagnostic.help(),
    }
