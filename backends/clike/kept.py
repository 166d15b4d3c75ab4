"""What a step writes for its backward: values that took a matrix product.

Goals: no product is made twice, and none of known values is in the backward's loop, where another would wait for it. Of
operations on one product, each read by the next alone, the last one's result is written.
Non-goals: what is cheap to compute again, and what lies within small steps.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from rnnc.ir import Apply, Expr, walk

_VIEWS = ("like", "only", "stop_gradient")


def below(roots: Iterable[Expr], stop: Container[Expr]) -> dict[Expr, list[Expr]]:
    """The nodes down to those of `stop`, these included, and what reads each; nothing reads a root that no other
    has."""
    readers: dict[Expr, list[Expr]] = {r: [] for r in roots}
    stack = list(readers)[::-1]
    seen: set[Expr] = set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        for c in () if node in stop else dict.fromkeys(node.children):
            readers.setdefault(c, []).append(node)
            stack.append(c)
    return readers


def kept(
    roots: Iterable[Expr],
    given: Mapping[Expr, object],
    cotangents: Container[Expr],
    products: Iterable[Expr],
    dims: Container[str],
) -> list[Expr]:
    """The values to be written for a backward that computes `roots`; `products` are its matrix products, `dims` those
    whose sizes are known before the loop."""
    roots = list(dict.fromkeys(roots))
    readers = below(roots, given)
    flowing: set[Expr] = set()
    for n in walk(*readers):
        if n in cotangents or (n not in given and any(c in flowing for c in n.children)):
            flowing.add(n)
    chosen: dict[Expr, None] = {}
    for node in products:
        if node in flowing or node in given or node.kind != "real" or any(d not in dims for d in node.dims):
            continue
        while node not in roots and len(readers[node]) == 1:
            (above,) = readers[node]
            if not isinstance(above, Apply) or above.op in _VIEWS or above in flowing:
                break
            if above.kind != "real" or above.dims != node.dims:
                break
            node = above
        chosen[node] = None
    reached = below(roots, {**given, **chosen})
    return [n for n in chosen if n in reached]
