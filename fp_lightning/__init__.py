"""Interactive image editing learned from video."""

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fp_lightning.inference.pipeline import FramePainterPipeline
    from fp_lightning.model.build import build_editor
    from fp_lightning.model.editor import FramePainter
    from fp_lightning.training.module import FramePainterModule
    from fp_lightning.types import EditBatch, VideoPair

# bitsandbytes warns on import about a missing 4-bit kernel, which nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__all__ = ["EditBatch", "FramePainter", "FramePainterModule", "FramePainterPipeline", "VideoPair", "build_editor"]

_MODULES = {
    "EditBatch": "types",
    "FramePainter": "model.editor",
    "FramePainterModule": "training.module",
    "FramePainterPipeline": "inference.pipeline",
    "VideoPair": "types",
    "build_editor": "model.build",
}


def __getattr__(name: str):
    """Imports torch and other heavy packages only when a public name is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
