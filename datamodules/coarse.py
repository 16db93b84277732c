"""Edits given by a coarse edit: the photo with parts moved roughly where they shall be (paper, section 3.3)."""

from __future__ import annotations

from typing import Any

from datamodules.base import EditDataModule
from datamodules.signals import Coarse, SignalMix


class CoarseDataModule(EditDataModule):
    """Pairs with the source warped along their flow; predict reads NAME.coarse.png (or jpg, webp).

    Some training samples are cut and pasted instead, see `coarse.cut_probability`; others are always warped.

    Args:
        coarse: how coarse edits are made; None for the defaults.
        kwargs: see `EditDataModule`.
    """

    def __init__(self, coarse: Coarse | None = None, **kwargs: Any) -> None:
        super().__init__(mix=SignalMix([coarse or Coarse()]), **kwargs)
