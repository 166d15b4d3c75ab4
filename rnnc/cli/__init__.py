"""`rnnc`: the command line.

Goals: fast to start (a subcommand imports what it needs when it runs), quiet, never a bare traceback, and an exit
status that says whose fault it was.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, cast

from rnnc.cli.arguments import parser
from rnnc.cli.outcome import USAGE, UsageError, bug


class _Interrupted(BaseException):
    """A signal asked us to stop; an exception, so that `finally` runs."""

    def __init__(self, number: int) -> None:
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: that of the process) and give its exit status."""
    try:
        with _stopping():
            return _run(arguments)
    except _Interrupted as stop:
        number = stop.number
    except BrokenPipeError:  # whoever read us has enough: nothing to say
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        number = getattr(signal, "SIGPIPE", None)
    if number is not None:  # die by the signal itself: a shell's loop stops only then
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    return 1


def _run(arguments: Sequence[str] | None) -> int:
    try:
        try:
            chosen = parser().parse_args(arguments)
            status = cast(int, importlib.import_module(f"rnnc.cli.{chosen.command}").run(chosen))
        except SystemExit as done:  # argparse: help, version, errors
            status = done.code if isinstance(done.code, int) else USAGE
        print(end="", flush=True)  # where a full disk or a reader that left shows
    except BrokenPipeError:
        raise
    except (UsageError, OSError) as error:
        print(f"rnnc: error: {error}", file=sys.stderr)
        return USAGE
    except Exception as error:
        return bug(error)
    return status


@contextmanager
def _stopping() -> Generator[None]:
    """Turn the signals that end a command into `_Interrupted`, once: cleaning up is not interrupted again."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [number for name in names if (number := getattr(signal, name, None)) is not None]
    old: dict[int, Any] = {}

    def stop(number: int, _: FrameType | None) -> None:
        for other in old:
            signal.signal(other, signal.SIG_IGN)
        raise _Interrupted(number)

    with suppress(ValueError):  # signals are the main thread's
        for number in numbers:
            handler = signal.getsignal(number)
            if handler is not signal.SIG_IGN:  # as under `nohup`
                old[number] = handler
                signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
