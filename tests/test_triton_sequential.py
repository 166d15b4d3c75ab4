"""Cells with Triton kernels for some recurrences and sequential CUDA kernels for others, both without a GPU.

Run with `TRITON_INTERPRET=1 pytest -m triton`.
"""

from __future__ import annotations

import os
import shutil

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 from the start of the process", allow_module_level=True)

import torch

from tests.emulation import Emulation
from tests.interpreted import install
from tests.modules import PROGRAMS, load
from tests.oracles import CASES
from tests.stepped import PACKED, TEXTS, check, results

install()
pytestmark = [
    pytest.mark.triton,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]
CELLS = {"grud": (TEXTS["GRUD"], CASES["GRUD"].dims), "mixed": (PROGRAMS["mixed"].text, {})}


@pytest.mark.parametrize("name", CELLS)
def test_both_kinds_of_kernels(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text, sizes = CELLS[name]
    emulation = Emulation(tmp_path_factory.mktemp("kernels"), monkeypatch)
    emulation.install(load(text))
    for lead in (4, PACKED):
        emulation.calls.clear()
        got = results(text, sizes, lead, "auto", torch.float32)
        assert [c.name for c in emulation.calls] == ["forward", "backward"]
        check(got, results(text, sizes, lead, "reference", torch.float64), 1e-5)
