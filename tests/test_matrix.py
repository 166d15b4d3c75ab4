"""Matrices of several states or several pasts: their norms, and their products over time."""

from __future__ import annotations

import random

import pytest
import torch

from backends.reference import Interpreter
from rnnc.bound import bound
from rnnc.bound.box import Box
from rnnc.bound.eigen import eigenvalues, error
from rnnc.closure import Block
from rnnc.ir import Annulus, Apply, Disc, Expr, Interval, Lit, Region
from rnnc.pipeline import compile_source
from rnnc.source import Source
from tests.cells import read
from tests.jacobians import drawn, encloses, matches
from tests.jacobians import eigenvalues as eigenvalues_of

HEAD = "cell C\ndim D = 3\ninput x[D], g[D]\nr = sigmoid(g)\nstate z[D]\n"
TWO = HEAD + "state y[D]\n"
TURN = "z[t] = a * (cos(x) * z[t-1] - sin(x) * y[t-1]) + g\ny[t] = a * (sin(x) * z[t-1] + cos(x) * y[t-1])\n"

PRODUCTS = {
    "a rotation": (TWO + TURN.replace("a * ", ""), True),
    "a rotation that shrinks": (TWO + TURN.replace("a *", "r *"), True),
    "a rotation that grows": (TWO + TURN.replace("a *", "(1 + 0.1 * r) *"), False),
    "weighted means of each other": (
        TWO + "z[t] = r * z[t-1] + (1 - r) * y[t-1] + x\ny[t] = (1 - r) * z[t-1] + r * y[t-1]\n",
        True,
    ),
    "what one norm does not see": (TWO + "z[t] = 8 * r * y[t-1] + x\ny[t] = 0.125 * z[t-1]\n", True),
    "eigenvalues 0, and products that grow": (TWO + "z[t] = 2 * r * y[t-1] + x\ny[t] = 2 * (1 - r) * z[t-1]\n", False),
    "a delayed sum": (HEAD + "z[t] = 0.5 * z[t-1] - 0.25 * z[t-2] + 0.25 * r * z[t-3] + x\n", True),
    "a delayed sum that is too large": (HEAD + "z[t] = 0.5 * z[t-1] + 0.75 * r * z[t-3] + x\n", False),
    "oscillators whose energy drifts": (
        TWO + "z[t] = (z[t-1] - r * x ** 2 * y[t-1]) / (1 + r ** 2 * x ** 2)\ny[t] = y[t-1] + r * z[t] + g\n",
        False,
    ),
    "complex ones": (
        "cell C\ndim D = 3\ninput x[D], g[D]\nr = sigmoid(g)\nu = exp(1j * x)\nstate z[D]: complex, y[D]: complex\n"
        "z[t] = u * (0.6 * z[t-1] + 0.8j * y[t-1]) + x\ny[t] = u * (0.8 * z[t-1] - 0.6j * y[t-1])\n",
        True,
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str) -> None:
    body, wanted = PRODUCTS[name]
    text = body + "output real(z[t])\n"
    source = Source("test.rnn", text)
    (compilation,) = compile_source(source, until="analysis")
    assert compilation.analysis is not None
    [closure] = list(compilation.closures or ())
    assert isinstance(closure, Block)
    assert compilation.analysis.bounded_products(closure) == wanted
    if wanted:
        # The updates are affine: how far two runs are apart is a product of matrices.
        assert apart(text, 400) < 20


def apart(text: str, length: int) -> float:
    """The largest ratio of the distance of two runs to what it was at first."""
    interpreter = Interpreter(read(text))
    generator = torch.Generator().manual_seed(0)
    inputs = {n: torch.randn([1, length, 3], generator=generator, dtype=torch.float64) for n in ("x", "g")}
    params = interpreter.init_params(0)
    start = interpreter.initial_state(params, 1)
    moved = {n: s + torch.randn(s.shape, generator=generator, dtype=torch.float64) for n, s in start.items()}
    first = max(float((moved[n] - start[n]).abs().max()) for n in start)
    most = 0.0
    states: list[dict[str, torch.Tensor]] = [dict(start), dict(moved)]
    for t in range(length):
        token = {n: x[:, t : t + 1] for n, x in inputs.items()}
        states = [dict(interpreter.run(token, params, s)[1]) for s in states]
        most = max(most, *(float((states[1][n] - states[0][n]).abs().max()) for n in start))
    return most / first


# --- what is proved, refuted and said ---------------------------------------------------------------------------------

THREE = TWO + "state u[D]\n"
LAGS = HEAD.replace("state z", "input w[D] in [0, 1]\nstate z")
COMPLEX = PRODUCTS["complex ones"][0]
ALPHA_BETA = (
    "state v[D]\nz[t] = z[t-1] + v[t-1] + α * (x - z[t-1] - v[t-1])\nv[t] = v[t-1] + β * (x - z[t-1] - v[t-1])\n"
)

CLAIMS = {
    "a damped oscillator": (TWO + TURN.replace("a *", "r *"), "disc(1)", "proved", "2 x 2 matrix"),
    "a rotation, in an annulus": (TWO + TURN.replace("a *", "0.9 *"), "annulus(0.9, 0.9)", "proved", ""),
    "a damped oscillator, too far out": (
        TWO + TURN.replace("a *", "(0.5 + r) *"),
        "disc(1)",
        "refuted",
        "",
    ),
    "an oscillator is not real": (TWO + TURN.replace("a *", "r *"), "[-1, 1]", "refuted", ""),
    "a tracker": (
        HEAD + "α = 0.5 + 0.5 * r\nβ = 0.1 * r\n" + ALPHA_BETA,
        "disc(1)",
        "proved",
        "trace and determinant",
    ),
    "a tracker that overshoots": (HEAD + "α = 0.5 + 0.5 * r\nβ = 5 * r\n" + ALPHA_BETA, "disc(1)", "refuted", ""),
    "two poles": (
        LAGS + "z[t] = (w + r) * z[t-1] - w * r * z[t-2] + x\n",
        "[0, 1]",
        "proved",
        "trace and determinant",
    ),
    "two poles, of which one is negative": (
        LAGS + "z[t] = (w - r) * z[t-1] + w * r * z[t-2] + x\n",
        "[0, 1]",
        "refuted",
        "",
    ),
    "two poles that keep away from 0": (
        LAGS + "p = 0.5 + 0.5 * r\nz[t] = 1.5 * p * z[t-1] - 0.5 * p ** 2 * z[t-2] + x\n",
        "annulus(0.25, 1)",
        "proved",
        "",
    ),
    "a state at lag 0": (
        TWO + "z[t] = 0.5 * z[t-1] - r * y[t-1] + x\ny[t] = 0.5 * y[t-1] + 0.5 * z[t]\n",
        "disc(1)",
        "proved",
        "trace and determinant",
    ),
    "a state at lag 0 that reads one updated over a dim": (
        TWO.replace("dim D = 3", "dim D = 3, J = 2").replace("g[D]\n", "g[D], k[J, D]\n")
        + "state S[D]\nS[t] over J = 0.5 * S[t-1] + k\n"
        "z[t] = 0.5 * z[t-1] - r * y[t-1] + S[t-1]\ny[t] = 0.5 * y[t-1] + 0.5 * z[t]\n",
        "disc(1)",
        "proved",
        "2 x 2 matrix",
    ),
    "complex, of size 2": (COMPLEX, "disc(1)", "proved", ""),
    "complex, of size 2, too large": (COMPLEX.replace("0.6 *", "0.9 *"), "disc(1)", "refuted", ""),
    "a complex state with two lags": (
        COMPLEX.split("state")[0] + "state z[D]: complex\nz[t] = u * z[t-1] - 0.25 * u ** 2 * z[t-2] + x\n",
        "disc(0.5)",
        "proved",
        "trace and determinant",
    ),
    "a mean of neighbours": (
        THREE + "z[t] = r * y[t-1] + x\ny[t] = 0.5 * z[t-1] + 0.5 * u[t-1]\nu[t] = r * y[t-1]\n",
        "[-1, 1]",
        "proved",
        "symmetric",
    ),
    "a chain of three in a circle": (
        THREE + "z[t] = r * u[t-1] + x\ny[t] = 4 * r * z[t-1]\nu[t] = 0.25 * y[t-1]\n",
        "disc(1)",
        "proved",
        "scaled by",
    ),
    "a circle that grows": (
        THREE + "z[t] = r * u[t-1] + x\ny[t] = 4 * r * z[t-1]\nu[t] = 0.5 * y[t-1]\n",
        "disc(1)",
        "refuted",
        "",
    ),
    "three lags of weighted means": (
        LAGS + "z[t] = w * z[t-1] + (1 - w) * r * z[t-2] + (1 - w) * (1 - r) * z[t-3] + x\n",
        "disc(1)",
        "proved",
        "the largest sum of moduli in a row",
    ),
    "three lags, too large": (LAGS + "z[t] = w * z[t-1] + r * z[t-2] - 0.5 * z[t-3] + x\n", "disc(1)", "refuted", ""),
    "three lags are not all real": (
        LAGS + "z[t] = 0.1 * r * z[t-1] - 0.1 * w * z[t-3] + x\n",
        "[-1, 1]",
        "refuted",
        "",
    ),
    "three poles": (HEAD + "z[t] = 1.2 * z[t-1] - 0.5 * z[t-2] + 0.1 * z[t-3] + x\n", "disc(0.95)", "proved", "power"),
    "complex, of size 3": (
        COMPLEX.replace("state z", "state v[D]: complex, z").replace("* z[t-1]", "* v[t-1]")
        + "v[t] = 1j * z[t-1] + x\n",
        "disc(1)",
        "proved",
        "",
    ),
    "complex, of size 3, too large": (
        COMPLEX.replace("state z", "state v[D]: complex, z").replace("0.6 * z[t-1]", "0.6 * v[t-1]")
        + "v[t] = 1.5j * z[t-1] + x\n",
        "disc(1)",
        "refuted",
        "",
    ),
    "learned maps of three states": (
        THREE + "z[t] = linear[D](y[t-1]) + x\ny[t] = linear[D](u[t-1])\nu[t] = linear[D](z[t-1])\n",
        "disc(1)",
        "refuted",
        "",
    ),
    "away from 0, by discs": (
        THREE + "z[t] = 0.8 * z[t-1] + 0.1 * r * u[t-1]\ny[t] = 0.8 * y[t-1] - 0.1 * x * z[t-1] / (1 + abs(x))\n"
        "u[t] = 0.8 * u[t-1] + 0.1 * r * y[t-1] + x\n",
        "annulus(0.7, 0.9)",
        "proved",
        "Gershgorin's discs",
    ),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_claims(name: str) -> None:
    body, region, wanted, why = CLAIMS[name]
    text = f"{body}eigenvalues z in {region}\noutput real(z[t])\n"
    cell = read(text)
    analysis = bound(cell, Source("test.rnn", text))
    verdict = analysis.verdict("z", "eigenvalues")
    assert verdict is not None
    assert verdict.status == wanted, verdict
    assert why in verdict.reason
    for seed in range(2):
        encloses(cell, analysis, {}, seed)


# --- eigenvalues of numbers -------------------------------------------------------------------------------------------


def matrices(seed: int) -> list[list[complex]]:
    """A matrix of numbers: dense or sparse, real or complex, companion or defective."""
    r = random.Random(seed)
    n, kind = r.choice((1, 2, 3, 4, 5, 8)), r.choice(("real", "complex", "companion", "triangular"))

    def number() -> complex:
        return complex(round(r.gauss(0, 1), 3), round(r.gauss(0, 1), 3) if kind == "complex" else 0) * (
            r.random() < 0.7
        )

    found = [[number() for _ in range(n)] for _ in range(n)]
    if kind == "companion":
        return [found[0], *([complex(i == j) for j in range(n)] for i in range(n - 1))]
    if kind == "triangular":
        return [[0.5 + 0j if i == j else found[i][j] if j > i else 0j for j in range(n)] for i in range(n)]
    return found


@pytest.mark.parametrize("seed", range(60))
def test_eigenvalues_of_numbers(seed: int) -> None:
    matrix = matrices(seed)
    found = eigenvalues(matrix)
    wanted = [complex(x) for x in torch.linalg.eigvals(torch.tensor(matrix, dtype=torch.complex128))]
    assert len(found) == len(matrix)
    # A multiple eigenvalue of a defective matrix is off by a root of the rounding error.
    for one, other in ((found, wanted), (wanted, found)):
        assert all(min(abs(x - y) for y in other) < 0.05 for x in one)
    assert abs(sum(found) - sum(row[i] for i, row in enumerate(matrix))) < 1e-9
    boxes = [[Box.of(x) for x in row] for row in matrix]
    for near in (*found, found[0] + 0.01, 0.3 + 0.2j):
        off = float(error(boxes, near))
        assert min(abs(near - x) for x in wanted) <= off + 0.02
        if len({round(abs(x), 2) for x in wanted}) == len(wanted) and near in found:
            assert off < 1e-6


# --- against eigenvalues ----------------------------------------------------------------------------------------------

ATOMS = ["r", "(1 - r)", "w", "(1 - w)", "cos(x)", "sin(x)", "tanh(g)", "0.5", "0.25", "1.25", "r * w", "r * cos(x)"]


def random_block(seed: int) -> str:
    r = random.Random(seed)
    states = [f"s{i}" for i in range(r.choice((1, 2, 2, 3, 4)))]
    depth = r.choice((1, 1, 2, 3)) if len(states) > 1 else r.choice((2, 3))
    number = (lambda: r.choice(ATOMS)) if r.random() < 0.6 else (lambda: f"{r.uniform(0, 1):.2f}")
    kind = ": complex" if r.random() < 0.25 else ""
    lines = ["cell C", "dim D = 2", "input x[D], g[D], w[D] in [0, 1]", "r = sigmoid(g)"]
    lines.append("state " + ", ".join(f"{s}[D]{kind}" for s in states))
    for i, s in enumerate(states):
        reads = [(o, lag) for o in states for lag in range(1, depth + 1) if r.random() < 0.6]
        reads.append((states[(i + 1) % len(states)], r.randint(1, depth)))
        turn = r.choice(("", "", "1j * ")) if kind else ""
        terms = [f"{r.choice('+-')} {turn}{number()} * {o}[t-{lag}]" for o, lag in dict.fromkeys(reads)]
        lines.append(f"{s}[t] = x {' '.join(terms)}")
    region = r.choice(("disc(1)", "disc(1.5)", "[-1, 1]", "disc(0.8)", "annulus(0.1, 2)"))
    lines += [f"eigenvalues s0 in {region}", f"output real({states[0]}[t])"]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("seed", range(40))
def test_random_blocks_against_eigenvalues(seed: int) -> None:
    """What is said of the spectrum encloses it, a claim that is proved is never broken, a witness breaks its claim."""
    text = random_block(seed)
    cell = read(text)
    analysis = bound(cell, Source("test.rnn", text))
    (verdict,) = analysis.verdicts
    region = cell.eigenvalues[0].region
    assert (verdict.witness is not None) == (verdict.status == "refuted")
    if verdict.witness is not None:
        assert not inside(region, complex(verdict.witness.result), -1e-9)
    for trial in range(4):
        found = analysis.spectrum("s0")
        values = eigenvalues_of(cell, found, drawn(cell, {}, trial), {}, trial)
        matches(found, values)
        if verdict.status == "proved":
            assert all(inside(region, complex(x), 1e-5) for x in values)


def inside(region: Region, x: complex, slack: float) -> bool:
    def number(e: Expr) -> float:
        if isinstance(e, Apply):
            assert e.op == "neg"
            return -number(e.args[0])
        assert isinstance(e, Lit)
        assert not isinstance(e.value, complex)
        return float(e.value)

    match region:
        case Interval(lo=lo, hi=hi):
            return abs(x.imag) <= max(slack, 0) and number(lo) - slack <= x.real <= number(hi) + slack
        case Disc(radius=radius):
            return abs(x) <= number(radius) + slack
        case Annulus(inner=inner, outer=outer):
            return number(inner) - slack <= abs(x) <= number(outer) + slack
