"""Images for the page as data URLs, which leave no files behind."""

from __future__ import annotations

import io
from base64 import b64encode

from PIL import Image

from fp_lightning.media.images import png_bytes

LOSSLESS = 512  # px, the longer side up to which an image becomes a PNG
SHOWN = 1280  # px, the most of the longer side of a photo on the canvas


def shrink(image: Image.Image, side: int) -> Image.Image:
    """Return a copy with no side longer than `side` pixels."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def thumbnail(image: Image.Image, side: int = 96) -> str:
    """Return a small data URL."""
    return data_url(shrink(image, side))


def data_url(image: Image.Image) -> str:
    """Return the image as a PNG if it is small or transparent, else as WebP."""
    if image.has_transparency_data or max(image.size) <= LOSSLESS:
        return f"data:image/png;base64,{b64encode(png_bytes(image)).decode()}"
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{b64encode(buffer.getvalue()).decode()}"
