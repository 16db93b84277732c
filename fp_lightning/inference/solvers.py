"""Solvers of the probability-flow ODE dx/dσ = (x − D(x; σ)) / σ (Karras et al. 2022, Eq. 1 and 3).

All solvers have the same arguments:

- `denoise`: called as (x, sigma, i) with sigma = sigmas[i]; returns D(x; σ).
- `x`: the state at the first noise level, any shape.
- `sigmas`: n + 1 noise levels that fall to 0.
- `progress`: called after every step with the step, the new state and the last D(x; σ). If it returns a tensor, that
  tensor replaces the state.

They return the state at σ = 0. `consistency` samples a consistency function instead, and also needs `noise`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

from torch import Tensor

Denoise = Callable[[Tensor, Tensor, int], Tensor]  # (x, sigma, step) → D(x; σ)
Progress = Callable[[int, Tensor, Tensor], Tensor | None]  # (step, state, D) → None or a new state
SolverName = Literal["euler", "heun", "dpmpp_2m", "consistency"]


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, progress: Progress | None = None) -> Tensor:
    """Solve with Euler's method: first order, one evaluation per step.

    Karras et al. 2022, Algorithm 1 without the second-order correction.
    """
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        clean = denoise(x, sigma, step)
        slope = (x - clean) / sigma
        x = _report(progress, step, x + slope * (following - sigma), clean)
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, progress: Progress | None = None) -> Tensor:
    """Solve with Heun's method: second order, two evaluations per step and one in the last step.

    Karras et al. 2022, Algorithm 1.
    """
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        clean = denoise(x, sigma, step)
        slope = (x - clean) / sigma
        ahead = x + slope * (following - sigma)
        if step + 2 < len(sigmas):
            clean = denoise(ahead, following, step + 1)
            slope = (slope + (ahead - clean) / following) / 2
            ahead = x + slope * (following - sigma)
        x = _report(progress, step, ahead, clean)
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, progress: Progress | None = None) -> Tensor:
    """Solve with DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095).

    Second order from the last two evaluations, one evaluation per step. The first and the last step are first order.
    """
    before, previous = None, None  # D(x; σ) and σ of the last step
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        clean = denoise(x, sigma, step)
        target = clean
        if before is not None and step + 2 < len(sigmas):
            ratio = (sigma / following).log() / (previous / sigma).log() / 2
            target = clean + ratio * (clean - before)
        before, previous = clean, sigma
        x = _report(progress, step, target + (following / sigma) * (x - target), clean)
    return x


def consistency(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Callable[[], Tensor], progress: Progress | None = None
) -> Tensor:
    """Sample a consistency function, which maps a state at any noise level to the end of its flow.

    Song et al. 2023 (arXiv 2303.01469), Algorithm 1: x ← D(x; σ), then noise again to the next level.

    Args:
        noise: returns new standard normal noise of the shape of `x`.
    """
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        clean = denoise(x, sigma, step)
        x = clean + following * noise() if step + 2 < len(sigmas) else clean
        x = _report(progress, step, x, clean)
    return x


def _report(progress: Progress | None, step: int, x: Tensor, clean: Tensor) -> Tensor:
    """Call `progress`, and return the state that it returns, or `x`."""
    replacement = progress(step, x, clean) if progress is not None else None
    return x if replacement is None else replacement


SOLVERS: dict[str, Callable[[Denoise, Tensor, Tensor, Progress | None], Tensor]] = {
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
}
