"""Load the parts of SVD or of a saved editor from a folder in diffusers' format, a hub id or this package."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    UNetSpatioTemporalConditionModel,
)
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from torch import nn
from transformers import CLIPVisionModelWithProjection

from fp_lightning.errors import InputError
from fp_lightning.files import well_formed
from fp_lightning.model.control import ControlEncoder
from fp_lightning.model.matching import AttentionKind, MatchQueries
from fp_lightning.model.svd.prior import SVDPrior
from fp_lightning.model.svd.unet import FramePainterUNet

_ASSETS = Path(__file__).parents[2] / "assets"
SHIPPED = {"tiny": _ASSETS / "tiny", "tiny-editor": _ASSETS / "tiny_editor"}  # models in this package by name
SVD = "stabilityai/stable-video-diffusion-img2vid-xt-1-1"
_FILES = {
    "unet": ("config.json", "diffusion_pytorch_model"),
    "control_encoder": ("config.json", "diffusion_pytorch_model"),
    "vae": ("config.json", "diffusion_pytorch_model"),
    "image_encoder": ("config.json", "model"),
    "scheduler": ("scheduler_config.json", None),
}


@dataclass
class Backbone:
    """The parts of an editor."""

    unet: FramePainterUNet
    control_encoder: ControlEncoder
    vae: AutoencoderKLTemporalDecoder
    image_encoder: CLIPVisionModelWithProjection
    scheduler: EulerDiscreteScheduler

    def prior(self) -> SVDPrior:
        """Return SVD's parts as one video prior."""
        return SVDPrior(self.unet, self.vae, self.image_encoder, self.scheduler)


def load_backbone(
    model: str = SVD,
    weights: Literal["pretrained", "random"] = "pretrained",
    attention: AttentionKind = "matching",
    match_queries: MatchQueries = "target",
    variant: str | None = None,
    seed: int = 0,
) -> Backbone:
    """Load SVD with a new control encoder and a new matching branch, or a saved editor with its trained ones.

    All weights are float32.

    Args:
        model: "tiny" (a tiny SVD), "tiny-editor" (an editor trained from it), a folder in diffusers' format, or a hub
            id. The folder or the hub repository holds SVD, or a pipeline written by
            `FramePainterPipeline.save_pretrained` or `fp-lightning convert`.
        weights: "pretrained" loads the U-Net's weights. "random" needs only its configuration and sets the last layer
            to zero, so that training starts from D(x) = c_skip · x. The VAE and the image encoder are always loaded.
        attention, match_queries: see `install_attention`.
        variant: variant of the weight files, for example "fp16".
        seed: seed of all weights that are not loaded.

    Raises:
        InputError: a file is missing, gated or unreadable, or the saved editor has another attention. The message
            names the file, its expected location and the remedy.
    """
    folder = str(SHIPPED.get(model, model))
    config = _load_config(folder)
    saved = config.get("_class_name") == FramePainterUNet.__name__
    if saved and config["attention"] != attention and weights == "pretrained":
        raise InputError(
            f"{model} is an editor with {config['attention']} attention, got attention {attention!r}; "
            f"set attention to {config['attention']}, or start from SVD"
        )
    control_encoder: ControlEncoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if weights == "random":
            with _explained(folder, "unet"):
                unet = FramePainterUNet.from_config(config, attention=attention, match_queries=match_queries)
            for parameter in unet.conv_out.parameters():
                nn.init.zeros_(parameter)
        elif saved:
            unet = _load(FramePainterUNet, folder, "unet", variant=variant, torch_dtype=torch.float32)
            unet.set_match_queries(match_queries)
        else:
            plain = _load(UNetSpatioTemporalConditionModel, folder, "unet", variant=variant, torch_dtype=torch.float32)
            unet = FramePainterUNet.from_svd(plain, attention, match_queries)
        control_config = Path(folder) / "control_encoder" / "config.json"
        if saved and weights == "pretrained":
            control_encoder = _load(
                ControlEncoder, folder, "control_encoder", variant=variant, torch_dtype=torch.float32
            )
        elif control_config.is_file():
            with _explained(folder, "control_encoder"):
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


def saved_settings(model: str) -> dict[str, Any] | None:
    """Return the settings of a saved editor, named as in `FramePainter.settings`, and its "size".

    "distilled_steps" is None for an editor that was not distilled.

    None if `model` is no editor.

    Raises:
        InputError: the configuration of the U-Net or of the pipeline is missing or unreadable.
    """
    folder = str(SHIPPED.get(model, model))
    config = _load_config(folder)
    if config.get("_class_name") != FramePainterUNet.__name__:
        return None
    try:
        index = DiffusionPipeline.load_config(folder)
    except Exception as error:  # as in _explained
        raise InputError(
            f"{folder} has the unet of an editor but no readable model_index.json; save the editor again"
        ) from error
    with well_formed(Path(folder) / "model_index.json", "save the editor again"):
        height, width = map(int, index["size"])
        unet_settings = {name: config[name] for name in ("attention", "match_queries")}
        return (
            unet_settings
            | {name: index[name] for name in ("control_frames", "control_factor")}
            | {"size": [height, width], "distilled_steps": index.get("distilled_steps")}
        )


def local_folder(model: str, patterns: Sequence[str], example: str = SVD, **kwargs: Any) -> Path:
    """Return the folder of a model. Download it to the hub cache if `model` is a hub id.

    Args:
        model: name of a model in this package, a folder, or a hub id.
        patterns: glob patterns of the files to download.
        example: hub id that an error suggests if the folder does not exist.
        kwargs: arguments of `snapshot_download`.

    Raises:
        InputError: the folder does not exist, and the download fails.
    """
    if model in SHIPPED:
        return SHIPPED[model]
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(model, allow_patterns=list(patterns), **kwargs))
    except Exception as error:  # the hub raises many kinds
        raise InputError(_explain(model, "model", None, error, example)) from error


def _load(kind: Any, folder: str, part: str, **kwargs) -> Any:
    """Call `kind.from_pretrained` for one part of a model.

    Raises:
        InputError: the part cannot be loaded, or its weight file lacks tensors.
    """
    with _explained(folder, part, kwargs.get("variant")):
        if part == "scheduler":
            return kind.from_pretrained(folder, subfolder=part)
        loaded, info = kind.from_pretrained(folder, subfolder=part, output_loading_info=True, **kwargs)
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(
            f"{part} weights in {folder} lack {len(missing)} tensors, the first {missing[0]}; "
            "the folder is incomplete, download it again"
        )
    return loaded


def _load_config(folder: str) -> dict[str, Any]:
    """Return the configuration of the U-Net."""
    with _explained(folder, "unet"):
        config = UNetSpatioTemporalConditionModel.load_config(folder, subfolder="unet")
        if not isinstance(config, dict):
            raise TypeError(f"config.json holds a {type(config).__name__}, not names and values")
        return config


@contextmanager
def _explained(folder: str, part: str, variant: str | None = None) -> Iterator[None]:
    """Turn every error of loading a part into an InputError."""
    try:
        yield
    except Exception as error:  # diffusers, transformers, safetensors and the hub each raise their own kinds
        raise InputError(_explain(folder, part, variant, error)) from error


def _explain(folder: str, part: str, variant: str | None, error: Exception, example: str = SVD) -> str:
    """Return one line that names the file, where it was expected and how to get it."""
    on_hub = folder.count("/") == 1 and not folder.startswith((".", "/", "~"))
    repository = folder if on_hub and not Path(folder).is_dir() else example
    get = f"get it with `hf download {repository} --local-dir DIR` and pass that folder"
    if Path(folder).is_dir():
        config, stem = _FILES[part]
        required = [config] + ([f"{stem}{f'.{variant}' if variant else ''}.safetensors"] if stem else [])
        missing = [name for name in required if not (Path(folder) / part / name).is_file()]
        if missing:
            return f"{part} of the model is not complete: no {' and no '.join(missing)} in {Path(folder) / part}; {get}"
        return f"{part} in {Path(folder) / part} cannot be loaded ({_first_line(error)}); {get}"
    if not on_hub:
        shipped = f", or use the model {' or '.join(map(repr, SHIPPED))}" if example == SVD else ""
        return f"no model folder {folder}; {get}{shipped}"
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
    """Return the first line of an error message, at most 160 characters, or the name of its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".")
