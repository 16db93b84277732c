"""SVD's network at two frames and one image token: the same function of the same weights by fewer operations.

Nothing here approximates. With one key a softmax is 1, so cross-attention is a vector a sample, whatever asks
(no query, no norm before it). With two frames a softmax is a sigmoid, for which the difference of both keys is
enough; the two outputs of a (3, 1, 1) convolution take three products instead of six; and nearest upsampling
before a 3 × 3 convolution is four 2 × 2 ones, 4 instead of 9 taps an output pixel.

Each shortcut is a subclass of the module whose place it takes, over that module's own parameters: names,
shapes, hooks and adapters stay, and an input that is not two frames or one token takes the general way.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import AlphaBlender, TemporalResnetBlock
from diffusers.models.transformers.transformer_temporal import (
    TransformerSpatioTemporalModel,
    TransformerTemporalModelOutput,
)
from diffusers.models.upsampling import Upsample2D
from einops import rearrange
from torch import Tensor, nn

from fp_lightning.model.matching import FRAMES

M = TypeVar("M", bound=nn.Module)
_FEWEST_UP = 600  # pixels for which it pays to add up an upsampling kernel
_FEWEST_MIXED = 48  # pixels of a frame for which it pays to take differences of a temporal kernel
_ROWS = 1280  # tokens that a CPU takes through a feed-forward at a time


def specialise(model: M) -> M:
    """Puts the shortcuts into a diffusers video U-Net or temporal VAE decoder, in place; returns it.

    `idle_weights` are frozen: their gradient was zero and is none now, for which DDP would wait.
    """
    for module in model.modules():
        if type(module) in _SHORTCUTS:
            module.__class__ = _SHORTCUTS[type(module)]
        if isinstance(module, TemporalResnetBlock):
            for conv in (module.conv1, module.conv2):
                if type(conv) is nn.Conv3d:
                    conv.__class__ = TwoFrameConv
    for weight in idle_weights(model).values():
        weight.requires_grad_(False)
    return model


def idle_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that do not matter where the context is one token, by name: those of its queries and keys."""
    idle: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        if isinstance(module, (BasicTransformerBlock, TemporalBasicTransformerBlock)) and module.attn2 is not None:
            for part in ("norm2", "attn2.to_q", "attn2.to_k"):
                idle |= {f"{name}.{part}.{key}": p for key, p in module.get_submodule(part).named_parameters()}
    return idle


def generalise(model: M) -> M:
    """Takes the shortcuts out again, in place; returns the model."""
    general = {short: long for long, short in _SHORTCUTS.items()} | {TwoFrameConv: nn.Conv3d}
    for module in model.modules():
        if type(module) in general:
            module.__class__ = general[type(module)]
    return model


def one_token(attn: Attention, context: Tensor) -> Tensor:
    """Cross-attention to a single token, [..., 1, d] → [..., 1, c], the same for every query."""
    return attn.to_out[0](attn.to_v(context))


def feed_forward(norm: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    """x + layer(norm(x)), each token [..., c] alone; a CPU takes some at a time, whose wide layers stay in cache."""
    if x.device.type != "cpu" or x.shape[:-1].numel() <= _ROWS or torch.compiler.is_compiling():
        return layer(norm(x)) + x
    return torch.cat([layer(norm(rows)) + rows for rows in x.flatten(0, -2).split(_ROWS)]).view(x.shape)


class SpatialBlock(BasicTransformerBlock):
    """Self-attention, one vector, feed-forward on tokens [b · f, n, c] with `encoder_hidden_states` [b · f, 1, d]."""

    def forward(self, hidden_states: Tensor, attention_mask=None, encoder_hidden_states=None, *args, **kwargs):
        if encoder_hidden_states is None or encoder_hidden_states.shape[1] != 1:
            return super().forward(hidden_states, attention_mask, encoder_hidden_states, *args, **kwargs)
        x = self.attn1(self.norm1(hidden_states)) + hidden_states
        x = x + one_token(self.attn2, encoder_hidden_states)
        return feed_forward(self.norm3, self.ff, x)


class TemporalBlock(TemporalBasicTransformerBlock):
    """The same along time, on tokens [b · 2, n, c] where they are, with `encoder_hidden_states` [b, 1, d]."""

    def forward(self, hidden_states: Tensor, num_frames: int, encoder_hidden_states: Tensor | None = None) -> Tensor:
        videos = len(hidden_states) // FRAMES
        if num_frames != FRAMES or encoder_hidden_states is None or encoder_hidden_states.shape[:2] != (videos, 1):
            return super().forward(hidden_states, num_frames, encoder_hidden_states)
        x = hidden_states.unflatten(0, (-1, FRAMES))
        x = feed_forward(self.norm_in, self.ff_in, x)
        x = two_frame_attention(self.attn1, self.norm1(x)) + x
        x = x + one_token(self.attn2, encoder_hidden_states)[:, None]
        return feed_forward(self.norm3, self.ff, x).flatten(0, 1)


def two_frame_attention(attn: Attention, x: Tensor) -> Tensor:
    """Each token attends to itself in both frames, [b, 2, n, c]: v₁ + σ(q · (k₀ − k₁) / √d)(v₀ − v₁)."""
    heads = (attn.heads, -1)
    query, value = (to(x).unflatten(-1, heads) for to in (attn.to_q, attn.to_v))
    key = attn.to_k(x[:, :1] - x[:, 1:]).unflatten(-1, heads)
    first = ((query * key).sum(-1, keepdim=True) * query.shape[-1] ** -0.5).sigmoid()
    return attn.to_out[0](torch.lerp(value[:, 1:], value[:, :1], first).flatten(-2))


class SpatioTemporalTransformer(TransformerSpatioTemporalModel):
    """Spatial and temporal blocks in turn on [b · f, c, h, w], the image token not repeated for every pixel."""

    def forward(self, hidden_states, encoder_hidden_states=None, image_only_indicator=None, return_dict=True):
        if image_only_indicator.shape[-1] != FRAMES or encoder_hidden_states.shape[1] != 1:
            return super().forward(hidden_states, encoder_hidden_states, image_only_indicator, return_dict)
        height, width = hidden_states.shape[-2:]
        x = self.proj_in(self.norm(hidden_states).flatten(2).mT)
        frame = torch.arange(FRAMES, device=x.device)
        position = self.time_pos_embed(self.time_proj(frame).to(x.dtype))[:, None]
        for spatial, temporal in zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True):
            x = self._run(spatial, x, None, encoder_hidden_states)
            moved = (x.unflatten(0, (-1, FRAMES)) + position).flatten(0, 1)
            moved = self._run(temporal, moved, FRAMES, encoder_hidden_states[::FRAMES])
            x = self.time_mixer(x, moved)
        x = hidden_states + self.proj_out(x).mT.unflatten(2, (height, width))  # in the layout of its first term
        return TransformerTemporalModelOutput(sample=x) if return_dict else (x,)

    def _run(self, block: nn.Module, *args):
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)


class Blend(AlphaBlender):
    """One mix of two tensors where no frame is an image alone, which is what a video U-Net says of all of them."""

    def forward(self, x_spatial: Tensor, x_temporal: Tensor, image_only_indicator: Tensor | None = None) -> Tensor:
        share = self.mix_factor if self.merge_strategy == "fixed" else self.mix_factor.sigmoid()
        first, second = (x_spatial, x_temporal) if self.switch_spatial_to_temporal_mix else (x_temporal, x_spatial)
        return torch.lerp(first, second, share.to(first.dtype))


class TwoFrameConv(nn.Conv3d):
    """A (3, 1, 1) convolution of two frames by three products: W₁(x₀ + x₁), (W₂ − W₁)x₁ and (W₀ − W₁)x₀.

    On less than `_FEWEST_MIXED` pixels the differences of the weights cost more than the products saved. There
    inference goes the general way, but not training: on CPUs torch 2.15's gradient of its weight is wrong in bfloat16.
    """

    def forward(self, x: Tensor) -> Tensor:
        few = x[0, 0, 0].numel() < _FEWEST_MIXED and not torch.is_grad_enabled()
        if x.shape[2] != FRAMES or self.bias is None or few:
            return super().forward(x)
        before, here, after = self.weight[..., 0, 0].unbind(-1)
        weights = here.contiguous(), after - here, before - here
        here, after, before = (weight.expand(len(x), -1, -1) for weight in weights)
        first, second = x.flatten(3).unbind(2)
        both = torch.baddbmm(self.bias[:, None], here, first + second)
        frames = torch.baddbmm(both, after, second), torch.baddbmm(both, before, first)
        # in memory the frames lie before the channels, as in the spatial layers: joining them with the batch is free
        return torch.stack(frames, 1).transpose(1, 2).unflatten(3, x.shape[3:])


class UpsampleConv(Upsample2D):
    """Nearest upsampling by 2 and a 3 × 3 convolution as four 2 × 2 convolutions, one for each place in a new pixel.

    The 2 × 2 kernels are sums of the 3 × 3 one's, which costs as much as it saves on less than `_FEWEST_UP` pixels.
    """

    def forward(self, hidden_states: Tensor, output_size=None, *args, **kwargs) -> Tensor:
        conv = getattr(self, "conv", None)
        if (
            output_size is not None
            or self.norm is not None
            or type(conv) is not nn.Conv2d  # an adapter
            or hasattr(conv, "_hf_hook")  # its weights are elsewhere until it is called
            or conv.kernel_size != (3, 3)
            or hidden_states[:, 0].numel() < _FEWEST_UP
        ):
            return super().forward(hidden_states, output_size, *args, **kwargs)
        height, width = hidden_states.shape[-2:]
        x = F.pad(hidden_states, (1, 1, 1, 1))
        places = [
            F.conv2d(x[..., i : i + height + 1, j : j + width + 1], kernel, conv.bias)
            for i, rows in enumerate(_halves(conv.weight, -2))
            for j, kernel in enumerate(_halves(rows, -1))
        ]
        return rearrange(torch.stack(places), "(i j) b c h w -> b c (h i) (w j)", i=2)


def _halves(kernel: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """What three taps are on the first and on the second half of a pixel of twice their size: two taps each."""
    before, here, after = kernel.unbind(dim)
    return torch.stack([before, here + after], dim), torch.stack([before + here, after], dim)


_SHORTCUTS: dict[type[nn.Module], type[nn.Module]] = {
    BasicTransformerBlock: SpatialBlock,
    TemporalBasicTransformerBlock: TemporalBlock,
    TransformerSpatioTemporalModel: SpatioTemporalTransformer,
    AlphaBlender: Blend,
    Upsample2D: UpsampleConv,
}
