"""What all parts of the checker share: the names of a cell, its graph, and what was found wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from rnnc import ir, tree
from rnnc.check.words import KINDS, SIGNATURES
from rnnc.diagnostics import Diagnostic
from rnnc.errors import names as errors
from rnnc.errors.dims import DimRepeated
from rnnc.errors.functions import UnknownFunction
from rnnc.source import Source, Span

SymbolRole = Literal["size", "const", "input", "param", "buffer", "state", "def", "output"]

WORDS: dict[SymbolRole, str] = {
    "size": "dim",
    "const": "const",
    "input": "input",
    "param": "param",
    "buffer": "buffer",
    "state": "state",
    "def": "definition",
    "output": "output",
}
_MOST_LOOKUPS = 100
"""Nearest names are looked for so many times a run: a megabyte of unknown names is reported in seconds."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A declared name. `type` is None where its declaration is wrong (which was said), or not read yet."""

    name: str
    role: SymbolRole
    span: Span
    type: ir.Type | None = None


class Context:
    """The state of one check. Whoever gets None for a value stays silent: its cause was reported."""

    def __init__(self, cell: tree.Cell, source: Source) -> None:
        self.cell = cell
        self.source = source
        self.diagnostics: list[Diagnostic] = []
        self.symbols: dict[str, Symbol] = {}
        self.sizes: dict[str, int | None] = {}
        self.derived: dict[str, ir.Expr] = {}
        self.consts: dict[str, float | None] = {}
        self.definitions: dict[str, ir.Expr] = {}
        self.generated: dict[str, Span] = {}
        self.size_checks: dict[tuple[ir.Expr, ir.Expr], Span] = {}
        self.graph = ir.Graph(
            item.name.text
            for s in cell.statements
            if isinstance(s, tree.Declaration) and s.keyword == "dim"
            for item in s.items
        )
        self.doubtful: set[str] = set()
        """Names declared twice, and states for which another name was most likely a slip in an update."""
        self._unknown: set[str] = set()
        self._lookups = 0

    def report(self, diagnostic: Diagnostic) -> None:
        self.diagnostics.append(diagnostic)

    def nearest(self, name: str, candidates: Iterable[str]) -> str | None:
        """The candidate that `name` is most likely a slip for."""
        self._lookups += 1
        if self._lookups > _MOST_LOOKUPS:
            return None
        pool = list(candidates)[:1000]
        for candidate in pool:
            if candidate.casefold() == name.casefold():
                return candidate
        return next(iter(get_close_matches(name, pool, 1, 0.6)), None)

    def lookup(self, name: tree.Name) -> Symbol | None:
        """What a name in a value's place stands for; an unknown one is reported once."""
        symbol = self.symbols.get(name.text)
        if symbol is None and self._first(name.text):
            self.report(errors.UnknownName(name.span, name.text, self.nearest(name.text, self.symbols)))
        return symbol

    def dim(self, expr: tree.Expr) -> str | None:
        """The dim that stands in a dim's place."""
        if not isinstance(expr, tree.Name):
            self.report(errors.NotADim(expr.span, self.source.slice(expr.span), ""))
            return None
        symbol = self.symbols.get(expr.text)
        if symbol is not None and symbol.role == "size":
            return symbol.name
        if symbol is not None:
            self.report(errors.NotADim(expr.span, expr.text, WORDS[symbol.role]))
        elif self._first(expr.text):
            self.report(errors.UnknownDim(expr.span, expr.text, self.nearest(expr.text, self.sizes)))
        return None

    def dims(self, exprs: Iterable[tree.Expr]) -> tuple[str, ...] | None:
        """Distinct dims; None where one is wrong."""
        found: list[str] = []
        good = True
        for expr in exprs:
            dim = self.dim(expr)
            if dim is None:
                good = False
            elif dim in found:
                self.report(DimRepeated(expr.span, dim))
                good = False
            else:
                found.append(dim)
        return tuple(found) if good else None

    def kind(self, annotation: tree.Name | None) -> ir.Kind | None:
        """What stands after the colon, `real` where there is none; None where it is no kind."""
        if annotation is None:
            return "real"
        for kind in ("bool", "real", "complex"):
            if annotation.text == kind:
                return kind
        self.report(errors.UnknownKind(annotation.span, annotation.text, self.nearest(annotation.text, KINDS)))
        return None

    def function(self, name: tree.Name) -> None:
        """Say that a name which is called is no function."""
        if self._first(f"{name.text}()"):
            near = self.nearest(name.text, [f for f in SIGNATURES if SIGNATURES[f] != f])
            self.report(UnknownFunction(name.span, name.text, near))

    def _first(self, name: str) -> bool:
        known = name in self._unknown
        self._unknown.add(name)
        return not known

    def generate(self, name: str, span: Span, owner: str) -> None:
        """Take a name that the compiler makes: it must be nobody's."""
        taken = self.symbols[name].span if name in self.symbols else self.generated.get(name)
        if taken is not None:
            self.report(errors.GeneratedNameTaken(span, name, owner, taken))
        self.generated.setdefault(name, span)

    def reach(self, root: ir.Expr) -> Iterator[tuple[ir.Expr, int]]:
        """Every node that a value is made of, through definitions, and how many tokens back it is read."""
        seen: set[tuple[ir.Expr, int]] = set()
        stack = [(root, 0)]
        while stack:
            node, back = stack.pop()
            if (node, back) in seen:
                continue
            seen.add((node, back))
            yield node, back
            stack.extend((c, back) for c in reversed(node.children))
            if isinstance(node, ir.Ref) and node.role == "def" and node.name in self.definitions:
                stack.append((self.definitions[node.name], back + node.lag))
