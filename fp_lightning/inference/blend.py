"""Keep unedited pixels: find a soft mask of the edit, and paste the photo back outside of it."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from fp_lightning.types import to_unit_range


def edit_mask(edited: Tensor, unchanged: Tensor, threshold: float = 0.08) -> tuple[Tensor, Tensor]:
    """Find where an edit changed the photo.

    The edit is compared with the photo after the VAE's encoder and decoder, so that the VAE's loss does not count. The
    median difference of each channel is subtracted, because it is a colour shift of the whole image. The absolute
    difference is averaged over channels, smoothed and thresholded. The mask is opened to remove specks, dilated, and
    blurred at its border. Lengths in units of 1/64 of the shorter side: smoothing 1/2, opening 1, dilation 2, blur 1.

    Args:
        edited: float [3, h, w] in [-1, 1].
        unchanged: float [3, h, w] in [-1, 1], the photo encoded and decoded.
        threshold: a pixel is edited where the smoothed mean absolute difference is greater, in the units of [-1, 1].

    Returns:
        The mask, float [1, h, w], from exactly 0 (photo) to 1 (edit), and the colour shift, float [3, 1, 1].
    """
    unit = max(1, min(edited.shape[-2:]) // 64)
    difference = edited - unchanged
    shift = difference.flatten(1).median(1).values[:, None, None]
    size = _blur((difference - shift).abs().mean(0, keepdim=True), unit / 2)
    mask = (size > threshold).float()
    mask = _dilate(1 - _dilate(1 - mask, unit), unit)  # opening: erosion, then dilation
    mask = _dilate(mask, 2 * unit)
    return _blur(mask, unit), shift


def paste_back(photo: Tensor, edited: Tensor, mask: Tensor, shift: Tensor) -> Tensor:
    """Blend the edit into the photo in proportion to the mask. `edited` and `mask` are resized to the photo.

    Args:
        photo: uint8 [3, H, W].
        edited: float [3, h, w] in [-1, 1].
        mask: float [1, h, w]; 1 takes the edit, 0 the photo. See `edit_mask`.
        shift: colour shift, float [3, 1, 1], which is subtracted from the edit. See `edit_mask`.

    Returns:
        float [3, H, W] in [-1, 1]. Where the mask is 0, rounding to uint8 gives the photo exactly.
    """
    size = [photo.shape[-2], photo.shape[-1]]
    image = F.interpolate((edited - shift)[None], size, mode="bicubic", antialias=True)[0].clamp(-1, 1)
    weight = F.interpolate(mask[None], size, mode="bilinear", antialias=True)[0]
    return torch.lerp(to_unit_range(photo).to(image), image, weight)


def region_weight(region: Tensor) -> Tensor:
    """Return the blending weight of an edit that may change only a region.

    The weight is 0 outside the region. Inside, it rises to 1 over 1/64 of the shorter side.

    Args:
        region: bool [1, H, W].

    Returns:
        float [1, H, W] in [0, 1].
    """
    border = max(1, min(region.shape[-2:]) // 64)
    padded = np.pad(region[0].numpy().astype(np.uint8), 1, mode="edge")  # the image border is not a region border
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    return torch.from_numpy(distance / border).clamp(max=1)[None]


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Return a Gaussian blur with a kernel of ±3 σ; `sigma` is in pixels."""
    side = 2 * round(3 * sigma) + 1
    return gaussian_blur(image, [side, side], [sigma, sigma])


def _dilate(mask: Tensor, radius: int) -> Tensor:
    """Return the maximum of [1, h, w] over squares of side 2 · radius + 1."""
    return F.max_pool2d(mask[None], 2 * radius + 1, stride=1, padding=radius)[0]
