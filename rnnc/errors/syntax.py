"""RNN0xx: the text of a program, and its syntax."""

from __future__ import annotations

from dataclasses import dataclass

from rnnc.diagnostics import Diagnostic


@dataclass(frozen=True)
class UnexpectedToken(Diagnostic):
    code = "RNN030"
    title = "something else was expected here"
    page = ""

    found: str
    expected: str

    def message(self) -> str:
        return f"unexpected {self.found}"

    def help(self) -> str:
        return f"expected {self.expected}"
