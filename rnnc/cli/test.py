"""`rnnc test`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from rnnc.cli.outcome import RIGHT, WRONG, UsageError, attempt, compiled, read, say, source_name
from rnnc.cli.terminal import paint, progress, use_color
from rnnc.output import write_stdout
from rnnc.source import Source

if TYPE_CHECKING:
    from rnnc.harness import Result, Subject
    from rnnc.ir import Cell


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

    from rnnc.harness import properties

    passed = True
    for each in compilations:
        assert each.cell is not None
        subjects, missing = _subjects(each.cell, getattr(module, each.cell.name), chosen)
        for name, subject in subjects.items():
            cases = f"up to {chosen.cases} random cases of each property, against the interpreter"
            where = f"{subject.device}, {str(subject.dtype)[6:]} and coarser"
            write_stdout(f"{each.cell.name}, backend {name} ({where}): {cases}{missing}\n")
            missing = ""
            for check in progress(properties(subject, chosen.cases, chosen.seed), each.cell.name):
                result = check()
                passed &= result.failure is None
                write_stdout(result_text(result, color=use_color(sys.stdout)))
    return passed


def _subjects(cell: Cell, made: type[Any], chosen: argparse.Namespace) -> tuple[dict[str, Subject], str]:
    """The backends of a generated class that can run here, and in words which cannot and why.

    With `auto`, all that it may choose among: so not the reference, which is one token at a time of what torch runs.
    """
    every = [name for name in made._backends if name not in ("auto", "reference")]
    subjects: dict[str, Subject] = {}
    missing: list[str] = []
    for name in every if chosen.backend == "auto" else [chosen.backend]:
        subject = _subject(cell, partial(made, backend=name), name, chosen.device)
        if isinstance(subject, str):
            missing.append(f"{name} ({subject})")
        else:
            subjects[name] = subject
    if not subjects:
        raise UsageError(f"`rnnc test` cannot run {cell.name} here: {', '.join(missing)}")
    return subjects, f"; not tested: {', '.join(missing)}" if missing else ""


def _subject(cell: Cell, build: partial[Any], backend: str, device: str) -> Subject | str:
    """What tests one backend, or why it cannot run here."""
    import torch

    from rnnc.harness import Subject

    dtype = torch.float64
    if backend == "triton":
        dtype = torch.float32
        if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            if not torch.cuda.is_available():
                return "there is no GPU, and TRITON_INTERPRET=1 is not set"
            device = "cuda"
    elif backend == "cuda" and device == "cpu":
        if not torch.cuda.is_available():
            return "there is no GPU"
        device = "cuda"
    subject = Subject(cell, build, device, dtype, kernels=backend == "triton")
    try:
        build(**subject.sizes(random.Random(0)), device=device, dtype=dtype)
    except (ValueError, RuntimeError) as error:
        return " ".join(str(error).split())
    return subject


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
