"""Numbers that stand in an expression."""

from __future__ import annotations

from rnnc.ir import Apply, Expr, Lit


def number(node: Expr | None) -> float | int | None:
    """The value of an expression of real literals, if it is one."""
    match node:
        case Lit(value=value) if not isinstance(value, complex | bool):
            return value
        case Apply(op="neg", args=(x,)):
            inner = number(x)
            return None if inner is None else -inner
        case Apply(op="div", args=(x, y)):
            above, below = number(x), number(y)
            return None if above is None or not below else above / below
        case _:
            return None
