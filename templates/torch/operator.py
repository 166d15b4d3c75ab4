"""Operators of PyTorch, and the shorter way to what they compute."""

# What functorch and dispatch modes say of themselves has no public name.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Operator:
    """`forward(*given)`, without a derivative.

    It is an operator of PyTorch for what traces or transforms programs: torch.compile and torch.export, fake tensors,
    dispatch modes, torch.func. Elsewhere it is called as it is: the way through PyTorch's dispatcher takes a host
    longer than the launch of a kernel does.
    """

    def __init__(self, name: str, schema: str, forward: Callable[..., Any], fake: Callable[..., Any]) -> None:
        self.forward = forward
        self.operator = torch.library.custom_op(name, forward, mutates_args=(), schema=schema)
        self.operator.register_fake(fake)

    def __call__(self, *given: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.operator(*given)
        tensors = _tensors(given)
        learns = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
        if not _unwatched(tensors):
            if learns and torch._C._are_functorch_transforms_active():
                raise NotImplementedError(
                    'no derivatives by torch.func here: construct the cell with backend="reference"'
                )
            return self.operator(*given)
        return self.differentiated(given, tensors) if learns else self.forward(*given)

    def differentiated(self, given: tuple[Any, ...], tensors: list[Tensor]) -> Any:
        return self.operator(*given)


class _Backward(NamedTuple):
    """What a backward computes, and tensors like its results for where nothing is computed."""

    schema: str
    run: Callable[..., Any]
    fake: Callable[..., Any]


class _DifferentiableOperator(_Operator):
    """One with a backward: `save(ctx, given, results)` keeps what that needs, and `gradient(ctx, backward, *grads)`
    calls it for the gradients of all that was given, in lists where that was."""

    def __init__(
        self,
        name: str,
        schema: str,
        forward: Callable[..., Any],
        fake: Callable[..., Any],
        backward: _Backward,
        save: Callable[..., None],
        gradient: Callable[..., tuple[Any, ...]],
    ) -> None:
        super().__init__(name, schema, forward, fake)
        self.save, self.gradient = save, gradient
        self.backward = _Operator(f"{name}_backward", backward.schema, backward.run, backward.fake)
        self.backward.operator.register_autograd(_no_second)
        self.operator.register_autograd(
            lambda ctx, *grads: gradient(ctx, self.backward.operator, *grads), setup_context=save
        )

    def differentiated(self, given: tuple[Any, ...], tensors: list[Tensor]) -> Any:
        return _Differentiated.apply(self, given, *tensors)


def _no_second(ctx: Any, *grads: Any) -> Any:
    raise NotImplementedError('no second derivatives here: construct the cell with backend="reference"')


class _Differentiated(torch.autograd.Function):
    """An operator and its backward, called as they are."""

    @staticmethod
    def forward(ctx: Any, operator: _DifferentiableOperator, given: tuple[Any, ...], *tensors: Tensor) -> Any:
        results = operator.forward(*given)
        operator.save(ctx, given, results)
        ctx.operator, ctx.lists = operator, isinstance(results, list)
        ctx.places = [len(_tensors((x,))) for x in given]
        return tuple(results) if ctx.lists else results

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        operator, given = ctx.operator, (list(grads),) if ctx.lists else grads
        # In a graph of the backward the operator stands, which says that it has no derivative.
        backward = operator.backward.operator if torch.is_grad_enabled() else operator.backward
        flat: list[Any] = []
        for grad, count in zip(operator.gradient(ctx, backward, *given), ctx.places):
            flat += grad if isinstance(grad, list | tuple) else [grad] * count
        return None, None, *flat


def _tensors(given: Sequence[Any]) -> list[Tensor]:
    """The tensors that are given, and those in lists."""
    out: list[Tensor] = []
    for x in given:
        if isinstance(x, Tensor):
            out.append(x)
        elif isinstance(x, list | tuple) and len(x) and isinstance(x[0], Tensor):
            out += x
    return out


def _unwatched(tensors: Sequence[Tensor]) -> bool:
    """Whether these are just tensors, and nobody looks at what is done with them."""
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active() or torch.jit.is_tracing():
        return False
    return all(type(x) in (Tensor, torch.nn.Parameter) and not x.is_meta for x in tensors)
