"""The state in which the canvas opens a photo."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from fp_lightning.demo.pictures import SHOWN, data_url, shrink
from fp_lightning.demo.session import Node
from fp_lightning.signals.sketch import outlines

MODES = {"sketch": ("strokes", "sketch"), "drag": ("arrows", "points"), "cut": ("pieces", "coarse")}  # lists, signals
OUTLINES = (0, 200, 255)  # RGB of the underlay


def canvas_state(node: Node, drawing: Any, replace: bool, signals: Sequence[str] | None) -> dict[str, Any]:
    """Make the prop `photo` of `components.canvas`.

    Args:
        drawing: used if the browser has none for this photo; None for the photo's own.
        replace: use `drawing` even if the browser has one.
        signals: the model's training signals, if known. Other modes get a warning in "untrained".
    """
    image = node.open()
    small = shrink(image, SHOWN)
    if drawing is None and node.edit is None:
        drawing = node.drawing
    drawn = drawing if isinstance(drawing, dict) else {}
    return {
        "key": node.key,
        "opened": time.monotonic_ns(),  # a change even if the same photo opens again
        "src": data_url(small),
        "outlines": _underlay(small),
        "width": image.width,
        "height": image.height,
        "drawing": drawing,
        "replace": replace,
        "mode": next((mode for mode, (part, _) in MODES.items() if drawn.get(part)), None),
        "untrained": {
            mode: f"This model was not trained on {signal} signals and may ignore them."
            for mode, (_, signal) in MODES.items()
            if signals is not None and signal not in signals
        },
    }


def _underlay(photo: Image.Image) -> str:
    """The photo's outlines on a transparent background, as a data URL."""
    drawn = outlines(torch.from_numpy(np.array(photo)).movedim(-1, 0))[0].numpy().astype(np.uint8)
    pixels = np.zeros((*drawn.shape, 4), np.uint8)
    pixels[drawn > 0] = (*OUTLINES, 255)
    return data_url(Image.fromarray(pixels))
