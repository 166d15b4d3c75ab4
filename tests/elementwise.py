"""A hypothesis strategy for random cells whose states mix no entries: what fused kernels are made for.

Affine updates are written in many ways, others are not affine at all; inputs and params have any of the states' dims.
Programs are right by construction, and no comparison decides between values that are equal in exact arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from hypothesis.vendor.pretty import RepresentationPrinter
from torch import Tensor

Dims = frozenset[str]
_SIZES = (1, 2, 3, 4, 5, 7, 8)


@dataclass(frozen=True)
class Program:
    """A program, and how its inputs are drawn: `name -> (dims, kind)`, of "real", "unit", "positive", "bool", "rare"
    (a bool that seldom holds) or "complex"."""

    text: str
    sizes: dict[str, int]
    inputs: dict[str, tuple[tuple[str, ...], str]]

    def _repr_pretty_(self, printer: RepresentationPrinter, cycle: bool) -> None:
        printer.text(self.text)

    def draw(self, batch: int, length: int, seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
        """Inputs by name. With a large scale gates are saturated, and those in [0, 1] at the ends."""
        generator = torch.Generator().manual_seed(seed)
        out: dict[str, Tensor] = {}
        for name, (dims, kind) in self.inputs.items():
            shape = [batch, length, *(self.sizes[d] for d in dims)]
            x, y = (scale * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
            kinds = {"real": x, "unit": (x + 0.5).clamp(0, 1), "bool": x > 0.7, "complex": torch.complex(x, y)}
            kinds |= {"positive": x.abs() + 0.01, "rare": x > 1.5 * scale}
            out[name] = kinds[kind]
        return out


@dataclass(frozen=True)
class Value:
    """Text that can stand as an operand."""

    text: str
    dims: Dims = frozenset()


@dataclass(frozen=True)
class State:
    name: str
    dims: tuple[str, ...]
    form: str

    @property
    def kind(self) -> str:
        return "complex" if self.form.startswith("complex") else "real"


# The ways to update a state. `@` is its value a token ago, `&` that of the state before it, `%` that one's new value.
# {g} is a gate, {u} a number, {e} a bounded one, {c} a condition, {v} a complex number, {d} one not longer than 1;
# {g:z} is a gate that {z} repeats.
_FORMS: dict[str, tuple[str, ...]] = {
    "affine": (
        "{g} * @ + {u}",
        "@ + {g:z} * ({u} - @)",
        "(1 - {g:z}) * @ + {z} * {u}",
        "where({c}, 0, {g} * @) + {u}",
        "where({c}, {u}, {g} * @ + {e})",
        "where({c}, {g}, {g}) * @ + {u}",
        "({g:f} * @ + {g:i} * {e}) / ({f} + {i} + 0.1)",
        "{u} - {e} * (-@) * 0.5",
        "@ / (1 + softplus({u})) + {e}",
        "{g} * (@ + {e}) - {u}",
        "@ + {e}",
        "{g} * @",
        "0.9 * @ + {u}",
        "({e} + {e}) * @ + {e}",
        "@ - {g:z} * @ + {z} * {u}",
        "-{g} * @ + {u}",
        "1.2 * {e} * @ + 0.3 * {e} * @ + {u}",
        "exp(-square({u})) * @ + {u}",
        "{g} * @ + {u} * {u}",
        "clamp({u}, 0, 1) * @ + max({u}, {e})",
        "(@ * {e} + {u}) * {e} + {e}",
    ),
    "other": (
        "tanh({e} * @ + {u})",
        "max(@ - {g}, {u})",
        "min({g} * @ + {u}, {e})",
        "relu({e} * @ + {u})",
        "sqrt({g:a} * @ ** 2 + (1 - {a}) * square({e}) + 0.01)",
        "logaddexp(@ + logsigmoid({u}), {e})",
        "clamp(@ + {e}, -1.1, 0.8)",
        "{g:z} * @ + (1 - {z}) * sin(@ + {u})",
        "(abs(@) + 0.1 + {g:q}) * (0.2 + {g:r}) / (abs(@) + 0.3 + {q} + {r})",
        "sigmoid(@) * @ + {u}",
        "where(@ > 0.237, 0.5 * @, {e}) + {u}",
        "where({c}, abs(@), silu(@ + {u}))",
        "@ / (1 + abs(@)) + {e}",
    ),
    "complex affine": (
        "{d} * @ + {v}",
        "where({c}, 0, {d} * @) + {v}",
        "@ + {g} * ({v} - @)",
        "conj({d}) * @ + {u} * {v}",
        "{d} * (@ + {v}) / 2",
        "(1 - {g:k}) * @ * {d} + {k} * {v}",
        "{g} * @ + {v:k} * conj({k})",
        "{d} * @",
        "where({c}, {g} * @, {v})",
    ),
    "complex other": (
        "@ / (1.5 + abs(@)) + {v}",
        "0.5 * tanh(0.3 * @) + {e} * {d}",
        "0.4 * conj(@) + {v}",
        "real(@) * {d} + {e}",
    ),
    "pair 0": ("0.6 * {g} * @ - 0.7 * g[t-1] + {e}", "tanh(g[t-1] + {u}) + {g} * @", "0.9 * @ + 0.1 * g[t-1]"),
    "pair 1": ("0.5 * @ + 0.7 * {g} * & + {u}", "0.5 * @ + 0.7 * {g} * % + {u}", "max(@ * {e}, %)"),
    "level 0": ("max(@ - {g}, {u})", "max(@ + logsigmoid({u}), {e})"),
    "level 1": ("exp(& - %) * @ + exp({e} - 1) * {e}", "exp(& - %) * @ + {e}"),
}
_PLAIN = ("affine", "affine", "affine", "affine", "other", "complex affine", "complex affine", "complex other")
_PAIRS = ("pair", "level")
_UNARY = (
    "tanh(@)",
    "sin(@)",
    "(-@)",
    "abs(@)",
    "(1 - @)",
    "square(tanh(@))",
    "gelu(@)",
    "log1p(abs(@))",
    "(@ ** 2 / 2)",
)
_BINARY = ("(@ + @)", "(@ - @)", "(@ * @)", "max(@, @)", "(@ / (1 + abs(@)))", "where(@ > 0.137, @, 0.5)")
_SQUASH = ("tanh(@)", "sin(@)", "(@ / (1 + abs(@)))", "clamp(@, -1.3, 0.9)", "erf(@)")
_GATES = ("sigmoid(@)", "sigmoid(@)", "exp(-softplus(@))", "exp(-abs(@))", "clamp(@, 0, 1)", "(1 / (1 + exp(@)))")
_CONDITIONS = ("@ > 0.237", "@ <= -0.411", "not (@ > 0.137)")
_DISCS = ("exp(-softplus(@) + 1j * @)", "exp(1j * @)", "(0.7 * cos(@) + 0.7j * sin(@))")


@dataclass
class Builder:
    """Makes one program."""

    draw: st.DrawFn
    sizes: dict[str, int] = field(default_factory=dict[str, int])
    inputs: dict[str, tuple[tuple[str, ...], str]] = field(default_factory=dict[str, tuple[tuple[str, ...], str]])
    known: dict[str, list[Value]] = field(default_factory=lambda: {k: [] for k in "ugecvd"})
    starts: dict[tuple[str, ...], str] = field(default_factory=dict[tuple[str, ...], str])
    head: list[str] = field(default_factory=list[str])
    lines: list[str] = field(default_factory=list[str])
    values: int = 0

    def pick(self, choices: Iterable[str]) -> str:
        return self.draw(st.sampled_from(tuple(choices)))

    def number(self, least: int, most: int) -> int:
        return self.draw(st.integers(least, most))

    def rarely(self) -> bool:
        return self.number(0, 3) == 3

    def some(self, dims: tuple[str, ...]) -> tuple[str, ...]:
        """Some of them, seldom in another order."""
        chosen = tuple(d for d in dims if self.number(0, 3))
        return tuple(self.draw(st.permutations(chosen))) if self.rarely() else chosen

    def program(self) -> Program:
        dims = tuple("ABC"[: self.number(1, 3)])
        for d in dims:
            self.sizes[d] = self.draw(st.sampled_from(_SIZES if len(dims) < 3 else _SIZES[:4]))
        self.head.append("dim " + ", ".join(f"{d} = {n}" for d, n in self.sizes.items()))
        self.given(dims)
        states = self.states(dims)
        for _ in range(self.number(0, 2)):
            self.known["u"].append(self.named(self.expr("u", frozenset(dims), 2)))
        for k in range(len(states)):
            self.update(states, k)
        outputs = self.outputs(states)
        lines = self.draw(st.permutations(self.lines)) if self.rarely() else self.lines
        text = "\n".join(["cell Random", *self.head, *lines, *outputs]) + "\n"
        return Program(text, self.sizes, self.inputs)

    def given(self, dims: tuple[str, ...]) -> None:
        """Inputs, params and constants."""
        kinds = {"real": ("u", ""), "unit": ("g", " in [0, 1]"), "bool": ("c", ": bool"), "complex": ("v", ": complex")}
        for k in range(self.number(1, 4)):
            kind = "real" if k == 0 else self.pick(kinds)
            name, own = f"x{k}", self.some(dims)
            self.inputs[name] = (own, kind)
            self.head.append(f"input {name}{_brackets(own)}{kinds[kind][1]}")
            self.known[kinds[kind][0]].append(Value(name, frozenset(own)))
            if kind == "real" and own and self.rarely():
                to = self.some(dims) or own
                self.known["u"].append(self.named(Value(f"linear({name} -> {', '.join(to)})", frozenset(to)), True))
            if kind == "real" and self.rarely():
                self.known["u"].append(Value(f"{name}[t-1]", frozenset(own)))
        for k in range(self.number(0, 3)):
            name, own = f"w{k}", self.some(dims)
            if self.rarely():
                self.head.append(f"param {name}{_brackets(own)}: complex = 0.4 + 0.3j")
                self.known["v"].append(Value(name, frozenset(own)))
                self.known["d"].append(Value(f"exp(-abs({name}) + 1j * real({name}))", frozenset(own)))
            else:
                first = self.pick(("normal(0.5)", "uniform(-1, 1)", "ones", "0.3"))
                self.head.append(f"{self.pick(('param', 'param', 'buffer'))} {name}{_brackets(own)} = {first}")
                self.known["u"].append(Value(name, frozenset(own)))
                self.starts[own] = name
        if self.rarely():
            self.head.append("const c0 = 0.3, c1 in (0, 1] = 0.7")
            self.known["u"].append(Value("c0"))
            self.known["g"].append(Value("c1"))
        size = self.pick(self.sizes)
        self.known["u"].append(Value(self.pick((f"{size} ** -0.5", f"(1 / ({size} + 1))", "0.7"))))

    def states(self, dims: tuple[str, ...]) -> list[State]:
        """One to three of them; a pair that needs each other comes alone."""
        layout = tuple(self.draw(st.permutations(dims)))
        if self.number(0, 4) == 4:
            form = self.pick(_PAIRS)
            states = [State("h", layout, f"{form} 0"), State("g", layout, f"{form} 1")]
        else:
            layouts = [layout, layout, layout[: self.number(1, len(dims))]]
            states = [State("hgm"[k], layouts[k], self.pick(_PLAIN)) for k in range(self.number(1, 3))]
        for s in states:
            starts = ["", "", " = 0.5", " = param", *([f" = {self.starts[s.dims]}"] if s.dims in self.starts else [])]
            start = " = -inf" if s.form == "level 0" else self.pick(starts)
            self.head.append(f"state {s.name}{_brackets(s.dims)}{': complex' if s.kind == 'complex' else ''}{start}")
        return states

    # --- expressions ---

    def named(self, value: Value, always: bool = False) -> Value:
        """The value in brackets, or a definition of it."""
        if not always and self.rarely():
            return Value(f"({value.text})", value.dims)
        self.values += 1
        self.lines.append(f"v{self.values} = {value.text}")
        return Value(f"v{self.values}", value.dims)

    def of(self, pattern: str, place: Dims, depth: int) -> Value:
        """A pattern over numbers."""
        text, dims = pattern, frozenset[str]()
        while "@" in text:
            value = self.expr("u", place, depth)
            text, dims = text.replace("@", value.text, 1), dims | value.dims
        return Value(text, dims)

    def expr(self, kind: str, place: Dims, depth: int) -> Value:
        """Something of a kind, as in the forms."""
        leaves = [x for x in self.known[kind] if x.dims <= place]
        if leaves and (depth <= 0 or self.number(0, 2) == 0):
            return self.draw(st.sampled_from(leaves))
        match kind:
            case "u":
                return self.of(
                    self.pick(_UNARY if self.rarely() else _BINARY) if depth > 0 else "0.3", place, depth - 1
                )
            case "e":
                return self.of(self.pick(_SQUASH), place, depth - 1)
            case "g":
                return self.of(self.pick(_GATES), place, depth - 1)
            case "c":
                return self.of(self.pick(_CONDITIONS), place, depth - 1)
            case "d":
                return self.of(self.pick(_DISCS), place, depth - 1)
            case _:
                return self.of(self.pick(("(@ + 1j * @)", "(@ * exp(1j * @))")), place, depth - 1)

    def update(self, states: list[State], k: int) -> None:
        s = states[k]
        text, place = self.pick(_FORMS[s.form]), frozenset(s.dims)
        text = text.replace("@", f"{s.name}[t-1]")
        if k:
            text = text.replace("&", f"{states[k - 1].name}[t-1]").replace("%", f"{states[k - 1].name}[t]")
        bound: dict[str, str] = {}
        while found := re.search(r"\{(\w)(?::(\w))?\}", text):
            kind, name = found.groups()
            if kind in bound:
                value = bound[kind]
            else:
                value = self.named(self.expr(kind, place, 2)).text if name or self.rarely() else ""
                value = value or f"({self.expr(kind, place, 1).text})"
            if name:
                bound[name] = value
            text = text[: found.start()] + value + text[found.end() :]
        if self.rarely():
            # The error, or another part, defined apart.
            inner = re.search(r"\(([^()]* - \w+\[t-1\])\)", text)
            if inner:
                self.values += 1
                self.lines.append(f"v{self.values} = {inner[1]}")
                text = text.replace(inner[0], f"v{self.values}", 1)
        self.lines.append(f"{s.name}[t] = {text}")
        made = Value(f"{s.name}[{'t-1' if self.rarely() else 't'}]", frozenset(s.dims))
        if s.kind == "complex":
            self.known["v"].append(made)
        elif not s.form.startswith("level"):
            self.known["u"].append(made)

    # --- outputs ---

    def outputs(self, states: list[State]) -> list[str]:
        # Where nothing else reads the states, those that are summed over stay in registers.
        summed = len(states[0].dims) > 1 and self.number(0, 2) == 2
        over = self.pick(states[0].dims)
        out: list[str] = []
        for s in states:
            for _ in range(self.number(0, 2)):
                text = self.summed(s, over) if summed and over in s.dims else self.output(s)
                out.append(f"output y{len(out)} = {text}")
        last = states[-1]
        return out or [f"output {self.summed(last, over) if summed and over in last.dims else f'{last.name}[t]'}"]

    def summed(self, s: State, over: str) -> str:
        """A sum over one dim of the state."""
        place, now, past = frozenset(s.dims), f"{s.name}[t]", f"{s.name}[t-1]"
        if s.form == "level 0":
            return f"sum[{over}](exp(-square({now})))"
        u, v = (self.expr("u", place, 1).text for _ in "uv")
        real = f"real({now} * ({v} + 1j))" if s.kind == "complex" else now
        choices = [f"sum[{over}]({u} * {now})"] * 2 + [f"sum[{over}]({now})", f"sum[{over}]({real} * {past} + {u})"]
        choices += [f"sum[{over}]({u} * {real}) + {self.expr('u', place - {over}, 1).text}"]
        choices += [f"{self.expr('u', place - {over}, 1).text} * sum[{over}](tanh({real}) * {u})"]
        return self.pick(choices)

    def output(self, s: State) -> str:
        place, now, past = frozenset(s.dims), f"{s.name}[t]", f"{s.name}[t-1]"
        u = self.expr("u", place, 1).text
        real = f"real({now})" if s.kind == "complex" else now
        choices = [now, now, past, f"{u} * {now}", f"{now} - {past}", f"tanh({real}) + {u}"]
        choices += [f"linear({real} -> {', '.join(s.dims)})", f"where({self.expr('c', place, 1).text}, {now}, 0.3)"]
        choices += [f"{now} + {past} * {past}", f"{now} * {u} + {u} * {u}", self.summed(s, self.pick(s.dims))]
        choices += [f"{real} > 0.137"]
        if s.kind == "complex":
            choices += [f"real({now} * conj({now}))", f"abs({now})"] * 2
        return self.pick(choices)


def _brackets(dims: tuple[str, ...]) -> str:
    return f"[{', '.join(dims)}]" if dims else ""


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Random cells whose states mix no entries."""
    return Builder(draw).program()
