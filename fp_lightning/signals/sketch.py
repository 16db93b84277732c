"""Sketch signal: the outlines of moved objects at their place in the target (paper, section 3.3)."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor

from fp_lightning.types import VideoPair

SEGMENT = 64 / 512  # approximate length of one hand-drawn segment, in image widths
WAVES = 3  # highest frequency of the wobble, in cycles per image width


def sketch(
    pair: VideoPair,
    threshold: float = 2 / 512,
    share: float = 0.06,
    strain: float = 0.35,
    line_width: float = 2.5 / 512,
    min_length: float = 24 / 512,
    rng: np.random.Generator | None = None,
    drop: float = 0.3,
    wobble: float = 4 / 512,
    thickness: float = 2.0,
) -> Tensor:
    """Draw white strokes on black along the edges of the target → source flow: float [3, h, w] in {0, 1}.

    Edges are ridges of the flow's Sobel gradient. The flow is defined at target positions, so the strokes are
    the outlines that a user wants in the edited image; outlines at the old place are not drawn. The paper
    states no threshold.

    With `rng`, the strokes imitate a hand drawing (our choice, not in the paper): they are cut into segments
    of about 1/8 of the image width, some segments are dropped, each has its own width, and all are slightly
    displaced.

    Args:
        pair: `flow_to_source` is read.
        threshold: smallest jump of the flow across an edge, in image widths.
        share: smallest jump as a share of the pair's largest motion (99th percentile), in [0, 1]. Estimated
            flow has false edges that grow with the motion.
        strain: smallest gradient of the flow, in pixels per pixel. Smaller gradients are deformations: a
            rotation by 0.35 rad or a growth of 35 % has this gradient inside the object.
        line_width: width of a stroke in image widths, at least one pixel.
        min_length: strokes are dropped as noise if the longer side of their bounding box is shorter than this,
            in image widths.
        rng: imitates a hand drawing; None draws exact outlines. The arguments below have no effect without it.
        drop: largest share of dropped segments, in [0, 1]. The share is uniform from 0 to it, and at least one
            segment is kept.
        wobble: largest displacement in image widths, 0 or more. The displacement is a sum of slow waves.
        thickness: each segment's width is multiplied by a factor from 1 / thickness to thickness; 1 or more.
    """
    width = pair.size[1]
    flow = pair.flow_to_source.numpy()
    jump = max(threshold * width, share * float(np.quantile(np.hypot(*flow), 0.99)))
    edges, _ = _ridges(flow, least=max(jump / 2, strain))
    edges = _without_specks(edges, min_length * width)
    if rng is None:
        strokes = _thick(edges, line_width * width)
    else:
        strokes = _by_hand(edges, line_width, rng, drop, wobble, thickness)
    return torch.from_numpy(strokes).float().expand(3, -1, -1).contiguous()


def outlines(image: Tensor, share: float = 0.2, line_width: float = 2.5 / 512, min_length: float = 24 / 512) -> Tensor:
    """Draw the edges of a photo, which a user may trace: float [3, h, w] in {0, 1}.

    Edges are found as in `sketch`, from colours (L*a*b*, smoothed over 1/256 of the width) instead of flow.

    Args:
        image: uint8 [3, h, w].
        share: smallest gradient, as a share of the 99th percentile of the image's gradients.
        line_width: see `sketch`.
        min_length: see `sketch`.
    """
    width = image.shape[-1]
    pixels = np.ascontiguousarray(image.movedim(0, -1).numpy(), np.float32) / 255
    lab = cv2.GaussianBlur(cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB), (0, 0), max(0.5, width / 256))
    edges, magnitude = _ridges(np.moveaxis(lab.astype(np.float32), -1, 0), least=0)
    edges &= (magnitude >= max(share * float(np.quantile(magnitude, 0.99)), 0.5)).astype(np.uint8)
    strokes = _thick(_without_specks(edges, min_length * width), line_width * width)
    return torch.from_numpy(strokes).float().expand(3, -1, -1).contiguous()


def _ridges(field: NDArray[np.float32], least: float) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Find the ridges of the gradient of a field [c, h, w]: its local maxima across an edge.

    A jump by d between two pixels gives both of them the gradient d / 2.

    Args:
        field: [c, h, w]; all channels share one edge direction.
        least: smallest gradient of a ridge, per pixel.

    Returns:
        Ridges uint8 [h, w] in {0, 1}, and the gradient's magnitude float32 [h, w].
    """
    planes = [np.ascontiguousarray(plane) for plane in field]
    # a scale of 1/8 makes Sobel a derivative per pixel; replicated borders have no edge
    dx, dy = (
        np.stack([cv2.Sobel(p, cv2.CV_32F, *order, scale=1 / 8, borderType=cv2.BORDER_REPLICATE) for p in planes])
        for order in ((1, 0), (0, 1))
    )
    # the structure tensor, summed over the channels
    xx, yy, xy = (np.einsum("chw,chw->hw", a, b) for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    angle = 0.5 * np.arctan2(2 * xy, xx - yy)  # of the normal of the edge
    magnitude = np.sqrt((xx + yy + np.hypot(xx - yy, 2 * xy)) / 2)  # square root of its larger eigenvalue
    sector = np.round(angle / (np.pi / 4)).astype(int) % 4
    padded = np.pad(magnitude, 1)
    height, width = magnitude.shape
    ridge = np.zeros((height, width), bool)
    for index, (x, y) in enumerate([(1, 0), (1, 1), (0, 1), (-1, 1)]):
        ahead = padded[1 + y : 1 + y + height, 1 + x : 1 + x + width]
        behind = padded[1 - y : 1 - y + height, 1 - x : 1 - x + width]
        # one comparison is strict, so that one of the two equal pixels at a jump is kept
        ridge |= (sector == index) & (magnitude > ahead * (1 + 1e-4)) & (magnitude >= behind * (1 - 1e-4))
    return (ridge & (magnitude >= least)).astype(np.uint8), magnitude


def _without_specks(edges: NDArray[np.uint8], length: float) -> NDArray[np.uint8]:
    """Remove connected strokes whose bounding box is shorter than `length` pixels."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(edges, connectivity=8)
    keep = stats[:count, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(1) >= length
    keep[0] = False  # the background
    return keep[labels].astype(np.uint8)


def _thick(edges: NDArray[np.uint8], stroke: float) -> NDArray[np.uint8]:
    """Widen lines of one pixel to strokes of `stroke` pixels, rounded to 1 or more."""
    pixels = max(1, round(stroke))
    if pixels == 1:
        return edges
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (pixels, pixels))
    return cv2.dilate(edges, kernel).astype(np.uint8, copy=False)


def _by_hand(
    edges: NDArray[np.uint8], line_width: float, rng: np.random.Generator, drop: float, wobble: float, thickness: float
) -> NDArray[np.uint8]:
    """Redraw the lines `edges` [h, w] with gaps, varying widths and displacements, see `sketch`."""
    height, width = edges.shape
    points = _line_points(edges)
    if not len(points):
        return edges
    count = max(1, round(len(points) / (2 * SEGMENT * width)))  # there are two points per pixel of line
    centres = points[rng.choice(len(points), count, replace=False)]
    segment = KDTree(centres).query(points)[1]  # each point belongs to its nearest centre
    kept = rng.random(count) >= rng.uniform(0, drop)
    kept[rng.integers(count)] = True
    widths = line_width * width * thickness ** rng.uniform(-1, 1, count)
    pixels = np.rint(points + width * _slow_waves(points / width, rng, wobble)).astype(int)
    inside = np.all((pixels >= 0) & (pixels < (width, height)), axis=1)
    strokes = np.zeros_like(edges)
    for stroke in np.unique(np.maximum(1, np.rint(widths[kept]))):
        lines = np.zeros_like(edges)
        x, y = pixels[inside & (kept & (np.maximum(1, np.rint(widths)) == stroke))[segment]].T
        lines[y, x] = 1
        strokes |= _thick(lines, stroke)
    return strokes


def _line_points(edges: NDArray[np.uint8]) -> NDArray[np.float64]:
    """List points (x, y) [n, 2] on the lines: set pixels and the midpoints to their set neighbours.

    The midpoints keep lines connected when the points are displaced.
    """
    y, x = np.nonzero(edges)
    points = [np.stack([x, y], -1).astype(float)]
    padded = np.pad(edges, 1)
    for dx, dy in ((1, 0), (1, 1), (0, 1), (-1, 1)):
        joined = padded[y + 1 + dy, x + 1 + dx] > 0
        points.append(points[0][joined] + np.array([dx, dy]) / 2)
    return np.concatenate(points)


def _slow_waves(points: NDArray[np.float64], rng: np.random.Generator, amplitude: float) -> NDArray[np.float64]:
    """Draw smooth displacements [n, 2] of points [n, 2], no longer than `amplitude`.

    Each axis is a sum of four sine waves of 0 to WAVES cycles per unit.
    """
    direction, frequency = rng.uniform(0, 2 * np.pi, (4, 2)), rng.uniform(0, WAVES, (4, 2))
    phase, share = rng.uniform(0, 2 * np.pi, (4, 2)), rng.dirichlet(np.ones(4), 2).T
    along = points[:, :1, None] * np.cos(direction) + points[:, 1:, None] * np.sin(direction)  # [n, 4, 2]
    waves = (share * np.sin(2 * np.pi * frequency * along + phase)).sum(1)
    return amplitude / np.sqrt(2) * waves
