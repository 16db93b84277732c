"""Sampling: a solver over a Karras schedule, guidance with inverse-square decay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.inference.solvers import SOLVERS, Denoise, Progress, SolverName
from fp_lightning.model import edm
from fp_lightning.model.condition import Condition
from fp_lightning.model.editor import FramePainter
from fp_lightning.model.matching import FRAMES
from fp_lightning.model.prior import DeepFeatures
from fp_lightning.types import EditBatch


@dataclass(frozen=True)
class Sampling:
    """How an edit is drawn.

    Args:
        num_inference_steps: of the solver.
        guidance_scale: w at the first step; it decays to 1. 1 is no guidance, and half the work.
        control_scale: strength of the control image and of the drag points.
        solver: "euler" (paper), "dpmpp_2m", or "heun", which evaluates the network twice a step.
        guidance_interval: (least, greatest) noise level σ that is guided (Kynkäänniemi et al. 2024, arXiv
            2404.07724); outside of it w is 1, and the work half. None guides all.
        reuse: the deep features of the network are made at every `reuse`-th evaluation and reused between, which
            approximates (`DeepFeatures`). 1 makes them always.
    """

    num_inference_steps: int = 25
    guidance_scale: float = 3.0
    control_scale: float = 1.0
    solver: SolverName = "euler"
    guidance_interval: tuple[float, float] | None = None
    reuse: int = 1

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise InputError(f"solver must be one of {', '.join(SOLVERS)}, got {self.solver!r}")
        if self.reuse < 1:
            raise InputError(f"reuse must be 1, which reuses nothing, or more, got {self.reuse}")
        interval = self.guidance_interval
        if interval is not None and not (len(interval) == 2 and 0 <= interval[0] <= interval[1]):
            raise InputError(f"guidance_interval must be two noise levels, 0 ≤ least ≤ greatest, got {interval}")
        if self.num_inference_steps < 1:
            raise InputError(f"num_inference_steps must be at least 1, got {self.num_inference_steps}")


def guidance_weights(scale: float, sigmas: Sequence[float], interval: tuple[float, float] | None = None) -> list[float]:
    """w at each of N noise levels, (w − 1)(1 − i/N)² + 1: the released model's decay, the same for both frames.

    1 outside of `interval`.
    """
    least, greatest = interval or (0.0, float("inf"))
    steps = len(sigmas)
    decaying = [(scale - 1) * (1 - step / steps) ** 2 + 1 for step in range(steps)]
    return [w if least <= sigma <= greatest else 1.0 for w, sigma in zip(decaying, sigmas, strict=True)]


def guided(editor: FramePainter, condition: Condition, weights: Sequence[float], reuse: int = 1) -> Denoise:
    """The editor's denoiser under classifier-free guidance by the weight of each step; 1 computes one half alone.

    The unconditional half has neither control nor points, so the control encoder runs for the other alone.
    """
    both = replace(Condition.cat(condition.unconditional(), condition), control=condition.control)
    deep = DeepFeatures() if reuse > 1 else None
    age = 0  # evaluations since the deep features were made

    def call(x: Tensor, levels: Tensor, condition: Condition) -> Tensor:
        nonlocal age
        if deep is not None:
            kept, needed = (0 if deep.features is None else len(deep.features)), len(x) * FRAMES
            deep.reuse = 0 < age < reuse and kept >= needed
            if deep.reuse and deep.features is not None:
                deep.features = deep.features[-needed:]  # the conditional half comes last
            age = age + 1 if deep.reuse else 1
        return editor.denoise(x, levels, condition, deep=deep)[0]

    def denoise(x: Tensor, sigma: Tensor, step: int) -> Tensor:
        weight, levels = weights[step], sigma.expand(len(x))
        if weight == 1:
            return call(x, levels, condition)
        without, given = call(torch.cat([x, x]), torch.cat([levels, levels]), both).chunk(2)
        return without + weight * (given - without)

    return denoise


def prepare(
    editor: FramePainter, batch: EditBatch, settings: Sampling, generators: edm.Generators
) -> tuple[Condition, list[float], Tensor, Tensor]:
    """What a solver starts from: the condition, the guidance weights, the noise levels, the state at the first of them.

    Arguments and errors are `sample_latents`'.
    """
    height, width = batch.source.shape[-2:]
    editor.check_size((height, width))
    device, stride = batch.source.device, editor.prior.stride

    def normal(shape: tuple[int, ...]) -> Tensor:
        return edm.drawn(partial(torch.randn, shape), generators).to(device)

    augmentation = torch.full((len(batch),), editor.prior.noise_augmentation, device=device)
    condition = editor.condition(batch, normal((3, height, width)), augmentation, settings.control_scale)
    sigmas = edm.karras_sigmas(settings.num_inference_steps, *editor.prior.sigma_range)
    weights = guidance_weights(settings.guidance_scale, sigmas[:-1].tolist(), settings.guidance_interval)
    sigmas = sigmas.to(device)
    shape = (2, editor.prior.latent_channels, height // stride, width // stride)
    return condition, weights, sigmas, normal(shape) * (sigmas[0] ** 2 + 1).sqrt()


@torch.no_grad()
def sample_latents(
    editor: FramePainter,
    batch: EditBatch,
    settings: Sampling,
    generators: edm.Generators,
    progress: Progress | None = None,
) -> Tensor:
    """Scaled latents [b, 2, 4, h, w] of the source and of the edit.

    Args:
        batch: with source and what the user drew, control, points or both; others are not looked at.
        generators: one a sample, on the CPU; a sample's result depends on its own alone.
        progress: called after each step with the latents and the clean ones that they lead to, as the step saw them;
            it may return other latents to go on with.

    Raises:
        InputError: height or width does not fit the network.
    """
    condition, weights, sigmas, x = prepare(editor, batch, settings, generators)
    return SOLVERS[settings.solver](guided(editor, condition, weights, settings.reuse), x, sigmas, progress)


def sample(
    editor: FramePainter,
    batch: EditBatch,
    settings: Sampling,
    generators: edm.Generators,
    progress: Progress | None = None,
) -> Tensor:
    """Edited images [b, 3, h, w] in [-1, 1]; see `sample_latents`."""
    return editor.decode(sample_latents(editor, batch, settings, generators, progress))[:, 1]
