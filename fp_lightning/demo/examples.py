"""Three example photos with a drawing each. They are procedural scenes, so that nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fp_lightning.demo.drawing import outline
from fp_lightning.scenes.content import SceneContent
from fp_lightning.scenes.scene import GROUND, Scene

SIZE = (256, 256)  # (height, width) in pixels
CONTENT = SceneContent(objects=(1, 1), radius=(0.15, 0.28), detail=0.2, motion=(0.2, 0.4), clarity=1.0)
SEEDS = {"sketch": 0, "drag": 1, "cut": 2}  # the first ones


@dataclass(frozen=True)
class Example:
    """A photo with a drawing of the next moment of its scene."""

    mode: str  # of the canvas: "sketch", "drag" or "cut"
    caption: str
    photo: Image.Image
    drawing: dict[str, Any]


@cache
def examples() -> list[Example]:
    """Return the examples. The page opens with the first."""
    return [
        Example("sketch", "Sketch an outline", *_drawn("sketch")),
        Example("drag", "Drag an object", *_drawn("drag")),
        Example("cut", "Cut and paste", *_drawn("cut")),
    ]


def _drawn(mode: str) -> tuple[Image.Image, dict[str, Any]]:
    scene = Scene(SEEDS[mode], SIZE, CONTENT)
    photo = Image.fromarray(scene.frame(0.0))
    before, after = _outline(scene, 0.0), _outline(scene, 1.0)
    (x, y), (u, v) = before.mean(0), after.mean(0)
    if mode == "sketch":
        closed = [*after.tolist(), after[0].tolist()]
        return photo, {"strokes": [{"points": closed, "size": 3, "erase": False, "colour": "#ffffff"}]}
    if mode == "drag":
        return photo, {"arrows": [[round(float(n), 1) for n in (x, y, u, v)]]}
    piece = {
        "outline": before.tolist(), "move": [round(float(u - x), 1), round(float(v - y), 1)],
        "angle": 0, "scale": 1, "mirror": False, "gone": False, "copied": False,
    }  # fmt: skip
    return photo, {"pieces": [piece]}


def _outline(scene: Scene, time: float) -> NDArray[np.float64]:
    """The outline of the scene's object at a time, positions [n, 2] in pixels."""
    height, width = scene.size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return outline(scene.layer(((np.stack([x, y], -1) + 0.5) / width).astype(np.float32), time) != GROUND)
