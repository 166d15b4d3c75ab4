"""Why a line is none: from the token where the grammar gave up to a diagnostic in words.

The cases are tried from the most special one to the general one; an edit is proposed only where the line, edited, can
be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from keyword import iskeyword

from lark import Token

from rnnc.build import Misfit, grammar, is_line, span_of
from rnnc.diagnostics import Diagnostic, Edit
from rnnc.errors.syntax import (
    BadDims,
    BareExpression,
    ChainedComparison,
    EqualsInExpression,
    MismatchedBracket,
    MissingEquals,
    MissingNewline,
    ReservedWord,
    StartsWithOperator,
    UnexpectedEnd,
    UnexpectedToken,
    UnknownStatement,
)
from rnnc.lex import CLOSER, CLOSERS, CONTINUES, begins
from rnnc.source import Source, Span

INFIX = (CONTINUES | {"_OVER"}) - {"NOT"}
"""A line cannot start with one of these."""


def blame(source: Source, line: Sequence[Token], misfit: Misfit, before: Sequence[Token]) -> tuple[Diagnostic, int]:
    """What is wrong with a line, and at which of its tokens another statement may begin (their number for none).

    `before` is the line above.
    """
    at, accepted = misfit.index, misfit.accepted
    token = line[at] if at < len(line) else None
    if at == 0 and line[0].type in INFIX and before and not _reserved(line, at):
        return StartsWithOperator(span_of(line[0]), _shown(line[0]), _to_line_before(source, before, line)), len(line)
    if found := _reserved(line, at) or _head(source, line, at, accepted):
        return found, len(line)
    if token is None:
        end = line[-1].end_pos or 0
        return UnexpectedEnd(Span(end, end), _shown(line[-1]), expected(accepted)), at
    if token.type in grammar().starters and "$END" in accepted:
        return MissingNewline(span_of(token), str(token), Span(line[at - 1].end_pos or 0, span_of(token).start)), at
    if "AND" in accepted and token.type == "_EQUALS":
        return _equals(source, line, at)
    if "AND" in accepted and token.type == "COMPARE":
        return _chain(source, line, at), len(line)
    if found := _mismatched(line, at, accepted):
        return found, len(line)
    if token.type == "NUMBER" and not {"NUMBER", "_COMMA"} & accepted and _depth(line[:at]):
        return BadDims(span_of(token)), len(line)
    what = {"NUMBER": f"number `{_shown(token)}`", "DOC": "docstring"}.get(token.type, f"`{_shown(token)}`")
    mended = _repair(line, at, accepted)
    return UnexpectedToken(span_of(token), what, expected(accepted), mended, _hint(line, at)), len(line)


_OPERATORS = {"PLUS", "MINUS", "STAR", "SLASH", "POWER", "COMPARE", "AND", "OR"}
_EXPRESSION = {"NUMBER", "NAME", "LPAR", "PLUS", "MINUS", "NOT"}


def expected(accepted: frozenset[str]) -> str:
    """A set of terminals in words."""
    rules = grammar()
    if rules.starters <= accepted:
        return "a statement"
    left = set(accepted) - {"DOC"}
    words: list[str] = []
    if "NUMBER" in left:
        words.append("an expression")
        left -= _EXPRESSION
    if "AND" in left:
        words.append("an operator")
        left -= _OPERATORS | {"LPAR", "LSQB"}
    if "NAME" in left:
        words.append("a name")
    words += [f"`{text}`" for name, text in rules.spellings.items() if name in left]
    if "$END" in left:
        words.append("the end of the line")
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _shown(token: Token) -> str:
    text = '"""' if token.type == "DOC" else str(token)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _like(token: Token, kind: str) -> Token:
    """A token of another kind at the same place, to try an edit."""
    return Token(kind, str(token), token.start_pos, end_pos=token.end_pos)


def _depth(line: Sequence[Token]) -> int:
    return sum((t.type in CLOSER) - (t.type in CLOSERS) for t in line)


def _reserved(line: Sequence[Token], at: int) -> Diagnostic | None:
    """Whether all would be well if a word of the language were a name."""
    words = set(grammar().words.values())
    for k in (at, at - 1):
        if 0 <= k < len(line) and line[k].type in words and not (at == len(line) and line[k].type in CONTINUES):
            kind = line[k].type
            if is_line([*line[:k], *(_like(t, "NAME") if t.type == kind else t for t in line[k:])]):
                return ReservedWord(span_of(line[k]), str(line[k]))
    return None


def _head(source: Source, line: Sequence[Token], at: int, accepted: frozenset[str]) -> Diagnostic | None:
    """A wrong word at the beginning, an expression alone, or no `=`."""
    rules, first = grammar(), line[0]
    spelt = [word for word, name in rules.words.items() if name in rules.starters]
    if first.type == "NAME":
        for word in get_close_matches(first.lower(), spelt, n=1):
            if is_line([_like(first, rules.words[word]), *line[1:]]):
                return UnknownStatement(span_of(first), _shown(first), word, ())
        if at == 1 and line[1:] and line[1].type == "LPAR" and (found := _round_time(source, line)):
            return found
        if iskeyword(first) and len(line) > 1 and line[1].type == "NAME":
            return UnknownStatement(span_of(first), str(first), "", tuple(spelt))
    for k in range(1, min(at + 1, len(line))):
        for size in (1, 2):
            if line[k : k + size] in _FOR_EQUALS and is_line([*line[:k], *_EQUALS, *line[k + size :]]):
                span = span_of(line[k]).to(span_of(line[k + size - 1]))
                return MissingEquals(span, "".join(line[k : k + size]))
    equals = any(t.type == "_EQUALS" for t in line)
    if not equals and first.type in _EXPRESSION and is_line([_like(first, "OUTPUT"), *line]):
        return BareExpression(span_of(first).to(span_of(line[-1])))
    if _depth(line[:at]):
        return None
    if "_EQUALS" in accepted and first.type not in _LISTS and is_line([*line[:at], *_EQUALS, *line[at:]]):
        return MissingEquals(span_of(line[at]), "")
    if first.type == "NAME" and at == 1 and line[1].type == "NAME":
        return UnknownStatement(span_of(first), _shown(first), "", tuple(spelt))
    return None


_EQUALS = [Token("_EQUALS", "=", 0, end_pos=0)]
_FOR_EQUALS = (["=="], [":", "="], ["<", "-"], ["->"])
_LISTS = {"OUTPUT", "DIM", "INPUT", "STATE"}
"""Here a missing `,` or operator is as likely as a missing `=`."""


def _to_line_before(source: Source, before: Sequence[Token], line: Sequence[Token]) -> Edit | None:
    if not is_line([*before, *line]):
        return None
    end, operator = before[-1].end_pos or 0, span_of(line[0])
    return Edit(Span(end, operator.end), f" {line[0]}{source.text[end : operator.start]}")


def _equals(source: Source, line: Sequence[Token], at: int) -> tuple[Diagnostic, int]:
    """`=` after an expression: it was to compare, or it belongs to an equation below a line that is not complete."""
    for k in range(at - 1, 0, -1):
        end, start = line[k - 1].end_pos or 0, line[k].start_pos or 0
        if "\n" in source.text[end:start] and line[k - 1].type in CONTINUES and begins(line, k):
            return UnexpectedEnd(Span(end, end), _shown(line[k - 1]), "an expression"), k
    span = span_of(line[at])
    works = is_line([*line[:at], _like(line[at], "COMPARE"), *line[at + 1 :]])
    return EqualsInExpression(span, Edit(span, "==") if works else None), len(line)


def _chain(source: Source, line: Sequence[Token], at: int) -> Diagnostic:
    """The operand in the middle stands between the last two comparisons at the same depth."""
    span, k, depth = span_of(line[at]), at - 1, 0
    while k >= 0 and (line[k].type != "COMPARE" or depth):
        depth += (line[k].type in CLOSERS) - (line[k].type in CLOSER)
        k -= 1
    middle = line[k + 1 : at]
    works = k >= 0 and is_line([*line[:at], _like(line[at], "AND"), *middle, *line[at:]])
    text = source.text[span_of(line[k]).end : span.start].strip()
    return ChainedComparison(span, Edit(Span(span.start, span.start), f"and {text} ") if works else None)


def _mismatched(line: Sequence[Token], at: int, accepted: frozenset[str]) -> Diagnostic | None:
    openers: list[Token] = []
    for token in line[:at]:
        if token.type in CLOSER:
            openers.append(token)
        elif token.type in CLOSERS:
            openers.pop()
    if not openers or line[at].type not in CLOSERS or CLOSER[openers[-1].type] not in accepted:
        return None
    closer = grammar().spellings[CLOSER[openers[-1].type]]
    return MismatchedBracket(span_of(line[at]), span_of(openers[-1]), str(openers[-1]), str(line[at]), closer)


def _repair(line: Sequence[Token], at: int, accepted: frozenset[str]) -> Edit | None:
    """The edit of one sign that makes a line of it."""
    start, before = span_of(line[at]).start, line[at - 1].end_pos or 0
    gap = Span(before, start)
    candidates: list[tuple[Edit, Sequence[str], int, int]] = []
    """An edit, and the terminals that it puts for `line[i:j]`."""
    if "AND" not in accepted:
        if str(line[at]) in ("bool", "real", "complex"):
            candidates.append((Edit(gap, ": "), ["_COLON"], at, at))
        candidates.append((Edit(gap, ", "), ["_COMMA"], at, at))
        candidates.append((Edit(gap, " in "), ["_IN"], at, at))
        candidates.append((Edit(span_of(line[at]), "in"), ["_IN"], at, at + 1))
    elif _factors(line[at - 1], line[at]):
        candidates.append((Edit(gap, " * "), ["STAR"], at, at))
    for k in (at, at - 1):
        if line[k].type in ("_COMMA", "_COLON"):
            candidates.append((Edit(span_of(line[k]), ""), [], k, k + 1))
    pair = str(line[at - 1]) + str(line[at])
    if before == start and pair in _TWO_SIGNS:
        candidates.append(
            (Edit(span_of(line[at - 1]).to(span_of(line[at])), _TWO_SIGNS[pair]), ["COMPARE"], at - 1, at + 1)
        )
    for edit, kinds, i, j in candidates:
        if is_line([*line[:i], *(Token(kind, "", start, end_pos=start) for kind in kinds), *line[j:]]):
            return edit
    return None


def _factors(left: Token, right: Token) -> bool:
    """Whether they may stand for a product, as in `2 x`."""
    ends = left.type in ("NUMBER", "NAME") or left.type in CLOSERS
    return ends and right.type in ("NUMBER", "NAME") and not iskeyword(left) and not iskeyword(right)


_TWO_SIGNS = {"<>": "!=", "=<": "<=", "===": "=="}


def _round_time(source: Source, line: Sequence[Token]) -> Diagnostic | None:
    """`h(t) = ...` for `h[t] = ...`."""
    closer = next((k for k, token in enumerate(line) if token.type == "RPAR"), 0)
    inner = line[2:closer]
    if is_line([line[0], _like(line[1], "LSQB"), *inner, _like(line[closer], "RSQB"), *line[closer + 1 :]]):
        span = span_of(line[1]).to(span_of(line[closer]))
        return UnexpectedToken(span_of(line[1]), "`(`", "`[`", Edit(span, f"[{source.slice(span)[1:-1]}]"))
    return None


def _hint(line: Sequence[Token], at: int) -> str:
    """How else to say what was most likely meant."""
    token = line[at]
    if token.type == "_IN" and any(t.type == "_EQUALS" for t in line[:at]):
        return "a range stands before the `=`: `c in (0, inf) = 8.0`"
    if token.type in _OPERATORS and line[at + 1 : at + 2] == ["="] and line[0].type == "NAME":
        return f"an update is written out: `{line[0]}[t] = {line[0]}[t-1] {token} ...`"
    if token.type == "_COLON" and _depth(line[:at]):
        return "nothing is sliced, and a dim is split by `x[D -> H * P]`"
    return "a choice is written `where(condition, a, b)`" if "if" in line[at - 1 : at + 1] else ""
