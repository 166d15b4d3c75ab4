"""Which recurrences are found affine, however they are written; what is said of the others; the derived backward."""

from __future__ import annotations

import pytest

from rnnc.adjoint import adjoint
from rnnc.closure import FAMILIES, Affine, Block, Closure, Sequential, Still, close
from rnnc.closure.formula import certify
from rnnc.closure.view import holding
from rnnc.group import group
from rnnc.ir import Expr, Ref, walk
from rnnc.lower import System, lower
from rnnc.show import expr_text
from rnnc.verify import verify_types
from tests.cells import example, read

HEAD = """cell C
dim D = 3, N = 3
input x[D], z[D] in [0, 1], done: bool
param a[D] = uniform(0, 1)
param U[D, N] = normal(1)
state h[D]
"""


def system(text: str) -> System:
    return lower(read(text))


def closure(update: str, *more: str) -> Closure:
    made = system(HEAD + "\n".join([*more, f"h[t] = {update}", "output h[t]"]) + "\n")
    (found,) = [close(made, g) for g in group(made) if "h" in g.states]
    return found


def past(e: Expr) -> list[Ref]:
    return [n for n in walk(e) if isinstance(n, Ref) and n.role == "state"]


@pytest.mark.parametrize(
    "update, a, b",
    [
        ("(1 - z) * h[t-1] + z * x", "1 - z", "z * x"),
        ("h[t-1] + z * (x - h[t-1])", "1 - z", "z * x"),
        ("where(done, 0, a * h[t-1]) + x", "where(done, 0.0, a)", "x"),
        ("where(done, x, a * h[t-1])", "where(done, 0.0, a)", "where(done, x, 0.0)"),
        ("x - h[t-1] / 2", None, None),
        ("-(x - (h[t-1] * z)) * a", None, None),
        ("(h[t-1] + 1) ** 2 - h[t-1] ** 2 + x", None, None),
        ("(h[t-1] + x) * (h[t-1] - x) - square(h[t-1])", "0.0", None),
        ("exp(a) * h[t-1]", "exp(a)", None),
        ("real(h[t-1]) * a", "a", None),
    ],
)
def test_affine_however_it_is_written(update: str, a: str | None, b: str | None) -> None:
    found = closure(update)
    assert isinstance(found, Affine)
    assert not past(found.a)
    assert found.b is None or not past(found.b)
    assert "(a2 * a1, a2 * b1 + b2)" in found.certificate
    if a is not None and a != "1 - z":
        assert expr_text(found.a) == a
    if b is not None:
        assert found.b is not None and expr_text(found.b) == b


def test_an_error_term_defined_apart() -> None:
    found = closure("h[t-1] + z * e", "e = x - h[t-1]")
    assert isinstance(found, Affine)


@pytest.mark.parametrize(
    "update, term",
    [
        ("tanh(a * h[t-1] + x)", "tanh(a * h[t-1] + x)"),
        ("h[t-1] * h[t-1] + x", "h[t-1] * h[t-1]"),
        ("max(h[t-1], 0.1 * h[t-1])", "max(h[t-1], 0.1 * h[t-1])"),
        ("x / (1 + abs(h[t-1]))", "abs(h[t-1])"),
        ("where(h[t-1] > 0, x, h[t-1])", "h[t-1] > 0"),
        ("z * h[t-1] + sum[N](U * h[t-1][D -> N])", "h[t-1][D -> N]"),
        ("max[D](h[t-1]) + x", "max[D](h[t-1])"),
        ("tanh(0.5 * h[t-1] + 0.1 * h[t-2])", "h[t-2]"),
    ],
)
def test_refusals_name_the_term(update: str, term: str) -> None:
    found = closure(update)
    assert isinstance(found, Sequential)
    refusal = found.refusals[0]
    assert refusal.family == "affine" and refusal.term == term
    assert term in refusal.reason
    assert [r.family for r in found.refusals] == list(FAMILIES)


def test_states_that_need_each_other_are_one_group() -> None:
    made = system(HEAD + "state g[D]\ng[t] = z * h[t-1]\nh[t] = a * g[t] + x\noutput h[t]\n")
    (only,) = group(made)
    assert only.states == ("g", "h") and only.recurrent
    assert isinstance(close(made, only), Block)


def test_a_value_that_reaches_no_past_is_no_recurrence() -> None:
    assert isinstance(closure("x + z"), Still)


def test_a_wrong_split_has_no_certificate() -> None:
    made = system(HEAD + "h[t] = (1 - z) * h[t-1] + z * x\noutput h[t]\n")
    graph, update = made.graph, made.stream("h").expr
    (state,) = past(update)
    (found,) = [close(made, g) for g in group(made)]
    assert isinstance(found, Affine) and found.b is not None
    for a, b, right in (
        (found.a, found.b, True),
        (graph.apply("neg", found.a), found.b, False),
        (found.a, graph.apply("add", found.b, found.b), False),
        (found.a, None, False),
    ):
        assert certify(update, {state: a}, b, holding(update, (state,))) is right


@pytest.mark.parametrize(
    "stem, groups",
    [
        ("mlstm", [("m",), ("C",), ("n",)]),
        ("kalman", [("P",), ("m",)]),
        ("aaren", [("m",), ("u",), ("w",)]),
        ("lstm", [("c", "h")]),
        ("slstm", [("m", "c", "n", "h")]),
        ("titanslinear", [("S", "M")]),
        ("leakypeak", [("p",), ("e",)]),
    ],
)
def test_cascades_come_apart(stem: str, groups: list[tuple[str, ...]]) -> None:
    made = lower(example(stem))
    assert [g.states for g in group(made)] == groups


def test_the_adjoint_is_the_same_family_run_backwards() -> None:
    made = lower(example("lru"))
    (found,) = [close(made, g) for g in group(made)]
    assert isinstance(found, Affine)
    back = adjoint(made, found)
    assert back.closure.reverse and back.closure.certificate
    assert expr_text(back.closure.a) == "conj(a)"
    assert expr_text(back.to_a) == "λ[t-1] * conj(h[t-1])"
    verify_types([back.closure.a, back.to_a, back.to_b], made.graph)
