"""What `rnnc explain FILE` says: how a program is computed, and why. The report is a structure, which `--format json`
prints as it is and keeps stable (fields may be added):

    version, file
    groups       of all cells: states, family, certificate, kernel, triton (the fused kernel on a GPU), device (what
                 computes it there), step (the kernel of one token), reason;
                 spectrum, spectrum_proved, tracks, cannot_track, half_life, explodes; empty where there is none
    cells        for each: name, doc, dims, consts; inputs, outputs, state, parameters, each with name, shape, kind (and
                 range, learned); groups, as above; between: computes, has, saves; left; claims: claim, status,
                 reason, missing; ranges: name, range; spectra: states, spectrum; notes
    diagnostics  warnings and notes, in the form of `rnnc check --format json`
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rnnc import __version__
from rnnc.bound import Analysis, Spectrum, spectrum_text
from rnnc.chunks import Chunks
from rnnc.closure import Affine, Block, Closure, Composable, LowRank, Moebius, Sequential, Tropical, Variable
from rnnc.closure.obligations import as_written
from rnnc.decode import decodes
from rnnc.diagnostics import to_json
from rnnc.fields import StateField, state_fields
from rnnc.fuse import MOST_SUMS, paired, unranked
from rnnc.ir import Apply, Cell, Dim, Expr, Kind, Ref, walk
from rnnc.lower import System
from rnnc.pipeline import Compilation
from rnnc.plan import Loop, Plan, Scan, Step
from rnnc.rank import RankChunks
from rnnc.region import between
from rnnc.show import expr_text, region_text
from rnnc.source import Source
from rnnc.target import kernels
from rnnc.together import Together

Report = dict[str, Any]
SLOW = "one step after the other in PyTorch, which is slow"
_LONG = 160
"""Characters of an expression that are worth reading in a sentence."""


def report(source: Source, compilations: Sequence[Compilation]) -> Report:
    """Everything there is to say of the cells of one source."""
    cells = [_cell(c.cell, c.analysis, c.plan) for c in compilations if c.cell and c.analysis and c.plan]
    return {
        "version": __version__,
        "file": source.name,
        "groups": [group for cell in cells for group in cell["groups"]],
        "cells": cells,
        "diagnostics": [to_json(source, d) for c in compilations for d in c.diagnostics],
    }


def _cell(cell: Cell, analysis: Analysis, plan: Plan) -> Report:
    # An output that is just a state or a definition bears its name, and its range.
    fused = kernels(plan)
    decoded = {s.name: k.told for k in decodes(plan) for s in k.streams}
    known = {**analysis.outputs, **analysis.inputs, **analysis.definitions, **analysis.states}
    return {
        "name": cell.name,
        "doc": cell.doc,
        "dims": {d.name: _size(d) for d in cell.dims},
        "consts": {c.name: c.value for c in cell.consts},
        "inputs": [
            {
                **_value(i.name, ("B", "T", *i.type.dims), i.type.kind),
                "range": region_text(i.region) if i.region else "",
            }
            for i in cell.inputs
        ],
        "outputs": [_value(o.name, ("B", "T", *o.expr.dims), o.expr.kind) for o in cell.outputs],
        "state": [_value(f.name, _field_shape(f), f.kind) for f in state_fields(cell)],
        "parameters": [
            {**_value(p.name, (*p.shape, *([str(p.taps)] if p.taps else [])), p.kind), "learned": p.learned}
            for p in cell.params
        ],
        "groups": [_group(plan.system, analysis, step, names, fused, decoded) for step, names in _steps(plan)],
        **_between(plan),
        "claims": [
            {"claim": v.claim, "status": v.status, "reason": v.reason, "missing": v.missing} for v in analysis.verdicts
        ],
        "ranges": [{"name": n, "range": str(r)} for n, r in known.items()],
        "spectra": [{"states": list(s.states), "spectrum": spectrum_text(s)} for s in analysis.spectra],
        "notes": [note for notes in analysis.notes.values() for note in notes],
    }


def _between(plan: Plan) -> Report:
    """What stands between learned maps and recurrences: one kernel each, and what PyTorch computes for its size."""
    found, names = between(plan), plan.system.names

    def equations(nodes: Iterable[Expr]) -> list[str]:
        own = {n: expr_text(n, {x: name for x, name in names.items() if x is not n}) for n in nodes}
        return [f"{names[n]} = {text}" if n in names else text for n, text in own.items()]

    return {
        "between": [{"computes": equations(r.results), "has": r.told, "saves": r.saved} for r in found.regions],
        "left": equations(found.left),
    }


def _value(name: str, shape: Iterable[str], kind: Kind) -> Report:
    return {"name": name, "shape": list(shape), "kind": kind}


def _size(dim: Dim) -> int | str:
    return dim.size if isinstance(dim.size, int) else expr_text(dim.size)


def _field_shape(field: StateField) -> tuple[str, ...]:
    return ("B", *([] if field.length is None else [str(field.length)]), *field.dims)


def groups_text(system: System, closures: Sequence[Closure]) -> str:
    """Groups in dependency order with their families, for `--emit groups`."""
    lines = [f"groups {system.cell.name}"]
    for closure in closures:
        group = closure.group
        lines.append(f"  {', '.join(group.states)}: {closure.family}")
        if group.reads:
            lines.append(f"    after {', '.join(group.reads)}")
        lines.append(f"    {reason(system, closure)}")
        if isinstance(closure, Affine | Composable | LowRank):
            lines.append(f"    {closure.certificate}")
    return "\n".join(lines) + "\n"


# --- groups ----------------------------------------------------------------------------------------------------------


def _steps(plan: Plan) -> Iterator[tuple[Step, list[str]]]:
    """What the plan computes, with the states of the program that it holds: histories alone are no news."""
    declared = {s.name for s in plan.system.cell.states}
    for step in plan.steps:
        if names := [n for n in step.closure.group.states if n in declared]:
            yield step, names


def _kept(step: Step) -> str:
    """Why no token's state is kept, and on what that rests."""
    match step:
        case Scan(chunks=Chunks(beside=str() as host)):
            return f"its decays, keys and queries are those of `{host}`, so the same products compute it"
        case Scan(chunks=Chunks(keys=keys, writes=writes) as chunks):
            told = f"it is {_summed(keys)}, so no token's state is kept"
            if not paired(step):
                return told
            several = f"; {len(writes)} products a token are to kernels as many tokens" if len(writes) > 1 else ""
            return told + several + _together(chunks.along(step.closure.a), chunks.together)
        case Loop(chunks=RankChunks() as ranks, closure=LowRank() as closure):
            if not closure.map.terms:
                return (
                    f"it is {_summed(ranks.mixed)}, so no token's state is kept; its maps are as many tokens of a chunk"
                )
            held = "it is" if len(closure.group.states) == 1 else "they are"
            told = (
                f"{held} {_summed(ranks.columns if ranks.by_column else ranks.mixed)}, so tokens of a chunk are solved "
                "for together, and no token's state is kept; keys may have any norm: what a chunk overwrites is right "
                "to the roundings of what it held"
            )
            lacking = "; no factor of the state was proved to lie in [-1, 1]: a call in which one does not is stepped"
            told = told if step.contracting else told + lacking
            if why := unranked(step):
                return f"{told}; PyTorch computes it, for Triton has no kernels for {why}"
            return (
                f"{told}{_rows(closure)}; Triton's kernels invert what its tokens make of each other in float32: where "
                "the product of a chunk's transitions leaves its range, as keys that are not normalised can make it, "
                "so do results"
            ) + _together(_mixed(closure, ranks), ranks.together)
        case Loop(closure=LowRank(), whole=why):
            return f"stepped, for {why}"
        case Scan(whole=why) if why:
            return f"not in chunks of tokens, for {why}"
        case _:
            return ""


def _rows(closure: LowRank) -> str:
    """What kernels make of several sums of one state."""
    bound = sorted({d for t in closure.map.terms for d in t.bound})
    if len(closure.map.terms) < 2 and not bound:
        return ""
    many = f" (PyTorch computes more than {MOST_SUMS}, which {', '.join(bound)} can make them)" if bound else ""
    return f"; the sums that a map takes of it are to kernels as many tokens, which do not wait for each other{many}"


def _mixed(closure: LowRank, ranks: RankChunks) -> list[str]:
    """The dims along which the factor of a low-rank transition differs."""
    factors = [e for row in closure.map.factors for e in row if e is not None]
    return [d for d in ranks.mixed if any(d in e.dims for e in factors)]


def _together(dims: Sequence[str], known: Together | None) -> str:
    """How kernels take the decays between tokens of a chunk, which differ along these dims."""
    if not dims:
        return ""
    if known is None:
        return (
            f"; no lower bound of its factors, which differ along {', '.join(dims)}, is known that would let several "
            "tokens be read in one product, so on a GPU a chunk is read by halves"
        )
    given = ", ".join(f"`{c.name} = {c.value}`" for c in known.consts)
    given = f" with {given}, as declared," if given else ""
    return (
        f"; its factors are proved{given} to be at least {known.least:.4g}, so on a GPU {known.tokens} tokens of a "
        "chunk are read in one product"
    )


def _summed(dims: Sequence[str]) -> str:
    return f"only read by sums over {', '.join(dims)} of products with what is free of it"


def _group(
    system: System,
    analysis: Analysis,
    step: Step,
    names: list[str],
    fused: Mapping[str, str],
    decoded: Mapping[str, str],
) -> Report:
    closure = step.closure
    found = analysis.spectrum(names[0])
    tracking = analysis.tracking(found)
    why = reason(system, closure, contracting=isinstance(step, Scan) and step.contracting)
    kept = _kept(step)
    told = fused.get(names[0], "")
    return {
        "states": names,
        "family": closure.family,
        "certificate": closure.certificate if isinstance(closure, Affine | Composable | LowRank) else "",
        "kernel": step.kernel,
        "triton": "" if told.startswith("cuda") else told,
        "device": told or (SLOW if isinstance(step, Loop) and not (step.chunks or step.maps) else ""),
        "step": decoded.get(names[0], ""),
        "reason": f"{why}; {kept}" if kept else why,
        "spectrum": spectrum_text(found),
        "spectrum_proved": found.bounded,
        "tracks": list(tracking.can),
        "cannot_track": list(tracking.cannot),
        "half_life": _memory(system, analysis, closure, found),
        "explodes": analysis.growth(found),
    }


def _memory(system: System, analysis: Analysis, closure: Closure, found: Spectrum) -> str:
    """How long a group remembers at initialisation, by what says it best."""
    factor: tuple[Expr, str] | None = None
    match closure:
        case Tropical():
            return "none: what `max` or `min` picks stays until they pick something else"
        case Variable(phi=phi, logarithmic=logarithmic):
            written = as_written(system, closure.parameters[0])
            if written is not None:
                factor = system.graph.apply("exp", written) if logarithmic else written, f"by its factor in {phi.text}"
        case _:
            pass
    return str(analysis.memory(found, factor))


def reason(system: System, closure: Closure, *, contracting: bool = False) -> str:
    """Why a group is in its family; for a sequential one, what makes it so and what would change that."""
    match closure:
        case Composable():
            told = [_form(closure) + _equations(system, closure)]
            told += [f"rests on `{_short(o.expr, {})}` in {region_text(o.what)}: {o.why}" for o in closure.obligations]
            return "; ".join(told)
        case Affine():
            (name,) = closure.group.states
            told = [f"affine in `{name}[t-1]`, entry by entry{_equations(system, closure)}"]
            if contracting:
                told.append("the factor is proved to be at most 1 in modulus, so time may be cut into segments")
            return "; ".join(told)
        case LowRank():
            return _low_rank(closure) + _equations(system, closure)
        case Sequential(refusals=refusals, nearest=nearest):
            reasons: dict[str, list[str]] = {}
            for r in refusals:
                reasons.setdefault(r.reason, []).append(r.family)
            told = [f"not {' or '.join(families)}: {why}" for why, families in reasons.items()]
            if nearest:
                told.append(nearest)
            elif blamed := offenders(system, closure):
                pasts = sorted({f"`{r.name}[t-{r.lag}]`" for node, _ in blamed for r in _pasts(closure, node)})
                change = "parallel if" if _separates(system, closure, {n for n, _ in blamed}) else "nearer to it if"
                told.append(f"{change} {_terms(system, blamed)} held no {' or '.join(pasts)}")
            return "; ".join(told)
        case _:
            return "the value at t does not depend on the one at t-1"


def _equations(system: System, closure: Closure) -> str:
    """The updates as the program writes them."""
    declared = [s for s in system.cell.states if s.name in closure.group.states]
    shown = [f"`{s.name}[t] = {_short(s.expr, {})}`" for s in declared]
    return f": {', '.join(shown)}" if shown else ""


def _form(closure: Composable) -> str:
    past = f"`{closure.group.states[0]}[t-1]`"
    match closure:
        case Block(components=components):
            n = len(components)
            held = ", ".join(f"`{name}[t-{lag}]`" for name, lag in components)
            return f"affine in {held} together, a matrix of {n} x {n} for each entry"
        case Tropical():
            return f"`max` and `min` of {past} and of what is free of it, entry by entry"
        case Variable(phi=phi):
            return f"affine in {phi.text} of {past}, entry by entry"
        case Moebius():
            return f"a fraction of sums in {past}, entry by entry"
        case _:
            return closure.family


def _low_rank(closure: LowRank) -> str:
    """The form of the transition in words."""
    names, along = closure.group.states, ", ".join(closure.inner)
    held = " and ".join(f"`{n}[t-1]`" for n in names)
    mixed = any(set(e.dims) & set(closure.inner) for e in closure.factors)
    factor = f"a factor for each entry of {along}" if mixed else "one factor"
    if len(names) > 1:
        factor = f"a matrix of {len(names)} x {len(names)} between the states" + (f" for each {along}" if mixed else "")
    times = f", so many times a token as {closure.over} has entries" if closure.over else ""
    if not closure.map.terms:
        return f"affine in {held}, entry by entry{times}"
    count = len(closure.map.terms)
    several = ", ".join(dict.fromkeys(d for t in closure.map.terms for d in t.bound))
    rank = f"rank {count}" if not several else f"a rank that {several} gives"
    return f"affine in {held}, the transition being {factor} plus {rank} along {along}{times}"


def _separates(system: System, closure: Sequential, blamed: set[Expr]) -> bool:
    """Whether the states of a group come apart, each updated once a token, if these terms hold none of their pasts."""
    if any(system.stream(name).over for name in closure.group.states):
        return False
    reads: dict[str, set[str]] = {}
    for name in closure.group.states:
        seen: set[Expr] = set()
        stack = [system.stream(name).expr]
        while stack:
            node = stack.pop()
            if node not in seen and node not in blamed:
                seen.add(node)
                stack.extend(node.children)
        refs = {n.name for n in seen if isinstance(n, Ref) and n.role == "state"}
        reads[name] = (refs & set(closure.group.states)) - {name}
    left = set(reads)
    while free := {n for n in left if not reads[n] & left}:
        left -= free
    return not left


def _terms(system: System, blamed: Sequence[tuple[Expr, str]]) -> str:
    """Terms, each once, with the definitions they stand in."""
    places: dict[str, dict[str, None]] = {}
    inside = {name: set(walk(node)) for node, name in system.names.items()}
    for node, stream in blamed:
        around = [name for name, nodes in inside.items() if node in nodes]
        owner = min(around, key=lambda name: len(inside[name]), default=stream)
        places.setdefault(_short(node, _names(system, stream)), {})[owner] = None
    shown = [f"`{text}` in {', '.join(f'`{o}`' for o in owners)}" for text, owners in places.items()]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _short(node: Expr, names: Mapping[Expr, str]) -> str:
    text = expr_text(node, names)
    return text if len(text) <= _LONG else text[: _LONG - 1] + "…"


def _names(system: System, stream: str) -> dict[Expr, str]:
    """The program's own names for parts of an update, but not for all of it."""
    return {node: name for node, name in system.names.items() if node is not system.stream(stream).expr}


def _pasts(closure: Closure, *roots: Expr) -> set[Ref]:
    own = closure.group.states
    return {n for n in walk(*roots) if isinstance(n, Ref) and n.role == "state" and n.name in own and n.lag > 0}


def offenders(system: System, closure: Closure) -> list[tuple[Expr, str]]:
    """The terms, and whose update they stand in, without which the group would be affine entry by entry: the innermost
    ones that hold a past of the group's states in another way."""
    found: list[tuple[Expr, str]] = []
    for name in closure.group.states:
        root = system.stream(name).expr
        held: set[Expr] = set(_pasts(closure, root))
        blamed: set[Expr] = set()
        for node in walk(root):
            below = [c for c in node.children if c in held]
            if not below:
                continue
            if _affine(node, below):
                held.add(node)
            elif node not in blamed:
                blamed.add(node)
                found.append((node, name))
    unique: dict[Expr, str] = {}
    for node, name in found:
        unique.setdefault(node, name)
    return list(unique.items())


def _affine(node: Expr, held: Sequence[Expr]) -> bool:
    """Whether an operation is affine, entry by entry, in the operands that hold a state."""
    if not isinstance(node, Apply):
        return False
    match node.op:
        case "add" | "sub" | "neg":
            return True
        case "mul":
            return len(held) == 1 and node.args[0] is not node.args[1]
        case "div" | "only" | "like":
            return node.args[1] not in held
        case "where":
            return node.args[0] not in held
        case _:
            return False
