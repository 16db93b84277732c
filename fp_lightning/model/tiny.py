"""The tiny model: SVD's classes, small enough to train on two cores, saved as a folder in SVD's format.

The commands at the top of recipes/tiny_svd.yaml write `fp_lightning/assets/tiny`. That recipe trains the U-Net, and
recipes/tiny_vae.yaml trains the VAE.
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
    """Return a new temporal-decoder VAE: 16 latent channels, 4× downsampling, 2,029,384 parameters.

    Its layers have 64 channels or more, because diffusers normalises in 32 groups. Groups of one channel would remove
    the mean colours of an image.
    """
    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 3,
        block_out_channels=(64, 64, 96),
        layers_per_block=1,
        latent_channels=16,
        sample_size=64,
        force_upcast=True,
    )
    with torch.no_grad():  # start with a narrow posterior: the decoder learns nothing from latents under unit noise
        vae.quant_conv.bias[16:] = -6
    return vae


def tiny_unet() -> UNetSpatioTemporalConditionModel:
    """Return a new U-Net: two levels of 64 channels, one layer per block, 3,256,031 parameters."""
    return UNetSpatioTemporalConditionModel(
        sample_size=16,
        in_channels=32,
        out_channels=16,
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
    """Return a new CLIP vision tower. It is never trained: its random weights are a fixed projection of the image."""
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
    """Return a new control encoder for the tiny U-Net."""
    return ControlEncoder(widths=(32, 64, 96), out_channels=64)


def tiny_scheduler() -> EulerDiscreteScheduler:
    """Return SVD's scheduler with noise levels from 0.02 to 40."""
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
    """Write the tiny model in SVD's folder format, in half precision, and return the folder.

    Args:
        folder: receives `unet`, `vae`, `image_encoder`, `scheduler` and the configuration of a control encoder.
        vae: VAE trained by `recipes/tiny_vae.yaml`.
        unet: U-Net trained by `recipes/tiny_svd.yaml`; None for random weights.
        image_encoder: the image encoder that the U-Net was trained with; None for random weights.
        seed: seed of the random weights.
    """
    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {"unet": unet or tiny_unet(), "vae": vae, "image_encoder": image_encoder or tiny_image_encoder()}
    for name, part in parts.items():
        part.half().save_pretrained(folder / name)
    for name in ("unet", "vae"):  # remove the local path that the part was loaded from
        config = folder / name / "config.json"
        settings = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
        config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
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
