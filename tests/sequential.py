"""Random cells that are stepped: entries mix by learned maps, sums, norms and small systems, twice a token too."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.elementwise import Program

HEAD = """cell Random
dim H = 2, P = 3, Q = P, D = H * P, J = 2
input x[H, P], w[P], z[H, P] in [0, 1], done: bool, k[J, P]
param U[P, Q] = normal(0.5), V[H, P, Q] = normal(0.5), u[P] = uniform(0.1, 0.4)
buffer E[P, Q] = eye
const gain = 0.3
"""
INPUTS: dict[str, tuple[tuple[str, ...], str]] = {
    "x": (("H", "P"), "real"),
    "w": (("P",), "real"),
    "z": (("H", "P"), "unit"),
    "done": ((), "rare"),
    "k": (("J", "P"), "real"),
}
# `$` is anything of bounded size, `%` a weight in [0, 1], `@` the state a token ago; all of [H, P] or fewer.
MIXED = (
    "linear[P](@)",
    "linear(@ -> H, P)",
    "linear(@ -> P, bias=true)",
    "linear[P](% * @)",
    "linear[H](linear[P](@))",
    "linear(mean[H, P](@) -> P) + linear(@ > 0.1 -> P)",
    "linear[P](tanh(linear[P](@)) * w)",
    "sum[Q](U * @[P -> Q])",
    "sum[Q](V * (w * @)[P -> Q])",
    "sum[Q](E * U * @[P -> Q] * gain)",
    "linear(@[H * P -> D] -> D)[D -> H * P]",
    "u * sum[P](w * @)",
    "mean[H](@) - max[P](@ + x)",
    "softmax[P](@ + x)",
    "logsumexp[H](@) * u",
    "layernorm[P](@ + 2 * x)",
    "rmsnorm[H, P](@ + x, weight=true)",
    "l2norm[P](@ + w)",
    "tanh(solve[P, Q](3 * E + 0.1 * @ * tanh(@[P -> Q]), x + @))",
    "sum[H, P](@ * x) / (1 + sum[P](square(@)))",
    "grad(sum[P](square(sum[Q](U * @[P -> Q]) - w)), @)",
)
FREE = ("x", "w", "x + u", "x[t-1]", "gain * linear(x -> P)", "z * w", "0.5", "where(done, w, x)")
WEIGHT = ("z", "sigmoid(w)", "sigmoid(linear[P](@) + x)", "sigmoid(@)", "0.7", "where(done, 0, z)", "sigmoid(u)")
FORMS = (
    ("h[H, P]", "h[t] = tanh($ + !)"),
    ("h[H, P] = u", "h[t] = (1 - %) * @ + % * tanh($ + !)"),
    ("h[H, P]", "h[t] = where(done, $, 0.9 * @) + 0.2 * sin(! + @)"),
    ("h[H, P], c[H, P]", "c[t] = % * c[t-1] + (1 - %) * tanh(! + $)\nh[t] = % * tanh(c[t])"),
    ("c[P] = 1, h[H, P]", "h[t] = 0.5 * h[t-2] + 0.3 * tanh(c[t-1] + !)\nc[t] = mean[H](% * h[t]) - 0.2 * c[t-3] + u"),
    ("h[H, P], s", "s[t] = 0.5 * s[t-1] + mean[H, P](x * !)\nh[t] = tanh($ + s[t] * @) + 0.1 * tanh(!)"),
    ("h[H, P]", "h[t] over J = 0.6 * @ + 0.4 * tanh($ + k * !)"),
    (
        "c[P] = 1, h[H, P]",
        "c[t] over J = 0.5 * c[t-1] * mean[H](% + @) + k * tanh(c[t-1] + mean[H](x * !))\n"
        "h[t] = tanh(c[t] + $) + 0.2 * c[t-2]",
    ),
    (
        "S[H, P, Q], h[H, P]",
        "S[t] = 0.8 * S[t-1] + 0.1 * x * tanh(!)[P -> Q]\nh[t] = tanh(sum[Q](S[t] * w[P -> Q]) + @)",
    ),
)
OUTPUTS = (
    "output h[t]",
    "output x * h[t] + h[t-1]",
    "output linear(h[t] -> D)\noutput h[t-2]",
    "output sum[P](w * h[t])",
)


@st.composite
def sequential(draw: st.DrawFn) -> Program:
    states, text = draw(st.sampled_from(FORMS))
    for mark, choices in (("!", MIXED), ("$", FREE), ("%", WEIGHT)):
        while mark in text:
            text = text.replace(mark, f"({draw(st.sampled_from(choices))})", 1)
    text = text.replace("@", "h[t-1]")
    sizes = {"H": draw(st.integers(1, 3)), "P": draw(st.sampled_from((1, 2, 5, 17))), "J": draw(st.integers(1, 3))}
    if "D" in text:
        sizes |= {"H": 2, "P": 3}
    return Program(f"{HEAD}state {states}\n{text}\n{draw(st.sampled_from(OUTPUTS))}\n", sizes, INPUTS)
