"""Sketch signal: the outlines of what moved, where it is in the target (paper, section 3.3)."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fp_lightning.types import VideoPair


def sketch(
    pair: VideoPair,
    threshold: float = 2 / 512,
    strain: float = 0.35,
    line_width: float = 2.5 / 512,
    min_length: float = 16 / 512,
) -> Tensor:
    """White strokes on black where the target → source flow breaks: float [3, h, w] in {0, 1}.

    Edges are ridges of the flow's Sobel gradient, so they lie on the target's outlines. Only those
    are drawn: a user draws where a thing shall be, not where it was. The paper states no threshold.

    Args:
        pair: only `flow_to_source` is read.
        threshold: least jump of the flow across an edge, in image widths.
        strain: least gradient of the flow, in pixels per pixel. Below it the flow only deforms: turning
            by an angle of 0.35 rad or growing by 35 % has that gradient inside the object.
        line_width: width of a stroke in image widths, one pixel at least.
        min_length: strokes with a smaller bounding box (its longer side, in image widths) are noise.
    """
    width = pair.size[1]
    edges = _ridges(pair.flow_to_source.numpy(), least=max(threshold * width / 2, strain))
    edges = _without_specks(edges, min_length * width)
    stroke = max(1, round(line_width * width))
    if stroke > 1:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (stroke, stroke))
        edges = cv2.dilate(edges, kernel).astype(np.uint8, copy=False)
    return torch.from_numpy(edges).float().expand(3, -1, -1).contiguous()


def _ridges(flow: NDArray[np.float32], least: float) -> NDArray[np.uint8]:
    """Where the gradient of flow [2, h, w] is at least `least` px/px and greatest across the edge.

    A jump by d between two pixels has the gradient d / 2 on both of them.
    """
    planes = [np.ascontiguousarray(plane) for plane in flow]
    # 1/8 makes the Sobel sum a derivative per pixel; a border without a neighbour has no edge
    dx, dy = (
        np.stack([cv2.Sobel(p, cv2.CV_32F, *order, scale=1 / 8, borderType=cv2.BORDER_REPLICATE) for p in planes])
        for order in ((1, 0), (0, 1))
    )
    xx, yy, xy = (dx * dx).sum(0), (dy * dy).sum(0), (dx * dy).sum(0)  # structure tensor over both components
    angle = 0.5 * np.arctan2(2 * xy, xx - yy)  # across the edge
    magnitude = np.sqrt((xx + yy + np.hypot(xx - yy, 2 * xy)) / 2)  # root of its greater eigenvalue
    sector = np.round(angle / (np.pi / 4)).astype(int) % 4
    padded = np.pad(magnitude, 1)
    height, width = magnitude.shape
    ridge = np.zeros((height, width), bool)
    for index, (x, y) in enumerate([(1, 0), (1, 1), (0, 1), (-1, 1)]):
        ahead = padded[1 + y : 1 + y + height, 1 + x : 1 + x + width]
        behind = padded[1 - y : 1 - y + height, 1 - x : 1 - x + width]
        # one strict comparison: of two equal pixels that face each other across a jump, one is kept
        ridge |= (sector == index) & (magnitude > ahead * (1 + 1e-4)) & (magnitude >= behind * (1 - 1e-4))
    return (ridge & (magnitude >= least)).astype(np.uint8)


def _without_specks(edges: NDArray[np.uint8], length: float) -> NDArray[np.uint8]:
    """Drops connected strokes whose bounding box is shorter than `length` pixels."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(edges, connectivity=8)
    keep = stats[:count, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(1) >= length
    keep[0] = False  # the ground
    return keep[labels].astype(np.uint8)
