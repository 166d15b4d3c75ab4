"""Which recurrences become one kernel, and where its border runs."""

from __future__ import annotations

from textwrap import dedent

import pytest

from rnnc.fuse import Kernel, fuse, ranked
from rnnc.ir import Expr, Linear, Ref
from rnnc.pipeline import compile_source
from rnnc.source import Source
from tests.cells import EXAMPLES
from tests.test_lowrank import BY_VALUE, COMPLEX, OVER, TITANS, TWO, UNMIXED, WRITTEN, cell


def kernels(text: str) -> tuple[Kernel, ...]:
    (made,) = compile_source(Source("test.rnn", dedent(text)))
    assert made.plan is not None
    return fuse(made.plan)


def example(stem: str) -> tuple[Kernel, ...]:
    return kernels((EXAMPLES / f"{stem}.rnn").read_text(encoding="utf-8"))


def names(nodes: tuple[Expr, ...]) -> list[str]:
    """Refs by name, learned maps by that of their weight."""
    return [n.name if isinstance(n, Ref) else n.weight if isinstance(n, Linear) else type(n).__name__ for n in nodes]


def states(k: Kernel) -> list[str]:
    return [s.name for s in k.streams]


def test_a_kernel_reads_what_is_before_the_gates() -> None:
    (k,) = example("mingru")
    assert names(k.inputs) == ["z_weight", "c_weight"] and k.fixed == ()
    assert (k.channels, k.inner, k.results, k.kept) == (("D",), (), (), (True,))
    assert k.scan


def test_a_contracted_state_stays_in_registers() -> None:
    (k,) = example("mamba")
    assert (k.channels, k.inner, k.kept) == (("E",), ("N",), (False,))
    assert len(k.results) == 1 and k.results[0].dims == ("E",)


def test_a_state_that_is_read_otherwise_too_is_kept() -> None:
    head = "cell C\ndim E = 3, N = 2\ninput x[E], c[N]\nstate S[E, N]\nS[t] = sigmoid(x * c) * S[t-1] + c\n"
    (summed,) = kernels(head + "output sum[N](c * S[t])\n")
    assert summed.inner == ("N",) and summed.kept == (False,)
    (both,) = kernels(head + "output sum[N](c * S[t])\noutput S[t]\n")
    assert both.kept == (True,)
    (mixed,) = kernels(head + "output linear(S[t] -> E)\n")
    assert mixed.inner == () and mixed.kept == (True,)


def test_parameters_are_read_once() -> None:
    head = "cell C\ndim D = 3\ninput x[D]\nparam w[D] = ones\nstate h[D]\n"
    (k,) = kernels(head + "h[t] = sigmoid(w) * h[t-1] + w * x\noutput h[t]\n")
    assert names(k.inputs) == ["x"] and names(k.fixed) == ["w"]


def test_states_that_need_nothing_of_each_other_run_together() -> None:
    text = "cell C\ndim D = 3\ninput x[D]\nstate h[D], g[D]\nh[t] = sigmoid(x) * h[t-1] + x\ng[t] = 0.5 * g[t-1] + {}\n"
    (k,) = kernels(text.format("sin(x)") + "output h[t] + g[t]\n")
    assert states(k) == ["h", "g"] and k.scan
    one, two = kernels(text.format("h[t]") + "output g[t]\n")
    assert (states(one), states(two)) == (["h"], ["g"])


@pytest.mark.parametrize(
    ("update", "walk"),
    [
        ("sigmoid(x) * h[t-1] + x", "tiled"),
        ("h[t-1] + sigmoid(x) * (x - h[t-1])", "tiled"),
        ("where(x > 0, 0, 0.9 * h[t-1]) + x", "tiled"),
        ("x * h[t-1] + x", "verified"),  # may grow: products of coefficients could overflow where states do not
        ("max(h[t-1] - sigmoid(x), x)", "tiled"),
        ("relu(sigmoid(x) * h[t-1] + x)", "tiled"),
        ("relu(exp(x) * h[t-1] + x)", "verified"),
        ("logaddexp(h[t-1] + x, x)", "tiled"),
        ("(h[t-1] + exp(x)) / (h[t-1] + exp(x) + 1)", "verified"),
        ("0.5 * h[t-1] + 0.2 * h[t-2] + x", "tiled"),
        ("x * h[t-1] + 0.2 * h[t-2] + x", "verified"),
        ("tanh(x + h[t-1])", "stepped"),
    ],
)
def test_tokens_are_composed_by_tiles_where_they_do_not_grow(update: str, walk: str) -> None:
    (k,) = kernels(f"cell C\ndim D = 3\ninput x[D]\nstate h[D]\nh[t] = {update}\noutput h[t]\n")
    assert (k.tiled, k.verified) == (walk == "tiled", walk == "verified")
    assert k.scan is (walk != "stepped") and k.scan_back


def test_states_that_need_each_other_are_one_block() -> None:
    head = "cell C\ndim D = 3\ninput x[D]\nstate h[D], g[D]\n"
    (k,) = kernels(head + "h[t] = 0.5 * h[t-1] - g[t-1]\ng[t] = 0.5 * g[t-1] + h[t] + x\noutput g[t]\n")
    assert len(k.steps) == 1 and states(k) == ["h", "g"] and k.scan and k.verified
    (k,) = kernels(head + "h[t] = tanh(h[t-1] - g[t-1])\ng[t] = 0.5 * g[t-1] + h[t] + x\noutput g[t]\n")
    assert states(k) == ["h", "g"] and not k.scan and k.scan_back


def test_maps_too_large_for_a_thread_are_stepped() -> None:
    taps = " + ".join(f"0.1 * h[t-{i}]" for i in range(1, 8))
    (k,) = kernels(f"cell C\ndim D = 3\ninput x[D]\nstate h[D]\nh[t] = {taps} + x\noutput h[t]\n")
    assert len(k.streams) == 7 and not k.scan and not k.tiled and k.stored


def test_what_is_read_from_further_back_goes_through_delays() -> None:
    text = "cell C\ndim D = 3\ninput x[D]\nstate h[D]\nh[t] = 0.5 * h[t-1] + 0.2 * h[t-3] + x\noutput h[t]\n"
    (k,) = kernels(text)
    assert states(k) == ["h", "h 2", "h 3"] and k.lags == (1, 2, 3) and k.kept == (True, False, False)


@pytest.mark.parametrize(
    "update",
    [
        "tanh(linear(h[t-1] -> D) + x)",
        "x * sum[D](h[t-1])",
        "softmax[D](h[t-1] + x)",
    ],
)
def test_entries_that_mix_have_no_kernel(update: str) -> None:
    assert kernels(f"cell C\ndim D = 3\ninput x[D]\nstate h[D]\nh[t] = {update}\noutput h[t]\n") == ()


def test_a_state_without_dims_has_no_kernel() -> None:
    assert kernels("cell C\ninput x\nstate h\nh[t] = 0.5 * h[t-1] + x\noutput h[t]\n") == ()


def test_nothing_is_computed_for_nobody() -> None:
    """A result that a later kernel computes again itself is not written."""
    for stem in ("mlstm", "aaren", "kalman", "leakypeak"):
        found = example(stem)
        read = {n for k in found for n in (*k.inputs, *k.fixed)}
        for k in found:
            assert all(r in read or not set(r.children) & set(k.results) for r in k.results)
            assert len(set(k.results)) == len(k.results) and not set(k.inputs) & set(k.fixed)


def test_values_that_are_computed_with_keep_their_precision() -> None:
    text = "cell C\ndim D = 3\ninput x[D]\nstate h[D]\nh[t] = sigmoid(x) * h[t-1] + x\noutput {}\n"
    (out,) = kernels(text.format("h[t]"))
    assert (out.kept, out.wide) == ((True,), (False,))
    (normed,) = kernels(text.format("rmsnorm[D](h[t])"))
    assert (normed.kept, normed.wide) == ((True,), (True,))
    (mapped,) = kernels(text.format("linear(h[t] -> D)"))
    assert (mapped.kept, mapped.wide) == ((True,), (False,))


LOW_RANK = {
    "one sum": cell(WRITTEN["delta"][0]),
    "two sums": TWO,
    "a sum over a rank": cell(WRITTEN["a sum over a rank"][0]),
    "several maps": OVER,
    "several maps without sums": UNMIXED,
    "sums of what is not read": BY_VALUE,
}
IN_PYTORCH = {
    "a pair": TITANS,
    "complex": COMPLEX.replace("AXES", "H"),
    "no bound": cell("d * S[t-1] - b * n * c + k * v"),
}


@pytest.mark.parametrize("name", [*LOW_RANK, *IN_PYTORCH])
def test_which_low_rank_transitions_have_kernels(name: str) -> None:
    (made,) = compile_source(Source("test.rnn", {**LOW_RANK, **IN_PYTORCH}[name]))
    assert made.plan is not None
    assert [ranked(step) for step in made.plan.steps] == [name in LOW_RANK]
