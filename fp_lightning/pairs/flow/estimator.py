"""The interface of optical flow estimators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from fp_lightning.types import Image


class FlowEstimator(Protocol):
    """Estimates optical flow between pairs of images."""

    def __call__(self, first: Sequence[Image], second: Sequence[Image], start: Tensor | None = None) -> Tensor:
        """Estimate flow float32 [n, 2, h, w] in pixels: position in `first` + flow = position in `second`.

        Args:
            first: n images uint8 [h, w, 3].
            second: n images of the same size.
            start: initial flow [n, 2, h, w] in pixels. Estimators may ignore it.
        """
