"""What one would write around the scan of another library: gates and outputs in PyTorch, the recurrence by the scan.

It applies where every recurrence of the cell is affine entry by entry and starts from zero, and nothing else reads the
past. As others need them, gates are computed in the inputs' dtype, for all tokens, and written to memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from rnnc.closure import Affine, Closure
from rnnc.ir import Apply, Expr, Linear, Lit, Merge, Normalize, Reduce, Ref, Rename, Split, walk
from rnnc.lower import System

Scan = Callable[[Tensor, Tensor], Tensor]
"""`h[t] = a[t] * h[t-1] + b[t]` of two [B, T, C]."""
_TIME = "[t]"
"""The name of the axis of time beside those of dims, which no program can write."""


class Unfit(Exception):
    """A peer does not apply to a cell, or is not here."""


def _accelerated_scan() -> Scan:
    real: Any = import_module("accelerated_scan.scalar")
    complex_: Any = import_module("accelerated_scan.complex")

    def run(a: Tensor, b: Tensor) -> Tensor:
        scan = complex_.scan if b.is_complex() else real.scan
        return scan(a.mT.contiguous(), b.mT.contiguous()).mT

    return run


def _fla_hgrn() -> Scan:
    library: Any = import_module("fla.ops.hgrn.chunk")

    def run(a: Tensor, b: Tensor) -> Tensor:
        if b.is_complex():
            raise Unfit("its gates are real")
        return library.chunk_hgrn(b.contiguous(), a.log().contiguous())[0]

    return run


PEERS: Mapping[str, Callable[[], Scan]] = {"accelerated-scan": _accelerated_scan, "fla hgrn": _fla_hgrn}


def peer(
    library: Callable[[], Scan],
    system: System,
    closures: Sequence[Closure],
    numbers: Mapping[str, int | float],
    weights: Mapping[str, Tensor],
) -> Callable[..., tuple[Tensor, ...]]:
    """The cell by a library's scan; Unfit where that cannot be."""
    recurrences: list[Affine] = []
    for closure in closures:
        stream = system.stream(closure.group.states[0])
        if not isinstance(closure, Affine):
            raise Unfit(f"`{stream.name}` is no elementwise affine recurrence")
        if stream.init is not None and not (isinstance(stream.init, Lit) and stream.init.value == 0):
            raise Unfit(f"`{stream.name}` does not start from zero")
        recurrences.append(closure)
    roots = [e for c in recurrences for e in (c.a, c.b) if e is not None] + [e for _, e in system.outputs]
    for node in walk(*roots):
        if (isinstance(node, Ref) and node.lag) or type(node) not in _KNOWN:
            raise Unfit("parts of the cell other than its recurrences read the past")
    try:
        scan = library()
    except ImportError:
        raise Unfit("not installed") from None
    names = [i.name for i in system.cell.inputs]

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        tokens = _Tokens(numbers, weights, dict(zip(names, inputs, strict=True)))
        for closure in recurrences:
            stream = system.stream(closure.group.states[0])
            tokens.states[stream.name] = tokens.recurrence(closure, stream.type.dims, scan)
        return tuple(tokens.tensor(e, e.dims) for _, e in system.outputs)

    return call


_KNOWN = {Lit, Ref, Apply, Reduce, Normalize, Rename, Split, Merge, Linear}


class _Tokens:
    """Values of expressions for all tokens at once. The operations are those of the interpreter."""

    def __init__(
        self, numbers: Mapping[str, int | float], weights: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
    ) -> None:
        self.ops: Any = import_module("rnnc.backends.reference.values")
        lead = next(iter(inputs.values()))
        self.lead = (self.ops.BATCH, _TIME)
        sizes = {name: n for name, n in numbers.items() if isinstance(n, int)}
        self.sizes = {self.ops.BATCH: lead.shape[0], _TIME: lead.shape[1], **sizes}
        self.numbers, self.weights, self.inputs, self.device = numbers, weights, inputs, lead.device
        self.states: dict[str, Tensor] = {}
        self.done: dict[Expr, Any] = {}

    def recurrence(self, closure: Affine, dims: tuple[str, ...], scan: Scan) -> Tensor:
        if closure.b is None:
            raise Unfit("a state that stays zero")
        a, b = self.tensor(closure.a, dims), self.tensor(closure.b, dims)
        common = torch.promote_types(a.dtype, b.dtype)
        return scan(*(x.to(common).flatten(2) if dims else x.to(common)[..., None] for x in (a, b))).view(b.shape)

    def tensor(self, node: Expr, dims: tuple[str, ...]) -> Tensor:
        """The value as [B, T, *dims]."""
        for each in walk(node):
            if each not in self.done:
                self.done[each] = self._compute(each)
        return self.done[node].to((*self.lead, *dims), self.sizes)

    def _compute(self, node: Expr) -> Any:
        ops, done = self.ops, self.done
        match node:
            case Lit(value=value):
                return ops.Value(torch.tensor(value, device=self.device), ())
            case Ref():
                return self._ref(node)
            case Apply(op="like"):
                return done[node.args[0]].with_dims(node.dims, self.sizes)
            case Apply(op="only"):
                return ops.masked(*(done[x] for x in node.args))
            case Apply(op=op, args=args):
                return ops.pointwise(ops.ELEMENTWISE[op], *(done[x] for x in args))
            case Reduce(op=op, over=over, arg=arg):
                return ops.reduce(op, over, done[arg], self.sizes)
            case Normalize(op=op, over=over, arg=arg, eps=eps):
                return ops.normalize(op, over, done[arg], eps, self.sizes)
            case Rename(arg=arg, old=old, new=new):
                return done[arg].rename({old: new})
            case Split(arg=arg, dim=dim, into=into):
                return ops.split(done[arg], dim, into, self.sizes)
            case Merge(arg=arg, merged=merged, into=into):
                return ops.merge(done[arg], merged, into)
            case Linear(kept=kept, ins=ins, outs=outs):
                # Inputs and outputs may share a dim, so the weight's output axes have names of their own.
                fresh = tuple(f"-> {d}" for d in outs)
                arg = done[node.arg]
                weight = ops.Value(self.weights[node.weight].to(arg.data.dtype), (*kept, *fresh, *ins))
                return ops.contract(weight, arg, ins).rename(dict(zip(fresh, outs, strict=True)))
            case _:
                raise Unfit(f"{type(node).__name__} at all tokens")

    def _ref(self, node: Ref) -> Any:
        match node.role:
            case "size" | "const":
                return self.ops.Value(torch.tensor(self.numbers[node.name], device=self.device), ())
            case "input":
                return self.ops.Value(self.inputs[node.name], (*self.lead, *node.dims))
            case "state":
                return self.ops.Value(self.states[node.name], (*self.lead, *node.dims))
            case _:
                return self.ops.Value(self.weights[node.name], node.dims)
