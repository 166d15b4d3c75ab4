"""A matrix state by chunks of tokens: its kernels, their registration, and the line that calls them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources

import jinja2

from rnnc.chunks import Chunks
from rnnc.entrywise import operands
from rnnc.fuse import TENSOR
from rnnc.ir import Expr, Lit, Ref, walk
from rnnc.lower import System
from rnnc.plan import Scan
from rnnc.show import expr_text

from ..torch.text import cut, docstring, quoted, several, wrap
from .entrywise import EntrywiseCoder
from .prune import pruned

_KERNELS = ("carry", "forward", "carry_back", "backward", "pairs", "pairs_back")


class PairsCoder:
    """The kernels of one step in chunks, and their registration."""

    def __init__(self, system: System, step: Scan, chunks: Chunks, beside: list[Scan], name: str) -> None:
        self.step, self.chunks, self.name = step, chunks, name
        self.states = [s.stream.name for s in (step, *beside)]
        own = chunks.keys if chunks.keyed else chunks.values
        a = step.closure.a
        along = "keys" if chunks.keyed else "values"
        self.decay = along if set(a.dims) & set(own) else "free" if isinstance(a, Lit) and a.value == 1 else "one"
        given = any(isinstance(n, Ref) and n.role in ("param", "input", "state") for n in walk(a))
        self.learned = self.decay != "free" and given
        self.form = TENSOR
        self.entrywise = EntrywiseCoder(system.graph, operands(step))

    @property
    def offset(self) -> Expr | None:
        """What is added to what factors are made of."""
        return self.entrywise.made["a"].offset if "a" in self.entrywise.made else None

    def source(self, node: Expr) -> Expr:
        """What the kernels read for an operand."""
        return next((m.read for m in self.entrywise.made.values() if m.value is node), node)

    def text(self) -> str:
        """The kernels."""
        loops = len(self.chunks.reads) > 1 or any(r.own for r in self.chunks.reads)
        view = {
            "name": self.name,
            "decay": self.decay,
            "learned": self.learned,
            "lags": sorted({r.lag for r in self.chunks.reads}, reverse=True),
            "loops": loops,
            "pad": 12 if loops else 8,
            "offset": self.offset is not None,
            "made": self.entrywise.calls(self.name),
            "numbers": list(self.entrywise.numbers.values()),
        }
        functions = self.entrywise.functions(self.name)
        return "\n\n\n".join([*functions, kernel_texts("chunks", view, self.documented)])

    def documented(self, text: str) -> str:
        """A kernel with its docstring in place of the word for what it does."""
        what = next(w for w in _KERNELS if f'    """{w}"""' in text)
        c, stream = self.chunks, self.step.stream
        reads = [cut(expr_text(r.node)) for r in c.reads]
        equations = "\n".join([cut(f"{stream.name}[t] = {expr_text(stream.expr)}"), *reads])
        sizes = [f"{n} of {' x '.join(d)}" for n, d in (("HEADS", c.heads), ("K", c.keys), ("V", c.values)) if d]
        decayed = "; and queries with the decay since the chunk's start, keys with that until its end"
        decayed = decayed if self.decay == "keys" else ""
        walk_text = {
            "forward": "A program has one segment of one sequence of one head and BV of its values, and goes from "
            "chunk to chunk, C tokens, with the state [BK, BV] in registers. If there are several segments, it first "
            "applies those before its own. Where KEEP, the states that enter chunks are written for the backward.",
            "backward": "The same programs, from the last chunk to the first, with the gradient of the state in "
            "registers. If there are several segments, it first applies those after its own. The gradients of the "
            "states that leave chunks are written for `pairs_back`.",
            "carry": "What a segment of a sequence writes into the state that enters it, and its decay over all of it.",
            "pairs": f"What tokens of a chunk read of each other: scores [C, C] of queries and keys, decayed{decayed}. "
            "A program has one segment of one sequence of one head, and goes through its keys, BK at a time.",
            "pairs_back": "Gradients of queries and keys, and of the factors, from those of the scores and of what is "
            "read of and written to the state: with the states that entered the chunk and the gradients of those that "
            "left it, BV values at a time.",
            "carry_back": "What a segment of a sequence adds to the gradient of the state that leaves it, and its "
            "decay over all of it.",
        }
        if self.decay == "values":
            walk_text |= {
                "forward": "A program has one segment of one sequence of one head and BV of its values, and goes from "
                "chunk to chunk, C tokens, with the state [BK, BV] in registers. If there are several segments, it "
                "first applies those before its own. The states that enter chunks are written for `pairs`.",
                "pairs": "What tokens of a chunk read of each other and of the state that entered it. A program has "
                "one segment of one sequence of one head, and goes through its values, BV at a time.",
                "pairs_back": "Gradients of queries, keys, values and factors, from those of what is read. The scores' "
                "are summed in memory over values, BV at a time; then queries and keys follow, BK at a time.",
            }
        first = {
            "forward": equations,
            "backward": f"Gradients, from the last token to the first, of\n\n{textwrap.indent(equations, '    ')}",
        }
        parts = first.get(what, ""), walk_text[what] + f" {', '.join(sizes)}."
        return described(text, what, parts)

    def registration(self, operator: str) -> list[str]:
        """Lines that register the kernels as an operator."""
        fields = {
            **{w: f"{self.name}_{w}" for w in _KERNELS},
            "decay": quoted(self.decay),
            "learned": str(self.learned),
            "offset": str(self.offset is not None),
            "numbers": several(quoted(n) for n in self.entrywise.numbers.values()),
        }
        lines = [f"{self.name}_chunks = _pairs_operator(", "    _OPERATORS,", f"    {quoted(operator)},", "    _Pairs("]
        return [*lines, *(f"        {name}={value}," for name, value in fields.items()), "    ),", ")"]


def kernel_texts(template: str, view: Mapping[str, object], documented: Callable[[str], str]) -> str:
    """The kernels of a template, each with its docstring and without what it does not use."""
    functions = _template(template).render(k=view).strip("\n").split("\n\n\n")
    made = [documented(pruned(f.strip("\n"))) for f in functions]
    return "\n\n\n".join("\n".join(wrap(f.split("\n"))) for f in made)


def described(text: str, what: str, parts: tuple[str, str]) -> str:
    """A kernel with its docstring, equations and prose, in place of the word for what it does."""
    equations, prose = parts[0], "\n".join(textwrap.wrap(parts[1], 112))
    body = f"{equations}\n\n{prose}" if equations else prose
    return text.replace(f'    """{what}"""', "    " + docstring(body, "    "), 1)


@cache
def _template(name: str) -> jinja2.Template:
    folder = resources.files("rnnc.templates") / "triton"
    loader = jinja2.FunctionLoader(lambda file: (folder / file).read_text(encoding="utf-8"))
    environment = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return environment.get_template(f"{name}.py.jinja")
