"""Keeping what an edit did not mean to change: a soft mask of the edit, and the photo pasted back around it."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from fp_lightning.types import to_unit_range


def edit_mask(edited: Tensor, unchanged: Tensor, threshold: float = 0.08) -> tuple[Tensor, Tensor]:
    """Where an edit changed its photo, from the edit's own difference to it.

    The photo is compared as the VAE returns it, which takes the VAE's own loss out of the comparison, and
    less the median difference of each channel, which is a shift of the whole image's colour. The difference is
    averaged over channels and smoothed, held against the threshold, freed of specks, widened, and softened at
    its border.
    Lengths are in units of 1/64 of the shorter side: smoothing 1/2, specks 1, widening 2, softening 1.

    Args:
        edited: float [3, h, w] in [-1, 1].
        unchanged: float [3, h, w] in [-1, 1], the photo encoded and decoded.
        threshold: mean absolute difference in the units of [-1, 1] above which a pixel is edited.

    Returns:
        The mask, float [1, h, w], 1 where the edit counts and exactly 0 where the photo does; the shift,
        float [3, 1, 1].
    """
    unit = max(1, min(edited.shape[-2:]) // 64)
    difference = edited - unchanged
    shift = difference.flatten(1).median(1).values[:, None, None]
    size = _blur((difference - shift).abs().mean(0, keepdim=True), unit / 2)
    mask = (size > threshold).float()
    mask = _widened(1 - _widened(1 - mask, unit), unit)  # opened: eroded, then dilated
    mask = _widened(mask, 2 * unit)
    return _blur(mask, unit), shift


def paste_back(photo: Tensor, edited: Tensor, mask: Tensor, shift: Tensor) -> Tensor:
    """The edit where the mask is 1, the photo itself where it is 0, and in between in proportion.

    Args:
        photo: uint8 [3, H, W], at its own size.
        edited: float [3, h, w] in [-1, 1]; mask, shift: of `edit_mask`. They are resized to the photo.

    Returns:
        float [3, H, W] in [-1, 1]. Pixels with mask 0 are the photo's own, to the last bit once rounded.
    """
    size = [photo.shape[-2], photo.shape[-1]]
    image = F.interpolate((edited - shift)[None], size, mode="bicubic", antialias=True)[0].clamp(-1, 1)
    weight = F.interpolate(mask[None], size, mode="bilinear", antialias=True)[0]
    return torch.lerp(to_unit_range(photo).to(image), image, weight)


def region_weight(region: Tensor) -> Tensor:
    """The weight of an edit that may change only a region, float [1, H, W]: 0 outside of it, 1 well inside.

    It rises over 1/64 of the shorter side.

    Args:
        region: bool [1, H, W].
    """
    border = max(1, min(region.shape[-2:]) // 64)
    padded = np.pad(region[0].numpy().astype(np.uint8), 1, mode="edge")  # the image's own border is no border of it
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    return torch.from_numpy(distance / border).clamp(max=1)[None]


def _blur(image: Tensor, sigma: float) -> Tensor:
    side = 2 * round(3 * sigma) + 1
    return gaussian_blur(image, [side, side], [sigma, sigma])


def _widened(mask: Tensor, radius: int) -> Tensor:
    return F.max_pool2d(mask[None], 2 * radius + 1, stride=1, padding=radius)[0]
