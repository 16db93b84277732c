"""Lightning data modules. Recipes name them by `class_path`."""

from datamodules.all_signals import AllSignalsDataModule
from datamodules.base import EditDataModule
from datamodules.clips import SceneClipDataModule
from datamodules.coarse import CoarseDataModule
from datamodules.points import PointsDataModule
from datamodules.scenes import SceneDataModule
from datamodules.sketch import SketchDataModule

__all__ = [
    "AllSignalsDataModule",
    "CoarseDataModule",
    "EditDataModule",
    "PointsDataModule",
    "SceneClipDataModule",
    "SceneDataModule",
    "SketchDataModule",
]
