"""A loop's C text in the generated module, beside its Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rnnc.ir import Expr
from rnnc.lower import System
from rnnc.plan import Loop

from ..clike.host import host_file
from ..clike.scalar import identifier
from ..clike.stages import Array
from ..clike.step import Step, StepMaker, Unsupported
from .text import quoted, several, wrap


@dataclass(frozen=True)
class NativeCode:
    """The definitions of a loop's C text, the name of what runs it, and the sizes that no operand of it has."""

    text: str
    name: str


@dataclass(frozen=True)
class NativeStep:
    """A step that has C text, and the sizes that no operand of the loop tells."""

    step: Step
    sizes: tuple[str, ...]


def native_step(system: System, loop: Loop, hints: Mapping[Expr, str], weights: tuple[str, ...]) -> NativeStep | None:
    """The loop's step for C; None where a part of it has none."""
    shapes = {w: system.cell.param(w).shape for w in weights}
    try:
        step = StepMaker(system.graph, loop, hints, shapes).make()
    except Unsupported:
        return None
    seen = {d for a in (*step.hoisted, *step.fixed) for d in a.dims} | {d for s in step.streams for d in s.type.dims}
    return NativeStep(step, tuple(d for d in step.sizes if d not in seen))


def native_code(native: NativeStep, name: str, sizes: tuple[str, ...], consts: tuple[str, ...]) -> NativeCode:
    """The definitions; `sizes` and `consts` are the numbers that the loop is given, in this order."""
    step = native.step
    file = host_file(step)
    streams = [Array("", s.type.dims, s.type.kind, "history", i) for i, s in enumerate(step.streams)]
    inputs = [*step.hoisted, *step.fixed, *streams]
    places = {a: i for i, a in enumerate(file.extra)}
    products = [
        several([str(w.index), quoted(w.equation), str(places[w.left]), str(places[w.right])]) for w in step.weighed
    ]
    cut = [quoted(identifier(h.free) if h.free else "") for h in (step.forward, step.backward)]
    numbers = [str(len(sizes) + consts.index(c)) for c in step.consts]
    args = [
        f"{name}_c",
        several([_part(a) for a in inputs]),
        several([_part(a) for a in file.extra]),
        several(products),
        several(cut),
        several([_part(a) for a in step.saved]),
        str(file.products),
        several([quoted(identifier(d)) for d in sizes]),
        several(numbers),
    ]
    text = f'{name}_c = r"""\n{file.text}"""'
    lines = wrap([f"{name}_native = _native({', '.join(args)})"])
    return NativeCode("\n".join([text, *lines]), f"{name}_native")


def _part(array: Array) -> str:
    kind = [quoted(array.kind)] if array.kind != "real" else []
    dims = several([quoted(identifier(d)) for d in array.dims])
    return f"_NativePart({', '.join([quoted(array.role), str(array.index), dims, *kind])})"
