"""Generated modules under `torch.compile(fullgraph=True)`: the same numbers, one graph for all batches and lengths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.modules import PROGRAMS, agree, draw, make, some_state, tensors, with_gradients


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counting:
    """The backend `aot_eager`, and how many graphs it was given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: list[Tensor]) -> Any:
        self.graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


def compiled(module: nn.Module, **options: Any) -> tuple[Any, Counting]:
    counting = Counting()
    return torch.compile(module, fullgraph=True, backend=counting, **options), counting


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_same_values_and_gradients(name: str) -> None:
    module, inputs = make(name), draw(name, 2, 5, requires_grad=True)
    want = with_gradients(module, module(*inputs), *inputs)
    faster, _ = compiled(module)
    agree(with_gradients(module, faster(*inputs), *inputs), want)


@pytest.mark.parametrize("name", ["mingru", "lags", "gru", "mixed"])
def test_no_graph_for_each_batch_and_length(name: str) -> None:
    module = make(name)
    faster, counting = compiled(module)

    def run(batch: int, length: int) -> None:
        inputs = draw(name, batch, length, requires_grad=True)
        want = with_gradients(module, module(*inputs), *inputs)
        agree(with_gradients(module, faster(*inputs), *inputs), want)

    run(2, 5)
    assert counting.graphs == 1
    # PyTorch takes a size for a constant until it first changes.
    run(3, 7)
    assert counting.graphs == 2
    for batch, length in ((4, 6), (2, 5), (3, 40), (7, 2), (5, 3), (2, 100)):
        run(batch, length)
    assert counting.graphs == 2
    # PyTorch takes 0 and 1 for constants.
    for batch, length in ((1, 4), (2, 1), (2, 0), (0, 3)):
        run(batch, length)


@pytest.mark.parametrize("name", ["mingru", "gru"])
def test_dynamic_shapes_from_the_start(name: str) -> None:
    module = make(name)
    faster, counting = compiled(module, dynamic=True)
    for batch, length in ((2, 5), (3, 7), (4, 31)):
        inputs = draw(name, batch, length)
        agree(tensors(faster(*inputs)), tensors(module(*inputs)))
    assert counting.graphs == 1


@pytest.mark.parametrize("name", ["mingru", "gru", "lags", "mixed"])
def test_states_packed_sequences_and_steps(name: str) -> None:
    module, inputs = make(name), draw(name, 1, 7, requires_grad=True)
    faster, _ = compiled(module)
    state = some_state(module, 3)
    ends = torch.tensor([0, 3, 3, 7])
    want = with_gradients(module, module(*inputs, state=state, cu_seqlens=ends), *inputs, *state)
    agree(with_gradients(module, faster(*inputs, state=state, cu_seqlens=ends), *inputs, *state), want)
    counting = Counting()
    step = torch.compile(module.step, fullgraph=True, backend=counting)
    now, eager = None, None
    for t in range(5):
        token = [x[:, t].detach() for x in inputs]
        out, now = step(*token, now)
        other, eager = module.step(*token, eager)
        agree([*tensors((out, now))], [*tensors((other, eager))])
    assert counting.graphs == 2  # without a state, and with one


@pytest.mark.parametrize("name", ["mingru", "gru"])
def test_within_a_model_under_autocast_and_checkpointing(name: str) -> None:
    """As in training: inside a larger graph, forward, backward and a step of the optimiser."""
    size = next(iter(PROGRAMS[name].sizes.values()))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.cell, self.head = (
                nn.Embedding(7, size),
                make(name, dtype=torch.float32),
                nn.Linear(size, 7),
            )

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens)
            y: Any = checkpoint(self.cell, x, use_reentrant=False)
            return self.head(x + y[0])

    tokens = torch.randint(7, (2, 9), generator=torch.Generator().manual_seed(0))
    losses: list[list[float]] = []
    for use in (lambda m: m, lambda m: compiled(m)[0]):
        model = Model()
        forward, optimiser = use(model), torch.optim.SGD(model.parameters(), 0.1)
        losses.append([])
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                logits = forward(tokens[:, :-1])
            loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mingru", "gru", "s5reset", "lags"])
def test_inductor(name: str) -> None:
    module, inputs = make(name), draw(name, 2, 6, requires_grad=True)
    faster = torch.compile(module, fullgraph=True)
    for length in (6, 4, 5):
        cut = [x[:, :length].detach().requires_grad_(x.requires_grad) for x in inputs]
        want = with_gradients(module, module(*cut), *cut)
        agree(with_gradients(module, faster(*cut), *cut), want)
