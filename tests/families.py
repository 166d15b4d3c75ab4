"""Random cells of each family, and of none: a grammar for each, so that what is drawn is in it however it is written.

Values stay bounded: maps contract on the whole, so that what is compared is a composition and not its roundings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st

from backends.reference import Interpreter
from rnnc.loading import load_module
from rnnc.pipeline import Compilation, compile_source, module_text
from rnnc.source import Source
from tests.elementwise import Program
from tests.fused import Trial, disagreements

SIZES = {"D": 3, "N": 2}
HEAD = """cell Random
dim D = 3, N = 2
input x[D], w[D], z[D] in [0, 1], q[D] in [0, inf), r[D] in (0, inf), done: bool
param u[D] = uniform(0.1, 0.4)
"""
INPUTS: dict[str, tuple[tuple[str, ...], str]] = {
    "x": (("D",), "real"),
    "w": (("D",), "real"),
    "z": (("D",), "unit"),
    "q": (("D",), "positive"),
    "r": (("D",), "positive"),
    "done": ((), "rare"),
}
OUTPUTS = ("output h[t]", "output x * h[t] + tanh(h[t-1])", "output h[t]\noutput h[t-2]", "output sum[D](w * h[t])")
FREE = ("x", "w", "0.5 * x", "x + u", "x[t-1]", "tanh(linear(x -> D))")
WEIGHT = ("z", "sigmoid(w)", "sigmoid(u)", "0.7", "where(done, 0, z)", "exp(-q)")


def _filled(forms: list[str]) -> st.SearchStrategy[str]:
    """A form with `$` as anything free of the state and `%` as a weight in [0, 1]."""

    @st.composite
    def fill(draw: st.DrawFn) -> str:
        text = draw(st.sampled_from(forms))
        while "$" in text:
            text = text.replace("$", f"({draw(st.sampled_from(FREE))})", 1)
        while "%" in text:
            text = text.replace("%", f"({draw(st.sampled_from(WEIGHT))})", 1)
        return text

    return fill()


def _program(states: str, updates: str, output: str) -> Program:
    return Program(f"{HEAD}state {states}\n{updates}\n{output}\n", SIZES, INPUTS)


@st.composite
def tropical(draw: st.DrawFn) -> Program:
    start = draw(st.sampled_from(["-inf", "0", "1", "u"]))
    forms = ["max(h[t-1] - %, $)", "max(h[t-1], $)", "relu(% * h[t-1] + $)", "min(max(% * h[t-1] + $, -1), q)"]
    forms += [
        "clamp(h[t-1] + $, -1, r)",
        "$ - relu(-h[t-1])",
        "where(done, $, max(h[t-1] - q, $))",
        "where(done, 0, clamp(% * h[t-1] + x, -2, 1.5))",
        "-max(-h[t-1], $)",
    ]
    forms += ["max(h[t-1] + x, h[t-1] - %, $)", "min(0.5 * h[t-1] + w, max(x, w), 0.5 * h[t-1])"]
    forms += ["max(logsigmoid(w) + h[t-1], $)", "max(max(h[t-1] - %, $), $)", "max(r * h[t-1] + x, $) / (1 + r)"]
    return _program(f"h[D] = {start}", f"h[t] = {draw(_filled(forms))}", draw(st.sampled_from(OUTPUTS[:3:2])))


@st.composite
def variable(draw: st.DrawFn) -> Program:
    forms = {
        "0": ["sqrt(% * h[t-1] ** 2 + q)", "2 * sqrt(0.2 * % * square(h[t-1]) + q)", "square(0.5 * sqrt(h[t-1]) + q)"],
        "1": ["h[t-1] ** % * exp(0.1 * $)", "1 / (1 / h[t-1] + r)", "r / sqrt(% / h[t-1] ** 2 + r)"],
        "-inf": ["logaddexp(h[t-1] - q, $)", "log(% * exp(h[t-1]) + r)", "logaddexp($, logsigmoid(w) + h[t-1])"],
        "0.5": ["sigmoid(% * log(h[t-1] / (1 - h[t-1])) + $)", "tanh(0.25 * log((1 + h[t-1]) / (1 - h[t-1])) + $)"],
    }
    start = draw(st.sampled_from(list(forms)))
    return _program(f"h[D] = {start}", f"h[t] = {draw(_filled(forms[start]))}", draw(st.sampled_from(OUTPUTS)))


@st.composite
def moebius(draw: st.DrawFn) -> Program:
    forms = ["(h[t-1] + q) * r / (h[t-1] + q + r)", "1 / (1 / (h[t-1] + q) + 1 / r)", "r + 1 / (r + h[t-1])"]
    forms += ["where(done, r, r / (h[t-1] + 1 + q))", "(% * h[t-1] + q) / (1 + r * h[t-1])"]
    forms += ["(h[t-1] + q) - (h[t-1] + q) ** 2 / (h[t-1] + q + r)", "h[t-1] / (1 + z * h[t-1]) + q"]
    start = draw(st.sampled_from(["1", "0.5", "u"]))
    return _program(f"h[D] = {start}", f"h[t] = {draw(_filled(forms))}", draw(st.sampled_from(OUTPUTS)))


@st.composite
def block(draw: st.DrawFn) -> Program:
    forms = [
        (
            "h[D], g[D] = 1",
            "h[t] = cos(z) * % * h[t-1] - sin(z) * g[t-1] * 0.9 + $",
            "g[t] = 0.9 * sin(z) * h[t-1] + $",
        ),
        ("h[D] = 1, g[D]", "h[t] = h[t-1] + 0.1 * g[t]", "g[t] = 0.9 * g[t-1] - z * h[t-1] + $"),
        ("h[D], g[D]", "h[t] = 0.9 * h[t-1] + 0.3 * g[t-1] + 0.2 * % * ($ - h[t-1])", "g[t] = % * g[t-1] + 0.1 * h[t]"),
        ("h[D] = 1", "h[t] = 0.5 * h[t-1] + 0.3 * % * h[t-2] - 0.1 * h[t-3] + $", ""),
        ("h[D] = u", "h[t] = where(done, $, 0.4 * % * h[t-2]) + u * $", ""),
        (
            "h[D], g[D], f[D] = 1",
            "h[t] = 0.5 * f[t-1] + $",
            "g[t] = % * h[t-1] * 0.5 + 0.2 * g[t-1]\nf[t] = 0.5 * g[t-1]",
        ),
        ("h[D]", "e = $ - h[t-1]\nh[t] = 0.6 * h[t-1] + 0.3 * % * e[t-1]", ""),
    ]
    states, *updates = draw(st.sampled_from(forms))
    text = "\n".join(draw(_filled([u])) for u in updates if u)
    return _program(states, text, draw(st.sampled_from(OUTPUTS)))


@st.composite
def none(draw: st.DrawFn) -> Program:
    """Entries do not mix, and nothing composes."""
    forms = [
        ("h[D]", "h[t] = tanh(% * h[t-1] + $)"),
        ("h[D] = 1", "h[t] = 0.5 * sin(h[t-1]) + 0.3 * h[t-2] * tanh(h[t-1]) + $"),
        ("h[D], g[D]", "h[t] = tanh($ - g[t-1])\ng[t] = % * g[t-1] + 0.5 * h[t] ** 2"),
        ("h[D], g[D] = 1", "h[t] = % * h[t-1] + 0.1 * g[t-1] * h[t-1]\ng[t] = tanh(h[t-1] + $)"),
    ]
    states, updates = draw(st.sampled_from(forms))
    return _program(states, draw(_filled([updates])), draw(st.sampled_from(OUTPUTS)))


GRAMMARS = {"tropical": tropical(), "variable": variable(), "moebius": moebius(), "block": block(), "none": none()}


def compiled(text: str) -> tuple[Compilation, Any]:
    source = Source("random.rnn", text)
    (made,) = compile_source(source)
    return made, load_module(module_text([made], source), source.name)


def agrees(
    program: Program,
    lead: int | Sequence[int],
    seed: int,
    dtype: torch.dtype,
    segments: int,
    device: str = "cpu",
) -> list[str]:
    """One call of kernels with time cut into segments, from a state that some tokens left; what disagrees."""
    made, module = compiled(program.text)
    assert made.cell is not None
    module._segments = lambda *_: segments
    oracle = Interpreter(made.cell, program.sizes)
    params = oracle.init_params(torch.Generator().manual_seed(seed))
    lengths = None if isinstance(lead, int) else lead
    batch, length = (2, lead) if isinstance(lead, int) else (1, sum(lead))
    with torch.no_grad():
        state = oracle.run(program.draw(batch if lengths is None else len(lengths), 3, seed + 1), params)[1]
    trial = Trial(made.cell, program.sizes, program.draw(batch, length, seed), params, state, lengths, seed % 1000)
    assert "triton" in module.Random._backends

    def build(**options: Any) -> Any:
        return module.Random(**options, backend="triton")

    return disagreements(trial.expected(), trial.computed(build, dtype, device), dtype)
