"""Sketch signal: the outlines of what moved, where it is in the target (paper, section 3.3)."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor

from fp_lightning.types import VideoPair

SEGMENT = 64 / 512  # rough length, in image widths, of what a hand draws in one go
WAVES = 3  # cycles per image width of the fastest wobble


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
    """White strokes on black where the target → source flow breaks: float [3, h, w] in {0, 1}.

    Edges are ridges of the flow's Sobel gradient, so they lie on the target's outlines. Only those
    are drawn: a user draws where a thing shall be, not where it was. The paper states no threshold.

    With `rng`, the outlines are drawn as people do (our own choice; the paper says nothing of it): cut
    into segments of about 1/8 width, some of which are left out, each with a width of its own, all of
    them a little beside the true place.

    Args:
        pair: only `flow_to_source` is read.
        threshold: least jump of the flow across an edge, in image widths.
        share: the same as a share of the pair's largest motion (its 99th percentile): estimated flow has
            false edges that grow with the motion.
        strain: least gradient of the flow, in pixels per pixel. Below it the flow only deforms: turning
            by an angle of 0.35 rad or growing by 35 % has that gradient inside the object.
        line_width: width of a stroke in image widths, one pixel at least.
        min_length: strokes with a smaller bounding box (its longer side, in image widths) are noise.
        rng: draws as by hand; None draws exactly. The three arguments below matter only with it.
        drop: greatest share of segments that are left out, in [0, 1]: the share is uniform below it, and
            one segment stays.
        wobble: greatest displacement in image widths, 0 or more: a sum of slow waves.
        thickness: a segment's width is multiplied by a factor between 1 / thickness and thickness, 1 or more.
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
    """Edges of a photo as a user may trace them: float [3, h, w] in {0, 1}.

    Found as `sketch` finds those of motion, in colour (L*a*b*, smoothed over 1/256 of the width) in place of flow.

    Args:
        image: uint8 [3, h, w].
        share: least gradient, as a share of the image's own 99th percentile.
        line_width, min_length: see `sketch`.
    """
    width = image.shape[-1]
    pixels = np.ascontiguousarray(image.movedim(0, -1).numpy(), np.float32) / 255
    lab = cv2.GaussianBlur(cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB), (0, 0), max(0.5, width / 256))
    edges, magnitude = _ridges(np.moveaxis(lab.astype(np.float32), -1, 0), least=0)
    edges &= (magnitude >= max(share * float(np.quantile(magnitude, 0.99)), 0.5)).astype(np.uint8)
    strokes = _thick(_without_specks(edges, min_length * width), line_width * width)
    return torch.from_numpy(strokes).float().expand(3, -1, -1).contiguous()


def _ridges(field: NDArray[np.float32], least: float) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Where the gradient of a field [c, h, w] is at least `least` a pixel and greatest across the edge; and its size.

    A jump by d between two pixels has the gradient d / 2 on both of them.
    """
    planes = [np.ascontiguousarray(plane) for plane in field]
    # 1/8 makes the Sobel sum a derivative per pixel; a border without a neighbour has no edge
    dx, dy = (
        np.stack([cv2.Sobel(p, cv2.CV_32F, *order, scale=1 / 8, borderType=cv2.BORDER_REPLICATE) for p in planes])
        for order in ((1, 0), (0, 1))
    )
    # the structure tensor, over all components of the field
    xx, yy, xy = (np.einsum("chw,chw->hw", a, b) for a, b in ((dx, dx), (dy, dy), (dx, dy)))
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
    return (ridge & (magnitude >= least)).astype(np.uint8), magnitude


def _without_specks(edges: NDArray[np.uint8], length: float) -> NDArray[np.uint8]:
    """Drops connected strokes whose bounding box is shorter than `length` pixels."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(edges, connectivity=8)
    keep = stats[:count, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(1) >= length
    keep[0] = False  # the ground
    return keep[labels].astype(np.uint8)


def _thick(edges: NDArray[np.uint8], stroke: float) -> NDArray[np.uint8]:
    """Lines of one pixel → strokes as wide as the nearest whole number of pixels, one at least."""
    pixels = max(1, round(stroke))
    if pixels == 1:
        return edges
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (pixels, pixels))
    return cv2.dilate(edges, kernel).astype(np.uint8, copy=False)


def _by_hand(
    edges: NDArray[np.uint8], line_width: float, rng: np.random.Generator, drop: float, wobble: float, thickness: float
) -> NDArray[np.uint8]:
    """The lines `edges` [h, w] as strokes with gaps, of several widths and out of place, see `sketch`."""
    height, width = edges.shape
    points = _along(edges)
    if not len(points):
        return edges
    count = max(1, round(len(points) / (2 * SEGMENT * width)))  # two points a pixel of line
    centres = points[rng.choice(len(points), count, replace=False)]
    segment = KDTree(centres).query(points)[1]  # the nearest one
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


def _along(edges: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Points (x, y) [n, 2] of the lines: set pixels and half-way to their set neighbours, so close that
    lines stay whole when they are bent a little."""
    y, x = np.nonzero(edges)
    points = [np.stack([x, y], -1).astype(float)]
    padded = np.pad(edges, 1)
    for dx, dy in ((1, 0), (1, 1), (0, 1), (-1, 1)):
        joined = padded[y + 1 + dy, x + 1 + dx] > 0
        points.append(points[0][joined] + np.array([dx, dy]) / 2)
    return np.concatenate(points)


def _slow_waves(points: NDArray[np.float64], rng: np.random.Generator, amplitude: float) -> NDArray[np.float64]:
    """Displacements [n, 2] of points [n, 2]: four waves per axis, of 0 to WAVES cycles per unit, no longer than
    `amplitude`."""
    direction, frequency = rng.uniform(0, 2 * np.pi, (4, 2)), rng.uniform(0, WAVES, (4, 2))
    phase, share = rng.uniform(0, 2 * np.pi, (4, 2)), rng.dirichlet(np.ones(4), 2).T
    along = points[:, :1, None] * np.cos(direction) + points[:, 1:, None] * np.sin(direction)  # [n, 4, 2]
    waves = (share * np.sin(2 * np.pi * frequency * along + phase)).sum(1)
    return amplitude / np.sqrt(2) * waves
