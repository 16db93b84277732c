"""Points signal: drags from source positions to target positions (paper, section 3.3)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fp_lightning.types import MOVING_PIXELS, MOVING_WIDTH, VideoPair, token_centres


def moved_tokens(tracks: Tensor, visible: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Compute the centres of the target tokens and how far each has moved.

    Args:
        tracks: source positions [2, th, tw] of the target tokens, in pixels.
        visible: bool [th, tw], whether the token is visible in the source.
        size: (height, width) in pixels.

    Returns:
        Centres [2, th, tw] in pixels, and distances [th, tw] in pixels. The distance is 0 for tokens that are not
        visible in the source or moved by less than 1 px at 512 px width.
    """
    centres = token_centres(tracks, size)
    moved = (centres - tracks).norm(dim=0)
    return centres, torch.where(visible & (moved >= MOVING_PIXELS * size[1] / MOVING_WIDTH), moved, 0)


def points(pair: VideoPair, rng: np.random.Generator, least: int = 1, most: int = 20) -> Tensor:
    """Draw drags from a pair's tracks: float32 [p, 4] as (x_src, y_src, x_tgt, y_tgt) in pixels of the pair.

    Target points are centres of moving tokens, see `moved_tokens`. They are drawn without replacement with
    probability proportional to their distance, and their tracks are the source points (LightningDrag, Shi et
    al. 2024). The centres are not jittered: only there is the track exact, another position in the token may
    belong to another motion, and the network only reads which token holds a point.

    Args:
        pair: `tracks` and `visible` are read.
        rng: decides the number of drags and their positions.
        least: smallest number of drags, 1 or more. The number is uniform from `least` to `most`.
        most: largest number of drags. There are fewer if fewer tokens move, and none if nothing visible moves.
    """
    count = int(rng.integers(least, most + 1))
    source = pair.tracks
    target, weight = moved_tokens(source, pair.visible, pair.size)
    share = weight.flatten().double().numpy()
    if not share.any():
        return torch.zeros(0, 4)
    drawn = rng.choice(share.size, min(count, int(np.count_nonzero(share))), replace=False, p=share / share.sum())
    return torch.cat([source, target]).flatten(1)[:, drawn].T.float().contiguous()
