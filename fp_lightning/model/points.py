"""Drag points: source tokens are added at the positions that the user drags them to (paper, Appendix A)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class DragPoints:
    """Drags from source to target positions, for token grids of any size."""

    points: Tensor  # float [b, p, 4] as (x_src, y_src, x_tgt, y_tgt) in pixels
    valid: Tensor  # bool [b, p]
    size: tuple[int, int]  # (height, width) of the image in pixels
    scale: Tensor  # [b] factor of the copied tokens


def copy_tokens(features: Tensor, drag: DragPoints) -> Tensor:
    """Add the source tokens at the source points to the target tokens at the target points.

    A position belongs to the token with index floor(position / stride). Several points with the same target token add
    the mean of their source tokens, computed in float32. So the effect does not grow with the number of points, on
    coarse grids either. A point is ignored if it is not valid, or if one of its ends is outside the image
    (0 ≤ x < width, 0 ≤ y < height).

    Args:
        features: [b, 2, c, rows, columns], the source and the target frame. The grid tiles the image.
        drag: the drags.

    Returns:
        Features of the same shape. The source frame is unchanged.
    """
    (height, width), (rows, columns) = drag.size, features.shape[-2:]
    x_source, y_source, x_target, y_target = drag.points.unbind(-1)
    used = drag.valid
    for position, pixels in ((x_source, width), (y_source, height), (x_target, width), (y_target, height)):
        used = used & (position >= 0) & (position < pixels)  # false for NaN

    def cell(position: Tensor, pixels: int, tokens: int) -> Tensor:
        return (position.where(used, 0) / (pixels / tokens)).long().clamp(max=tokens - 1)

    sample = torch.arange(len(features), device=features.device)[:, None]
    targets = sample, cell(y_target, height, rows), cell(x_target, width, columns)
    source, target = features.unbind(1)
    copied = source[sample, :, cell(y_source, height, rows), cell(x_source, width, columns)].float()  # [b, p, c]
    hits = copied.new_zeros((len(features), rows, columns)).index_put(targets, used.float(), accumulate=True)
    share = (drag.scale[:, None] / hits[targets].clamp(min=1))[..., None]
    added = (copied * share).where(used[..., None], 0)
    # index_put is deterministic on a GPU; scatter_add is not
    total = copied.new_zeros((*hits.shape, copied.shape[-1])).index_put(targets, added, accumulate=True)
    return torch.stack([source, target + total.movedim(-1, 1).to(target.dtype)], 1)
