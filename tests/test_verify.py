"""The verifier: it accepts what the checker makes, and notices when a part of it is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings

from rnnc import ir
from rnnc.check import check
from rnnc.lower import lower
from rnnc.parse import parse
from rnnc.source import Source
from rnnc.verify import InvalidIR, verify, verify_types
from tests.strategies import Program, programs

TEXT = """cell Right
dim D = 8, H = 2, P = D / H, J = 3
const c in (0, inf) = 1
input x[D] in [0, 1], k[J, D]
param A[D] = normal(0.1)
buffer b[D] = arange[D](0)
gate z = sigmoid(linear(x -> D) + A)
y = conv[4](x) * b
state h[D] = A
h[t] over J = z * h[t-1] + k + y
state g[D]: complex
g[t] = 1j * g[t-1] + h[t]
eigenvalues h in [0, 1]
output real(g[t])
"""


def right() -> ir.Cell:
    source = Source("right.rnn", TEXT)
    cell, found = check(parse(source).cells[0], source)
    assert cell is not None, found
    return cell


def test_right() -> None:
    verify(right())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(programs())
def test_random_programs(program: Program) -> None:
    source = Source("random.rnn", program.text)
    cell, found = check(parse(source).cells[0], source)
    assert cell is not None, found
    verify(cell)
    system = lower(cell)
    verify_types([*(s.expr for s in system.streams), *(e for _, e in system.outputs)], system.graph)


def with_param(cell: ir.Cell, name: str, **changes: object) -> ir.Cell:
    params = tuple(replace(p, **changes) if p.name == name else p for p in cell.params)
    return replace(cell, params=params)


def with_output(cell: ir.Cell, expr: ir.Expr) -> ir.Cell:
    return replace(cell, outputs=(ir.Output("out", expr),))


def with_state(cell: ir.Cell, expr: ir.Expr) -> ir.Cell:
    return replace(cell, states=(replace(cell.states[0], expr=expr, over=None), *cell.states[1:]))


def x(cell: ir.Cell, lag: int = 0) -> ir.Ref:
    return cell.graph.ref("input", "x", cell.input("x").type, lag)


def h(cell: ir.Cell, lag: int = 0) -> ir.Ref:
    return cell.graph.ref("state", "h", cell.state("h").type, lag)


def k(cell: ir.Cell) -> ir.Ref:
    return cell.graph.ref("input", "k", cell.input("k").type)


WRONG: dict[str, tuple[Callable[[ir.Cell], ir.Cell], str]] = {
    "no output": (lambda c: replace(c, outputs=()), "no output"),
    "two outputs": (lambda c: replace(c, outputs=c.outputs * 2), "two outputs"),
    "a name twice": (lambda c: replace(c, inputs=c.inputs * 2), "name twice"),
    "a lost definition": (lambda c: replace(c, definitions=c.definitions[1:]), "is no def"),
    "a lost input": (lambda c: replace(c, inputs=c.inputs[1:]), "is no input"),
    "a lost weight": (lambda c: replace(c, params=tuple(p for p in c.params if p.declared)), "z_weight"),
    "a weight of another shape": (lambda c: with_param(c, "z_weight", shape=("J", "D")), "another shape"),
    "a weight of another form": (lambda c: with_param(c, "z_weight", matrix=(1, 1)), "another form"),
    "a conv of another width": (lambda c: with_param(c, "y_weight", taps=3), "another shape"),
    "a learned buffer": (lambda c: with_param(c, "b", learned=True), "is no buffer"),
    "a buffer from the future": (
        lambda c: with_param(c, "A", init=c.graph.ref("buffer", "b", ir.Type(("D",)))),
        "is not there yet",
    ),
    "an input in an initial value": (lambda c: with_param(c, "A", init=x(c)), "in a place that has none"),
    "a draw outside": (lambda c: with_output(c, c.graph.draw("eye", (), ("D", "H"))), "outside the initial value"),
    "another type": (lambda c: with_output(c, c.graph.ref("input", "x", ir.Type(("H",)))), "is declared as"),
    "a future": (lambda c: with_output(c, x(c, -1)), "impossible lag"),
    "a const with a past": (lambda c: with_output(c, c.graph.ref("const", "c", ir.Type(), 1)), "impossible lag"),
    "a state with more dims": (lambda c: with_state(c, k(c)), "more dims"),
    "a state in a circle": (lambda c: with_state(c, h(c)), "circle"),
    "a complex value for a real state": (
        lambda c: with_state(c, c.graph.apply("mul", c.graph.lit(1j), x(c))),
        "is real",
    ),
    "the order of complex numbers": (
        lambda c: with_output(c, c.graph.apply("max", c.graph.lit(1j), x(c))),
        "takes no complex",
    ),
    "a condition that is no bool": (lambda c: with_output(c, c.graph.apply("where", x(c), x(c), x(c))), "needs a bool"),
    "a renaming of nothing": (lambda c: with_output(c, c.graph.rename(x(c), "J", "H")), "renames wrongly"),
    "a renaming to what is there": (lambda c: with_output(c, c.graph.rename(k(c), "J", "D")), "renames wrongly"),
    "a split into one dim twice": (lambda c: with_output(c, c.graph.split(x(c), "D", ("H", "H"))), "splits wrongly"),
    "a merge of what is not there": (lambda c: with_output(c, c.graph.merge(x(c), ("H", "P"), "D")), "merges wrongly"),
    "a norm along a missing dim": (lambda c: with_output(c, c.graph.normalize("l2norm", ("J",), x(c))), "wrong dims"),
    "a map of other dims": (
        lambda c: with_output(c, c.graph.linear("z_weight", k(c), (), ("D",), ("D",))),
        "maps other dims",
    ),
    "a system without rows": (lambda c: with_output(c, c.graph.solve("H", "P", k(c), x(c))), "wrong dims"),
    "a gradient by an input": (lambda c: with_output(c, c.graph.grad(x(c), x(c))), "no past state"),
    "half a claim": (
        lambda c: replace(c, definitions=(replace(c.definitions[0], region=None), *c.definitions[1:])),
        "half a range",
    ),
    "a range that varies": (
        lambda c: replace(c, outputs=(ir.Output("out", x(c), ir.Disc(x(c))),)),
        "place that has none",
    ),
    "a spectrum of nothing": (
        lambda c: replace(c, eigenvalues=(ir.Eigenvalues("x", ir.Disc(c.graph.lit(1))),)),
        "is no state",
    ),
    "a node with a wrong type": (
        lambda c: with_output(c, ir.Apply(ir.Type(("H",)), "exp", (x(c),))),
        "its operands imply",
    ),
    "an operation with too many operands": (
        lambda c: with_output(c, ir.Apply(ir.Type(("D",)), "exp", (x(c), x(c)))),
        "number of operands",
    ),
    "a definition in its own past": (
        lambda c: replace(
            c,
            definitions=(
                c.definitions[0],
                replace(c.definitions[1], expr=c.graph.ref("def", "y", c.definition("y").type, 1)),
            ),
        ),
        "circle",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong(what: str) -> None:
    spoil, why = WRONG[what]
    with pytest.raises(InvalidIR, match=why):
        verify(spoil(right()))
