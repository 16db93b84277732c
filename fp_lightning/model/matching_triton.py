"""The rows of the matching loss on a GPU: Triton kernels that take visible rows alone, gathered on the device.

A permutation puts visible rows first and the kernels end where they end, so nothing waits for the host. Logits are
made block by block from query and key, as in flash attention, and never stored. Products are of the inputs' type with
float32 sums; for float32 inputs they are IEEE float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 64, 64  # of a block


def rows(query: Tensor, key: Tensor, index: Tensor, squared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See `matching_rows`. The width d is a power of two, 16 at least."""
    query, key = query.contiguous(), key.contiguous()
    order, target, count = _order(index)
    loss, normaliser, mean = (query.new_zeros(query.shape[:3], dtype=torch.float32) for _ in range(3))
    batch, heads, n, width = query.shape
    grid = (triton.cdiv(n, ROWS), batch * heads)
    _rows[grid](
        *(query, key, order, target, count, loss, normaliser, mean),
        *(width**-0.5, n, key.shape[2], heads, width, ROWS, COLUMNS, squared, _precision(query)),
    )
    return loss, normaliser, mean


def rows_backward(
    gradient: Tensor, query: Tensor, key: Tensor, index: Tensor, normaliser: Tensor, mean: Tensor, squared: bool
) -> tuple[Tensor, Tensor]:
    """See `matching_rows_backward`."""
    query, key, gradient = query.contiguous(), key.contiguous(), gradient.contiguous()
    order, target, count = _order(index)
    of_query, of_key = torch.zeros_like(query), torch.empty_like(key)
    batch, heads, n, width = query.shape
    m = key.shape[2]
    inputs = query, key, order, target, count, gradient, normaliser, mean
    settings = width**-0.5, n, m, heads, width, ROWS, COLUMNS, squared, _precision(query)
    _query_gradient[(triton.cdiv(n, ROWS), batch * heads)](*inputs, of_query, *settings)
    _key_gradient[(triton.cdiv(m, COLUMNS), batch * heads)](*inputs, of_key, *settings)
    return of_query, of_key


def _order(index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows with the visible ones first, the source tokens, and how many are visible in each sample; int32."""
    visible = index >= 0
    order = (~visible).to(torch.uint8).argsort(dim=-1, stable=True)
    return order.int(), index.int().contiguous(), visible.sum(-1, dtype=torch.int32)


def _precision(query: Tensor) -> str:
    return "ieee" if query.dtype == torch.float32 else "tf32"  # which is not asked of half precision


@triton.jit
def _load(base, place, live, width: tl.constexpr):
    """Rows [block, width] of a matrix at `place` [block], 0 where not `live`."""
    columns = tl.arange(0, width)
    return tl.load(base + place[:, None] * width + columns[None, :], mask=live[:, None], other=0.0)


@triton.jit
def _slots(block, order, target, count, pair, heads, n, size: tl.constexpr):
    """The rows of a block of visible ones, the places of their source tokens, and which of them there are."""
    batch = pair // heads
    slot = block * size + tl.arange(0, size)
    live = slot < tl.load(count + batch)
    row = tl.load(order + batch * n + slot, mask=live, other=0)
    return row, tl.load(target + batch * n + row, mask=live, other=0), live


@triton.jit
def _kept(query, normaliser, mean, gradient, place, live, width: tl.constexpr):
    """Of rows: the query, what the forward pass kept, and the gradient of the loss; 0 where not `live`."""
    z = tl.load(normaliser + place, mask=live, other=0.0)
    average = tl.load(mean + place, mask=live, other=0.0)
    return _load(query, place, live, width), z, average, tl.load(gradient + place, mask=live, other=0.0)


@triton.jit
def _slope(q, k, column, here, z, average, g, scale, m, squared: tl.constexpr, precision: tl.constexpr):
    """The gradient of the logits [rows, columns] times `scale`."""
    logits = tl.dot(q, tl.trans(k), input_precision=precision) * scale
    share = tl.where(column[None, :] < m, tl.exp(logits - z[:, None]), 0.0)
    match = tl.where(column[None, :] == here[:, None], 1.0, 0.0)
    slope = share * (2.0 * share - 2.0 * match - average[:, None]) if squared else share - match
    return slope * (g * scale)[:, None]


@triton.jit
def _rows(
    query, key, order, target, count, loss, normaliser, mean,
    scale, n, m, heads, width: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
    squared: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    block, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if block * rows >= tl.load(count + pair // heads):
        return
    row, here, live = _slots(block, order, target, count, pair, heads, n, rows)
    q = _load(query, pair * n + row, live, width)
    picked = tl.sum(q.to(tl.float32) * _load(key, pair * m + here, live, width).to(tl.float32), 1) * scale
    most = tl.full([rows], float("-inf"), tl.float32)
    total = tl.zeros([rows], tl.float32)
    squares = tl.zeros([rows], tl.float32)
    for start in range(0, m, columns):
        column = start + tl.arange(0, columns)
        k = _load(key, pair * m + column, column < m, width)
        logits = tl.dot(q, tl.trans(k), input_precision=precision) * scale
        logits = tl.where(column[None, :] < m, logits, float("-inf"))
        higher = tl.maximum(most, tl.max(logits, 1))
        fade, share = tl.exp(most - higher), tl.exp(logits - higher[:, None])
        total = total * fade + tl.sum(share, 1)
        squares = squares * fade * fade + tl.sum(share * share, 1)
        most = higher
    z = most + tl.log(total)
    if squared:
        match = tl.exp(picked - z)
        squares = squares / (total * total)
        value = squares - 2.0 * match + 1.0
        average = 2.0 * (squares - match)
    else:
        value = z - picked
        average = tl.full([rows], 1.0, tl.float32)
    place = pair * n + row
    tl.store(loss + place, value, mask=live)
    tl.store(normaliser + place, z, mask=live)
    tl.store(mean + place, average, mask=live)


@triton.jit
def _query_gradient(
    query, key, order, target, count, gradient, normaliser, mean, of_query,
    scale, n, m, heads, width: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
    squared: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    block, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if block * rows >= tl.load(count + pair // heads):
        return
    row, here, live = _slots(block, order, target, count, pair, heads, n, rows)
    place = pair * n + row
    q, z, average, g = _kept(query, normaliser, mean, gradient, place, live, width)
    sums = tl.zeros([rows, width], tl.float32)
    for start in range(0, m, columns):
        column = start + tl.arange(0, columns)
        k = _load(key, pair * m + column, column < m, width)
        slope = _slope(q, k, column, here, z, average, g, scale, m, squared, precision)
        sums += tl.dot(slope.to(k.dtype), k, input_precision=precision)
    wide = tl.arange(0, width)
    tl.store(of_query + place[:, None] * width + wide[None, :], sums.to(q.dtype), mask=live[:, None])


@triton.jit
def _key_gradient(
    query, key, order, target, count, gradient, normaliser, mean, of_key,
    scale, n, m, heads, width: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
    squared: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    block, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = block * columns + tl.arange(0, columns)
    k = _load(key, pair * m + column, column < m, width)
    sums = tl.zeros([columns, width], tl.float32)
    visible = tl.load(count + pair // heads)
    for start in range(0, visible, rows):
        row, here, live = _slots(start // rows, order, target, count, pair, heads, n, rows)
        place = pair * n + row
        q, z, average, g = _kept(query, normaliser, mean, gradient, place, live, width)
        slope = _slope(q, k, column, here, z, average, g, scale, m, squared, precision)
        sums += tl.dot(tl.trans(slope).to(q.dtype), q, input_precision=precision)
    wide = tl.arange(0, width)
    place = pair * m + column
    tl.store(of_key + place[:, None] * width + wide[None, :], sums.to(k.dtype), mask=(column < m)[:, None])
