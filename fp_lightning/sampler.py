"""Sampling: Euler over a Karras schedule, guidance with inverse-square decay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fp_lightning import edm
from fp_lightning.editor import NOISE_AUGMENTATION, Condition, FramePainter
from fp_lightning.errors import InputError
from fp_lightning.types import EditBatch

Denoise = Callable[[Tensor, Tensor, int], Tensor]  # (x, sigma, step) → the clean latents as seen from x
Progress = Callable[[int, Tensor], Tensor | None]  # (step, latents after it) → others to go on with, or None


@dataclass(frozen=True)
class Sampling:
    """How an edit is drawn.

    Args:
        num_inference_steps: Euler steps.
        guidance_scale: w at the first step; it decays to 1. 1 is no guidance, and half the work.
        control_scale: strength of the control image and of the drag points.
    """

    num_inference_steps: int = 25
    guidance_scale: float = 3.0
    control_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise InputError(f"num_inference_steps must be at least 1, got {self.num_inference_steps}")


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, progress: Progress | None = None) -> Tensor:
    """Integrates dx/dσ = (x − D(x; σ)) / σ along `sigmas` [n + 1] (Karras et al. 2022, Algorithm 1, first order)."""
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        slope = (x - denoise(x, sigma, step)) / sigma
        x = x + slope * (following - sigma)
        if progress is not None:
            changed = progress(step, x)
            x = x if changed is None else changed
    return x


def guidance_weight(scale: float, step: int, steps: int) -> float:
    """(w − 1)(1 − i/N)² + 1: the released model's decay, the same for both frames."""
    return (scale - 1) * (1 - step / steps) ** 2 + 1


def guided(editor: FramePainter, condition: Condition, scale: float, steps: int) -> Denoise:
    """The editor's denoiser under classifier-free guidance; where the weight is 1 only one half is computed.

    The unconditional half has neither control nor points.
    """
    both = Condition.cat(condition.unconditional(), condition)

    def denoise(x: Tensor, sigma: Tensor, step: int) -> Tensor:
        weight, levels = guidance_weight(scale, step, steps), sigma.expand(len(x))
        if weight == 1:
            return editor.denoise(x, levels, condition)[0]
        without, given = editor.denoise(torch.cat([x, x]), torch.cat([levels, levels]), both)[0].chunk(2)
        return without + weight * (given - without)

    return denoise


@torch.no_grad()
def sample_latents(
    editor: FramePainter,
    batch: EditBatch,
    settings: Sampling,
    generators: Sequence[torch.Generator],
    progress: Progress | None = None,
) -> Tensor:
    """Scaled latents [b, 2, 4, h, w] of the source and of the edit.

    Args:
        batch: with source and what the user drew, control, points or both; others are not looked at.
        generators: one a sample, on the CPU; a sample's result depends on its own alone.
        progress: called after each step with the latents; it may return others.

    Raises:
        InputError: height or width does not fit the network.
    """
    height, width = batch.source.shape[-2:]
    editor.check_size((height, width))
    device, stride = batch.source.device, editor.vae_stride

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)

    augmentation = torch.full((len(batch),), NOISE_AUGMENTATION, device=device)
    condition = editor.condition(batch, normal((3, height, width)), augmentation, settings.control_scale)
    sigmas = edm.karras_sigmas(settings.num_inference_steps, *editor.sigma_range).to(device)
    shape = (2, editor.unet.config.out_channels, height // stride, width // stride)
    x = normal(shape) * (sigmas[0] ** 2 + 1).sqrt()
    denoise = guided(editor, condition, settings.guidance_scale, settings.num_inference_steps)
    return euler(denoise, x, sigmas, progress)


def sample(
    editor: FramePainter,
    batch: EditBatch,
    settings: Sampling,
    generators: Sequence[torch.Generator],
    progress: Progress | None = None,
) -> Tensor:
    """Edited images [b, 3, h, w] in [-1, 1]; see `sample_latents`."""
    return editor.decode(sample_latents(editor, batch, settings, generators, progress))[:, 1]
