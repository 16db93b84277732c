"""Triton kernels of the matching loss (Eq. 7), which compute visible rows only.

A permutation on the GPU puts visible rows first, and each kernel stops after the last one, so the host never waits.
Logits are computed block by block from query and key, as in flash attention, and are not stored. Products use the
inputs' type and accumulate in float32; float32 inputs use IEEE float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_SIDE = 64  # most rows and columns of a block of logits
_HALF, _FULL = 2**13, 2**11  # most elements of a block of queries or keys: in half precision, in float32


def rows(query: Tensor, key: Tensor, index: Tensor, squared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `matching_rows` on a GPU. The head width d must be a power of two from 16 to 256."""
    query, key = query.contiguous(), key.contiguous()
    order, target, count = _order(index)
    loss, normaliser, mean = (query.new_zeros(query.shape[:3], dtype=torch.float32) for _ in range(3))
    batch, heads, n, width = query.shape
    side = block_side(width, query.dtype)
    _rows[(triton.cdiv(n, side), batch * heads)](
        *(query, key, order, target, count, loss, normaliser, mean),
        *(width**-0.5, n, key.shape[2], heads, width, side, side, squared, _precision(query)),
    )
    return loss, normaliser, mean


def rows_backward(
    gradient: Tensor, query: Tensor, key: Tensor, index: Tensor, normaliser: Tensor, mean: Tensor, squared: bool
) -> tuple[Tensor, Tensor]:
    """Compute `matching_rows_backward` on a GPU."""
    query, key, gradient = query.contiguous(), key.contiguous(), gradient.contiguous()
    order, target, count = _order(index)
    grad_query, grad_key = torch.zeros_like(query), torch.empty_like(key)
    batch, heads, n, width = query.shape
    m, side = key.shape[2], block_side(width, query.dtype)
    inputs = query, key, order, target, count, gradient, normaliser, mean
    settings = width**-0.5, n, m, heads, width, side, side, squared, _precision(query)
    _query_gradient[(triton.cdiv(n, side), batch * heads)](*inputs, grad_query, *settings)
    _key_gradient[(triton.cdiv(m, side), batch * heads)](*inputs, grad_key, *settings)
    return grad_query, grad_key


def block_side(width: int, dtype: torch.dtype) -> int:
    """Return the rows and columns of a block of logits, 16 to 64.

    Blocks fit the shared memory of every supported GPU (99 KiB on consumer cards) and its registers. Float32 products
    have no tensor cores without rounding, so each thread holds its operands in registers: their blocks are smaller.
    """
    most = _SIDE // 2 if dtype == torch.float32 else _SIDE
    return max(16, min(most, (_FULL if dtype == torch.float32 else _HALF) // width))


def _order(index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return row indices with visible rows first, source tokens [b, n], and visible rows per sample [b]; int32."""
    visible = index >= 0
    order = (~visible).to(torch.uint8).argsort(dim=-1, stable=True)
    return order.int(), index.int().contiguous(), visible.sum(-1, dtype=torch.int32)


def _precision(query: Tensor) -> str:
    return "ieee" if query.dtype == torch.float32 else "tf32"  # half precision ignores it


@triton.jit
def _load(base, offset, valid, width: tl.constexpr):
    """Load the rows `offset` [block] of a matrix as [block, width], 0 where not `valid`."""
    columns = tl.arange(0, width)
    return tl.load(base + offset[:, None] * width + columns[None, :], mask=valid[:, None], other=0.0)


@triton.jit
def _visible_rows(block, order, target, count, pair, heads, n, size: tl.constexpr):
    """Return the row indices of a block of visible rows, their source tokens, and a mask of the entries in use."""
    batch = pair // heads
    slot = block * size + tl.arange(0, size)
    valid = slot < tl.load(count + batch)
    row = tl.load(order + batch * n + slot, mask=valid, other=0)
    return row, tl.load(target + batch * n + row, mask=valid, other=0), valid


@triton.jit
def _load_saved(query, normaliser, mean, gradient, offset, valid, width: tl.constexpr):
    """Load the query, the saved log-sum-exp and mean slope, and the loss gradient of rows; 0 where not `valid`."""
    z = tl.load(normaliser + offset, mask=valid, other=0.0)
    mean_slope = tl.load(mean + offset, mask=valid, other=0.0)
    return _load(query, offset, valid, width), z, mean_slope, tl.load(gradient + offset, mask=valid, other=0.0)


@triton.jit
def _slope(q, k, column, source, z, mean_slope, g, scale, m, squared: tl.constexpr, precision: tl.constexpr):
    """Return the loss gradient of the unscaled products q · k, [rows, columns]."""
    logits = tl.dot(q, tl.trans(k), input_precision=precision) * scale
    share = tl.where(column[None, :] < m, tl.exp(logits - z[:, None]), 0.0)
    match = tl.where(column[None, :] == source[:, None], 1.0, 0.0)
    slope = share * (2.0 * share - 2.0 * match - mean_slope[:, None]) if squared else share - match
    return slope * (g * scale)[:, None]


@triton.jit
def _rows(
    query, key, order, target, count, loss, normaliser, mean,
    scale, n, m, heads, width: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
    squared: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Compute the loss, log-sum-exp and mean slope of one block of visible rows of one (sample, head) pair."""
    block, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if block * rows >= tl.load(count + pair // heads):
        return
    row, source, valid = _visible_rows(block, order, target, count, pair, heads, n, rows)
    q = _load(query, pair * n + row, valid, width)
    picked = tl.sum(q.to(tl.float32) * _load(key, pair * m + source, valid, width).to(tl.float32), 1) * scale
    row_max = tl.full([rows], float("-inf"), tl.float32)
    total = tl.zeros([rows], tl.float32)
    squares = tl.zeros([rows], tl.float32)
    for start in range(0, m, columns):
        column = start + tl.arange(0, columns)
        k = _load(key, pair * m + column, column < m, width)
        logits = tl.dot(q, tl.trans(k), input_precision=precision) * scale
        logits = tl.where(column[None, :] < m, logits, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(logits, 1))
        rescale, share = tl.exp(row_max - new_max), tl.exp(logits - new_max[:, None])
        total = total * rescale + tl.sum(share, 1)
        squares = squares * rescale * rescale + tl.sum(share * share, 1)
        row_max = new_max
    z = row_max + tl.log(total)
    if squared:
        match = tl.exp(picked - z)
        squares = squares / (total * total)
        value = squares - 2.0 * match + 1.0
        mean_slope = 2.0 * (squares - match)
    else:
        value = z - picked
        mean_slope = tl.full([rows], 1.0, tl.float32)
    offset = pair * n + row
    tl.store(loss + offset, value, mask=valid)
    tl.store(normaliser + offset, z, mask=valid)
    tl.store(mean + offset, mean_slope, mask=valid)


@triton.jit
def _query_gradient(
    query, key, order, target, count, gradient, normaliser, mean, grad_query,
    scale, n, m, heads, width: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
    squared: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Compute the query gradient of one block of visible rows of one (sample, head) pair."""
    block, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if block * rows >= tl.load(count + pair // heads):
        return
    row, source, valid = _visible_rows(block, order, target, count, pair, heads, n, rows)
    offset = pair * n + row
    q, z, mean_slope, g = _load_saved(query, normaliser, mean, gradient, offset, valid, width)
    sums = tl.zeros([rows, width], tl.float32)
    for start in range(0, m, columns):
        column = start + tl.arange(0, columns)
        k = _load(key, pair * m + column, column < m, width)
        slope = _slope(q, k, column, source, z, mean_slope, g, scale, m, squared, precision)
        sums += tl.dot(slope.to(k.dtype), k, input_precision=precision)
    channels = tl.arange(0, width)
    tl.store(grad_query + offset[:, None] * width + channels[None, :], sums.to(q.dtype), mask=valid[:, None])


@triton.jit
def _key_gradient(
    query, key, order, target, count, gradient, normaliser, mean, grad_key,
    scale, n, m, heads, width: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
    squared: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Compute the key gradient of one block of source tokens of one (sample, head) pair."""
    block, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = block * columns + tl.arange(0, columns)
    k = _load(key, pair * m + column, column < m, width)
    sums = tl.zeros([columns, width], tl.float32)
    visible = tl.load(count + pair // heads)
    for start in range(0, visible, rows):
        row, source, valid = _visible_rows(start // rows, order, target, count, pair, heads, n, rows)
        offset = pair * n + row
        q, z, mean_slope, g = _load_saved(query, normaliser, mean, gradient, offset, valid, width)
        slope = _slope(q, k, column, source, z, mean_slope, g, scale, m, squared, precision)
        sums += tl.dot(tl.trans(slope).to(q.dtype), q, input_precision=precision)
    channels = tl.arange(0, width)
    offset = pair * m + column
    tl.store(grad_key + offset[:, None] * width + channels[None, :], sums.to(k.dtype), mask=(column < m)[:, None])
