"""Edits given by points that are dragged from where to where (paper, section 3.3)."""

from __future__ import annotations

from typing import Any

from datamodules.base import EditDataModule
from datamodules.signals import Points, SignalMix


class PointsDataModule(EditDataModule):
    """Pairs with drags along their tracks; predict reads NAME.points.json. There is no control image.

    Args:
        points: how many drags a sample has; None for the defaults.
        kwargs: see `EditDataModule`.
    """

    def __init__(self, points: Points | None = None, **kwargs: Any) -> None:
        super().__init__(mix=SignalMix([points or Points()]), **kwargs)
