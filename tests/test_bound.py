"""The `bound` stage: every claim of the examples, what researchers write in variants of them, and soundness."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from backends.reference import Interpreter
from rnnc.bound import Analysis, Interval, Range, analysis_text, bound
from rnnc.bound import functions as elementwise
from rnnc.bound.interval import INF, Num, point
from rnnc.check import check
from rnnc.diagnostics import render_all
from rnnc.ir import LOGIC, Cell, Output
from rnnc.parse import parse
from rnnc.source import Source
from tests.cells import EXAMPLES, example, read
from tests.strategies import Program, programs

CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example]
STEMS = sorted(p.stem for p in EXAMPLES.glob("*.rnn"))


def analyse(text: str) -> Analysis:
    source = Source("test.rnn", text)
    cell, diagnostics = check(parse(source).cells[0], source)
    assert cell is not None, render_all(source, diagnostics)
    return bound(cell, source)


def wrap(body: str) -> str:
    """A cell from its statements; where they update no state, with one that does nothing."""
    dims = "" if body.startswith("dim ") else "dim D = 4\n"
    idle = "" if "[t] =" in body else "\nstate idle\nidle[t] = idle[t-1]\noutput idle[t]"
    return f"cell Case\n{dims}{body}{idle}\n"


def status(body: str) -> str:
    """The verdict on the last claim of a cell."""
    return analyse(wrap(body)).verdicts[-1].status


# --- the programs of the language -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", STEMS)
def test_every_claim_of_the_examples_is_proved(stem: str) -> None:
    analysis = bound(example(stem), Source(stem, ""))
    assert [(v.claim, v.status) for v in analysis.verdicts if v.status != "proved"] == []
    assert analysis.diagnostics(strict=True) == []
    assert analysis_text(analysis).startswith(f"cell {analysis.cell}\n")


# --- variants ---------------------------------------------------------------------------------------------------------

PROVED = {
    "positive denominators": "input f[D], i[D]\na = sigmoid(f)\nb = sigmoid(i)\ngate g = a / (a + b)",
    "one minus a gate": "input x[D]\nz = sigmoid(x)\ngate g = 1 - z",
    "a fraction of positives": "input u[D] in [0, inf), w[D] in (0, inf)\nq in [0, 3] = 3 * u / (u + w)",
    "a lower bound of forget gates": (
        "input x[D]\nparam p[D] = zeros\nγ = sigmoid(p)\ngate f = γ + (1 - γ) * sigmoid(x)"
    ),
    "Griffin": (
        "const c in (0, inf) = 8.0\n"
        "input x[D], y[D]\n"
        "param Λ[D] = zeros\n"
        "gate r = sigmoid(y)\n"
        "a = sigmoid(Λ) ** (c * r)\n"
        ""
        "m in [0, 1] = sqrt(1 - a ** 2)"
    ),
    "Griffin's decay": "const c in (0, inf) = 8.0\ninput x[D], r[D] in [0, 1]\ngate a = exp(-c * softplus(x) * r)",
    "LRU's normaliser": "param nu[D] = zeros\ninput x[D]\ng in [0, 1] = sqrt(1 - exp(-2 * exp(nu)))",
    "running maximum": (
        "input i[D], f[D]\nstate m[D] = -inf\nm[t] = max(logsigmoid(f) + m[t-1], i)\n"
        "gate a = exp(logsigmoid(f) + m[t-1] - m[t])\noutput m[t]"
    ),
    "running maximum, the other": (
        "input i[D], f[D]\n"
        "state m[D] = -inf\n"
        "m[t] = max(logsigmoid(f) + m[t-1], i)\n"
        "gate b = exp(i - m[t])\n"
        "output m[t]"
    ),
    "running log-sum": (
        "input i[D], f[D]\nstate m[D] = -inf\nm[t] = logaddexp(logsigmoid(f) + m[t-1], i)\n"
        "gate a = exp(logsigmoid(f) + m[t-1] - m[t])\noutput m[t]"
    ),
    "stabilised by hand": (
        "input i[D], f[D]\nstate m[D] = -inf\nu = logsigmoid(f) + m[t-1]\nm[t] = where(u > i, u, i)\n"
        "p = u - max(u, i)\ngate a = exp(p)\noutput m[t]"
    ),
    "a hull": (
        "input x[D]\nz = sigmoid(x)\nstate h[D]\nh[t] = (1 - z) * h[t-1] + z * tanh(x)\noutput y in [-1, 1] = h[t]"
    ),
    "a shifted hull": (
        "input x[D]\n"
        "z = sigmoid(x)\n"
        "state h[D]\n"
        "h[t] = h[t-1] + z * (3 * tanh(x) + 2 - h[t-1])\n"
        "output y in [-1, 5] = h[t]"
    ),
    "a squared average": (
        "const b in (0, 1) = 0.9\ninput x[D]\nstate v[D]\nv[t] = b * v[t-1] + (1 - b) * x ** 2\n"
        "output s in [0, inf) = sqrt(v[t])"
    ),
    "a logistic map": (
        "input r[D] in [0, 4]\nstate h[D] = 0.5\nh[t] = r * h[t-1] * (1 - h[t-1])\noutput y in [0, 1] = h[t]"
    ),
    "a counter": "input x[D]\nstate n\nn[t] = n[t-1] + 1\noutput y in (0, 1] = 1 / n[t]",
    "Kalman": (
        "input q[D] in [0, inf), r[D] in (0, inf)\nstate P[D] = 1\nP[t] = (P[t-1] + q) * r / (P[t-1] + q + r)\n"
        "gate g = P[t] / r\noutput g"
    ),
    "Kalman by its gain": (
        "input q[D] in [0, inf), r[D] in (0, inf)\nstate P[D] = 1\nM = P[t-1] + q\ngate g = M / (M + r)\n"
        "P[t] = (1 - g) * M\noutput y in [0, inf) = P[t]"
    ),
    "normalised": "dim K = 4\ninput x[K]\nk in (-1, 1) = l2norm[K](x)",
    "normalised jointly": (
        "dim H = 2, K = 4\ninput x[H, K], y[K]\nk in [-1, 1] = sum[K](l2norm[H, K](x) * l2norm[K](y))"
    ),
    "normalised by hand": "dim K = 4\ninput x[K]\nk in [-1, 1] = x / sqrt(sum[K](x * x) + 1e-6)",
    "normalised by its maximum": "dim K = 4\ninput x[K]\nk in [-1, 1] = x / (max[K](abs(x)) + 1e-6)",
    "softmax": "dim K = 4\ninput x[K]\np in (0, 1] = softmax[K](x)",
    "softmax by hand": "dim K = 4\ninput x[K]\ne = exp(x)\np in [0, 1] = e / sum[K](e)",
    "a mean by softmax": "dim K = 4\ninput x[K], h[K]\ny in [-1, 1] = sum[K](softmax[K](x) * tanh(h))",
    "a mean": "dim K = 4\ninput x[K]\ny in (0, 1) = mean[K](sigmoid(x))",
    "soft sign": "input x[D]\ns in (-1, 1) = x / (1 + abs(x))",
    "a clipped division": "input x[D]\ns in [-1, 1] = x / max(abs(x), 1)",
    "a rational bump": "input x[D]\ns in [-1, 1] = 2 * x / (1 + x ** 2)",
    "a cosine": "input x[D], y[D]\ng in [-1, 1] = tanh(x) * cos(y)",
    "cosine and sine": "input x[D]\ng in [1, 1] = cos(x) ** 2 + sin(x) ** 2",
    "guarded": "input n[D] in [0, inf), x[D]\ns in [0, 1] = where(n > 0, n / (n + abs(x)), 0)",
    "clamped": "input x[D]\ns in [-0.5, 2] = clamp(x, -0.5, 2)",
    "bools": "input b: bool, c: bool, x[D]\ns in [0, 1] = where(b and not c, sigmoid(x), b)",
    "bilinear": (
        "input dt[D] in [0, inf)\nparam p[D] = zeros\nA = -exp(p)\na in (-1, 1] = (1 + dt * A / 2) / (1 - dt * A / 2)"
    ),
    "complex, bilinear": (
        "input dt[D] in [0, inf)\nparam p[D] = zeros\nparam w[D] = zeros\nA = -exp(p) + 1j * w\n"
        "a in disc(1) = (1 + dt * A / 2) / (1 - dt * A / 2)"
    ),
    "complex, polar": "input x[D]\nparam θ[D] = zeros\na in disc(1) = sigmoid(x) * exp(1j * θ)",
    "complex, by parts": "input x[D]\nparam θ[D] = zeros\na in disc(1) = sigmoid(x) * (cos(θ) + 1j * sin(θ))",
    "complex, an annulus": "input x[D]\nparam θ[D] = zeros\na in annulus(0.5, 1) = (1 + sigmoid(x)) / 2 * exp(1j * θ)",
    "ends that are consts": "const c in (0, 4] = 1\ninput x[D]\ns in [0, c] = c * sigmoid(x)",
    "a buffer": "buffer f[D] = uniform(0.9, 0.999)\ninput x[D]\ngate a = f ** 2",
    "a size": "dim K = 4\ninput x[K]\ny in [0, 1] = K ** -0.5",
    "an input's past": "input x[D] in [0.5, 1]\ny in [0, 1] = x[t-1]",
    "decimals": "input x[D] in [0, 1]\ny in [0.1, 0.3] = 0.1 + 0.2 * x",
    "a power": "input x[D] in [0, 1]\ny in [0, 1] = x ** 0.3",
    "a definition within `over`": (
        "dim J = 2, K = 4\ninput k[J, K]\nκ = l2norm[K](k)\nstate S[K]\np in (-1, 1) = tanh(sum[K](κ * S[t-1]))\n"
        "S[t] over J = S[t-1] - κ * p\noutput S[t]"
    ),
}


@pytest.mark.parametrize("name", PROVED)
def test_proved(name: str) -> None:
    analysis = analyse(wrap(PROVED[name]))
    assert [(v.claim, v.status) for v in analysis.verdicts if v.status != "proved"] == []


REFUTED = {
    "too large": "input x[D]\ngate z = 2 * sigmoid(x)",
    "a sign": "input dt[D]\ngate a = exp(-dt)",
    "any map": "input x[D]\ngate z = linear(x -> D)",
    "a learned number": "input x[D]\nparam w[D] = ones\ngate z = w * sigmoid(x)",
    "reached in time": "input x[D]\nstate h[D]\nh[t] = h[t-1] + 0.4 * tanh(x)\noutput y in [-1, 1] = h[t]",
    "an end that is left out": "input x[D]\ns in [0, 1) = clamp(x, 0, 1)",
    "two at once": "input x[D]\ns in [-1, 1] = tanh(x) + tanh(2 * x)",
    "a difference": (
        "input f[D], i[D]\nstate m[D] = -inf\nm[t] = max(f + m[t-1], i)\ngate a = exp(f + m[t-1] - i)\noutput m[t]"
    ),
    "a larger input": "input x[D] in [0, 2]\ngate z = x",
    "a modulus": "input x[D]\na in disc(1) = exp(x + 1j * x)",
    "too small a modulus": "input x[D]\na in annulus(0.5, 1) = exp(-softplus(x) + 1j * x)",
    "a const's range": "const c in (0, 4] = 1\ninput x[D]\ngate s = c * sigmoid(x)",
    "only with two entries": "dim K = 4\ninput x[K]\ny in [0, 0] = x - mean[K](x)",
    "a convolution": "input x[D]\ngate y = conv[3](x)",
}


@pytest.mark.parametrize("name", REFUTED)
def test_refuted(name: str) -> None:
    verdict = analyse(wrap(REFUTED[name])).verdicts[-1]
    assert verdict.status == "refuted"
    assert verdict.witness is not None
    assert verdict.witness.values


@pytest.mark.parametrize("name", [n for n in REFUTED if n not in ("only with two entries", "a convolution")])
def test_the_interpreter_agrees_with_the_witness(name: str) -> None:
    cell = read(wrap(REFUTED[name]))
    verdict = bound(cell, Source("test", "")).verdicts[-1]
    assert verdict.witness is not None
    chosen = {n: float(text) for n, text in verdict.witness.values}
    shape = [1, verdict.witness.tokens, 1]
    inputs = {i.name: torch.full(shape, chosen.get(i.name, 0.0), dtype=torch.float64) for i in cell.inputs}
    consts = {c.name: chosen[c.name] for c in cell.consts}
    seen = cell if verdict.kind == "output" else observed(cell)
    interpreter = Interpreter(seen, {d.name: 1 for d in cell.dims}, consts)
    params = {n: torch.full_like(p, chosen.get(n, 0.0)) for n, p in interpreter.init_params().items()}
    outputs, _ = interpreter.run(inputs, params)
    value = outputs[[o.name for o in seen.outputs].index(verdict.name)].flatten()[-1]
    assert value.item() == pytest.approx(verdict.witness.result)


def test_refuted_before_the_first_token() -> None:
    verdict = analyse(wrap("input x[D] in [0.5, 1]\ny in [0.5, 1] = x[t-1]")).verdicts[-1]
    assert verdict.witness is not None
    assert (verdict.witness.result, verdict.witness.text()) == (0, "at the first token")


UNDECIDED = {
    "a const without a range": ("const c = 8.0\ninput x[D]\ngate a = exp(-c * softplus(x))", "`c in [0, inf)`"),
    "a division by zero": ("input x[D], y[D]\ngate z = sigmoid(x / y)", "`y in (0, inf)`"),
    "infinite inputs": (
        "input i[D] in [-inf, inf)\nstate m[D] = -inf\nm[t] = max(m[t-1], i)\ngate a = exp(m[t-1] - m[t])\noutput m[t]",
        "`i in (-inf, inf)`",
    ),
    "a learned divisor": ("input x[D]\nparam w[D] = ones\ngate z = sigmoid(x / w)", "write `exp(w)`"),
    "a difference below": ("input x[D], y[D]\ngate z = sigmoid(x / (y - y[t-1]))", "`y - y[t-1]` may be 0"),
    "a state's divisor": (
        "input q[D] in [0, inf), r[D] in [0, inf)\nstate P[D] = 1\nP[t] = (P[t-1] + q) * r / (P[t-1] + q + r)\n"
        "gate g = P[t] / r\noutput g",
        "`r in (0, inf)`",
    ),
}


@pytest.mark.parametrize("name", UNDECIDED)
def test_undecided_names_what_is_missing(name: str) -> None:
    body, missing = UNDECIDED[name]
    verdict = analyse(wrap(body)).verdicts[-1]
    assert verdict.status == "undecided"
    assert missing in verdict.missing


def test_severity() -> None:
    body, _ = UNDECIDED["a const without a range"]
    analysis = analyse(wrap(body))
    assert [d.severity for d in analysis.diagnostics()] == ["warning"]
    assert [d.severity for d in analysis.diagnostics(strict=True)] == ["error"]
    assert [d.severity for d in analyse(wrap(REFUTED["too large"])).diagnostics()] == ["error"]


def test_ranges_are_told() -> None:
    analysis = bound(example("kalman"), Source("kalman", ""))
    assert str(analysis.states["P"]) == "(0, inf)"
    assert str(analysis.inputs["q"]) == "[0, inf)"
    assert str(analysis.definitions["g"]) == "(0, 1)"
    verdict = analysis.verdict("g")
    assert verdict is not None
    assert verdict.relies == ("q in [0, inf)", "r in (0, inf)")


def test_the_same_every_time() -> None:
    texts = {analysis_text(analyse(wrap(body))) for body in [REFUTED["two at once"]] * 3}
    assert len(texts) == 1


HUGE = {
    "a long sum": "input x[D], y[D]\ns in [0, 1] = " + " + ".join(["x * y"] * 150),
    "a high power": "input x[D], y[D]\ns in [0, 1] = " + " * ".join(["(x + y - 1)"] * 60),
    "nested maxima": "input x[D], y[D]\ns in [0, 1] = " + "max(x - 0.1 * (" * 30 + "y" + "), x)" * 30,
    "nested choices": "input x[D], y[D]\ns in [0, 1] = " + "where(x > y, " * 40 + "y" + ", x - y)" * 40,
    "many inputs": "input "
    + ", ".join(f"x{i}[D]" for i in range(60))
    + "\ns in [0, 1] = "
    + " * ".join(f"(1 - x{i})" for i in range(60)),
    "many states": "input x[D]\nstate "
    + ", ".join(f"s{i}[D]" for i in range(40))
    + "\n"
    + "\n".join(f"s{i}[t] = tanh(x * s{(i + 1) % 40}[t-1]) + s{i}[t-1]" for i in range(40))
    + "\noutput y in [0, 1] = s0[t]",
    "large numbers": "input x[D]\ns in [0, 1] = (1e300 * x) ** 300 / (7e-300 + x ** 200)",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HUGE)
def test_effort_is_bounded(name: str) -> None:
    assert analyse(wrap(HUGE[name])).verdicts


# --- soundness --------------------------------------------------------------------------------------------------------


def inside(value: Tensor, found: Range, what: str) -> None:
    """All entries lie in a range, up to rounding; an undefined one only where that was said."""
    numbers = (value.abs() if value.is_complex() else value).to(torch.float64).flatten()
    if not found.interval.undefined:
        assert not bool(numbers.isnan().any()), f"{what} is undefined, but {found} was derived"
    assert found.interval.has_lo or not bool((numbers == -INF).any()), f"{what} is infinite, but {found} was derived"
    assert found.interval.has_hi or not bool((numbers == INF).any()), f"{what} is infinite, but {found} was derived"
    numbers = numbers[numbers.isfinite()]
    lo, hi = float(found.interval.lo), float(found.interval.hi)
    slack = 1e-9 * (1 + numbers.abs())
    assert bool((numbers >= lo - slack).all()), f"{what} reaches {numbers.min()}, but {found} was derived"
    assert bool((numbers <= hi + slack).all()), f"{what} reaches {numbers.max()}, but {found} was derived"


def observed(cell: Cell) -> Cell:
    """The cell with every definition and state as an output."""
    graph = cell.graph
    seen = [Output(d.name, graph.ref("def", d.name, d.type)) for d in cell.definitions]
    seen += [Output(s.name, graph.ref("state", s.name, s.type)) for s in cell.states]
    return replace(cell, outputs=tuple(seen))


def holds(cell: Cell, analysis: Analysis, inputs: dict[str, Tensor], sizes: dict[str, int], seed: int) -> None:
    interpreter = Interpreter(observed(cell), sizes)
    params = interpreter.init_params(seed)
    generator = torch.Generator().manual_seed(seed)
    learned = {p.name for p in cell.params if p.learned}
    for name, value in params.items():
        if name in learned and not value.is_complex():
            params[name] = value + 0.5 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
    outputs, _ = interpreter.run(inputs, params)
    for o, value in zip(interpreter.cell.outputs, outputs, strict=True):
        inside(value, analysis.definitions.get(o.name) or analysis.states[o.name], o.name)


@settings(max_examples=60, deadline=None, suppress_health_check=CHECKS)
@given(programs(), st.integers(0, 3))
def test_random_programs_stay_in_their_ranges(program: Program, seed: int) -> None:
    cell = read(program.text)
    analysis = bound(cell, Source("random", program.text))
    assert all(v.status != "refuted" for v in analysis.verdicts), analysis_text(analysis)
    holds(cell, analysis, program.draw(3, 4, seed), program.dims, seed)


_LEAVES = ("a", "b", "c", "x", "y", "a", "c", "0.5", "1", "2", "-1", "h[t-1]", "m[t-1]", "g")
_SHAPES = (
    "(@ + @)",
    "(@ - @)",
    "@ * @",
    "(@ / (1 + abs(@)))",
    "(@ / (@ + 1.5))",
    "@ / (a + c)",
    "(1 - @)",
    "max(@, @)",
    "min(@, @)",
    "abs(@)",
    "square(@)",
    "@ ** 3",
    "relu(@)",
    "sqrt(@)",
    "sqrt(square(@) + square(@))",
    "rsqrt(1 + square(@))",
    "tanh(@)",
    "sigmoid(@)",
    "exp(-abs(@))",
    "exp(min(@ - max(@, @), 4))",  # no overflow: floats would say that inf - inf is undefined
    "log(@)",
    "where(@ > @, @, @)",
    "where(p, @, @)",
    "where(@ > 0, sqrt(@), @)",
    "clamp(@, -1, @)",
    "silu(@)",
    "gelu(@)",
    "softplus(@)",
    "logaddexp(@, @)",
    "cos(@)",
    "sin(@)",
    "l2norm[K](@ * k)",
    "sum[K](k * l2norm[K](@ * k))",
    "softmax[K](@ * k)",
    "sum[K](softmax[K](k) * @)",
    "(@ / sum[K](exp(k)))",
    "sum[K](square(l2norm[K](k)) * @)",
    "mean[K](@ * k)",
    "max[K](@ + k)",
    "logsumexp[K](@ * k)",
)


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> str:
    if depth == 0 or draw(st.integers(0, 4)) == 0:
        return draw(st.sampled_from(_LEAVES))
    pattern = draw(st.sampled_from(_SHAPES))
    first = draw(expressions(depth - 1))
    parts = pattern.split("@")
    text = parts[0]
    for i, part in enumerate(parts[1:]):
        again = i > 0 and draw(st.booleans())
        text += f"({first if i == 0 or again else draw(expressions(depth - 1))})" + part
    return text


_UPDATES = (
    "(1 - a) * h[t-1] + a * tanh(@)",
    "tanh(@)",
    "sqrt(a * h[t-1] ** 2 + (1 - a) * b ** 2)",
    "h[t-1] / (1 + c * h[t-1])",
    "h[t-1] * (1 - h[t-1])",
    "clamp(h[t-1] + b, -1, 2)",
    "where(p, 0, h[t-1] + a)",
)


def stateless(text: str) -> str:
    return text.replace("h[t-1]", "b").replace("m[t-1]", "c")


@st.composite
def cells(draw: st.DrawFn) -> str:
    """Cells whose values share much, so that intervals alone would be loose."""
    first, second, third, term = (draw(expressions()) for _ in range(4))
    update = draw(st.sampled_from(_UPDATES)).replace("@", f"sum[K]({stateless(term)} * k)")
    return (
        "cell Random\ndim K = 3\ninput a in [0, 1], b in [-1, 1], c in (0, inf), x, y, k[K], p: bool\ng = sigmoid(x)\n"
        f"d1 = {stateless(first)}\nd2 = {second}\nd3 = d2 - {third} * d2\n"
        f"state h = 0.5\nstate m = {draw(st.sampled_from(['-inf', '0', '1']))}\nh[t] = {update}\n"
        "m[t] = max(m[t-1] - a, x)\nr = exp(m[t-1] - a - m[t])\noutput h[t]\noutput m[t]\n"
    )


@settings(max_examples=200, deadline=None, suppress_health_check=CHECKS)
@given(cells(), st.integers(0, 100))
def test_random_expressions_stay_in_their_ranges(text: str, seed: int) -> None:
    cell = read(text)
    analysis = bound(cell, Source("random", text))
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        """Mostly moderate numbers, and now and then one that sits on an edge."""
        values = torch.randn([16, 3, *shape], generator=generator, dtype=torch.float64) * 2
        edges = torch.tensor([0.0, 1.0, -1.0, 0.5, 10.0, -10.0], dtype=torch.float64)
        chosen = edges[torch.randint(6, values.shape, generator=generator)]
        return torch.where(torch.rand(values.shape, generator=generator) < 0.3, chosen, values)

    inputs = {
        "a": draw().clamp(0, 1),
        "b": draw().clamp(-1, 1),
        "c": draw().abs() + 1e-3,
        "x": draw(),
        "y": draw(),
        "k": draw(3),
        "p": draw() > 0,
    }
    holds(cell, analysis, inputs, {}, seed)


_NUMBERS = st.fractions(-4, 4, max_denominator=8)
_OPS = sorted({**elementwise.UNARY, **elementwise.BINARY}.keys() - LOGIC)


@st.composite
def intervals(draw: st.DrawFn) -> tuple[Interval, Num]:
    """An interval and a number in it."""
    x, y, z = sorted(draw(st.tuples(_NUMBERS, _NUMBERS, _NUMBERS)))
    lo = -INF if draw(st.integers(0, 4)) == 0 else x
    hi = INF if draw(st.integers(0, 4)) == 0 else z
    found = Interval(lo, hi, lo < y and draw(st.booleans()), y < hi and draw(st.booleans()))
    inside = [y] + [lo] * (not found.lo_open) + [hi] * (not found.hi_open)
    return found, draw(st.sampled_from(inside))


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(_OPS), intervals(), intervals())
def test_operations_on_intervals(op: str, a: tuple[Interval, Num], b: tuple[Interval, Num]) -> None:
    """What an operation gives for two numbers lies in what it gives for intervals around them."""
    arity = 1 if op in elementwise.UNARY else 2
    around, at = (a[0], b[0])[:arity], (point(a[1]), point(b[1]))[:arity]
    whole, exact = elementwise.apply(op, *around), elementwise.apply(op, *at)
    if exact.undefined:
        assert whole.undefined
    else:
        overlap = replace(whole, undefined=False).meet(exact)
        assert overlap is not None, f"{op}{tuple(map(str, at))} = {exact}, but {op}{tuple(map(str, around))} = {whole}"


@settings(max_examples=100, deadline=None, suppress_health_check=CHECKS)
@given(expressions(2), st.sampled_from([0.1, 0.5, 0.9]))
def test_a_derived_range_is_never_refuted(expression: str, cut: float) -> None:
    """A claim of what was derived is proved; a claim of a part of it is refuted only by a value outside of it."""
    text = stateless(expression)
    head = "dim K = 3\ninput a in [0, 1], b in [-1, 1], c in (0, inf), x, y, k[K], p: bool\ng = sigmoid(x)\n"
    found = analyse(wrap(f"{head}e = {text}")).definitions["e"].interval
    if found.undefined:
        return
    lo, hi = math.nextafter(float(found.lo), -INF), math.nextafter(float(found.hi), INF)
    left = "(" if found.lo == -INF and not found.has_lo else "["
    right = ")" if found.hi == INF and not found.has_hi else "]"
    assert status(f"{head}e in {left}{lo!r}, {hi!r}{right} = {text}") == "proved"
    if math.isfinite(lo) and math.isfinite(hi):
        inner = lo + cut * (hi - lo)
        verdict = analyse(wrap(f"{head}e in [{lo!r}, {inner!r}] = {text}")).verdicts[-1]
        if verdict.witness is not None:
            assert isinstance(verdict.witness.result, float)
            assert inner - 1e-9 <= verdict.witness.result <= hi + 1e-9
