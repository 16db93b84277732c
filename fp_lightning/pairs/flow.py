"""Optical flow between two frames. An estimator is one function; add it to `FLOWS`."""

from __future__ import annotations

from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class FlowEstimator(Protocol):
    def __call__(self, a: NDArray[np.uint8], b: NDArray[np.uint8]) -> Tensor:
        """Images [h, w, 3] RGB → float32 [2, h, w] in pixels: position in `a` + flow = position in `b`."""


def dis_flow(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> Tensor:
    """Dense inverse search, medium preset (Kroeger et al. 2016): good to some 30 px at 512 px width.

    The paper uses SEA-RAFT, which follows larger motion.
    """
    grey = [np.ascontiguousarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)) for image in (a, b)]
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = estimator.calc(grey[0], grey[1], np.zeros((*grey[0].shape, 2), np.float32))
    return torch.from_numpy(np.asarray(flow, np.float32)).permute(2, 0, 1).contiguous()


def settle(
    flow: Tensor, a: NDArray[np.uint8], b: NDArray[np.uint8], margin: float = 4.0, ratio: float = 0.95
) -> Tensor:
    """Sets flow [2, h, w] from `a` to `b` to zero wherever staying explains the images as well as moving.

    The camera is static, so rest is what needs no evidence; estimators guess where there is no
    texture, where the ground reappears, and where the light changes. Both explanations are compared
    by the absolute difference of Lab colours, less its mean around, in windows of 7 px at 512 px width.

    Args:
        flow: in pixels, at positions of `a`.
        a: [h, w, 3] RGB.
        b: [h, w, 3] RGB.
        margin: by how much moving must be better, in 8-bit levels summed over the three channels.
        ratio: moving's error is at most this share of staying's.
    """
    height, width = a.shape[:2]
    window, around = (2 * max(1, round(pixels * width / 512)) + 1 for pixels in (3, 25))
    first, second = (
        cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), (0, 0), 1).astype(np.float32) for image in (a, b)
    )
    y, x = np.mgrid[:height, :width].astype(np.float32)
    u, v = flow.numpy()
    moved = cv2.remap(second, x + u, y + v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def error(explained: NDArray) -> NDArray:
        difference = first - explained
        difference -= cv2.blur(difference, (around, around))
        return cv2.blur(np.abs(difference).sum(-1), (window, window))

    better = (error(moved) + margin < error(second) * ratio).astype(np.uint8)
    moves = cv2.medianBlur(better, 5)
    settled = [cv2.medianBlur(np.ascontiguousarray(component * moves), 5) for component in (u, v)]
    return torch.from_numpy(np.stack(settled).astype(np.float32))


FLOWS: dict[str, FlowEstimator] = {"dis": dis_flow}
