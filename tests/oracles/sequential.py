"""Cells that have no parallel form, each by hand from its paper, with PyTorch's own cells where it has them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.case import Case, Result, Tensors, stack


def begun(state: Tensors | None, name: str, x: Tensor, size: int) -> Tensor:
    return x.new_zeros(x.shape[0], size) if state is None else state[name]


def both(p: Tensors, name: str, *operands: Tensor) -> Tensor:
    """One matrix beside another on what stands one below another, and a bias."""
    weights = [p[f"{name}_{i}_weight"] for i in range(1, len(operands) + 1)]
    return F.linear(torch.cat(operands, -1), torch.cat(weights, -1), p[f"{name}_bias"])


def elman(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    h = begun(state, "h", x, p["h_bias"].numel())
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        h = torch.rnn_tanh_cell(
            x[:, t], h, p["h_1_weight"], p["h_2_weight"], p["h_bias"], torch.zeros_like(p["h_bias"])
        )
        ys.append(h)
    return (stack(ys),), {"h": h}


def irnn(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    h = begun(state, "h", x, p["h_bias"].numel())
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        h = torch.rnn_relu_cell(x[:, t], h, p["h_weight"], p["U"], p["h_bias"], torch.zeros_like(p["h_bias"]))
        ys.append(h)
    return (stack(ys),), {"h": h}


def gru_v1(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    h = begun(state, "h", x, p["n_bias"].numel())
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        r, z = (torch.sigmoid(both(p, gate, x[:, t], h)) for gate in "rz")
        h = torch.lerp(torch.tanh(both(p, "n", x[:, t], r * h)), h, z)
        ys.append(h)
    return (stack(ys),), {"h": h}


def peephole_lstm(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    h, c = (begun(state, n, x, p["c_bias"].numel()) for n in "hc")
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        i, f = (torch.sigmoid(both(p, gate, x[:, t], h) + c @ torch.diag(p[f"p_{gate}"])) for gate in "if")
        c = f * c + i * torch.tanh(both(p, "c", x[:, t], h))
        h = torch.sigmoid(both(p, "o", x[:, t], h) + c @ torch.diag(p["p_o"])) * torch.tanh(c)
        ys.append(h)
    return (stack(ys),), {"h": h, "c": c}


def mgu(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    h = begun(state, "h", x, p["c_bias"].numel())
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        f = torch.sigmoid(both(p, "f", h, x[:, t]))
        h = torch.lerp(h, torch.tanh(both(p, "c", f * h, x[:, t])), f)
        ys.append(h)
    return (stack(ys),), {"h": h}


def ugrnn(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    h = begun(state, "h", x, p["c_bias"].numel())
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        g = torch.sigmoid(1 + both(p, "g", h, x[:, t]))
        h = torch.lerp(torch.tanh(both(p, "c", h, x[:, t])), h, g)
        ys.append(h)
    return (stack(ys),), {"h": h}


def rate_network(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    u = inputs["u"]
    x = begun(state, "x", u, p["theta"].numel())
    tau = torch.lerp(torch.full_like(p["theta"], 20), torch.full_like(p["theta"], 100), torch.sigmoid(p["theta"]))
    ys: list[Tensor] = []
    for t in range(u.shape[1]):
        drive = F.linear(torch.sigmoid(x), p["x_1_weight"]) + F.linear(u[:, t], p["x_2_weight"])
        # A step of Euler's of tau dx/dt = drive - x.
        x = x + 5 / tau * (drive - x)
        ys.append(F.linear(torch.sigmoid(x), p["out_weight"], p["out_bias"]))
    return (stack(ys),), {"x": x}


def sparse_rnn(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    h = begun(state, "h", x, p["h_bias"].numel())
    band = torch.triu(torch.tril(p["U"], 8), -8)
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        h = torch.tanh(F.linear(x[:, t], p["h_weight"], p["h_bias"]) + F.linear(h, band))
        ys.append(h)
    return (stack(ys),), {"h": h}


def pv_rnn(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    noise = inputs["noise"]
    f, g = (begun(state, n, noise, p[f"{n}_bias"].numel()) for n in "fg")
    ys: list[Tensor] = []
    kls: list[Tensor] = []

    def map_of(name: str, d: Tensor) -> Tensor:
        return F.linear(d, p[f"{name}_weight"], p[f"{name}_bias"])

    for t in range(noise.shape[1]):
        d = torch.tanh(f)
        prior = torch.distributions.Normal(torch.tanh(map_of("mean_p", d)), torch.exp(map_of("dev_p", d)))
        mean, log_dev = map_of("mean_q", d) + inputs["m"][:, t], map_of("dev_q", d) + inputs["s"][:, t]
        posterior = torch.distributions.Normal(torch.tanh(mean), torch.exp(log_dev))
        z = posterior.mean + posterior.stddev * noise[:, t]
        fast, slow = both(p, "f", d, torch.tanh(g), z), both(p, "g", torch.tanh(g), d)
        f, g = f + (fast - f) / 2, g + (slow - g) / 16
        ys.append(map_of("x", torch.tanh(f)))
        kls.append(torch.distributions.kl_divergence(posterior, prior).sum(-1))
    return (stack(ys), stack(kls)), {"f": f, "g": g}


def gru_d(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x, seen, delta, usual = (inputs[n] for n in ("x", "seen", "delta", "usual"))
    last, h = begun(state, "last", x, x.shape[2]), begun(state, "h", x, p["n_bias"].numel())
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        m = seen[:, t]
        fade = torch.exp(-F.relu(p["w"] * delta[:, t] + p["b"]))
        value = m * x[:, t] + (1 - m) * fade * last + (1 - m) * (1 - fade) * usual[:, t]
        last = torch.lerp(last, x[:, t], m)
        h = torch.exp(-F.relu(F.linear(delta[:, t], p["forget_weight"], p["forget_bias"]))) * h
        r, z = (torch.sigmoid(both(p, gate, value, h, m)) for gate in "rz")
        h = torch.lerp(h, torch.tanh(both(p, "n", value, r * h, m)), z)
        ys.append(h)
    return (stack(ys),), {"last": last, "h": h}


X = {"x": ("D", "real")}
SEQUENTIAL: dict[str, Case] = {
    "Elman": Case("elman", elman, {"D": 3}, X),
    "IRNN": Case("irnn", irnn, {"D": 3}, X),
    "GRUv1": Case("gruv1", gru_v1, {"D": 3}, X),
    "PeepholeLSTM": Case("peepholelstm", peephole_lstm, {"D": 3}, X),
    "MGU": Case("mgu", mgu, {"D": 3}, X),
    "UGRNN": Case("ugrnn", ugrnn, {"D": 3}, X),
    "RateNetwork": Case("ratenetwork", rate_network, {"D": 3, "M": 2}, {"u": ("M", "real")}),
    "SparseRNN": Case("sparsernn", sparse_rnn, {"D": 11}, X),
    "PVRNN": Case("pvrnn", pv_rnn, {"X": 2, "F": 4, "S": 3, "Z": 2}, dict.fromkeys(("noise", "m", "s"), ("Z", "real"))),
    "GRUD": Case(
        "grud",
        gru_d,
        {"D": 2, "H": 3},
        {"x": ("D", "real"), "seen": ("D", "unit"), "delta": ("D", "positive"), "usual": ("D", "real")},
    ),
}
