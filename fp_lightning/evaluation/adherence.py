"""Measure how well an edit follows its signal: drag distance and sketch distance.

All distances are in pixels at a width of 512, so that they are comparable across image sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from fp_lightning.pairs.flow.estimator import FlowEstimator
from fp_lightning.signals.points import moved_tokens
from fp_lightning.signals.sketch import sketch
from fp_lightning.types import MOVING_WIDTH, VideoPair

FARTHEST = 64.0  # px at 512 px width: larger distances between lines and outlines are clipped to this
PointTracker = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class FlowTracker:
    """Track points with the flow of the pixel that contains them.

    Flow is not interpolated: at a motion boundary, the average of two motions is neither.
    """

    flow: FlowEstimator

    def __call__(self, source: Tensor, edited: Tensor, points: Tensor) -> Tensor:
        """Find points [p, 2] (x, y) of `source` uint8 [3, h, w] in `edited`: [p, 2], in pixels."""
        there = self.flow([pixels(source)], [pixels(edited)])[0]
        height, width = there.shape[-2:]
        x, y = points[:, 0].long().clamp(0, width - 1), points[:, 1].long().clamp(0, height - 1)
        return points + there[:, y, x].T


def drag_distance(tracker: PointTracker, source: Tensor, edited: Tensor, points: Tensor) -> float:
    """Mean distance from drag targets to where the handles are found (DragDiffusion, Shi et al. 2024).

    Args:
        source, edited: uint8 [3, h, w].
        points: [p, 4] as (x_src, y_src, x_tgt, y_tgt) in pixels, p ≥ 1.
    """
    found = tracker(source, edited, points[:, :2])
    return (found - points[:, 2:]).norm(dim=1).mean().item() * MOVING_WIDTH / source.shape[-1]


def tracked_drags(tracks: Tensor, visible: Tensor, size: tuple[int, int]) -> Tensor:
    """The true motion as drags [p, 4]: all visible tokens that move by at least 1 px at 512 px width.

    Args:
        tracks: [2, th, tw], the source position in pixels of the centre of each target token.
        visible: bool [th, tw].
        size: (height, width) in pixels.
    """
    centres, weight = moved_tokens(tracks, visible, size)
    return torch.cat([tracks[:, weight > 0], centres[:, weight > 0]]).T


def sketch_distance(flow: FlowEstimator, source: Tensor, edited: Tensor, drawn: Tensor) -> float:
    """Chamfer distance between the drawn lines and the outlines of what moved between source and edited image.

    The outlines are the sketch signal of the flow from the edited image to the source. The distance is the mean of both
    directions, from lines to the nearest outline and from outlines to the nearest line, so that neither ignoring lines
    nor moving everything scores well. It is at most `FARTHEST`, the value for an edit that moves nothing.

    Args:
        source, edited: uint8 [3, h, w].
        drawn: bool [h, w], with at least one pixel set.
    """
    back = flow([pixels(edited)], [pixels(source)])[0]
    nothing = torch.zeros(2, 0, 0), torch.zeros(0, 0, dtype=torch.bool)
    outlines = sketch(VideoPair(source, edited, back, back, *nothing))[0].numpy() > 0
    scale = MOVING_WIDTH / source.shape[-1]
    if not outlines.any():
        return FARTHEST
    lines = drawn.numpy()
    ways = [np.asarray(distance_transform_edt(~b))[a] * scale for a, b in ((lines, outlines), (outlines, lines))]
    return float(np.mean([np.minimum(way, FARTHEST).mean() for way in ways]))


def is_sketch(control: Tensor) -> bool:
    """Whether a control image [3, h, w] is a sketch: only black and white, with some white."""
    return bool(((control == 0) | (control == 1)).all()) and bool((control[0] > 0).any())


def pixels(image: Tensor) -> np.ndarray:
    """uint8 [3, h, w] → [h, w, 3], the layout of flow estimators."""
    return np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
