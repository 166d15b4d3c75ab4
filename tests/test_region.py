"""What stands between learned maps and recurrences: which of it is one kernel, and what PyTorch keeps."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from rnnc.explain import report
from rnnc.ir import Conv, Expr, Linear, Ref, walk
from rnnc.pipeline import compile_source
from rnnc.region import Between, Region, between
from rnnc.show import expr_text
from rnnc.source import Source
from tests.cells import EXAMPLES
from tests.modules import generate

HEAD = "cell C\ndim H = 2, K = 4, V = 5, L = 5000\ninput x[H, K], y[H, K], v[H, V], g[H], s, w[L]\n"
STATE = "state S[H, K, V]\nS[t] = sigmoid(g) * S[t-1] + k * v\no = sum[K](q * S[t])\noutput o\n"
QUERY, KEY = "q = tanh(x) + x * exp(x)\n", "k = y\n"


def planned(text: str) -> Between:
    (made,) = compile_source(Source("test.rnn", text))
    assert made.plan is not None
    return between(made.plan)


def of(definitions: str, outputs: str = "") -> tuple[Region, ...]:
    return planned(HEAD + definitions + STATE + outputs).regions


def texts(nodes: tuple[Expr, ...]) -> list[str]:
    return [expr_text(n) for n in nodes]


def test_gated_delta_net() -> None:
    """Everything but learned maps and the recurrence, convolutions too, is four kernels."""
    found = planned((EXAMPLES / "gateddeltanet.rnn").read_text(encoding="utf-8"))
    assert [len(r.results) for r in found.regions] == [4, 1, 1, 1] and found.left == ()
    assert [[type(n) for n in r.inputs if not isinstance(n, Linear)] for r in found.regions[:3]] == [[], [], []]
    assert [len(r.convs) for r in found.regions] == [1, 1, 1, 0]
    assert sum(r.saved for r in found.regions) > 60


QUICK = ("gsa", "jrt", "mesanet", "mlstmblock")


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=() if p.stem in QUICK else pytest.mark.slow) for p in sorted(EXAMPLES.glob("*.rnn"))],
    ids=lambda p: p.stem,
)
def test_nothing_waits_for_itself(path: Path) -> None:
    """No source of a region is made of one of its results without a recurrence between."""
    for region in planned(path.read_text(encoding="utf-8")).regions:
        assert not set(region.results) & set(region.sources)
        assert not any(r in set(walk(n)) for n in region.inputs for r in region.results if not _reads(n))
        assert set(region.inside) >= set(region.results)


def _reads(node: Expr) -> bool:
    return any(isinstance(n, Ref) and n.role == "state" for n in walk(node))


def test_what_a_learned_map_is_made_of_and_makes_is_apart() -> None:
    """One kernel would wait for a product that waits for it."""
    before, after = of("u = tanh(x) * y + x\nq = silu(linear(u -> K) + u) * y\n" + KEY)
    assert texts(before.results) == ["tanh(x) * y + x"] and before.results[0] in after.inputs


def test_what_is_made_of_reads_is_apart_from_what_they_are_made_of() -> None:
    found = of(QUERY + KEY, "output tanh(o) * square(v) * exp(o)\n")
    assert [len(r.results) for r in found] == [1, 1] and _reads(found[1].results[0])


def test_a_convolution_reads_what_is_there() -> None:
    """Its operand, of several tokens, is computed before."""
    first, second = of("q = conv[3](tanh(x) * sigmoid(x) * x)\n" + KEY)
    assert [len(r.convs) for r in (first, second)] == [0, 1]
    assert first.results == second.inputs == (second.convs[0].arg,)
    (wide,) = of("q = conv[9](x) * tanh(x) * exp(y)\n" + KEY)
    assert wide.convs == () and any(isinstance(n, Conv) for n in wide.inputs)


def test_few_operations_are_no_kernel() -> None:
    """Two operations, and an operand rounded where it is written, take the place of three passes over memory."""
    assert of("q = tanh(x)\n" + KEY) != () and of("k = y\nq = x\n") == ()


def test_values_are_rounded_where_they_are_written_if_they_are_anyway() -> None:
    """What one reader multiplies, or a learned map reads; not what two do, whose gradients are summed in float32."""

    def uses(more: str) -> dict[str, str]:
        return {expr_text(n): u for r in of(QUERY + KEY, more) for n, u in zip(r.results, r.uses, strict=True)}

    q = "tanh(x) + x * exp(x)"
    assert uses("")[q] == "operand" and uses("output q\n")[q] == uses("output linear(q -> V)\n")[q] == "wide"
    assert uses("output linear(square(q) + y -> V)\n")[f"square({q}) + y"] == "low"
    assert uses("output square(q) + exp(y)\n")[f"square({q}) + exp(y)"] == "out"


def test_spread_and_whole_dims() -> None:
    """All of what is summed over, and of what a gradient is summed over; of what all values have, some."""
    (found,) = of("q = x * exp(g) * tanh(x)\n" + KEY)
    assert (found.spread, found.groups, found.lumps) == (("H",), (("K",),), ((0,),))
    (found,) = of("q = softmax[H, K](x * y) * exp(x)\n" + KEY)
    assert (found.spread, found.groups) == ((), (("H", "K"),))
    (found,) = of("q = exp(s) * softmax[K](x) * l2norm[H](y)\n" + KEY)
    assert (found.spread, found.groups, found.lumps) == ((), (("H",), ("K",)), ((0, 1),))


def test_pytorch_sums_what_no_program_can_have() -> None:
    text = HEAD + QUERY + KEY + STATE + "output l2norm[L](tanh(w) * exp(w))\n"
    found = planned(text)
    assert texts(found.left) == ["l2norm[L](tanh(w) * exp(w))"]
    assert [r.spread for r in found.regions] == [("H", "K"), ("L",)]
    (cell,) = report(Source("test.rnn", text), compile_source(Source("test.rnn", text)))["cells"]
    assert cell["left"] == ["l2norm[L](tanh(w) * exp(w))"]
    assert cell["between"][0] == {"computes": ["q = tanh(x) + x * exp(x)"], "has": "some of H and K", "saves": 6}


def test_nothing_without_kernels() -> None:
    assert planned((EXAMPLES / "lstm.rnn").read_text(encoding="utf-8")) == Between()


def test_real_parts_of_what_tokens_share_are_read() -> None:
    text = "cell C\ndim N = 4\ninput x[N], z[N]: complex\nparam w[N]: complex = 0.4 + 0.3j\nstate h[N]: complex\n"
    text += "h[t] = w * h[t-1] + linear(silu(x * real(w)) * tanh(x) -> N) * z\noutput real(h[t])\n"
    found = planned(text)
    assert [texts(r.fixed) for r in found.regions] == [["real(w)"]] and found.left == ()


OTHERS = """cell C
dim H = 2, K = 4, V = 3
input x[H, K], y[H, K], z[H, K], v[H, V], g[H]
q = softmax[K](tanh(x))
q_forward = softmax[K](tanh(y))
q_parts = softmax[K](tanh(z))
S_chunks = softmax[V](tanh(v))
state S[H, K, V]
S[t] = sigmoid(g) * S[t-1] + q_forward * S_chunks
output sum[K](q * S[t]) + sum[K](q_parts * S[t])
"""


def defined(text: str) -> list[str]:
    """The names of a generated module."""
    lines = ast.parse(generate(text)).body
    found = [n.name for n in lines if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    return found + [ast.unparse(n.targets[0]) for n in lines if isinstance(n, ast.Assign)]


def test_names_that_parts_of_kernels_have() -> None:
    """Each name of a module is defined once, though a cell's names end as those of others' parts do."""
    assert [len(r.results) for r in planned(OTHERS).regions] == [1, 1, 1, 1]
    found = defined(OTHERS)
    assert len(found) == len(set(found))


def test_names_of_cells_that_begin_those_of_others() -> None:
    """Nor do a state `D_S` of a cell `C` and a state `S` of a cell `C_D` have one kernel."""
    text = "dim D = 4\ninput a[D] in [0, 1], x[D]\nstate S[D]\nS[t] = a * S[t-1] + x\noutput S[t]\n"
    loop = "dim D = 4\ninput x[D]\nstate S[D]\nS[t] = tanh(linear(S[t-1] -> D) + x)\noutput S[t]\n"
    for each in (text, loop):
        whole = f"cell C\n{each.replace('S', 'D_S')}cell C_D\n{each}cell C_D_E\n{each}"
        found = defined(whole)
        assert len(found) == len(set(found)) and any(n.startswith("_C_0D_S") for n in found)


def test_names_of_cells_that_are_spelled_alike() -> None:
    """Nor are Greek letters of one cell spelled as another is, in whatever order they stand."""
    each = "dim D = 4\ninput a[D] in [0, 1], x[D]\nstate S[D]\nS[t] = a * S[t-1] + x\noutput S[t]\n"
    for names in (("Cβ", "Cbeta"), ("Cbeta", "Cβ", "Cbeta_"), ("β", "beta_S", "beta")):
        found = defined("\n".join(f"cell {n}\n{each}" for n in names))
        assert len(found) == len(set(found)) and all(n.isascii() for n in found if n.startswith("_"))
