"""A loop's kernels in the generated module."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources

from ..clike.host import library
from ..clike.scalar import identifier
from ..clike.stages import Array, System
from ..clike.step import Half, Step, Unsupported
from ..torch.text import quoted, several, wrap
from .frame import FrameCoder
from .parts import Kernel


def kernels(step: Step) -> tuple[Kernel, Kernel] | None:
    """The kernels of a step and of its backward; None where a part of it has none."""
    try:
        return _kernel(step, step.forward, False), _kernel(step, step.backward, True)
    except Unsupported:
        return None


def matrices(found: Sequence[Kernel]) -> tuple[int, ...]:
    """The fixed values that are operands of products and nothing else."""
    places = {m.place for k in found for m in k.matrices}
    return tuple(sorted(places - {i for k in found for i in k.numbers}))


def _kernel(step: Step, half: Half, back: bool) -> Kernel:
    return FrameCoder(step, half, back).kernel()


def head(step: Step, found: Sequence[Kernel]) -> str:
    """What both kernels are written in."""
    halves = (step.forward, step.backward)
    systems = any(isinstance(s, System) for h in halves for s in h.stages.all)
    tools = [_template("clike/system.h").replace("static void", "FN void")] if systems else []
    body = "\n".join([*tools, *(k.text for k in found)])
    real = "#ifdef DOUBLE\ntypedef double real;\n#else\ntypedef float real;\n#endif\nstruct cplx {\n  real re, im;\n};"
    device = "#ifndef EMULATED\n" + _template("cuda/device.h") + "#endif"
    # The chip's own functions may use others than those that they stand for.
    used = library("\n".join([body, *map(_fast, library(body))]))
    parts = [real, device, _template("cuda/block.h"), *map(_fast, used), *tools]
    return "\n\n".join(p.strip() for p in parts)


def text(step: Step, found: Sequence[Kernel]) -> str:
    """Both kernels, what they are written in, and what a token takes."""
    names = ", ".join(s.name for s in step.streams)
    stages = step.forward.stages
    count, deep = len(stages.products), stages.depth
    said = f"// {names}: {count} matrix products a token, at most {deep} of them one after the other."
    return "\n\n".join([said, head(step, found), *(k.text for k in found), ""])


def _fast(block: str) -> str:
    """A function of the library, and the chip's own one where there is one."""
    name = re.search(r"^FN \w+ (\w+)\(", block, re.M)
    found = [b for b in _template("cuda/fast.h").split("\n\n") if name and b.startswith(f"FN real {name[1]}(")]
    other = "#if defined(DOUBLE) || defined(EMULATED)"
    return "\n".join([other, block, "#else", found[0].rstrip(), "#endif"]) if found else block


def definitions(
    step: Step, found: tuple[Kernel, Kernel], name: str, sizes: tuple[str, ...], consts: tuple[str, ...]
) -> str:
    """The definitions of `NAME_cuda`; `sizes` and `consts` are the numbers that the loop is given, in this order."""
    back = found[1]
    streams = [Array("", s.type.dims, s.type.kind, "history", i) for i, s in enumerate(step.streams)]
    places = {a: i for i, a in enumerate(back.extra)}
    products = [
        several([str(w.index), quoted(w.equation), str(places[w.left]), str(places[w.right])]) for w in step.weighed
    ]
    products += [several([str(d.index), quoted(""), str(places[of]), "-1"]) for d, of in back.summed.items()]
    texts = {"head": head(step, found), "forward": found[0].text, "backward": back.text}
    lines = [f'{name}_cuda_{n} = r"""\n{text}\n"""' for n, text in texts.items()]
    args = [
        f"{name}_cuda_head",
        *(_table(k, f"{name}_cuda_{n}") for k, n in zip(found, ("forward", "backward"), strict=True)),
        several([_part(a) for a in (*step.hoisted, *step.fixed, *streams)]),
        several([_part(a) for a in back.extra]),
        several(products),
        several([_part(a) for a in step.saved]),
        several([quoted(identifier(d)) for d in sizes]),
        several([str(len(sizes) + consts.index(c)) for c in step.consts]),
    ]
    return "\n".join([*lines, *wrap([f"{name}_cuda = _Cuda({', '.join(args)})"])])


def _table(k: Kernel, text: str) -> str:
    def dims(names: Sequence[str]) -> str:
        return several([quoted(identifier(d)) for d in names])

    slots = [
        several([quoted(s.name), dims(s.dims), quoted(s.kind), str(s.ring), str(-1 if s.space is None else s.space)])
        for s in k.slots
    ]
    matrices = [several([str(m.place), str(m.space), dims(m.outs), dims(m.ins), str(m.whole)]) for m in k.matrices]
    args = [
        text,
        quoted(identifier(k.free) if k.free else ""),
        several([dims(d) for d in k.spaces]),
        several(slots),
        several(matrices),
        str(k.tiled),
        several(map(str, k.registers)),
    ]
    return f"_CudaKernel({', '.join(args)})"


def _part(array: Array) -> str:
    kind = [quoted(array.kind)] if array.kind != "real" else []
    dims = several([quoted(identifier(d)) for d in array.dims])
    return f"_NativePart({', '.join([quoted(array.role), str(array.index), dims, *kind])})"


def _template(name: str) -> str:
    return (resources.files("rnnc.templates") / name).read_text(encoding="utf-8")
