"""SVD at its full size with random weights, for what depends on the size and not on what was learnt."""

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
    """SVD's U-Net, 1,524,623,082 parameters, with a matching branch of 49,574,080, float32."""
    return filled(svd_unet()).eval()


def full_editor() -> FramePainter:
    """An editor of the released architecture, with SVD's VAE and CLIP-H: float32, 2.3 G parameters."""
    parts: dict[str, Any] = {name: filled(part) for name, part in svd_parts().items()}
    scheduler = EulerDiscreteScheduler(sigma_min=0.002, sigma_max=700.0)  # of which an editor takes the range alone
    control_encoder = parts.pop("control_encoder")
    return FramePainter(SVDPrior(full_unet(), **parts, scheduler=scheduler), control_encoder).eval()


@torch.no_grad()
def filled(network: M, seed: int = 0, device: str = DEVICE) -> M:
    """The network, made on the meta device, with random weights that keep activations in range; none is zero."""
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
