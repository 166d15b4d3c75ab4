"""`benchmarks/gpu.sh`: its steps share one deadline, and what was measured comes back."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from tests.cells import EXAMPLES

SCRIPT = EXAMPLES.parent / "benchmarks" / "gpu.sh"
STUB = """\
#!/bin/bash
echo "$(date +%s.%N) $*" >>"$LOG"
while (($#)); do
    case $1 in
    --json) echo '{}' >"$2" ;;
    SLOW | benchmarks/SLOW.py) sleep 100 ;;
    esac
    shift
done
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def run(folder: Path, seconds: int, slow: str) -> tuple[dict[str, tuple[float, str]], str, float]:
    """When each step began and with what arguments, what was said, and how long it took."""
    stub, log, out = folder / "python", folder / "log", folder / "out"
    stub.write_text(STUB.replace("SLOW", slow))
    stub.chmod(0o755)
    out.mkdir()
    given = {**os.environ, "PYTHON": str(stub), "LOG": str(log), "OUT": str(out), "TIME": str(seconds)}
    start = time.monotonic()
    done = subprocess.run(["bash", SCRIPT, "--device", "cpu"], env=given, capture_output=True, text=True, timeout=60)
    took = time.monotonic() - start
    steps: dict[str, tuple[float, str]] = {}
    for line in log.read_text().splitlines():
        at, _, arguments = line.partition(" ")
        name = re.search(r"-m (\w+)|benchmarks/(\w+)\.py", arguments)
        assert name
        steps.setdefault(name[1] or name[2], (float(at), arguments))
    return steps, done.stdout, took


def test_all_steps_run_in_their_order(tmp_path: Path) -> None:
    steps, said, _ = run(tmp_path, 570, "nothing")
    order = ["mingru", "families", "matrix", "delta", "recurrent", "mamba", "lru", "hgrn"]
    assert [n for n in steps if n != "report"] == ["pytest", *order, "rnnc"] or "pip" in steps
    assert "all steps done" in said
    found = tmp_path / "out"
    assert sorted(p.name for p in found.iterdir()) == ["gpu.log", "results.tgz", "tables.md"]
    with tarfile.open(found / "results.tgz") as kept:
        assert {Path(n).stem for n in kept.getnames() if n.endswith(".json")} == {*order, "bench"}


def test_what_hangs_leaves_the_others_their_time(tmp_path: Path) -> None:
    """The whole ends in time: one is stopped, said, and what the others measured is there."""
    steps, said, took = run(tmp_path, 38, "matrix")
    assert took < 38 and "FAILED: matrix (status 124)" in said
    assert {"delta", "recurrent", "hgrn", "rnnc"} <= set(steps)
    with tarfile.open(tmp_path / "out" / "results.tgz") as kept:
        assert "./hgrn.json" in kept.getnames()


def test_shares() -> None:
    """However long the steps before take, each has what it needs at least."""
    text = SCRIPT.read_text(encoding="utf-8")
    parts = text[text.index("STEPS=(") : text.index("# step NAME")]
    play = """
TIME=570 END=570
for NAME in "${STEPS[@]}"; do
    has=$(share "$NAME")
    echo "$NAME $has ${LEAST[$NAME]} ${MOST[$NAME]}"
    SECONDS=$((SECONDS + has))
done
echo "end $SECONDS 0 570"
"""
    said = subprocess.run(["bash", "-c", parts + play], capture_output=True, text=True, check=True).stdout
    shares = {name: [*map(int, numbers)] for name, *numbers in map(str.split, said.splitlines())}
    assert len(shares) == 13 and all(least <= has <= most for has, least, most in shares.values()), said
    assert sum(most for _, _, most in list(shares.values())[:-1]) > 570, "all at once they would take longer"
