"""Generated modules under PyTorch's own checks: gradients, operators, what is saved, checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from tests.modules import PROGRAMS, agree, draw, load, make, some_state, tensors, with_gradients

every = pytest.mark.parametrize("name", PROGRAMS)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "name", ["scan", "lags", "mixed", "gru", "lstm", "mamba", "kalman", "deltaproduct", "titanslinear", "s5reset"]
)
def test_gradcheck(name: str, packed: bool) -> None:
    module = make(name)
    inputs = draw(name, 1, 4, requires_grad=True)
    ends = torch.tensor([0, 3, 3, 4]) if packed else None
    state = some_state(module, 3 if packed else 1)
    params = dict(module.named_parameters())

    def call(*values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(params, values, strict=False))
        rest = values[len(params) :]
        start = type(state)(*rest[len(inputs) :])
        result: Any = torch.func.functional_call(
            module, given, rest[: len(inputs)], {"state": start, "cu_seqlens": ends}
        )
        return tuple(v for v in tensors(result) if v.dtype != torch.bool)

    # The fast mode compares random projections of the Jacobians.
    assert torch.autograd.gradcheck(call, (*params.values(), *inputs, *state), fast_mode=True, atol=1e-6)


@pytest.mark.parametrize("name", ["scan", "gru", "mixed"])
def test_gradcheck_entry_by_entry(name: str) -> None:
    module, inputs = make(name), draw(name, 2, 3, requires_grad=True)
    state = some_state(module, 2)

    def call(*values: Tensor) -> tuple[Tensor, ...]:
        result = module(*values[: len(inputs)], state=type(state)(*values[len(inputs) :]))
        return tuple(v for v in tensors(result) if v.dtype != torch.bool)

    assert torch.autograd.gradcheck(call, (*inputs, *state))


# --- operators ---


class Calls(TorchDispatchMode):
    """Records the calls of one namespace's operators."""

    def __init__(self, namespace: str) -> None:
        super().__init__()
        self.namespace = namespace
        self.calls: dict[str, tuple[Any, tuple[Any, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.namespace == self.namespace:
            self.calls.setdefault(func.name(), (func, args))
        return func(*args, **(kwargs or {}))


def fresh(value: Any, requires_grad: bool) -> Any:
    """Arguments of an operator as leaves."""
    if isinstance(value, list | tuple):
        return [fresh(v, requires_grad) for v in value]
    if isinstance(value, Tensor):
        value = value.detach().clone()
        return value.requires_grad_(requires_grad and (value.is_floating_point() or value.is_complex()))
    return value


@every
def test_a_dispatch_mode_changes_nothing(name: str) -> None:
    """Under one, as in the first run of a compiled graph, operators run where PyTorch resolves no lazy conjugates."""
    module, inputs = make(name), draw(name, 2, 5, requires_grad=True)
    want = with_gradients(module, module(*inputs), *inputs)
    with Calls(""):
        agree(with_gradients(module, module(*inputs), *inputs), want, 0, 0)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["mingru", "lags", "mixed", "gru", "deltaproduct"])
def test_opcheck(name: str, packed: bool) -> None:
    module, inputs = make(name), draw(name, 1, 5, requires_grad=True)
    with Calls(load(PROGRAMS[name].text)._OPERATORS) as seen:
        with_gradients(module, module(*inputs, cu_seqlens=torch.tensor([0, 2, 5]) if packed else None), *inputs)
    names = {n.split("::")[1].split(".")[0] for n in seen.calls}
    assert names and all(f"{n}_backward" in names for n in names if not n.endswith("_backward"))
    for operator, args in seen.calls.values():
        forward = not operator.name().split(".")[0].endswith("_backward")
        torch.library.opcheck(operator, tuple(fresh(a, forward) for a in args))


def test_operators_refuse_a_second_derivative_in_words() -> None:
    for name in ("scan", "gru"):
        module, inputs = make(name), draw(name, 1, 4, requires_grad=True)
        (grad,) = torch.autograd.grad(module(*inputs)[0].sum(), inputs[:1], create_graph=True)
        with pytest.raises(NotImplementedError, match=r"no second derivatives .* backend=\"reference\""):
            torch.autograd.grad(grad.sum(), inputs)


@every
def test_backward_twice_and_in_parts(name: str) -> None:
    module, inputs = make(name), draw(name, 2, 5, requires_grad=True)
    result = module(*inputs)
    values = [v for v in tensors(result) if v.requires_grad]
    total = sum(torch.where(v.abs().isfinite(), v, 0.0).abs().sum() for v in values)
    leaves = [x for x in [*inputs, *module.parameters()] if x.requires_grad]
    assert isinstance(total, Tensor)
    first = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(total, leaves, allow_unused=True)
    for a, b in zip(first, second, strict=True):
        assert (a is None) == (b is None) and (a is None or b is None or torch.equal(a, b))
    # Only some of the leaves, and only some of the results.
    module.requires_grad_(False)
    _, state = module(*(x.detach() if i else x for i, x in enumerate(inputs)))
    if state[-1].requires_grad and not inputs[0].is_complex():
        final = torch.where(state[-1].abs().isfinite(), state[-1], 0.0).abs().sum()
        torch.autograd.grad(final, inputs[0], allow_unused=True)


# --- what is saved ---


def saved(call: Callable[[], object]) -> list[Tensor]:
    """The distinct tensors that autograd keeps for backward."""
    kept: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        call()
    return list(kept.values())


@every
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_saved(name: str, guard: Callable[[], Any]) -> None:
    module, inputs = make(name), draw(name, 2, 5, requires_grad=True)
    want = [v.detach() for v in tensors(module(*inputs))]

    def call() -> None:
        with guard():
            result = module(*inputs)
            stepped = module.step(*(x[:, 0] for x in inputs))
        agree(tensors(result), want, 0, 0)
        assert not any(v.requires_grad for v in [*tensors(result), *tensors(stepped)])

    assert not saved(call)
    # Nor where nothing asks for a gradient.
    module.requires_grad_(False)
    assert not saved(lambda: module(*(x.detach() for x in inputs)))


def size(tensor_list: list[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensor_list)


def test_a_scan_saves_its_decay_its_initial_state_and_its_result() -> None:
    module = make("scan")
    batch, length, dim = 2, 50, module.D
    inputs = draw("scan", batch, length, dtype=torch.float32, requires_grad=True)
    state = type(module.initial_state(batch))(torch.ones(batch, dim, requires_grad=True))
    kept = saved(lambda: module(*inputs, state=state))
    assert size(kept) <= 4 * (2 * batch * length * dim + batch * dim)
    # A decay that is the same at every token is kept as small as it is.
    text = PROGRAMS["scan"].text.replace("input a[D] in [0, 1], b", "param a[D] = uniform(0, 1)\ninput b")
    module = load(text).Scan()
    kept = saved(lambda: module(inputs[1], state=state))
    assert size(kept) <= 4 * (batch * length * dim + 2 * batch * dim)


def test_a_loop_saves_what_comes_in_and_its_states() -> None:
    module = make("gru", dtype=torch.float32)
    batch, length, dim = 2, 50, module.D
    inputs = draw("gru", batch, length, dtype=torch.float32, requires_grad=True)
    kept = saved(lambda: module(*inputs))
    weights = sum(p.numel() for p in module.parameters())
    # x, its three maps before the loop (one with its bias added, one packed), h.
    assert size(kept) <= 4 * (6 * batch * length * dim + 3 * weights)


def test_memory_of_a_step_does_not_grow() -> None:
    module = make("lags")
    x = draw("lags", 2)
    with torch.no_grad():
        state = None
        sizes: list[int] = []
        for _ in range(6):
            _, state = module.step(*x, state)
            sizes.append(sum(s.untyped_storage().nbytes() for s in state))
    assert len(set(sizes[1:])) == 1


# --- checkpointing ---


@every
def test_activation_checkpointing(name: str) -> None:
    module, inputs = make(name), draw(name, 2, 5, requires_grad=True)
    state = some_state(module, 2)
    want = with_gradients(module, module(*inputs, state=state), *inputs, *state)

    def call(*values: Tensor) -> Any:
        return module(*values[: len(inputs)], state=type(state)(*values[len(inputs) :]))

    result: Any = checkpoint(call, *inputs, *state, use_reentrant=False)
    agree(with_gradients(module, result, *inputs, *state), want, 0, 0)


@pytest.mark.parametrize("name", ["mingru", "gru"])
def test_hooks_and_functional_calls(name: str) -> None:
    """What libraries around PyTorch do with a module."""
    module, inputs = make(name), draw(name, 2, 4, requires_grad=True)
    want = tensors(module(*inputs))
    seen: list[str] = []
    module.register_forward_hook(lambda m, args, out: seen.append("forward"))
    module.register_full_backward_hook(lambda m, grad_in, grad_out: seen.append("backward"))
    module(*inputs)[0].sum().backward()
    assert seen == ["forward", "backward"]
    doubled = {n: 2 * p for n, p in module.named_parameters()}
    result: Any = torch.func.functional_call(module, doubled, tuple(inputs))
    for p in module.parameters():
        p.data.mul_(2)
    agree(tensors(module(*inputs)), tensors(result), 1e-12, 1e-12)
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(tensors(result), want, strict=True))


def test_parallel_threads() -> None:
    """One module in several threads at once."""
    from concurrent.futures import ThreadPoolExecutor

    module = make("gru")
    batches = [draw("gru", 2, 30, seed=i) for i in range(8)]
    want = [module(*x)[0] for x in batches]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda x: module(*x)[0], batches))
    agree(got, want, 0, 0)


@pytest.mark.parametrize("name", ["mingru", "gru"])
def test_forward_mode_is_refused_aloud(name: str) -> None:
    """`torch.func.jvp` would go on with a tangent of 0."""
    module = make(name)
    (x,) = draw(name, 1, 4)
    with pytest.raises(NotImplementedError, match='backend="reference"'):
        torch.func.jvp(lambda z: module(z)[0], (x,), (torch.ones_like(x),))
