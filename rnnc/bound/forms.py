"""Real expressions as fractions of polynomials over atoms.

Goals: equal arithmetic gets one form, whatever way it is written, so that what occurs twice can cancel. An atom is a
leaf or an operation that is not arithmetic; it has a range, and it may know what its square is, which bounds it keeps
to other forms (`max(u, w) >= u`), and which of several values it equals.
Non-goals: bounds of forms (see `relational`). An expression that may be infinite or undefined has no form.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

from rnnc.bound.interval import HALF, INF, NONNEGATIVE, ONE, POSITIVE, UNIT, Interval, num, point
from rnnc.bound.poly import (
    Frozen,
    Mono,
    Poly,
    Rat,
    TooLarge,
    atoms,
    cancel,
    constant,
    content,
    freeze,
    mul,
    power,
    product,
    rat,
    rat_add,
    rat_mul,
    scaled,
    slim,
    variable,
)
from rnnc.ir import COMPARISONS, Apply, Expr, Graph, Lit, Reduce, Ref


@dataclass(frozen=True, slots=True)
class Side:
    """The atom is `base` plus (`sign` 1) or minus (`sign` -1) something that is positive, or just not negative."""

    base: Rat
    sign: int
    strict: bool = False


@dataclass(slots=True)
class Atom:
    """What is known of one atom. `box` is its range, all finite numbers."""

    box: Interval
    dims: frozenset[str] = frozenset()
    node: Expr | None = None
    square: Poly | None = None
    sides: tuple[Side, ...] = ()
    cases: tuple[Rat, ...] = ()
    slacks: dict[int, int] = field(default_factory=dict[int, int])


class Known(Protocol):
    """Where forms learn the ranges of nodes."""

    @property
    def graph(self) -> Graph: ...

    @property
    def hints(self) -> Mapping[Expr, Expr]: ...

    def __call__(self, root: Expr) -> Interval: ...


class Forms:
    """Forms of nodes, and the atoms that they are over."""

    def __init__(self, ranges: Known) -> None:
        self.ranges = ranges
        self.graph = ranges.graph
        self.atoms: list[Atom] = []
        self._keys: dict[Hashable, int] = {}
        self._forms: dict[Expr, Rat | None] = {}
        self._splitting = 0

    def of(self, node: Expr) -> Rat | None:
        """The form of a node whose operands have been asked for before."""
        if node not in self._forms:
            try:
                form = self._make(node)
            except TooLarge:
                form = None
            self._forms[node] = self._plain(node) if form is None else form
        return self._forms[node]

    def squares(self, atom: int) -> Poly | None:
        return self.atoms[atom].square

    # --- atoms ------------------------------------------------------------------------------------------------------

    def atom(self, key: Hashable, make: Callable[[], Atom | None]) -> int | None:
        """The atom of this key, made where it is new; None where it may be no finite number."""
        if key not in self._keys:
            made = make()
            if made is None or not made.box.real:
                return None
            # Making it may have made it already, on the way to its range.
            if key not in self._keys:
                self._keys[key] = len(self.atoms)
                self.atoms.append(made)
        return self._keys[key]

    def slack(self, atom: int, option: int) -> int:
        """The atom for the distance from one of `sides`."""
        slacks = self.atoms[atom].slacks
        if option not in slacks:
            slacks[option] = len(self.atoms)
            self.atoms.append(Atom(POSITIVE if self.atoms[atom].sides[option].strict else NONNEGATIVE))
        return slacks[option]

    def _var(self, index: int | None) -> Rat | None:
        return None if index is None else Rat(variable(index))

    def _plain(self, node: Expr) -> Rat | None:
        """The node as an atom of its own."""
        return self._var(self.atom(node, lambda: Atom(self.ranges(node), frozenset(node.dims), node)))

    def _named(
        self,
        node: Expr,
        key: Hashable,
        *,
        square: Poly | None = None,
        sides: tuple[Side, ...] = (),
        cases: tuple[Rat, ...] = (),
    ) -> Rat | None:
        """The node as an atom that other nodes of the same meaning share."""
        dims = frozenset(node.dims)
        return self._var(self.atom(key, lambda: Atom(self.ranges(node), dims, node, square, sides, cases)))

    def _call(self, op: str, arg: Expr, form: Rat, square: Poly | None = None) -> Rat | None:
        """`op(arg)` as an atom, where the program may say it in another way."""
        return self._named(self.graph.apply(op, arg), (op, form.key()), square=square)

    # --- forms of operations ----------------------------------------------------------------------------------------

    def _make(self, node: Expr) -> Rat | None:
        match node:
            case Lit(value=value):
                exact = None if isinstance(value, complex) else num(value)
                return rat(exact) if isinstance(exact, Fraction) else None
            case Apply():
                if any(a.kind == "complex" for a in node.args):
                    return None
                if (same := self._outdone(node)) is not None:
                    return self._forms.get(same)
                forms = [self._forms.get(a) for a in node.args]
                known = [f for f in forms if f is not None]
                return self._apply(node, known) if len(known) == len(forms) else None
            case Ref() if node.kind == "bool":
                return self._truth(node)
            case Reduce():
                arg = self._forms.get(node.arg)
                return None if arg is None else self._reduce(node, arg)
            case _:
                return None

    def _outdone(self, node: Apply) -> Expr | None:
        """The operand that `max`, `min` or `logaddexp` always takes."""
        if node.op not in ("max", "min", "logaddexp"):
            return None
        a, b = node.args
        x, y = (self.ranges(n) if node.op != "min" else -self.ranges(n) for n in node.args)
        if x.undefined or y.undefined:
            return None
        if node.op == "logaddexp":
            return b if x.hi == -INF else a if y.hi == -INF else None
        return b if x.hi <= y.lo else a if y.hi <= x.lo else None

    def _apply(self, node: Apply, args: list[Rat]) -> Rat | None:
        a = args[0]
        match node.op:
            case "add" | "sub":
                return rat_add(a, args[1], self.squares, 1 if node.op == "add" else -1)
            case "neg":
                return Rat(scaled(a.num, -1), a.den)
            case "mul":
                return rat_mul(a, args[1], self.squares)
            case "square":
                return rat_mul(a, a, self.squares)
            case "div":
                below = self.inverse(args[1], self.ranges(node.args[1]))
                return None if below is None else rat_mul(a, below, self.squares)
            case "pow":
                return self._power(node, a, args[1])
            case "like" | "only" | "stop_gradient":
                return a
            case "where":
                return self._where(node, args)
            case "not":
                return rat_add(rat(1), a, self.squares, -1)
            case "and":
                return rat_mul(a, args[1], self.squares)
            case "or":
                both = rat_mul(a, args[1], self.squares)
                return rat_add(rat_add(a, args[1], self.squares), both, self.squares, -1)
            case "max" | "min":
                return self._extremum(node, a, args[1])
            case op if op in COMPARISONS:
                return self._truth(node)
            case _:
                return self._function(node, a, args)

    def inverse(self, a: Rat, known: Interval) -> Rat | None:
        """`1 / a`, where `a` is known not to be zero."""
        if not known.nonzero or not known.real or not a.num:
            return None
        sign = 1 if known.positive else -1
        factors: dict[Frozen, int] = {}
        rest = dict(scaled(a.num, sign))
        common: dict[int, int] = dict(content(rest))
        for i, n in sorted(common.items()):
            box = self.atoms[i].box
            if box.nonzero:
                side = 1 if box.positive else -1
                factors[((((i, 1),), side),)] = n
                rest = {_without(m, i, n): c * side**n for m, c in rest.items()}
        size = abs(next(iter(sorted(rest.items())))[1])
        rest = {m: slim(Fraction(c) / size) for m, c in rest.items()}
        if rest != constant(1):
            factors[freeze(rest)] = factors.get(freeze(rest), 0) + 1
        return cancel(scaled(product(a.den, self.squares), Fraction(sign) / size), factors)

    def _power(self, node: Apply, a: Rat, exponent: Rat) -> Rat | None:
        n = exponent.value
        if n is None:
            return self._named(node, ("pow", a.key(), exponent.key()))
        if n.denominator == 1 and 0 <= n <= 8:
            result = rat(1)
            for _ in range(int(n)):
                result = rat_mul(result, a, self.squares)
            return result
        if n.denominator == 1 and -4 <= n < 0:
            below = self.inverse(a, self.ranges(node.args[0]))
            if below is None:
                return None
            result = below
            for _ in range(int(-n) - 1):
                result = rat_mul(result, below, self.squares)
            return result
        if abs(n) == HALF:
            return self._root(node.args[0], a, n < 0)
        return self._named(node, ("pow", a.key(), exponent.key()))

    def _root(self, arg: Expr, a: Rat, inverse: bool) -> Rat | None:
        known = self.ranges(arg)
        if not known.real or known.lo < 0 or (inverse and not known.positive):
            return None
        inside = mul(a.num, product(a.den, self.squares), self.squares)
        box = POSITIVE if known.positive else NONNEGATIVE
        plain = None if a.den else self.graph.apply("sqrt", arg)
        dims = self.dims(inside)
        sides: tuple[Side, ...] = ()
        if plain is not None:
            box = self.ranges(plain)
            limit = self._forms.get(self.ranges.hints[plain]) if plain in self.ranges.hints else None
            sides = () if limit is None else (Side(limit, -1),)
        root = self._var(self.atom(("sqrt", freeze(inside)), lambda: Atom(box, dims, plain, inside, sides)))
        if root is None:
            return None
        result = Rat(root.num, a.den)
        if not inverse:
            return result
        return self.inverse(result, POSITIVE)

    def dims(self, p: Poly) -> frozenset[str]:
        return frozenset(d for i in atoms(p) for d in self.atoms[i].dims)

    def _where(self, node: Apply, args: list[Rat]) -> Rat | None:
        choice = self.ranges(node.args[0])
        if choice.positive:
            return args[1]
        if choice.hi <= 0:
            return args[2]
        yes = rat_mul(args[0], args[1], self.squares)
        no = rat_mul(rat_add(rat(1), args[0], self.squares, -1), args[2], self.squares)
        return rat_add(yes, no, self.squares)

    def _truth(self, node: Expr) -> Rat | None:
        """A truth value is its own square."""
        known = self.ranges(node)
        if known.point and isinstance(known.lo, Fraction):
            return rat(known.lo)
        index = self.atom(node, lambda: Atom(UNIT, frozenset(node.dims), node))
        if index is not None:
            self.atoms[index].square = variable(index)
        return self._var(index)

    def _extremum(self, node: Apply, a: Rat, b: Rat) -> Rat | None:
        sign = 1 if node.op == "max" else -1
        key = (node.op, *sorted((a.key(), b.key())))
        return self._named(node, key, sides=(Side(a, sign), Side(b, sign)), cases=(a, b))

    def _function(self, node: Apply, a: Rat, args: list[Rat]) -> Rat | None:
        arg = node.args[0]
        known = self.ranges(arg)
        match node.op:
            case "sqrt" | "rsqrt":
                return self._root(arg, a, node.op == "rsqrt")
            case "abs":
                return self._abs(a, known)
            case "relu":
                if known.lo >= 0:
                    return a
                zero = rat(0)
                key = ("max", *sorted((a.key(), zero.key())))
                return self._named(node, key, sides=(Side(a, 1), Side(zero, 1)), cases=(a, zero))
            case "exp":
                return self._named(node, ("exp", a.key()))
            case "expm1":
                grown = self._call("exp", arg, a)
                return None if grown is None else rat_add(grown, rat(1), self.squares, -1)
            case "sigmoid":
                return self._sigmoid(a, arg)
            case "silu":
                gate = self._sigmoid(a, arg)
                return None if gate is None else rat_mul(a, gate, self.squares)
            case "softplus":
                return self._named(node, ("softplus", a.key()), sides=(Side(a, 1, True),))
            case "logsigmoid":
                return self._named(node, ("logsigmoid", a.key()), sides=(Side(a, -1, True),))
            case "logaddexp":
                sides = (Side(a, 1, True), Side(args[1], 1, True))
                return self._named(node, ("logaddexp", *sorted((a.key(), args[1].key()))), sides=sides)
            case "tanh" | "erf" | "sin":
                odd, sign = self._turned(a, arg)
                square = None
                if node.op == "sin":
                    cosine = self._call("cos", odd[1], odd[0])
                    if cosine is not None:
                        square = rat_add(rat(1), rat_mul(cosine, cosine, self.squares), self.squares, -1).num
                image = self._call(node.op, odd[1], odd[0], square)
                return None if image is None else Rat(scaled(image.num, sign))
            case "cos":
                (even, turned), _ = self._turned(a, arg)
                return self._call("cos", turned, even)
            case _:
                return self._named(node, (node.op, *(f.key() for f in args)))

    def _turned(self, a: Rat, arg: Expr) -> tuple[tuple[Rat, Expr], int]:
        """The form or its negative, whichever has a positive first coefficient, its node, and the sign taken out."""
        if a.num and min(a.num.items())[1] < 0:
            return (Rat(scaled(a.num, -1), a.den), self.graph.apply("neg", arg)), -1
        return (a, arg), 1

    def _sigmoid(self, a: Rat, arg: Expr) -> Rat | None:
        """`sigmoid(-u)` is `1 - sigmoid(u)`."""
        (form, turned), sign = self._turned(a, arg)
        gate = self._call("sigmoid", turned, form)
        if gate is None or sign > 0:
            return gate
        return rat_add(rat(1), gate, self.squares, -1)

    def _abs(self, a: Rat, known: Interval) -> Rat | None:
        if known.lo >= 0:
            return a
        if known.hi <= 0:
            return Rat(scaled(a.num, -1), a.den)
        lead = min(a.num.items())[1]
        top = Rat(scaled(a.num, 1 / Fraction(lead)))
        lead = abs(lead)
        box = NONNEGATIVE if a.den else abs(known) * point(1 / Fraction(lead))
        square = power(top.num, 2, self.squares)
        sides = (Side(top, 1), Side(Rat(scaled(top.num, -1)), 1))
        dims = self.dims(top.num)
        size = self.atom(("abs", top.key()), lambda: Atom(box, dims, None, square, sides))
        return None if size is None else Rat({((size, 1),): lead}, a.den)

    # --- reductions -------------------------------------------------------------------------------------------------

    def _reduce(self, node: Reduce, arg: Rat) -> Rat | None:
        match node.op:
            case "sum":
                return self._sum(node.over, arg, node)
            case "mean":
                total = self._sum(node.over, arg, None)
                for d in node.over:
                    size = self._plain(self.graph.ref("size", d))
                    below = None if size is None else self.inverse(size, Interval(ONE, POSITIVE.hi, False, True))
                    if total is None or below is None:
                        return None
                    total = rat_mul(total, below, self.squares)
                return total
            case "max" | "logsumexp":
                return self._named(node, node, sides=(Side(arg, 1),))
            case _:
                return self._named(node, node, sides=(Side(arg, -1),))

    def _sum(self, over: tuple[str, ...], arg: Rat, node: Reduce | None) -> Rat | None:
        """A sum with what does not vary along it taken out of it."""
        bound = frozenset(over)
        if any(self.dims(dict(f)) & bound for f, _ in arg.den) or len(arg.num) > 6 or self._splitting > 4:
            return None
        total = rat(0)
        for mono, c in sorted(arg.num.items()):
            outside = tuple((i, e) for i, e in mono if not self.atoms[i].dims & bound)
            inside = tuple((i, e) for i, e in mono if self.atoms[i].dims & bound)
            term = self._sum_of(over, inside, node)
            if term is None:
                return None
            total = rat_add(total, rat_mul(term, Rat({outside: c}), self.squares), self.squares)
        return Rat(mul(total.num, constant(1)), arg.den) if not total.den else None

    def _sum_of(self, over: tuple[str, ...], mono: Mono, node: Reduce | None) -> Rat | None:
        """The sum of a product of atoms."""
        product_node = self._node(mono)
        if product_node is None and mono:
            return None
        if product_node is None:
            result = rat(1)
            for d in over:
                size = self._plain(self.graph.ref("size", d))
                if size is None:
                    return None
                result = rat_mul(result, size, self.squares)
            return result
        summed = self.graph.reduce("sum", over, product_node)

        def make() -> Atom:
            self._splitting += 1
            box = self.ranges(summed)
            each = self.ranges(product_node)
            self._splitting -= 1
            sides = (Side(Rat({mono: 1}), 1),) if each.lo >= 0 else ()
            return Atom(box, frozenset(summed.dims), summed, sides=sides)

        return self._var(self.atom(("sum", over, mono), make))

    def _node(self, mono: Mono) -> Expr | None:
        """A product of atoms as an expression; None where an atom has none, or there is none."""
        result: Expr | None = None
        for i, e in mono:
            factor = self.atoms[i].node
            if factor is None:
                return None
            for power_ in [self.graph.apply("square", factor)] * (e // 2) + [factor] * (e % 2):
                result = power_ if result is None else self.graph.apply("mul", result, power_)
        return result

    def expression(self, p: Poly) -> Expr | None:
        """A polynomial as an expression; None where an atom has none, or a coefficient is no short number."""
        result: Expr | None = None
        for mono, c in sorted(p.items()):
            if Fraction(repr(float(c))) != c:
                return None
            term: Expr | None = self.graph.lit(float(c))
            if mono:
                factor = self._node(mono)
                if factor is None:
                    return None
                term = factor if c == 1 else self.graph.apply("mul", term, factor)
            result = term if result is None else self.graph.apply("add", result, term)
        return self.graph.lit(0) if result is None else result


def _without(mono: Mono, atom: int, n: int) -> Mono:
    return tuple((a, e - n if a == atom else e) for a, e in mono if a != atom or e > n)
