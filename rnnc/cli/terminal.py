"""What the command line shows to a person: colour and progress, only where a person looks."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TextIO, TypeVar

T = TypeVar("T")
_PATIENCE = 1.0
"""Seconds after which a wait is worth a progress bar."""


def use_color(stream: TextIO) -> bool:
    """https://no-color.org and https://force-color.org; otherwise only on a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


_COLOR = {"bold": "\x1b[1m", "dim": "\x1b[2m", "red": "\x1b[31m", "green": "\x1b[32m"}


def paint(text: str, style: str, color: bool) -> str:
    return f"{_COLOR[style]}{text}\x1b[0m" if color else text


def progress(items: Sequence[T], label: str) -> Iterator[T]:
    """The items; where standard error is a terminal and they take more than a second, with a bar there."""
    if not sys.stderr.isatty():
        yield from items
        return
    start, shown = time.monotonic(), False
    try:
        for i, item in enumerate(items):
            if shown or time.monotonic() - start > _PATIENCE:
                shown = True
                width = max(10, min(40, shutil.get_terminal_size().columns - len(label) - 20))
                full = width * i // len(items)
                bar = "━" * full + "╌" * (width - full)
                sys.stderr.write(f"\r\x1b[K{label} {bar} {i}/{len(items)}")
                sys.stderr.flush()
            yield item
    finally:
        if shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
