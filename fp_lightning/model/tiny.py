"""The tiny build: SVD's classes made small enough to train on two cores, as a folder in SVD's format.

`fp_lightning/assets/tiny` was written by the commands at the head of recipes/tiny_svd.yaml, which trains its U-Net,
with the VAE of recipes/tiny_vae.yaml.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler, UNetSpatioTemporalConditionModel
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from fp_lightning.model.control import ControlEncoder

EMBEDDING = 32  # width of the image embedding


def tiny_vae() -> AutoencoderKLTemporalDecoder:
    """A new temporal-decoder VAE: 8 latent channels, 4× downsampling, 2,071,176 parameters.

    Both ends of it are 96 wide, since diffusers fixes 32 groups in every normalisation: with one channel a group,
    normalisation takes an image's mean colours away.
    """
    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 3,
        block_out_channels=(96, 32, 96),
        layers_per_block=1,
        latent_channels=8,
        sample_size=64,
        force_upcast=True,
    )
    with torch.no_grad():  # a posterior narrow from the start: nothing is learnt through noise of unit size
        vae.quant_conv.bias[8:] = -6
    return vae


def tiny_unet() -> UNetSpatioTemporalConditionModel:
    """A new U-Net of two levels of 64 channels, one layer a block, 3,242,199 parameters."""
    return UNetSpatioTemporalConditionModel(
        sample_size=16,
        in_channels=16,
        out_channels=8,
        down_block_types=("CrossAttnDownBlockSpatioTemporal",) * 2,
        up_block_types=("CrossAttnUpBlockSpatioTemporal",) * 2,
        block_out_channels=(64, 64),
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
        layers_per_block=1,
        cross_attention_dim=EMBEDDING,
        num_attention_heads=(2, 2),
        num_frames=2,
    )


def tiny_image_encoder() -> CLIPVisionModelWithProjection:
    """A new CLIP vision tower; it stays random and frozen, a fixed projection of the image."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=224,
            patch_size=32,
            projection_dim=EMBEDDING,
        )
    )


def tiny_control_encoder() -> ControlEncoder:
    return ControlEncoder(widths=(32, 64, 96), out_channels=64)


def tiny_scheduler() -> EulerDiscreteScheduler:
    """SVD's scheduler over noise levels 0.02 to 40."""
    return EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        timestep_spacing="leading",
        timestep_type="continuous",
        steps_offset=1,
        use_karras_sigmas=True,
        sigma_min=0.02,
        sigma_max=40.0,
    )


def write_tiny(
    folder: str | Path,
    vae: AutoencoderKLTemporalDecoder,
    unet: UNetSpatioTemporalConditionModel | None = None,
    image_encoder: CLIPVisionModelWithProjection | None = None,
    seed: int = 0,
) -> Path:
    """Writes the tiny build in SVD's folder format, half precision.

    Args:
        folder: for `unet`, `vae`, `image_encoder`, `scheduler`, and the configuration of a control encoder.
        vae: as `recipes/tiny_vae.yaml` trains it.
        unet: as `recipes/tiny_svd.yaml` trains it; random if there is none.
        image_encoder: the one that the U-Net was trained with; random if there is none.
        seed: of what is random.
    """
    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {"unet": unet or tiny_unet(), "vae": vae, "image_encoder": image_encoder or tiny_image_encoder()}
    for name, part in parts.items():
        part.half().save_pretrained(folder / name)
    for name in ("unet", "vae"):  # where it was loaded from is of this machine
        config = folder / name / "config.json"
        kept = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
        config.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")
    tiny_control_encoder().save_config(folder / "control_encoder")
    tiny_scheduler().save_pretrained(folder / "scheduler")
    return folder


if __name__ == "__main__":
    write_tiny(
        sys.argv[3],
        AutoencoderKLTemporalDecoder.from_pretrained(sys.argv[1]),
        UNetSpatioTemporalConditionModel.from_pretrained(sys.argv[2]),
        CLIPVisionModelWithProjection.from_pretrained(Path(__file__).parents[1] / "assets" / "tiny" / "image_encoder"),
    )
