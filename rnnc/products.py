"""Sums of products: an expression taken apart into factors that each lack one of two sets of dims.

Goals: whatever way an outer product is written, multiplied out only as far as it must be. Non-goals: simplification.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from functools import reduce

from rnnc.ir import Apply, Expr, Graph, Lit

Terms = list[tuple[list[Expr], bool]]
Pairs = list[tuple[Expr, Expr]]


def split(graph: Graph, node: Expr, keys: set[str], values: set[str]) -> tuple[Terms, set[str]] | None:
    """The terms with as many of `values` as there can be, and these; None where there can be none of them."""
    while values:
        found = terms(graph, node, keys, values)
        if isinstance(found, list):
            return found, values
        values = values - found
    return None


def terms(graph: Graph, node: Expr, keys: set[str], values: set[str]) -> Terms | set[str]:
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
        inner = terms(graph, child, keys, values)
        if isinstance(inner, set):
            return inner
        found.append([] if isinstance(child, Lit) and child.value == 0 else inner)
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
    for branch, sums in enumerate(found):
        for factors, sign in sums:
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


def _divided(graph: Graph, sums: Terms, by: Expr, keys: set[str], values: set[str]) -> Terms | set[str]:
    """Each product with one of its factors divided: one that lacks the same dims."""
    if set(by.dims) & keys and set(by.dims) & values:
        return set(by.dims) & values
    out: Terms = []
    for factors, sign in sums:
        sides = [{*f.dims, *by.dims} for f in factors]
        at = next((i for i, dims in enumerate(sides) if not dims & keys or not dims & values), len(factors))
        divided = graph.apply("div", factors[at] if at < len(factors) else graph.lit(1.0), by)
        out.append(([*factors[:at], divided, *factors[at + 1 :]], sign))
    return out


def pair(graph: Graph, factors: list[Expr], negative: bool, keys: set[str]) -> tuple[Expr, Expr]:
    left = product(graph, [f for f in factors if set(f.dims) & keys])
    right = product(graph, [f for f in factors if not set(f.dims) & keys])
    return left, graph.apply("neg", right) if negative else right


def merged(graph: Graph, pairs: Pairs, keys: Set[str], values: Set[str]) -> Pairs:
    """As few products with the same sum: those of one key, and those of one value, are one, `k * v + k * w` being
    `k * (v + w)`."""
    by_key = _merged(graph, pairs, keys)
    return [(k, v) for v, k in _merged(graph, [(v, k) for k, v in by_key], values)]


def _merged(graph: Graph, pairs: Pairs, dims: Set[str]) -> Pairs:
    """The pairs with those put together whose first members are the same but for factors that lack `dims`."""
    groups: dict[frozenset[tuple[Expr, int]], Pairs] = {}
    whole: dict[frozenset[tuple[Expr, int]], Pairs] = {}
    for first, second in pairs:
        factors, negative = _factors(first)
        own = [f for f in factors if set(f.dims) & dims]
        rest = product(graph, [*(f for f in factors if not set(f.dims) & dims), second])
        same = frozenset(Counter(own).items())
        groups.setdefault(same, []).append((product(graph, own), graph.apply("neg", rest) if negative else rest))
        whole.setdefault(same, []).append((first, second))
    return [whole[same][0] if len(found) == 1 else (found[0][0], _sum(graph, found)) for same, found in groups.items()]


def _sum(graph: Graph, pairs: Pairs) -> Expr:
    added = [x for _, x in pairs if not _is_negative(x)]
    taken = [x.children[0] for _, x in pairs if _is_negative(x)]
    total = reduce(lambda x, y: graph.apply("add", x, y), added or taken)
    return reduce(lambda x, y: graph.apply("sub", x, y), taken, total) if added else graph.apply("neg", total)


def _is_negative(node: Expr) -> bool:
    return isinstance(node, Apply) and node.op == "neg"


def _factors(root: Expr) -> tuple[list[Expr], bool]:
    """The factors of a product, and whether it is subtracted."""
    found: list[Expr] = []
    negative = False
    stack = [root]
    while stack:
        e = stack.pop()
        if isinstance(e, Apply) and e.op in ("mul", "neg"):
            stack += reversed(e.args)
            negative ^= e.op == "neg"
        elif not isinstance(e, Lit) or e.value != 1:
            found.append(e)
    return found, negative


def product(graph: Graph, factors: list[Expr]) -> Expr:
    made = factors[0] if factors else graph.lit(1.0)
    for f in factors[1:]:
        made = graph.apply("mul", made, f)
    return made
