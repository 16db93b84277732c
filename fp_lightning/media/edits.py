"""An edit as one file: photo, signals and settings, from which it can be made again to the same pixels."""

from __future__ import annotations

import json
import math
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fp_lightning.errors import InputError
from fp_lightning.files import write_atomic
from fp_lightning.media.images import decode_image, drags, png_bytes

FORMAT = "fp_lightning edit 1"
SUFFIX = ".edit.json"
PREFIX = "data:image/png;base64,"
MAX_PIXELS = 100_000_000
SETTINGS: dict[str, tuple[type, ...]] = {  # of the pipeline's call, and their types in a file
    "num_inference_steps": (int,),
    "guidance_scale": (int, float),
    "control_scale": (int, float),
    "solver": (str,),
    "guidance_interval": (list, tuple, type(None)),
    "reuse": (int,),
    "height": (int,),
    "width": (int,),
    "keep_unedited": (bool,),
}
SIGNAL_IMAGES = ("sketch", "coarse", "region")


@dataclass(frozen=True)
class Edit:
    """What an edit was made from.

    Args:
        image: the photo, RGB and upright.
        sketch, coarse, points, region: see `FramePainterPipeline.__call__`.
        settings: its keyword arguments among `SETTINGS`.
        seed: of the noise.
        model: what made it, for people.
        weights: hash of that model's control encoder.
        drawing: what the web page draws the signals from; nothing else looks at it.
    """

    image: Image.Image
    sketch: Image.Image | None = None
    coarse: Image.Image | None = None
    points: list[list[float]] | None = None
    region: Image.Image | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    model: str | None = None
    weights: str | None = None
    drawing: Any = None

    def arguments(self) -> dict[str, Any]:
        """All arguments of `FramePainterPipeline.__call__`, with a new generator."""
        given = {"sketch": self.sketch, "coarse": self.coarse, "points": self.points, "region": self.region}
        return {
            "image": self.image,
            **{name: value for name, value in given.items() if value is not None},
            **self.settings,
            "generator": torch.Generator().manual_seed(self.seed),
        }

    def to_bytes(self) -> bytes:
        """The file: JSON with the images as PNG in it, so that it needs nothing beside it."""
        images = {name: _to_text(getattr(self, name)) for name in ("image", *SIGNAL_IMAGES)}
        if self.coarse is not None and (self.coarse.mode, self.coarse.size) == ("RGB", self.image.size):
            images["coarse_changes"] = _to_text(_changes(self.image, self.coarse))
            del images["coarse"]
        content = {
            "format": FORMAT,
            "model": self.model,
            "weights": self.weights,
            "seed": self.seed,
            "settings": dict(self.settings),
            "points": self.points,
            "drawing": self.drawing,
            **images,
        }
        return (json.dumps({k: v for k, v in content.items() if v is not None}, allow_nan=False) + "\n").encode()

    def save(self, path: str | Path) -> Path:
        """Writes the file; NAME.edit.json is what `predict` looks for."""
        return write_atomic(Path(path), self.to_bytes())


def read_edit(path: str | Path, max_pixels: int = MAX_PIXELS) -> Edit:
    """The edit in a file.

    Raises:
        InputError: the file is missing, or see `parse_edit`.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give it an edit that was saved") from error
    return parse_edit(data, str(path), max_pixels)


def parse_edit(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Edit:
    """The edit in the bytes of a file, from whomever it is.

    Args:
        name: what messages call it.
        max_pixels: of each image.

    Raises:
        InputError: it is no saved edit, or one of its values is not usable.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not readable JSON; give it an edit that was saved") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise InputError(f"{name} is not a saved edit: its format is {str(found)[:60]!r}, it must be {FORMAT!r}")

    def image(part: str) -> Image.Image | None:
        return _from_text(content.get(part), f"{part} of {name}", max_pixels)

    def text(key: str) -> str | None:
        return value if isinstance(value := content.get(key), str) else None

    photo = image("image")
    if photo is None:
        raise InputError(f"{name} has no image; save the edit again")
    changes = image("coarse_changes")
    points = content.get("points")
    if points is not None:
        drags(points, (photo.height, photo.width), (photo.height, photo.width), f"points of {name}")
    return Edit(
        photo.convert("RGB"),
        image("sketch"),
        image("coarse") if changes is None else _changed(photo, changes),
        points,
        image("region"),
        settings=check_settings(content.get("settings", {}), name),
        seed=check_seed(content.get("seed", 0), name),
        model=text("model"),
        weights=text("weights"),
        drawing=content.get("drawing"),
    )


def check_settings(settings: Any, name: str) -> dict[str, Any]:
    """`settings` if their names and types are those of `SETTINGS` and their numbers finite.

    Raises:
        InputError: they are not.
    """
    if not isinstance(settings, dict):
        raise InputError(f"settings of {name} are {str(settings)[:60]}; they must be names with values")
    for key, value in settings.items():
        if key not in SETTINGS:
            raise InputError(f"{name} has the setting {key[:40]!r}; choose from {', '.join(SETTINGS)}")
        wrong = not isinstance(value, SETTINGS[key]) or (isinstance(value, bool) and bool not in SETTINGS[key])
        numbers = value if isinstance(value, list | tuple) else [value]
        if wrong or any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise InputError(f"{key} of {name} is {str(value)[:40]!r}, which is not usable")
    return settings


def check_seed(seed: Any, name: str) -> int:
    """`seed` if it is one that torch takes.

    Raises:
        InputError: it is not.
    """
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise InputError(f"{name} has the seed {str(seed)[:30]}; it must be a whole number from 0 to 2^63 − 1")
    return seed


def _changes(photo: Image.Image, edited: Image.Image) -> Image.Image:
    """What is different in `edited`, transparent elsewhere: less to keep, and `_changed` is its exact inverse."""
    before, after = np.array(photo.convert("RGB")), np.array(edited)
    opaque = (before != after).any(-1, keepdims=True)
    return Image.fromarray(np.concatenate([after * opaque, opaque.astype(np.uint8) * 255], -1))


def _changed(photo: Image.Image, changes: Image.Image) -> Image.Image:
    if changes.size != photo.size:
        raise InputError(f"coarse_changes are {changes.size} pixels, their photo is {photo.size}; save the edit again")
    return Image.alpha_composite(photo.convert("RGBA"), changes.convert("RGBA")).convert("RGB")


def _to_text(image: Image.Image | None) -> str | None:
    return None if image is None else PREFIX + b64encode(png_bytes(image)).decode()


def _from_text(text: Any, name: str, max_pixels: int) -> Image.Image | None:
    """An image as it was saved, with its transparency."""
    if text is None:
        return None
    if not isinstance(text, str) or not text.startswith(PREFIX):
        raise InputError(f"{name} is not a PNG in the file; save the edit again")
    try:
        data = b64decode(text[len(PREFIX) :], validate=True)
    except ValueError as error:
        raise InputError(f"{name} is damaged; save the edit again") from error
    return decode_image(data, name, max_pixels, keep_transparency=True)
