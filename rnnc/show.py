"""The IR as text: an expression in the language's own syntax, a cell with the type of everything."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from rnnc import ir

_COMPARED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_INFIX: Mapping[str, tuple[str, int, int, int]] = {
    # How it is written, how tightly it binds, and how tightly its operands must.
    "or": ("or", 1, 1, 2),
    "and": ("and", 2, 2, 3),
    **{op: (sign, 4, 5, 5) for op, sign in _COMPARED.items()},
    "add": ("+", 5, 5, 6),
    "sub": ("-", 5, 5, 6),
    "mul": ("*", 6, 6, 7),
    "div": ("/", 6, 6, 7),
    "pow": ("**", 8, 9, 7),
}
_NOT, _MINUS, _ATOM = 3, 7, 9
_Piece = str | tuple[ir.Expr, int]


def expr_text(expr: ir.Expr, names: Mapping[ir.Expr, str] | None = None) -> str:
    """An expression as the language writes it, with no brackets that it can do without.

    Nodes in `names` are shown by their names; a large graph is unreadable (and may be endless) without.
    """
    out: list[str] = []
    stack: list[_Piece] = [(expr, 0)]
    while stack:
        piece = stack.pop()
        if isinstance(piece, str):
            out.append(piece)
            continue
        node, needed = piece
        while isinstance(node, ir.Apply) and node.op in ("only", "like"):
            # What lowering adds is no part of the language, and changes no value.
            node = node.args[0]
        if names is not None and node in names:
            out.append(names[node])
            continue
        binds, pieces = _pieces(node)
        stack += reversed(["(", *pieces, ")"] if binds < needed else pieces)
    return "".join(out)


def _pieces(node: ir.Expr) -> tuple[int, list[_Piece]]:
    """How tightly a node binds, and its text in parts."""
    match node:
        case ir.Lit():
            text = number_text(node.value)
            return (_MINUS if text.startswith("-") else _ATOM), [text]
        case ir.Ref():
            return _ATOM, [node.name + _index(node)]
        case ir.Apply(op="neg"):
            return _MINUS, ["-", (node.args[0], _MINUS)]
        case ir.Apply(op="not"):
            return _NOT, ["not ", (node.args[0], _NOT)]
        case ir.Apply() if node.op in _INFIX:
            sign, binds, left, right = _INFIX[node.op]
            return binds, [(node.args[0], left), f" {sign} ", (node.args[1], right)]
        case ir.Apply():
            return _ATOM, _call(node.op, *node.args)
        case ir.Reduce():
            return _ATOM, _call(f"{node.op}[{', '.join(node.over)}]", node.arg)
        case ir.Normalize():
            pieces = _call(f"{node.op}[{', '.join(node.over)}]", node.arg)
            shown = node.op != "softmax" and node.eps != 1e-6
            return _ATOM, [*pieces[:-1], f", eps={number_text(node.eps)})"] if shown else pieces
        case ir.Rename():
            return _ATOM, [(node.arg, _ATOM), f"[{node.old} -> {node.new}]"]
        case ir.Split():
            return _ATOM, [(node.arg, _ATOM), f"[{node.dim} -> {' * '.join(node.into)}]"]
        case ir.Merge():
            return _ATOM, [(node.arg, _ATOM), f"[{' * '.join(node.merged)} -> {node.into}]"]
        case ir.Linear():
            return _ATOM, _linear(node)
        case ir.Conv():
            return _ATOM, _call(f"conv[{node.width}]", node.arg)
        case ir.Solve():
            return _ATOM, _call(f"solve[{node.row}, {node.col}]", node.matrix, node.rhs)
        case ir.Grad():
            return _ATOM, _call("grad", node.loss, node.wrt)
        case ir.Draw(op="arange"):
            return _ATOM, _call(f"arange[{', '.join(node.dims)}]", *node.args)
        case ir.Draw():
            return _ATOM, _call(node.op, *node.args) if node.args else [node.op]
        case _:
            raise TypeError(f"no text for {type(node).__name__}")


def _call(head: str, *args: ir.Expr) -> list[_Piece]:
    pieces: list[_Piece] = [f"{head}("]
    for i, arg in enumerate(args):
        pieces += [", ", (arg, 0)] if i else [(arg, 0)]
    return [*pieces, ")"]


def _linear(node: ir.Linear) -> list[_Piece]:
    ins, outs = ", ".join(node.ins), ", ".join(node.outs)
    if node.transposed:  # no syntax of the language: only derivatives have it
        return _call(f"transposed[{node.weight}: {outs} -> {ins}]", node.arg)
    if not node.kept:
        return ["linear(", (node.arg, 0), f" -> {outs})"]
    return _call(f"linear[{ins}]" if ins == outs else f"linear[{ins} -> {outs}]", node.arg)


def _index(ref: ir.Ref) -> str:
    if ref.lag:
        return f"[t-{ref.lag}]"
    return "[t]" if ref.role == "state" else ""


def number_text(value: bool | int | float | complex) -> str:
    """A literal as the language writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, complex):
        return repr(value)
    return "pi" if value == math.pi else repr(value)


def region_text(region: ir.Region) -> str:
    """A range as the language writes it."""
    match region:
        case ir.Interval(lo, hi):
            left, right = "(" if region.lo_open else "[", ")" if region.hi_open else "]"
            return f"{left}{expr_text(lo)}, {expr_text(hi)}{right}"
        case ir.Disc(radius):
            return f"disc({expr_text(radius)})"
        case ir.Annulus(inner, outer):
            return f"annulus({expr_text(inner)}, {expr_text(outer)})"


def cell_text(cell: ir.Cell) -> str:
    """Everything a checked cell says, one line each, with types."""
    return "\n".join(_lines(cell)) + "\n"


def _lines(cell: ir.Cell) -> Iterator[str]:
    yield f"cell {cell.name}"
    for dim in cell.dims:
        yield f"dim {dim.name} = {dim.size if isinstance(dim.size, int) else expr_text(dim.size)}"
    for left, right, _ in cell.size_checks:
        yield f"size {expr_text(left)} == {expr_text(right)}"
    for const in cell.consts:
        yield f"const {const.name}{_in(const.region)} = {number_text(const.value)}"
    for value in cell.inputs:
        yield f"input {value.name}: {value.type}{_in(value.region)}"
    for param in cell.params:
        word = "param" if param.learned else "buffer"
        shape = ir.Type((*param.shape, *([str(param.taps)] if param.taps is not None else [])), param.kind)
        yield f"{word} {param.name}: {shape} = {expr_text(param.init)}"
    for definition in cell.definitions:
        word = definition.claim if definition.claim in ("gate", "decay") else "definition"
        claimed = _in(definition.region)
        yield f"{word} {definition.name}: {definition.type}{claimed} = {expr_text(definition.expr)}"
    for state in cell.states:
        yield f"state {state.name}: {state.type} = {expr_text(state.init)}"
    for state in cell.states:
        over = f" over {state.over}" if state.over else ""
        yield f"{state.name}[t]{over}: {state.expr.type} = {expr_text(state.expr)}"
    for claim in cell.eigenvalues:
        yield f"eigenvalues {claim.state}{_in(claim.region)}"
    for output in cell.outputs:
        yield f"output {output.name}: {output.expr.type}{_in(output.region)} = {expr_text(output.expr)}"


def _in(region: ir.Region | None) -> str:
    return "" if region is None else f" in {region_text(region)}"
