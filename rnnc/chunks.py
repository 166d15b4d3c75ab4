"""Affine scan → Chunks: a matrix state that is only read through contractions.

With `S[t] = a * S[t-1] + b` where `b` is a sum of products of what lacks the summed dims and what lacks the others, and
every reader is `sum[keys](q * S)`, no token's state is wanted: within a chunk of tokens, reads are products of queries,
keys and values, and a state is kept for each chunk. Goals: find the dims' parts and the factors in whatever way they
are written. Non-goals: how chunks are computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rnnc.closure import Affine
from rnnc.derive import depends
from rnnc.ir import Apply, Expr, Reduce, Ref, walk
from rnnc.lower import Stream, System
from rnnc.products import merged, pair, product, split

MOST_WRITES = 8
"""Products written by a token, beyond which multiplying sums out is not worth it."""


@dataclass(frozen=True)
class Read:
    """`node` is `sum[keys](query * S[t-lag])`. `own` are the query's dims that the state lacks."""

    node: Reduce
    query: Expr
    lag: int
    own: tuple[str, ...]


@dataclass(frozen=True)
class Chunks:
    """The state's dims in parts, `heads` being those that ride along; its reads, those of `S[t-1]` first; and pairs of
    factors whose products are written, the first lacking the values' dims and the second those of the keys. The
    transition is along keys where `keyed`, else along values; where it has neither, `keyed`.

    A state without values is another column of those of the state that it is `beside`: the transition and keys are the
    same, one write for each of its, and so is each query."""

    heads: tuple[str, ...]
    keys: tuple[str, ...]
    values: tuple[str, ...]
    reads: tuple[Read, ...]
    writes: tuple[tuple[Expr, Expr], ...]
    keyed: bool
    beside: str | None = None


def chunks(
    system: System, closure: Affine, stream: Stream, around: Iterable[Expr], ready: Iterable[str]
) -> Chunks | None:
    """The parts of a scan, if it has that form. `around` is everything that is computed besides its update; `ready` are
    the states whose values are there before it."""
    if closure.b is None or stream.depth > 1 or len(stream.type.dims) < 2 or stream.type.kind == "bool":
        return None
    found = reads_of(system, stream, tuple(around), set(ready))
    if not found:
        return None
    keys, reads = found
    # Dims that something of the keys' side has too ride along; what is left are the values'.
    values = set(stream.type.dims) - set(keys)
    for read in reads:
        values -= set(read.query.dims)
    factor = set(closure.a.dims)
    keyed = bool(factor & set(keys) or values - factor)
    values -= factor if keyed else set()
    parts = split(system.graph, closure.b, set(keys), values)
    if parts is None or len(parts[0]) > MOST_WRITES:
        return None
    sums, values = parts
    writes = [pair(system.graph, factors, sign, set(keys)) for factors, sign in sums]
    writes = merged(system.graph, writes, set(keys), values)
    if any(w.kind == "complex" != stream.type.kind for write in writes for w in write):
        return None
    heads = tuple(d for d in stream.type.dims if d not in keys and d not in values)
    ordered = tuple(sorted(reads, key=lambda r: -r.lag))
    return Chunks(heads, keys, tuple(d for d in stream.type.dims if d in values), ordered, tuple(writes), keyed)


def reads_of(
    system: System, stream: Stream, around: tuple[Expr, ...], ready: set[str]
) -> tuple[tuple[str, ...], list[Read]] | None:
    """The dims that all readers of a state sum over, and the readers; None where one is of another form."""
    pasts = [n for n in walk(*around) if isinstance(n, Ref) and n.role == "state" and n.name == stream.name]
    reach = depends(around, pasts)
    accounted: set[Expr] = set(pasts)
    reads: list[Read] = []
    for node in walk(*around):
        if node not in reach or not isinstance(node, Reduce) or node.op != "sum":
            continue
        factors, products = _factors(node.arg, reach)
        states = [f for f in factors if f in reach]
        if len(states) != 1 or not isinstance(states[0], Ref):
            continue
        query = product(system.graph, [f for f in factors if f not in reach])
        own = tuple(d for d in query.dims if d not in stream.type.dims)
        if states[0].lag > 1 or not ready_at(system, query, ready):
            return None
        if query.kind == "complex" != stream.type.kind or not set(node.over) < set(stream.type.dims):
            return None
        reads.append(Read(node, query, states[0].lag, own))
        accounted |= products
    for node in walk(*around):
        read = any(node is r.node for r in reads)
        if not read and node not in accounted and any(c in accounted for c in node.children):
            return None
    if not reads or any(r in accounted for r in around) or len({r.node.over for r in reads}) > 1:
        return None
    return tuple(d for d in stream.type.dims if d in reads[0].node.over), reads


def _factors(node: Expr, reach: set[Expr]) -> tuple[list[Expr], set[Expr]]:
    """The factors of a product, taken apart as far as they hold the state, and the products on the way."""
    flat: list[Expr] = []
    products: set[Expr] = set()
    stack = [node]
    while stack:
        e = stack.pop()
        if e in reach and isinstance(e, Apply) and e.op == "mul":
            products.add(e)
            stack.extend(reversed(e.args))
        else:
            flat.append(e)
    return flat, products


def ready_at(system: System, node: Expr, ready: set[str]) -> bool:
    """Whether a value can be computed where the states `ready` are there."""
    stack, seen = [node], set[Expr]()
    while stack:
        for n in walk(stack.pop()):
            if n in seen or not isinstance(n, Ref) or n.role != "state" or n.name in ready:
                continue
            seen.add(n)
            stream = system.stream(n.name)
            if stream.declared:
                return False
            stack.append(stream.expr)
    return True
