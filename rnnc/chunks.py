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
from rnnc.ir import Apply, Expr, Graph, Lit, Reduce, Ref, walk
from rnnc.lower import Stream, System

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
    transition is along keys where `keyed`, else along values; where it has neither, `keyed`."""

    heads: tuple[str, ...]
    keys: tuple[str, ...]
    values: tuple[str, ...]
    reads: tuple[Read, ...]
    writes: tuple[tuple[Expr, Expr], ...]
    keyed: bool


def chunks(
    system: System, closure: Affine, stream: Stream, around: Iterable[Expr], ready: Iterable[str]
) -> Chunks | None:
    """The parts of a scan, if it has that form. `around` is everything that is computed besides its update; `ready` are
    the states whose values are there before it."""
    if closure.b is None or stream.depth > 1 or len(stream.type.dims) < 2 or stream.type.kind == "bool":
        return None
    found = _reads(system, stream, tuple(around), set(ready))
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
    writes: list[tuple[Expr, Expr]] = []
    while values:
        terms = _terms(system.graph, closure.b, set(keys), values)
        if isinstance(terms, list):
            if len(terms) > MOST_WRITES:
                return None
            writes = [_pair(system.graph, factors, sign, set(keys)) for factors, sign in terms]
            break
        values -= terms
    if not values or any(w.kind == "complex" != stream.type.kind for pair in writes for w in pair):
        return None
    heads = tuple(d for d in stream.type.dims if d not in keys and d not in values)
    ordered = tuple(sorted(reads, key=lambda r: -r.lag))
    return Chunks(heads, keys, tuple(d for d in stream.type.dims if d in values), ordered, tuple(writes), keyed)


def _reads(
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
        query = _product(system.graph, [f for f in factors if f not in reach])
        own = tuple(d for d in query.dims if d not in stream.type.dims)
        if states[0].lag > 1 or not _ready(system, query, ready):
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


def _ready(system: System, node: Expr, ready: set[str]) -> bool:
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


Terms = list[tuple[list[Expr], bool]]


def _terms(graph: Graph, node: Expr, keys: set[str], values: set[str]) -> Terms | set[str]:
    """A sum of products of factors that lack `keys` or `values`, each with whether it is subtracted; or the dims of
    `values` because of which it is no such sum."""
    dims = set(node.dims)
    if not dims & keys or not dims & values:
        return [([node], False)]
    if not isinstance(node, Apply) or node.op not in ("add", "sub", "neg", "mul", "div", "where", "only"):
        return dims & values
    # The operands that are taken apart.
    held = {"div": node.args[:1], "only": node.args[:1], "where": node.args[1:]}.get(node.op, node.args)
    found: list[Terms] = []
    for child in held:
        terms = _terms(graph, child, keys, values)
        if isinstance(terms, set):
            return terms
        found.append([] if isinstance(child, Lit) and child.value == 0 else terms)
    match node.op:
        case "add":
            return found[0] + found[1]
        case "sub":
            return found[0] + [(factors, not sign) for factors, sign in found[1]]
        case "neg":
            return [(factors, not sign) for factors, sign in found[0]]
        case "mul":
            return [(f + g, s != r) for f, s in found[0] for g, r in found[1]]
        case "div":
            return _divided(graph, found[0], node.args[1], keys, values)
        case _:
            return _chosen(graph, node, found, keys, values)


def _chosen(graph: Graph, node: Apply, found: list[Terms], keys: set[str], values: set[str]) -> Terms | set[str]:
    """The products of each branch with every factor put to zero where the branch is not taken (`only`: the gradient):
    were it left out of one, what is infinite there would make a NaN."""
    condition = node.args[0] if node.op == "where" else node.args[1]
    zero = graph.lit(0.0)
    out: Terms = []
    for branch, terms in enumerate(found):
        for factors, sign in terms:
            made: list[Expr] = []
            for f in factors:
                dims = {*f.dims, *condition.dims}
                if dims & keys and dims & values:
                    return dims & values
                if node.op == "only":
                    made.append(graph.apply("only", f, condition))
                else:
                    made.append(graph.apply("where", condition, *((zero, f) if branch else (f, zero))))
            out.append((made, sign))
    return out


def _divided(graph: Graph, terms: Terms, by: Expr, keys: set[str], values: set[str]) -> Terms | set[str]:
    """Each product with one of its factors divided: one that lacks the same dims."""
    if set(by.dims) & keys and set(by.dims) & values:
        return set(by.dims) & values
    out: Terms = []
    for factors, sign in terms:
        sides = [{*f.dims, *by.dims} for f in factors]
        at = next((i for i, dims in enumerate(sides) if not dims & keys or not dims & values), len(factors))
        divided = graph.apply("div", factors[at] if at < len(factors) else graph.lit(1.0), by)
        out.append(([*factors[:at], divided, *factors[at + 1 :]], sign))
    return out


def _pair(graph: Graph, factors: list[Expr], negative: bool, keys: set[str]) -> tuple[Expr, Expr]:
    left = _product(graph, [f for f in factors if set(f.dims) & keys])
    right = _product(graph, [f for f in factors if not set(f.dims) & keys])
    return left, graph.apply("neg", right) if negative else right


def _product(graph: Graph, factors: list[Expr]) -> Expr:
    made = factors[0] if factors else graph.lit(1.0)
    for f in factors[1:]:
        made = graph.apply("mul", made, f)
    return made


def reads_of(
    system: System, stream: Stream, around: tuple[Expr, ...], ready: set[str]
) -> tuple[tuple[str, ...], list[Read]] | None:
    """The dims that all readers of a state sum over, and the readers; None where one is of another form."""
    return _reads(system, stream, around, ready)


def writes_of(graph: Graph, node: Expr, keys: set[str], values: set[str]) -> list[tuple[Expr, Expr]] | set[str] | None:
    """What is written as pairs of factors, of which the first lacks `values` and the second `keys`; else the dims of
    `values` because of which it is no sum of such products. None for too many."""
    terms = _terms(graph, node, keys, values)
    if isinstance(terms, set):
        return terms
    return [_pair(graph, factors, sign, keys) for factors, sign in terms] if len(terms) <= MOST_WRITES else None
