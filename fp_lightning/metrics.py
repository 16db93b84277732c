"""How close edited images come to the true targets, beside the floor of returning the source unchanged.

SSIM, LPIPS and CLIP-FID are the paper's metrics (Table 1). PSNR where something moves is the number that
tells an edit from no edit: over the whole image, a copy of the source already scores well. Everything is
measured on images rounded to 8 bits, as users see them.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from .errors import InputError
from .types import EditBatch, to_uint8, to_unit_range

MSE_FLOOR = 1e-10  # of images in [0, 1]: a perfect image has a PSNR of 100 dB, and no image has more
ALEXNET_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
CLIP_MODEL, CLIP_WIDTH = "openai/clip-vit-base-patch32", 512
COPY = "_copy_source"
PER_IMAGE = ("ssim", "psnr", "lpips", "psnr_moving", "psnr_background")
METRICS = (*PER_IMAGE, "clip_fid")
SCORES = (*PER_IMAGE, *(name + COPY for name in PER_IMAGE))
# Sums over images stay exact in float64, which no autocast lowers and only Apple's GPUs lack.
EXACT = torch.float32 if torch.backends.mps.is_available() else torch.float64


def psnr(image: Tensor, target: Tensor, region: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio of every image, in dB: `-10 log10 MSE`.

    Args:
        image, target: float [b, c, h, w] in [0, 1].
        region: bool [b, 1, h, w], the pixels that count; None counts them all.

    Returns:
        [b], at most 100 (MSE_FLOOR); NaN where the region is empty.
    """
    error = (image - target).square().mean(1, keepdim=True)
    weight = torch.ones_like(error) if region is None else region.to(error)
    mse = (error * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))
    return -10 * mse.clamp(min=MSE_FLOOR).log10()


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of every image, [b] (Wang et al. 2004): Gaussian windows of 11 pixels, sigma 1.5.

    Equal to torchmetrics' in float64, where that takes 7 s for an image of 576 × 1024. Its float32 is fast,
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
    return (luminance * (2 * cov + c2) / (var_x + var_y + c2)).mean((1, 2, 3))


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


@lru_cache(maxsize=1)
def lpips_network(weights: Path, device: torch.device) -> nn.Module:
    """LPIPS v0.1 (Zhang et al. 2018) on AlexNet: (image, target) [b, 3, h, w] in [-1, 1] → [b, 1, 1, 1].

    The linear heads ship with `lpips`; AlexNet's convolutions are read from torchvision's file, never fetched.
    """
    import lpips

    # Layers are initialised before they are filled: the caller's random numbers must not change by that.
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision with arguments of long ago
        stored = torch.load(weights, map_location="cpu", weights_only=True)
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        slices = network.net.state_dict()  # slice2.3.weight is torchvision's features.3.weight
        network.net.load_state_dict({key: stored["features." + key.partition(".")[2]] for key in slices})
    return network.eval().requires_grad_(False).to(device)


@lru_cache(maxsize=1)
def clip_network(name_or_folder: str, device: torch.device, download: bool) -> Any:
    """CLIP's image tower with its projection (`CLIPVisionModelWithProjection`), from a folder or the hub's cache.

    Raises:
        OSError: it is in neither (and may not be downloaded), or some of its weights are missing.
        InputError: its features do not have the width of ViT-B/32's.
    """
    from transformers import CLIPVisionModelWithProjection

    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        loader: Any = CLIPVisionModelWithProjection  # its return type depends on output_loading_info
        network, loaded = loader.from_pretrained(
            name_or_folder, local_files_only=not download, output_loading_info=True, dtype=torch.float32
        )
    if loaded["missing_keys"]:
        raise OSError(f"{name_or_folder} lacks {', '.join(sorted(loaded['missing_keys']))}")
    if network.config.projection_dim != CLIP_WIDTH:
        raise InputError(
            f"clip_model must have {CLIP_WIDTH} features, {name_or_folder} has {network.config.projection_dim}; "
            f"use {CLIP_MODEL}"
        )
    return network.eval().requires_grad_(False).to(device)


def clip_features(network: Any, images: Tensor) -> Tensor:
    """CLIP-FID's features as clean-fid takes them: bicubic to the short side, centre crop, CLIP's colours.

    Args:
        network: from `clip_network`.
        images: uint8 [b, 3, h, w].

    Returns:
        float [b, 512], not normalised.
    """
    from cleanfid.resize import make_resizer
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    side = network.config.image_size
    height, width = images.shape[-2:]
    short = min(height, width)
    rows, columns = int(side * height / short), int(side * width / short)
    top, left = round((rows - side) / 2), round((columns - side) / 2)
    resize = make_resizer("PIL", True, "bicubic", (columns, rows))
    resized = torch.stack([torch.from_numpy(resize(x)) for x in images.permute(0, 2, 3, 1).cpu().numpy()])
    pixels = resized[:, top : top + side, left : left + side].to(images.device) / 255
    pixels = (pixels - pixels.new_tensor(OPENAI_CLIP_MEAN)) / pixels.new_tensor(OPENAI_CLIP_STD)
    return network(pixel_values=pixels.permute(0, 3, 1, 2).contiguous()).image_embeds


class EditMetrics(Metric):
    """Scores of edited images against their targets; `compute()` is the content of metrics.json.

    SSIM, PSNR and LPIPS are taken per image, then averaged over images. PSNR over moving pixels leaves out
    images without one (`n_moving` counts the others), PSNR over the background likewise. CLIP-FID compares
    the two sets of images and needs two or more; it is biased upwards when they are few, so compare equal n.
    Every name that ends in `_copy_source` is the same score for the source returned unchanged, and
    `psnr_moving_gain` is the lead over it, in dB.

    Only sums and counts are kept, so that any split over batches and processes gives one result. LPIPS and
    CLIP run once their weights are on disk; else they are None and `not_measured` says why. The networks
    are cached per process, outside the module tree: no checkpoint, optimiser or copy ever holds them.

    Args:
        clip_model: folder or hub name of CLIP ViT-B/32.
        download: fetch missing weights on the first update instead of leaving the metric unmeasured.
    """

    full_state_update = False
    n: Tensor  # images
    totals: Tensor  # [10] in the order of SCORES, as are counts
    counts: Tensor
    n_clip: Tensor
    feature_totals: Tensor  # [3, 512]: edited, source, target, as are products
    feature_products: Tensor  # [3, 512, 512]

    def __init__(self, clip_model: str = CLIP_MODEL, download: bool = False) -> None:
        super().__init__()
        self.clip_model, self.download = clip_model, download
        self._missing: dict[str, str] = {}
        self._per_sample: dict[str, dict[str, float]] = {}
        shapes: dict[str, tuple[int, ...]] = {"n": (), "n_clip": (), "totals": (len(SCORES),), "counts": (len(SCORES),)}
        shapes |= {"feature_totals": (3, CLIP_WIDTH), "feature_products": (3, CLIP_WIDTH, CLIP_WIDTH)}
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=EXACT), dist_reduce_fx="sum")

    def update(self, edited: Tensor, batch: EditBatch) -> None:
        """Adds images.

        Args:
            edited: float [b, 3, h, w] in [-1, 1].
            batch: with `target`; without `moving`, the scores by region leave its images out.

        Raises:
            ValueError: the batch has no target, or one of another shape.
        """
        if batch.target is None or batch.target.shape != edited.shape:
            found = "none" if batch.target is None else list(batch.target.shape)
            raise ValueError(f"edited images {list(edited.shape)} need targets of their shape, got {found}")
        with torch.autocast(edited.device.type, enabled=False):
            images = [to_uint8(x) for x in (edited, batch.source, batch.target)]
            scores = self._scores(images[0], images[2], batch.moving)
            scores |= {k + COPY: v for k, v in self._scores(images[1], images[2], batch.moving).items()}
            self._add_features(images)
        table = torch.stack([scores[name].to(EXACT) for name in SCORES], dim=1)  # [b, 10]
        # `to(EXACT)`, since `module.to(bfloat16)` lowers states too, which start as zeros.
        self.n = self.n.to(EXACT) + len(batch)
        self.totals = self.totals.to(EXACT) + table.nan_to_num(nan=0.0).sum(0)
        self.counts = self.counts.to(EXACT) + (~table.isnan()).sum(0)
        for name, row in zip(batch.name, table.tolist(), strict=True):
            self._per_sample[name] = {key: x for key, x in zip(SCORES, row, strict=True) if x == x}

    def compute(self) -> dict[str, Any]:
        """Scores by name over all processes; None where `not_measured` has the reason."""
        n, n_clip = int(self.n), int(self.n_clip)
        counts = dict(zip(SCORES, self.counts.tolist(), strict=True))
        means = dict(zip(SCORES, (self.totals / self.counts).tolist(), strict=True))
        elsewhere = "its weights are missing in another process"
        reasons: dict[str, str] = {}
        if counts["lpips"] < n:
            reasons["lpips"] = self._missing.get("lpips", elsewhere)
        if n_clip < n:
            reasons["clip_fid"] = self._missing.get("clip_fid", elsewhere)
        elif n < 2:
            reasons["clip_fid"] = "a Fréchet distance needs two images or more"
        for region in ("moving", "background"):
            if not counts[f"psnr_{region}"]:
                reasons[f"psnr_{region}"] = f"no image has a pixel known to be {region}"
        if n == 0:
            reasons = dict.fromkeys(METRICS, "no image was evaluated")

        result: dict[str, Any] = {"n": n, "n_moving": int(counts["psnr_moving"])}
        for which, suffix in enumerate(("", COPY)):
            for name in METRICS:
                if name in reasons:
                    result[name + suffix] = None
                else:
                    result[name + suffix] = self._clip_fid(which) if name == "clip_fid" else means[name + suffix]
        if "psnr_moving" in reasons:
            result["psnr_moving_gain"], reasons["psnr_moving_gain"] = None, reasons["psnr_moving"]
        else:
            result["psnr_moving_gain"] = result["psnr_moving"] - result["psnr_moving" + COPY]
        not_measured = {key: reasons[key.removesuffix(COPY)] for key, value in result.items() if value is None}
        return {**result, "not_measured": not_measured}

    def per_sample(self) -> dict[str, dict[str, float]]:
        """Scores of this process's images since the last reset, by image name, then by score."""
        return self._per_sample

    def reset(self) -> None:
        super().reset()
        self._per_sample = {}

    def _scores(self, image: Tensor, target: Tensor, moving: Tensor | None) -> dict[str, Tensor]:
        """PER_IMAGE scores [b] of uint8 images; NaN where one is undefined or not measured."""
        x, y = (z.to(EXACT) / 255 for z in (image, target))
        undefined = x.new_full((len(x),), torch.nan)
        network = self._lpips_network(x.device)
        return {
            "ssim": ssim(x, y),
            "psnr": psnr(x, y),
            "lpips": undefined if network is None else network(to_unit_range(image), to_unit_range(target)).flatten(),
            "psnr_moving": undefined if moving is None else psnr(x, y, moving),
            "psnr_background": undefined if moving is None else psnr(x, y, ~moving),
        }

    def _add_features(self, images: list[Tensor]) -> None:
        network = self._clip_network(images[0].device)
        if network is not None:
            features = torch.stack([clip_features(network, x) for x in images]).to(EXACT)  # [3, b, 512]
            self.n_clip = self.n_clip.to(EXACT) + features.shape[1]
            self.feature_totals = self.feature_totals.to(EXACT) + features.sum(1)
            self.feature_products = self.feature_products.to(EXACT) + features.mT @ features

    def _clip_fid(self, which: int) -> float:
        n = self.n_clip
        mean = self.feature_totals / n
        cov = (self.feature_products - n * mean[:, :, None] * mean[:, None, :]) / (n - 1)
        return frechet_distance(mean[which], cov[which], mean[2], cov[2])

    def _lpips_network(self, device: torch.device) -> nn.Module | None:
        if "lpips" in self._missing:
            return None
        weights = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET_URL.rpartition("/")[2]
        try:
            if self.download and not weights.is_file():
                weights.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(ALEXNET_URL, str(weights), hash_prefix="7be5be79", progress=False)
            return lpips_network(weights, device)
        except OSError as error:
            failure = _line(error) if self.download else ""
            self._missing["lpips"] = (
                f"AlexNet's weights are not at {weights}; put {ALEXNET_URL} there, or set download: true{failure}"
            )
            return None

    def _clip_network(self, device: torch.device) -> Any:
        if "clip_fid" in self._missing:
            return None
        try:
            return clip_network(self.clip_model, device, self.download)
        except OSError as error:
            from huggingface_hub.constants import HF_HUB_CACHE

            failure = _line(error) if self.download or Path(self.clip_model).is_dir() else ""
            self._missing["clip_fid"] = (
                f"CLIP's weights are neither in a folder {self.clip_model} nor in the hub's cache {HF_HUB_CACHE}; "
                f"run `hf download {CLIP_MODEL}`, name a folder as clip_model, or set download: true{failure}"
            )
            return None


def _line(error: OSError) -> str:
    """The first line of an error, to be appended to a reason."""
    return f" ({str(error).strip().splitlines()[0]})"
