"""From text to lines: tokens, and the newlines that end a statement.

The terminals are those of `grammar/rnn.lark`. Whatever is no token gets a diagnostic and becomes a token of type
`INVALID`, so that the rest of the program can still be read.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from lark import Token
from lark.lexer import PatternStr

from rnnc.build import MAX_DEPTH, grammar, is_line, number_of, span_of
from rnnc.diagnostics import Diagnostic, Edit
from rnnc.errors.syntax import TooDeep, TooLong, UnclosedBracket, UnmatchedCloser
from rnnc.errors.text import (
    InvalidCharacter,
    InvalidName,
    MalformedNumber,
    NumberOutOfRange,
    StrayString,
    UnclosedDocstring,
    meant,
)
from rnnc.source import Source, Span

MAX_ERRORS = 20
"""After so many, the rest of a program is not read."""

MAX_NAME = 200
"""Characters of a name."""

MAX_TOKENS = 20_000
"""Of a statement."""

CONTINUES = frozenset("PLUS MINUS STAR SLASH POWER COMPARE AND OR NOT _COMMA _EQUALS _ARROW _IN".split())
"""A newline after one of these ends nothing."""

CLOSER = {"LPAR": "RPAR", "LSQB": "RSQB"}
CLOSERS = frozenset(CLOSER.values())


@cache
def _scanner() -> re.Pattern[str]:
    rules = grammar()
    free = [t for t in rules.lark.terminals if t.name not in rules.words.values()]
    free.sort(key=lambda t: (not isinstance(t.pattern, PatternStr), t.pattern.max_width), reverse=True)
    return re.compile("|".join(["(?P<NEWLINE>\n)", *(f"(?P<{t.name}>{t.pattern.to_regexp()})" for t in free)]))


_AFTER_NUMBER = re.compile(r"([0-9A-Za-z_.]|[^\x00-\x7F\s])+")
_STRING = re.compile(r"""(["'])(?:(?!\1)[^\n])*\1""")


def tokens(source: Source, diagnostics: list[Diagnostic]) -> list[Token]:
    """All tokens of a text, newlines included."""
    words, scan, out, text = grammar().words, _scanner().match, list[Token](), source.text
    position = 0
    while position < len(text) and len(diagnostics) < MAX_ERRORS:
        match = scan(text, position)
        if match is None:
            kind, word, end = "INVALID", "", _stray(source, position, diagnostics)
        else:
            kind, word, end = str(match.lastgroup), match.group(), match.end()
        if kind == "NAME":
            word = word if word.isascii() else unicodedata.normalize("NFKC", word)
            if word.isidentifier() and len(word) <= MAX_NAME and "·" not in word:
                kind = words.get(word, kind)
            else:
                kind = "INVALID"
                diagnostics.append(_bad_name(text, Span(position, end)))
        elif kind == "NUMBER":
            if tail := _AFTER_NUMBER.match(text, end):
                end = tail.end()
            if fault := _bad_number(text[position:end], word, position):
                kind = "INVALID"
                diagnostics.append(fault)
        if kind not in ("SPACE", "COMMENT"):
            out.append(Token(kind, word, position, end_pos=end))
        position = end
    return out


def _stray(source: Source, start: int, diagnostics: list[Diagnostic]) -> int:
    """Where what is no token ends."""
    text = source.text
    if text.startswith('"""', start):
        line_end = text.find("\n", start)
        line_end = len(text) if line_end < 0 else line_end
        diagnostics.append(UnclosedDocstring(Span(start, start + 3), line_end))
        spelt = "|".join(grammar().spellings[name] for name in grammar().starters)
        following = re.compile(rf"\n(?=[ \t]*(?:{spelt})\b)").search(text, start)
        return following.start() if following else len(text)
    if string := _STRING.match(text, start):
        diagnostics.append(StrayString(Span(*string.span())))
        return string.end()
    end = start + 1
    while end < len(text) and text[end] == text[start]:
        end += 1
    diagnostics.append(_invalid(text, Span(start, end)))
    return end


def _invalid(text: str, span: Span) -> InvalidCharacter:
    instead = meant(text[span.start])
    if instead is not None and instead.isalpha():
        before = " " if span.start and not text[span.start - 1].isspace() else ""
        instead = f"{before}{instead}{'' if text[span.end : span.end + 1].isspace() else ' '}"
    return InvalidCharacter(span, text[span.start], None if instead is None else Edit(span, instead))


def _bad_name(text: str, span: Span) -> Diagnostic:
    for i in range(span.start, span.end):
        if text[i] == "·" or not unicodedata.normalize("NFKC", "a" + text[i]).isidentifier():
            return _invalid(text, Span(i, i + 1))
    return InvalidName(span, unicodedata.normalize("NFKC", text[span.start : span.end]), MAX_NAME)


def _bad_number(text: str, number: str, start: int) -> Diagnostic | None:
    """`number` is as much of `text` as is one."""
    span = Span(start, start + len(text))
    if text != number:
        return MalformedNumber(span, text, _meant_number(text, number))
    if len(text) > 1 and text[0] == "0" and text.isdigit():
        return MalformedNumber(span, text, text.lstrip("0") or "0")
    if text.isdigit():
        return NumberOutOfRange(span, text, "") if len(text) > 19 or int(text) >= 2**63 else None
    size = abs(number_of(text))
    if math.isinf(size):
        return NumberOutOfRange(span, text, "inf")
    if size == 0 and any(digit in "123456789" for digit in re.split("[eE]", text)[0]):
        return NumberOutOfRange(span, text, "0")
    return None


def _meant_number(text: str, number: str) -> str:
    rest = text.removeprefix(number)
    if len(text) > 40:
        return ""
    if re.fullmatch(r"0([xX][0-9a-fA-F]+|[oO][0-7]+|[bB][01]+)", text):
        return str(int(text, 0))
    if re.fullmatch(r"[0-9]+(_[0-9]+)+", text):
        return text.replace("_", "").lstrip("0") or "0"
    if rest == "J":
        return f"{number}j"
    if not re.match("[eE]", rest) and unicodedata.normalize("NFKC", rest).isidentifier():
        return f"{number} * {rest}"
    return ""


@dataclass(frozen=True)
class Line:
    """The tokens of one statement, without newlines; `broken` where a diagnostic has been given already."""

    tokens: Sequence[Token]
    broken: bool


def lines(tokens: Sequence[Token], diagnostics: list[Diagnostic]) -> Iterator[Line]:
    """The statements of a program."""
    i = 0
    while i < len(tokens) and len(diagnostics) < MAX_ERRORS:
        if tokens[i].type == "NEWLINE":
            i += 1
        else:
            line, i = _line(tokens, i, diagnostics)
            yield line


def _line(tokens: Sequence[Token], start: int, diagnostics: list[Diagnostic]) -> tuple[Line, int]:
    """The statement that begins at `start`, and where the next may begin."""
    starters = grammar().starters
    line: list[Token] = []
    openers: list[int] = []
    broken = False
    i = start
    while i < len(tokens):
        token = tokens[i]
        if token.type == "NEWLINE":
            if not openers and line[-1].type not in CONTINUES:
                break
            if i + 1 < len(tokens) and tokens[i + 1].type in starters:
                break
            i += 1
            continue
        line.append(token)
        if token.type in CLOSER:
            openers.append(i)
            if len(openers) > MAX_DEPTH:
                diagnostics.append(TooDeep(span_of(token), MAX_DEPTH, "brackets"))
                return Line(line, True), _next_statement(tokens, i)
        elif token.type in CLOSERS:
            if openers:
                openers.pop()
            else:
                broken = True
                diagnostics.append(UnmatchedCloser(span_of(token), str(token)))
        elif token.type == "INVALID":
            broken = True
        if len(line) > MAX_TOKENS:
            diagnostics.append(TooLong(span_of(line[0]), MAX_TOKENS))
            return Line(line, True), _next_statement(tokens, i)
        i += 1
    if not openers:
        return Line(line, broken), i
    # A bracket is open to the end: what stands on the lines below the first such bracket was not meant to be inside.
    end = openers[0]
    while end < i and tokens[end].type != "NEWLINE":
        end += 1
    line = [t for t in tokens[start:end] if t.type != "NEWLINE"]
    if not any(t.type == "INVALID" for t in line):
        inner = [k for k in openers if k < end]
        diagnostics.append(_unclosed(line, [tokens[k] for k in inner]))
    return Line(line, True), _next_statement(tokens, end)


def _unclosed(line: Sequence[Token], openers: Sequence[Token]) -> UnclosedBracket:
    """The edit closes all brackets at the end of the line, and is made only where that gives a statement."""
    end = line[-1].end_pos or 0
    kinds = [CLOSER[t.type] for t in reversed(openers)]
    closed = [*line, *(Token(kind, "", end, end_pos=end) for kind in kinds)]
    text = "".join(grammar().spellings[kind] for kind in kinds)
    mended = Edit(Span(end, end), text) if is_line(closed) else None
    return UnclosedBracket(span_of(openers[-1]), str(openers[-1]), text[0], mended)


def _next_statement(tokens: Sequence[Token], i: int) -> int:
    """The first token, from `i` on, that begins a line and looks like the beginning of a statement."""
    while i < len(tokens):
        i += 1
        if tokens[i - 1].type == "NEWLINE" and begins(tokens, i):
            break
    return i


def begins(tokens: Sequence[Token], i: int) -> bool:
    """Whether a word that begins statements stands here, or `y =`, `y in`, `y[...] =`."""
    if i < len(tokens) and tokens[i].type in grammar().starters:
        return True
    if i + 1 >= len(tokens) or tokens[i].type != "NAME":
        return False
    i += 1
    if tokens[i].type == "LSQB":
        while i < len(tokens) and tokens[i].type not in ("RSQB", "NEWLINE"):
            i += 1
        i += 1
    return i < len(tokens) and tokens[i].type in ("_EQUALS", "_IN", "_OVER")
