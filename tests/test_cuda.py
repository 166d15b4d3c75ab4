"""Sequential CUDA kernels: their text on a host, in threads that take turns, beside the interpreter in float64."""

from __future__ import annotations

import importlib.util
import io
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rnnc.cli import main
from tests.cells import EXAMPLES
from tests.elementwise import Program
from tests.emulation import Emulation
from tests.families import compiled
from tests.marks import some
from tests.modules import generate, load
from tests.oracles import CASES
from tests.sequential import sequential
from tests.stepped import CELLS, LAGS, OVER, PACKED, STEPPED, TEXTS, WIDE, check, results
from tests.test_compiled import disagreeing

host = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
QUICK = ("GRUv1", "PVRNN", "SLSTM", "SparseRNN")


@pytest.fixture
def emulation(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulation]:
    """Uninitialised memory is NaN, on the host as in the block."""
    folder = tmp_path_factory.getbasetemp() / "kernels"
    folder.mkdir(exist_ok=True)
    made = Emulation(folder, monkeypatch)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield made
    torch.use_deterministic_algorithms(before)


def compare(emulation: Emulation, text: str, sizes: dict[str, int], lead: int | Sequence[int], dtype: Any) -> None:
    emulation.install(load(text))
    got = results(text, sizes, lead, "auto", dtype)
    tokens = lead if isinstance(lead, int) else sum(lead)
    assert [c.name for c in emulation.calls] == (["forward", "backward"] if tokens else [])
    exact = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
    check(got, results(text, sizes, lead, "reference", torch.float64), exact[dtype])


# --- values and gradients ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_which_examples_have_kernels() -> None:
    """All that is stepped, but for what Triton's kernels step."""
    named = {n for n in CASES if "_Cuda(" in generate((EXAMPLES / f"{CASES[n].file}.rnn").read_text(encoding="utf-8"))}
    assert named == set(STEPPED)


@host
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in STEPPED if n not in ("LSTM", "GRUD")]
)
def test_examples(name: str, emulation: Emulation) -> None:
    for lead in (4, PACKED, 0):
        emulation.calls.clear()
        compare(emulation, TEXTS[name], CASES[name].dims, lead, torch.float32)


@host
@pytest.mark.parametrize("name", CELLS)
def test_cells(name: str, emulation: Emulation) -> None:
    """Sums and maxima within a step, far lags, booleans, consts, several products that need each other, complex
    numbers, a factor that heads share."""
    for lead in (3, PACKED, 1):
        emulation.calls.clear()
        compare(emulation, CELLS[name], {}, lead, torch.float32)


@host
@pytest.mark.parametrize("name", some(["several"], OVER))
def test_updates_over_a_dim(name: str, emulation: Emulation) -> None:
    for order, lead in ((0, 3), (1, PACKED), (5, PACKED)):
        emulation.order = order
        emulation.calls.clear()
        compare(emulation, OVER[name], {}, lead, torch.float32)


@host
@pytest.mark.parametrize(
    ("name", "dtype"), [("several", torch.bfloat16), pytest.param("each", torch.float16, marks=pytest.mark.slow)]
)
def test_updates_over_a_dim_in_16_bits(name: str, dtype: torch.dtype, emulation: Emulation) -> None:
    compare(emulation, OVER[name], {}, 3, dtype)
    assert all("#define LOW 1" in c.text for c in emulation.calls)


@host
@pytest.mark.parametrize("count", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_random_cells(count: int, emulation: Emulation) -> None:
    @settings(max_examples=count, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    @given(
        sequential(),
        st.sampled_from([4, (2, 0, 5, 1), 0, 1]),
        st.integers(0, 99),
        st.sampled_from([torch.float32, torch.float64]),
        st.sampled_from([0, 1, 5]),
    )
    def run(program: Program, lead: int | tuple[int, ...], seed: int, dtype: torch.dtype, order: int) -> None:
        made, module = compiled(program.text)
        emulation.install(module)
        emulation.order = order
        emulation.calls.clear()
        assert made.cell is not None
        assert not disagreeing(made.cell, module, program, lead, seed, dtype)
        assert len(emulation.calls) == (2 if lead else 0)

    run()


LSTM = {"D": 6, "H": 2}


@host
def test_float64(emulation: Emulation) -> None:
    for lead in (5, PACKED, 1, 0):
        emulation.calls.clear()
        compare(emulation, TEXTS["LSTM"], LSTM, lead, torch.float64)


@host
@pytest.mark.parametrize(
    ("name", "dtype", "sizes"),
    [
        ("LSTM", torch.bfloat16, {"D": 38, "H": 2}),
        ("GRUv1", torch.float16, {"D": 21}),
        pytest.param("SLSTM", torch.float16, {"D": 34, "H": 1}, marks=pytest.mark.slow),
    ],
)
def test_16_bits(name: str, dtype: torch.dtype, sizes: dict[str, int], emulation: Emulation) -> None:
    """Products by `mma`, of rounded operands: with matrices in registers, and in memory of the block."""
    text = TEXTS[name]
    module = load(text)
    lay = module._cuda_layout
    for held in (True, False):
        emulation.calls.clear()
        emulation.replace(module, "_cuda_layout", lambda *args, held=held: lay(*args, held))
        module._cuda_text.cache_clear()
        compare(emulation, text, sizes, PACKED, dtype)
        for call in emulation.calls:
            assert "#define LOW 1" in call.text and ("HELD_0 2" if held else "HELD_0 1") in call.text


@host
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wide(dtype: torch.dtype, emulation: Emulation) -> None:
    """More units than the threads of a block, and matrices that stay in the chip's memory."""
    compare(emulation, WIDE, {}, 2, dtype)
    assert all("KEEP_0 0" in c.text and "HELD_0 0" in c.text for c in emulation.calls)


@host
def test_without_shared_memory(emulation: Emulation) -> None:
    """States that no block can hold are in the chip's memory."""
    emulation.shared = 0
    compare(emulation, LAGS, {}, PACKED, torch.float32)
    assert all(c.shared == 0 and "SPILL 0LL" not in c.text for c in emulation.calls)


# --- threads ----------------------------------------------------------------------------------------------------------


def loops(text: str) -> int:
    """Where the loop over tokens begins in a text."""
    return re.search(r"for \(int b_t = ", text).start()  # type: ignore[union-attr]


@host
def test_whoever_comes_first(emulation: Emulation) -> None:
    """The same bits, whatever order threads go in."""
    text = TEXTS["GRUv1"]
    emulation.install(load(text))
    runs: list[list[Tensor]] = []
    for order in (0, 1, 5):
        emulation.order = order
        runs.append(results(text, {"D": 21}, PACKED, "auto", torch.float32))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@host
def test_every_barrier_is_needed(emulation: Emulation) -> None:
    """Without one of them some order of the threads gives something else."""
    text = TEXTS["GRUv1"]
    module = load(text)
    emulation.install(module)

    def run() -> list[Tensor]:
        return results(text, {"D": 37}, 3, "auto", torch.float32)

    right = run()
    made = {c.name: c.text for c in emulation.calls}
    for name, code in made.items():
        start = loops(code)
        places = [m.start() for m in re.finditer(r"__syncthreads\(\);", code) if m.start() > start]
        # What flows back is written when all threads have done the last token.
        inside = places if name == "forward" else places[:-1]
        # One for each of the products that need each other; what the backward reads of them was saved.
        assert len(inside) == 2
        for at in inside:
            emulation.mutant = (name, code[:at] + code[at:].replace("__syncthreads();", "", 1))
            found = False
            for order in (0, 1, 5):
                emulation.order = order
                found = found or any(not torch.equal(a, b) for a, b in zip(run(), right, strict=True))
            assert found, (name, at)
        emulation.mutant = None


def test_one_barrier_a_step() -> None:
    module = load(TEXTS["LSTM"])
    forward, backward = module._LSTM_c_h_cuda.forward.text, module._LSTM_c_h_cuda.backward.text
    assert forward[loops(forward) :].count("__syncthreads();") == 1
    assert backward[loops(backward) :].count("__syncthreads();") == 2, "and one after the last token"


def test_the_gradient_of_a_bias_is_summed_after_the_loop() -> None:
    """Of numbers that are there anyway: nothing is added up in memory that a token would wait for."""
    made = load(TEXTS["LSTM"])._LSTM_c_h_cuda
    assert [(p[1], p[3]) for p in made.products].count(("", -1)) == 4
    assert all(part.role != "d_fixed" for part in made.results)


# --- around the kernels -----------------------------------------------------------------------------------------------


@host
def test_the_operator(emulation: Emulation) -> None:
    module = load(TEXTS["LSTM"])
    emulation.install(module)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    hoisted, history = [drawn(2, 3, 2, 3) for _ in range(4)], [drawn(2, 1, 2, 3) for _ in range(2)]
    fixed = [drawn(2, 3) for _ in range(4)] + [drawn(2, 3, 3, dtype=torch.bfloat16) for _ in range(4)]
    operator = module._LSTM_c_h_kernels.operator.operator
    torch.library.opcheck(operator, (hoisted, fixed, history, [], [], 3, None, None, [], True))


def test_without_a_gpu_nothing_changes() -> None:
    """The plain loop runs, and `plan` says so."""
    text = TEXTS["LSTM"]
    cell = load(text).LSTM(D=4, H=2)
    assert cell.plan == {"c, h": "cuda: one step after the other in a kernel, on a GPU; torch: loop over tokens"}
    with pytest.raises(RuntimeError, match="the inputs are on cpu"):
        load(text).LSTM(D=4, H=2, backend="cuda")(torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="'triton' is none of 'auto', 'cuda', 'torch', 'reference'"):
        load(text).LSTM(D=4, H=2, backend="triton")


def test_without_cuda_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error with the command that installs it."""
    module = load(TEXTS["LSTM"])

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(module.importlib, "import_module", missing)
    with pytest.raises(RuntimeError, match=r'pip install "cuda-core\[cu1\d\]"'):
        module._cuda_kernel("a text", "forward", 0, 0)


def test_emit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", str(EXAMPLES / "lstm.rnn"), "--emit", "cuda"]) == 0
    text = capsys.readouterr().out
    assert text.count('extern "C" __global__') == 2 and "mma.sync" in text and "#include" not in text
    assert text.startswith("// c, h: 4 matrix products a token, at most 1 of them one after the other.\n")
    assert main(["compile", str(EXAMPLES / "gruv1.rnn"), "--emit", "cuda"]) == 0
    assert capsys.readouterr().out.startswith("// h: 3 matrix products a token, at most 2 of them one after")
    assert main(["compile", str(EXAMPLES / "mingru.rnn"), "--emit", "cuda"]) == 0
    assert capsys.readouterr().out == "// MinGRU has no recurrence that is stepped by CUDA kernels.\n"


# --- NVRTC ------------------------------------------------------------------------------------------------------------


def texts(name: str, sizes: dict[str, int], dtype: torch.dtype) -> dict[str, str]:
    """The kernels of an example as an H200 would get them."""
    module = load(TEXTS.get(name) or OVER[name])
    (cuda,) = (v for k, v in vars(module).items() if k.endswith("_cuda") and hasattr(v, "backward"))
    low = dtype if dtype.itemsize == 2 else None
    real = torch.float64 if dtype == torch.float64 else torch.float32
    places = {m[0] for k in (cuda.forward, cuda.backward) for m in k.matrices}
    names = {torch.float64: "double", torch.float32: "float", torch.bfloat16: "bf16", torch.float16: "fp16"}
    types: list[str] = []
    for part in cuda.inputs:
        matrix = part.role == "fixed" and part.place in places
        kind = {"complex": "cplx", "bool": "unsigned char"}.get(part.kind, names[dtype if matrix else real])
        types += [f"t_{part.role}_{part.place} {kind}"] if part.role != "history" else []
        types += [f"STEP_{part.place} {4 * sizes['D']}"] if part.role == "hoisted" else []
    out: dict[str, str] = {}
    for which in ("forward", "backward"):
        kernel = getattr(cuda, which)
        out[which], _ = module._cuda_text(cuda.head, kernel, real, low, tuple(sizes.items()), tuple(types), 226 * 1024)
    return out


def nvrtc() -> bool:
    try:
        if importlib.util.find_spec("cuda.core") is None:
            return False
        from cuda.pathfinder import load_nvidia_dynamic_lib  # pyright: ignore[reportMissingImports]

        load_nvidia_dynamic_lib("nvrtc")
    except Exception:
        return False
    return True


HEADS = [
    ("LSTM", {"D": 768, "H": 12, "P": 64}, torch.bfloat16),
    ("LSTM", {"D": 768, "H": 6, "P": 128}, torch.bfloat16),
    ("GRUv1", {"D": 128}, torch.float32),
    ("LSTM", {"D": 256, "H": 1, "P": 256}, torch.bfloat16),
    ("LSTM", {"D": 512, "H": 1, "P": 512}, torch.bfloat16),
    ("RateNetwork", {"D": 200, "M": 4}, torch.bfloat16),
    ("GRU", {"D": 256}, torch.float32),
    pytest.param("several", {"J": 3, "H": 2, "P": 4, "Q": 4, "D": 384}, torch.bfloat16, marks=pytest.mark.slow),
    pytest.param("several", {"J": 3, "H": 2, "P": 4, "Q": 4, "D": 384}, torch.float32, marks=pytest.mark.slow),
    pytest.param("LSTM", {"D": 768, "H": 12, "P": 64}, torch.float64, marks=pytest.mark.slow),
]


needs_nvrtc = pytest.mark.skipif(
    not nvrtc(), reason="needs NVRTC: pip install cuda-core cuda-bindings nvidia-cuda-nvrtc"
)
ARCHS = ("80", "90a", "100")


def check_spills(name: str, sizes: dict[str, int], dtype: torch.dtype, archs: Mapping[str, Sequence[str]]) -> None:
    from cuda.core import Program, ProgramOptions  # pyright: ignore[reportAttributeAccessIssue]

    for which, text in texts(name, sizes, dtype).items():
        for arch in archs[which]:
            log = io.StringIO()
            options = ProgramOptions(name="k.cu", arch=f"sm_{arch}", std="c++17", fma=False, ptxas_options=["-v"])
            assert Program(text, "c++", options).compile("cubin", logs=log).code
            said = log.getvalue()
            assert "0 bytes spill stores, 0 bytes spill loads" in said, (sizes, which, arch, said)
            assert "error" not in said


@needs_nvrtc
@pytest.mark.parametrize(("name", "sizes", "dtype"), HEADS)
def test_compiles_without_spills(name: str, sizes: dict[str, int], dtype: torch.dtype) -> None:
    check_spills(name, sizes, dtype, {"forward": ("90a",), "backward": ARCHS})


def sized(name: str, units: int = 0) -> dict[str, int]:
    """The sizes of an example with so many units, or as it is written."""
    own = {"LSTM": 64, "SLSTM": 128, "TTTLinear": 64, "IRNN": 100, "RateNetwork": 200, "GRUD": 64, "PVRNN": 32}
    n = units or own.get(name, 256)
    heads = {"LSTM": 12, "SLSTM": 4, "TTTLinear": 16}.get(name, 1) if not units else 1
    more = {
        "LSTM": {"D": n * heads, "H": heads, "P": n},
        "SLSTM": {"D": n * heads, "H": heads, "P": n},
        "IRNN": {"D": n, "E": n},
        "SparseRNN": {"D": n, "E": n},
        "TTTLinear": {"D": n * heads, "H": heads, "K": n, "V": n},
        "RateNetwork": {"D": n, "M": 4},
        "GRUD": {"D": 32, "H": n},
        "PVRNN": {"D": n, "X": 8, "F": n, "S": n // 2, "Z": 4},
    }
    return more.get(name, {"D": n})


@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("name", STEPPED)
def test_examples_do_not_spill(name: str) -> None:
    """As they are written, in all dtypes; and with few units and many."""
    whole = {"forward": ARCHS, "backward": ARCHS}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        check_spills(name, sized(name), dtype, whole)
    for units in (16, 32, 64, 128, 256, 384, 512, 768):
        if units > 128 and name == "TTTLinear":
            continue
        for dtype in (torch.bfloat16, torch.float32):
            check_spills(name, sized(name, units), dtype, whole)
