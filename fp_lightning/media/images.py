"""A user's images and signals on their way to the network's size and back, for the pipeline and for predict."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.types import to_uint8

logger = logging.getLogger(__name__)
IMAGES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # that are decoded when sent
ROW = "[x_src, y_src, x_tgt, y_tgt]"


def read_image(path: Path) -> Image.Image:
    """A decoded image, turned upright as its EXIF says.

    Raises:
        InputError: it does not decode.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is not a readable image ({error}); save it again as PNG") from error


def decode_image(data: bytes, name: str, max_pixels: int, keep_transparency: bool = False) -> Image.Image:
    """An image that somebody sent, as they would see it: RGB, upright, over white where it is transparent.

    Told by its content, whatever its name; of an animation the first frame. The size is read before the pixels are.

    Args:
        data: a PNG, JPEG, WebP, GIF or BMP file.
        name: what messages call it.
        max_pixels: width × height at most.
        keep_transparency: RGBA where it is transparent.

    Raises:
        InputError: it is empty, too large, damaged, or of another kind.
    """
    if not data:
        raise InputError(f"{name} is empty (0 bytes); choose the file again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise InputError(
                    f"{name} has {image.width} × {image.height} pixels, more than {max_pixels / 1e6:g} million; "
                    "make it smaller"
                )
            image.load()
            drawn = ImageOps.exif_transpose(image)
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} has more than {max_pixels / 1e6:g} million pixels; make it smaller") from error
    except InputError:
        raise
    except Exception as error:  # decoders raise all sorts of things on damaged files
        raise InputError(f"{name} is not an image that can be read; save it as PNG or JPEG") from error
    if drawn.has_transparency_data:
        sheet = drawn.convert("RGBA")
        if keep_transparency:
            return sheet
        return Image.alpha_composite(Image.new("RGBA", sheet.size, "white"), sheet).convert("RGB")
    return upright(drawn)


def png_bytes(image: Image.Image) -> bytes:
    """The bytes of a PNG file, 13 % larger than the smallest and made three times as fast."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def upright(image: Image.Image) -> Image.Image:
    """RGB, turned as its EXIF says; 16-bit grey is scaled to 8 bits, transparency is left out."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.array(image).astype(np.float32) / 257).round().astype(np.uint8))
    return image.convert("RGB")


def region_mask(drawn: Image.Image, image_size: tuple[int, int], name: str = "the region") -> Tensor:
    """Where an edit may change its photo, bool [1, H, W] at `image_size` (height, width).

    That is what is opaque, where the drawing has transparency, and otherwise what is bright.
    """
    _warn_of_stretching(drawn, image_size, name)
    grey = _opaque(drawn) if drawn.has_transparency_data else drawn.convert("L")
    resized = grey.resize((image_size[1], image_size[0]), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(resized) >= 128)[None]


def _opaque(drawn: Image.Image) -> Image.Image:
    return drawn.convert("RGBA").getchannel("A")


def squeeze(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """Any image → RGB uint8 [3, h, w] at `size` (height, width), antialiased; its aspect is not kept."""
    resized = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def unsqueeze(edited: Tensor, size: tuple[int, int]) -> Tensor:
    """An edited image [3, h, w] in [-1, 1] → uint8 at `size` (height, width), resized before it is rounded."""
    if tuple(edited.shape[-2:]) != tuple(size):
        edited = F.interpolate(edited[None].float(), tuple(size), mode="bicubic", antialias=True)[0]
    return to_uint8(edited).cpu()


def strokes(drawn: Image.Image, image_size: tuple[int, int], size: tuple[int, int], name: str = "the sketch") -> Tensor:
    """A user's sketch as white strokes on black, float [3, h, w] in {0, 1} at `size` (height, width).

    Strokes are what is opaque, where the sketch has transparency; otherwise what is bright, or what
    is dark if most of the sketch is bright (ink on paper). A pixel is set if any part of a stroke
    falls into it, so that thin strokes survive shrinking. Logs a warning that calls it `name` when it
    is inverted, and when its aspect is not that of `image_size`, the (height, width) of its image.
    """
    _warn_of_stretching(drawn, image_size, name)
    alpha = np.array(_opaque(drawn))
    grey = alpha if alpha.min() < 128 else np.array(drawn.convert("L"))
    marked = grey >= 128
    if grey is not alpha and marked.mean() > 0.5:
        logger.warning("%s is mostly bright: taken as dark strokes on light paper and inverted", name)
        marked = ~marked
    return F.adaptive_max_pool2d(torch.from_numpy(marked).float()[None], size).expand(3, -1, -1).contiguous()


def coarse_image(
    drawn: Image.Image, photo: Image.Image, size: tuple[int, int], name: str = "the coarse edit"
) -> Tensor:
    """A user's coarse edit of `photo`, float [3, h, w] in [0, 1] at `size` (height, width).

    Where it is transparent the photo shows: pasted pieces on a transparent sheet are an edit, too. Logs a
    warning that calls it `name` when its aspect is not the photo's, and when it changes nothing.
    """
    _warn_of_stretching(drawn, (photo.height, photo.width), name)
    shape, how = (size[1], size[0]), Image.Resampling.BICUBIC
    ground = photo.convert("RGB").convert("RGBA").resize(shape, how)
    edited = Image.alpha_composite(ground, drawn.convert("RGBA").resize(shape, how))
    if edited == ground:
        logger.warning("%s is equal to its photo: there is nothing to change", name)
    return squeeze(edited, size).float() / 255


def drags(given: Any, image_size: tuple[int, int], size: tuple[int, int], name: str = "points") -> Tensor:
    """A user's drags, scaled from their image's pixels to the network's: float32 [p, 4].

    Args:
        given: rows of four numbers (x_src, y_src, x_tgt, y_tgt), or of two, the handle and the target in
            turn, as drag benchmarks write them. 0 ≤ x ≤ width and 0 ≤ y ≤ height; a point on the far
            border counts to the last pixel.
        image_size: (height, width) in pixels of the image in which they were drawn.
        size: (height, width) in pixels at which the network works.
        name: what messages call them.

    Raises:
        InputError: no rows, a row of another form, a handle without target, or a point outside of the image.
    """
    try:
        rows = list(given)
    except TypeError as error:
        raise InputError(f"{name}: {given!r} is no list of points; write {ROW} for each") from error
    if not rows:
        raise InputError(f"{name}: there are no points; write {ROW} for each")
    numbers = [_numbers(row, number, name) for number, row in enumerate(rows, 1)]
    if len({len(row) for row in numbers}) > 1:
        raise InputError(f"{name}: rows of two and of four numbers are mixed; write {ROW} for each point")
    if len(numbers[0]) == 2 and len(numbers) % 2:
        raise InputError(f"{name}: the last of {len(numbers)} rows of two is a handle without its target; add that")
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
    """Two or four finite numbers."""
    try:
        values = np.asarray(row)
    except ValueError:
        values = np.empty(0)
    if values.shape not in ((2,), (4,)) or values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        found = " ".join(str(row).split())[:80]
        raise InputError(f"{name}: row {number} is {found}; write {ROW}, finite numbers in pixels")
    return values.tolist()


def _warn_of_stretching(drawn: Image.Image, image_size: tuple[int, int], name: str) -> None:
    """Warns if `drawn`, as wide as its image of (height, width) pixels, would differ in height by a pixel or more."""
    height, width = image_size
    if abs(drawn.height * width / drawn.width - height) >= max(1, width / drawn.width):
        logger.warning(
            "%s is %dx%d, its image %dx%d (width x height): it is stretched to fit",
            name, drawn.width, drawn.height, width, height,
        )  # fmt: skip
