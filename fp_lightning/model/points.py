"""Drag points: source tokens copied to where the user drags them (paper, Appendix A)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class DragPoints:
    """What is dragged where, for token grids of any size."""

    points: Tensor  # float [b, p, 4] as (x_src, y_src, x_tgt, y_tgt) in pixels
    valid: Tensor  # bool [b, p]
    size: tuple[int, int]  # (height, width) of the image in pixels
    scale: Tensor  # [b] factor of what is copied


def copy_tokens(features: Tensor, drag: DragPoints) -> Tensor:
    """Adds the source tokens at the source points to the target tokens at the target points.

    A token is the one whose cell holds the position, floor(x / stride). Several points that reach the
    same target token add the mean of their source tokens, so that many points are not louder than
    one, on coarse grids too; it is taken in float32. A point is ignored where it is not valid or where
    either end is not a position in the image, 0 ≤ x < width and 0 ≤ y < height.

    Args:
        features: [b, 2, c, rows, columns], source and target frame; the grid tiles the image.

    Returns:
        Features of the same shape; the source frame is untouched.
    """
    (height, width), (rows, columns) = drag.size, features.shape[-2:]
    x_source, y_source, x_target, y_target = drag.points.unbind(-1)
    used = drag.valid
    for position, pixels in ((x_source, width), (y_source, height), (x_target, width), (y_target, height)):
        used = used & (position >= 0) & (position < pixels)  # never true for NaN

    def cell(position: Tensor, pixels: int, tokens: int) -> Tensor:
        return (position.where(used, 0) / (pixels / tokens)).long().clamp(max=tokens - 1)

    sample = torch.arange(len(features), device=features.device)[:, None]
    here = sample, cell(y_target, height, rows), cell(x_target, width, columns)
    source, target = features.unbind(1)
    copied = source[sample, :, cell(y_source, height, rows), cell(x_source, width, columns)].float()  # [b, p, c]
    hits = copied.new_zeros((len(features), rows, columns)).index_put(here, used.float(), accumulate=True)
    share = (drag.scale[:, None] / hits[here].clamp(min=1))[..., None]
    added = (copied * share).where(used[..., None], 0)
    # index_put, since scatter_add on a GPU does not repeat to the last bit
    total = copied.new_zeros((*hits.shape, copied.shape[-1])).index_put(here, added, accumulate=True)
    return torch.stack([source, target + total.movedim(-1, 1).to(target.dtype)], 1)
