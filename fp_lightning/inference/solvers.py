"""Solvers of the probability-flow ODE dx/dσ = (x − D(x; σ)) / σ: plain functions of a denoiser and its noise levels.

Each takes `denoise`, the state at the first level, `sigmas` [n + 1] falling to 0, and `progress`, which is told every
step, with the clean latents that its last evaluation saw, and may return another state to go on with. A denoiser is
called as (x, sigma, i) with sigma = sigmas[i].
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

from torch import Tensor

Denoise = Callable[[Tensor, Tensor, int], Tensor]  # (x, sigma, step) → the clean latents as seen from x
Progress = Callable[[int, Tensor, Tensor], Tensor | None]  # (step, latents after it, clean ones) → others to go on with
SolverName = Literal["euler", "heun", "dpmpp_2m"]


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, progress: Progress | None = None) -> Tensor:
    """First order, one evaluation a step (Karras et al. 2022, Algorithm 1 without its correction)."""
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        clean = denoise(x, sigma, step)
        slope = (x - clean) / sigma
        x = _told(progress, step, x + slope * (following - sigma), clean)
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, progress: Progress | None = None) -> Tensor:
    """Second order, two evaluations a step but one in the last (Karras et al. 2022, Algorithm 1)."""
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        clean = denoise(x, sigma, step)
        slope = (x - clean) / sigma
        ahead = x + slope * (following - sigma)
        if step + 2 < len(sigmas):
            clean = denoise(ahead, following, step + 1)
            slope = (slope + (ahead - clean) / following) / 2
            ahead = x + slope * (following - sigma)
        x = _told(progress, step, ahead, clean)
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, progress: Progress | None = None) -> Tensor:
    """Second order from the last two evaluations, one a step: DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095).

    The first and the last step are of first order.
    """
    before, previous = None, None  # the last evaluation and its level
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        clean = denoise(x, sigma, step)
        towards = clean
        if before is not None and step + 2 < len(sigmas):
            ratio = (sigma / following).log() / (previous / sigma).log() / 2
            towards = clean + ratio * (clean - before)
        before, previous = clean, sigma
        x = _told(progress, step, towards + (following / sigma) * (x - towards), clean)
    return x


def _told(progress: Progress | None, step: int, x: Tensor, clean: Tensor) -> Tensor:
    changed = progress(step, x, clean) if progress is not None else None
    return x if changed is None else changed


SOLVERS: dict[str, Callable[[Denoise, Tensor, Tensor, Progress | None], Tensor]] = {
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
}
