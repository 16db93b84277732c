"""Softmax splatting: move the pixels of an image by a flow."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_EXPONENT = 20.0  # only pixels whose share is at the rounding error reach this limit, see `softmax_splat`


def softmax_splat(values: Tensor, flow: Tensor, metric: Tensor) -> tuple[Tensor, Tensor]:
    """Move every pixel by its flow, and blend pixels that arrive together by a softmax of their metric.

    Softmax splatting (Niklaus & Liu 2020): Σ s·exp(metric)·value / Σ s·exp(metric), where s is the bilinear
    share of an arriving pixel in each of its four neighbours. Pixels that leave the image are dropped. The
    result is differentiable in all three arguments; at integer positions the gradient of the flow is the
    one-sided derivative towards larger flow.

    Args:
        values: [b, c, h, w].
        flow: [b, 2, h, w] in pixels: position in the first image + flow = position in the second.
        metric: [b, 1, h, w], log importance. All finite values are safe, because exponents are relative to
            the largest metric that arrives in the same pixel.

    Returns:
        The moved values [b, c, h, w] and the coverage Σ s [b, 1, h, w], in pixels. Holes, whose coverage is at
        the rounding error, have the value 0 and no gradient.
    """
    batch, channels, height, width = values.shape
    rows, columns = (torch.arange(n, device=flow.device, dtype=flow.dtype) for n in (height, width))
    x, y = columns + flow[:, 0], rows[:, None] + flow[:, 1]
    left, top = x.floor(), y.floor()
    right_share, lower_share = x - left, y - top
    shares = [  # [b, hw] each: upper left, upper right, lower left, lower right
        (horizontal * vertical).flatten(1)
        for vertical in (1 - lower_share, lower_share)
        for horizontal in (1 - right_share, right_share)
    ]
    # a margin of two pixels collects the pixels that leave the image; it is removed at the end
    wide, high = width + 4, height + 4
    corner = ((top.clamp(-2, height).long() + 2) * wide + left.clamp(-2, width).long() + 2).flatten(1)
    places = [corner + step for step in (0, 1, wide, wide + 1)]

    logit, features = metric.flatten(1), values.flatten(2)
    eps = torch.finfo(values.dtype).eps
    peak = values.new_full((batch, high * wide), -torch.inf)
    for share, place in zip(shares, places, strict=True):
        peak.scatter_reduce_(1, place, logit.detach().masked_fill(share <= eps, -torch.inf), "amax")
    sums = values.new_zeros((batch, channels + 2, high * wide))
    for share, place in zip(shares, places, strict=True):
        # only shares below eps can exceed the peak; they are kept because they have a gradient
        weight = (share * (logit - peak.gather(1, place)).clamp(max=MAX_EXPONENT).exp())[:, None]
        terms = torch.cat([features * weight, weight, share[:, None]], 1)
        sums.scatter_add_(2, place[:, None].expand_as(terms), terms)

    inner = (..., slice(2, -2), slice(2, -2))
    total, norm, covered = sums.unflatten(2, (high, wide))[inner].split([channels, 1, 1], 1)
    filled = (peak > -torch.inf).view(batch, 1, high, wide)[inner]
    return torch.where(filled, total, 0) / torch.where(filled, norm, 1), covered
