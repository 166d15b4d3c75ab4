"""Trains small byte-level language models around compiled cells and plots their losses together.

    python examples/train_lm.py mlstmblock gla mingru lstm --tokens 1500000 --plot docs/train_lm.png

A cell is one of `examples/`, by name, or any `.rnn` file; `name:H=8,K=16` makes it with other sizes. Its inputs,
outputs and dims are those that it declares. What is no sequence of the model's width comes from a learned projection,
into the range that the cell declares; outputs are brought back to the width. All models see the same tokens in the same
order, and the MLPs between the cells are made as wide as gives every model about the same number of parameters. The
text and the rest of the model are those of `train_demo.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))

from train_demo import LENGTH, Block, ByteModel, History, read_text, smoothed, train

import rnnc
from rnnc.harness import scalar
from rnnc.ir import Annulus, Cell, Disc, Input, Interval
from rnnc.pipeline import compile_source
from rnnc.source import Source

EXAMPLES = Path(__file__).resolve().parent
MOST = 32
"""What a size is cut down to that neither the model's width nor the user decides."""


@dataclass(frozen=True)
class Choice:
    """A cell, and what is known of its sizes."""

    name: str
    path: Path
    sizes: dict[str, int]

    @classmethod
    def read(cls, text: str) -> Choice:
        name, _, rest = text.partition(":")
        path = Path(name) if name.endswith(".rnn") else EXAMPLES / f"{name}.rnn"
        if not path.exists():
            raise argparse.ArgumentTypeError(f"there is no {path}")
        sizes = dict(part.split("=") for part in rest.split(",") if part)
        return cls(path.stem, path, {n: int(size) for n, size in sizes.items()})


def declared(path: Path) -> Cell:
    """The cell of a file, checked."""
    (made,) = compile_source(Source(path.name, path.read_text("utf-8")), until="ir")
    assert made.cell is not None
    return made.cell


def sequence(cell: Cell) -> Input | None:
    """The input that is the sequence of the model's width itself: the only one of any real numbers along one dim."""
    found = [i for i in cell.inputs if len(i.type.dims) == 1 and i.type.kind == "real" and i.region is None]
    return found[0] if len(found) == 1 else None


def make(cell: Cell, path: Path, width: int, chosen: dict[str, int]) -> nn.Module:
    """The cell in a model of that width: other sizes as declared, but small; smaller still where some must divide."""
    x, build = sequence(cell), rnnc.compile(path)
    free = {d.name: d.size for d in cell.dims if isinstance(d.size, int)}
    fixed = ({x.type.dims[0]: width} if x is not None else {}) | chosen
    for most in range(MOST, 0, -1):
        try:
            return build(**{name: fixed.get(name, min(size, most)) for name, size in free.items()})
        except ValueError as error:
            if most == 1:
                raise SystemExit(f"{path}: {error}") from None
    raise AssertionError


class Into(nn.Module):
    """A learned projection of the stream to one input of a cell, into the range that this declares."""

    def __init__(self, given: Input, shape: list[int], width: int, numbers: dict[str, float]) -> None:
        super().__init__()
        self.shape, self.kind = shape, given.type.kind
        self.map = nn.Linear(width, math.prod(shape) * (2 if self.kind == "complex" else 1))
        self.bounds: tuple[float, float] = (-math.inf, math.inf)
        match given.region:
            case Interval(lo=lo, hi=hi):
                self.bounds = scalar(lo, numbers), scalar(hi, numbers)
            case Disc(radius=radius):
                self.bounds = 0.0, scalar(radius, numbers)
            case Annulus(inner=inner, outer=outer):
                self.bounds = scalar(inner, numbers), scalar(outer, numbers)
            case None:
                pass

    def forward(self, x: Tensor) -> Tensor:
        y = self.map(x)
        y = y.reshape(*x.shape[:-1], *([2] if self.kind == "complex" else []), *self.shape)
        if self.kind == "bool":
            return y > 1  # rarely true, as where sequences end; it has no gradient
        if self.kind == "real":
            return self.within(y)
        first, second = y.unbind(x.ndim - 1)
        return torch.complex(first, second) if self.bounds[0] < 0 else torch.polar(self.within(first), second)

    def within(self, y: Tensor) -> Tensor:
        """Strictly inside the range, wherever its ends are."""
        lo, hi = self.bounds
        if math.isfinite(lo) and math.isfinite(hi):
            return lo + (hi - lo) * (0.001 + 0.998 * torch.sigmoid(y))
        if math.isfinite(lo):
            return lo + 1e-3 + F.softplus(y)
        return hi - 1e-3 - F.softplus(y) if math.isfinite(hi) else y


class Around(nn.Module):
    """A cell between two streams of the model's width."""

    def __init__(self, cell: Cell, made: nn.Module, width: int) -> None:
        super().__init__()
        self.cell, x = made, sequence(cell)
        sizes = {d.name: int(getattr(made, d.name)) for d in cell.dims}
        numbers = {**{c.name: float(c.value) for c in cell.consts}, **{n: float(s) for n, s in sizes.items()}}
        self.inputs = nn.ModuleList(
            nn.Identity() if i is x else Into(i, [sizes[d] for d in i.type.dims], width, numbers) for i in cell.inputs
        )
        kinds = [2 if o.expr.kind == "complex" else 1 for o in cell.outputs]
        counts = [n * math.prod(sizes[d] for d in o.expr.dims) for n, o in zip(kinds, cell.outputs, strict=True)]
        self.out = nn.Identity() if counts == [width] else nn.Linear(sum(counts), width, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        y, state = self.cell(*(into(x) for into in self.inputs))
        return self.joined(y, 2), state

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = self.cell.step(*(into(x) for into in self.inputs), state)  # pyright: ignore[reportCallIssue]
        return self.joined(y, 1), state

    def joined(self, outputs: Any, lead: int) -> Tensor:
        parts: list[Tensor] = []
        for y in (outputs,) if isinstance(outputs, Tensor) else outputs:
            y = torch.view_as_real(y) if y.is_complex() else y.float()
            y = y.masked_fill(y.isinf(), 0.0)  # the log-probability of what cannot be, of which no layer makes a number
            parts.append(y.reshape(*y.shape[:lead], -1))
        return self.out(torch.cat(parts, -1))


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def model_of(choice: Choice, width: int, layers: int, parameters: int) -> ByteModel:
    """A model around a cell, its MLPs as wide as brings it nearest to that many parameters."""
    cell = declared(choice.path)
    cells = [Around(cell, make(cell, choice.path, width, choice.sizes), width) for _ in range(layers)]
    # Of each unit of an MLP: a row, a bias and a column.
    unit = layers * (2 * width + 1)
    rest = count(ByteModel(width, cells, 1)) - unit
    hidden = round((parameters - rest) / unit)
    if hidden < 1:
        raise SystemExit(f"{choice.name} has {rest:,} parameters without any MLP: more than {parameters:,}")
    return ByteModel(width, cells, hidden)


def plot(path: Path, histories: dict[str, History], note: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for i, (name, history) in enumerate(histories.items()):
        tokens, losses = zip(*smoothed(history.train), strict=True)
        axes.plot([t / 1e6 for t in tokens], losses, color=f"C{i}", lw=0.8, alpha=0.5)
        tokens, losses = zip(*history.held_out[1:], strict=True)
        axes.plot([t / 1e6 for t in tokens], losses, "o-", color=f"C{i}", ms=3, label=f"{name}: {losses[-1]:.3f}")
    axes.set(xlabel="million tokens", ylabel="bits per byte, held out (faint: training)", title=note, ylim=(None, 5))
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def machine() -> dict[str, str | int]:
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "cells", type=Choice.read, nargs="+", metavar="CELL", help="NAME or FILE.rnn, then :DIM=SIZE,..."
    )
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--parameters", type=int, default=500_000)
    parser.add_argument("--tokens", type=int, default=1_500_000)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--plot", type=Path, default=Path("demo/train_lm.png"))
    parser.add_argument("--json", type=Path, help="where the losses go, with machine and date")
    given = parser.parse_args(arguments)

    text = read_text(given.text)
    split = len(text) * 19 // 20
    histories: dict[str, History] = {}
    results: list[dict[str, Any]] = []
    for choice in given.cells:
        torch.manual_seed(given.seed)
        model = model_of(choice, given.width, given.layers, given.parameters)
        held = sum(count(b.cell) for b in model.blocks if isinstance(b, Block))
        print(f"\n{choice.name}: {count(model):,} parameters, {held:,} of them in {given.layers} cells")
        torch.manual_seed(given.seed)  # the same windows for every model
        start = time.perf_counter()
        histories[choice.name] = history = train(model, text[:split], text[split:], given.tokens, given.lr, "tokens")
        results.append(
            {
                "cell": choice.name,
                "parameters": count(model),
                "seconds": round(time.perf_counter() - start, 1),
                "held_out": [(int(at), round(loss, 4)) for at, loss in history.held_out],
                "training": [(int(at), round(loss, 4)) for at, loss in list(smoothed(history.train))[::20]],
            }
        )
    options = {n: getattr(given, n) for n in ("width", "layers", "parameters", "tokens", "lr", "seed")}
    note = f"about {given.parameters:,} parameters, windows of {LENGTH} bytes"
    plot(given.plot, histories, note)
    print(f"\nthe losses are plotted in {given.plot}")
    if given.json is not None:
        said = {"what": "bits per byte of byte-level models", "date": f"{datetime.now(UTC):%Y-%m-%d}"}
        report = {**said, "machine": machine(), "options": options, "text_bytes": len(text), "models": results}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
