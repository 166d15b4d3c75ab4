"""`rnnc bench`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rnnc.cli.outcome import RIGHT, UsageError, attempt, compiled, read, say, source_name
from rnnc.cli.terminal import progress
from rnnc.output import write, write_stdout
from rnnc.source import Source

if TYPE_CHECKING:
    import torch

    from rnnc.bench.contenders import Subject


def run(chosen: argparse.Namespace) -> int:
    needed = {"torch": "`rnnc bench` runs the module", **({"matplotlib": "`--plot` draws"} if chosen.plot else {})}
    for name, why in needed.items():
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"{why}, and needs {name}: pip install {name}")
    for target in (chosen.json, chosen.plot):
        _check_target(target, chosen.file)
    outcome = attempt(source_name(chosen.file), read(chosen.file), lambda source: _bench(source, chosen))
    if outcome.value is None:
        say(outcome.source, outcome.diagnostics)
        return outcome.status
    from rnnc.bench.report import plot, table

    write_stdout(table(outcome.value))
    if chosen.json:
        _write(chosen.json, json.dumps(outcome.value, indent=2, ensure_ascii=False) + "\n")
    if chosen.plot:
        _write(chosen.plot, plot(outcome.value))
    return RIGHT


def _bench(source: Source, chosen: argparse.Namespace) -> dict[str, Any]:
    from rnnc.loading import load_module
    from rnnc.pipeline import module_text

    made, *others = compiled(source, chosen, "plan")
    if others:
        raise UsageError(f"{source.name} has several cells: choose one with --cell")
    say(source, made.diagnostics, notes=False)
    assert made.cell is not None
    build = getattr(load_module(module_text((made,), source), source.name), made.cell.name)

    import torch

    from rnnc.bench.contenders import Subject
    from rnnc.bench.report import record
    from rnnc.bench.run import Bench

    device, dtype = _device(chosen.device), getattr(torch, chosen.dtype)
    known = [d.name for d in made.cell.dims if isinstance(d.size, int)] + [c.name for c in made.cell.consts]
    if unknown := [name for name in chosen.set if name not in known]:
        raise UsageError(f"{made.cell.name} has no `{unknown[0]}` to set; it has {', '.join(known) or 'nothing'}")
    try:
        subject = Subject(made, build, chosen.set, device, dtype)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None
    bench = Bench(subject, chosen.batch, chosen.lengths, _names(chosen.backends, subject), chosen.seconds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of compilers, about what shows in the times
        for step in progress(bench.steps(), "bench"):
            step()
    return record(bench)


def _names(asked: tuple[str, ...] | None, subject: Subject) -> tuple[str, ...]:
    """All contenders, or those asked for."""
    known: Mapping[str, Callable[[], object]] = subject.builders()
    if unknown := [name for name in asked or () if name not in known]:
        raise UsageError(f"no such backend: {unknown[0]} (valid: {', '.join(known)})")
    return asked or tuple(known)


def _device(name: str | None) -> torch.device:
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"cannot run on {name}: {str(error).splitlines()[0]}") from None
    return device


def _check_target(target: str | None, program: str) -> None:
    """Minutes of timing should not end at a folder that is not there."""
    if target is None:
        return
    real = os.path.realpath(target)
    if program != "-" and real == os.path.realpath(program):
        raise UsageError(f"{target} is itself the program")
    if os.path.isdir(real):
        raise UsageError(f"cannot write {target}: it is a folder")
    if not os.path.isdir(os.path.dirname(real)):
        raise UsageError(f"cannot write {target}: no such folder: {os.path.dirname(target) or '.'}")


def _write(target: str, content: str | bytes) -> None:
    try:
        write(target, content)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror or error}") from None
