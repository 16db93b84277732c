"""DiffEditor (Mou et al. 2024): guide sampling by energies that compare the edit's features to the photo's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fp_lightning.baselines.example import Example
from fp_lightning.baselines.image_prompt import ImagePrompt
from fp_lightning.baselines.mutual import joined_tokens, kept_tokens
from fp_lightning.baselines.sde_drag import sigma
from fp_lightning.baselines.stable_diffusion import STRIDE, Ddim, Predict, StableDiffusion, up_features

CELL, STEPS = 4, 50  # pixels of a cell in which features are compared; steps of the published phases
Features = Callable[[Tensor], list[Tensor]]  # x → features [1, c, h / CELL, w / CELL] of each compared block


@dataclass(frozen=True)
class Phase:
    """What one sampling step does.

    Attributes:
        joined: the self-attention sees the photo's tokens too.
        prompted: the cross-attention sees the image prompt too, if there is one.
        guided: the energies' gradients are added to the noise.
        noisy: the region gets new noise.
        rounds: how often the step is taken, going back up between.
    """

    joined: bool
    prompted: bool
    guided: bool
    noisy: bool
    rounds: int


def phase(number: int, steps: int) -> Phase:
    """Return what step `number` of `steps` does. Phases keep their share of the steps if these are not 50."""
    at, even = number * STEPS / steps, number % 2 == 0
    guided, rounds = at < 30 and (at < 10 or even), 3 if 20 < at < 30 and even else 1
    return Phase(at >= 5, 10 <= at < 20, guided, 10 < at < 20, rounds)


@dataclass
class DiffEditor:
    """Edit a photo by drags.

    The text is empty, so only the steps with an image prompt have classifier-free guidance.

    Attributes:
        sd: Stable Diffusion 1.x.
        steps: noise levels.
        edit_weight: of the energy that moves the handles' features to their targets.
        inpaint_weight: of the energy that changes what the handles leave.
        content_weight: of the energy that keeps everything outside of the region.
        scale: factor of the energies' gradients; published as 2000 times 0.04.
        noise: share of the noise of DDIM with η = 1 that the region gets.
        image_prompt: see there; published with one, None for none.
    """

    sd: StableDiffusion
    steps: int = STEPS
    edit_weight: float = 4.0
    inpaint_weight: float = 0.2
    content_weight: float = 6.0
    scale: float = 80.0
    noise: float = 0.4
    image_prompt: ImagePrompt | None = None

    def cost(self, example: Example) -> int:
        """Return the number of U-Net evaluations of one sample."""
        count, prompts = self.steps, int(self.image_prompt is not None)  # the inversion
        for each in (phase(number, self.steps) for number in range(self.steps)):
            count += each.rounds * (1 + each.prompted * prompts) + each.rounds - 1  # noise, and the ways back up
            count += each.guided * (1 + each.rounds)  # features of the photo, and of the edit
        return count

    @torch.no_grad()
    def __call__(self, example: Example, generator: torch.Generator) -> Tensor:
        """Return the edited photo [3, H, W] in [-1, 1]."""
        sd = self.sd
        assert example.points is not None and example.region is not None
        context, points, region = sd.embed(), example.points, example.region[None].to(sd.device)
        predict, prompt = sd.predictor(context), self.image_prompt
        prompted = None if prompt is None else prompt.predictor(context, prompt.tokens(example.photo))
        states, tokens = self.invert(sd.encode(example.photo), predict)
        return sd.decode(self.sample(states, tokens, predict, points, region, generator, prompted))

    def invert(self, clean: Tensor, predict: Predict) -> tuple[list[Tensor], dict[int, list[Tensor]]]:
        """Invert the photo's latent: its states, see `Ddim.invert`, and its tokens by timestep, see `kept_tokens`."""
        tokens: dict[int, list[Tensor]] = {}

        def recorded(x: Tensor, timestep: int) -> Tensor:
            with kept_tokens(self.sd.unet) as kept:
                noise = predict(x, timestep)
            tokens[timestep] = [each.cpu() for each in kept]
            return noise

        return Ddim(self.steps).invert(clean, recorded), tokens

    def sample(
        self,
        states: list[Tensor],
        tokens: dict[int, list[Tensor]],
        predict: Predict,
        points: Tensor,
        region: Tensor,
        generator: torch.Generator,
        prompted: Predict | None = None,
    ) -> Tensor:
        """Sample the edited latent [1, 4, h, w].

        Args:
            states: see `invert`. Instead of the highest, the edit's start is the first reference, as published.
            tokens: see `invert`.
            predict: noise by the U-Net.
            points: drags [p, 4] in pixels.
            region: pixels that may change, bool [1, 1, H, W].
            generator: of the noise, on the CPU.
            prompted: as `predict`, with the image prompt.
        """
        drags = cells_of(points, (region.shape[-2] // CELL, region.shape[-1] // CELL))
        free = F.interpolate(region.float(), states[0].shape[-2:], mode="nearest") > 0
        ddim, states = Ddim(self.steps), [*states]
        x = states[-1] = paste(states[-1], drags // (STRIDE // CELL))
        for number, timestep in enumerate(ddim.timesteps):
            now = phase(number, self.steps)
            features = self.features(predict, timestep)
            reference = features(states[-1 - number]) if now.guided else []
            deviation = drawn = x.new_zeros(())
            if now.noisy:
                deviation = self.noise * sigma(ddim, timestep) * free.to(x)
                drawn = torch.randn(x.shape, generator=generator).to(x)
            for left in reversed(range(now.rounds)):
                with joined_tokens(self.sd.unet, tokens[timestep]) if now.joined else nullcontext():
                    noise = (prompted if now.prompted and prompted else predict)(x, timestep)
                guided = noise
                if now.guided:
                    guided = noise + self.guidance(x, features, reference, drags, region)
                below = step(ddim, x, noise, guided, timestep, deviation, drawn)
                if left:
                    lower = timestep - ddim.stride
                    x = ddim.move(below, predict(below, lower), lower, timestep)
            x = below
        return x

    def features(self, predict: Predict, timestep: int) -> Features:
        """Return the features at a timestep: up blocks 1 and 2, resized to cells."""

        def features(x: Tensor) -> list[Tensor]:
            with up_features(self.sd.unet, 1, 2) as kept:
                predict(x, timestep)
            size = [extent * STRIDE // CELL for extent in x.shape[-2:]]
            return [F.interpolate(each, size, mode="nearest") for each in kept]

        return features

    def guidance(self, x: Tensor, features: Features, reference: list[Tensor], drags: Tensor, region: Tensor) -> Tensor:
        """Return what is added to the noise: gradients [1, c, h, w], of one energy where x is free, else of the other.

        Args:
            x: the edit's state [1, c, h, w].
            features: see `Features`.
            reference: features of the photo's state.
            drags: see `cells_of`.
            region: pixels that may change, bool [1, 1, H, W].
        """
        free = F.interpolate(region.float(), x.shape[-2:], mode="nearest") > 0
        fixed = F.interpolate(region.float(), reference[0].shape[-2:], mode="nearest")[0, 0] < 0.5
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            now = features(x)
            (change,) = torch.autograd.grad(self.edit_energy(now, reference, drags), x, retain_graph=True)
            if fixed.any():
                (keep,) = torch.autograd.grad(self.content_energy(now, reference, fixed), x)
                change = torch.where(free, change, keep)
        return self.scale * change

    def edit_energy(self, now: list[Tensor], reference: list[Tensor], drags: Tensor) -> Tensor:
        """Return the mean energy of all drags and blocks: targets look like handles, and what they leave does not."""
        energy = now[0].new_zeros(())
        for begin, end in drags.tolist():
            source, target = (..., *around(begin)), (..., *around(end))
            left = torch.zeros(now[0].shape[-2:], dtype=torch.bool, device=energy.device)
            left[source], left[target] = True, False
            for edit, photo in zip(now, reference, strict=True):
                energy = energy + self.edit_weight / (1 + 4 * similarity(edit[target], photo[source]))
                if left.any():
                    energy = energy + self.inpaint_weight * similarity(edit[..., left], photo[..., left])
        return energy / (len(drags) * len(now))

    def content_energy(self, now: list[Tensor], reference: list[Tensor], fixed: Tensor) -> Tensor:
        """Return the mean energy of all blocks: the cells `fixed` [h, w] look as they do in the photo."""
        pairs = list(zip(now, reference, strict=True))
        terms = [1 / (1 + 4 * similarity(edit[..., fixed], photo[..., fixed])) for edit, photo in pairs]
        return self.content_weight * torch.stack(terms).mean()


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean of (cos + 1) / 2 of features [1, c, …], in [0, 1]."""
    return (F.cosine_similarity(a, b, dim=1) + 1).mean() / 2


def cells_of(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the cells of handles and targets, whose neighbours are inside: [p, (handle, target), (row, column)].

    Args:
        points: drags [p, 4] as (x_src, y_src, x_tgt, y_tgt) in pixels.
        size: (height, width) in cells.
    """
    most = torch.tensor(size) - 2
    return (points / CELL).floor().long().unflatten(1, (2, 2)).flip(2).clamp(torch.tensor(1), most)


def around(cell: list[int]) -> tuple[slice, slice]:
    """Return the rows and columns of the 3 × 3 cells around one."""
    return slice(cell[0] - 1, cell[0] + 2), slice(cell[1] - 1, cell[1] + 2)


def paste(x: Tensor, drags: Tensor) -> Tensor:
    """Copy the 3 × 3 latents of x [1, c, h, w] around each handle to its target. `drags` are as in `cells_of`."""
    x, most = x.clone(), torch.tensor(x.shape[-2:]) - 2
    for begin, end in drags.clamp(torch.tensor(1), most).tolist():
        x[..., *around(end)] = x[..., *around(begin)].clone()
    return x


def step(
    ddim: Ddim, x: Tensor, noise: Tensor, guided: Tensor, timestep: int, deviation: Tensor, drawn: Tensor
) -> Tensor:
    """Take a DDIM step: the clean latent comes from the guided noise, the direction from the predicted one.

    Args:
        ddim: the levels.
        x: state at `timestep`.
        noise: predicted noise.
        guided: the same with the energies' gradients.
        timestep: of x.
        deviation: standard deviation of the new noise, broadcasts to x.
        drawn: the new noise, normally distributed.
    """
    below = ddim.level(timestep - ddim.stride)
    clean = below**0.5 * ddim.clean(x, guided, timestep)
    return clean + (1 - below - deviation**2) ** 0.5 * noise + deviation * drawn
