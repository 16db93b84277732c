"""The region that an edit by drags may change, for methods and benchmarks that do not bring their own."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch import Tensor

MARGIN, AT = 64, 512  # px around the drags that may change, at this geometric mean of the sides
RULE = (
    "Methods that need to know which pixels may change get the region that the benchmark publishes or that lies beside "
    f"the photo, otherwise the convex hull of handles and targets with {MARGIN} px around it at {AT} × {AT} px."
)


def drag_region(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the region that drags may change: the convex hull of handles and targets, and `MARGIN` around it.

    It is made from the inputs alone. A region from the true motion would tell a method where the object ends.

    Args:
        points: [p, 4] as (x_src, y_src, x_tgt, y_tgt) in pixels.
        size: (height, width) in pixels.

    Returns:
        bool [1, h, w].
    """
    radius = round(MARGIN * math.sqrt(size[0] * size[1]) / AT)
    canvas = np.zeros(size, np.uint8)
    hull = cv2.convexHull(points.reshape(-1, 2).round().int().numpy())
    cv2.fillConvexPoly(canvas, hull, 1)
    cv2.polylines(canvas, [hull], True, 1, thickness=1 + 2 * radius)
    return torch.from_numpy(canvas > 0)[None]
