"""Text to tree. Each statement is parsed by itself, so that one that is wrong hides no other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import cast

from lark import Token

from rnnc import tree
from rnnc.blame import INFIX, blame
from rnnc.build import MAX_DEPTH, Fault, Misfit, doc_of, is_line, name_of, read, span_of
from rnnc.diagnostics import Diagnostic, ProgramError
from rnnc.errors.syntax import (
    BareExpression,
    DuplicateCell,
    MissingCell,
    MissingNewline,
    ReservedWord,
    TooDeep,
    UnknownStatement,
)
from rnnc.errors.text import Binary, MisplacedDocstring, NoCell, NotUtf8, TooLarge, TooManyErrors
from rnnc.lex import MAX_ERRORS, Line, lines, tokens
from rnnc.source import Source, Span

MAX_SIZE = 2**20
"""Of a program, in bytes or characters."""


def parse(source: Source) -> tree.Program:
    """The tree of a program; `ProgramError` with every diagnostic of its syntax."""
    program, diagnostics = parse_partial(source)
    if diagnostics:
        raise ProgramError(source, diagnostics)
    return program


def parse_partial(source: Source) -> tuple[tree.Program, list[Diagnostic]]:
    """What could be read of a program, and what is wrong with the rest: nothing after too many errors."""
    if fault := check_text(source.text):
        return tree.Program(()), [fault]
    diagnostics: list[Diagnostic] = []
    stream = tokens(source, diagnostics)
    program = _Program(source, diagnostics)
    before: Sequence[Token] = ()
    for line, below in pairwise([*lines(stream, diagnostics), Line((), True)]):
        if len(diagnostics) >= MAX_ERRORS:
            break
        if line.broken:
            program.skip(line.tokens)
        else:
            program.add(line.tokens, before, below.tokens)
        before = line.tokens
    cells = program.cells()
    if not cells and not diagnostics:
        diagnostics.append(NoCell(Span(0, 0)))
    diagnostics.sort(key=lambda d: d.span.start)
    if len(diagnostics) >= MAX_ERRORS:
        del diagnostics[MAX_ERRORS:]
        last = diagnostics[-1].span.end
        diagnostics.append(TooManyErrors(Span(last, last), MAX_ERRORS))
        return tree.Program(()), diagnostics
    return tree.Program(cells), diagnostics


def check_text(text: str) -> Diagnostic | None:
    """What is wrong with a text before any of it is read."""
    if len(text) > MAX_SIZE:
        return TooLarge(Span(0, 0), MAX_SIZE)
    if (at := text.find("\0")) >= 0:
        return Binary(Span(at, at + 1))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return NotUtf8(Span(error.start, error.start + 1), f"a lone surrogate, U+{ord(text[error.start]):04X}")
    return None


@dataclass
class _Cell:
    head: tree.Cell
    statements: list[tree.Statement] = field(default_factory=list[tree.Statement])
    unread: set[str] = field(default_factory=set[str])
    may_have_doc: bool = True
    missing: int = -1
    """Where it is said that a `cell` line is missing."""


class _Program:
    """Gathers the cells of a program, line by line."""

    def __init__(self, source: Source, diagnostics: list[Diagnostic]) -> None:
        self._source = source
        self._diagnostics = diagnostics
        self._cells: list[_Cell] = []
        self._first: dict[str, Span] = {}
        self._reserved: set[str] = set()

    def add(self, line: Sequence[Token], before: Sequence[Token], below: Sequence[Token]) -> None:
        """Parses one line; where another statement begins in the middle of it, that one too.

        `before` and `below` are the lines around it.
        """
        while line:
            try:
                node = read(line)
            except Fault as fault:
                self._diagnostics.append(fault.diagnostic)
                self.skip(line)
                break
            if not isinstance(node, Misfit):
                self._place(node, line)
                break
            if below and below[0].type in INFIX and is_line([*line, *below]):
                self.skip(line)  # what is wrong is said of the line below
                break
            diagnostic, after = blame(self._source, line, node, before)
            if isinstance(diagnostic, MissingNewline):
                self.add(line[:after], before, ())
            elif self._cells or not isinstance(diagnostic, UnknownStatement) or diagnostic.nearest:
                self.skip(line, _meant(diagnostic))
            if not isinstance(diagnostic, ReservedWord) or diagnostic.word not in self._reserved:
                self._diagnostics.append(diagnostic)
            if isinstance(diagnostic, ReservedWord):
                self._reserved.add(diagnostic.word)
            before, line = line[:after], line[after:]

    def skip(self, line: Sequence[Token], meant: str = "") -> None:
        """A line that is wrong; where it was to be the head of a cell, what follows still belongs to that cell.

        `meant` is the word that it should begin with.
        """
        if "cell" in (line[0], meant):
            name = line[1] if len(line) > 1 and line[1].type == "NAME" else line[0]
            self._begin(_Cell(tree.Cell(name_of(name), None, (), span_of(line[0]))))
        else:
            cell = self._inside(line[0])
            cell.unread.update(word for word in (meant, *map(str, line)) if word.isidentifier())
            cell.may_have_doc = False

    def cells(self) -> tuple[tree.Cell, ...]:
        out: list[tree.Cell] = []
        for cell in self._cells:
            span = cell.head.span.to(cell.statements[-1].span) if cell.statements else cell.head.span
            statements, unread = tuple(cell.statements), frozenset(cell.unread)
            out.append(replace(cell.head, statements=statements, span=span, unread=unread))
        return tuple(out)

    def _place(self, node: tree.Cell | tree.Statement | Token, line: Sequence[Token]) -> None:
        if isinstance(node, tree.Cell):
            name = node.name
            if name.text in self._first:
                self._diagnostics.append(DuplicateCell(name.span, name.text, self._first[name.text]))
            self._first.setdefault(name.text, name.span)
            self._begin(_Cell(node, may_have_doc=node.doc is None))
            return
        if isinstance(node, Token) and not self._cells:
            self._diagnostics.append(MisplacedDocstring(span_of(node)))
            return
        cell = self._inside(line[0])
        if isinstance(node, Token):
            if not cell.may_have_doc:
                self._diagnostics.append(MisplacedDocstring(span_of(node)))
            cell.head = replace(cell.head, doc=doc_of(node))
        elif _too_deep(node):
            self._diagnostics.append(TooDeep(node.span, MAX_DEPTH, "operators"))
            self.skip(line)
        else:
            cell.statements.append(node)
        cell.may_have_doc = False

    def _begin(self, cell: _Cell) -> None:
        """The first cell takes what stands before it, which was meant for it."""
        if len(self._cells) == 1 and (early := self._cells[0]).missing >= 0:
            at = early.missing
            self._diagnostics[at] = MissingCell(self._diagnostics[at].span, cell.head.name.text)
            cell.statements, cell.unread = early.statements, early.unread
            self._cells.clear()
        self._cells.append(cell)

    def _inside(self, first: Token) -> _Cell:
        """The cell that a line belongs to which begins with this token."""
        if not self._cells:
            head = tree.Cell(tree.Name("MyCell", span_of(first)), None, (), span_of(first))
            self._cells.append(_Cell(head, missing=len(self._diagnostics)))
            self._diagnostics.append(MissingCell(span_of(first), None))
        return self._cells[-1]


def _meant(diagnostic: Diagnostic) -> str:
    """The word that should begin a line."""
    if isinstance(diagnostic, UnknownStatement):
        return diagnostic.nearest or "output"
    return "output" if isinstance(diagnostic, BareExpression) else ""


def _too_deep(statement: tree.Statement) -> bool:
    """Whether expressions stand inside one another too deeply; without recursion, for that reason."""
    inner: list[tuple[object, int]] = [(statement, 0)]
    while inner:
        value, depth = inner.pop()
        if isinstance(value, tuple):
            inner += [(item, depth) for item in cast("tuple[object, ...]", value)]
        elif isinstance(value, tree.Node):
            depth += isinstance(value, tree.Expr)
            if depth > MAX_DEPTH:
                return True
            inner += [(part, depth) for _, part in tree.parts(value)]
    return False
