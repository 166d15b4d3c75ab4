"""Generated modules compute one thing, however they are called: against the interpreter, in pieces, packed, in any
dtype and any strides, on every backend."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from backends.reference import Interpreter
from rnnc.fields import state_fields
from tests.modules import (
    PROGRAMS,
    agree,
    as_tuple,
    build,
    checked,
    draw,
    gradients,
    make,
    some_state,
    tensors,
    with_gradients,
)

every = pytest.mark.parametrize("name", PROGRAMS)
T = 7
LENGTHS = (3, 0, 1, 3)
"""Of packed sequences; together T tokens."""
ENDS = (0, 3, 3, 4, 7)


def joined(results: list[Any], axis: int = 1) -> tuple[Any, Any]:
    """Calls one after the other (axis 1, the last state counts) or of sequences that were packed (axis 0)."""
    outputs = tuple(torch.cat(parts, 1) for parts in zip(*(as_tuple(o) for o, _ in results), strict=True))
    if axis == 1:
        return outputs, results[-1][1]
    return outputs, tuple(torch.cat(parts) for parts in zip(*(s for _, s in results), strict=True))


@every
@pytest.mark.parametrize("packed", [False, True])
def test_the_interpreter_agrees(name: str, packed: bool) -> None:
    module, inputs = make(name), draw(name, 1 if packed else 2, T, requires_grad=True)
    state = some_state(module, len(LENGTHS) if packed else 2)
    ends = torch.tensor(ENDS) if packed else None
    program = PROGRAMS[name]
    interpreter = Interpreter(checked(program.text), program.sizes)
    params = dict([*module.named_parameters(), *module.named_buffers()])
    outputs, final = interpreter.run(inputs, params, state._asdict(), None if ends is None else ENDS)
    want = with_gradients(module, (outputs, tuple(final.values())), *inputs, *state)
    result = module(*inputs, state=state, cu_seqlens=ends)
    assert list(result[1]._fields) == list(final)
    agree(with_gradients(module, result, *inputs, *state), want)


@every
def test_a_sequence_split_anywhere_is_the_whole(name: str) -> None:
    module, inputs = make(name), draw(name, 2, T, requires_grad=True)
    state = some_state(module, 2)
    want = with_gradients(module, module(*inputs, state=state), *inputs, *state)
    for cuts in ((0, 0, T), (0, 1, T), (0, 5, T), (0, 2, 4, T, T)):
        results: list[Any] = []
        now: Any = state
        for start, end in pairwise(cuts):
            results.append(module(*(x[:, start:end] for x in inputs), state=now))
            now = results[-1][1]
        agree(with_gradients(module, joined(results), *inputs, *state), want)


@every
def test_stepping_is_the_whole(name: str) -> None:
    module, inputs = make(name), draw(name, 2, T, requires_grad=True)
    now, results = None, []
    for t in range(T):
        outputs, now = module.step(*(x[:, t] for x in inputs), now)
        results.append((tuple(o.unsqueeze(1) for o in as_tuple(outputs)), now))
    want = with_gradients(module, module(*inputs), *inputs)
    agree(with_gradients(module, joined(results), *inputs), want)


@every
def test_packed_sequences_are_separate_ones(name: str) -> None:
    module, inputs = make(name), draw(name, 1, T, requires_grad=True)
    state = some_state(module, len(LENGTHS))
    for given in (state, None):
        results: list[Any] = []
        for i, (start, end) in enumerate(pairwise(ENDS)):
            own = None if given is None else type(state)(*(s[i : i + 1] for s in given))
            results.append(module(*(x[:, start:end] for x in inputs), state=own))
        leaves = [*inputs, *(given or ())]
        want = with_gradients(module, joined(results, 0), *leaves)
        for ends in (torch.tensor(ENDS), torch.tensor(ENDS, dtype=torch.int32)):
            agree(with_gradients(module, module(*inputs, state=given, cu_seqlens=ends), *leaves), want)


@every
def test_no_sequence_reaches_into_the_one_beside_it(name: str) -> None:
    module, inputs = make(name), draw(name, 1, T, requires_grad=True)
    state = some_state(module, len(LENGTHS))
    for chosen, (start, end) in enumerate(pairwise(ENDS)):
        outputs, final = module(*inputs, state=state, cu_seqlens=torch.tensor(ENDS))
        values = [o[:, start:end] for o in as_tuple(outputs)] + [s[chosen] for s in final]
        total = sum(torch.where(v.abs().isfinite(), v, 0.0).abs().sum() for v in values if v.dtype != torch.bool)
        assert isinstance(total, Tensor)
        leaves = [x for x in inputs if x.requires_grad]
        grads = torch.autograd.grad(total, [*leaves, *state], allow_unused=True)
        for grad in grads[: len(leaves)]:
            if grad is not None:
                assert not grad[:, :start].any() and not grad[:, end:].any()
        for grad in grads[len(leaves) :]:
            if grad is not None:
                assert not grad[:chosen].any() and not grad[chosen + 1 :].any()


@every
def test_nothing_is_a_sequence_too(name: str) -> None:
    module = make(name)
    for batch, length in ((0, 3), (2, 0), (0, 0)):
        inputs, state = draw(name, batch, length, requires_grad=True), some_state(module, batch)
        outputs, final = module(*inputs, state=state)
        assert all(o.shape[:2] == (batch, length) for o in as_tuple(outputs))
        if length == 0:
            agree(final, state)
        grads = with_gradients(module, (outputs, final), *inputs, *state)
        assert all(g.isfinite().all() for g in grads[-len(state) :])
    outputs, final = module.step(*draw(name, 0))
    assert all(o.shape[0] == 0 for o in [*as_tuple(outputs), *final])
    inputs = draw(name, 1, 0)
    for count in (3, 0):
        state = some_state(module, count)
        outputs, final = module(*inputs, state=state, cu_seqlens=torch.zeros(count + 1, dtype=torch.long))
        assert all(o.shape[:2] == (1, 0) for o in as_tuple(outputs))
        agree(final, state)


@every
def test_one_token_is_a_step(name: str) -> None:
    module, inputs = make(name), draw(name, 2, 1)
    outputs, final = module(*inputs)
    stepped, state = module.step(*(x[:, 0] for x in inputs))
    agree([*(o[:, 0] for o in as_tuple(outputs)), *final], [*as_tuple(stepped), *state])


@every
def test_any_strides(name: str) -> None:
    module, inputs = make(name), draw(name, 2, 6)
    state = some_state(module, 2)

    def layouts(x: Tensor, lead: int) -> list[Tensor]:
        turned = x.transpose(0, 1).contiguous().transpose(0, 1) if x.ndim > 1 else x
        last = x.unsqueeze(-1).expand(*x.shape, 2).contiguous()[..., 1] if x.ndim > lead else x
        apart = torch.stack([x, x], 1)[:, 1]
        return [turned, last, apart]

    def run(values: list[Tensor], start: list[Tensor]) -> list[Tensor]:
        # Detached views keep their strides.
        leaves = [v.detach().requires_grad_(v.dtype != torch.bool) for v in values]
        begin = [s.detach().requires_grad_() for s in start]
        return with_gradients(module, module(*leaves, state=type(state)(*begin)), *leaves, *begin)

    want = run(inputs, list(state))
    for variant in range(3):
        agree(run([layouts(x, 2)[variant] for x in inputs], [layouts(s, 1)[variant] for s in state]), want)
    stretched = [x[:1, :1].expand_as(x) for x in inputs]
    start = [s[:1].expand_as(s) for s in state]
    agree(run(stretched, start), run([x.contiguous() for x in stretched], [s.contiguous() for s in start]))
    ends = torch.tensor([0, 9, 2, 9, 6])[::2]
    agree(
        tensors(module(*(x[:1] for x in inputs), cu_seqlens=ends)),
        tensors(module(*(x[:1] for x in inputs), cu_seqlens=ends.clone())),
    )


@every
def test_outputs_and_states_can_be_written_to(name: str) -> None:
    module, inputs = make(name), draw(name, 2, 3)
    with torch.no_grad():
        given = module.initial_state(2, dtype=torch.float64)
        before = [x.clone() for x in (*inputs, *given, *module.parameters(), *module.buffers())]
        outputs, final = module(*inputs, state=given)
        kept = [o.clone() for o in as_tuple(outputs)]
        for value in final:
            value.add_(1)
        agree(as_tuple(outputs), kept, 0, 0)
        for value in as_tuple(outputs):
            value.zero_()
        stepped, final = module.step(*(x[:, 0] for x in inputs), given)
        kept = [s.clone() for s in final]
        for value in as_tuple(stepped):
            value.zero_()
        agree(final, kept, 0, 0)
    agree([*inputs, *given, *module.parameters(), *module.buffers()], before, 0, 0)


def test_a_state_is_nobody_elses_memory() -> None:
    """Nor that of an input, an earlier state or a parameter, where an update or an initial value merely names one."""
    text = "cell Echo\ndim D = 2\ninput x[D]\nstate h[D] = param, g[D]\nh[t] = x\ng[t] = h[t-1]\noutput g[t]\n"
    cell = build(text)
    x, first = torch.ones(1, 2), cell.initial_state(1)
    _, state = cell.step(x, first)
    with torch.no_grad():
        for tensor in (x, first.h, cell.initial_state(1).h):
            tensor.fill_(7.0)
    assert (state.h == 1).all() and (state.g == 0).all() and (cell.h_init == 0).all()


def test_a_state_does_not_hold_the_sequence() -> None:
    for name in ("scan", "gru", "lags", "mlstm"):
        module = make(name)
        with torch.no_grad():
            state = module(*draw(name, 2, 200))[1]
        assert all(s.untyped_storage().nbytes() <= 8 * 4 * s.numel() for s in state)


@every
@pytest.mark.parametrize("packed", [False, True])
def test_the_reference_backend_agrees(name: str, packed: bool) -> None:
    module, reference = make(name), make(name, backend="reference")
    inputs = draw(name, 1 if packed else 2, T, requires_grad=True)
    state = some_state(module, len(LENGTHS) if packed else 2)
    ends = torch.tensor(ENDS) if packed else None
    want = with_gradients(reference, reference(*inputs, state=state, cu_seqlens=ends), *inputs, *state)
    for backend in ("auto", "torch"):
        module = make(name, backend=backend)
        agree(with_gradients(module, module(*inputs, state=state, cu_seqlens=ends), *inputs, *state), want)


# --- dtypes ---


@pytest.mark.parametrize("name", [n for n in PROGRAMS if n != "mixed"])  # which has an input of float32 parts
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_comes_in_and_goes_out(name: str, dtype: torch.dtype) -> None:
    module, inputs = make(name, dtype=torch.float32), draw(name, 2, 5, dtype=torch.float32)
    inputs = [x if x.dtype == torch.bool else x.to(dtype) for x in inputs]
    wide = [x if x.dtype == torch.bool else x.float() for x in inputs]
    outputs, final = module(*inputs)
    want, final_want = module(*wide)
    agree(as_tuple(outputs), [w.to(dtype) for w in as_tuple(want)], 0, 0)
    agree(final, final_want, 0, 0)
    assert all(s.dtype in (torch.float32, torch.complex64) for s in final)


@every
def test_float64_of_any_input_computes_in_float64(name: str) -> None:
    single, double = make(name, dtype=torch.float32), make(name, dtype=torch.float32).double()
    inputs = draw(name, 2, 5)
    agree(tensors(single(*inputs)), tensors(double(*inputs)), 0, 0)
    first, *others = inputs
    mixed = [
        first,
        *(x.to(torch.complex64) if x.is_complex() else x if x.dtype == torch.bool else x.float() for x in others),
    ]
    for value in tensors(single(*mixed)):
        assert value.dtype in (torch.float64, torch.complex128, torch.bool)
    for value in tensors(
        double(
            *(x.float() if x.dtype == torch.float64 else x.to(torch.complex64) if x.is_complex() else x for x in inputs)
        )
    ):
        assert value.dtype in (torch.float32, torch.complex64, torch.bool)


def test_kinds_keep_their_dtypes() -> None:
    module = make("mixed", dtype=torch.float32)
    x, z, keep, g = draw("mixed", 2, 3, dtype=torch.float32)
    outputs, state = module(x.bfloat16(), z, keep, g.bfloat16())
    assert [o.dtype for o in outputs] == [torch.float32, torch.bool, torch.complex64, torch.float32, torch.float32]
    assert [s.dtype for s in state] == [torch.float32, torch.complex64]
    outputs, state = module(x, z.to(torch.complex128), keep, g)
    assert [o.dtype for o in outputs] == [torch.float64, torch.bool, torch.complex128, torch.float64, torch.float64]
    assert [s.dtype for s in state] == [torch.float64, torch.complex128]
    # Half with bfloat16 is float32, as PyTorch promotes them; what comes with integers is float32.
    module = make("scan")
    a, b = draw("scan", 2, 3, dtype=torch.float32)
    assert module(a.half(), b.bfloat16())[0].dtype == torch.float32
    assert module((a > 0.5).long(), b.long())[0].dtype == torch.float32
    assert module((a > 0.5).long(), b.half())[0].dtype == torch.float16
    # A state of another precision is taken.
    state = module.initial_state(2, dtype=torch.float64)
    assert module(a, b, state=state)[1].h.dtype == torch.float32
    outputs, state = make("s5reset", dtype=torch.float32)(*draw("s5reset", 2, 3, dtype=torch.float32))
    assert outputs.dtype == torch.float32 and state.h.dtype == torch.complex64


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_parameters_compute_in_float32(name: str, dtype: torch.dtype) -> None:
    inputs = draw(name, 2, 5, dtype=torch.float32)
    low = make(name, dtype=torch.float32).to(dtype)
    wide = make(name, dtype=torch.float32).to(dtype).float()
    agree(tensors(low(*inputs)), tensors(wide(*inputs)), 1e-6, 1e-7)
    made = make(name, dtype=dtype)
    for (key, p), q in zip(made.named_parameters(), low.parameters(), strict=True):
        assert p.dtype == q.dtype and p.shape == q.shape, key
    results = made(*inputs)
    assert all(v.dtype != dtype for v in tensors(results))
    values = [v for v in as_tuple(results[0]) if v.dtype.is_floating_point and v.requires_grad]
    sum(v.sum() for v in values).backward() if values else None  # type: ignore[union-attr]
    for key, p in made.named_parameters():
        assert p.grad is None or p.grad.dtype == p.dtype, key


# --- autocast ---


@every
def test_autocast_leaves_the_recurrence_in_float32(name: str) -> None:
    module, inputs = make(name, dtype=torch.float32), draw(name, 2, T, dtype=torch.float32, requires_grad=True)
    want = with_gradients(module, module(*inputs), *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        result = module(*inputs)
    got = with_gradients(module, result, *inputs)
    assert [g.dtype for g in got] == [w.dtype for w in want]
    for a, b in zip(got, want, strict=True):
        if b.dtype != torch.bool:
            finite = torch.where(b.isfinite(), b, torch.zeros_like(b))
            torch.testing.assert_close(a, b, rtol=0, atol=0.05 * float(1 + finite.abs().max()))


@pytest.mark.parametrize("name", ["scan", "kalman", "leakypeak", "deltaproduct", "titanslinear", "mlstm"])
def test_autocast_rounds_no_state_of_a_cell_without_maps(name: str) -> None:
    module, inputs = make(name), draw(name, 2, T, dtype=torch.float32, requires_grad=True)
    want = module(*inputs)[1]
    with torch.autocast("cpu", torch.bfloat16):
        got = module(*inputs)[1]
        stepped = None
        for t in range(T):
            stepped = module.step(*(x[:, t] for x in inputs), stepped)[1]
    agree(got, want, 1e-6, 1e-6)
    assert stepped is not None
    agree(stepped, want, 1e-5, 1e-5)


# --- what nobody wrote to is not read ---


@pytest.fixture
def poisoned():  # type: ignore[no-untyped-def]
    """New memory is filled with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@every
def test_no_uninitialised_memory_is_read(name: str, poisoned: None) -> None:
    module, inputs = make(name), draw(name, 2, 5, requires_grad=True)
    state = some_state(module, 2)
    agree(with_gradients(module, module(*inputs, state=state), *inputs, *state), [*self_made(name, inputs, state)])
    one = [x[:1].detach().requires_grad_(x.requires_grad) for x in inputs]
    packed = with_gradients(module, module(*one, cu_seqlens=torch.tensor([0, 0, 2, 5])), *one)
    assert not any(v.isnan().any() for v in packed)
    nothing = [x[:, :0].detach().requires_grad_(x.requires_grad) for x in inputs]
    assert not any(v.isnan().any() for v in with_gradients(module, module(*nothing), *nothing))


def self_made(name: str, inputs: list[Tensor], state: Any) -> list[Tensor]:
    """The same call without poison."""
    torch.use_deterministic_algorithms(False)
    module = make(name)
    values = with_gradients(module, module(*inputs, state=state), *inputs, *state)
    torch.use_deterministic_algorithms(True)
    return values


def test_long_segments_and_odd_lengths() -> None:
    """Scans in segments: every remainder of the last segment, in both directions."""
    module, reference = make("scan"), make("scan", backend="reference")
    for length in (15, 16, 17, 24, 25, 26, 63, 65):
        inputs = draw("scan", 2, length, requires_grad=True)
        state = some_state(module, 2)
        want = with_gradients(reference, reference(*inputs, state=state), *inputs, *state)
        agree(with_gradients(module, module(*inputs, state=state), *inputs, *state), want)


def test_a_decay_of_nothing_and_of_one_at_length() -> None:
    module = make("scan")
    a, b = torch.zeros(1, 300, 3, dtype=torch.float64), torch.ones(1, 300, 3, dtype=torch.float64)
    agree([module(a, b)[0]], [b])
    agree([module(b, b)[0]], [b.cumsum(1)])


def test_nan_stays_with_its_sequence() -> None:
    for name in ("scan", "mingru", "gru", "lags", "mamba", "kalman", "leakypeak"):
        module, inputs = make(name), draw(name, 3, 20, requires_grad=True)
        clean = [*tensors(module(*inputs))]
        clean += gradients(clean, inputs)
        with torch.no_grad():
            for x in inputs:
                x[1, 4] = float("nan")
        values = tensors(module(*inputs))
        for got, want in zip([*values, *gradients(values, inputs)], clean, strict=True):
            agree([got[::2]], [want[::2]])
        outputs = values[: -len(module.initial_state(1))]
        agree([o[1, :4] for o in outputs], [w[1, :4] for w in clean[: len(outputs)]])
        packed = [x.detach().flatten(0, 1).unsqueeze(0).requires_grad_() for x in inputs]
        values = tensors(module(*packed, cu_seqlens=torch.tensor([0, 20, 40, 60])))
        # The weights of the gradients' sum are the same numbers, packed or not.
        for got, want in zip([*values, *gradients(values, packed)], clean, strict=True):
            got = got if got.shape[0] == 3 else got.unflatten(1, (3, 20))[0]
            agree([got[0], got[2]], [want[0], want[2]])


@pytest.mark.parametrize("name", ["scan", "lags", "mingru", "s5reset", "mamba", "gru", "kalman", "leakypeak"])
def test_long_packed_sequences_are_separate_ones(name: str) -> None:
    module, inputs = make(name), draw(name, 1, 40, requires_grad=True)
    ends = (0, 1, 9, 9, 30, 40)
    state = some_state(module, 5)
    results = [
        module(*(x[:, start:end] for x in inputs), state=type(state)(*(s[i : i + 1] for s in state)))
        for i, (start, end) in enumerate(pairwise(ends))
    ]
    want = with_gradients(module, joined(results, 0), *inputs, *state)
    got = module(*inputs, state=state, cu_seqlens=torch.tensor(ends))
    agree(with_gradients(module, got, *inputs, *state), want)


def test_the_state_has_the_fields_that_are_promised() -> None:
    for program in PROGRAMS.values():
        module = build(program.text, **program.sizes)
        fields = state_fields(checked(program.text))
        state = module.initial_state(2)
        assert type(state).__name__ == f"{type(module).__name__}State"
        assert state._fields == tuple(f.name for f in fields)
        for value, f in zip(state, fields, strict=True):
            lead = (2,) if f.length is None else (2, f.length)
            assert value.shape == (*lead, *(getattr(module, d) for d in f.dims))
    lags = make("lags").initial_state(1)
    assert lags._fields == ("h", "e", "r", "h_past", "e_past", "r_past", "x_past", "y_past", "u_past")
    assert [s.shape[1] for s in lags[3:]] == [1, 1, 2, 2, 3, 1]


# --- devices ---


def without_verification(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    functions = type(module)._equations.__globals__
    if "_true" in functions:
        monkeypatch.setitem(functions, "_true", lambda _: True)


@every
@pytest.mark.parametrize("packed", [False, True])
def test_no_call_waits_for_the_device(name: str, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing reads a number out of a tensor: not the module (meta tensors have none), nor its operators. But one:
    whether what was composed holds; and packed sequences of low-rank transitions are put in order on the host."""
    module = make(name, device="meta")
    inputs = [x.to("meta") for x in draw(name, 1 if packed else 2, 20)]
    ends = torch.zeros(4, dtype=torch.long, device="meta") if packed else None
    assert all(v.is_meta for v in tensors(module(*inputs, cu_seqlens=ends)))

    module, inputs = make(name), draw(name, 1 if packed else 2, 20, requires_grad=True)
    ends = torch.tensor([0, 3, 3, 20]) if packed else None
    without_verification(module, monkeypatch)
    # The CPU stands for a device here, of which packings are not looked at.
    monkeypatch.setitem(type(module)._equations.__globals__, "_check_packing", lambda *_: None)
    if packed and "_placed" in type(module)._equations.__globals__:
        return
    with monkeypatch.context() as patched:
        for method in ("item", "tolist", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
            patched.setattr(Tensor, method, lambda *_: pytest.fail("a number was read"))
        with torch.device("meta"):
            # New tensors go where the inputs are, not to the default device.
            values = tensors(module(*inputs, cu_seqlens=ends))
            module.step(*(x[:, 0] for x in inputs))
        total = sum(v.abs().sum() for v in values if v.requires_grad)
        assert isinstance(total, Tensor)
        total.backward()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every
def test_a_gpu_computes_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, inputs = make(name), draw(name, 2, 20, requires_grad=True)
    want = with_gradients(module, module(*inputs), *inputs)
    module = make(name).cuda()
    inputs = [x.detach().cuda().requires_grad_(x.requires_grad) for x in inputs]
    result = module(*inputs)
    assert all(v.is_cuda for v in tensors(result))
    outputs, state = result
    moved = tuple(o.cpu() for o in as_tuple(outputs)), tuple(s.cpu() for s in state)
    agree([g.cpu() for g in with_gradients(module, moved, *inputs)], want, 1e-7, 1e-8)
    without_verification(module, monkeypatch)
    with torch.no_grad():
        torch.cuda.set_sync_debug_mode("error")
        try:
            module(*inputs)
            module.step(*(x[:, 0] for x in inputs))
        finally:
            torch.cuda.set_sync_debug_mode("default")
