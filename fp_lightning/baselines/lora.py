"""Low-rank adapters of the U-Net: trained on the one photo that is edited, or merged from a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor

from fp_lightning.baselines.stable_diffusion import TRAIN_STEPS, StableDiffusion, alphas_cumprod
from fp_lightning.errors import InputError
from fp_lightning.files import well_formed
from fp_lightning.weights.tensorfiles import open_tensors

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


@dataclass(frozen=True)
class LoraSettings:
    """How the adapters are trained.

    Attributes:
        rank: rank, and its scale.
        steps: training steps.
        learning_rate: of AdamW with weight decay 0.01.
        batch: noise levels a step.
        crop: train on random squares of the shorter side instead of the whole photo.
    """

    rank: int = 16
    steps: int = 80
    learning_rate: float = 5e-4
    batch: int = 4
    crop: bool = True


@contextmanager
def one_image_lora(
    sd: StableDiffusion, photo: Tensor, context: Tensor, settings: LoraSettings, generator: torch.Generator
) -> Iterator[None]:
    """Train adapters on a photo, and remove them after the block. In it, `scale` of the attention weighs them.

    The loss is the squared error of the predicted noise at uniform timesteps. The photo is encoded once, and crops
    are taken from its latents; the originals encode each crop of the pixels.

    Args:
        sd: the networks.
        photo: [3, H, W] in [-1, 1].
        context: text embedding [1, tokens, d].
        settings: how they are trained; with 0 steps there are none.
        generator: of crops, timesteps and noise, on the CPU.

    Raises:
        InputError: peft is missing.
    """
    if settings.steps == 0:
        yield
        return
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise InputError("LoRA needs peft: pip install 'fp-lightning[lora]'") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        sd.unet.add_adapter(
            LoraConfig(r=settings.rank, lora_alpha=settings.rank, init_lora_weights="gaussian", target_modules=TARGETS)
        )
    try:
        _train(sd, photo, context, settings, generator)
        yield
    finally:
        sd.unet.unload_lora()


def _train(
    sd: StableDiffusion, photo: Tensor, context: Tensor, settings: LoraSettings, generator: torch.Generator
) -> None:
    weights = [parameter for parameter in sd.unet.parameters() if parameter.requires_grad]
    for weight in weights:
        weight.data = weight.data.float()
    optimizer = torch.optim.AdamW(weights, settings.learning_rate, weight_decay=1e-2)
    with torch.no_grad():
        posterior = sd.vae.encode(photo[None].to(sd.device, sd.vae.dtype)).latent_dist
    mean, deviation = posterior.mean.float().cpu(), posterior.std.float().cpu()
    levels, side = alphas_cumprod().float(), min(mean.shape[-2:])

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator)

    for _ in range(settings.steps):
        sampled = (mean + deviation * draw(tuple(mean.shape))) * sd.vae.config.scaling_factor
        if settings.crop:
            top, left = (
                int(torch.randint(extent - side + 1, (), generator=generator)) for extent in sampled.shape[-2:]
            )
            sampled = sampled[..., top : top + side, left : left + side]
        clean = sampled.expand(settings.batch, -1, -1, -1)
        timesteps = torch.randint(TRAIN_STEPS, (settings.batch,), generator=generator)
        level, noise = levels[timesteps][:, None, None, None], draw(tuple(clean.shape))
        noisy = (level.sqrt() * clean + (1 - level).sqrt() * noise).to(sd.device, sd.unet.dtype)
        predicted = sd.unet(noisy, timesteps.to(sd.device), context.expand(settings.batch, -1, -1)).sample
        F.mse_loss(predicted.float(), noise.to(sd.device)).backward()
        optimizer.step()
        optimizer.zero_grad()
    sd.unet.requires_grad_(False)


def merge_lora(unet: UNet2DConditionModel, path: Path, remedy: str) -> None:
    """Add the adapters of a file in diffusers' format to the weights of a U-Net, W + B A (Hu et al. 2021, Eq. 3).

    Raises:
        InputError: the file is missing or damaged, or does not fit the U-Net.
    """
    tensors = {name: tensor.read() for name, tensor in open_tensors(path).items()}
    with well_formed(path, remedy):
        for name, down in tensors.items():
            if name.endswith(".lora_A.weight"):
                module = name.removesuffix(".lora_A.weight")
                weight, up = unet.get_submodule(module).weight, tensors[f"{module}.lora_B.weight"]
                if (up.shape[0], *down.shape[1:]) != weight.shape:
                    raise ValueError(f"{module} has another shape in the U-Net")
                weight += (up.float().flatten(1) @ down.float().flatten(1)).view(weight.shape).to(weight)
