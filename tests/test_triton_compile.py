"""Generated kernels compile, for devices that are not here, as the host code would launch them.

Run with `pytest -m triton`, without TRITON_INTERPRET: compiled Triton does not mix with interpreted in one process.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs a process without TRITON_INTERPRET", allow_module_level=True)

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.static import rows
from rnnc.loading import load_module
from tests.cells import EXAMPLES
from tests.chunk_kinds import CHUNKS as KINDS
from tests.chunk_kinds import RANKS
from tests.marks import some
from tests.modules import generate
from tests.triton_compile import SHARED, Case, Launch, build, launches, launches_of, module, noted

pytestmark = pytest.mark.triton

SEVERAL = """\
cell Several
\"""Four numbers of state in one kernel; a bool, a constant and a param.\"""
dim D = 64
input x[D], y[D], keep: bool
const c in (0, 1] = 0.5
param w[D] = uniform(0.1, 0.4)
gate g = sigmoid(x)
gate f = sigmoid(y + w)
state h[D]
state e[D]
state s[D]: complex
h[t] = where(keep, g * h[t-1], 0) + c * x
e[t] = f * e[t-1] + (1 - f) * y
s[t] = exp(-softplus(x) + 1j * y) * s[t-1] + x
output h[t] * e[t] + c
output real(s[t])
"""
ROTOR = """\
cell Rotor
\"""Two states that turn and shrink: a block whose products were proved not to grow.\"""
dim D = 2048
input x[D], y[D]
gate r = sigmoid(x)
state u[D], v[D]
u[t] = r * (cos(y) * u[t-1] - sin(y) * v[t-1]) + x
v[t] = r * (sin(y) * u[t-1] + cos(y) * v[t-1])
output u[t]
"""
BENT = """\
cell Bent
\"""A state through tanh, one token after the other, and a scan that reads it.\"""
dim D = 64
input x[D], keep: bool
const c in (0, 1] = 0.5
param u[D] = uniform(-0.5, 0.5)
state h[D]
state m[D] = 1
h[t] = where(keep, tanh(x + u * h[t-1]), 0)
m[t] = c * m[t-1] + sin(x) * h[t-1]
output h[t]
output m[t] > 0
"""


def _example(stem: str, **sizes: int) -> Case:
    return Case((EXAMPLES / f"{stem}.rnn").read_text(encoding="utf-8"), sizes)


CASES = {
    "mingru": _example("mingru", D=2048),
    "mingru odd": _example("mingru", D=1001),
    "minlstm": _example("minlstm", D=2048),
    "lru": _example("lru", N=1024),
    "s5reset": _example("s5reset"),
    "mamba 16": _example("mamba", E=2048, N=16),
    "mamba 64": _example("mamba", E=2048, N=64),
    "mamba 128": _example("mamba", E=2048, N=128),
    "kalman": _example("kalman", D=1024),
    "leakypeak": _example("leakypeak"),
    "aaren": _example("aaren"),
    "several": Case(SEVERAL),
    "bent": Case(BENT),
    "rotor": Case(ROTOR),
    "linoss": _example("linoss"),
    "arnet": _example("arnet"),
    "ctc": _example("ctc"),
    "holtwinters": _example("holtwinters"),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
FAST = """\
mingru bfloat16 whole sm_80, mingru bfloat16 whole sm_90, mingru bfloat16 whole gfx942, mingru odd float32 whole sm_90
mingru float16 cut sm_90, mingru float64 cut sm_90, minlstm float64 whole sm_90, minlstm bfloat16 whole sm_90
lru bfloat16 whole sm_90, lru float32 cut gfx942, lru float64 whole sm_80, s5reset float32 cut sm_90
mamba 16 bfloat16 whole sm_90, mamba 16 float32 cut gfx942, mamba 64 float16 whole sm_80, mamba 16 float64 whole sm_90
kalman float32 whole sm_90, leakypeak bfloat16 whole sm_90, aaren float16 whole sm_90
rotor bfloat16 cut sm_90, linoss float32 cut sm_80, arnet float32 cut sm_90, holtwinters float32 cut sm_90
ctc float16 whole gfx942, kalman float32 cut gfx942
several float32 whole sm_90, several bfloat16 cut gfx942, bent float16 whole sm_80
"""
ALL = [
    f"{name} {dtype} {time} {target}"
    for name in CASES
    for dtype in DTYPES
    for time in ("whole", "cut")
    for target in SHARED
]
CHOSEN = [x.strip() for line in FAST.splitlines() for x in line.split(",")]
# Which go token by token through blocks of states and their delays.
STEPPED = ("linoss", "arnet", "holtwinters")
# Whose gradients all have the channels of the states: nothing is summed over lanes.
ALIGNED = ("mingru", "minlstm", "lru", "s5reset", "kalman")


def _case(name: str, dtype: str, time: str) -> Case:
    """`cut`: packed sequences, and in segments where a kernel can be."""
    return replace(CASES[name], dtype=DTYPES[dtype], packed=time == "cut", segments=2 if time == "cut" else 1)


def _check(which: str) -> None:
    name, dtype, time, target = which.rsplit(" ", 3)
    found = launches(_case(name, dtype, time), target)
    assert found
    for launch in found:
        made = build(launch, target)
        told = f"{launch.name}: {made.spilled} spilled, {made.registers} registers, {made.shared} bytes shared"
        assert made.spilled == 0 and made.shared <= SHARED[target], told
        recurrent = "VEC" in launch.options
        if recurrent and "BT" in launch.options and name in ALIGNED and target != "gfx942":
            # Lanes meet in the scan over a tile's stretches alone, and all loads are ahead of the computation.
            assert made.shuffles <= 60 * (2 if dtype == "float64" else 1), f"{launch.name}: {made.shuffles} shuffles"
            assert made.copies > 0, f"{launch.name}: nothing is fetched ahead"
        if recurrent and name in STEPPED and dtype == "float32" and target != "gfx942":
            assert made.copies > 0, f"{launch.name}: nothing is fetched ahead"


@pytest.mark.parametrize("which", CHOSEN)
def test_no_spills_within_the_limits(which: str) -> None:
    assert which in ALL
    _check(which)


@pytest.mark.slow
@pytest.mark.parametrize("which", [x for x in ALL if x not in CHOSEN])
def test_no_spills_within_the_limits_anywhere(which: str) -> None:
    _check(which)


# Matrix states in chunks: a factor for all entries, along keys, the same with a lower bound, none, and along keys and
# values of two states.
CHUNKS = {
    "mamba2": _example("mamba2", K=128, V=128),
    "mamba2 64": _example("mamba2", K=64, V=64),
    "gla": _example("gla", K=128, V=128),
    "hgrn2": _example("hgrn2", K=128, V=128),
    "linearattention": _example("linearattention", K=64, V=64),
    "gsa": _example("gsa", K=64, V=64, M=64),
}


def _chunk_kernels(which: str) -> list[Launch]:
    """Each of the kernels once, that of segments included."""
    name, dtype, target = which.rsplit(" ", 2)
    found = launches(replace(CHUNKS[name], dtype=DTYPES[dtype], segments=2), target)
    return list({x.name: x for x in found if "C" in x.options}.values())


@pytest.mark.parametrize("name", ["mamba2", "gla"])
def test_chunks_on_tensor_cores_without_spills(name: str) -> None:
    """At 128 keys and values; and to compile all of them takes seconds."""
    found = _chunk_kernels(f"{name} bfloat16 sm_90")
    assert {x.name.rsplit("_S_")[1] for x in found} == {
        *("pairs", "carry", "forward", "carry_back", "backward", "pairs_back")
    }
    for launch in found:
        made = build(launch, "sm_90")
        told = f"{launch.name}: {made.spilled} spilled, {made.registers} registers, {made.shared} bytes shared"
        assert made.spilled == 0 and made.shared <= SHARED["sm_90"], told
        assert "wgmma.mma_async" in made.asm["ptx"] and "mma.sync" not in made.asm["ptx"], launch.name


def test_bounded_chunks_are_one_product_without_spills() -> None:
    found = [x for x in _chunk_kernels("hgrn2 bfloat16 sm_90") if "pairs" in x.name]
    assert len(found) == 2
    for launch in found:
        made = build(launch, "sm_90")
        assert launch.options["TOGETHER"] == launch.options["LEVELS"] == 6
        assert made.spilled == 0, f"{launch.name}: {made.spilled} spilled, {made.registers} registers"
        assert "wgmma.mma_async" in made.asm["ptx"] and "mma.sync" not in made.asm["ptx"], launch.name


@pytest.mark.slow
@pytest.mark.parametrize(
    "which", [f"{k} {n}" for k in ("one reads", "keys reads", "values reads", "free") for n in ("64x64", "128x128")]
)
def test_narrow_tiles_without_spills(which: str) -> None:
    """As calls with few programs have them."""
    kind, size = which.rsplit(" ", 1)
    kernels = ("forward", "backward", "carry", "carry_back")
    for row in rows(kind, size, "bfloat16", "sm_90", kernels, other={"BV": 32}):
        assert not row.bad and row.wgmma > 0 and row.mma == 0, row


UNEVEN = ("one reads", "one", "keys reads", "keys made", "free reads", "gateddeltanet", "kda", "twice by key")


@pytest.mark.slow
@pytest.mark.parametrize("which", [f"{k} {n}" for k in UNEVEN for n in ("65x65", "100x100", "16x256", "256x64")])
def test_any_size_without_spills(which: str) -> None:
    """Rows that begin anywhere, at 8 bytes, and tiles of few keys or few values."""
    kind, size = which.rsplit(" ", 1)
    for row in rows(kind, size, "bfloat16", "sm_90"):
        assert not row.bad, row


def _check_kind(which: str) -> None:
    kind, dtype, size, target = which.rsplit(" ", 3)
    found = list(rows(kind, size, dtype, target))
    assert len(found) == 6
    for row in found:
        assert row.spilled == 0 and row.shared <= SHARED[target], row
        if dtype == "bfloat16" and target == "sm_90":
            assert row.wgmma > 0 and row.mma == 0, row


@pytest.mark.parametrize("which", ["one reads bfloat16 64x64 sm_90", "keys float32 64x64 sm_90"])
def test_each_kind_of_chunks_without_spills(which: str) -> None:
    _check_kind(which)


@pytest.mark.slow
@pytest.mark.parametrize(
    "which", [f"{k} {d} {n} sm_90" for k in KINDS for d in list(DTYPES)[:3] for n in ("64x64", "128x128")]
)
def test_each_kind_of_chunks_without_spills_anywhere(which: str) -> None:
    _check_kind(which)


@pytest.mark.parametrize(
    ("kind", "lead", "expected"),
    [
        # Tiles half as wide, or segments of eight chunks or more, where the others would leave multiprocessors idle.
        ("one", (8, 1024), {"pairs": 1, "forward": 128, "backward": 128, "pairs_back": 1}),
        ("keys", (8, 1024), {"pairs": 1, "forward": 128, "backward": 128, "pairs_back": 1}),
        ("one", (20, 256), {"pairs": 1, "forward": 160, "backward": 160, "pairs_back": 1}),
        ("one", (1, 8192), {"carry": 128, "forward": 128, "carry_back": 128, "backward": 128}),
        ("one", (1, 1024), {"carry": 32, "forward": 32, "carry_back": 32, "backward": 32}),
    ],
)
def test_programs_fill_a_device(kind: str, lead: tuple[int, int], expected: dict[str, int]) -> None:
    """Of 132 multiprocessors, 8 heads of 64 keys and values: two launches forward and two backward in one pass."""
    # A module of its own: others are told into how many segments to cut.
    text = KINDS[kind].replace("cell C", "cell Filling")
    made: Any = load_module(generate(text), "test.rnn")
    made._interpreted, made._operands_in_shared = lambda: True, lambda device: True
    made._units, made._multiplied_dtype = lambda device: 132, lambda low: low
    grids: dict[str, int] = {}
    for launch in launches_of(made, Case(text, {"H": 8, "K": 64, "V": 64}, torch.bfloat16, lead=lead)):
        grids[launch.name.rsplit("_S_")[1]] = math.prod(launch.grid) if "pairs" not in launch.name else 1
    assert grids == {"pairs": 1, "pairs_back": 1} | expected


def _check_rank(which: str) -> None:
    kind, dtype, size, target = which.rsplit(" ", 3)
    found = {row.kernel: row for row in rows(kind, size, dtype, target)}
    always = {"system", "solve", "pairs", "forward", "backward", "flows", "solve_back", "pairs_back"}
    assert always <= set(found) <= {*always, "factors_back", "columns"}
    assert ("columns" in found) == ("values" in kind)
    for row in found.values():
        assert not row.bad, row
        if dtype == "bfloat16" and target == "sm_90":
            # `solve` has tiles of 16 tokens, which are `mma`'s.
            assert (row.wgmma > 0) == (row.kernel != "solve"), row


QUICK_RANKS = ["gateddeltanet bfloat16 128x128 sm_90", "rwkv7 float32 64x64 sm_90"]
ALL_RANKS = [f"{k} {d} {n} sm_90" for k in RANKS for d in list(DTYPES)[:3] for n in ("64x64", "128x128")]


@pytest.mark.parametrize("which", some(QUICK_RANKS, ALL_RANKS))
def test_low_rank_chunks_without_spills(which: str) -> None:
    """And on tensor cores."""
    _check_rank(which)


@pytest.mark.slow
@pytest.mark.parametrize("which", [f"{n} {d} {t}" for n in CHUNKS for d in list(DTYPES)[:3] for t in SHARED])
def test_chunks_fit_everywhere(which: str) -> None:
    """float32 is never rounded to the 10 bits of TF32. What is spilled: see decision 22."""
    for launch in _chunk_kernels(which):
        made = build(launch, which.rsplit(" ", 1)[1])
        assert made.shared <= SHARED[made.target], f"{launch.name}: {made.shared} bytes shared"
        if "float32" in which and made.target != "gfx942":
            assert launch.options["PRECISION"] in ("parts", "tf32x3")


# What stands between learned maps and recurrences: convolutions and norms of a head, norms of all, several results.
BETWEEN = ("gateddeltanet", "kda", "comba", "gsa", "mamba2block", "mlstmblock", "mlstm", "jrt", "gla")


def _between(which: str) -> list[Launch]:
    stem, dtype, time, target = which.split()
    case = replace(_example(stem), dtype=DTYPES[dtype], packed=time == "cut")
    found = launches(case, target)
    return list({x.name: x for x in found if "TOKENS" in x.kernel.arg_names}.values())


def _check_between(which: str) -> None:
    found = _between(which)
    assert {x.name.rsplit("_", 1)[1] for x in found} >= {"forward", "backward"}
    for launch in found:
        made = build(launch, which.split()[3])
        told = f"{launch.name}: {made.spilled} spilled, {made.registers} registers, {made.shared} bytes shared"
        assert made.spilled == 0 and made.shared <= SHARED[made.target], told


@pytest.mark.parametrize("which", ["gateddeltanet bfloat16 cut sm_90"])
def test_what_is_between_without_spills(which: str) -> None:
    _check_between(which)


@pytest.mark.slow
@pytest.mark.parametrize(
    "which", [f"{n} {d} {t} {g}" for n in BETWEEN for d in list(DTYPES)[:3] for t in ("whole", "cut") for g in SHARED]
)
def test_what_is_between_without_spills_anywhere(which: str) -> None:
    _check_between(which)


WIDE = """cell C
dim D = 4096, H = 2, K = 64, V = 64
input x[D], y[D], q[H, K], k[H, K], v[H, V], a[H] in [0, 1]
state S[H, K, V]
S[t] = a * S[t-1] + k * v
output sum[K](q * S[t])
output layernorm[D](silu(conv[4](x)) * y, weight=true, bias=true) * softmax[D](y)
"""


def test_the_threads_of_a_wide_program_share_what_registers_there_are() -> None:
    """Else a chip does not start it."""
    (launch,) = (x for x in launches(Case(WIDE)) if x.options.get("BC") == 4096 and x.name.endswith("_backward"))
    threads = 32 * launch.options["num_warps"]
    assert threads == 512 and build(launch, "sm_90").registers * threads <= 65536


class _Operations(TorchDispatchMode):
    """Counts operations that compute something, those within operators of kernels excepted."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "aten" and not func.is_view:
            self.found[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def _trained(kernels: bool) -> tuple[int, int]:
    """Bytes that autograd keeps of each token of Gated DeltaNet in bfloat16; and how many operations of PyTorch a
    forward and a backward are."""
    made = module((EXAMPLES / "gateddeltanet.rnn").read_text(encoding="utf-8"))
    made._interpreted, made._multiplied_dtype = lambda: True, lambda low: low
    fits = made._region_fits
    made._region_fits = fits if kernels else lambda *_: False
    cell = made.GatedDeltaNet(backend="triton")
    x = torch.ones((1, 128, cell.D), dtype=torch.bfloat16, requires_grad=True)
    kept: dict[int, int] = {}
    held: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        held.append(value)
        if value.shape[:2] == x.shape[:2]:
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    try:
        with noted(), _Operations() as operations, torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            y, _ = cell(x)
            y.backward(torch.ones_like(y))
    finally:
        made._region_fits = fits
    return sum(kept.values()) // 128, operations.found.total()


def test_what_autograd_keeps_and_what_pytorch_computes() -> None:
    """Without these kernels, float32 of every intermediate, and a pass over memory for each."""
    (kept, operations), (kept_by_pytorch, operations_of_pytorch) = _trained(True), _trained(False)
    assert kept < 0.25 * kept_by_pytorch
    assert operations < 38 and operations_of_pytorch > 200


# One token: by what a program holds. Where it is all of a state, that is 128 x 128, or 128 x 256.
STEPS = {
    "gla": _example("gla"),
    "gateddeltanet": _example("gateddeltanet"),
    "kda": _example("kda"),
    "mlstm": _example("mlstm"),
    "titanslinear": _example("titanslinear", K=128, V=128),
    "deltaproduct": _example("deltaproduct", K=128, V=128),
    "gsa": _example("gsa"),
    "jrt": _example("jrt"),
    "rwkv6": _example("rwkv6"),
    "comba": _example("comba"),
    "retnet": _example("retnet"),
    "mamba": _example("mamba"),
    "mingru": _example("mingru"),
}
FEW = ("gla bfloat16 sm_80", "kda bfloat16 sm_90", "kda float32 sm_80", "gateddeltanet bfloat16 gfx942")
FEW += ("mlstm float16 sm_90", "titanslinear float32 sm_90", "jrt bfloat16 sm_80", "mingru float16 gfx942")


def _check_step(which: str) -> None:
    name, dtype, target = which.rsplit(" ", 2)
    found = launches(replace(STEPS[name], dtype=DTYPES[dtype]), target, step=True)
    assert [x.name.endswith("_token") for x in found] == [True] * (2 if name in ("gsa", "jrt") else 1)
    for launch in found:
        made = build(launch, target)
        told = f"{launch.name}: {made.spilled} spilled, {made.registers} registers, {made.shared} bytes shared"
        assert made.spilled == 0 and made.shared <= SHARED[target], told
        # What one multiprocessor has for all of a program's threads.
        threads = launch.options["num_warps"] * (64 if target == "gfx942" else 32)
        assert threads <= 1024 and (target == "gfx942" or threads * made.registers <= 65536), told


@pytest.mark.parametrize("which", FEW)
def test_a_step_without_spills(which: str) -> None:
    _check_step(which)


@pytest.mark.slow
@pytest.mark.parametrize(
    "which", [w for n in STEPS for d in list(DTYPES)[:3] for t in SHARED if (w := f"{n} {d} {t}") not in FEW]
)
def test_a_step_without_spills_anywhere(which: str) -> None:
    _check_step(which)


def _configuration(launch: Launch) -> frozenset[tuple[str, object]]:
    names = ("BC", "VEC", "BT", "BS", "BN", "STAGES", "num_warps", "C", "BK", "BV", "num_stages")
    return frozenset((n, launch.options[n]) for n in names if n in launch.options)


@pytest.mark.parametrize("name", ["mingru", "lru", "mamba 16"])
def test_configurations_are_few_and_keyed_on_no_length(name: str) -> None:
    """Of one cell: by dtype and by whether rows are aligned; by neither the batch nor the tokens."""
    found: dict[str, set[frozenset[tuple[str, object]]]] = {}
    for dtype in DTYPES.values():
        dim, *rest = CASES[name].sizes
        for width in (64, 33):
            case = replace(CASES[name], dtype=dtype, sizes={dim: width, **{d: CASES[name].sizes[d] for d in rest}})
            wanted = [(x.name, _configuration(x)) for x in launches(case)]
            for lead in ((1, 1), (3, 130)):
                assert [(x.name, _configuration(x)) for x in launches(replace(case, lead=lead))] == wanted
            for kernel, configuration in wanted:
                found.setdefault(kernel, set()).add(configuration)
    assert all(len(x) <= 6 for x in found.values()), found
