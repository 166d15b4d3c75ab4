"""The line of code that computes a matrix state, and what is beside it, by chunks of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rnnc.chunks import Chunks, Read
from rnnc.ir import Expr, Lit
from rnnc.plan import Scan
from rnnc.together import Together

from .block import Block
from .text import constant, several

Column = tuple[Scan, Chunks, str]
"""A state that is one more column of another's values: its step, parts, and a name for its last value."""


def chunk_line(step: Scan, chunks: Chunks, block: Block, final: str, columns: Sequence[Column] = ()) -> tuple[str, str]:
    """Targets and text: the reads, which have their names, and the last state; then the same of each column."""
    along = chunks.keys if chunks.keyed else chunks.values
    factor = block.aligned_code(step.closure.a, chunks.heads + along)
    args = [*chunk_arguments(step, chunks, factor, block, block.aligned_code), str(chunks.keyed)]
    args += column_arguments(columns, block, block.aligned_code)
    targets = chunk_targets(chunks, block, final, columns)
    return ", ".join(targets), f"_chunked(run, _scan, _chunks, {', '.join(args)})"


def chunk_arguments(
    step: Scan, chunks: Chunks, factor: str, block: Block, aligned: Callable[[Expr, tuple[str, ...]], str]
) -> list[str]:
    """What a call is given of one step, `aligned` being the code of its operands."""
    c, name, dims = chunks, step.stream.name, step.stream.type.dims
    queries = [_query(read, chunks, block, aligned) for read in c.reads]
    writes = [f"({aligned(k, c.heads + c.keys)}, {aligned(v, c.heads + c.values)})" for k, v in c.writes]
    return [
        factor,
        f"[{', '.join(queries)}]",
        str(sum(r.lag for r in c.reads)),
        f"[{', '.join(writes)}]",
        f"state.{name}",
        several(str(dims.index(d)) for d in c.heads + c.keys + c.values),
        f"({len(c.heads)}, {len(c.keys)})",
    ]


def together_code(known: Together | None) -> str:
    """Code of how many tokens can be read in one product."""
    if known is None or not known.consts:
        return str(known.tokens if known else 1)
    same = " and ".join(f"self.{c.name} == {constant(c.value)}" for c in known.consts)
    return f"{known.tokens} if {same} else 1"


def column_arguments(
    columns: Sequence[Column], block: Block, aligned: Callable[[Expr, tuple[str, ...]], str]
) -> list[str]:
    """The same of its columns, if there are any."""
    return [f"[{', '.join(_column(c, aligned) for c in columns)}]"] if columns else []


def chunk_targets(chunks: Chunks, block: Block, final: str, columns: Sequence[Column]) -> list[str]:
    """The names that reads get, which from here on stand for them, laid out as they are elsewhere, and last states."""
    targets = [block.variables[r.node] for r in chunks.reads]
    for read, target in zip(chunks.reads, targets, strict=True):
        have = [*chunks.heads, *read.own, *chunks.values]
        block.variables[read.node] = block.laid(target, have, read.node.dims)
    targets.append(final)
    for _, own, last in columns:
        targets += [*_column_targets(chunks, own, block), last]
    return targets


def _column(column: Column, aligned: Callable[[Expr, tuple[str, ...]], str]) -> str:
    """What a call is given of a column: its initial value, the order of its axes, what each key is multiplied with."""
    step, own, _ = column
    dims = step.stream.type.dims
    order = several(str(dims.index(d)) for d in own.heads + own.keys)
    zeros = [isinstance(v, Lit) and v.value == 0 for _, v in own.writes]
    values = [aligned(v, own.heads) for _, v in own.writes]
    given = ["None" if zero else code for zero, code in zip(zeros, values, strict=True)]
    return f"(state.{step.stream.name}, {order}, [{', '.join(given)}])"


def _column_targets(chunks: Chunks, own: Chunks, block: Block) -> list[str]:
    """Names for what each query of the state reads of a column, `_` where it is not wanted."""
    targets: list[str] = []
    waiting = list(own.reads)
    for read in chunks.reads:
        same = [r for r in waiting if (r.query, r.lag) == (read.query, read.lag)]
        targets.append(block.variables[same[0].node] if same else "_")
        for r in same:
            waiting.remove(r)
            block.variables[r.node] = block.laid(targets[-1], [*chunks.heads, *read.own], r.node.dims)
    return targets


def _query(read: Read, chunks: Chunks, block: Block, aligned: Callable[[Expr, tuple[str, ...]], str]) -> str:
    code = aligned(read.query, chunks.heads + read.own + chunks.keys)
    return f"({code}, {several(block.size(d) for d in read.own)})"
