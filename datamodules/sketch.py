"""Edits given by a sketch: outlines of what shall be where (paper, section 3.3)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from datamodules.base import EditDataModule
from datamodules.inputs import InputImage, read_sketch
from fp_lightning.signals.sketch import sketch
from fp_lightning.types import VideoPair


class SketchDataModule(EditDataModule):
    """Pairs with the sketch that their motion implies; predict reads NAME.sketch.png.

    Args:
        threshold: least jump of the flow across an outline, in image widths, see `sketch`.
        line_width: width of the strokes in image widths, one pixel at least.
        kwargs: see `EditDataModule`.
    """

    def __init__(self, threshold: float = 2 / 512, line_width: float = 2.5 / 512, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold, self.line_width = threshold, line_width

    def control(self, pair: VideoPair, index: int) -> Tensor:
        return sketch(pair, threshold=self.threshold, line_width=self.line_width)

    def read_signal(self, image: InputImage) -> dict[str, Any]:
        return {"control": read_sketch(image.signal(".sketch.png"), image.size, self.size)[None]}
