"""`in [a, b]`, `in disc(r)`, `in annulus(r, s)`."""

from __future__ import annotations

from rnnc import ir, tree
from rnnc.check.context import Context
from rnnc.check.reader import Place, Reader, negative
from rnnc.check.sizes import number_at_defaults
from rnnc.check.words import SIGNATURES, with_arguments
from rnnc.errors import kinds as errors
from rnnc.errors.functions import UnknownFunction, WrongArguments


def spectrum(node: tree.Region, cx: Context, before: int | None = None) -> ir.Region | None:
    """A region as written; None where it is wrong."""
    if isinstance(node, tree.Range):
        lo, hi = _end(node.lo, cx, before), _end(node.hi, cx, before)
        if lo is None or hi is None:
            return None
        a, b = number_at_defaults(lo, cx), number_at_defaults(hi, cx)
        if a is not None and b is not None and (a > b or (a == b and (node.lo_open or node.hi_open))):
            return _empty(node, cx)
        return ir.Interval(lo, hi, node.lo_open, node.hi_open)
    assert isinstance(node.base, tree.Name)
    name, count = node.base.text, {"disc": 1, "annulus": 2}.get(node.base.text)
    if count is None:
        cx.report(UnknownFunction(node.base.span, name, cx.nearest(name, ("disc", "annulus")), region=True))
        return None
    if len(node.args) != count:
        cx.report(WrongArguments(node.span, name, with_arguments(len(node.args)), SIGNATURES[name]))
        return None
    ends = [_end(a, cx, before) for a in node.args]
    radii = [None if e is None else number_at_defaults(e, cx) for e in ends]
    inner, outer = ends[0], ends[-1]
    if inner is None or outer is None:
        return None
    a, b = radii[0], radii[-1]
    if (a is not None and a < 0) or (a is not None and b is not None and a > b):
        return _empty(node, cx)
    return ir.Disc(outer) if count == 1 else ir.Annulus(inner, outer)


def region(node: tree.Region, kind: ir.Kind, cx: Context, before: int | None = None) -> ir.Region | None:
    """A region of values of a kind. A disc of reals is the interval that it is."""
    found = spectrum(node, cx, before)
    if found is None:
        return None
    fits = isinstance(found, ir.Disc | ir.Annulus) if kind == "complex" else not isinstance(found, ir.Annulus)
    if kind == "bool" or not fits:
        cx.report(errors.RegionOfKind(node.span, cx.source.slice(node.span), kind))
        return None
    if isinstance(found, ir.Disc) and kind == "real":
        return ir.Interval(negative(found.radius, cx.graph), found.radius)
    return found


def contains(found: ir.Interval, value: float, cx: Context) -> bool:
    """Whether a number lies in an interval whose ends are at their defaults."""
    lo, hi = number_at_defaults(found.lo, cx), number_at_defaults(found.hi, cx)
    above = lo is None or (value > lo if found.lo_open else value >= lo)
    return above and (hi is None or (value < hi if found.hi_open else value <= hi))


def _end(node: tree.Expr, cx: Context, before: int | None) -> ir.Expr | None:
    place = Place("the end of a range", frozenset(("const",)), elementwise=True, before=before)
    end = Reader(cx, place).read(node)
    if end is not None and end.kind != "real":
        cx.report(errors.RegionEnd(node.span, cx.source.slice(node.span)))
        return None
    return end


def _empty(node: tree.Region, cx: Context) -> None:
    cx.report(errors.EmptyRegion(node.span, cx.source.slice(node.span)))
