"""The grammar, and the nodes that its rules make: one method a rule, called bottom-up while the parser reduces."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal, cast

import lark
from lark import Lark, Token, Transformer, UnexpectedToken
from lark.common import LexerConf
from lark.lexer import Lexer, LexerState, PatternStr

from rnnc import tree
from rnnc.diagnostics import Diagnostic, Edit
from rnnc.errors.syntax import BadDims, NotOfAnUpdate, OverWithoutTime
from rnnc.source import Span

MAX_DEPTH = 200
"""Of brackets, and of operators, inside one another."""


_MAX_EDITED = 2000
"""Tokens of a line up to which edits are tried."""


class Fault(Exception):
    """What is wrong with a statement that the grammar takes."""

    def __init__(self, diagnostic: Diagnostic) -> None:
        super().__init__(diagnostic)
        self.diagnostic = diagnostic


@dataclass(frozen=True)
class Grammar:
    """What the other parts need to know of `rnn.lark`."""

    lark: Lark
    words: Mapping[str, str]
    """Each word of the language, and its terminal."""
    starters: frozenset[str]
    """The terminals of the words that begin a statement."""
    spellings: Mapping[str, str]
    """How each terminal with one spelling is spelt."""


@cache
def grammar() -> Grammar:
    text = files("rnnc.grammar").joinpath("rnn.lark").read_text(encoding="utf-8")
    parser = Lark(text, parser="lalr", lexer=_NoLexer, start=["line"], transformer=Builder())
    spellings = {t.name: t.pattern.value for t in parser.terminals if isinstance(t.pattern, PatternStr)}
    words = {spelling: name for name, spelling in spellings.items() if spelling.isidentifier()}
    first: Collection[str] = cast(Any, parser).parse_interactive().choices()
    return Grammar(parser, words, frozenset(name for name in words.values() if name in first), spellings)


class _NoLexer(Lexer):
    """`rnnc/lex.py` makes the tokens; Lark's own lexer would be built for nothing."""

    def __init__(self, conf: LexerConf) -> None:
        pass

    def lex(self, lexer_state: LexerState, parser_state: object) -> Iterator[Token]:
        raise NotImplementedError


@dataclass(frozen=True)
class Misfit:
    """Where the grammar does not take a line."""

    index: int
    """Of the token; the number of tokens where the line ends too early."""
    accepted: frozenset[str]
    """The terminals that could stand there."""


def read(tokens: Sequence[Token]) -> tree.Cell | tree.Statement | Token | Misfit:
    """One line: the head of a cell, a docstring or a statement. Raises `Fault`."""
    node = _fit(tokens)
    if not isinstance(node, int):
        return node
    # The parser that gave up has reduced by the token that does not fit: ask one that has not seen it.
    parser = cast(Any, grammar().lark).parse_interactive()
    for token in tokens[:node]:
        parser.feed_token(token)
    return Misfit(node, frozenset(parser.accepts()))


def _fit(tokens: Sequence[Token]) -> tree.Cell | tree.Statement | Token | int:
    """The node of a line, or the index of the first token that does not fit (their number for the end)."""
    parser = cast(Any, grammar().lark).parse_interactive()
    fed = 0
    try:
        for token in tokens:
            parser.feed_token(token)
            fed += 1
        return parser.feed_eof(tokens[-1])
    except UnexpectedToken:
        return fed


def is_line(tokens: Sequence[Token]) -> bool:
    """Whether these tokens are a line that nothing is wrong with; an edit is proposed only where it makes one."""
    try:
        return 0 < len(tokens) <= _MAX_EDITED and not isinstance(_fit(tokens), int)
    except Fault:
        return False


def span_of(token: Token) -> Span:
    assert token.start_pos is not None and token.end_pos is not None
    return Span(token.start_pos, token.end_pos)


def name_of(token: Token) -> tree.Name:
    return tree.Name(str(token), span_of(token))


def number_of(text: str) -> int | float | complex:
    if text.endswith("j"):
        return complex(0, float(text[:-1]))
    return int(text) if text.isdigit() else float(text)


def doc_of(token: Token) -> str:
    return str(token)[3:-3].replace("\r\n", "\n").strip()


@cast(Any, lark).v_args(inline=True)
class Builder(Transformer[Token, object]):
    """Children come as tokens and nodes; punctuation whose terminal begins with `_` is left out by the grammar."""

    def heading(self, keyword: Token, name: Token, doc: Token | None) -> tree.Cell:
        span = span_of(keyword).to(span_of(name))
        return tree.Cell(name_of(name), None if doc is None else doc_of(doc), (), span)

    def doc(self, token: Token) -> Token:
        return token

    def number(self, token: Token) -> tree.Number:
        return tree.Number(number_of(token), span_of(token))

    def name(self, token: Token) -> tree.Name:
        return name_of(token)

    def parenthesis(self, opener: Token, expr: tree.Expr, closer: Token) -> tree.Expr:
        return replace(expr, span=span_of(opener).to(span_of(closer)))

    def unary(self, op: Token, arg: tree.Expr) -> tree.Unary:
        return tree.Unary(str(op), arg, span_of(op).to(arg.span))

    def binary(self, left: tree.Expr, op: Token, right: tree.Expr) -> tree.Binary:
        return tree.Binary(str(op), left, right, left.span.to(right.span))

    def items(self, *exprs: tree.Expr) -> tuple[tree.Expr, ...]:
        return exprs

    def arguments(self, *items: tree.Expr | tuple[tree.Name, tree.Expr]) -> tuple[object, ...]:
        return items

    def option(self, name: Token, value: tree.Expr) -> tuple[tree.Name, tree.Expr]:
        return name_of(name), value

    def bracket(
        self,
        base: tree.Expr,
        opener: Token,
        left: tuple[tree.Expr, ...],
        right: tuple[tree.Expr, ...] | None,
        closer: Token,
    ) -> tree.Bracket:
        inner = span_of(opener).to(span_of(closer))
        return tree.Bracket(base, left, right, base.span.to(inner), inner)

    def call(self, base: tree.Expr, opener: Token, *rest: object) -> tree.Call:
        closer = cast(Token, rest[-1])
        before, after = (*rest[:-1], None, None)[:2]
        args, options = _sorted_arguments(before)
        target, more = _sorted_arguments(after)
        return tree.Call(
            base, args, None if after is None else target, (*options, *more), base.span.to(span_of(closer))
        )

    def range(self, opener: Token, lo: tree.Expr, hi: tree.Expr, closer: Token) -> tree.Range:
        span = span_of(opener).to(span_of(closer))
        return tree.Range(lo, hi, opener.type == "LPAR", closer.type == "RPAR", span)

    def named_region(self, name: Token, _opener: Token, *rest: object) -> tree.Call:
        base, closer = name_of(name), cast(Token, rest[-1])
        args = cast("tuple[tree.Expr, ...]", rest[:-1])
        return tree.Call(base, args, None, (), base.span.to(span_of(closer)))

    def dims(self, _opener: Token, *rest: Token) -> tuple[tuple[tree.Name, ...], Span]:
        return tuple(map(name_of, rest[:-1])), span_of(rest[-1])

    def index(self, opener: Token, *rest: object) -> tuple[tuple[tree.Expr, ...], Span]:
        return cast("tuple[tree.Expr, ...]", rest[:-1]), span_of(opener).to(span_of(cast(Token, rest[-1])))

    def declared(
        self,
        token: Token,
        dims: tuple[tuple[tree.Name, ...], Span] | None,
        annotation: Token | None,
        region: tree.Region | None,
        value: tree.Expr | None,
    ) -> tree.Declared:
        span = span_of(token)
        if dims is not None:
            span = span.to(dims[1])
        kind = None if annotation is None else name_of(annotation)
        for node in (kind, region, value):
            if node is not None:
                span = span.to(node.span)
        return tree.Declared(name_of(token), None if dims is None else dims[0], kind, region, value, span)

    def learned(self, token: Token) -> tree.Name:
        return name_of(token)

    def keyword(self, token: Token) -> Token:
        return token

    def kind(self, token: Token) -> Token:
        return token

    def declaration(self, keyword: Token, *items: tree.Declared) -> tree.Declaration:
        word = cast(Literal["dim", "const", "input", "param", "buffer", "state"], str(keyword))
        return tree.Declaration(word, items, span_of(keyword).to(items[-1].span))

    def equation(
        self,
        kind: Token | None,
        token: Token,
        index: tuple[tuple[tree.Expr, ...], Span] | None,
        region: tree.Region | None,
        over: Token | None,
        expr: tree.Expr,
    ) -> tree.Equation | tree.Update:
        name = name_of(token)
        span = (name.span if kind is None else span_of(kind)).to(expr.span)
        items, place = index or (None, Span(name.span.end, name.span.end))
        if items is not None and is_time(items):
            if kind is not None:
                raise Fault(NotOfAnUpdate(span_of(kind), f"`{kind}`", name.text, Edit(place, "")))
            if region is not None:
                raise Fault(NotOfAnUpdate(region.span, "range", name.text, None))
            return tree.Update(name, items[0], None if over is None else name_of(over), expr, span)
        if over is not None:
            raise Fault(OverWithoutTime(span_of(over), name.text, place))
        dims = None if items is None else tuple(_dim(i) for i in items)
        target = tree.Declared(name, dims, None, region, None, name.span.to(region.span if region else place))
        word = cast(Literal["", "gate", "decay"], "" if kind is None else str(kind))
        return tree.Equation(word, target, expr, span)

    def eigenvalues(self, keyword: Token, state: Token, region: tree.Region) -> tree.Eigenvalues:
        return tree.Eigenvalues(name_of(state), region, span_of(keyword).to(region.span))

    def output(
        self, keyword: Token, target: tree.Expr, region: tree.Region | None, expr: tree.Expr | None
    ) -> tree.Output:
        last = expr or region or target
        return tree.Output(target, region, expr, span_of(keyword).to(last.span))


def is_time(items: tuple[tree.Expr, ...]) -> bool:
    """Whether the brackets at the head of an equation hold a time, not dims: `[t]`, `[t-1]`, `[0]`."""
    return len(items) == 1 and (not isinstance(items[0], tree.Name) or items[0].text == "t")


def _dim(item: tree.Expr) -> tree.Name:
    if not isinstance(item, tree.Name) or item.text == "t":
        raise Fault(BadDims(item.span))
    return item


def _sorted_arguments(
    items: object,
) -> tuple[tuple[tree.Expr, ...], tuple[tuple[tree.Name, tree.Expr], ...]]:
    """Positional arguments, and options."""
    given = cast("tuple[tree.Expr | tuple[tree.Name, tree.Expr], ...]", items or ())
    return tuple(i for i in given if not isinstance(i, tuple)), tuple(i for i in given if isinstance(i, tuple))
