"""Images as tensors, files and parts of a page."""

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


def signal_image(batch: EditBatch, index: int) -> Tensor | None:
    """What the user gave, uint8 [3, h, w] on the CPU: the control image, or the source, with drags as arrows.

    None if the sample has neither control nor points. An arrow ends in a dot, at the target position.
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
    for x_src, y_src, x_tgt, y_tgt in (points.float().cpu() - 0.5).tolist():  # PIL counts from pixel centres
        draw.line((x_src, y_src, x_tgt, y_tgt), fill="#ffd60a", width=radius)
        draw.ellipse((x_tgt - radius, y_tgt - radius, x_tgt + radius, y_tgt + radius), fill="#ff2d55")
    return to_tensor(canvas)


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image → uint8 [3, h, w]."""
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(*image.size[::-1], 3).permute(2, 0, 1)


def encode(image: Tensor, image_format: str = "PNG", **options: Any) -> bytes:
    """uint8 [3, h, w] → the bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, image_format, **options)
    return buffer.getvalue()


def data_url(image: Tensor) -> str:
    """uint8 [3, h, w] as it stands in a page: without loss if it is small, else WebP."""
    small = image.shape[-1] < SMALL
    data = encode(image) if small else encode(image, "WEBP", quality=QUALITY)
    return f"data:image/{'png' if small else 'webp'};base64,{b64encode(data).decode()}"
