"""Declarations: who is called what, sizes and their defaults, types, and values before the first token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rnnc import ir, tree
from rnnc.check.context import WORDS, Context, Symbol, SymbolRole
from rnnc.check.reader import Place, Reader
from rnnc.check.regions import contains, region
from rnnc.check.sizes import SIZE_OPS, expand, number_at_defaults, size_at_defaults
from rnnc.check.timing import Reference, circles, lag_of, references
from rnnc.check.words import reserved, reserved_cell
from rnnc.errors import dims, kinds, names, time
from rnnc.source import Span

MAX_SIZE = 2**31 - 1
_ROLES: Mapping[str, SymbolRole] = {word: role for role, word in WORDS.items()}
_FORMS: Mapping[str, str] = {
    "dim": "dim D = 512",
    "const": "const c in (0, inf) = 8.0",
    "input": "input x[D] in [0, 1]",
    "param": "param A[D, N]: complex = EXPR",
    "buffer": "buffer A[D, N]: complex = EXPR",
    "state": "state S[D, N]: complex = EXPR",
}
_PARTS: Mapping[str, frozenset[str]] = {
    "dim": frozenset(("value",)),
    "const": frozenset(("region", "value")),
    "input": frozenset(("dims", "annotation", "region")),
    "param": frozenset(("dims", "annotation", "value")),
    "buffer": frozenset(("dims", "annotation", "value")),
    "state": frozenset(("dims", "annotation", "value")),
}
_INITIAL: frozenset[SymbolRole] = frozenset(("size", "const", "param", "buffer"))


def collect(cx: Context) -> None:
    """Every declared name, once."""
    cell = cx.cell.name
    if (why := reserved_cell(cell.text)) is not None:
        cx.report(names.Reserved(cell.span, cell.text, why))
    for statement in cx.cell.statements:
        match statement:
            case tree.Declaration(keyword=keyword):
                for item in statement.items:
                    _parts(cx, keyword, item)
                    _add(cx, item.name, keyword)
            case tree.Equation(keyword=keyword, target=target):
                _add(cx, target.name, "definition", bare=not keyword and target.span == target.name.span)
            case tree.Output(target=tree.Name() as name) if statement.expr is not None:
                _add(cx, name, "output")
            case _:
                pass
    states = [s.name for s in cx.symbols.values() if s.role == "state"]
    equations = [s.expr for s in cx.cell.statements if isinstance(s, tree.Equation | tree.Update)]
    past = {r.name for e in equations for r in references(e) if r.lag}
    for statement in cx.cell.statements:
        if isinstance(statement, tree.Update) and statement.name.text not in cx.symbols:
            name = statement.name
            near = cx.nearest(name.text, states)
            read = past.union(r.name for r in references(statement.expr))
            alone = lag_of((statement.index,)) == 0 and name.text not in read
            end = cx.source.text.index("]", statement.index.span.end) + 1
            head = Span(name.span.start, end) if alone and near is None else None
            cx.report(time.NotAState(name.span, name.text, "", near, head))
            cx.doubtful.update([] if near is None else [near])
            cx.symbols[name.text] = Symbol(name.text, "def", name.span)


def items(cx: Context, *keywords: str) -> Iterator[tree.Declared]:
    """The declarations of some kinds, without those whose name is another's."""
    for statement in cx.cell.statements:
        if isinstance(statement, tree.Declaration) and statement.keyword in keywords:
            for item in statement.items:
                if cx.symbols[item.name.text].span == item.name.span:
                    yield item


def _add(cx: Context, name: tree.Name, keyword: str, bare: bool = False) -> None:
    why = reserved(name.text, keyword)
    if why is not None:
        cx.report(names.Reserved(name.span, name.text, why))
    if name.text in cx.symbols:
        first = cx.symbols[name.text]
        update = first.role == "state" and bare
        cx.report(names.DeclaredTwice(name.span, name.text, first.span, update))
        cx.doubtful.add(name.text)
        return
    role = _ROLES[keyword]
    cx.symbols[name.text] = Symbol(name.text, role, name.span, ir.Type() if role in ("size", "const") else None)


def _parts(cx: Context, keyword: str, item: tree.Declared) -> None:
    """A declaration must have the parts of its kind, and no others."""
    present: dict[str, Span | None] = {
        "dims": item.dims[0].span.to(item.dims[-1].span) if item.dims else None,
        "annotation": item.annotation and item.annotation.span,
        "region": item.region and item.region.span,
        "value": item.value and item.value.span,
    }
    for part, span in present.items():
        if span is not None and part not in _PARTS[keyword]:
            cx.report(names.PartNotAllowed(span, keyword, item.name.text, part, _FORMS[keyword]))
    if item.value is None and "value" in _PARTS[keyword] and keyword != "state":
        cx.report(names.ValueMissing(item.span, keyword, item.name.text, _FORMS[keyword]))


# --- sizes -----------------------------------------------------------------------------------------------------------


def read_dims(cx: Context) -> tuple[ir.Dim, ...]:
    declared = {item.name.text: item for item in items(cx, "dim")}
    cx.sizes.update(dict.fromkeys(declared))
    uses: dict[str, dict[str, Reference]] = {}
    for name, item in declared.items():
        uses[name] = {} if item.value is None else {r.name: r for r in references(item.value) if r.name in declared}
    order, found = circles(uses)
    for circle in found:
        cx.report(dims.SizeCircle(declared[circle[0]].span, tuple(circle)))
    values = {name: _size(cx, declared[name]) for name in order}
    sizes = {n: v for n, v in values.items() if v is not None}
    return tuple(ir.Dim(n, sizes[n], item.name.span) for n, item in declared.items() if n in sizes)


def _size(cx: Context, item: tree.Declared) -> int | ir.Expr | None:
    name, node = item.name.text, item.value
    if node is None:
        return None
    place = Place(f"the size of `{name}`", frozenset(("size",)), elementwise=True)
    expr = Reader(cx, place).read(node)
    if expr is None:
        return None
    for part in ir.walk(expr):
        whole = isinstance(part, ir.Lit) and type(part.value) is int
        if not whole and not isinstance(part, ir.Ref) and not (isinstance(part, ir.Apply) and part.op in SIZE_OPS):
            cx.report(dims.BadSize(node.span, name, cx.source.slice(node.span)))
            return None
    derived = any(isinstance(part, ir.Ref) for part in ir.walk(expr))
    try:
        size = size_at_defaults(expr, cx.sizes)
    except ZeroDivisionError:
        cx.report(dims.DoesNotDivide(node.span, name, cx.source.slice(node.span), "a division by 0"))
        return None
    if size is None:
        return None
    if not (size.denominator == 1 and 1 <= size <= MAX_SIZE):
        text = cx.source.slice(node.span)
        if derived:
            numbers = _with_numbers(cx, node)
            cx.report(
                dims.DoesNotDivide(node.span, name, text, f"{numbers} = {_decimal(size.numerator / size.denominator)}")
            )
        else:
            cx.report(dims.BadSize(node.span, name, text))
        return None
    cx.sizes[name] = int(size)
    if not derived:
        return int(size)
    cx.derived[name] = expand(expr, cx)
    return cx.derived[name]


def _with_numbers(cx: Context, node: tree.Expr) -> str:
    """The text of a size with the defaults in the places of the names."""
    text, shift = cx.source.slice(node.span), node.span.start
    for use in reversed(list(references(node))):
        a, b = use.span.start - shift, use.span.end - shift
        text = f"{text[:a]}{cx.sizes[use.name]}{text[b:]}"
    return text


def _decimal(value: float) -> str:
    return f"{value:.6g}"


# --- consts and types ------------------------------------------------------------------------------------------------


def read_consts(cx: Context) -> tuple[ir.Const, ...]:
    found: list[ir.Const] = []
    for item in items(cx, "const"):
        cx.consts[item.name.text] = None
        if item.value is None:
            continue
        place = Place(f"the default of `{item.name.text}`", frozenset(), elementwise=True)
        expr = Reader(cx, place).read(item.value)
        number = None if expr is None else number_at_defaults(expr, cx)
        if expr is not None and (number is None or expr.kind != "real"):
            cx.report(kinds.ConstDefault(item.value.span, item.name.text, cx.source.slice(item.value.span)))
        limits = None if item.region is None else region(item.region, "real", cx, before=item.span.start)
        if expr is None or expr.kind != "real" or number is None:
            continue
        cx.consts[item.name.text] = number
        if isinstance(limits, ir.Interval) and item.region is not None and not contains(limits, number, cx):
            text = cx.source.slice(item.region.span)
            cx.report(kinds.ConstOutside(item.value.span, item.name.text, cx.source.slice(item.value.span), text))
        value = expr.value if isinstance(expr, ir.Lit) and isinstance(expr.value, int) else number
        interval = limits if isinstance(limits, ir.Interval) else None
        found.append(ir.Const(item.name.text, value, interval, item.name.span))
    return tuple(found)


def _declared_type(cx: Context, item: tree.Declared) -> ir.Type | None:
    shape, kind = cx.dims(item.dims or ()), cx.kind(item.annotation)
    return None if shape is None or kind is None else ir.Type(shape, kind)


def _set_type(cx: Context, item: tree.Declared, type: ir.Type) -> None:
    symbol = cx.symbols[item.name.text]
    cx.symbols[symbol.name] = Symbol(symbol.name, symbol.role, symbol.span, type)


def read_inputs(cx: Context) -> tuple[ir.Input, ...]:
    found: list[ir.Input] = []
    for item in items(cx, "input"):
        type = _declared_type(cx, item)
        if type is None:
            continue
        _set_type(cx, item, type)
        claim = None if item.region is None else region(item.region, type.kind, cx)
        found.append(ir.Input(item.name.text, type, claim, item.name.span))
    return tuple(found)


def read_params(cx: Context) -> tuple[ir.Param, ...]:
    """Declared params and buffers. The kind is that of the initial value where none is written."""
    found: list[ir.Param] = []
    for keyword, item in _with_keyword(cx):
        type = _declared_type(cx, item)
        if type is None or item.value is None:
            continue
        place = Place(
            f"the initial value of `{item.name.text}`",
            frozenset(("size", "const", "buffer")),
            elementwise=True,
            shape=type.dims,
            before=item.span.start,
            owner=item.name.text,
        )
        init = Reader(cx, place).read(item.value)
        learned = keyword == "param"
        if learned and type.kind == "bool" and item.annotation is not None:
            cx.report(kinds.BoolHere(item.annotation.span, item.name.text, "param"))
            continue
        if init is None or not fits(cx, item, init, type, item.value.span, item.annotation is not None):
            continue
        if item.annotation is None and not (learned and init.kind == "bool"):
            type = ir.Type(type.dims, init.kind)
        _set_type(cx, item, type)
        found.append(ir.Param(item.name.text, type.dims, init, type.kind, learned, span=item.name.span))
    return tuple(found)


def _with_keyword(cx: Context) -> Iterator[tuple[str, tree.Declared]]:
    for item in items(cx, "param", "buffer"):
        yield cx.symbols[item.name.text].role, item


def fits(
    cx: Context, item: tree.Declared, value: ir.Expr, type: ir.Type, span: Span, kind_matters: bool = True
) -> bool:
    """Whether a value may stand for a declared name: it adds no dim, and no imaginary part."""
    extra = tuple(d for d in value.dims if d not in type.dims)
    if extra:
        cx.report(dims.ExtraDims(span, item.name.text, extra, type.dims))
        return False
    if kind_matters and value.kind == "complex" and type.kind != "complex":
        plain = item.annotation is None and item.value is None
        at = Span(item.span.end, item.span.end) if plain else None
        cx.report(kinds.ComplexIntoReal(span, item.name.text, cx.symbols[item.name.text].role, at))
        return False
    return True


def read_states(cx: Context) -> tuple[dict[str, tuple[tree.Declared, ir.Expr]], list[ir.Param]]:
    """Each state's declaration and initial value, and the initial values that are learned."""
    found: dict[str, tuple[tree.Declared, ir.Expr]] = {}
    learned: list[ir.Param] = []
    for item in items(cx, "state"):
        name, type = item.name.text, _declared_type(cx, item)
        if type is not None and type.kind == "bool" and item.annotation is not None:
            cx.report(kinds.BoolHere(item.annotation.span, name, "state"))
            type = None
        if type is None:
            continue
        _set_type(cx, item, type)
        match item.value:
            case None:
                init = cx.graph.lit(0.0)
            case tree.Name("param"):
                param = f"{name}_init"
                cx.generate(param, item.value.span, name)
                learned.append(
                    ir.Param(
                        param, type.dims, cx.graph.lit(0.0), type.kind, declared=False, owner=name, span=item.name.span
                    )
                )
                init = cx.graph.ref("param", param, type)
            case node:
                init = Reader(cx, Place(f"the initial value of `{name}`", _INITIAL)).read(node)
                if init is not None and not fits(cx, item, init, type, node.span):
                    init = None
        if init is not None:
            found[name] = item, init
    return found, learned
