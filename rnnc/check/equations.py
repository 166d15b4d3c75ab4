"""Equations, updates, outputs and `eigenvalues`; circles among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rnnc import ir, tree
from rnnc.check.context import WORDS, Context, Symbol
from rnnc.check.declare import fits, items
from rnnc.check.maps import name_maps
from rnnc.check.reader import Place, Reader, Value
from rnnc.check.regions import region, spectrum
from rnnc.check.timing import Reference, circles, lag_of, references
from rnnc.errors import dims, kinds, names, time
from rnnc.source import Span


@dataclass
class Equations:
    """What the equations of a cell say, filled in as they are read."""

    cx: Context
    params: list[ir.Param] = field(default_factory=list[ir.Param])
    updates: dict[str, tree.Update] = field(default_factory=dict[str, tree.Update])
    targets: dict[str, tree.Equation] = field(default_factory=dict[str, tree.Equation])

    def read(self, owner: str, what: str, node: tree.Expr) -> Value:
        reader = Reader(self.cx, Place(what, step=True, owner=owner), name_maps(owner, node))
        value = reader.read(node)
        self.params += reader.params
        return value

    # --- who uses whom ---------------------------------------------------------------------------------------------

    def collect(self) -> None:
        cx = self.cx
        for statement in cx.cell.statements:
            if isinstance(statement, tree.Equation):
                if cx.symbols[statement.target.name.text].span == statement.target.name.span:
                    self.targets[statement.target.name.text] = statement
            elif isinstance(statement, tree.Update):
                self._update(statement)
        for item in items(cx, "state"):
            if item.name.text not in self.updates and item.name.text not in cx.doubtful:
                cx.report(time.NoUpdate(item.name.span, item.name.text))

    def _update(self, statement: tree.Update) -> None:
        cx, name = self.cx, statement.name
        symbol = cx.symbols[name.text]
        if symbol.span == name.span:
            return  # an undeclared name, which was said
        if symbol.role != "state":
            if name.text not in cx.doubtful:
                cx.report(time.NotAState(name.span, name.text, WORDS[symbol.role], None, None))
        elif name.text in self.updates:
            cx.report(time.TwoUpdates(name.span, name.text, self.updates[name.text].name.span))
        else:
            self.updates[name.text] = statement
            if lag_of((statement.index,)) != 0:
                cx.report(time.UpdateIndex(statement.index.span, name.text, cx.source.slice(statement.index.span)))

    def order(self) -> list[str]:
        """Definitions in an order in which each follows what it uses; those in a circle come last."""
        uses = {name: _uses(s.expr) for name, s in self.targets.items()}
        order, found = circles(uses)
        for circle in found:
            links = _links(uses, circle)
            past = [link for link in links if link.lag]
            if past:
                self.cx.report(time.OwnPast(past[0].span, tuple(circle), past[0].name))
            else:
                self.cx.report(time.Circle(links[-1].span, tuple(circle), frozenset(), None))
        good = set(order)
        timely = {name: s for name, s in self.updates.items() if lag_of((s.index,)) == 0}
        states = {name: _uses(s.expr, now=True) for name, s in timely.items()}
        now = {name: _uses(s.expr, now=True) for name, s in self.targets.items() if name in good} | states
        for circle in circles(now)[1]:
            links = _links(now, circle)
            to_states = [link for link in links if link.name in states]
            shown = to_states[-1]
            late = shown.name if len(to_states) == 1 else None
            self.cx.report(time.Circle(shown.span, tuple(circle), frozenset(states), late))
        return order + [name for name in self.targets if name not in good]

    # --- definitions -----------------------------------------------------------------------------------------------

    def definitions(self) -> tuple[ir.Definition, ...]:
        order = self.order()
        found = {name: self._definition(self.targets[name]) for name in order}
        return tuple(d for name in self.targets if (d := found[name]) is not None)

    def _definition(self, statement: tree.Equation) -> ir.Definition | None:
        cx, target = self.cx, statement.target
        name = target.name.text
        declared = None if target.dims is None else cx.dims(target.dims)
        value = self.read(name, f"the definition of `{name}`", statement.expr)
        if value is None or (target.dims is not None and declared is None):
            return None
        if declared is not None and set(declared) != set(value.dims):
            extra = tuple(d for d in value.dims if d not in declared)
            lacking = tuple(d for d in declared if d not in value.dims)
            cx.report(dims.DimsDiffer(statement.expr.span, name, value.dims, declared, extra, lacking))
            return None
        symbol = cx.symbols[name]
        cx.symbols[name] = Symbol(name, symbol.role, symbol.span, value.type)
        cx.definitions[name] = value
        claim = statement.keyword or (None if target.region is None else "range")
        return ir.Definition(name, value, claim, self._claim(statement, value), target.span, statement.expr.span)

    def _claim(self, statement: tree.Equation, value: ir.Expr) -> ir.Region | None:
        cx, target, lit = self.cx, statement.target, self.cx.graph.lit
        if statement.keyword == "gate":
            if value.kind == "complex":
                cx.report(kinds.ComplexGate(statement.expr.span, target.name.text))
            if target.region is not None:
                start = Span(statement.span.start, target.name.span.start)
                cx.report(kinds.GateRange(target.region.span, target.name.text, start))
        elif target.region is not None:
            return region(target.region, value.kind, cx)
        elif statement.keyword == "decay" and value.kind == "complex":
            return ir.Disc(lit(1))
        return ir.Interval(lit(0), lit(1)) if statement.keyword else None

    # --- states ----------------------------------------------------------------------------------------------------

    def states(self, declared: Mapping[str, tuple[tree.Declared, ir.Expr]]) -> tuple[ir.State, ...]:
        found: dict[str, ir.State] = {}
        for name, statement in self.updates.items():
            over = None if statement.over is None else self.cx.dim(statement.over)
            value = self.read(name, f"the update of `{name}`", statement.expr)
            type = self.cx.symbols[name].type
            if type is None or (statement.over is not None and over is None):
                continue
            if over is not None and statement.over is not None and over in type.dims:
                self.cx.report(dims.OverOwnDim(statement.over.span, over, name))
                continue
            if value is None or name not in declared:
                continue
            item, init = declared[name]
            room = ir.Type((*type.dims, *([over] if over else [])), type.kind)
            if fits(self.cx, item, value, room, statement.expr.span):
                if over is not None:
                    self._whole_axis(statement, value, over)
                found[name] = ir.State(name, type, init, value, over, item.name.span, statement.expr.span)
        return tuple(found[name] for name in declared if name in found)

    def _whole_axis(self, statement: tree.Update, value: ir.Expr, over: str) -> None:
        """Within `over J` the running value has no axis `J`: nothing made from it can be summed along it."""
        name = statement.name.text
        for node, back in self.cx.reach(value):
            if back == 0 and (_consumes(node, over) or isinstance(node, ir.Conv)):
                inside = (n for c in node.children for n, b in self.cx.reach(c) if b == 0)
                if any(isinstance(n, ir.Ref) and (n.role, n.name, n.lag) == ("state", name, 1) for n in inside):
                    self.cx.report(dims.OverWhole(statement.expr.span, over, name, isinstance(node, ir.Conv)))
                    return

    # --- outputs ---------------------------------------------------------------------------------------------------

    def outputs(self) -> tuple[ir.Output, ...]:
        cx = self.cx
        found: list[ir.Output] = []
        seen: dict[str, Span] = {}
        unnamed = 0
        statements = [s for s in cx.cell.statements if isinstance(s, tree.Output)]
        if not statements:
            cx.report(time.NoOutput(cx.cell.name.span))
        if not any(isinstance(s, tree.Declaration) and s.keyword == "input" for s in cx.cell.statements):
            cx.report(time.NoInput(cx.cell.name.span))
        for statement in statements:
            name = _output_name(statement)
            if name is None and statement.expr is not None:
                text = cx.source.slice(statement.target.span)
                cx.report(names.OutputName(statement.target.span, text))
            if name is None:
                unnamed += 1
                name = "out" if unnamed == 1 else f"out_{unnamed}"
            if name in seen and (statement.expr is None or cx.symbols[name].span == statement.target.span):
                cx.report(names.OutputTwice(statement.target.span, name, seen[name]))
            seen.setdefault(name, statement.target.span)
            node = statement.expr or statement.target
            value = self.read(name, f"the output `{name}`", node)
            if value is not None:
                claim = None if statement.region is None else region(statement.region, value.kind, cx)
                found.append(ir.Output(name, value, claim, statement.target.span, node.span))
        return tuple(found)

    def eigenvalues(self) -> tuple[ir.Eigenvalues, ...]:
        cx = self.cx
        found: dict[str, ir.Eigenvalues] = {}
        for statement in cx.cell.statements:
            if not isinstance(statement, tree.Eigenvalues):
                continue
            name, claim = statement.state.text, spectrum(statement.region, cx)
            symbol = cx.lookup(statement.state)
            if symbol is not None and symbol.role != "state":
                if name not in cx.doubtful:
                    cx.report(time.SpectrumOfWhat(statement.state.span, name, WORDS[symbol.role]))
            elif name in found:
                cx.report(time.SpectrumTwice(statement.state.span, name, found[name].span))
            elif symbol is not None and claim is not None:
                found[name] = ir.Eigenvalues(name, claim, statement.span)
        return tuple(found.values())


def _uses(node: tree.Expr, *, now: bool = False) -> dict[str, Reference]:
    """Each name that an expression uses, where it is read at the smallest lag; only at `t` where `now` is set."""
    found: dict[str, Reference] = {}
    for use in references(node):
        if not (now and use.lag) and (use.name not in found or use.lag < found[use.name].lag):
            found[use.name] = use
    return found


def _links(uses: Mapping[str, Mapping[str, Reference]], circle: list[str]) -> list[Reference]:
    """For each name of a circle, where it uses the next one."""
    return [uses[a][b] for a, b in zip(circle, circle[1:] + circle[:1], strict=True)]


def _consumes(node: ir.Expr, dim: str) -> bool:
    """Whether an operation needs all entries of `dim` of its operand."""
    match node:
        case ir.Reduce() | ir.Normalize():
            return dim in node.over
        case ir.Rename():
            return dim == node.old
        case ir.Split():
            return dim == node.dim
        case ir.Merge():
            return dim in node.merged
        case ir.Linear():
            return dim in node.ins
        case ir.Solve():
            return dim in (node.row, node.col)
        case _:
            return False


def _output_name(statement: tree.Output) -> str | None:
    match statement.target:
        case tree.Name(name):
            return name
        case tree.Bracket(tree.Name(name), left, None) if statement.expr is None and lag_of(left) == 0:
            return name
        case _:
            return None
