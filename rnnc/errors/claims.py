"""RNN5xx: claims on ranges and spectra."""

from __future__ import annotations

from dataclasses import dataclass

from rnnc.diagnostics import Diagnostic, Edit


@dataclass(frozen=True)
class ClaimRefuted(Diagnostic):
    code = "RNN501"
    title = "a range that does not hold"
    page = """\
A `gate` must lie in `[0, 1]`, a `decay` too (a complex one in `disc(1)`), and any definition or output can claim a
range with `in`. Such a claim must hold in exact arithmetic for all finite inputs in their ranges, all real params, all
sizes and every state that can be reached. The message gives numbers that break it.

```rnn
input x[D], dt[D]
gate z = 2 * sigmoid(x)             # wrong: it reaches 2
decay a = exp(-dt)                  # wrong: `dt` may be negative
```
```rnn
input x[D], dt[D] in [0, inf)
beta in [0, 2] = 2 * sigmoid(x)     # right
decay a = exp(-dt)                  # right
```
"""

    claim: str
    name: str
    region: str
    values: str
    result: str
    derived: str
    mend: str
    mending: Edit | None

    def message(self) -> str:
        return f"`{self.claim}` does not hold: `{self.name}` reaches {self.result} {self.values}"

    def label(self) -> str:
        return f"not always in {self.region}"

    def help(self) -> str:
        return self.mend or self.derived

    def edit(self) -> Edit | None:
        return self.mending


@dataclass(frozen=True)
class ClaimUndecided(Diagnostic):
    code = "RNN502"
    severity = "warning"
    title = "a range that could be neither proved nor refuted"
    page = """\
The compiler proves ranges by intervals and by comparing terms. A claim that it can neither prove this way nor break
with numbers is left alone: the cell compiles and means the same, but no kernel relies on the claim. The message names
the assumption that is missing. With `--strict` this is an error.

```rnn
const c = 8.0
decay a = exp(-c * softplus(x))     # holds for `c >= 0` only, and `c` may be given any value
```
```rnn
const c in (0, inf) = 8.0
decay a = exp(-c * softplus(x))     # proved
```
"""

    claim: str
    missing: str
    derived: str
    mending: Edit | None

    def message(self) -> str:
        return f"`{self.claim}` could not be proved: {self.missing}"

    def label(self) -> str:
        return "no kernel relies on it"

    def help(self) -> str:
        return self.derived

    def edit(self) -> Edit | None:
        return self.mending


@dataclass(frozen=True)
class ClaimUnproved(ClaimUndecided):
    """Under `--strict`."""

    severity = "error"


@dataclass(frozen=True)
class SpectrumRefuted(Diagnostic):
    code = "RNN503"
    title = "a spectrum outside of its claim"
    page = """\
`eigenvalues S in region` claims that the Jacobian of the recurrence that holds `S` (the whole group of states that
need each other) has all its eigenvalues in the region, at every step and every reachable state. The message gives
numbers for which it has not: values of what stands in the transition, and the eigenvalue.

```rnn
input k[H, K], b[H]
beta in [0, 2] = 2 * sigmoid(b)
eigenvalues S in [-1, 1]
S[t] = S[t-1] - beta * k * sum[K](k * S[t-1])     # wrong: `beta = 2, |k| = 1.3` gives -2.38
```
```rnn
kn = l2norm[K](k)
S[t] = S[t-1] - beta * kn * sum[K](kn * S[t-1])   # right: |kn| < 1
```
"""

    claim: str
    name: str
    region: str
    values: str
    result: str
    derived: str
    mend: str
    mending: Edit | None

    def message(self) -> str:
        said = f"{self.values} gives" if self.values else "there is the eigenvalue"
        return f"`{self.claim}` does not hold: {said} {self.result}"

    def label(self) -> str:
        return f"not always in {self.region}"

    def help(self) -> str:
        return self.mend or self.derived

    def edit(self) -> Edit | None:
        return self.mending


@dataclass(frozen=True)
class SpectrumUndecided(Diagnostic):
    code = "RNN504"
    severity = "warning"
    title = "a spectrum that could be neither proved nor refuted"
    page = """\
Spectra are known for elementwise transitions, for a decay times or plus a rank-one matrix `u v'` along a dim, for
products of such factors, and for states that need each other, and several pasts of one, together up to 16 values: from
trace and determinant where there are two, else by norms and Gershgorin's discs. Elsewhere, or where these bounds are
too coarse and no numbers were found that break it, an `eigenvalues` claim stays undecided; the message says what is
missing. With `--strict` this is an error.

```rnn
eigenvalues h in disc(1)
h[t] = tanh(linear(h[t-1] -> D) + x)      # a learned matrix may be any
```
"""

    claim: str
    missing: str
    derived: str
    mending: Edit | None

    def message(self) -> str:
        return f"`{self.claim}` could not be proved: {self.missing}"

    def label(self) -> str:
        return "no kernel relies on it"

    def help(self) -> str:
        return self.derived

    def edit(self) -> Edit | None:
        return self.mending


@dataclass(frozen=True)
class SpectrumUnproved(SpectrumUndecided):
    """Under `--strict`."""

    severity = "error"
