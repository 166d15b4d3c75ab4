"""RNN9xx: the compiler's own mistakes."""

from __future__ import annotations

from dataclasses import dataclass

from rnnc.diagnostics import Diagnostic


@dataclass(frozen=True)
class InternalError(Diagnostic):
    code = "RNN900"
    title = "a bug in the compiler"
    page = """\
The compiler stopped where it must not, whatever the program is: your program may be right. The exit status is 70.

Please report it, with the program and with what the same command prints under `RNNC_DEBUG=1`, which adds the traceback:

    RNNC_DEBUG=1 rnnc compile mycell.rnn

The program can often be written in another way meanwhile: the smaller the part that provokes the bug, the easier this
is to find.
"""

    what: str
    version: str

    def message(self) -> str:
        return f"a bug in rnnc {self.version}: {self.what}"

    def help(self) -> str:
        return "the program may be right; please report this, with the output under RNNC_DEBUG=1"
