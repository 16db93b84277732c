"""Coarse-edit signal: the photo with its parts moved roughly to where they shall be (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.types import VideoPair

SHARPNESS = 20.0  # importance lost per unit of colour difference (Magic Fixup)
MAX_EXPONENT = 20.0  # see `softmax_splat`: reached by shares of almost nothing only
FILL_WIDTH = 256  # pixels at most, see `_inpainted`
FILL_RADIUS = 3.0  # pixels at that width, about 5 px at 512 px (Magic Fixup)
STRAIN = 0.5  # px/px: below it the flow only deforms, see `_moving_regions`
FIT_POINTS = 1000  # as many points of a region, about, say how it moves
LEAST_SIDE = 2.0  # pixels: a similarity needs more points than two


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
    """The source with what moves put where it is in the target: float [3, h, w] in [0, 1], in 256 levels.

    "splat" moves every pixel by its own flow, as in the paper and in Magic Fixup (Alzayer et al. 2024): it
    deforms as the video does. "cut" is what hands do: every moving region is cut out, its place filled, and
    pasted again moved, turned and scaled as a whole. The colours are the source's in both; of the target
    only how well it agrees with them is read, to say what lies on top. A function of its arguments alone.

    Args:
        pair: `source`, `target` and `flow_to_target` are read.
        mode: "splat" or "cut".
        coverage: splat: what receives less than this share of a pixel is a hole.
        grow: holes are widened by so much on every side, in image widths, one pixel at least; this hides
            the rims and shadows that stay behind. Holes are inpainted (Navier–Stokes, Bertalmio et al. 2001).
        threshold: cut: least flow of a moving region, and least jump of the flow between two of them, in
            image widths.
        min_side: cut: regions smaller than a square of this side, in image widths, stay where they are.
        tolerance: cut: greatest distance, in image widths, between a pixel's own motion and its region's.
        min_agreeing: cut: regions stay where they are if a smaller share of their pixels keeps to `tolerance`.

    Raises:
        InputError: the mode is unknown.
    """
    if mode == "splat":
        image = _splat(pair, coverage, grow)
    elif mode == "cut":
        image = _cut(pair, grow, threshold, min_side, tolerance, min_agreeing)
    else:
        raise InputError(f"mode {mode} of a coarse edit is unknown; choose splat or cut")
    return torch.from_numpy(image).permute(2, 0, 1).contiguous().float() / 255


@dataclass(frozen=True)
class Piece:
    """A part of a photo that somebody cut out, and where it goes.

    Args:
        outline: polygon [n, 2] of positions (x, y) in pixels of the photo.
        motion: [2, 3], takes positions of the photo to those of the edit; None: the piece is thrown away.
        copied: the original stays in its place.
    """

    outline: NDArray[np.float64]
    motion: NDArray[np.float64] | None = None
    copied: bool = False


def cut_and_paste(photo: NDArray[np.uint8], pieces: Sequence[Piece], grow: float = 3 / 512) -> NDArray[np.uint8]:
    """A coarse edit by hand, made as training's "cut" is: RGB [h, w, 3].

    Pieces are cut out of the photo, their places filled from around, and pasted in turn, later ones on top.

    Args:
        photo: RGB [h, w, 3].
        grow: see `coarse_edit`.
    """
    masks = [filled(piece.outline, photo.shape[:2]) for piece in pieces]
    holes = [mask for mask, piece in zip(masks, pieces, strict=True) if not piece.copied]
    ground = _inpainted(photo, np.any(holes, axis=0), grow) if holes else photo
    canvas = ground.astype(np.float32)
    for mask, piece in zip(masks, pieces, strict=True):
        if piece.motion is not None and mask.any():
            index = piece.motion.copy()  # of pixel indices, whose centres are at half positions
            index[:, 2] += piece.motion[:, :2] @ (0.5, 0.5) - 0.5
            _paste(canvas, photo, mask, index)
    return canvas.round().astype(np.uint8)


def filled(outline: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels whose centres a polygon [n, 2] of positions (x, y) winds around, bool [h, w] at `size` (height, width)."""
    height, width = size
    winding = np.zeros((height, width + 1), np.int16)  # by how much it changes at each pixel, from the left
    for (x, y), (u, v) in zip(outline, np.roll(outline, -1, 0), strict=True):
        low, high = np.clip(np.ceil(np.sort([y, v]) - 0.5), 0, height).astype(int)
        rows = np.arange(low, high)
        if len(rows):
            crossing = x + (rows + 0.5 - y) * (u - x) / (v - y)
            winding[rows, np.clip(np.ceil(crossing - 0.5), 0, width).astype(int)] += 1 if v > y else -1
    return winding.cumsum(1, np.int16)[:, :width] != 0


def softmax_splat(values: Tensor, flow: Tensor, metric: Tensor) -> tuple[Tensor, Tensor]:
    """Moves every pixel by its flow; where several arrive, a softmax of their metric mixes them.

    Softmax splatting (Niklaus & Liu 2020): Σ s·exp(metric)·value / Σ s·exp(metric), where s is the bilinear
    share of an arriving pixel in each of its four neighbours. What arrives outside the image is dropped.
    Differentiable in all three arguments; at whole pixels the slope is the one towards greater flow.

    Args:
        values: [b, c, h, w].
        flow: [b, 2, h, w] in pixels: position in the first image + flow = position in the second.
        metric: [b, 1, h, w], logarithms of importance. Any finite ones are safe: exponents are taken
            relative to the greatest that arrives in the same pixel.

    Returns:
        The moved values [b, c, h, w], and how much of a pixel arrived, Σ s, in [b, 1, h, w]. Holes, where
        that is not above the rounding error, have values of zero and no gradient.
    """
    batch, channels, height, width = values.shape
    rows, columns = (torch.arange(n, device=flow.device, dtype=flow.dtype) for n in (height, width))
    x, y = columns + flow[:, 0], rows[:, None] + flow[:, 1]
    left, top = x.floor(), y.floor()
    right_share, lower_share = x - left, y - top
    shares = [  # [b, hw] each: upper left, upper right, lower left, lower right
        (horizontal * vertical).flatten(1)
        for vertical in (1 - lower_share, lower_share)
        for horizontal in (1 - right_share, right_share)
    ]
    # two pixels all round catch what falls outside, and are cut off at the end
    wide, high = width + 4, height + 4
    corner = ((top.clamp(-2, height).long() + 2) * wide + left.clamp(-2, width).long() + 2).flatten(1)
    places = [corner + step for step in (0, 1, wide, wide + 1)]

    logit, features = metric.flatten(1), values.flatten(2)
    nothing = torch.finfo(values.dtype).eps
    peak = values.new_full((batch, high * wide), -torch.inf)
    for share, place in zip(shares, places, strict=True):
        peak.scatter_reduce_(1, place, logit.detach().masked_fill(share <= nothing, -torch.inf), "amax")
    sums = values.new_zeros((batch, channels + 2, high * wide))
    for share, place in zip(shares, places, strict=True):
        # only a share of nothing can exceed the peak; it is kept, since it has a slope
        weight = (share * (logit - peak.gather(1, place)).clamp(max=MAX_EXPONENT).exp())[:, None]
        terms = torch.cat([features * weight, weight, share[:, None]], 1)
        sums.scatter_add_(2, place[:, None].expand_as(terms), terms)

    inner = (..., slice(2, -2), slice(2, -2))
    total, norm, covered = sums.unflatten(2, (high, wide))[inner].split([channels, 1, 1], 1)
    filled = (peak > -torch.inf).view(batch, 1, high, wide)[inner]
    return torch.where(filled, total, 0) / torch.where(filled, norm, 1), covered


def _metric(pair: VideoPair) -> NDArray[np.float32]:
    """How well the target's colour where a source pixel goes agrees with its own: [h, w] in [-20, 0].

    -20 · L1, averaged over the channels with colours in [0, 1] (our choice; Magic Fixup does not say), so
    that its clip to [-20, 20] is no longer needed. Ground that an object comes to cover differs from the
    object, as a rule; on exact scenes and on video this alone serves better than asking the flow back.
    """
    height, width = pair.size
    source, target = (image.permute(1, 2, 0).contiguous().numpy() for image in (pair.source, pair.target))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    u, v = pair.flow_to_target.numpy()
    arrived = cv2.remap(target, x + u, y + v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return cv2.absdiff(source, arrived).mean(-1, dtype=np.float32) * np.float32(-SHARPNESS / 255)


def _splat(pair: VideoPair, coverage: float, grow: float) -> NDArray[np.uint8]:
    """Every pixel moved by its flow, holes inpainted: RGB [h, w, 3]."""
    moved, covered = softmax_splat(
        pair.source[None].float(), pair.flow_to_target[None], torch.from_numpy(_metric(pair))[None, None]
    )
    image = moved[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return _inpainted(image, (covered[0, 0] < coverage).numpy(), grow)


def _inpainted(image: NDArray[np.uint8], holes: NDArray[np.bool_], grow: float) -> NDArray[np.uint8]:
    """RGB [h, w, 3] with holes [h, w] widened by `grow` image widths and filled from their surroundings.

    Images wider than FILL_WIDTH are filled at that width, from the means of what is known, and keep
    their own pixels outside the holes: as good on scenes and on video, and several times faster.
    """
    height, width = holes.shape
    side = _side(grow * width)
    widened = cv2.dilate(holes.astype(np.uint8), np.ones((side, side), np.uint8))
    if width <= FILL_WIDTH:
        return np.asarray(cv2.inpaint(image, widened, FILL_RADIUS, cv2.INPAINT_NS), np.uint8)
    known = (1 - widened)[..., None].astype(np.float32)
    size = (FILL_WIDTH, max(1, round(height * FILL_WIDTH / width)))
    small = cv2.resize(np.concatenate([image * known, known], -1), size, interpolation=cv2.INTER_AREA)
    colour, share = small[..., :3], small[..., 3:]
    means = np.divide(colour, share, out=np.zeros_like(colour), where=share > 0).round().astype(np.uint8)
    filled = cv2.inpaint(means, (share[..., 0] == 0).astype(np.uint8), FILL_RADIUS, cv2.INPAINT_NS)
    return np.where(widened[..., None] > 0, cv2.resize(filled, (width, height)), image)


def _side(reach: float) -> int:
    """The side of a window that reaches `reach` pixels to every side, one at least."""
    return 2 * max(1, round(reach)) + 1


def _cut(
    pair: VideoPair, grow: float, threshold: float, min_side: float, tolerance: float, min_agreeing: float
) -> NDArray[np.uint8]:
    """Moving regions cut out and pasted where they go, each as a whole: RGB [h, w, 3]."""
    width = pair.size[1]
    source = pair.source.permute(1, 2, 0).contiguous().numpy()
    flow = pair.flow_to_target.numpy()
    regions = []
    for region in _moving_regions(flow, threshold * width, max(min_side * width, LEAST_SIDE) ** 2):
        motion = _similarity(region, flow, tolerance * width, min_agreeing)
        if motion is not None:
            regions.append((_with_rim(region, flow, motion, threshold * width, tolerance * width), motion))
    taken = np.sum([mask for mask, _ in regions], axis=0)
    parts = [(_clean(mask, taken > mask, width), motion) for mask, motion in regions]
    parts = [(mask, motion) for mask, motion in parts if mask.any()]
    if not parts:
        return source
    canvas = _inpainted(source, np.any([mask for mask, _ in parts], axis=0), grow).astype(np.float32)
    metric = _metric(pair)
    for mask, motion in sorted(parts, key=lambda part: metric[part[0]].mean()):  # the best match lies on top
        _paste(canvas, source, mask, motion)
    return canvas.round().astype(np.uint8)


def _moving_regions(flow: NDArray[np.float32], threshold: float, min_area: float) -> list[NDArray[np.bool_]]:
    """Masks [h, w] of connected pixels that flow [2, h, w] moves by more than `threshold` pixels.

    Regions end where the flow jumps by more than the threshold from a pixel to the next; the pixel to the
    left or above is then in neither.
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
    """The move, turn and scaling [2, 3] that a region's flow agrees on, or None; OpenCV's RANSAC has a fixed seed."""
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
    """A region with those pixels beside it that move as it does, see `_moving_regions`."""
    y, x = np.nonzero(cv2.dilate(region.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~region)
    own = flow[:, y, x]
    error = motion @ np.stack([x, y, np.ones_like(x)]) - np.stack([x, y]) - own
    joins = (np.hypot(*own) > threshold) & (np.hypot(*error) <= tolerance)
    whole = region.copy()
    whole[y[joins], x[joins]] = True
    return whole


def _clean(region: NDArray[np.bool_], others: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """A region without threads, and with its holes filled where no other region is."""
    outlines, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros(region.shape, np.uint8), outlines, -1, 1, cv2.FILLED)
    filled[others] = 0
    side = _side(2 * width / 512)
    opened = cv2.morphologyEx(filled, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    return opened.astype(bool)


def _paste(
    canvas: NDArray[np.float32], source: NDArray[np.uint8], mask: NDArray[np.bool_], motion: NDArray[np.float64]
) -> None:
    """Puts the masked part of the source [h, w, 3] where `motion` takes it on the canvas.

    Interpolation makes its edge one pixel soft; a mask that is blurred as well brings old ground along.
    """
    height, width = mask.shape
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    corners = motion @ np.array([[x, x + w, x, x + w], [y, y, y + h, y + h], [1, 1, 1, 1]])
    left, top = np.clip(np.floor(corners.min(1)).astype(int) - 1, 0, (width, height))
    right, bottom = np.clip(np.ceil(corners.max(1)).astype(int) + 1, 0, (width, height))
    if left >= right or top >= bottom:
        return  # out of the image
    box = np.s_[y : y + h, x : x + w]
    shifted = motion.copy()
    shifted[:, 2] += motion[:, :2] @ (x, y) - (left, top)
    opacity = mask[box].astype(np.float32)[..., None]
    layer = cv2.warpAffine(np.dstack([source[box] * opacity, opacity]), shifted, (int(right - left), int(bottom - top)))
    under = canvas[top:bottom, left:right]
    under *= 1 - layer[..., 3:]
    under += layer[..., :3]
