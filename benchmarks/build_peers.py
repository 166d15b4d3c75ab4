"""Compiles a peer that comes as CUDA sources, for gpu.sh: `warp` of accelerated-scan, `flashrnn BACKEND` at the sizes
that recurrent_peers.py names, or mamba-ssm's from its folder.

It takes about a minute on 16 cores. What was built is found again under TORCH_EXTENSIONS_DIR.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from torch.utils.cpp_extension import load

if __name__ == "__main__":
    if sys.argv[1] == "warp":
        import_module("accelerated_scan.warp")
    elif sys.argv[1] == "flashrnn":
        from recurrent_peers import BUILT, build_flashrnn

        for function, width in BUILT:
            build_flashrnn(function, sys.argv[2], width)
    else:
        folder = Path(sys.argv[1])
        halves = [f"-U__CUDA_NO_{what}__" for what in ("HALF_OPERATORS", "HALF_CONVERSIONS")]
        brains = [f"-U__CUDA_NO_BFLOAT16_{what}__" for what in ("OPERATORS", "CONVERSIONS")]
        load(
            "selective_scan_cuda",
            [str(path) for path in sorted([*folder.glob("*.cpp"), *folder.glob("*.cu")])],
            extra_cflags=["-O3"],
            extra_cuda_cflags=[
                "-O3",
                "--use_fast_math",
                "--expt-relaxed-constexpr",
                "--expt-extended-lambda",
                *halves,
                *brains,
                "-U__CUDA_NO_BFLOAT162_OPERATORS__",
                "-U__CUDA_NO_BFLOAT162_CONVERSIONS__",
            ],
        )
