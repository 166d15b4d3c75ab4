"""LSTM, GRU, Elman and sLSTM by others, as functions of an input and of what the cells here learn, a block for each
head.

Everyone projects inputs by one product. cuDNN, which knows no heads, gets matrices with zeros outside the blocks. A
loop is what a researcher would write: inputs projected and taken apart once, heads in one batched product. FlashRNN is
called by its public function (github.com/NX-AI/flashrnn, 1.0.5). Its CUDA is compiled at the first use of each size,
for a minute or more, and `torch.compile` takes as long: $SLOW says who may ("all", or "built" for what gpu.sh has
compiled before).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from harness import Peer
from torch import Tensor
from torch.nn.functional import logsigmoid

BUILT = (("lstm", 64), ("lstm", 128))
"""What `build_peers.py flashrnn` compiles, for 16 sequences of 768 units in bfloat16: a function and a head's width."""
UNROLLED = 8
"""Tokens in one graph of the compiled loop: with all of them it takes minutes to compile."""
State = tuple[Tensor, ...]


class Missing(RuntimeError):
    """Who cannot run, and why."""


@dataclass(frozen=True)
class Learned:
    """G gates; `own` is the bias beside the recurrent product that GRU's candidate has."""

    w: Tensor  # [G, H, P, D]
    b: Tensor  # [G, H, P]
    r: Tensor  # [G, H, P, P], results before operands
    own: Tensor | None

    @staticmethod
    def of(given: Sequence[Tensor]) -> Learned:
        count = len(given) // 3
        w, b, r = (torch.stack(list(given[i : 3 * count : 3])) for i in range(3))
        return Learned(w, b, r, given[-1] if len(given) % 3 else None)

    def projected(self, x: Tensor, bias: bool = True) -> Tensor:
        """[B, T, G, H, P]."""
        y = x @ self.w.flatten(0, 2).T
        return (y + self.b.flatten() if bias else y).unflatten(-1, self.b.shape)


# --- cuDNN -----------------------------------------------------------------------------------------------------------


def cudnn(function: str) -> Callable[[], Callable[..., Tensor]]:
    """cuDNN's on a GPU; its matrices are put together for each call, which a trained `nn.LSTM` has done before."""

    def build() -> Callable[..., Tensor]:
        names = {"lstm": "lstm", "gru": "gru", "elman": "rnn_tanh"}
        if function not in names:
            raise Missing(f"it has no {function}")
        run: Any = getattr(torch, names[function])

        def call(x: Tensor, *given: Tensor) -> Tensor:
            own = Learned.of(given)
            _, heads, width = own.b.shape
            start = x.new_zeros(1, x.shape[0], heads * width)
            blocks = torch.eye(heads, device=x.device, dtype=x.dtype)[:, None, :, None] * own.r.unsqueeze(3)
            bias = torch.zeros_like(own.b)
            if own.own is not None:
                bias = torch.cat([bias[:-1], own.own[None]])
            params = [own.w.flatten(0, 2), blocks.flatten(3).flatten(0, 2), own.b.flatten(), bias.flatten()]
            states: Any = [start, start] if function == "lstm" else start
            return run(x, states, params, True, 1, 0.0, True, False, True)[0].unflatten(-1, (heads, width))

        return call

    return build


# --- Loops -----------------------------------------------------------------------------------------------------------


def _lstm(u: Tensor, y: Tensor, own: Tensor | None, state: State) -> State:
    i, f, z, o = (u + y).unbind(2)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(z)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(u: Tensor, y: Tensor, own: Tensor | None, state: State) -> State:
    (r_x, z_x, n_x), (r_h, z_h, n_h) = u.unbind(2), y.unbind(2)
    z = torch.sigmoid(z_x + z_h)
    n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * (n_h if own is None else n_h + own))
    return ((1 - z) * n + z * state[0],)


def _elman(u: Tensor, y: Tensor, own: Tensor | None, state: State) -> State:
    return (torch.tanh(u + y).squeeze(2),)


def _slstm(u: Tensor, y: Tensor, own: Tensor | None, state: State) -> State:
    i, f, z, o = (u + y).unbind(2)
    _, c, n, m = state
    kept = logsigmoid(f) + m
    m = torch.maximum(kept, i)
    a, b = torch.exp(kept - m), torch.exp(i - m)
    c, n = a * c + b * torch.tanh(z), a * n + b
    return torch.sigmoid(o) * c / n, c, n, m


STEPS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor | None, State], State], int]] = {
    "lstm": (_lstm, 2),
    "gru": (_gru, 1),
    "elman": (_elman, 1),
    "slstm": (_slstm, 4),
}
"""A step of inputs and recurrent products [H, B, G, P], and how many states [H, B, P] it has, the output first."""


def loop(function: str, fused: bool = False) -> Callable[[], Callable[..., Tensor]]:
    def build() -> Callable[..., Tensor]:
        step, states = STEPS[function]
        if fused and os.environ.get("SLOW") != "all":
            raise Missing("takes a minute to compile: SLOW=all has it")

        def tokens(u: Tensor, r: Tensor, own: Tensor | None, state: State) -> tuple[Tensor, State]:
            out: list[Tensor] = []
            for u_t in u.unbind(0):
                state = step(u_t, torch.bmm(state[0], r).unflatten(-1, u.shape[3:]), own, state)
                out.append(state[0])
            return torch.stack(out), state

        run: Any = torch.compile(tokens, dynamic=False) if fused else tokens

        def call(x: Tensor, *given: Tensor) -> Tensor:
            own = Learned.of(given)
            _, heads, width = own.b.shape
            u = own.projected(x).permute(1, 3, 0, 2, 4)
            r = own.r.permute(1, 3, 0, 2).flatten(2)
            bias = None if own.own is None else own.own[:, None]
            state: State = tuple(x.new_zeros(heads, x.shape[0], width) for _ in range(states))
            out: list[Tensor] = []
            for part in u.split(UNROLLED if fused else len(u)):
                y, state = run(part.contiguous(), r, bias, state)
                out.append(y)
            return torch.cat(out).permute(2, 0, 1, 3)

        return call

    return build


# --- FlashRNN --------------------------------------------------------------------------------------------------------


def flashrnn(function: str, backend: str, built: bool) -> Callable[[], Callable[..., Tensor]]:
    """`built`: its CUDA for this size was compiled before."""

    def build() -> Callable[..., Tensor]:
        run: Any = import_module("flashrnn").flashrnn
        if backend == "triton_fused" and function not in ("lstm", "slstm"):
            raise Missing(f"it has no {function}")
        if backend == "cuda_fused" and function == "gru":
            raise Missing("it takes its backend cuda instead")
        slow = os.environ.get("SLOW")
        if backend.startswith("cuda") and slow != "all" and not (built and slow == "built"):
            raise Missing("takes minutes to compile: SLOW=all has it")

        def call(x: Tensor, *given: Tensor) -> Tensor:
            own = Learned.of(given)
            w, b, r = own.projected(x, bias=False), own.b, own.r
            if own.own is not None:  # the candidate's product comes first, and its bias is one more
                r, b = torch.cat([r[-1:], r[:-1]]), torch.cat([own.own[None], b])
            return run(w, r, b, function=function, backend=backend, dtype=str(x.dtype)[6:])[0][0]

        return call

    return build


def build_flashrnn(function: str, backend: str, width: int) -> None:
    """Compiles what FlashRNN needs for one function, by using it."""
    os.environ["SLOW"] = "all"
    heads, gates = 768 // width, 4
    sizes = ((heads, width, 768), (heads, width), (heads, width, width)) * gates
    given = [torch.zeros(s, device="cuda", dtype=torch.bfloat16, requires_grad=True) for s in ((16, 16, 768), *sizes)]
    flashrnn(function, backend, True)()(*given).sum().backward()


def peers(function: str, width: int, standard: bool) -> list[Peer]:
    """`standard`: at the batch and in the dtype that FlashRNN's kernels are compiled for by gpu.sh."""
    built = standard and (function, width) in BUILT
    backends = ("cuda_fused", "cuda", "triton_fused", "vanilla")
    return [
        *(Peer(f"FlashRNN {backend}", flashrnn(function, backend, built)) for backend in backends),
        Peer("PyTorch's own", cudnn(function)),
        Peer("a Python loop", loop(function)),
        Peer("a Python loop, torch.compile", loop(function, True)),
    ]
