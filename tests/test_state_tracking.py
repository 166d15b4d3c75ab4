"""`examples/state_tracking.py`: its words and answers, its pairs of cells, and that it runs and repeats itself."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import rnnc
from rnnc.pipeline import compile_source
from rnnc.source import Source

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CELLS = EXAMPLES / "state_tracking"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("state_tracking")


def matrix(permutation: tuple[int, ...]) -> torch.Tensor:
    """`P x` puts `x[permutation[i]]` at `i`."""
    return torch.eye(len(permutation), dtype=torch.long)[list(permutation)]


@pytest.mark.parametrize(("task", "order"), [("parity", 2), ("modulo 3", 3), ("S3", 6), ("A5", 60)])
def test_answers_are_products_of_permutations(script: Any, task: str, order: int) -> None:
    group = script.Group(script.TASKS[task])
    assert len(group.elements) == len(set(group.elements)) == order
    assert all(torch.det(matrix(e).double()) > 0 for e in group.elements) == (task in ("modulo 3", "A5"))
    words, products = group.words(5, 70, torch.Generator().manual_seed(0))
    assert set(words.flatten().tolist()) == set(range(len(script.TASKS[task]) + 1))
    for word, answers in zip(words.tolist(), products.tolist(), strict=True):
        product = torch.eye(len(group.elements[0]), dtype=torch.long)
        for letter, answer in zip(word, answers, strict=True):
            product = matrix(group.letters[letter]) @ product
            assert torch.equal(product, matrix(group.elements[answer]))


def test_parity_is_a_sum_modulo_2(script: Any) -> None:
    for task, modulus in (("parity", 2), ("modulo 3", 3)):
        words, products = script.Group(script.TASKS[task]).words(4, 50, torch.Generator().manual_seed(1))
        assert torch.equal(products, words.cumsum(1) % modulus)


@pytest.mark.parametrize("stem", ["mamba", "deltanet"])
def test_pairs_differ_in_one_line(stem: str) -> None:
    one, other = ((CELLS / f"{name}.rnn").read_text("utf-8").splitlines() for name in (stem, f"{stem}_signed"))
    assert len(one) == len(other)
    assert sum(a != b for a, b in zip(one, other, strict=True)) == 1


def test_what_is_proved_of_the_cells(script: Any) -> None:
    assert {path.stem for path in CELLS.glob("*.rnn")} == set(script.NAMES)
    for stem in script.NAMES:
        path = CELLS / f"{stem}.rnn"
        (made,) = compile_source(Source(path.name, path.read_text("utf-8")))
        assert not made.diagnostics and made.analysis is not None
        assert all(verdict.status == "proved" for verdict in made.analysis.verdicts)
    found = {stem: script.proved(CELLS / f"{stem}.rnn") for stem in script.NAMES}
    assert "in (0, 1)" in found["mamba"] and "in (-1, 1)" in found["mamba_signed"]
    assert "in (0, 1]" in found["deltanet"] and "in (-1, 1]" in found["deltanet_signed"]


def test_the_script_runs_and_repeats_itself(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "LONGEST", 4)
    monkeypatch.setattr(script, "TEST", 16)
    options = "--quick --steps 60 --polish 12 --tasks parity S3 --cells mamba_signed deltanet_signed".split()
    plot, written = tmp_path / "plots" / "made.png", [tmp_path / "one.json", tmp_path / "two.json"]
    for path in written:
        monkeypatch.setattr(sys, "argv", ["state_tracking.py", *options, "--plot", str(plot), "--json", str(path)])
        script.main()
    assert plot.stat().st_size > 0
    one, two = (json.loads(path.read_text("utf-8"))["results"] for path in written)
    assert [(r["cell"], r["task"]) for r in one] == [
        (cell, task) for cell in ("mamba_signed", "deltanet_signed") for task in ("parity", "S3")
    ]
    assert all(len(r["curve"]) == 16 and r["steps"] <= 12 for r in one)
    assert [{**r, "cpu_seconds": 0} for r in one] == [{**r, "cpu_seconds": 0} for r in two]
    assert "| DeltaNet, β in [0, 2] | real, in (-1, 1] (rank one) |" in capsys.readouterr().out


@pytest.mark.slow
def test_negative_eigenvalues_track_parity(script: Any) -> None:
    """The claim that the script is there for."""
    reached = {
        stem: script.train(stem, rnnc.compile(CELLS / f"{stem}.rnn"), "parity", 0, 400, 200, 5e-3).beyond
        for stem in ("deltanet", "deltanet_signed")
    }
    assert reached["deltanet"] < 0.1 and reached["deltanet_signed"] > 0.9
