"""The cell as the proofs see it: one graph without definitions, and without complex numbers.

Goals: `expand` puts definitions, states at lag 0 and gradients in place, so that what is left are leaves (inputs,
params, consts, sizes, pasts) and operations; `real` and `parts` then write every complex value as its real part, its
imaginary part and its modulus, which are real expressions.
Non-goals: any range or proof. What cannot be written this way stays a leaf (`real`, `imag` or `abs` of something).

A state with `over`, and one that reads such a state's past, is not put in place: within that update `S[t-1]` is the
running value, which another state's value at `t` does not see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from rnnc.derive import pull_back
from rnnc.ir import Apply, Cell, Conv, Expr, Grad, Linear, Lit, Merge, Normalize, Reduce, Ref, Rename, Split, walk


@dataclass(frozen=True, slots=True)
class Parts:
    """A complex value as real expressions."""

    re: Expr
    im: Expr
    mod: Expr


class Model:
    """Expansions of one cell, remembered by node."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.graph = cell.graph
        self._definitions = {d.name: d.expr for d in cell.definitions}
        self._states = {s.name: s for s in cell.states}
        self._weights = {p.name: p for p in cell.params}
        self._expanded: dict[Expr, Expr] = {}
        self._reals: dict[Expr, Expr] = {}
        self._parts: dict[Expr, Parts] = {}
        self._numbers: dict[Expr, int] = {}
        self.hints: dict[Expr, Expr] = {}
        """What the modulus of a sum is at most: the sum of moduli."""
        self.held = self._held()
        self.definitions = {d.name: self.expand(d.expr) for d in cell.definitions}
        self.updates = {s.name: self.expand(s.expr) for s in cell.states}
        self.names: dict[Expr, str] = {}
        for name, node in self.definitions.items():
            if node.children:
                self.names.setdefault(node, name)

    def number(self, node: Expr) -> int:
        """A number for a node, the same whenever it is asked for."""
        return self._numbers.setdefault(node, len(self._numbers))

    # --- definitions, states at lag 0 and gradients -----------------------------------------------------------------

    def _held(self) -> frozenset[str]:
        """States that stay leaves at lag 0."""
        over = {s.name for s in self.cell.states if s.over is not None}
        reads: dict[str, set[str]] = {}
        for s in self.cell.states:
            seen: set[str] = set()
            todo, done = [s.expr], set[str]()
            while todo:
                for node in walk(todo.pop()):
                    if not isinstance(node, Ref):
                        continue
                    if node.role == "state" and node.lag == 1:
                        seen.add(node.name)
                    inner = self._inner(node)
                    if inner is not None and node.name not in done:
                        done.add(node.name)
                        todo.append(inner)
            reads[s.name] = seen
        return frozenset(over | {name for name, seen in reads.items() if seen & over})

    def _inner(self, node: Ref) -> Expr | None:
        """What a reference at lag 0 stands for."""
        if node.lag == 0 and node.role == "def":
            return self._definitions[node.name]
        if node.lag == 0 and node.role == "state":
            return self._states[node.name].expr
        return None

    def _replaced(self, node: Ref) -> Expr | None:
        return None if node.role == "state" and node.name in self.held else self._inner(node)

    def expand(self, root: Expr) -> Expr:
        stack = [root]
        while stack:
            node = stack[-1]
            if node in self._expanded:
                stack.pop()
                continue
            waiting = [c for c in self._needs(node) if c not in self._expanded]
            if waiting:
                stack.extend(waiting)
                continue
            self._expanded[node] = self._expand(node)
            stack.pop()
        return self._expanded[root]

    def _needs(self, node: Expr) -> tuple[Expr, ...]:
        if isinstance(node, Ref):
            inner = self._replaced(node)
            return () if inner is None else (inner,)
        return node.children

    def _expand(self, node: Expr) -> Expr:
        if isinstance(node, Ref):
            inner = self._replaced(node)
            return node if inner is None else self._expanded[inner]
        if not node.children:
            return node
        new = self.graph.rebuild(node, tuple(self._expanded[c] for c in node.children))
        if isinstance(new, Grad) and not any(isinstance(n, Conv | Grad) for n in walk(new.loss)):
            found = pull_back(self.graph, {new.loss: self.graph.lit(1.0)}, (new.wrt,))
            return found.get(new.wrt, self.graph.lit(0.0))
        return new

    # --- complex values as real ones --------------------------------------------------------------------------------

    def real(self, root: Expr) -> Expr:
        """An expanded real value, without complex numbers inside."""
        self._rewrite(root)
        return self._reals[root]

    def parts(self, root: Expr) -> Parts:
        """An expanded value as real and imaginary part and modulus."""
        self._rewrite(root)
        return self._part(root)

    def _rewrite(self, root: Expr) -> None:
        for node in pending(root, lambda n: n in self._parts or n in self._reals, lambda n: n.children):
            if node.kind == "complex":
                self._parts[node] = self._split(node)
            else:
                self._reals[node] = self._rebuild(node)

    def _part(self, node: Expr) -> Parts:
        if node.kind == "complex":
            return self._parts[node]
        x = self._reals[node]
        return Parts(x, self.graph.lit(0), self.graph.apply("abs", x))

    def _rebuild(self, node: Expr) -> Expr:
        if isinstance(node, Apply) and node.op in ("real", "conj", "imag") and node.args[0].kind != "complex":
            arg = self._reals[node.args[0]]
            return self.graph.apply("mul", self.graph.lit(0), arg) if node.op == "imag" else arg
        if all(c.kind != "complex" for c in node.children):
            return self.graph.rebuild(node, tuple(self._reals[c] for c in node.children)) if node.children else node
        if isinstance(node, Apply):
            first = self._part(node.args[0])
            match node.op:
                case "real":
                    return first.re
                case "imag":
                    return first.im
                case "abs":
                    return first.mod
                case "eq" | "ne":
                    second = self._part(node.args[1])
                    pair = [self.graph.apply(node.op, a, b) for a, b in ((first.re, second.re), (first.im, second.im))]
                    return self.graph.apply("and" if node.op == "eq" else "or", *pair)
                case "like" | "only":
                    return self.graph.apply("like", self._reals[node.args[0]], self._part(node.args[1]).re)
                case _:
                    pass
        return node

    def _leaf(self, node: Expr) -> Parts:
        return Parts(*(self.graph.apply(op, node) for op in ("real", "imag", "abs")))

    def _hypot(self, re: Expr, im: Expr) -> Expr:
        squares = [self.graph.apply("square", x) for x in (re, im)]
        return self.graph.apply("sqrt", self.graph.apply("add", *squares))

    def _hinted(self, modulus: Expr, limit: Expr) -> Expr:
        self.hints.setdefault(modulus, limit)
        return modulus

    def _split(self, node: Expr) -> Parts:
        match node:
            case Lit(value=value):
                c = complex(value)
                re, im = self.graph.lit(c.real), self.graph.lit(c.imag)
                return Parts(re, im, self._hypot(re, im))
            case Apply():
                return self._operation(node)
            case Rename() | Split() | Merge():
                return Parts(*(self.graph.rebuild(node, (p,)) for p in self._each(node.arg)))
            case Reduce(op="sum" | "mean"):
                re, im, mod = (self.graph.rebuild(node, (p,)) for p in self._each(node.arg))
                return Parts(re, im, self._hinted(self._hypot(re, im), mod))
            case Normalize(op="l2norm" | "rmsnorm"):
                re, im, mod = self._each(node.arg)
                size = self.graph.reduce(
                    "sum" if node.op == "l2norm" else "mean", node.over, self.graph.apply("square", mod)
                )
                scale = self.graph.apply("rsqrt", self.graph.apply("add", size, self.graph.lit(node.eps)))
                return Parts(*(self.graph.apply("mul", p, scale) for p in (re, im, mod)))
            case Linear() | Conv() if self._weights[node.weight].kind != "complex":
                re, im, _ = (self.graph.rebuild(node, (p,)) for p in self._each(node.arg))
                return Parts(re, im, self._hypot(re, im))
            case _:
                return self._leaf(node)

    def _each(self, node: Expr) -> tuple[Expr, Expr, Expr]:
        part = self._part(node)
        return part.re, part.im, part.mod

    def _operation(self, node: Apply) -> Parts:
        apply = self.graph.apply
        if node.op == "where":
            chosen = zip(self._each(node.args[1]), self._each(node.args[2]), strict=True)
            return Parts(*(apply("where", self._reals[node.args[0]], a, b) for a, b in chosen))
        a = self._part(node.args[0])
        match node.op:
            case "add" | "sub":
                b = self._part(node.args[1])
                re, im = apply(node.op, a.re, b.re), apply(node.op, a.im, b.im)
                return Parts(re, im, self._hinted(self._hypot(re, im), apply("add", a.mod, b.mod)))
            case "neg":
                return Parts(apply("neg", a.re), apply("neg", a.im), a.mod)
            case "conj":
                return Parts(a.re, apply("neg", a.im), a.mod)
            case "stop_gradient":
                return a
            case "only" | "like":
                b = self._part(node.args[1])
                return Parts(*(apply("like", p, b.re) for p in self._each(node.args[0])))
            case "mul":
                return self._product(node.args[0], node.args[1], a, self._part(node.args[1]))
            case "square":
                return self._product(node.args[0], node.args[0], a, a)
            case "div":
                return self._quotient(node.args[1], a, self._part(node.args[1]))
            case "exp":
                size = apply("exp", a.re)
                return Parts(apply("mul", size, apply("cos", a.im)), apply("mul", size, apply("sin", a.im)), size)
            case "log":
                re, im = apply("log", a.mod), apply("imag", node)
                return Parts(re, im, self._hypot(re, im))
            case "sqrt" | "rsqrt":
                return Parts(apply("real", node), apply("imag", node), apply(node.op, a.mod))
            case "pow" if node.args[1].kind != "complex":
                return self._power(node, a)
            case _:
                return self._leaf(node)

    def _product(self, left: Expr, right: Expr, a: Parts, b: Parts) -> Parts:
        apply = self.graph.apply
        mod = apply("mul", a.mod, b.mod)
        if left.kind != "complex":
            return Parts(apply("mul", a.re, b.re), apply("mul", a.re, b.im), mod)
        if right.kind != "complex":
            return Parts(apply("mul", a.re, b.re), apply("mul", a.im, b.re), mod)
        re = apply("sub", apply("mul", a.re, b.re), apply("mul", a.im, b.im))
        im = apply("add", apply("mul", a.re, b.im), apply("mul", a.im, b.re))
        return Parts(re, im, mod)

    def _quotient(self, below: Expr, a: Parts, b: Parts) -> Parts:
        apply = self.graph.apply
        mod = apply("div", a.mod, b.mod)
        if below.kind != "complex":
            return Parts(apply("div", a.re, b.re), apply("div", a.im, b.re), mod)
        size = apply("square", b.mod)
        re = apply("add", apply("mul", a.re, b.re), apply("mul", a.im, b.im))
        im = apply("sub", apply("mul", a.im, b.re), apply("mul", a.re, b.im))
        return Parts(apply("div", re, size), apply("div", im, size), mod)

    def _power(self, node: Apply, a: Parts) -> Parts:
        base, exponent = node.args
        mod = self.graph.apply("pow", a.mod, self._reals[exponent])
        if isinstance(exponent, Lit) and exponent.value in (2, 3, 4):
            total = a
            for _ in range(int(abs(exponent.value)) - 1):
                total = self._product(base, base, total, a)
            return Parts(total.re, total.im, mod)
        return Parts(self.graph.apply("real", node), self.graph.apply("imag", node), mod)


def pending(root: Expr, done: Callable[[Expr], bool], below: Callable[[Expr], Iterable[Expr]]) -> Iterator[Expr]:
    """The nodes below a root that are not done yet, what is below them first; what is done is not entered."""
    stack: list[tuple[Expr, bool]] = [(root, False)]
    while stack:
        node, ready = stack.pop()
        if done(node):
            continue
        if ready:
            yield node
        else:
            stack.append((node, True))
            stack.extend((c, False) for c in reversed(tuple(below(node))) if not done(c))
