"""SVD at full size with random weights, to measure time and memory, which do not depend on trained weights."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from diffusers import EulerDiscreteScheduler
from torch import nn

from fp_lightning.model.editor import FramePainter
from fp_lightning.model.svd.prior import SVDPrior
from fp_lightning.model.svd.shapes import svd_parts, svd_unet
from fp_lightning.model.svd.unet import FramePainterUNet

M = TypeVar("M", bound=nn.Module)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def full_unet() -> FramePainterUNet:
    """Build SVD's U-Net (1,524,623,082 parameters) with its matching branch (49,574,080), in float32."""
    return filled(svd_unet()).eval()


def full_editor() -> FramePainter:
    """Build an editor of the released architecture with SVD's VAE and CLIP-H: 2.3 G parameters, in float32."""
    parts: dict[str, Any] = {name: filled(part) for name, part in svd_parts().items()}
    scheduler = EulerDiscreteScheduler(sigma_min=0.002, sigma_max=700.0)  # an editor reads only the range
    control_encoder = parts.pop("control_encoder")
    return FramePainter(SVDPrior(full_unet(), **parts, scheduler=scheduler), control_encoder).eval()


@torch.no_grad()
def filled(network: M, seed: int = 0, device: str = DEVICE) -> M:
    """Fill a network on the meta device with random nonzero weights that keep activations in range."""
    network = network.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        else:
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(centre, 0.1, generator=generator)
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name == "position_ids":
                buffer.copy_(torch.arange(buffer.shape[-1])[None])
    return network
