"""LightningDrag (Shi et al. 2024): drags in one feed-forward model, conditioned on points and on the photo's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, LCMScheduler, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from fp_lightning.baselines.bank import Bank, write_tokens
from fp_lightning.baselines.example import Example
from fp_lightning.baselines.lora import merge_lora
from fp_lightning.baselines.stable_diffusion import (
    SCHEDULE,
    StableDiffusion,
    check_unet,
    load_part,
    load_stable_diffusion,
)
from fp_lightning.errors import InputError
from fp_lightning.files import read_json
from fp_lightning.types import to_uint8

START, IMAGE_TOKENS = 999, 4  # timestep of the noisy photo from which the edit starts; tokens of the image prompt
FAST, LORA_FILE = "lcm_lora", "pytorch_lora_weights.safetensors"  # the adapters that make eight steps enough
CONVERT = "convert the released files with `fp-lightning convert lightning_drag`"
Points = dict[int, tuple[Tensor, Tensor]]  # by number of channels: tokens [1, n, c] of handles and of targets


class PointEmbedding(nn.Module):
    """Embed maps of numbered points at 1/8, 1/16, 1/32 and 1/64 of the photo's size, with twice the channels each.

    Args:
        width: channels of the handles, and of the targets, at full size.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [2 * width * 2**halvings for halvings in range(7)]
        conv = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
        self.conv_in = conv(2, widths[0])
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(few, many, stride=2), nn.SiLU(), conv(many, many), nn.SiLU())
            for few, many in pairwise(widths)
        )

    def forward(self, maps: Tensor) -> Points:
        """Return the points' tokens from maps [1, 2, H, W], see `point_maps`."""
        x, found = self.conv_in(maps), {}
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number >= 2:
                handle, target = (half.flatten(2).transpose(1, 2) for half in x.chunk(2, dim=1))
                found[handle.shape[-1]] = handle, target
        return found


def point_maps(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps [1, 2, H, W] of handles and targets: 1, 2, … at the pixels of the drags, 0 elsewhere.

    Args:
        points: [p, 4] as (x_src, y_src, x_tgt, y_tgt) in pixels.
        size: (height, width) in pixels.
    """
    maps = torch.zeros(1, 2, *size)
    for number, drag in enumerate(points.long().tolist(), start=1):
        for channel, (x, y) in enumerate((drag[:2], drag[2:])):
            maps[0, channel, min(max(y, 0), size[0] - 1), min(max(x, 0), size[1] - 1)] = number
    return maps


class PointAttention(nn.Module):
    """Self-attention over own and reference tokens, with embedded points added to queries and keys.

    Queries and own keys get the embedding of targets, the reference's keys that of handles: a target finds its handle.

    Args:
        points: channels of the points' tokens.
        width: channels of the attention.
    """

    def __init__(self, points: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(points)
        self.proj = nn.Linear(points, width, bias=False)
        self.reference = torch.empty(0)  # [1, n, width]
        self.moves = torch.empty(0)  # [2, n, width], handles and targets

    def set(self, reference: Tensor, points: Points) -> None:
        """Set the reference's tokens and the points for all further calls."""
        self.reference = reference
        self.moves = self.proj(self.norm(torch.cat(points[self.norm.normalized_shape[0]])))

    def __call__(self, attn: Attention, hidden_states: Tensor, *_: Any, **options: Any) -> Tensor:
        """Return the attention's output, [2, n, c]. The first sample is unconditional: it gets no points."""
        off = torch.zeros_like(self.moves[0])
        handle, target = (torch.stack([off, move]) for move in self.moves)
        both = torch.cat([hidden_states, self.reference.expand(2, -1, -1)], dim=1)
        query = attn.to_q(hidden_states) + target
        key = attn.to_k(both) + torch.cat([target, handle], dim=1)
        query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, attn.to_v(both)))
        out = F.scaled_dot_product_attention(query, key, value)
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


class PointAdapter(ModelMixin, ConfigMixin):
    """What LightningDrag adds to a U-Net of Stable Diffusion: points and an image prompt, in its attention processors.

    Args:
        layers: (channels of the points, channels of the attention) of each transformer block, in diffusers' order.
        point_width: see `PointEmbedding`.
        context: channels of the prompt's tokens.
        image: channels of the image embedding.
    """

    @register_to_config
    def __init__(self, layers: Sequence[tuple[int, int]], point_width: int, context: int, image: int) -> None:
        super().__init__()
        self.point_embedding = PointEmbedding(point_width)
        self.image_projection = ImageProjection(image, context, IMAGE_TOKENS)
        self.processors = nn.ModuleList()
        for points, width in layers:
            self.processors.append(PointAttention(points, width))
            self.processors.append(IPAdapterAttnProcessor2_0(width, context, num_tokens=(IMAGE_TOKENS,)))

    def attach(self, unet: UNet2DConditionModel) -> None:
        """Make the processors those of a U-Net.

        Raises:
            InputError: the U-Net has other layers.
        """
        attentions = {name: unet.get_submodule(name.removesuffix(".processor")) for name in unet.attn_processors}
        found = [attention.to_q.out_features for attention in attentions.values()]
        expected = [width for _, width in self.config.layers for _ in range(2)]
        if found != expected or unet.config.cross_attention_dim != self.config.context:
            raise InputError("the layers of the first --model do not fit those of the second; use Stable Diffusion 1.5")
        unet.set_attn_processor(dict(zip(attentions, self.processors, strict=True)))

    def set(self, unet: UNet2DConditionModel, bank: Bank, maps: Tensor) -> None:
        """Set the reference's tokens and the points for the further calls of a U-Net that this is attached to."""
        points = self.point_embedding(maps)
        for name, processor in unet.attn_processors.items():
            if isinstance(processor, PointAttention):
                processor.set(bank[name.removesuffix(".attn1.processor")], points)


@dataclass
class LightningDrag:
    """Edit a photo by drags. The prompt is empty; guidance strengthens the points.

    Attributes:
        sd: Stable Diffusion 1.x for inpainting, with the adapter attached.
        appearance: U-Net that reads the photo once.
        adapter: points and the image prompt.
        image_encoder: CLIP of the image prompt.
        steps: noise levels.
        guidance: factor of the points' effect at the first step. It falls to 1.
        fast: whether the adapters of a latent consistency model are part of the U-Net.
    """

    sd: StableDiffusion
    appearance: UNet2DConditionModel
    adapter: PointAdapter
    image_encoder: CLIPVisionModelWithProjection
    steps: int = 8
    guidance: float = 3.0
    fast: bool = True

    def __post_init__(self) -> None:
        most = 50 if self.fast else 500
        if not 1 <= self.steps <= most:
            raise InputError(f"--steps must be 1 to {most}, got {self.steps}; try {8 if self.fast else 25}")
        self.bank: Bank = {}
        write_tokens(self.appearance, self.bank)

    def cost(self, example: Example) -> int:
        """Return the number of U-Net evaluations of one sample: two a step, and one of the photo."""
        return 2 * self.steps + 1

    @torch.no_grad()
    def __call__(self, example: Example, generator: torch.Generator) -> Tensor:
        """Return the edited photo [3, H, W] in [-1, 1]."""
        assert example.points is not None and example.region is not None
        sd, clean, text = self.sd, self.sd.encode(example.photo), self.sd.embed()
        self.appearance(clean, 0, text)
        self.adapter.set(sd.unet, self.bank, point_maps(example.points, example.size).to(clean))
        region = F.interpolate(example.region[None].float(), clean.shape[-2:]).to(clean)
        fixed = torch.cat([region, sd.encode(example.photo * ~example.region)], dim=1)
        context = text.expand(2, -1, -1), [self._image_prompt(example.photo).expand(2, -1, -1)]
        scheduler = self._scheduler()
        x = scheduler.add_noise(clean, torch.randn(clean.shape, generator=generator).to(clean), torch.tensor([START]))
        for number, timestep in enumerate(scheduler.timesteps):
            off, on = sd.unet(torch.cat([x, fixed], dim=1).expand(2, -1, -1, -1), timestep, context).sample.chunk(2)
            noise = off + ((self.guidance - 1) * (1 - number / self.steps) ** 2 + 1) * (on - off)
            x = scheduler.step(noise, timestep, x, generator=generator).prev_sample
        return sd.decode(x)

    def _scheduler(self) -> LCMScheduler | DDIMScheduler:
        """Return the scheduler with its timesteps, which is stateful, for one sample."""
        scheduler = (LCMScheduler if self.fast else DDIMScheduler)(**SCHEDULE)
        scheduler.set_timesteps(self.steps)
        return scheduler

    def _image_prompt(self, photo: Tensor) -> Tensor:
        """Return the image prompt's tokens [1, 4, d] of a photo [3, H, W] in [-1, 1]."""
        side = self.image_encoder.config.image_size
        prepare = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        image = prepare(images=to_uint8(photo), return_tensors="pt").pixel_values.to(
            self.sd.device, self.image_encoder.dtype
        )
        return self.adapter.image_projection(self.image_encoder(image).image_embeds)


def load_lightning_drag(
    base: str, model: str, dtype: torch.dtype = torch.float32, device: str = "cpu", **given: Any
) -> LightningDrag:
    """Load LightningDrag.

    Args:
        base: folder of Stable Diffusion 1.5 for inpainting.
        model: folder of the converted files.
        dtype, device: of the networks.
        given: `steps` and `guidance`, if other than published.

    Raises:
        InputError: a part is missing or damaged, or the folders do not fit together.
    """
    parts = {"appearance_encoder": UNet2DConditionModel, "adapter": PointAdapter}
    parts["image_encoder"] = CLIPVisionModelWithProjection
    sd, folder = load_stable_diffusion(base, 9, dtype, device), Path(model)
    check_unet(folder / "appearance_encoder", 4, CONVERT)
    for part in parts:
        read_json(folder / part / "config.json", CONVERT)
    appearance, adapter, encoder = (load_part(kind, folder, part, dtype).to(device) for part, kind in parts.items())
    adapter.attach(sd.unet)
    if fast := (folder / FAST).is_dir():
        merge_lora(sd.unet, folder / FAST / LORA_FILE, CONVERT)
    published = {} if fast else {"steps": 25, "guidance": 4.0}
    return LightningDrag(sd, appearance, adapter, encoder, fast=fast, **published | given)
