"""Read the input folder of `predict`: images with their signals beside them, and saved edits."""

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
    """An image to edit: NAME.png, .jpg, .jpeg or .webp, or a saved edit NAME.edit.json with image and signals."""

    path: Path
    size: tuple[int, int]  # (height, width) of the upright image in pixels

    @property
    def name(self) -> str:
        """The file name without its extension."""
        return self.path.name.removesuffix(SUFFIX) if self.is_edit else self.path.stem

    @property
    def is_edit(self) -> bool:
        """Whether the file is a saved edit."""
        return self.path.name.endswith(SUFFIX)

    def edit(self) -> Edit | None:
        """Read the saved edit; None if the file is an image.

        Raises:
            InputError: the edit cannot be read, see `read_edit`.
        """
        return read_edit(self.path) if self.is_edit else None

    def resized(self, size: tuple[int, int]) -> Tensor:
        """Read the image, not a saved edit, as uint8 [3, h, w] at `size` (height, width), antialiased."""
        return squeeze(read_image(self.path), size)

    def beside(self, suffixes: Sequence[str]) -> Path | None:
        """Return the first existing file NAME + suffix beside the image, or None."""
        paths = (self.path.with_name(self.name + suffix) for suffix in suffixes)
        return next((path for path in paths if path.is_file()), None)


def list_inputs(folder: str | None) -> list[InputImage]:
    """List the images and saved edits of a folder, sorted by file name.

    Raises:
        InputError: the folder is not set, is missing or has no image, an image is unreadable, or two share a name.
    """
    if folder is None:
        raise InputError(
            "data.inputs is not set; set it to a folder of images with signals, such as photo.jpg, photo.sketch.png"
        )
    root = Path(folder)
    if not root.is_dir():
        raise InputError(
            f"data.inputs is {folder}, which is not a folder; set it to a folder of images with their signals"
        )
    paths = sorted(
        p
        for p in root.iterdir()
        if p.name.endswith(SUFFIX) or (p.suffix.lower() in IMAGES and Path(p.stem).suffix[1:] not in SIGNALS)
    )
    if not paths:
        raise InputError(f"{folder} has no image; add NAME.png (or jpg, webp) with its signal, such as NAME.sketch.png")
    images: dict[str, InputImage] = {}
    for path in paths:
        image = _probe(path)
        if image.name in images:
            raise InputError(f"{images[image.name].path} and {path} would write the same result; rename one")
        images[image.name] = image
    return list(images.values())


def _probe(path: Path) -> InputImage:
    """Read the size of an image or saved edit."""
    image = read_edit(path).image if path.name.endswith(SUFFIX) else read_image(path)
    return InputImage(path, (image.height, image.width))


def read_points(path: Path) -> Any:
    """Read the value of "points" in a JSON file. `drags` checks and scales it.

    Raises:
        InputError: the file is not JSON or has no "points".
    """
    form = f'it must be {{"points": [{ROW}, …]}} in pixels of the upright image'
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); {form}") from error
    if not isinstance(content, dict) or "points" not in content:
        raise InputError(f'{path} has no "points"; {form}')
    return content["points"]
