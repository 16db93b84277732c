"""What every estimator of optical flow is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from fp_lightning.types import Image


class FlowEstimator(Protocol):
    def __call__(self, first: Sequence[Image], second: Sequence[Image], start: Tensor | None = None) -> Tensor:
        """n images and n images → float32 [n, 2, h, w] in pixels: position in `first` + flow = position in `second`.

        `start` [n, 2, h, w] is a guess to begin from; estimators that need none do without.
        """
