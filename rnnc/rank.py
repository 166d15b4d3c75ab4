"""Low-rank group → RankChunks: matrix states whose entries mix by a few sums, and that are only read through sums.

With `S[t] = (D + U Vᵀ) S[t-1] + K v` and readers `sum[mixed](q * S)` or `sum[columns](q * S)`, no token's state is
wanted: within a chunk of tokens what `V` reads solves a triangular system. Goals: find the dims' parts, what is written
as products, and the readers. Non-goals: how chunks are computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rnnc.chunks import MOST_WRITES, Read, reads_of
from rnnc.closure import algebra
from rnnc.closure.lowrank import LowRank
from rnnc.ir import Expr, Ref, walk
from rnnc.lower import Stream, System
from rnnc.products import pair, terms
from rnnc.together import Together

SMALLEST = 512
"""Entries of a matrix, at the sizes that are declared, below which a compiled loop is faster: measured on a CPU."""


@dataclass(frozen=True)
class StateRead:
    """What reads the state at this index of the group."""

    index: int
    read: Read


@dataclass(frozen=True)
class Write:
    """`left[i] * right` is added to each state i, or nothing where that is None; `right` lacks the mixed dims and
    `left` the columns'."""

    left: tuple[Expr | None, ...]
    right: Expr


@dataclass(frozen=True)
class RankChunks:
    """The states' dims in parts: `heads` ride along, `mixed` are what a transition sums over, `columns` are all moved
    by the same transition. `reads`, those of what was before the token first, sum over the columns where `by_column`,
    else over what is mixed. `together` is what is known from below of one factor along what is mixed."""

    heads: tuple[str, ...]
    mixed: tuple[str, ...]
    columns: tuple[str, ...]
    reads: tuple[StateRead, ...]
    writes: tuple[Write, ...]
    by_column: bool
    together: Together | None = None


def rank_chunks(
    system: System,
    closure: LowRank,
    streams: Sequence[Stream],
    bounded: bool,
    around: Iterable[Expr],
    ready: Iterable[str],
) -> RankChunks | str:
    """The parts of a group, if it has that form; else what is missing. `bounded` says that no factor exceeds 1;
    `around` is everything that is computed besides its updates; `ready` are the states whose values are there before
    it."""
    around, ready = tuple(around), set(ready)
    first, map = streams[0], closure.map
    if any(s.depth > 1 for s in streams):
        return "it is read several tokens back"
    if len(streams) > 1 and not closure.triangular:
        return "each of its states moves the others"
    found = _reads(system, streams, around, ready)
    if isinstance(found, str):
        return found
    keys, reads = found
    # Several maps a token that take no sum: what reads sum over will do.
    mixed = closure.inner or keys
    by_column = not set(keys) & set(mixed)
    apart = f"its transition sums over {' and '.join(mixed)}, and what reads it over {' and '.join(keys)}"
    if not by_column and set(keys) != set(mixed):
        return apart
    coefficients = [e for row in map.factors for e in row if e is not None]
    coefficients += [e for t in map.terms for e in (t.right, *t.left) if e is not None]
    kinds = [*coefficients, *(r.read.query for r in reads)]
    held = {d for e in coefficients for d in e.dims}
    if by_column:
        if len(streams) > 1 or closure.over or not map.terms:
            return f"{apart}, which one map of one state may"
        if not bounded:
            return f"{apart}, and no factor was proved to lie in [-1, 1]"
        if held & set(keys):
            return f"{apart}, along which it moves its entries differently"
        columns = set(keys)
    else:
        columns = set(first.type.dims) - set(mixed) - held - {d for r in reads for d in r.read.query.dims}
    while True:
        writes = _writes(system, map.rest, set(mixed), columns)
        if not isinstance(writes, set):
            break
        if by_column:
            return f"{apart}, and what is written is no sum of products of what lacks either"
        columns -= writes
    if writes is None:
        return f"a token writes more than {MOST_WRITES} products"
    if closure.over in columns:
        return f"its columns are those of `over {closure.over}`"
    if _entries(system, {*mixed, *columns}) < SMALLEST:
        alike = "" if columns else "what moves or is written differs along all that reads do not sum over, and "
        return f"{alike}its matrices have fewer than {SMALLEST} entries, for which a compiled loop is faster"
    kinds += [e for w in writes for e in (w.right, *w.left) if e is not None]
    if any(e.kind == "complex" != first.type.kind for e in kinds):
        return "it is real, and moved by complex numbers"

    def parts(dims: set[str]) -> tuple[str, ...]:
        return tuple(d for d in first.type.dims if d in dims)

    heads = parts(set(first.type.dims) - set(mixed) - columns)
    ordered = tuple(sorted(reads, key=lambda r: -r.read.lag))
    return RankChunks(heads, parts(set(mixed)), parts(columns), ordered, writes, by_column)


def _entries(system: System, dims: set[str]) -> float:
    """The product of declared sizes; a size that follows from others counts as large."""
    sizes = [system.cell.dim(d).size for d in dims]
    return math.prod(s if isinstance(s, int) else SMALLEST for s in sizes)


def operands(closure: LowRank, chunks: RankChunks) -> tuple[Expr, ...]:
    """What is computed before, for all tokens at once."""
    map = closure.map
    found: list[Expr | None] = [e for row in map.factors for e in row]
    found += [e for t in map.terms for e in (t.right, *t.left)]
    found += [e for w in chunks.writes for e in (*w.left, w.right)]
    return (*(e for e in found if e is not None), *(r.read.query for r in chunks.reads))


def _reads(
    system: System, streams: Sequence[Stream], around: tuple[Expr, ...], ready: set[str]
) -> tuple[tuple[str, ...], list[StateRead]] | str:
    """The dims that all readers of the states sum over, and the readers; or what is of another form."""
    out: list[StateRead] = []
    for index, stream in enumerate(streams):
        if not any(isinstance(n, Ref) and n.role == "state" and n.name == stream.name for n in walk(*around)):
            continue
        found = reads_of(system, stream, around, ready)
        if isinstance(found, str):
            return found
        out += [StateRead(index, r) for r in found[1]]
    if len({r.read.node.over for r in out}) != 1:
        return "its states are summed over different dims" if out else "nothing reads it"
    return out[0].read.node.over, out


def _writes(
    system: System, rest: Sequence[Expr | None], mixed: set[str], columns: set[str]
) -> tuple[Write, ...] | set[str] | None:
    """Products that are written to all states; the columns because of which there are none; None for too many."""
    table: dict[tuple[Expr, Expr], list[Expr | None]] = {}
    for index, expr in enumerate(rest):
        if expr is None:
            continue
        found = terms(system.graph, expr, mixed, columns)
        if isinstance(found, set):
            return found
        if len(found) > MOST_WRITES:
            return None
        for left, right in (pair(system.graph, factors, sign, mixed) for factors, sign in found):
            lefts = table.setdefault((left, right), [None] * len(rest))
            # The same product may be written more than once.
            lefts[index] = algebra.add(system.graph, lefts[index], left)
    return tuple(Write(tuple(lefts), right) for (_, right), lefts in table.items())
