"""Coarse-edit signal: the source with its moving parts at their place in the target (paper, section 3.3)."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.signals.cutouts import inpainted, paste, window_side
from fp_lightning.signals.splat import softmax_splat
from fp_lightning.types import VideoPair

SHARPNESS = 20.0  # decrease of log importance per unit of colour difference (Magic Fixup)
STRAIN = 0.5  # px/px: smaller gradients of the flow are deformations, see `_moving_regions`
FIT_POINTS = 1000  # approximate number of points of a region that its similarity is fitted to
LEAST_SIDE = 2.0  # pixels: fitting a similarity needs more than two points


def coarse_edit(
    pair: VideoPair,
    mode: Literal["splat", "cut"] = "splat",
    coverage: float = 0.5,
    grow: float = 3 / 512,
    threshold: float = 2 / 512,
    min_side: float = 24 / 512,
    tolerance: float = 8 / 512,
    min_agreeing: float = 0.5,
) -> Tensor:
    """Move the parts of the source to their place in the target: float [3, h, w] in [0, 1], in 256 levels.

    "splat" moves every pixel by its own flow, as the paper and Magic Fixup (Alzayer et al. 2024) do, so objects
    deform as in the video. "cut" imitates a manual edit: each moving region is cut out, its place is inpainted,
    and the region is pasted as a whole, moved, rotated and scaled. Both use colours of the source only. The
    target only decides which pixels are on top, by how well they match it. The result is deterministic.

    Args:
        pair: `source`, `target` and `flow_to_target` are read.
        mode: "splat" or "cut".
        coverage: for "splat": pixels with less coverage than this, in [0, 1], are holes. Holes are inpainted.
        grow: how far holes are widened on every side, in image widths; at least one pixel. This removes the
            edges and shadows that objects leave behind.
        threshold: for "cut": smallest flow of a moving region and smallest jump of the flow between two
            regions, in image widths.
        min_side: for "cut": regions smaller than a square of this side, in image widths, do not move.
        tolerance: for "cut": largest distance, in image widths, between a pixel's motion and its region's.
        min_agreeing: for "cut": smallest share of pixels within `tolerance`; other regions do not move.

    Raises:
        InputError: the mode is unknown.
    """
    if mode == "splat":
        image = _splat(pair, coverage, grow)
    elif mode == "cut":
        image = _cut(pair, grow, threshold, min_side, tolerance, min_agreeing)
    else:
        raise InputError(f"coarse edit mode {mode} is unknown; choose splat or cut")
    return torch.from_numpy(image).permute(2, 0, 1).contiguous().float() / 255


def _metric(pair: VideoPair) -> NDArray[np.float32]:
    """Compute how well the colour of each source pixel matches the target where its flow leads: [h, w] in [-20, 0].

    The metric is -20 · L1, averaged over the channels with colours in [0, 1] (our choice; Magic Fixup does not
    say), so its clip to [-20, 20] is not needed. Background that becomes covered usually differs in colour from
    the object that covers it. On exact scenes and on video this works better alone than with a
    forward–backward check of the flow.
    """
    height, width = pair.size
    source, target = (image.permute(1, 2, 0).contiguous().numpy() for image in (pair.source, pair.target))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    u, v = pair.flow_to_target.numpy()
    arrived = cv2.remap(target, x + u, y + v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    red, green, blue = cv2.split(cv2.absdiff(source, arrived))
    total: NDArray[np.float32] = red.astype(np.float32) + green + blue
    return total / np.float32(3) * np.float32(-SHARPNESS / 255)


def _splat(pair: VideoPair, coverage: float, grow: float) -> NDArray[np.uint8]:
    """Move every pixel by its flow and inpaint the holes: uint8 RGB [h, w, 3]. See `coarse_edit`."""
    moved, covered = softmax_splat(
        pair.source[None].float(), pair.flow_to_target[None], torch.from_numpy(_metric(pair))[None, None]
    )
    image = moved[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return inpainted(image, (covered[0, 0] < coverage).numpy(), grow)


def _cut(
    pair: VideoPair, grow: float, threshold: float, min_side: float, tolerance: float, min_agreeing: float
) -> NDArray[np.uint8]:
    """Cut out moving regions and paste each as a whole at its new place: uint8 RGB [h, w, 3]. See `coarse_edit`."""
    width = pair.size[1]
    source = pair.source.permute(1, 2, 0).contiguous().numpy()
    flow = pair.flow_to_target.numpy()
    regions = []
    for region in _moving_regions(flow, threshold * width, max(min_side * width, LEAST_SIDE) ** 2):
        motion = _similarity(region, flow, tolerance * width, min_agreeing)
        if motion is not None:
            regions.append((_with_rim(region, flow, motion, threshold * width, tolerance * width), motion))
    overlaps = np.sum([mask for mask, _ in regions], axis=0)
    parts = [(_clean(mask, overlaps > mask, width), motion) for mask, motion in regions]
    parts = [(mask, motion) for mask, motion in parts if mask.any()]
    if not parts:
        return source
    canvas = inpainted(source, np.any([mask for mask, _ in parts], axis=0), grow).astype(np.float32)
    metric = _metric(pair)
    for mask, motion in sorted(parts, key=lambda part: metric[part[0]].mean()):  # the best match is on top
        paste(canvas, source, mask, motion)
    return canvas.round().astype(np.uint8)


def _moving_regions(flow: NDArray[np.float32], threshold: float, min_area: float) -> list[NDArray[np.bool_]]:
    """Find connected regions, bool [h, w] each, that move by more than `threshold` pixels.

    Regions are separated where the flow between neighbouring pixels jumps by more than `threshold` pixels. The
    left or upper pixel of such a pair belongs to no region.

    Args:
        flow: [2, h, w] in pixels.
        threshold: in pixels; the jump is at least STRAIN.
        min_area: smaller regions are left out, in square pixels.
    """
    apart = np.zeros(flow.shape[1:], bool)
    limit = max(threshold, STRAIN)
    apart[:, :-1] |= np.hypot(*np.diff(flow, axis=2)) > limit
    apart[:-1] |= np.hypot(*np.diff(flow, axis=1)) > limit
    moving = ((np.hypot(*flow) > threshold) & ~apart).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(moving, connectivity=4)
    return [labels == label for label in range(1, count) if stats[label, cv2.CC_STAT_AREA] >= min_area]


def _similarity(
    region: NDArray[np.bool_], flow: NDArray[np.float32], tolerance: float, min_agreeing: float
) -> NDArray[np.float64] | None:
    """Fit a similarity transform [2, 3] to the flow of a region, in pixel indices.

    OpenCV's RANSAC has a fixed seed, so the result is deterministic.

    Returns:
        The transform, or None if less than `min_agreeing` of the points lie within `tolerance` pixels of it.
    """
    y, x = np.nonzero(region)
    step = -(-len(x) // FIT_POINTS)
    y, x = y[::step], x[::step]
    start = np.stack([x, y], -1).astype(np.float32)
    motion, agreeing = cv2.estimateAffinePartial2D(
        start, start + flow[:, y, x].T, method=cv2.RANSAC, ransacReprojThreshold=tolerance
    )
    if motion is None or agreeing.mean() < min_agreeing:
        return None
    return np.asarray(motion, np.float64)


def _with_rim(
    region: NDArray[np.bool_],
    flow: NDArray[np.float32],
    motion: NDArray[np.float64],
    threshold: float,
    tolerance: float,
) -> NDArray[np.bool_]:
    """Add the neighbouring pixels that move with a region, which `_moving_regions` leaves out at jumps."""
    y, x = np.nonzero(cv2.dilate(region.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~region)
    moved = flow[:, y, x]
    error = motion @ np.stack([x, y, np.ones_like(x)]) - np.stack([x, y]) - moved
    joins = (np.hypot(*moved) > threshold) & (np.hypot(*error) <= tolerance)
    whole = region.copy()
    whole[y[joins], x[joins]] = True
    return whole


def _clean(region: NDArray[np.bool_], others: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Remove thin threads from a region and fill its holes where there is no other region."""
    outlines, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros(region.shape, np.uint8), outlines, -1, 1, cv2.FILLED)
    filled[others] = 0
    side = window_side(2 * width / 512)
    opened = cv2.morphologyEx(filled, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    return opened.astype(bool)
