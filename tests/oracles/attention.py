"""Linear attention and what grew from it, each by hand: most as attention over all pairs of tokens, as the papers'
parallel forms have it, where the programs have a state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.case import Case, Result, Tensors, conv, rmsnorm, stack, to_heads


def heads(weight: Tensor, x: Tensor) -> Tensor:
    """`[H, K, D]` on `[B, T, D]`."""
    return torch.einsum("hkd,btd->bthk", weight, x)


def causal(scores: Tensor) -> Tensor:
    """`[B, H, T, T]`, readers then what they read, without later tokens."""
    return scores * torch.ones_like(scores).tril()


def since(logs: Tensor) -> Tensor:
    """Products of decays, from those `[B, T, ...]` as logarithms: `[B, t, i, ...]` over the tokens after i up to t, 0
    where i is later."""
    total = logs.cumsum(1)
    later = torch.ones(logs.shape[1], logs.shape[1]).triu(1) > 0
    later = later.reshape(*later.shape, *(1 for _ in logs.shape[2:]))
    return torch.exp((total[:, :, None] - total[:, None]).masked_fill(later, -torch.inf))


def linear_attention(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    q, k = (F.elu(heads(p[f"{n}_weight"], x)) + 1 for n in "ab")
    v = heads(p["v_weight"], x)
    s = torch.zeros_like(k[:, 0, :, :, None] * v[:, 0, :, None]) if state is None else state["S"]
    z = torch.zeros_like(k[:, 0]) if state is None else state["z"]
    scores = causal(torch.einsum("bthk,bihk->bhti", q, k))
    top = torch.einsum("bhti,bihv->bthv", scores, v) + torch.einsum("bthk,bhkv->bthv", q, s)
    bottom = scores.sum(-1).mT + torch.einsum("bthk,bhk->bth", q, z)
    y = torch.einsum("dhv,bthv->btd", p["out_weight"], top / bottom[..., None])
    return (y,), {"S": s + torch.einsum("bihk,bihv->bhkv", k, v), "z": z + k.sum(1)}


def retnet(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    """Queries and keys turn by the position, `theta ** (-2 i / d)` a token."""
    x = inputs["x"]
    n, k_size, _ = p["q_1_weight"].shape
    q, k = (torch.complex(heads(p[f"{m}_1_weight"], x), heads(p[f"{m}_2_weight"], x)) for m in "qk")
    v = heads(p["v_weight"], x).to(q.dtype)
    at = torch.arange(x.shape[1], dtype=torch.float64)
    theta = 10000.0 ** -(torch.arange(k_size, dtype=torch.float64) / k_size)
    gamma = 1 - 2.0 ** (-5 - torch.arange(n, dtype=torch.float64))
    turn = torch.polar(torch.ones_like(theta), theta) ** at[:, None]
    q, k = q * turn[:, None] / (2 * k_size) ** 0.5, k * turn[:, None]
    lasts = torch.where(at[:, None] >= at, gamma[:, None, None] ** (at[:, None] - at), 0)
    s = torch.zeros(x.shape[0], n, k_size, v.shape[-1], dtype=q.dtype) if state is None else state["S"]
    o = torch.einsum("bthk,bihk,hti,bihv->bthv", q, k.conj(), lasts.to(q.dtype), v).real
    once = torch.polar(torch.ones_like(theta), theta)
    before = torch.einsum("bthk,bhkv,ht->bthv", q * once, s, (gamma[:, None] ** (at + 1)).to(q.dtype))
    o = F.layer_norm(o + before.real, o.shape[-1:], eps=1e-6) * F.silu(heads(p["out_2_weight"], x))
    end, left = at[-1] - at, once ** (at[-1] + 1)
    kept = torch.einsum("hi,bihk,bihv->bhkv", (gamma[:, None] ** end).to(q.dtype), k.conj() * once ** at[-1], v)
    final = (gamma[:, None] ** (at[-1] + 1) * left)[..., None] * s + kept
    return (torch.einsum("dhv,bthv->btd", p["out_1_weight"], o),), {"S": final}


def lightning(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    q, k = (F.silu(heads(p[f"{n}_weight"], x)) for n in "qk")
    v, u = heads(p["v_weight"], x), heads(p["u_weight"], x)
    n = q.shape[2]
    slope = 8 * torch.arange(n, dtype=torch.float64) / n
    s = x.new_zeros(*k[:, 0].shape, v.shape[-1]) if state is None else state["S"]
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        s = torch.exp(-slope)[:, None, None] * s + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        o = torch.einsum("bhk,bhkv->bhv", q[:, t], s).flatten(1)
        ys.append((rmsnorm(o) * u[:, t].flatten(1)) @ p["out_weight"].flatten(1).T)
    return (stack(ys),), {"S": s}


def mamba2_block(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    gate, fed = heads(p["z_weight"], x), {"v": heads(p["v_2_weight"], x)}
    fed |= {n: x @ p[f"{n}_2_weight"].T for n in "BC"}
    after: Tensors = {}
    for n, u in fed.items():
        name, ys = f"{n}_1_conv", list[Tensor]()
        after[name] = u.new_zeros(u.shape[0], 3, *u.shape[2:]) if state is None else state[name]
        for t in range(x.shape[1]):
            y, after[name] = conv(p[f"{n}_1_weight"], after[name], u[:, t])
            ys.append(F.silu(y + p[f"{n}_1_bias"]))
        fed[n] = stack(ys)
    dt = F.softplus(x @ p["dt_weight"].T + p["dt_bias"])
    logs = -dt * torch.exp(p["A_log"])
    s = x.new_zeros(x.shape[0], dt.shape[2], fed["B"].shape[-1], gate.shape[-1]) if state is None else state["S"]
    y = torch.einsum("btk,bik,btih,bih,bihv->bthv", fed["C"], fed["B"], since(logs), dt, fed["v"])
    y = y + torch.einsum("btk,bth,bhkv->bthv", fed["C"], torch.exp(logs.cumsum(1)), s) + p["skip"][:, None] * fed["v"]
    y = y * F.silu(gate)
    y = y / torch.sqrt((y * y).mean((2, 3), keepdim=True) + 1e-5) * p["out_scale"]
    kept = torch.einsum(
        "bih,bih,bik,bihv->bhkv", torch.exp(logs.sum(1, keepdim=True) - logs.cumsum(1)), dt, fed["B"], fed["v"]
    )
    final = torch.exp(logs.sum(1))[..., None, None] * s + kept
    return (torch.einsum("dhv,bthv->btd", p["out_weight"], y),), {"S": final, **after}


def hgrn2(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    f = torch.lerp(torch.sigmoid(heads(p["f_weight"], x)), torch.ones(()).double(), 0.5)
    q, v = F.silu(heads(p["q_weight"], x)), heads(p["v_weight"], x)
    s = x.new_zeros(*q[:, 0].shape, v.shape[-1]) if state is None else state["S"]
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        s = torch.lerp(v[:, t, :, None].expand_as(s), s, f[:, t, :, :, None])
        o = torch.einsum("bhk,bhkv->bhv", q[:, t], s).flatten(1)
        ys.append((rmsnorm(o) * p["out_scale"].flatten()) @ p["out_weight"].flatten(1).T)
    return (stack(ys),), {"S": s}


def rwkv6(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    s = x.new_zeros(x.shape[0], *p["u"].shape, p["v_1_weight"].shape[1]) if state is None else state["S"]
    past = torch.zeros_like(x[:, :1]) if state is None else state["x_past"]

    def mixed(name: str, a: Tensor, b: Tensor, first: int) -> Tensor:
        """`ddlerp`, whose second map is the `first`."""
        low = torch.tanh(torch.lerp(a, b, p["μ"]) @ p[f"{name}_{first + 1}_weight"].T)
        return torch.lerp(a, b, p[f"λ{name}"] + low @ p[f"{name}_{first}_weight"].T)

    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        a, b = x[:, t], past[:, 0]
        r, k, v, g = (to_heads(p[f"{n}_1_weight"], mixed(n, a, b, 2)) for n in "rkvg")
        d = p["λw"] + to_heads(p["d_1_weight"], torch.tanh(mixed("d", a, b, 3) @ p["d_2_weight"].T))
        now = torch.einsum("bhk,bhv->bhkv", k, v)
        o = torch.einsum("bhk,bhkv->bhv", r, s + p["u"][..., None] * now)
        s = torch.exp(-torch.exp(d))[..., None] * s + now
        ys.append((F.layer_norm(o, o.shape[-1:], eps=1e-6) * F.silu(g)).flatten(1) @ p["out_weight"].flatten(1).T)
        past = x[:, t : t + 1]
    return (stack(ys),), {"S": s, "x_past": past}


def mlstm_block(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    u = heads(p["u_weight"], x)
    n, size = u.shape[2:]
    if state is None:
        m, c = x.new_full((len(x), n), -torch.inf), x.new_zeros(len(x), n, size, size)
        norm, window = x.new_zeros(len(x), n, size), x.new_zeros(len(x), 3, n, size)
    else:
        m, c, norm, window = (state[name] for name in ("m", "C", "n", "c_conv"))
    block = {name: torch.stack([torch.block_diag(*w) for w in p[f"w{name}"]]) for name in "qkv"}
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        mixed, window = conv(p["c_weight"], window, u[:, t])
        mixed = F.silu(mixed + p["c_bias"])
        q, k = (torch.einsum("hij,bhj->bhi", block[name], mixed) for name in "qk")
        v = torch.einsum("hij,bhj->bhi", block["v"], u[:, t])
        gates = torch.cat([q, k, v], -1).flatten(1)
        # The columns of a gate's three maps: by head, of the query's, the key's and the value's numbers.
        wi, wf = (torch.cat([p[f"{g}_{j}_weight"] for j in (1, 2, 3)], -1).flatten(1) for g in "if")
        i, f = gates @ wi.T + p["i_bias"], F.logsigmoid(gates @ wf.T + p["forget"])
        top = torch.maximum(f + m, i)
        old, new = torch.exp(f + m - top)[..., None], torch.exp(i - top)[..., None]
        c = old[..., None] * c + torch.einsum("bhk,bhv->bhkv", new * k / size**0.5, v)
        norm, m = old * norm + new * k / size**0.5, top
        below = torch.maximum((q * norm).sum(-1).abs(), torch.exp(-m))
        h = torch.einsum("bhk,bhkv->bhv", q, c) / below[..., None]
        y = p["scale"] * F.layer_norm(h, h.shape[-1:], eps=1e-6) + p["skip"] * mixed
        ys.append((y * F.silu(to_heads(p["out_2_weight"], x[:, t]))).flatten(1) @ p["out_1_weight"].flatten(1).T)
    return (stack(ys),), {"m": m, "C": c, "n": norm, "c_conv": window}


def slots(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    """What the slots hold, as averages over the tokens so far; then softmax attention over the slots."""
    x = inputs["x"]
    q = F.silu(torch.einsum("ghkd,btd->btghk", p["q_weight"], x)) / p["q_weight"].shape[2] ** 0.5
    k, v = (F.silu(heads(p[f"{n}_weight"], x)) for n in "kv")
    logs = F.logsigmoid(heads(p["α_weight"], x)) / 8
    share = since(logs) * (1 - torch.exp(logs))[:, None]
    left = torch.exp(logs.cumsum(1))

    def held(values: Tensor, name: str) -> Tensor:
        new = torch.einsum("btihm,bihk->bthmk", share, values)
        return new if state is None else new + left[..., None] * state[name][:, None]

    keys, values = held(k, "R"), held(v, "S")
    weights = torch.softmax(torch.einsum("btghk,bthmk->btghm", q, keys), -1)
    o = F.silu(torch.einsum("btghm,bthmv->btghv", weights, values)).flatten(2)
    y = (rmsnorm(o) * p["out_scale"].flatten()) @ p["out_weight"].flatten(1).T
    return (y,), {"R": keys[:, -1], "S": values[:, -1]}


def prefix_attention(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    """Scores `1 + qk + (qk)^2 / 2` of scaled products; a prefix is added above and below the line."""
    q, k, v = (inputs[n] for n in "qkv")
    q, k = q / q.shape[-1] ** 0.25, k / k.shape[-1] ** 0.25
    sums = {
        "S0": v.sum(1),
        "S1": torch.einsum("bihk,bihv->bhkv", k, v),
        "S2": torch.einsum("bihk,bihj,bihv->bhkjv", k, k, v) / 2,
        "n0": torch.full((len(q),), float(q.shape[1]), dtype=q.dtype),
        "n1": k.sum(1),
        "n2": torch.einsum("bihk,bihj->bhkj", k, k) / 2,
    }
    products = torch.einsum("bthk,bihk->bhti", q, k)
    scores = causal(1 + products + products**2 / 2)
    top, bottom = torch.einsum("bhti,bihv->bthv", scores, v), scores.sum(-1).mT
    if state is not None:
        top = top + state["S0"][:, None] + torch.einsum("bthk,bhkv->bthv", q, state["S1"])
        top = top + torch.einsum("bthk,bthj,bhkjv->bthv", q, q, state["S2"])
        bottom = bottom + state["n0"][:, None, None] + torch.einsum("bthk,bhk->bth", q, state["n1"])
        bottom = bottom + torch.einsum("bthk,bthj,bhkj->bth", q, q, state["n2"])
        sums = {name: total + state[name] for name, total in sums.items()}
    return (top / bottom[..., None],), sums


X = {"x": ("D", "real")}
ATTENTION: dict[str, Case] = {
    "LinearAttention": Case("linearattention", linear_attention, {"D": 4, "H": 2, "K": 3, "V": 2}, X),
    "RetNet": Case("retnet", retnet, {"D": 4, "H": 2, "K": 3, "V": 4}, X),
    "TransNormerLLM": Case("transnormerllm", lightning, {"D": 4, "H": 2, "K": 3, "V": 2}, X),
    "Mamba2Block": Case("mamba2block", mamba2_block, {"D": 4, "H": 2, "K": 3, "V": 2}, X),
    "HGRN2": Case("hgrn2", hgrn2, {"D": 4, "H": 2, "K": 3, "V": 2}, X),
    "RWKV6": Case("rwkv6", rwkv6, {"D": 6, "H": 2, "K": 3, "V": 4, "L": 3, "M": 3}, X),
    "MLSTMBlock": Case("mlstmblock", mlstm_block, {"D": 4, "H": 2, "K": 6, "P": 2}, X),
    "GSA": Case("gsa", slots, {"D": 4, "G": 2, "H": 2, "M": 3, "K": 2, "V": 2}, X),
    "JRT": Case(
        "jrt",
        prefix_attention,
        {"H": 2, "K": 2, "V": 3},
        {"q": ("HK", "real"), "k": ("HK", "real"), "v": ("HV", "real")},
    ),
}
