"""`rnnc explain`."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys

from rnnc.cli.outcome import UsageError, attempt, compiled, read, say, source_name
from rnnc.cli.terminal import use_color
from rnnc.output import write_stdout


def run(chosen: argparse.Namespace) -> int:
    topic: str = chosen.topic
    if re.fullmatch(r"rnn\d+", topic, re.IGNORECASE) and not os.path.exists(topic):
        return _page(topic.upper())
    from rnnc.explain import report, report_text

    outcome = attempt(source_name(topic), read(topic), lambda source: report(source, compiled(source, chosen, "plan")))
    if outcome.value is None:
        say(outcome.source, outcome.diagnostics)
    elif chosen.format == "json":
        write_stdout(json.dumps(outcome.value, indent=2, ensure_ascii=False) + "\n")
    else:
        write_stdout(report_text(outcome.value, color=use_color(sys.stdout)))
    return outcome.status


def _page(code: str) -> int:
    from rnnc.explain import page_text, pages

    known = pages()
    if code not in known:
        near = min(known, key=lambda other: (abs(int(other[3:]) - int(code[3:])), other))
        raise UsageError(f"there is no {code}; the nearest is {near}: {known[near].title}")
    write_stdout(page_text(known[code]))
    return 0
