"""The plan as text, for `--emit plan`."""

from __future__ import annotations

from rnnc.chunks import Chunks
from rnnc.closure import LowRank
from rnnc.fuse import Kernel, fuse
from rnnc.plan import Loop, Plan, Pointwise, Scan
from rnnc.region import regions
from rnnc.show import expr_text
from rnnc.together import Together

_USES = {
    "wide": "from which more is computed",
    "low": "which a learned map reads",
    "operand": "an operand of products",
    "out": "an output",
}


def plan_text(plan: Plan) -> str:
    """The plan for `--emit plan`."""
    lines = [f"plan {plan.system.cell.name}"]
    for step in plan.steps:
        match step:
            case Pointwise(stream=s):
                lines.append(f"  {s.name}: {step.kernel}")
                lines.append(f"    {s.name}[t] = {expr_text(s.expr)}")
            case Scan(stream=s, closure=c):
                cut = ", in segments" if step.contracting and not step.chunks else ""
                lines.append(f"  {s.name}: {step.kernel}{cut}")
                lines.extend(f"    {line}" for line in _chunks(step.chunks))
                lines.append(f"    a = {expr_text(c.a)}")
                lines.append(f"    b = {'0' if c.b is None else expr_text(c.b)}")
                back = step.adjoint.closure
                lines.append(f"    backward: λ[t] = a' * λ[t+1] + g[t] with a' = {expr_text(back.a)} one token later")
                lines.append(f"    gradient of a: {expr_text(step.adjoint.to_a)}, of b: {expr_text(step.adjoint.to_b)}")
            case Loop():
                lines.append(f"  {', '.join(s.name for s in step.streams)}: {step.kernel}")
                lines.extend(f"    {line}" for line in _ranks(step))
                lines.extend(f"    before, for all tokens: {expr_text(e)}" for e in step.hoisted)
                lines.extend(f"    before, once: {expr_text(e)}" for e in step.fixed)
    for kernel in fuse(plan):
        lines.extend(f"  {line}" for line in _kernel(kernel))
    for region in regions(plan):
        lines.append(f"  one kernel, {region.told}:")
        lines += [f"    reads {expr_text(n)}" for n in region.sources]
        lines += [f"    {expr_text(n)}, {_USES[use]}" for n, use in zip(region.results, region.uses, strict=True)]
    seen: set[int] = set()
    for p in plan.projections.values():
        if id(p) not in seen:
            seen.add(id(p))
            lines.append(f"  one product of {expr_text(p.maps[0].arg)}: {', '.join(m.weight for m in p.maps)}")
    return "\n".join(lines) + "\n"


def _chunks(chunks: Chunks | None) -> list[str]:
    """The parts of a matrix state."""
    if chunks is None:
        return []
    parts = {"heads": chunks.heads, "keys": chunks.keys, "values": chunks.values}
    lines = ["; ".join(f"{part} {', '.join(dims)}" for part, dims in parts.items() if dims)]
    lines += [f"one more column beside {chunks.beside}"] if chunks.beside else []
    lines += [f"writes {expr_text(k)} by {expr_text(v)}" for k, v in chunks.writes]
    lines += _together(chunks.together)
    when = ("after the write", "before it")
    return lines + [f"read {when[r.lag]} by {expr_text(r.query)}" for r in chunks.reads]


def _together(known: Together | None) -> list[str]:
    """How many tokens of a chunk are read at once, and why."""
    if known is None:
        return []
    given = "".join(f", with {c.name} = {c.value}" for c in known.consts)
    return [f"{known.tokens} tokens read in one product: factors of at least {known.least:.4g}{given}"]


def _ranks(step: Loop) -> list[str]:
    """The parts of states with low-rank transitions."""
    if step.chunks is None or not isinstance(step.closure, LowRank):
        return []
    chunks, map = step.chunks, step.closure.map
    parts = {"heads": chunks.heads, "mixed": chunks.mixed, "columns": chunks.columns}
    lines = ["; ".join(f"{part} {', '.join(dims)}" for part, dims in parts.items() if dims)]
    names = [s.name for s in step.streams]
    for name, row in zip(names, map.factors, strict=True):
        lines += [f"{name} from {of}: times {expr_text(e)}" for of, e in zip(names, row, strict=True) if e is not None]
    for term in map.terms:
        over = f", summed over {', '.join(term.bound)}" if term.bound else ""
        lines.append(f"corrects what {expr_text(term.right)} reads of {names[term.column]}{over}")
        lines += [f"  {n} by {expr_text(e)}" for n, e in zip(names, term.left, strict=True) if e is not None]
    for write in chunks.writes:
        left = ", ".join(f"{expr_text(e)} in {n}" for n, e in zip(names, write.left, strict=True) if e is not None)
        lines.append(f"writes {left} by {expr_text(write.right)}")
    lines += _together(chunks.together)
    when = ("after the write", "before it")
    return lines + [f"read {when[r.read.lag]} of {names[r.index]} by {expr_text(r.read.query)}" for r in chunks.reads]


def _kernel(kernel: Kernel) -> list[str]:
    """What a fused kernel reads, writes and keeps."""
    names = [s.name for s in kernel.streams]
    where = f"channels {', '.join(kernel.channels)}" + (
        f"; {', '.join(kernel.inner)} in registers" if kernel.inner else ""
    )
    lines = [f"{', '.join(names)}, on a GPU: {kernel.form}, {where}"]
    lines += [f"  reads {expr_text(e)}" for e in (*kernel.inputs, *kernel.fixed)]
    lines += [f"  writes {expr_text(e)}" for e in kernel.results]
    kept = [f"{n}[t]" for n, k in zip(names, kernel.kept, strict=True) if k]
    lines += [f"  writes {', '.join(kept)}"] if kept else []
    saved = "the states of all tokens" if kernel.stored else "the states that enter each chunk of tokens"
    lines.append(f"  saves what it reads, and {saved}")
    lines.append(f"  backward: {kernel.form_back}")
    return lines
