"""Operands that the kernels of a matrix state make themselves, entry by entry, of what they read.

What a kernel reads once or twice, as decays, queries and keys of chunks, is then read as it leaves a product, and
neither written before nor its gradient read again. Goals: gates, feature maps and scales of one value. Non-goals:
sums over dims, and functions of several values; they are computed before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rnnc.ir import Apply, Expr, Ref, walk
from rnnc.plan import Scan, is_number, per_token
from rnnc.show import expr_text

LONGEST = 64
"""Characters of a function that kernels make something by, and PyTorch in one line."""


@dataclass(frozen=True)
class Entrywise:
    """`value` is made of the entries of `source`, each by itself, and of numbers. The source is what is `read`, plus an
    `offset` that all tokens share, if there is one."""

    value: Expr
    source: Expr
    read: Expr
    offset: Expr | None = None


def operands(step: Scan) -> dict[str, Entrywise]:
    """What the kernels of a state in chunks make themselves: with a factor along keys, `a`, one reads each operand,
    others what that one made of it. Of several writes all but the first are tokens whose factor is 1, which is made of
    nothing; of one, the key `k`; of a single read, the query `q`."""
    c, a = step.chunks, step.closure.a
    if c is None or not c.keyed or not set(a.dims) & set(c.keys) or len(c.writes) != 1:
        return {}
    given = {"a": a, "k": c.writes[0][0]} | ({"q": c.reads[0].query} if len(c.reads) == 1 else {})
    found = {name: entrywise(value) for name, value in given.items()}
    made = {name: m for name, m in found.items() if m is not None}
    return made | ({"a": with_offset(made["a"])} if "a" in made else {})


def entrywise(value: Expr) -> Entrywise | None:
    """The function that makes a value of one that has the same dims, if there is one to make.

    What another state at the same token goes into is made by the kernel of that state.
    """
    source = source_of(value)
    if source is None or len(expr_text(value, {source: "x"})) > LONGEST:
        return None
    if any(isinstance(n, Ref) and n.role == "state" and not n.lag for n in walk(source)):
        return None
    return Entrywise(value, source, source)


def with_offset(made: Entrywise) -> Entrywise:
    """The same with an offset apart, as a gate has one that learns."""
    source = made.source
    if isinstance(source, Apply) and source.op == "add":
        for read, offset in (source.args, source.args[::-1]):
            if per_token(read) and not per_token(offset) and set(read.dims) == set(source.dims):
                return replace(made, read=read, offset=offset) if offset.kind == read.kind == "real" else made
    return made


def source_of(value: Expr) -> Expr | None:
    """What all of a value is made of, as far down as that is one value for each token."""
    node = value
    while isinstance(node, Apply) and node.kind == "real":
        leaves = _leaves(node)
        below = leaves if len(leaves) == 1 else [c for c in dict.fromkeys(node.args) if not is_number(c)]
        if len(below) != 1 or set(below[0].dims) != set(value.dims) or below[0].kind != "real":
            break
        node = below[0]
    return node if node is not value and per_token(node) and not is_number(node) else None


def _leaves(root: Expr) -> list[Expr]:
    """What an expression of elementwise operations is made of, but for numbers."""
    found: dict[Expr, None] = {}
    stack, seen = [root], {root}
    while stack:
        node = stack.pop()
        if not isinstance(node, Apply):
            found[node] = None
            continue
        new = [c for c in node.args if not is_number(c) and c not in seen]
        seen.update(new)
        stack.extend(new)
    return list(found)
