"""A run's results as a table, as JSON, and as a plot over T."""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from rnnc.bench.measure import machine
from rnnc.bench.run import Bench, Row


def record(bench: Bench) -> dict[str, Any]:
    """For `--json`; docs/bench.md names the fields."""
    subject, copy = bench.subject, bench.copy
    assert copy is not None
    return {
        "cell": subject.cell.name,
        "sizes": subject.numbers,
        "batch": bench.batch,
        "dtype": str(subject.dtype)[6:],
        "machine": machine(subject.device),
        "copy": {"bytes": copy.bytes, "ms": copy.ms, "gb_per_s": copy.gb_per_s},
        "results": [_fields(row, copy.gb_per_s) for row in bench.rows],
    }


def _fields(row: Row, copied: float) -> dict[str, Any]:
    t, rate = row.timing, row.gb_per_s
    return {
        "contender": row.contender,
        "T": row.length,
        "direction": row.direction,
        "ms": t and t.ms,
        "ms_20": t and t.low,
        "ms_80": t and t.high,
        "runs": t.runs if t else 0,
        "tokens_per_s": row.tokens_per_s,
        "bytes": row.bytes,
        "gb_per_s": rate,
        "percent_of_copy": rate and 100 * rate / copied,
        "reason": row.reason,
    }


_TITLES = {"forward": "forward", "both": "with backward"}


def table(found: dict[str, Any]) -> str:
    """The record for a reader."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: dict[str, Any]) -> Iterator[str]:
    about, copy = found["machine"], found["copy"]
    sizes = ", ".join(f"{name} {value}" for name, value in found["sizes"].items())
    yield f"{found['cell']}: B {found['batch']}, {sizes}, {found['dtype']}"
    where = about.get("gpu") or f"{about['processor']}, {about['threads']} threads"
    yield f"{where}, torch {about['torch']}; a copy moves {copy['gb_per_s']:.1f} GB/s"
    rows: list[dict[str, Any]] = found["results"]
    timed = {row["contender"] for row in rows if not row["reason"]}
    wide = max(len(name) for name in (*(row["contender"] for row in rows), *_TITLES.values()))
    for direction, title in _TITLES.items():
        shown = [row for row in rows if row["direction"] == direction and row["contender"] in timed]
        if shown:
            yield ""
            yield f"{title:<{wide + 2}}{'T':>7}{'ms':>11}{'tokens/s':>11}{'GB/s':>9}{'of a copy':>12}"
        for row in shown:
            start = f"  {row['contender']:<{wide}}{row['T']:>7}"
            if row["reason"]:
                yield f"{start}  {row['reason']}"
            else:
                tokens, rate, share = _short(row["tokens_per_s"]), row["gb_per_s"], row["percent_of_copy"]
                yield f"{start}{row['ms']:>11.4g}{tokens:>11}{rate:>9.3g}{share:>10.3g} %"
    missing = {row["contender"]: row["reason"] for row in rows if row["contender"] not in timed}
    if missing:
        yield ""
    for name, why in missing.items():
        yield f"  {name:<{wide}}  {why}"


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g}  "


def plot(found: dict[str, Any]) -> bytes:
    """Tokens a second over T, as PNG."""
    import_module("matplotlib").use("agg")
    plt: Any = import_module("matplotlib.pyplot")
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for ax, (direction, title) in zip(axes, _TITLES.items(), strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for row in found["results"]:
            if row["direction"] == direction and row["ms"]:
                lines.setdefault(row["contender"], []).append((row["T"], row["tokens_per_s"]))
        for name, points in lines.items():
            ax.plot(*zip(*points, strict=True), marker="o", label=name)
        ax.set(title=title, xlabel="T", xscale="log", yscale="log")
        lengths = sorted({row["T"] for row in found["results"]})
        ax.set_xticks(lengths, [str(length) for length in lengths])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("tokens/s")
    axes[0].legend()
    figure.suptitle(f"{found['cell']}, B {found['batch']}, {found['dtype']}")
    with io.BytesIO() as stream:
        figure.savefig(stream, format="png", dpi=120)
        plt.close(figure)
        return stream.getvalue()
