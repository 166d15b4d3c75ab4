"""Loops in C: every operation as the interpreter has it, forward and backward; what is compiled, kept, done without."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from backends.reference import Interpreter
from rnnc.ir import Cell
from rnnc.loading import load_module
from rnnc.pipeline import compile_source, module_text
from rnnc.source import Source
from tests.cells import EXAMPLES
from tests.elementwise import Program as RandomProgram
from tests.families import compiled as compiled_module
from tests.fused import Trial, disagreements
from tests.marks import some
from tests.modules import agree, as_tuple, build, load, with_gradients
from tests.sequential import sequential
from tests.stepped import CELLS, OVER, PACKED, check, results
from tests.test_module_autograd import Calls, fresh

ANYWHERE = (
    "-@", "abs(@)", "sign(@) * @", "square(@)", "exp(@)", "expm1(@)", "sin(@)", "cos(@)", "erf(@)", "sigmoid(@)",
    "tanh(@)",
    "logsigmoid(@)", "relu(@)", "silu(@)", "gelu(@)", "softplus(@)", "@ ** 2", "@ ** 3", "2 ** @", "clamp(@, -1, 0.5)",
    "where(@ > 0.25, sqrt(@), @)", "where(@ < 1 and not (@ < -1), @, 0)", "(@ > 0) * @ + (@ >= 1)", "max(@, 0.5)",
    "min(@, -0.5)", "3 - c * @", "@ / 3", "stop_gradient(@) * @", "where(@ == 0, 1, @)", "where(@ != 1 or @ > 3, 2, @)",
)  # fmt: skip
POSITIVE = ("sqrt(@)", "rsqrt(@)", "log(@)", "log1p(@)", "@ ** 0.5", "@ ** -1", "@ ** -0.5", "@ ** 1.7", "1 / @")
BINARY = (
    "@ + $", "@ - $", "@ * $", "@ / $", "max(@, $)", "min(@, $)", "abs(@) ** $", "@ ** 2 - $ * @",
    "logaddexp(@, $)",
)  # fmt: skip
QUICK = ("several", "each", "forgets")
OPERATIONS = {"anywhere": ANYWHERE, "positive": POSITIVE, "binary": BINARY}


def coupled(updates: Iterable[str], more: str = "") -> str:
    """A cell with a state for each update of `h` and `g`, all of one group."""
    updates = list(updates)
    names = [f"s{i}" for i in range(len(updates))]
    lines = ["cell Every", "dim D = 37", "const c = 0.3", "input x[D]", "state h[D], g[D]", more]
    lines += [f"state {', '.join(f'{n}[D]' for n in names)}"]
    # Zero times what they were: all need each other, and none matters to another.
    each = " + ".join(f"where({n}[t-1] > 1e30, x, 0)" for n in names)
    zero = f"sum[D]({each})"
    lines += [f"h[t] = h[t-1] + {zero}", "g[t] = g[t-1] + h[t-1]"]
    lines += [
        f"{n}[t] = {u.replace('@', 'h[t-1]').replace('$', 'g[t-1]')}" for n, u in zip(names, updates, strict=True)
    ]
    return "\n".join([*lines, *(f"output {n}[t]" for n in names), ""])


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    monkeypatch.setenv("RNNC_LOOPS", "compiled")
    monkeypatch.setenv("RNNC_CACHE", str(tmp_path_factory.getbasetemp()))
    yield


def native(module: Any) -> list[Any]:
    """The loops in C of a module."""
    return [v for k, v in vars(module).items() if k.endswith("_native") and hasattr(v, "libraries")]


def libraries(module: Any) -> list[Any]:
    return [x for n in native(module) for x in n.libraries.values()]


def disagreeing(
    cell: Cell, module: Any, program: RandomProgram, lead: int | tuple[int, ...], seed: int, dtype: torch.dtype
) -> list[str]:
    """What a module does not compute as the interpreter does: values and all gradients, from a state that some tokens
    left."""
    oracle = Interpreter(cell, program.sizes)
    params = oracle.init_params(torch.Generator().manual_seed(seed))
    lengths = None if isinstance(lead, int) else lead
    batch, length = (3, lead) if isinstance(lead, int) else (1, sum(lead))
    with torch.no_grad():
        state = oracle.run(program.draw(batch if lengths is None else len(lengths), 3, seed + 1), params)[1]
    trial = Trial(cell, program.sizes, program.draw(batch, length, seed), params, state, lengths, seed)
    return disagreements(trial.expected(), trial.computed(getattr(module, cell.name), dtype), dtype)


NUMBERS = [0.0, -0.0, 1e-8, -1e-8, 0.3, -0.3, 0.5, 0.7, -0.7, 1.0, -1.0, 2.5, -2.5, 9.0, -9.0, 17.3, -17.3, 60.0, -60.0]
NUMBERS += [88.5, -88.5, 95.0, -103.0, 150.0, -150.0, 1e4, -1e4, 1e-30, -1e-30, 1e30, -1e30, 1e-40, 3e38, 0.9999]
NUMBERS += [1.0001, -0.9999, 6.25]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("group", OPERATIONS)
def test_operations(group: str, dtype: torch.dtype) -> None:
    """To a few roundings; infinities and NaN where the interpreter has them in this dtype. A gradient is that of all
    states, so it is looked at where all have one."""
    updates = OPERATIONS[group]
    text = coupled(updates)
    h = torch.tensor(NUMBERS, dtype=torch.float64)
    pairs = [torch.stack([h, h.roll(k)]).to(dtype) for k in (0, 1, 5, 11)]
    results: list[tuple[list[Tensor], list[Tensor]]] = []
    for backend, kind in (("auto", dtype), ("reference", dtype), ("reference", torch.float64)):
        cell = build(text, D=len(NUMBERS), backend=backend, dtype=kind)
        a, b = torch.stack(pairs, 1).to(kind).requires_grad_()
        state = cell.initial_state(len(pairs), dtype=kind)._replace(h=a, g=b)
        outputs = as_tuple(cell(torch.zeros(len(pairs), 1, len(NUMBERS), dtype=kind), state=state)[0])
        grads = [torch.autograd.grad(y.sum(), (a, b), retain_graph=True, allow_unused=True) for y in outputs]
        zero = torch.zeros_like(a)
        results.append(([y[:, 0] for y in outputs], [zero if g is None else g for pair in grads for g in pair]))
    assert libraries(load(text)) and all(libraries(load(text)))
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    (_, _), (_, grads), (_, _) = results
    smooth = torch.stack(grads).isfinite().all(0)
    assert smooth.sum() > 40
    for k in (0, 1):
        labels = updates if k == 0 else [f"d {u}, {of}" for u in updates for of in "@$"]
        for label, got, same, want in zip(labels, results[0][k], results[1][k], results[2][k], strict=True):
            plain = want.isfinite() & same.isfinite()
            # What no number of this dtype is near, and what cancels, is as good as the interpreter's own.
            # So is a slope like `1 - y ** 2`.
            close = (got - want).abs() <= 8 * eps * want.abs() + 3 * (same - want).abs() + (4 * eps if k else 16 * tiny)
            alike = (got == same) | (got.isnan() & same.isnan()) | (got.isfinite() & close)
            bad = torch.where(plain, ~close, ~alike) & (smooth if k else True)
            where = torch.stack(pairs, 1)[:, bad]
            assert not bad.any(), (label, where, got[bad], same[bad], want[bad])


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sequential(), st.sampled_from([0, 1, 4, (2, 0, 5, 1)]), st.integers(0, 99), st.sampled_from(["float32", "float64"])
)
def test_random_cells(program: RandomProgram, lead: int | tuple[int, ...], seed: int, kind: str) -> None:
    made, module = compiled_module(program.text)
    assert made.cell is not None and native(module)
    assert not disagreeing(made.cell, module, program, lead, seed, getattr(torch, kind))
    assert lead == 0 or all(libraries(module))


@pytest.mark.parametrize("name", some(QUICK, OVER))
def test_updates_over_a_dim(name: str) -> None:
    for lead in (3, PACKED):
        got = results(OVER[name], {}, lead, "torch", torch.float64)
        check(got, results(OVER[name], {}, lead, "reference", torch.float64), 1e-10)
    assert native(load(OVER[name])) and all(libraries(load(OVER[name])))


def test_one_number() -> None:
    """GCC 12 takes products of one row by a matrix of one number for writing nothing, where it looks into them."""
    text = """\
cell Narrow
dim H = 1, P = 1, J = 1
input x[H, P], k[J, P], z[H, P]
state c[P] = 1, h[H, P]
c[t] over J = 0.5 * c[t-1] * mean[H](z + h[t-1]) + k * tanh(c[t-1] + mean[H](linear[P](h[t-1])))
h[t] = tanh(c[t] + x) + 0.2 * c[t-2]
output h[t]
"""
    got = results(text, {}, 4, "torch", torch.float64)
    check(got, results(text, {}, 4, "reference", torch.float64), 1e-10)


COMPLEX = (
    "@ + $", "@ - $ * @", "c * @ * $", "@ / $", "-@", "square(@)", "@ ** 2", "exp(@)", "log(@)", "sin(@)", "cos(@)",
    "tanh(@)", "sqrt(@)", "rsqrt(@)", "conj(@) * $", "real(@) + 1j * imag($)", "abs(@) * $", "@ ** (0.5 + 1j)",
    "where(x > 0, @, $)", "where(@ == $, 0, @)", "real(@) * $", "@ / 2", "stop_gradient(@) * $", "$ + x + 1j",
)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_complex_operations(dtype: torch.dtype) -> None:
    text = coupled(COMPLEX)
    text = re.sub(r"^state (.*)$", lambda m: f"state {m[1].replace('[D]', '[D]: complex')}", text, flags=re.M)
    text = re.sub(r"(s\d+)\[t-1\] > 1e30", r"abs(\1[t-1]) > 1e30", text)
    generator = torch.Generator().manual_seed(3)
    h, g = torch.randn(2, 3, 37, 2, generator=generator, dtype=torch.float64)
    x = torch.randn(3, 1, 37, generator=generator, dtype=torch.float64)
    results: list[list[Tensor]] = []
    for backend, kind in (("auto", dtype), ("reference", torch.float64)):
        cell = build(text, backend=backend, dtype=kind, D=37)
        a, b = (torch.view_as_complex(v).to(dtype.to_complex()).to(kind.to_complex()).requires_grad_() for v in (h, g))
        state = cell.initial_state(3, dtype=kind)._replace(h=a, g=b)
        outputs = as_tuple(cell(x.to(dtype).to(kind), state=state)[0])
        sums = [y.abs().sum() for y in outputs]
        grads = [torch.autograd.grad(s, (a, b), retain_graph=True, materialize_grads=True) for s in sums]
        results.append([*outputs, *(g for pair in grads for g in pair)])
    assert all(libraries(load(text)))
    for label, got, want in zip([*COMPLEX, *(f"d {u}" for u in COMPLEX for _ in "ab")], *results, strict=True):
        close = (got - want).abs() <= 1000 * torch.finfo(dtype).eps * (want.abs() + 1)
        assert close.all(), (label, got[~close], want[~close])


def test_marked_conjugates() -> None:
    """PyTorch conjugates, and takes parts, by a mark on a tensor whose memory stays as it is."""
    text = (
        "cell C\ndim D = 3\ninput z[D]: complex, y[D]\nstate h[D]: complex\nh[t] = tanh(h[t-1] * z + y)\noutput h[t]\n"
    )
    cell = build(text)
    z = torch.randn(2, 4, 3, dtype=torch.complex64)
    y, state = z.conj().imag, cell.initial_state(2)._replace(h=torch.randn(2, 3, dtype=torch.complex64).conj())
    assert z.conj().is_conj() and y.is_neg()
    plain = state._replace(h=state.h.resolve_conj())
    agree([cell(z.conj(), y, state=state)[0]], [cell(z.conj().resolve_conj(), y.resolve_neg(), state=plain)[0]], 0, 0)
    assert all(libraries(load(text)))


def test_a_system_of_views() -> None:
    """Forward it reads a state whose dims were merged, backward a transposed matrix, whose dims have other names."""
    for lead in (4, PACKED):
        got, want = (results(CELLS["solved"], {}, lead, b, torch.float64) for b in ("auto", "reference"))
        check(got, want, 1e-10)
    assert libraries(load(CELLS["solved"]))


SLSTM = (EXAMPLES / "slstm.rnn").read_text(encoding="utf-8")


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("lead", [(1, 3), (5, 4), (37, 2)])
def test_threads_and_tiles_change_no_bit(lead: tuple[int, int], threads: int) -> None:
    """One sequence alone has the numbers that it has among others, in whichever thread."""
    module = build(SLSTM, D=40, H=2)
    x = torch.randn(*lead, 40, requires_grad=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        y, state = module(x)
        (grad,) = torch.autograd.grad(y.square().sum(), x)
        torch.set_num_threads(1)
        for i in range(0, lead[0], 4):
            alone = x[i : i + 1].detach().requires_grad_()
            y_i, state_i = module(alone)
            # The products before the loop are PyTorch's, which differ by the batch.
            agree([y_i[0], *(s[0] for s in state_i)], [y[i], *(s[i] for s in state)], 1e-5, 1e-6)
            agree(torch.autograd.grad(y_i.square().sum(), alone), [grad[i : i + 1]], 1e-4, 1e-5)
        torch.set_num_threads(threads)
        again, _ = module(x)
        assert torch.equal(again, y) and torch.equal(torch.autograd.grad(again.square().sum(), x)[0], grad)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_inputs(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """States are float32, and so is everything in the loop."""
    module = build(SLSTM, D=16, H=2)
    x = torch.randn(2, 5, 16).to(dtype)
    y, state = module(x)
    assert y.dtype == dtype and all(s.dtype == torch.float32 for s in state) and any(libraries(load(SLSTM)))
    monkeypatch.setenv("RNNC_LOOPS", "python")
    want, states = module(x)
    agree(state, states, 1e-5, 1e-6)
    agree([y.float()], [want.float()], 1e-2, 1e-3)


@pytest.mark.parametrize("packed", [False, True])
def test_as_an_operator(packed: bool) -> None:
    """What PyTorch asks of an operator, and one graph under `torch.compile`."""
    module = build(SLSTM, D=6, H=2)
    x = torch.randn(1, 5, 6, requires_grad=True)
    ends = torch.tensor([0, 2, 5]) if packed else None

    def run(function: Any) -> list[Tensor]:
        result = function(x, cu_seqlens=ends)
        return with_gradients(module, result, x)

    with Calls(load(SLSTM)._OPERATORS) as seen:
        want = run(module)
    assert len(seen.calls) == 2
    for operator, args in seen.calls.values():
        forward = not operator.name().split(".")[0].endswith("_backward")
        torch.library.opcheck(operator, tuple(fresh(a, forward) for a in args))
    torch._dynamo.reset()
    agree(run(torch.compile(module, fullgraph=True, backend="aot_eager")), want, 1e-6, 1e-6)
    torch._dynamo.reset()


SMALL = "cell Small\ndim D = 3\ninput x[D]\nstate h[D]\nh[t] = tanh(linear(h[t-1] -> D) + x) * {}\noutput h[t]\n"


def small(factor: str) -> Callable[[], list[Tensor]]:
    """What calls a module that no other test has."""
    module = build(SMALL.format(factor))
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    return lambda: with_gradients(module, module(x), x)


def in_python(monkeypatch: pytest.MonkeyPatch, run: Callable[[], list[Tensor]]) -> list[Tensor]:
    with monkeypatch.context() as m:
        m.setenv("RNNC_LOOPS", "python")
        return run()


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    run = small("0.9")
    monkeypatch.setenv("CC", "/no/such/compiler")
    agree(run(), in_python(monkeypatch, run), 0, 0)
    assert not recwarn.list and libraries(load(SMALL.format("0.9"))) == [None]


def test_with_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Said once, with what the compiler said; the numbers are those of the loop in Python."""
    run = small("0.8")
    bad = tmp_path / "cc"
    bad.write_text("#!/bin/sh\necho no luck >&2\nexit 3\n")
    bad.chmod(0o755)
    monkeypatch.setenv("CC", str(bad))
    with pytest.warns(UserWarning, match="does not compile(.|\n)*no luck") as said:
        got = run()
        run()
    assert len(said) == 1
    agree(got, in_python(monkeypatch, run), 0, 0)


def test_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By one process for all: the file lies in a folder of this user alone, whole; another text is another file."""
    log, cache = tmp_path / "log", tmp_path / "cache"
    cc = tmp_path / "cc"
    cc.write_text(f'#!/bin/sh\necho "$*" >> {log}\nexec cc "$@"\n')
    cc.chmod(0o755)
    monkeypatch.setenv("CC", str(cc))
    monkeypatch.setenv("RNNC_CACHE", str(cache))
    run = small("0.7")
    want = run()
    made = [line for line in log.read_text().split("\n") if "loop.c" in line]
    (file,) = cache.iterdir()
    assert len(made) == 1 and file.suffix == ".so" and cache.stat().st_mode & 0o077 == 0
    for found in native(load(SMALL.format("0.7"))):
        found.libraries.clear()
    agree(run(), want, 0, 0)
    assert [line for line in log.read_text().split("\n") if "loop.c" in line] == made
    other = small("0.6")
    other()
    assert len(list(cache.iterdir())) == 2
    # What others may write to is not loaded.
    cache.chmod(0o777)
    third = small("0.5")
    third()
    assert len(list(cache.iterdir())) == 2


def test_mutants() -> None:
    """A line that stores a result, of the step or its backward, cannot be wrong without being seen."""
    source = Source("mutant.rnn", SLSTM)
    (made,) = compile_source(source)
    assert made.cell is not None
    program = RandomProgram(SLSTM, {"D": 6, "H": 2}, {"x": (("D",), "real")})
    text = module_text([made], source)
    assert not disagreeing(made.cell, load_module(text, "mutant"), program, 4, 1, torch.float64)
    stores = [line for line in text.split("\n") if re.match(r" +p_\w+\[.*\] \+?= .*;", line)]
    assert len(stores) > 12
    for line in stores[::2]:
        mutant = re.sub(r"= (.*);", r"= (real)0.9 * (\1);", line)
        module = load_module(text.replace(line, mutant, 1), "mutant")
        assert disagreeing(made.cell, module, program, 4, 1, torch.float64), line


def test_stacked_and_in_both_directions() -> None:
    """Two layers, each read forwards and backwards, put together by hand: PyTorch's own GRU of that kind."""
    size = 5
    peer = torch.nn.GRU(size, size, num_layers=2, batch_first=True, bidirectional=True, dtype=torch.float64)
    text = (EXAMPLES / "gru.rnn").read_text(encoding="utf-8").replace("input x[D]", "dim I = 4\ninput x[I]")
    cells: list[list[Any]] = []
    for layer in (0, 1):
        cells.append([build(text, D=size, I=size * (layer + 1), dtype=torch.float64) for _ in range(2)])
        for cell, suffix in zip(cells[-1], ("", "_reverse"), strict=True):
            of = {n: getattr(peer, f"{n}_l{layer}{suffix}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
            names = {"r": ("r_1_weight", "r_2_weight"), "z": ("z_1_weight", "z_2_weight")}
            names["n"] = ("n_1_weight", "n_2_weight")
            with torch.no_grad():
                for i, (gate, (w, u)) in enumerate(names.items()):
                    rows = slice(i * size, (i + 1) * size)
                    getattr(cell, w).copy_(of["weight_ih"][rows])
                    getattr(cell, u).copy_(of["weight_hh"][rows])
                    if gate == "n":
                        cell.n_1_bias.copy_(of["bias_ih"][rows])
                        cell.n_2_bias.copy_(of["bias_hh"][rows])
                    else:
                        getattr(cell, f"{gate}_bias").copy_((of["bias_ih"] + of["bias_hh"])[rows])
    x = torch.randn(3, 9, size, dtype=torch.float64, requires_grad=True)
    y = x
    for forwards, backwards in cells:
        y = torch.cat([forwards(y)[0], backwards(y.flip(1))[0].flip(1)], -1)
    want = peer(x)[0]
    assert all(libraries(load(text)))
    agree([y, *torch.autograd.grad(y.sin().sum(), x)], [want, *torch.autograd.grad(want.sin().sum(), x)], 1e-10, 1e-12)
    # Packed: flipped, the sequences come from the last to the first, and so do their ends.
    y = packed = x.detach().reshape(1, 27, size)
    ends = torch.tensor([0, 4, 4, 13, 27])
    for forwards, backwards in cells:
        back = backwards(y.flip(1), cu_seqlens=27 - ends.flip(0))[0].flip(1)
        y = torch.cat([forwards(y, cu_seqlens=ends)[0], back], -1)
    alone = [peer(packed[:, i:j])[0] for i, j in itertools.pairwise(ends.tolist()) if j > i]
    agree([y], [torch.cat(alone, 1)], 1e-10, 1e-12)


IN_THE_STEP = {
    "zoneout": """\
cell Zoneout
\"""Krueger et al. 2016, arXiv:1606.01305: units that a mask keeps as they were.\"""
dim D = 6
input x[D], kept[D] in [0, 1]
state h[D]
h[t] = kept * h[t-1] + (1 - kept) * tanh(linear(x, h[t-1] -> D, bias=true))
output h[t]
""",
    "layer norm": """\
cell LayerNormLSTM
\"""Ba, Kiros & Hinton 2016, arXiv:1607.06450: the products are normalised, and the cell.\"""
dim D = 6
input x[D]
gate i = sigmoid(layernorm[D](linear(x -> D), weight=true, bias=true) + layernorm[D](linear(h[t-1] -> D), weight=true))
gate f = sigmoid(layernorm[D](linear(x -> D), weight=true, bias=true) + layernorm[D](linear(h[t-1] -> D), weight=true))
gate o = sigmoid(layernorm[D](linear(x -> D), weight=true, bias=true) + layernorm[D](linear(h[t-1] -> D), weight=true))
g = tanh(layernorm[D](linear(x -> D), weight=true, bias=true) + layernorm[D](linear(h[t-1] -> D), weight=true))
state h[D], c[D]
c[t] = f * c[t-1] + i * g
h[t] = o * tanh(layernorm[D](c[t], weight=true, bias=true))
output h[t]
""",
    "kinds": """\
cell Kinds
\"""Maps of a state without dims, of a complex and of a boolean value.\"""
dim D = 6, N = 3
input x[D], z[N]: complex, done: bool
param b = 0.3
state s, h[N]: complex, g[D]
s[t] = b * s[t-1] + mean[D](g[t-1])
h[t] = tanh(linear(h[t-1] -> N) + linear(g[t-1] -> N) + z)
above = g[t-1] > 0.1
g[t] = tanh(linear(s[t-1] -> D) + linear(real(h[t-1]) -> D) + linear(above -> D) + where(done and above, x, 0.5))
output g[t]
output h[t]
""",
}


@pytest.mark.parametrize("name", IN_THE_STEP)
def test_within_the_step(name: str) -> None:
    made, module = compiled_module(IN_THE_STEP[name])
    assert made.cell is not None
    kinds = {"x": "real", "kept": "unit", "z": "complex", "done": "bool"}
    inputs = {i.name: (i.type.dims, kinds[i.name]) for i in made.cell.inputs}
    program = RandomProgram(IN_THE_STEP[name], {"D": 6} | ({"N": 3} if name == "kinds" else {}), inputs)
    for dtype in (torch.float32, torch.float64):
        assert not disagreeing(made.cell, module, program, 9, 1, dtype)
    assert libraries(module) and all(libraries(module))


EDGE = """cell C
dim D = 4
input x[D], y[D]
param w[D] = zeros
state h[D], g[D]
h[t] = sigmoid(x + linear(w * h[t-1] -> D))
g[t] = tanh(y + linear(w * g[t-1] -> D))
output h[t]
output g[t]
"""


def test_exponentials_at_the_edge_of_float32() -> None:
    """log(FLT_MAX), a usual clamp, and its neighbours: infinite or large, never NaN."""
    edge = math.log(torch.finfo(torch.float32).max)
    near = torch.tensor([edge, -edge, edge * (1 - 1e-7), -edge * (1 - 1e-7)], dtype=torch.float32)
    x = torch.stack([near, near * (1 + 1e-7), near / 2, near * 2])[:, None]
    ours, stepped = build(EDGE, dtype=torch.float32), build(EDGE, dtype=torch.float32, backend="reference")
    agree([*ours(x, x / 2)[0]], [*stepped(x, x / 2)[0]], rtol=1e-5, atol=1e-30)
