"""How many tokens of a chunk may be read in one product: where factors along a dim have a lower bound.

What a token reads of an earlier one is decayed by the factors between the two. Taken from a block's middle, the decays
of reads and the inverse ones of writes are powers of which none leaves the range of float32 if the block is short
enough for the bound; without one, products go by halves of blocks.
Goals: the bound, what it rests on, and the size. Non-goals: how the product is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from rnnc.closure.obligations import as_written
from rnnc.ir import Const, Expr
from rnnc.lower import System

SIZES = (64, 32, 16, 8, 4)
BITS = 60
"""How far, in powers of two, decays may be from 1. float32 has 126: the rest is left to queries, keys and gradients,
which are multiplied with them and may be small."""

Lowest = Callable[[Expr, bool], tuple[float, tuple[str, ...]]]
"""The least that an expression of a cell may be (`Analysis.lowest`)."""


def unknown(expr: Expr, declared: bool) -> tuple[float, tuple[str, ...]]:
    """Nothing."""
    return -math.inf, ()


@dataclass(frozen=True)
class Together:
    """Every factor is at least `least`, if these consts have the values that they are declared with; so `tokens` can be
    read in one product."""

    least: float
    consts: tuple[Const, ...] = ()

    @property
    def tokens(self) -> int:
        return size(self.least)


def size(least: float) -> int:
    """Tokens of a block, at most half of whose factors are multiplied; 1 where that is too many."""
    each = -math.log2(least) if least > 0 else math.inf
    return next((n for n in SIZES if each * (n // 2) <= BITS), 1)


def together(system: System, factor: Expr, lowest: Lowest) -> Together | None:
    """What is known of a factor; consts are taken to be as declared only where that says more."""
    expr = as_written(system, factor)
    if expr is None or expr.kind != "real":
        return None
    found: list[Together] = []
    for declared in (False, True):
        least, names = lowest(expr, declared)
        found.append(Together(least, tuple(c for c in system.cell.consts if c.name in names)))
    best = max(found, key=lambda t: (t.tokens, -len(t.consts)))
    return best if best.tokens > 1 else None
