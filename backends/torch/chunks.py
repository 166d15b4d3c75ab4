"""The line of code that computes a matrix state by chunks of tokens."""

from __future__ import annotations

from rnnc.chunks import Chunks, Read
from rnnc.ir import Expr
from rnnc.plan import Scan

from .block import Block
from .text import several


def operands(step: Scan, chunks: Chunks) -> tuple[Expr, ...]:
    """What is computed before, for all tokens at once."""
    return (step.closure.a, *(r.query for r in chunks.reads), *(e for pair in chunks.writes for e in pair))


def chunk_line(step: Scan, chunks: Chunks, block: Block, final: str) -> tuple[str, str]:
    """Targets and text: the reads, which have their names, and the last state."""
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
    targets = [block.variables[r.node] for r in c.reads]
    for read, target in zip(c.reads, targets, strict=True):
        have = [*c.heads, *read.own, *c.values]
        block.variables[read.node] = block.laid(target, have, read.node.dims)
    return ", ".join([*targets, final]), f"_chunked(run, _scan, _chunks, {', '.join(args)})"


def _query(read: Read, chunks: Chunks, block: Block) -> str:
    code = block.aligned_code(read.query, chunks.heads + read.own + chunks.keys)
    return f"({code}, {several(block.size(d) for d in read.own)})"
