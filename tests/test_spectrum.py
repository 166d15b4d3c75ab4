"""Spectra: of the examples and of variants, and against eigenvalues of the interpreter's Jacobians."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rnnc.bound import Analysis, bound
from rnnc.source import Source
from tests.cells import EXAMPLES, example, read
from tests.jacobians import eigenvalues, encloses, matches
from tests.strategies import Program, programs

CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example]
STEMS = sorted(p.stem for p in EXAMPLES.glob("*.rnn"))


def analyse(text: str) -> Analysis:
    return bound(read(text), Source("test.rnn", text))


# --- what is proved, refuted and said ---------------------------------------------------------------------------------

DELTA = "cell C\ndim K = 3, V = 2\ninput k[K], v[V], b, w[K] in [0, 1], a[K] in [0, 1], g\n"
UNIT = "κ = l2norm[K](k)\n"
STATE = "state S[K, V]\n"

CLAIMS = {
    "delta": (DELTA + UNIT + STATE, "S[t-1] + sigmoid(b) * κ * (v - sum[K](κ * S[t-1]))", "[0, 1]", "proved"),
    "delta, negative": (
        DELTA + UNIT + STATE,
        "S[t-1] - 2 * sigmoid(b) * κ * sum[K](κ * S[t-1]) + κ * v",
        "[-1, 1]",
        "proved",
    ),
    "delta, too wide": (
        DELTA + UNIT + STATE,
        "S[t-1] - 2 * sigmoid(b) * κ * sum[K](κ * S[t-1]) + κ * v",
        "[0, 1]",
        "refuted",
    ),
    "delta, not normalised": (
        DELTA + STATE,
        "S[t-1] - 2 * sigmoid(b) * k * sum[K](k * S[t-1]) + k * v",
        "[-1, 1]",
        "refuted",
    ),
    "delta, in steps": (
        DELTA + UNIT + "e = v - sum[K](κ * S[t-1])\nd = sigmoid(b) * e\n" + STATE,
        "S[t-1] + κ * d",
        "[0, 1]",
        "proved",
    ),
    "delta, normalised by hand": (
        DELTA + "κ = k / sqrt(sum[K](k ** 2) + 1e-6)\n" + STATE,
        "S[t-1] - sigmoid(b) * κ * sum[K](κ * S[t-1]) + κ * v",
        "[0, 1]",
        "proved",
    ),
    "Longhorn": (
        DELTA + "β = sigmoid(b)\nε = β / (1 + β * sum[K](k * k))\n" + STATE,
        "S[t-1] - ε * k * sum[K](k * S[t-1]) + ε * k * v",
        "[0, 1]",
        "proved",
    ),
    "gated delta": (
        DELTA + UNIT + "decay α = sigmoid(g)\n" + STATE,
        "α * (S[t-1] - 2 * sigmoid(b) * κ * sum[K](κ * S[t-1])) + κ * v",
        "[-1, 1]",
        "proved",
    ),
    "a decay along the dim, before": (
        DELTA + UNIT + "W = w * S[t-1]\n" + STATE,
        "W + 2 * sigmoid(b) * κ * (v - sum[K](κ * W))",
        "[-1, 1]",
        "proved",
    ),
    "a decay along the dim, after": (
        DELTA + UNIT + STATE,
        "w * (S[t-1] - 2 * sigmoid(b) * κ * sum[K](κ * S[t-1])) + κ * v",
        "[-1, 1]",
        "proved",
    ),
    "a signed decay along the dim": (
        DELTA + UNIT + "W = (2 * w - 1) * S[t-1]\n" + STATE,
        "W - 2 * sigmoid(b) * κ * sum[K](κ * W) + κ * v",
        "disc(1)",
        "proved",
    ),
    "RWKV-7": (DELTA + UNIT + STATE, "w * S[t-1] - κ * sum[K](a * κ * S[t-1]) + κ * v", "[-1, 1]", "proved"),
    "RWKV-7, in a disc": (DELTA + UNIT + STATE, "w * S[t-1] - κ * sum[K](a * κ * S[t-1]) + κ * v", "disc(1)", "proved"),
    "RWKV-7, bare": (DELTA + STATE, "w * S[t-1] + k * sum[K](a * S[t-1]) + k * v", "disc(1)", "refuted"),
    "reset": (
        DELTA.replace("input ", "input done: bool, ") + UNIT + STATE,
        "where(done, 0, S[t-1]) - sigmoid(b) * κ * sum[K](κ * where(done, 0, S[t-1])) + κ * v",
        "[0, 1]",
        "proved",
    ),
    "two reflections": (
        DELTA + UNIT + STATE,
        "S[t-1] - 0.5 * κ * sum[K](κ * S[t-1]) - 0.25 * κ * sum[K](2 * κ * S[t-1]) + κ * v",
        "[0, 1]",
        "proved",
    ),
    "a mean": (DELTA + STATE, "S[t-1] - mean[K](S[t-1]) + v", "[0, 1]", "proved"),
    "renamed": (
        DELTA.replace("V = 2", "V = 2, J = 3") + UNIT + STATE,
        "S[t-1] - sigmoid(b) * κ * sum[J](κ[K -> J] * S[t-1][K -> J]) + κ * v",
        "[0, 1]",
        "proved",
    ),
    "an annulus": (DELTA + STATE, "(1 + sigmoid(g)) / 2 * S[t-1] + k * v", "annulus(0.5, 1)", "proved"),
    "not an annulus": (DELTA + STATE, "sigmoid(g) * S[t-1] + k * v", "annulus(0.5, 1)", "refuted"),
    "nonlinear": (DELTA + STATE, "tanh(sigmoid(g) * S[t-1] + k * v)", "[0, 1]", "proved"),
    "nonlinear, too steep": (DELTA + STATE, "tanh(2 * S[t-1] + k * v)", "[0, 1]", "refuted"),
    "an energy": (DELTA + STATE, "sqrt(w * S[t-1] ** 2 + (1 - w) * k ** 2)", "[0, 1]", "proved"),
    "a running maximum": (DELTA + STATE, "max(S[t-1] - 1, k * v)", "[0, 1]", "proved"),
    "a learned matrix": (DELTA + STATE, "tanh(linear[K](S[t-1]) + v)", "disc(1)", "refuted"),
    "two lags": (DELTA + STATE, "0.5 * S[t-1] - 0.25 * S[t-2] + k * v", "disc(0.5)", "proved"),
    "two lags, too large": (DELTA + STATE, "0.5 * S[t-1] - 0.25 * S[t-2] + k * v", "disc(0.4)", "refuted"),
    "many lags": (DELTA + STATE, "0.5 * S[t-1] - 0.25 * S[t-2] + 0.25 * S[t-3] + k * v", "disc(1)", "proved"),
    "sums of different vectors": (
        DELTA + UNIT + "λ = l2norm[K](k * w)\n" + STATE,
        "0.5 * S[t-1] + 0.25 * κ * sum[K](λ * S[t-1]) + 0.25 * λ * sum[K](κ * S[t-1]) + k * v",
        "disc(1)",
        "proved",
    ),
    "a decay along the dim, too wide": (
        DELTA + UNIT + "W = w * S[t-1]\n" + STATE,
        "W + 2 * sigmoid(b) * κ * (v - sum[K](κ * W))",
        "[0, 1]",
        "refuted",
    ),
    "one reflection after another": (
        DELTA + UNIT + "π = l2norm[K](a)\nA = S[t-1] - 2 * sigmoid(b) * κ * sum[K](κ * S[t-1])\n" + STATE,
        "A - 2 * sigmoid(g) * π * sum[K](π * A) + κ * v",
        "disc(1)",
        "proved",
    ),
    "one after another, decayed": (
        DELTA + UNIT + "π = l2norm[K](a)\nA = w * (S[t-1] - 2 * sigmoid(b) * κ * sum[K](κ * S[t-1]))\n" + STATE,
        "sigmoid(g) * (A - 2 * π * sum[K](π * A)) + κ * v",
        "disc(1)",
        "proved",
    ),
    "one after another, not of real eigenvalues": (
        DELTA + UNIT + "π = l2norm[K](a)\nA = S[t-1] - 2 * κ * sum[K](κ * S[t-1])\n" + STATE,
        "A - 2 * π * sum[K](π * A) + κ * v",
        "[-1, 1]",
        "undecided",
    ),
    "one after another, one too long": (
        DELTA + UNIT + "A = S[t-1] - 2 * sigmoid(b) * κ * sum[K](κ * S[t-1])\n" + STATE,
        "A - 2 * sigmoid(g) * a * sum[K](a * A) + κ * v",
        "disc(1)",
        "undecided",
    ),
    "a sum of symmetric terms": (
        DELTA + UNIT + "π = l2norm[K](a)\n" + STATE,
        "w * S[t-1] - sigmoid(b) * κ * sum[K](κ * S[t-1]) - 0.5 * π * sum[K](π * S[t-1]) + κ * v",
        "[-1.5, 1]",
        "proved",
    ),
    "a sum of symmetric terms, too wide": (
        DELTA + UNIT + "π = l2norm[K](a)\n" + STATE,
        "S[t-1] - κ * sum[K](κ * S[t-1]) - π * sum[K](π * S[t-1]) + κ * v",
        "[0, 1]",
        "refuted",
    ),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_claims(name: str) -> None:
    head, update, region, wanted = CLAIMS[name]
    text = f"{head}S[t] = {update}\neigenvalues S in {region}\noutput S[t]\n"
    verdict = analyse(text).verdict("S", "eigenvalues")
    assert verdict is not None
    assert verdict.status == wanted, verdict
    cell = read(text)
    encloses(cell, bound(cell, Source("test", text)), {}, 0)


COUPLED = {
    "LinOSS": (
        "param A[D] = zeros\nparam s[D] = zeros\nw = relu(A)\ndt = sigmoid(s)\nstate z[D], y[D]\n"
        "z[t] = (z[t-1] - dt * w * y[t-1] + dt * x) / (1 + dt ** 2 * w)\ny[t] = y[t-1] + dt * z[t]\n",
        "disc(1)",
        "proved",
    ),
    "a rotation": (
        "state z[D], y[D]\nz[t] = cos(x) * z[t-1] - sin(x) * y[t-1]\ny[t] = sin(x) * z[t-1] + cos(x) * y[t-1]\n",
        "disc(1)",
        "proved",
    ),
    "momentum": (
        "input η[D] in [0, 1], θ[D] in [0, 1]\nstate m[D], z[D]\nm[t] = η * m[t-1] - θ * z[t-1] + x\n"
        "z[t] = z[t-1] + m[t]\n",
        "disc(1)",
        "proved",
    ),
    "explicit Euler": (
        "state z[D], y[D]\nz[t] = z[t-1] - 0.1 * y[t-1] + x\ny[t] = y[t-1] + 0.1 * z[t-1]\n",
        "disc(1)",
        "refuted",
    ),
    "three states": (
        "state z[D], y[D], u[D]\nz[t] = 0.5 * y[t-1] + x\ny[t] = 0.5 * u[t-1]\nu[t] = 0.5 * z[t-1]\n",
        "disc(0.5)",
        "proved",
    ),
}


@pytest.mark.parametrize("name", COUPLED)
def test_states_that_need_each_other(name: str) -> None:
    body, region, wanted = COUPLED[name]
    text = f"cell C\ndim D = 2\ninput x[D]\n{body}eigenvalues z in {region}\noutput z[t]\n"
    cell = read(text)
    analysis = bound(cell, Source("test", text))
    assert [v.status for v in analysis.verdicts] == [wanted]
    encloses(cell, analysis, {}, 0)


def test_products_of_factors() -> None:
    text = (
        "cell C\ndim J = 2, K = 3, V = 2\ninput k[J, K], v[J, V], b[J], w[J, K] in [0, 1]\nκ = l2norm[K](k)\n"
        "state S[K, V]\neigenvalues S in disc(1)\n"
        "S[t] over J = w * (S[t-1] - 2 * sigmoid(b) * κ * sum[K](κ * S[t-1])) + κ * v\noutput S[t]\n"
    )
    analysis = analyse(text)
    assert [v.status for v in analysis.verdicts] == ["proved"]
    encloses(read(text), analysis, {}, 0)
    real = text.replace("disc(1)", "[-1, 1]")
    assert [v.status for v in analyse(real).verdicts] == ["undecided"]


def test_the_witness_is_told_in_the_terms_of_the_transition() -> None:
    head, update, _, _ = CLAIMS["delta, not normalised"]
    text = f"{head.replace('S[K', 'S[K')}β = 2 * sigmoid(b)\nS[t] = {update}\neigenvalues S in [-1, 1]\noutput S[t]\n"
    text = text.replace("2 * sigmoid(b) * k", "β * k")
    analysis = analyse(text)
    verdict = analysis.verdict("S", "eigenvalues")
    assert verdict is not None
    assert verdict.witness is not None
    numbers = dict(verdict.witness.values)
    assert set(numbers) == {"β", "|k|"}
    assert isinstance(verdict.witness.result, float)
    assert verdict.witness.result == pytest.approx(1 - float(numbers["β"]) * float(numbers["|k|"]) ** 2, rel=0.05)
    assert verdict.mend == "`|k| <= 1`, as of `l2norm`"


NOTES = {
    "mingru": ("h", ("parity", "modulo 3")),
    "gateddeltanet": ("S", ()),
    "lru": ("h", ()),
    "rwkv7": ("S", ("explode",)),
    "gru": ("h", ()),
    "kalman": ("m", ("parity", "modulo 3")),
}


@pytest.mark.parametrize("stem", NOTES)
def test_notes(stem: str) -> None:
    state, words = NOTES[stem]
    notes = bound(example(stem), Source(stem, "")).notes[state]
    assert len(notes) == len(words)
    assert all(w in n for w, n in zip(words, notes, strict=True))


def test_contracting() -> None:
    class Group:
        states = ("h",)

    class OfGroup:
        group = Group()

    assert bound(example("mingru"), Source("", "")).contracting(OfGroup())
    text = "cell C\ninput x, a\nstate h\nh[t] = a * h[t-1] + x\noutput h[t]\n"
    assert not analyse(text).contracting(OfGroup())


# --- against eigenvalues ----------------------------------------------------------------------------------------------


SMALL = {**dict.fromkeys("DNEHVPJSZXLMR", 2), "K": 4, "F": 3, "G": 1}


@pytest.mark.parametrize("stem", STEMS)
def test_examples_against_eigenvalues(stem: str) -> None:
    cell = example(stem)
    sizes = {d.name: 4 if d.name == "D" else SMALL[d.name] for d in cell.dims if not d.derived}
    for seed in range(3):
        encloses(cell, bound(cell, Source(stem, "")), sizes, seed)


@settings(max_examples=40, deadline=None, suppress_health_check=CHECKS)
@given(programs(), st.integers(0, 3))
def test_random_programs_against_eigenvalues(program: Program, seed: int) -> None:
    analysis = bound(read(program.text), Source("random", program.text))
    # A Jacobian goes through `stop_gradient`, and autograd does not; in a loss it is part of what is meant.
    assume("stop_gradient" not in program.text or " grad(" not in program.text)
    cell = read(program.text.replace("stop_gradient", ""))
    inputs = program.draw(1, 3, seed)
    for found in analysis.spectra:
        matches(found, eigenvalues(cell, found, inputs, program.dims, seed))
