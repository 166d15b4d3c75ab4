"""Bytes to a source."""

from __future__ import annotations

from rnnc.diagnostics import ProgramError
from rnnc.errors.text import NotUtf8
from rnnc.source import Source, Span


def decode(name: str, data: bytes) -> Source:
    """The source of a program's bytes; `ProgramError` where they are no UTF-8. A byte order mark is dropped."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return Source(name, data.decode("utf-8"))
    except UnicodeDecodeError as error:
        start = len(data[: error.start].decode("utf-8"))
        source = Source(name, data.decode("utf-8", "replace"))
        what = f"byte 0x{data[error.start]:02x} cannot stand here"
        raise ProgramError(source, [NotUtf8(Span(start, start + 1), what)]) from None
