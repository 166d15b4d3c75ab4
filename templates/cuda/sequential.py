"""Loops over tokens as CUDA kernels: compiled at first use by NVRTC, kept in a cache, launched without waiting."""

from __future__ import annotations

import functools
import importlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..torch.compiled import _native_cache, _native_gathered, _NativePart, _tokens_apart


class _CudaKernel(NamedTuple):
    """A kernel without its sizes. Dims are names.

    `free` is the dim of whose entries each block takes some, `spaces` the dims whose entries threads own, `slots` the
    arrays of a block as (name, dims, kind, tokens, space or -1), `matrices` those of products as (fixed value, space,
    dims of results, dims of operands, whether a block needs one only), `tiled` whether there are products, and
    `registers` how many numbers a thread holds of each entry of a space.
    """

    text: str
    free: str
    spaces: tuple[tuple[str, ...], ...]
    slots: tuple[tuple[str, tuple[str, ...], str, int, int], ...]
    matrices: tuple[tuple[int, int, tuple[str, ...], tuple[str, ...], bool], ...]
    tiled: bool
    registers: tuple[int, ...]


class _Cuda(NamedTuple):
    """A loop's kernels and what they read and write: see `_Native`."""

    head: str
    forward: _CudaKernel
    backward: _CudaKernel
    inputs: tuple[_NativePart, ...]
    results: tuple[_NativePart, ...]
    products: tuple[tuple[int, str, int, int], ...]
    saved: tuple[_NativePart, ...]
    sizes: tuple[str, ...]
    consts: tuple[int, ...]


class _CudaLayout(NamedTuple):
    """What a block does of a kernel, and where its arrays lie."""

    macros: tuple[str, ...]
    threads: int
    rows: int
    parts: int
    shared: int
    spill: int


def _cuda_layout(
    kernel: _CudaKernel, sizes: dict[str, int], real: int, low: bool, limit: int, held: bool = True
) -> _CudaLayout:
    """Lays out a kernel for these sizes, numbers of `real` bytes, and so many bytes of shared memory.

    Operands and states come first; then as many matrices as fit, in registers where products are of 16-bit numbers.
    """
    free = sizes[kernel.free] if kernel.free else 1

    def count(dims: tuple[str, ...], part: int) -> int:
        return math.prod(part if d == kernel.free else sizes[d] for d in dims)

    wide = max([1, *(count(dims, 1) for dims in kernel.spaces)])
    part = 1 if kernel.tiled else max(1, min(free, 256 // wide))
    counts = [count(dims, part) for dims in kernel.spaces]
    rows, widths = (8, 16) if kernel.tiled else (1, 32)
    warps = max([1, *(-(-n // widths) for n in counts)])
    warps = min(warps, 16 if kernel.tiled else 8)
    threads = 32 * warps
    tiles = [-(-n // (16 * warps)) for n in counts]
    each = [4 * n for n in tiles] if kernel.tiled else [-(-n // threads) for n in counts]
    keep = [n <= 8 for n in each]
    # A thread has so many registers (a chip's four parts share warps evenly), some for what is being computed and for
    # addresses, those of each further space and of matrices where there are many.
    registers = min(255, 65536 // (-(-warps // 4) * 128)) - 72 - sum(min(n, 8) for n in each[1:])
    registers -= 3 * max(0, len(kernel.matrices) - 4)
    held_by = [n * e for n, e in zip(kernel.registers, each)]
    while any(keep) and sum(n for n, k in zip(held_by, keep) if k) > registers:
        keep[max((i for i, k in enumerate(keep) if k), key=held_by.__getitem__)] = False
    unit, row = "((e) * THREADS + b_tid)", "0"
    if kernel.tiled:
        unit, row = "((((e) >> 2) * WARPS + b_warp) * 16 + b_group + 8 * ((e) >> 1 & 1))", "(2 * b_quad + ((e) & 1))"
    macros = [
        f"ROWS {rows}",
        f"WARPS {warps}",
        f"THREADS {threads}",
        f"PART {part}",
        f"UNIT(e) {unit}",
        f"ROW(e) {row}",
    ]
    # Memory comes in stretches of eight numbers or more, of which one thread need ask for.
    macros += ["AHEAD 3", f"FIRST ({'b_group' if kernel.tiled else 'b_tid % 8'} == 0)"]
    macros.append(f"UP(n) {'(((n) + 15) / 16 * 16)' if low else '(n)'}")
    # Only what is in registers must be known by its place.
    unrolled = {i for i, n in enumerate(held_by) if keep[i] and (n or any(m[1] == i for m in kernel.matrices))}
    for i, n in enumerate(counts):
        macros += [f"COUNT_{i} {n}", f"TILES_{i} {tiles[i]}", f"EACH_{i} {each[i]}", f"KEEP_{i} {int(keep[i])}"]
        macros.append(f"UNROLL_{i} {each[i] if i in unrolled else 1}")
    shared = spill = 0
    bytes_of = {"real": real, "complex": 2 * real, "bool": 1}
    types = {"real": "real", "complex": "cplx", "bool": "unsigned char"}
    for name, dims, kind, ring, space in sorted(kernel.slots, key=lambda s: count(s[1], part) * s[3]):
        pitch = count(dims, part)
        if kernel.tiled:
            # Rows of a tile begin in different banks.
            pitch = -(-pitch // 8) * 8
            pitch += 8 if pitch % 16 == 0 else 0
        if space >= 0 and keep[space]:
            at, where = 0, "b_shared"
        else:
            take = -(-ring * rows * pitch * bytes_of[kind] // 16) * 16
            if shared + take <= limit:
                at, where, shared = shared, "b_shared", shared + take
            else:
                at, where, spill = spill, "b_spill", spill + take
                registers -= 6  # its addresses, of 64 bits
        macros += [f"s_{name} (({types[kind]} *)({where} + {at}))", f"l_{name} {pitch}"]
    registers -= sum(n for n, k in zip(held_by, keep) if k)
    # Loads in flight take registers too.
    macros.append(f"DEEP {max(1, min(4, registers // 24))}")
    for i, (_, space, outs, ins, whole) in enumerate(kernel.matrices):
        n, depth = count(outs, part), count(ins, part)
        steps = -(-depth // 16)
        take = 4 * tiles[space] * steps
        pitch = 16 * steps + 8 if low else 4 * (-(-depth // 4) | 1)
        room = -(-(16 * -(-n // 16) if low else n) * pitch * (2 if low else real) // 16) * 16
        at, how = 0, 0
        if low and whole and held and keep[space] and take <= registers:
            how, registers = 2, registers - take
        elif whole and shared + room <= limit:
            at, how, shared = shared, 1, shared + room
        macros += [f"HELD_{i} {how}", f"AT_{i} {at}", f"PITCH_{i} {pitch}"]
    macros.append(f"SPILL {spill}LL")
    return _CudaLayout(tuple(macros), threads, rows, -(-free // part), shared, spill)


def _cuda_here(*tensors: Tensor) -> bool:
    """Whether kernels run on these: PyTorch calls AMD's chips "cuda" too."""
    return torch.version.hip is None and all(x.device.type == "cuda" for x in tensors)


def _cuda_limit(device: torch.device) -> int:
    """How many bytes of shared memory a block may ask for: some are the kernel's own."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin - 1024


def _cuda_binary(text: str, arch: str, cache: Any = None) -> Any:
    """A text compiled for a chip."""
    core = importlib.import_module("cuda.core")
    # Products and sums are rounded one by one, but for those of matrices, which say `fma`.
    options = core.ProgramOptions(name="rnnc.cu", arch=f"sm_{arch}", std="c++17", fma=False, disable_warnings=True)
    return core.Program(text, "c++", options).compile("cubin", cache=cache)


@functools.cache
def _cuda_kernel(text: str, name: str, shared: int, device: int) -> Any:
    """A kernel on a device, compiled once and kept on disk."""
    try:
        here = importlib.import_module("cuda.core").Device(device)
        cache = importlib.import_module("cuda.core.utils").FileStreamProgramCache
    except ImportError as error:
        raise RuntimeError(
            "this cell's recurrence runs on a GPU by CUDA kernels, which cuda-core compiles and launches: "
            f'pip install "cuda-core[cu{(torch.version.cuda or "13").split(".")[0]}]"; backend="torch" does without'
        ) from error
    here.set_current()
    kernel = _cuda_binary(text, here.arch, cache(os.path.join(_native_cache(), "cuda"))).get_kernel(name)
    if shared > 48 * 1024:
        driver = importlib.import_module("cuda.bindings.driver")
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        handle, place = driver.CUkernel(int(kernel.handle)), driver.CUdevice(device)
        (error,) = driver.cuKernelSetAttribute(attribute, shared, handle, place)
        if error != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"{shared} bytes of shared memory: {error}")
    return kernel


def _cuda_start(
    text: str, name: str, grid: tuple[int, int], threads: int, shared: int, arguments: Sequence[Any], like: Tensor
) -> None:
    """Launch a kernel on PyTorch's current stream."""
    with torch.cuda.device(like.device):
        kernel = _cuda_kernel(text, name, shared, like.device.index)
        core = importlib.import_module("cuda.core")
        config = core.LaunchConfig(grid=grid, block=threads, shmem_size=shared)
        core.launch(torch.cuda.current_stream(), config, kernel, *arguments)


class _CudaCall:
    """One use of a loop's kernels: its operands, laid out as they read them."""

    def __init__(
        self,
        cuda: _Cuda,
        hoisted: Sequence[Tensor],
        fixed: Sequence[Tensor],
        history: Sequence[Tensor],
        numbers: Sequence[float],
        lead: tuple[int, int],
        sequence: Tensor | None,
    ) -> None:
        self.cuda, self.lead = cuda, lead
        self.dtype = history[0].real.dtype
        self.sizes = {d: int(n) for d, n in zip(cuda.sizes, numbers)}
        given = {"hoisted": hoisted, "fixed": fixed, "history": history}
        for part in cuda.inputs:
            shape = given[part.role][part.place].shape[0 if part.role == "fixed" else 2 :]
            for dim, n in zip(part.dims, shape):
                self.sizes[dim] = max(n, self.sizes.get(dim, 1))
        places = {m[0] for k in (cuda.forward, cuda.backward) for m in k.matrices}
        types = {fixed[i].dtype for i in places}
        one = next(iter(types)) if len(types) == 1 else None
        # Products of 16-bit numbers where all matrices are of them.
        self.low = one if one in (torch.float16, torch.bfloat16) and self.dtype == torch.float32 else None
        self.macros: list[str] = []
        self.hoisted: list[Tensor] = []
        self.fixed: list[Tensor] = []
        for part in cuda.inputs:
            if part.role == "history":
                continue
            x = given[part.role][part.place]
            if part.role == "fixed" and part.place in places:
                x = x.to(self.low or self.dtype)
            elif part.kind == "real" and x.dtype not in (torch.float16, torch.bfloat16):
                x = x.to(self.dtype)
            elif part.kind != "real":
                x = x.to(self.kind(part))
            if part.role == "fixed":
                self.fixed.append(x.expand(self.shape(part)).contiguous())
            else:
                x, step = _tokens_apart(x.expand(*lead, *self.shape(part)))
                self.hoisted.append(x)
                self.macros.append(f"STEP_{part.place} {step}")
            self.macros.append(f"t_{part.role}_{part.place} {self.type(x.dtype)}")
        self.history = [h.contiguous() for h in history]
        self.consts = [float(numbers[i]) for i in cuda.consts]
        self.rows(sequence)

    def kind(self, part: _NativePart) -> torch.dtype:
        if part.kind == "complex":
            return torch.complex128 if self.dtype == torch.float64 else torch.complex64
        return torch.bool if part.kind == "bool" else self.dtype

    def shape(self, part: _NativePart) -> list[int]:
        return [self.sizes[d] for d in part.dims]

    def type(self, dtype: torch.dtype) -> str:
        names = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bf16", torch.float16: "fp16"}
        return "cplx" if dtype.is_complex else names.get(dtype, "unsigned char")

    def rows(self, sequence: Tensor | None) -> None:
        """Where each sequence begins, how long it is, and its place in the histories; the longest first. None of them
        where all are as long."""
        self.order = self.starts = self.lengths = None
        if sequence is not None:
            order = torch.arange(self.history[0].shape[0], device=sequence.device)
            starts = torch.searchsorted(sequence, order)
            lengths = torch.searchsorted(sequence, order, right=True) - starts
            self.order = torch.argsort(lengths, descending=True, stable=True)
            self.starts, self.lengths = starts[self.order], lengths[self.order]

    def run(self, name: str, keep: bool, *after: Tensor) -> None:
        kernel = self.cuda.forward if name == "forward" else self.cuda.backward
        like, count = self.history[0], self.history[0].shape[0]
        sizes, limit = tuple(self.sizes.items()), _cuda_limit(like.device)
        text, layout = _cuda_text(self.cuda.head, kernel, self.dtype, self.low, sizes, tuple(self.macros), limit)
        grid = (-(-count // layout.rows), layout.parts)
        spill = torch.empty(grid[0] * grid[1] * layout.spill, dtype=torch.uint8, device=like.device)
        tensors = [*self.hoisted, *self.fixed, *self.history, *after]
        rows = (0 if x is None else x.data_ptr() for x in (self.order, self.starts, self.lengths))
        pointers = (x.data_ptr() for x in (spill, *tensors))
        arguments = [count, self.lead[1], int(keep), *rows, *pointers, *self.consts]
        _cuda_start(text, name, grid, layout.threads, layout.shared, arguments, like)


@functools.cache
def _cuda_text(
    head: str,
    kernel: _CudaKernel,
    dtype: torch.dtype,
    low: torch.dtype | None,
    sizes: tuple[tuple[str, int], ...],
    types: tuple[str, ...],
    limit: int,
) -> tuple[str, _CudaLayout]:
    """A kernel with all that its text leaves open."""
    layout = _cuda_layout(kernel, dict(sizes), dtype.itemsize, low is not None, limit)
    macros = ["DOUBLE"] if dtype == torch.float64 else []
    macros += ["HALF"] if low == torch.float16 else []
    element = "real" if low is None else "fp16" if low == torch.float16 else "bf16"
    macros += [f"LOW {int(low is not None)}", f"ELEMENT {element}", *(f"n_{d} {n}" for d, n in sizes)]
    lines = [f"#define {m}" for m in (*macros, *types, *layout.macros)]
    return "\n".join([*lines, head, kernel.text, ""]), layout


def _cuda_run(cuda: _Cuda, other: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """Runs a loop by kernels, or the `other` way where there is no GPU."""

    def run(
        step: Callable[..., tuple[Tensor, ...]],
        hoisted: Sequence[Tensor],
        shared: Iterable[Tensor],
        fixed: Sequence[Tensor],
        history: Sequence[Tensor],
        numbers: Sequence[float],
        steps: int,
        sequence: Tensor | None,
        position: Tensor | None,
        *saved: Tensor,
    ) -> list[Tensor]:
        if not _cuda_here(*hoisted, *fixed, *history):
            hoisted, shared, fixed = (_cuda_wide(x, history[0]) for x in (hoisted, shared, fixed))
            return other(step, hoisted, shared, fixed, history, numbers, steps, sequence, position, *saved)
        lead = (history[0].shape[0] if sequence is None else 1, steps)
        values = [h.new_empty(*lead, *h.shape[2:]) for h in history]
        if values[0].shape[0] * steps:
            keep = any(x.ndim == 2 + len(part.dims) for x, part in zip(saved, cuda.saved))
            call = _CudaCall(cuda, hoisted, fixed, history, numbers, lead, sequence)
            call.run("forward", keep, *values, *saved)
        return values

    return run


def _cuda_wide(tensors: Iterable[Tensor], like: Tensor) -> list[Tensor]:
    """16-bit numbers in the dtype of the states, for those who know no others."""
    return [x.to(like.real.dtype) if x.dtype in (torch.float16, torch.bfloat16) else x for x in tensors]


def _cuda_sweep(cuda: _Cuda, other: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """Runs the backward of a loop by kernels, or the `other` way where there is no GPU."""

    def sweep(
        back: Callable[..., tuple[tuple[Tensor, ...], ...]],
        products: tuple[tuple[int, str, int, int], ...],
        grads: Sequence[Tensor],
        values: Sequence[Tensor],
        hoisted: Sequence[Tensor],
        shared: Iterable[Tensor],
        fixed: Sequence[Tensor],
        history: Sequence[Tensor],
        numbers: Sequence[float],
        sequence: Tensor | None,
        position: Tensor | None,
        *saved: Tensor,
    ) -> list[Tensor]:
        weights = sorted({p[0] for p in products})
        free = [i for i, x in enumerate(fixed) if x.dtype != torch.bool and i not in weights]
        live = [(i, x) for i, x in enumerate(hoisted) if x.dtype != torch.bool]
        likes = [*(x for _, x in live), *(fixed[i] for i in (*free, *weights)), *history]
        if not _cuda_here(*hoisted, *fixed, *history) or len(saved) != len(cuda.saved):
            wide = (_cuda_wide(x, history[0]) for x in (hoisted, shared, fixed))
            found = other(back, products, grads, values, *wide, history, numbers, sequence, position, *saved)
            return [d.to(x.dtype) for d, x in zip(found, likes)]
        batch, steps = values[0].shape[:2]
        if not batch * steps:
            return [torch.zeros_like(x) for x in likes]
        call = _CudaCall(cuda, hoisted, fixed, history, numbers, (batch, steps), sequence)
        known = [v.contiguous() for v in (*values, *saved)]
        d_history = [torch.zeros_like(h, memory_format=torch.contiguous_format) for h in history]
        made: list[Tensor] = []
        for part in cuda.results:
            each = part.role == "d_fixed"
            first = (history[0].shape[0],) if each else (batch, steps)
            kind = call.kind(part)
            made.append(
                (torch.zeros if each else torch.empty)(*first, *call.shape(part), dtype=kind, device=history[0].device)
            )
        call.run("backward", True, *known, *(g.contiguous() for g in grads), *d_history, *made)
        return [*_native_gathered(cuda.results, cuda.products, made, hoisted, fixed, weights, call.low), *d_history]

    return sweep
