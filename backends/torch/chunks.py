"""The line of code that computes a matrix state by chunks of tokens."""

from __future__ import annotations

from collections.abc import Callable

from rnnc.chunks import Chunks, Read
from rnnc.ir import Expr
from rnnc.plan import Scan

from .block import Block
from .text import several


def chunk_line(step: Scan, chunks: Chunks, block: Block, final: str) -> tuple[str, str]:
    """Targets and text: the reads, which have their names, and the last state."""
    along = chunks.keys if chunks.keyed else chunks.values
    factor = block.aligned_code(step.closure.a, chunks.heads + along)
    args = chunk_arguments(step, chunks, factor, block, block.aligned_code)
    targets = chunk_targets(chunks, block)
    return ", ".join([*targets, final]), f"_chunked(run, _scan, _chunks, {', '.join([*args, str(chunks.keyed)])})"


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


def chunk_targets(chunks: Chunks, block: Block) -> list[str]:
    """The names that reads get, which from here on stand for them, laid out as they are elsewhere."""
    targets = [block.variables[r.node] for r in chunks.reads]
    for read, target in zip(chunks.reads, targets, strict=True):
        have = [*chunks.heads, *read.own, *chunks.values]
        block.variables[read.node] = block.laid(target, have, read.node.dims)
    return targets


def _query(read: Read, chunks: Chunks, block: Block, aligned: Callable[[Expr, tuple[str, ...]], str]) -> str:
    code = aligned(read.query, chunks.heads + read.own + chunks.keys)
    return f"({code}, {several(block.size(d) for d in read.own)})"
