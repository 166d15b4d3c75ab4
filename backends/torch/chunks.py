"""The line of code that computes a matrix state, and what is beside it, by chunks of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from rnnc.chunks import Chunks, Read
from rnnc.ir import Expr, Lit
from rnnc.plan import Scan

from .block import Block
from .text import several


def operands(step: Scan, chunks: Chunks) -> tuple[Expr, ...]:
    """What is computed before, for all tokens at once."""
    return (step.closure.a, *(r.query for r in chunks.reads), *(e for pair in chunks.writes for e in pair))


def chunk_line(
    step: Scan, chunks: Chunks, block: Block, final: str, columns: Sequence[tuple[Scan, Chunks, str]] = ()
) -> tuple[str, str]:
    """Targets and text: the reads, which have their names, and the last state; then the same of each state that is one
    more column of the values."""
    c, name, dims = chunks, step.stream.name, step.stream.type.dims
    along = c.keys if c.keyed else c.values
    queries = [_query(read, chunks, block) for read in c.reads]
    writes = [
        f"({block.aligned_code(k, c.heads + c.keys)}, {block.aligned_code(v, c.heads + c.values)})" for k, v in c.writes
    ]
    args = [
        block.aligned_code(step.closure.a, c.heads + along),
        f"[{', '.join(queries)}]",
        str(sum(r.lag for r in c.reads)),
        f"[{', '.join(writes)}]",
        f"state.{name}",
        several(str(dims.index(d)) for d in c.heads + c.keys + c.values),
        f"({len(c.heads)}, {len(c.keys)})",
        str(c.keyed),
    ]
    targets = [*_reads(c, c, block), final]
    beside: list[str] = []
    for column, own, last in columns:
        dims = column.stream.type.dims
        order = several(str(dims.index(d)) for d in c.heads + c.keys)
        values = [
            "None" if isinstance(v, Lit) and v.value == 0 else block.aligned_code(v, c.heads) for _, v in own.writes
        ]
        beside.append(f"(state.{column.stream.name}, {order}, [{', '.join(values)}])")
        targets += [*_reads(c, own, block), last]
    if beside:
        args.append(f"[{', '.join(beside)}]")
    return ", ".join(targets), f"_chunked(run, _scan, _chunks, {', '.join(args)})"


def _reads(chunks: Chunks, own: Chunks, block: Block) -> list[str]:
    """Names for what each query of `chunks` reads of a state, `_` where it is not wanted."""
    targets: list[str] = []
    waiting = list(own.reads)
    for read in chunks.reads:
        # The same query twice is two reads of the state itself; a column has one name for both.
        same = [r for r in waiting if (r.query, r.lag) == (read.query, read.lag)][: 1 if own is chunks else None]
        targets.append(block.variables[same[0].node] if same else "_")
        for r in same:
            waiting.remove(r)
            have = [*chunks.heads, *read.own, *own.values]
            block.variables[r.node] = block.laid(targets[-1], have, r.node.dims)
    return targets


def _query(read: Read, chunks: Chunks, block: Block) -> str:
    code = block.aligned_code(read.query, chunks.heads + read.own + chunks.keys)
    return f"({code}, {several(block.size(d) for d in read.own)})"
