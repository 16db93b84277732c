"""Data for the editor: recipes name these by `class_path`."""

from datamodules.base import EditDataModule
from datamodules.scenes import SceneDataModule
from datamodules.sketch import SketchDataModule

__all__ = ["EditDataModule", "SceneDataModule", "SketchDataModule"]
