"""RNN1xx: names. How functions are called is in `functions`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rnnc.diagnostics import Diagnostic, Edit
from rnnc.errors.wording import article
from rnnc.source import Span


@dataclass(frozen=True)
class UnknownName(Diagnostic):
    code = "RNN101"
    title = "a name that nothing declares"
    page = """\
Every name in an expression is a `dim`, `const`, `input`, `param`, `buffer`, `state` or a definition of the same cell.
The order of the equations does not matter.

```rnn
gate z = sigmoid(linear(x -> D))
h[t] = (1 - z) * h[t-1] + zz * c     # wrong: `zz`
h[t] = (1 - z) * h[t-1] + z * c      # right
```
"""

    name: str
    nearest: str | None

    def message(self) -> str:
        return f"nothing is called `{self.name}`"

    def label(self) -> str:
        return "unknown name"

    def help(self) -> str:
        if self.nearest is not None:
            return f"did you mean `{self.nearest}`?"
        if self.name.startswith("_"):
            return "names that begin with `_` cannot be declared either"
        return (
            f"declare it (`input {self.name}[...]`, `param {self.name}[...] = ...`) or define it (`{self.name} = ...`)"
        )

    def edit(self) -> Edit | None:
        return None if self.nearest is None else Edit(self.span, self.nearest)


@dataclass(frozen=True)
class UnknownDim(Diagnostic):
    code = "RNN102"
    title = "a dim that is not declared"
    page = """\
Every dim is declared with its default size, once.

```rnn
dim H = 4, K = 64
input q[H, P]        # wrong: no dim is called `P`
input q[H, K]        # right
```
"""

    name: str
    nearest: str | None

    def message(self) -> str:
        return f"no dim is called `{self.name}`"

    def label(self) -> str:
        return "not declared"

    def help(self) -> str:
        if self.nearest is not None:
            return f"did you mean `{self.nearest}`?"
        return f"declare it with its default size: `dim {self.name} = 64`"

    def edit(self) -> Edit | None:
        return None if self.nearest is None else Edit(self.span, self.nearest)


@dataclass(frozen=True)
class NotADim(Diagnostic):
    code = "RNN103"
    title = "something that is no dim stands where a dim belongs"
    page = """\
In the brackets of a declaration or of a reduction, and behind `->`, stand dims.

```rnn
dim K = 64
input k[K]
s = sum[k](k * k)    # wrong: `k` is an input
s = sum[K](k * k)    # right
```
"""

    text: str
    role: str

    def message(self) -> str:
        return f"`{self.text}` is {article(self.role)}, not a dim" if self.role else f"`{self.text}` is not a dim"

    def label(self) -> str:
        return "a dim belongs here"

    def help(self) -> str:
        return "write the name of a dim, declared as `dim K = 64`"


@dataclass(frozen=True)
class DeclaredTwice(Diagnostic):
    code = "RNN104"
    title = "a name that is declared twice"
    page = """\
Dims, constants, inputs, params, buffers, states, definitions and outputs share one namespace.

```rnn
input c[D]
c = linear(x -> D)        # wrong: `c` is the input
u = linear(x -> D)        # right
```
"""

    name: str
    first: Span
    update: bool
    """Whether it is a state's name that is defined as a whole."""

    def message(self) -> str:
        return f"`{self.name}` is declared twice"

    def label(self) -> str:
        return "again here"

    def help(self) -> str:
        if self.update:
            return f"a state's next value is written `{self.name}[t] = ...`"
        return "give one of them another name"

    def edit(self) -> Edit | None:
        return Edit(self.span, f"{self.name}[t]") if self.update else None

    def related(self) -> Sequence[tuple[Span, str]]:
        return ((self.first, "first here"),)


@dataclass(frozen=True)
class Reserved(Diagnostic):
    code = "RNN105"
    title = "a name that cannot be declared"
    page = """\
Words of the language, its functions, `t`, Python's keywords, attributes of `torch.nn.Module`, what the generated
class calls its own, `T` as a dim, and names that begin with `_` cannot be declared.

```rnn
gate sigmoid = ...        # wrong
input state[D]            # wrong
dim T = 128               # wrong: `T` is the length of a sequence
```

A cell becomes a class in a module of Python, so it can have the name of no builtin of Python either, nor of anything
that the generated module imports.

```rnn
cell torch                # wrong
cell MinGRU               # right
```
"""

    name: str
    why: str

    def message(self) -> str:
        return f"`{self.name}` cannot be declared: {self.why}"

    def label(self) -> str:
        return "reserved"

    def help(self) -> str:
        return "choose another name"


@dataclass(frozen=True)
class UnknownKind(Diagnostic):
    code = "RNN113"
    title = "an unknown kind of number"
    page = """\
What stands behind a colon is `bool`, `real` (which needs not be written) or `complex`.

```rnn
input done: boolean        # wrong
input done: bool           # right
```
"""

    name: str
    nearest: str | None

    def message(self) -> str:
        return f"`{self.name}` is no kind of number"

    def label(self) -> str:
        return "unknown kind"

    def help(self) -> str:
        if self.nearest is not None:
            return f"did you mean `{self.nearest}`?"
        return "the kinds are `bool`, `real` and `complex`; the precision is chosen where the cell is used"

    def edit(self) -> Edit | None:
        return None if self.nearest is None else Edit(self.span, self.nearest)


@dataclass(frozen=True)
class GeneratedNameTaken(Diagnostic):
    code = "RNN114"
    title = "a name that the compiler needs itself"
    page = """\
What `linear`, `conv` and norms learn is named after the definition, state or output that holds them (`z_weight`,
`z_bias`, `z_conv`, `z_scale`, `z_shift`), a learned initial value after its state (`S_init`), and a history after
what it remembers (`x_past`). No other name may be the same.

```rnn
z = linear(x -> D)
param z_weight[D] = ones        # wrong: that is the weight of `z`
param z_gain[D] = ones          # right
```
"""

    name: str
    owner: str
    taken: Span

    def message(self) -> str:
        return f"`{self.owner}` needs the name `{self.name}`, which is taken"

    def label(self) -> str:
        return f"makes `{self.name}`"

    def help(self) -> str:
        return "give the other one another name"

    def related(self) -> Sequence[tuple[Span, str]]:
        return ((self.taken, "taken here"),)


@dataclass(frozen=True)
class OutputAsValue(Diagnostic):
    code = "RNN115"
    title = "an output that is used as a value"
    page = """\
`output y = EXPR` names a result of the cell. To use it in the cell as well, define it, and output the definition.

```rnn
output y = linear(h[t] -> D)
z = 2 * y                        # wrong

y = linear(h[t] -> D)            # right
output y
z = 2 * y
```
"""

    name: str
    where: Span

    def message(self) -> str:
        return f"`{self.name}` is an output, and has no value within the cell"

    def label(self) -> str:
        return "used here"

    def help(self) -> str:
        return f"define it (`{self.name} = ...`) and write `output {self.name}`"

    def related(self) -> Sequence[tuple[Span, str]]:
        return ((self.where, "declared here"),)


@dataclass(frozen=True)
class PartNotAllowed(Diagnostic):
    code = "RNN116"
    title = "a declaration with a part that it cannot have"
    page = """\
```rnn
dim D = 512
const c in (0, inf) = 8.0
input x[D] in [0, 1]
param A[D, N] = EXPR
state S[D, N]: complex = EXPR
```

Dims and constants have no dims, an input has no value, and only constants, inputs, definitions and outputs have
ranges.
"""

    keyword: str
    name: str
    part: str
    form: str

    def message(self) -> str:
        what = {"dims": "dims", "annotation": "a kind of number", "region": "a range", "value": "a value"}[self.part]
        return f"the {self.keyword} `{self.name}` cannot have {what}"

    def label(self) -> str:
        return "not allowed here"

    def help(self) -> str:
        return f"the form is `{self.form}`"


@dataclass(frozen=True)
class ValueMissing(Diagnostic):
    code = "RNN117"
    title = "a declaration without its value"
    page = """\
A `dim` and a `const` have a default; a `param` and a `buffer` say how they are initialised.

```rnn
param A[D]                    # wrong
param A[D] = normal(0.02)     # right
```
"""

    keyword: str
    name: str
    form: str

    def message(self) -> str:
        return f"the {self.keyword} `{self.name}` has no value"

    def label(self) -> str:
        return "`= ...` is missing"

    def help(self) -> str:
        return f"the form is `{self.form}`"


@dataclass(frozen=True)
class OutputName(Diagnostic):
    code = "RNN118"
    title = "an output whose name is no name"
    page = """\
```rnn
output h[t] = linear(h[t] -> D)        # wrong
output y = linear(h[t] -> D)           # right
output linear(h[t] -> D)               # right, and called `out`
```
"""

    text: str

    def message(self) -> str:
        return f"`{self.text}` cannot name an output"

    def label(self) -> str:
        return "a plain name belongs here"

    def help(self) -> str:
        return "write `output y = ...`"


@dataclass(frozen=True)
class OutputTwice(Diagnostic):
    code = "RNN119"
    title = "two outputs of one name"
    page = """\
```rnn
output h[t]
output h             # wrong: also called `h`
output g = h[t]      # right
```
"""

    name: str
    first: Span

    def message(self) -> str:
        return f"two outputs are called `{self.name}`"

    def label(self) -> str:
        return "again here"

    def help(self) -> str:
        return "name one of them: `output y = ...`"

    def related(self) -> Sequence[tuple[Span, str]]:
        return ((self.first, "first here"),)


@dataclass(frozen=True)
class CellsCollide(Diagnostic):
    code = "RNN120"
    title = "a cell named like the state or the output of another"
    page = """\
The generated module has a class for each cell `A`, and `AState` and `AOutput` for what it returns.

```rnn
cell A
cell AState          # wrong, in one file with `A`
cell B               # right
```
"""

    name: str
    other: str
    first: Span

    def message(self) -> str:
        return f"the generated module has a class `{self.name}` already, for the cell `{self.other}`"

    def label(self) -> str:
        return "the same name"

    def help(self) -> str:
        return "rename one of the two cells, or put them into files of their own"

    def related(self) -> Sequence[tuple[Span, str]]:
        return ((self.first, "this cell"),)
