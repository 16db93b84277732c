"""Read folders in diffusers' format: settings, networks on the meta device, weights on demand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLTemporalDecoder
from diffusers.pipelines.pipeline_loading_utils import _fetch_class_library_tuple
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from fp_lightning import files
from fp_lightning.errors import InputError
from fp_lightning.model.control import ControlEncoder
from fp_lightning.model.svd.unet import FramePainterUNet
from fp_lightning.weights.tensorfiles import TRANSFORMERS_STEM, StoredTensor, open_weights, write_tensors

PIPELINE = "FramePainterPipeline"  # class name in model_index.json
STEMS = {  # file name of each part's weights, without suffix
    "unet": "diffusion_pytorch_model",
    "control_encoder": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "image_encoder": TRANSFORMERS_STEM,
}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a model folder.

    Raises:
        InputError: the file is missing, damaged, or holds no names and values.
    """
    content = files.read_json(path, "the folder is incomplete")
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not names and values; the folder is damaged")
    return content


def read_index(folder: Path) -> dict[str, Any]:
    """Return the settings of a FramePainter pipeline, the content of its model_index.json.

    Raises:
        InputError: the folder is not a FramePainter pipeline.
    """
    if not (folder / "model_index.json").is_file():
        raise InputError(
            f"{folder} is not a pipeline folder: it has no model_index.json; `fp-lightning convert` makes one from the "
            "released files or from a checkpoint"
        )
    index = read_json(folder / "model_index.json")
    if index.get("_class_name") != PIPELINE:
        raise InputError(
            f"{folder} is a {index.get('_class_name')}, not a {PIPELINE}; `fp-lightning convert` makes one"
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
    """Build the networks of a folder on the meta device, by name of part.

    A folder without a control encoder gets one with the released architecture.

    Args:
        folder: folder in diffusers' format.
        attention: fields that override the U-Net's configuration.

    Raises:
        InputError: a configuration is missing or unreadable.
    """
    unet = empty_part(folder, "unet", lambda config: FramePainterUNet.from_config({**config, **(attention or {})}))
    if (folder / "control_encoder" / "config.json").is_file():
        control = empty_part(folder, "control_encoder", ControlEncoder.from_config)
    else:
        with torch.device("meta"):
            control = ControlEncoder(out_channels=unet.config.block_out_channels[0])
    return {
        "unet": unet,
        "control_encoder": control,
        "vae": empty_part(folder, "vae", AutoencoderKLTemporalDecoder.from_config),
        "image_encoder": empty_part(
            folder, "image_encoder", lambda config: CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(config))
        ),
    }


def empty_part(folder: Path, part: str, build: Callable[[dict[str, Any]], nn.Module]) -> Any:
    """Build a part of a folder on the meta device from the content of its config.json.

    Raises:
        InputError: the configuration is missing, unreadable, or makes no network.
    """
    path = folder / part / "config.json"
    config = read_json(path)
    try:
        with torch.device("meta"):
            return build(config)
    except Exception as error:  # diffusers and transformers raise many types on wrong settings
        raise InputError(
            f"{path} describes no network ({files.reason(error)}); download or copy the folder again"
        ) from error


def write_parts(
    folder: Path,
    networks: Mapping[str, Any],
    weights: Mapping[str, Mapping[str, StoredTensor]],
    dtype: torch.dtype | None = None,
) -> None:
    """Write the configuration and the weights of each part into a folder.

    Args:
        folder: folder that has none of the parts.
        networks: networks by name of part, on any device including meta. They provide the configurations.
        weights: tensors by name of part.
        dtype: type of all weights; None keeps theirs.
    """
    for part, tensors in weights.items():
        network = networks[part]
        (folder / part).mkdir()
        if part == "image_encoder":
            network.config.save_pretrained(folder / part)
        else:
            network.save_config(folder / part)
        write_tensors(folder / part / f"{STEMS.get(part, STEMS['unet'])}.safetensors", tensors, dtype)


def open_part(folder: Path, part: str, variant: str | None = None) -> dict[str, StoredTensor]:
    """Return the tensors of a part by name, to be read on demand; see `open_weights` for errors."""
    weights = open_weights(folder / part, STEMS[part], variant)
    weights.pop("vision_model.embeddings.position_ids", None)  # older CLIP files store this index
    return weights
