"""Load and run the networks of LPIPS and CLIP-FID. Weights come from disk, or are downloaded if allowed."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fp_lightning.errors import InputError
from fp_lightning.evaluation.scores import mean_over

ALEXNET_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
CLIP_MODEL, CLIP_WIDTH = "openai/clip-vit-base-patch32", 512


class MissingWeights(Exception):
    """Weights are not on disk or could not be downloaded; the message says what to do."""


def load_lpips(device: torch.device, download: bool) -> nn.Module:
    """Load LPIPS on AlexNet; see `lpips_network`.

    Raises:
        MissingWeights: AlexNet is not in torchvision's cache and was not downloaded.
    """
    weights = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET_URL.rpartition("/")[2]
    try:
        if download and not weights.is_file():
            weights.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(ALEXNET_URL, str(weights), hash_prefix="7be5be79", progress=False)
        return lpips_network(weights, device)
    except OSError as error:
        failure = _line(error) if download else ""
        raise MissingWeights(
            f"AlexNet's weights are not at {weights}; put {ALEXNET_URL} there, or set download: true "
            f"(evaluate: --download){failure}"
        ) from error


def load_clip(name_or_folder: str, device: torch.device, download: bool) -> Any:
    """Load CLIP's image encoder; see `clip_network`.

    Raises:
        MissingWeights: it is neither in a folder of that name nor in the hub's cache, and was not downloaded.
    """
    try:
        return clip_network(name_or_folder, device, download)
    except OSError as error:
        from huggingface_hub.constants import HF_HUB_CACHE

        failure = _line(error) if download or Path(name_or_folder).is_dir() else ""
        raise MissingWeights(
            f"CLIP's weights are neither in a folder {name_or_folder} nor in the hub's cache {HF_HUB_CACHE}; "
            f"run `hf download {CLIP_MODEL}`, name a folder as clip_model, or set download: true "
            f"(evaluate: --download){failure}"
        ) from error


def _line(error: OSError) -> str:
    """The first line of an error, in brackets."""
    return f" ({str(error).strip().splitlines()[0]})"


@lru_cache(maxsize=1)
def lpips_network(weights: Path, device: torch.device) -> nn.Module:
    """LPIPS v0.1 (Zhang et al. 2018) on AlexNet: (image, target) [b, 3, h, w] in [-1, 1] → [b, 1, 1, 1].

    The linear heads ship with the `lpips` package. AlexNet's convolutions are read from `weights`, torchvision's file.
    """
    import lpips

    # Building the layers draws random numbers, which must not change those of the caller.
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision with deprecated arguments
        stored = torch.load(weights, map_location="cpu", weights_only=True)
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        slices = network.net.state_dict()  # slice2.3.weight is torchvision's features.3.weight
        network.net.load_state_dict({key: stored["features." + key.partition(".")[2]] for key in slices})
    return network.eval().requires_grad_(False).to(device)


def lpips_maps(network: Any, image: Tensor, target: Tensor) -> list[Tensor]:
    """Distance maps [b, 1, h', w'] of AlexNet's five layers for images [b, 3, h, w] in [-1, 1].

    LPIPS is the sum of the means of the maps.
    """
    import lpips

    features = [network.net(network.scaling_layer(x)) for x in (image, target)]
    layers = zip(network.lins, *features, strict=True)
    return [lin((lpips.normalize_tensor(a) - lpips.normalize_tensor(b)).square()) for lin, a, b in layers]


def lpips_over(maps: list[Tensor], region: Tensor | None = None) -> Tensor:
    """LPIPS [b] from the maps of `lpips_maps`, over a region bool [b, 1, h, w] if given.

    Each position of a map is weighted by the share of it that the region covers. NaN where the region is empty.
    """
    shares = [None if region is None else _share(region.to(x), x) for x in maps]
    return torch.stack([mean_over(x, share) for x, share in zip(maps, shares, strict=True)]).sum(0)


def _share(region: Tensor, x: Tensor) -> Tensor:
    """The share of each position of x [b, 1, h', w'] that a region [b, 1, h, w] covers."""
    return F.adaptive_avg_pool2d(region, (x.shape[-2], x.shape[-1]))


@lru_cache(maxsize=1)
def clip_network(name_or_folder: str, device: torch.device, download: bool) -> Any:
    """CLIP's image encoder with its projection (`CLIPVisionModelWithProjection`), from a folder or the hub's cache.

    Raises:
        OSError: it is in neither (and `download` is false or failed), or some of its weights are missing.
        InputError: the width of its features is not that of ViT-B/32.
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
    """CLIP features, preprocessed as in clean-fid: bicubic resize of the short side, centre crop, CLIP's normalisation.

    Args:
        network: result of `clip_network`.
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
