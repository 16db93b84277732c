"""Stable Video Diffusion in EDM form (Karras et al. 2022, Table 1; v-prediction).

Preconditioning, loss weight and noise levels are pure functions of σ. Noise is drawn from one generator per sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Generators = Sequence[torch.Generator | None]  # one per sample, on the CPU; None uses torch's global generator


class Scalings(NamedTuple):
    """Preconditioning of the network F: D(x; σ) = c_skip · x + c_out · F(c_in · x; c_noise)."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def scalings(sigma: Tensor) -> Scalings:
    """Return the v-prediction scalings at noise levels `sigma` > 0. Each has the shape of `sigma`."""
    variance = sigma**2 + 1
    return Scalings(1 / variance, -sigma / variance.sqrt(), 1 / variance.sqrt(), sigma.log() / 4)


def loss_weight(sigma: Tensor) -> Tensor:
    """Return (1 + σ²) / σ² = 1 / c_out². It makes the loss on D an unweighted v-prediction loss on F."""
    return (1 + sigma**2) / sigma**2


def log_normal(shape: tuple[int, ...], mean: float, std: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw exp(mean + std · n) with standard normal n, on the CPU.

    Used for training noise levels and for noise augmentation.
    """
    return (mean + std * torch.randn(shape, generator=generator)).exp()


def seeded_generator(*parts: object) -> torch.Generator:
    """Return a CPU generator seeded by a hash of `parts`. It is the same in every process and at every batch size."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode(errors="surrogateescape")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


def seeded_generators(names: Iterable[str], *parts: object) -> list[torch.Generator]:
    """Return one generator per sample name, seeded by `parts` and the name."""
    return [seeded_generator(*parts, name) for name in names]


def drawn(draw: Callable[..., Tensor], generators: Generators) -> Tensor:
    """Stack `draw(generator=g)` over the generators. A sample gets the same values in any batch."""
    return torch.stack([draw(generator=generator) for generator in generators])


def karras_sigmas(steps: int, sigma_min: float = 0.002, sigma_max: float = 700.0, rho: float = 7.0) -> Tensor:
    """Return the noise levels of `steps` sampling steps, falling from `sigma_max` to `sigma_min`, then 0.

    Karras et al. 2022, Eq. 5. The defaults are the scheduler settings that ship with SVD.

    Returns:
        float32 [steps + 1].

    Raises:
        ValueError: `steps` is below 1, or 0 < sigma_min < sigma_max does not hold.
    """
    if steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {steps}")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"noise levels must satisfy 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)]).float()


def consistency_sigmas(steps: int, sigma_min: float = 0.002, sigma_max: float = 700.0, rho: float = 7.0) -> Tensor:
    """Return the noise levels of `steps` calls of a consistency function, then 0; see `karras_sigmas`.

    They are `karras_sigmas(steps + 1)` without `sigma_min`, where the function changes nothing.
    """
    sigmas = karras_sigmas(steps + 1, sigma_min, sigma_max, rho)
    return torch.cat([sigmas[:steps], sigmas[-1:]])
