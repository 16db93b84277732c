"""SVD's full-size networks on the meta device: shapes without weights."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from fp_lightning.model.control import ControlEncoder
from fp_lightning.model.matching import AttentionKind
from fp_lightning.model.svd.unet import FramePainterUNet


def svd_unet(attention: AttentionKind = "matching") -> FramePainterUNet:
    """Return the full-size U-Net on the meta device."""
    with torch.device("meta"):
        return FramePainterUNet(attention=attention)


def svd_parts() -> dict[str, nn.Module]:
    """Return the released control encoder, SVD's VAE and its CLIP-H image encoder by name, on the meta device."""
    with torch.device("meta"):
        vae = AutoencoderKLTemporalDecoder(
            down_block_types=("DownEncoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            sample_size=768,
            force_upcast=True,
        )
        tower = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=1280,
                intermediate_size=5120,
                num_hidden_layers=32,
                num_attention_heads=16,
                image_size=224,
                patch_size=14,
                projection_dim=1024,
                hidden_act="gelu",
            )
        )
        return {"control_encoder": ControlEncoder(), "vae": vae, "image_encoder": tower}
