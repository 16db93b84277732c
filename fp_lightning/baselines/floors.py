"""Floors without a network: the source itself, and a smooth warp along the drags."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from fp_lightning.baselines.example import Example


@dataclass
class Copy:
    """The photo as it is, which any edit should beat."""

    def cost(self, example: Example) -> int:
        """Return 0: there is no network."""
        return 0

    def __call__(self, example: Example, generator: torch.Generator) -> Tensor:
        """Return the photo [3, H, W] in [-1, 1]."""
        return example.photo


@dataclass
class Warp:
    """Warp the photo within its region so that every handle lands on its target.

    Each pixel moves by the mean of the drags, weighted by the inverse square of its distance to their targets, and by
    less towards the region's border, where nothing moves. Inpaint4Drag (Lu and Han 2025) previews its edits alike.

    Attributes:
        border: share of the region's greatest depth over which the motion fades.
    """

    border: float = 0.5

    def cost(self, example: Example) -> int:
        """Return 0: there is no network."""
        return 0

    def __call__(self, example: Example, generator: torch.Generator) -> Tensor:
        """Return the warped photo [3, H, W] in [-1, 1]."""
        assert example.points is not None and example.region is not None
        height, width = example.size
        points = example.points.numpy().astype(np.float64)
        x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        squares = (x[..., None] - points[:, 2]) ** 2 + (y[..., None] - points[:, 3]) ** 2  # [h, w, p]
        weights = 1 / np.maximum(squares, 1e-6)
        move = (weights @ (points[:, 2:] - points[:, :2])) / weights.sum(-1, keepdims=True)
        inside = np.pad(example.region[0].numpy().astype(np.uint8), 1)  # the image's border is the region's too
        depth = cv2.distanceTransform(inside, cv2.DIST_L2, 5)[1:-1, 1:-1]
        rows, columns = points[:, 3].astype(int).clip(0, height - 1), points[:, 2].astype(int).clip(0, width - 1)
        full = max(1.0, min(self.border * float(depth.max()), float(depth[rows, columns].min())))
        move *= np.minimum(1, depth / full)[..., None]
        maps = (x - 0.5 - move[..., 0]).astype(np.float32), (y - 0.5 - move[..., 1]).astype(np.float32)
        photo = np.ascontiguousarray(example.photo.permute(1, 2, 0).numpy())
        warped = cv2.remap(photo, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return torch.where(example.region, torch.from_numpy(warped).permute(2, 0, 1), example.photo)
