"""Dense flow between the first and the last of several frames of a static camera.

Flow estimated directly between distant frames fails for large motion. Therefore flow is estimated between
neighbouring frames and chained. The chain is the initial value of a direct estimate, which removes its drift. Each
pixel then gets the option that explains it best: no motion, the chain, or the direct estimate. Pixels at rest that
lose their match are background that became uncovered; they stay at rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fp_lightning.pairs.flow.dis import dis_flow
from fp_lightning.pairs.flow.estimator import FlowEstimator
from fp_lightning.pairs.tracks import centres, step
from fp_lightning.types import Image, length

Array = NDArray[np.float32]
REST = 0.5  # px at 512 px width: smaller flow counts as rest
MARGIN = 1.0  # how much better than rest motion must explain a pixel: 8-bit levels, summed over Lab
CAP = 60.0  # largest error of a pixel, in the same unit, which limits the weight of occluded pixels
OUTSIDE = 36.0  # error of flow that leaves the image, in the same unit
GUIDE_RADIUS, GUIDE_NOISE = 9, 30.0  # guided filter of errors: px at 512 px width, squared 8-bit levels
LOOKS_RADIUS, LOOKS_ROUNDS, LOOKS_SUPPORT = 20, 4, 0.02  # px at 512 px width, iterations, smallest known share
SMOOTH, ISLAND = 11, 144  # px and px² at 512 px width: smaller regions are removed


@dataclass(frozen=True)
class Links:
    """Flow between neighbouring frames, of n frames that start with the source."""

    forward: Tensor  # [n − 1, 2, h, w] in pixels, from frame i to i + 1
    backward: Tensor  # [n − 1, 2, h, w] in pixels, from frame i + 1 to i


def link(frames: Sequence[Image], estimate: FlowEstimator) -> Links:
    """Estimate flow between neighbouring frames in both directions, in one call of the estimator."""
    earlier, later = list(frames[:-1]), list(frames[1:])
    both = estimate([*earlier, *later], [*later, *earlier])
    return Links(both[: len(earlier)], both[len(earlier) :])


def continuity(frames: Sequence[Image]) -> float:
    """Compute the smallest share, over neighbouring frames, of pixels with a consistent match. It is low at a cut.

    To be cheap, it uses DIS at 128 px width.
    """
    height, width = frames[0].shape[:2]
    size = (128, max(16, round(128 * height / width)))
    small = [np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8) for frame in frames]
    links = link(small, dis_flow)
    pixels = centres((size[1], size[0]))
    return min(
        float(step(*flows, pixels, alpha=0.05, beta=8)[1].float().mean())
        for flows in zip(links.forward, links.backward, strict=True)
    )


def chained_flow(frames: Sequence[Image], links: Links, estimate: FlowEstimator) -> tuple[Tensor, Tensor]:
    """Compute the flow between the first frame (source) and the last (target), see the module's description.

    Args:
        frames: uint8 [h, w, 3], the source first.
        links: flow between neighbouring frames.
        estimate: estimator for the direct flow.

    Returns:
        The flow to the source, at target positions, and the flow to the target, at source positions: [2, h, w]
        in pixels each.
    """
    source, target = frames[0], frames[-1]
    directions = [(target, source), (source, target)]
    chains = [_follow(links.backward.flip(0), links.forward.flip(0)), _follow(links.forward, links.backward)]
    direct = estimate([target, source], [source, target], torch.stack([chain for chain, _ in chains]))
    flows = [
        _best_explanation(*images, [chain * ~uncovered, estimated])
        for images, (chain, uncovered), estimated in zip(directions, chains, direct, strict=True)
    ]
    pixels = centres((source.shape[0], source.shape[1]))
    matched = [step(flows[0], flows[1], pixels)[1], step(flows[1], flows[0], pixels)[1]]
    to_source, to_target = (
        _without_islands(_rest_by_looks(flow * ~(uncovered & ~match), match, image))
        for flow, match, (_, uncovered), (image, _) in zip(flows, matched, chains, directions, strict=True)
    )
    return to_source, to_target


def _follow(flows: Tensor, backs: Tensor) -> tuple[Tensor, Tensor]:
    """Follow every pixel through a chain of flows.

    Args:
        flows: [n, 2, h, w] in pixels, in the order in which they are followed.
        backs: [n, 2, h, w] in pixels, the flows in the opposite direction.

    Returns:
        The displacement [2, h, w] in pixels, and whether the pixel lost its match while at rest: bool [h, w].
    """
    height, width = flows.shape[-2:]
    start = centres((height, width))
    here, alive = start, torch.ones(height, width, dtype=torch.bool)
    uncovered = ~alive
    for flow, back in zip(flows, backs, strict=True):
        moved, matched = step(flow, back, here)
        rested = length(here - start) < 2 * REST * width / 512
        uncovered, alive = uncovered | (alive & ~matched & rested), alive & matched
        here = moved
    return here - start, uncovered


def _best_explanation(first: Image, second: Image, flows: Sequence[Tensor]) -> Tensor:
    """Choose per pixel between rest and the given flows [2, h, w], by how well they warp `second` to `first`.

    The errors are filtered with `first` as the guide, so that the choice changes at its edges (cost-volume
    filtering, Rhemann et al. 2011).
    """
    a, b = _lab(first), _lab(second)
    b = _relit(b, a)
    options = torch.stack([torch.zeros_like(flows[0]), *flows])
    guided = _guided_filter(a[..., 0], max(1, round(GUIDE_RADIUS * first.shape[1] / 512)))
    errors = np.stack([guided(_error(a, b, flow.numpy())) for flow in options])
    errors[1:] += MARGIN
    chosen = torch.from_numpy(errors.argmin(0))
    flow = options.gather(0, chosen[None, None].expand(1, 2, -1, -1))[0].numpy()
    return torch.from_numpy(
        np.stack([cv2.medianBlur(np.ascontiguousarray(plane), 5) for plane in flow]).astype(np.float32)
    )


def _lab(image: Image) -> Array:
    """Convert an image to slightly smoothed Lab colours [h, w, 3], in 8-bit levels."""
    return cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), (0, 0), 1).astype(np.float32)


def _relit(image: Array, like: Array) -> Array:
    """Match the exposure of `image` [h, w, 3] to `like` by a robust gain and offset per channel."""
    result = np.empty_like(image)
    for channel in range(3):
        x, y = image[::4, ::4, channel].ravel(), like[::4, ::4, channel].ravel()
        gain, offset, kept = 1.0, 0.0, np.ones(len(x), bool)
        for _ in range(4):
            spread = x[kept].var()
            if spread > 4:
                gain = float(np.clip(np.mean((x[kept] - x[kept].mean()) * (y[kept] - y[kept].mean())) / spread, 0.5, 2))
            offset = float(np.median(y[kept] - gain * x[kept]))
            residual = np.abs(y - gain * x - offset)
            kept = residual <= max(4.0, 2 * float(np.median(residual)))
        result[..., channel] = image[..., channel] * gain + offset
    return result


def _error(a: Array, b: Array, flow: Array) -> Array:
    """Compute the difference [h, w] of `a` and `b` warped by `flow` [2, h, w], at most CAP."""
    height, width = a.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    u, v = x + flow[0], y + flow[1]
    warped = cv2.remap(b, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    error = np.minimum(np.abs(a - warped).sum(-1), CAP)
    error[(u < -0.5) | (u > width - 0.5) | (v < -0.5) | (v > height - 0.5)] = OUTSIDE
    return error.astype(np.float32)


def _guided_filter(guide: Array, radius: int) -> Callable[[Array], Array]:
    """Return the guided filter (He et al. 2010) of a grey guide [h, w], a function of the image [h, w] to filter."""

    def mean(x: NDArray) -> NDArray:
        return cv2.blur(x, (2 * radius + 1, 2 * radius + 1))

    guide = guide.astype(np.float64)  # float32 loses precision in the variance
    centre = mean(guide)
    variance = mean(guide * guide) - centre * centre

    def filtered(x: Array) -> Array:
        average = mean(x.astype(np.float64))
        slope = (mean(guide * x) - centre * average) / (variance + GUIDE_NOISE)
        return (mean(slope) * guide + mean(average - slope * centre)).astype(np.float32)

    return filtered


def _rest_by_looks(flow: Tensor, matched: Tensor, image: Image) -> Tensor:
    """Set the flow to zero at unmatched pixels that look like the background at rest around them.

    The labels "moving" and "at rest" spread from matched to unmatched pixels, by guided filters with each Lab
    channel of the image as their guide.

    Args:
        flow: [2, h, w] in pixels.
        matched: bool [h, w].
        image: uint8 [h, w, 3], at whose positions the flow is.
    """
    scale = flow.shape[-1] / 512
    radius = max(2, round(LOOKS_RADIUS * scale))
    moves = np.hypot(*flow.numpy()) > REST * scale
    known = cv2.erode(matched.numpy().astype(np.uint8), np.ones((3, 3), np.uint8)).astype(np.float32)
    moving = known * moves
    unknown = known == 0
    guided = [_guided_filter(plane, radius) for plane in _lab(image).transpose(2, 0, 1)]
    for _ in range(LOOKS_ROUNDS):
        shares = [np.clip(filtered(moving) / np.maximum(filtered(known), 1e-3), 0.02, 0.98) for filtered in guided]
        odds = np.sum([np.log(share / (1 - share)) for share in shares], axis=0)
        reached = (cv2.blur(known, (2 * radius + 1, 2 * radius + 1)) > LOOKS_SUPPORT) & (known == 0)
        moving[reached], known[reached] = odds[reached] > 0, 1
    rests = unknown & (moving == 0)
    return flow * torch.from_numpy(~rests)


def _without_islands(flow: Tensor) -> Tensor:
    """Smooth the moving region of flow [2, h, w] and remove small islands and holes.

    Filled pixels get the flow of the nearest moving pixel.
    """
    scale = flow.shape[-1] / 512
    moved = np.hypot(*flow.numpy()) > REST * scale
    mask = moved
    for _ in range(2):
        mask = cv2.medianBlur(mask.astype(np.uint8), 2 * max(1, round(SMOOTH * scale / 2 - 0.5)) + 1) > 0
    for side in (True, False):
        _, labels, stats, _ = cv2.connectedComponentsWithStats((mask == side).astype(np.uint8), connectivity=4)
        small = stats[:, cv2.CC_STAT_AREA] < ISLAND * scale**2
        small[0] = False
        mask = np.where(small[labels], not side, mask)
    known = mask & moved
    if not known.any():
        return torch.zeros_like(flow)
    _, labels = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    index = np.zeros(labels.max() + 1, np.int64)
    index[labels[known]] = np.flatnonzero(known)
    nearest = flow.flatten(1)[:, torch.from_numpy(index[labels]).flatten()].view_as(flow)
    return nearest * torch.from_numpy(mask)
