"""Expressions of the IR as Triton code over tiles.

A value has some of the axes `t` (tokens in a row), `s` (stretches of such tokens), `n` (the inner dims, flattened) and
`c` (channels), in this order; what lacks an axis is broadcast where it meets one that has it. A complex value is a pair
of real tiles.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from rnnc.ir import Apply, Expr, Lit, Reduce, Ref, walk
from rnnc.plan import is_number

from ..torch.block import NameTable

AXES = "tsnc"
_COMPARE, _BITOR, _BITAND, _SUM, _PRODUCT, _SIGN, _ATOM = range(7)
_INFIX: Mapping[str, tuple[str, int]] = {
    "add": ("+", _SUM),
    "sub": ("-", _SUM),
    "mul": ("*", _PRODUCT),
    "div": ("/", _PRODUCT),
    "eq": ("==", _COMPARE),
    "ne": ("!=", _COMPARE),
    "lt": ("<", _COMPARE),
    "le": ("<=", _COMPARE),
    "gt": (">", _COMPARE),
    "ge": (">=", _COMPARE),
    "and": ("&", _BITAND),
    "or": ("|", _BITOR),
}
_CALLS: Mapping[str, str] = {
    **{op: f"tl.{op}" for op in ("log", "sin", "cos", "erf", "abs", "sqrt")},
    **{
        op: f"_tl_{op}" for op in ("exp", "sigmoid", "logsigmoid", "softplus", "tanh", "log1p", "expm1", "silu", "gelu")
    },
    **{op: f"_tl_{op}" for op in ("relu", "sign", "logaddexp", "pow")},
    "max": "_tl_maximum",
    "min": "_tl_minimum",
}
_COMPLEX_CALLS = frozenset({"exp", "log", "sqrt", "rsqrt", "sin", "cos", "tanh"})
WIDTH = 76


@dataclass(frozen=True)
class Tile:
    """Code of a value: one part, or the real and the imaginary one; how strongly the parts bind, and the axes."""

    parts: tuple[str, ...]
    axes: str = ""
    binds: int = _ATOM


class Tiles:
    """Collects lines that compute nodes. `values` holds those that have a name; `number` is the code of a scalar.

    `sizes` is the number of inner entries, by which a sum of what lacks that axis is multiplied.
    """

    def __init__(
        self,
        names: NameTable,
        hints: Mapping[Expr, str],
        number: Callable[[Expr], tuple[str, ...]],
        inner_size: str,
    ) -> None:
        self.names, self.hints, self.number, self.inner_size = names, hints, number, inner_size
        self.values: dict[Expr, Tile] = {}
        self.lines: list[str] = []
        self.uses: Counter[Expr] = Counter()
        self.counted: set[Expr] = set()
        self.functions: set[str] = set()
        self.built: dict[Expr, Tile] = {}
        self.named = 0
        self.scalars = {"0.0"}

    def expect(self, *roots: Expr) -> None:
        """Count uses below `roots`, so that what is used twice gets a name."""
        stack = list(roots)
        self.uses.update(roots)
        while stack:
            node = stack.pop()
            if node not in self.counted and node not in self.values:
                self.counted.add(node)
                self.uses.update(node.children)
                stack.extend(node.children)

    def take(self) -> list[str]:
        """The lines so far; the names stay."""
        lines, self.lines = self.lines, []
        return lines

    # --- values ---

    def tile(self, root: Expr) -> Tile:
        """Code of a node; makes the lines that it needs."""
        if root in self.values:
            return self.values[root]
        if self._known() and root in self.built:
            return self.built[root]
        for node in self._below(root):
            if node in self.values or is_number(node) or not self._named(node):
                continue
            self.name(node)
        found = self._get(root)
        self._known()
        if root not in self.values:
            self.built[root] = found
        return found

    def _known(self) -> bool:
        """Whether what was built is still what would be: nothing has got a name since."""
        if len(self.values) != self.named:
            self.built.clear()
            self.named = len(self.values)
            return False
        return True

    def _below(self, root: Expr) -> list[Expr]:
        """The nodes that are not there yet, operands first."""
        out: list[Expr] = []
        seen: set[Expr] = set()
        stack: list[tuple[Expr, bool]] = [(root, False)]
        while stack:
            node, ready = stack.pop()
            if ready:
                out.append(node)
            elif node not in seen and node not in self.values and not is_number(node):
                seen.add(node)
                stack.append((node, True))
                stack.extend((c, False) for c in reversed(node.children))
        return out

    def _named(self, node: Expr) -> bool:
        if isinstance(node, Ref):
            raise AssertionError(f"no tile for {node.name}")
        if node in self.hints or (self.uses[node] > 1 and not self._short(node)):
            return True
        if node.kind == "complex":
            # Both parts of an operand are used more than once by all but sums.
            return not (isinstance(node, Apply) and node.op in ("add", "sub", "neg"))
        return len(self.build(node).parts[0]) > WIDTH

    def _short(self, node: Expr) -> bool:
        """Whether a node is as clear as a name of it: one operation with one value that has a name, like `1 - z`."""
        there = [c for c in node.children if not is_number(c)]
        short = isinstance(node, Apply) and node.op in ("add", "sub", "neg") and node.kind == "real"
        return short and len(there) == 1 and there[0] in self.values and there[0].kind == "real"

    def _suggested(self, node: Expr) -> str:
        """A name for a node that has none in the program: what it is of named values."""
        held = [self.values[c].parts[0] if c in self.values else "" for c in node.children]
        if not isinstance(node, Apply) or node.kind == "complex" or not all(held):
            return "value"
        words = {"add": "plus", "sub": "minus", "mul": "times", "div": "over"}
        text = f"_{words[node.op]}_".join(held) if node.op in words else "_".join([node.op, *held])
        return text if len(text) <= 24 and all(n.isidentifier() for n in held) else "value"

    def name(self, node: Expr, wanted: str | None = None) -> Tile:
        """The variable that holds a node."""
        if node in self.values:
            return self.values[node]
        tile = self.tile(node) if not self._named(node) else self.build(node)
        if node in self.values:
            return self.values[node]
        name = wanted or self.hints.get(node) or self._suggested(node)
        self.values[node] = self.assign(name, tile)
        return self.values[node]

    def variables(self, wanted: str, parts: int, axes: str) -> Tile:
        """New names for a tile."""
        wants = (wanted,) if parts == 1 else (f"{wanted}_re", f"{wanted}_im")
        return Tile(tuple(self.names.new(w) for w in wants), axes)

    def assign(self, wanted: str, tile: Tile) -> Tile:
        """New variables that hold a tile."""
        made = self.variables(wanted, len(tile.parts), tile.axes)
        if tile.parts[-1]:
            self.lines.extend(f"{n} = {p}" for n, p in zip(made.parts, tile.parts, strict=True))
        else:
            self.lines.append(f"{', '.join(made.parts)} = {tile.parts[0]}")
        return made

    def held(self, wanted: str, tile: Tile) -> Tile:
        """A tile of variables: new ones if it is none yet."""
        return tile if all(p.isidentifier() for p in tile.parts) else self.assign(wanted, tile)

    def _get(self, node: Expr) -> Tile:
        return self.values[node] if node in self.values else self.build(node)

    def aligned(self, node: Expr, axes: str, binds: int = 0, arithmetic: bool = True) -> tuple[str, ...]:
        """The parts of a node as operands of something with `axes`, binding at least as strongly as asked.

        A boolean becomes a number in arithmetic.
        """
        tile = self.tile(node)
        if arithmetic and node.kind == "bool" and not is_number(node):
            tile = Tile(tuple(f"{_atom(p, tile.binds)}.to(DTYPE)" for p in tile.parts), tile.axes)
        if not arithmetic and node.kind == "bool" and is_number(node) and folded(node) is None:
            # The host hands on all numbers as floating-point ones.
            tile = Tile((f"{tile.parts[0]} != 0",), "", _COMPARE)
        return tuple(align(p, tile, axes, binds) for p in tile.parts)

    def pair(self, node: Expr, axes: str, binds: int = _ATOM) -> tuple[str, str]:
        """The real and imaginary parts of a node that may be real."""
        parts = self.aligned(node, axes, binds)
        return (parts[0], parts[1]) if len(parts) == 2 else (parts[0], "0.0")

    def scalar(self, part: str) -> bool:
        """Whether a part of a value is that of a number."""
        return part.strip("-()") in self.scalars

    def _spread(self, part: str, own: str, axes: str) -> str:
        """One part of a value, that has the axes `own`, as a tile with all of the value's."""
        if self.scalar(part):
            return f"tl.full({shape(axes)}, {part}, DTYPE)"
        return part if own == axes else f"tl.broadcast_to({part}, {shape(axes)})"

    def axes(self, nodes: Iterable[Expr]) -> str:
        found = {a for n in nodes for a in self.tile(n).axes}
        return "".join(a for a in AXES if a in found)

    def build(self, node: Expr) -> Tile:
        """Code of one node over its operands."""
        if is_number(node):
            parts = self.number(node)
            self.scalars.update(p.strip("-") for p in parts)
            return Tile(parts, "", _SIGN if any(p.startswith("-") for p in parts) else _ATOM)
        match node:
            case Apply() if node.kind == "complex" or any(a.kind == "complex" for a in node.args):
                return self._complex(node)
            case Apply():
                return self._real(node)
            case Reduce(arg=arg):
                return self._sum(arg)
            case _:
                raise TypeError(f"no tile for {type(node).__name__}")

    def _sum(self, arg: Expr) -> Tile:
        tile = self.tile(arg)
        if "n" not in tile.axes:
            return Tile(tuple(f"{self.inner_size} * {_atom(p, tile.binds)}" for p in tile.parts), tile.axes, _PRODUCT)
        axes = tile.axes
        parts = self.aligned(arg, axes)
        mask = f"real_inner[{', '.join(':' if a == 'n' else 'None' for a in axes)}]" if axes != "n" else "real_inner"
        sums = tuple(f"tl.sum(tl.where({mask}, {p}, 0.0), {axes.index('n')})" for p in parts)
        return Tile(sums, axes.replace("n", ""))

    # --- real numbers ---

    def _real(self, node: Apply) -> Tile:
        op, args = node.op, node.args
        if op == "like" or op == "only" or op in ("stop_gradient", "real", "conj"):
            return self.tile(args[0])
        axes = self.axes(args)
        if op == "imag":
            return Tile(("0.0",))
        if op in ("and", "or", "not"):
            parts = [self.aligned(a, axes, _ATOM, arithmetic=False)[0] for a in args]
            return Tile((f"~{parts[0]}",), axes, _SIGN) if op == "not" else self._join(op, parts, axes)
        if op in _INFIX:
            binds = _INFIX[op][1]
            compared = binds == _COMPARE
            left, right = (self.aligned(a, axes, binds + n)[0] for a, n in zip(args, (compared, 1), strict=True))
            parts = [self._compared(left, args[0]), self._compared(right, args[1])] if compared else [left, right]
            return self._join(op, parts, axes)
        if op == "neg" and isinstance(args[0], Apply) and args[0].op == "neg" and args[0] not in self.values:
            return self.tile(args[0].args[0])
        if op == "neg":
            return Tile((f"-{self.aligned(args[0], axes, _ATOM)[0]}",), axes, _SIGN)
        if op == "square":
            value = self.name(args[0]) if not is_number(args[0]) and args[0].kind != "bool" else self.tile(args[0])
            part = align(value.parts[0], value, axes, _ATOM)
            return Tile((f"{part} * {part}",), axes, _PRODUCT)
        if op == "rsqrt":
            return Tile((f"1.0 / tl.sqrt({self.aligned(args[0], axes)[0]})",), axes, _PRODUCT)
        if op == "where":
            return Tile((self._where(node, axes, lambda n: self.aligned(n, axes, 0, node.kind != "bool")[0]),), axes)
        if op == "pow" and (text := self._power(args[0], folded(args[1]), axes)):
            return Tile((text,), axes, _PRODUCT)
        # A Python number as an argument would be taken for one of float32.
        parts = [
            f"tl.full({shape(axes)}, {self.tile(a).parts[0]}, DTYPE)" if is_number(a) else self.aligned(a, axes)[0]
            for a in args
        ]
        return Tile((self.call(_CALLS[op], *parts),), axes)

    def _power(self, base: Expr, exponent: object, axes: str) -> str | None:
        """Powers that are cheaper than the general one."""
        if is_number(base) or exponent not in (1, 2, 3, 0.5, -0.5, -1):
            return None
        if base.kind == "real" and exponent in (2, 3):
            self.name(base)
        (part,) = self.aligned(base, axes, _ATOM)
        for n in (1, 2, 3):
            if exponent == n:
                return " * ".join([part] * n)
        root = part if exponent == -1 else f"tl.sqrt({part})"
        return root if exponent == 0.5 else f"1.0 / {root}"

    def _compared(self, part: str, node: Expr) -> str:
        """An operand of a comparison, where a Python number would be taken for one of float32."""
        value = folded(node) if is_number(node) and node.kind != "bool" else 0
        exact = isinstance(value, int | float) and abs(value) < 2**16 and float(256 * value).is_integer()
        return part if exact else f"tl.full((), {part}, DTYPE)"

    def _join(self, op: str, parts: list[str], axes: str) -> Tile:
        return Tile((f"{parts[0]} {_INFIX[op][0]} {parts[1]}",), axes, _INFIX[op][1])

    def _where(self, node: Apply, axes: str, part: Callable[[Expr], str]) -> str:
        condition, yes, no = node.args
        texts = [part(yes), part(no)]
        if node.kind != "bool" and all(self.scalar(x) for x in texts):
            # Two Python numbers would be chosen between in float32.
            texts[0] = f"tl.full((), {texts[0]}, DTYPE)"
        return f"tl.where({self.aligned(condition, axes, 0, arithmetic=False)[0]}, {', '.join(texts)})"

    def call(self, function: str, *args: str) -> str:
        if function.startswith("_"):
            self.functions.add(function)
        return f"{function}({', '.join(args)})"

    # --- complex numbers ---

    def _complex(self, node: Apply) -> Tile:
        op, args = node.op, node.args
        if op in ("stop_gradient", "only", "like"):
            return self.tile(args[0])
        if op in ("real", "imag"):
            tile = self.tile(args[0])
            return Tile((tile.parts[0 if op == "real" else 1],), tile.axes, tile.binds)
        axes = self.axes(args)
        match op:
            case "conj":
                re, im = self.pair(args[0], axes, 0)[0], self.pair(args[0], axes, _PRODUCT)[1]
                # Not `-im`, which Triton computes as 0 - im: the sign of a zero chooses the side of a branch cut.
                return Tile((re, f"{im} * -1.0"), axes, min(_PRODUCT, self.tile(args[0]).binds))
            case "neg":
                return Tile(tuple(f"-{p}" for p in self.pair(args[0], axes)), axes, _SIGN)
            case "add" | "sub":
                left, right = self.pair(args[0], axes, _SUM), self.pair(args[1], axes, _SUM + 1)
                found = [self.tile(x).axes for x in args]
                # A part may be that of one operand alone.
                alone = (found[x == "0.0"] if "0.0" in (x, y) else axes for x, y in zip(left, right, strict=True))
                sums = tuple(
                    self._spread(_sum(op, x, y), own, axes) for x, y, own in zip(left, right, alone, strict=True)
                )
                return Tile(sums, axes, _SUM)
            case "mul" | "div" if args[1].kind != "complex":
                (by,) = self.aligned(args[1], axes, _ATOM)
                sign = _INFIX[op][0]
                return Tile(tuple(f"{p} {sign} {by}" for p in self.pair(args[0], axes, _PRODUCT)), axes, _PRODUCT)
            case "mul" if args[0].kind != "complex":
                (by,) = self.aligned(args[0], axes, _PRODUCT)
                return Tile(tuple(f"{by} * {p}" for p in self.pair(args[1], axes)), axes, _PRODUCT)
            case "mul" | "square":
                (a, b), (c, d) = self.pair(args[0], axes), self.pair(args[-1], axes)
                return Tile((f"{a} * {c} - {b} * {d}", f"{a} * {d} + {b} * {c}"), axes, _SUM)
            case "eq" | "ne":
                (a, b), (c, d) = ([self._compared(p, n) for p in self.pair(n, axes, _SUM)] for n in args)
                sign, join = ("==", "&") if op == "eq" else ("!=", "|")
                return Tile((f"({a} {sign} {c}) {join} ({b} {sign} {d})",), axes, _BITAND if op == "eq" else _BITOR)
            case "where":
                own = self.axes([args[0], *(x for x in args[1:] if x.kind == "complex")])
                first = self._where(node, axes, lambda n: self.pair(n, axes, 0)[0])
                second = self._where(node, axes, lambda n: self.pair(n, axes, 0)[1])
                return Tile((first, self._spread(second, own, axes)), axes)
            case "abs":
                return Tile((self.call("_tl_complex_abs", *self.pair(args[0], axes)),), axes)
            case "div" | "pow":
                call = self.call(f"_tl_complex_{op}", *self.full(args[0], axes), *self.full(args[1], axes))
                return Tile((call, ""), axes)
            case _ if op in _COMPLEX_CALLS:
                return Tile((self.call(f"_tl_complex_{op}", *self.full(args[0], axes)), ""), axes)
            case _:
                raise TypeError(f"no complex {op}")

    def full(self, node: Expr, axes: str) -> tuple[str, str]:
        """Both parts as tiles of the same axes, for a function."""
        re, im = self.pair(node, axes, 0)
        if is_number(node):
            re, im = f"tl.full({shape(axes)}, {re}, DTYPE)", f"tl.full({shape(axes)}, {im}, DTYPE)"
        elif node.kind != "complex":
            im = f"tl.zeros_like({re})"
        return re, im


def _sum(op: str, x: str, y: str) -> str:
    if y == "0.0":
        return x
    if x == "0.0":
        return y if op == "add" else f"-{y}" if y.replace("_", "").isalnum() else f"-({y})"
    return f"{x} {_INFIX[op][0]} {y}"


def _atom(text: str, binds: int) -> str:
    return text if binds == _ATOM else f"({text})"


def align(text: str, tile: Tile, axes: str, binds: int = 0) -> str:
    """One part of a tile with the axes that it lacks added."""
    if not tile.axes or tile.axes == axes:
        return text if tile.binds >= binds else f"({text})"
    missing = set(axes) - set(tile.axes)
    if not missing:
        return text if tile.binds >= binds else f"({text})"
    index = ", ".join(":" if a in tile.axes else "None" for a in axes)
    return f"{_atom(text, tile.binds)}[{index}]"


def shape(axes: str) -> str:
    """The shape of a tile with these axes."""
    sizes = [{"t": "BT", "s": "BS", "n": "BN", "c": "BC"}[a] for a in axes]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def literal(value: bool | int | float | complex) -> tuple[str, ...]:
    """A literal of the language as its parts."""
    if isinstance(value, complex):
        return (*literal(value.real), *literal(value.imag))
    if isinstance(value, float) and math.isinf(value):
        return ('float("inf")',) if value > 0 else ('-float("inf")',)
    return (repr(value),)


def folded(node: Expr) -> bool | int | float | complex | None:
    """The value of a number that is literals, added, subtracted or multiplied; else None."""
    match node:
        case Lit(value=value):
            return value
        case Apply(op="neg", args=(x,)):
            value = folded(x)
            return None if value is None else -value
        case Apply(op="conj", args=(x,)):
            value = folded(x)
            return value.conjugate() if isinstance(value, complex) else value
        case Apply(op="add" | "sub" | "mul" as op, args=(x, y)):
            left, right = folded(x), folded(y)
            if left is None or right is None:
                return None
            return left + right if op == "add" else left - right if op == "sub" else left * right
        case _:
            return None


def numbers(roots: Iterable[Expr]) -> list[Expr]:
    """The scalars that the host must compute, where something that is none uses them."""
    found: dict[Expr, None] = {}
    roots = list(roots)
    for node in walk(*roots):
        if not is_number(node):
            found.update((c, None) for c in node.children if is_number(c))
    found.update((r, None) for r in roots if is_number(r))
    return [n for n in found if folded(n) is None]
