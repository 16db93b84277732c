"""Dense motion between the ends of a run of frames of a static camera.

One long jump loses what moves far. So flow is measured between neighbouring frames, chained, and the
chain is where the estimate between the two ends starts, which takes the chain's drift away. What then
explains each pixel best is kept: rest, the chain or the estimate. Pixels that lose their match while at
rest are ground that something uncovered, and stay at rest.
"""

from __future__ import annotations

from collections.abc import Sequence
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
REST = 0.5  # px at 512 px width: less is no motion
MARGIN = 1.0  # by how much motion must explain a pixel better than rest: 8-bit levels, summed over Lab
CAP = 60.0  # greatest error of a pixel, in the same unit: what is hidden says no more than that
OUTSIDE = 36.0  # error of motion that leaves the image
GUIDE_RADIUS, GUIDE_NOISE = 9, 30.0  # guided filter of the errors: px at 512 px width, squared 8-bit levels
LOOKS_RADIUS, LOOKS_ROUNDS, LOOKS_SUPPORT = 20, 4, 0.02  # px at 512 px width, steps of it, least share known
SMOOTH, ISLAND = 11, 144  # px and px² at 512 px width: what is smaller neither moves nor rests alone


@dataclass(frozen=True)
class Links:
    """Flow between neighbours of n frames, the source first."""

    forward: Tensor  # [n − 1, 2, h, w]: from frame i to i + 1
    backward: Tensor  # [n − 1, 2, h, w]: from frame i + 1 to i


def link(frames: Sequence[Image], estimate: FlowEstimator) -> Links:
    """Measures flow between neighbouring frames both ways, in one call of the estimator."""
    earlier, later = list(frames[:-1]), list(frames[1:])
    both = estimate([*earlier, *later], [*later, *earlier])
    return Links(both[: len(earlier)], both[len(earlier) :])


def continuity(frames: Sequence[Image]) -> float:
    """The share of pixels that find their match in the next frame and the way back, where it is least: low at a cut.

    Measured by DIS at 128 px width, so that it costs little.
    """
    height, width = frames[0].shape[:2]
    size = (128, max(16, round(128 * height / width)))
    small = [np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8) for frame in frames]
    links = link(small, dis_flow)
    every = centres((size[1], size[0]))
    return min(
        float(step(*flows, every, alpha=0.05, beta=8)[1].float().mean())
        for flows in zip(links.forward, links.backward, strict=True)
    )


def chained_flow(frames: Sequence[Image], links: Links, estimate: FlowEstimator) -> tuple[Tensor, Tensor]:
    """Flow [2, h, w] in pixels from the last frame to the first, at the last's positions, and the other way."""
    source, target = frames[0], frames[-1]
    ways = [(target, source), (source, target)]
    chains = [_follow(links.backward.flip(0), links.forward.flip(0)), _follow(links.forward, links.backward)]
    direct = estimate([target, source], [source, target], torch.stack([chain for chain, _ in chains]))
    flows = [
        _best_explanation(*way, [chain * ~uncovered, estimated])
        for way, (chain, uncovered), estimated in zip(ways, chains, direct, strict=True)
    ]
    every = centres((source.shape[0], source.shape[1]))
    matched = [step(flows[0], flows[1], every)[1], step(flows[1], flows[0], every)[1]]
    to_source, to_target = (
        _without_islands(_rest_by_looks(flow * ~(uncovered & ~match), match, image))
        for flow, match, (_, uncovered), (image, _) in zip(flows, matched, chains, ways, strict=True)
    )
    return to_source, to_target


def _follow(flows: Tensor, backs: Tensor) -> tuple[Tensor, Tensor]:
    """Follows every pixel through links [n, 2, h, w] in walking order.

    Returns its displacement [2, h, w], and whether it lost its match while it rested: bool [h, w].
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
    """Of rest and the flows [2, h, w] from `first` to `second`, per pixel the one under which the images agree best.

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
    """Slightly smoothed Lab colours [h, w, 3] in 8-bit levels."""
    return cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), (0, 0), 1).astype(np.float32)


def _relit(image: Array, like: Array) -> Array:
    """`image` [h, w, 3] with gain and offset per channel that bring what rests to the light of `like`."""
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
    """Difference [h, w] of `a` and what `flow` fetches from `b`, capped."""
    height, width = a.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    u, v = x + flow[0], y + flow[1]
    fetched = cv2.remap(b, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    error = np.minimum(np.abs(a - fetched).sum(-1), CAP)
    error[(u < -0.5) | (u > width - 0.5) | (v < -0.5) | (v > height - 0.5)] = OUTSIDE
    return error.astype(np.float32)


def _guided_filter(guide: Array, radius: int):
    """The guided filter of He et al. (2010) for one grey guide [h, w], as a function of what is filtered."""

    def mean(x: NDArray) -> NDArray:
        return cv2.blur(x, (2 * radius + 1, 2 * radius + 1))

    guide = guide.astype(np.float64)  # float32 cancels in the variance
    centre = mean(guide)
    variance = mean(guide * guide) - centre * centre

    def filtered(x: Array) -> Array:
        average = mean(x.astype(np.float64))
        slope = (mean(guide * x) - centre * average) / (variance + GUIDE_NOISE)
        return (mean(slope) * guide + mean(average - slope * centre)).astype(np.float32)

    return filtered


def _rest_by_looks(flow: Tensor, matched: Tensor, image: Image) -> Tensor:
    """Flow [2, h, w] of `image`, put to rest where it has no match and looks like what rests around it.

    What moves and rests is carried from where flow is matched, bool [h, w], into where it is not, by filters
    that have each Lab channel of `image` [h, w, 3] as their guide.
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
    """Flow whose moving region is smoothed and loses specks and pinholes; filled pixels move as their nearest one."""
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
