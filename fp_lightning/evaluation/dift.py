"""Track points with features of Stable Diffusion 2.1 (DIFT, Tang et al. 2023), as DragBench measures drags."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.types import to_unit_range

TIMESTEP, UP_BLOCK, ENSEMBLE = 261, 1, 8  # settings of DragBench's evaluation


class DiftTracker:
    """Track points to the feature with the highest cosine similarity in the other image.

    Args:
        pipe: a text-to-image pipeline of Stable Diffusion. Its VAE, U-Net, text encoder and scheduler are used, with
            an empty prompt.
        seed: seed of the noise, which is the same for every image.
    """

    def __init__(self, pipe: Any, seed: int = 42) -> None:
        self.pipe, self.seed = pipe, seed

    def __call__(self, source: Tensor, edited: Tensor, points: Tensor) -> Tensor:
        """Find points [p, 2] (x, y) of `source` uint8 [3, h, w] in `edited`: [p, 2], pixel centres."""
        before, after = self.features(source), self.features(edited)
        height, width = source.shape[-2:]
        x, y = points[:, 0].long().clamp(0, width - 1), points[:, 1].long().clamp(0, height - 1)
        query = F.normalize(before[:, y, x], dim=0)  # [c, p]
        best = (query.T @ F.normalize(after, dim=0).flatten(1)).argmax(1).cpu()
        return torch.stack([best % width, best // width], 1) + 0.5

    @torch.no_grad()
    def features(self, image: Tensor) -> Tensor:
        """Features [c, h, w] of an image uint8 [3, h, w]: an up-block's output, resized, mean over noise samples."""
        pipe, kept = self.pipe, []
        unet, device = pipe.unet, pipe.unet.device
        generator = torch.Generator().manual_seed(self.seed)
        pixels = to_unit_range(image)[None].to(device, unet.dtype)
        latents = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
        noise = torch.randn((ENSEMBLE, *latents.shape[1:]), generator=generator).to(latents)
        timestep = torch.tensor([TIMESTEP], device=device)
        noisy = pipe.scheduler.add_noise(latents.expand(ENSEMBLE, -1, -1, -1), noise, timestep)
        hook = unet.up_blocks[UP_BLOCK].register_forward_hook(lambda module, args, output: kept.append(output))
        try:
            unet(noisy, timestep, self.prompt().expand(ENSEMBLE, -1, -1))
        finally:
            hook.remove()
        mean = kept[0].float().mean(0, keepdim=True)
        return F.interpolate(mean, image.shape[-2:], mode="bilinear")[0]

    def prompt(self) -> Tensor:
        """The empty prompt's embedding, [1, tokens, d]."""
        pipe = self.pipe
        tokens = pipe.tokenizer("", padding="max_length", max_length=pipe.tokenizer.model_max_length, truncation=True)
        return pipe.text_encoder(torch.tensor([tokens.input_ids], device=pipe.unet.device))[0]


@lru_cache(maxsize=1)
def load_dift(name_or_folder: str, device: torch.device, download: bool = False) -> DiftTracker:
    """Load the tracker with Stable Diffusion from a folder or the hub's cache.

    Raises:
        InputError: it is in neither and was not downloaded.
    """
    from diffusers import StableDiffusionPipeline

    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            pipe = StableDiffusionPipeline.from_pretrained(
                name_or_folder, local_files_only=not download, safety_checker=None, requires_safety_checker=False
            )
    except (OSError, ValueError) as error:
        raise InputError(
            f"tracker dift needs Stable Diffusion, which cannot be loaded from {name_or_folder} "
            f"({str(error).strip().splitlines()[0]}); name its folder as dift_model, or use tracker: flow"
        ) from error
    return DiftTracker(pipe.to(device))
