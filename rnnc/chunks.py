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
from rnnc.show import expr_text
from rnnc.together import Together

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

    `together` is what is known of factors along a dim from below; None where too little is.

    A state without values is another column of those of the state that it is `beside`: the transition and keys are the
    same, one write for each of its, and so is each query."""

    heads: tuple[str, ...]
    keys: tuple[str, ...]
    values: tuple[str, ...]
    reads: tuple[Read, ...]
    writes: tuple[tuple[Expr, Expr], ...]
    keyed: bool
    beside: str | None = None
    together: Together | None = None

    def along(self, factor: Expr) -> tuple[str, ...]:
        """The dims along which a factor differs, of keys or values."""
        own = self.keys if self.keyed else self.values
        return tuple(d for d in own if d in factor.dims)


def chunks(
    system: System, closure: Affine, stream: Stream, around: Iterable[Expr], ready: Iterable[str]
) -> Chunks | str:
    """The parts of a scan, if it has that form; else, if it would but for its reads, what those lack. `around` is
    everything that is computed besides its update; `ready` are the states whose values are there before it."""
    if closure.b is None or len(stream.type.dims) < 2 or stream.type.kind == "bool":
        return ""
    if stream.depth > 1:
        return f"it is read {stream.depth} tokens back" if _is_matrix(system, closure.b, stream.type.dims) else ""
    found = reads_of(system, stream, tuple(around), set(ready))
    if isinstance(found, str):
        return found if _is_matrix(system, closure.b, stream.type.dims) else ""
    keys, reads = found
    # Dims that something of the keys' side has too ride along; what is left are the values'.
    values = set(stream.type.dims) - set(keys)
    for read in reads:
        values -= set(read.query.dims)
    factor = set(closure.a.dims)
    keyed = bool(factor & set(keys) or values - factor)
    values -= factor if keyed else set()
    parts = split(system.graph, closure.b, set(keys), values)
    if parts is None:
        return _unparted(system, closure, stream, keys)
    if len(parts[0]) > MOST_WRITES:
        return f"a token writes more than {MOST_WRITES} products"
    sums, values = parts
    writes = [pair(system.graph, factors, sign, set(keys)) for factors, sign in sums]
    writes = merged(system.graph, writes, set(keys), values)
    if any(w.kind == "complex" != stream.type.kind for write in writes for w in write):
        return "what is written is complex, and it is not"
    heads = tuple(d for d in stream.type.dims if d not in keys and d not in values)
    ordered = tuple(sorted(reads, key=lambda r: -r.lag))
    return Chunks(heads, keys, tuple(d for d in stream.type.dims if d in values), ordered, tuple(writes), keyed)


def _unparted(system: System, closure: Affine, stream: Stream, keys: tuple[str, ...]) -> str:
    """Why a state that is read by sums over some dims is not written by products of keys and values."""
    assert closure.b is not None
    others = [d for d in stream.type.dims if d not in keys]
    if not _is_matrix(system, closure.b, stream.type.dims):
        return ""
    if any(split(system.graph, closure.b, set(keys), {d}) is not None for d in others):
        return f"its factor differs along {', '.join(d for d in stream.type.dims if d in closure.a.dims)} at once"
    return f"it is read by sums over {' and '.join(keys)}, and no product that is written has a part without them"


def _is_matrix(system: System, written: Expr, dims: tuple[str, ...]) -> bool:
    """Whether products of what lacks one dim and of what lacks another are written."""
    return any(split(system.graph, written, {d}, {e}) is not None for d in dims for e in dims if d != e)


def reads_of(
    system: System, stream: Stream, around: tuple[Expr, ...], ready: set[str]
) -> tuple[tuple[str, ...], list[Read]] | str:
    """The dims that all readers of a state sum over, and the readers; or which is of another form."""
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
        told = f"`{expr_text(node)}`"
        if states[0].lag > 1:
            return f"{told} reads it {states[0].lag} tokens back"
        if not ready_at(system, query, ready):
            return f"{told} takes it times what is there only after it"
        if query.kind == "complex" != stream.type.kind:
            return f"{told} takes it times complex numbers"
        if not set(node.over) <= set(stream.type.dims):
            return f"{told} sums over {' and '.join(d for d in node.over if d not in stream.type.dims)}, which it lacks"
        if len(node.over) == len(stream.type.dims):
            return f"{told} sums over all of its dims"
        reads.append(Read(node, query, states[0].lag, own))
        accounted |= products
    for node in walk(*around):
        read = any(node is r.node for r in reads)
        if not read and node not in accounted and any(c in accounted for c in node.children):
            return f"`{expr_text(node)}` reads it otherwise than by sums of products of it"
    if not reads or any(r in accounted for r in around):
        return "each of its entries is asked for" if pasts else "nothing reads it"
    other = next((r.node for r in reads if r.node.over != reads[0].node.over), None)
    if other is not None:
        return f"`{expr_text(reads[0].node)}` and `{expr_text(other)}` sum over different dims"
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
