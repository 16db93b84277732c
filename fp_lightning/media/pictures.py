"""Convert image tensors to files and data URLs, and draw editing signals."""

from __future__ import annotations

import io
from base64 import b64encode
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fp_lightning.types import EditBatch, to_uint8

SMALL = 256  # pixels: narrower images are shown enlarged and stored without loss
QUALITY = 85  # of WebP
ARROW, DOT = "#ffd60a", "#ff2d55"


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image → uint8 [3, h, w]."""
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(*image.size[::-1], 3).permute(2, 0, 1)


def encode(image: Tensor, image_format: str = "PNG", **options: Any) -> bytes:
    """uint8 [3, h, w] → the bytes of an image file; options go to Pillow's encoder."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, image_format, **options)
    return buffer.getvalue()


def data_url(image: Tensor, lossless: bool | None = None, quality: int = QUALITY) -> str:
    """uint8 [3, h, w] → a data URL, as PNG or WebP.

    Args:
        lossless: PNG if true, WebP if false. By default, PNG for images narrower than `SMALL`.
        quality: of WebP, up to 100.
    """
    if lossless is None:
        lossless = image.shape[-1] < SMALL
    data = encode(image) if lossless else encode(image, "WEBP", quality=quality)
    return f"data:image/{'png' if lossless else 'webp'};base64,{b64encode(data).decode()}"


def signal_image(batch: EditBatch, index: int) -> Tensor | None:
    """Draw the editing signals of one sample: uint8 [3, h, w] on the CPU.

    Drags are drawn as arrows over the control image, or over the source where there is no control image. An arrow
    ends in a dot at the target position.

    Returns:
        None if the sample has neither a control image nor points.
    """
    drawn = batch.control is not None and (batch.control_valid is None or bool(batch.control_valid[index]))
    if batch.control is not None and drawn:
        image = (batch.control[index].float() * 255).round().clamp(0, 255).to(torch.uint8).cpu()
    else:
        image = to_uint8(batch.source[index]).cpu()
    points = torch.zeros(0, 4) if batch.points is None else batch.points[index]
    if batch.points_valid is not None:
        points = points[batch.points_valid[index]]
    if not len(points):
        return image if drawn else None
    canvas = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    draw, radius = ImageDraw.Draw(canvas), max(1, image.shape[-1] // 96)
    for x_src, y_src, x_tgt, y_tgt in (points.float().cpu() - 0.5).tolist():  # in PIL, pixel centres are integers
        draw.line((x_src, y_src, x_tgt, y_tgt), fill=ARROW, width=radius)
        draw.ellipse((x_tgt - radius, y_tgt - radius, x_tgt + radius, y_tgt + radius), fill=DOT)
    return to_tensor(canvas)
