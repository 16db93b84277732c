"""Data module for points: drags from source to target positions (paper, section 3.3)."""

from __future__ import annotations

from typing import Any

from datamodules.base import EditDataModule
from datamodules.signals import Points, SignalMix


class PointsDataModule(EditDataModule):
    """Stored pairs with drags from their tracks, and no control image. `predict` reads NAME.points.json.

    Args:
        points: settings of points; None for the defaults.
        kwargs: see `EditDataModule`.
    """

    def __init__(self, points: Points | None = None, **kwargs: Any) -> None:
        super().__init__(mix=SignalMix([points or Points()]), **kwargs)
