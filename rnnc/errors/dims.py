"""RNN2xx: dims and sizes."""

from __future__ import annotations

from dataclasses import dataclass

from rnnc.diagnostics import Diagnostic, Edit
from rnnc.errors.wording import circle_text, dims_of, quoted
from rnnc.source import Span


@dataclass(frozen=True)
class ExtraDims(Diagnostic):
    code = "RNN201"
    title = "a result with dims that its declaration lacks"
    page = """\
What is assigned to a state, and what initialises a state, a param or a buffer, may lack dims of the declaration (it
broadcasts), but must not add any.

```rnn
state S[H, K]
S[t] = a * S[t-1] + k * v              # wrong, where `v[H, V]`: the product has `V`
S[t] = a * S[t-1] + k * sum[V](v)      # right
```
"""

    name: str
    extra: tuple[str, ...]
    declared: tuple[str, ...]

    def message(self) -> str:
        return f"this has {dims_of(self.extra)}, which `{self.name}` lacks"

    def label(self) -> str:
        return f"has {quoted(self.extra)}"

    def help(self) -> str:
        dims = ", ".join((*self.declared, *self.extra))
        return f"declare `{self.name}[{dims}]`, or sum: `sum[{', '.join(self.extra)}](...)`"


@dataclass(frozen=True)
class DimsDiffer(Diagnostic):
    code = "RNN202"
    title = "a definition with other dims than it says"
    page = """\
Dims behind the name of a definition are a guard against an outer product that nobody meant: the right-hand side must
have exactly these, neither more nor fewer.

```rnn
o[H, V] = q * S[t]              # wrong: `K` is still there
o[H, V] = sum[K](q * S[t])      # right
```
"""

    name: str
    found: tuple[str, ...]
    declared: tuple[str, ...]
    extra: tuple[str, ...]
    lacking: tuple[str, ...]

    def message(self) -> str:
        parts = [f"adds {quoted(self.extra)}"] if self.extra else []
        parts += [f"lacks {quoted(self.lacking)}"] if self.lacking else []
        return f"`{self.name}` has {dims_of(self.declared)}, but its right-hand side {' and '.join(parts)}"

    def label(self) -> str:
        return f"has {dims_of(self.found)}"

    def help(self) -> str:
        if self.extra:
            return f"sum over what is too much: `sum[{', '.join(self.extra)}](...)`"
        shown = f"{self.name}[{', '.join(self.found)}]" if self.found else self.name
        return f"write `{shown} = ...`; it broadcasts where it is used"


@dataclass(frozen=True)
class MissingDim(Diagnostic):
    code = "RNN203"
    title = "an operation along a dim that its operand lacks"
    page = """\
`sum[K](e)`, `softmax[K](e)`, `linear[K](e)`, `e[K -> J]` and the like need an operand that has the dim `K`.

```rnn
input v[H, V]
s = sum[K](v)        # wrong: `v` has no `K`
s = sum[V](v)        # right
```
"""

    dim: str
    text: str
    present: tuple[str, ...]
    nearest: str | None

    def message(self) -> str:
        return f"`{self.text}` has no dim `{self.dim}`"

    def label(self) -> str:
        return "not a dim of it"

    def help(self) -> str:
        if self.nearest is not None:
            return f"did you mean `{self.nearest}`?"
        return f"it has {dims_of(self.present)}"

    def edit(self) -> Edit | None:
        return None if self.nearest is None else Edit(self.span, self.nearest)


@dataclass(frozen=True)
class TermWithoutDim(Diagnostic):
    code = "RNN204"
    severity = "warning"
    title = "a term that a sum counts several times"
    page = """\
In `sum[K](a + b)` a term that lacks `K` is the same for each of its entries, so it counts `K` times.

```rnn
s = sum[K](k * S[t-1] - v)          # `v` has no `K`: this is ... - K * v
s = sum[K](k * S[t-1]) - v          # most likely meant
```
"""

    text: str
    lacking: tuple[str, ...]

    def message(self) -> str:
        return f"`{self.text}` has no {quoted(self.lacking)}, so the sum counts it `{' * '.join(self.lacking)}` times"

    def label(self) -> str:
        return f"has no {quoted(self.lacking)}"

    def help(self) -> str:
        return "move it out of the sum, or multiply it by the size to say that this is meant"


@dataclass(frozen=True)
class BadSize(Diagnostic):
    code = "RNN205"
    title = "a size that is no whole number"
    page = """\
A dim has a whole number of entries, at least 1. A derived one is made of other dims with `+`, `-`, `*` and `/`.

```rnn
dim D = 0             # wrong
dim D = 512           # right
dim P = D / 8         # right
```
"""

    name: str
    text: str

    def message(self) -> str:
        return f"the size of `{self.name}` cannot be `{self.text}`"

    def label(self) -> str:
        return "not a size"

    def help(self) -> str:
        return "a size is a whole number from 1 to 2147483647, or made of other dims with `+`, `-`, `*` and `/`"


@dataclass(frozen=True)
class DoesNotDivide(Diagnostic):
    code = "RNN206"
    title = "a derived size that does not come out whole"
    page = """\
`dim P = D / H` must be a whole number of at least 1, at the defaults and for every choice of sizes.

```rnn
dim D = 100, H = 8, P = D / H        # wrong: 12.5
dim D = 96, H = 8, P = D / H         # right: 12
```
"""

    name: str
    text: str
    numbers: str

    def message(self) -> str:
        return f"the size of `{self.name}` is no whole number of at least 1: `{self.text}` is {self.numbers}"

    def label(self) -> str:
        return self.numbers

    def help(self) -> str:
        return "change the defaults so that it comes out whole"


@dataclass(frozen=True)
class SizesDiffer(Diagnostic):
    code = "RNN207"
    title = "sizes that must be equal and are not"
    page = """\
A dim is renamed to one of equal size, and split into or merged from dims whose product is its size: at the defaults,
and for every choice of sizes (the generated module checks that).

```rnn
dim K = 64, J = 32
u = k[K -> J]                # wrong: 64 and 32
dim D = 64, H = 4, P = D / H
u = x[D -> H * P]            # right
```
"""

    left: tuple[str, ...]
    right: tuple[str, ...]
    left_size: str
    right_size: str

    def message(self) -> str:
        a, b = " * ".join(self.left), " * ".join(self.right)
        return f"`{a}` and `{b}` differ in size: {self.left_size} and {self.right_size}"

    def label(self) -> str:
        return f"{self.left_size} is not {self.right_size}"

    def help(self) -> str:
        return "the sizes on both sides must be equal, at the defaults too"


@dataclass(frozen=True)
class DimTwice(Diagnostic):
    code = "RNN208"
    title = "a value that would have a dim twice"
    page = """\
A value has each dim once.

```rnn
input A[N, M]
B = A[N -> M]                              # wrong: `A` has `M` already
dim N = 8, M = N, L = N
B = A[N -> L]                              # right
```
"""

    dim: str
    present: tuple[str, ...]

    def message(self) -> str:
        return f"the value has the dim `{self.dim}` already"

    def label(self) -> str:
        return "would be there twice"

    def help(self) -> str:
        return f"it has {dims_of(self.present)}; use a dim of another name"


@dataclass(frozen=True)
class DimRepeated(Diagnostic):
    code = "RNN209"
    title = "a dim that is named twice"
    page = """\
```rnn
dim N = 64
param A[N, N] = orthogonal           # wrong
dim N = 64, M = N
param A[N, M] = orthogonal           # right
```
"""

    dim: str

    def message(self) -> str:
        return f"the dim `{self.dim}` is named twice"

    def label(self) -> str:
        return "again here"

    def help(self) -> str:
        return "each dim stands once; declare a second one of the same size (`dim M = N`) for the other axis"


@dataclass(frozen=True)
class WhichDims(Diagnostic):
    code = "RNN210"
    title = "a reduction that does not say along which dims"
    page = """\
`sum`, `mean`, `logsumexp`, `softmax`, `l2norm`, `rmsnorm` and `layernorm` name their dims in square brackets; `max`
and `min` do where they have one argument.

```rnn
s = sum(k * v)           # wrong
s = sum[K](k * v)        # right
```
"""

    function: str
    present: tuple[str, ...] | None
    only: str | None

    def message(self) -> str:
        return f"`{self.function}` needs to know along which dims"

    def label(self) -> str:
        return f"`{self.function}[...]`"

    def help(self) -> str:
        if self.present is None:
            return f"write `{self.function}[K](...)`"
        return f"its operand has {dims_of(self.present)}"

    def edit(self) -> Edit | None:
        return None if self.only is None else Edit(self.span, f"{self.function}[{self.only}]")


@dataclass(frozen=True)
class BracketOnValue(Diagnostic):
    code = "RNN211"
    title = "square brackets behind a value that are no time and no renaming"
    page = """\
Dims are written where a name is declared, not where it is used. Behind a value stands a time (`h[t-1]`) or a renaming
(`k[K -> J]`, `x[D -> H * P]`, `y[H * P -> D]`). There is no indexing by number.

```rnn
u = k[K] * v[V]        # wrong
u = k * v              # right
```
"""

    text: str
    inner: Span
    dims: bool

    def message(self) -> str:
        return f"the brackets behind `{self.text}` hold neither a time nor a renaming"

    def label(self) -> str:
        return "what is meant?"

    def help(self) -> str:
        if self.dims:
            return "dims are written where a name is declared, and left out where it is used"
        return "write `[t-1]`, `[K -> J]`, `[D -> H * P]` or `[H * P -> D]`"

    def edit(self) -> Edit | None:
        return Edit(self.inner, "") if self.dims else None


@dataclass(frozen=True)
class OneDimAtATime(Diagnostic):
    code = "RNN212"
    title = "a renaming of several dims at once"
    page = """\
A renaming has one dim on at least one side: `[K -> J]`, `[D -> H * P]` or `[H * P -> D]`. Several are written one
behind the other.

```rnn
u = S[t-1][K, V -> J, W]            # wrong
u = S[t-1][K -> J][V -> W]          # right
```
"""

    def message(self) -> str:
        return "a renaming takes one dim at a time"

    def label(self) -> str:
        return "several on both sides"

    def help(self) -> str:
        return "write `[K -> J]`, `[D -> H * P]` or `[H * P -> D]`, one behind the other"


@dataclass(frozen=True)
class NotScalar(Diagnostic):
    code = "RNN213"
    title = "a number is needed, not a value with dims"
    page = """\
The arguments of `normal`, `uniform`, `loguniform` and `arange` are single numbers.

```rnn
buffer s[N] = arange[N](1)
param A[N] = normal(s)             # wrong
param A[N] = s * normal(1)         # right
```
"""

    text: str
    dims: tuple[str, ...]

    def message(self) -> str:
        return f"`{self.text}` has {dims_of(self.dims)}, where a single number belongs"

    def label(self) -> str:
        return "not a single number"

    def help(self) -> str:
        return "multiply the draw instead: `s * normal(1)`"


@dataclass(frozen=True)
class NeedsMatrix(Diagnostic):
    code = "RNN214"
    title = "a matrix initialiser for something that is no matrix"
    page = """\
`orthogonal` and `eye` act on the last two dims of what they initialise.

```rnn
param A[N] = eye              # wrong
param A[N, M] = eye           # right
```
"""

    draw: str
    name: str
    shape: tuple[str, ...]

    def message(self) -> str:
        return f"`{self.draw}` fills the last two dims, and `{self.name}` has {dims_of(self.shape)}"

    def label(self) -> str:
        return "needs two dims"

    def help(self) -> str:
        return "declare two dims, or use `ones`, `normal(std)` or `uniform(a, b)`"


@dataclass(frozen=True)
class ConvWidth(Diagnostic):
    code = "RNN215"
    title = "a convolution whose width is no plain number"
    page = """\
`conv[4](x)` is a causal convolution over 4 tokens. The width is part of the program: a whole number.

```rnn
u = conv[W](x)        # wrong
u = conv[4](x)        # right
```
"""

    limit: int

    def message(self) -> str:
        return "the width of `conv` is no whole number in its range"

    def label(self) -> str:
        return "not a width"

    def help(self) -> str:
        return f"write how many tokens it covers, from 1 to {self.limit}: `conv[4](x)`"


@dataclass(frozen=True)
class SizeCircle(Diagnostic):
    code = "RNN216"
    title = "sizes that are made of each other"
    page = """\
```rnn
dim A = B / 2, B = A * 2        # wrong
dim A = 32, B = A * 2           # right
```
"""

    circle: tuple[str, ...]

    def message(self) -> str:
        return f"these sizes are made of each other: {circle_text(self.circle)}"

    def label(self) -> str:
        return "goes round in a circle"

    def help(self) -> str:
        return "give one of them a number"


@dataclass(frozen=True)
class OverOwnDim(Diagnostic):
    code = "RNN217"
    title = "`over` a dim of the state itself"
    page = """\
`S[t] over J = ...` applies the update once for each entry of `J` of the values on the right. The state itself is the
running value, and has no such dim.

```rnn
state S[J, K]
S[t] over J = S[t-1] + k        # wrong
state S[K]
S[t] over J = S[t-1] + k        # right, where `k[J, K]`
```
"""

    dim: str
    state: str

    def message(self) -> str:
        return f"`{self.state}` has the dim `{self.dim}` itself, so its update cannot go over it"

    def label(self) -> str:
        return f"a dim of `{self.state}`"

    def help(self) -> str:
        return f"take `{self.dim}` out of the dims of `{self.state}`, or leave `over {self.dim}` out"


@dataclass(frozen=True)
class OverWhole(Diagnostic):
    code = "RNN218"
    title = "something made from the running value of an `over` update needs all of its entries"
    page = """\
In `S[t] over J = ...`, `S[t-1]` is the running value: it is another one for each entry of `J`. What is made of it has
one entry of `J` at a time, and cannot be summed along `J`, nor read by a `conv`.

```rnn
S[t] over J = S[t-1] + sum[J](k * S[t-1])      # wrong
S[t] over J = S[t-1] + k * S[t-1]              # right
```
"""

    dim: str
    state: str
    conv: bool

    def message(self) -> str:
        what = "a `conv` reads" if self.conv else f"an operation along `{self.dim}` needs all entries of"
        return f"{what} something made from the running value of `{self.state}`"

    def label(self) -> str:
        return f"has one entry of `{self.dim}` at a time"

    def help(self) -> str:
        if self.conv:
            return "use the convolution of something that does not depend on the state"
        return f"within `over {self.dim}` values are one entry of `{self.dim}` each: leave the operation out"


@dataclass(frozen=True)
class ManyMatrices(Diagnostic):
    code = "RNN219"
    severity = "note"
    title = "a learned map with one matrix for each entry of several dims"
    page = """\
`linear[V](e)` maps along `V` and keeps all other dims of `e`, with a separate matrix for each of their entries. Where
these are many, that is a lot of parameters, and rarely meant.

```rnn
u = linear[V](S[t-1])           # with `S[H, K, V]`: `H * K` matrices of `V * V`
u = linear[V](o)                # with `o[H, V]`: `H` matrices
```
"""

    kept: tuple[str, ...]

    def message(self) -> str:
        return f"this learns `{' * '.join(self.kept)}` matrices, one for each entry of {quoted(self.kept)}"

    def label(self) -> str:
        return "separate matrices"

    def help(self) -> str:
        return f"for one shared matrix declare it: a `param` without {quoted(self.kept)}, and `sum` over the product"
