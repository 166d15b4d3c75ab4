"""Eigenvalues of the interpreter's Jacobians, and whether what was found of a spectrum encloses them."""

from __future__ import annotations

import torch
from torch import Tensor

from backends.reference import Interpreter
from rnnc.bound import Analysis, Spectrum
from rnnc.ir import Cell


def eigenvalues(cell: Cell, found: Spectrum, inputs: dict[str, Tensor], sizes: dict[str, int], seed: int) -> Tensor:
    """Of the Jacobian of a group's part of the state, at the last token, its other states held."""
    interpreter = Interpreter(cell, sizes)
    params = interpreter.init_params(seed)
    generator = torch.Generator().manual_seed(seed)
    length = next(iter(inputs.values())).shape[1]
    for p in cell.params:
        if p.learned and not params[p.name].is_complex():
            noise = torch.randn(params[p.name].shape, generator=generator, dtype=torch.float64)
            params[p.name] = params[p.name] + 0.5 * noise
    _, state = interpreter.run({n: x[:, :-1] for n, x in inputs.items()}, params) if length > 1 else ((), None)
    state = dict(state or interpreter.initial_state(params, 1))
    own = [f.name for f in interpreter.fields if f.of in found.states and f.role in ("state", "past")]
    last = {n: x[:, -1:] for n, x in inputs.items()}
    # The initial -inf of a running maximum has no finite neighbourhood.
    if any(not bool(state[n].isfinite().all()) for n in own):
        return torch.zeros(0, dtype=torch.complex128)

    def step(flat: Tensor) -> Tensor:
        changed, start = dict(state), 0
        for name in own:
            size = state[name].numel()
            changed[name] = flat[start : start + size].reshape(state[name].shape)
            start += size
        _, after = interpreter.run(last, params, changed)
        return torch.cat([after[name].reshape(-1) for name in own])

    start = torch.cat([state[n].reshape(-1) for n in own]).detach().requires_grad_(True)
    after = step(start)
    if not after.requires_grad:
        return torch.zeros(len(after), dtype=torch.complex128)
    rows = [torch.autograd.grad(y.real, start, retain_graph=True, allow_unused=True)[0] for y in after]
    # For a complex state that is complex differentiable, the gradient of the real part is the conjugate derivative.
    jacobian = torch.stack([torch.zeros_like(start) if r is None else r.conj() for r in rows])
    values = torch.linalg.eigvals(jacobian)
    # A past that only an output reads is shifted along, and adds zeros.
    return values[values.abs() > 1e-9] if any(f.role == "past" for f in interpreter.fields) else values


def drawn(cell: Cell, sizes: dict[str, int], seed: int, length: int = 3) -> dict[str, Tensor]:
    """Inputs of one sequence, within their ranges."""
    generator = torch.Generator().manual_seed(seed)
    interpreter = Interpreter(cell, sizes)
    inputs: dict[str, Tensor] = {}
    for i in cell.inputs:
        shape = [1, length, *(interpreter.sizes[d] for d in i.type.dims)]
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * 1.5
        unit, positive = bool(i.region) and "1" in repr(i.region), bool(i.region)
        inputs[i.name] = x > 0 if i.type.kind == "bool" else x.sigmoid() if unit else x.abs() if positive else x
        if i.type.kind == "complex":
            inputs[i.name] = torch.complex(x, x.flip(1))
    return inputs


def encloses(cell: Cell, analysis: Analysis, sizes: dict[str, int], seed: int, length: int = 3) -> None:
    """Every spectrum encloses the eigenvalues at random inputs."""
    inputs = drawn(cell, sizes, seed, length)
    for found in analysis.spectra:
        matches(found, eigenvalues(cell, found, inputs, sizes, seed))


def matches(found: Spectrum, values: Tensor) -> None:
    if found.modulus.undefined or not bool(torch.isfinite(values.abs()).all()):
        return
    # Eigenvalues of a defective matrix are off by a root of the rounding error.
    slack = 1e-5 * (1 + values.abs())
    lo, hi = float(found.modulus.lo), float(found.modulus.hi)
    assert bool((values.abs() <= hi + slack).all()), f"{found.states}: {values} outside of {found.modulus}"
    assert bool((values.abs() >= lo - slack).all()), f"{found.states}: {values} outside of {found.modulus}"
    if found.real is not None:
        lo, hi = float(found.real.lo), float(found.real.hi)
        assert bool((values.imag.abs() <= slack).all()), f"{found.states}: {values} are not real"
        assert bool((values.real <= hi + slack).all()), f"{found.states}: {values} outside of {found.real}"
        assert bool((values.real >= lo - slack).all()), f"{found.states}: {values} outside of {found.real}"
