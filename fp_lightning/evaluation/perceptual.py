"""The networks behind LPIPS and CLIP-FID: found on this machine or fetched, never guessed."""

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
    """Weights are not on this machine, or could not be fetched; the message says what to do."""


def load_lpips(device: torch.device, download: bool) -> nn.Module:
    """LPIPS on AlexNet, see `lpips_network`.

    Raises:
        MissingWeights: AlexNet is not where torchvision keeps it, and may not be or cannot be fetched.
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
    """CLIP's image tower, see `clip_network`.

    Raises:
        MissingWeights: it is neither in a folder of that name nor in the hub's cache, or cannot be fetched.
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
    """The first line of an error, to be appended to a reason."""
    return f" ({str(error).strip().splitlines()[0]})"


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


def lpips_maps(network: Any, image: Tensor, target: Tensor) -> list[Tensor]:
    """Distances at every place of each of AlexNet's five layers, [b, 1, h', w'] of images [b, 3, h, w] in [-1, 1].

    LPIPS is the sum of the maps' means.
    """
    import lpips

    features = [network.net(network.scaling_layer(x)) for x in (image, target)]
    layers = zip(network.lins, *features, strict=True)
    return [lin((lpips.normalize_tensor(a) - lpips.normalize_tensor(b)).square()) for lin, a, b in layers]


def lpips_over(maps: list[Tensor], region: Tensor | None = None) -> Tensor:
    """LPIPS [b] of `lpips_maps`, of a region bool [b, 1, h, w] if given: places count by the share of it they hold.

    NaN where the region is empty.
    """
    shares = [None if region is None else _share(region.to(x), x) for x in maps]
    return torch.stack([mean_over(x, share) for x, share in zip(maps, shares, strict=True)]).sum(0)


def _share(region: Tensor, x: Tensor) -> Tensor:
    """How much of each place of x [b, 1, h', w'] a region [b, 1, h, w] covers."""
    return F.adaptive_avg_pool2d(region, (x.shape[-2], x.shape[-1]))


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
