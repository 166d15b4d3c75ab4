"""What a cell learns without a `param`: `linear`, `conv`, and the scales of norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

from rnnc import ir, tree
from rnnc.check.arguments import allowed, flag, known_options, well_formed
from rnnc.check.reader import Head, Reader, Step, head_of
from rnnc.check.sizes import product
from rnnc.check.timing import nodes
from rnnc.check.words import NORMALIZERS, SIGNATURES
from rnnc.errors import dims, functions

MAX_WIDTH = 1024


@dataclass(frozen=True, slots=True)
class MapNames:
    """What the parameters of one call are called; `history` is the state field of a `conv`."""

    weights: tuple[str, ...]
    bias: str
    history: str = ""


def name_maps(owner: str, root: tree.Expr) -> Mapping[int, MapNames]:
    """Names for all that a statement learns, by the identity of the call.

    Every argument of a `linear` and every `conv` is one map. They are numbered from left to right where there are
    several; so are, by themselves, the norms that learn something.
    """
    maps: list[tuple[tree.Call, int]] = []
    norms: list[tree.Call] = []
    for node in nodes(root):
        head = head_of(node) if isinstance(node, tree.Call) else None
        if head is None:
            continue
        if head.name.text in ("linear", "conv"):
            maps.append((head.call, len(head.call.args) if head.name.text == "linear" else 1))
        elif head.name.text in NORMALIZERS and any(o.text in ("weight", "bias") for o, _ in head.call.options):
            norms.append(head.call)
    found: dict[int, MapNames] = {}
    total, number = sum(count for _, count in maps), 0
    for call, count in maps:
        stems = [f"{owner}_{number + i + 1}" if total > 1 else owner for i in range(max(1, count))]
        bias = owner if len(maps) == 1 else stems[0]
        found[id(call)] = MapNames(tuple(f"{s}_weight" for s in stems), f"{bias}_bias", f"{stems[0]}_conv")
        number += count
    for i, call in enumerate(norms):
        stem = f"{owner}_{i + 1}" if len(norms) > 1 else owner
        found[id(call)] = MapNames((f"{stem}_scale",), f"{stem}_shift")
    return found


def linear(r: Reader, head: Head) -> Step:
    call, bracket = head.call, head.bracket
    if not allowed(r, head, step=True) or not known_options(r, head):
        return None
    if not call.args or (bracket is None) == (call.target is None):
        fault = (
            "with an arrow as well as dims in brackets" if bracket is not None else "without `-> D` or dims in brackets"
        )
        fault = fault if call.args else "without arguments"
        return r.wrong(functions.WrongArguments(call.span, "linear", fault, SIGNATURES["linear"]))
    args: list[ir.Expr | None] = []
    for node in call.args:
        args.append((yield node))
    along = None if bracket is None else r.cx.dims(bracket.left)
    to = call.target if bracket is None else bracket.right
    outs = along if to is None else r.cx.dims(to)
    bias, orthogonal = flag(r, head, "bias"), _orthogonal(r, head)
    if outs is None or (bracket is not None and along is None) or bias is None or orthogonal is None:
        return None
    called = r.maps[id(call)]
    terms: list[ir.Expr] = []
    for arg, node, weight in zip(args, call.args, called.weights, strict=True):
        if arg is not None and _fits(r, arg, node, head, along, outs):
            ins = arg.dims if along is None else along
            kept = tuple(d for d in arg.dims if d not in ins)
            shape = (*kept, *outs, *ins)
            init = r.graph.draw("orthogonal", (), shape) if orthogonal else _uniform(r.graph, ins, shape)
            _learn(r, head, weight, shape, init, matrix=(len(kept), len(outs)))
            terms.append(r.graph.linear(weight, arg, kept, ins, outs))
            if len(kept) > 1:
                r.wrong(dims.ManyMatrices(call.span, kept))
    if len(terms) < len(args):
        return None
    if bias:
        fan_in = terms[0].ins if isinstance(terms[0], ir.Linear) else ()
        kept = r.graph.sort(d for t in terms if isinstance(t, ir.Linear) for d in t.kept)
        shape = (*kept, *outs)
        terms.append(_learn(r, head, called.bias, shape, _uniform(r.graph, fan_in, shape)))
    return reduce(lambda a, b: r.graph.apply("add", a, b), terms)


def _fits(
    r: Reader, arg: ir.Expr, node: tree.Expr, head: Head, along: tuple[str, ...] | None, outs: tuple[str, ...]
) -> bool:
    """Whether an argument has the dims that are mapped, and lacks those that appear."""
    if along is None or head.bracket is None:
        return True
    for dim, written in zip(along, head.bracket.left, strict=True):
        if dim not in arg.dims:
            near = r.cx.nearest(dim, arg.dims)
            r.wrong(dims.MissingDim(written.span, dim, r.text(node), arg.dims, near))
            return False
    for dim, written in zip(outs, head.bracket.right or head.bracket.left, strict=True):
        if dim in arg.dims and dim not in along:
            r.wrong(dims.DimTwice(written.span, dim, arg.dims))
            return False
    return True


def _orthogonal(r: Reader, head: Head) -> bool | None:
    for option, value in head.call.options:
        if option.text == "init":
            if isinstance(value, tree.Name) and value.text == "orthogonal":
                return True
            return r.wrong(functions.OptionValue(value.span, "init", "`orthogonal` (uniform where it is left out)"))
    return False


def conv(r: Reader, head: Head) -> Step:
    if not allowed(r, head, step=True) or not well_formed(r, head, 1, brackets=True):
        return None
    arg = yield head.call.args[0]
    match head.bracket:
        case tree.Bracket(left=(tree.Number(int(width)),)) if 1 <= width <= MAX_WIDTH:
            pass
        case bracket:
            span = head.call.span if bracket is None else bracket.inner
            return r.wrong(dims.ConvWidth(span, MAX_WIDTH))
    bias = flag(r, head, "bias")
    if arg is None or bias is None:
        return None
    called, bound = r.maps[id(head.call)], r.graph.lit(width**-0.5)
    low = r.graph.lit(-(width**-0.5))
    shape = arg.dims
    _learn(r, head, called.weights[0], shape, r.graph.draw("uniform", (low, bound), shape), taps=width)
    if width > 1:
        r.cx.generate(called.history, head.call.span, r.place.owner)
    out: ir.Expr = r.graph.conv(called.weights[0], called.history, width, arg)
    if bias:
        ref = _learn(r, head, called.bias, shape, r.graph.draw("uniform", (low, bound), shape))
        out = r.graph.apply("add", out, ref)
    return out


def learned_norm(r: Reader, head: Head, norm: ir.Normalize) -> ir.Expr | None:
    """The scale and the shift that a norm learns, of exactly the dims that it works along."""
    weight, bias = flag(r, head, "weight"), flag(r, head, "bias")
    if weight is None or bias is None:
        return None
    out: ir.Expr = norm
    if (weight or bias) and not allowed(r, head, step=True):
        return None
    if weight:
        name = r.maps[id(head.call)].weights[0]
        out = r.graph.apply("mul", out, _learn(r, head, name, norm.over, r.graph.lit(1.0)))
    if bias:
        name = r.maps[id(head.call)].bias
        out = r.graph.apply("add", out, _learn(r, head, name, norm.over, r.graph.lit(0.0)))
    return out


def _uniform(graph: ir.Graph, ins: tuple[str, ...], shape: tuple[str, ...]) -> ir.Expr:
    """Uniform in ± fan_in ** -0.5, as torch.nn.Linear initialises its weight and its bias."""
    bound = graph.apply("pow", product(ins, graph), graph.lit(-0.5))
    return graph.draw("uniform", (graph.apply("neg", bound), bound), shape)


def _learn(
    r: Reader,
    head: Head,
    name: str,
    shape: tuple[str, ...],
    init: ir.Expr,
    matrix: tuple[int, int] | None = None,
    taps: int | None = None,
) -> ir.Expr:
    span = head.call.span
    r.cx.generate(name, span, r.place.owner)
    r.params.append(
        ir.Param(name, shape, init, declared=False, matrix=matrix, taps=taps, owner=r.place.owner, span=span)
    )
    return r.graph.ref("param", name, ir.Type(shape))
