"""Optical flow between frames. An estimator is one function; add its loader to `FLOWS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Image = NDArray[np.uint8]  # [h, w, 3] RGB


class FlowEstimator(Protocol):
    def __call__(self, first: Sequence[Image], second: Sequence[Image], start: Tensor | None = None) -> Tensor:
        """n images and n images → float32 [n, 2, h, w] in pixels: position in `first` + flow = position in `second`.

        `start` [n, 2, h, w] is a guess to begin from; estimators that need none do without.
        """


def dis_flow(first: Sequence[Image], second: Sequence[Image], start: Tensor | None = None) -> Tensor:
    """Dense inverse search, medium preset (Kroeger et al. 2016): good to some 30 px at 512 px width from its start.

    The paper uses SEA-RAFT, which follows larger motion.
    """
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flows = []
    for index, images in enumerate(zip(first, second, strict=True)):
        grey = [np.ascontiguousarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)) for image in images]
        guess = np.zeros((*grey[0].shape, 2), np.float32)
        if start is not None:
            guess = np.ascontiguousarray(start[index].permute(1, 2, 0).numpy(), np.float32)
        flows.append(torch.from_numpy(np.asarray(estimator.calc(grey[0], grey[1], guess), np.float32)))
    return torch.stack(flows).permute(0, 3, 1, 2).contiguous()


def _raft(weights: str | None) -> FlowEstimator:
    from fp_lightning.pairs.raft import load_raft

    return load_raft(weights)


def _sea_raft(weights: str | None) -> FlowEstimator:
    from fp_lightning.pairs.sea_raft import load_sea_raft

    return load_sea_raft(weights)


FLOWS: dict[str, Callable[[str | None], FlowEstimator]] = {
    "dis": lambda weights: dis_flow,
    "raft": _raft,
    "sea_raft": _sea_raft,
}


@lru_cache(maxsize=1)
def flow_estimator(name: str, weights: str | None = None) -> FlowEstimator:
    """The estimator of that name, loaded once a process."""
    return FLOWS[name](weights)
