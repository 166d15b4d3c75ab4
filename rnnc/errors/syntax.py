"""RNN02x to RNN04x: brackets, statements and what stands where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import cleandoc

from rnnc.diagnostics import Diagnostic, Edit
from rnnc.source import Span


@dataclass(frozen=True)
class UnclosedBracket(Diagnostic):
    code = "RNN020"
    title = "a bracket that is never closed"
    page = cleandoc("""
        Every bracket is closed. A line that begins with a word such as `state` or `output` ends a statement even
        inside brackets, so that one forgotten bracket does not swallow the program.

        ```rnn
        z = sigmoid(linear(x -> D)      # wrong
        z = sigmoid(linear(x -> D))     # right
        ```
        """)

    opener: str
    closer: str
    mended: Edit | None

    def message(self) -> str:
        return f"`{self.opener}` is never closed"

    def help(self) -> str:
        return f"close it with `{self.closer}`"

    def edit(self) -> Edit | None:
        return self.mended


@dataclass(frozen=True)
class UnmatchedCloser(Diagnostic):
    code = "RNN021"
    title = "a closing bracket that was never opened"
    page = cleandoc("""
        Every closing bracket has its opening one, in the same statement.

        ```rnn
        z = sigmoid(linear(x -> D)))     # wrong
        z = sigmoid(linear(x -> D))      # right
        ```
        """)

    closer: str

    def message(self) -> str:
        return f"`{self.closer}` closes nothing"

    def help(self) -> str:
        return "remove it, or open it before"

    def edit(self) -> Edit | None:
        return Edit(self.span, "")


@dataclass(frozen=True)
class MismatchedBracket(Diagnostic):
    code = "RNN022"
    title = "a bracket that is closed by another kind"
    page = cleandoc("""
        `(` is closed by `)` and `[` by `]`; only a range after `in` may mix them: `[0, inf)` is half-open.

        ```rnn
        o = sum[K)(q * S[t])     # wrong
        o = sum[K](q * S[t])     # right
        ```
        """)

    opener: Span
    opened: str
    found: str
    closer: str

    def message(self) -> str:
        return f"`{self.found}` closes a `{self.opened}`"

    def help(self) -> str:
        return f"close it with `{self.closer}`; only a range after `in` may mix brackets"

    def edit(self) -> Edit | None:
        return Edit(self.span, self.closer)

    def related(self) -> Sequence[tuple[Span, str]]:
        return ((self.opener, "opened here"),)


@dataclass(frozen=True)
class TooDeep(Diagnostic):
    code = "RNN023"
    title = "an expression that is nested too deeply"
    page = cleandoc("""
        At most 200 brackets, or operators, may stand inside one another; `a + b + c` is one sum inside another. Give
        a part of such an expression a name of its own: a definition costs nothing.

        ```rnn
        y = x1 + x2 + ... + x999     # wrong

        p = x1 + x2 + ... + x99      # right
        y = p + x100 + ...
        ```
        """)

    limit: int
    what: str
    """`brackets` or `operators`."""

    def message(self) -> str:
        return f"more than {self.limit} {self.what} inside one another"

    def help(self) -> str:
        return "give a part of the expression a name, as a definition of its own"


@dataclass(frozen=True)
class TooLong(Diagnostic):
    code = "RNN024"
    title = "a statement that is too long"
    page = cleandoc("""
        At most 20000 names, numbers and signs make one statement. Give a part of such an expression a name of its
        own, or make a list of many things one thing with a dim.

        ```rnn
        input x1, x2, ..., x9999     # wrong

        dim N = 9999                 # right
        input x[N]
        ```
        """)

    limit: int

    def message(self) -> str:
        return f"a statement of more than {self.limit} names, numbers and signs"

    def help(self) -> str:
        return "give a part of the expression a name, as a definition of its own"


@dataclass(frozen=True)
class UnexpectedToken(Diagnostic):
    code = "RNN030"
    title = "something else was expected here"
    page = cleandoc("""
        The statement cannot go on with what stands here. What each statement looks like:

        ```rnn
        dim D = 512, H = 8
        const c in (0, inf) = 8.0
        input x[D], f[H] in [0, 1], done: bool
        param A[D] = zeros
        y[D] in [0, 1] = sigmoid(x)
        gate z = sigmoid(x)
        decay a = exp(-c)
        state S[D] = 0
        S[t] = a * S[t-1] + x
        S[t] over J = S[t-1] + k
        eigenvalues S in [0, 1]
        output y = S[t]
        ```
        """)

    found: str
    """In words, names in backquotes."""
    expected: str
    mended: Edit | None = None
    hint: str = ""

    def message(self) -> str:
        return f"unexpected {self.found}"

    def help(self) -> str:
        return f"expected {self.expected}{'; ' if self.hint else ''}{self.hint}"

    def edit(self) -> Edit | None:
        return self.mended


@dataclass(frozen=True)
class UnexpectedEnd(Diagnostic):
    code = "RNN031"
    title = "a statement that ends too early"
    page = cleandoc("""
        Something is missing at the end of the statement. A newline ends a statement unless it stands inside brackets
        or after an operator, `,`, `=`, `->` or `in`.

        ```rnn
        gate z =                            # wrong
        state h[D]

        gate z =                            # right
            sigmoid(linear(x -> D))
        state h[D]
        ```
        """)

    after: str
    """The last token."""
    expected: str

    def message(self) -> str:
        return f"the statement ends after `{self.after}`"

    def help(self) -> str:
        return f"expected {self.expected}"


@dataclass(frozen=True)
class StartsWithOperator(Diagnostic):
    code = "RNN032"
    title = "a line that starts with an operator"
    page = cleandoc("""
        A newline ends a statement, so a line cannot go on with an operator. Put the operator at the end of the line
        before, or the expression in brackets.

        ```rnn
        h[t] = (1 - z) * h[t-1]       # wrong
             + z * c

        h[t] = (1 - z) * h[t-1] +     # right
               z * c
        ```
        """)

    operator: str
    mended: Edit | None

    def message(self) -> str:
        return f"a line cannot start with `{self.operator}`"

    def help(self) -> str:
        return f"end the line before with `{self.operator}`, or put the expression in brackets"

    def edit(self) -> Edit | None:
        return self.mended


@dataclass(frozen=True)
class UnknownStatement(Diagnostic):
    code = "RNN033"
    title = "a statement that does not exist"
    page = cleandoc("""
        A line is an equation, `y = ...` or `S[t] = ...`, or starts with one of the words `cell dim const input param
        buffer gate decay state eigenvalues output`.

        ```rnn
        ouput h[t]      # wrong
        output h[t]     # right
        ```
        """)

    word: str
    nearest: str
    words: tuple[str, ...]

    def message(self) -> str:
        return f"there is no statement `{self.word}`"

    def help(self) -> str:
        if self.nearest:
            return f"did you mean `{self.nearest}`?"
        return f"a line is an equation, or starts with {listed(self.words)}"

    def edit(self) -> Edit | None:
        return Edit(self.span, self.nearest) if self.nearest else None


@dataclass(frozen=True)
class ReservedWord(Diagnostic):
    code = "RNN034"
    title = "a word of the language used as a name"
    page = cleandoc("""
        The words `cell dim const input param buffer gate decay state eigenvalues output in over not and or` name no
        values.

        ```rnn
        gate = sigmoid(x)       # wrong
        gate z = sigmoid(x)     # right
        ```
        """)

    word: str

    def message(self) -> str:
        return f"`{self.word}` is a word of the language and names no value"

    def help(self) -> str:
        return f"choose another name, such as `{self.word}_`"


@dataclass(frozen=True)
class MissingNewline(Diagnostic):
    code = "RNN035"
    title = "two statements on one line"
    page = cleandoc("""
        Each statement has its own line.

        ```rnn
        state h[D] output h[t]     # wrong

        state h[D]                 # right
        output h[t]
        ```
        """)

    word: str
    blank: Span
    """What stands before it on the line."""

    def message(self) -> str:
        return f"`{self.word}` starts another statement"

    def help(self) -> str:
        return "put it on a line of its own"

    def edit(self) -> Edit | None:
        return Edit(self.blank, "\n")


@dataclass(frozen=True)
class ChainedComparison(Diagnostic):
    code = "RNN036"
    title = "comparisons that are chained"
    page = cleandoc("""
        A comparison gives a bool; it does not chain.

        ```rnn
        m = 0 < x < 1            # wrong
        m = 0 < x and x < 1      # right
        ```
        """)

    mended: Edit | None

    def message(self) -> str:
        return "comparisons do not chain"

    def help(self) -> str:
        return "compare twice, joined by `and`"

    def edit(self) -> Edit | None:
        return self.mended


@dataclass(frozen=True)
class EqualsInExpression(Diagnostic):
    code = "RNN037"
    title = "`=` inside an expression"
    page = cleandoc("""
        `=` defines, at most once a line; `==` compares.

        ```rnn
        m = where(x + 1 = 0, a, b)      # wrong
        m = where(x + 1 == 0, a, b)     # right
        ```
        """)

    mended: Edit | None

    def message(self) -> str:
        return "`=` cannot stand inside an expression"

    def help(self) -> str:
        return "did you mean `==`?"

    def edit(self) -> Edit | None:
        return self.mended


@dataclass(frozen=True)
class MissingEquals(Diagnostic):
    code = "RNN038"
    title = "an equation without `=`"
    page = cleandoc("""
        A definition, an update, a gate or a decay has one `=`.

        ```rnn
        gate z sigmoid(x)       # wrong
        h[t] := z * h[t-1]      # wrong

        gate z = sigmoid(x)     # right
        h[t] = z * h[t-1]       # right
        ```
        """)

    found: str
    """What stands for it; empty where nothing does."""

    def message(self) -> str:
        return f"`{self.found}` stands where `=` should" if self.found else "an `=` is missing"

    def help(self) -> str:
        return "an equation is written `name = expression`"

    def edit(self) -> Edit | None:
        return Edit(self.span, "=") if self.found else Edit(Span(self.span.start, self.span.start), "= ")


@dataclass(frozen=True)
class BareExpression(Diagnostic):
    code = "RNN039"
    title = "an expression by itself"
    page = cleandoc("""
        An expression is no statement: define a name for it, or let the cell put it out.

        ```rnn
        sum[K](q * S[t])              # wrong
        output sum[K](q * S[t])       # right
        ```
        """)

    def message(self) -> str:
        return "an expression by itself is no statement"

    def help(self) -> str:
        return "write `output` before it, or `name =`"

    def edit(self) -> Edit | None:
        return Edit(Span(self.span.start, self.span.start), "output ")


@dataclass(frozen=True)
class MissingCell(Diagnostic):
    code = "RNN040"
    title = "statements before the first `cell`"
    page = cleandoc("""
        A program starts with `cell NAME`, which names the class that it is compiled to.

        ```rnn
        cell Sum
        input x
        state s
        s[t] = s[t-1] + x
        output s[t]
        ```
        """)

    following: str | None
    """The cell before whose `cell` line the statements stand."""

    def message(self) -> str:
        return "a program starts with `cell NAME`"

    def help(self) -> str:
        return f"write this below `cell {self.following}`" if self.following else ""

    def edit(self) -> Edit | None:
        return None if self.following else Edit(Span(self.span.start, self.span.start), "cell MyCell\n")


@dataclass(frozen=True)
class DuplicateCell(Diagnostic):
    code = "RNN041"
    title = "two cells of one name"
    page = cleandoc("""
        Each cell becomes a class of its name in one module, so their names differ. They are compared in NFKC form:
        `κ₁` is `κ1`.

        ```rnn
        cell Sum      # wrong: twice in one file
        cell Sum

        cell Sum      # right
        cell Mean
        ```
        """)

    name: str
    first: Span

    def message(self) -> str:
        return f"there are two cells `{self.name}`"

    def label(self) -> str:
        return "the second"

    def help(self) -> str:
        return "rename one of them"

    def related(self) -> Sequence[tuple[Span, str]]:
        return ((self.first, "the first"),)


@dataclass(frozen=True)
class BadDims(Diagnostic):
    code = "RNN042"
    title = "brackets that should hold names of dims"
    page = cleandoc("""
        Where a name is declared, and on the left of `=`, the brackets hold the names of dims, for a definition, or
        one time, for an update. A size gets its name in a `dim` line.

        ```rnn
        y[H, 64] = x         # wrong
        S[t, H] = S[t-1]     # wrong

        dim H = 8, V = 64
        y[H, V] = x          # right
        S[t] = S[t-1]        # right
        ```
        """)

    def message(self) -> str:
        return "this is no name of a dim"

    def help(self) -> str:
        return "a size gets its name in a `dim` line; only an update, `S[t] = ...`, has a time here"


@dataclass(frozen=True)
class NotOfAnUpdate(Diagnostic):
    code = "RNN043"
    title = "a word that an update cannot have"
    page = cleandoc("""
        `gate`, `decay` and a range after `in` belong to definitions, which have no time on the left of `=`. To claim
        something about a state, define a name for it.

        ```rnn
        gate z[t] = sigmoid(x)                # wrong
        S[t] in [0, 1] = max(S[t-1], x)       # wrong

        gate z = sigmoid(x)                   # right
        S[t] = max(S[t-1], x)
        level in [0, 1] = S[t]
        ```
        """)

    what: str
    """`gate`, `decay` or a range."""
    name: str
    mended: Edit | None

    def message(self) -> str:
        return f"an update has no {self.what}"

    def help(self) -> str:
        if self.mended:
            return f"without a time `{self.name}` is a definition, which holds at every `t`"
        return f"give `{self.name}[t]` another name, in a definition that claims the range"

    def edit(self) -> Edit | None:
        return self.mended


@dataclass(frozen=True)
class OverWithoutTime(Diagnostic):
    code = "RNN044"
    title = "`over` in a definition"
    page = cleandoc("""
        Only an update, `S[t] over J = ...`, can be applied once for each entry of a dim.

        ```rnn
        S over J = S[t-1] + k        # wrong
        S[t] over J = S[t-1] + k     # right
        ```
        """)

    name: str
    index: Span
    """Where `[t]` belongs."""

    def message(self) -> str:
        return f"`over` belongs to an update, and `{self.name}` has no time here"

    def help(self) -> str:
        return f"write `{self.name}[t] over ... = ...`"

    def edit(self) -> Edit | None:
        return Edit(self.index, "[t]")


def listed(words: Sequence[str], last: str = "or") -> str:
    """`a`, `b` or `c`."""
    quoted = [f"`{w}`" for w in words]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} {last} {quoted[-1]}"
