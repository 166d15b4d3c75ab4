"""The driver: every stage, in order, each product kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rnnc import ir, tree
from rnnc.adjoint import Adjoint, adjoint
from rnnc.bound import Analysis, bound
from rnnc.check import check
from rnnc.closure import Affine, Block, Closure, LowRank, close
from rnnc.closure.obligations import bounded, settle
from rnnc.contract import contracted
from rnnc.diagnostics import Diagnostic, ProgramError, has_errors
from rnnc.errors.names import CellsCollide
from rnnc.group import Group, group
from rnnc.lower import System, lower
from rnnc.parse import parse_partial
from rnnc.plan import Plan, plan
from rnnc.source import Source
from rnnc.target import backend

Stage = Literal["tree", "ir", "groups", "analysis", "plan", "cuda", "module"]
STAGES: tuple[Stage, ...] = ("tree", "ir", "groups", "analysis", "plan", "cuda", "module")


@dataclass(frozen=True)
class Compilation:
    """What the stages made of one cell; what lies behind the stage asked for is None.

    `diagnostics` are the warnings and notes: errors are raised.
    """

    tree: tree.Cell
    cell: ir.Cell | None = None
    system: System | None = None
    groups: tuple[Group, ...] | None = None
    closures: tuple[Closure, ...] | None = None
    analysis: Analysis | None = None
    plan: Plan | None = None
    diagnostics: tuple[Diagnostic, ...] = ()


def compile_source(
    source: Source,
    *,
    cell: str | None = None,
    strict: bool = False,
    until: Stage = "plan",
    verify: Callable[[ir.Cell], None] | None = None,
) -> tuple[Compilation, ...]:
    """Run the stages for every cell of a source, or for the one named `cell`.

    Raises ProgramError with all diagnostics of all cells; `strict` makes undecided claims errors. `verify` is called
    with each checked cell (the tests give `rnnc.verify.verify`).
    """
    program, found = parse_partial(source)
    diagnostics: list[Diagnostic] = [*found, *_collisions(program)]
    out: list[Compilation] = []
    for tree_cell in program.cells:
        if cell is not None and tree_cell.name.text != cell:
            continue
        made = _one(tree_cell, source, strict, until, diagnostics, verify)
        out.append(made)
    if has_errors(diagnostics):
        raise ProgramError(source, sorted(diagnostics, key=lambda d: (d.span.start, d.span.end, d.code)))
    return tuple(out)


def _collisions(program: tree.Program) -> list[Diagnostic]:
    """Cells whose classes would have the name of another cell's state or output."""
    taken = {f"{c.name.text}{kind}": c.name for c in program.cells for kind in ("State", "Output")}
    return [
        CellsCollide(c.name.span, c.name.text, taken[c.name.text].text, taken[c.name.text].span)
        for c in program.cells
        if c.name.text in taken
    ]


def _one(
    tree_cell: tree.Cell,
    source: Source,
    strict: bool,
    until: Stage,
    diagnostics: list[Diagnostic],
    verify: Callable[[ir.Cell], None] | None,
) -> Compilation:
    reach = STAGES.index(until)
    if reach < STAGES.index("ir"):
        return Compilation(tree_cell)
    cell, found = check(tree_cell, source)
    diagnostics.extend(found)
    if cell is None or has_errors(diagnostics):
        return Compilation(tree_cell, cell)
    if verify is not None:
        verify(cell)
    if until == "ir":
        return Compilation(tree_cell, cell, diagnostics=tuple(found))
    system = contracted(lower(cell))
    groups = group(system)
    closures = tuple(close(system, g) for g in groups)
    if until == "groups":
        return Compilation(tree_cell, cell, system, groups, closures, diagnostics=tuple(found))
    analysis = bound(cell, source)
    closures = settle(system, closures, analysis.always)
    claims = analysis.diagnostics(strict)
    diagnostics.extend(claims)
    told = (*found, *claims)
    if until == "analysis" or has_errors(claims):
        return Compilation(tree_cell, cell, system, groups, closures, analysis, diagnostics=told)
    adjoints: dict[str, Adjoint] = {}
    for c in closures:
        if isinstance(c, Affine):
            adjoints[c.group.states[0]] = adjoint(system, c)
    contracting = [c.group.states[0] for c in closures if _contracts(system, analysis, c)]
    planned = plan(system, closures, adjoints, contracting, analysis.lowest)
    return Compilation(tree_cell, cell, system, groups, closures, analysis, planned, told)


def _contracts(system: System, analysis: Analysis, closure: Closure) -> bool:
    if isinstance(closure, LowRank):
        return bounded(system, closure.factors, analysis.always)
    return analysis.bounded_products(closure) if isinstance(closure, Block) else analysis.contracting(closure)


def module_text(compilations: Sequence[Compilation], source: Source, target: str = "triton") -> str:
    """The generated file of these cells, from one source: with Triton kernels, or with PyTorch alone ("torch")."""
    plans = [c.plan for c in compilations if c.plan is not None]
    return backend(target).emit(plans, source.text)
