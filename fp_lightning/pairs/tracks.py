"""Where each target token comes from, and whether it can be seen there. A tracker is added to `TRACKERS`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fp_lightning.types import TRACK_STRIDE


def tracks_from_flow(
    flow_to_source: Tensor,
    flow_to_target: Tensor,
    stride: int = TRACK_STRIDE,
    alpha: float = 0.01,
    beta: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Follows target token centres to the source; visible where the way back leads home.

    Forward–backward check of Sundaram et al. (2010): |f + b|² < alpha (|f|² + |b|²) + beta, with f the
    flow at the target position and b the flow back from where it leads. The paper tracks with CoTracker-v3.

    Args:
        flow_to_source: [2, h, w] in pixels, at target positions.
        flow_to_target: [2, h, w] in pixels, at source positions.
        stride: pixels per token; h and w are multiples of it.
        alpha: allowed squared error relative to the squared motion.
        beta: allowed squared error in px² at 512 px width.

    Returns:
        Source positions float32 [2, h/stride, w/stride] in pixels, and visibility bool [h/stride, w/stride].
    """
    height, width = flow_to_source.shape[-2:]
    y = (torch.arange(height // stride) + 0.5) * stride
    x = (torch.arange(width // stride) + 0.5) * stride
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy"))
    to_source = sample(flow_to_source, centres)
    tracks = centres + to_source
    back = sample(flow_to_target, tracks)
    error = (to_source + back).square().sum(0)
    allowed = alpha * (to_source.square() + back.square()).sum(0) + beta * (width / 512) ** 2
    inside = (tracks >= 0).all(0) & (tracks[0] < width) & (tracks[1] < height)
    return tracks, inside & (error < allowed)


def sample(field: Tensor, positions: Tensor) -> Tensor:
    """Bilinear values [c, n, m] of field [c, h, w] at positions [2, n, m] in pixels; pixel centres are at i + 0.5."""
    height, width = field.shape[-2:]
    grid = torch.stack([positions[0] * 2 / width - 1, positions[1] * 2 / height - 1], -1)
    return F.grid_sample(field[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0]


TRACKERS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {"flow": tracks_from_flow}
