"""Filters that accept or reject candidate pairs. The paper states no thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fp_lightning.pairs.tracks import centres, tracks_from_flow
from fp_lightning.types import MOVING_WIDTH, VideoPair, length


@dataclass(frozen=True)
class PairFilter:
    """Thresholds for candidate pairs, described in `HELP`. Lengths are in pixels at 512 px width, shares in [0, 1].

    They follow the criteria of the paper (section 3.3) and related work: local motion that is neither too small
    nor too large, a static camera, and a warp that is valid in most of the image (Magic Fixup: 60 %).
    """

    min_continuity: float = 0.4
    still: float = 1.0
    texture: float = 2.0
    min_still: float = 0.15
    max_inconsistent: float = 0.35
    max_unmatched: float = 0.9
    light: float = 12.0
    unlike: float = 30.0
    max_relit: float = 0.2
    largest: float = 120.0
    moving: float = 3.0
    min_moving: float = 0.01

    HELP: ClassVar[dict[str, str]] = {
        "min_continuity": "smallest share of pixels with a match in the next frame, else cut",
        "still": "pixels with less flow than this are still, px",
        "texture": "mean gradient, in 8-bit levels per pixel, above which flow can be measured",
        "min_still": "smallest share of still pixels, of all or of textured ones, else camera_or_global_motion",
        "max_inconsistent": "largest share of pixels whose forward and backward flow disagree, else inconsistent",
        "max_unmatched": "largest share of the same among changing pixels, else inconsistent",
        "light": "change of colour, in 8-bit levels, above which a still pixel is lit differently",
        "unlike": "colour difference, in 8-bit levels, above which a token does not match the end of its track",
        "max_relit": "largest share of still pixels lit differently (fade, exposure), else inconsistent",
        "largest": "largest 99th percentile of the flow, px, else motion_too_large",
        "moving": "pixels with more flow than this move, px",
        "min_moving": "smallest share of moving pixels, else motion_too_small",
    }

    def camera_moves(self, flow: Tensor, image: NDArray[np.uint8]) -> bool:
        """Whether too few pixels are still, both in the whole image and in its textured parts.

        The whole image alone is not enough because flow is a guess without texture. The textured part alone is
        not enough because it may be a moving object. This also rejects most cuts.

        Args:
            flow: [2, h, w] in pixels at the positions of `image`, as estimated.
            image: uint8 [h, w, 3].
        """
        grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), 1)
        dx, dy = (cv2.Sobel(grey, cv2.CV_32F, *order, scale=1 / 8) for order in ((1, 0), (0, 1)))
        textured = torch.from_numpy(cv2.blur(np.hypot(dx, dy), (9, 9)) > self.texture)
        still = _length(flow) < self.still
        share = max(float(still.float().mean()), float(still[textured].float().sum() / textured.sum().clamp(min=1)))
        return share < self.min_still

    def nothing_changes(self, flow: Tensor, source: NDArray[np.uint8], target: NDArray[np.uint8]) -> bool:
        """Whether both the estimated flow [2, h, w] and the colours [h, w, 3] show too little change for a pair."""
        images = [torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1) for image in (source, target)]
        changes = _colour_change(images[0], images[1]) > self.light / 2
        return max(float(x.float().mean()) for x in (changes, _length(flow) > self.moving)) < self.min_moving

    def explained(self, tracks: Tensor, source: NDArray[np.uint8], target: NDArray[np.uint8]) -> Tensor:
        """Whether each target token has the colour of the source at the end of its track: bool [th, tw].

        Args:
            tracks: source positions [2, th, tw] in pixels.
            source: uint8 [h, w, 3].
            target: uint8 [h, w, 3], tiled by the tokens.
        """
        tokens = centres((target.shape[0], target.shape[1]), target.shape[1] // tracks.shape[-1])
        colours = []
        for image, positions in ((source, tracks), (target, tokens)):
            x, y = (plane.numpy().astype(np.float32) - 0.5 for plane in positions)
            smooth = cv2.blur(image, (9, 9)).astype(np.float32)
            colours.append(cv2.remap(smooth, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
        return torch.from_numpy(np.abs(colours[0] - colours[1]).mean(-1) <= self.unlike)

    def reason(self, pair: VideoPair) -> str | None:
        """Return why a static-camera pair is rejected, or None to keep it.

        Consistency is checked first, because inconsistent flow (changing light, objects that appear, vanish or
        move too fast) does not measure motion.
        """
        matched = tracks_from_flow(pair.flow_to_source, pair.flow_to_target, stride=1)[1]
        far = _length(pair.flow_to_source)
        moving = far > self.moving
        changing = moving | ~matched
        if not matched.float().mean() > 1 - self.max_inconsistent:
            return "inconsistent"
        still = matched & (far < self.still)
        relit = still & (_colour_change(pair.source, pair.target) > self.light)
        if relit.sum() > self.max_relit * still.sum():
            return "inconsistent"
        if changing.float().mean() < self.min_moving:
            return "motion_too_small"
        if (~matched).sum() > self.max_unmatched * changing.sum():
            return "inconsistent"
        if far.flatten().kthvalue(int(0.99 * far.numel())).values > self.largest:
            return "motion_too_large"
        return None if moving.float().mean() >= self.min_moving else "motion_too_small"


def _colour_change(source: Tensor, target: Tensor) -> Tensor:
    """Compute the difference of two images [3, h, w], averaged over 9 × 9 windows: [h, w] in 8-bit levels."""
    before, after = (F.avg_pool2d(image.float()[None], 9, 1, 4) for image in (source, target))
    return (before - after).abs().mean((0, 1))


def _length(flow: Tensor) -> Tensor:
    """Compute the length [h, w] of flow [2, h, w], in pixels at 512 px width."""
    return length(flow) * (MOVING_WIDTH / flow.shape[-1])
