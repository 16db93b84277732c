"""Compare images with images: PSNR, SSIM, and the Fréchet distance of features."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

MSE_FLOOR = 1e-10  # of images in [0, 1]; it limits PSNR to 100 dB
# float64 keeps sums over images exact. Autocast does not lower it; Apple's GPUs do not have it.
EXACT = torch.float32 if torch.backends.mps.is_available() else torch.float64


def mean_over(values: Tensor, region: Tensor | None = None) -> Tensor:
    """Average maps [b, 1, h, w] over regions [b, 1, h, w] (bool or weights): [b], NaN where a region is empty."""
    if region is None:
        return values.mean((1, 2, 3))
    weight = region.to(values)
    return (values * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))


def psnr(image: Tensor, target: Tensor, region: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB: `-10 log10 MSE`.

    Args:
        image, target: float [b, c, h, w] in [0, 1].
        region: bool [b, 1, h, w], the pixels that count; None for all pixels.

    Returns:
        [b], at most 100 (see `MSE_FLOOR`); NaN where the region is empty.
    """
    error = (image - target).square().mean(1, keepdim=True)
    return -10 * mean_over(error, region).clamp(min=MSE_FLOOR).log10()


def ssim_map(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity at each pixel, [b, 1, h, w] (Wang et al. 2004): Gaussian windows of 11 px, sigma 1.5.

    Its mean equals torchmetrics' SSIM in float64, which takes 7 s for an image of 576 × 1024. torchmetrics' float32 is
    fast, but cancellation makes it wrong by up to 0.002 in flat regions.

    Args:
        image, target: float [b, c, h, w] in [0, 1], at least 6 px wide and high. Edges are mirrored.
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
    """Structural similarity of each image, [b]: the mean of `ssim_map`, over a region bool [b, 1, h, w] if given.

    Windows extend 5 px around each pixel and may leave the region.
    """
    return mean_over(ssim_map(image, target), region)


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Squared Fréchet distance of two Gaussians, computed by clean-fid (Parmar et al. 2022).

    Args:
        mean_a, mean_b: [d].
        cov_a, cov_b: [d, d]. With singular covariances, from fewer than d + 1 samples, the error is about 1e-3.
    """
    from cleanfid.fid import frechet_distance as clean

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # clean-fid uses an argument of sqrtm that SciPy 1.18 removes
        arrays = [x.double().cpu().numpy() for x in (mean_a, cov_a, mean_b, cov_b)]
        return max(0.0, float(clean(*arrays)))


def frechet_of_features(a: Tensor, b: Tensor) -> float:
    """`frechet_distance` of the Gaussians fitted to features [n, d] and [n, d], without a matrix square root.

    The trace of (Σa Σb)^½ is the nuclear norm of A Bᵀ / (n − 1) for centred A and B. That matrix is n × n instead of
    d × d: fast for few images, and exact for singular covariances.
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
