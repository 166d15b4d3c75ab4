"""Chunks of tokens of a matrix state: what tokens read of each other and of the state that enters, and gradients.

Tiles: queries and keys [C, BK], values [C, BV], the state [BK, BV]; C tokens. Decays are products of the factors
themselves: of a factor for all entries as a matrix [C, C] over pairs of tokens; of factors along keys or values by
halves of blocks of 2, 4, ... C tokens, from the right half's start to a read and from a write to the left half's end.
Nothing is divided by, but for the gradient of factors along a dim: there they are kept apart from zero. Where factors
have a lower bound the first TOGETHER of these levels, blocks of 2 ** TOGETHER tokens, are one product, whose decays are
taken from blocks' middles. OPERAND is the dtype of products' operands; they are summed in float32.
With LAG 1 a token reads the state before it, with 0 the one after it; where EITHER, which is known as a kernel runs.
Where rows of a tile come in groups of 2 ** GROUP, those of a group do not wait for each other: what reads of it reads
of all, and the group's factor stands at its first row, ones at the others. TOGETHER is not less than GROUP.
"""

# Triton's `dot` and scans have no types that say what they return.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tl_tf32(x):
    """The TF32 numbers nearest to float32 ones; what is left of these is then at most half a unit of TF32."""
    return ((x.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def _tl_operand(x, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """`x` as OPERAND; as TF32 rounded to it, for products cut what they are given. So is what is to cancel: it must be
    made of the same numbers."""
    x = x.to(OPERAND)
    if PRECISION == "tf32" and tl.float32 == OPERAND:
        x = _tl_tf32(x)
    return x


@triton.jit
def _tl_dot(x, y, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """`x @ y` of operands rounded to OPERAND, summed in float32."""
    if PRECISION == "parts":
        total = _tl_add_dot(tl.zeros([x.shape[0], y.shape[1]], tl.float32), x, y, OPERAND, PRECISION)
    else:
        x, y = _tl_operand(x, OPERAND, PRECISION), _tl_operand(y, OPERAND, PRECISION)
        total = tl.dot(x, y, input_precision=PRECISION)
    return total


@triton.jit
def _tl_add_dot(total, x, y, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """`total + x @ y`."""
    if PRECISION == "parts":
        # Of three products at once each warp holds all operands; of one after the other its own part.
        x, y = x.to(tl.float32), y.to(tl.float32)
        x_high, y_high = _tl_tf32(x), _tl_tf32(y)
        x_left, y_left = x - x_high, y - y_high
        for part in tl.range(0, 3, num_stages=1):
            x_part, y_part = tl.where(part == 0, x_left, x_high), tl.where(part == 1, y_left, y_high)
            total = tl.dot(x_part, y_part, total, input_precision="tf32")
    else:
        x, y = _tl_operand(x, OPERAND, PRECISION), _tl_operand(y, OPERAND, PRECISION)
        total = tl.dot(x, y, total, input_precision=PRECISION)
    return total


@triton.jit
def _tl_add_whole_dot(total, x, y, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """`total + x @ y`; where OPERAND is bfloat16, with what a float32 `x` has left after rounding to it."""
    if tl.bfloat16 == OPERAND and PRECISION != "parts":
        high = x.to(OPERAND)
        low = (x - high.to(tl.float32)).to(OPERAND)
        for part in tl.range(0, 2, num_stages=1):
            total = tl.dot(tl.where(part == 0, low, high), y.to(OPERAND), total)
    else:
        total = _tl_add_dot(total, x, y, OPERAND, PRECISION)
    return total


@triton.jit
def _tl_seen(row, LAG):
    """[C, C]: whether the row's token reads what the column's wrote; with LAG 1, before its own."""
    return row[:, None] >= row[None, :] + LAG


@triton.jit
def _tl_last_row(x, row):
    """The last row of a tile."""
    last = row == x.shape[0] - 1
    return tl.sum(tl.where(last[:, None] if len(x.shape) == 2 else last, x, 0.0), 0)


@triton.jit
def _tl_between(a_previous, row):
    """[C, C]: the product of the factors of all tokens after the column's and before the row's; 0 from the diagonal on.

    a_previous: each token's factor before it, [C]."""
    steps = tl.where(row[:, None] > row[None, :] + 1, a_previous[:, None], 1.0)
    return tl.where(row[:, None] > row[None, :], tl.cumprod(steps, 0), 0.0)


@triton.jit
def _tl_through(a, between, row):
    """The same with the row's own factor, and 1 on the diagonal."""
    return tl.where(row[:, None] == row[None, :], 1.0, a[:, None] * between)


@triton.jit
def _tl_shifted(x, row, BY):
    """Row `i` of a tile, or entry of a vector, at `i + BY`; 0 where nothing comes from."""
    source = row - BY
    there = (source >= 0) & (source < x.shape[0])
    source = tl.where(there, source, 0)
    if len(x.shape) == 2:
        there, source = there[:, None], tl.broadcast_to(source[:, None], x.shape)
    return tl.where(there, tl.gather(x, source, 0), 0.0)


@triton.jit
def _tl_crossed(pairs, row, LAG):
    """Of each token, the sum over pairs [C, C] of which the later is not before it, and the earlier is before it; with
    LAG 1 before the token before it."""
    later = tl.cumsum(pairs, 0, reverse=True)
    return tl.sum(tl.where(row[:, None] > row[None, :] + LAG, later, 0.0), 1)


@triton.jit
def _tl_decayed(x, between, a, row, LAG):
    """Of pairs of tokens [C, C], with the factors that lie between a read and a write: the read's own with LAG 0."""
    own, far = row[:, None] == row[None, :], x * between
    return tl.where(own, tl.where(LAG == 0, x, 0.0), tl.where(LAG == 0, a[:, None], 1.0) * far)


# --- factors along keys or values ---


@triton.jit
def _tl_joined_products(p, edge, p_later, edge_later):
    """Two stretches of rows as one, of which each `edge` starts anew."""
    return tl.where(edge_later != 0, p_later, p * p_later), edge | edge_later


@triton.jit
def _tl_joined_sums(x, edge, x_later, edge_later):
    """The same of sums."""
    return tl.where(edge_later != 0, x_later, x + x_later), edge | edge_later


@triton.jit
def _tl_within(a, row, SIZE, REVERSE: tl.constexpr, OWN):
    """Products of `a` [C, N] from the start of each block of SIZE tokens through each token, or from it to the block's
    end. Where not OWN, `a` is each token's neighbour's, and what comes from another block is left out."""
    edge = tl.broadcast_to((row % SIZE == (SIZE - 1 if REVERSE else 0))[:, None], a.shape).to(tl.int32)
    a = tl.where((edge != 0) & (OWN == 0), 1.0, a)
    a, _ = tl.associative_scan((a, edge), 0, _tl_joined_products, reverse=REVERSE)
    return a


@triton.jit
def _tl_within_back(x, row, SIZE, REVERSE: tl.constexpr, OWN):
    """Gradient of the logarithms of `a` in `_tl_within`, from what the logarithms of its products get: sums of terms
    that all have the factor, so no difference of large ones."""
    edge = tl.broadcast_to((row % SIZE == (0 if REVERSE else SIZE - 1))[:, None], x.shape).to(tl.int32)
    x, _ = tl.associative_scan((x, edge), 0, _tl_joined_sums, reverse=not REVERSE)
    edge = row % SIZE == (SIZE - 1 if REVERSE else 0)
    return tl.where((edge & (OWN == 0))[:, None], 0.0, x)


@triton.jit
def _tl_pairs(row, LEVEL):
    """[C, C]: whether the row's token lies in the right half of a block, and the column's in its left one."""
    half = row >> LEVEL
    return (half[:, None] % 2 == 1) & (half[None, :] == half[:, None] - 1)


@triton.jit
def _tl_apart(a):
    """A factor kept so far from zero that products of it with others still tell those: its own is divided out again."""
    least = 8.7e-19
    return tl.where(tl.abs(a) < least, tl.where(a < 0.0, -least, least), a)


@triton.jit
def _tl_middle(x, AT, SIZE: tl.constexpr):
    """Row AT of each block of SIZE tokens, at all rows of that."""
    whole: tl.constexpr = x.shape[0] == SIZE
    if whole:
        x = tl.sum(tl.where((tl.arange(0, SIZE) == AT)[:, None], x, 0.0), 0)[None, :]
    else:
        blocks = tl.reshape(x, (x.shape[0] // SIZE, SIZE, x.shape[1]))
        found = tl.sum(tl.where(tl.arange(0, SIZE)[None, :, None] == AT, blocks, 0.0), 1, keep_dims=True)
        x = tl.reshape(tl.broadcast_to(found, blocks.shape), x.shape)
    return x


@triton.jit
def _tl_around(a, a_next, row, LAG, TOGETHER: tl.constexpr, GROUP: tl.constexpr = 0):
    """Decays of reads and inverse ones of writes, from the middle of each block: their products are the decays from one
    token to a later one, exact where both are in range. A factor below what was declared could take them out of it, and
    gives NaN instead."""
    size: tl.constexpr = 2**TOGETHER
    a = tl.where(a < 0.99 * 2.0 ** (-120.0 / 2 ** (TOGETHER - GROUP)), float("nan"), a)
    whole: tl.constexpr = a.shape[0] == size
    if whole:
        start, until = tl.cumprod(a, 0), tl.cumprod(a_next, 0, reverse=True)
    else:
        start = _tl_within(a, row, size, False, LAG == 0)
        until = _tl_within(a_next, row, size, True, False)
    return start / _tl_middle(start, size // 2 - 1 + LAG, size), until / _tl_middle(until, size // 2 - 1, size)


@triton.jit
def _tl_together(row, TOGETHER: tl.constexpr, GROUP: tl.constexpr = 0):
    """[C, C]: whether the row's token comes after the column's in one block."""
    block, place = row >> TOGETHER, row >> GROUP
    return (block[:, None] == block[None, :]) & (place[:, None] > place[None, :])


@triton.jit
def _tl_grouped(row, GROUP: tl.constexpr):
    """[C, C]: whether both are of one group."""
    group = row >> GROUP
    return group[:, None] == group[None, :]


@triton.jit
def _tl_crossing(reads, writes, row, LAG, TOGETHER: tl.constexpr, GROUP: tl.constexpr = 0):
    """Gradient of the logarithms of tokens' own factors from those of reads' decays and of writes' inverse ones. A
    factor is between a write and a read where the read comes later and the write does not: the pairs after it cancel.
    """
    size: tl.constexpr = 2**TOGETHER
    found = _tl_within_back(reads - writes, row, size, False, False)
    if GROUP > 0:
        reads = _tl_within_back(reads, row, 2**GROUP, False, True)
    return found - tl.where(((row % size == 0) | (LAG == 0))[:, None], 0.0, reads)


@triton.jit
def _tl_scores(
    scores,
    q,
    k,
    a,
    a_next,
    row,
    LAG,
    LEVELS: tl.constexpr,
    TOGETHER: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    EITHER: tl.constexpr = False,
):
    """`scores`, [C, C], and the decayed products of some keys. `a`: the factors of each token, with LAG 1 of the one
    before; `a_next`: of the one after. Of tokens outside the chunk they are 1."""
    if EITHER or LAG == 0:
        own = tl.sum(q.to(tl.float32) * k.to(tl.float32), 1)[:, None]
        scores += tl.where((row[:, None] == row[None, :]) & (LAG == 0), own, 0.0)
    if TOGETHER > 0:
        start, until = _tl_around(a, a_next, row, LAG, TOGETHER)
        near = _tl_dot(q * start, tl.trans(k * until), OPERAND, PRECISION)
        scores += tl.where(_tl_together(row, TOGETHER), near, 0.0)
    for level in tl.range(TOGETHER, LEVELS, num_stages=1):
        q_start = q * _tl_within(a, row, 1 << level, False, LAG == 0)
        k_until = k * _tl_within(a_next, row, 1 << level, True, False)
        near = _tl_dot(q_start, tl.trans(k_until), OPERAND, PRECISION)
        scores += tl.where(_tl_pairs(row, level), near, 0.0)
    return scores


@triton.jit
def _tl_near_back(
    d_scores,
    q,
    k,
    a,
    a_next,
    row,
    LAG,
    TOGETHER: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    EITHER: tl.constexpr = False,
):
    """Gradients of some keys' q, k and the logarithms of tokens' own factors, from those of the scores of tokens that
    are read in one product."""
    if EITHER or LAG == 0:
        own = (row[:, None] == row[None, :]) & (LAG == 0)
        own = tl.sum(tl.where(own, d_scores.to(tl.float32), 0.0), 1)[:, None]
        d_q, d_k = own * k, own * q
    else:
        d_q, d_k = tl.zeros(q.shape, tl.float32), tl.zeros(k.shape, tl.float32)
    flow = tl.zeros(q.shape, tl.float32)
    if TOGETHER > 0:
        start, until = _tl_around(a, a_next, row, LAG, TOGETHER)
        q_start = _tl_operand(q * start, OPERAND, PRECISION)
        k_until = _tl_operand(k * until, OPERAND, PRECISION)
        paired = tl.where(_tl_together(row, TOGETHER), d_scores, 0.0)
        to_q = _tl_dot(paired, k_until, OPERAND, PRECISION)
        to_k = _tl_dot(tl.trans(paired), q_start, OPERAND, PRECISION)
        d_q += to_q * start
        d_k += to_k * until
        flow = _tl_crossing(q_start * to_q, k_until * to_k, row, LAG, TOGETHER)
    return d_q, d_k, flow


@triton.jit
def _tl_halves_back(
    d_q,
    d_k,
    flow,
    flow_next,
    d_scores,
    q,
    k,
    a,
    a_next,
    row,
    LAG,
    LEVELS: tl.constexpr,
    TOGETHER: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums with the gradients of q, k and the logarithms of `a` and `a_next`, from those of the scores of tokens in two
    halves of a block."""
    for level in tl.range(TOGETHER, LEVELS, num_stages=1):
        start = _tl_within(a, row, 1 << level, False, LAG == 0)
        until = _tl_within(a_next, row, 1 << level, True, False)
        q_start, k_until = (q * start).to(OPERAND), (k * until).to(OPERAND)
        paired = tl.where(_tl_pairs(row, level), d_scores, 0.0)
        to_q = _tl_dot(paired, k_until, OPERAND, PRECISION)
        to_k = _tl_dot(tl.trans(paired), q_start, OPERAND, PRECISION)
        d_q += to_q * start
        d_k += to_k * until
        flow += _tl_within_back(q_start * to_q, row, 1 << level, False, LAG == 0)
        flow_next += _tl_within_back(k_until * to_k, row, 1 << level, True, False)
    return d_q, d_k, flow, flow_next


@triton.jit
def _tl_values_read(
    entering,
    scores,
    v,
    a,
    a_next,
    row,
    LAG,
    LEVELS: tl.constexpr,
    TOGETHER: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    EITHER: tl.constexpr = False,
):
    """What the tokens of a chunk read, [C, BV], from what they read of the state that enters without decays, and their
    scores [C, C]. `a`: each token's factors, with LAG 1 those of the token before."""
    out = entering * tl.cumprod(a, 0)
    if EITHER or LAG == 0:
        out += tl.sum(tl.where((row[:, None] == row[None, :]) & (LAG == 0), scores, 0.0), 1)[:, None] * v
    if TOGETHER > 0:
        start, until = _tl_around(a, a_next, row, LAG, TOGETHER)
        paired = tl.where(_tl_together(row, TOGETHER), scores, 0.0)
        out += _tl_dot(paired, v * until, OPERAND, PRECISION) * start
    for level in tl.range(TOGETHER, LEVELS, num_stages=1):
        v_until = v * _tl_within(a_next, row, 1 << level, True, False)
        near = _tl_dot(tl.where(_tl_pairs(row, level), scores, 0.0), v_until, OPERAND, PRECISION)
        out += near * _tl_within(a, row, 1 << level, False, LAG == 0)
    return out


@triton.jit
def _tl_values_read_back(
    flow,
    grad,
    scores,
    v,
    a,
    a_next,
    row,
    LAG,
    LEVELS: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    EITHER: tl.constexpr = False,
):
    """Gradients of the scores, from what tokens read of each other, and `flow` with those of the logarithms of `a`."""
    if EITHER or LAG == 0:
        own = (row[:, None] == row[None, :]) & (LAG == 0)
        d_scores = tl.where(own, tl.sum(grad.to(tl.float32) * v.to(tl.float32), 1)[:, None], 0.0)
    else:
        d_scores = tl.zeros(scores.shape, tl.float32)
    for level in tl.range(0, LEVELS, num_stages=1):
        grad_start = (grad * _tl_within(a, row, 1 << level, False, LAG == 0)).to(OPERAND)
        v_until = (v * _tl_within(a_next, row, 1 << level, True, False)).to(OPERAND)
        pairs = _tl_pairs(row, level)
        d_scores += tl.where(pairs, _tl_dot(grad_start, tl.trans(v_until), OPERAND, PRECISION), 0.0)
        read = grad_start * _tl_dot(tl.where(pairs, scores, 0.0), v_until, OPERAND, PRECISION)
        flow += _tl_within_back(read, row, 1 << level, False, LAG == 0)
    return d_scores, flow


@triton.jit
def _tl_values_write_back(
    d_v,
    flow_next,
    grad,
    scores,
    v,
    a,
    a_next,
    row,
    LAG,
    LEVELS: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    EITHER: tl.constexpr = False,
):
    """`d_v` and `flow_next` with the gradients of v and the logarithms of `a_next`. A loop by itself: what it makes as
    `_tl_values_read_back` does takes fewer registers twice than all of it at once."""
    if EITHER or LAG == 0:
        own = (row[:, None] == row[None, :]) & (LAG == 0)
        d_v += tl.sum(tl.where(own, scores.to(tl.float32), 0.0), 1)[:, None] * grad
    for level in tl.range(0, LEVELS, num_stages=1):
        grad_start = grad * _tl_within(a, row, 1 << level, False, LAG == 0)
        until = _tl_within(a_next, row, 1 << level, True, False)
        paired = tl.where(_tl_pairs(row, level), scores, 0.0)
        to_v = _tl_dot(tl.trans(paired), grad_start, OPERAND, PRECISION)
        d_v += to_v * until
        flow_next += _tl_within_back(v * until * to_v, row, 1 << level, True, False)
    return d_v, flow_next


@triton.jit
def _tl_values_write(k, v, state, a_next, whole, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """The state that leaves a chunk."""
    until = tl.cumprod(a_next, 0, reverse=True)
    return _tl_add_dot(state * whole[None, :], tl.trans(k), v * until, OPERAND, PRECISION)
