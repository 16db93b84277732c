"""Colours of any image → 8-bit sRGB: colour profiles, deep greys, palettes and transparency."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from fp_lightning.errors import InputError

SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}  # of a profile → Pillow's mode
DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def to_srgb(image: Image.Image, name: str | Path, warn: Callable[[str], None]) -> Image.Image:
    """Convert a decoded image of any mode to RGB, or to RGBA if it has transparency; 8 bits, sRGB.

    A colour profile (Display P3, Adobe RGB, CMYK, grey, …) is applied with perceptual intent. A profile that is sRGB
    to within one level changes nothing. A damaged profile is reported through `warn`, and the colours are taken as
    sRGB. Deep modes are scaled, never clipped: see `eight_bits`.

    Args:
        image: the image, decoded.
        name: name of the image in error messages.
        warn: receives a message about the image, which follows its name.

    Raises:
        InputError: the range of a deep image cannot be known.
    """
    profile = image.info.get("icc_profile")
    if image.mode in DEEP:
        image = eight_bits(image, name)
    hidden = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(hidden, tuple) and max(hidden) > 255:  # Pillow keeps 16 bits here alone
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in hidden)
    alpha = None
    if image.has_transparency_data or image.mode in ("La", "RGBa"):
        alpha = image.convert("LA" if image.mode == "La" else "RGBA").getchannel("A")
    colours = _opaque(image)
    if profile:
        try:
            colours = _converted(colours, profile)
        except Exception as error:  # a damaged profile may raise anything
            reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
            warn(f"has a colour profile that cannot be used ({reason}): its colours are taken as sRGB")
    if colours.mode == "LAB":
        colours = _transformed(colours, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    colours = colours.convert("RGB")
    if alpha is not None:
        colours.putalpha(alpha)
    return colours


def eight_bits(image: Image.Image, name: str | Path) -> Image.Image:
    """Scale a deep grey image to 8 bits, L, or LA if a grey is marked as transparent.

    - 16 bits (I;16 and its byte orders): 0 to 65535.
    - 32-bit integers (I): 0 to 65535, if the largest value is from 256 to 65535.
    - floats (F): 0 to 1; or whole numbers, 0 to 255 or 0 to 65535.

    Raises:
        InputError: the values are in none of these ranges. 32-bit integers up to 255 might be 8 or 16 bits.
    """
    values = np.asarray(image).astype(np.float32)
    scale = 65535 if image.mode.startswith("I;16") else _largest(values, image.mode, name)
    grey = Image.fromarray((values * (255 / scale)).round().astype(np.uint8))
    hidden = image.info.get("transparency")
    if isinstance(hidden, int):
        grey.putalpha(Image.fromarray(((values != hidden) * 255).astype(np.uint8)))
    return grey


def _largest(values: np.ndarray, mode: str, name: str | Path) -> int:
    """Return the value of white in a 32-bit image: 1, 255 or 65535."""
    low, high = float(values.min()), float(values.max())
    whole = mode == "I" or bool(np.isfinite(high - low) and (values == values.round()).all())
    if low >= 0 and mode == "F" and high <= 1:
        return 1
    if low >= 0 and whole and high <= 65535 and (high > 255 or mode == "F" or high == 0):
        return 255 if high <= 255 else 65535
    kind = "floats" if mode == "F" else "32-bit integers"
    raise InputError(
        f"{name} holds {kind} from {low:g} to {high:g}, and it is unknown which is white; save it as 16 bits"
    )


def _opaque(image: Image.Image) -> Image.Image:
    """Return the colours without alpha: L, RGB, CMYK or LAB."""
    if image.mode in ("L", "RGB", "CMYK", "LAB") and "transparency" not in image.info:
        return image
    if image.mode in ("1", "L", "LA", "La"):
        return (image.convert("LA") if image.mode == "La" else image).convert("L")
    return image.convert("RGBA").convert("RGB")


def _converted(colours: Image.Image, data: bytes) -> Image.Image:
    """Convert colours from a profile to sRGB.

    Raises:
        ValueError: the profile is for other kinds of images.
    """
    profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
    space = profile.profile.xcolor_space.strip()
    mode = SPACES.get(space)
    if mode == "RGB" and colours.mode == "L":
        colours = colours.convert("RGB")
    if mode != colours.mode:
        raise ValueError(f"it is for {space} images, this one is {colours.mode}")
    return colours if _is_srgb(profile, mode) else _transformed(colours, profile)


def _is_srgb(profile: ImageCms.ImageCmsProfile, mode: str) -> bool:
    """Whether a profile changes no colour of a grid by more than one level."""
    if mode not in ("RGB", "L"):
        return False
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3)
    probe = Image.fromarray(grid if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
    change = np.asarray(probe.convert("RGB")).astype(int) - np.asarray(_transformed(probe, profile))
    return bool(np.abs(change).max() <= 1)


def _transformed(colours: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    """Apply a profile that fits the mode of `colours`; return RGB in sRGB."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    converted = ImageCms.profileToProfile(colours, profile, srgb, outputMode="RGB")
    assert converted is not None, "only a conversion in place returns nothing"
    return converted
