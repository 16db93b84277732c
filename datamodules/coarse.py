"""Data module for coarse edits: the photo with its parts moved to their place in the target (paper, section 3.3)."""

from __future__ import annotations

from typing import Any

from datamodules.base import EditDataModule
from datamodules.signals import Coarse, SignalMix


class CoarseDataModule(EditDataModule):
    """Stored pairs with the source warped by their flow. `predict` reads NAME.coarse.png (or another image file).

    Some training samples are cut and pasted instead, see `coarse.cut_probability`. Validation and test samples are
    always warped.

    Args:
        coarse: settings of coarse edits; None for the defaults.
        kwargs: see `EditDataModule`.
    """

    def __init__(self, coarse: Coarse | None = None, **kwargs: Any) -> None:
        super().__init__(mix=SignalMix([coarse or Coarse()]), **kwargs)
