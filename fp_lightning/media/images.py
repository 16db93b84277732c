"""Resize a user's image and signals to the network's size, and the result back."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.media.reading import Name, normalised, warn
from fp_lightning.types import to_uint8

ROW = "[x_src, y_src, x_tgt, y_tgt]"
FAINT, CLEAR = 32, 96  # of 255: a stroke differs from its ground by more than half of the strongest, within these


def png_bytes(image: Image.Image) -> bytes:
    """Encode an image as PNG.

    The fast compression level takes a third of the time and makes files 13 % larger than the best one.
    """
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def region_mask(drawn: Image.Image, image_size: tuple[int, int], name: Name = "the region") -> Tensor:
    """Convert a drawn region to a mask of the pixels that an edit may change: bool [1, H, W].

    If the drawing has transparent parts, its opaque pixels are the region; otherwise its bright pixels are, of any
    colour. A warning is logged if the region is empty or stretched.

    Args:
        drawn: the drawing, at any size.
        image_size: (height, width) of the photo and of the mask.
        name: name of the region in messages.
    """
    drawn = normalised(drawn, name, keep_transparency=True)
    _warn_of_stretching(drawn, image_size, name)
    alpha = _alpha(drawn)
    bright = np.array(drawn.convert("RGB")).max(-1) if alpha is None else alpha
    resized = Image.fromarray(bright).resize((image_size[1], image_size[0]), Image.Resampling.NEAREST)
    mask = torch.from_numpy(np.array(resized) >= 128)[None]
    if not mask.any():
        warn(name, "is empty: it has no bright pixel, so nothing may change")
    return mask


def _alpha(drawn: Image.Image) -> NDArray[np.uint8] | None:
    """Return the alpha channel [h, w] of a drawing with transparent parts; None if it has none."""
    alpha = np.array(drawn.getchannel("A")) if drawn.mode == "RGBA" else None
    return None if alpha is None or alpha.min() >= 128 else alpha


def squeeze(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """Resize an image, see `normalised`, to uint8 [3, h, w] at `size` (height, width), antialiased.

    Its aspect ratio becomes that of `size`.
    """
    resized = normalised(image).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def unsqueeze(edited: Tensor, size: tuple[int, int]) -> Tensor:
    """Convert an edited image [3, h, w] in [-1, 1] to uint8 at `size` (height, width).

    The image is resized before its values are rounded.
    """
    if tuple(edited.shape[-2:]) != tuple(size):
        edited = F.interpolate(edited[None].float(), tuple(size), mode="bicubic", antialias=True)[0]
    return to_uint8(edited).cpu()


def strokes(
    drawn: Image.Image, image_size: tuple[int, int], size: tuple[int, int], name: Name = "the sketch"
) -> Tensor:
    """Convert a user's sketch to white strokes on black: float [3, h, w] in {0, 1}.

    If the sketch has transparent parts, its opaque pixels are strokes. Otherwise the ground is the most frequent
    colour, and a stroke is every pixel that differs clearly from it, in any colour: by more than half of the
    strongest difference, at least 32 and at most 96 of 255 levels of one channel.

    A pixel is set if any part of a stroke falls into it, so that thin strokes survive shrinking. A warning is logged
    if the sketch is empty or stretched, or if its ground is not black.

    Args:
        drawn: the sketch, at any size.
        image_size: (height, width) of its photo.
        size: (height, width) of the result.
        name: name of the sketch in messages.
    """
    drawn = normalised(drawn, name, keep_transparency=True)
    _warn_of_stretching(drawn, image_size, name)
    marked = _marks(drawn, name)
    if not marked.any():
        warn(name, "is empty: no stroke differs from its ground; draw the outline you want in another colour")
    return F.adaptive_max_pool2d(torch.from_numpy(marked).float()[None], size).expand(3, -1, -1).contiguous()


def _marks(drawn: Image.Image, name: Name) -> NDArray[np.bool_]:
    """Find the pixels [h, w] of a sketch that are strokes."""
    difference = _alpha(drawn)
    if difference is None:
        pixels = np.array(drawn.convert("RGB"))
        ground = _ground(pixels)
        difference = np.abs(pixels.astype(np.int16) - ground).max(-1)
        if ground.max() >= 128:
            warn(name, f"has a bright ground, {tuple(ground.tolist())} in RGB: what differs from it is read as strokes")
    return difference > np.clip(difference.max() / 2, FAINT, CLEAR)


def _ground(pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Return the most frequent colour [3] of pixels [h, w, 3]: the median of the fullest of 8 × 8 × 8 bins."""
    colours = pixels.reshape(-1, 3)
    bins = (colours >> 5).astype(np.int32) @ np.array([64, 8, 1], np.int32)
    return np.median(colours[bins == np.bincount(bins).argmax()], axis=0).astype(np.int16)


def coarse_image(
    drawn: Image.Image, photo: Image.Image, size: tuple[int, int], name: Name = "the coarse edit"
) -> Tensor:
    """Convert a user's coarse edit of `photo` to float [3, h, w] in [0, 1] at `size` (height, width).

    The photo shows through transparent parts, so pasted pieces on a transparent canvas are a valid edit. A
    warning is logged if the edit is stretched or equal to the photo.

    Args:
        drawn: the coarse edit, at any size.
        photo: the unedited image, see `normalised`.
        size: (height, width) of the result.
        name: name of the coarse edit in messages.
    """
    drawn, photo = normalised(drawn, name, keep_transparency=True), normalised(photo)
    _warn_of_stretching(drawn, (photo.height, photo.width), name)
    shape, method = (size[1], size[0]), Image.Resampling.BICUBIC
    original = photo.convert("RGBA").resize(shape, method)
    edited = Image.alpha_composite(original, drawn.convert("RGBA").resize(shape, method))
    if edited == original:
        warn(name, "is equal to its photo: it changes nothing")
    return squeeze(edited.convert("RGB"), size).float() / 255


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


def drags(points: Any, image_size: tuple[int, int], size: tuple[int, int], name: str = "points") -> Tensor:
    """Scale a user's drags from pixels of their image to pixels of the network's input: float32 [p, 4].

    Args:
        points: rows of four numbers (x_src, y_src, x_tgt, y_tgt), or rows of two numbers that alternate
            between handle and target, as in drag benchmarks. 0 ≤ x ≤ width and 0 ≤ y ≤ height; a point on
            the right or lower border belongs to the last pixel.
        image_size: (height, width) in pixels of the image that the drags were drawn on.
        size: (height, width) in pixels of the network's input.
        name: name of the points in error messages.

    Raises:
        InputError: there are no rows, a row has another form, a handle has no target, or a point is outside the
            image.
    """
    try:
        rows = list(points)
    except TypeError as error:
        raise InputError(f"{name}: {points!r} is not a list of points; write {ROW} for each") from error
    if not rows:
        raise InputError(f"{name}: there are no points; write {ROW} for each")
    numbers = [_numbers(row, number, name) for number, row in enumerate(rows, 1)]
    if len({len(row) for row in numbers}) > 1:
        raise InputError(f"{name}: rows of two and of four numbers are mixed; write {ROW} for each point")
    if len(numbers[0]) == 2 and len(numbers) % 2:
        raise InputError(f"{name}: the last of {len(numbers)} rows of two is a handle without a target; add its target")
    ends = np.array(numbers, np.float64).reshape(-1, 2)
    height, width = image_size
    outside = ((ends < 0) | (ends > (width, height))).any(1)
    if outside.any():
        first = int(outside.argmax())
        raise InputError(
            f"{name}: point {first // 2 + 1} {'ends' if first % 2 else 'starts'} at ({ends[first, 0]:g}, "
            f"{ends[first, 1]:g}), outside of its image, which is {width}x{height} (width x height); move it inside"
        )
    border = torch.tensor([size[1], size[0]] * 2).float()
    scaled = torch.from_numpy(ends.reshape(-1, 4)).float() * border / torch.tensor([width, height] * 2)
    return torch.minimum(scaled, torch.nextafter(border, torch.zeros(4)))


def _numbers(row: Any, number: int, name: str) -> list[float]:
    """Read one row of two or four finite numbers."""
    try:
        values = np.asarray(row)
    except ValueError:
        values = np.empty(0)
    if values.shape not in ((2,), (4,)) or values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        found = " ".join(str(row).split())[:80]
        raise InputError(f"{name}: row {number} is {found}; write {ROW}, finite numbers in pixels")
    return values.tolist()


def _warn_of_stretching(drawn: Image.Image, image_size: tuple[int, int], name: Name) -> None:
    """Log a warning if the aspect ratio of `drawn` differs from that of its image.

    The limit is a difference in height of one pixel, with both at the width of the larger one.
    """
    height, width = image_size
    if abs(drawn.height * width / drawn.width - height) >= max(1, width / drawn.width):
        own = f"{drawn.width}x{drawn.height}"
        warn(name, f"is {own}, its image is {width}x{height} (width x height): it is stretched to fit")
