"""Data module for sketches: the outlines wanted in the edited image (paper, section 3.3)."""

from __future__ import annotations

from typing import Any

from datamodules.base import EditDataModule
from datamodules.signals import SignalMix, Sketch


class SketchDataModule(EditDataModule):
    """Stored pairs with sketches of their moving outlines. `predict` reads NAME.sketch.png (or another image file).

    Training sketches imitate hand drawings unless `sketch.augment` is false. Validation and test sketches are exact.

    Args:
        sketch: settings of sketches; None for the defaults.
        kwargs: see `EditDataModule`.
    """

    def __init__(self, sketch: Sketch | None = None, **kwargs: Any) -> None:
        super().__init__(mix=SignalMix([sketch or Sketch()]), **kwargs)
