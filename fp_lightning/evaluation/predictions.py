"""Find and read the images that a system predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.evaluation.examples import Examples
from fp_lightning.media.images import squeeze
from fp_lightning.media.reading import image_endings, named_files, read_image


def folder_labels(folders: Sequence[Path]) -> list[str]:
    """Return the names of the folders, preceded by parent folders where two names are equal.

    Raises:
        InputError: a path is not a folder, or is given twice.
    """
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder of predictions; name an existing folder")
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        duplicate = next(f for f, p in zip(folders, parts, strict=True) if parts.count(p) > 1)
        raise InputError(f"{duplicate} is given twice; name every folder once")
    for depth in range(1, max(map(len, parts)) + 1):
        labels = ["-".join(part.strip("/") for part in p[-depth:] if part.strip("/")) for p in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [str(number) for number in range(1, len(folders) + 1)]


def find_predictions(folder: Path, examples: Examples) -> dict[str, Path]:
    """Return the predicted image of each example that has one, by example name.

    Raises:
        InputError: an example has two images, or no example has one.
    """
    found: dict[str, Path] = {}
    for index, name in enumerate(examples.names):
        existing = named_files([folder / stem for stem in examples.files(index)], image_endings())
        if len(existing) > 1:
            raise InputError(f"{existing[0]} and {existing[1]} are both predictions of {name}; remove one")
        if existing:
            found[name] = existing[0]
    if not found:
        raise InputError(
            f"{folder} holds no prediction of any of {len(examples.names)} examples; name images after their "
            f"examples, such as {examples.names[0]}.png"
        )
    return found


def check_sizes(folder: Path, files: Mapping[str, Path], sizes: Mapping[str, tuple[int, int]]) -> None:
    """Check that images have the sizes (height, width) of their examples.

    Raises:
        InputError: an image does not decode, or has another size.
    """
    wrong = []
    for name, (height, width) in sizes.items():
        image = read_image(files[name])
        if image.size != (width, height):
            wrong.append((name, image.size, (width, height)))
    if wrong:
        name, (w, h), (width, height) = wrong[0]
        raise InputError(
            f"{len(wrong)} of {len(sizes)} predictions in {folder} differ in size from their examples; the first is "
            f"{name} ({w}x{h} instead of {width}x{height}, width x height); resize them with --resize"
        )


def prediction(path: Path, size: tuple[int, int]) -> Tensor:
    """Read an image, see `read_image`, as uint8 [3, h, w]; another size is resized to (height, width)."""
    return squeeze(read_image(path), size)
