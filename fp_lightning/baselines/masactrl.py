"""MasaCtrl (Cao et al. 2023) with a ControlNet for sketches, the paper's rival for sketches."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from diffusers import ControlNetModel
from torch import Tensor

from fp_lightning.baselines.example import Example
from fp_lightning.baselines.mutual import mutual_attention
from fp_lightning.baselines.stable_diffusion import Ddim, StableDiffusion


@dataclass
class MasaCtrl:
    """Edit a photo by a sketch. The prompt is empty, so classifier-free guidance would change nothing.

    Source and edit start from the inverted photo. The ControlNet sees the edit only. From step `first_step` on, the
    last two up blocks of the edit attend to the source.

    Attributes:
        sd: Stable Diffusion 1.x.
        control: ControlNet of white strokes on black, such as "scribble" for Stable Diffusion 1.5.
        steps: noise levels.
        first_step: first step with mutual self-attention.
        control_scale: factor of the ControlNet's response.
        exact_source: set the source to its inverted state after each step, instead of sampling it.
    """

    sd: StableDiffusion
    control: ControlNetModel
    steps: int = 50
    first_step: int = 4
    control_scale: float = 1.0
    exact_source: bool = True

    def cost(self, example: Example) -> int:
        """Return the number of evaluations of the U-Net and of the ControlNet for one sample."""
        return 4 * self.steps

    @torch.no_grad()
    def __call__(self, example: Example, generator: torch.Generator) -> Tensor:
        """Return the edited photo [3, H, W] in [-1, 1]. Nothing is drawn by chance."""
        sd, context, ddim = self.sd, self.sd.embed(), Ddim(self.steps)
        assert example.sketch is not None
        sketch = example.sketch[None].to(sd.device, self.control.dtype)
        states = ddim.invert(sd.encode(example.photo), sd.predictor(context))
        x = torch.cat([states[-1]] * 2)
        for number, timestep in enumerate(ddim.timesteps):
            down, middle = self.control(x[1:], timestep, context, sketch, self.control_scale, return_dict=False)
            with mutual_attention(sd.unet) if number >= self.first_step else nullcontext():
                noise = sd.predictor(
                    context,
                    down_block_additional_residuals=[_for_the_edit(response) for response in down],
                    mid_block_additional_residual=_for_the_edit(middle),
                )(x, timestep)
            x = ddim.step(x, noise, timestep)
            if self.exact_source:
                x[0] = states[-2 - number][0]
        return sd.decode(x[1:])


def _for_the_edit(response: Tensor) -> Tensor:
    """Return a response [1, c, h, w] with zeros for the source before it."""
    return torch.cat([torch.zeros_like(response), response])
