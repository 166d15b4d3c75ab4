"""More cells from the literature, each by hand, and where that is possible in another form than its program has."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.case import Case, Result, Tensors, conv, shifted, stack, to_heads


def hgrn(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    turn = torch.polar(torch.ones_like(p["theta"]), p["theta"])
    h = torch.zeros(x.shape[0], x.shape[2], dtype=turn.dtype) if state is None else state["h"]

    def gate(name: str, x: Tensor) -> Tensor:
        return x @ p[f"{name}_weight"].T + p[f"{name}_bias"]

    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        f = 0.5 + 0.5 * torch.sigmoid(gate("f", x[:, t]))
        c = torch.complex(F.silu(gate("c_1", x[:, t])), F.silu(gate("c_2", x[:, t])))
        h = f * turn * h + (1 - f) * c
        y = (torch.sigmoid(gate("u", x[:, t])) * h.real) @ p["out_1_weight"].T
        ys.append(y + (torch.sigmoid(gate("v", x[:, t])) * h.imag) @ p["out_2_weight"].T)
    return (stack(ys),), {"h": h}


def rg_lru(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    h = torch.zeros_like(x[:, 0]) if state is None else state["h"]
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        r = torch.sigmoid(x[:, t] @ p["r_weight"].T + p["r_bias"])
        i = torch.sigmoid(x[:, t] @ p["i_weight"].T + p["i_bias"])
        a = torch.sigmoid(p["lam"]) ** (8 * r)
        h = a * h + torch.sqrt(1 - a * a) * i * x[:, t]
        ys.append(h)
    return (stack(ys),), {"h": h}


def qrnn(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    past = torch.zeros_like(x[:, :1]) if state is None else state["x_past"]
    c = torch.zeros_like(x[:, 0]) if state is None else state["c"]
    # Filters over the previous token and this one.
    filters = {n: torch.stack([p[f"{n}_2_weight"], p[f"{n}_1_weight"]], -1) for n in "zfo"}
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        window = torch.stack([past[:, 0], x[:, t]], -1)
        z, f, o = (torch.einsum("odk,bdk->bo", filters[n], window) for n in "zfo")
        c = torch.lerp(torch.tanh(z), c, torch.sigmoid(f))
        ys.append(torch.sigmoid(o) * c)
        past = x[:, t : t + 1]
    return (stack(ys),), {"c": c, "x_past": past}


def qlstm(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    c = x.new_zeros(x.shape[0], *p["f_bias"].shape) if state is None else state["c"]
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        f, i, z, o = (to_heads(p[f"{g}_weight"], x[:, t]) + p[f"{g}_bias"] for g in "fizo")
        c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(z)
        h = torch.sigmoid(o) * torch.tanh(c)
        ys.append(torch.einsum("dhp,bhp->bd", p["out_weight"], h) + p["out_bias"])
    return (stack(ys),), {"c": c}


def s4d(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    u = inputs["u"]
    pole = torch.complex(-torch.exp(p["log_re"]), p["im"])
    decay = torch.exp(pole * torch.exp(p["log_dt"])[:, None])
    h = torch.zeros(u.shape[0], *pole.shape, dtype=pole.dtype) if state is None else state["h"]
    ys: list[Tensor] = []
    for t in range(u.shape[1]):
        h = decay * h + (decay - 1) / pole * u[:, t, :, None]
        # A state and its conjugate.
        y = (p["C"] * h + p["C"].conj() * h.conj()).sum(-1).real
        ys.append(y + p["skip"] * u[:, t])
    return (stack(ys),), {"h": h}


def liquid_s4(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    u = inputs["u"]
    pole = torch.complex(-torch.exp(p["log_re"]), p["im"])
    step = torch.exp(p["log_dt"])[:, None]
    transition = (2 + step * pole) / (2 - step * pole)
    drive = 2 * step * p["B"] / (2 - step * pole)
    h = torch.zeros(u.shape[0], *pole.shape, dtype=pole.dtype) if state is None else state["h"]
    ys: list[Tensor] = []
    for t in range(u.shape[1]):
        h = transition * h + drive * u[:, t, :, None] * (h + 1)
        ys.append(2 * (p["C"] * h).sum(-1).real + p["skip"] * u[:, t])
    return (stack(ys),), {"h": h}


def linoss(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    stiffness, step = torch.relu(p["stiffness"]), torch.sigmoid(p["steps"])
    schur = 1 / (1 + step**2 * stiffness)
    rows = [[schur, -step * stiffness * schur], [step * schur, schur]]
    return _oscillators(p, inputs, state, rows, [step * schur, step**2 * schur])


def linoss_imex(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    stiffness, step = torch.relu(p["stiffness"]), torch.sigmoid(p["steps"])
    rows = [[torch.ones_like(step), -step * stiffness], [step, 1 - step**2 * stiffness]]
    return _oscillators(p, inputs, state, rows, [step, step**2])


def _oscillators(
    p: Tensors, inputs: Tensors, state: Tensors | None, rows: list[list[Tensor]], drive: list[Tensor]
) -> Result:
    """`[z, y]` of every oscillator times its 2 x 2 matrix, and what drives it."""
    u = inputs["u"]
    matrix = torch.stack([torch.stack(row, -1) for row in rows], -2).to(torch.complex128)
    column = torch.stack(drive, -1)
    b = torch.complex(p["force_1_weight"], p["force_2_weight"])
    c = torch.complex(p["out_1_weight"], p["out_2_weight"])
    if state is None:
        s = torch.zeros(u.shape[0], b.shape[0], 2, dtype=b.dtype)
    else:
        s = torch.stack([state["z"], state["y"]], -1)
    ys: list[Tensor] = []
    for t in range(u.shape[1]):
        s = (matrix @ s[..., None])[..., 0] + column * (u[:, t].to(b.dtype) @ b.T)[..., None]
        ys.append((s[..., 1] @ c.T).real + p["skip"] * u[:, t])
    return (stack(ys),), {"z": s[..., 0], "y": s[..., 1]}


def mega(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    weight, damping = torch.sigmoid(p["alpha"]), torch.sigmoid(p["delta"])
    h = x.new_zeros(x.shape[0], *weight.shape) if state is None else state["h"]
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        h = h - weight * damping * h + weight * (p["beta"] * x[:, t, :, None])
        y = torch.einsum("dn,bdn->bd", p["eta"], h) / math.sqrt(weight.shape[1])
        ys.append(F.silu(y + p["omega"] * x[:, t]))
    return (stack(ys),), {"h": h}


def pgn(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    past = x.new_zeros(x.shape[0], 4, x.shape[2]) if state is None else state["x_past"]
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        hidden = p["past_bias"] + sum(past[:, j] @ p[f"past_{j + 1}_weight"].T for j in range(4))
        both = torch.cat([x[:, t], hidden], -1)
        gate, candidate = (
            both @ torch.cat([p[f"{n}_1_weight"], p[f"{n}_2_weight"]], 1).T + p[f"{n}_bias"] for n in "gc"
        )
        ys.append(torch.lerp(torch.tanh(candidate), hidden, torch.sigmoid(gate)))
        past = shifted(past, x[:, t])
    return (stack(ys),), {"x_past": past}


def fsmn(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    window = x.new_zeros(x.shape[0], 7, x.shape[2]) if state is None else state["memory_conv"]
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        h = torch.relu(x[:, t] @ p["h_weight"].T + p["h_bias"])
        memory, window = conv(p["memory_weight"], window, h)
        ys.append(torch.relu(h @ p["out_1_weight"].T + memory @ p["out_2_weight"].T + p["out_bias"]))
    return (stack(ys),), {"memory_conv": window}


def ar_net(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    e = inputs["e"]
    if state is None:
        lags = [torch.zeros_like(e[:, 0])] * 3
    else:
        lags = [state["y"], state["y_past"][:, 0], state["y_past"][:, 1]]
    ys: list[Tensor] = []
    for t in range(e.shape[1]):
        lags = [p["c"] + sum(p[f"w{i + 1}"] * lags[i] for i in range(3)) + e[:, t], *lags[:2]]
        ys.append(lags[0])
    return (stack(ys),), {"y": lags[0], "y_past": torch.stack(lags[1:], 1)}


def holt_winters(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    """In the form that corrects errors: each part moves by its share of what the forecast missed."""
    y = inputs["y"]
    alpha, beta, gamma = (torch.sigmoid(p[n]) for n in ("alpha", "beta", "gamma"))
    if state is None:
        level, trend = (p[n].expand(y.shape[0], -1) for n in ("level_init", "trend_init"))
        seasons = [torch.zeros_like(level)] * 4
    else:
        level, trend = state["level"], state["trend"]
        seasons = [state["season"], *state["season_past"].unbind(1)]
    ys: list[Tensor] = []
    for t in range(y.shape[1]):
        error = y[:, t] - (level + trend + seasons[3])
        level, trend = level + trend + alpha * error, trend + alpha * beta * error
        seasons = [seasons[3] + gamma * error, *seasons[:3]]
        ys.append(level + trend + seasons[3])
    past = torch.stack(seasons[1:], 1)
    return (stack(ys),), {"level": level, "trend": trend, "season": seasons[0], "season_past": past}


def ghk(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    """A prediction, and a correction with the gains of a filter whose memory fades by θ."""
    z = inputs["z"]
    fading = torch.sigmoid(p["fading"])
    gains = torch.stack([1 - fading**3, 1.5 * (1 - fading) ** 2 * (1 + fading), (1 - fading) ** 3], -1)
    moved = z.new_tensor([[1, 1, 0.5], [0, 1, 1], [0, 0, 1]])
    s = z.new_zeros(*z[:, 0].shape, 3) if state is None else torch.stack([state[n] for n in "xva"], -1)
    ys: list[Tensor] = []
    for t in range(z.shape[1]):
        predicted = s @ moved.T
        s = predicted + gains * (z[:, t] - predicted[..., 0])[..., None]
        ys.append(s[..., 0])
    return (stack(ys),), dict(zip("xva", s.unbind(-1), strict=True))


def min_gru_log(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    """Outside log space."""
    x = inputs["x"]
    h = torch.zeros_like(x[:, 0]) if state is None else torch.exp(state["log_h"])
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        z, c = torch.sigmoid(x[:, t] @ p["k_weight"].T), x[:, t] @ p["c_weight"].T
        h = torch.lerp(h, torch.where(c >= 0, c + 0.5, torch.sigmoid(c)), z)
        ys.append(h)
    return (stack(ys),), {"log_h": torch.log(h)}


def ctc(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    """Outside log space, over the label with its blanks."""
    blank, first, second = (torch.exp(inputs[n]) for n in ("blank", "first", "second"))
    if state is None:
        a = [torch.ones_like(blank[:, 0]), *(torch.zeros_like(blank[:, 0]) for _ in range(4))]
    else:
        a = [torch.exp(state[f"a{s + 1}"]) for s in range(5)]
    ys: list[Tensor] = []
    for t in range(blank.shape[1]):
        symbols = [blank[:, t], first[:, t], blank[:, t], second[:, t], blank[:, t]]
        stays = [a[s] + (a[s - 1] if s > 0 else 0) for s in range(5)]
        stays[3] = stays[3] + a[1]
        a = [reached * symbol for reached, symbol in zip(stays, symbols, strict=True)]
        ys.append(_log(a[3] + a[4]))
    return (stack(ys),), {f"a{s + 1}": _log(a[s]) for s in range(5)}


def _log(x: Tensor) -> Tensor:
    """With gradient 0 where it is -inf."""
    return torch.where(x > 0, torch.log(torch.where(x > 0, x, 1.0)), -torch.inf)


def cusum(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    x = inputs["x"]
    high = torch.zeros_like(x[:, 0]) if state is None else state["high"]
    low = torch.zeros_like(x[:, 0]) if state is None else state["low"]
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        deviation = x[:, t] - p["target"]
        high, low = torch.relu(high + deviation - 0.5), torch.relu(low - deviation - 0.5)
        ys.append(torch.maximum(high, low))
    return (stack(ys),), {"high": high, "low": low}


def bkt(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    """By odds: an answer multiplies them by its likelihood ratio."""
    learn = torch.sigmoid(p["transit"])
    known = torch.full_like(inputs["slip"][:, 0], 0.5) if state is None else state["p"]
    ys: list[Tensor] = []
    for t in range(inputs["slip"].shape[1]):
        answered, right, slip, guess = (inputs[n][:, t] for n in ("answered", "right", "slip", "guess"))
        ys.append(guess + known * (1 - slip - guess))
        odds = known / (1 - known) * torch.where(right, (1 - slip) / guess, slip / (1 - guess))
        known = torch.where(answered, 1 - (1 - learn) / (1 + odds), known)
    return (stack(ys),), {"p": known}


def rls(p: Tensors, inputs: Tensors, state: Tensors | None) -> Result:
    """By the sums of squares and products, which a weight is the quotient of."""
    x, y = inputs["x"], inputs["y"]
    squares = torch.ones_like(x[:, 0]) if state is None else 1 / state["P"]
    products = torch.zeros_like(x[:, 0]) if state is None else state["w"] / state["P"]
    ys: list[Tensor] = []
    for t in range(x.shape[1]):
        squares = 0.99 * squares + x[:, t] ** 2
        products = 0.99 * products + x[:, t] * y[:, t]
        ys.append(products / squares * x[:, t])
    return (stack(ys),), {"P": 1 / squares, "w": products / squares}


LITERATURE: dict[str, Case] = {
    "HGRN": Case("hgrn", hgrn, {"D": 3}, {"x": ("D", "real")}),
    "RGLRU": Case("rglru", rg_lru, {"D": 3}, {"x": ("D", "real")}),
    "QRNN": Case("qrnn", qrnn, {"D": 3}, {"x": ("D", "real")}),
    "QLSTM": Case("qlstm", qlstm, {"D": 4, "H": 2}, {"x": ("D", "real")}),
    "S4D": Case("s4d", s4d, {"D": 3, "N": 2}, {"u": ("D", "real")}),
    "LiquidS4": Case("liquids4", liquid_s4, {"D": 3, "N": 2}, {"u": ("D", "real")}),
    "LinOSS": Case("linoss", linoss, {"D": 3, "N": 2}, {"u": ("D", "real")}),
    "LinOSSIMEX": Case("linossimex", linoss_imex, {"D": 3, "N": 2}, {"u": ("D", "real")}),
    "Mega": Case("mega", mega, {"D": 3, "N": 2}, {"x": ("D", "real")}),
    "PGN": Case("pgn", pgn, {"D": 3}, {"x": ("D", "real")}),
    "FSMN": Case("fsmn", fsmn, {"D": 3}, {"x": ("D", "real")}),
    "ARNet": Case("arnet", ar_net, {"D": 3}, {"e": ("D", "real")}),
    "HoltWinters": Case("holtwinters", holt_winters, {"D": 3}, {"y": ("D", "real")}),
    "GHK": Case("ghk", ghk, {"D": 3}, {"z": ("D", "real")}),
    "MinGRULog": Case("mingrulog", min_gru_log, {"D": 3}, {"x": ("D", "real")}),
    "CTC": Case(
        "ctc", ctc, {"D": 3}, {"blank": ("D", "negative"), "first": ("D", "negative"), "second": ("D", "negative")}
    ),
    "CUSUM": Case("cusum", cusum, {"D": 3}, {"x": ("D", "real")}),
    "BKT": Case(
        "bkt",
        bkt,
        {"D": 3},
        {"answered": ("D", "bool"), "right": ("D", "bool"), "slip": ("D", "unit"), "guess": ("D", "unit")},
    ),
    "RLS": Case("rls", rls, {"D": 3}, {"x": ("D", "real"), "y": ("D", "real")}),
}
