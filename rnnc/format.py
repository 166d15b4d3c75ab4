"""The tree as text, for `--emit tree`: the program, every operation in brackets. It parses to the same tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rnnc import tree


def tree_text(program: tree.Program) -> str:
    return "\n\n".join("\n".join(_cell(cell)) for cell in program.cells) + "\n"


def _cell(cell: tree.Cell) -> Iterator[str]:
    yield f"cell {cell.name.text}"
    if cell.doc is not None:
        # A quote at the end would be one of the three that end the string.
        yield f'"""{cell.doc}{" " * cell.doc.endswith(chr(34))}"""'
    for statement in cell.statements:
        yield _statement(statement)


def _statement(node: tree.Statement) -> str:
    match node:
        case tree.Declaration():
            return f"{node.keyword} {', '.join(map(_declared, node.items))}"
        case tree.Equation():
            return f"{node.keyword} {_declared(node.target)} = {expression(node.expr)}".lstrip()
        case tree.Update():
            over = f" over {node.over.text}" if node.over else ""
            return f"{node.name.text}[{expression(node.index)}]{over} = {expression(node.expr)}"
        case tree.Eigenvalues():
            return f"eigenvalues {node.state.text}{_region(node.region)}"
        case tree.Output():
            value = "" if node.expr is None else f" = {expression(node.expr)}"
            return f"output {expression(node.target)}{_region(node.region)}{value}"


def _declared(node: tree.Declared) -> str:
    dims = "" if node.dims is None else f"[{_listed(node.dims)}]"
    annotation = "" if node.annotation is None else f": {node.annotation.text}"
    value = "" if node.value is None else f" = {expression(node.value)}"
    return f"{node.name.text}{dims}{annotation}{_region(node.region)}{value}"


def _region(node: tree.Region | None) -> str:
    match node:
        case None:
            return ""
        case tree.Call():
            return f" in {expression(node)}"
        case tree.Range():
            opener, closer = "(" if node.lo_open else "[", ")" if node.hi_open else "]"
            return f" in {opener}{expression(node.lo)}, {expression(node.hi)}{closer}"


def _listed(nodes: Sequence[tree.Expr]) -> str:
    return ", ".join(map(expression, nodes))


def expression(node: tree.Expr) -> str:
    """An expression with all its brackets."""
    match node:
        case tree.Number():
            return f"{node.value.imag!r}j" if isinstance(node.value, complex) else repr(node.value)
        case tree.Name():
            return node.text
        case tree.Unary():
            return f"({node.op}{' ' if node.op == 'not' else ''}{expression(node.arg)})"
        case tree.Binary():
            return f"({expression(node.left)} {node.op} {expression(node.right)})"
        case tree.Bracket():
            right = "" if node.right is None else f" -> {_listed(node.right)}"
            return f"{expression(node.base)}[{_listed(node.left)}{right}]"
        case tree.Call():
            options = [f"{name.text}={expression(value)}" for name, value in node.options]
            args = [expression(arg) for arg in node.args]
            if node.target is None:
                return f"{expression(node.base)}({', '.join([*args, *options])})"
            targets = [expression(target) for target in node.target]
            return f"{expression(node.base)}({', '.join(args)} -> {', '.join([*targets, *options])})"
