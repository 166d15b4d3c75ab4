"""Hypothesis strategies for random well-formed programs: not variations of the examples, but sentences of the language.

Programs are right by construction: an expression is built within dims that it may have, and knows which states it needs
at the same token. They are tame too: values stay bounded, so that outputs and gradients can be compared in float64, and
no comparison decides between values that are equal in exact arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from hypothesis import strategies as st
from hypothesis.vendor.pretty import RepresentationPrinter
from torch import Tensor

Dims = frozenset[str]
NONE: Dims = frozenset()


@dataclass(frozen=True)
class Input:
    """`kind`: "real", "unit" in [0, 1], "positive" in [0, inf), "bool", "complex"."""

    name: str
    dims: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class Program:
    """A program, the sizes it declares, and inputs for it. `features` names what it was made of."""

    text: str
    sizes: dict[str, int]
    free: tuple[str, ...]
    inputs: tuple[Input, ...]
    features: tuple[str, ...]

    def _repr_pretty_(self, printer: RepresentationPrinter, cycle: bool) -> None:
        printer.text(f"Program{self.features}\n{self.text}")

    @property
    def dims(self) -> dict[str, int]:
        """The dims that are arguments of the class: not the derived ones."""
        return {d: self.sizes[d] for d in self.free}

    def draw(self, batch: int, length: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Inputs `[batch, length, ...]` by name, within their ranges."""
        generator = torch.Generator().manual_seed(seed)
        return {i.name: self._draw(i, batch, length, generator, dtype) for i in self.inputs}

    def _draw(self, i: Input, batch: int, length: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        shape = [batch, length, *(self.sizes[d] for d in i.dims)]
        x, y = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
        match i.kind:
            case "bool":
                return x > 0.5
            case "unit":
                return torch.sigmoid(x).to(dtype)
            case "positive":
                return (x.abs() + 0.05).to(dtype)
            case "complex":
                return torch.complex(x, y).to(dtype.to_complex())
            case _:
                return x.to(dtype)


@dataclass(frozen=True)
class Expr:
    """Text that can stand as an operand.

    `level`: how many states must have been updated at this token. `reads`: the states at t-1 that it depends on.
    """

    text: str
    dims: Dims = NONE
    level: int = 0
    reads: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Place:
    """Where an expression will stand: the dims that it may have, how many states are updated there, the states that it
    must not read, and the dims that it must not contract, rename or map."""

    dims: Dims
    level: int = 0
    without: frozenset[str] = frozenset()
    fixed: Dims = NONE

    def within(self, dims: Iterable[str]) -> Place:
        return replace(self, dims=frozenset(dims))


@dataclass(frozen=True)
class Name:
    """A declared value that expressions may use. A state's `level` is its number + 1; `past`: it may be read at t-1."""

    name: str
    dims: Dims
    role: str
    kind: str = "real"
    level: int = 0
    reads: frozenset[str] = frozenset()
    past: bool = True


@dataclass(frozen=True)
class State:
    name: str
    dims: tuple[str, ...]
    form: str
    kind: str = "real"
    init: str = ""
    over: str = ""


_LITERALS = ("0.5", "2", "-1", "0.1", "1.5", "-0.3")
_THRESHOLDS = ("0.237", "-0.411", "0.713")
_VALUES = ("u", "v", "w", "κ", "ξ", "a1", "b_", "kx", "ŷ", "q", "Z", "f")
_STATES = ("h", "S", "μ", "c2")
_UNARY = (
    "tanh sigmoid sin cos erf silu gelu softplus logsigmoid abs relu stop_gradient "
    "exp(-softplus(@)) log1p(abs(@)) sqrt(1+square(@)) rsqrt(1+square(@)) log(1.5+square(@)) expm1(tanh(@)) (-@) "
    "(1-@) square(tanh(@)) tanh(@)**3 (2+tanh(@))**0.5 (1.5+sin(@))**-1 real(@)"
).split()
_BINARY = (
    "(@ + @)",
    "(@ - @)",
    "(tanh(@) * @)",
    "(@ * sigmoid(@))",
    "max(@, @)",
    "min(@, @)",
    "max(@, @, 0.2)",
    "logaddexp(@, @)",
    "clamp(@, -1, 0.7)",
    "@ / (1 + abs(@))",
    "sigmoid(@) ** (1 + square(tanh(@)))",
)
_SQUASH = ("tanh(@)", "sigmoid(@)", "@ / (1 + abs(@))", "sin(@)", "clamp(@, -2, 2)", "erf(@)")
# How a real state may be updated; those with two names update a pair.
_FORMS = (
    "affine convex recurrent blocks unit history reset maxplus minplus logsum energy moebius delta lowrank over writes "
    "learner rotation weights complex spiral anything"
).split()
_TWO_DIMS = frozenset(("delta", "lowrank", "writes", "learner"))
_PAIRS = frozenset(("rotation", "weights"))


def _fill(pattern: str, *args: Expr) -> Expr:
    """A pattern with its holes filled in turn; the last fills those that are left."""
    text, holes = pattern, pattern.count("@")
    args = args[:holes]
    for i in range(holes):
        text = text.replace("@", args[min(i, len(args) - 1)].text, 1)
    return Expr(
        text,
        frozenset[str]().union(*(a.dims for a in args)),
        max((a.level for a in args), default=0),
        frozenset[str]().union(*(a.reads for a in args)),
    )


def _name(names: tuple[str, ...], n: int) -> str:
    """The first names as they are, then again with numbers."""
    return names[n % len(names)] + ("" if n < len(names) else str(n // len(names)))


@dataclass
class Builder:
    """Makes one program."""

    draw: st.DrawFn
    size: int
    sizes: dict[str, int] = field(default_factory=dict[str, int])
    derived: dict[str, str] = field(default_factory=dict[str, str])
    products: list[tuple[str, tuple[str, str]]] = field(default_factory=list[tuple[str, tuple[str, str]]])
    names: list[Name] = field(default_factory=list[Name])
    states: list[State] = field(default_factory=list[State])
    inputs: list[Input] = field(default_factory=list[Input])
    head: list[str] = field(default_factory=list[str])
    equations: list[str] = field(default_factory=list[str])
    features: list[str] = field(default_factory=list[str])
    values: int = 0

    def program(self) -> Program:
        self.choose_dims()
        self.choose_inputs()
        self.choose_states()
        for _ in range(self.number(0, self.size)):
            self.define(self.place(0))
        for i, state in enumerate(self.states):
            self.update(state, i)
        everything = len(self.states)
        for _ in range(self.number(0, self.size - 1)):
            self.define(self.place(everything))
        outputs = self.outputs(everything)
        equations = self.draw(st.permutations(self.equations)) if self.flip() else self.equations
        dims = ", ".join(f"{d} = {self.derived.get(d, str(n))}" for d, n in self.sizes.items())
        lines = ["cell Random", f"dim {dims}", *self.head, *equations, *outputs]
        free = tuple(d for d in self.sizes if d not in self.derived)
        features = tuple(dict.fromkeys(self.features))
        return Program("\n".join(lines) + "\n", dict(self.sizes), free, tuple(self.inputs), features)

    # --- choices -----------------------------------------------------------------------------------------------------

    def number(self, lo: int, hi: int) -> int:
        return self.draw(st.integers(lo, max(lo, hi)))

    def flip(self) -> bool:
        return self.draw(st.booleans())

    def rarely(self) -> bool:
        return self.number(0, 5) == 5

    def text(self, *options: str) -> str:
        return self.draw(st.sampled_from(options))

    def some(self, dims: Iterable[str], most: int, least: int = 0) -> tuple[str, ...]:
        """Some of the dims, in any order."""
        pool = sorted(dims)
        return tuple(
            self.draw(st.lists(st.sampled_from(pool), unique=True, min_size=min(least, len(pool)), max_size=most))
            if pool
            else ()
        )

    def place(self, level: int) -> Place:
        return Place(frozenset(self.some(self.sizes, 2)), level)

    def fresh(self) -> str:
        self.values += 1
        return _name(_VALUES, self.values - 1)

    # --- declarations ------------------------------------------------------------------------------------------------

    def choose_dims(self) -> None:
        for name in ("D", "K", "N")[: self.draw(st.sampled_from((2, 1) if self.size < 3 else (2, 3, 1)))]:
            # Of different sizes mostly, so that no axis passes for another.
            self.sizes[name] = self.draw(st.sampled_from((2, 3, 1) if self.size < 3 else (2, 3, 4, 1)))
        if self.flip():
            # One more dim that is made of others, so that there is something to rename, split or merge.
            first = next(iter(self.sizes))
            match self.text("equal", "product", "quotient"):
                case "equal":
                    self.sizes["Q"], self.derived["Q"] = self.sizes[first], first
                case "product":
                    self.sizes |= {"H": 2, "E": 2 * self.sizes[first]}
                    self.derived["E"] = f"H * {first}"
                    self.products.append(("E", ("H", first)))
                case _:
                    size = self.sizes[first]
                    self.sizes[first] = 2 * size
                    self.sizes |= {"H": 2, "P": size}
                    self.derived["P"] = f"{first} / H"
                    self.products.append((first, ("H", "P")))

    def choose_inputs(self) -> None:
        for i in range(self.number(1, 1 + self.size)):
            kind = self.text("real", "real", "unit", "positive", "bool", "complex") if i else "real"
            name = self.text("x", "y") + str(i) if i else "x"
            dims = self.some(self.sizes, 2, least=0 if i else 1)
            note = {"unit": " in [0, 1]", "positive": " in [0, inf)", "bool": ": bool", "complex": ": complex"}
            self.head.append(f"input {name}{_brackets(dims)}{note.get(kind, '')}")
            self.inputs.append(Input(name, dims, kind))
            self.names.append(Name(name, frozenset(dims), "input", kind))
        for _ in range(self.number(0, self.size - 1)):
            self.param(self.some(self.sizes, 2))
        if self.rarely():
            self.head.append("const gain in (0, inf) = 0.7")
            self.names.append(Name("gain", NONE, "const"))

    def param(self, dims: tuple[str, ...], init: str = "", keyword: str = "param") -> Name:
        inits = ["normal(0.5)", "uniform(-1, 1)", "log(loguniform(0.5, 2))", "ones", "0.3"]
        inits += [f"0.5 * arange[{d}](-1)" for d in dims] + (["eye", "orthogonal"] if len(dims) == 2 else [])
        name = f"{self.text('p', 'θ')}{len(self.head)}"
        self.head.append(f"{keyword} {name}{_brackets(dims)} = {init or self.text(*inits)}")
        declared = Name(name, frozenset(dims), "param")
        self.names.append(declared)
        return declared

    def choose_states(self) -> None:
        wanted = self.number(1, 1 + self.size // 2)
        while len(self.states) < wanted:
            form = self.draw(st.sampled_from(_FORMS))
            dims = self.some(self.sizes, 2, least=2 if form in _TWO_DIMS else 0 if self.rarely() else 1)
            over = next((d for d in sorted(self.sizes) if d not in dims), "")
            if (form in _TWO_DIMS and len(dims) < 2) or (form in ("over", "writes") and not over):
                continue
            if form in ("recurrent", "blocks", "unit") and not dims:
                continue
            self.features.append(form)
            over = over if form in ("over", "writes") else ""
            for part in range(2 if form in _PAIRS else 1):
                self.declare(f"{form}{part + 1}" if form in _PAIRS else form, dims, over)

    def declare(self, form: str, dims: tuple[str, ...], over: str) -> None:
        name = _name(_STATES, len(self.states))
        kind = "complex" if form in ("complex", "spiral") else "real"
        init = self.text("", "", "", " = 0.5", " = 1", " = param") if kind == "real" else ""
        if form == "moebius":
            init = self.text(" = 1", " = 0.5")
        elif form in ("maxplus", "logsum", "weights1"):
            init = self.text("", " = -inf")
        elif init and self.rarely():
            owned = [n.name for n in self.names if n.role == "param" and n.dims <= set(dims)]
            init = f" = {self.text(*owned)}" if owned else init
        annotation = ": complex" if kind == "complex" else ""
        self.head.append(f"state {name}{_brackets(dims)}{annotation}{init}")
        state = State(name, dims, form, kind, init, over)
        self.states.append(state)
        reads = frozenset((name,))
        self.names.append(Name(name, frozenset(dims), "state", kind, len(self.states), reads, past="inf" not in init))

    def define(self, place: Place) -> None:
        value = self.squashed(place, self.size)
        name = self.fresh()
        dims = f"[{', '.join(sorted(value.dims))}]" if value.dims and self.rarely() else ""
        self.claim(name + dims, value, "gate" if value.text.startswith("sigmoid(") and self.flip() else "")

    def claim(self, target: str, value: Expr, keyword: str) -> Expr:
        """Define a value and return the use of its name."""
        name = target.partition("[")[0]
        self.equations.append(f"{keyword} {target} = {value.text}".strip())
        self.names.append(Name(name, value.dims, "def", "real", value.level, value.reads))
        return replace(value, text=name)

    # --- expressions -------------------------------------------------------------------------------------------------

    def uses(self, place: Place, must: Dims = NONE) -> list[Expr]:
        """Every value that can stand here and has the dims `must`, at the lags that it can be read at."""
        found: list[Expr] = []
        for n in self.names:
            if not must <= n.dims <= place.dims or n.kind == "bool":
                continue
            lags = [n.name] if n.role in ("param", "const") else []
            if n.role in ("input", "def") and n.level <= place.level and not n.reads & place.without:
                lags = [n.name, n.name, f"{n.name}[t-1]"] + ([f"{n.name}[t-2]"] if n.role == "input" else [])
            if n.role == "state":
                if n.past and n.name not in place.without:
                    lags += [f"{n.name}[t-1]", f"{n.name}[t-1]", f"{n.name}[t-2]"]
                if n.level <= place.level:
                    lags.append(f"{n.name}[t]")
            for text in lags:
                now = n.role == "def" and "[" not in text
                level = n.level if now or text.endswith("[t]") else 0
                reads = n.reads if now or (n.role == "state" and text.endswith("[t-1]")) else frozenset[str]()
                shown = self.text("real", "imag") + f"({text})" if n.kind == "complex" else text
                found.append(Expr(shown, n.dims, level, reads))
        return found

    def leaf(self, place: Place) -> Expr:
        found = self.uses(place)
        scalars = [Expr(self.text(*_LITERALS)), Expr(f"{self.text(*self.sizes)} ** -0.5")]
        return self.draw(st.sampled_from(found * 2 + scalars[:1])) if found else self.draw(st.sampled_from(scalars))

    def having(self, must: Dims, place: Place) -> Expr:
        """An expression that has the dims `must`."""
        found = self.uses(place, must)
        if found:
            return self.draw(st.sampled_from(found))
        name = self.param(tuple(sorted(must)), "normal(0.7)")
        return Expr(name.name, must)

    def expr(self, place: Place, depth: int) -> Expr:
        if depth <= 0:
            return self.leaf(place)
        form = self.draw(st.sampled_from(_EXPRESSIONS))
        return form(self, place, depth - 1) or self.leaf(place)

    def squashed(self, place: Place, depth: int) -> Expr:
        """A bounded expression."""
        e = self.expr(place, depth)
        return _fill(self.text(*_SQUASH), replace(e, text=f"({e.text})"))

    def unary(self, place: Place, depth: int) -> Expr:
        function = self.text(*_UNARY)
        e = self.expr(place, depth)
        return _fill(function if "@" in function else f"{function}(@)", replace(e, text=f"({e.text})"))

    def binary(self, place: Place, depth: int) -> Expr:
        pattern = self.text(*_BINARY)
        return _fill(
            f"({pattern})", self.expr(place, depth), self.leaf(place) if depth > 1 else self.expr(place, depth)
        )

    def condition(self, place: Place) -> Expr:
        flags = [n for n in self.names if n.kind == "bool" and n.dims <= place.dims]
        if flags and self.flip():
            flag = self.draw(st.sampled_from(flags))
            c = Expr(flag.name + self.text("", "[t-1]"), flag.dims)
        else:
            c = _fill(f"(@ {self.text('>', '<', '>=', '<=')} {self.text(*_THRESHOLDS)})", self.leaf(place))
        if self.rarely():
            c = _fill("(not @)", c)
        if self.rarely():
            c = _fill(f"(@ {self.text('and', 'or')} @)", c, self.condition(place))
        return c

    def select(self, place: Place, depth: int) -> Expr:
        if self.number(0, 2) == 2:
            # The branch that is not selected is NaN, or has an infinite derivative.
            v = self.leaf(place)
            function = self.text("sqrt", "log", "rsqrt")
            return _fill(f"where(@ > 0.237, {function}(@ - 0.137), @)", v, v, self.expr(place, depth))
        if self.rarely():
            return _fill("(@ * @)", self.condition(place), self.expr(place, depth))
        return _fill("where(@, @, @)", self.condition(place), self.expr(place, depth), self.leaf(place))

    def reduction(self, place: Place, depth: int) -> Expr | None:
        over = self.some(set(self.sizes) - place.fixed, 2 if self.rarely() else 1, least=1)
        if not over:
            return None
        inner = place.within(place.dims | set(over))
        has = self.having(frozenset(over), inner)
        pattern = self.text("@", "tanh(@ * @)", "@ * @", "@ + @", "sin(@)")
        body = _fill(pattern, has, self.expr(inner, depth))
        op = self.text("sum", "sum", "mean", "max", "min", "logsumexp")
        return replace(_fill(f"{op}[{', '.join(over)}](@)", body), dims=body.dims - set(over))

    def normal(self, place: Place, depth: int) -> Expr | None:
        over = self.some(place.dims - place.fixed, 1, least=1)
        if not over:
            return None
        body = _fill(self.text("@", "@ + @", "@ * @"), self.having(frozenset(over), place), self.expr(place, depth))
        op = self.text("softmax", "l2norm", "rmsnorm", "layernorm")
        options = (
            self.text("", "", ", eps=1e-3", ", weight=true", ", weight=true, bias=true") if op != "softmax" else ""
        )
        return _fill(f"{op}[{over[0]}](@{options})", body)

    def linear(self, place: Place, depth: int) -> Expr | None:
        outs = self.some(place.dims - place.fixed, 2, least=1)
        if not outs:
            return None
        options = self.text("", "", ", bias=true", ", init=orthogonal", ", bias=true, init=orthogonal")
        anywhere = place.within(self.some(set(self.sizes) - place.fixed, 2, least=1))
        match self.text("map", "map", "sum", "along", "to"):
            case "map":
                e = self.expr(anywhere, depth)
                return replace(_fill(f"linear(@ -> {', '.join(outs)}{options})", e), dims=frozenset(outs))
            case "sum":
                a, b = self.expr(anywhere, depth), self.leaf(anywhere)
                return replace(_fill(f"linear(@, @ -> {', '.join(outs)}{options})", a, b), dims=frozenset(outs))
            case "along":
                e = self.having(frozenset(outs[:1]), place)
                return _fill(f"linear[{outs[0]}](@{options})", e)
            case _:
                source = self.text(*sorted(set(self.sizes) - place.fixed))
                inner = place.within(place.dims - {outs[0]} | {source})
                if source == outs[0]:
                    return None
                e = self.having(frozenset((source,)), inner)
                text = _fill(f"linear[{source} -> {outs[0]}](@{options})", e)
                return replace(text, dims=e.dims - {source} | {outs[0]})

    def conv(self, place: Place, depth: int) -> Expr | None:
        if place.fixed:
            return None
        options = self.text("", "", ", bias=true")
        e = _fill("tanh(@)", self.expr(place, depth))
        return _fill(f"conv[{self.number(1, 4)}](@{options})", e)

    def rename(self, place: Place, depth: int) -> Expr | None:
        pairs = [
            (old, new)
            for new in sorted(place.dims - place.fixed)
            for old in sorted(set(self.sizes) - place.fixed - {new})
            if self.derived.get(old) == new or self.derived.get(new) == old
        ]
        if not pairs:
            return None
        old, new = self.draw(st.sampled_from(pairs))
        inner = place.within(place.dims - {new} | {old})
        e = _fill(self.text("@", "(@ * @)"), self.having(frozenset((old,)), inner), self.expr(inner, depth))
        result = replace(_fill(f"@[{old} -> {new}]", e), dims=e.dims - {old} | {new})
        if self.flip():
            return result
        # A recurrent matrix written out: the renamed dim is contracted with a param's.
        matrix = self.param(tuple(sorted((old, new))), "normal(0.4)")
        summed = replace(_fill(f"sum[{new}]({matrix.name} * @)", result), dims=result.dims - {new} | {old})
        return summed if summed.dims <= place.dims else result

    def resize(self, place: Place, depth: int) -> Expr | None:
        if not self.products:
            return None
        whole, parts = self.draw(st.sampled_from(self.products))
        joined = f"{parts[0]} * {parts[1]}"
        if place.fixed & {whole, *parts}:
            return None
        if whole in place.dims:
            inner = place.within(place.dims - {whole} | set(parts))
            e = _fill("(@ * @)", self.having(frozenset(parts[:1]), inner), self.having(frozenset(parts[1:]), inner))
            return replace(_fill(f"@[{joined} -> {whole}]", e), dims=e.dims - set(parts) | {whole})
        if set(parts) <= place.dims:
            inner = place.within(place.dims - set(parts) | {whole})
            e = _fill("(@ + @)", self.having(frozenset((whole,)), inner), self.expr(inner, depth))
            return replace(_fill(f"@[{whole} -> {joined}]", e), dims=e.dims - {whole} | set(parts))
        return None

    def solve(self, place: Place, depth: int) -> Expr | None:
        pairs = [p for p in self.derived.items() if p[1] in place.dims and not place.fixed & set(p)]
        if not pairs:
            return None
        col, row = self.draw(st.sampled_from(pairs))
        one = self.param((row, col), "eye", "buffer")
        outer = place.within(place.dims - {col})
        matrix = _fill(f"({one.name} + 0.2 * tanh(@))", self.expr(outer.within(outer.dims | {col}), depth))
        rhs = self.having(frozenset((row,)), outer)
        return replace(_fill(f"solve[{row}, {col}](@, @)", matrix, rhs), dims=(matrix.dims | rhs.dims | {row}) - {col})

    # --- updates -----------------------------------------------------------------------------------------------------

    def update(self, state: State, index: int) -> None:
        """The update of a state. Values that it is made of are defined by name, or stand in it."""
        own = frozenset(state.dims)
        affine = frozenset(s.name for s in self.states) if self.flip() else frozenset[str]()
        place = Place(own, index, affine)
        if state.over:
            place = Place(own | {state.over}, index, affine | {state.name}, frozenset((state.over,)))
        value = getattr(self, f"_{state.form}")(state, place)
        over = f" over {state.over}" if state.over else ""
        self.equations.append(f"{state.name}[t]{over} = {value.text}")

    def named(self, value: Expr, keyword: str = "") -> Expr:
        return (
            self.claim(self.fresh(), value, keyword)
            if keyword or self.flip()
            else replace(value, text=f"({value.text})")
        )

    def term(self, place: Place, pattern: str = "") -> Expr:
        """A bounded value."""
        e = self.squashed(place, self.size - 1)
        return self.named(_fill(pattern, e) if pattern else e)

    def gate(self, place: Place, keyword: str = "gate") -> Expr:
        pattern = self.text("sigmoid(@)", "exp(-softplus(@))", "exp(-abs(@))")
        return self.named(_fill(pattern, self.expr(place, self.size - 1)), keyword if self.flip() else "")

    def unit_vector(self, dim: str, place: Place) -> Expr:
        body = _fill("@ + @", self.having(frozenset((dim,)), place), self.expr(place, self.size - 2))
        return self.named(_fill(f"l2norm[{dim}](@{'' if place.without else ', eps=0.1'})", body))

    def _affine(self, s: State, place: Place) -> Expr:
        return _fill(f"@ * {s.name}[t-1] + @", self.gate(place, "decay"), self.term(place))

    def _convex(self, s: State, place: Place) -> Expr:
        z = self.gate(place)
        return _fill(f"(1 - @) * {s.name}[t-1] + @ * @", z, z, self.term(place))

    def _recurrent(self, s: State, place: Place) -> Expr:
        outs = ", ".join(s.dims)
        return _fill(f"tanh(linear({s.name}[t-1] -> {outs}, bias=true) + @)", self.expr(place, self.size - 1))

    def _blocks(self, s: State, place: Place) -> Expr:
        z = self.gate(place)
        return _fill(
            f"@ * {s.name}[t-1] + (1 - @) * tanh(linear[{s.dims[0]}]({s.name}[t-1]) + @)", z, z, self.term(place)
        )

    def _unit(self, s: State, place: Place) -> Expr:
        return _fill(f"0.9 * l2norm[{s.dims[0]}]({s.name}[t-1] + @, eps=0.1)", self.term(place))

    def _history(self, s: State, place: Place) -> Expr:
        return _fill(
            f"0.5 * {s.name}[t-1] - 0.3 * @ * {s.name}[t-{self.number(2, 3)}] + @", self.gate(place), self.term(place)
        )

    def _reset(self, s: State, place: Place) -> Expr:
        start = self.draw(st.sampled_from([Expr("0"), self.leaf(place)]))
        return _fill(
            f"where(@, @, @ * {s.name}[t-1]) + @", self.condition(place), start, self.gate(place), self.term(place)
        )

    def _maxplus(self, s: State, place: Place) -> Expr:
        return _fill(f"max({s.name}[t-1] - @, @)", self.gate(place), self.term(place))

    def _minplus(self, s: State, place: Place) -> Expr:
        return _fill(f"clamp(@ * {s.name}[t-1] + @, -@, 0.8)", self.gate(place), self.term(place), self.gate(place))

    def _logsum(self, s: State, place: Place) -> Expr:
        return _fill(f"logaddexp({s.name}[t-1] + logsigmoid(@), @)", self.expr(place, self.size - 1), self.term(place))

    def _energy(self, s: State, place: Place) -> Expr:
        a = self.gate(place)
        return _fill(f"sqrt(@ * {s.name}[t-1] ** 2 + (1 - @) * square(@) + 0.01)", a, a, self.term(place))

    def _moebius(self, s: State, place: Place) -> Expr:
        q, r = self.named(_fill("(0.1 + @)", self.gate(place))), self.named(_fill("(0.2 + @)", self.gate(place)))
        return _fill(f"({s.name}[t-1] + @) * @ / ({s.name}[t-1] + @ + @)", q, r, q, r)

    def _delta(self, s: State, place: Place) -> Expr:
        k = s.dims[0]
        outer = place.within(place.dims - {k})
        key, beta, value = self.unit_vector(k, place.within({k})), self.gate(outer), self.term(outer)
        error = _fill(f"@ - sum[{k}](@ * {s.name}[t-1])", value, key)
        return _fill(f"{s.name}[t-1] + @ * @ * (@)", beta, key, error)

    def _lowrank(self, s: State, place: Place) -> Expr:
        k = s.dims[0]
        vectors = place.within({k})
        a, b = self.unit_vector(k, vectors), self.unit_vector(k, vectors)
        pattern = f"0.6 * @ * {s.name}[t-1] + 0.4 * @ * sum[{k}](@ * {s.name}[t-1]) + @"
        return _fill(pattern, self.gate(place), a, b, self.term(place))

    def _over(self, s: State, place: Place) -> Expr:
        b = _fill(f"(@ + {self.having(frozenset((s.over,)), place).text})", self.term(place))
        return _fill(f"@ * {s.name}[t-1] + sin(@)", self.gate(place), b)

    def _writes(self, s: State, place: Place) -> Expr:
        """Several writes a token, the error named: it is read with the running value."""
        k = s.dims[0]
        outer = place.within(place.dims - {k})
        body = _fill("@ + @", self.having(frozenset((k, s.over)), place.within({k, s.over})), self.leaf(outer))
        key = self.named(_fill(f"l2norm[{k}](@, eps=0.01)", body))
        error = _fill(f"@ - sum[{k}](@ * {s.name}[t-1])", self.term(outer), key)
        dims = (error.dims | frozenset(s.dims)) - {k}
        error = self.named(replace(error, dims=dims, reads=error.reads | {s.name}))
        return _fill(f"{s.name}[t-1] + @ * @ * @", self.gate(outer), key, error)

    def _learner(self, s: State, place: Place) -> Expr:
        """A step of gradient descent on a loss: affine where that is quadratic."""
        k, v = s.dims[:2]
        key, target = self.unit_vector(k, place.within({k})), self.term(place.within({v}))
        guess = self.text(f"sum[{k}](@ * {s.name}[t-1])", f"tanh(sum[{k}](@ * {s.name}[t-1]))")
        loss = _fill(f"0.5 * sum[{v}](square({guess} - @))", key, target)
        loss = self.named(replace(loss, dims=NONE, reads=loss.reads | {s.name}))
        return _fill(f"@ * {s.name}[t-1] - 0.5 * grad(@, {s.name}[t-1])", self.gate(place), loss)

    def _rotation1(self, s: State, place: Place) -> Expr:
        other = self.states[place.level + 1].name
        return _fill(f"0.6 * @ * {s.name}[t-1] - 0.7 * {other}[t-1] + @", self.gate(place), self.term(place))

    def _rotation2(self, s: State, place: Place) -> Expr:
        other = self.states[place.level - 1].name
        read = f"{other}[{self.text('t', 't-1')}]"
        return _fill(f"0.6 * {s.name}[t-1] + 0.7 * @ * {read} + @", self.gate(place), self.term(place))

    def _weights1(self, s: State, place: Place) -> Expr:
        # Something new at each token, or both sides may be equal in exact arithmetic only.
        x = self.inputs[0]
        over = tuple(d for d in x.dims if d not in s.dims)
        new = Expr(f"mean{_brackets(over)}({x.name})" if over else x.name, frozenset(x.dims) - frozenset(over))
        return _fill(f"max({s.name}[t-1], @ + 0.1 * @)", self.term(place), new)

    def _weights2(self, s: State, place: Place) -> Expr:
        """What is weighted by exp of something whose running maximum is the state before."""
        m = self.states[place.level - 1].name
        decay = self.named(Expr(f"exp({m}[t-1] - {m}[t])", frozenset(s.dims), place.level), "decay")
        return _fill(f"@ * {s.name}[t-1] + @", decay, self.term(place))

    def _complex(self, s: State, place: Place) -> Expr:
        angle = self.term(place)
        lam = _fill("exp(-softplus(@) + 1j * @)", self.expr(place, self.size - 1), angle)
        if self.flip():
            name = self.fresh()
            self.equations.append(f"{self.text('decay ', '')}{name} = {lam.text}")
            lam = replace(lam, text=name)
        b = _fill("(@ + 1j * @)", self.term(place), self.term(place))
        return _fill(f"@ * {s.name}[t-1] + @", lam, b)

    def _spiral(self, s: State, place: Place) -> Expr:
        turned = f"linear[{s.dims[0]}]({s.name}[t-1])" if s.dims else f"conj({s.name}[t-1])"
        start = _fill(f"where(@, 0, 0.5 * {s.name}[t-1])", self.condition(place))
        b = _fill("@ * exp(1j * @)", self.term(place), self.leaf(place))
        return _fill(f"@ + 0.3 * @ * {turned} + @", start, self.gate(place), b)

    def _anything(self, s: State, place: Place) -> Expr:
        return self.squashed(replace(place, without=frozenset()), self.size)

    # --- outputs -----------------------------------------------------------------------------------------------------

    def outputs(self, level: int) -> list[str]:
        found: list[str] = []
        for i in range(self.number(1, 2)):
            last = self.states[-1].name
            expr = self.expr(Place(frozenset(self.some(self.sizes, 2)), level), self.size).text
            found.append(self.text(f"output out{i}x = {expr}", f"output {expr}" if i == 0 else f"output {last}[t]"))
        if not any(f"{s.name}[t]" in line for s in self.states for line in found):
            found.append(f"output seen = {self.states[-1].name}[t]")
        return list(dict.fromkeys(found))


_EXPRESSIONS: tuple[Callable[[Builder, Place, int], Expr | None], ...] = (
    Builder.binary,
    Builder.select,
    Builder.reduction,
    Builder.linear,
    Builder.unary,
    Builder.normal,
    Builder.conv,
    Builder.rename,
    Builder.resize,
    Builder.binary,
    Builder.solve,
)


def _brackets(dims: tuple[str, ...]) -> str:
    return f"[{', '.join(dims)}]" if dims else ""


@st.composite
def programs(draw: st.DrawFn, size: int = 2) -> Program:
    """Random programs; `size` (1 to 6) bounds how many values they have and how deep expressions are."""
    return Builder(draw, size).program()
