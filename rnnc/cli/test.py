"""`rnnc test`."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from functools import partial
from typing import TYPE_CHECKING

from rnnc.cli.outcome import RIGHT, WRONG, UsageError, attempt, compiled, read, say, source_name
from rnnc.cli.terminal import paint, progress, use_color
from rnnc.output import write_stdout
from rnnc.source import Source

if TYPE_CHECKING:
    from rnnc.harness import Result


def run(chosen: argparse.Namespace) -> int:
    if importlib.util.find_spec("torch") is None:
        raise UsageError("`rnnc test` runs the module, and needs torch: pip install torch")
    outcome = attempt(source_name(chosen.file), read(chosen.file), lambda source: _test(source, chosen))
    if outcome.value is None:
        say(outcome.source, outcome.diagnostics)
        return outcome.status
    return RIGHT if outcome.value else WRONG


def _test(source: Source, chosen: argparse.Namespace) -> bool:
    from rnnc.loading import load_module
    from rnnc.pipeline import module_text

    compilations = compiled(source, chosen, "plan")
    for each in compilations:
        say(source, each.diagnostics, notes=False)
    module = load_module(module_text(compilations, source), source.name)

    from rnnc.harness import Subject, properties

    passed = True
    for each in compilations:
        assert each.cell is not None
        build = partial(getattr(module, each.cell.name), backend=chosen.backend)
        subject = Subject(each.cell, build, chosen.device)
        write_stdout(f"{each.cell.name}: up to {chosen.cases} random cases of each property, against the interpreter\n")
        for check in progress(properties(subject, chosen.cases, chosen.seed), each.cell.name):
            result = check()
            passed &= result.failure is None
            write_stdout(result_text(result, color=use_color(sys.stdout)))
    return passed


def result_text(result: Result, *, color: bool = False) -> str:
    """One property in a line; a failure with its smallest case."""
    word = paint("FAILED", "red", color) if result.failure else paint("ok", "green", color) + " " * 4
    lines = [f"  {result.name:<18} {word} "]
    if result.worst is not None:
        lines[0] += f" worst error {result.worst.error:.1e}, allowed {result.worst.allowed:.1e}: {result.worst.what}"
    if result.failure is not None:
        lines.append(f"    smallest failing case: {result.failure.case}")
        if where := result.failure.comparison.where:
            lines.append(f"    {result.failure.comparison.what} is {where}")
    return "\n".join(lines) + "\n"
