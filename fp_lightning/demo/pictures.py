"""Images as they stand in the page: data URLs, which leave no files behind."""

from __future__ import annotations

import io
from base64 import b64encode

from PIL import Image

from fp_lightning.media.images import png_bytes

LOSSLESS = 512  # px, the longer side of images that are not compressed with loss
SHOWN = 1280  # px, the longer side of a photo on the canvas at most


def shrunk(image: Image.Image, side: int) -> Image.Image:
    """The image, with no side longer than `side` pixels."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def thumbnail(image: Image.Image, side: int = 96) -> str:
    """A small data URL."""
    return data_url(shrunk(image, side))


def data_url(image: Image.Image) -> str:
    """The image for a page: without loss where it is small or transparent, else WebP."""
    if image.has_transparency_data or max(image.size) <= LOSSLESS:
        return f"data:image/png;base64,{b64encode(png_bytes(image)).decode()}"
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{b64encode(buffer.getvalue()).decode()}"
