"""Quotients and products by their logarithms: what is rewritten and what is not; values and gradients where float32
cannot hold the parts; minLSTM's gates; what the rest of the compiler makes of it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backends.reference import Interpreter
from backends.reference.values import ELEMENTWISE
from rnnc.closure import Affine, close
from rnnc.fuse import fuse
from rnnc.group import group
from rnnc.ir import Apply, Cell, Expr, Lit, Ref, walk
from rnnc.logspace import LogSpace
from rnnc.lower import lower
from rnnc.pipeline import compile_source
from rnnc.plan import Scan
from rnnc.show import expr_text
from rnnc.source import Source
from rnnc.verify import verify_types
from tests.cells import EXAMPLES, read
from tests.modules import as_tuple, build, generate

HEAD = """cell C
dim D = 3, K = 2
input u[D], v[D], w[D], x[D], s[K], y[K], n[D] in [0, inf)
f = sigmoid(u)
i = sigmoid(v)
g = sigmoid(w)
state h[D]
h[t] = 0.5 * h[t-1] + x
"""


def lowered(text: str) -> str:
    """What an expression becomes, as text."""
    made = lower(read(f"{HEAD}output o = {text}\n"))
    (result,) = [e for _, e in made.outputs]
    verify_types([result], made.graph)
    gates = {e: name for e, name in made.names.items() if name in "fig"}
    return expr_text(result, gates)


A = "sigmoid(logsigmoid(u) - logsigmoid(v))"
B = "sigmoid(-(logsigmoid(u) - logsigmoid(v)))"


# --- what is rewritten -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "f / (f + i)",
        "f / (i + f)",
        "f * (1 / (f + i))",
        "1 / (f + i) * f",
        "f * (f + i) ** -1",
        "2 / 2 * f / (i + f)",
    ],
)
def test_a_share_however_it_is_written(text: str) -> None:
    assert lowered(text) == A


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f / (f + i) + i / (f + i)", f"{A} + {B}"),
        ("(f * h[t-1] + i * x) / (f + i)", f"{A} * h[t-1] + {B} * x"),
        ("(f * h[t-1] - i * x) * (1 / (f + i))", f"{A} * h[t-1] - {B} * x"),
        ("1 - i / (f + i)", "sigmoid(-(logsigmoid(v) - logsigmoid(u)))"),
        ("f / (f + i) * (1 - f / (f + i))", f"{A} * {B}"),
        ("-f / (f + i) * x", f"-{A} * x"),
        ("2 * f / (f * 2 + i)", "sigmoid(logsigmoid(u) + 0.6931471805599453 - logsigmoid(v))"),
        ("f / (2 * f + i)", "0.5 * sigmoid(0.6931471805599453 + logsigmoid(u) - logsigmoid(v))"),
        ("1 / (1 + i / f)", "sigmoid(-(logsigmoid(v) - logsigmoid(u)))"),
        ("f * g / (f + i)", f"{A} * g"),
        ("f / (f + i + g)", "sigmoid(logsigmoid(u) - logaddexp(logsigmoid(v), logsigmoid(w)))"),
        ("(f + i) / (g + f + i)", "sigmoid(logaddexp(logsigmoid(u), logsigmoid(v)) - logsigmoid(w))"),
        ("x / (f / (f + i))", f"x / {A}"),
        ("(1 - f) / (1 - f + i)", "sigmoid(logsigmoid(-u) - logsigmoid(v))"),
        ("exp(u) / (exp(u) + exp(v))", "sigmoid(u - v)"),
        ("1 / (1 + exp(-u))", "f"),
        ("1 - 1 / (1 + exp(-u))", "sigmoid(-u)"),
        ("(exp(-u) * x + h[t-1]) / (1 + exp(-u))", "sigmoid(-u) * x + f * h[t-1]"),
        ("exp(u) / (exp(u) + 1e-6)", "sigmoid(u + 13.815510557964274)"),
        ("exp(u) * exp(v)", "exp(u + v)"),
        ("exp(u) * x * exp(u)", "exp(u + u) * x"),
        ("exp(u) / exp(v)", "exp(u - v)"),
        ("f / i", "exp(logsigmoid(u) - logsigmoid(v))"),
        ("exp(x) / max(exp(u), exp(v))", "exp(x - max(u, v))"),
        ("sum[K](exp(s) / sum[K](exp(s)) * y)", "sum[K](exp(s - logsumexp[K](s)) * y)"),
        ("log(exp(u) + exp(v))", "logaddexp(u, v)"),
        ("log(1 + exp(u))", "softplus(u)"),
        ("log1p(exp(u))", "softplus(u)"),
        ("log(f)", "logsigmoid(u)"),
        (
            "where(x > 0, 0, f) / (where(x > 0, 0, f) + i)",
            "sigmoid(where(x > 0, -inf, logsigmoid(u)) - logsigmoid(v))",
        ),
    ],
)
def test_what_becomes_of(text: str, expected: str) -> None:
    assert lowered(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("exp(u + h[t-1] - h[t])", "exp(u + (h[t-1] - h[t]))"),
        ("exp(h[t-1] - (h[t] - u) - v)", "exp(u - v + (h[t-1] - h[t]))"),
        ("exp(u + h[t-1]) * exp(-h[t])", "exp(u + (h[t-1] - h[t]))"),
        ("exp(u - h[t] - h[t-2])", "exp(u - h[t] - h[t-2])"),
        ("exp(h[t-1] - h[t])", "exp(h[t-1] - h[t])"),
        ("u + h[t-1] - h[t]", "u + h[t-1] - h[t]"),
    ],
)
def test_differences_of_one_state_come_first(text: str, expected: str) -> None:
    assert lowered(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "f / (1 + f)",
        "f / (f + 1e-06)",
        "f / max(f + i, 1e-06)",
        "x / (f + i)",
        "f / (f + n)",
        "x * f / (x * f + i)",
        "(f * x + w) / (f + i)",
        "1 - f",
        "f * i",
        "exp(u) * f",
        "exp(-n) * exp(-n)",
        "exp(n) * exp(n)",
        "softplus(u) * exp(v)",
        "sum[K](exp(s) * exp(u))",
        "exp(u) * exp(s) * y",
        "log(1 + f)",
        "log(x)",
        "sum[D](exp(u) * x) / sum[D](exp(u))",
    ],
)
def test_what_stays(text: str) -> None:
    """What cannot leave the range, what has no logarithm, outer products: as written."""
    assert lowered(text) == text


def test_a_definition_that_both_coefficients_share() -> None:
    text = HEAD + "total = f + i\na = f / total\nb = i / total\noutput o = a * x + b * w\n"
    made = lower(read(text))
    (result,) = [e for _, e in made.outputs]
    assert expr_text(result, {e: n for e, n in made.names.items() if n != "total"}) == "a * x + b * w"
    differences = [n for n in walk(result) if isinstance(n, Apply) and n.op == "sub"]
    assert len(differences) == 1
    names = [made.names[e] for e in walk(result) if e in made.names]
    assert names == ["log_f", "log_i", "a", "b"]


def test_a_name_of_the_program_is_not_taken() -> None:
    made = lower(read(HEAD + "log_f = tanh(x)\noutput o = f / (f + i) * log_f\n"))
    used = {made.names[e] for e in walk(*(e for _, e in made.outputs)) if e in made.names}
    assert used == {"log_i", "log_f"}
    assert [n for e, n in made.names.items() if n == "log_f" and isinstance(e, Apply) and e.op == "tanh"]


def test_within_a_gradient() -> None:
    """`grad` differentiates the share: with gates that vanish, it is finite where it would be 0 / 0."""
    made = lower(read(HEAD + "loss = f * square(h[t-1]) / (f + i)\noutput o = grad(loss, h[t-1])\n"))
    assert "/" not in expr_text(made.outputs[0][1])


def test_deep_programs() -> None:
    """As deep as definitions make it."""
    lines = ["d0 = f", *(f"d{n + 1} = d{n} * f / (d{n} * f + i)" for n in range(400))]
    made = lower(read("\n".join([HEAD, *lines, "output o = d400\n"])))
    assert "div" not in {n.op for n in walk(made.outputs[0][1]) if isinstance(n, Apply)}


def test_wide_programs() -> None:
    """A sum of many terms, a product of many: in no time."""
    lines = ["e0 = f * x", "p0 = f", *(f"e{n + 1} = e{n} + e{n}\np{n + 1} = p{n} * p{n}" for n in range(60))]
    made = lower(read("\n".join([HEAD, *lines, "output o = e60 / (f + i) * (p60 / (p60 + i))\n"])))
    quotients_ = [n for n in walk(made.outputs[0][1]) if isinstance(n, Apply) and n.op == "div"]
    assert quotients_ == []


# --- random ones, beside the equations in float64 --------------------------------------------------------------------

SIZE = 64
GATES = ("u", "v", "w")
REALS = st.sampled_from(["u", "v", "w", "-u", "(u - v)", "0.5 * w"])


@st.composite
def positive(draw: Any, depth: int = 2) -> str:
    """A positive number that has a logarithm; of a pre-activation of 100, `exp(-1200)` at the very least."""
    if depth == 0 or draw(st.integers(0, 2)) == 0:
        e = draw(REALS)
        return draw(st.sampled_from([f"exp({e})", f"sigmoid({e})", f"softplus({e})", f"(1 - sigmoid({e}))"]))
    p, q = draw(positive(depth - 1)), draw(positive(depth - 1))
    forms = [f"{p} * {q}", f"sqrt({p})", f"({p} + {q})", f"max({p}, {q})", f"min({p}, {q})", f"2 * {p}"]
    return draw(st.sampled_from([*forms, f"where(x > 0, {p}, {q})", f"where(x > 0, 0, {p})", f"{p} / (1 + {q})"]))


@dataclass(frozen=True)
class Quotient:
    """A share of some terms, written in one of several ways, and the terms apart."""

    text: str
    terms: tuple[str, ...]


@st.composite
def quotients(draw: Any, depth: int = 1) -> Quotient:
    terms = draw(st.lists(positive(depth), min_size=2, max_size=4))
    first, second = terms[0], terms[1]
    total = " + ".join(draw(st.permutations([f"({t})" for t in terms])))
    ways = [
        f"({first}) / ({total})",
        f"x * ({first}) / ({total})",
        f"({first}) * (1 / ({total}))",
        f"x * (1 / ({total})) * ({first}) * y",
        f"(({first}) * x - y * ({second})) / ({total})",
        f"(({first}) + ({second})) * x / ({total})",
        f"x - ({first}) / ({total}) * x",
        f"(1 - ({first}) / ({total})) * x",
        f"({first}) * ({second}) / (({total}) * ({total}))",
    ]
    return Quotient(draw(st.sampled_from(ways)), tuple(terms))


def cell_of(*texts: str) -> Cell:
    outputs = "".join(f"output o{k} = {t}\n" for k, t in enumerate(texts))
    return read(f"cell C\ndim D = {SIZE}\ninput u[D], v[D], w[D], x[D], y[D]\n{outputs}")


def inputs(scale: float, seed: int = 0) -> dict[str, Tensor]:
    """Pre-activations of up to `scale`, and other numbers of up to 1, that float32 can hold."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {n: 2 * torch.rand(SIZE, generator=generator) - 1 for n in (*GATES, "x", "y")}
    return {n: (scale * x if n in GATES else x).double() for n, x in drawn.items()}


def computed(root: Expr, given: dict[str, Tensor], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """The value of a lowered expression, and its gradients."""
    leaves = {n: x.to(dtype).requires_grad_() for n, x in given.items()}
    done: dict[Expr, Tensor] = {}
    for node in walk(root):
        match node:
            case Ref(name=name):
                done[node] = leaves[name]
            case Lit(value=value):
                done[node] = torch.tensor(value, dtype=dtype)
            case Apply(op="only", args=(x, c)):
                done[node] = torch.where(done[c], done[x], done[x].detach())
            case Apply(op=op, args=args):
                done[node] = ELEMENTWISE[op](*(done[a] for a in args))
            case _:
                raise TypeError(type(node).__name__)
    value = done[root].expand(SIZE)
    return value.detach(), list(torch.autograd.grad(value.sum(), list(leaves.values()), materialize_grads=True))


def written(cell: Cell, given: dict[str, Tensor]) -> list[tuple[Tensor, list[Tensor]]]:
    """The equations as they stand, in float64."""
    leaves = {n: x[None, None].clone().requires_grad_() for n, x in given.items()}
    outputs, _ = Interpreter(cell).run(leaves)
    found: list[tuple[Tensor, list[Tensor]]] = []
    for o in outputs:
        grads = torch.autograd.grad(o.sum(), list(leaves.values()), materialize_grads=True, retain_graph=True)
        found.append((o[0, 0].detach(), [x[0, 0] for x in grads]))
    return found


def worst(got: Sequence[Tensor], want: Sequence[Tensor], size: Tensor) -> float:
    """The largest error relative to `size`, which is taken for 1 where it is less; infinite for a NaN."""
    assert len(got) == len(want)
    errors = [(g.double() - w).abs() / size.clamp(min=1) for g, w in zip(got, want, strict=True)]
    return max(e[w.isfinite()].nan_to_num(nan=math.inf).max().item() for e, w in zip(errors, want, strict=True))


def check_ordinary(text: str) -> None:
    """With pre-activations of about 1, in float64: the same to 11 digits."""
    cell, given_ = cell_of(text), inputs(3.0)
    ((value, grads),) = written(cell, given_)
    got, got_grads = computed(lower(cell).outputs[0][1], given_, torch.float64)
    assert worst([got, *got_grads], [value, *grads], torch.ones(SIZE)) < 1e-11


def check_extreme(q: Quotient, scale: float) -> None:
    """In float32, wherever the float64 equations give a number, to what a rounding of a logarithm makes of a share:
    each is a sum of a few numbers no larger than the largest logarithm, whose own roundings are as large."""
    given_ = inputs(scale)
    # As written, `1 - sigmoid(40)` has no digits, even in float64.
    texts = [re.sub(r"\(1 - sigmoid\((.*?)\)\)", r"sigmoid(-1 * (\1))", t) for t in (q.text, *q.terms)]
    (value, grads), *logs = written(cell_of(texts[0], *(f"log({t})" for t in texts[1:])), given_)
    got, got_grads = computed(lower(cell_of(q.text)).outputs[0][1], given_, torch.float32)
    size = torch.stack([torch.where(x.isfinite(), x, 0.0).abs() for x, _ in logs]).amax(0)
    eps = torch.finfo(torch.float32).eps
    assert worst([got], [value], size) < 4 * eps
    assert worst(got_grads, grads, size) < 16 * eps
    if " - " not in q.text:
        # No sum cancels: small shares have as many digits as large ones.
        known = value.isfinite() & (value.abs() > 1e-36)
        errors = (got.double() / value - 1).abs() / size.clamp(min=1)
        assert not known.any() or errors[known].max() < 8 * eps


@settings(max_examples=60, deadline=None)
@given(quotients(depth=2))
def test_random_quotients_are_the_same(q: Quotient) -> None:
    check_ordinary(q.text)


@settings(max_examples=80, deadline=None)
@given(positive(depth=3))
def test_random_logarithms_are_the_same(p: str) -> None:
    check_ordinary(f"log(1e-6 + {p}) + log({p} + exp(u))")


@settings(max_examples=120, deadline=None)
@given(quotients(), st.sampled_from([1.0, 30.0, 110.0]))
def test_random_quotients_beyond_float32(q: Quotient, scale: float) -> None:
    check_extreme(q, scale)


MUTANTS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "the opposite": ("difference", lambda f: lambda self, x, y: f(self, y, x)),
    "a share of all": ("piece", lambda f: lambda self, s: f(self, replace(s, rest=(*s.part, *s.rest)))),
    "not divided": ("left", lambda f: lambda self, w, s, b: f(self, w, replace(s, coefficient=1), b)),
    "a term too few": ("log_of_sum", lambda f: lambda self, terms: f(self, terms[:1])),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_another_rewriting_is_noticed(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, change = MUTANTS[mutant]
    terms = ("2 * sigmoid(u)", "exp(v)", "sigmoid(w)")
    q = Quotient("sigmoid(u) * x / (2 * sigmoid(u) + exp(v) + sigmoid(w))", terms)
    check_ordinary(q.text)
    check_extreme(q, 110.0)
    monkeypatch.setattr(LogSpace, method, change(getattr(LogSpace, method)))
    for check in (lambda: check_ordinary(q.text), lambda: check_extreme(q, 110.0)):
        with pytest.raises(AssertionError):
            check()


def test_as_written_it_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The equations themselves, in float32."""
    monkeypatch.setattr(LogSpace, "__call__", lambda self, root: root)
    q = Quotient("sigmoid(u) / (sigmoid(u) + sigmoid(v))", ("sigmoid(u)", "sigmoid(v)"))
    check_ordinary(q.text)
    check_extreme(q, 30.0)
    with pytest.raises(AssertionError):
        check_extreme(q, 120.0)


# --- minLSTM ---------------------------------------------------------------------------------------------------------

MINLSTM = (EXAMPLES / "minlstm.rnn").read_text(encoding="utf-8")
# The same with its gates' pre-activations as inputs, in three ways; and with a third gate.
BODY = """cell C
dim D = 4
input u[D], v[D], w[D], x[D]
gate f = sigmoid(u)
gate i = sigmoid(v)
gate g = sigmoid(w)
state h[D]
h[t] = UPDATE
output h[t]
"""
UPDATES = {
    "as published": "f / (f + i) * h[t-1] + i / (f + i) * x",
    "over all": "(f * h[t-1] + i * x) / (f + i)",
    "one coefficient": "h[t-1] + i / (f + i) * (x - h[t-1])",
    "three gates": "f / (f + i + g) * h[t-1] + i / (g + f + i) * x + g / (f + i + g)",
}


@pytest.mark.parametrize("update", UPDATES)
def test_it_is_still_an_affine_scan(update: str) -> None:
    """Matched, proved to contract, in one kernel; every gate proved."""
    (made,) = compile_source(Source("test.rnn", BODY.replace("UPDATE", UPDATES[update])), strict=True)
    assert made.plan is not None and made.analysis is not None
    (step,) = made.plan.steps
    assert isinstance(step, Scan) and step.contracting
    assert all(v.status == "proved" for v in made.analysis.verdicts)
    (kernel,) = fuse(made.plan)
    assert kernel.tiled and all(isinstance(e, Ref) and e.role == "input" for e in kernel.inputs)


@pytest.mark.parametrize(
    ("init", "update", "family"),
    [
        ("", "max(f / (f + i) * h[t-1], x)", "tropical"),
        ("", "max(exp(u) / exp(v) * h[t-1] + x, 0)", "tropical"),
        ("", "log(f * exp(h[t-1]) + i * exp(x))", "variable"),
        ("", "logaddexp(h[t-1] + log(f / (f + i)), log(i / (f + i)) + x)", "variable"),
        (" = 1", "sqrt(f / (f + i) * h[t-1] ** 2 + i / (f + i) * exp(x))", "variable"),
        (" = 0.5", "h[t-1] / (h[t-1] + (1 - h[t-1]) * exp(x))", "variable"),
        (" = 1", "(exp(x) * h[t-1] + f / (f + i)) / (h[t-1] + exp(x))", "moebius"),
    ],
)
def test_the_same_family(init: str, update: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without, its obligations being proved too."""
    text = BODY.replace("state h[D]", f"state h[D]{init}").replace("UPDATE", update)
    (made,) = compile_source(Source("test.rnn", text))
    monkeypatch.setattr(LogSpace, "__call__", lambda self, root: root)
    (plain,) = compile_source(Source("test.rnn", text))
    assert made.closures is not None and plain.closures is not None
    assert [c.family for c in made.closures] == [c.family for c in plain.closures] == [family]


def test_the_closure_needs_no_proof() -> None:
    made = lower(read(MINLSTM))
    (found,) = (close(made, g) for g in group(made))
    assert isinstance(found, Affine) and found.b is not None
    sigmoids = [n for n in walk(found.a, found.b) if isinstance(n, Apply) and n.op == "sigmoid"]
    assert len(sigmoids) == 2, "the gates themselves are gone"
    (d,) = {n for n in walk(found.a) if isinstance(n, Apply) and n.op == "sub"}
    assert d in set(walk(found.b))


def test_the_module_reads_like_the_program() -> None:
    text = generate(MINLSTM)
    assert "log_f = F.logsigmoid(f_in)" in text and "log_i = F.logsigmoid(i_in)" in text
    assert "f = torch.sigmoid(" not in text


def gated(value: float, length: int = 12, seed: int = 0) -> list[Tensor]:
    """Pre-activations of two or three gates at `value`, at its opposite and around both, and an input."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (3, 2, length, 4), generator=generator) * 2 - 1
    signs[:, :, :, 0], signs[:, :, :, 1] = 1, -1
    gates = value * signs + torch.randn(3, 2, length, 4, generator=generator).float()
    return [*gates.float().double(), torch.randn(2, length, 4, generator=generator).float().double()]


def by_hand(update: str, u: Tensor, v: Tensor, w: Tensor, x: Tensor) -> Tensor:
    """The outputs, by a softmax over the logarithms of the gates."""
    gates = [u, v, w] if update == "three gates" else [u, v]
    weights = torch.softmax(torch.stack([torch.nn.functional.logsigmoid(e) for e in gates]), 0)
    h, found = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = weights[0, :, t] * h + weights[1, :, t] * x[:, t] + (weights[2, :, t] if len(gates) > 2 else 0)
        found.append(h)
    return torch.stack(found, 1)


def with_gradients(run: Callable[..., Tensor], given_: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    leaves = [x.detach().to(dtype).requires_grad_() for x in given_]
    y = run(*leaves)
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(dtype)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), leaves, materialize_grads=True)]


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("value", [0.0, 80.0, -80.0, 110.0, -110.0, 1e4, -1e4])
def test_gates_far_out(update: str, value: float) -> None:
    """In float32 beside a softmax in float64: within 1e-5, and the few digits that a gate of 10,000 has less: it is
    known to 5e-4, as the difference of two is."""
    given_ = gated(value)
    module = build(BODY.replace("UPDATE", UPDATES[update]), backend="torch")
    got = with_gradients(lambda *xs: as_tuple(module(*xs)[0])[0], given_, torch.float32)
    want = with_gradients(lambda *xs: by_hand(update, *xs), given_, torch.float64)
    most = max(1e-5, 4 * abs(value) * torch.finfo(torch.float32).eps)
    for a, b in zip(got, want, strict=True):
        assert (a.double() - b).abs().max() <= most * b.abs().max().clamp(min=1)


@pytest.mark.parametrize("value", [-110.0, 110.0, 0.0])
def test_the_example_far_out(value: float) -> None:
    """minLSTM with gates at -110 beside the equations as they stand, in float64: outputs, the final state, all
    gradients."""
    sizes = {"D": 4}
    module = build(MINLSTM, backend="torch", **sizes)
    with torch.no_grad():
        module.f_weight.copy_(torch.eye(4))
        module.i_weight.copy_(torch.eye(4).roll(1, 0))
    x = gated(value)[0].float()
    cell = read(MINLSTM)
    wide = {n: p.detach().double().requires_grad_() for n, p in module.named_parameters()}
    x64, x32 = x.double().requires_grad_(), x.clone().requires_grad_()
    (want,), want_state = Interpreter(cell, sizes).run([x64], wide)
    y, state = module(x32)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    expected = [want, want_state["h"], *torch.autograd.grad((want * weight).sum(), [x64, *wide.values()])]
    got = [y, state.h, *torch.autograd.grad((y * weight).sum(), [x32, *module.parameters()])]
    for a, b in zip(got, expected, strict=True):
        assert a.isfinite().all()
        assert (a.double() - b).norm() <= 1e-5 * b.norm()
