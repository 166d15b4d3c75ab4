"""RNN00x and RNN01x: files, characters and literals."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from inspect import cleandoc

from rnnc.diagnostics import Diagnostic, Edit
from rnnc.source import Span


@dataclass(frozen=True)
class TooLarge(Diagnostic):
    code = "RNN001"
    title = "a file that is too large"
    page = cleandoc("""
        A program holds at most 1 MiB of text; a cell is a screenful. What is larger is most likely another file.
        """)

    limit: int

    def message(self) -> str:
        return f"the program is larger than {self.limit >> 10} KiB"

    def help(self) -> str:
        return "is this a `.rnn` file? A cell takes a screenful at most"


@dataclass(frozen=True)
class NotUtf8(Diagnostic):
    code = "RNN002"
    title = "a file that is no UTF-8"
    page = cleandoc("""
        A program is UTF-8 text. Most editors have "save with encoding"; on the command line:

        ```sh
        iconv -f latin1 -t utf-8 old.rnn > new.rnn
        ```
        """)

    what: str

    def message(self) -> str:
        return f"the program is no UTF-8: {self.what}"

    def help(self) -> str:
        return "save the file as UTF-8"


@dataclass(frozen=True)
class Binary(Diagnostic):
    code = "RNN003"
    title = "a file that is no text"
    page = cleandoc("""
        The file holds a zero byte, which no text does: it is a binary file, or text in UTF-16 or UTF-32.
        """)

    def message(self) -> str:
        return "the program holds a zero byte: this is no text"

    def label(self) -> str:
        return "here"

    def help(self) -> str:
        return "a program is UTF-8 text"


@dataclass(frozen=True)
class NoCell(Diagnostic):
    code = "RNN004"
    title = "a file without a cell"
    page = cleandoc("""
        A file holds one or more cells; one that is empty, or holds only comments, is no program. The smallest one:

        ```rnn
        cell Sum
        input x
        state s
        s[t] = s[t-1] + x
        output s[t]
        ```
        """)

    def message(self) -> str:
        return "the program is empty"

    def help(self) -> str:
        return "begin with `cell NAME`, then `input`, `state`, an update and `output`"


@dataclass(frozen=True)
class TooManyErrors(Diagnostic):
    code = "RNN005"
    severity = "note"
    title = "more errors than are worth reading"
    page = cleandoc("""
        After so many errors in the syntax of one program the rest of it was not read. Mend the first ones and try
        again.
        """)

    limit: int

    def message(self) -> str:
        return f"stopped after {self.limit} errors; there may be more"


_LOOKALIKES = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": "*", "·": "*", "⋅": "*", "∙": "*", "∗": "*", "⊙": "*",
    "∘": "*", "÷": "/", "∕": "/", "⁄": "/", "→": "->", "⟶": "->", "↦": "->", "≤": "<=", "≥": ">=", "≠": "!=", "∈": "in",
    "∞": "inf", "∧": "and", "∨": "or", "¬": "not", "^": "**", "&": "and", "|": "or", "!": "not",
    "“": '"', "”": '"', "„": '"', "≔": "=",
}  # fmt: skip
"""What a character that has no meaning here was most likely meant to be."""

_HINTS = {
    ";": "a newline ends a statement",
    "\\": "a newline inside brackets, or after an operator, `,` or `=`, ends no statement; no `\\` is needed",
    ".": "numbers are written `0.5`; nothing has attributes",
    "%": "there is no remainder; integers are divided exactly in `dim` lines, with `/`",
    "{": "brackets are `( )` and `[ ]`; a time is written `h[t-1]`",
    "}": "brackets are `( )` and `[ ]`; a time is written `h[t-1]`",
    '"': 'a docstring begins with `"""`, and ends at the next one',
    "'": "there are no strings, and no names with primes",
    "@": "a contraction names its dim: `sum[K](q * S)`",
    "∑": "a sum names its dims: `sum[K](q * S)`",
    "√": "write `sqrt(x)`",
    "∂": "write `grad(e, W[t-1])`",
    "∇": "write `grad(e, W[t-1])`",
}


@dataclass(frozen=True)
class InvalidCharacter(Diagnostic):
    code = "RNN010"
    title = "a character that has no meaning here"
    page = cleandoc("""
        Outside comments and docstrings a program is made of names (any Unicode letters), numbers, and `+ - * / ** ==
        != < <= > >= = -> , : ( ) [ ]`. Operators that look like these but are other characters, as a text copied from
        a paper may hold, are not read as them.

        ```rnn
        h[t] = (1 − z) · h[t-1]      # wrong: U+2212, U+00B7
        h[t] = (1 - z) * h[t-1]      # right
        ```
        """)

    character: str
    mended: Edit | None

    def message(self) -> str:
        return f"{describe(self.character)} has no meaning here"

    def help(self) -> str:
        if self.character in _HINTS:
            return _HINTS[self.character]
        if self.mended is None:
            return ""
        meant = self.mended.text.strip()
        return f"did you mean `{meant}`?" if meant else "put a blank instead" if self.mended.text else "remove it"

    def edit(self) -> Edit | None:
        return self.mended


def meant(character: str) -> str | None:
    """What to write instead of a character, None where that is not known."""
    if character in _HINTS:
        return None
    if character in _LOOKALIKES:
        return _LOOKALIKES[character]
    if character.isspace():
        return " "
    if unicodedata.category(character) in ("Cf", "Cc"):
        return ""
    plain = unicodedata.normalize("NFKC", character)
    return plain if plain != character and plain.isascii() and plain.strip() else None


def describe(character: str) -> str:
    """A character in words: itself, and its number and name where it is not plain."""
    number = f"U+{ord(character):04X}"
    name = unicodedata.name(character, "").lower()
    visible = character.isprintable() and not character.isspace() and character != "`"
    if visible and character.isascii():
        return f"`{character}`"
    return f"{f'`{character}`' if visible else 'a character'} ({number}{' ' + name if name else ''})"


@dataclass(frozen=True)
class InvalidName(Diagnostic):
    code = "RNN011"
    title = "a name that is no identifier"
    page = cleandoc("""
        A name is brought to Unicode's NFKC form and must then be what Python takes for an identifier: a letter or `_`
        first, then letters, digits, `_` and combining marks. `β`, `κ₁` (which is `κ1`) and `x̂` are names; `①x` is
        `1x`, and is none. It has at most 200 characters.
        """)

    normalised: str
    limit: int

    def message(self) -> str:
        if len(self.normalised) > self.limit:
            return f"a name of more than {self.limit} characters"
        return f"`{self.normalised}` is no name" if self.normalised.isprintable() else "this is no name"

    def help(self) -> str:
        return "" if len(self.normalised) > self.limit else "a name starts with a letter or `_`"


@dataclass(frozen=True)
class MalformedNumber(Diagnostic):
    code = "RNN012"
    title = "a number that is written in another way"
    page = cleandoc("""
        Numbers are decimal: `8`, `0.5`, `1e-3`, and imaginary ones `1j`. No leading zeros, no `_`, no hexadecimal;
        and a product needs its `*`.

        ```rnn
        y = 2x + 08       # wrong
        y = 2 * x + 8     # right
        ```
        """)

    text: str
    meant: str
    """What to write instead; empty where that is not known."""

    def message(self) -> str:
        shown = self.text if len(self.text) <= 40 else self.text[:37] + "..."
        return f"`{shown}` is no number"

    def help(self) -> str:
        return f"did you mean `{self.meant}`?" if self.meant else "numbers are written `8`, `0.5`, `1e-3` or `1j`"

    def edit(self) -> Edit | None:
        return Edit(self.span, self.meant) if self.meant else None


@dataclass(frozen=True)
class NumberOutOfRange(Diagnostic):
    code = "RNN013"
    title = "a number beyond the range of its type"
    page = cleandoc("""
        An integer must be below 2**63, any other number a finite float64 that does not round to zero. Infinity is
        `inf`.

        ```rnn
        state m = -1e400     # wrong
        state m = -inf       # right
        ```
        """)

    text: str
    rounded: str
    """`inf`, `0`, or empty for an integer."""

    def message(self) -> str:
        shown = self.text if len(self.text) <= 40 else f"{self.text[:30]}..."
        if not self.rounded:
            return f"the integer `{shown}` is not below 2**63"
        return f"`{shown}` is {self.rounded} in float64"

    def help(self) -> str:
        return "write `inf`" if self.rounded == "inf" else "write a float, such as `1e30`" if not self.rounded else ""


@dataclass(frozen=True)
class StrayString(Diagnostic):
    code = "RNN014"
    title = "a string where none can be"
    page = cleandoc('''
        The language has no strings. A comment starts with `#`; the docstring of a cell stands in three double quotes,
        below its `cell` line.

        ```rnn
        cell Sum
        """A running sum."""
        ```
        ''')

    def message(self) -> str:
        return "the language has no strings"

    def help(self) -> str:
        return 'a comment starts with `#`; the docstring of a cell stands in `"""`, below its `cell` line'


@dataclass(frozen=True)
class UnclosedDocstring(Diagnostic):
    code = "RNN015"
    title = "a docstring that does not end"
    page = cleandoc('''
        A docstring starts and ends with three double quotes.

        ```rnn
        cell Sum
        """A running sum."""
        ```
        ''')

    line_end: int
    """Where the line of the opening quotes ends."""

    def message(self) -> str:
        return "this docstring is never closed"

    def label(self) -> str:
        return "opened here"

    def help(self) -> str:
        return 'end it with `"""`'

    def edit(self) -> Edit | None:
        return Edit(Span(self.line_end, self.line_end), '"""')


@dataclass(frozen=True)
class MisplacedDocstring(Diagnostic):
    code = "RNN016"
    title = "a docstring that is not below `cell`"
    page = cleandoc('''
        A cell has one docstring at most, directly below its `cell` line. Anything else to say is a comment, after
        `#`.

        ```rnn
        cell Sum
        """A running sum."""
        input x       # of anything
        ```
        ''')

    def message(self) -> str:
        return "a docstring stands directly below its `cell` line, and a cell has one at most"

    def help(self) -> str:
        return "a comment starts with `#`"
