"""Convert the released files of LightningDrag, IP-Adapter and LCM-LoRA to one folder in diffusers' format."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from fp_lightning.baselines.lightning_drag import FAST, LORA_FILE, PointAdapter
from fp_lightning.errors import InputError
from fp_lightning.files import written_folder
from fp_lightning.weights.checkpoints import open_checkpoint
from fp_lightning.weights.convert import Converted, Weights, summary
from fp_lightning.weights.folders import empty_part, open_part, write_parts
from fp_lightning.weights.tensorfiles import (
    StoredTensor,
    check_weights,
    open_tensors,
    open_weights,
    plain_names,
    write_tensors,
)

# as the authors' INSTALLATION.md places them
OWN, PROMPT, LORA = Path("lightning-drag-sd15"), Path("IP-Adapter", "models"), Path("lcm-lora-sdv1-5")
IDLE = "up_blocks.3.attentions.2."  # of the appearance encoder, nothing after the last self-attention's input is used
USED = ("norm.", "proj_in.", "transformer_blocks.0.norm1.")
WIDTH = 16  # of the released point embedding
POSITIONS = {"conv1": 0, "conv2": 2}  # of its convolutions in their block


def convert_lightning_drag(released: str | Path, out: str | Path, dtype: torch.dtype | None = None) -> Converted:
    """Convert the released files to a folder that `load_lightning_drag` reads beside Stable Diffusion for inpainting.

    Args:
        released: folder with `lightning-drag-sd15`, `IP-Adapter/models` and, for few steps, `lcm-lora-sdv1-5`.
        out: the folder. It must not exist, or be empty.
        dtype: type of all weights; None keeps the type of each file.

    Raises:
        InputError: a file is missing or unreadable, its keys or shapes do not fit, or `out` is not empty.
    """
    released, out = Path(released), Path(out)
    own, prompt = released / OWN, released / PROMPT
    unet = empty_part(own, "appearance_encoder", _appearance_encoder)
    encoder = empty_part(prompt, "image_encoder", _image_encoder)
    weights = {
        "appearance_encoder": plain_names(open_weights(own / "appearance_encoder", "diffusion_pytorch_model"), own),
        "adapter": _adapter_weights(own, prompt),
        "image_encoder": open_part(prompt, "image_encoder"),
    }
    weights["appearance_encoder"] = _zeros(unet) | weights["appearance_encoder"]
    stem = weights["adapter"].get("point_embedding.conv_in.weight")
    adapter = empty_adapter(unet, encoder.config.projection_dim, WIDTH if stem is None else stem.shape[0] // 2)
    networks = {"appearance_encoder": unet, "adapter": adapter, "image_encoder": encoder}
    check_weights(networks, weights, str(released))
    lora = lora_weights(released / LORA / LORA_FILE, unet) if (released / LORA).is_dir() else None
    with written_folder(out) as partial:
        write_parts(partial, networks, weights, dtype)
        if lora is not None:
            write_tensors(partial / FAST / LORA_FILE, lora, dtype)
    notes = () if lora is not None else (f"note: {released / LORA} is missing, so edits take 25 steps instead of 8",)
    return summary(out, weights if lora is None else {**weights, FAST: lora}, notes)


def _appearance_encoder(config: dict[str, Any]) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_config({**config, "in_channels": 4})


def _image_encoder(config: dict[str, Any]) -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(config))


def empty_adapter(unet: UNet2DConditionModel, image: int, width: int) -> PointAdapter:
    """Build the adapter of a U-Net on the meta device; see `PointAdapter` for the arguments."""
    last, layers = len(unet.config.block_out_channels) - 1, []
    for name in unet.attn_processors:
        if name.endswith(".attn1.processor"):
            kind, block = name.split(".")[:2]  # "mid_block.attentions" has no number
            level = last if kind == "mid_block" else int(block) if kind == "down_blocks" else last - int(block)
            channels = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
            layers.append((8 * width * 2**level, channels))
    with torch.device("meta"):
        return PointAdapter(layers, width, unet.config.cross_attention_dim, image)


def _adapter_weights(own: Path, prompt: Path) -> Weights:
    """Return the released weights of the adapter by their names in `PointAdapter`. Unknown names stay as they are."""
    weights = {}
    points = open_checkpoint(own / "point_embedding" / "point_embedding.pt")
    for name, tensor in plain_names(points, own).items():
        part, *rest = name.split(".")
        if part.startswith("downsample_blocks_") and len(rest) == 3:
            block = int(rest[0]) + (3 if part == "downsample_blocks_unet" else 0)
            name = f"blocks.{block}.{POSITIONS.get(rest[1], rest[1])}.{rest[2]}"
        weights[f"point_embedding.{name}"] = tensor
    for name, tensor in plain_names(open_checkpoint(own / "lightning-drag-sd15-attn.bin"), own).items():
        weights[f"processors.{name}"] = tensor
    file = prompt / "ip-adapter_sd15.safetensors"
    images = open_tensors(file) if file.is_file() else open_checkpoint(file.with_suffix(".bin"))
    for name, tensor in images.items():
        name = name.replace("ip_adapter.", "processors.").replace("_ip.weight", "_ip.0.weight")
        name = name.replace("image_proj.proj.", "image_projection.image_embeds.")
        weights[name.replace("image_proj.", "image_projection.")] = tensor
    return weights


def _zeros(unet: UNet2DConditionModel) -> Weights:
    """Return zeros for what the released appearance encoder leaves out because nothing reads it."""
    zeros = {}
    for name, parameter in unet.state_dict().items():
        after = name.startswith(IDLE) and not name.removeprefix(IDLE).startswith(USED)
        if after or name.startswith(("conv_norm_out.", "conv_out.")):
            shape = tuple(parameter.shape)
            zeros[name] = StoredTensor(shape, torch.float32, partial(torch.zeros, shape))
    return zeros


def lora_weights(path: Path, unet: UNet2DConditionModel) -> Weights:
    """Return the adapters of a file by their names in diffusers' format, with their factors multiplied in.

    Raises:
        InputError: a tensor is missing, belongs to no layer or does not fit it.
    """
    layers = {"lora_unet_" + name.replace(".", "_"): (name, module) for name, module in unet.named_modules()}
    stored, weights = open_tensors(path), {}
    kinds = (".alpha", ".lora_down.weight", ".lora_up.weight")
    names = {name.removesuffix(kind) for name in stored for kind in kinds if name.endswith(kind)}
    wanted = {layer + kind for layer in names for kind in kinds}
    for kind, differing in (("unexpected", stored.keys() - wanted), ("missing", wanted - stored.keys())):
        if differing:
            raise InputError(f"{path} has {len(differing)} {kind} tensors (first: {min(differing)}); download it again")
    for layer in sorted(names):
        alpha, down, up = (stored[layer + kind] for kind in kinds)
        name, module = layers.get(layer, ("", None))
        shape = tuple(getattr(getattr(module, "weight", None), "shape", ()))
        if not shape or (up.shape[0], *down.shape[1:]) != shape or down.shape[0] != up.shape[1]:
            raise InputError(f"{path} does not fit Stable Diffusion 1.5: {layer} adapts no layer of its shape")

        def scaled(alpha: StoredTensor = alpha, up: StoredTensor = up) -> torch.Tensor:
            return (up.read().float() * (float(alpha.read()) / up.shape[1])).to(up.dtype)

        weights[f"{name}.lora_A.weight"] = down
        weights[f"{name}.lora_B.weight"] = StoredTensor(up.shape, up.dtype, scaled)
    return weights
