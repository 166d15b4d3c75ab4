"""The programs of the language's specification, each by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.case import Case, Result, Tensors, blocks, conv, l2norm, rmsnorm, stack, to_heads


def mingru(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    h = torch.zeros_like(x[:, 0]) if state is None else state["h"]
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        z = torch.sigmoid(x[:, t] @ p["z_weight"].T)
        h = torch.lerp(h, x[:, t] @ p["c_weight"].T, z)
        ys.append(h)
    return (stack(ys),), {"h": h}


def minlstm(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    h = torch.zeros_like(x[:, 0]) if state is None else state["h"]
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        f = torch.sigmoid(x[:, t] @ p["f_weight"].T)
        i = torch.sigmoid(x[:, t] @ p["i_weight"].T)
        h = (f * h + i * (x[:, t] @ p["h_weight"].T)) / (f + i)
        ys.append(h)
    return (stack(ys),), {"h": h}


def lru(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    modulus = torch.exp(-torch.exp(p["nu"]))
    lam = torch.polar(modulus, torch.exp(p["theta"]))
    norm = torch.sqrt(1 - modulus**2)
    b = torch.complex(p["h_1_weight"], p["h_2_weight"])
    c = torch.complex(p["out_1_weight"], p["out_2_weight"])
    h = torch.zeros(x.shape[0], lam.shape[0], dtype=lam.dtype) if state is None else state["h"]
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        h = lam * h + norm * (x[:, t].to(b.dtype) @ b.T)
        ys.append((h @ c.T).real + x[:, t] @ p["out_3_weight"].T)
    return (stack(ys),), {"h": h}


def mamba(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    batch, _, e = x.shape
    a = -torch.exp(p["A_log"])
    s = x.new_zeros(batch, e, a.shape[1]) if state is None else state["S"]
    window = x.new_zeros(batch, 3, e) if state is None else state["u_conv"]
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        u, window = conv(p["u_weight"], window, x[:, t])
        u = F.silu(u)
        dt = F.softplus(u @ p["dt_weight"].T + p["dt_bias"])
        b, c = u @ p["B_weight"].T, u @ p["C_weight"].T
        s = torch.exp(dt[:, :, None] * a) * s + (dt * u)[:, :, None] * b[:, None, :]
        ys.append(torch.einsum("ben,bn->be", s, c) + p["skip"] * u)
    return (stack(ys),), {"S": s, "u_conv": window}


def gla(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    h, k_size, _ = p["q_weight"].shape
    v_size = p["v_weight"].shape[1]
    s = x.new_zeros(x.shape[0], h, k_size, v_size) if state is None else state["S"]
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        q = to_heads(p["q_weight"], x[:, t]) / k_size**0.5
        k, v = to_heads(p["k_weight"], x[:, t]), to_heads(p["v_weight"], x[:, t])
        a = torch.sigmoid(to_heads(p["a_weight"], x[:, t]) + p["a_bias"]) ** (1 / 16)
        s = a[..., None] * s + k[..., None] * v[..., None, :]
        o = rmsnorm(torch.einsum("bhk,bhkv->bhv", q, s)) * F.silu(to_heads(p["out_2_weight"], x[:, t]))
        ys.append(torch.einsum("dhv,bhv->bd", p["out_1_weight"], o))
    return (stack(ys),), {"S": s}


def mamba2(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    q, k, v, dt = inputs["q"], inputs["k"], inputs["v"], inputs["dt"]
    s = q.new_zeros(*q[:, 0].shape, v.shape[-1]) if state is None else state["S"]
    ys: list[Tensor] = []
    for t in range(q.shape[1]):
        a = torch.exp(-dt[:, t] * torch.exp(p["A_log"]))
        s = a[:, :, None, None] * s + torch.einsum("bh,bhk,bhv->bhkv", dt[:, t], k[:, t], v[:, t])
        ys.append(torch.einsum("bhk,bhkv->bhv", q[:, t], s))
    return (stack(ys),), {"S": s}


def mlstm(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    q, k, v, i, f = (inputs[n] for n in "qkvif")
    if state is None:
        m = torch.full_like(i[:, 0], -torch.inf)
        c, n = q.new_zeros(*q[:, 0].shape, v.shape[-1]), torch.zeros_like(q[:, 0])
    else:
        m, c, n = state["m"], state["C"], state["n"]
    ys: list[Tensor] = []
    for t in range(q.shape[1]):
        kept = F.logsigmoid(f[:, t]) + m
        m = torch.maximum(kept, i[:, t])
        forget, write = torch.exp(kept - m), torch.exp(i[:, t] - m)
        c = forget[..., None, None] * c + write[..., None, None] * k[:, t, :, :, None] * v[:, t, :, None, :]
        n = forget[..., None] * n + write[..., None] * k[:, t]
        size = torch.maximum(torch.einsum("bhk,bhk->bh", q[:, t], n).abs(), torch.exp(-m))
        ys.append(torch.einsum("bhk,bhkv->bhv", q[:, t], c) / size[..., None])
    return (stack(ys),), {"m": m, "C": c, "n": n}


def aaren(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    s, v = inputs["s"], inputs["v"]
    if state is None:
        m, u, w = torch.full_like(s[:, 0], -torch.inf), torch.zeros_like(v[:, 0]), torch.zeros_like(s[:, 0])
    else:
        m, u, w = state["m"], state["u"], state["w"]
    ys: list[Tensor] = []
    for t in range(s.shape[1]):
        top = torch.maximum(m, s[:, t])
        old, new = torch.exp(m - top), torch.exp(s[:, t] - top)
        u = old[..., None] * u + new[..., None] * v[:, t]
        w, m = old * w + new, top
        ys.append(u / w[..., None])
    return (stack(ys),), {"m": m, "u": u, "w": w}


def gated_delta_net(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    batch = x.shape[0]
    h, k_size, _ = p["q_2_weight"].shape
    v_size = p["v_2_weight"].shape[1]
    if state is None:
        s = x.new_zeros(batch, h, k_size, v_size)
        wq, wk, wv = (x.new_zeros(batch, 3, h, size) for size in (k_size, k_size, v_size))
    else:
        s, wq, wk, wv = state["S"], state["q_1_conv"], state["k_1_conv"], state["v_1_conv"]
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        q, wq = conv(p["q_1_weight"], wq, to_heads(p["q_2_weight"], x[:, t]))
        k, wk = conv(p["k_1_weight"], wk, to_heads(p["k_2_weight"], x[:, t]))
        v, wv = conv(p["v_1_weight"], wv, to_heads(p["v_2_weight"], x[:, t]))
        q, k, v = l2norm(F.silu(q)), l2norm(F.silu(k)), F.silu(v)
        beta = 2 * torch.sigmoid(x[:, t] @ p["β_weight"].T)
        a = torch.exp(-torch.exp(p["A_log"]) * F.softplus(x[:, t] @ p["a_weight"].T + p["dt_bias"]))
        s = a[..., None, None] * s
        error = v - torch.einsum("bhk,bhkv->bhv", k, s)
        s = s + (beta[..., None] * k)[..., None] * error[..., None, :]
        o = rmsnorm(torch.einsum("bhk,bhkv->bhv", q, s)) * F.silu(to_heads(p["out_2_weight"], x[:, t]))
        ys.append(torch.einsum("dhv,bhv->bd", p["out_1_weight"], o))
    return (stack(ys),), {"S": s, "q_1_conv": wq, "k_1_conv": wk, "v_1_conv": wv}


def delta_product(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    q, k, v, b = (inputs[n] for n in "qkvb")
    s = q.new_zeros(*q[:, 0].shape, v.shape[-1]) if state is None else state["S"]
    ys: list[Tensor] = []
    for t in range(q.shape[1]):
        for j in range(k.shape[2]):
            unit, beta = l2norm(k[:, t, j]), 2 * torch.sigmoid(b[:, t, j])
            error = v[:, t, j] - torch.einsum("bhk,bhkv->bhv", unit, s)
            s = s + torch.einsum("bh,bhk,bhv->bhkv", beta, unit, error)
        ys.append(torch.einsum("bhk,bhkv->bhv", q[:, t], s))
    return (stack(ys),), {"S": s}


def rwkv7(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    r, w, k, v, a, b = (inputs[n] for n in "rwkvab")
    s = r.new_zeros(*r[:, 0].shape, v.shape[-1]) if state is None else state["S"]
    ys: list[Tensor] = []
    for t in range(r.shape[1]):
        # The transition as the matrix it is: diag(w) + a bᵀ.
        transition = torch.diag_embed(w[:, t]) + a[:, t, :, :, None] * b[:, t, :, None, :]
        s = transition @ s + k[:, t, :, :, None] * v[:, t, :, None, :]
        ys.append((r[:, t, :, None, :] @ s).squeeze(-2))
    return (stack(ys),), {"S": s}


def lstm(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    heads, size, _ = p["i_1_weight"].shape
    h = x.new_zeros(x.shape[0], heads, size) if state is None else state["h"]
    c = torch.zeros_like(h) if state is None else state["c"]
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        i, f, o, z = (
            to_heads(p[f"{g}_1_weight"], x[:, t]) + p[f"{g}_1_bias"] + blocks(p[f"{g}_2_weight"], h) for g in "ifoz"
        )
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
        h = torch.sigmoid(o) * torch.tanh(c)
        ys.append(h)
    return (stack(ys),), {"h": h, "c": c}


def gru(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    cell = torch.nn.GRUCell(x.shape[-1], x.shape[-1], dtype=x.dtype)
    weights = {
        "weight_ih": torch.cat([p["r_1_weight"], p["z_1_weight"], p["n_1_weight"]]),
        "weight_hh": torch.cat([p["r_2_weight"], p["z_2_weight"], p["n_2_weight"]]),
        "bias_ih": torch.cat([p["r_bias"], p["z_bias"], p["n_1_bias"]]),
        "bias_hh": torch.cat([torch.zeros_like(p["r_bias"]), torch.zeros_like(p["z_bias"]), p["n_2_bias"]]),
    }
    h = torch.zeros_like(x[:, 0]) if state is None else state["h"]
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        h = torch.func.functional_call(cell, weights, (x[:, t], h))
        ys.append(h)
    return (stack(ys),), {"h": h}


def slstm(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    heads, size, _ = p["i_1_weight"].shape
    if state is None:
        h, c, n, m = (x.new_zeros(x.shape[0], heads, size) for _ in range(4))
    else:
        h, c, n, m = state["h"], state["c"], state["n"], state["m"]
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        i, f, o, z = (
            to_heads(p[f"{g}_1_weight"], x[:, t]) + p[f"{g}_1_bias"] + blocks(p[f"{g}_2_weight"], h) for g in "ifoz"
        )
        kept = F.logsigmoid(f) + m
        m = torch.maximum(kept, i)
        forget, write = torch.exp(kept - m), torch.exp(i - m)
        c = forget * c + write * torch.tanh(z)
        n = forget * n + write
        h = torch.sigmoid(o) * c / n
        ys.append(h)
    return (stack(ys),), {"h": h, "c": c, "n": n, "m": m}


def titans_linear(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    momentum, rate, forget = inputs["η"], inputs["θ"], inputs["α"]
    memory = q.new_zeros(*q[:, 0].shape, v.shape[-1]) if state is None else state["M"]
    surprise = torch.zeros_like(memory) if state is None else state["S"]
    ys: list[Tensor] = []
    for t in range(q.shape[1]):
        error = torch.einsum("bhk,bhkv->bhv", k[:, t], memory) - v[:, t]
        gradient = k[:, t, :, :, None] * error[..., None, :]
        surprise = momentum[:, t, :, None, None] * surprise - rate[:, t, :, None, None] * gradient
        memory = (1 - forget[:, t])[..., None, None] * memory + surprise
        ys.append(torch.einsum("bhk,bhkv->bhv", q[:, t], memory))
    return (stack(ys),), {"M": memory, "S": surprise}


def s5_reset(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x, done = inputs["x"], inputs["done"]
    pole = torch.complex(-torch.exp(p["re"]), p["im"])
    step = torch.exp(pole * torch.exp(p["log_dt"]))
    b = torch.complex(p["h_1_weight"], p["h_2_weight"])
    c = torch.complex(p["out_1_weight"], p["out_2_weight"])
    h = torch.zeros(x.shape[0], pole.shape[0], dtype=pole.dtype) if state is None else state["h"]
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        h = step * (h * (~done[:, t, None])) + (step - 1) / pole * (x[:, t].to(b.dtype) @ b.T)
        ys.append((h @ c.T).real)
    return (stack(ys),), {"h": h}


def kalman(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    y, q, r = inputs["y"], inputs["q"], inputs["r"]
    variance = torch.ones_like(y[:, 0]) if state is None else state["P"]
    mean = torch.zeros_like(y[:, 0]) if state is None else state["m"]
    ys: list[Tensor] = []
    for t in range(y.shape[1]):
        predicted = variance + q[:, t]
        gain = predicted / (predicted + r[:, t])
        mean = mean + gain * (y[:, t] - mean)
        variance = (1 - gain) * predicted
        ys.append(mean)
    return (stack(ys),), {"P": variance, "m": mean}


def leaky_peak(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x, a = inputs["x"], inputs["a"]
    peak = torch.full_like(x[:, 0], -torch.inf) if state is None else state["p"]
    energy = torch.zeros_like(x[:, 0]) if state is None else state["e"]
    peaks: list[Tensor] = []
    energies: list[Tensor] = []
    for t in range(x.shape[1]):
        peak = torch.maximum(peak - (1 - a[:, t]), x[:, t])
        energy = torch.sqrt(a[:, t] * energy**2 + (1 - a[:, t]) * x[:, t] ** 2)
        peaks.append(peak)
        energies.append(energy)
    return (stack(peaks), stack(energies)), {"p": peak, "e": energy}


LANGUAGE: dict[str, Case] = {
    "MinGRU": Case("mingru", mingru, {"D": 3}, {"x": ("D", "real")}),
    "MinLSTM": Case("minlstm", minlstm, {"D": 3}, {"x": ("D", "real")}),
    "LRU": Case("lru", lru, {"D": 3, "N": 4}, {"x": ("D", "real")}),
    "Mamba": Case("mamba", mamba, {"E": 3, "N": 2}, {"x": ("E", "real")}),
    "GLA": Case("gla", gla, {"D": 4, "H": 2, "K": 3, "V": 2}, {"x": ("D", "real")}),
    "Mamba2": Case(
        "mamba2",
        mamba2,
        {"H": 2, "K": 3, "V": 2},
        {"q": ("HK", "real"), "k": ("HK", "real"), "v": ("HV", "real"), "dt": ("H", "positive")},
    ),
    "MLSTM": Case(
        "mlstm",
        mlstm,
        {"H": 2, "K": 3, "V": 2},
        {"q": ("HK", "real"), "k": ("HK", "real"), "v": ("HV", "real"), "i": ("H", "real"), "f": ("H", "real")},
    ),
    "Aaren": Case("aaren", aaren, {"H": 2, "V": 3}, {"s": ("H", "real"), "v": ("HV", "real")}),
    "GatedDeltaNet": Case("gateddeltanet", gated_delta_net, {"D": 4, "H": 2, "K": 3, "V": 2}, {"x": ("D", "real")}),
    "DeltaProduct": Case(
        "deltaproduct",
        delta_product,
        {"J": 3, "H": 2, "K": 3, "V": 2},
        {"q": ("HK", "real"), "k": ("JHK", "real"), "v": ("JHV", "real"), "b": ("JH", "real")},
    ),
    "RWKV7": Case(
        "rwkv7",
        rwkv7,
        {"H": 2, "K": 3, "V": 2},
        {
            "r": ("HK", "real"),
            "w": ("HK", "unit"),
            "k": ("HK", "real"),
            "v": ("HV", "real"),
            "a": ("HK", "unit"),
            "b": ("HK", "unit"),
        },
    ),
    "LSTM": Case("lstm", lstm, {"D": 6, "H": 2}, {"x": ("D", "real")}),
    "GRU": Case("gru", gru, {"D": 3}, {"x": ("D", "real")}),
    "SLSTM": Case("slstm", slstm, {"D": 6, "H": 2}, {"x": ("D", "real")}),
    "TitansLinear": Case(
        "titanslinear",
        titans_linear,
        {"H": 2, "K": 3, "V": 2},
        {
            "q": ("HK", "real"),
            "k": ("HK", "real"),
            "v": ("HV", "real"),
            "η": ("H", "unit"),
            "θ": ("H", "unit"),
            "α": ("H", "unit"),
        },
    ),
    "S5Reset": Case("s5reset", s5_reset, {"D": 3, "N": 4}, {"x": ("D", "real"), "done": ("", "bool")}),
    "Kalman": Case("kalman", kalman, {"D": 3}, {"y": ("D", "real"), "q": ("D", "positive"), "r": ("D", "positive")}),
    "LeakyPeak": Case("leakypeak", leaky_peak, {"D": 3}, {"x": ("D", "real"), "a": ("D", "unit")}),
}
