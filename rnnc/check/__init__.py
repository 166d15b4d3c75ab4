"""tree → Cell: names, dims, kinds, time. What is accepted here has a meaning; what is wrong gets a diagnostic.

Goals: every diagnostic that can be had in one run, one for each cause; the product is a complete typed IR.
Non-goals: whether claims hold (`bound`), and how anything is computed.
"""

from __future__ import annotations

from rnnc import ir, tree
from rnnc.check.context import Context
from rnnc.check.decays import check_decays
from rnnc.check.declare import collect, read_consts, read_dims, read_inputs, read_params, read_states
from rnnc.check.equations import Equations
from rnnc.diagnostics import Diagnostic, has_errors
from rnnc.errors.names import UnknownDim, UnknownName
from rnnc.errors.time import DecayOfNothing, NoInput, NoOutput, NotAState, NoUpdate, SpectrumOfWhat
from rnnc.fields import state_fields
from rnnc.source import Source

__all__ = ["check"]


def check(cell: tree.Cell, source: Source) -> tuple[ir.Cell | None, list[Diagnostic]]:
    """The meaning of a cell, None where it is wrong; and what there is to say, in the order of the text."""
    cx = Context(cell, source)
    collect(cx)
    dims = read_dims(cx)
    consts = read_consts(cx)
    inputs = read_inputs(cx)
    params = read_params(cx)
    declared, learned = read_states(cx)
    equations = Equations(cx)
    equations.collect()
    definitions = equations.definitions()
    states = equations.states(declared)
    outputs = equations.outputs()
    eigenvalues = equations.eigenvalues()
    checked: ir.Cell | None = None
    if not has_errors(cx.diagnostics):
        checked = ir.Cell(
            name=cell.name.text,
            doc=cell.doc or "",
            dims=dims,
            consts=consts,
            inputs=inputs,
            params=tuple(sorted((*params, *learned, *equations.params), key=lambda p: p.span.start)),
            definitions=definitions,
            states=states,
            outputs=outputs,
            eigenvalues=eigenvalues,
            graph=cx.graph,
            text=source.slice(cell.span),
            size_checks=tuple((a, b, span) for (a, b), span in cx.size_checks.items()),
        )
        check_decays(cx, definitions, states)
        for past in state_fields(checked):
            if past.role == "past":
                cx.generate(past.name, cx.symbols[past.of].span, past.of)
    found = sorted((d for d in cx.diagnostics if not _follows(d, cell.unread)), key=lambda d: d.span.start)
    return None if has_errors(cx.diagnostics) else checked, found


def _follows(diagnostic: Diagnostic, unread: frozenset[str]) -> bool:
    """Whether it misses what stands, perhaps, in a line that could not be read."""
    if isinstance(diagnostic, NoOutput):
        return "output" in unread
    if isinstance(diagnostic, NoInput):
        return "input" in unread
    return isinstance(diagnostic, _ABSENCES) and diagnostic.name in unread


_ABSENCES = (UnknownName, UnknownDim, NoUpdate, NotAState, DecayOfNothing, SpectrumOfWhat)
