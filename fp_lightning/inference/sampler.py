"""Sampling: a solver on the Karras schedule, with classifier-free guidance that decays over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.inference.solvers import SOLVERS, Denoise, Progress, SolverName, consistency
from fp_lightning.model import edm
from fp_lightning.model.condition import Condition
from fp_lightning.model.editor import FramePainter
from fp_lightning.model.matching import FRAMES
from fp_lightning.model.prior import DeepFeatures
from fp_lightning.types import EditBatch


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of an edit.

    Args:
        num_inference_steps: number of solver steps, 1 or more; the paper uses 25.
        guidance_scale: guidance weight w at the first step; it decays towards 1. 1 disables guidance, which halves the
            network's work.
        control_scale: strength of the control image and of the drag points; 0 ignores them.
        solver: "euler" (paper), "dpmpp_2m", or "heun", which evaluates the network twice per step; "consistency" for
            a distilled editor, see `check_sampling`.
        guidance_interval: lowest and highest noise level σ with guidance (Kynkäänniemi et al. 2024, arXiv 2404.07724).
            At other levels w = 1, which halves the work. None applies guidance at all levels.
        reuse: compute the network's deep features at every `reuse`-th evaluation and reuse them in between. This is an
            approximation, see `DeepFeatures`. 1 disables it.

    Raises:
        InputError: an unknown solver, or a value outside its range.
    """

    num_inference_steps: int = 25
    guidance_scale: float = 3.0
    control_scale: float = 1.0
    solver: SolverName = "euler"
    guidance_interval: tuple[float, float] | None = None
    reuse: int = 1

    def __post_init__(self) -> None:
        if self.solver not in get_args(SolverName):
            raise InputError(f"solver must be one of {', '.join(get_args(SolverName))}, got {self.solver!r}")
        if self.reuse < 1:
            raise InputError(f"reuse must be at least 1, got {self.reuse}; 1 reuses nothing")
        interval = self.guidance_interval
        if interval is not None and not (len(interval) == 2 and 0 <= interval[0] <= interval[1]):
            raise InputError(f"guidance_interval must be two noise levels, 0 ≤ lowest ≤ highest, got {interval}")
        if self.num_inference_steps < 1:
            raise InputError(f"num_inference_steps must be at least 1, got {self.num_inference_steps}")


PresetName = Literal["paper", "fast"]
PRESETS: dict[PresetName, Sampling] = {  # "fast": half the calls for about the same edit, docs/solvers.md
    "paper": Sampling(),
    "fast": Sampling(12, solver="dpmpp_2m"),
}


def default_sampling(distilled_steps: int | None, preset: PresetName | None = None) -> Sampling:
    """Return the settings of a preset; without one those that suit an editor, the paper's or those of its distillation.

    Raises:
        InputError: there is no such preset.
    """
    if preset is not None:
        if preset not in PRESETS:
            raise InputError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        return PRESETS[preset]
    return PRESETS["paper"] if distilled_steps is None else Sampling(distilled_steps, 1.0, solver="consistency")


def check_sampling(settings: Sampling, distilled_steps: int | None) -> None:
    """Check that settings suit an editor.

    Args:
        settings: the settings.
        distilled_steps: see `FramePainter`.

    Raises:
        InputError: an editor that was distilled gets another solver, guidance or more steps than it was distilled for;
            or any other editor gets "consistency".
    """
    solver, steps, scale = settings.solver, settings.num_inference_steps, settings.guidance_scale
    if distilled_steps is None:
        if solver == "consistency":
            raise InputError("solver consistency needs a distilled editor; use euler, or distill this one")
        return
    wrong = {
        f"solver must be consistency, got {solver}": solver != "consistency",
        f"guidance_scale must be 1, got {scale:g}": scale != 1,
        f"num_inference_steps must be at most {distilled_steps}, got {steps}": steps > distilled_steps,
    }
    if problems := [text for text, holds in wrong.items() if holds]:
        raise InputError(f"this editor was distilled for 1 to {distilled_steps} steps: {'; '.join(problems)}")


def noise_levels(settings: Sampling, editor: FramePainter) -> Tensor:
    """Return the noise levels of the steps, then 0, float32 [n + 1]."""
    levels = edm.consistency_sigmas if settings.solver == "consistency" else edm.karras_sigmas
    return levels(settings.num_inference_steps, *editor.prior.sigma_range)


def guidance_weights(scale: float, sigmas: Sequence[float], interval: tuple[float, float] | None = None) -> list[float]:
    """Return the guidance weight at each of N noise levels: (scale − 1)(1 − i/N)² + 1.

    This is the released model's decay. Both frames have the same weight.

    Args:
        scale: weight at i = 0.
        sigmas: the noise levels.
        interval: lowest and highest level with guidance; the weight is 1 at other levels. None: all levels.
    """
    lowest, highest = interval or (0.0, float("inf"))
    steps = len(sigmas)
    decaying = [(scale - 1) * (1 - step / steps) ** 2 + 1 for step in range(steps)]
    return [w if lowest <= sigma <= highest else 1.0 for w, sigma in zip(decaying, sigmas, strict=True)]


def guided(editor: FramePainter, condition: Condition, weights: Sequence[float], reuse: int = 1) -> Denoise:
    """Return the editor's denoiser with classifier-free guidance.

    D = D_uncond + w (D_cond − D_uncond) with the weight w of the step. If w = 1, only D_cond is computed. The
    unconditional half has no control image and no points, so the control encoder runs for the conditional half only.

    Args:
        editor: the editor.
        condition: the condition of the conditional half.
        weights: w of each step.
        reuse: see `Sampling`.
    """
    both = guidance_pair(condition)
    deep = DeepFeatures() if reuse > 1 else None
    age = 0  # evaluations since the deep features were computed

    def call(x: Tensor, levels: Tensor, condition: Condition) -> Tensor:
        nonlocal age
        if deep is not None:
            stored, needed = (0 if deep.features is None else len(deep.features)), len(x) * FRAMES
            deep.reuse = 0 < age < reuse and stored >= needed
            if deep.reuse and deep.features is not None:
                deep.features = deep.features[-needed:]  # the conditional half comes last
            age = age + 1 if deep.reuse else 1
        return editor.denoise(x, levels, condition, deep=deep)[0]

    def denoise(x: Tensor, sigma: Tensor, step: int) -> Tensor:
        weight, levels = weights[step], sigma.expand(len(x))
        if weight == 1:
            return call(x, levels, condition)
        return guide(call(torch.cat([x, x]), torch.cat([levels, levels]), both), weight)

    return denoise


def guidance_pair(condition: Condition) -> Condition:
    """Return both halves of guidance, the unconditional one first, without control images for it."""
    return replace(Condition.cat(condition.unconditional(), condition), control=condition.control)


def guide(halves: Tensor, weight: float | Tensor) -> Tensor:
    """Return D_uncond + w (D_cond − D_uncond) of both halves, concatenated along the batch."""
    unconditional, conditional = halves.chunk(2)
    return unconditional + weight * (conditional - unconditional)


def prepare(
    editor: FramePainter, batch: EditBatch, settings: Sampling, generators: edm.Generators
) -> tuple[Condition, list[float], Tensor, Tensor]:
    """Return the inputs of a solver. Arguments and errors are those of `sample_latents`.

    Returns:
        The condition; the guidance weight of each step; the noise levels [n + 1]; and the state at the first level,
        scaled latents [b, 2, c, h, w].
    """
    check_sampling(settings, editor.distilled_steps)
    height, width = batch.source.shape[-2:]
    editor.check_size((height, width))
    device, stride = batch.source.device, editor.prior.stride
    normal = partial(_normal, generators=generators, device=device)
    augmentation = torch.full((len(batch),), editor.prior.noise_augmentation, device=device)
    condition = editor.condition(batch, normal((3, height, width)), augmentation, settings.control_scale)
    sigmas = noise_levels(settings, editor)
    weights = guidance_weights(settings.guidance_scale, sigmas[:-1].tolist(), settings.guidance_interval)
    sigmas = sigmas.to(device)
    shape = (2, editor.prior.latent_channels, height // stride, width // stride)
    return condition, weights, sigmas, normal(shape) * (sigmas[0] ** 2 + 1).sqrt()


def _normal(shape: tuple[int, ...], generators: edm.Generators, device: torch.device) -> Tensor:
    return edm.drawn(partial(torch.randn, shape), generators).to(device)


@torch.no_grad()
def sample_latents(
    editor: FramePainter,
    batch: EditBatch,
    settings: Sampling,
    generators: edm.Generators,
    progress: Progress | None = None,
) -> Tensor:
    """Sample edits as latents.

    Args:
        editor: the editor.
        batch: source, with control, points or both. Other fields are ignored.
        settings: sampling settings.
        generators: one per sample, on the CPU. A sample's result depends on its own generator only.
        progress: called after each step with the step, the latents and the last denoised latents D(x; σ). It may
            return latents that replace the current ones.

    Returns:
        Scaled latents [b, 2, c, h, w] of the source and the edited frame.

    Raises:
        InputError: height or width does not fit the network, or `check_sampling`.
    """
    condition, weights, sigmas, x = prepare(editor, batch, settings, generators)
    denoise = guided(editor, condition, weights, settings.reuse)
    if settings.solver == "consistency":
        return consistency(denoise, x, sigmas, lambda: _normal(x.shape[1:], generators, x.device), progress)
    return SOLVERS[settings.solver](denoise, x, sigmas, progress)


def sample(
    editor: FramePainter,
    batch: EditBatch,
    settings: Sampling,
    generators: edm.Generators,
    progress: Progress | None = None,
) -> Tensor:
    """Sample edited images [b, 3, H, W] in [-1, 1]. See `sample_latents`."""
    return editor.decode(sample_latents(editor, batch, settings, generators, progress))[:, 1]
