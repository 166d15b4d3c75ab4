"""`examples/train_lm.py`: a model around any cell, found from what it declares."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cells import EXAMPLES

sys.path.insert(0, str(EXAMPLES))
lm: Any = importlib.import_module("train_lm")

EVERY = """cell Every
dim D = 10, N = 5, P = D / N
const most = 3.0
input x[D, N], z[N]: complex, w: complex in disc(0.9), a in [0, most], b in (0, inf), c[N] in (-inf, -1], on: bool
state h[D, N]
state s[N]: complex
h[t] = where(on, a / most * h[t-1] + b * x * P, c)
s[t] = w * s[t-1] + z
output h[t]
output s[t]
output on
"""
# Several inputs; ranges; bools; heads that must divide the width; a size for the model alone.
SOME = ["mlstm", "kalman", "s5reset", "bkt", "lstm", "mingru"]
ALL = [pytest.param(p.stem, marks=[] if p.stem in SOME else pytest.mark.slow) for p in sorted(EXAMPLES.glob("*.rnn"))]


def checked(model: Any) -> None:
    """Finite losses and gradients, one token after the other as all at once."""
    tokens = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(0))
    logits = model(tokens)
    assert logits.shape == (2, 9, 256)
    logits.square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    stepped: list[torch.Tensor] = []
    with torch.no_grad():
        states: list[Any] = [None] * len(model.blocks)
        for t in range(9):
            x = model.embedding(tokens[:, t])
            for i, block in enumerate(model.blocks):
                x, states[i] = block.step(x, states[i])
            stepped.append(model.head(x))
    torch.testing.assert_close(torch.stack(stepped, 1), logits.detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("stem", ALL)
def test_any_example(stem: str) -> None:
    torch.manual_seed(0)
    checked(lm.model_of(lm.Choice.read(stem), 24, 1, 120_000))


def test_inputs_of_every_kind_stay_in_their_ranges(tmp_path: Path) -> None:
    path = tmp_path / "every.rnn"
    path.write_text(EVERY, "utf-8")
    torch.manual_seed(0)
    choice = lm.Choice.read(f"{path}:D=4")
    model = lm.model_of(choice, 16, 1, 30_000)
    around = model.blocks[0].cell
    # The declared 5 does not divide 4; 4 does.
    assert (around.cell.D, around.cell.N, around.out.in_features) == (4, 4, 4 * 4 + 2 * 4 + 1)
    x = 30 * torch.randn(2, 50, 16)
    given = {i.name: into(x) for i, into in zip(lm.declared(path).inputs, around.inputs, strict=True)}
    assert given["x"].shape == (2, 50, 4, 4) and given["z"].is_complex() and given["on"].dtype == torch.bool
    assert given["w"].shape == (2, 50) and (given["w"].abs() <= 0.9).all()
    assert ((given["a"] >= 0) & (given["a"] <= 3)).all() and (given["b"] > 0).all() and (given["c"] <= -1).all()
    checked(model)


def test_models_have_about_as_many_parameters() -> None:
    counts = [lm.count(lm.model_of(lm.Choice.read(stem), 32, 2, 60_000)) for stem in ("mingru", "lstm:H=4")]
    assert all(abs(n - 60_000) <= 2 * (2 * 32 + 1) for n in counts)
    with pytest.raises(SystemExit, match=r"more than 1,000"):
        lm.model_of(lm.Choice.read("mingru"), 32, 2, 1_000)


def test_runs_see_the_same_tokens(tmp_path: Path) -> None:
    """The same cell twice has the same losses; the plot and the numbers are written."""
    arguments = ["--width", "16", "--layers", "1", "--parameters", "12000", "--tokens", "20000"]
    text = tmp_path / "text"
    text.write_bytes(b"Of making many books there is no end. " * 400)
    written = tmp_path / "a.json"
    paths = ["--text", str(text), "--plot", str(tmp_path / "a.png"), "--json", str(written)]
    lm.main(["mingru", "mingru", *arguments, *paths])
    report = json.loads(written.read_text())
    first, second = report["models"]
    assert first["held_out"] == second["held_out"] and first["held_out"][-1][1] < first["held_out"][0][1]
    assert {"processor", "cores", "torch"} <= set(report["machine"]) and report["options"]["tokens"] == 20000
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"
