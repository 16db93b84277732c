"""Folders in diffusers' format: their settings, their networks without memory, their weights unread."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLTemporalDecoder
from diffusers.pipelines.pipeline_loading_utils import _fetch_class_library_tuple
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from fp_lightning.errors import InputError
from fp_lightning.model.control import ControlEncoder
from fp_lightning.model.svd.unet import FramePainterUNet
from fp_lightning.weights.tensorfiles import StoredTensor, open_weights

PIPELINE = "FramePainterPipeline"  # class name in model_index.json
STEMS = {  # of each part's weight file
    "unet": "diffusion_pytorch_model",
    "control_encoder": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "image_encoder": "model",
}


def read_json(path: Path) -> dict[str, Any]:
    """Raises InputError when the file is missing or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} is not readable JSON ({reason}); the folder is not complete") from error


def read_index(folder: Path) -> dict[str, Any]:
    """The settings of a FramePainter pipeline.

    Raises:
        InputError: the folder is none.
    """
    if not (folder / "model_index.json").is_file():
        raise InputError(
            f"{folder} is no pipeline folder, it has no model_index.json; `fp-lightning convert` writes one from the "
            "released files or from a checkpoint"
        )
    index = read_json(folder / "model_index.json")
    if index.get("_class_name") != PIPELINE:
        raise InputError(
            f"{folder} is a {index.get('_class_name')}, not a {PIPELINE}; `fp-lightning convert` writes one"
        )
    return index


def write_index(folder: Path, parts: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write model_index.json of a FramePainter pipeline, as `FramePainterPipeline.save_pretrained` does.

    Args:
        parts: networks and scheduler by name; the file holds their classes.
        settings: size, control_frames, control_factor and signals, see `FramePainterPipeline`.
    """
    classes = {name: list(_fetch_class_library_tuple(part)) for name, part in parts.items()}
    index = {**classes, **settings, "_class_name": PIPELINE, "_diffusers_version": diffusers.__version__}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def empty_networks(folder: Path, attention: Mapping[str, Any] | None = None) -> dict[str, nn.Module]:
    """The networks that the folder's configurations describe, on the meta device.

    Args:
        attention: replaces these fields of the U-Net's configuration. A folder without control encoder gets the
            released one's architecture.

    Raises:
        InputError: a configuration is missing or unreadable.
    """
    configs = {part: read_json(folder / part / "config.json") for part in ("unet", "vae", "image_encoder")}
    with torch.device("meta"):
        unet = FramePainterUNet.from_config({**configs["unet"], **(attention or {})})
        if (folder / "control_encoder" / "config.json").is_file():
            control = ControlEncoder.from_config(read_json(folder / "control_encoder" / "config.json"))
        else:
            control = ControlEncoder(out_channels=unet.config.block_out_channels[0])
        vae = AutoencoderKLTemporalDecoder.from_config(configs["vae"])
        image_encoder = CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(configs["image_encoder"]))
    return {"unet": unet, "control_encoder": control, "vae": vae, "image_encoder": image_encoder}


def open_part(folder: Path, part: str, variant: str | None = None) -> dict[str, StoredTensor]:
    """A part's tensors by name, unread; raises InputError as `open_weights` does."""
    weights = open_weights(folder / part, STEMS[part], variant)
    weights.pop("vision_model.embeddings.position_ids", None)  # a counter in older files of CLIP
    return weights
