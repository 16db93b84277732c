"""Read a user's images and signals, resize them to the network's size, and resize the result back."""

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
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # accepted by `decode_image`
ROW = "[x_src, y_src, x_tgt, y_tgt]"


def read_image(path: Path) -> Image.Image:
    """Read an image and rotate it as its EXIF orientation says.

    Raises:
        InputError: the file cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is not a readable image ({error}); save it again as PNG") from error


def decode_image(data: bytes, name: str, max_pixels: int, keep_transparency: bool = False) -> Image.Image:
    """Decode an untrusted image file to an upright RGB image; transparent parts become white.

    The format is detected from the content, not from the file name. An animation yields its first frame.
    The size is checked before any pixel is decoded.

    Args:
        data: content of a PNG, JPEG, WebP, GIF or BMP file.
        name: name of the image in error messages.
        max_pixels: limit on width × height.
        keep_transparency: return RGBA if the image has transparency.

    Raises:
        InputError: the file is empty, too large, damaged or in another format.
    """
    if not data:
        raise InputError(f"{name} is empty (0 bytes); choose the file again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `max_pixels` is checked below
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise InputError(
                    f"{name} has {image.width} × {image.height} pixels, more than {max_pixels / 1e6:g} million; "
                    "make it smaller"
                )
            image.load()
            rotated = ImageOps.exif_transpose(image)
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} has more than {max_pixels / 1e6:g} million pixels; make it smaller") from error
    except InputError:
        raise
    except Exception as error:  # decoders raise many types on damaged files
        raise InputError(f"{name} is not an image that can be read; save it as PNG or JPEG") from error
    if rotated.has_transparency_data:
        transparent = rotated.convert("RGBA")
        if keep_transparency:
            return transparent
        return Image.alpha_composite(Image.new("RGBA", transparent.size, "white"), transparent).convert("RGB")
    return upright(rotated)


def png_bytes(image: Image.Image) -> bytes:
    """Encode an image as PNG.

    The fast compression level takes a third of the time and makes files 13 % larger than the best one.
    """
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def upright(image: Image.Image) -> Image.Image:
    """Convert an image to RGB and rotate it as its EXIF orientation says.

    16-bit grey is scaled to 8 bits. Transparency is dropped.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.array(image).astype(np.float32) / 257).round().astype(np.uint8))
    return image.convert("RGB")


def region_mask(drawn: Image.Image, image_size: tuple[int, int], name: str = "the region") -> Tensor:
    """Convert a drawn region to a mask of the pixels that an edit may change: bool [1, H, W].

    If the drawing has transparency, its opaque pixels are the region; otherwise its bright pixels are.

    Args:
        drawn: the drawing, at any size.
        image_size: (height, width) of the photo and of the mask.
        name: name of the region in log messages.
    """
    _warn_of_stretching(drawn, image_size, name)
    grey = _opaque(drawn) if drawn.has_transparency_data else drawn.convert("L")
    resized = grey.resize((image_size[1], image_size[0]), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(resized) >= 128)[None]


def _opaque(drawn: Image.Image) -> Image.Image:
    """Return the alpha channel, fully opaque if the image has none."""
    return drawn.convert("RGBA").getchannel("A")


def squeeze(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """Resize an image to RGB uint8 [3, h, w] at `size` (height, width), antialiased, ignoring its aspect ratio."""
    resized = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def unsqueeze(edited: Tensor, size: tuple[int, int]) -> Tensor:
    """Convert an edited image [3, h, w] in [-1, 1] to uint8 at `size` (height, width).

    The image is resized before its values are rounded.
    """
    if tuple(edited.shape[-2:]) != tuple(size):
        edited = F.interpolate(edited[None].float(), tuple(size), mode="bicubic", antialias=True)[0]
    return to_uint8(edited).cpu()


def strokes(drawn: Image.Image, image_size: tuple[int, int], size: tuple[int, int], name: str = "the sketch") -> Tensor:
    """Convert a user's sketch to white strokes on black: float [3, h, w] in {0, 1}.

    If the sketch has transparency, its opaque pixels are strokes. Otherwise its bright pixels are, or its dark
    ones if most of the sketch is bright (ink on paper). A pixel is set if any part of a stroke falls into it, so
    that thin strokes survive shrinking. A warning is logged if the sketch is inverted or stretched.

    Args:
        drawn: the sketch, at any size.
        image_size: (height, width) of its photo.
        size: (height, width) of the result.
        name: name of the sketch in log messages.
    """
    _warn_of_stretching(drawn, image_size, name)
    alpha = np.array(_opaque(drawn))
    grey = alpha if alpha.min() < 128 else np.array(drawn.convert("L"))
    marked = grey >= 128
    if grey is not alpha and marked.mean() > 0.5:
        logger.warning("%s is mostly bright: read as dark strokes on light paper and inverted", name)
        marked = ~marked
    return F.adaptive_max_pool2d(torch.from_numpy(marked).float()[None], size).expand(3, -1, -1).contiguous()


def coarse_image(
    drawn: Image.Image, photo: Image.Image, size: tuple[int, int], name: str = "the coarse edit"
) -> Tensor:
    """Convert a user's coarse edit of `photo` to float [3, h, w] in [0, 1] at `size` (height, width).

    The photo shows through transparent parts, so pasted pieces on a transparent canvas are a valid edit. A
    warning is logged if the edit is stretched or equal to the photo.

    Args:
        drawn: the coarse edit, at any size.
        photo: the unedited image.
        size: (height, width) of the result.
        name: name of the coarse edit in log messages.
    """
    _warn_of_stretching(drawn, (photo.height, photo.width), name)
    shape, method = (size[1], size[0]), Image.Resampling.BICUBIC
    original = photo.convert("RGB").convert("RGBA").resize(shape, method)
    edited = Image.alpha_composite(original, drawn.convert("RGBA").resize(shape, method))
    if edited == original:
        logger.warning("%s is equal to its photo: it changes nothing", name)
    return squeeze(edited, size).float() / 255


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


def _warn_of_stretching(drawn: Image.Image, image_size: tuple[int, int], name: str) -> None:
    """Log a warning if the aspect ratio of `drawn` differs from that of its image.

    The limit is a difference in height of one pixel, with both at the width of the larger one.
    """
    height, width = image_size
    if abs(drawn.height * width / drawn.width - height) >= max(1, width / drawn.width):
        logger.warning(
            "%s is %dx%d, its image is %dx%d (width x height): it is stretched to fit",
            name, drawn.width, drawn.height, width, height,
        )  # fmt: skip
