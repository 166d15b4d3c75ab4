"""What no library has a kernel for, beside a copy's bandwidth: a block of 2 x 2, a clamp, log space, a fraction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from harness import CELLS, EXAMPLES, Case, Peer, main

PROGRAMS = [*(CELLS / f"{name}.rnn" for name in ("block", "rotor", "clamp", "logsum")), EXAMPLES / "kalman.rnn"]


def shapes(quick: bool) -> Sequence[tuple[Case, Sequence[Peer]]]:
    if quick:
        return [(Case(program, 2, 64, {"D": 32}, torch.float32), []) for program in PROGRAMS]
    return [(Case(program, 8, 4096, {"D": 2048}), []) for program in PROGRAMS]


if __name__ == "__main__":
    main("Families without peers", shapes)
