"""The line of code that computes states with low-rank transitions by chunks of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rnnc.closure import LowRank
from rnnc.ir import Expr
from rnnc.plan import Loop
from rnnc.rank import RankChunks

from .block import Block
from .text import several


def rank_line(step: Loop, chunks: RankChunks, block: Block, finals: Sequence[str]) -> tuple[str, str]:
    """Targets and text: the reads, which have their names, and the last states."""
    args = rank_arguments(step, chunks, block, block.aligned_code)
    function = "_low_rank_columns(run, _scan, _chunks, _rank" if chunks.by_column else "_low_rank(run, _rank"
    return ", ".join(rank_targets(chunks, block, finals)), f"{function}, {', '.join(args)})"


def rank_arguments(
    step: Loop, chunks: RankChunks, block: Block, aligned: Callable[[Expr, tuple[str, ...]], str]
) -> list[str]:
    """What a call is given, `aligned` being the code of its operands."""
    c, closure = chunks, step.closure
    assert isinstance(closure, LowRank)
    sliced = (closure.over,) if closure.over else ()

    def code(e: Expr | None, dims: tuple[str, ...]) -> str:
        return "0.0" if e is None else aligned(e, dims)

    def sizes(dims: Iterable[str]) -> str:
        return several(block.size(d) for d in dims)

    factors = [_list(code(e, sliced + c.heads + c.mixed) for e in row) for row in closure.map.factors]
    terms: list[str] = []
    for t in closure.map.terms:
        dims = sliced + c.heads + t.bound + c.mixed
        terms.append(f"({t.column}, {code(t.right, dims)}, {_list(code(e, dims) for e in t.left)}, {sizes(t.bound)})")
    writes = [
        f"({_list(code(e, sliced + c.heads + c.mixed) for e in w.left)}, {code(w.right, sliced + c.heads + c.columns)})"
        for w in c.writes
    ]
    along = c.columns if c.by_column else c.mixed
    queries = [f"({r.index}, {code(r.read.query, c.heads + r.read.own + along)}, {sizes(r.read.own)})" for r in c.reads]
    dims = [s.type.dims for s in step.streams]
    return [
        *(_list(x) for x in (factors, terms, writes, queries)),
        str(sum(r.read.lag for r in c.reads)),
        _list(f"state.{s.name}" for s in step.streams),
        _list(several(str(own.index(d)) for d in c.heads + c.mixed + c.columns) for own in dims),
        f"({len(c.heads)}, {len(c.mixed)})",
        block.size(closure.over) if closure.over else "None",
        str(step.contracting),
    ]


def rank_targets(chunks: RankChunks, block: Block, finals: Sequence[str]) -> list[str]:
    """The names that reads get, which from here on stand for them, laid out as they are elsewhere, and last states."""
    c = chunks
    targets = [block.variables[r.read.node] for r in c.reads]
    for r, target in zip(c.reads, targets, strict=True):
        have = [*c.heads, *r.read.own, *(c.mixed if c.by_column else c.columns)]
        block.variables[r.read.node] = block.laid(target, have, r.read.node.dims)
    return [*targets, *finals]


def _list(items: Iterable[str]) -> str:
    return f"[{', '.join(items)}]"
