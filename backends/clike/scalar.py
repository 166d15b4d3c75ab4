"""One operation of the IR as a C expression.

Goals: the numeric meaning of the reference, operation by operation, in `real` (float or double) and `cplx` (a struct of
two). Functions `r_...`, `c_...` and (of doubles) `num_...` are those of `templates/clike/`.
Non-goals: loops and arrays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rnnc.ir import Apply, Expr, Kind, Lit, Reduce, Ref
from rnnc.plan import is_number

# Binding strength, weakest first.
COMPARE, SUM, PRODUCT, SIGN, ATOM = range(5)

_INFIX: Mapping[str, tuple[str, int]] = {
    "add": ("+", SUM),
    "sub": ("-", SUM),
    "mul": ("*", PRODUCT),
    "div": ("/", PRODUCT),
    "eq": ("==", COMPARE),
    "ne": ("!=", COMPARE),
    "lt": ("<", COMPARE),
    "le": ("<=", COMPARE),
    "gt": (">", COMPARE),
    "ge": (">=", COMPARE),
}
_COMPLEX = frozenset("add sub mul div pow square abs sqrt rsqrt exp log sin cos tanh conj".split())
TYPES: Mapping[Kind, str] = {"real": "real", "complex": "cplx", "bool": "int"}

_WORDS = (
    "auto break case char const continue default do double else enum extern float for goto if inline int long register "
    "restrict return short signed sizeof static struct switch typedef union unsigned void volatile while bool true "
    "false nullptr class template this new delete operator private public typename namespace asm real cplx vec INF NAN "
    "main lo hi"
)
RESERVED = frozenset(_WORDS.split())


@dataclass(frozen=True)
class Code:
    """Text of a value and how strongly it binds."""

    text: str
    binds: int = ATOM
    kind: Kind = "real"

    def bound(self, binds: int) -> str:
        return self.text if self.binds >= binds else f"({self.text})"


def identifier(name: str) -> str:
    """A name of a program as one of C: in ASCII, and neither a macro's nor one of those with a prefix that we make."""
    text = "".join(c if c.isascii() and (c.isalnum() or c == "_") else f"u{ord(c):x}" for c in name)
    ours = re.match(r"([a-z]|num)_", text) or (len(text) > 1 and text.upper() == text)
    return f"v{text}" if ours or text.startswith("_") else text


def functions(text: str) -> set[str]:
    """The functions of `templates/clike/` that a text calls."""
    return set(re.findall(r"\b(?:r|c|num)_\w+(?=\()", text))


def apply(node: Apply, args: tuple[Code, ...]) -> Code:
    """Code of an operation on operands."""
    op = node.op
    if op in ("only", "like", "stop_gradient"):
        return args[0]
    if any(a.kind == "complex" for a in (args[1:] if op == "where" else args[:1] if op == "only" else args)):
        return _complex(node, args)
    if op == "real" or op == "conj":
        return _number(args[0])
    if op == "imag":
        return Code("0")
    if op == "not":
        return Code(f"!{args[0].bound(ATOM)}", SIGN, "bool")
    if op in ("and", "or"):
        return Code(f"{args[0].bound(ATOM)} {'&' if op == 'and' else '|'} {args[1].bound(ATOM)}", COMPARE, "bool")
    if op == "where":
        yes, no = (a if node.kind == "bool" else _number(a) for a in args[1:])
        return Code(f"({args[0].bound(ATOM)} ? {yes.bound(SUM)} : {no.bound(SUM)})", ATOM, node.kind)
    numbers = [_number(a) for a in args]
    if op in _INFIX:
        symbol, binds = _INFIX[op]
        left = binds + 1 if binds == COMPARE else binds
        return Code(f"{numbers[0].bound(left)} {symbol} {numbers[1].bound(binds + 1)}", binds, node.kind)
    if op == "neg":
        return Code(f"-{numbers[0].bound(ATOM)}", SIGN)
    if op == "square" and re.fullmatch(r"\w+", numbers[0].text):
        return Code(f"{numbers[0].text} * {numbers[0].text}", PRODUCT)
    if op == "pow" and (power := _power(numbers[0], node.args[1])):
        return power
    if op == "pow" and is_number(node.args[1]):
        # A rounded exponent would count by the logarithm of the base.
        return Code(f"r_power({numbers[0].text}, {numbers[1].text.removeprefix('(real)')})")
    return Code(f"r_{op}({', '.join(a.text for a in numbers)})")


def _power(base: Code, exponent: Expr) -> Code | None:
    """Powers that are cheaper than the general one."""
    value = exponent.value if isinstance(exponent, Lit) else None
    if value is None or isinstance(value, complex):
        return None
    if value in (2, 3) and re.fullmatch(r"\w+", base.text):
        return Code(" * ".join([base.text] * int(value)), PRODUCT)
    call = {2: "r_square({})", 3: "r_cube({})", 0.5: "r_sqrt({})", -0.5: "r_rsqrt({})"}
    if value in call:
        return Code(call[value].format(base.text))
    return Code(f"1 / {base.bound(ATOM)}", PRODUCT) if value == -1 else None


def _number(code: Code) -> Code:
    """A boolean as 0 or 1."""
    return Code(f"(real){code.bound(ATOM)}", SIGN) if code.kind == "bool" else code


def as_complex(code: Code) -> str:
    return code.text if code.kind == "complex" else f"c_make({code.text}, 0)"


def _complex(node: Apply, args: tuple[Code, ...]) -> Code:
    op = node.op
    if op in ("real", "imag"):
        return Code(f"{args[0].bound(ATOM)}.{'re' if op == 'real' else 'im'}")
    if op == "where":
        return Code(f"({args[0].bound(ATOM)} ? {as_complex(args[1])} : {as_complex(args[2])})", ATOM, "complex")
    if op == "mul" and any(a.kind != "complex" for a in args):
        z, x = args if args[0].kind == "complex" else args[::-1]
        return Code(f"c_scale({z.text}, {x.text})", ATOM, "complex")
    if op in ("eq", "ne"):
        equal = f"c_eq({as_complex(args[0])}, {as_complex(args[1])})"
        return Code(equal if op == "eq" else f"!{equal}", SIGN, "bool")
    if op == "neg":
        return Code(f"c_scale({args[0].text}, -1)", ATOM, "complex")
    if op not in _COMPLEX:
        raise TypeError(f"no complex {op}")
    return Code(f"c_{op}({', '.join(as_complex(a) for a in args)})", ATOM, node.kind)


# --- numbers that no token changes ------------------------------------------------------------------------------------


def number(node: Expr, leaf: Callable[[Ref], str]) -> Code:
    """A scalar of sizes, consts and literals, computed in double and rounded once."""
    if isinstance(node, Lit) and node.kind != "complex":
        return _literal(node.value)
    if isinstance(node, Ref):
        return Code(f"(real){leaf(node)}", SIGN, node.kind)
    if any(n.kind == "complex" for n in _below(node)):
        return _complex_number(node, leaf)
    text = _double(node, leaf)
    return Code(f"(int)({text})", SIGN, "bool") if node.kind == "bool" else Code(f"(real)({text})", SIGN)


def _below(node: Expr) -> list[Expr]:
    out, stack = list[Expr](), [node]
    while stack:
        out.append(stack.pop())
        stack.extend(out[-1].children)
    return out


def _literal(value: bool | int | float | complex) -> Code:
    if isinstance(value, bool):
        return Code(str(int(value)), ATOM, "bool")
    assert not isinstance(value, complex)
    if math.isinf(value):
        return Code("(real)INF" if value > 0 else "(real)-INF", SIGN)
    # Small whole numbers are exact in every type; anything else is rounded from double.
    whole = float(value).is_integer() and abs(value) < 2**20 and not (value == 0 and math.copysign(1, value) < 0)
    if whole:
        return Code(str(int(value)), SIGN if value < 0 else ATOM)
    return Code(f"(real){float(value)!r}", SIGN)


def _double(node: Expr, leaf: Callable[[Ref], str]) -> str:
    match node:
        case Lit(value=value):
            assert not isinstance(value, complex)
            infinite = not isinstance(value, bool) and math.isinf(value)
            return ("INF" if value > 0 else "-INF") if infinite else repr(float(value))
        case Ref():
            return leaf(node)
        case Reduce(op=op, over=over, arg=arg):
            sizes = [f"(double)n_{identifier(d)}" for d in over] if op == "sum" else []
            return f"({' * '.join([*sizes, _double(arg, leaf)])})"
        case Apply(op=op, args=args):
            parts = tuple(f"({_double(a, leaf)})" for a in args)
            if op in ("only", "like", "stop_gradient", "real", "conj"):
                return parts[0]
            if op in _INFIX:
                return f"{parts[0]} {_INFIX[op][0]} {parts[1]}"
            if op in ("and", "or"):
                return f"{parts[0]} {'&&' if op == 'and' else '||'} {parts[1]}"
            if op == "where":
                return f"{parts[0]} ? {parts[1]} : {parts[2]}"
            if op in ("neg", "not"):
                return f"{'-' if op == 'neg' else '!'}{parts[0]}"
            return "0.0" if op == "imag" else f"num_{op}({', '.join(parts)})"
        case _:
            return _double(node.children[0], leaf)


def _complex_number(node: Expr, leaf: Callable[[Ref], str]) -> Code:
    match node:
        case Lit(value=value):
            z = complex(value)
            return Code(f"c_make({_literal(z.real).text}, {_literal(z.imag).text})", ATOM, "complex")
        case Reduce(op=op, over=over, arg=arg):
            inner = number(arg, leaf)
            if op != "sum":
                return inner
            sizes = " * ".join(f"(real)n_{identifier(d)}" for d in over)
            return Code(f"c_scale({as_complex(inner)}, {sizes})", ATOM, "complex")
        case Apply(args=args):
            return apply(node, tuple(number(a, leaf) for a in args))
        case _:
            return number(node.children[0], leaf)
