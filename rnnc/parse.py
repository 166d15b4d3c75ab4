"""Text to tree.

Each statement is parsed by itself, so that one that is wrong hides no other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from lark import Token, UnexpectedToken as ParserError

from rnnc import tree
from rnnc.build import doc_of, span_of
from rnnc.diagnostics import Diagnostic, ProgramError
from rnnc.errors.syntax import UnexpectedToken
from rnnc.lex import Line, grammar, lines, tokens
from rnnc.source import Source


def parse(source: Source) -> tree.Program:
    """The tree of a program; `ProgramError` with every diagnostic of its syntax."""
    program, diagnostics = parse_partial(source)
    if diagnostics:
        raise ProgramError(source, diagnostics)
    return program


def parse_partial(source: Source) -> tuple[tree.Program, list[Diagnostic]]:
    """What could be read of a program, and what is wrong with the rest."""
    diagnostics: list[Diagnostic] = []
    cells: list[tree.Cell] = []
    for line in lines(tokens(source, diagnostics)):
        node = None if line.broken else _line(line, diagnostics)
        if isinstance(node, tree.Cell):
            cells.append(node)
        elif cells and isinstance(node, Token):
            cells[-1] = replace(cells[-1], doc=doc_of(node))
        elif cells and node is not None:
            cell = cells[-1]
            statement = cast(tree.Statement, node)
            cells[-1] = replace(cell, statements=(*cell.statements, statement), span=cell.span.to(statement.span))
    return tree.Program(tuple(cells)), diagnostics


def _line(line: Line, diagnostics: list[Diagnostic]) -> tree.Cell | tree.Statement | Token | None:
    parser = grammar().lark.parse_interactive()
    end = line.tokens[-1].end_pos
    for token in (*line.tokens, Token("$END", "", end, end_pos=end)):
        try:
            node = parser.feed_token(token)
        except ParserError:
            expected = ", ".join(sorted(parser.accepts()))
            diagnostics.append(UnexpectedToken(span_of(token), f"`{token}`" if token else "end of line", expected))
            return None
    return node
