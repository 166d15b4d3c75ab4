"""Operators of lists of tensors as the dispatcher has them: without what `torch.library.custom_op` does around a call,
which takes longer than a loop of a few tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _list_operator(
    library: torch.library.Library,
    name: str,
    schema: str,
    lists: int,
    function: Callable[..., list[Tensor]],
    fake: Callable[..., list[Tensor]],
    save: Callable[..., None],
    gradient: Callable[..., Any],
) -> Callable[..., list[Tensor]]:
    """An operator that takes `lists` lists of tensors before all else, and gives one of new tensors.

    `save(ctx, inputs, output)` keeps what `gradient(ctx, grads)` needs, which gives the gradients of those tensors,
    one behind the other.
    """
    library.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{library.ns}::{name}", fake, lib=library)
    operator = getattr(getattr(torch.ops, library.ns), name).default

    class Call(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, counts: list[int], rest: tuple[Any, ...], *flat: Tensor) -> tuple[Tensor, ...]:
            tensors = iter(flat)
            given = [[next(tensors) for _ in range(n)] for n in counts]
            with torch._C._AutoDispatchBelowAutograd():
                out = operator(*given, *rest)
            save(ctx, (*given, *rest), out)
            # What has no gradient would get one of zeros, as large as all that is saved.
            ctx.set_materialize_grads(False)
            return tuple(out)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
            return None, None, *gradient(ctx, grads)

    def call(*args: Any) -> list[Tensor]:
        flat = [x for values in args[:lists] for x in values]
        if torch.is_grad_enabled() and any(x.requires_grad for x in flat):
            return list(Call.apply([len(values) for values in args[:lists]], args[lists:], *flat))
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    library.impl(name, call, "Autograd")
    return operator
