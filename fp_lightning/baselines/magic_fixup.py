"""Magic Fixup (Alzayer et al. 2024): turn a coarse edit into a photo, with the details of the original photo.

Written from the description of the method. Its released weights are for non-commercial research only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

from fp_lightning.baselines.bank import Bank, write_tokens
from fp_lightning.baselines.example import Example
from fp_lightning.baselines.stable_diffusion import (
    SCHEDULE,
    LatentDiffusion,
    check_unet,
    load_part,
    transformer_blocks,
)
from fp_lightning.errors import InputError
from fp_lightning.files import read_json
from fp_lightning.types import to_unit_range

LICENCE = "Magic Fixup's weights have the Adobe Research License: non-commercial research only"
CONVERT = "convert the released file with `fp-lightning convert magic_fixup`"
MOST = 250  # steps; with more the first one could be at the last timestep, which has no signal
GROW, RADIUS = 7, 3  # px by which holes grow in all, and radius of what fills them
UNETS = ("unet", "reference_unet")


class Reader(AttnProcessor2_0):
    """Cross-attention over the tokens of the same block in a bank."""

    def __init__(self, bank: Bank, block: str) -> None:
        super().__init__()
        self.bank, self.block = bank, block

    def __call__(self, attn: Attention, hidden_states: Tensor, *_: Any, **options: Any) -> Tensor:
        """Return the attention's output, [b, n, c]."""
        return super().__call__(attn, hidden_states, self.bank[self.block])


class Nothing:
    """Attention that adds nothing."""

    def __call__(self, attn: Attention, hidden_states: Tensor, *_: Any, **options: Any) -> Tensor:
        """Return zeros, [b, n, c]."""
        return torch.zeros_like(hidden_states)


@dataclass
class MagicFixup(LatentDiffusion):
    """Edit a photo by a coarse edit.

    At each step a second U-Net reads the photo with noise of that step, and the first one, which denoises, attends to
    its tokens in every block. There is no prompt and no guidance.

    Attributes:
        unet: it sees [latent, coarse edit, mask of what the edit shows]; its cross-attention has the blocks' widths.
        vae: autoencoder of the latents.
        reference: it sees [noisy photo, photo, mask].
        scheduler: noise levels of the edit. The photo's always end at pure noise.
        steps: noise levels.
    """

    reference: UNet2DConditionModel
    scheduler: DDIMScheduler
    steps: int = 50

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MOST:
            raise InputError(f"--steps must be 1 to {MOST}, got {self.steps}; try 50")
        self.bank: Bank = {}
        write_tokens(self.reference, self.bank)
        for _, block in transformer_blocks(self.reference):
            block.attn2.set_processor(Nothing())
        for name, block in transformer_blocks(self.unet):
            block.attn2.set_processor(Reader(self.bank, name))

    def cost(self, example: Example) -> int:
        """Return the number of evaluations of both U-Nets for one sample."""
        return 2 * self.steps

    @torch.no_grad()
    def __call__(self, example: Example, generator: torch.Generator) -> Tensor:
        """Return the edited photo [3, H, W] in [-1, 1]."""
        assert example.coarse is not None
        photo, coarse = self.encode(example.photo), self.encode(fill_holes(example.coarse))
        shown = F.interpolate(example.coarse[None, 3:], photo.shape[-2:], mode="bilinear").to(photo)

        def drawn() -> Tensor:
            return torch.randn(photo.shape, generator=generator).to(photo)

        self.scheduler.set_timesteps(self.steps)
        x = self.scheduler.add_noise(coarse, drawn(), self.scheduler.timesteps[:1])
        levels = DDIMScheduler(**SCHEDULE, rescale_betas_zero_snr=True)
        for timestep in self.scheduler.timesteps:
            noisy = levels.add_noise(photo, drawn(), timestep[None])
            self.reference(torch.cat([noisy, photo, shown], dim=1), timestep, None)
            noise = self.unet(torch.cat([x, coarse, shown], dim=1), timestep, None).sample
            x = self.scheduler.step(noise, timestep, x, eta=1.0, generator=generator).prev_sample
        return self.decode(x)


def fill_holes(coarse: Tensor) -> Tensor:
    """Return a coarse edit [4, H, W] in [0, 1] as a photo [3, H, W] in [-1, 1], with its holes painted over.

    A hole is what is less than half opaque, and some pixels around it.
    """
    pixels = (coarse * 255).round().byte().permute(1, 2, 0).numpy()
    holes = cv2.dilate((coarse[3] < 0.5).numpy().astype(np.uint8), np.ones((GROW, GROW), np.uint8))
    filled = cv2.inpaint(np.ascontiguousarray(pixels[..., :3]), holes, RADIUS, cv2.INPAINT_NS)
    return to_unit_range(torch.from_numpy(filled).permute(2, 0, 1))


def load_magic_fixup(model: str, dtype: torch.dtype = torch.float32, device: str = "cpu", **given: Any) -> MagicFixup:
    """Load Magic Fixup.

    Args:
        model: folder of the converted file.
        dtype, device: of the networks.
        given: `steps`, if other than published.

    Raises:
        InputError: a part is missing or damaged, or of another kind.
    """
    folder = Path(model)
    for part in UNETS:
        check_unet(folder / part, 9, CONVERT)
    read_json(folder / "vae" / "config.json", CONVERT)
    read_json(folder / "scheduler" / "scheduler_config.json", CONVERT)
    unet, reference = (load_part(UNet2DConditionModel, folder, part, dtype).to(device) for part in UNETS)
    vae = load_part(AutoencoderKL, folder, "vae", dtype).to(device)
    return MagicFixup(unet, vae, reference, load_part(DDIMScheduler, folder, "scheduler"), **given)
