"""Lower bounds of factors, and how many tokens of a chunk can be read in one product where there is one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnc.chunks import Chunks
from rnnc.explain import report
from rnnc.pipeline import compile_source
from rnnc.plan import Scan
from rnnc.source import Source
from rnnc.together import BITS, SIZES, size
from tests.cells import EXAMPLES
from tests.modules import generate

CELL = """cell C
dim H = 2, K = 3, V = 4
const low in [0, 1) = 0.5, other = 7
input q[H, K], k[H, K], v[H, V], x[H, K], r[H, V], s[H], e[H, K] in [0.25, 1], n[H, K] in [-1, -0.5]
LINE
state S[H, K, V]
S[t] = a * S[t-1] + k * v
output sum[K](q * S[t])
"""


def chunks(text: str) -> Chunks:
    (made,) = compile_source(Source("test.rnn", text))
    assert made.plan is not None
    (step,) = (s for s in made.plan.steps if isinstance(s, Scan))
    assert step.chunks is not None
    return step.chunks


FOUND = {
    "a = e": (32, ()),
    "a = 0.25 + 0.75 * sigmoid(x)": (32, ()),
    "a = 0.5 + 0.5 * sigmoid(r)": (64, ()),
    "decay a = exp(-0.606531 * sigmoid(x))": (64, ()),
    "decay a = exp(-5 * sigmoid(x))": (16, ()),
    "decay a = exp(-max(min(x, 30), 1))": (1, ()),
    "decay a in [0.5, 1] = exp(-0.1 * sigmoid(x))": (64, ()),
    "a = max(sigmoid(x), low)": (64, ("low",)),
    "a = max(sigmoid(x), low, 0.3)": (64, ()),
    "decay a = exp(logsigmoid(x) / 16)": (1, ()),
    "a = n": (1, ()),
    "a = 0.5 + 0.5 * sigmoid(s)": (1, ()),
}


@pytest.mark.parametrize("line", FOUND)
def test_what_is_known_of_factors(line: str) -> None:
    """Nothing is asked of a factor that is the same along keys and values."""
    known = chunks(CELL.replace("LINE", line)).together
    assert ((known.tokens, tuple(c.name for c in known.consts)) if known else (1, ())) == FOUND[line]


@given(st.floats(1e-30, 1))
def test_half_a_block_stays_in_range(least: float) -> None:
    tokens = size(least)
    assert tokens == 1 or least ** (tokens // 2) >= 2.0**-BITS * (1 - 1e-9)
    assert tokens == SIZES[0] or least ** max(2, tokens) < 2.0**-BITS * (1 + 1e-9)


def test_a_const_that_is_not_as_declared() -> None:
    assert "64 if self.lower == 0.5 else 1" in generate((EXAMPLES / "hgrn2.rnn").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a = max(sigmoid(x), low)", "proved with `low = 0.5`, as declared, to be at least 0.5, so on a GPU 64 tokens"),
        (
            "a = e",
            "its factors are proved to be at least 0.25, so on a GPU 32 tokens of a chunk are read in one product",
        ),
        ("a = sigmoid(x)", "no lower bound of its factors, which differ along K, is known"),
    ],
)
def test_explain_says_which_and_why(line: str, said: str) -> None:
    source = Source("test.rnn", CELL.replace("LINE", line))
    (group,) = report(source, compile_source(source))["groups"]
    assert said in group["reason"]
