"""`rnnc compile`."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rnnc.cli.outcome import UsageError, attempt, compiled, read, say, source_name
from rnnc.cli.terminal import progress
from rnnc.diagnostics import Diagnostic
from rnnc.output import write, write_stdout
from rnnc.source import Source
from rnnc.tree import Program

if TYPE_CHECKING:
    from rnnc.pipeline import Compilation, Stage


@dataclass(frozen=True)
class _Job:
    """One program to compile; `output` is None for standard output."""

    name: str
    data: bytes
    output: Path | None


def run(chosen: argparse.Namespace) -> int:
    jobs = _jobs(chosen.files, chosen.output, chosen.emit)
    statuses = [_compile(job, chosen, many=len(jobs) > 1) for job in progress(jobs, "compile")]
    return max(statuses)


def _jobs(files: list[str], output: str | None, emit: tuple[str, ...] | None) -> list[_Job]:
    """Settles what is read and written before anything is compiled."""
    folder = output not in (None, "-") and (len(files) > 1 or output.endswith(os.sep) or os.path.isdir(output))
    if output == "-" and len(files) > 1 and emit is None:
        raise UsageError("several modules make no file together: give `-o FOLDER`, or one FILE")
    if files.count("-") > 1:
        raise UsageError("`-` can be read once only")
    if output is not None and folder and not os.path.isdir(output):
        raise UsageError(f"no such folder: {output}" + (" (for several files, `-o` is one)" if len(files) > 1 else ""))
    jobs: list[_Job] = []
    owners: dict[str, str] = {}
    for name in files:
        data = read(name)
        target = _output(name, output, folder, emit)
        if target is not None:
            real = os.path.realpath(target)
            if any(n != "-" and os.path.realpath(n) == real for n in files):
                raise UsageError(f"{target} is itself a program: give another `-o`")
            if os.path.isdir(real):
                raise UsageError(f"cannot write {target}: it is a folder")
            if not os.path.isdir(os.path.dirname(real)):
                raise UsageError(f"cannot write {target}: no such folder: {target.parent}")
            if real in owners:
                raise UsageError(f"{owners[real]} and {name} would both be written to {target}")
            owners[real] = name
        jobs.append(_Job(name, data, target))
    return jobs


def _output(name: str, output: str | None, folder: bool, emit: tuple[str, ...] | None) -> Path | None:
    if output is None:
        return None if name == "-" or emit is not None else Path(name).with_suffix(".py")
    if output == "-":
        return None
    if not folder:
        return Path(output)
    if name == "-":
        raise UsageError("standard input has no name: give `-o FILE`")
    return Path(output) / Path(name).with_suffix(".py" if emit in (None, ("module",)) else ".txt").name


def _compile(job: _Job, chosen: argparse.Namespace, *, many: bool) -> int:
    emit: tuple[Stage, ...] = ("module",) if chosen.emit is None else chosen.emit
    outcome = attempt(source_name(job.name), job.data, lambda source: _text(source, chosen, emit, many=many))
    text, diagnostics = outcome.value or (None, outcome.diagnostics)
    say(outcome.source, diagnostics, notes=False)
    if text is None:
        return outcome.status
    if job.output is None:
        write_stdout(text)
        return outcome.status
    try:
        write(job.output, text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(f"cannot write {job.output}: {error.strerror or error}") from None
    return outcome.status


def _text(
    source: Source, chosen: argparse.Namespace, emit: tuple[Stage, ...], *, many: bool
) -> tuple[str, tuple[Diagnostic, ...]]:
    """What is to be written, and what is to be said beside it."""
    compilations = compiled(source, chosen, emit[-1])
    said = tuple(d for each in compilations for d in each.diagnostics)
    if emit == ("module",):
        from rnnc.pipeline import module_text

        return module_text(compilations, source, chosen.target), said
    parts: list[tuple[Stage, Compilation]] = [(stage, each) for stage in emit for each in compilations]
    if len(parts) == 1 and not many:
        return product(emit[0], compilations[0], source, chosen.target), said
    where = f" ({source.name})" if many else ""
    texts = (
        f"# {stage} of {each.tree.name.text}{where}\n{product(stage, each, source, chosen.target).rstrip()}\n"
        for stage, each in parts
    )
    return "\n".join(texts) + "\n", said


def product(stage: Stage, made: Compilation, source: Source, target: str) -> str:
    """The text form of what a stage made."""
    match stage:
        case "tree":
            from rnnc.format import tree_text

            return tree_text(Program((made.tree,)))
        case "ir":
            from rnnc.show import cell_text

            assert made.cell is not None
            return cell_text(made.cell)
        case "groups":
            from rnnc.explain import groups_text

            assert made.system is not None and made.closures is not None
            return groups_text(made.system, made.closures)
        case "analysis":
            from rnnc.bound import analysis_text

            assert made.analysis is not None
            return analysis_text(made.analysis)
        case "plan":
            from rnnc.show_plan import plan_text

            assert made.plan is not None
            return plan_text(made.plan)
        case "cuda":
            from rnnc.target import backend

            assert made.plan is not None
            return backend("cuda").emit((made.plan,), source.text)
        case "module":
            from rnnc.pipeline import module_text

            return module_text((made,), source, target)
