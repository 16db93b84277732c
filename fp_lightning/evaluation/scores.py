"""Scores of images against images, as plain functions: PSNR, SSIM, the Fréchet distance of features."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

MSE_FLOOR = 1e-10  # of images in [0, 1]: a perfect image has a PSNR of 100 dB, and no image has more
# Sums over images stay exact in float64, which no autocast lowers and only Apple's GPUs lack.
EXACT = torch.float32 if torch.backends.mps.is_available() else torch.float64


def mean_over(values: Tensor, region: Tensor | None = None) -> Tensor:
    """Means [b] of maps [b, 1, h, w], each over its region [b, 1, h, w] (bool or weights); NaN where that is empty."""
    if region is None:
        return values.mean((1, 2, 3))
    weight = region.to(values)
    return (values * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))


def psnr(image: Tensor, target: Tensor, region: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio of every image, in dB: `-10 log10 MSE`.

    Args:
        image, target: float [b, c, h, w] in [0, 1].
        region: bool [b, 1, h, w], the pixels that count; None counts them all.

    Returns:
        [b], at most 100 (MSE_FLOOR); NaN where the region is empty.
    """
    error = (image - target).square().mean(1, keepdim=True)
    return -10 * mean_over(error, region).clamp(min=MSE_FLOOR).log10()


def ssim_map(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity at every pixel, [b, 1, h, w] (Wang et al. 2004): Gaussian windows of 11 px, sigma 1.5.

    Its mean is torchmetrics' SSIM in float64, which takes 7 s for an image of 576 × 1024. Their float32 is fast,
    but cancellation costs it up to 0.002 where an image is flat.

    Args:
        image, target: float [b, c, h, w] in [0, 1], at least 6 pixels wide and high; edges are mirrored.
    """
    x, y = image.to(EXACT), target.to(EXACT)
    window = torch.exp(-torch.arange(-5.0, 6.0, dtype=EXACT).square() / (2 * 1.5**2))
    weights: list[float] = (window / window.sum()).tolist()

    def window_mean(z: Tensor) -> Tensor:
        height, width = z.shape[-2:]
        z = F.pad(z, (5, 5, 5, 5), mode="reflect")
        z = sum((w * z[..., i : i + width] for i, w in enumerate(weights)), torch.zeros(()))
        return sum((w * z[..., i : i + height, :] for i, w in enumerate(weights)), torch.zeros(()))

    mean_x, mean_y = window_mean(x), window_mean(y)
    var_x, var_y = window_mean(x * x) - mean_x**2, window_mean(y * y) - mean_y**2
    cov = window_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * (2 * cov + c2) / (var_x + var_y + c2)).mean(1, keepdim=True)


def ssim(image: Tensor, target: Tensor, region: Tensor | None = None) -> Tensor:
    """Structural similarity of every image, [b]: the mean of `ssim_map`, over a region bool [b, 1, h, w] if given.

    A pixel's window reaches 5 px beyond it, also out of the region.
    """
    return mean_over(ssim_map(image, target), region)


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Squared Fréchet distance of two Gaussians, with clean-fid's arithmetic (Parmar et al. 2022).

    Args:
        mean_a, mean_b: [d].
        cov_a, cov_b: [d, d]; singular ones, from fewer than d + 1 samples, are right to about 1e-3.
    """
    from cleanfid.fid import frechet_distance as clean

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # clean-fid calls sqrtm as SciPy 1.17 still allows
        arrays = [x.double().cpu().numpy() for x in (mean_a, cov_a, mean_b, cov_b)]
        return max(0.0, float(clean(*arrays)))


def frechet_of_features(a: Tensor, b: Tensor) -> float:
    """`frechet_distance` of the Gaussians fitted to features [n, d] and [n, d], without a matrix root.

    The trace of (Σa Σb)^½ is the nuclear norm of A Bᵀ / (n − 1), A and B centred: n × n instead of d × d, so that
    few images are fast, and exact also where the covariances are singular.
    """
    n = len(a)
    mean = a.mean(0), b.mean(0)
    a, b = a - mean[0], b - mean[1]
    if n <= a.shape[1]:
        root = torch.linalg.svdvals(a @ b.T).sum()
    else:  # the same norm from the d × d factors
        root = torch.linalg.svdvals(torch.linalg.qr(a, "r").R @ torch.linalg.qr(b, "r").R.T).sum()
    spread = (a.square().sum() + b.square().sum() - 2 * root) / (n - 1)
    return max(0.0, ((mean[0] - mean[1]).square().sum() + spread).item())
