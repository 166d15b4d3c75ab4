"""From the grammar's rules to nodes of the tree: one method a rule, called bottom-up while the parser reduces."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, cast

from lark import Token, Transformer, v_args

from rnnc import tree
from rnnc.source import Span


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


@v_args(inline=True)
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

    def index(self, _opener: Token, *rest: object) -> tuple[tuple[tree.Expr, ...], Span]:
        return cast("tuple[tree.Expr, ...]", rest[:-1]), span_of(cast(Token, rest[-1]))

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
        if index is not None and (over is not None or is_time(index[0])):
            return tree.Update(name, index[0][0], None if over is None else name_of(over), expr, span)
        dims = None if index is None else cast("tuple[tree.Name, ...]", index[0])
        end = index[1] if index else name.span
        target = tree.Declared(name, dims, None, region, None, name.span.to(region.span if region else end))
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


def _sorted_arguments(
    items: object,
) -> tuple[tuple[tree.Expr, ...], tuple[tuple[tree.Name, tree.Expr], ...]]:
    """Positional arguments, and options."""
    given = cast("tuple[tree.Expr | tuple[tree.Name, tree.Expr], ...]", items or ())
    return tuple(i for i in given if not isinstance(i, tuple)), tuple(i for i in given if isinstance(i, tuple))
