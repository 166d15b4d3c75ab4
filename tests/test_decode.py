"""What one kernel computes of a step of one token: which states, together; what a program has of them; the border."""

from __future__ import annotations

import pytest

from rnnc.decode import Decode, decodes
from rnnc.explain import report
from rnnc.ir import Conv, Linear
from rnnc.pipeline import compile_source
from rnnc.show import expr_text
from rnnc.source import Source
from tests.cells import EXAMPLES


def found(text: str) -> tuple[Decode, ...]:
    (made,) = compile_source(Source("test.rnn", text))
    assert made.plan is not None
    return decodes(made.plan)


def example(stem: str) -> str:
    return (EXAMPLES / f"{stem}.rnn").read_text(encoding="utf-8")


def parts(kernel: Decode) -> str:
    """States: dims of which a program has one entry, some or all, all."""
    block = " ".join(kernel.block) + ("!" if kernel.whole else "")
    names = " ".join(s.name for s in kernel.streams)
    return f"{names}: {' '.join(kernel.outer)} | {block} | {' '.join(kernel.inner)}"


KERNELS = {
    "gla": ["S: H | V! | K"],
    "comba": ["S: H | V | K"],  # 256 x 512 entries are too many for one program
    "gateddeltanet": ["S: H | V! | K"],
    "mlstm": ["m C n: H | V | K"],
    "titanslinear": ["S M: H | V | K"],
    "gsa": ["R: H | M! | K", "S: H | V | M"],  # what is read of the first is a softmax over M
    "jrt": ["S0 S1 n1 n0: H | V | K", "S2 n2: H | V | K J"],
    "mesanet": ["A: H | J | K", "G: H | V! | K"],
    "mamba": ["S:  | E | N"],
    "tttlinear": ["W b: H | V! | K"],
    "mingru": ["h:  | D | "],
    "holtwinters": ["level trend season:  | D | "],
    "grud": ["last:  | D | "],
    "lstm": [],
    "elman": [],
    "fsmn": [],
}


@pytest.mark.parametrize("stem", KERNELS)
def test_examples(stem: str) -> None:
    assert [parts(k) for k in found(example(stem))] == KERNELS[stem]


@pytest.mark.parametrize("stem", ["gateddeltanet", "kda", "gla"])
def test_only_learned_maps_stand_around_it(stem: str) -> None:
    """All that is read is made by one, is a parameter or a past; what is written is what one reads."""
    (kernel,) = found(example(stem))
    assert all(isinstance(n, Linear) or not n.children for n in kernel.inputs)
    assert all(not n.children for n in kernel.fixed)
    assert len(kernel.results) == 1 and not any(isinstance(n, Conv) for n in kernel.inputs)


HEAD = (
    "cell C\ndim H = 2, K = 3, V = 4\ninput q[H, K], k[H, K], v[H, V], s[H] in [0, 1]\nstate S[H, K, V], T[H, K, V]\n"
)


def test_a_result_waits_for_what_it_needs() -> None:
    """A query that a learned map makes of a state is there after that one's kernel; its reads are PyTorch's."""
    text = f"{HEAD}S[t] = s * S[t-1] + k * v\nT[t] = s * T[t-1] + k * v\n"
    (both,) = found(f"{text}output sum[K](q * S[t]) + sum[K](q * T[t])\n")
    assert parts(both) == "S T: H | V | K" and len(both.results) == 1
    (both,) = found(f"{text}output sum[K](linear[K](sum[V](S[t])) * T[t])\n")
    assert [expr_text(r) for r in both.results] == ["sum[V](S[t])"]
    first, second = found(
        f"{HEAD}S[t] = s * S[t-1] + k * v\nr = linear[K](sum[V](S[t]))\nT[t] = s * T[t-1] + r * v\n"
        "output sum[K](q * T[t])\n"
    )
    assert parts(first) == "S: H | K | V" and parts(second) == "T: H | V | K"
    assert [expr_text(r) for r in first.results] == ["sum[V](S[t])"]


@pytest.mark.parametrize(
    "update",
    [
        "s * S[t-1] + k * linear[V](sum[K](k * S[t-1]))",
        "s * S[t-1] + k * sum[K](k * S[t-1]) - v * sum[V](v * S[t-1]) + 0.1 * sum[H](S[t-1])",
        "s * S[t-1] + k * v * logsumexp[K](S[t-1])",
    ],
)
def test_what_has_none(update: str) -> None:
    """A learned map between entries, sums over three sets of dims, a reduction that kernels lack."""
    text = HEAD.replace(", T[H, K, V]", "")
    assert found(f"{text}S[t] = {update}\noutput sum[K](q * S[t])\n") == ()


def test_explain_says_what_a_step_is() -> None:
    source = Source("test.rnn", example("mlstm"))
    groups = report(source, compile_source(source))["groups"]
    assert {g["step"] for g in groups} == {"one kernel for m, C, n, which has all of K"}
    source = Source("test.rnn", example("lstm"))
    assert [g["step"] for g in report(source, compile_source(source))["groups"]] == [""]
