"""The choice of trainable weights: the whole U-Net (paper), or a part of it for less memory.

The control encoder and the matching branch always train, because SVD has no weights for them.
"""

from __future__ import annotations

from itertools import chain
from typing import Literal, get_args

import torch
from diffusers.models.upsampling import Upsample2D
from torch import nn

from fp_lightning.errors import InputError
from fp_lightning.model.control import ControlEncoder
from fp_lightning.model.svd.specialise import idle_weights
from fp_lightning.model.svd.unet import FramePainterUNet

Trains = Literal["all", "temporal", "matching+control", "lora"]
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # autocast type by the trainer's precision
ADAPTER = "default"  # peft's name of the adapter
BRANCH = ".attn1.processor."  # part of every weight name of the matching branch
_TEMPORAL = (".temporal_transformer_blocks.", ".temporal_res_block.", ".time_mixer.", ".time_pos_embed.")
# All attention projections except queries and keys of cross-attention: one context token makes them idle.
_ADAPTED = r".*\.(attn1\.(to_q|to_k|to_v|to_out\.0)|attn2\.(to_v|to_out\.0))"


def choose_trainable(
    unet: FramePainterUNet, control_encoder: ControlEncoder, trains: Trains = "all", lora_rank: int = 16
) -> None:
    """Freeze the weights that do not train, in place.

    Args:
        unet: the U-Net.
        control_encoder: the control encoder, which always trains.
        trains: "all" trains the whole U-Net (paper). "temporal" trains SVD's temporal layers. "matching+control"
            trains no weight of SVD. "lora" adds low-rank adapters (Hu et al. 2021, arXiv 2106.09685) to the
            projections of all attention layers; it needs peft.
        lora_rank: rank of the adapters. Their output is not scaled (α = rank).

    Raises:
        InputError: unknown `trains`, a rank below 1, or peft is not installed.
    """
    if trains not in get_args(Trains):
        raise InputError(f"trains must be {', '.join(get_args(Trains))}, got {trains!r}")
    if trains == "lora":
        add_adapters(unet, lora_rank)
    elif trains != "all":
        for name, weight in unet.named_parameters():
            weight.requires_grad_(trains == "temporal" and is_temporal(name))
    for name, weight in unet.named_parameters():
        if BRANCH in name:
            weight.requires_grad_(True)
    for weight in idle_weights(unet).values():
        weight.requires_grad_(False)
    control_encoder.requires_grad_(True)


def is_temporal(name: str) -> bool:
    """Return whether the U-Net weight `name` belongs to SVD's temporal layers."""
    return any(part in f".{name}" for part in _TEMPORAL)


def add_adapters(unet: FramePainterUNet, rank: int) -> None:
    """Add LoRA adapters to the attention of a U-Net, in place, and freeze all its other weights.

    Raises:
        InputError: a rank below 1, or peft is not installed.
    """
    if rank < 1:
        raise InputError(f"lora_rank must be 1 or more, got {rank}")
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise InputError("trains lora needs peft: pip install 'fp_lightning[lora]'") from error
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=_ADAPTED, init_lora_weights="gaussian")
    unet.add_adapter(config, ADAPTER)


def store_frozen(editor: nn.Module, dtype: torch.dtype) -> None:
    """Convert frozen linear and 2D convolution weights of the U-Net and the image encoder to `dtype`, in place.

    Results under autocast to `dtype` do not change by a bit, because autocast converts these weights at every use.
    Convolutions after upsampling keep their type: `specialise` adds up their taps before the conversion.
    """
    parts = [editor.get_submodule(f"prior.{name}") for name in ("unet", "image_encoder")]
    modules = list(chain.from_iterable(part.modules() for part in parts))
    summed = [module.conv for module in modules if isinstance(module, Upsample2D)]
    for module in modules:
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not module.weight.requires_grad and module not in summed:
            module.weight.data = module.weight.data.to(dtype)


def counts(editor: nn.Module) -> dict[str, tuple[int, int]]:
    """Return (trainable, total) parameter counts of an editor by group."""
    groups: dict[str, tuple[int, int]] = {}
    for name, weight in editor.named_parameters():
        group = _group(name)
        trained, total = groups.get(group, (0, 0))
        groups[group] = trained + weight.numel() * weight.requires_grad, total + weight.numel()
    return groups


def describe(editor: nn.Module) -> str:
    """Describe the parameter groups: "trains control encoder (3,526,400), …; keeps VAE (97,743,235), …"."""
    groups = counts(editor)
    trainable = [
        f"{group} ({trained:,}{'' if trained == total else f' of {total:,}'})"
        for group, (trained, total) in groups.items()
        if trained
    ]
    frozen = [f"{group} ({total:,})" for group, (trained, total) in groups.items() if not trained]
    return f"trains {', '.join(trainable)}; keeps {', '.join(frozen)}"


def _group(name: str) -> str:
    """Return the group that `counts` and `describe` show for a weight of an editor."""
    part = name.removeprefix("prior.").split(".", 1)[0]
    if part != "unet":
        return {"vae": "VAE"}.get(part, part.replace("_", " "))
    if ".lora_" in name:
        return "LoRA adapters"
    if BRANCH in name:
        return "matching branch"
    return "U-Net, temporal layers" if is_temporal(name) else "U-Net, spatial layers"
