"""Does an edit do what it was asked: where dragged points are found, and how far drawn lines are from what moved.

All distances are in pixels at a width of 512, so that image sizes compare.
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

FARTHEST = 64.0  # px at 512 px width: a drawn line with no outline so near counts as this far
PointTracker = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class FlowTracker:
    """Finds points by the flow from one image to the other, that of the pixel which holds a point.

    Flows of neighbours are not averaged: between two motions there is no third one.
    """

    flow: FlowEstimator

    def __call__(self, source: Tensor, edited: Tensor, points: Tensor) -> Tensor:
        """Where points [p, 2] (x, y) of `source` uint8 [3, h, w] are in `edited`: [p, 2], in pixels."""
        there = self.flow([pixels(source)], [pixels(edited)])[0]
        height, width = there.shape[-2:]
        x, y = points[:, 0].long().clamp(0, width - 1), points[:, 1].long().clamp(0, height - 1)
        return points + there[:, y, x].T


def drag_distance(tracker: PointTracker, source: Tensor, edited: Tensor, points: Tensor) -> float:
    """Mean distance between where handles should be and where they are found (DragDiffusion, Shi et al. 2024).

    Args:
        source, edited: uint8 [3, h, w].
        points: [p, 4] as (x_src, y_src, x_tgt, y_tgt) in pixels, one or more.
    """
    found = tracker(source, edited, points[:, :2])
    return (found - points[:, 2:]).norm(dim=1).mean().item() * MOVING_WIDTH / source.shape[-1]


def tracked_drags(tracks: Tensor, visible: Tensor, size: tuple[int, int]) -> Tensor:
    """What truly happened, as drags [p, 4]: every visible token that moved by 1 px at 512 px width or more.

    Args:
        tracks: [2, th, tw] source position in pixels of each target token's centre.
        visible: bool [th, tw].
        size: (height, width) in pixels.
    """
    centres, weight = moved_tokens(tracks, visible, size)
    return torch.cat([tracks[:, weight > 0], centres[:, weight > 0]]).T


def sketch_distance(flow: FlowEstimator, source: Tensor, edited: Tensor, drawn: Tensor) -> float:
    """How far the drawn lines and the outlines of what moved between source and edited image are from each other.

    The outlines are the sketch signal's, of the flow from the edited image to the source. The mean of both ways, from
    each line to the nearest outline and from each outline to the nearest line (chamfer distance), so that neither
    ignoring lines nor moving everything scores well. At most `FARTHEST`, which it is where nothing moved.

    Args:
        source, edited: uint8 [3, h, w].
        drawn: bool [h, w], at least one pixel set.
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
    """Whether a control image [3, h, w] holds lines: nothing but black and white, and some white."""
    return bool(((control == 0) | (control == 1)).all()) and bool((control[0] > 0).any())


def pixels(image: Tensor) -> np.ndarray:
    """uint8 [3, h, w] → [h, w, 3], as flow estimators take it."""
    return np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
