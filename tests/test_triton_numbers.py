"""The elementwise functions of generated kernels: their digits, on a GPU's terms too, and that they compile.

Run with `TRITON_INTERPRET=1 pytest -m triton`. Compiled Triton does not mix with interpreted in one process and so
gets one of its own.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 from the start of the process", allow_module_level=True)

import numpy as np
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from templates.triton import complex as C
from templates.triton import numbers as N

pytestmark = [pytest.mark.triton, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
TEMPLATES = Path(N.__file__).parent


@triton.jit
def _call(x, out, function: tl.constexpr, operands: tl.constexpr, pair: tl.constexpr, n: tl.constexpr):
    i = tl.arange(0, n)
    if operands == 1:
        y = function(tl.load(x + i))
    elif operands == 2:
        y = function(tl.load(x + i), tl.load(x + n + i))
    else:
        y = function(tl.load(x + i), tl.load(x + n + i), tl.load(x + 2 * n + i), tl.load(x + 3 * n + i))
    if pair:
        tl.store(out + i, y[0])
        tl.store(out + n + i, y[1])
    else:
        tl.store(out + i, y)


def run(function: Any, *operands: Tensor, pair: bool = False) -> Tensor:
    """The kernel function on real and complex tensors of one length."""
    parts = [p for x in operands for p in ((x.real, x.imag) if x.is_complex() else (x,))]
    size = parts[0].numel()
    n = 1 << (size - 1).bit_length()
    x = torch.ones(len(parts), n, dtype=parts[0].dtype)
    x[:, :size] = torch.stack(parts)
    out = torch.full((2, n), math.nan, dtype=x.dtype)
    launch: Any = _call[(1,)]
    launch(x, out, function, len(parts), pair, n)
    return torch.complex(out[0], out[1])[:size] if pair else out[0, :size]


# --- samples, in float64 ---------------------------------------------------------------------------------------------


def uniform(low: float, high: float, size: int = 20000) -> Tensor:
    return low + (high - low) * torch.rand(size, dtype=torch.float64)


def spread(low: float, high: float, size: int = 20000) -> Tensor:
    """Of both signs, 10**low to 10**high in size."""
    return 10 ** uniform(low, high, size) * torch.randint(0, 2, (size,)).mul(2).sub(1)


def reals() -> tuple[Tensor]:
    return (torch.cat([spread(-30, 2), spread(-4, 1), uniform(-100, 100), torch.linspace(-20, 20, 20001).double()]),)


def above_minus_one() -> tuple[Tensor]:
    x = torch.cat([spread(-30, 0), uniform(-1, 3), 10 ** uniform(-3, 30)])
    return (x[x > -1],)


def two_reals() -> tuple[Tensor, Tensor]:
    x = torch.cat([spread(-10, 3), uniform(-5, 5)])
    return x, torch.cat([spread(-10, 3), x[20000:] + spread(-8, 1)])


def powers() -> tuple[Tensor, Tensor]:
    """Bases near 1 and far, with exponents that keep to the range of float32; negative ones with whole exponents."""
    log = torch.cat([spread(-7, -2), uniform(-3, 3), uniform(-80, 80)])
    y = uniform(-80, 80, 60000) / log
    x = log.exp()
    whole = y.abs() > 1
    return torch.where(whole & (torch.rand(60000) < 0.5), -x, x), torch.where(whole, y.round(), y)


def plane(low: float, high: float) -> Tensor:
    """Points of the plane, 10**low to 10**high from the origin; some near the axes and the diagonals."""
    z = torch.polar(10 ** uniform(low, high, 40000), torch.cat([uniform(-math.pi, math.pi, 20000)] * 2))
    near = torch.randint(-4, 5, (20000,)) * (math.pi / 4) + spread(-7, -1)
    return torch.cat([z, torch.polar(10 ** uniform(low, high), near)])


def around_one() -> Tensor:
    return torch.cat(
        [torch.polar(1 + spread(-7, -1), uniform(-math.pi, math.pi)), 1 + torch.polar(spread(-7, -1), uniform(-3, 3))]
    )


def points() -> tuple[Tensor]:
    return (torch.cat([plane(-37, 37), plane(-2, 2), around_one()]),)


def strip(width: float) -> tuple[Tensor]:
    small = torch.complex(spread(-12, 0), spread(-12, 0))
    return (torch.cat([torch.complex(uniform(-width, width), uniform(-30, 30)), small]),)


# --- claims ----------------------------------------------------------------------------------------------------------


def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def magnitude(result: Tensor, *operands: Tensor) -> Tensor:
    return result.abs()


def largest(result: Tensor, *operands: Tensor) -> Tensor:
    return torch.stack([result, *operands]).abs().amax(0)


@dataclass(frozen=True)
class Claim:
    """The largest error over `scale`: rounded operations of float32, those of a GPU, and float64.

    A GPU rounds `x * log2(e)` before the power of 2; where `x` enters so, its size times 7.5e-8 comes on top. So it
    does with rounded operations where the function itself has the `product`.
    """

    function: Any
    reference: Callable[..., Tensor]
    samples: Callable[[], tuple[Tensor, ...]]
    float32: float = 4e-7
    gpu: float = 1.5e-6
    float64: float = 2e-15
    exponent: Callable[[Tensor], Tensor] | None = None
    product: bool = False
    scale: Callable[..., Tensor] = magnitude
    pair: bool = False


CLAIMS = {
    "sigmoid": Claim(N._tl_sigmoid, torch.sigmoid, reals, exponent=torch.abs, product=True),
    "exp": Claim(N._tl_exp, torch.exp, reals, exponent=torch.abs, product=True),
    "silu": Claim(N._tl_silu, F.silu, reals, exponent=torch.abs, product=True),
    "gelu": Claim(N._tl_gelu, F.gelu, lambda: (reals()[0][::20],), scale=largest),
    "log1p": Claim(N._tl_log1p, torch.log1p, above_minus_one),
    "expm1": Claim(N._tl_expm1, torch.expm1, lambda: (reals()[0].clamp(max=88),), exponent=torch.abs),
    "tanh": Claim(N._tl_tanh, torch.tanh, reals),
    "softplus": Claim(N._tl_softplus, softplus, reals, exponent=torch.abs),
    "logsigmoid": Claim(N._tl_logsigmoid, lambda x: -softplus(-x), reals, exponent=torch.abs),
    "logaddexp": Claim(N._tl_logaddexp, torch.logaddexp, two_reals, scale=largest),
    "pow": Claim(N._tl_pow, torch.pow, powers, float64=3e-14),
    "atan2": Claim(C._tl_atan2, torch.atan2, lambda: (points()[0].imag, points()[0].real)),
    "complex_abs": Claim(C._tl_complex_abs, torch.abs, points),
    "complex_div": Claim(C._tl_complex_div, torch.div, lambda: (plane(-18, 18), plane(-18, 18)), pair=True),
    "complex_exp": Claim(
        C._tl_complex_exp, torch.exp, lambda: strip(85), exponent=lambda z: z.real.abs(), float32=5e-7, pair=True
    ),
    "complex_log": Claim(C._tl_complex_log, torch.log, points, pair=True),
    "complex_sqrt": Claim(C._tl_complex_sqrt, torch.sqrt, points, pair=True),
    "complex_rsqrt": Claim(C._tl_complex_rsqrt, torch.rsqrt, points, pair=True),
    "complex_sin": Claim(
        C._tl_complex_sin,
        torch.sin,
        lambda: tuple(z * 1j for z in strip(85)),
        exponent=lambda z: z.imag.abs(),
        float32=5e-7,
        pair=True,
    ),
    "complex_cos": Claim(
        C._tl_complex_cos,
        torch.cos,
        lambda: tuple(z * 1j for z in strip(85)),
        exponent=lambda z: z.imag.abs(),
        float32=5e-7,
        pair=True,
    ),
    "complex_tanh": Claim(
        C._tl_complex_tanh, torch.tanh, lambda: strip(20), exponent=lambda z: 2 * z.real.abs(), pair=True
    ),
    "complex_pow": Claim(
        C._tl_complex_pow, torch.pow, lambda: (plane(-2, 2), plane(-3, 0)), float32=1e-6, gpu=4e-6, pair=True
    ),
}


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(torch.promote_types(dtype, torch.complex64) if x.is_complex() else dtype)


def errors(claim: Claim, dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Relative to the scale, of the results that are neither zero nor infinite in `dtype`; and where."""
    torch.manual_seed(0)
    operands = tuple(cast(x, dtype) for x in claim.samples())
    got = run(claim.function, *operands, pair=claim.pair)
    operands = tuple(cast(x, torch.float64) for x in operands)
    wanted = claim.reference(*operands)
    scale = claim.scale(wanted, *operands)
    info = torch.finfo(dtype)
    usual = (wanted.abs() > 1000 * info.tiny) & (wanted.abs() < info.max / 2)
    assert usual.float().mean() > 0.3
    return ((cast(got, torch.float64) - wanted).abs() / scale)[usual], tuple(x[usual] for x in operands)


def worst(claim: Claim, dtype: torch.dtype, product: bool = False) -> float:
    error, operands = errors(claim, dtype)
    assert not error.isnan().any(), [x[error.isnan()][:5] for x in operands]
    beyond = claim.exponent(operands[0]) * 7.5e-8 if claim.exponent and product else torch.zeros_like(error)
    return (error - beyond).max().item()


@pytest.mark.parametrize("name", CLAIMS)
def test_digits_of_float32(name: str) -> None:
    claim = CLAIMS[name]
    assert worst(claim, torch.float32, claim.product) <= claim.float32


@pytest.mark.parametrize("name", CLAIMS)
def test_digits_of_float64(name: str) -> None:
    assert worst(CLAIMS[name], torch.float64) <= CLAIMS[name].float64


# --- a GPU's float32 -------------------------------------------------------------------------------------------------

ULP = 2.0**-23


class Gpu:
    """Float32 as PTX has it at worst, each error of random sign: `ex2.approx`, `div.full`, libdevice's sine and cosine
    2 ulp, `sqrt.approx` and `rsqrt.approx` 1, `lg2.approx` 2**-22, absolute between 0.5 and 2, else relative. With
    `fused`, every sum of a product is one `fma`."""

    def __init__(self, fused: bool) -> None:
        self.fused, self.random = fused, np.random.default_rng(0)

    def off(self, exact: Any, size: float) -> Any:
        return exact * (1 + size * self.random.choice([-1.0, 1.0], exact.shape))

    def install(self, patch: pytest.MonkeyPatch) -> None:
        functions: dict[str, Callable[..., Any]] = {
            "exp": lambda x: self.off(np.exp2((x * np.float32(math.log2(math.e))).astype(np.float64)), 2 * ULP),
            "exp2": lambda x: self.off(np.exp2(x.astype(np.float64)), 2 * ULP),
            "log": self.log,
            "sin": lambda x: self.off(np.sin(x.astype(np.float64)), 2 * ULP),
            "cos": lambda x: self.off(np.cos(x.astype(np.float64)), 2 * ULP),
            "sqrt": lambda x: self.off(np.sqrt(x.astype(np.float64)), ULP),
            "rsqrt": lambda x: self.off(1 / np.sqrt(x.astype(np.float64)), ULP),
            "fdiv": lambda x, y: self.off(x.astype(np.float64) / y, 2 * ULP),
        }
        for name, function in functions.items():
            patch.setattr(InterpreterBuilder, f"create_{name}", self.method(function))
        if self.fused:
            patch.setattr(InterpreterBuilder, "create_fmul", self.product)
            patch.setattr(InterpreterBuilder, "create_fadd", self.sum(1.0))
            patch.setattr(InterpreterBuilder, "create_fsub", self.sum(-1.0))

    def log(self, x: Any) -> Any:
        exact = np.log2(x.astype(np.float64))
        error = np.where((x > 0.5) & (x < 2), 2 * ULP, 2 * ULP * np.abs(exact))
        return (exact + error * self.random.choice([-1.0, 1.0], exact.shape)) * math.log(2)

    @staticmethod
    def method(function: Callable[..., Any]) -> Callable[..., TensorHandle]:
        return lambda _, *args: TensorHandle(function(*(a.data for a in args)).astype(np.float32), args[0].dtype.scalar)

    @staticmethod
    def product(_: Any, x: TensorHandle, y: TensorHandle) -> TensorHandle:
        exact = x.data.astype(np.float64) * y.data
        out = TensorHandle(exact.astype(np.float32), x.dtype.scalar)
        out.exact = exact  # pyright: ignore[reportAttributeAccessIssue]
        return out

    @staticmethod
    def sum(sign: float) -> Callable[..., TensorHandle]:
        def add(_: Any, x: TensorHandle, y: TensorHandle) -> TensorHandle:
            a, b = getattr(x, "exact", None), getattr(y, "exact", None)
            if a is None:
                total = x.data.astype(np.float64) + sign * (y.data if b is None else b)
            else:
                total = a + sign * y.data.astype(np.float64)
            return TensorHandle(total.astype(np.float32), x.dtype.scalar)

        return add


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", CLAIMS)
def test_digits_of_a_gpu(name: str, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = CLAIMS[name]
    Gpu(fused).install(monkeypatch)
    assert worst(claim, torch.float32, True) <= claim.gpu


# --- the ends of the line --------------------------------------------------------------------------------------------

ENDS = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 1e-40, 100.0, -100.0, 1e4, -1e4, 3e38, -3e38]
DTYPES = [torch.float32, torch.float64]


def agree(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-37, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", "sigmoid logsigmoid softplus tanh log1p expm1 silu relu sign".split())
def test_ends_of_the_real_line(name: str, dtype: torch.dtype) -> None:
    x = torch.tensor(ENDS, dtype=dtype)
    reference = {"softplus": softplus, "logsigmoid": F.logsigmoid, "silu": F.silu}.get(name) or getattr(torch, name)
    agree(run(getattr(N, f"_tl_{name}"), x), reference(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ends_of_gelu(dtype: torch.dtype) -> None:
    x = torch.tensor([math.nan, 0.0, 100.0, -100.0, 1e4, -1e4], dtype=dtype)
    agree(run(N._tl_gelu, x), F.gelu(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["maximum", "minimum", "logaddexp", "pow"])
def test_ends_of_two_reals(name: str, dtype: torch.dtype) -> None:
    ends = [*ENDS, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 2.5, 4503599627370497.0]
    x = torch.tensor(ends, dtype=dtype)
    x, y = x.repeat(len(x)), x.repeat_interleave(len(x))
    agree(run(getattr(N, f"_tl_{name}"), x, y), getattr(torch, name)(x, y))


ON_AXES = [(x, y) for x in (0.0, -0.0, 2.0, -2.0) for y in (0.0, -0.0, 2.0, -2.0)]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("name", "abs exp log sqrt sin cos tanh".split())
def test_ends_of_the_plane(name: str, dtype: torch.dtype) -> None:
    """Signs of zeros choose the side of a branch cut; infinities where PyTorch has numbers for them."""
    far = {
        "abs": [(math.inf, 1.0), (-1.0, -math.inf), (math.inf, math.inf), (math.nan, 1.0)],
        "exp": [(math.inf, 0.0), (-math.inf, 1.0), (math.nan, 1.0), (88.9, 1.5)],
        "log": [(math.inf, 1.0), (-math.inf, 1.0), (1.0, math.inf), (math.inf, math.inf), (math.nan, 1.0)],
        "sqrt": [(math.inf, 1.0), (-math.inf, 1.0), (1.0, math.inf), (math.inf, -math.inf), (3e38, 3e38)],
        "sin": [(1.0, math.inf), (0.0, math.inf), (1.0, 89.0), (math.nan, 1.0)],
        "cos": [(1.0, math.inf), (0.0, math.inf), (1.0, 89.0), (math.nan, 1.0)],
        "tanh": [(math.inf, 1.0), (-math.inf, 1.0), (1e4, 1.0), (math.nan, 1.0)],
    }[name]
    z = torch.tensor([complex(*p) for p in [*ON_AXES, *far]], dtype=dtype)
    got = run(getattr(C, f"_tl_complex_{name}"), z, pair=name != "abs")
    wanted = getattr(torch, name)(z)
    for part in ("real",) if name == "abs" else ("real", "imag"):
        agree(getattr(got, part), getattr(wanted, part))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_quotients_at_the_ends(dtype: torch.dtype) -> None:
    a = torch.tensor([1 + 1j, 1 + 1j, 1.5e38 + 1.5e38j, 1e-37 + 1e-37j, 1j], dtype=dtype)
    b = torch.tensor([0j, complex(math.inf, 0), 1.5e38 + 1.5e38j, 1e-37 - 1e-37j, 2j], dtype=dtype)
    got = run(C._tl_complex_div, a, b, pair=True)
    agree(got.real, torch.tensor([math.inf, 0, 1, 0, 0.5], dtype=a.real.dtype))
    agree(got.imag, torch.tensor([math.inf, 0, 0, 1, 0], dtype=a.real.dtype))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_powers_of_zero(dtype: torch.dtype) -> None:
    to = torch.tensor([0, 2, 1 + 1j, 0.5], dtype=dtype)
    assert run(C._tl_complex_pow, torch.zeros_like(to), to, pair=True).tolist() == [1, 0, 0, 0]


# --- compiled --------------------------------------------------------------------------------------------------------

COMPILE = """
import json, sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import every

TARGETS = [GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)]
report = {}
for kernel in every.KERNELS:
    for dtype in ("fp32", "fp64"):
        for target in TARGETS:
            source = ASTSource(kernel, {"x": "*" + dtype, "out": "*" + dtype, "n": "constexpr"}, {"n": 128})
            code = triton.compile(source, target=target).asm
            report[f"{kernel.fn.__name__} {dtype} {target.arch}"] = code.get("ptx") or code["amdgcn"]
json.dump(report, sys.stdout)
"""
OPERANDS = {"pow": 2, "logaddexp": 2, "maximum": 2, "minimum": 2, "atan2": 2}


def definitions() -> str:
    """The bodies of both files in one module, as generated modules have them."""
    texts = [
        (TEMPLATES / f"{name}.py").read_text(encoding="utf-8").split("@triton.jit", 1)[1]
        for name in ("numbers", "complex")
    ]
    return "import triton\nimport triton.language as tl\n" + "".join(f"\n\n@triton.jit{text}" for text in texts)


def kernel(name: str) -> str:
    """A kernel that calls one function."""
    pair = name.startswith("complex_") and name != "complex_abs"
    operands = (
        4 if name in ("complex_div", "complex_pow") else 2 if name.startswith("complex_") else OPERANDS.get(name, 1)
    )
    args = ", ".join(f"tl.load(x + {j} * n + i)" for j in range(operands))
    lines = [f"    y = _tl_{name}({args})"]
    lines += (
        ["    tl.store(out + i, y[0])", "    tl.store(out + n + i, y[1])"] if pair else ["    tl.store(out + i, y)"]
    )
    head = f"@triton.jit\ndef of_{name}(x, out, n: tl.constexpr):\n    i = tl.arange(0, n)\n"
    return "\n\n" + head + "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("compiled")
    names = [*CLAIMS, "relu", "sign", "maximum", "minimum"]
    text = (
        definitions() + "".join(kernel(n) for n in names) + f"\n\nKERNELS = [{', '.join(f'of_{n}' for n in names)}]\n"
    )
    (folder / "every.py").write_text(text, encoding="utf-8")
    (folder / "compile.py").write_text(COMPILE, encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder / "cache")
    done = subprocess.run(
        [sys.executable, folder / "compile.py"], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_all_compile(compiled: dict[str, str]) -> None:
    assert len(compiled) == 6 * (len(CLAIMS) + 4)


@pytest.mark.parametrize("name", "sigmoid silu softplus logsigmoid tanh".split())
def test_one_exponential_and_one_quotient(name: str, compiled: dict[str, str]) -> None:
    text = compiled[f"of_{name} fp32 90"]
    assert (text.count("ex2.approx"), text.count("div.full") + text.count("rsqrt.approx")) == (1, 1)
    assert "lg2" not in text


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_the_machine_s_extremum_keeps_nan(name: str, compiled: dict[str, str]) -> None:
    """As NumPy's, and so the interpreter's, does anyway."""
    assert f"{name[:3]}.NaN.f32" in compiled[f"of_{name} fp32 80"]
