"""Initialisers with arguments: `normal`, `uniform`, `loguniform`, `arange`."""

from __future__ import annotations

from rnnc import ir, tree
from rnnc.check.arguments import well_formed
from rnnc.check.reader import Head, Reader, Step
from rnnc.check.sizes import number_at_defaults
from rnnc.check.words import DRAW_ARGUMENTS, SIGNATURES
from rnnc.errors import dims, functions, kinds


def draw(r: Reader, head: Head) -> Step:
    name, shape = head.name.text, r.place.shape
    if shape is None:
        return r.wrong(kinds.DrawElsewhere(head.call.span, name, r.place.what))
    if not well_formed(r, head, DRAW_ARGUMENTS[name], brackets=name == "arange"):
        return None
    args: list[ir.Expr] = []
    for node in head.call.args:
        value = yield node
        if value is not None and _scalar(r, value, node, name):
            args.append(value)
    if name == "arange":
        if head.bracket is None or len(head.bracket.left) != 1:
            return r.wrong(
                functions.WrongArguments(head.call.span, name, "without a dim in brackets", SIGNATURES[name])
            )
        along = r.cx.dims(head.bracket.left)
        if along is None:
            return None
        if along[0] not in shape:
            near = r.cx.nearest(along[0], shape)
            return r.wrong(dims.MissingDim(head.bracket.left[0].span, along[0], r.place.owner, shape, near))
        shape = along
    if len(args) < len(head.call.args) or not _possible(r, head, args):
        return None
    return r.graph.draw(name, tuple(args), shape)


def _scalar(r: Reader, value: ir.Expr, node: tree.Expr, function: str) -> bool:
    if any(isinstance(n, ir.Draw) for n in ir.walk(value)):
        r.wrong(kinds.DrawElsewhere(node.span, r.text(node), f"the arguments of `{function}`"))
        return False
    if value.dims:
        r.wrong(dims.NotScalar(node.span, r.text(node), value.dims))
        return False
    return r.ordered(value, node, function)


def _possible(r: Reader, head: Head, args: list[ir.Expr]) -> bool:
    """Whether the arguments, at their defaults, describe a distribution."""
    name = head.name.text
    numbers = [number_at_defaults(a, r.cx) for a in args]
    known = [n for n in numbers if n is not None]
    if len(known) < len(numbers):
        return True
    if name == "normal":
        good, rule = known[0] >= 0, "a standard deviation is at least 0"
    elif name == "uniform":
        good, rule = known[0] <= known[1], "the lower end comes first"
    elif name == "loguniform":
        good, rule = 0 < known[0] <= known[1], "both ends are above 0, the lower one first"
    else:
        return True
    if not good:
        r.wrong(kinds.ImpossibleDraw(head.call.span, r.text(head.call), rule))
    return good
