"""Functions of values: elementwise ones, reductions and normalisers over named dims, `solve`, `grad`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import reduce

from rnnc import ir, tree
from rnnc.check.arguments import allowed, well_formed
from rnnc.check.draws import draw
from rnnc.check.maps import conv, learned_norm, linear
from rnnc.check.reader import Head, Reader, Step, Value
from rnnc.check.sizes import require_equal
from rnnc.check.words import DRAW_ARGUMENTS, NORMALIZERS, REDUCTIONS, SIGNATURES, UNARY
from rnnc.errors import dims, functions, kinds, time


def _unary(r: Reader, head: Head) -> Step:
    if not well_formed(r, head, 1):
        return None
    node, op = head.call.args[0], head.name.text
    arg = yield node
    if arg is None or (op not in ir.COMPLEX_OPS and not r.ordered(arg, node, op)):
        return None
    return r.graph.apply(op, arg)


def _ordered_arguments(r: Reader, head: Head) -> Step:
    """`max(a, b, ...)`, `min(...)`, `clamp(x, lo, hi)`, `logaddexp(a, b)`: of values that have an order."""
    args: list[Value] = []
    for node in head.call.args:
        value = yield node
        args.append(value if value is not None and r.ordered(value, node, head.name.text) else None)
    found = [a for a in args if a is not None]
    if len(found) < len(args):
        return None
    if head.name.text == "clamp":
        x, lo, hi = found
        return r.graph.apply("min", r.graph.apply("max", x, lo), hi)
    return reduce(lambda a, b: r.graph.apply(head.name.text, a, b), found)


def _extremum(r: Reader, head: Head) -> Step:
    if head.bracket is not None:
        return (yield from _reduction(r, head))
    if not well_formed(r, head, max(2, len(head.call.args))):
        return None
    return (yield from _ordered_arguments(r, head))


def _logaddexp(r: Reader, head: Head) -> Step:
    return (yield from _ordered_arguments(r, head)) if well_formed(r, head, 2) else None


def _clamp(r: Reader, head: Head) -> Step:
    return (yield from _ordered_arguments(r, head)) if well_formed(r, head, 3) else None


def _where(r: Reader, head: Head) -> Step:
    if not well_formed(r, head, 3):
        return None
    test, yes, no = head.call.args
    condition = yield test
    a = yield yes
    b = yield no
    good = condition is not None and r.boolean(condition, test, "where")
    if condition is None or a is None or b is None or not good:
        return None
    return r.graph.apply("where", condition, a, b)


def _over(r: Reader, head: Head, arg: Value) -> tuple[str, ...] | None:
    """The dims that a reduction or a normaliser works along; its operand must have them all."""
    node = head.call.args[0]
    if head.bracket is None:
        only = arg.dims[0] if arg is not None and len(arg.dims) == 1 else None
        return r.wrong(dims.WhichDims(head.name.span, head.name.text, None if arg is None else arg.dims, only))
    over = r.cx.dims(head.bracket.left)
    if over is None or arg is None:
        return None
    lacking = [(d, n) for d, n in zip(over, head.bracket.left, strict=True) if d not in arg.dims]
    for dim, written in lacking:
        r.wrong(dims.MissingDim(written.span, dim, r.text(node), arg.dims, r.cx.nearest(dim, arg.dims)))
    return None if lacking else over


def _reduction(r: Reader, head: Head) -> Step:
    if not allowed(r, head) or not well_formed(r, head, 1, brackets=True):
        return None
    node, op = head.call.args[0], head.name.text
    arg = yield node
    over = _over(r, head, arg)
    if arg is None or over is None or (op not in ("sum", "mean") and not r.ordered(arg, node, op)):
        return None
    if op == "sum":
        _warn_of_terms(r, node, over)
    return r.graph.reduce(op, over, arg)


def _warn_of_terms(r: Reader, node: tree.Expr, over: tuple[str, ...]) -> None:
    """In `sum[K](a + b)` a term without `K` is summed `|K|` times."""
    for term in _terms(node):
        value = r.values[id(term)]
        lacking = tuple(d for d in over if value is not None and d not in value.dims)
        if lacking and term is not node:
            r.wrong(dims.TermWithoutDim(term.span, r.text(term), lacking))


def _terms(node: tree.Expr) -> Iterator[tree.Expr]:
    stack = [node]
    while stack:
        node = stack.pop()
        if isinstance(node, tree.Binary) and node.op in ("+", "-"):
            stack += (node.right, node.left)
        elif isinstance(node, tree.Unary) and node.op in ("+", "-"):
            stack.append(node.arg)
        else:
            yield node


def _normalizer(r: Reader, head: Head) -> Step:
    if not allowed(r, head) or not well_formed(r, head, 1, brackets=True):
        return None
    node, op = head.call.args[0], head.name.text
    arg = yield node
    over = _over(r, head, arg)
    options = {option.text: value for option, value in head.call.options}
    eps = 1e-6
    if "eps" in options:
        match options["eps"]:
            case tree.Number(int() | float() as number):
                eps = float(number)
            case other:
                return r.wrong(functions.OptionValue(other.span, "eps", "a number, such as `1e-5`"))
    if arg is None or over is None or not r.ordered(arg, node, op):
        return None
    return learned_norm(r, head, r.graph.normalize(op, over, arg, eps))


def _solve(r: Reader, head: Head) -> Step:
    if not allowed(r, head) or not well_formed(r, head, 2, brackets=True):
        return None
    matrix = yield head.call.args[0]
    rhs = yield head.call.args[1]
    if head.bracket is None or len(head.bracket.left) != 2:
        return r.wrong(functions.WrongArguments(head.call.span, "solve", "without two dims", SIGNATURES["solve"]))
    over = r.cx.dims(head.bracket.left)
    if over is None or matrix is None or rhs is None:
        return None
    row, col = over
    wanted = ((matrix, 0, row, 0), (matrix, 0, col, 1), (rhs, 1, row, 0))
    for value, arg, dim, written in wanted:
        if dim not in value.dims:
            text, near = r.text(head.call.args[arg]), r.cx.nearest(dim, value.dims)
            return r.wrong(dims.MissingDim(head.bracket.left[written].span, dim, text, value.dims, near))
    if col in rhs.dims:
        return r.wrong(dims.DimTwice(head.bracket.left[1].span, col, rhs.dims))
    if not require_equal((row,), (col,), head.bracket.inner, r.cx):
        return None
    return r.graph.solve(row, col, matrix, rhs)


def _grad(r: Reader, head: Head) -> Step:
    if not allowed(r, head, step=True) or not well_formed(r, head, 2):
        return None
    what, towards = head.call.args
    loss = yield what
    wrt = yield towards
    if loss is None or wrt is None:
        return None
    if not (isinstance(wrt, ir.Ref) and wrt.role == "state" and wrt.lag > 0):
        state = wrt.name if isinstance(wrt, ir.Ref) and wrt.role == "state" else None
        return r.wrong(time.GradOfWhat(towards.span, r.text(towards), state))
    for value, node in ((loss, what), (wrt, towards)):
        if value.kind == "complex":
            return r.wrong(kinds.ComplexOperand(node.span, r.text(node), "grad"))
    if not any(node is wrt and back == 0 for node, back in r.cx.reach(loss)):
        return r.wrong(time.GradIsZero(what.span, r.text(what), r.text(towards)))
    return r.graph.grad(loss, wrt)


FUNCTIONS: Mapping[str, Callable[[Reader, Head], Step]] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(NORMALIZERS, _normalizer),
    **dict.fromkeys(DRAW_ARGUMENTS, draw),
    "max": _extremum,
    "min": _extremum,
    "clamp": _clamp,
    "logaddexp": _logaddexp,
    "where": _where,
    "solve": _solve,
    "grad": _grad,
    "linear": linear,
    "conv": conv,
}
