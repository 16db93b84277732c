"""What the baselines share: Stable Diffusion 1.x from a folder, DDIM in both directions, the order of its attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ModelMixin, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from fp_lightning.errors import InputError
from fp_lightning.files import read_json, reason

STRIDE = 8  # pixels per latent
TRAIN_STEPS, FIRST, LAST = 1000, 0.00085, 0.012  # of Stable Diffusion's noise schedule, linear in √β
SCHEDULE = {  # the same for diffusers' schedulers
    "beta_start": FIRST, "beta_end": LAST, "beta_schedule": "scaled_linear", "steps_offset": 1,
    "clip_sample": False, "set_alpha_to_one": False,
}  # fmt: skip
Predict = Callable[[Tensor, int], Tensor]  # (x, timestep) → ε


def alphas_cumprod() -> Tensor:
    """Return ᾱ of Stable Diffusion, float64 [1000]."""
    betas = torch.linspace(FIRST**0.5, LAST**0.5, TRAIN_STEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


class Ddim:
    """DDIM (Song et al. 2021) over `steps` levels, as Stable Diffusion's scheduler spaces them.

    Args:
        steps: number of levels; 1000 must be a multiple of it.
        final: ᾱ below the lowest level; None for ᾱ of timestep 0, as in Stable Diffusion.
        offset: lowest timestep.

    Raises:
        InputError: 1000 is no multiple of `steps`.
    """

    def __init__(self, steps: int, final: float | None = None, offset: int = 1) -> None:
        if steps < 1 or TRAIN_STEPS % steps:
            raise InputError(f"--steps must divide {TRAIN_STEPS}, got {steps}; try 50 or 100")
        self.steps, self.stride = steps, TRAIN_STEPS // steps
        self.timesteps = [offset + self.stride * i for i in reversed(range(steps))]  # falling
        self._levels = alphas_cumprod().tolist()
        self._final = self._levels[0] if final is None else final

    def level(self, timestep: int) -> float:
        """Return ᾱ of a timestep; of the clean image for a negative one."""
        return self._levels[timestep] if timestep >= 0 else self._final

    def clean(self, x: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """Return x̂0 from x at `timestep` and the predicted noise."""
        level = self.level(timestep)
        return (x - (1 - level) ** 0.5 * noise) / level**0.5

    def move(self, x: Tensor, noise: Tensor, begin: int, end: int) -> Tensor:
        """Move x from timestep `begin` to `end`, up or down, with the predicted noise."""
        level = self.level(end)
        return level**0.5 * self.clean(x, noise, begin) + (1 - level) ** 0.5 * noise

    def step(self, x: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """Move x from `timestep` to the next lower level."""
        return self.move(x, noise, timestep, timestep - self.stride)

    def add_noise(self, clean: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """Return x at `timestep`, drawn directly."""
        level = self.level(timestep)
        return level**0.5 * clean + (1 - level) ** 0.5 * noise

    def invert(self, clean: Tensor, predict: Predict, count: int | None = None) -> list[Tensor]:
        """Invert a clean latent: x at 0 and at the `count` lowest levels (all by default), [count + 1] rising.

        The network sees each state at the timestep of the level above it, as all these methods do.
        """
        states = [clean]
        for timestep in reversed(self.timesteps[-(count or self.steps) :]):
            x = states[-1]
            states.append(self.move(x, predict(x, timestep), timestep - self.stride, timestep))
        return states

    def sample(self, x: Tensor, predict: Predict, count: int | None = None) -> Tensor:
        """Sample from x at the `count`-th lowest level (the highest by default) down to the clean latent."""
        for timestep in self.timesteps[-(count or self.steps) :]:
            x = self.step(x, predict(x, timestep), timestep)
        return x


@dataclass
class LatentDiffusion:
    """A U-Net and the autoencoder of its latents, in evaluation mode without gradients."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL

    @property
    def device(self) -> torch.device:
        """The device of all networks."""
        return self.unet.device

    @torch.no_grad()
    def encode(self, photo: Tensor) -> Tensor:
        """Encode a photo [3, H, W] in [-1, 1] to its mean latent [1, 4, h, w], scaled."""
        latents = self.vae.encode(photo[None].to(self.device, self.vae.dtype)).latent_dist.mean
        return latents * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents [1, 4, h, w] to an image [3, H, W], float32 in [-1, 1] on the CPU."""
        image = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
        return image[0].float().clamp(-1, 1).cpu()


@dataclass
class StableDiffusion(LatentDiffusion):
    """The networks of Stable Diffusion 1.x, in evaluation mode without gradients."""

    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer

    @torch.no_grad()
    def embed(self, text: str = "") -> Tensor:
        """Embed a prompt: [1, tokens, d]."""
        tokens = self.tokenizer(
            text, padding="max_length", max_length=self.tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        return self.text_encoder(tokens.input_ids.to(self.device))[0]

    def predictor(self, context: Tensor, **options: Any) -> Predict:
        """Return the noise prediction under one text embedding [1, tokens, d], for any batch."""

        def predict(x: Tensor, timestep: int) -> Tensor:
            return self.unet(x, timestep, context.expand(len(x), -1, -1), **options).sample

        return predict


def load_stable_diffusion(
    model: str | Path, channels: int = 4, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> StableDiffusion:
    """Load Stable Diffusion 1.x from a folder in diffusers' format.

    Args:
        model: the folder, with `unet`, `vae`, `text_encoder` and `tokenizer`.
        channels: input channels of the U-Net; 9 for inpainting.
        dtype: type of the networks.
        device: device of the networks.

    Raises:
        InputError: a part is missing or damaged, or the model is another kind of Stable Diffusion.
    """
    folder = Path(model)
    if not folder.is_dir():
        raise InputError(f"--model {model} is not a folder; download Stable Diffusion 1.5 in diffusers' format")
    for part in ("unet", "vae", "text_encoder"):
        read_json(folder / part / "config.json", "download the folder again")
    read_json(folder / "tokenizer" / "tokenizer_config.json", "download the folder again")
    kind = "an inpainting" if channels == 9 else "a text-to-image"
    check_unet(folder / "unet", channels, f"use {kind} model of Stable Diffusion 1.x")
    parts = {
        "unet": load_part(UNet2DConditionModel, folder, "unet", dtype),
        "vae": load_part(AutoencoderKL, folder, "vae", dtype),
        "text_encoder": load_part(CLIPTextModel, folder, "text_encoder", dtype),
    }
    tokenizer = load_part(CLIPTokenizer, folder, "tokenizer")
    return StableDiffusion(**{name: part.to(device) for name, part in parts.items()}, tokenizer=tokenizer)


def check_unet(folder: Path, channels: int, remedy: str) -> None:
    """Check by its configuration that a folder holds a U-Net of the kind of Stable Diffusion 1.x.

    Raises:
        InputError: it takes another number of input channels, or belongs to another kind of Stable Diffusion.
    """
    config = read_json(folder / "config.json", remedy)
    kind = config.get("addition_embed_type")
    if kind is not None:
        raise InputError(f"{folder} is a model with {kind} conditioning, such as SDXL; this needs Stable Diffusion 1.x")
    if config.get("in_channels") != channels:
        found = config.get("in_channels")
        raise InputError(f"the U-Net of {folder} has {found} input channels, but {channels} are needed; {remedy}")


def load_part(kind: Any, folder: Path, part: str, dtype: torch.dtype | None = None) -> Any:
    """Load a part of a model's folder; a network is frozen.

    Raises:
        InputError: it is missing or damaged.
    """
    options = {} if dtype is None else {"torch_dtype" if issubclass(kind, ModelMixin) else "dtype": dtype}
    try:
        loaded = kind.from_pretrained(folder, subfolder=part, local_files_only=True, **options)
    except Exception as error:  # diffusers, transformers and safetensors each raise their own kinds
        raise InputError(f"{folder / part} cannot be loaded ({reason(error)}); download the folder again") from error
    return loaded if dtype is None else loaded.eval().requires_grad_(False)


def transformer_blocks(unet: UNet2DConditionModel) -> list[tuple[str, BasicTransformerBlock]]:
    """Return the U-Net's transformer blocks with their names, in the order in which they run.

    Stable Diffusion 1.x has 16: 6 of the down blocks, 1 in the middle, and 3 each of the up blocks 1, 2 and 3. The
    papers' "layer 10" is the first one of up block 2.
    """

    def named(prefix: str) -> Iterator[tuple[str, BasicTransformerBlock]]:
        for name, module in unet.named_modules():
            if name.startswith(prefix) and isinstance(module, BasicTransformerBlock):
                yield name, module

    return [block for prefix in ("down_blocks.", "mid_block.", "up_blocks.") for block in named(prefix)]


def late_blocks(unet: UNet2DConditionModel) -> list[tuple[str, BasicTransformerBlock]]:
    """Return the transformer blocks of the last two up blocks: layers 10 to 15 of Stable Diffusion 1.x."""
    last = len(unet.up_blocks)
    wanted = tuple(f"up_blocks.{index}." for index in (last - 2, last - 1))
    return [(name, block) for name, block in transformer_blocks(unet) if name.startswith(wanted)]


@contextmanager
def up_features(unet: UNet2DConditionModel, *blocks: int) -> Iterator[list[Tensor]]:
    """Collect the outputs of up blocks. In Stable Diffusion 1.x, 1 has 1280 channels at 1/16 and 2 has 640 at 1/8."""
    kept: list[Tensor] = []
    hooks = [unet.up_blocks[block].register_forward_hook(lambda *call: kept.append(call[2])) for block in blocks]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()
