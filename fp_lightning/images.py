"""A user's images on their way to the network's size and back: the same for the pipeline and for predict."""

from __future__ import annotations

import logging

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fp_lightning.types import to_uint8

logger = logging.getLogger(__name__)


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
    is inverted, and when its size is not `image_size`, the (height, width) of its image.
    """
    if (drawn.height, drawn.width) != tuple(image_size):
        logger.warning(
            "%s is %dx%d, its image %dx%d (width x height): the sketch is stretched to fit",
            name, drawn.width, drawn.height, image_size[1], image_size[0],
        )  # fmt: skip
    alpha = np.array(drawn.convert("RGBA"))[..., 3]
    grey = alpha if alpha.min() < 128 else np.array(drawn.convert("L"))
    marked = grey >= 128
    if grey is not alpha and marked.mean() > 0.5:
        logger.warning("%s is mostly bright: taken as dark strokes on light paper and inverted", name)
        marked = ~marked
    return F.adaptive_max_pool2d(torch.from_numpy(marked).float()[None], size).expand(3, -1, -1).contiguous()
