"""Quotients and products of positive numbers, by their logarithms where numbers would be too small or too large.

`f / (f + i)` of two gates is 0 / 0 where both vanish, and `exp(a) / exp(b)` is inf / inf, though the quotient is an
ordinary number. Here a positive expression may have a *logarithm*, an expression that is accurate wherever the number
itself is out of range (`exp(e)`: `e`; `sigmoid(e)`: `logsigmoid(e)`; sums, products and powers of such), and

- a share `x / (x + y + ...)` becomes `sigmoid(log(x) - log(y + ...))`, and `1 - ` that the sigmoid of the opposite;
- `(x * u + y * v) / (x + y)` becomes a sum of shares;
- what is left of a product in which one factor may overflow while another vanishes becomes `exp` of a sum;
- `log` of a positive expression becomes its logarithm;
- in an exponent the difference of two values of one state is taken first.

A product is looked at as a whole, through quotients and definitions, so the order and the brackets that it is written
with do not matter. What cannot leave the range of float32 (`z / (1 + z)` of a gate) stays as it is written.
Non-goals: ranges. Whether a number may vanish or overflow is told by what it is made of.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

from rnnc.ir import Apply, Cell, Expr, Graph, Interval, Lit, Merge, Normalize, Reduce, Ref, Rename, Split, walk
from rnnc.literals import number

_MOST = 16
"""Factors of a product, and terms of a sum, that are looked at; a larger one is taken for a number of its own."""
_FAR = 40.0
"""`softplus(-40)` is `exp(-40)` to the last digit of a float64, and still an ordinary float32."""


@dataclass(frozen=True, slots=True)
class Fact:
    """Of a number that is not negative: its logarithm; whether it may vanish and overflow where that does not."""

    log: Expr
    small: bool = False
    large: bool = False

    @property
    def extreme(self) -> bool:
        return self.small or self.large

    def inverse(self, graph: Graph) -> Fact:
        return Fact(_neg(graph, self.log), self.large, self.small)


@dataclass(frozen=True, slots=True)
class Product:
    """`coefficient * above / below`."""

    coefficient: float
    above: tuple[Expr, ...] = ()
    below: tuple[Expr, ...] = ()

    def times(self, other: Product) -> Product:
        coefficient = self.coefficient * other.coefficient
        return Product(coefficient, self.above + other.above, self.below + other.below)

    def inverse(self) -> Product:
        # A whole number stays one: `2 * x` is to be shown as it was written.
        inverse = self.coefficient if abs(self.coefficient) == 1 else 1 / self.coefficient
        return Product(inverse, self.below, self.above)

    def key(self) -> object:
        return self.coefficient, *(frozenset(Counter(part).items()) for part in (self.above, self.below))


@dataclass(frozen=True, slots=True)
class Share:
    """The factors of a product that are a part of one of its divisors: `coefficient` times the terms `part`, the
    others being `rest`."""

    above: tuple[Expr, ...]
    below: tuple[Expr, ...]
    coefficient: float
    part: tuple[Expr, ...]
    rest: tuple[Expr, ...]

    @property
    def factors(self) -> int:
        return len(self.above) + len(self.below)


@dataclass(frozen=True, slots=True)
class Piece:
    """A factor of what a product became, and what is known of it; `expr` is None for one that cancelled."""

    expr: Expr | None
    fact: Fact | None = None


class LogSpace:
    """Rewrites expressions of a lowered cell; what occurs twice is rewritten once."""

    def __init__(self, cell: Cell) -> None:
        self.graph, self.signs = cell.graph, _Signs(cell)
        self.consts = {c.name for c in cell.consts if c.region is not None and _positive(c.region)}
        self.done: dict[Expr, Expr] = {}
        self.facts: dict[Expr, Fact] = {}
        self.products: dict[Expr, Product] = {}
        self.sums: dict[Expr, tuple[Expr, ...]] = {}
        self.pieces: dict[Expr, tuple[Piece, ...]] = {}
        self.differences: dict[tuple[Expr, Expr], Expr] = {}

    def __call__(self, root: Expr) -> Expr:
        for node in walk(root):
            if node not in self.done:
                self.signs.add(node)
                self.done[node] = self.rewritten(node)
                fact = self.fact(node)
                # A logarithm stands for all entries: what cancels may lack dims.
                if fact is not None and node.kind == "real" and fact.log.type == node.type:
                    self.facts[node] = fact
        return self.done[root]

    def log(self, node: Expr) -> Expr | None:
        """The logarithm of a node that was rewritten, if it has one."""
        return self.facts[node].log if node in self.facts else None

    # --- what becomes of a node ---

    def rewritten(self, node: Expr) -> Expr:
        graph = self.graph
        same = graph.rebuild(node, tuple(self.done[c] for c in node.children)) if node.children else node
        match node:
            case Apply(op="mul" | "div" | "neg" | "pow"):
                return self.product(node, same)
            case Apply(op="sub", args=(Lit(value=1), x)) if x in self.products:
                # A share alone: of any other sigmoid, `1 - z` stays what was written.
                match self.done[x], self.pieces[x]:
                    case Apply(op="sigmoid", args=(d,)) as new, (Piece(expr=e),) if e is new:
                        return graph.apply("sigmoid", _neg(graph, d))
                    case _:
                        return same
            case Apply(op="exp", args=(x,)):
                return graph.apply("exp", self.exponent(self.done[x]))
            case Apply(op="log", args=(x,)) if x in self.facts and self.facts[x].extreme:
                return self.facts[x].log
            case Apply(op="log1p", args=(x,)) if x in self.facts and self.facts[x].large:
                return graph.apply("softplus", self.facts[x].log)
            case _:
                return same

    def exponent(self, x: Expr) -> Expr:
        """A sum with differences of a state's values taken first.

        `exp(g + m[t-1] - m[t])` is the factor between two scales: with `g + m[t-1]` first, a small `g` would be rounded
        to a digit of `m`, in every token anew.
        """
        terms = _addends(x)
        some = [(e, sign) for e, sign in terms if isinstance(e, Ref) and e.role == "state"]
        pair = next(((e, o) for e, s in some for o, r in some if s > 0 > r and e.name == o.name), None)
        if pair is None or not 2 < len(terms) <= _MOST:
            return x
        terms.remove((pair[0], 1))
        terms.remove((pair[1], -1))
        rest = (e if sign > 0 else _neg(self.graph, e) for e, sign in terms)
        total = reduce(lambda x, y: _plus(self.graph, x, y), rest)
        return self.graph.apply("add", total, self.graph.apply("sub", *pair))

    def product(self, node: Apply, same: Expr) -> Expr:
        whole = self.factors(node)
        if whole is None:
            return same
        self.products[node] = whole
        pieces, rest = self.shares(whole)
        pieces, rest = self.merged(pieces, rest)
        self.pieces[node] = pieces
        # What the operands became by themselves is kept if together they make no more of it.
        before = [p for c in node.children for p in self.pieces.get(c, ())]
        if Counter(pieces) != Counter(before) and _ordinary(rest.coefficient):
            made = self.joined([p.expr for p in pieces if p.expr is not None], rest)
            if made.type == node.type:
                return made
        self.pieces[node] = tuple(before)
        return same

    def factors(self, node: Apply) -> Product | None:
        """A node as a product; of its operands alone where there are too many factors."""
        match node:
            case Apply(op="mul", args=(x, y)):
                found, plain = self.of(x).times(self.of(y)), Product(1, (x, y))
            case Apply(op="div", args=(x, y)):
                found, plain = self.of(x).times(self.under(y)), Product(1, (x,), (y,))
            case Apply(op="neg", args=(x,)):
                found, plain = self.of(x).times(Product(-1)), Product(-1, (x,))
            case Apply(op="pow", args=(x, y)) if number(y) == -1:
                found, plain = self.under(x), Product(1, (), (x,))
            case _:
                return None
        fits = len(found.above) + len(found.below) <= _MOST and _ordinary(found.coefficient)
        return found if fits else plain

    def under(self, node: Expr) -> Product:
        """What dividing by a node multiplies with; a share stays whole."""
        return Product(1, (), (node,)) if self.pieces.get(node) else self.of(node).inverse()

    def of(self, node: Expr) -> Product:
        """A node as a product, of itself alone if it is none."""
        match node:
            case Lit(value=int() | float() as value) if not isinstance(value, bool) and _ordinary(value):
                return Product(value)
            case _:
                return self.products.get(node) or Product(1, (node,))

    def terms(self, node: Expr) -> tuple[Expr, ...]:
        return self.sums.get(node, (node,))

    def joined(self, first: Sequence[Expr], rest: Product) -> Expr:
        graph = self.graph
        size = abs(rest.coefficient)
        numbers = [graph.lit(size)] if size != 1 else []
        above = [*numbers, *first, *(self.done[e] for e in rest.above)]
        made = reduce(lambda x, y: graph.apply("mul", x, y), above) if above else graph.lit(1.0)
        for e in rest.below:
            made = graph.apply("div", made, self.done[e])
        return made if rest.coefficient > 0 else _neg(graph, made)

    # --- shares ---

    def shares(self, whole: Product) -> tuple[tuple[Piece, ...], Product]:
        """The shares in a product, and what else it has."""
        found: list[Piece] = []
        for below in whole.below:
            if below not in whole.below or below not in self.facts or not self.facts[below].extreme:
                continue
            share = self.share(below, whole)
            if share is not None and share.factors:
                pieces, whole = (self.piece(share),), self.left(whole, share, below)
            elif (spread := self.spread(whole, below)) is not None:
                pieces, whole = spread
            elif share is not None:
                pieces, whole = (self.piece(share),), self.left(whole, share, below)
            else:
                continue
            found.extend(pieces)
        return tuple(found), whole

    def left(self, whole: Product, share: Share, below: Expr) -> Product:
        above, under = _without(whole.above, share.above), _without(whole.below, (*share.below, below))
        return Product(whole.coefficient * share.coefficient, above, under)

    def share(self, below: Expr, whole: Product) -> Share | None:
        """The largest part of `below` that the other factors hold: several terms of it, or the factors of one."""
        terms = self.terms(below)
        for e in whole.above:
            part = self.terms(e)
            rest = self.without(terms, part) if len(part) > 1 else None
            if rest is not None:
                return Share((e,), (), 1, part, rest)
        above, under = Counter(whole.above), Counter(_without(whole.below, (below,)))
        found: list[Share] = []
        for i, t in enumerate(terms):
            p = self.of(t)
            if Counter(p.above) <= above and Counter(p.below) <= under:
                found.append(Share(p.above, p.below, 1 / p.coefficient, (t,), terms[:i] + terms[i + 1 :]))
        best = max(found, key=lambda s: s.factors, default=None)
        if best is None or not best.factors:
            # A term that is a factor as a whole, having too many of its own.
            for i, t in enumerate(terms):
                if t in whole.above:
                    return Share((t,), (), 1, (t,), terms[:i] + terms[i + 1 :])
        return best

    def without(self, terms: Sequence[Expr], part: Sequence[Expr]) -> tuple[Expr, ...] | None:
        """The terms but some, if they have all of them."""
        keys = Counter(self.of(t).key() for t in part)
        rest: list[Expr] = []
        for t in terms:
            key = self.of(t).key()
            if keys[key]:
                keys[key] -= 1
            else:
                rest.append(t)
        return None if keys.total() else tuple(rest)

    def piece(self, share: Share) -> Piece:
        if not share.rest:
            return Piece(None)
        d = self.difference(self.log_of_sum(share.part), self.log_of_sum(share.rest))
        return Piece(self.graph.apply("sigmoid", d), Fact(self.graph.apply("logsigmoid", d), small=True))

    def difference(self, x: Expr, y: Expr) -> Expr:
        """`x - y`; where there is `y - x` already, the opposite of that."""
        if (y, x) in self.differences:
            return _neg(self.graph, self.differences[y, x])
        return self.differences.setdefault((x, y), _plus(self.graph, x, _neg(self.graph, y)))

    def log_of_sum(self, terms: Iterable[Expr]) -> Expr:
        return reduce(lambda x, y: _logaddexp(self.graph, x, y), (self.facts[t].log for t in terms))

    def spread(self, whole: Product, below: Expr) -> tuple[tuple[Piece, ...], Product] | None:
        """A product whose numerator has a sum of which every term holds a part of `below`, as a sum of shares."""
        for e in whole.above:
            made = self.over(e, below) if len(_addends(e)) <= _MOST else None
            if made is not None and made[1]:
                rest = _without(whole.above, (e,)), _without(whole.below, (below,))
                return (Piece(made[0]),), Product(whole.coefficient, *rest)
        return None

    def over(self, e: Expr, below: Expr, depth: int = _MOST) -> tuple[Expr, int] | None:
        """`e / below`, and the factors of its largest share."""
        match e:
            case Apply(op="add" | "sub" | "neg", args=args) if depth:
                made: list[tuple[Expr, int]] = []
                for a in args:
                    x = self.over(a, below, depth - 1)
                    if x is None:
                        return None
                    made.append(x)
                return self.graph.apply(e.op, *(x for x, _ in made)), max(n for _, n in made)
            case _:
                whole = self.of(e).times(Product(1, (), (below,)))
                share = self.share(below, whole)
                if share is None:
                    return None
                pieces, rest = self.merged((self.piece(share),), self.left(whole, share, below))
                return self.joined([p.expr for p in pieces if p.expr is not None], rest), share.factors

    # --- what is out of range apart, and not together ---

    def merged(self, pieces: tuple[Piece, ...], rest: Product) -> tuple[tuple[Piece, ...], Product]:
        """One exponential for factors of which one may vanish where another overflows: exponentials, or a factor and
        a divisor."""
        graph = self.graph
        above = [(e, f) for e in rest.above if (f := self.facts.get(e)) and f.extreme]
        below = [(e, f.inverse(graph)) for e in rest.below if (f := self.facts.get(e)) and f.extreme]
        shares = [(p.expr, p.fact) for p in pieces if p.expr is not None and p.fact is not None]
        every = [*((x, 1) for x in (*shares, *above)), *((x, -1) for x in below)]

        def apart(one: tuple[tuple[Expr, Fact], int], other: tuple[tuple[Expr, Fact], int]) -> bool:
            ((x, fx), at_x), ((y, fy), at_y) = one, other
            opposite = (fx.small and fy.large) or (fx.large and fy.small)
            return opposite and (at_x != at_y or (_is_exp(x) and _is_exp(y)))

        some = [x for i, x in enumerate(every) if any(i != j and apart(x, y) for j, y in enumerate(every))]
        # An outer product is left to be one: it would take as many exponentials as it has entries.
        if graph.union(e for (e, _), _ in some) not in [e.dims for (e, _), _ in some]:
            return pieces, rest
        total = self.exponent(reduce(lambda x, y: _plus(graph, x, y), (f.log for (_, f), _ in some)))
        made = Piece(graph.apply("exp", total), Fact(total, small=True, large=True))
        over, under = ([e for (e, _), at in some if at == sign] for sign in (1, -1))
        left = Product(
            rest.coefficient,
            tuple(e for e in rest.above if e not in over),
            tuple(e for e in rest.below if e not in under),
        )
        return (made, *(p for p in pieces if p.expr not in over)), left

    # --- logarithms ---

    def fact(self, node: Expr) -> Fact | None:
        """What is known of a node, from what is known of its operands."""
        graph, signs = self.graph, self.signs
        for p in self.pieces.get(node, ()):
            if p.expr is self.done[node] and p.fact is not None:
                return p.fact
        operands = [self.facts.get(c) for c in node.children]
        known = [f for f in operands if f is not None]
        match node:
            case Lit(value=int() | float() as value) if not isinstance(value, bool) and _ordinary(value) and value > 0:
                return Fact(graph.lit(math.log(value)))
            case Ref(role="size") | Ref(role="const") if node.role == "size" or node.name in self.consts:
                return Fact(graph.apply("log", node))
            case Apply(op="exp", args=(x,)):
                return Fact(self.done[node].children[0], not signs.above(x), not signs.below(x))
            case Apply(op="sigmoid", args=(x,)):
                return Fact(graph.apply("logsigmoid", self.done[x]), not signs.above(x))
            case Apply(op="softplus", args=(x,)):
                return Fact(_log_of_softplus(graph, self.done[x]), not signs.above(x))
            case Apply(op="sub", args=(Lit(value=1), x)):
                match self.done[node], self.done[x]:
                    case Apply(op="sigmoid", args=(d,)), _:
                        return Fact(graph.apply("logsigmoid", d), small=True)
                    case _, Apply(op="sigmoid", args=(d,)):
                        return Fact(graph.apply("logsigmoid", _neg(graph, d)), small=True)
                    case _:
                        return None
            case Apply(op="pow", args=(x, y)):
                base, power = number(x), number(y)
                if base is not None and base > 0 and power is None and y.kind == "real":
                    return Fact(_scaled(graph, self.done[y], math.log(base)), True, True)
                return known[0] and _power(graph, known[0], power) if operands[0] is not None else None
            case Apply(op="where", args=(c, x, y)):
                x, y = self.or_nothing(x), self.or_nothing(y)
                if x is None or y is None:
                    return None
                log = graph.apply("where", self.done[c], x.log, y.log)
                return Fact(log, x.small or y.small, x.large or y.large)
            case Normalize(op="softmax", over=over, arg=x):
                x = self.done[x]
                return Fact(graph.apply("sub", x, graph.reduce("logsumexp", over, x)), small=True)
            case _ if not known or len(known) < len(operands):
                return None
            case Reduce(op="sum", over=over, arg=x) if set(over) <= set(x.dims):
                return Fact(graph.reduce("logsumexp", over, known[0].log), known[0].small, known[0].large)
            case Reduce(op="max" | "min") | Rename() | Split() | Merge() | Apply(op="stop_gradient"):
                return Fact(graph.rebuild(node, (known[0].log,)), known[0].small, known[0].large)
            case Apply(op="sqrt" | "rsqrt" | "square" as op):
                return _power(graph, known[0], {"sqrt": 0.5, "rsqrt": -0.5, "square": 2}[op])
            case Apply(op=op, args=args) if len(known) == 2:
                return self.of_two(node, op, args, *known)
            case _:
                return None

    def of_two(self, node: Apply, op: str, args: tuple[Expr, ...], x: Fact, y: Fact) -> Fact | None:
        graph = self.graph
        match op:
            case "add":
                terms = self.terms(args[0]) + self.terms(args[1])
                if len(terms) <= _MOST:
                    self.sums[node] = terms
                return Fact(_logaddexp(graph, x.log, y.log), x.small and y.small, x.large or y.large)
            case "mul":
                return Fact(_plus(graph, x.log, y.log), x.small or y.small, x.large or y.large)
            case "div":
                return Fact(_plus(graph, x.log, _neg(graph, y.log)), x.small or y.large, x.large or y.small)
            case "max":
                return Fact(graph.apply("max", x.log, y.log), x.small and y.small, x.large or y.large)
            case "min":
                return Fact(graph.apply("min", x.log, y.log), x.small or y.small, x.large and y.large)
            case _:
                return None

    def or_nothing(self, node: Expr) -> Fact | None:
        """Of a branch, which may be 0."""
        return Fact(self.graph.lit(-math.inf), small=True) if number(node) == 0 else self.facts.get(node)


# --- small words -----------------------------------------------------------------------------------------------------


def _ordinary(value: float) -> bool:
    """Whether a literal may be taken out of a product and multiplied with others."""
    return 1e-30 < abs(value) < 1e30


def _addends(root: Expr) -> list[tuple[Expr, int]]:
    """The terms of a sum, with their signs; one more than are looked at where there are many."""
    found: list[tuple[Expr, int]] = []
    stack = [(root, 1)]
    while stack and len(found) <= _MOST:
        match stack.pop():
            case Apply(op="add", args=(x, y)), sign:
                stack += [(y, sign), (x, sign)]
            case Apply(op="sub", args=(x, y)), sign:
                stack += [(y, -sign), (x, sign)]
            case Apply(op="neg", args=(x,)), sign:
                stack.append((x, -sign))
            case e, sign:
                found.append((e, sign))
    return found


def _is_exp(node: Expr) -> bool:
    return isinstance(node, Apply) and node.op == "exp"


def _positive(region: Interval) -> bool:
    lo = number(region.lo)
    return lo is not None and (lo > 0 or (lo == 0 and region.lo_open))


def _without(nodes: Sequence[Expr], some: Iterable[Expr]) -> tuple[Expr, ...]:
    left = list(nodes)
    for e in some:
        left.remove(e)
    return tuple(left)


def _neg(graph: Graph, x: Expr) -> Expr:
    match x:
        case Lit(value=int() | float() as value):
            return graph.lit(-value if value else value)
        case Apply(op="neg", args=(y,)) if y.kind != "bool":
            return y
        case _:
            return graph.apply("neg", x)


def _plus(graph: Graph, x: Expr, y: Expr) -> Expr:
    if number(x) == 0 and y.kind == "real":
        return y
    match y:
        case _ if number(y) == 0 and x.kind == "real":
            return x
        case Apply(op="neg", args=(z,)):
            return graph.apply("sub", x, z)
        case _:
            return graph.apply("add", x, y)


def _scaled(graph: Graph, x: Expr, by: float) -> Expr:
    return x if by == 1 else _neg(graph, x) if by == -1 else graph.apply("mul", graph.lit(by), x)


def _power(graph: Graph, fact: Fact, power: float | None) -> Fact | None:
    if not power or not math.isfinite(power):
        return None
    log = _scaled(graph, fact.log, power)
    return Fact(log, fact.small, fact.large) if power > 0 else Fact(log, fact.large, fact.small)


def _logaddexp(graph: Graph, x: Expr, y: Expr) -> Expr:
    if number(x) == 0:
        return graph.apply("softplus", y)
    return graph.apply("softplus", x) if number(y) == 0 else graph.apply("logaddexp", x, y)


def _log_of_softplus(graph: Graph, x: Expr) -> Expr:
    """Far below 0 `softplus(x)` is `exp(x)`."""
    near = graph.apply("log", graph.apply("softplus", graph.apply("max", x, graph.lit(-_FAR))))
    return graph.apply("add", near, graph.apply("min", graph.apply("add", x, graph.lit(_FAR)), graph.lit(0.0)))


class _Signs:
    """Which numbers are never negative, or never positive, by what they are made of."""

    def __init__(self, cell: Cell) -> None:
        self.inputs = {i.name: i.region for i in cell.inputs}
        self.known: dict[Expr, tuple[bool, bool]] = {}

    def above(self, node: Expr) -> bool:
        return self.known[node][0]

    def below(self, node: Expr) -> bool:
        return self.known[node][1]

    def add(self, node: Expr) -> None:
        """Whether it is at least 0, and at most 0; its operands are known."""
        self.known[node] = self._sign(node, [self.known[c] for c in node.children])

    def _sign(self, node: Expr, args: list[tuple[bool, bool]]) -> tuple[bool, bool]:
        if node.kind == "complex":
            return False, False
        match node:
            case Lit(value=int() | float() as value):
                return value >= 0, value <= 0
            case Ref(role="size"):
                return True, False
            case Ref(role="input", name=name):
                match self.inputs.get(name):
                    case Interval(lo=lo, hi=hi):
                        least, most = number(lo), number(hi)
                        return least is not None and least >= 0, most is not None and most <= 0
                    case _:
                        return False, False
            case Apply(op="exp" | "sigmoid" | "softplus" | "square" | "sqrt" | "rsqrt" | "abs" | "relu"):
                return True, False
            case Normalize(op="softmax"):
                return True, False
            case Apply(op="logsigmoid"):
                return False, True
            case Apply(op="neg"):
                return args[0][1], args[0][0]
            case Apply(op="add"):
                return args[0][0] and args[1][0], args[0][1] and args[1][1]
            case Apply(op="sub"):
                return args[0][0] and args[1][1], args[0][1] and args[1][0]
            case Apply(op="mul" | "div"):
                (x, a), (y, b) = args
                return (x and y) or (a and b), (x and b) or (a and y)
            case Apply(op="max"):
                return args[0][0] or args[1][0], args[0][1] and args[1][1]
            case Apply(op="min"):
                return args[0][0] and args[1][0], args[0][1] or args[1][1]
            case Apply(op="where"):
                return args[1][0] and args[2][0], args[1][1] and args[2][1]
            case Apply(op="tanh" | "sign" | "erf" | "expm1" | "log1p" | "real" | "stop_gradient" | "only" | "like"):
                return args[0]
            case Reduce(op="sum" | "mean" | "max" | "min") | Rename() | Split() | Merge():
                return args[0]
            case _:
                return False, False
