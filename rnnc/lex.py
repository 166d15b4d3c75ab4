"""From text to lines: tokens, and the newlines that end a statement.

The terminals are those of `grammar/rnn.lark`. Whatever is no token gets a diagnostic and becomes a token of type
`INVALID`, so that the rest of the program can still be read.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from lark import Lark, Token
from lark.lexer import PatternStr

from rnnc.build import Builder
from rnnc.diagnostics import Diagnostic
from rnnc.errors.syntax import UnexpectedToken
from rnnc.source import Source, Span

MAX_DEPTH = 200
"""Of brackets, and of operators inside one another."""

CONTINUES = {"PLUS", "MINUS", "STAR", "SLASH", "POWER", "COMPARE", "AND", "OR", "NOT", "_COMMA", "_EQUALS", "_ARROW", "_IN"}
"""A newline after one of these ends nothing."""

OPENERS = {"LPAR", "LSQB"}
CLOSERS = {"RPAR", "RSQB"}


@dataclass(frozen=True)
class Grammar:
    """What the stages need to know of `rnn.lark`."""

    lark: Lark
    scanner: re.Pattern[str]
    words: Mapping[str, str]
    """Each word of the language, and its terminal."""
    starters: frozenset[str]
    """The terminals of words that begin a line."""
    terminals: Mapping[str, str]
    """How each terminal with one spelling is spelt."""


@cache
def grammar() -> Grammar:
    text = files("rnnc.grammar").joinpath("rnn.lark").read_text(encoding="utf-8")
    lark = Lark(text, parser="lalr", lexer="basic", start=["line"], transformer=Builder())
    fixed = {t.name: t.pattern.value for t in lark.terminals if isinstance(t.pattern, PatternStr)}
    words = {spelling: name for name, spelling in fixed.items() if spelling.isidentifier()}
    free = [t for t in lark.terminals if t.name not in words.values()]
    free.sort(key=lambda t: (not isinstance(t.pattern, PatternStr), t.pattern.max_width), reverse=True)
    scanner = re.compile("|".join([r"(?P<NEWLINE>\n)", *(f"(?P<{t.name}>{t.pattern.to_regexp()})" for t in free)]))
    first = lark.parse_interactive().choices()
    return Grammar(lark, scanner, words, frozenset(n for n in words.values() if n in first), fixed)


@dataclass(frozen=True)
class Line:
    """The tokens of one statement, without newlines; not to be parsed where it is `broken`."""

    tokens: Sequence[Token]
    broken: bool


def tokens(source: Source, diagnostics: list[Diagnostic]) -> list[Token]:
    """All tokens of a text, newlines included."""
    rules, out, text = grammar(), list[Token](), source.text
    position = 0
    while position < len(text):
        match = rules.scanner.match(text, position)
        if match is None:
            kind, word, end = "INVALID", text[position], position + 1
        else:
            kind, word, end = str(match.lastgroup), match.group(), match.end()
        if kind == "NAME":
            word = unicodedata.normalize("NFKC", word)
            kind = rules.words.get(word, "NAME") if word.isidentifier() else "INVALID"
        if kind == "INVALID":
            diagnostics.append(UnexpectedToken(Span(position, end), f"`{word}`", "a name, a number or an operator"))
        if kind not in ("SPACE", "COMMENT"):
            out.append(Token(kind, word, position, end_pos=end))
        position = end
    return out


def lines(tokens: Sequence[Token]) -> Iterator[Line]:
    """The statements of a program."""
    starters = grammar().starters
    line: list[Token] = []
    depth = 0
    for i, token in enumerate(tokens):
        if token.type == "NEWLINE":
            follower = tokens[i + 1].type if i + 1 < len(tokens) else ""
            ends = not depth and line and line[-1].type not in CONTINUES
            if line and (ends or follower in starters):
                yield Line(line, any(t.type == "INVALID" for t in line))
                line, depth = [], 0
            continue
        depth = max(0, depth + (token.type in OPENERS) - (token.type in CLOSERS))
        line.append(token)
    if line:
        yield Line(line, any(t.type == "INVALID" for t in line))
