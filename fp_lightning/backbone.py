"""SVD's parts, loaded from a diffusers-format folder or a hub id; "tiny" is the folder in this package."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler, UNetSpatioTemporalConditionModel
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from torch import nn
from transformers import CLIPVisionModelWithProjection

from fp_lightning.control import ControlEncoder
from fp_lightning.errors import InputError
from fp_lightning.matching import AttentionKind, MatchQueries
from fp_lightning.unet import FramePainterUNet

TINY = Path(__file__).parent / "assets" / "tiny"
SVD = "stabilityai/stable-video-diffusion-img2vid-xt-1-1"
_FILES = {
    "unet": ("config.json", "diffusion_pytorch_model"),
    "vae": ("config.json", "diffusion_pytorch_model"),
    "image_encoder": ("config.json", "model"),
    "scheduler": ("scheduler_config.json", None),
}


@dataclass
class Backbone:
    """What an editor is joined from."""

    unet: FramePainterUNet
    control_encoder: ControlEncoder
    vae: AutoencoderKLTemporalDecoder
    image_encoder: CLIPVisionModelWithProjection
    scheduler: EulerDiscreteScheduler


def load_backbone(
    model: str = SVD,
    weights: Literal["pretrained", "random"] = "pretrained",
    attention: AttentionKind = "matching",
    match_queries: MatchQueries = "target",
    variant: str | None = None,
    seed: int = 0,
) -> Backbone:
    """Loads SVD in float32; the control encoder and the matching branch are new.

    Args:
        model: "tiny", a folder in diffusers' format, or a hub id.
        weights: of the U-Net. "random" needs only its config; its last layer then starts at zero, so
            that training starts from D(x) = c_skip · x. The VAE and the image encoder are always loaded.
        attention, match_queries: see `install_attention`.
        variant: of the weight files, e.g. "fp16".
        seed: of all weights that are not loaded.

    Raises:
        InputError: a file is missing, gated or unreadable; says which, where it was looked for, and the remedy.
    """
    folder = str(TINY) if model == "tiny" else str(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if weights == "pretrained":
            plain = _load(UNetSpatioTemporalConditionModel, folder, "unet", variant=variant, torch_dtype=torch.float32)
            unet = FramePainterUNet.from_svd(plain, attention, match_queries)
        else:
            config = _load_config(folder)
            unet = FramePainterUNet.from_config(config, attention=attention, match_queries=match_queries)
            for parameter in unet.conv_out.parameters():
                nn.init.zeros_(parameter)
        control_config = Path(folder) / "control_encoder" / "config.json"
        if control_config.is_file():
            control_encoder = ControlEncoder.from_config(ControlEncoder.load_config(control_config.parent))
        else:
            control_encoder = ControlEncoder(out_channels=unet.config.block_out_channels[0])
    return Backbone(
        unet=unet,
        control_encoder=control_encoder,
        vae=_load(AutoencoderKLTemporalDecoder, folder, "vae", variant=variant, torch_dtype=torch.float32),
        image_encoder=_load(
            CLIPVisionModelWithProjection, folder, "image_encoder", variant=variant, dtype=torch.float32
        ),
        scheduler=_load(EulerDiscreteScheduler, folder, "scheduler"),
    )


def _load(kind: Any, folder: str, part: str, **kwargs) -> Any:
    """`kind.from_pretrained` with one clear error; a weight file that lacks keys is an error too."""
    try:
        if part == "scheduler":
            return kind.from_pretrained(folder, subfolder=part)
        loaded, info = kind.from_pretrained(folder, subfolder=part, output_loading_info=True, **kwargs)
    except Exception as error:  # diffusers, transformers, safetensors and the hub each raise their own kinds
        raise InputError(_explain(folder, part, kwargs.get("variant"), error)) from error
    if any(".processor." in key for key in info["unexpected_keys"]):
        raise InputError(f"{folder} is a saved editor, not SVD; load it with FramePainterPipeline.from_pretrained")
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(
            f"{part} weights in {folder} lack {len(missing)} tensors, the first {missing[0]}; "
            "the folder is not a complete copy, download it again"
        )
    return loaded


def _load_config(folder: str) -> dict[str, Any]:
    try:
        return UNetSpatioTemporalConditionModel.load_config(folder, subfolder="unet")
    except Exception as error:  # as in _load
        raise InputError(_explain(folder, "unet", None, error)) from error


def _explain(folder: str, part: str, variant: str | None, error: Exception) -> str:
    """One line: which file, where it was looked for, how to get it."""
    get = f"get it with `hf download {SVD} --local-dir DIR` and pass that folder"
    if Path(folder).is_dir():
        config, stem = _FILES[part]
        wanted = [config] + ([f"{stem}{f'.{variant}' if variant else ''}.safetensors"] if stem else [])
        absent = [name for name in wanted if not (Path(folder) / part / name).is_file()]
        if absent:
            return f"{part} of the model is not complete: no {' and no '.join(absent)} in {Path(folder) / part}; {get}"
        return f"{part} in {Path(folder) / part} cannot be loaded ({_first_line(error)}); {get}"
    if folder.count("/") != 1 or folder.startswith((".", "/", "~")):
        return f"no model folder {folder}; {get}, or use the model 'tiny'"
    causes = (error, error.__cause__, error.__context__)
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return f"{folder} is gated: accept its licence on its hub page and run `hf auth login`, then try again"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return f"no model {folder} on the hub (or it is private: run `hf auth login`); {get}"
    cache = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub"
    return (
        f"{part} of {folder} is neither in the hub cache {cache} nor reachable ({_first_line(error)}); "
        f"on a connected machine accept the model's licence, run `hf auth login`, then {get}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".")
