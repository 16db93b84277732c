"""Points signal: drags from where something is to where it shall be (paper, section 3.3)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fp_lightning.types import MOVING_PIXELS, MOVING_WIDTH, VideoPair, token_centres


def moved_tokens(tracks: Tensor, visible: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Target tokens' centres [2, th, tw], and how far each has moved, [th, tw] in pixels; 0 where it is not visible in
    the source or moved by less than 1 px at 512 px width."""
    centres = token_centres(tracks, size)
    moved = (centres - tracks).norm(dim=0)
    return centres, torch.where(visible & (moved >= MOVING_PIXELS * size[1] / MOVING_WIDTH), moved, 0)


def points(pair: VideoPair, rng: np.random.Generator, least: int = 1, most: int = 20) -> Tensor:
    """Drags (x_src, y_src, x_tgt, y_tgt) in pixels of the pair: float32 [p, 4].

    Target points are tracked token centres, drawn without replacement with a probability proportional to
    how far they moved, from those that are visible in the source and moved by 1 px at 512 px width or more;
    their tracks are the source points (LightningDrag, Shi et al. 2024). A centre is not jittered: its track
    is exact, another place in the token may belong to what moves differently, and the network reads no more
    than the token that holds a point.

    Args:
        pair: only `tracks` and `visible` are read.
        rng: decides the number and the places.
        least, most: the number is uniform between them, 1 ≤ least ≤ most; fewer where fewer tokens can be
            drawn, none where nothing visible moved.
    """
    count = int(rng.integers(least, most + 1))
    source = pair.tracks
    target, weight = moved_tokens(source, pair.visible, pair.size)
    share = weight.flatten().double().numpy()
    if not share.any():
        return torch.zeros(0, 4)
    drawn = rng.choice(share.size, min(count, int(np.count_nonzero(share))), replace=False, p=share / share.sum())
    return torch.cat([source, target]).flatten(1)[:, drawn].T.float().contiguous()
