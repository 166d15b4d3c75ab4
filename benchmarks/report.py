"""The results of the comparisons as Markdown: `python benchmarks/report.py results/*.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def text(runs: list[dict[str, Any]]) -> str:
    return "\n".join(line for run in runs for line in _lines(run))


def _lines(run: dict[str, Any]) -> Iterator[str]:
    about = run["machine"]
    packages = ", ".join(f"{name} {v}" for name, v in run["packages"].items() if v)
    where = about.get("gpu") or f"{about['processor']}, {about['threads']} threads"
    yield f"### {run['title']}"
    yield ""
    yield f"{where}, torch {about['torch']}, triton {about['triton']}{packages and ', ' + packages}; {about['date']}."
    for case in run["cases"]:
        copied = f", a copy {case['copy']:.0f} GB/s" if "copy" in case else ""
        yield ""
        yield f"{case['program']}, {case['title']}{copied}:"
        yield ""
        yield "| | forward, ms | of a copy | backward, ms | of a copy | error, output | error, gradients |"
        yield "|---|---|---|---|---|---|---|"
        for result in case["results"]:
            yield f"| {result['name']} | {' | '.join(_cells(result))} |"
    yield ""


def _cells(result: dict[str, Any]) -> Iterator[str]:
    for way in ("forward", "backward"):
        if result["reason"]:
            yield from (result["reason"].replace("|", "/") if way == "forward" else "", "")
        else:
            yield f"{result[way]['ms']:.4g}"
            yield f"{result[way]['percent_of_copy']:.3g} %"
    known = "error_forward" in result
    yield f"{result['error_forward']:.1e}" if known else ""
    yield f"{max(result['error_gradients'], default=0.0):.1e}" if known else ""


if __name__ == "__main__":
    print(text([json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]]))
