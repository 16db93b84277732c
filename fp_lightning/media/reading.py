"""The one reader of images: a file, its bytes or a PIL image → upright 8-bit sRGB.

Photos, signals, predictions and benchmarks all pass through here, so they look the same everywhere.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError, features

from fp_lightning.errors import InputError
from fp_lightning.media.colour import to_srgb

logger = logging.getLogger(__name__)
MAX_PIXELS = 178_000_000  # width × height of a file; Pillow refuses more
ENDINGS = {  # of file names, by the format's name in Pillow
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
}
REMEDIES = {"AVIF": "pip install --upgrade pillow", "HEIF": "pip install 'fp-lightning[heif]'"}
BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"mif1": "HEIF", b"msf1": "HEIF", b"heic": "HEIF", b"heix": "HEIF"}
TURNS = {  # EXIF orientation → what turns the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Name = str | Path  # of an image in messages; warnings about a Path are logged once


@cache
def formats() -> tuple[str, ...]:
    """Return the keys of `ENDINGS` that this installation reads: AVIF and HEIF need libraries."""
    found = set(ENDINGS) - {"AVIF", "HEIF"}
    if "avif" in features.get_supported_modules():
        found.add("AVIF")
    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()
        found.add("HEIF")
    return tuple(name for name in ENDINGS if name in found)


def image_endings() -> tuple[str, ...]:
    """Return the endings, in lower case, of the files that `read_image` reads here."""
    return tuple(ending for name in formats() for ending in ENDINGS[name])


def named_files(stems: Iterable[Path], endings: Iterable[str]) -> list[Path]:
    """Return the files STEM + ending; an ending may be in upper case. What two names lead to is listed once.

    Args:
        stems: paths without ending.
        endings: such as ".png" or ".sketch.png", of which only ".png" may be in upper case.
    """
    both = [form for ending in endings for form in (ending, _upper_ending(ending))]
    found: list[Path] = []
    for path in (stem.with_name(stem.name + form) for stem in stems for form in both):
        if path.is_file() and not any(os.path.samefile(path, other) for other in found):
            found.append(path)
    return found


def _upper_ending(suffix: str) -> str:
    """.sketch.png → .sketch.PNG"""
    stem, dot, ending = suffix.rpartition(".")
    return stem + dot + ending.upper()


def remedy(ending: str) -> str | None:
    """Return what makes files of an ending readable; None if they are readable, or no images."""
    unread = [name for name in REMEDIES if name not in formats() and ending.lower() in ENDINGS[name]]
    return REMEDIES[unread[0]] if unread else None


def read_image(path: Path, keep_transparency: bool = False) -> Image.Image:
    """Read an image file, see `normalised`. Its format is detected from its content.

    Raises:
        InputError: the file is missing, empty, too large, damaged or in another format.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check that it is there and may be read") from error
    return decode_image(data, path, MAX_PIXELS, keep_transparency)


def decode_image(data: bytes, name: Name, max_pixels: int, keep_transparency: bool = False) -> Image.Image:
    """Decode an untrusted image file, see `normalised`.

    The format is detected from the content, not from the file name. The size is checked before any pixel is decoded.

    Args:
        data: content of a file of one of `formats`.
        name: name of the image in messages.
        max_pixels: limit on width × height.
        keep_transparency: see `normalised`.

    Raises:
        InputError: the file is empty, too large, damaged or in another format.
    """
    if not data:
        raise InputError(f"{name} is empty (0 bytes); choose the file again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on sizes, which are checked below, and on odd metadata
            image = Image.open(io.BytesIO(data), formats=formats())
            if image.width * image.height > max_pixels:
                raise InputError(
                    f"{name} has {image.width} × {image.height} pixels, more than {max_pixels / 1e6:g} million; "
                    "make it smaller"
                )
            image.load()
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} has more than {max_pixels / 1e6:g} million pixels; make it smaller") from error
    except Exception as error:  # decoders raise many types on damaged files
        raise InputError(_unreadable(name, error, data)) from error
    return normalised(image, name, keep_transparency)


def normalised(image: Image.Image, name: Name = "the image", keep_transparency: bool = False) -> Image.Image:
    """Convert any PIL image to upright 8-bit sRGB, as everything in this project sees it.

    - It is rotated as its EXIF orientation says. Damaged EXIF is logged and does not matter otherwise.
    - Colours, deep greys and profiles become sRGB, see `fp_lightning.media.colour.to_srgb`.
    - Transparent parts become white, whatever colour is hidden there.
    - An animation yields its current frame, which is the first in a file that was just opened.

    Args:
        image: image of any mode; it is not changed.
        name: name of the image in messages.
        keep_transparency: return RGBA if the image has transparency, for signals whose alpha has a meaning.

    Returns:
        RGB or RGBA, without metadata. Applied to its own result, this function changes nothing.

    Raises:
        InputError: the image does not decode, or the range of its values cannot be known.
    """
    try:
        image.load()
    except Exception as error:  # decoders raise many types on damaged files
        raise InputError(_unreadable(name, error)) from error
    turn = TURNS.get(_orientation(image, name))
    if turn is None and (image.mode == "RGB" or (keep_transparency and image.mode == "RGBA")) and not image.info:
        return image
    colours = to_srgb(image, name, lambda text: warn(name, text))
    if colours.mode == "RGBA" and not keep_transparency:
        colours = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
    if turn is not None:
        colours = colours.transpose(turn)
    colours.info = {}
    return colours


def warn(name: Name, text: str) -> None:
    """Log a warning about an image. One about a file is logged once, as a run reads its files several times."""
    (_warn_once if isinstance(name, Path) else logger.warning)(f"{name} {text}")


@lru_cache(maxsize=4096)
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


def _orientation(image: Image.Image, name: Name) -> int:
    """Read the EXIF orientation, 1 to 8; 1 if there is none or it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # Pillow raises many types on damaged EXIF
        warn(name, f"has damaged EXIF ({type(error).__name__}): it is read without rotation")
        return 1
    if value not in range(9):  # 0 is written by cameras that do not know
        warn(name, f"has the EXIF orientation {str(value)[:20]}, which is none: it is read without rotation")
        return 1
    return int(value)


def _unreadable(name: Name, error: Exception, data: bytes = b"") -> str:
    """Explain in one line why an image cannot be read."""
    kind = BRANDS.get(data[8:12]) if data[4:8] == b"ftyp" else None
    if isinstance(error, UnidentifiedImageError):
        if kind is not None and kind not in formats():
            return f"{name} is a photo in {kind} format, which is not installed; {REMEDIES[kind]}, or save it as JPEG"
        return f"{name} is not an image that can be read; save it as PNG or JPEG"
    reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
    return f"{name} is not an image that can be read ({reason}); save it again as PNG or JPEG"
