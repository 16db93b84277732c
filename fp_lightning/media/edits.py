"""Saved edits: one file with the photo, the signals and the settings, which reproduces the same pixels."""

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
from fp_lightning.media.images import drags, png_bytes
from fp_lightning.media.reading import decode_image, normalised

FORMAT = "fp_lightning edit 1"
SUFFIX = ".edit.json"
PREFIX = "data:image/png;base64,"
MAX_PIXELS = 100_000_000
SETTINGS: dict[str, tuple[type, ...]] = {  # keyword arguments of the pipeline, and their types in a file
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
    """All inputs of an edit. Images of any kind are accepted and stored as `normalised` reads them.

    Args:
        image: the photo.
        sketch: see `FramePainterPipeline.__call__`, as for `coarse`, `points` and `region`.
        coarse: coarse edit.
        points: drags, rows of (x_src, y_src, x_tgt, y_tgt) in pixels of `image`.
        region: mask of the pixels that may change.
        settings: keyword arguments of the pipeline, with names from `SETTINGS`.
        seed: seed of the noise.
        model: readable name of the model that made the edit.
        weights: hash of that model's control encoder.
        drawing: state of the web page's canvas; only the page reads it.
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

    def __post_init__(self) -> None:
        for name in ("image", *SIGNAL_IMAGES):
            if isinstance(image := getattr(self, name), Image.Image):
                kept = normalised(image, f"the {name} of the edit", keep_transparency=name != "image")
                object.__setattr__(self, name, kept)

    def arguments(self) -> dict[str, Any]:
        """Return all keyword arguments of `FramePainterPipeline.__call__`, with a new generator."""
        signals = {"sketch": self.sketch, "coarse": self.coarse, "points": self.points, "region": self.region}
        return {
            "image": self.image,
            **{name: value for name, value in signals.items() if value is not None},
            **self.settings,
            "generator": torch.Generator().manual_seed(self.seed),
        }

    def to_bytes(self) -> bytes:
        """Encode the edit as self-contained JSON, with its images as PNG data URLs."""
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
        """Write the edit to `path` atomically. `predict` reads files called NAME.edit.json."""
        return write_atomic(Path(path), self.to_bytes())


def read_edit(path: str | Path, max_pixels: int = MAX_PIXELS) -> Edit:
    """Read an edit from a file.

    Raises:
        InputError: the file is missing, or `parse_edit` rejects it.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); choose a saved edit (NAME{SUFFIX})") from error
    return parse_edit(data, str(path), max_pixels)


def parse_edit(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Edit:
    """Parse an edit from the content of an untrusted file.

    Args:
        data: content of the file.
        name: name of the file in error messages.
        max_pixels: limit on width × height of each image.

    Raises:
        InputError: the file is not a saved edit, or one of its values is invalid.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not readable JSON; choose a saved edit (NAME{SUFFIX})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise InputError(f"{name} is not a saved edit: its format is {str(found)[:60]!r}, but must be {FORMAT!r}")

    def image(part: str) -> Image.Image | None:
        return _from_text(content.get(part), f"{part} of {name}", max_pixels, keep_transparency=part != "image")

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
        photo,
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
    """Check that names and types of `settings` match `SETTINGS` and that all numbers are finite; return `settings`.

    Raises:
        InputError: a setting is unknown or has an invalid value.
    """
    if not isinstance(settings, dict):
        raise InputError(f"settings of {name} are {str(settings)[:60]}; they must be an object of names and values")
    for key, value in settings.items():
        if key not in SETTINGS:
            raise InputError(f"{name} has the setting {key[:40]!r}; choose from {', '.join(SETTINGS)}")
        wrong = not isinstance(value, SETTINGS[key]) or (isinstance(value, bool) and bool not in SETTINGS[key])
        numbers = value if isinstance(value, list | tuple) else [value]
        if wrong or any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise InputError(f"{key} of {name} is {str(value)[:40]!r}, which is not valid; save the edit again")
    return settings


def check_seed(seed: Any, name: str) -> int:
    """Check that `seed` is a valid torch seed and return it.

    Raises:
        InputError: the seed is not an integer from 0 to 2^63 − 1.
    """
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise InputError(f"{name} has the seed {str(seed)[:30]}; it must be a whole number from 0 to 2^63 − 1")
    return seed


def _changes(photo: Image.Image, edited: Image.Image) -> Image.Image:
    """Return the pixels of `edited` that differ from `photo`; the others are transparent, which compresses better.

    `_changed` is the exact inverse.
    """
    before, after = np.array(photo), np.array(edited)
    opaque = (before != after).any(-1, keepdims=True)
    return Image.fromarray(np.concatenate([after * opaque, opaque.astype(np.uint8) * 255], -1))


def _changed(photo: Image.Image, changes: Image.Image) -> Image.Image:
    """Paste `changes` over `photo`."""
    if changes.size != photo.size:
        raise InputError(
            f"coarse_changes are {changes.size} pixels, but their photo is {photo.size}; save the edit again"
        )
    return Image.alpha_composite(photo.convert("RGBA"), changes.convert("RGBA")).convert("RGB")


def _to_text(image: Image.Image | None) -> str | None:
    """Encode an image as a PNG data URL."""
    return None if image is None else PREFIX + b64encode(png_bytes(image)).decode()


def _from_text(text: Any, name: str, max_pixels: int, keep_transparency: bool) -> Image.Image | None:
    """Decode a PNG data URL, see `decode_image`."""
    if text is None:
        return None
    if not isinstance(text, str) or not text.startswith(PREFIX):
        raise InputError(f"{name} is not a PNG in the file; save the edit again")
    try:
        data = b64decode(text[len(PREFIX) :], validate=True)
    except ValueError as error:
        raise InputError(f"{name} is damaged; save the edit again") from error
    return decode_image(data, name, max_pixels, keep_transparency)
