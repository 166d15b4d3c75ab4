"""RNN3xx: time, states, updates and circles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rnnc.diagnostics import Diagnostic, Edit
from rnnc.errors.wording import article, circle_text
from rnnc.source import Span


@dataclass(frozen=True)
class NoUpdate(Diagnostic):
    code = "RNN301"
    title = "a state without an update"
    page = """\
Each state has exactly one update.

```rnn
state h[D]                          # wrong, if there is nothing else
h[t] = a * h[t-1] + x               # right
```
"""

    name: str

    def message(self) -> str:
        return f"the state `{self.name}` has no update"

    def label(self) -> str:
        return "never updated"

    def help(self) -> str:
        return f"write `{self.name}[t] = ...`"


@dataclass(frozen=True)
class TwoUpdates(Diagnostic):
    code = "RNN302"
    title = "a state with two updates"
    page = """\
Each state has exactly one update. Several writes a token are `S[t] over J = ...`.

```rnn
h[t] = a * h[t-1]
h[t] = h[t] + x              # wrong
h[t] = a * h[t-1] + x        # right
```
"""

    name: str
    first: Span

    def message(self) -> str:
        return f"the state `{self.name}` has two updates"

    def label(self) -> str:
        return "again here"

    def help(self) -> str:
        return "make them one equation"

    def related(self) -> Sequence[tuple[Span, str]]:
        return ((self.first, "first here"),)


@dataclass(frozen=True)
class NotAState(Diagnostic):
    code = "RNN303"
    title = "an update of something that is no state"
    page = """\
`h[t] = ...` updates a state. Anything else is defined by its bare name, which means its value at `t`.

```rnn
z[t] = sigmoid(x)          # wrong, where `z` is no state
z = sigmoid(x)             # right
```
"""

    name: str
    role: str
    nearest: str | None
    head: Span | None

    def message(self) -> str:
        if self.role:
            return f"`{self.name}` is {article(self.role)}, and only a state has an update"
        return f"`{self.name}` is not declared as a state"

    def label(self) -> str:
        return "not a state"

    def help(self) -> str:
        if self.nearest is not None:
            return f"did you mean `{self.nearest}`?"
        if self.role:
            return "give the state another name, and declare it: `state S[...]`"
        return f"declare `state {self.name}[...]`, or define `{self.name} = ...`"

    def edit(self) -> Edit | None:
        if self.nearest is not None:
            return Edit(self.span, self.nearest)
        return None if self.head is None else Edit(self.head, self.name)


@dataclass(frozen=True)
class UpdateIndex(Diagnostic):
    code = "RNN304"
    title = "an update at another time than `t`"
    page = """\
An update says what a state is at `t`, from what it was before.

```rnn
h[t+1] = a * h[t] + x          # wrong
h[t] = a * h[t-1] + x          # right
```
"""

    name: str
    index: str

    def message(self) -> str:
        return f"an update is written `{self.name}[t] = ...`, not `{self.name}[{self.index}] = ...`"

    def label(self) -> str:
        return "`t` belongs here"

    def help(self) -> str:
        return f"write `{self.name}[t]` on the left, and `{self.name}[t-1]` for its value before"


@dataclass(frozen=True)
class Circle(Diagnostic):
    code = "RNN305"
    title = "values that need each other within a step"
    page = """\
Within one step, values are computed one after the other, so none may need itself. What it was before is `h[t-1]`; a
bare `h` is `h[t]`.

```rnn
h[t] = a * h + x              # wrong: `h` is `h[t]`
h[t] = a * h[t-1] + x         # right
```
"""

    circle: tuple[str, ...]
    states: frozenset[str]
    late: str | None
    """The one state in the circle, which `span` reads at `t`."""

    def message(self) -> str:
        names = [f"{n}[t]" if n in self.states else n for n in self.circle]
        return f"within a step, `{names[0]}` needs itself: {circle_text(names)}"

    def label(self) -> str:
        return "closes the circle"

    def help(self) -> str:
        if self.late is not None:
            return f"the value before this step is `{self.late}[t-1]`"
        if self.states:
            return "read one of the states as it was before this step, with `[t-1]`"
        return "one of them must be defined without the others; what carries over from token to token is a `state`"

    def edit(self) -> Edit | None:
        return None if self.late is None else Edit(self.span, f"{self.late}[t-1]")


@dataclass(frozen=True)
class OwnPast(Diagnostic):
    code = "RNN306"
    title = "a definition that reaches its own past"
    page = """\
A definition has no value before the first token to start from. What goes on from its own past is a state.

```rnn
y = x + y[t-1]              # wrong

state y[D]                  # right
y[t] = x + y[t-1]
```
"""

    circle: tuple[str, ...]
    late: str

    def message(self) -> str:
        return f"the definition `{self.late}` reaches its own past: {circle_text(self.circle)}"

    def label(self) -> str:
        return "reads the past here"

    def help(self) -> str:
        return f"declare `state {self.late}[...]` and write `{self.late}[t] = ...`"


@dataclass(frozen=True)
class Future(Diagnostic):
    code = "RNN307"
    title = "a value from the future"
    page = """\
A cell reads tokens in order, and knows none that is still to come.

```rnn
u = x[t+1] - x        # wrong
u = x - x[t-1]        # right
```
"""

    name: str
    index: str

    def message(self) -> str:
        return f"`{self.name}{self.index}` is in the future"

    def label(self) -> str:
        return "not known at `t`"

    def help(self) -> str:
        return f"only the present (`{self.name}`) and the past (`{self.name}[t-1]`, `{self.name}[t-2]`, ...) are known"


@dataclass(frozen=True)
class LagNotConstant(Diagnostic):
    code = "RNN308"
    title = "a lag that is no constant"
    page = """\
How many tokens back a value is read is a number in the program.

```rnn
u = x[t-k]            # wrong
u = x[t-3]            # right
u = h[0]              # wrong: there is no fixed time
```
"""

    name: str
    index: str
    state: bool

    def message(self) -> str:
        return f"`{self.index}` is not a time with a constant lag"

    def label(self) -> str:
        return "not `[t - number]`"

    def help(self) -> str:
        first = f"; the value before the first token is set by `state {self.name}[...] = ...`" if self.state else ""
        return f"write `{self.name}[t]`, `{self.name}[t-1]`, `{self.name}[t-2]`, ...{first}"


@dataclass(frozen=True)
class LagTooLong(Diagnostic):
    code = "RNN309"
    title = "a lag that is too long"
    page = """\
Every value of the past that is read is kept in the cell's state. For a long memory use a state, or `conv`.

```rnn
u = x[t-1000]        # wrong
u = x[t-8]           # right
```
"""

    text: str
    limit: int

    def message(self) -> str:
        return f"`{self.text}` reaches back too far"

    def label(self) -> str:
        return f"more than {self.limit}"

    def help(self) -> str:
        return f"at most {self.limit} tokens of the past are kept; for a long memory use a state, or `conv`"


@dataclass(frozen=True)
class TimeOnExpression(Diagnostic):
    code = "RNN310"
    title = "a time index on something else than a name"
    page = """\
Only a bare name takes a time index.

```rnn
u = (x * g)[t-1]          # wrong

y = x * g                 # right
u = y[t-1]
```
"""

    text: str
    index: str

    def message(self) -> str:
        return f"`{self.text}` is not a name, and only a name takes a time index"

    def label(self) -> str:
        return f"`{self.index}` on an expression"

    def help(self) -> str:
        return f"give it a name: `y = {self.text}`, then `y{self.index}`"


@dataclass(frozen=True)
class TimelessIndexed(Diagnostic):
    code = "RNN311"
    title = "a time index on something that does not change"
    page = """\
Dims, constants, params and buffers are the same at every token.

```rnn
h[t] = A[t] * h[t-1]          # wrong, where `param A[D]`
h[t] = A * h[t-1]             # right
```
"""

    name: str
    role: str
    inner: Span

    def message(self) -> str:
        return f"`{self.name}` is {article(self.role)}, and the same at every token"

    def label(self) -> str:
        return "takes no time"

    def help(self) -> str:
        return "leave the time out"

    def edit(self) -> Edit | None:
        return Edit(self.inner, "")


@dataclass(frozen=True)
class TimeAsValue(Diagnostic):
    code = "RNN312"
    title = "`t` as a value"
    page = """\
`t` stands in time indices only. To count tokens, use a state.

```rnn
u = x / t                     # wrong

state n = 0                   # right
n[t] = n[t-1] + 1
u = x / n
```
"""

    def message(self) -> str:
        return "`t` is no value: it stands in time indices only"

    def label(self) -> str:
        return "not a value"

    def help(self) -> str:
        return "to count tokens, declare `state n` and write `n[t] = n[t-1] + 1`"


@dataclass(frozen=True)
class NotHere(Diagnostic):
    code = "RNN313"
    title = "a value in a place where it is not known"
    page = """\
Initial values, sizes and the ends of ranges are known before the first token, so they are made of what is known then:

* a size: of other dims
* the default of a const: of numbers
* the end of a range: of numbers and consts
* the initial value of a param or a buffer: of numbers, dims, consts and earlier buffers
* the initial value of a state: of numbers, dims, consts, params and buffers

```rnn
state h[D] = x           # wrong, where `input x[D]`

param h0[D] = zeros      # right
state h[D] = h0
```
"""

    name: str
    role: str
    place: str
    allowed: tuple[str, ...]

    def message(self) -> str:
        return f"{self.place} cannot use the {self.role} `{self.name}`"

    def label(self) -> str:
        return "not known there"

    def help(self) -> str:
        kinds = ["numbers", *(f"{kind}s" for kind in self.allowed)]
        return f"it may use {' and '.join([', '.join(kinds[:-1]), kinds[-1]]) if len(kinds) > 1 else kinds[0]}"


@dataclass(frozen=True)
class DeclaredLater(Diagnostic):
    code = "RNN314"
    title = "an initial value made of something that comes later"
    page = """\
Params and buffers are initialised in the order of the file.

```rnn
buffer a[N] = 2 * b               # wrong
buffer b[N] = arange[N](0)

buffer b[N] = arange[N](0)        # right
buffer a[N] = 2 * b
```
"""

    name: str
    place: str
    where: Span

    def message(self) -> str:
        return f"{self.place} needs `{self.name}`, which is declared later"

    def label(self) -> str:
        return "not there yet"

    def help(self) -> str:
        return f"move the declaration of `{self.name}` up"

    def related(self) -> Sequence[tuple[Span, str]]:
        return ((self.where, "declared here"),)


@dataclass(frozen=True)
class NoOutput(Diagnostic):
    code = "RNN315"
    title = "a cell without an output"
    page = """\
A cell has one output or more.

```rnn
h[t] = a * h[t-1] + x
output h[t]                    # this line is missing
```
"""

    def message(self) -> str:
        return "the cell has no `output`"

    def label(self) -> str:
        return "nothing comes out"

    def help(self) -> str:
        return "write `output h[t]`, or any other expression"


@dataclass(frozen=True)
class GradOfWhat(Diagnostic):
    code = "RNN316"
    title = "a gradient with respect to something that is no past state"
    page = """\
`grad(e, W[t-1])` is the gradient of the sum of `e` with respect to a state before this step.

```rnn
W[t] = W[t-1] - eta * grad(loss, W)             # wrong: that is `W[t]`
W[t] = W[t-1] - eta * grad(loss, W[t-1])        # right
```
"""

    text: str
    state: str | None

    def message(self) -> str:
        return f"`grad` takes the gradient with respect to a past state, and `{self.text}` is none"

    def label(self) -> str:
        return "not a past state"

    def help(self) -> str:
        if self.state is not None:
            return f"write `{self.state}[t-1]`"
        return "write a state at a lag: `grad(e, W[t-1])`"

    def edit(self) -> Edit | None:
        return None if self.state is None else Edit(self.span, f"{self.state}[t-1]")


@dataclass(frozen=True)
class GradIsZero(Diagnostic):
    code = "RNN317"
    title = "a gradient of something that does not depend on the state"
    page = """\
`grad(e, W[t-1])` needs an `e` that is made of `W[t-1]`, also through definitions.

```rnn
loss = square(v - k)
W[t] = W[t-1] - grad(loss, W[t-1])                  # wrong: always 0
loss = square(sum[K](k * W[t-1]) - v)               # right
```
"""

    loss: str
    wrt: str

    def message(self) -> str:
        return f"`{self.loss}` does not depend on `{self.wrt}`"

    def label(self) -> str:
        return "its gradient is always 0"

    def help(self) -> str:
        return f"make it of `{self.wrt}`, or check the lag"


@dataclass(frozen=True)
class DecayOfNothing(Diagnostic):
    code = "RNN318"
    title = "a `decay` that multiplies no previous state"
    page = """\
A `decay` is a factor beside something that contains a previous state, in some update. For any other value between 0
and 1 there is `gate`.

```rnn
decay a = sigmoid(x)
h[t] = h[t-1] + a * x             # wrong
h[t] = a * h[t-1] + x             # right
h[t] = a * (h[t-1] - k) + x       # right
```
"""

    name: str

    def message(self) -> str:
        return f"the decay `{self.name}` multiplies no previous state"

    def label(self) -> str:
        return "decays nothing"

    def help(self) -> str:
        return f"multiply a state by it (`S[t] = {self.name} * S[t-1] + ...`), or make it a `gate`"


@dataclass(frozen=True)
class SpectrumOfWhat(Diagnostic):
    code = "RNN319"
    title = "`eigenvalues` of something that is no state"
    page = """\
`eigenvalues S in ...` is a claim about the update of a state.

```rnn
eigenvalues a in [0, 1]          # wrong, where `a` is a definition
a in [0, 1] = sigmoid(x)         # right
eigenvalues S in [0, 1]          # right, where `state S`
```
"""

    name: str
    role: str

    def message(self) -> str:
        return f"`{self.name}` is {article(self.role)}, and only a state has eigenvalues"

    def label(self) -> str:
        return "not a state"

    def help(self) -> str:
        return "name a state; a range of a definition is claimed where it is defined: `a in [0, 1] = ...`"


@dataclass(frozen=True)
class SpectrumTwice(Diagnostic):
    code = "RNN320"
    title = "two claims on the eigenvalues of one state"
    page = """\
```rnn
eigenvalues S in [-1, 1]
eigenvalues S in disc(1)        # wrong: leave one of them out
```
"""

    name: str
    first: Span

    def message(self) -> str:
        return f"the eigenvalues of `{self.name}` are claimed twice"

    def label(self) -> str:
        return "again here"

    def help(self) -> str:
        return "keep the narrower claim"

    def related(self) -> Sequence[tuple[Span, str]]:
        return ((self.first, "first here"),)


@dataclass(frozen=True)
class NoInput(Diagnostic):
    code = "RNN321"
    title = "a cell without an input"
    page = """\
A cell has one input or more: they say how many sequences and tokens there are.

```rnn
input x[D]                     # this line is missing
h[t] = a * h[t-1] + x
```
"""

    def message(self) -> str:
        return "the cell has no `input`"

    def label(self) -> str:
        return "nothing says how many tokens there are"

    def help(self) -> str:
        return "write `input x[D]`, with the dims of one token"
