"""Cells with recurrent matrices, projections included, at FlashRNN's own sizes: sequential kernels against FlashRNN,
cuDNN and Python loops. 768 units in heads of 16 to 768, 16 sequences of 1024 tokens; then 1 to 256 sequences, and other
dtypes.

With SLOW=all, which also has what takes minutes to compile, give it hours: --seconds 10000.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from harness import CELLS, EXAMPLES, Case, Peer, main
from recurrent_peers import peers

PROGRAMS = {
    "lstm": CELLS / "lstm.rnn",
    "slstm": EXAMPLES / "slstm.rnn",
    "gru": CELLS / "gru.rnn",
    "elman": CELLS / "elman.rnn",
}
UNITS, BATCH, LENGTH = 768, 16, 1024
WIDTHS = (64, 128, 32, 16, 256, 768)
BATCHES = (1, 2, 8, 32, 64, 128, 256)


def case(
    function: str, width: int, batch: int = BATCH, dtype: torch.dtype = torch.bfloat16
) -> tuple[Case, Sequence[Peer]]:
    standard = batch == BATCH and dtype == torch.bfloat16
    sizes = {"D": UNITS, "H": UNITS // width}
    return Case(PROGRAMS[function], batch, LENGTH, sizes, dtype), peers(function, width, standard)


def shapes(quick: bool) -> Sequence[tuple[Case, Sequence[Peer]]]:
    if quick:
        sizes = {"D": 6, "H": 2}
        return [(Case(file, 2, 9, sizes, torch.float32), peers(name, 3, False)) for name, file in PROGRAMS.items()]
    return [
        *(case(function, width) for width in WIDTHS for function in PROGRAMS),
        *(case("lstm", 64, batch) for batch in BATCHES),
        *(case(name, width, dtype=torch.float16) for name in ("lstm", "gru") for width in (64, 768)),
        *(case(name, 64, dtype=torch.float32) for name in ("lstm", "gru")),
    ]


if __name__ == "__main__":
    main("Recurrent matrices", shapes)
