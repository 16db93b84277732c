"""Dense inverse search (DIS), an optical flow estimator of OpenCV that needs no weights."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from fp_lightning.types import Image


def dis_flow(first: Sequence[Image], second: Sequence[Image], start: Tensor | None = None) -> Tensor:
    """Estimate flow by dense inverse search, medium preset (Kroeger et al. 2016). See `FlowEstimator`.

    It finds motion up to about 30 px, at 512 px width, from its initial value. The paper uses SEA-RAFT, which finds
    larger motion.
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
