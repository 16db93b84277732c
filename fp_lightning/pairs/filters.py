"""Which candidate pairs are worth keeping. The paper states no thresholds."""

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
    """Thresholds, see `HELP`; lengths in pixels at 512 px width, shares from 0 to 1.

    What the paper and its neighbours filter by: local motion that is neither too small nor too large, a
    static camera, and a warp that is valid in most of the image (Magic Fixup: 60 %).
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
        "min_continuity": "share of pixels that neighbouring frames have in common at least, else cut",
        "still": "a pixel is still if its flow is below this",
        "texture": "where flow can be measured: mean gradient in 8-bit levels per pixel",
        "min_still": "share of still pixels, of all or of those with texture, at least, else camera_or_global_motion",
        "max_inconsistent": "share of pixels whose flow there and back disagrees at most, else inconsistent",
        "max_unmatched": "the same share of the pixels that change, else inconsistent",
        "light": "change of colour, in 8-bit levels, beyond which a resting pixel has other light",
        "unlike": "difference of colour, in 8-bit levels, beyond which a token is not visible where its track leads",
        "max_relit": "share of such among resting pixels at most (a fade, exposure), else inconsistent",
        "largest": "99th percentile of the flow at most, else motion_too_large",
        "moving": "a pixel moves if its flow is above this",
        "min_moving": "share of moving pixels at least, else motion_too_small",
    }

    def camera_moves(self, flow: Tensor, image: NDArray[np.uint8]) -> bool:
        """Whether too little rests, in all of `image` [h, w, 3] and where it has texture.

        `flow` [2, h, w] is as measured, not settled. Both, since flow guesses where there is no texture,
        and since the only texture may be that of a moving thing. Most cuts are caught here as well.
        """
        grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), 1)
        dx, dy = (cv2.Sobel(grey, cv2.CV_32F, *order, scale=1 / 8) for order in ((1, 0), (0, 1)))
        textured = torch.from_numpy(cv2.blur(np.hypot(dx, dy), (9, 9)) > self.texture)
        still = _length(flow) < self.still
        rests = max(float(still.float().mean()), float(still[textured].float().sum() / textured.sum().clamp(min=1)))
        return rests < self.min_still

    def nothing_changes(self, flow: Tensor, source: NDArray[np.uint8], target: NDArray[np.uint8]) -> bool:
        """Whether neither the flow [2, h, w] as measured nor the colours [h, w, 3] say that enough can move."""
        images = [torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1) for image in (source, target)]
        changes = _colour_change(images[0], images[1]) > self.light / 2
        return max(float(x.float().mean()) for x in (changes, _length(flow) > self.moving)) < self.min_moving

    def explained(self, tracks: Tensor, source: NDArray[np.uint8], target: NDArray[np.uint8]) -> Tensor:
        """Whether each target token has the colour of the place in the source that its track leads to: bool [th, tw].

        Args:
            tracks: [2, th, tw] in pixels of `source`.
            source: [h, w, 3].
            target: [h, w, 3]; its tokens tile it.
        """
        own = centres((target.shape[0], target.shape[1]), target.shape[1] // tracks.shape[-1])
        seen = []
        for image, positions in ((source, tracks), (target, own)):
            x, y = (plane.numpy().astype(np.float32) - 0.5 for plane in positions)
            smooth = cv2.blur(image, (9, 9)).astype(np.float32)
            seen.append(cv2.remap(smooth, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
        return torch.from_numpy(np.abs(seen[0] - seen[1]).mean(-1) <= self.unlike)

    def reason(self, pair: VideoPair) -> str | None:
        """Why a pair of a static camera is rejected, or None to keep it.

        Inconsistent flow (a change of light, things that come, go or are too fast) says nothing about
        motion, so it is asked first.
        """
        matched = tracks_from_flow(pair.flow_to_source, pair.flow_to_target, stride=1)[1]
        far = _length(pair.flow_to_source)
        moving = far > self.moving
        changing = moving | ~matched
        if not matched.float().mean() > 1 - self.max_inconsistent:
            return "inconsistent"
        resting = matched & (far < self.still)
        relit = resting & (_colour_change(pair.source, pair.target) > self.light)
        if relit.sum() > self.max_relit * resting.sum():
            return "inconsistent"
        if changing.float().mean() < self.min_moving:
            return "motion_too_small"
        if (~matched).sum() > self.max_unmatched * changing.sum():
            return "inconsistent"
        if far.flatten().kthvalue(int(0.99 * far.numel())).values > self.largest:
            return "motion_too_large"
        return None if moving.float().mean() >= self.min_moving else "motion_too_small"


def _colour_change(source: Tensor, target: Tensor) -> Tensor:
    """Difference in place of two images [3, h, w], in 8-bit levels [h, w], over windows of 9 × 9 pixels."""
    before, after = (F.avg_pool2d(image.float()[None], 9, 1, 4) for image in (source, target))
    return (before - after).abs().mean((0, 1))


def _length(flow: Tensor) -> Tensor:
    """Flow [2, h, w] → its length in pixels at 512 px width."""
    return length(flow) * (MOVING_WIDTH / flow.shape[-1])
