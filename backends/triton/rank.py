"""A matrix state with low-rank transitions by chunks of tokens: its kernels and their registration."""

from __future__ import annotations

from rnnc.closure import LowRank
from rnnc.fuse import SOLVED
from rnnc.ir import Lit, Ref, walk
from rnnc.plan import Loop
from rnnc.rank import RankChunks
from rnnc.show import expr_text

from ..torch.text import cut, quoted
from .chunks import described, kernel_texts

KERNELS = ("system", "solve", "pairs", "forward", "columns")
KERNELS_BACK = ("backward", "flows", "solve_back", "pairs_back", "factors_back")


class RankCoder:
    """The kernels of one step with low-rank transitions, and their registration."""

    def __init__(self, step: Loop, chunks: RankChunks, name: str) -> None:
        assert isinstance(step.closure, LowRank)
        self.step, self.chunks, self.name = step, chunks, name
        self.states = [step.streams[0].name]
        ((a,),) = step.closure.map.factors
        own = set(chunks.mixed)
        unit = isinstance(a, Lit) and a.value == 1
        self.decay = "free" if unit else "keys" if a is not None and set(a.dims) & own else "one"
        given = a is not None and any(isinstance(n, Ref) and n.role in ("param", "input", "state") for n in walk(a))
        self.learned = self.decay != "free" and given
        self.form = SOLVED

    def text(self) -> str:
        """The kernels."""
        assert isinstance(self.step.closure, LowRank)
        reads = self.chunks.reads
        # What sums over columns reads nothing while states go from chunk to chunk.
        loops = len(reads) > 1 or any(r.read.own for r in reads) or self.chunks.by_column
        lags = sorted({r.read.lag for r in reads}, reverse=True)
        view = {
            "name": self.name,
            "decay": self.decay,
            "learned": self.learned,
            "lags": lags,
            # What corrects a state reads it as it was.
            "all_lags": sorted({1, *lags}, reverse=True),
            "loops": loops,
            "pad": 12 if loops else 8,
            "by_column": self.chunks.by_column,
            "grouped": [t.bound for t in self.step.closure.map.terms] not in ([], [()]),
        }
        return kernel_texts("rank", view, self.documented)

    def documented(self, text: str) -> str:
        what = next(w for w in (*KERNELS, *KERNELS_BACK) if f'    """{w}"""' in text)
        c, stream = self.chunks, self.step.streams[0]
        equations = [
            cut(f"{stream.name}[t] = {expr_text(stream.expr)}"),
            *(cut(expr_text(r.read.node)) for r in c.reads),
        ]
        sizes = [f"{n} of {' x '.join(d)}" for n, d in (("HEADS", c.heads), ("K", c.mixed), ("V", c.columns)) if d]
        prose = {
            "system": "Of each chunk of C tokens, S[t] = a S[t-1] + u c + k v with c = w S[t-1]: c = `system` c + "
            "`reads` v + what w reads of the state that enters. A program has one segment of one sequence of one head.",
            "solve": "Of each chunk the inverse of 1 - `system`.",
            "pairs": "Of each chunk, S being the state that enters and v the chunk's: all c are `w_in` S + `early` v, "
            "reads are `q_in` S + `scores` v, and the state that leaves is `over_chunk` S + `u_out` (`w_in` S) + "
            "`k_out` v. A program has one segment of one sequence of one head.",
            "forward": "A program has one sequence of one head and BV of its values, and goes from chunk to chunk with "
            "the state [BK, BV] in registers. Where KEEP, the states that enter chunks are written for the backward.",
            "backward": "The same programs, from the last chunk to the first, with the state's gradient in registers.",
            "flows": "Gradients of `w_in`, `u_out`, `k_out` and `q_in`, BK keys a program, from the states that enter "
            "chunks and the gradients of those that leave.",
            "solve_back": "From these the gradients of what the tokens of a chunk read of each other.",
            "pairs_back": "From these the gradients of w, u, q, k and of factors along keys.",
            "factors_back": "From these the gradients of the factors.",
            "columns": "What sums over values reads, BK keys a program, from the states that enter chunks: the other "
            "kernels' gradient of q if d_read were what it reads with.",
        }
        head = "\n".join(equations) if what == "system" else ""
        return described(text, what, (head, f"{prose[what]} {', '.join(sizes)}."))

    def registration(self, operator: str) -> list[str]:
        """Lines that register the kernels as an operator."""
        fields = {w: f"{self.name}_{w}" for w in (*KERNELS, *KERNELS_BACK)}
        fields |= {} if self.learned and self.decay == "one" else {"factors_back": "None"}
        fields |= {} if self.chunks.by_column else {"columns": "None"}
        fields |= {"decay": quoted(self.decay), "learned": str(self.learned)}
        lines = [
            f"{self.name}_chunks = _ranked_operator(",
            "    _OPERATORS,",
            f"    {quoted(operator)},",
            "    _Ranked(",
        ]
        return [*lines, *(f"        {name}={value}," for name, value in fields.items()), "    ),", ")"]
