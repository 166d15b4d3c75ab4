"""Closures → Plan: which kernel computes each group, and what is done for all tokens at once.

Goals: every expression that needs no state of a recurrence is taken out of its loop; learned maps of one value become
one matrix product. Tiles and what is saved come with the kernels that have them.
Non-goals: text. A backend turns the plan into code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from rnnc.adjoint import Adjoint, flow
from rnnc.beside import beside
from rnnc.chunks import Chunks, chunks
from rnnc.closure import Affine, Block, Closure, Composable, LowRank
from rnnc.derive import depends
from rnnc.ir import Apply, Conv, Expr, Linear, Lit, Reduce, Ref, walk
from rnnc.lower import Stream, System
from rnnc.rank import RankChunks, operands, rank_chunks
from rnnc.together import Lowest, together, unknown


@dataclass(frozen=True)
class Pointwise:
    """A group without recurrence, its update applied once a token: computed for all tokens at once."""

    closure: Closure
    stream: Stream
    kernel: str = "all tokens at once"


@dataclass(frozen=True)
class Scan:
    """An affine group: an explicit scan of `(a, b)` with its own backward.

    `contracting` says that `|a| <= 1` was proved, so products of `a` over a segment cannot overflow and time may be cut
    into segments that are scanned side by side. `chunks` are the parts of a matrix state that is only read through
    contractions, for a backend that computes those without the state of every token; `whole` says why one has none.
    """

    closure: Affine
    adjoint: Adjoint
    stream: Stream
    contracting: bool
    chunks: Chunks | None = None
    whole: str = ""

    @property
    def kernel(self) -> str:
        return "chunks of tokens, in matrix products" if self.chunks else "affine scan"


@dataclass(frozen=True)
class Loop:
    """A group that is not affine entry by entry, or any update `over` a dim.

    Where its step maps compose (`maps`), time is cut into segments that are composed side by side, and the equations
    are stepped within each; else they are stepped from the first token to the last. `flow` is how cotangents go back
    through time, an affine map for each token; None where entries mix.

    `hoisted` are the parts of its updates, and of its maps, that need none of its states and differ from token to
    token; `fixed` those that only parameters decide. Both are computed before the loop. `contracting` says that
    products of its Jacobians, over any number of tokens, were proved not to grow; of a low-rank group, that none of its
    factors exceeds 1. `chunks` are the parts of low-rank states that are only read through sums, for a backend that
    computes those by chunks of tokens; `whole` says why there are none.
    """

    closure: Closure
    streams: tuple[Stream, ...]
    hoisted: tuple[Expr, ...]
    fixed: tuple[Expr, ...]
    contracting: bool = False
    flow: Block | None = None
    chunks: RankChunks | None = None
    whole: str = ""

    @property
    def maps(self) -> Composable | None:
        """The family that its step maps compose in."""
        return self.closure if isinstance(self.closure, Composable) else None

    @property
    def kernel(self) -> str:
        if self.chunks:
            return "chunks of tokens, low-rank transitions solved"
        return f"{self.maps.family} scan in segments" if self.maps else "loop over tokens"


Step = Pointwise | Scan | Loop


@dataclass(frozen=True)
class Projection:
    """Learned maps of one value, along the same dims: one matrix product."""

    maps: tuple[Linear, ...]


@dataclass(frozen=True)
class Plan:
    """What is computed, in order. `projections` maps each learned map to the product it is part of."""

    system: System
    steps: tuple[Step, ...]
    projections: Mapping[Expr, Projection]


def needs(step: Step) -> tuple[Expr, ...]:
    """What is computed around a step, for all tokens at once or once."""
    match step:
        case Scan(closure=c, chunks=Chunks() as chunks):
            return (c.a, *(r.query for r in chunks.reads), *(e for pair in chunks.writes for e in pair))
        case Scan(closure=c):
            return (c.a,) if c.b is None else (c.a, c.b)
        case Pointwise(stream=s):
            return (s.expr,)
        case Loop(closure=LowRank() as c, chunks=RankChunks() as chunks):
            return operands(c, chunks)
        case Loop():
            return (*step.hoisted, *step.fixed)


def is_number(node: Expr) -> bool:
    """A scalar that only sizes, consts and literals decide: a Python number in generated code."""
    return all(
        isinstance(n, Lit | Apply | Reduce) or (isinstance(n, Ref) and n.role in ("const", "size")) for n in walk(node)
    )


def per_token(node: Expr) -> bool:
    """Whether the value differs from token to token (or from sequence to sequence)."""
    return any(isinstance(n, Conv) or (isinstance(n, Ref) and n.role in ("input", "state")) for n in walk(node))


def plan(
    system: System,
    closures: Iterable[Closure],
    adjoints: Mapping[str, Adjoint],
    contracting: Iterable[str] = (),
    lowest: Lowest = unknown,
) -> Plan:
    """Choose a kernel for every group. `adjoints` and `contracting` are keyed by the state's name; `lowest` says how
    small an expression of the cell may be."""
    contracting = set(contracting)
    steps: list[Step] = []
    for closure in closures:
        streams = tuple(system.stream(n) for n in closure.group.states)
        name = streams[0].name
        if isinstance(closure, Affine):
            steps.append(Scan(closure, adjoints[name], streams[0], name in contracting))
        elif not closure.group.recurrent and not streams[0].over:
            steps.append(Pointwise(closure, streams[0]))
        else:
            loop = _loop(closure, streams)
            steps.append(replace(loop, contracting=name in contracting, flow=flow(system, closure, streams)))
    for step in tuple(steps):
        if step.contracting if isinstance(step, Scan) else isinstance(step.closure, LowRank):
            _by_chunks(system, steps, steps.index(step))
        elif isinstance(step, Scan):
            _unbounded(system, steps, steps.index(step))
    for step in tuple(steps):
        if isinstance(step, Scan) and step.contracting and step.chunks is None:
            _beside(system, steps, steps.index(step))
    return Plan(system, tuple(_bounded(system, s, lowest) for s in steps), projections(system, steps))


def _bounded(system: System, step: Step, lowest: Lowest) -> Step:
    """A step in chunks with what is known of its factors from below."""
    match step:
        case Scan(chunks=Chunks() as chunks, closure=c) if chunks.along(c.a):
            return replace(step, chunks=replace(chunks, together=together(system, c.a, lowest)))
        case Loop(closure=LowRank() as c, chunks=RankChunks() as chunks, contracting=True):
            factors = [e for row in c.map.factors for e in row if e is not None]
            if len(factors) == 1 and set(factors[0].dims) & set(chunks.mixed):
                return replace(step, chunks=replace(chunks, together=together(system, factors[0], lowest)))
        case _:
            pass
    return step


def _by_chunks(system: System, steps: list[Step], at: int) -> None:
    """Compute a matrix state by chunks where it can be; later, if a query waits for another state."""
    step = steps[at]
    others, around, first = _around(system, steps, step)
    for place in dict.fromkeys((at, first)):
        ready = [name for s in others[:place] for name in s.closure.group.states]
        found = _parts(system, step, around, ready)
        if not isinstance(found, str):
            steps[:] = [*others[:place], found, *others[place:]]
            return
        if found and isinstance(step, Scan | Loop):
            steps[at] = replace(step, whole=found)


def _unbounded(system: System, steps: list[Step], at: int) -> None:
    """Say that a matrix state would be computed by chunks if more were known of its factor."""
    step = steps[at]
    assert isinstance(step, Scan)
    others, around, first = _around(system, steps, step)
    ready = [name for s in others[: max(at, first)] for name in s.closure.group.states]
    if not isinstance(_parts(system, step, around, ready), str):
        steps[at] = replace(step, whole="its factor was not proved to lie in [-1, 1], as one in a declared range is")


def _parts(system: System, step: Step, around: list[Expr], ready: list[str]) -> Step | str:
    """The step by chunks, or why not."""
    match step:
        case Scan(closure=c, stream=stream):
            found = chunks(system, c, stream, around, ready)
            return found if isinstance(found, str) else replace(step, chunks=found)
        case Loop(closure=LowRank() as c, streams=streams, contracting=bounded):
            found = rank_chunks(system, c, streams, bounded, around, ready)
            return found if isinstance(found, str) else replace(step, chunks=found)
        case _:
            return ""


def _beside(system: System, steps: list[Step], at: int) -> None:
    """Compute a scan with the chunks of another state, right behind it."""
    step = steps[at]
    assert isinstance(step, Scan)
    others, around, first = _around(system, steps, step)
    for place, host in enumerate(others[:first]):
        if not isinstance(host, Scan) or host.chunks is None:
            continue
        ready = [name for s in others[:place] for name in s.closure.group.states]
        parts = host.stream.name, host.closure, host.chunks
        if found := beside(system, step.closure, step.stream, around, ready, parts):
            steps[:] = [*others[: place + 1], replace(step, chunks=found), *others[place + 1 :]]
            return


def _around(system: System, steps: list[Step], step: Step) -> tuple[list[Step], list[Expr], int]:
    """The other steps, all that is computed besides the update of this one, and which of them needs it first."""
    others = [s for s in steps if s is not step]
    read = [(*needs(s), *(x.expr for x in s.streams)) if isinstance(s, Loop) else needs(s) for s in others]
    around = [e for exprs in read for e in exprs] + [e for _, e in system.outputs]
    around += [c.arg for c in system.convs.values()]
    own = set(step.closure.group.states)
    first = next((i for i, exprs in enumerate(read) if own & _states(exprs)), len(others))
    return others, around, first


def _states(exprs: Iterable[Expr]) -> set[str]:
    return {n.name for n in walk(*exprs) if isinstance(n, Ref) and n.role == "state"}


def _loop(closure: Closure, streams: tuple[Stream, ...]) -> Loop:
    names = {s.name for s in streams}
    updates = [s.expr for s in streams]
    own = [n for n in walk(*updates) if isinstance(n, Ref) and n.role == "state" and n.name in names]
    body = depends(updates, own)
    border: dict[Expr, None] = {}

    def enter(roots: Iterable[Expr], inside: Callable[[Expr], bool]) -> None:
        stack, seen = list(roots)[::-1], set[Expr]()
        while stack:
            node = stack.pop()
            if node not in seen and node not in border:
                seen.add(node)
                if inside(node) and node.children:
                    stack.extend(reversed(node.children))
                else:
                    border[node] = None

    composed = isinstance(closure, Composable)
    enter(updates, lambda node: node in body or _outer_product(node) or (not composed and _biased(node)))
    if isinstance(closure, Composable):
        # Most maps are made of the same parts as the update.
        enter(closure.parameters, lambda node: isinstance(node, Apply))
    outer = [n for n in border if n not in own and not is_number(n)]
    hoisted = tuple(n for n in outer if per_token(n))
    return Loop(closure, streams, hoisted, tuple(n for n in outer if not per_token(n)))


def _outer_product(node: Expr) -> bool:
    """Larger than each of its operands: cheaper to form in the loop than to keep for every token."""
    return isinstance(node, Apply) and len(node.dims) > max(len(c.dims) for c in node.args)


def _biased(node: Expr) -> bool:
    """A learned map of what comes in and what is the same for all tokens: their sum would be a pass over all tokens."""
    if not isinstance(node, Apply) or node.op != "add" or node.kind != "real":
        return False
    maps = [c for c in node.args if isinstance(c, Linear) and c.dims == node.dims and per_token(c)]
    return len(maps) == 1 and all(c in maps or not per_token(c) for c in node.args)


def inside(loop: Loop) -> set[Expr]:
    """The nodes that the loop itself computes."""
    stop = {*loop.hoisted, *loop.fixed}
    found: set[Expr] = set()
    stack = [s.expr for s in loop.streams]
    while stack:
        node = stack.pop()
        if node not in stop and node not in found:
            found.add(node)
            stack.extend(node.children)
    return found


def projections(system: System, steps: Iterable[Step]) -> dict[Expr, Projection]:
    """Group the learned maps that read the same value along the same dims at the same place."""
    places: list[list[Linear]] = []
    taken: set[Expr] = set()
    for step in steps:
        if isinstance(step, Loop):
            body = inside(step)
            members = [n for n in walk(*(s.expr for s in step.streams)) if n in body and isinstance(n, Linear)]
            taken.update(members)
            places.append(members)
    roots = [s.expr for s in system.streams] + [e for _, e in system.outputs]
    places.append([n for n in walk(*roots) if isinstance(n, Linear) and n not in taken])
    out: dict[Expr, Projection] = {}
    for members in places:
        table: dict[tuple[Expr, tuple[str, ...], tuple[str, ...]], list[Linear]] = {}
        for node in members:
            if not node.transposed and node.ins:
                table.setdefault((node.arg, node.kept, node.ins), []).append(node)
        for maps in table.values():
            if len(maps) > 1:
                out.update(dict.fromkeys(maps, Projection(tuple(maps))))
    return out
