"""Whether the IR is what `ir.py` says it is. For tests and for debugging: what fails here is a bug of the compiler.

`verify` looks at a whole cell; `verify_types` at the nodes of any expressions, also after lowering.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from rnnc import ir
from rnnc.ir import COMPLEX_OPS, LOGIC, NORMALIZERS, OPS, REDUCTIONS, Expr, Kind, Type, op_kind
from rnnc.show import expr_text

_TIMELESS = frozenset(("const", "size", "param", "buffer"))
_ORDERED = ("max", "min", "logsumexp")


class InvalidIR(Exception):
    """A bug of the compiler: some stage made what the IR has no meaning for."""


def verify(cell: ir.Cell) -> None:
    """Raise `InvalidIR` unless every part of a cell is well-formed."""
    _Verifier(cell).run()


def verify_types(roots: Iterable[Expr], graph: ir.Graph) -> None:
    """Raise `InvalidIR` unless the type of every node is what its operands imply."""
    for node in ir.walk(*roots):
        found = _type(node, graph)
        _require(found is None or node.type == found, node, f"has the type {node.type}, and its operands imply {found}")


def _require(condition: bool, what: Expr | str, why: str) -> None:
    if not condition:
        raise InvalidIR(f"`{what if isinstance(what, str) else expr_text(what)}` {why}")


def _number(*args: Expr) -> Kind:
    return "complex" if any(a.kind == "complex" for a in args) else "real"


def _type(node: Expr, graph: ir.Graph) -> Type | None:
    """The type that follows from the operands; None for a leaf. Checks that the operands are allowed."""

    def sort(*dims: str) -> tuple[str, ...]:
        _require(all(d in graph.order for d in dims), node, "has a dim that is not declared")
        return tuple(d for d in graph.order if d in dims)

    match node:
        case ir.Lit(value=value):
            return Type((), "bool" if isinstance(value, bool) else "complex" if isinstance(value, complex) else "real")
        case ir.Apply(op=op, args=args):
            _require(OPS.get(op) == len(args), node, "has the wrong number of operands")
            complex_ = any(a.kind == "complex" for a in args)
            _require(not complex_ or op in COMPLEX_OPS, node, "takes no complex numbers")
            conditions = args if op in LOGIC else args[:1] if op == "where" else args[1:] if op == "only" else ()
            _require(all(c.kind == "bool" for c in conditions), node, "needs a bool")
            return Type(sort(*(d for a in args for d in a.dims)), op_kind(op, args))
        case ir.Reduce(op=op, over=over, arg=arg):
            _require(op in REDUCTIONS and over != (), node, "is no reduction")
            _require(arg.kind != "complex" or op not in _ORDERED, node, "orders complex numbers")
            return Type(sort(*(d for d in arg.dims if d not in sort(*over))), _number(arg))
        case ir.Normalize(op=op, over=over, arg=arg):
            _require(op in NORMALIZERS and over != () and set(over) <= set(arg.dims), node, "has the wrong dims")
            return Type(sort(*arg.dims), _number(arg))
        case ir.Rename(arg=arg, old=old, new=new):
            _require(old in arg.dims and new not in arg.dims, node, "renames wrongly")
            return Type(sort(*(new if d == old else d for d in arg.dims)), arg.kind)
        case ir.Split(arg=arg, dim=dim, into=into):
            rest = [d for d in arg.dims if d != dim]
            _require(dim in arg.dims and not set(into) & set(rest) and _distinct(into), node, "splits wrongly")
            return Type(sort(*rest, *into), arg.kind)
        case ir.Merge(arg=arg, merged=merged, into=into):
            rest = [d for d in arg.dims if d not in merged]
            _require(set(merged) <= set(arg.dims) and into not in rest and _distinct(merged), node, "merges wrongly")
            return Type(sort(*rest, into), arg.kind)
        case ir.Linear():
            ins, outs = (node.outs, node.ins) if node.transposed else (node.ins, node.outs)
            _require(_distinct((*node.kept, *ins)) and _distinct((*node.kept, *outs)), node, "has a dim twice")
            _require(set(node.arg.dims) == {*node.kept, *ins}, node, "maps other dims than its operand has")
            return Type(sort(*node.kept, *outs), _number(node.arg))
        case ir.Conv(arg=arg):
            _require(node.width >= 1, node, "has no width")
            return Type(sort(*arg.dims), _number(arg))
        case ir.Solve(row=row, col=col, matrix=matrix, rhs=rhs):
            fits = row != col and {row, col} <= set(matrix.dims) and row in rhs.dims and col not in rhs.dims
            _require(fits, node, "has the wrong dims")
            rest = [d for d in (*matrix.dims, *rhs.dims) if d not in (row, col)]
            return Type(sort(*rest, row), _number(matrix, rhs))
        case ir.Grad(wrt=wrt):
            _require(wrt.role == "state" and wrt.lag > 0, node, "differentiates by no past state")
            return wrt.type
        case _:
            return None


def _distinct(names: Sequence[str]) -> bool:
    return len(set(names)) == len(names)


class _Verifier:
    def __init__(self, cell: ir.Cell) -> None:
        self.cell = cell
        self.types: Mapping[ir.Role, Mapping[str, Type]] = {
            "const": {c.name: Type() for c in cell.consts},
            "size": {d.name: Type() for d in cell.dims},
            "param": {p.name: p.type for p in cell.params if p.learned},
            "buffer": {p.name: p.type for p in cell.params if not p.learned},
            "input": {i.name: i.type for i in cell.inputs},
            "def": {d.name: d.type for d in cell.definitions},
            "state": {s.name: s.type for s in cell.states},
        }
        self.params = {p.name: p for p in cell.params}

    def run(self) -> None:
        cell = self.cell
        named = (cell.consts, cell.dims, cell.params, cell.inputs, cell.definitions, cell.states)
        names = [value.name for values in named for value in values]
        _require(_distinct(names), cell.name, "has a name twice")
        _require(tuple(cell.graph.order) == tuple(d.name for d in cell.dims), cell.name, "orders its dims otherwise")
        _require(_distinct([o.name for o in cell.outputs]), cell.name, "has two outputs of one name")
        _require(len(cell.outputs) > 0, cell.name, "has no output")
        self._declarations()
        for definition in cell.definitions:
            self._equation(definition.expr)
            self._region(definition.region)
            _require((definition.claim is None) == (definition.region is None), definition.name, "claims half a range")
        for state in cell.states:
            self._state(state)
        for output in cell.outputs:
            self._equation(output.expr)
            self._region(output.region)
        for claim in cell.eigenvalues:
            _require(claim.state in self.types["state"], claim.state, "is no state")
            self._region(claim.region)
        self._no_circles()

    def _declarations(self) -> None:
        cell = self.cell
        plain = {d.name for d in cell.dims if not d.derived}
        for dim in cell.dims:
            if isinstance(dim.size, Expr):
                self._scalar(dim.size, frozenset(("size",)))
                used = {n.name for n in ir.walk(dim.size) if isinstance(n, ir.Ref)}
                _require(used <= plain, dim.name, "is made of a derived dim")
            else:
                _require(dim.size >= 1, dim.name, "has no size")
        for left, right, _ in cell.size_checks:
            self._scalar(left, frozenset(("size",)))
            self._scalar(right, frozenset(("size",)))
        for const in cell.consts:
            self._region(const.region)
        for value in cell.inputs:
            self._declared(value.name, value.type)
            self._region(value.region)
        known: set[str] = set()
        for param in cell.params:
            self._param(param, known)
            known.add(param.name)

    def _declared(self, name: str, type: Type) -> None:
        _require(set(type.dims) <= set(self.cell.graph.order), name, "has a dim that is not declared")
        _require(_distinct(type.dims), name, "has a dim twice")

    def _param(self, param: ir.Param, known: set[str]) -> None:
        if param.matrix is None:
            self._declared(param.name, param.type)
        else:
            kept, outs = param.matrix
            _require(min(kept, outs) >= 0 and kept + outs <= len(param.shape), param.name, "is no matrix")
        _require(not (param.learned and param.kind == "bool"), param.name, "cannot be learned")
        self._refs(param.init, frozenset(("const", "size", "buffer")))
        verify_types([param.init], self.cell.graph)
        for node in ir.walk(param.init):
            _require(isinstance(node, ir.Lit | ir.Ref | ir.Apply | ir.Draw), node, "is not elementwise")
            if isinstance(node, ir.Ref) and node.role == "buffer":
                _require(node.name in known, node, f"is not there yet for `{param.name}`")
        _require(set(param.init.dims) <= set(param.shape), param.name, "starts with more dims than it has")

    def _state(self, state: ir.State) -> None:
        self._declared(state.name, state.type)
        self._refs(state.init, frozenset(("const", "size", "param", "buffer")))
        verify_types([state.init], self.cell.graph)
        self._equation(state.expr)
        extra = set(state.expr.dims) - set(state.type.dims)
        _require(set(state.init.dims) <= set(state.type.dims), state.name, "starts with more dims than it has")
        _require(extra <= {state.over}, state.name, "is given more dims than it has")
        _require(state.over is None or state.over not in state.type.dims, state.name, "goes over its own dim")
        kinds = {state.init.kind, state.expr.kind}
        _require(
            state.type.kind == "complex" or "complex" not in kinds, state.name, "is real, and given a complex value"
        )
        _require(state.type.kind != "bool", state.name, "is bool")

    def _equation(self, root: Expr) -> None:
        self._refs(root, frozenset(self.types))
        verify_types([root], self.cell.graph)
        for node in ir.walk(root):
            _require(not isinstance(node, ir.Draw), node, "stands outside the initial value of a param")
            if isinstance(node, ir.Linear):
                param = self._learned(node.weight, node)
                _require(param.shape == (*node.kept, *node.outs, *node.ins), node, "has a weight of another shape")
                _require(param.matrix == (len(node.kept), len(node.outs)), node, "has a weight of another form")
            elif isinstance(node, ir.Conv):
                param = self._learned(node.weight, node)
                _require(
                    param.shape == node.arg.dims and param.taps == node.width, node, "has a weight of another shape"
                )

    def _learned(self, name: str, node: Expr) -> ir.Param:
        _require(name in self.params, node, f"needs the parameter `{name}`")
        return self.params[name]

    def _refs(self, root: Expr, roles: frozenset[str]) -> None:
        for node in ir.walk(root):
            if isinstance(node, ir.Ref):
                _require(node.role in roles, node, f"is a {node.role}, in a place that has none")
                declared = self.types[node.role].get(node.name)
                _require(declared is not None, node, f"is no {node.role} of the cell")
                _require(node.type == declared, node, f"has the type {node.type}, and is declared as {declared}")
                _require(node.lag == 0 or (node.lag > 0 and node.role not in _TIMELESS), node, "has an impossible lag")

    def _region(self, region: ir.Region | None) -> None:
        match region:
            case ir.Interval(lo, hi):
                ends = (lo, hi)
            case ir.Disc(radius):
                ends = (radius,)
            case ir.Annulus(inner, outer):
                ends = (inner, outer)
            case None:
                ends = ()
        for end in ends:
            self._scalar(end, frozenset(("const",)))

    def _scalar(self, root: Expr, roles: frozenset[str]) -> None:
        self._refs(root, roles)
        verify_types([root], self.cell.graph)
        _require(root.type == Type(), root, "is no real number")
        for node in ir.walk(root):
            _require(isinstance(node, ir.Lit | ir.Ref | ir.Apply), node, "is no arithmetic")

    def _no_circles(self) -> None:
        definitions = {d.name: _uses(d.expr, ("def",), past=True) for d in self.cell.definitions}
        now = {d.name: _uses(d.expr, ("def", "state")) for d in self.cell.definitions}
        now |= {s.name: _uses(s.expr, ("def", "state")) for s in self.cell.states}
        for graph in (definitions, now):
            try:
                TopologicalSorter(graph).prepare()
            except CycleError as error:
                raise InvalidIR(f"a circle: {' <- '.join(error.args[1])}") from None


def _uses(root: Expr, roles: tuple[str, ...], *, past: bool = False) -> set[str]:
    refs = (n for n in ir.walk(root) if isinstance(n, ir.Ref) and n.role in roles)
    return {n.name for n in refs if past or not n.lag}
