"""Convert the released file of Magic Fixup, in the format of the first Stable Diffusion, to diffusers' format."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

from fp_lightning.baselines.magic_fixup import LICENCE, UNETS
from fp_lightning.baselines.stable_diffusion import SCHEDULE
from fp_lightning.errors import InputError
from fp_lightning.files import well_formed, written_folder
from fp_lightning.weights.checkpoints import open_checkpoint
from fp_lightning.weights.convert import Converted, Weights, summary
from fp_lightning.weights.folders import write_parts
from fp_lightning.weights.tensorfiles import StoredTensor, check_weights, open_tensors, plain_names

PREFIXES = dict(zip(UNETS, ("model.diffusion_model.", "model.reference_model."), strict=True))
VAE = "first_stage_model."
LEVELS = "alphas_cumprod"
UNUSED = re.compile(  # an image embedding that is always zero, and what follows from the noise levels
    r"(learnable_vector|proj_out\.|cond_stage_model\.|betas|alphas_cumprod|sqrt_|log_one_minus_|posterior_).*"
)
DEAD = re.compile(r"\.attn2\.|\.merge_attentions")  # layers of the U-Nets that never run
WIDTHS = (1, 2, 4, 4)  # of the blocks, in widths of the first one
HEADS, LAYERS, DOWN, UP = 8, 2, ["DownEncoderBlock2D"] * 4, ["UpDecoderBlock2D"] * 4


def convert_magic_fixup(
    released: str | Path, out: str | Path, dtype: torch.dtype | None = None, accept_license: bool = False
) -> Converted:
    """Convert the released file to a folder that `load_magic_fixup` reads.

    Args:
        released: the file, a checkpoint or safetensors. A checkpoint is read by torch's restricted reader.
        out: the folder. It must not exist, or be empty.
        dtype: type of all weights; None keeps theirs.
        accept_license: consent to `LICENCE`, which is required.

    Raises:
        InputError: the licence is not accepted, the file is missing or unreadable, its keys or shapes do not fit, or
            `out` is not empty.
    """
    if not accept_license:
        raise InputError(f"{LICENCE}; pass --accept-license")
    path, out = Path(released), Path(out)
    stored = open_tensors(path) if path.suffix == ".safetensors" else open_checkpoint(path)
    stored = plain_names({name.removeprefix("state_dict."): tensor for name, tensor in stored.items()}, path)
    known = (*PREFIXES.values(), VAE)
    unknown = sorted(name for name in stored if not name.startswith(known) and not UNUSED.fullmatch(name))
    if unknown:
        raise InputError(f"{path} has {len(unknown)} unknown tensors (first: {unknown[0]}); pass the released file")
    with well_formed(path, "download it again"):
        weights = convert_parts(stored)
    networks = empty_networks(weights)
    check_weights(networks, weights, str(path))
    scheduler = DDIMScheduler(**SCHEDULE, rescale_betas_zero_snr=_ends_at_noise(stored, path))
    with written_folder(out) as partial:
        write_parts(partial, networks, weights, dtype)
        scheduler.save_pretrained(partial / "scheduler")
    return summary(out, weights, ())


def empty_networks(weights: Mapping[str, Weights]) -> dict[str, Any]:
    """Build the networks on the meta device, as wide as their first layers."""

    def widths(part: str, layer: str, usual: int) -> tuple[int, ...]:
        first = weights[part].get(layer)
        return tuple((usual if first is None else first.shape[0]) * factor for factor in WIDTHS)

    with torch.device("meta"):
        networks: dict[str, Any] = {}
        for part in UNETS:
            blocks = widths(part, "conv_in.weight", 320)
            networks[part] = UNet2DConditionModel(
                in_channels=9, block_out_channels=blocks, cross_attention_dim=blocks, attention_head_dim=HEADS
            )
        blocks = widths("vae", "encoder.conv_in.weight", 128)
        networks["vae"] = AutoencoderKL(
            block_out_channels=blocks, layers_per_block=LAYERS, down_block_types=DOWN, up_block_types=UP
        )
    return networks


def convert_parts(stored: Weights) -> dict[str, Weights]:
    """Return the weights of both U-Nets and of the autoencoder by their names in diffusers' format."""
    return {**{part: _unet(stored, prefix) for part, prefix in PREFIXES.items()}, "vae": _vae(stored)}


def _unet(stored: Weights, prefix: str) -> Weights:
    """Return the weights of a U-Net; the attention to the other one takes the place of that to a prompt."""
    names = {name: name.removeprefix(prefix) for name in stored if name.startswith(prefix) and not DEAD.search(name)}
    tensors = {name.replace(".attn3.", ".attn2."): stored[full] for full, name in names.items()}
    return _renamed(tensors, "model.diffusion_model.", convert_ldm_unet_checkpoint, {"layers_per_block": LAYERS})


def _vae(stored: Weights) -> Weights:
    """Return the weights of the autoencoder; its attention has convolutions of one pixel, which are linear layers."""
    tensors = {name.removeprefix(VAE): tensor for name, tensor in stored.items() if name.startswith(VAE)}
    for name, tensor in tensors.items():
        if ".attn_1." in name and len(tensor.shape) == 4:
            tensors[name] = _linear(tensor)
    return _renamed(tensors, VAE, convert_ldm_vae_checkpoint, {"down_block_types": DOWN, "up_block_types": UP})


def _linear(convolution: StoredTensor) -> StoredTensor:
    return StoredTensor(
        convolution.shape[:2], convolution.dtype, lambda: convolution.read().reshape(convolution.shape[:2])
    )


def _renamed(
    tensors: Weights, prefix: str, convert: Callable[..., dict[str, StoredTensor]], config: dict[str, Any]
) -> Weights:
    """Return tensors by their names in diffusers' format; those that it does not know keep theirs."""
    found = convert({prefix + name: tensor for name, tensor in tensors.items()}, config)
    known = {id(tensor) for tensor in found.values()}
    return found | {name: tensor for name, tensor in tensors.items() if id(tensor) not in known}


def _ends_at_noise(stored: Weights, path: Path) -> bool:
    """Return whether the file's noise levels end at pure noise (Lin et al. 2023), or are Stable Diffusion's own."""
    found = stored[LEVELS].read().float() if LEVELS in stored else torch.empty(0)
    for rescaled in (True, False):
        expected = DDIMScheduler(**SCHEDULE, rescale_betas_zero_snr=rescaled).alphas_cumprod
        if found.shape == expected.shape and torch.allclose(found, expected, rtol=0, atol=5e-3):
            return rescaled
    raise InputError(f"{path} has no {LEVELS} of Stable Diffusion 1.x; pass the released file")
