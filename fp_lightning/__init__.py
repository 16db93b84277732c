"""Interactive image editing learned from video."""

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fp_lightning.editor import FramePainter, build_editor
    from fp_lightning.module import FramePainterModule
    from fp_lightning.pipeline import FramePainterPipeline

# It warns at import that a kernel for products in 4 bits is missing, which nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__all__ = ["FramePainter", "FramePainterModule", "FramePainterPipeline", "build_editor"]

_HOMES = {
    "FramePainter": "editor",
    "FramePainterModule": "module",
    "FramePainterPipeline": "pipeline",
    "build_editor": "editor",
}


def __getattr__(name: str):
    """Imports torch and its friends only when a name that needs them is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
