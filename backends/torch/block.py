"""Expressions of the IR as PyTorch code.

Every value has any number of leading axes (batch and time, batch alone, or none for what only parameters decide) and
then its named dims in the node's order; code aligns operands from the right, so the same text serves all three.
"""

from __future__ import annotations

import keyword
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from string import ascii_lowercase

from rnnc.ir import Apply, Conv, Draw, Expr, Linear, Lit, Merge, Normalize, Reduce, Ref, Rename, Solve, Split, walk
from rnnc.plan import Projection, is_number, per_token

WIDTH = 100

# Binding strength of Python operators, weakest first.
_TERNARY, _OR, _AND, _COMPARE, _BITOR, _BITAND, SUM, _PRODUCT, _SIGN, _POWER, ATOM = range(11)

_INFIX: Mapping[str, tuple[str, int]] = {
    "add": ("+", SUM),
    "sub": ("-", SUM),
    "mul": ("*", _PRODUCT),
    "div": ("/", _PRODUCT),
    "pow": ("**", _POWER),
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
    **{op: f"torch.{op}" for op in ("sign", "rsqrt", "square", "exp", "log", "log1p", "expm1", "sin", "cos", "erf")},
    **{op: f"torch.{op}" for op in ("sigmoid", "tanh", "relu", "abs")},
    **{op: f"F.{op}" for op in ("logsigmoid", "silu", "gelu")},
    "sqrt": "_sqrt",
    "max": "_maximum",
    "min": "_minimum",
    "logaddexp": "_logaddexp",
    "only": "_only",
}
# The same on Python numbers; `{0}`, `{1}` are atoms. Complex ones are left to `cmath`.
_NUMBERS: Mapping[str, str] = {
    **{op: f"math.{op}({{0}})" for op in ("sin", "cos", "tanh", "erf")},
    "exp": "_exp_of({0})",
    "log": "_log_of({0})",
    "log1p": "_log1p_of({0})",
    "expm1": "_expm1_of({0})",
    "sqrt": "_sqrt_of({0})",
    "abs": "abs({0})",
    "max": "max({0}, {1})",
    "min": "min({0}, {1})",
    "square": "({0} * {0})",
    "rsqrt": "_ratio(1.0, _sqrt_of({0}))",
    "sign": "float(({0} > 0) - ({0} < 0))",
    "sigmoid": "(1 / (1 + _exp_of(-{0})))",
    "logsigmoid": "(min({0}, 0.0) - math.log1p(math.exp(-abs({0}))))",
    "softplus": "(max({0}, 0.0) + math.log1p(math.exp(-abs({0}))))",
    "relu": "max({0}, 0.0)",
    "silu": "({0} / (1 + _exp_of(-{0})))",
    "gelu": "(0.5 * {0} * (1 + math.erf({0} * math.sqrt(0.5))))",
    "logaddexp": "(max({0}, {1}) + math.log1p(math.exp(-abs({0} - {1}))))",
    "real": "{0}.real",
    "imag": "{0}.imag",
    "conj": "{0}.conjugate()",
    "stop_gradient": "{0}",
    "like": "{0}",
    "only": "{0}",
    "where": "({1} if {0} else {2})",
    "and": "({0} and {1})",
    "or": "({0} or {1})",
    "not": "(not {0})",
}
_COMPLEX_NUMBERS = {op: f"cmath.{op}({{0}})" for op in ("exp", "log", "sin", "cos", "tanh", "sqrt")}


class NameTable:
    """Distinct Python names: what the program wrote where it can, with a suffix where it cannot."""

    def __init__(self, reserved: Iterable[str]) -> None:
        self.taken = set(reserved)

    def new(self, wanted: str) -> str:
        name, n = wanted, 1
        while name in self.taken or keyword.iskeyword(name):
            name = f"{wanted}_{n}" if n > 1 else f"{wanted}_"
            n += 1
        self.taken.add(name)
        return name

    def stem(self, wanted: str, parameters: Iterable[str]) -> tuple[str, set[str]]:
        """A new name whose `parameters`, patterns of it, are new names as well; and these."""
        patterns = list(parameters)
        while True:
            name = self.new(wanted)
            made = {p.format(name) for p in patterns}
            if not made & self.taken:
                self.taken |= made
                return name, made


class Block:
    """Collects lines of code for nodes of one graph.

    `leaf` gives the code of a reference; `size` that of a dim's size. Nodes in `variables` are there under a name.
    """

    def __init__(
        self,
        names: NameTable,
        leaf: Callable[[Ref], str],
        size: Callable[[str], str],
        hints: Mapping[Expr, str],
        projections: Mapping[Expr, Projection],
        weight: Callable[[str], str],
        packed: Callable[[Projection], str],
        conv: Callable[[Conv, str], str],
        dtype: str,
        draw: Callable[[Draw], str] | None = None,
    ) -> None:
        self.names, self.leaf, self.size, self.hints = names, leaf, size, hints
        self.projections, self.weight, self.packed, self.conv, self.dtype = projections, weight, packed, conv, dtype
        self._draw = draw
        self.lines: list[str] = []
        self.variables: dict[Expr, str] = {}
        self.uses: Counter[Expr] = Counter()
        self.counted: set[Expr] = set()
        self.helpers: set[str] = set()

    # --- what will be needed ---

    def expect(self, *roots: Expr) -> None:
        """Count uses below `roots`, so that what is used twice gets a name."""
        stack = list(roots)
        for r in roots:
            self.uses[r] += 1
        while stack:
            node = stack.pop()
            if node in self.counted or node in self.variables:
                continue
            self.counted.add(node)
            for child in node.children:
                self.uses[child] += 1
                stack.append(child)

    # --- making code ---

    def variable(self, node: Expr, wanted: str | None = None) -> str:
        """The name that holds a node; makes the line if there is none yet."""
        self.prepare(node)
        if node in self.projections and node not in self.variables:
            self._project(self.projections[node])
        if node in self.variables:
            return self.variables[node]
        text, strength = self.build(node)
        if isinstance(node, Ref) and strength == ATOM and text.isidentifier():
            self.variables[node] = text
            return text
        name = self.names.new(wanted or self.hints.get(node) or "value")
        self.assign(name, text)
        self.variables[node] = name
        return name

    def assign(self, name: str, text: str) -> None:
        self.lines.append(f"{name} = {text}")

    def code(self, node: Expr) -> str:
        """Code of a node as an argument."""
        self.prepare(node)
        return self.nested(node)[0]

    def result(self, node: Expr) -> str:
        """Code of an output."""
        return self.variable(node) if node in self.hints or self.uses[node] > 1 else self.aligned_code(node, node.dims)

    def aligned_code(self, node: Expr, dims: tuple[str, ...]) -> str:
        """Code of a node that broadcasts to `dims`, which must hold its own. A boolean stays one."""
        self.prepare(node)
        if (node in self.hints or self.uses[node] > 1 or node in self.projections) and not is_number(node):
            self.variable(node)
        return self.aligned(node, dims)[0]

    def prepare(self, root: Expr) -> None:
        """Lines for all that must have a name below `root`, operands first."""
        stack = [(root, False)]
        done: set[Expr] = set()
        while stack:
            node, ready = stack.pop()
            if node in self.variables or is_number(node):
                continue
            if ready:
                if node is not root and self._named(node):
                    self.variable(node)
                continue
            if node in done:
                continue
            done.add(node)
            stack.append((node, True))
            stack.extend((c, False) for c in reversed(self._below(node)))

    def _below(self, node: Expr) -> tuple[Expr, ...]:
        if node in self.projections:
            return tuple(m.arg for m in self.projections[node].maps)[:1]
        if isinstance(node, Reduce) and node.op == "sum":
            return tuple(self._factors(node)) or node.children
        return node.children

    def _named(self, node: Expr) -> bool:
        if isinstance(node, Ref | Lit):
            return False
        return node in self.hints or self.uses[node] > 1 or node in self.projections or self._long(node)

    def _long(self, node: Expr) -> bool:
        return len(self.build(node)[0]) > WIDTH - 30

    def nested(self, node: Expr) -> tuple[str, int]:
        return (self.variables[node], ATOM) if node in self.variables else self.build(node)

    def build(self, node: Expr) -> tuple[str, int]:
        """Code of one node over its operands, and how strongly it binds."""
        if is_number(node):
            return self.number(node)
        match node:
            case Ref():
                return self.leaf(node), ATOM
            case Apply():
                return self.apply(node)
            case Reduce():
                return self.reduce(node), _PRODUCT if self._missing(node) else ATOM
            case Normalize():
                axes = self.axes(node.over, node.dims)
                code = self.placed(node.arg, node.dims)
                return self.call(f"_{node.op}", code, axes, *([] if node.op == "softmax" else [repr(node.eps)])), ATOM
            case Rename(arg=arg, old=old, new=new):
                return self.moved(arg, [new if d == old else d for d in arg.dims], node.dims), ATOM
            case Split(arg=arg, dim=dim, into=into):
                axis = arg.dims.index(dim) - len(arg.dims)
                code = f"{self.atom(arg)}.unflatten({axis}, ({', '.join(self.size(d) for d in into)}))"
                have = [e for d in arg.dims for e in (into if d == dim else (d,))]
                return self._permute(code, have, node.dims), ATOM
            case Merge():
                return self.merge(node), ATOM
            case Linear():
                return self.linear(node), ATOM
            case Conv():
                return self._permute(self.conv(node, self.code_of(node.arg)), list(node.arg.dims), node.dims), ATOM
            case Solve():
                return self.solve(node), ATOM
            case Draw():
                return self.draw(node), ATOM
            case _:
                raise TypeError(f"no code for {type(node).__name__}")

    def atom(self, node: Expr, strength: int = ATOM) -> str:
        text, have = self.nested(node)
        return text if have >= strength else f"({text})"

    def call(self, function: str, *args: str) -> str:
        if function.startswith("_"):
            self.helpers.add(function)
        return f"{function}({', '.join(args)})"

    # --- numbers ---

    def number(self, node: Expr) -> tuple[str, int]:
        match node:
            case Lit(value=value):
                return _literal(value)
            case Ref(role="size", name=name):
                return self.size(name), ATOM
            case Ref():
                return self.leaf(node), ATOM
            case Apply(op="div" | "pow" as op, args=(left, right)) if node.kind != "complex" and _may_vanish(node):
                function = "_ratio" if op == "div" else "_power"
                return self.call(function, self.number(left)[0], self.number(right)[0]), ATOM
            case Apply(op=op, args=args) if op in _INFIX and op not in ("and", "or"):
                symbol, strength = _INFIX[op]
                return self._infix(symbol, strength, [self.number(a) for a in args])
            case Apply(op="neg", args=(arg,)):
                text, have = self.number(arg)
                return f"-{text if have >= _SIGN and have != _POWER else f'({text})'}", _SIGN
            case Apply(op="real" | "conj" | "imag" as op, args=(arg,)) if arg.kind != "complex":
                return ("0.0", ATOM) if op == "imag" else self.number(arg)
            case Apply(op=op, args=args):
                parts = [(t if s == ATOM else f"({t})") for t, s in (self.number(a) for a in args)]
                table = (
                    _COMPLEX_NUMBERS if any(a.kind == "complex" for a in args) and op in _COMPLEX_NUMBERS else _NUMBERS
                )
                self.helpers.update(re.findall(r"\b_\w+", table[op]))
                return table[op].format(*parts), ATOM
            case Reduce(arg=arg, over=over, op=op):
                text, have = self.number(arg)
                if op != "sum":
                    return text, have
                return self._infix("*", _PRODUCT, [*((self.size(d), ATOM) for d in over), (text, have)])
            case _:
                return self.number(node.children[0])

    # --- elementwise ---

    def _infix(self, symbol: str, strength: int, parts: list[tuple[str, int]]) -> tuple[str, int]:
        texts: list[str] = []
        for i, (text, have) in enumerate(parts):
            # `**` groups to the right and comparisons do not chain; the rest group to the left.
            strict = (i == 0) if strength == _POWER else (i > 0) or strength == _COMPARE
            signed = i > 0 and strength == _POWER and have == _SIGN
            texts.append(text if signed or have > strength or (have == strength and not strict) else f"({text})")
        if symbol == "**" and all(re.fullmatch(r"-?[\w.]+", t) for t in texts):
            return "**".join(texts), strength
        return f" {symbol} ".join(texts), strength

    def apply(self, node: Apply) -> tuple[str, int]:
        op, args = node.op, node.args
        target = node.dims
        if op in ("real", "imag", "conj"):
            return self._complex_part(op, args[0], target)
        if op == "stop_gradient":
            text, have = self.aligned(args[0], target)
            return f"{text if have == ATOM else f'({text})'}.detach()", ATOM
        if op == "like":
            return self.call("_like", *(self.aligned(a, target)[0] for a in args)), ATOM
        if op in ("add", "sub", "mul", "div", "pow", "neg"):
            parts = [self.aligned(a, target, arithmetic=True) for a in args]
        elif op == "where":
            values = [self.aligned(a, target, arithmetic=node.kind != "bool") for a in args[1:]]
            parts = [self.aligned(args[0], target), *values]
        else:
            parts = [self.aligned(a, target, arithmetic=op in _CALLS and op != "only") for a in args]
        if op in _INFIX:
            return self._infix(*_INFIX[op], parts)
        if op in ("neg", "not"):
            text, have = parts[0]
            bare = have >= _SIGN and have != _POWER
            return f"{'-' if op == 'neg' else '~'}{text if bare else f'({text})'}", _SIGN
        texts = [t for t, _ in parts]
        if op == "where":
            return self._where(node, texts), ATOM
        if op == "softplus":
            inner = parts[0][0] if parts[0][1] >= _SIGN else f"({parts[0][0]})"
            return f"-F.logsigmoid(-{inner})", _SIGN
        return self.call(_CALLS[op], *texts), ATOM

    def code_of(self, node: Expr) -> str:
        return self.nested(node)[0]

    def _where(self, node: Apply, texts: list[str]) -> str:
        condition, yes, no = node.args
        if is_number(condition):
            return self.call("_choose", *texts)
        if is_number(yes) and is_number(no):
            kind = {"bool": "torch.bool", "real": self.dtype}.get(node.kind) or self.call("_complex_of", self.dtype)
            texts[1] = f"torch.full((), {texts[1]}, dtype={kind}, device={self.atom(condition)}.device)"
        return f"torch.where({', '.join(texts)})"

    def _complex_part(self, op: str, arg: Expr, target: tuple[str, ...]) -> tuple[str, int]:
        text = self.aligned(arg, target, arithmetic=True)
        if arg.kind == "complex":
            if op == "conj":
                # Lazily, by a mark on the tensor, it is lost where a dispatch mode looks into an operator.
                return self.call("torch.conj_physical", text[0]), ATOM
            return f"{text[0] if text[1] == ATOM else f'({text[0]})'}.{op}", ATOM
        return text if op != "imag" else (self.call("torch.zeros_like", text[0]), ATOM)

    def aligned(self, node: Expr, target: tuple[str, ...], arithmetic: bool = False) -> tuple[str, int]:
        """Code of a node as an operand that broadcasts to `target`; booleans become numbers in arithmetic."""
        if is_number(node):
            return self.number(node)
        text, strength = self.nested(node)
        have = list(node.dims)
        wanted = [d for d in target if d in have]
        if have != wanted:
            text, strength = self._permute(text if strength == ATOM else f"({text})", have, tuple(wanted)), ATOM
        if arithmetic and node.kind == "bool":
            text, strength = f"{text if strength == ATOM else f'({text})'}.to({self.dtype})", ATOM
        axes = [":" if d in have else "None" for d in target]
        if not per_token(node):
            while axes and axes[0] == "None":
                axes.pop(0)
        if "None" in axes:
            while axes and axes[0] == ":":
                axes.pop(0)
            text, strength = f"{text if strength == ATOM else f'({text})'}[..., {', '.join(axes)}]", ATOM
        return text, strength

    def placed(self, node: Expr, target: tuple[str, ...]) -> str:
        return self.aligned(node, target, arithmetic=True)[0]

    # --- axes ---

    def axes(self, over: Iterable[str], dims: tuple[str, ...]) -> str:
        """Negative axis numbers of `over` within `dims`, as code."""
        numbers = sorted(dims.index(d) - len(dims) for d in over if d in dims)
        return str(numbers[0]) if len(numbers) == 1 else f"({', '.join(map(str, numbers))})"

    def _permute(self, code: str, have: list[str], want: tuple[str, ...]) -> str:
        if have == list(want):
            return code
        n = len(have)
        moved = [(i - n, want.index(d) - n) for i, d in enumerate(have) if want.index(d) != i]
        if len(moved) == 2:
            return f"{code}.transpose({moved[0][0]}, {moved[1][0]})"
        source, target = (f"({', '.join(str(m[k]) for m in moved)})" for k in (0, 1))
        return f"{code}.movedim({source}, {target})"

    def laid(self, code: str, have: list[str], want: tuple[str, ...]) -> str:
        """Code whose axes are `have`, laid out as `want`."""
        return self._permute(code, have, want)

    def moved(self, node: Expr, have: list[str], want: tuple[str, ...]) -> str:
        """Code of a node whose axes are `have`, laid out as `want`."""
        if have == list(want):
            return self.code_of(node)
        return self._permute(self.atom(node), have, want)

    def merge(self, node: Merge) -> str:
        have = list(node.arg.dims)
        rest = [d for d in have if d not in node.merged]
        together = (*rest, *node.merged)
        code = self._permute(self.atom(node.arg), have, together)
        if len(node.merged) > 1:
            code = f"{code}.flatten({-len(node.merged)}, -1)"
        return self._permute(code, [*rest, node.into], node.dims)

    # --- reductions and products ---

    def _missing(self, node: Reduce) -> list[str]:
        return [d for d in node.over if d not in node.arg.dims] if node.op == "sum" else []

    def _factors(self, node: Reduce) -> list[Expr]:
        """The operands of a product under a sum that is best written as an einsum; empty where it is not one."""
        flat: list[Expr] = []
        stack = [node.arg]
        while stack:
            e = stack.pop()
            free = e is node.arg or (e not in self.variables and e not in self.hints and self.uses[e] <= 1)
            if isinstance(e, Apply) and e.op == "mul" and free:
                stack.extend(reversed(e.args))
            else:
                flat.append(e)
        tensors = [e for e in flat if not is_number(e)]
        summed = [d for d in node.over if d in node.arg.dims]
        if len(tensors) < 2 or not summed or len({e.kind for e in tensors}) > 1 or tensors[0].kind == "bool":
            return []
        return (
            flat if node.arg not in self.variables and self.uses[node.arg] <= 1 and node.arg not in self.hints else []
        )

    def reduce(self, node: Reduce) -> str:
        dims = node.arg.dims
        factors = self._factors(node) if node.op == "sum" else []
        if factors:
            return self._einsum([e for e in factors if not is_number(e)], node, [e for e in factors if is_number(e)])
        over = [d for d in node.over if d in dims]
        code = self.aligned(node.arg, dims, arithmetic=True)
        text = code[0] if code[1] == ATOM else f"({code[0]})"
        if over:
            axes = self.axes(over, dims)
            method = {"max": "amax", "min": "amin"}.get(node.op, node.op)
            text = self.call("_logsumexp", code[0], axes) if node.op == "logsumexp" else f"{text}.{method}({axes})"
        text = self._permute(text, [d for d in dims if d not in over], node.dims) if over else text
        return "".join(f"{self.size(d)} * " for d in self._missing(node)) + text

    def _einsum(self, tensors: list[Expr], node: Reduce, numbers: list[Expr]) -> str:
        letters: dict[str, str] = {}
        terms: list[str] = []
        for e in tensors:
            spec = "".join(_letter(d, letters) for d in e.dims)
            terms.append(("..." if per_token(e) else "") + spec)
        lead = "..." if any(per_token(e) for e in tensors) else ""
        out = lead + "".join(letters[d] for d in node.dims)
        args = ", ".join(self.code_of(e) for e in tensors)
        text = f'torch.einsum("{",".join(terms)}->{out}", {args})'
        scale = [self.number(n) for n in numbers] + [(self.size(d), ATOM) for d in self._missing(node)]
        return "".join(f"{t if s >= _PRODUCT else f'({t})'} * " for t, s in scale) + text

    # --- learned maps ---

    def operand(self, node: Expr) -> str:
        """What a learned map reads."""
        return self.placed(node, node.dims)

    def linear(self, node: Linear) -> str:
        arg, have = node.arg, node.arg.dims
        if not node.ins and not node.transposed:
            text, strength = self.aligned(arg, (*node.kept, *node.outs), arithmetic=True)
            product = f"{text if strength >= _PRODUCT else f'({text})'} * {self.weight(node.weight)}"
            return f"({self._permute(f'({product})', [*node.kept, *node.outs], node.dims)})"
        if node.transposed or node.kept:
            return self._general_linear(node)
        code = self.operand(arg) if have == node.ins else self._permute(_atom(self.operand(arg)), list(have), node.ins)
        extra = [str(len(node.ins))] if len(node.ins) > 1 else []
        call = self.call("_linear", code, self.weight(node.weight), *extra)
        return self._permute(call, list(node.outs), node.dims)

    def _general_linear(self, node: Linear) -> str:
        """A map with a matrix for each entry of its kept dims, or the transpose of a map."""
        letters: dict[str, str] = {}
        kept = {d: _letter(d, letters) for d in node.kept}
        ins = {d: _letter(d, letters) for d in node.ins}
        # A dim may stand on both sides: what comes out is another axis then.
        outs = {d: _letter(f"{d}'", letters) for d in node.outs}
        source, target = (kept | outs, kept | ins) if node.transposed else (kept | ins, kept | outs)
        weight = "".join([*kept.values(), *outs.values(), *ins.values()])
        lead = "..." if per_token(node) else ""
        arg = lead + "".join(source[d] for d in node.arg.dims)
        out = lead + "".join(target[d] for d in node.dims)
        return self.call("_contract", f'"{weight},{arg}->{out}"', self.weight(node.weight), self.operand(node.arg))

    def _project(self, projection: Projection) -> None:
        """One product for all maps of a projection, then a name for each."""
        first = projection.maps[0]
        arg, want = self.operand(first.arg), first.kept + first.ins
        arg = arg if first.arg.dims == want else self._permute(_atom(arg), list(first.arg.dims), want)
        targets = [self.names.new(_projected(m, self.hints)) for m in projection.maps]
        shapes = ", ".join(
            f"({', '.join(self.size(d) for d in m.outs)}{',' if len(m.outs) == 1 else ''})" for m in projection.maps
        )
        call = self.call(
            "_project", arg, self.packed(projection), f"[{shapes}]", str(len(first.kept)), str(len(first.ins))
        )
        self.assign(", ".join(targets), call)
        for m, name in zip(projection.maps, targets, strict=True):
            self.variables[m] = self._permute(name, [*m.kept, *m.outs], m.dims)

    def draw(self, node: Draw) -> str:
        if self._draw is None:
            raise AssertionError("a draw outside an initialiser")
        return self._draw(node)

    def solve(self, node: Solve) -> str:
        dims = node.dims
        lead = tuple(d for d in dims if d != node.row)
        matrix = self.placed(node.matrix, (*lead, node.row, node.col))
        rhs = self.placed(node.rhs, (*lead, node.row))
        return self._permute(self.call("_solve", matrix, rhs), [*lead, node.row], dims)


def _atom(text: str) -> str:
    return text if re.fullmatch(r"[\w.]+", text) else f"({text})"


def _may_vanish(node: Apply) -> bool:
    """Whether Python may raise for a ratio or a power of numbers: anything but sizes and plain literals."""
    risky = node.args[1] if node.op == "div" else node.args[0]
    match risky:
        case Lit(value=value):
            return value == 0 or (node.op == "pow" and not isinstance(value, complex) and value < 0)
        case _:
            return not all(
                (isinstance(n, Lit) and not isinstance(n.value, complex) and n.value > 0)
                or (isinstance(n, Ref) and n.role == "size")
                or (isinstance(n, Apply) and n.op in ("add", "mul", "div", "pow"))
                for n in walk(risky)
            )


def _projected(node: Linear, hints: Mapping[Expr, str]) -> str:
    return hints.get(node) or node.weight.removesuffix("_weight") + "_in"


def _letter(dim: str, letters: dict[str, str]) -> str:
    """One letter for a dim: its own first letter where that is free."""
    if dim not in letters:
        wanted = [dim[0].lower()] if dim[0].lower() in ascii_lowercase else []
        letters[dim] = next(c for c in [*wanted, *ascii_lowercase] if c not in letters.values())
    return letters[dim]


def _literal(value: bool | int | float | complex) -> tuple[str, int]:
    if isinstance(value, complex):
        text = repr(value)
        return (text, ATOM) if text.startswith("(") or not text.startswith("-") else (f"({text})", ATOM)
    if isinstance(value, float) and math.isinf(value):
        return ("math.inf", ATOM) if value > 0 else ("-math.inf", _SIGN)
    text = repr(value)
    return text, _SIGN if text.startswith("-") else ATOM
