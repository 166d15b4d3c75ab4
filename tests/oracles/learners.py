"""Cells whose state is corrected or trained as it goes, each by hand, with its transition as the matrix it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.case import Case, Result, Tensors, conv, l2norm, rmsnorm, stack, to_heads


def queries(
    p: Tensors, x: Tensor, state: Tensors | None, names: str
) -> tuple[list[Callable[[Tensor], Tensor]], dict[str, Tensor]]:
    """For each name the map `silu(conv(W x))` of one token, and the windows of inputs that these maps move on."""
    windows = {
        f"{n}_1_conv": x.new_zeros(x.shape[0], 3, *p[f"{n}_2_weight"].shape[:2])
        if state is None
        else state[f"{n}_1_conv"]
        for n in names
    }

    def of(name: str) -> Callable[[Tensor], Tensor]:
        def at(x_t: Tensor) -> Tensor:
            projected = to_heads(p[f"{name}_2_weight"], x_t)
            y, windows[f"{name}_1_conv"] = conv(p[f"{name}_1_weight"], windows[f"{name}_1_conv"], projected)
            return F.silu(y)

        return at

    return [of(n) for n in names], windows


def memory(p: Tensors, x: Tensor, state: Tensors | None) -> Tensor:
    """`[B, H, K, V]`."""
    sizes = (*p["k_2_weight"].shape[:2], p["v_2_weight"].shape[1])
    return x.new_zeros(x.shape[0], *sizes) if state is None else state["S"]


def householder(β: Tensor, k: Tensor) -> Tensor:
    """`I - β k kᵀ` for each head."""
    return torch.eye(k.shape[-1], dtype=k.dtype) - β[..., None, None] * k[..., :, None] * k[..., None, :]


def outer(β: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bh,bhk,bhv->bhkv", β, k, v)


def read(q: Tensor, s: Tensor) -> Tensor:
    return torch.einsum("bhk,bhkv->bhv", q, s)


def merged(weight: Tensor, o: Tensor) -> Tensor:
    return torch.einsum("dhv,bhv->bd", weight, o)


def delta_net(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    maps, windows = queries(p, x, state, "qkv")
    s = memory(p, x, state)
    ys: list[Tensor] = []
    for x_t in x.unbind(1):
        q, k, v = (at(x_t) for at in maps)
        q, k = l2norm(q), l2norm(k)
        β = torch.sigmoid(x_t @ p["β_weight"].T)
        s = householder(β, k) @ s + outer(β, k, v)
        ys.append(merged(p["out_weight"], rmsnorm(read(q, s))))
    return (stack(ys),), {"S": s, **windows}


def kda(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    maps, windows = queries(p, x, state, "qkv")
    s = memory(p, x, state)
    ys: list[Tensor] = []
    for x_t in x.unbind(1):
        q, k, v = (at(x_t) for at in maps)
        q, k = l2norm(q), l2norm(k)
        β = torch.sigmoid(x_t @ p["β_weight"].T)
        rate = torch.exp(p["A_log"])[:, None]
        step = F.softplus(to_heads(p["α_1_weight"], x_t @ p["α_2_weight"].T) + p["dt_bias"])
        s = householder(β, k) @ torch.diag_embed(torch.exp(-rate * step)) @ s + outer(β, k, v)
        g = torch.sigmoid(to_heads(p["g_1_weight"], x_t @ p["g_2_weight"].T) + p["g_1_bias"])
        ys.append(merged(p["out_weight"], g * rmsnorm(read(q, s))))
    return (stack(ys),), {"S": s, **windows}


def comba(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    maps, windows = queries(p, x, state, "qkv")
    s = memory(p, x, state)
    ys: list[Tensor] = []
    for x_t in x.unbind(1):
        q, k, v = (at(x_t) for at in maps)
        q, k = l2norm(q), l2norm(k)
        β = torch.sigmoid(x_t @ p["β_weight"].T)
        α = torch.exp(-torch.exp(p["A_log"]) * F.softplus(x_t @ p["α_weight"].T + p["dt_bias"]))
        feedback = torch.sigmoid(p["feedback"]) * β
        transition = α[..., None, None] * torch.eye(k.shape[-1], dtype=k.dtype) - outer(feedback, k, k)
        s = transition @ s + outer(β, k, v)
        o = read(q, s) - p["d"][:, None] * read(k, s)
        ys.append(merged(p["out_1_weight"], rmsnorm(o) * torch.sigmoid(to_heads(p["out_2_weight"], x_t))))
    return (stack(ys),), {"S": s, **windows}


def longhorn(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    s = x.new_zeros(x.shape[0], x.shape[2], p["k_weight"].shape[0]) if state is None else state["S"]
    window = x.new_zeros(x.shape[0], 3, x.shape[2]) if state is None else state["u_conv"]
    ys: list[Tensor] = []
    for x_t in x.unbind(1):
        u, window = conv(p["u_weight"], window, x_t)
        u = F.silu(u)
        k, q = u @ p["k_weight"].T, u @ p["q_weight"].T
        β = torch.sigmoid(u @ p["β_weight"].T + p["β_bias"])
        # 1 / (1 / β + |k|²), the implicit step's size.
        step = 1 / (1 / β + torch.linalg.vector_norm(k, dim=-1, keepdim=True).square())
        kept = torch.einsum("be,bn->ben", step, k * k)
        s = s - kept * s + torch.einsum("be,bn->ben", step * u, k)
        ys.append(torch.einsum("ben,bn->be", s, q) + p["skip"] * u)
    return (stack(ys),), {"S": s, "u_conv": window}


def mesa_net(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    maps, windows = queries(p, x, state, "qk")
    heads, keys = p["ridge"].shape
    if state is None:
        a, g = x.new_zeros(x.shape[0], heads, keys, keys), x.new_zeros(x.shape[0], heads, keys, p["v_weight"].shape[1])
    else:
        a, g = state["A"], state["G"]
    ridge = (F.softplus(p["ridge"]) + 0.25)[..., None] * p["identity"]
    ys: list[Tensor] = []
    for x_t in x.unbind(1):
        q, k = (l2norm(at(x_t)) for at in maps)
        γ = torch.sigmoid(x_t @ p["γ_weight"].T + p["γ_bias"])[..., None, None]
        β = torch.sigmoid(x_t @ p["β_weight"].T + p["β_bias"])
        a = γ * a + outer(β, k, k)
        g = γ * g + outer(β, k, to_heads(p["v_weight"], x_t))
        # The fitted matrix Φ = G (H + Λ)⁻¹, then its answer at q.
        fitted = g.mT @ torch.linalg.inv(a + ridge)
        ys.append(merged(p["out_weight"], rmsnorm(read(q, fitted.mT))))
    return (stack(ys),), {"A": a, "G": g, **windows}


def ttt_linear(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    w = p["W0"].expand(x.shape[0], *p["W0"].shape) if state is None else state["W"]
    b = p["b0"].expand(x.shape[0], *p["b0"].shape) if state is None else state["b"]
    size = w.shape[-1]
    ys: list[Tensor] = []
    for x_t in x.unbind(1):
        q, k, v = (to_heads(p[f"{n}_weight"], x_t) for n in "qkv")
        rate = (torch.sigmoid(x_t @ p["η_weight"].T + p["η_bias"]) / size)[..., None]
        # The gradient of half the squared error through the layer norm, by hand.
        z = read(k, w) + b
        spread = torch.sqrt(z.var(-1, correction=0, keepdim=True) + 1e-6)
        unit = (z - z.mean(-1, keepdim=True)) / spread
        error = p["scale"] * (k + p["scale"] * unit + p["shift"] - v)
        along = (error * unit).mean(-1, keepdim=True)
        slope = (error - error.mean(-1, keepdim=True) - unit * along) / spread
        w = w - k[..., :, None] * (rate * slope)[..., None, :]
        b = b - rate * slope
        z = F.layer_norm(read(q, w) + b, (size,), eps=1e-6)
        ys.append((q + p["scale"] * z + p["shift"]).flatten(1) @ p["out_weight"].T)
    return (stack(ys),), {"W": w, "b": b}


def mamba_signed(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    rate = torch.exp(p["A_log"])
    s = x.new_zeros(x.shape[0], *rate.shape) if state is None else state["S"]
    window = x.new_zeros(x.shape[0], 3, x.shape[2]) if state is None else state["u_conv"]
    ys: list[Tensor] = []
    for x_t in x.unbind(1):
        u, window = conv(p["u_weight"], window, x_t)
        u = F.silu(u)
        dt = F.softplus(u @ p["dt_weight"].T + p["dt_bias"])
        # 2 exp(-z) - 1
        factor = 1 + 2 * torch.expm1(-torch.einsum("be,en->ben", dt, rate))
        s = factor * s + torch.einsum("be,bn->ben", dt * u, u @ p["B_weight"].T)
        ys.append(torch.einsum("ben,bn->be", s, u @ p["C_weight"].T) + p["skip"] * u)
    return (stack(ys),), {"S": s, "u_conv": window}


def omega_net(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    q, k, v = inputs["q"], l2norm(inputs["k"]), inputs["v"]
    keep, rate, weight = (inputs[n][..., None, None] for n in "αηγ")
    memory = q.new_zeros(*q[:, 0].shape, v.shape[-1]) if state is None else state["M"]
    k_before = torch.zeros_like(k[:, 0]) if state is None else state["κ_past"][:, 0]
    v_before = torch.zeros_like(v[:, 0]) if state is None else state["v_past"][:, 0]
    ys: list[Tensor] = []
    for t in range(q.shape[1]):
        transition, written = keep[:, t] * torch.eye(q.shape[-1], dtype=q.dtype), torch.zeros_like(memory)
        for key, value, share in ((k[:, t], v[:, t], weight[:, t]), (k_before, v_before, 1 - weight[:, t])):
            transition = transition - rate[:, t] * share * key[..., :, None] * key[..., None, :]
            written = written + rate[:, t] * share * key[..., :, None] * value[..., None, :]
        memory = transition @ memory + written
        k_before, v_before = k[:, t], v[:, t]
        ys.append((q[:, t, :, None] @ memory).squeeze(-2))
    return (stack(ys),), {"M": memory, "v_past": v_before[:, None], "κ_past": k_before[:, None]}


HEADS = {"D": 4, "H": 2, "K": 3, "V": 2}
STREAM = {"x": ("D", "real")}

LEARNERS: dict[str, Case] = {
    "OmegaNet": Case(
        "omeganet",
        omega_net,
        {"H": 2, "K": 3, "V": 2},
        dict.fromkeys("qk", ("HK", "real")) | {"v": ("HV", "real")} | dict.fromkeys("αηγ", ("H", "unit")),
    ),
    "DeltaNet": Case("deltanet", delta_net, HEADS, STREAM),
    "KDA": Case("kda", kda, {"R": 2, **HEADS}, STREAM),
    "Comba": Case("comba", comba, HEADS, STREAM),
    "Longhorn": Case("longhorn", longhorn, {"E": 3, "N": 2}, {"x": ("E", "real")}),
    "MesaNet": Case("mesanet", mesa_net, HEADS, STREAM),
    "TTTLinear": Case("tttlinear", ttt_linear, {"D": 6, "H": 2}, STREAM),
    "MambaSigned": Case("mambasigned", mamba_signed, {"E": 4, "N": 4}, {"x": ("E", "real")}),
}
