"""The families beyond the affine one: what each takes, however it is written, and refuses; that parameters composed in
any order give what the interpreter gives step by step; that a wrong composition has no certificate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backends.reference.token import Setting, Token
from rnnc import ir
from rnnc.bound import bound
from rnnc.closure import Affine, Block, Closure, Composable, Moebius, Sequential, Tropical, Variable, close
from rnnc.closure.formula import same, same_modulo
from rnnc.closure.lattice import same_order
from rnnc.closure.obligations import settle
from rnnc.closure.proof import composes
from rnnc.explain import reason
from rnnc.group import group
from rnnc.ir import Expr, Graph
from rnnc.lower import System, lower
from rnnc.pipeline import compile_source
from rnnc.show import expr_text, region_text
from rnnc.source import Source
from rnnc.verify import verify_types
from tests.cells import EXAMPLES, example, read

HEAD = """cell C
dim D = 3, N = 3
input x[D], w[D], z[D] in [0, 1], q[D] in [0, inf), r[D] in (0, inf), done: bool
param U[D, N] = normal(1)
"""
B, T = 4, 23


def found_in(text: str, state: str, settled: bool = True) -> tuple[System, Closure]:
    cell = read(text)
    made = lower(cell)
    closures = tuple(close(made, g) for g in group(made))
    if settled:
        closures = settle(made, closures, bound(cell, Source("test.rnn", text)).always)
    (found,) = [c for c in closures if state in c.group.states]
    return made, found


def cell(update: str, state: str = "h[D]", *more: str) -> str:
    return HEAD + "\n".join([f"state {state}", *more, f"h[t] = {update}", "output h[t]"]) + "\n"


# --- numbers ---------------------------------------------------------------------------------------------------------


@dataclass
class Numbers:
    """Values of expressions by the interpreter's elementwise operations."""

    system: System

    def __call__(
        self, roots: Sequence[Expr], inputs: Mapping[str, Tensor], state: Mapping[str, Tensor]
    ) -> list[Tensor]:
        sizes = {"": B, **{d.name: int(d.size) for d in self.system.cell.dims if isinstance(d.size, int)}}
        setting = Setting(self.system.cell, sizes, {}, {}, torch.float64, torch.device("cpu"))
        token = Token(setting, inputs, state)
        dims = ("", *self.system.stream(self.system.streams[0].name).type.dims)
        written = [self.written(e) for e in roots]
        return [token.now(e).with_dims(dims, sizes).to(dims, sizes).clone() for e in written]

    def written(self, root: Expr) -> Expr:
        """Without what only lowered programs have."""
        done: dict[Expr, Expr] = {}
        for node in ir.walk(root):
            kept = self.system.graph.rebuild(node, tuple(done[c] for c in node.children)) if node.children else node
            lowered = isinstance(kept, ir.Apply) and kept.op in ("only", "like")
            done[node] = kept.children[0] if lowered else kept
        return done[root]


def drawn(system: System) -> dict[str, Tensor]:
    """Inputs within their ranges, at one token."""
    out: dict[str, Tensor] = {}
    for i in system.cell.inputs:
        shape = (B, *(3 for _ in i.type.dims))
        lo = expr_text(i.region.lo) if isinstance(i.region, ir.Interval) else ""
        hi = expr_text(i.region.hi) if isinstance(i.region, ir.Interval) else ""
        if i.type.kind == "bool":
            out[i.name] = torch.rand(shape) < 0.1
        elif lo == "0" and hi == "1":
            out[i.name] = torch.rand(shape, dtype=torch.float64)
        elif lo == "0":
            out[i.name] = torch.rand(shape, dtype=torch.float64) * 2 + 0.01
        else:
            out[i.name] = torch.randn(shape, dtype=torch.float64)
    return out


def folded(closure: Composable, numbers: Numbers, maps: list[list[Tensor]]) -> list[Tensor]:
    """All maps composed, oldest first, in a bracketing drawn at random."""
    while len(maps) > 1:
        at = int(torch.randint(len(maps) - 1, ()))
        maps[at : at + 2] = [composed(closure, numbers, maps[at + 1], maps[at])]
    return maps[0]


def named(letter: str, values: Sequence[Tensor]) -> tuple[tuple[Expr, ...], dict[str, Tensor]]:
    graph = Graph(["D", "N"])
    names = [f"{letter}{i}" for i in range(len(values))]
    type_ = ir.Type(("D",))
    return tuple(graph.ref("input", n, type_) for n in names), dict(zip(names, values, strict=True))


def composed(c: Composable, numbers: Numbers, later: list[Tensor], earlier: list[Tensor]) -> list[Tensor]:
    (p, of_p), (q, of_q) = named("p", earlier), named("q", later)
    return numbers(c.compose(numbers.system.graph, q, p), {**of_p, **of_q}, {})


def applied(c: Composable, numbers: Numbers, parameters: list[Tensor], states: list[Tensor]) -> list[Tensor]:
    (p, of_p), (s, of_s) = named("p", parameters), named("s", states)
    return numbers(c.apply(numbers.system.graph, p, s), {**of_p, **of_s}, {})


def close_to(x: Sequence[Tensor], y: Sequence[Tensor]) -> None:
    for a, b in zip(x, y, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


CELLS = {
    "kalman": cell("(h[t-1] + q) * r / (h[t-1] + q + r)", "h[D] = 1"),
    "diffuse": cell("1 / (1 / (h[t-1] + q) + 1 / r)", "h[D] = inf"),
    "peak": cell("max(h[t-1] - (1 - z), x)", "h[D] = -inf"),
    "energy": cell("sqrt(z * h[t-1] ** 2 + (1 - z) * x ** 2)"),
    "stabiliser": cell("max(logsigmoid(w) + h[t-1], x)", "h[D] = -inf"),
    "running maximum": cell("max(h[t-1], x)", "h[D] = -inf"),
    "oscillator": cell(
        "cos(z) * h[t-1] - sin(z) * g[t-1] + x", "h[D], g[D] = 1", "g[t] = sin(z) * h[t-1] + cos(z) * g[t-1]"
    ),
    "symplectic": cell("h[t-1] + 0.1 * g[t]", "h[D] = 1, g[D]", "g[t] = g[t-1] - z * h[t-1] + x"),
    "alpha-beta": cell(
        "h[t-1] + 0.1 * v[t-1] + z * e", "h[D], v[D]", "e = x - (h[t-1] + 0.1 * v[t-1])", "v[t] = v[t-1] + 0.2 * z * e"
    ),
    "AR(3)": cell("0.5 * h[t-1] + 0.3 * z * h[t-2] - 0.1 * h[t-3] + x", "h[D] = 1"),
    "relu": cell("relu(z * h[t-1] + x)"),
    "clamp": cell("clamp(h[t-1] + x, -1, 1)"),
    "clamp with a reset": cell("where(done, x, min(max(exp(w) * h[t-1] + x, -1), q))", "h[D] = -inf"),
    "product": cell("h[t-1] ** z * exp(x)", "h[D] = 1"),
    "logaddexp": cell("logaddexp(h[t-1] + w, x)", "h[D] = -inf"),
    "log of sums": cell("log(z * exp(h[t-1]) + q)", "h[D] = 1"),
    "p-norm": cell("(z * h[t-1] ** 3 + q) ** (1 / 3)"),
    "inverse square": cell("rsqrt(z / h[t-1] ** 2 + r)", "h[D] = 1"),
    "logit": cell("sigmoid(z * log(h[t-1] / (1 - h[t-1])) + x)", "h[D] = 0.5"),
    "atanh": cell("tanh(0.5 * z * log((1 + h[t-1]) / (1 - h[t-1])) + x)"),
}


@pytest.mark.parametrize("name", CELLS)
def test_composed_in_any_order_they_are_the_steps(name: str) -> None:
    torch.manual_seed(1)
    system, closure = found_in(CELLS[name], "h")
    assert isinstance(closure, Composable), reason(system, closure)
    verify_types([*closure.parameters], system.graph)
    numbers = Numbers(system)
    start: dict[str, Tensor] = {}
    for s in system.streams:
        assert s.init is not None
        start[s.name] = numbers([s.init], {}, {})[0]
    fields = {f"{s.name}_past": start[s.name][:, None].expand(-1, 3, -1) for s in system.streams}
    state = dict(start)
    first = [start[n] for n, _ in closure.components]
    maps: list[list[Tensor]] = []
    outputs: list[Tensor] = []
    for t in range(T):
        inputs = drawn(system)
        maps.append(numbers(closure.parameters, inputs, {**state, **fields}))
        new = numbers([system.graph.ref("state", s.name, s.type) for s in system.streams], inputs, {**state, **fields})
        fields = {f: torch.cat([state[f[:-5]][:, None], old[:, :-1]], 1) for f, old in fields.items()}
        state = dict(zip(state, new, strict=True))
        outputs.append(state["h"])
        now = [state[n] if lag == 1 else fields[f"{n}_past"][:, lag - 2] for n, lag in closure.components]
        if t in (0, 1, 7, T - 1):
            close_to(applied(closure, numbers, folded(closure, numbers, list(maps)), first), now)
    assert all(o.isfinite().all() for o in outputs)


@pytest.mark.parametrize("name", CELLS)
def test_the_identity_changes_nothing(name: str) -> None:
    system, closure = found_in(CELLS[name], "h")
    assert isinstance(closure, Composable)
    numbers = Numbers(system)
    still = numbers(closure.identity(system.graph), {}, {})
    states = [torch.full((B, 3), 0.3, dtype=torch.float64) for _ in closure.components]
    close_to(applied(closure, numbers, still, states), states)
    if isinstance(closure, Tropical) or (isinstance(closure, Moebius) and closure.infinite):
        for end in (-math.inf, math.inf):
            far = [torch.full((B, 3), end, dtype=torch.float64)]
            close_to(applied(closure, numbers, still, far), far)
    some = numbers(closure.parameters, drawn(system), {})
    close_to(
        applied(closure, numbers, composed(closure, numbers, some, still), states),
        applied(closure, numbers, some, states),
    )
    close_to(
        applied(closure, numbers, composed(closure, numbers, still, some), states),
        applied(closure, numbers, some, states),
    )


@pytest.mark.parametrize("roles", ["c", "bc", "bd", "abc", "abcd"])
def test_infinities_absorb(roles: str) -> None:
    """Bounds that are none, parameters that are masked, states that begin at an infinity: nothing becomes NaN, and the
    composition of two maps is the one after the other."""
    torch.manual_seed(2)
    texts = {"c": "max(h[t-1], x)", "bc": "max(h[t-1] + w, x)", "bd": "min(h[t-1] + w, x)"}
    texts |= {"abc": "relu(z * h[t-1] + w)", "abcd": "clamp(z * h[t-1] + w, -1, 1)"}
    system, closure = found_in(cell(texts[roles]), "h")
    assert isinstance(closure, Tropical) and closure.roles == roles
    numbers = Numbers(system)
    choices = {"a": [0, 0.5, 1], "b": [-math.inf, -1, 0, 2], "c": [-math.inf, -1, 0.5], "d": [-0.5, 1, math.inf]}

    def some() -> list[Tensor]:
        picked = [torch.tensor(choices[r], dtype=torch.float64) for r in roles]
        return [p[torch.randint(len(p), (B, 3))] for p in picked]

    for _ in range(30):
        one, two, three = some(), some(), some()
        for s in (-math.inf, -1.5, 0.0, 0.7, math.inf):
            states = [torch.full((B, 3), s, dtype=torch.float64)]
            stepped = applied(closure, numbers, two, applied(closure, numbers, one, states))
            once = applied(closure, numbers, composed(closure, numbers, two, one), states)
            assert not stepped[0].isnan().any()
            close_to(once, stepped)
        left = composed(closure, numbers, three, composed(closure, numbers, two, one))
        right = composed(closure, numbers, composed(closure, numbers, three, two), one)
        assert not any(p.isnan().any() for p in left)
        states = [torch.randn(B, 3, dtype=torch.float64)]
        close_to(applied(closure, numbers, left, states), applied(closure, numbers, right, states))


def test_products_of_fractions_do_not_overflow() -> None:
    system, closure = found_in(cell("(h[t-1] * 30 + q) * r / (h[t-1] + q + r)", "h[D] = 1"), "h")
    assert isinstance(closure, Moebius)
    numbers = Numbers(system)
    whole = numbers(closure.parameters, drawn(system), {})
    for _ in range(17):
        whole = composed(closure, numbers, whole, whole)
    assert all(p.isfinite().all() and p.abs().max() <= 1 for p in whole)


# --- however it is written -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "update, roles, parameters",
    [
        ("max(h[t-1], x)", "c", ["x"]),
        ("-max(-h[t-1], -x)", "d", ["x"]),
        ("max(h[t-1] - (1 - z), x)", "bc", ["-(1 - z)", "x"]),
        ("relu(exp(w) * h[t-1] + x)", "abc", ["exp(w)", "x", "0.0"]),
        ("x - relu(-h[t-1])", "bd", ["x", "x"]),
        ("clamp(h[t-1] + x, -1, 1)", "bcd", ["x", "-1", "1"]),
        ("2 * relu(h[t-1]) - 1", "abc", ["2", "-1", "-1"]),
        ("-2 * min(-h[t-1], 1)", "ac", ["2", "-2"]),
        ("relu(h[t-1]) / (1 + exp(w))", "ac", ["sigmoid(-w)", "0.0"]),
        ("where(done, x, max(h[t-1] + w, x))", "bcd", ["where(done, 0.0, w)", "x", "where(done, x, inf)"]),
        ("max(h[t-1] + z * (x - h[t-1]), w)", "abc", None),
        ("max(max(h[t-1], x), w)", "c", ["max(x, w)"]),
        ("max(h[t-1] + x, h[t-1] + w, q)", "bc", ["max(x, w)", "q"]),
        ("min(z * h[t-1], min(x, z * h[t-1] + w))", "abd", ["z", "min(0.0, w)", "x"]),
    ],
)
def test_tropical(update: str, roles: str, parameters: list[str] | None) -> None:
    _, found = found_in(cell(update), "h")
    assert isinstance(found, Tropical) and found.roles == roles and found.certificate
    if parameters is not None:
        assert [expr_text(p) for p in found.parameters] == parameters


@pytest.mark.parametrize(
    "update, init, phi, parameters",
    [
        ("sqrt(z * h[t-1] ** 2 + (1 - z) * x ** 2)", "0", "the square", ["z", "(1 - z) * x ** 2"]),
        ("(z * h[t-1] * h[t-1] + x * x) ** 0.5", "0", "the square", None),
        ("2 * sqrt(z * square(h[t-1]) + q)", "0", "the square", ["4.0 * z", "4.0 * q"]),
        ("where(done, r, sqrt(z * h[t-1] ** 2 + q))", "0", "the square", None),
        ("square(z * sqrt(h[t-1]) + q)", "0", "the square root", ["z", "q"]),
        ("h[t-1] / (1 + r * h[t-1])", "1", "the reciprocal", ["1", "r"]),
        ("1 / (1 / h[t-1] + r)", "1", "the reciprocal", ["1.0", "r"]),
        ("h[t-1] ** z * exp(x)", "1", "log", ["z", "x"]),
        ("exp(z * log(h[t-1]) + x)", "1", "log", ["z", "x"]),
        ("sqrt(h[t-1]) * r", "1", "log", ["0.5", "log(r)"]),
        ("r / sqrt(z / h[t-1] ** 2 + r)", "1", "the inverse square", None),
        ("logaddexp(h[t-1] + w, x)", "0", "exp", ["w", "x"]),
        ("log(exp(h[t-1] + w) + exp(x))", "0", "exp", ["w", "x"]),
        ("log(z * exp(h[t-1]) + q)", "0", "exp", ["log(z)", "log(q)"]),
        ("softplus(h[t-1] + w)", "0", "exp", ["w", "0.0"]),
        ("sigmoid(z * (log(h[t-1]) - log1p(-h[t-1])) + x)", "0.5", "logit", ["z", "x"]),
        ("tanh(0.5 * log((1 + h[t-1]) / (1 - h[t-1])) + x)", "0", "atanh", None),
    ],
)
def test_variable(update: str, init: str, phi: str, parameters: list[str] | None) -> None:
    system, found = found_in(cell(update, f"h[D] = {init}"), "h")
    assert isinstance(found, Variable), reason(system, found)
    assert found.phi.text == phi and found.certificate
    if parameters is not None:
        assert [expr_text(p) for p in found.parameters] == parameters


@pytest.mark.parametrize(
    "update",
    [
        "(h[t-1] + q) * r / (h[t-1] + q + r)",
        "1 / (1 / (h[t-1] + q) + 1 / r)",
        "(1 - (h[t-1] + q) / (h[t-1] + q + r)) * (h[t-1] + q)",
        "(h[t-1] + q) - (h[t-1] + q) ** 2 / (h[t-1] + q + r)",
        "(h[t-1] + x) / (1 + x * h[t-1])",
        "where(done, r, 1 / (h[t-1] + q))",
        "x + 1 / (w + h[t-1])",
        "h[t-1] / (1 + r * h[t-1])",
    ],
)
def test_moebius(update: str) -> None:
    _, found = found_in(cell(update), "h")
    assert isinstance(found, Moebius) and "their product" in found.certificate


def test_a_block_and_what_stays_zero_in_it() -> None:
    system, found = found_in(cell("h[t-1] + 0.1 * g[t]", "h[D], g[D]", "g[t] = g[t-1] - z * h[t-1]"), "h")
    assert isinstance(found, Block) and found.components == (("g", 1), ("h", 1)) and found.rows == ()
    assert {at: expr_text(e) for at, e in found.matrix(found.parameters).items()}[0, 1] == "-z"
    assert "2 x 2" in found.certificate
    _, found = found_in(cell("0.5 * h[t-2] + x"), "h")
    assert isinstance(found, Block) and found.components == (("h", 1), ("h", 2))
    del system


def test_blocks_of_histories_and_of_complex_states() -> None:
    _, found = found_in(cell("h[t-1] + z * e[t-1]", "h[D]", "e = x - h[t-1]"), "h")
    assert isinstance(found, Block) and set(found.components) == {("h", 1), ("e_past", 1)}
    _, found = found_in(
        cell("exp(1j * z) * h[t-1] - 0.1 * g[t-1] + x", "h[D]: complex, g[D]: complex", "g[t] = h[t-1]"), "h"
    )
    assert isinstance(found, Block) and found.parameters[0].kind == "complex"
    _, found = found_in(cell("conj(h[t-1]) + g[t-1]", "h[D]: complex, g[D]: complex", "g[t] = h[t-1]"), "h")
    assert isinstance(found, Sequential)


@pytest.mark.parametrize(
    "update", ["max(h[t-1] + done, x)", "max(h[t-1], done)", "1 / (h[t-1] + done)", "sqrt(z * h[t-1] ** 2 + done)"]
)
def test_parameters_are_numbers(update: str) -> None:
    _, found = found_in(cell(update), "h")
    assert isinstance(found, Composable) and all(p.kind == "real" for p in found.parameters)


def test_the_largest_block() -> None:
    taps = " + ".join(f"z * h[t-{i}]" for i in range(1, 17))
    _, found = found_in(cell(f"{taps} + x"), "h")
    assert isinstance(found, Block) and len(found.components) == 16 and "modulo a prime" in found.certificate
    _, found = found_in(cell(f"{taps} + z * h[t-17]"), "h")
    assert isinstance(found, Sequential)
    (refusal,) = [r for r in found.refusals if r.family == "block"]
    assert refusal.reason.startswith("it holds 17 values")


# --- what is refused, and what is next to it -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, family, words",
    [
        (cell("tanh(z * h[t-1] + x)"), "tropical", "`tanh(z * h[t-1] + x)` is no `max` or `min`"),
        (cell("max(-h[t-1], x)"), "tropical", "is -1, which turns the order round"),
        (cell("max(w * h[t-1], x)"), "tropical", "`w` was not proved to lie in [0, inf)"),
        (cell("tanh(h[t-1] + x)"), "variable", "no logarithm, exp, power, logit or atanh of `h[t]`"),
        (cell("sqrt(x * h[t-1] ** 2 + q)", "h[D] = -1"), "variable", "`h[t-1]` was not proved to lie in [0, inf)"),
        (cell("tanh(h[t-1] + x)"), "moebius", "`tanh(h[t-1] + x)` is no fraction of sums in `h[t-1]`"),
        (cell("tanh(h[t-1]) + g[t-1]", "h[D], g[D]", "g[t] = h[t-1]"), "block", "is not affine in the group's pasts"),
        (
            cell("h[t-1] + sum[N](k[t-1])", "h[D], k[D, N]", "k[t] = h[t-1] * U"),
            "block",
            "must have the same dims and kind",
        ),
        (cell("max[D](h[t-1] + g[t-1])", "h[D], g[D]", "g[t] = h[t-1]"), "block", "mixes entries of `h`"),
    ],
)
def test_refusals(text: str, family: str, words: str) -> None:
    _, found = found_in(text, "h")
    assert isinstance(found, Sequential)
    (refusal,) = [r for r in found.refusals if r.family == family]
    assert words in refusal.reason


@pytest.mark.parametrize(
    "text, words",
    [
        (cell("tanh(z * h[t-1] + x)"), "without `tanh` around `z * h[t-1] + x` it would be parallel (affine)"),
        (cell("max(w * h[t-1], x)"), "with `w` in [0, inf) it would be parallel (tropical)"),
        (cell("max(u * h[t-1], x)", "h[D]", "param u[D] = uniform(0, 1)"), "a learned `u` may be any number"),
        (
            cell("z * tanh(g[t-1]) + h[t-1]", "h[D], g[D]", "g[t] = g[t-1] + h[t-1]"),
            "without `tanh` around `g[t-1]` it would be parallel (block)",
        ),
        (cell("tanh(sum[N](U * h[t-1][D -> N]))"), ""),
    ],
)
def test_the_nearest_parallel_program(text: str, words: str) -> None:
    system, found = found_in(text, "h")
    assert isinstance(found, Sequential)
    assert found.nearest.startswith(words) and bool(words) == bool(found.nearest)
    assert words in reason(system, found)


def test_an_unproved_domain_leaves_it_to_the_next_family() -> None:
    """`1 / h` of a state that begins at 0 is not, but the fraction is."""
    _, found = found_in(cell("h[t-1] / (1 + z * h[t-1])"), "h", settled=False)
    assert isinstance(found, Variable)
    assert [(expr_text(o.expr), region_text(o.what)) for o in found.obligations] == [("h[t-1]", "(0, inf)")]
    _, found = found_in(cell("h[t-1] / (1 + z * h[t-1])"), "h")
    assert isinstance(found, Moebius)


def test_an_obligation_on_the_past_of_an_input() -> None:
    _, found = found_in(cell("max(z[t-2] * h[t-1], x)"), "h")
    assert isinstance(found, Tropical)


@pytest.mark.parametrize(
    "stem, families",
    [
        ("mlstm", ["tropical", "affine", "affine"]),
        ("aaren", ["tropical", "affine", "affine"]),
        ("kalman", ["moebius", "affine"]),
        ("leakypeak", ["tropical", "variable"]),
        ("cusum", ["tropical", "tropical"]),
        ("mingrulog", ["variable"]),
        ("ctc", ["affine", "variable", "variable", "variable", "variable"]),
        ("rls", ["variable", "affine"]),
        ("bkt", ["moebius"]),
        ("linoss", ["block"]),
        ("linossimex", ["block"]),
        ("ghk", ["block"]),
        ("arnet", ["block"]),
        ("holtwinters", ["block"]),
        ("liquids4", ["affine"]),
        ("pgn", ["none"]),
        ("slstm", ["sequential"]),
        ("lstm", ["sequential"]),
    ],
)
def test_examples(stem: str, families: list[str]) -> None:
    made = lower(example(stem))
    assert [close(made, g).family for g in group(made)] == families


SEQUENTIAL = {
    "elman",
    "gru",
    "gruv1",
    "grud",
    "irnn",
    "lstm",
    "mgu",
    "peepholelstm",
    "pvrnn",
    "ratenetwork",
    "slstm",
    "sparsernn",
}
SEQUENTIAL |= {"tttlinear", "ugrnn"}


def test_all_other_examples_compose() -> None:
    """Once what they rest on is proved; a history is no recurrence."""
    families: dict[str, set[str]] = {}
    for path in sorted(EXAMPLES.glob("*.rnn")):
        (made,) = compile_source(Source(path.name, path.read_text("utf-8")), until="analysis")
        for c in made.closures or ():
            families.setdefault(c.family, set()).add(path.stem)
    assert families.pop("sequential") == SEQUENTIAL
    assert set(families) == {"none", "affine", "tropical", "variable", "moebius", "block", "low rank"}


# --- drawn at random -------------------------------------------------------------------------------------------------


FREE = st.sampled_from(["x", "w", "0.5", "-1", "x * w"])


def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def put(text: str) -> st.SearchStrategy[str]:
        return st.builds(lambda e, k: text.replace("@", e).replace("$", k), inner, FREE)

    forms = ["(@ + $)", "($ - (-@))", "max(@, $)", "min($, @)", "relu(@)", "clamp(@, -1, $)", "z * (@)", "(@) / r"]
    return st.one_of([put(f) for f in [*forms, "-(-(@))", "where(done, $, @)", "2 * @", "-max(-(@), $)"]])


@settings(max_examples=40, deadline=None)
@given(st.recursive(st.just("h[t-1]"), grown, max_leaves=4), st.integers(0, 100))
def test_what_keeps_the_order_is_tropical(update: str, seed: int) -> None:
    if "$" in update or update == "h[t-1]":
        return
    torch.manual_seed(seed)
    system, closure = found_in(cell(update), "h")
    assert isinstance(closure, Affine | Tropical), reason(system, closure)
    if isinstance(closure, Tropical):
        numbers, past = Numbers(system), {"h": torch.randn(B, 3, dtype=torch.float64)}
        inputs = drawn(system)
        wanted = numbers([system.stream("h").expr], inputs, past)
        close_to(applied(closure, numbers, numbers(closure.parameters, inputs, past), [past["h"]]), wanted)


def anything(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def put(text: str) -> st.SearchStrategy[str]:
        return st.builds(lambda e, f, k: text.replace("@", e).replace("?", f).replace("$", k), inner, inner, FREE)

    sums = ["(@ + $)", "(@ + ?)", "(@ - ?)", "(-(@))", "(@ * $)", "(@ * ?)", "z * (@)", "(@ / r)", "(q / @)", "(@ / ?)"]
    roots = ["sqrt(@)", "square(@)", "(@) ** 2", "(@) ** z", "(@) ** (1 / 3)", "exp(@)", "log(@)", "logaddexp(@, $)"]
    bends = ["max(@, $)", "min(@, $)", "relu(@)", "softplus(@)", "tanh(@)", "sigmoid(@)", "where(done, @, ?)"]
    return st.one_of([put(f) for f in [*sums, *roots, *bends]])


@settings(max_examples=60, deadline=None)
@given(st.recursive(st.sampled_from(["h[t-1]", "h[t-1]", "q", "x"]), anything, max_leaves=5), st.integers(0, 100))
def test_whatever_family_takes_it_it_is_the_same(update: str, seed: int) -> None:
    if "h[t-1]" not in update:
        return
    torch.manual_seed(seed)
    system, closure = found_in(cell(update, "h[D] = 1"), "h")
    if not isinstance(closure, Composable):
        return
    numbers, past = Numbers(system), {"h": torch.ones(B, 3, dtype=torch.float64)}
    maps: list[list[Tensor]] = []
    for _ in range(3):
        inputs = drawn(system)
        (wanted,) = numbers([system.stream("h").expr], inputs, past)
        maps.append(numbers(closure.parameters, inputs, past))
        whole = applied(closure, numbers, folded(closure, numbers, list(maps)), [torch.ones(B, 3, dtype=torch.float64)])
        if not wanted.isfinite().all() or wanted.abs().max() > 1e6:
            return
        torch.testing.assert_close(whole[0], wanted, rtol=1e-6, atol=1e-6)
        past = {"h": wanted}


# --- certificates ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _WrongBlock(Block):
    def compose(self, graph: Graph, later: tuple[Expr, ...], earlier: tuple[Expr, ...]) -> tuple[Expr, ...]:
        return super().compose(graph, earlier, later)


@dataclass(frozen=True)
class _WrongFraction(Moebius):
    def compose(self, graph: Graph, later: tuple[Expr, ...], earlier: tuple[Expr, ...]) -> tuple[Expr, ...]:
        a, b, c, d = super().compose(graph, later, earlier)
        return a, c, b, d


@dataclass(frozen=True)
class _WrongOrder(Tropical):
    def compose(self, graph: Graph, later: tuple[Expr, ...], earlier: tuple[Expr, ...]) -> tuple[Expr, ...]:
        a, b, c, _ = super().compose(graph, later, earlier)
        return a, b, c, graph.apply("min", earlier[3], later[3])


def test_a_wrong_composition_has_no_certificate() -> None:
    def order(x: Expr, y: Expr) -> bool:
        return same_order(x, y, {e for e in ir.walk(x, y) if isinstance(e, ir.Ref) and e.name == "q0"}, set())

    _, block = found_in(CELLS["oscillator"], "h")
    _, fraction = found_in(CELLS["kalman"], "h")
    _, clamp = found_in(cell("clamp(z * h[t-1] + x, -1, 1)"), "h")
    assert isinstance(block, Block) and isinstance(fraction, Moebius) and isinstance(clamp, Tropical)
    for rule in (same, same_modulo):
        assert composes(block, rule)
        assert not composes(_WrongBlock(**vars(block)), rule)
    assert composes(fraction, same)
    assert not composes(_WrongFraction(**vars(fraction)), same)
    assert composes(clamp, order)
    assert not composes(_WrongOrder(**vars(clamp)), order)
    assert not composes(clamp, lambda x, y: same_order(x, y, set(), set())), "a >= 0 is what it rests on"


def test_affine_stays_affine() -> None:
    _, found = found_in(cell("z * h[t-1] + x"), "h")
    assert isinstance(found, Affine)
