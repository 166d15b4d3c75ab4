"""`rnnc check`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rnnc.cli.outcome import attempt, compiled, read, say, source_name
from rnnc.cli.terminal import progress
from rnnc.diagnostics import Diagnostic, to_json
from rnnc.output import write_stdout
from rnnc.source import Source


def run(chosen: argparse.Namespace) -> int:
    programs = [(source_name(name), read(name)) for name in chosen.files]
    status, report = 0, list[dict[str, Any]]()

    def check(source: Source) -> tuple[Diagnostic, ...]:
        return tuple(d for each in compiled(source, chosen, "plan") for d in each.diagnostics)

    for name, data in progress(programs, "check"):
        outcome = attempt(name, data, check)
        diagnostics = outcome.diagnostics if outcome.value is None else outcome.value
        status = max(status, outcome.status)
        if chosen.format == "json":
            report.extend(to_json(outcome.source, d) for d in diagnostics)
        else:
            say(outcome.source, diagnostics)
    if chosen.format == "json":
        write_stdout(json.dumps({"diagnostics": report}, indent=2, ensure_ascii=False) + "\n")
    return status
