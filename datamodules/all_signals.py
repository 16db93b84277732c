"""Data module for training one model on all signals."""

from __future__ import annotations

from typing import Any

from datamodules.base import EditDataModule
from datamodules.signals import Coarse, Points, Sketch, choose
from fp_lightning.signals.combine import SIGNALS


class AllSignalsDataModule(EditDataModule):
    """Stored pairs, each with one random signal or several. `predict` reads all signals beside an image.

    Args:
        signals: names of the signals; one of them is drawn for every sample.
        together: probability in [0, 1] that each other signal is added.
        sketch: settings of sketches; None for the defaults.
        coarse: settings of coarse edits; None for the defaults.
        points: settings of points; None for the defaults.
        kwargs: see `EditDataModule`.
    """

    def __init__(
        self,
        signals: tuple[str, ...] = SIGNALS,
        together: float = 0.25,
        sketch: Sketch | None = None,
        coarse: Coarse | None = None,
        points: Points | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(mix=choose(signals, together, sketch, coarse, points), **kwargs)
