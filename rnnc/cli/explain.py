"""`rnnc explain`."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

from rnnc.cli.outcome import RIGHT, UsageError, attempt, compiled, read, say, source_name
from rnnc.cli.terminal import paint, use_color
from rnnc.diagnostics import Diagnostic
from rnnc.output import write_stdout
from rnnc.source import Source


def run(chosen: argparse.Namespace) -> int:
    topic: str = chosen.topic
    if re.fullmatch(r"rnn\d{1,4}", topic, re.IGNORECASE) and not os.path.exists(topic):
        return _page(topic.upper())
    outcome = attempt(source_name(topic), read(topic), lambda source: _explain(source, chosen))
    if outcome.value is None:
        say(outcome.source, outcome.diagnostics)
        return outcome.status
    report, diagnostics = outcome.value
    if chosen.format == "json":
        write_stdout(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    else:
        say(outcome.source, diagnostics)
        write_stdout(report_text(report, color=use_color(sys.stdout)))
    return outcome.status


def _explain(source: Source, chosen: argparse.Namespace) -> tuple[Mapping[str, Any], tuple[Diagnostic, ...]]:
    from rnnc.explain import report

    compilations = compiled(source, chosen, "plan")
    return report(source, compilations), tuple(d for each in compilations for d in each.diagnostics)


_ALL = "(-inf, inf)"
"""A range that says nothing."""


def report_text(report: Mapping[str, Any], *, color: bool = False) -> str:
    """The report of `rnnc.explain` for a reader."""
    return "\n".join(line for cell in report["cells"] for line in _cell_lines(cell, color)) + "\n"


def _cell_lines(cell: Mapping[str, Any], color: bool) -> Iterator[str]:
    yield paint(cell["name"], "bold", color) + (f": {' '.join(cell['doc'].split())}" if cell["doc"] else "")
    if cell["groups"]:
        yield ""
    for group in cell["groups"]:
        yield f"  {paint(', '.join(group['states']), 'bold', color)}: {group['kernel']} (family: {group['family']})"
        if group["device"]:
            yield f"      on a GPU: {group['device']}"
        if group["step"]:
            yield f"      one token there: {group['step']}"
        for text in (f"why: {group['reason']}", group["certificate"] and f"certificate: {group['certificate']}"):
            yield from _wrapped(text)
        for text in _behaviour(group):
            yield from _wrapped(text)
    kernels = [("", f"{', '.join(k['computes'])}: a program has {k['has']}") for k in cell["between"]]
    kernels += [("", f"{text}: PyTorch, for a program cannot have all that it sums over") for text in cell["left"]]
    yield from _section("on a GPU, one kernel for all tokens each", kernels, color)
    yield from _section("claims", [(c["claim"], _verdict(c)) for c in cell["claims"]], color)
    yield from _section("ranges", [(r["name"], r["range"]) for r in cell["ranges"] if r["range"] != _ALL], color)
    for kind in ("inputs", "outputs", "state", "parameters"):
        yield from _section(kind, [(v["name"], _shape(v)) for v in cell[kind]], color)
    sizes = {**cell["dims"], **cell["consts"]}
    yield from _section("sizes and consts", [(name, str(value)) for name, value in sizes.items()], color)
    yield ""


def _behaviour(group: Mapping[str, Any]) -> Iterator[str]:
    """What the eigenvalues of a group say of it."""
    yield f"eigenvalues: {group['spectrum']}" + (", proved" if group["spectrum_proved"] else "")
    for field, title in (("tracks", "can track"), ("cannot_track", "cannot track")):
        if group[field]:
            yield f"{title}: {'; '.join(group[field])}"
    yield f"half-life at initialisation: {group['half_life']}"
    if group["explodes"]:
        yield f"may explode: {group['explodes']}"


def _wrapped(text: str) -> Iterator[str]:
    yield from wrap(text, 110, initial_indent="      ", subsequent_indent="        ", break_on_hyphens=False)


def _section(title: str, rows: Sequence[tuple[str, str]], color: bool) -> Iterator[str]:
    if not rows:
        return
    yield ""
    yield f"  {paint(title, 'bold', color)}"
    width = min(24, max(len(name) for name, _ in rows))
    for name, text in rows:
        yield f"    {name.ljust(width)}  {text}".rstrip() if name else f"    {text}"


def _verdict(claim: Mapping[str, str]) -> str:
    said = [claim["reason"], claim["missing"] and f"missing: {claim['missing']}"]
    return f"{claim['status']}: {'; '.join(s for s in said if s)}"


def _shape(value: Mapping[str, Any]) -> str:
    kind = "" if value["kind"] == "real" else f" {value['kind']}"
    known = f" in {value['range']}" if value.get("range") else ""
    return f"[{', '.join(value['shape'])}]{kind}{known}" + ("" if value.get("learned", True) else ", not learned")


def _page(code: str) -> int:
    from rnnc.errors import all_codes

    known = all_codes()
    if code not in known:
        near = min(known, key=lambda other: (abs(int(other[3:]) - int(code[3:])), other))
        raise UsageError(f"there is no {code}; the nearest is {near}: {known[near].title}")
    write_stdout(page_text(known[code]))
    return RIGHT


def page_text(kind: type[Diagnostic]) -> str:
    """The page of a diagnostic: its title, then what the rule is."""
    return f"{kind.code}: {kind.title}\n\n{kind.page.strip()}\n"
