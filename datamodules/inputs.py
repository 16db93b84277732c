"""The folder a user edits from: NAME.(png|jpg|jpeg|webp) with NAME.SIGNAL.png and the like beside it; saved edits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.media.edits import SUFFIX, Edit, read_edit
from fp_lightning.media.images import IMAGES, ROW, read_image, squeeze
from fp_lightning.signals.combine import SIGNALS


@dataclass(frozen=True)
class InputImage:
    """An image to edit: its path and its upright (height, width) in pixels. NAME.edit.json holds image and signals."""

    path: Path
    size: tuple[int, int]

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(SUFFIX) if self.is_edit else self.path.stem

    @property
    def is_edit(self) -> bool:
        return self.path.name.endswith(SUFFIX)

    def edit(self) -> Edit | None:
        """The saved edit, if it is one.

        Raises:
            InputError: it is not usable.
        """
        return read_edit(self.path) if self.is_edit else None

    def resized(self, size: tuple[int, int]) -> Tensor:
        """uint8 [3, h, w] at `size` (height, width), antialiased; of an image that is no saved edit."""
        return squeeze(read_image(self.path), size)

    def beside(self, suffixes: Sequence[str]) -> Path | None:
        """The first file NAME + suffix beside the image that exists."""
        paths = (self.path.with_name(self.name + suffix) for suffix in suffixes)
        return next((path for path in paths if path.is_file()), None)


def list_inputs(folder: str | None) -> list[InputImage]:
    """The images of a folder by name.

    Raises:
        InputError: the folder is not given or missing, holds no image, an image is unreadable, or two share a name.
    """
    if folder is None:
        raise InputError(
            "data.inputs is not set; give it a folder of images with their signals, as in photo.jpg, photo.sketch.png"
        )
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"data.inputs is {folder}, which is not a folder")
    paths = sorted(
        p
        for p in root.iterdir()
        if p.name.endswith(SUFFIX) or (p.suffix.lower() in IMAGES and Path(p.stem).suffix[1:] not in SIGNALS)
    )
    if not paths:
        raise InputError(
            f"{folder} holds no image; put NAME.png (or jpg, webp) with its signal, as NAME.sketch.png, in it"
        )
    images: dict[str, InputImage] = {}
    for path in paths:
        image = _probe(path)
        if image.name in images:
            raise InputError(f"{images[image.name].path} and {path} would have the same result; rename one")
        images[image.name] = image
    return list(images.values())


def _probe(path: Path) -> InputImage:
    image = read_edit(path).image if path.name.endswith(SUFFIX) else read_image(path)
    return InputImage(path, (image.height, image.width))


def read_points(path: Path) -> Any:
    """What stands under "points" in a JSON file, see `drags`.

    Raises:
        InputError: it is no JSON, or has no "points".
    """
    form = f'it must be {{"points": [{ROW}, …]}} in pixels of the upright image'
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); {form}") from error
    if not isinstance(content, dict) or "points" not in content:
        raise InputError(f'{path} has no "points"; {form}')
    return content["points"]
