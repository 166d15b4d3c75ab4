"""Writes the README's table of cells: a row for each example, and the kernels that its states have.

`python docs/make_cells.py`; with `--check` it only says whether the table is up to date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from backends.triton.cell import FusedCellCoder
from rnnc.explain import report
from rnnc.pipeline import compile_source
from rnnc.plan import Loop
from rnnc.source import Source

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
HEAD = "| cell | its states | interpreter | PyTorch, CPU | kernels for | played on a CPU | on a GPU |\n"
RULE = "|---|---|---|---|---|---|---|\n"
GPU = "not run yet"


def row(path: Path) -> str:
    source = Source(path.name, path.read_text("utf-8"))
    (made,) = compile_source(source)
    kernels: dict[str, list[str]] = {}
    assert made.plan is not None
    loops = FusedCellCoder(made.plan, frozenset(), 0).loops
    stepped = [step for step in made.plan.steps if isinstance(step, Loop) and id(step) in loops]
    cuda = {s.name for step in stepped if loops[id(step)].kernels for s in step.streams}
    fused: list[str] = []
    sequential: list[str] = []
    for group in report(source, [made])["groups"]:
        states = [f"`{state}`" for state in group["states"]]
        kernels.setdefault(_word(group["kernel"]), []).extend(states)
        fused += states if group["triton"] else []
        sequential += states if cuda & {*group["states"]} else []
    how = "; ".join(f"{kernel}: {', '.join(states)}" for kernel, states in kernels.items()) or "none"
    cells = [f"[{made.tree.name.text}](examples/{path.name})", how, "yes", "yes"]
    found = [f"{kind}: {', '.join(s)}" for kind, s in (("Triton", fused), ("CUDA", sequential)) if s]
    cells += ["; ".join(found), "yes", GPU] if found else ["none yet" if kernels else "none needed", "", ""]
    return f"| {' | '.join(cells)} |\n"


def _word(kernel: str) -> str:
    if kernel == "loop over tokens":
        return "step"
    if kernel.startswith("chunks of tokens"):
        return "chunks"
    return "all at once" if kernel == "all tokens at once" else "scan"


def main() -> int:
    rows = [row(path) for path in (ROOT / "examples").glob("*.rnn")]
    table = HEAD + RULE + "".join(sorted(rows, key=str.lower))
    text = README.read_text("utf-8")
    found = re.search(re.escape(HEAD + RULE) + r"(?:\|.*\n)*", text)
    assert found is not None, "README.md has no table of cells"
    if "--check" in sys.argv:
        return 0 if found.group() == table else 1
    README.write_text(text[: found.start()] + table + text[found.end() :], "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
