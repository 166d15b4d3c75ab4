"""Who can keep track of a state: small models of one cell each learn the word problems of four groups, on a CPU.

    python examples/state_tracking.py [--tasks parity S3] [--cells mamba lstm] [--quick]

A word is a row of permutations, and the answer at each of its letters is their product so far: parity (swaps of two
things), counting modulo 3 (turns of three), S3 (all permutations of three) and A5 (the even ones of five). Letters
are "nothing" and what generates the group: both turns for counting, which adds 0, 1 or 2. Words grow while they are
learned, up to 40 letters; tests go on to 256. The claim is that of Grazzi et al. 2024 (arXiv:2411.12537): what a
linear recurrence can track is a matter of its transition's eigenvalues, so of one line in each of the cells of
`examples/state_tracking/`, which rnnc compiles here.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from train_demo import Block, MakeCell

import rnnc
from rnnc.explain import report
from rnnc.pipeline import compile_source
from rnnc.source import Source

CELLS = Path(__file__).resolve().parent / "state_tracking"
LONGEST, TEST = 40, 256  # letters, in training and in the test
BATCH, LAYERS, WIDTH = 32, 2, 64

Permutation = tuple[int, ...]
TASKS: dict[str, tuple[Permutation, ...]] = {
    "parity": ((1, 0),),
    "modulo 3": ((1, 2, 0), (2, 0, 1)),
    "S3": ((1, 0, 2), (1, 2, 0)),
    "A5": ((1, 2, 0, 3, 4), (0, 1, 3, 4, 2)),
}
# In the order of the table, each beside the one that differs from it in a line.
NAMES = {
    "mamba": "Mamba, decay in [0, 1]",
    "mamba_signed": "Mamba, decay in [-1, 1]",
    "deltanet": "DeltaNet, β in [0, 1]",
    "deltanet_signed": "DeltaNet, β in [0, 2]",
    "deltaproduct": "DeltaProduct, two reflections",
    "lstm": "LSTM",
}


class Group:
    """What some permutations generate. Letters are "nothing" and the generators, answers the numbers of elements."""

    def __init__(self, generators: Sequence[Permutation]) -> None:
        self.elements = [tuple(range(len(generators[0])))]
        for a in self.elements:  # which grows meanwhile
            for b in generators:
                if (product := self.compose(a, b)) not in self.elements:
                    self.elements.append(product)
        self.letters = [self.elements[0], *generators]
        number = {e: i for i, e in enumerate(self.elements)}
        self.after = torch.tensor([[number[self.compose(e, letter)] for letter in self.letters] for e in self.elements])

    @staticmethod
    def compose(a: Permutation, b: Permutation) -> Permutation:
        """First `b`, then `a`."""
        return tuple(a[i] for i in b)

    def words(self, count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random words, `[count, length]`, and the product of each of their beginnings."""
        words = torch.randint(len(self.letters), (count, length), generator=generator)
        products, product = torch.empty_like(words), torch.zeros(count, dtype=torch.long)
        for t in range(length):
            products[:, t] = product = self.after[product, words[:, t]]
        return words, products


class Model(nn.Module):
    def __init__(self, group: Group, make: MakeCell) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(group.letters), WIDTH)
        self.blocks = nn.Sequential(*(Block(WIDTH, make(D=WIDTH), 3 * WIDTH) for _ in range(LAYERS)))
        self.head = nn.Sequential(nn.RMSNorm(WIDTH), nn.Linear(WIDTH, len(group.elements)))

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(words)))


@dataclass
class Result:
    """Accuracies are scaled: 1 is perfect, 0 what a guess gets. `curve` has one for each length of the test."""

    cell: str
    task: str
    seed: int
    steps: int
    learned: int  # letters
    within: float
    beyond: float
    curve: list[float]
    cpu_seconds: float


@torch.no_grad()
def accuracy(model: Model, group: Group, count: int) -> Tensor:
    """Of the last answer for each length, on words that no training saw."""
    words, products = group.words(count, TEST, torch.Generator().manual_seed(1 << 20))
    right = (model(words).argmax(-1) == products).double().mean(0)
    chance = 1 / len(group.elements)
    return (right - chance) / (1 - chance)


def train(cell: str, make: MakeCell, task: str, seed: int, steps: int, polish: int, lr: float) -> Result:
    """Words get a letter longer whenever 9 of 10 of a batch's last two answers are right. Once they are at their
    longest, the rate falls to zero in `polish` steps; a model that does not get there in `steps` is tested as it is."""
    torch.manual_seed(seed)
    group, start = Group(TASKS[task]), time.process_time()
    model, words = Model(group, make), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.1)
    length, left, step = 3, polish, 0
    while left > 0 and (length == LONGEST or step < steps):
        for parameters in optimizer.param_groups:
            parameters["lr"] = lr * min(1.0, (step + 1) / 50) * (0.5 - 0.5 * math.cos(math.pi * left / polish))
        x, y = group.words(BATCH, length, words)
        logits = model(x)
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if length == LONGEST:
            left -= 1
        elif float((logits.argmax(-1) == y)[:, -2:].double().mean()) >= 0.9:
            length += 1
    curve = accuracy(model, group, 4 * BATCH)
    within, beyond = float(curve[:LONGEST].mean()), float(curve[LONGEST:].mean())
    return Result(
        cell,
        task,
        seed,
        step,
        length,
        within,
        beyond,
        [round(v, 4) for v in curve.tolist()],
        time.process_time() - start,
    )


def proved(path: Path) -> str:
    """What rnnc says of the cell's eigenvalues."""
    source = Source(path.name, path.read_text("utf-8"))
    (group,) = report(source, compile_source(source, until="plan"))["groups"]
    return group["spectrum"] if group["spectrum_proved"] else "not known"


def best(results: Sequence[Result], cell: str, task: str) -> Result:
    return max((r for r in results if (r.cell, r.task) == (cell, task)), key=lambda r: r.beyond)


def _scores(found: Sequence[float]) -> str:
    """The best of all seeds; the worst too, where it is another."""
    worst, best = (f"{round(x, 2) + 0.0:.2f}" for x in (min(found), max(found)))
    return best if worst == best else f"{best} ({worst})"


def table(results: Sequence[Result], cells: Sequence[str], tasks: Sequence[str]) -> str:
    """Markdown: for each cell and task the accuracy at lengths beyond training."""
    lines = [f"| | eigenvalues, as proved | {' | '.join(tasks)} |", "|---|---|" + "---|" * len(tasks)]
    for cell in cells:
        scores = [_scores([r.beyond for r in results if (r.cell, r.task) == (cell, task)]) for task in tasks]
        lines.append(f"| {NAMES[cell]} | {proved(CELLS / f'{cell}.rnn')} | {' | '.join(scores)} |")
    return "\n".join(lines)


def plot(results: Sequence[Result], cells: Sequence[str], tasks: Sequence[str], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        1, len(tasks), figsize=(3.2 * len(tasks), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, task in zip(panels[0], tasks, strict=True):
        for cell in cells:
            curve = torch.tensor(best(results, cell, task).curve)
            eights = curve.unflatten(0, (-1, 8)).mean(1)
            place = list(NAMES).index(cell)
            axes.plot(range(4, TEST, 8), eights, label=NAMES[cell], color=f"C{place}", lw=4 - place / 2)
        axes.axvline(LONGEST, color="0.5", ls=":", lw=1)
        axes.set(title=task, xlabel="letters", ylim=(-0.1, 1.05))
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("scaled accuracy")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--cells", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seeds", type=int, default=1, help="runs of each, of which the best counts")
    parser.add_argument("--steps", type=int, default=1000, help="at most so many until the longest words are learned")
    parser.add_argument("--polish", type=int, default=300, help="steps on the longest words")
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--quick", action="store_true", help="a sixth of the steps, to see that it runs")
    parser.add_argument("--plot", type=Path, default=Path("demo/state_tracking.png"))
    parser.add_argument("--json", type=Path, help="write the results here too")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    steps, polish = (
        (arguments.steps // 6, arguments.polish // 6) if arguments.quick else (arguments.steps, arguments.polish)
    )
    start, results = time.perf_counter(), list[Result]()
    print(f"{'':16}{'':10}{'seed':>5}{'steps':>7}{'longest':>9}{f'to {LONGEST}':>8}{f'to {TEST}':>8}{'CPU s':>7}")
    for cell in arguments.cells:
        make: MakeCell = rnnc.compile(CELLS / f"{cell}.rnn")
        for task in arguments.tasks:
            for seed in range(arguments.seeds):
                made = train(cell, make, task, seed, steps, polish, arguments.lr)
                results.append(made)
                scores = f"{made.within:>8.2f}{made.beyond:>8.2f}{made.cpu_seconds:>7.0f}"
                print(f"{cell:16}{task:10}{seed:>5}{made.steps:>7}{made.learned:>9}{scores}", flush=True)
    minutes = (time.perf_counter() - start) / 60
    said = f"scaled accuracy on {LONGEST + 1} to {TEST} letters"
    said += ", of the best seed (and the worst)" * (arguments.seeds > 1)
    print(f"\n{table(results, arguments.cells, arguments.tasks)}\n\n{said}")
    plot(results, arguments.cells, arguments.tasks, arguments.plot)
    print(f"{minutes:.1f} minutes; the accuracy at each length is plotted in {arguments.plot}")
    if arguments.json:
        options = {"steps": steps, "polish": polish, "lr": arguments.lr, "minutes": round(minutes, 1)}
        machine = {"machine": platform.platform(), "threads": 1, "torch": torch.__version__}
        rows = ",\n".join(json.dumps(asdict(r)) for r in results)
        head = json.dumps({**options, **machine})
        arguments.json.write_text(f'{head[:-1]}, "results": [\n{rows}\n]}}\n', "utf-8")


if __name__ == "__main__":
    main()
