"""RNN1xx: how functions are called."""

from __future__ import annotations

from dataclasses import dataclass

from rnnc.diagnostics import Diagnostic, Edit
from rnnc.errors.wording import quoted
from rnnc.source import Span


@dataclass(frozen=True)
class FunctionAsValue(Diagnostic):
    code = "RNN106"
    title = "a function without its arguments"
    page = """\
A function is no value: it is called.

```rnn
gate z = sigmoid * x         # wrong
gate z = sigmoid(x)          # right
```
"""

    name: str
    signature: str

    def message(self) -> str:
        return f"`{self.name}` is a function, and is called with arguments"

    def label(self) -> str:
        return "not called"

    def help(self) -> str:
        return f"write `{self.signature}`"


@dataclass(frozen=True)
class NotAFunction(Diagnostic):
    code = "RNN107"
    title = "a value that is called"
    page = """\
Round brackets behind a name call a function. Time stands in square ones.

```rnn
h[t] = a * h(t-1)        # wrong
h[t] = a * h[t-1]        # right
```
"""

    text: str
    index: str | None
    times: Span | None

    def message(self) -> str:
        return f"`{self.text}` is not a function"

    def label(self) -> str:
        return "called here"

    def help(self) -> str:
        if self.index is not None:
            return "time stands in square brackets"
        return "to multiply, write `*`"

    def edit(self) -> Edit | None:
        if self.index is not None:
            return Edit(self.span, f"{self.text}[{self.index}]")
        return None if self.times is None else Edit(self.times, " * ")


@dataclass(frozen=True)
class UnknownFunction(Diagnostic):
    code = "RNN108"
    title = "a function that the language does not have"
    page = """\
The functions are listed in the language's description; there are no others, and a program cannot define any.

```rnn
gate z = sigmoyd(x)        # wrong
gate z = sigmoid(x)        # right
```
"""

    name: str
    nearest: str | None
    region: bool = False

    def message(self) -> str:
        return f"no {'range' if self.region else 'function'} is called `{self.name}`"

    def label(self) -> str:
        return "unknown"

    def help(self) -> str:
        if self.nearest is not None:
            return f"did you mean `{self.nearest}`?"
        if self.region:
            return "a range is `[a, b]`, `(a, b)`, `disc(r)` or `annulus(r, s)`"
        return "write it out with the functions of the language; to multiply, write `*`"

    def edit(self) -> Edit | None:
        return None if self.nearest is None else Edit(self.span, self.nearest)


@dataclass(frozen=True)
class WrongArguments(Diagnostic):
    code = "RNN109"
    title = "a function called with the wrong arguments"
    page = """\
Each function has its number of arguments; some take dims in square brackets, and `linear` has an arrow.

```rnn
u = where(done, x)             # wrong: what if not?
u = where(done, x, 0)          # right
```
"""

    name: str
    fault: str
    signature: str

    def message(self) -> str:
        return f"`{self.name}` cannot be called {self.fault}"

    def label(self) -> str:
        return "does not fit"

    def help(self) -> str:
        return f"write `{self.signature}`"


@dataclass(frozen=True)
class UnknownOption(Diagnostic):
    code = "RNN110"
    title = "an option that the function does not have"
    page = """\
`linear` has `bias=true` and `init=orthogonal`, `conv` has `bias=true`, `l2norm`, `rmsnorm` and `layernorm` have
`eps=1e-6`, `weight=true` and `bias=true`.

```rnn
c = linear(x -> D, bais=true)        # wrong
c = linear(x -> D, bias=true)        # right
```
"""

    option: str
    function: str
    known: tuple[str, ...]
    nearest: str | None

    def message(self) -> str:
        return f"`{self.function}` has no option `{self.option}`"

    def label(self) -> str:
        return "unknown option"

    def help(self) -> str:
        if self.nearest is not None:
            return f"did you mean `{self.nearest}`?"
        if not self.known:
            return "it has no options"
        return f"its option{'s are' if len(self.known) > 1 else ' is'} {quoted(self.known)}"

    def edit(self) -> Edit | None:
        return None if self.nearest is None else Edit(self.span, self.nearest)


@dataclass(frozen=True)
class OptionTwice(Diagnostic):
    code = "RNN111"
    title = "an option that is given twice"
    page = """\
```rnn
c = linear(x -> D, bias=true, bias=false)        # wrong
c = linear(x -> D, bias=true)                    # right
```
"""

    option: str

    def message(self) -> str:
        return f"the option `{self.option}` is given twice"

    def label(self) -> str:
        return "again here"

    def help(self) -> str:
        return "leave one of them out"


@dataclass(frozen=True)
class OptionValue(Diagnostic):
    code = "RNN112"
    title = "an option with a value that it cannot have"
    page = """\
`bias` and `weight` are `true` or `false`, `eps` is a number, and `init` is `orthogonal`.

```rnn
c = linear(x -> D, bias=1)           # wrong
c = linear(x -> D, bias=true)        # right
```
"""

    option: str
    valid: str

    def message(self) -> str:
        return f"the option `{self.option}` cannot have this value"

    def label(self) -> str:
        return "not valid"

    def help(self) -> str:
        return f"it is {self.valid}"
