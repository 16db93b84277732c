"""Edits given by any signal: one model for all of them."""

from __future__ import annotations

from typing import Any

from datamodules.base import EditDataModule
from datamodules.signals import Coarse, Points, Sketch, choose
from fp_lightning.signals.combine import SIGNALS


class AllSignalsDataModule(EditDataModule):
    """Pairs with one signal at random each, sometimes several; predict reads any that lies beside an image.

    Args:
        signals: which ones; of these, one is drawn for every sample.
        together: probability with which each of the others joins it.
        sketch, coarse, points: settings of each; None for the defaults.
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
