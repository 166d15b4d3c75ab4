"""RNN4xx: operations and the kinds of numbers they take, initial values, ranges as written."""

from __future__ import annotations

from dataclasses import dataclass

from rnnc.diagnostics import Diagnostic, Edit
from rnnc.source import Span


@dataclass(frozen=True)
class ComplexOperand(Diagnostic):
    code = "RNN401"
    title = "a complex number where only a real one has a meaning"
    page = """\
Complex numbers have no order, and functions such as `sigmoid` have no agreed meaning for them. Arithmetic, `==`,
`abs`, `exp`, `log`, `sqrt`, `sin`, `cos`, `tanh`, `sum`, `mean`, `linear` and `conv` take them.

```rnn
u = sigmoid(h[t])              # wrong, where `state h[N]: complex`
u = sigmoid(real(h[t]))        # right
```
"""

    text: str
    op: str

    def message(self) -> str:
        return f"`{self.op}` takes no complex numbers, and `{self.text}` is complex"

    def label(self) -> str:
        return "complex"

    def help(self) -> str:
        return "take `real(...)`, `imag(...)` or `abs(...)` of it"


@dataclass(frozen=True)
class NotBool(Diagnostic):
    code = "RNN402"
    title = "a number where true or false is needed"
    page = """\
The condition of `where` and the operands of `and`, `or` and `not` are comparisons or bool inputs.

```rnn
u = where(done, 0, x)              # wrong, where `input done`
input done: bool                   # right
u = where(done > 0.5, 0, x)        # also right
```
"""

    text: str
    op: str
    kind: str

    def message(self) -> str:
        return f"`{self.op}` needs true or false, and `{self.text}` is {self.kind}"

    def label(self) -> str:
        return "not bool"

    def help(self) -> str:
        return "compare it (`... > 0`), or declare it as `: bool`"


@dataclass(frozen=True)
class ComplexIntoReal(Diagnostic):
    code = "RNN403"
    title = "a complex value for something real"
    page = """\
A state is real unless it is declared as complex.

```rnn
state h[N]                     # wrong, with a complex update
state h[N]: complex            # right
```
"""

    name: str
    role: str
    at: Span | None

    def message(self) -> str:
        return f"this is complex, and the {self.role} `{self.name}` is real"

    def label(self) -> str:
        return "complex"

    def help(self) -> str:
        return f"declare `{self.name}` as `: complex`, or take `real(...)`"

    def edit(self) -> Edit | None:
        return None if self.at is None else Edit(self.at, ": complex")


@dataclass(frozen=True)
class BoolHere(Diagnostic):
    code = "RNN404"
    title = "something that cannot be bool"
    page = """\
Inputs and buffers may be bool; a state and a param are real or complex.

```rnn
state seen: bool                       # wrong

state seen                             # right: 0 or 1
seen[t] = max(seen[t-1], x > 0)
```
"""

    name: str
    what: str

    def message(self) -> str:
        return f"the {self.what} `{self.name}` cannot be bool"

    def label(self) -> str:
        return "not here"

    def help(self) -> str:
        return "leave it out: a real number can be 0 or 1"


@dataclass(frozen=True)
class RegionOfKind(Diagnostic):
    code = "RNN405"
    title = "a range that does not fit the kind of number"
    page = """\
A real value lies in an interval, a complex one in `disc(r)` or `annulus(r, s)`; a bool one has no range.

```rnn
lam in [0, 1] = exp(1j * x)           # wrong
lam in disc(1) = exp(1j * x)          # right
```
"""

    text: str
    kind: str

    def message(self) -> str:
        return f"a {self.kind} value cannot lie in `{self.text}`"

    def label(self) -> str:
        return f"not for {self.kind} values"

    def help(self) -> str:
        if self.kind == "complex":
            return "write `in disc(r)` or `in annulus(r, s)`"
        return "write `in [a, b]`" if self.kind == "real" else "leave the range out"


@dataclass(frozen=True)
class EmptyRegion(Diagnostic):
    code = "RNN406"
    title = "a range that holds nothing"
    page = """\
```rnn
input f[H] in [1, 0]        # wrong
input f[H] in [0, 1]        # right
```
"""

    text: str

    def message(self) -> str:
        return f"nothing lies in `{self.text}`"

    def label(self) -> str:
        return "empty"

    def help(self) -> str:
        return "the lower end comes first, and a radius is at least 0"


@dataclass(frozen=True)
class RegionEnd(Diagnostic):
    code = "RNN407"
    title = "a range whose end is no real number"
    page = """\
The ends of ranges are real numbers, made of literals and consts.

```rnn
a in [0, 1j] = ...        # wrong
a in [0, 1] = ...         # right
```
"""

    text: str

    def message(self) -> str:
        return f"`{self.text}` is not a real number"

    def label(self) -> str:
        return "not an end of a range"

    def help(self) -> str:
        return "write a number, or a const"


@dataclass(frozen=True)
class ConstDefault(Diagnostic):
    code = "RNN408"
    title = "a const whose default is no real number"
    page = """\
```rnn
const c = 1j            # wrong
const c = 8.0           # right
```
"""

    name: str
    text: str

    def message(self) -> str:
        return f"the default of `{self.name}` is no real number: `{self.text}`"

    def label(self) -> str:
        return "not a real number"

    def help(self) -> str:
        return "write a number, such as `8.0`"


@dataclass(frozen=True)
class ConstOutside(Diagnostic):
    code = "RNN409"
    title = "a const whose default lies outside its range"
    page = """\
```rnn
const c in (0, inf) = 0          # wrong
const c in (0, inf) = 8.0        # right
```
"""

    name: str
    text: str
    region: str

    def message(self) -> str:
        return f"the default of `{self.name}`, `{self.text}`, lies outside `{self.region}`"

    def label(self) -> str:
        return "outside"

    def help(self) -> str:
        return "change the default or the range"


@dataclass(frozen=True)
class DrawElsewhere(Diagnostic):
    code = "RNN410"
    title = "an initialiser outside the declaration of a param"
    page = """\
`zeros`, `ones`, `normal`, `uniform`, `loguniform`, `arange`, `orthogonal` and `eye` fill a `param` or a `buffer` when
a cell is made. An equation has no random numbers.

```rnn
u = x + normal(0.1)                # wrong

param b[D] = normal(0.1)           # right
u = x + b
```
"""

    name: str
    place: str

    def message(self) -> str:
        return f"`{self.name}` initialises a `param` or a `buffer`, and cannot stand in {self.place}"

    def label(self) -> str:
        return "not here"

    def help(self) -> str:
        if self.name in ("zeros", "ones"):
            return "write the number"
        return "declare `param A[...] = ...` with it, and use `A`"

    def edit(self) -> Edit | None:
        return Edit(self.span, "0" if self.name == "zeros" else "1") if self.name in ("zeros", "ones") else None


@dataclass(frozen=True)
class NotInPlace(Diagnostic):
    code = "RNN411"
    title = "an operation that has no meaning in this place"
    page = """\
The initial values of params and buffers, sizes, defaults and the ends of ranges are elementwise. What is learned
(`linear`, `conv`, the scale of a norm) and `grad` stand in equations only.

```rnn
state h[D] = linear(h0 -> D)        # wrong

param h0[D] = normal(0.02)          # right
state h[D] = h0
```
"""

    what: str
    place: str
    elementwise: bool

    def message(self) -> str:
        return f"{self.what} cannot stand in {self.place}"

    def label(self) -> str:
        return "not here"

    def help(self) -> str:
        if self.elementwise:
            return "only what is elementwise can stand there"
        return "what is learned, and a gradient, stand in equations; a learned initial value is `= param`"


@dataclass(frozen=True)
class ImpossibleDraw(Diagnostic):
    code = "RNN412"
    title = "an initialiser with impossible arguments"
    page = """\
```rnn
param A[D] = loguniform(0, 1)          # wrong: the logarithm of 0
param A[D] = loguniform(1e-3, 1)       # right
```
"""

    text: str
    rule: str

    def message(self) -> str:
        return f"`{self.text}` draws nothing: {self.rule}"

    def label(self) -> str:
        return "impossible"

    def help(self) -> str:
        return "write `normal(std)`, `uniform(lo, hi)` or `loguniform(lo, hi)` with numbers in order"


@dataclass(frozen=True)
class RegionAsValue(Diagnostic):
    code = "RNN413"
    title = "a range where a value belongs"
    page = """\
`disc(r)` and `annulus(r, s)` stand behind `in`.

```rnn
u = disc(1)                            # wrong
lam in disc(1) = exp(1j * x)           # right
```
"""

    name: str

    def message(self) -> str:
        return f"`{self.name}` is a range, not a value"

    def label(self) -> str:
        return "not a value"

    def help(self) -> str:
        return "it stands behind `in`"


@dataclass(frozen=True)
class GateRange(Diagnostic):
    code = "RNN414"
    title = "a gate with a range of its own"
    page = """\
A `gate` lies in `[0, 1]`. Another range is claimed by a plain definition.

```rnn
gate b in [0, 2] = 2 * sigmoid(x)       # wrong
b in [0, 2] = 2 * sigmoid(x)            # right
```
"""

    name: str
    keyword: Span

    def message(self) -> str:
        return f"the gate `{self.name}` lies in `[0, 1]` by what a gate is"

    def label(self) -> str:
        return "another range"

    def help(self) -> str:
        return "leave `gate` out to claim another range"

    def edit(self) -> Edit | None:
        return Edit(self.keyword, "")


@dataclass(frozen=True)
class ComplexGate(Diagnostic):
    code = "RNN415"
    title = "a gate that is complex"
    page = """\
A `gate` lies between 0 and 1, so it is real. A complex factor is a `decay`, or claims `in disc(1)`.

```rnn
gate a = exp(1j * x)              # wrong
decay a = exp(1j * x)             # right, where it multiplies a state
a in disc(1) = exp(1j * x)        # right
```
"""

    name: str

    def message(self) -> str:
        return f"the gate `{self.name}` is complex"

    def label(self) -> str:
        return "complex"

    def help(self) -> str:
        return f"write `{self.name} in disc(1) = ...`"
