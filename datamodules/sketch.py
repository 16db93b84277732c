"""Edits given by a sketch: outlines of what shall be where (paper, section 3.3)."""

from __future__ import annotations

from typing import Any

from datamodules.base import EditDataModule
from datamodules.signals import SignalMix, Sketch


class SketchDataModule(EditDataModule):
    """Pairs with the sketch that their motion implies; predict reads NAME.sketch.png.

    Training sketches are drawn as by hand unless `sketch.augment` is false, others exactly.

    Args:
        sketch: how sketches are drawn; None for the defaults.
        kwargs: see `EditDataModule`.
    """

    def __init__(self, sketch: Sketch | None = None, **kwargs: Any) -> None:
        super().__init__(mix=SignalMix([sketch or Sketch()]), **kwargs)
