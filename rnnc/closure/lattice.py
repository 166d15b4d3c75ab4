"""Whether two expressions of `max`, `min`, sums and products with factors that are not negative are the same.

Both are written as `max` and `min` of fractions: `x + max(y, z) = max(x + y, x + z)`, `-max(y, z) = min(-y, -z)`, and
`k * max(y, z) = max(k y, k z)` for `k >= 0`. What is left is an identity of a distributive lattice, which holds if it
does for every choice of which fractions are above a level (in the lattice of two elements): each case is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

from rnnc.closure.formula import Field, absorbing, cases, free_parts, operands
from rnnc.ir import Apply, Expr, Lit

_MOST_LEAVES, _MOST_CONDITIONS = 10, 5

Tree = tuple[str, Any, Any]
"""("max" | "min", tree, tree), or ("is", a fraction or an infinity, None)."""


def same_order(left: Expr, right: Expr, positive: set[Expr], holds: set[Expr]) -> bool:
    """Whether two expressions are the same where those of `positive` are not negative, and numbers are finite. What is
    below a free part of the nodes in `holds` is not looked at."""
    atoms = dict.fromkeys([*positive, *(free_parts(left, holds) if holds else ())])
    conditions = _conditions((left, right), set(atoms))
    if len(conditions) > _MOST_CONDITIONS:
        return False
    field = Field((left, right), tuple(atoms), _LATTICE)
    for chosen in cases(conditions):
        trees = [_Reader(field, positive, chosen).read(e) for e in (left, right)]
        if trees[0] is None or trees[1] is None or not _equal(trees[0], trees[1]):
            return False
    return True


_LATTICE = frozenset({"max", "min", "relu"})


def _conditions(roots: tuple[Expr, ...], atoms: set[Expr]) -> list[Expr]:
    """What `where`s choose by."""
    found: dict[Expr, None] = {}
    stack, seen = list(roots), set[Expr]()
    while stack:
        node = stack.pop()
        if node in seen or (node in atoms and not _is_where(node)) or not isinstance(node, Apply):
            continue
        seen.add(node)
        kept = operands(node)
        if _is_where(node) and absorbing(node) is None:
            found[kept[0]] = None
            kept = kept[1:]
        stack.extend(kept)
    return list(found)


def _is_where(node: Expr) -> bool:
    return isinstance(node, Apply) and node.op == "where"


class _Reader:
    def __init__(self, field: Field, positive: set[Expr], chosen: Mapping[Expr, bool]) -> None:
        self.field, self.positive, self.chosen = field, positive, chosen
        self.done: dict[Expr, Tree | None] = {}

    def read(self, root: Expr) -> Tree | None:
        stack = [root]
        while stack:
            node = stack[-1]
            if node in self.done:
                stack.pop()
            elif waiting := [c for c in self.below(node) if c not in self.done]:
                stack.extend(waiting)
            else:
                self.done[node] = self.tree(node)
        return self.done[root]

    def below(self, node: Expr) -> tuple[Expr, ...]:
        if node in self.chosen or node in self.field.atoms or not isinstance(node, Apply):
            return ()
        kept = operands(node)
        if len(kept) == 3 and node.op == "where":
            return (kept[1] if self.chosen[kept[0]] else kept[2],)
        return kept

    def tree(self, node: Expr) -> Tree | None:
        if node in self.chosen:
            return ("is", self.field.number(int(self.chosen[node])), None)
        if node in self.field.atoms:
            return ("is", self.field.atoms[node], None)
        if isinstance(node, Lit):
            if not isinstance(node.value, complex) and math.isinf(node.value):
                return ("is", node.value, None)
            value = self.field.number(node.value)
            return None if value is None else ("is", value, None)
        assert isinstance(node, Apply)
        below = self.below(node)
        args = [t for c in below if (t := self.done[c]) is not None]
        if len(args) < len(below):
            return None
        match node.op:
            case "max" | "min":
                return (node.op, args[0], args[1])
            case "relu":
                return ("max", args[0], ("is", self.field.number(0), None))
            case "add":
                return _joined(args[0], args[1])
            case "sub":
                return _joined(args[0], _turned(args[1]))
            case "neg":
                return _turned(args[0])
            case "mul":
                return self.product(node, args[0], args[1])
            case "div" if args[1][0] == "is" and _finite(args[1][1]) and args[1][1] != 0:
                inverse: Tree = ("is", 1 / args[1][1], None)
                return args[0] and self.product(node, args[0], inverse)
            case "where" | "only" | "like" | "real" | "conj":
                return args[0]
            case _:
                return None

    def product(self, node: Apply, x: Tree, y: Tree) -> Tree | None:
        if x[0] != "is" or (y[0] == "is" and not _finite(x[1])):
            x, y = y, x
        factor = x[1]
        if x[0] != "is" or not _finite(factor):
            return None
        if y[0] == "is" and _finite(y[1]):
            return ("is", factor * y[1], None)
        if self.sure(factor):
            return _mapped(y, lambda leaf: factor * leaf if _finite(leaf) else leaf)
        if self.sure(-factor):
            return _mapped(_turned(y), lambda leaf: -factor * leaf if _finite(leaf) else leaf)
        return None

    def sure(self, factor: Any) -> bool:
        """Whether a factor is a product of what is not negative."""
        atoms = {a: e for e, a in self.field.atoms.items()}
        for sign, part in ((factor.numer, factor.numer), (factor.denom, factor.denom)):
            terms = part.terms()
            if len(terms) != 1 or sign.LC < 0:
                return False
            for at, power in enumerate(terms[0][0]):
                name = atoms[self.field.generators[at]] if power else None
                if name is not None and name not in self.positive and power % 2:
                    return False
        return True


def _finite(leaf: Any) -> bool:
    return not isinstance(leaf, float)


def _mapped(tree: Tree, change: Callable[[Any], Any]) -> Tree:
    if tree[0] == "is":
        return ("is", change(tree[1]), None)
    return (tree[0], _mapped(tree[1], change), _mapped(tree[2], change))


def _turned(tree: Tree) -> Tree:
    if tree[0] == "is":
        return ("is", -tree[1], None)
    return ("min" if tree[0] == "max" else "max", _turned(tree[1]), _turned(tree[2]))


def _joined(x: Tree, y: Tree) -> Tree:
    """The sum; an infinity stays."""
    if x[0] != "is":
        return (x[0], _joined(x[1], y), _joined(x[2], y))
    if y[0] != "is":
        return (y[0], _joined(x, y[1]), _joined(x, y[2]))
    infinite = next((leaf for leaf in (x[1], y[1]) if not _finite(leaf)), None)
    return ("is", x[1] + y[1] if infinite is None else infinite, None)


def _leaves(tree: Tree) -> dict[Any, None]:
    if tree[0] == "is":
        return {tree[1]: None} if _finite(tree[1]) else {}
    return {**_leaves(tree[1]), **_leaves(tree[2])}


def _equal(x: Tree, y: Tree) -> bool:
    leaves = list({**_leaves(x), **_leaves(y)})
    if len(leaves) > _MOST_LEAVES:
        return False
    return all(
        _truth(x, above) == _truth(y, above)
        for chosen in product((False, True), repeat=len(leaves))
        for above in [dict(zip(leaves, chosen, strict=True))]
    )


def _truth(tree: Tree, above: Mapping[Any, bool]) -> bool:
    if tree[0] == "is":
        return above[tree[1]] if _finite(tree[1]) else tree[1] > 0
    parts = _truth(tree[1], above), _truth(tree[2], above)
    return any(parts) if tree[0] == "max" else all(parts)
