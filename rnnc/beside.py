"""Affine scan → Chunks beside another: a normaliser is one more column of the values of a matrix state.

`n[t] = a * n[t-1] + k`, read by `sum[K](q * n[t])`, has the decays, keys and queries of `S[t] = a * S[t-1] + k * v`:
the products that give the reads of `S` give those of `n` too. By itself it is no larger than its keys, and stays a
scan. Goals: find it however its products are written. Non-goals: how it is computed.
"""

from __future__ import annotations

from collections.abc import Iterable

from rnnc.chunks import Chunks, reads_of, ready_at
from rnnc.closure import Affine
from rnnc.ir import Apply, Expr, Graph, Lit
from rnnc.lower import Stream, System
from rnnc.products import product


def beside(
    system: System, closure: Affine, stream: Stream, around: Iterable[Expr], ready: Iterable[str], host: Host
) -> Chunks | None:
    """The parts of a scan that rides along with `host`; its writes are those of the host, in the same order."""
    name, theirs, chunks = host
    b, ready = closure.b, set(ready)
    if b is None or closure.a is not theirs.a or stream.depth > 1 or not chunks.keyed or not chunks.values:
        return None
    if set(stream.type.dims) != {*chunks.heads, *chunks.keys}:
        return None
    found = reads_of(system, stream, tuple(around), ready)
    if isinstance(found, str) or set(found[0]) != set(chunks.keys):
        return None
    asked = {(r.query, r.lag) for r in chunks.reads}
    if any((r.query, r.lag) not in asked for r in found[1]):
        return None
    values = _values(system, b, [k for k, _ in chunks.writes], set(chunks.keys))
    if values is None or not all(ready_at(system, v, ready) for v in values):
        return None
    writes = tuple((k, v) for (k, _), v in zip(chunks.writes, values, strict=True))
    return Chunks(chunks.heads, chunks.keys, (), tuple(sorted(found[1], key=lambda r: -r.lag)), writes, True, name)


Host = tuple[str, Affine, Chunks]
"""A state that is computed by chunks: its name and parts."""


def _values(system: System, b: Expr, keys: list[Expr], dims: set[str]) -> list[Expr] | None:
    """What each of the keys is multiplied with to make `b`; None where `b` is no such sum. A key may be a sum itself,
    whose terms must be multiplied with the same."""
    graph = system.graph
    terms = [_addends(k) for k in keys]
    found = _multiples(system, b, [_factors(t) for ts in terms for t, _ in ts], dims)
    if found is None:
        return None
    out: list[Expr] = []
    for ts in terms:
        own, found = found[: len(ts)], found[len(ts) :]
        values = {_negated(graph, v) if negative else v for v, (_, negative) in zip(own, ts, strict=True)}
        if len(values) > 1:
            return None
        out += values
    return out


def _negated(graph: Graph, node: Expr) -> Expr:
    if isinstance(node, Lit) and node.value == 0:
        return node
    return node.args[0] if isinstance(node, Apply) and node.op == "neg" else graph.apply("neg", node)


def _multiples(system: System, b: Expr, left: list[list[Expr]], dims: set[str]) -> list[Expr] | None:
    """What each product of factors is multiplied with to make `b`."""
    graph = system.graph
    out: list[Expr | None] = [None] * len(left)
    for term, negative in _addends(b):
        factors = _factors(term)
        for i, key in enumerate(left):
            rest = _without(factors, key)
            if rest is not None and not any(set(f.dims) & dims for f in rest):
                made, before = product(graph, rest), out[i]
                if before is None:
                    out[i] = graph.apply("neg", made) if negative else made
                else:
                    out[i] = graph.apply("sub" if negative else "add", before, made)
                break
        else:
            return None
    return [graph.lit(0.0) if v is None else v for v in out]


def _addends(root: Expr) -> list[tuple[Expr, bool]]:
    """The terms of a sum, each with whether it is subtracted."""
    found: list[tuple[Expr, bool]] = []
    stack = [(root, False)]
    while stack:
        e, negative = stack.pop()
        match e:
            case Apply(op="add" | "sub", args=(x, y)):
                stack += [(y, negative != (e.op == "sub")), (x, negative)]
            case Apply(op="neg", args=(x,)):
                stack.append((x, not negative))
            case _:
                found.append((e, negative))
    return found


def _factors(root: Expr) -> list[Expr]:
    found: list[Expr] = []
    stack = [root]
    while stack:
        e = stack.pop()
        if isinstance(e, Apply) and e.op == "mul":
            stack += reversed(e.args)
        elif not isinstance(e, Lit) or e.value != 1:
            found.append(e)
    return found


def _without(factors: list[Expr], some: list[Expr]) -> list[Expr] | None:
    """The factors less some of them; None where one is missing."""
    rest = list(factors)
    for f in some:
        if f not in rest:
            return None
        rest.remove(f)
    return rest
