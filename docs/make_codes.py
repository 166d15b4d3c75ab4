"""Writes docs/codes.md, the page of every diagnostic, from `rnnc.errors`: `make docs`. With --check only compares."""

from __future__ import annotations

import sys
from pathlib import Path

from rnnc.errors import all_codes, by_code

SUBJECTS = {
    "0": "Text and syntax",
    "1": "Names",
    "2": "Dims and sizes",
    "3": "Time, states and circles",
    "4": "Operations and kinds of numbers",
    "5": "Claims: ranges and spectra",
    "6": "Limitations of the compiler",
    "9": "The compiler's own mistakes",
}
HEAD = """\
# Codes

The page of every diagnostic, as `rnnc explain CODE` prints it; made by `make docs` from `rnnc/errors/`. How diagnostics
look, and what tools can rely on, is in [diagnostics.md](diagnostics.md).
"""


def text() -> str:
    parts, subject = [HEAD], ""
    for code in all_codes():
        kind = by_code(code)
        if code[3] != subject:
            subject = code[3]
            parts.append(f"## {SUBJECTS[subject]}\n")
        severity = "" if kind.severity == "error" else f" ({kind.severity})"
        parts.append(f"### {code}: {kind.title}{severity}\n\n{kind.page.strip()}\n")
    return "\n".join(parts)


def main() -> int:
    path = Path(__file__).with_name("codes.md")
    if sys.argv[1:] == ["--check"]:
        return 0 if path.is_file() and path.read_text("utf-8") == text() else 1
    path.write_text(text(), "utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
