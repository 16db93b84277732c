"""Check the arguments of a pipeline call and convert them to lists with one entry per image."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from fp_lightning.errors import InputError
from fp_lightning.media.reading import normalised

Layers = Image.Image | list[Image.Image]


def list_images(image: Any) -> list[Image.Image]:
    """Return one image or a list of images as a list of `normalised` ones.

    Raises:
        InputError: the list is empty, or an entry is not a PIL image or cannot be read.
    """
    items = image if isinstance(image, list) else [image]
    names = [f"image {index}" for index in range(len(items))] if isinstance(image, list) else ["the image"]
    images = [normalised(_checked(item), name) for item, name in zip(items, names, strict=True)]
    if not images:
        raise InputError("the list of images is empty; pass at least one")
    return images


def list_signals(image: Any, signals: dict[str, Any]) -> dict[str, list[Any]]:
    """Return each signal that is not None as a list with one entry per image.

    Args:
        image: one image or a list of images.
        signals: one value or a list of values by signal name.

    Raises:
        InputError: a list has a wrong length, an entry has a wrong type, or an image has no signal.
    """
    lists = {name: per_image(name, value, image) for name, value in signals.items() if value is not None}
    for index in range(len(image) if isinstance(image, list) else 1):
        if all(values[index] is None for values in lists.values()):
            raise InputError(f"image {index} has no signal; pass a sketch, a coarse edit or points for it")
    return lists


def list_generators(generator: torch.Generator | list[torch.Generator] | None, count: int) -> list[torch.Generator]:
    """Return one generator per image.

    Args:
        generator: a list is returned unchanged. A single generator is used for one image; for several images it draws
            one seed per image. None draws a new seed.
        count: number of images.

    Raises:
        InputError: the list does not have `count` entries.
    """
    if isinstance(generator, list):
        if len(generator) != count:
            raise InputError(
                f"{count} images need as many generators, got {len(generator)}; pass one per image or a single one"
            )
        return generator
    generator = generator or torch.Generator().manual_seed(torch.seed() >> 1)
    if count == 1:
        return [generator]
    seeds = torch.randint(2**62, (count,), generator=generator).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def per_image(name: str, value: Any, image: Image.Image | list[Image.Image]) -> list[Any]:
    """Return a signal as a list with one entry per image. The entry of a sketch is a list of layers.

    Args:
        name: "sketch", "coarse", "points" or "region".
        value: the signal of one image, or a list with one entry per image if `image` is a list.
        image: one image or a list of images.

    Raises:
        InputError: the list has a wrong length, or an entry has a wrong type.
    """
    values, count = (value, len(image)) if isinstance(image, list) else ([value], 1)
    if not isinstance(values, list) or len(values) != count:
        got = len(values) if isinstance(values, list) else "no list"
        each = "a list of rows" if name == "points" else "one"
        raise InputError(
            f"{count} images need a list of as many {name}, got {got}; pass {each} per image, and None for images "
            f"without {name}"
        )
    if name == "points":
        return values
    for entry in values:
        for item in entry if name == "sketch" and isinstance(entry, list) and entry else [entry]:
            if not isinstance(item, Image.Image | None):
                raise InputError(f"{name} must be a PIL image, got {type(item).__name__}; open it with PIL.Image.open")
    if name == "sketch":
        return [[entry] if isinstance(entry, Image.Image) else entry for entry in values]
    return values


def _checked(image: Any) -> Image.Image:
    """Return `image`, or raise InputError if it is not a PIL image."""
    if not isinstance(image, Image.Image):
        raise InputError(f"image must be a PIL image, got {type(image).__name__}; open it with PIL.Image.open")
    return image
