"""Trains a byte-level language model whose sequence layer is a compiled cell, on a CPU, in about a minute.

    python examples/train_demo.py --cell examples/mingru.rnn --seconds 60

Any cell with one input `x[D]` and an output of as many numbers will do; `--dims` are the sizes it is made with, the
first of them the model's width: `--cell examples/gla.rnn --dims D=128 H=2 K=32 V=64`. The text is the reference part
of Python's own documentation (`pydoc_data.topics`, 465 KB of English), or any file: `--text FILE`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, LENGTH = 16, 256


class MakeCell(Protocol):
    def __call__(self, **sizes: int) -> nn.Module: ...


def load_cell(path: Path) -> MakeCell:
    """The class of a cell: from the module that `rnnc compile` wrote, or compiled here from a `.rnn` file."""
    if path.suffix == ".rnn":
        import rnnc

        return rnnc.compile(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is neither a .rnn file nor a Python module")
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return next(
        v for v in vars(module).values() if isinstance(v, type) and issubclass(v, nn.Module) and hasattr(v, "step")
    )


class Block(nn.Module):
    """A cell that mixes along time, then an MLP that mixes along channels, each on a normalised residual stream."""

    def __init__(self, width: int, cell: nn.Module, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or 3 * width
        self.cell = cell
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.cell(self.norm1(x))
        x = x + y.flatten(2)
        return x + self.mlp(self.norm2(x))

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = self.cell.step(self.norm1(x), state)  # pyright: ignore[reportCallIssue]
        x = x + y.flatten(1)
        return x + self.mlp(self.norm2(x)), state


class ByteModel(nn.Module):
    def __init__(self, width: int, cells: Sequence[nn.Module], hidden: int | None = None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.blocks = nn.ModuleList(Block(width, cell, hidden) for cell in cells)
        self.head = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, 256))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    @torch.no_grad()
    def generate(self, prompt: bytes, count: int, temperature: float = 0.7) -> str:
        """Continues `prompt` one byte at a time: `cell.step` in constant memory, however long the text grows."""
        states: list[Any] = [None] * len(self.blocks)
        text, logits = bytearray(), torch.zeros(1, 256)
        for position in range(len(prompt) + count):
            if position < len(prompt):
                token = prompt[position]
            else:
                token = int(torch.multinomial(torch.softmax(logits / temperature, -1), 1))
            text.append(token)
            x = self.embedding(torch.tensor([token]))
            for i, block in enumerate(self.blocks):
                x, states[i] = block.step(x, states[i])  # pyright: ignore[reportCallIssue]
            logits = self.head(x)
        return "".join(c if c.isprintable() or c == "\n" else "·" for c in text.decode("utf-8", "replace"))


def read_text(path: Path | None) -> Tensor:
    """The bytes of a file, or of the standard library's documentation."""
    if path is not None:
        raw = path.read_bytes()
    else:
        try:
            topics = importlib.import_module("pydoc_data.topics").topics
        except ImportError:
            raise SystemExit("this Python came without pydoc_data.topics; give a text: --text FILE") from None
        raw = "\n".join(topics[name] for name in sorted(topics)).encode()
    return torch.tensor(list(raw), dtype=torch.uint8)


def windows(text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Windows of `LENGTH` bytes, and the byte that follows each of them."""
    both = text[starts[:, None] + torch.arange(LENGTH + 1)].long()
    return both[:, :-1], both[:, 1:]


def bits_per_byte(model: ByteModel, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten()) / math.log(2)


@torch.no_grad()
def held_out_loss(model: ByteModel, text: Tensor) -> float:
    x, y = windows(text, torch.arange(0, len(text) - LENGTH, LENGTH))
    losses = [float(bits_per_byte(model, *xy)) * len(xy[0]) for xy in zip(x.split(BATCH), y.split(BATCH), strict=True)]
    return sum(losses) / len(x)


@dataclass
class History:
    """What the plot shows: bits a byte against seconds, or tokens."""

    train: list[tuple[float, float]] = field(default_factory=list)
    held_out: list[tuple[float, float]] = field(default_factory=list)

    def plot(self, path: Path, title: str) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        axes.plot(*zip(*self.train, strict=True), color="0.75", lw=0.8, label="each batch")
        axes.plot(*zip(*smoothed(self.train), strict=True), color="C0", label="training")
        axes.plot(*zip(*self.held_out, strict=True), "o-", color="C1", label="held out")
        axes.set(xlabel="seconds", ylabel="bits per byte", title=title)
        axes.grid(alpha=0.3)
        axes.legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)


def smoothed(points: list[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    mean = points[0][1]
    for at, value in points:
        mean += 0.1 * (value - mean)
        yield at, mean


@contextmanager
def progress(total: float) -> Iterator[Any]:
    """A bar of `total` where there is a terminal to see it, else nothing: call the result with what is done."""
    if not sys.stdout.isatty():
        yield lambda gone: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("training"), BarColumn(), TimeRemainingColumn(), transient=True) as bar:
        task = bar.add_task("training", total=total)
        yield lambda gone: bar.update(task, completed=min(gone, total))


def train(
    model: ByteModel, text: Tensor, held_out: Tensor, budget: float, lr: float, unit: Literal["seconds", "tokens"]
) -> History:
    """AdamW for `budget` seconds or tokens; the rate warms up, then falls to zero along a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    history, interval = History(), budget / 10
    print(f"{'seconds':>9}{'tokens':>12}{'tokens/s':>11}{'training':>11}{'held out':>11}   (bits per byte)")
    seconds, tokens, reports, begin = 0.0, 0, 0, time.perf_counter()

    def report(gone: float) -> None:
        history.held_out.append((gone, held_out_loss(model, held_out)))
        recent = [loss for at, loss in history.train if at > gone - interval]
        speed, mean = (f"{tokens / seconds:,.0f}", f"{sum(recent) / len(recent):.3f}") if recent else ("", "")
        print(f"{seconds:>9.0f}{tokens:>12,}{speed:>11}{mean:>11}{history.held_out[-1][1]:>11.3f}", flush=True)

    with progress(budget) as show:
        while True:
            gone = seconds if unit == "seconds" else tokens
            if gone >= reports * interval or gone >= budget:
                report(gone)
                reports += 1
                begin = time.perf_counter() - seconds  # what a report takes is not training
                if gone >= budget:
                    return history
            part = gone / budget
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, part / 0.03) * (0.5 + 0.5 * math.cos(math.pi * part))
            loss = bits_per_byte(model, *windows(text, torch.randint(len(text) - LENGTH, (BATCH,))))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            seconds = time.perf_counter() - begin
            tokens += BATCH * LENGTH
            history.train.append((seconds if unit == "seconds" else tokens, loss.item()))
            show(history.train[-1][0])


def size(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    return name, int(number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", type=Path, required=True, help="a .rnn file, or a module that rnnc wrote from one")
    parser.add_argument(
        "--dims", type=size, nargs="+", default=[("D", 160)], metavar="NAME=SIZE", help="default: D=160"
    )
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--plot", type=Path, default=Path("demo/loss.png"))
    arguments = parser.parse_args()

    torch.manual_seed(0)
    make, dims = load_cell(arguments.cell), dict(arguments.dims)
    model = ByteModel(next(iter(dims.values())), [make(**dims) for _ in range(arguments.layers)])
    text = read_text(arguments.text)
    split = len(text) * 19 // 20
    print(f"{arguments.cell}: {sum(p.numel() for p in model.parameters()):,} parameters, {split:,} bytes of text")
    history = train(model, text[:split], text[split:], arguments.seconds, arguments.lr, "seconds")
    print("\n" + model.generate(b"The ", 400) + "\n")
    history.plot(arguments.plot, f"{arguments.cell.stem}: {arguments.seconds:.0f} s of training")
    print(f"the losses are plotted in {arguments.plot}")


if __name__ == "__main__":
    main()
