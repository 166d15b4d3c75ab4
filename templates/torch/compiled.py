"""Loops over tokens in C: compiled at first use by a host compiler, kept in a cache, called without the interpreter."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import math
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .loop import _whole_of


def _native_compiler() -> list[str]:
    """The command of the host compiler, `$CC` or `cc`; empty where there is none."""
    command = shlex.split(os.environ.get("CC") or "cc")
    found = os.name == "posix" and command and shutil.which(command[0])
    # -O3 would unroll what has few entries: no faster, and twice as long to compile. Products and sums are rounded one
    # by one (GCC would fuse them, and differently where a value is computed twice); the last two options only spare
    # checks of what no number depends on.
    flags = "-std=c11 -O2 -ftree-vectorize -march=native -fopenmp-simd -ffp-contract=off".split()
    flags += ["-fno-math-errno", "-fno-trapping-math"]
    return [*command, "-shared", "-fPIC", *flags] if found else []


def _native_cache() -> str:
    """A folder that is this user's alone: $RNNC_CACHE, or `rnnc` among the user's cached files."""
    folder = os.environ.get("RNNC_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "rnnc"
    )
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        found = os.stat(folder)
        if found.st_uid == os.getuid() and not found.st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return tempfile.mkdtemp(prefix="rnnc-")


def _native_output(command: list[str]) -> str:
    found = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if found.returncode:
        raise OSError(f"{shlex.join(command)}:\n{found.stderr.strip()[:2000]}")
    return found.stdout


def _native_library(text: str) -> Any:
    """A C text as a library, from the cache if it is there; None without a compiler."""
    command = _native_compiler()
    if not command:
        return None
    # The macros that it predefines tell one compiler, version and processor from another.
    target = _native_output([*command, "-dM", "-E", "-x", "c", os.devnull])
    if "__AVX512F__" in target:
        # Products are in whole vectors, and so is the rest: compilers would take half ones.
        command.append("-mprefer-vector-width=512")
    digest = hashlib.sha256("\0".join([text, *command, target]).encode()).hexdigest()[:32]
    folder = _native_cache()
    path = os.path.join(folder, f"{digest}.so")
    if not os.path.exists(path):
        with tempfile.TemporaryDirectory(dir=folder) as made:
            source, result = os.path.join(made, "loop.c"), os.path.join(made, "loop.so")
            with open(source, "w", encoding="utf-8") as file:
                file.write(text)
            _native_output([*command, source, "-o", result, "-lm"])
            # In one go: who looks meanwhile finds all of it or nothing.
            os.replace(result, path)
    return ctypes.CDLL(path)


class _NativePart(NamedTuple):
    """An array of a loop's C text: its role, which of that role it is, its dims and the kind of its numbers."""

    role: str
    place: int
    dims: tuple[str, ...]
    kind: str = "real"


class _Native(NamedTuple):
    """A loop in C. `text` lacks the sizes and the type of numbers: a library is made for each of them.

    `inputs` are the arrays that come in, `results` those that the backward makes besides the cotangents of states;
    `products` the gradients of fixed values as (index, einsum over all tokens, left, right), the last two numbers of
    results; `cut` the dim along which the forward may be cut into parts, and the backward's, or ""; `saved` what the
    forward writes for the backward beside the streams. `sizes` names the first of a loop's numbers, `consts` are the
    places of others among them.
    """

    text: str
    inputs: tuple[_NativePart, ...]
    results: tuple[_NativePart, ...]
    products: tuple[tuple[int, str, int, int], ...]
    cut: tuple[str, str]
    saved: tuple[_NativePart, ...]
    packs: bool
    sizes: tuple[str, ...]
    consts: tuple[int, ...]
    libraries: dict[Any, Any]
    lock: Any


def _native(
    text: str,
    inputs: tuple[_NativePart, ...],
    results: tuple[_NativePart, ...],
    products: tuple[tuple[int, str, int, int], ...],
    cut: tuple[str, str],
    saved: tuple[_NativePart, ...],
    packs: bool,
    sizes: tuple[str, ...],
    consts: tuple[int, ...],
) -> _Native:
    return _Native(text, inputs, results, products, cut, saved, packs, sizes, consts, {}, threading.Lock())


def _plain(x: Tensor) -> Tensor:
    """Numbers as they lie in memory: PyTorch marks a conjugate, or a negative part of one, and leaves it as it is."""
    return x.resolve_conj().resolve_neg()


def _tokens_apart(x: Tensor) -> tuple[Tensor, int]:
    """A tensor of tokens, and how far apart these lie: of several maps that were one product each is a stretch of every
    token's numbers, and need not be copied."""
    batch, steps = x.shape[:2]
    between, step = x.stride()[:2] if steps > 1 else (0, max(x.stride(0), 1))
    if not x[0, 0].is_contiguous() or (batch > 1 < steps and between != step * steps) or not step:
        return x.contiguous(), math.prod(x.shape[2:])
    return x, step


@functools.lru_cache(16)
def _rows_of_one_length(batch: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    order = torch.arange(batch)
    return order, order * steps, torch.full((batch,), steps)


class _NativeCall:
    """One use of a loop in C: its operands, laid out as the text has them."""

    def __init__(
        self,
        native: _Native,
        hoisted: Sequence[Tensor],
        fixed: Sequence[Tensor],
        history: Sequence[Tensor],
        numbers: Sequence[float],
        lead: tuple[int, int],
    ) -> None:
        self.native, self.lead = native, lead
        self.dtype = history[0].real.dtype
        self.sizes = {d: int(n) for d, n in zip(native.sizes, numbers)}
        self.given = given = {"hoisted": hoisted, "fixed": fixed, "history": history}
        for part in native.inputs:
            shape = given[part.role][part.place].shape[0 if part.role == "fixed" else 2 :]
            for dim, n in zip(part.dims, shape):
                self.sizes[dim] = max(n, self.sizes.get(dim, 1))
        self.consts = (ctypes.c_double * max(len(native.consts), 1))(*(numbers[i] for i in native.consts))

    def lay_out(self, sequence: Tensor | None) -> None:
        """Bring the operands into the order that the text has them in."""
        lead = self.lead
        self.history = [_plain(h).contiguous() for h in self.given["history"]]
        self.operands: list[Tensor] = []
        strides: list[int] = []
        for part in self.native.inputs:
            x, shape = self.given[part.role][part.place], self.shape(part)
            if part.role == "hoisted":
                x, step = _tokens_apart(self.laid_out(x, part, [*lead, *shape]))
                strides.append(step)
            elif part.role == "fixed":
                x = self.laid_out(x, part, shape).contiguous()
            if part.role != "history":
                self.operands.append(x)
        self.hoisted = len(strides)
        more = len(self.history) + len(self.native.results)
        self.strides = (ctypes.c_long * (len(strides) + more))(*strides)
        self.rows(sequence)

    def laid_out(self, x: Tensor, part: _NativePart, shape: list[int]) -> Tensor:
        if part.kind == "real" and x.dtype == self.dtype and list(x.shape) == shape and not x.is_neg():
            return x
        return _plain(x).to(self.kind(part)).expand(shape)

    def arriving(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """The gradients of values; of one that is the same for all tokens, one token's."""
        out: list[Tensor] = []
        for i, g in enumerate(map(_plain, grads), self.hoisted):
            same = g.stride()[:2] == (0, 0)
            out.append((g[:1, :1] if same else g).contiguous())
            self.strides[i] = 0 if same else math.prod(g.shape[2:])
        return out

    def made(self) -> list[Tensor]:
        """Room for the results of the backward; what becomes of values that lie together lies together too."""
        out: list[Tensor] = []
        tiled: dict[tuple[int, int], int] = {}
        wholes: dict[tuple[int, int], Tensor] = {}
        for part, x, step in zip(self.native.inputs[: self.hoisted], self.operands, self.strides):
            key = x.untyped_storage().data_ptr(), step
            tiled[key] = tiled.get(key, 0) + math.prod(self.shape(part))
        for i, part in enumerate(self.native.results, self.hoisted + len(self.history)):
            shape, kind = self.shape(part), self.kind(part)
            if part.role == "d_fixed":
                out.append(torch.zeros(self.history[0].shape[0], *shape, dtype=kind))
                continue
            step = math.prod(shape)
            like, key = None, (0, 0)
            if part.role == "d_hoisted":
                like = self.operands[part.place]
                key = like.untyped_storage().data_ptr(), self.strides[part.place]
            if like is None or like.dtype != kind or tiled.get(key) != key[1] or key[1] == step:
                out.append(torch.empty(*self.lead, *shape, dtype=kind))
            else:
                step = key[1]
                if key not in wholes:
                    wholes[key] = torch.empty(*self.lead, step, dtype=kind)
                strides = (*wholes[key].stride()[:2], *like.stride()[2:])
                out.append(wholes[key].as_strided(like.shape, strides, like.storage_offset() % step))
            self.strides[i] = step
        return out

    def kind(self, part: _NativePart) -> torch.dtype:
        if part.kind == "complex":
            return torch.complex128 if self.dtype == torch.float64 else torch.complex64
        return torch.bool if part.kind == "bool" else self.dtype

    def shape(self, part: _NativePart) -> list[int]:
        return [self.sizes[d] for d in part.dims]

    def rows(self, sequence: Tensor | None) -> None:
        """Where each sequence begins, how long it is, and its place in the histories; the longest first."""
        count = self.history[0].shape[0]
        if sequence is None:
            self.order, self.starts, self.lengths = _rows_of_one_length(*self.lead)
            return
        lengths = torch.bincount(sequence, minlength=count)
        starts = torch.cumsum(lengths, 0) - lengths
        self.order = torch.argsort(lengths, descending=True, stable=True)
        self.starts, self.lengths = starts[self.order].contiguous(), lengths[self.order].contiguous()

    def library(self) -> Any:
        """The compiled text, from the first use on; None where there is none."""
        key = (self.dtype, *self.sizes.items())
        with self.native.lock:
            if key not in self.native.libraries:
                head = ["#define DOUBLE"] if self.dtype == torch.float64 else []
                head += [f"#define n_{d} {n}L" for d, n in self.sizes.items()]
                try:
                    found = _native_library("\n".join([*head, self.native.text]))
                except OSError as error:
                    warnings.warn(f"a loop runs in Python, for its C text does not compile: {error}", stacklevel=2)
                    found = None
                if found is not None:
                    found.packed_size.restype = ctypes.c_long
                self.native.libraries[key] = found
            return self.native.libraries[key]

    def run(self, library: Any, name: str, cut: str, keep: bool, *after: Tensor) -> None:
        """Call a function of the library, in threads: each takes some of the sequences, or of the entries of `cut`.
        `keep`: what is saved has all tokens."""
        pointers = [*self.operands, *self.history, *after]
        packed = torch.empty(library.packed_size(), dtype=self.dtype)
        pointers.insert(len(self.operands), packed)
        p = (ctypes.c_void_p * len(pointers))(*(x.data_ptr() for x in pointers))
        if self.native.packs:
            library.pack(p, ctypes.c_void_p(packed.data_ptr()), ctypes.c_long(name == "backward"))
        threads, count = torch.get_num_threads(), len(self.order)
        tile = min(32, -(-count // threads))
        tile = tile if tile < 8 else -(-tile // 8) * 8
        rows = -(-count // tile)
        size = self.sizes[cut] if cut else 1
        # The matrices of one entry stay in the cache for all tokens; else there are only as many parts as threads.
        parts = size if self.native.packs else min(size, -(-threads // rows))
        edges = [size * i // parts for i in range(parts + 1)]
        jobs = [
            (first, min(first + tile, count), lo, hi)
            for lo, hi in itertools.pairwise(edges)
            for first in range(0, count, tile)
        ]
        function = getattr(library, name)

        def work(mine: Sequence[tuple[int, int, int, int]]) -> None:
            for first, last, lo, hi in mine:
                ids, starts, lengths = (ctypes.c_void_p(x.data_ptr()) for x in (self.order, self.starts, self.lengths))
                numbers = (ctypes.c_long(n) for n in (first, last, tile, lo, hi))
                function(p, ids, starts, lengths, *numbers, self.consts, self.strides, ctypes.c_long(keep))

        # A thread takes as long to start as some ten thousand numbers to compute.
        threads = min(threads, len(jobs), 1 + sum(x.numel() for x in after) // 16384)
        others = [threading.Thread(target=work, args=(jobs[i::threads],)) for i in range(1, threads)]
        for thread in others:
            thread.start()
        work(jobs[::threads])
        for thread in others:
            thread.join()


def _native_call(
    native: _Native,
    hoisted: Sequence[Tensor],
    fixed: Sequence[Tensor],
    history: Sequence[Tensor],
    numbers: Sequence[float],
    steps: int,
    sequence: Tensor | None,
) -> tuple[_NativeCall, Any] | None:
    """What runs a loop in C on these operands; None where nothing does."""
    here = all(x.device.type == "cpu" for x in (*hoisted, *fixed, *history))
    batch = history[0].shape[0] if sequence is None else 1
    if not here or history[0].real.dtype not in (torch.float32, torch.float64) or not batch * steps:
        return None
    if os.environ.get("RNNC_LOOPS") == "python":
        return None
    call = _NativeCall(native, hoisted, fixed, history, numbers, (batch, steps))
    library = call.library()
    if library is None:
        return None
    call.lay_out(sequence)
    return call, library


def _native_run(native: _Native, other: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """Runs a loop in C, or the `other` way where that cannot be."""

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
        found = _native_call(native, hoisted, fixed, history, numbers, steps, sequence)
        if found is None:
            # The backward has no library either; whoever reads this nevertheless is to notice.
            for x in saved:
                x.fill_(math.nan)
            return other(step, hoisted, shared, fixed, history, numbers, steps, sequence, position)
        call, library = found
        values = [h.new_empty(*call.lead, *h.shape[2:]) for h in history]
        keep = any(x.ndim == 2 + len(part.dims) for x, part in zip(saved, native.saved))
        call.run(library, "forward", native.cut[0], keep, *values, *saved)
        return values

    return run


def _native_products(
    products: Sequence[tuple[int, str, int, int]],
    made: Sequence[Tensor],
    fixed: Sequence[Tensor],
    low: torch.dtype | None,
) -> Iterable[tuple[int, Tensor]]:
    """Gradients of fixed values, each by its place. Products of one value with others that lie together are one; what
    is multiplied by none is summed."""
    groups: dict[tuple[str, int, torch.dtype | None], list[tuple[int, int]]] = {}
    for index, equation, left, right in products:
        if not equation:
            yield index, made[left].flatten(0, 1).sum(0)
            continue
        dtype = low if fixed[index].dtype == low else None
        groups.setdefault((equation, left, dtype), []).append((index, right))
    for (equation, left, dtype), group in groups.items():
        x, *ys = (made[i].flatten(0, 1) for i in (left, *(right for _, right in group)))
        group = [(index, y) for (index, _), y in sorted(zip(group, ys), key=lambda z: z[1].storage_offset())]
        (a, b), c = (equation.partition("->")[0].split(","), equation.partition("->")[2])
        whole = _whole_of([y.flatten(1) for _, y in group]) if len(group) > 1 and c == b[1:] + a[1:] else None
        if dtype is not None:
            x = x.to(dtype)
        x = torch.conj_physical(x)
        if whole is None:
            for index, y in group:
                yield index, torch.einsum(equation, x, y if dtype is None else y.to(dtype))
            continue
        total = torch.mm((whole if dtype is None else whole.to(dtype)).T, x.flatten(1))
        parts = total.split([math.prod(y.shape[1:]) for _, y in group])
        for (index, y), part in zip(group, parts):
            yield index, part.reshape(*y.shape[1:], *x.shape[1:]).clone()


def _native_gathered(
    results: Sequence[_NativePart],
    products: Sequence[tuple[int, str, int, int]],
    made: Sequence[Tensor],
    hoisted: Sequence[Tensor],
    fixed: Sequence[Tensor],
    weights: Sequence[int],
    low: torch.dtype | None,
) -> list[Tensor]:
    """Gradients of what is hoisted and of what is fixed, `weights` last, from what a sweep `made`: `results` of tokens
    or sequences, and `products` of two of them, whose operands are rounded to `low` where a weight has that dtype."""
    d_hoisted: dict[int, Tensor] = {}
    d_fixed: dict[int, Tensor] = {}
    for part, d in zip(results, made):
        if part.role == "d_hoisted":
            shape = hoisted[part.place].shape
            d_hoisted[part.place] = d if d.shape == shape else d.sum_to_size(shape)
        elif part.role == "d_fixed":
            d_fixed[part.place] = d.sum(0)
    for index, d in _native_products(products, made, fixed, low):
        d_fixed[index] = d_fixed[index] + d if index in d_fixed else d
    live = [(i, x) for i, x in enumerate(hoisted) if x.dtype != torch.bool]
    free = [i for i, x in enumerate(fixed) if x.dtype != torch.bool and i not in weights]
    out = [d_hoisted[i].to(x.dtype) if i in d_hoisted else torch.zeros_like(x) for i, x in live]
    for i in (*free, *weights):
        x, d = fixed[i], d_fixed.get(i)
        if d is None or d.shape != x.shape or d.dtype != x.dtype:
            d = torch.zeros_like(x) if d is None else d.sum_to_size(x.shape)
            d = (d if x.is_complex() else d.real).to(x.dtype)
        out.append(d.contiguous())
    return out


def _native_sweep(native: _Native, other: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """Runs the backward of a loop in C, or the `other` way where that cannot be."""

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
        found = _native_call(native, hoisted, fixed, history, numbers, values[0].shape[1], sequence)
        if found is None or len(saved) != len(native.saved):
            call = (grads, values, hoisted, shared, fixed, history, numbers, sequence, position)
            return other(back, products, *call)
        call, library = found
        d_values = call.arriving(grads)
        d_history = [torch.zeros_like(h, memory_format=torch.contiguous_format) for h in history]
        made = call.made()
        known = (*(_plain(v).contiguous() for v in values), *(x.contiguous() for x in saved))
        call.run(library, "backward", native.cut[1], True, *known, *d_values, *d_history, *made)
        weights = sorted({p[0] for p in products})
        return [*_native_gathered(native.results, native.products, made, hoisted, fixed, weights, None), *d_history]

    return sweep
