"""SDE-Drag (Nie et al. 2024): copy and paste at a noise level, hop by hop, and denoise with the recorded noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from fp_lightning.baselines.example import Example
from fp_lightning.baselines.lora import LoraSettings, one_image_lora
from fp_lightning.baselines.stable_diffusion import STRIDE, Ddim, Predict, StableDiffusion

LORA = LoraSettings(rank=4, steps=100, learning_rate=2e-4, batch=1, crop=False)


@dataclass
class SdeDrag:
    """Edit a photo by drags. The prompt is empty, so classifier-free guidance would change nothing and is left out.

    Attributes:
        sd: Stable Diffusion 1.x.
        steps: noise levels of the whole schedule.
        level: share of the schedule up to the level of copy and paste, t0.
        hop: length of a hop in latent pixels.
        radius: half side of the copied squares in latent pixels.
        fade: weight of the old content where a square was, β.
        strength: factor of the copied content, α.
        lora: adapters trained on the photo.
        least_scale: weight of the adapters at t0. It is 1 at the clean image.
    """

    sd: StableDiffusion
    steps: int = 200
    level: float = 0.6
    hop: float = 2.0
    radius: int = 5
    fade: float = 0.3
    strength: float = 1.1
    lora: LoraSettings = LORA
    least_scale: float = 0.5

    def cost(self, example: Example) -> int:
        """Return the number of U-Net evaluations of one sample, those of training included."""
        hops = len(list(hops_of(self._latent_points(example), self.hop)))
        return self.lora.steps * self.lora.batch + hops * int(self.level * self.steps) * 2

    def __call__(self, example: Example, generator: torch.Generator) -> Tensor:
        """Return the edited photo [3, H, W] in [-1, 1]."""
        sd, context, points = self.sd, self.sd.embed(), self._latent_points(example)
        x, count = sd.encode(example.photo), int(self.level * self.steps)
        ddim = Ddim(self.steps, final=1.0)
        assert example.region is not None
        region = F.interpolate(example.region[None].float(), x.shape[-2:], mode="area") > 0.5
        scales = [adapter_scale(n, count - 1, self.least_scale) for n in range(1, count + 1)]
        with one_image_lora(sd, example.photo, context, self.lora, generator), torch.no_grad():
            for begin, end in hops_of(points, self.hop):
                states = forward(ddim, x, count, generator)
                edited = self._paste(states[-1], begin, end, generator)

                def predict(x: Tensor, timestep: int) -> Tensor:
                    number = (timestep - 1) // ddim.stride  # of the level, 1 for the lowest
                    options = {"cross_attention_kwargs": {"scale": scales[number - 1]}} if self.lora.steps else {}
                    return sd.predictor(context, **options)(x, timestep)

                x = backward(ddim, edited, states, predict, region.to(x.device))
        return sd.decode(x)

    def _latent_points(self, example: Example) -> Tensor:
        assert example.points is not None
        return (example.points / STRIDE).long()

    def _paste(self, x: Tensor, begin: Tensor, end: Tensor, generator: torch.Generator) -> Tensor:
        """Copy the squares around `begin` [p, 2] (x, y) to `end`, and replace them by noise with a trace of content."""
        x = x.clone()
        height, width = x.shape[-2] - 1, x.shape[-1] - 1
        for (column, row), (to_column, to_row) in zip(begin.tolist(), end.tolist(), strict=True):
            left, up = min(self.radius, column, to_column), min(self.radius, row, to_row)
            right = min(self.radius, width - column, width - to_column)
            down = min(self.radius, height - row, height - to_row)
            if left + right <= 0 or up + down <= 0:
                continue
            old = (..., slice(row - up, row + down), slice(column - left, column + right))
            new = (..., slice(to_row - up, to_row + down), slice(to_column - left, to_column + right))
            content = x[old].clone()
            noise = torch.randn(content.shape, generator=generator).to(x)
            x[old] = self.fade * content + math.sqrt(1 - self.fade**2) * noise
            x[new] = self.strength * content
        return x


def hops_of(points: Tensor, length: float) -> list[tuple[Tensor, Tensor]]:
    """Divide drags into hops of about `length` along the longest drag: from [p, 2] to [p, 2] (x, y), whole pixels.

    Args:
        points: whole latent pixels [p, 4].
        length: length of a hop in latent pixels.
    """
    source, way = points[:, :2], points[:, 2:] - points[:, :2]
    longest = float(way.double().norm(dim=1).max())
    count = 1
    if longest > length:
        count = int(longest / length)
        if abs(longest / count - length) > abs(longest / (count + 1) - length):
            count += 1
    places = [source + (way.double() * i / count).long() for i in range(count + 1)]
    return list(pairwise(places))


def adapter_scale(number: int, length: int, least: float) -> float:
    """Return the adapters' weight at a level: a half cosine from 1 at the clean image to `least` at `length`."""
    share = (1 - math.cos(number * math.pi / max(1, length))) / 2
    return (1 - share) + share * least


def forward(ddim: Ddim, clean: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
    """Add noise level by level without the network: the states at the `count` + 1 lowest levels, rising.

    The clean latent stands at the lowest level.
    """
    states = [clean]
    for timestep in reversed(ddim.timesteps[-count:]):
        ratio = ddim.level(timestep + ddim.stride) / ddim.level(timestep)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        states.append(ratio**0.5 * states[-1] + (1 - ratio) ** 0.5 * noise)
    return states


def backward(ddim: Ddim, x: Tensor, states: list[Tensor], predict: Predict, region: Tensor) -> Tensor:
    """Denoise x from the highest of `states` with the noise that leads along them; outside `region` it is theirs.

    Args:
        ddim: the levels.
        x: edited latent at the level of `states[-1]`.
        states: see `forward`.
        predict: noise of a batch of two, the edited and the recorded state.
        region: bool, broadcasts to x.
    """
    for number in range(len(states) - 1, 0, -1):
        timestep = ddim.timesteps[-1] + ddim.stride * number
        noise, recorded_noise = predict(torch.cat([x, states[number]]), timestep).chunk(2)
        recorded = residual(ddim, states[number - 1], states[number], recorded_noise, timestep)
        x = torch.where(region, cycle_step(ddim, x, noise, recorded, timestep), states[number - 1])
    return x


def sigma(ddim: Ddim, timestep: int) -> float:
    """Return the standard deviation of DDIM's noise with η = 1 on the way from `timestep` to the level below."""
    here, below = ddim.level(timestep), ddim.level(timestep - ddim.stride)
    return math.sqrt((1 - below) / (1 - here) * (1 - here / below))


def residual(ddim: Ddim, below: Tensor, here: Tensor, noise: Tensor, timestep: int) -> Tensor:
    """Return the noise w̄ with which a DDIM step (η = 1) from `here` leads exactly to `below`."""
    return (below - _mean(ddim, here, noise, timestep)) / sigma(ddim, timestep)


def cycle_step(ddim: Ddim, x: Tensor, noise: Tensor, recorded: Tensor, timestep: int) -> Tensor:
    """Take a DDIM step (η = 1) with given noise."""
    return _mean(ddim, x, noise, timestep) + sigma(ddim, timestep) * recorded


def _mean(ddim: Ddim, x: Tensor, noise: Tensor, timestep: int) -> Tensor:
    below = ddim.level(timestep - ddim.stride)
    direction = math.sqrt(1 - below - sigma(ddim, timestep) ** 2)
    return below**0.5 * ddim.clean(x, noise, timestep) + direction * noise
