"""Read a folder of inputs: images with their signals beside them, and saved edits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.media.edits import SUFFIX, Edit, read_edit
from fp_lightning.media.images import squeeze
from fp_lightning.media.reading import image_endings, named_files, read_image, remedy
from fp_lightning.media.shapes import CLEARLY, squeeze_factor
from fp_lightning.signals.combine import SIGNALS

logger = logging.getLogger(__name__)
SIGNAL_FILES: dict[str, tuple[str, ...]] = {  # endings of the files beside NAME.jpg
    "sketch": tuple(f".sketch{ending}" for ending in image_endings()),
    "coarse": tuple(f".coarse{ending}" for ending in image_endings()),
    "points": (".points.json",),
}
REGIONS = tuple(f".{name}{ending}" for name in ("region", "mask") for ending in image_endings())
SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx")  # in lower case; others are hidden by a leading dot


@dataclass(frozen=True)
class InputImage:
    """An image to edit: NAME with one of `image_endings`, or a saved edit NAME.edit.json with image and signals."""

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
        """Return the file NAME + suffix beside the image, or None. The ending may be in upper case.

        Raises:
            InputError: there are several.
        """
        paths = named_files([self.path.with_name(self.name)], suffixes)
        if len(paths) > 1:
            raise InputError(f"{paths[0]} and {paths[1]} are both signals of {self.path}; remove one")
        return paths[0] if paths else None


def list_inputs(folder: str | Path | None, option: str = "data.inputs", regions: bool = False) -> list[InputImage]:
    """List the images and saved edits of a folder, sorted by file name.

    Hidden and system files are skipped. One warning names all other files that are left out.

    Args:
        folder: the folder.
        option: the option that chooses it, for messages.
        regions: whether the caller reads the regions beside the images; otherwise they are among the files left out.

    Raises:
        InputError: the folder is not set, is missing or has no image, an image is unreadable, or two share a name.
    """
    if folder is None:
        raise InputError(
            f"{option} is not set; set it to a folder of images with signals, such as photo.jpg, photo.sketch.png"
        )
    root = Path(folder)
    if not root.is_dir():
        raise InputError(
            f"{option} is {folder}, which is not a folder; set it to a folder of images with their signals"
        )
    paths = sorted(p for p in root.iterdir() if not p.name.startswith(".") and p.name.lower() not in SYSTEM_FILES)
    chosen = [path for path in paths if path.is_file() and _is_input(path)]
    left_out = _left_out(paths, chosen, regions)
    if not chosen:
        found = f" ({left_out})" if left_out else ""
        raise InputError(
            f"{folder} has no image{found}; add NAME.png (or jpg, webp) with its signal, such as NAME.sketch.png"
        )
    images: dict[str, InputImage] = {}
    for path in chosen:
        image = _probe(path)
        if image.name in images:
            raise InputError(f"{images[image.name].path} and {path} would write the same result; rename one")
        images[image.name] = image
    if left_out:
        logger.warning("%s: not edited: %s", folder, left_out)
    return list(images.values())


def _is_input(path: Path) -> bool:
    """Whether a file is named as an image or a saved edit, not as a signal."""
    return path.name.endswith(SUFFIX) or (path.suffix.lower() in image_endings() and _signal_of(path) is None)


def _signal_of(path: Path) -> str | None:
    """The NAME of NAME.signal.ending or NAME.region.png; None if a file is not named so."""
    stem = Path(path.stem)
    return stem.stem if stem.suffix[1:] in SIGNALS or _is_region(path) else None


def _is_region(path: Path) -> bool:
    return path.name.lower().endswith(REGIONS)


def _left_out(paths: Sequence[Path], chosen: Sequence[Path], regions: bool) -> str:
    """Name the files that are neither inputs nor signals of one, with reasons; empty if there are none."""
    names = {path.name.removesuffix(SUFFIX) if path.name.endswith(SUFFIX) else path.stem for path in chosen}
    inputs, reasons = set(chosen), dict[str, list[str]]()
    for path in paths:
        if path in inputs or (path.is_file() and _signal_of(path) in names and (regions or not _is_region(path))):
            continue
        if path.is_dir():
            reason = "a folder"
        elif _is_region(path) and not regions:
            reason = "regions are for `fp-lightning baseline`"
        elif needed := remedy(path.suffix):
            reason = f"needs {needed}"
        elif _signal_of(path) is not None:
            reason = "no photo of that name"
        else:
            reason = "not an image"
        reasons.setdefault(reason, []).append(path.name)
    return "; ".join(f"{', '.join(found)} ({reason})" for reason, found in reasons.items())


def _probe(path: Path) -> InputImage:
    """Read the size of an image or saved edit."""
    image = read_edit(path).image if path.name.endswith(SUFFIX) else read_image(path)
    return InputImage(path, (image.height, image.width))


def tell_squeezed(images: Sequence[InputImage], sizes: Sequence[tuple[int, int]]) -> None:
    """Log once how many photos clearly change their aspect when they are resized to `sizes` (height, width)."""
    changed = [
        (image, size)
        for image, size in zip(images, sizes, strict=True)
        if not image.is_edit and squeeze_factor(image.size, size) > CLEARLY
    ]
    if changed:
        image, (height, width) = changed[0]
        logger.warning(
            "%d of %d photos are squeezed to another aspect, such as %s of %dx%d to %dx%d (height x width); "
            "--data.size auto chooses a size for each photo",
            *(len(changed), len(images), image.path, *image.size, height, width),
        )
