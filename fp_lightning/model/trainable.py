"""Which weights of an editor train: all of the U-Net as in the paper, or fewer of them in less memory.

The control encoder and the matching branch always do: neither is in SVD.
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
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # by the trainer's precision
ADAPTER = "default"  # peft's name of the adapter
BRANCH = ".attn1.processor."  # in the names of the matching branch
_TEMPORAL = (".temporal_transformer_blocks.", ".temporal_res_block.", ".time_mixer.", ".time_pos_embed.")
# All projections of attention but the queries and keys of cross-attention, which are idle with one token.
_ADAPTED = r".*\.(attn1\.(to_q|to_k|to_v|to_out\.0)|attn2\.(to_v|to_out\.0))"


def choose_trainable(
    unet: FramePainterUNet, control_encoder: ControlEncoder, trains: Trains = "all", lora_rank: int = 16
) -> None:
    """Freezes what does not train, in place.

    Args:
        trains: "all" (paper); "temporal", SVD's layers along time; "matching+control", nothing of SVD's own; "lora",
            low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on the projections of all attention, through peft.
        lora_rank: of the adapters, whose output is not scaled (α = rank).

    Raises:
        InputError: an unknown choice, a rank below 1, or peft is not installed.
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
    """Whether a weight of the U-Net is one of SVD's layers along time."""
    return any(part in f".{name}" for part in _TEMPORAL)


def add_adapters(unet: FramePainterUNet, rank: int) -> None:
    """LoRA adapters on the attention of a U-Net, in place; all its other weights are frozen.

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
    """Keeps what does not train of the U-Net's and image encoder's matrices and image convolutions in `dtype`.

    Autocast to that type gives what it gave before, to the last bit: it converts them anyway, at every use. But those
    of an image that was enlarged stay as they are, of which `specialise` uses sums of taps.
    """
    parts = [editor.get_submodule(f"prior.{name}") for name in ("unet", "image_encoder")]
    modules = list(chain.from_iterable(part.modules() for part in parts))
    summed = [module.conv for module in modules if isinstance(module, Upsample2D)]
    for module in modules:
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not module.weight.requires_grad and module not in summed:
            module.weight.data = module.weight.data.to(dtype)


def counts(editor: nn.Module) -> dict[str, tuple[int, int]]:
    """Of each group of an editor's parameters: how many train, and how many there are."""
    groups: dict[str, tuple[int, int]] = {}
    for name, weight in editor.named_parameters():
        group = _group(name)
        trained, total = groups.get(group, (0, 0))
        groups[group] = trained + weight.numel() * weight.requires_grad, total + weight.numel()
    return groups


def describe(editor: nn.Module) -> str:
    """Its groups of parameters in words: "trains control encoder (3,526,400), …; keeps VAE (97,743,235), …"."""
    groups = counts(editor)
    trained = [
        f"{group} ({some:,}{'' if some == total else f' of {total:,}'})"
        for group, (some, total) in groups.items()
        if some
    ]
    kept = [f"{group} ({total:,})" for group, (some, total) in groups.items() if not some]
    return f"trains {', '.join(trained)}; keeps {', '.join(kept)}"


def _group(name: str) -> str:
    part = name.removeprefix("prior.").split(".", 1)[0]
    if part != "unet":
        return {"vae": "VAE"}.get(part, part.replace("_", " "))
    if ".lora_" in name:
        return "LoRA adapters"
    if BRANCH in name:
        return "matching branch"
    return "U-Net, temporal layers" if is_temporal(name) else "U-Net, spatial layers"
