"""Exact, faster modules for SVD's network with two frames and one image token.

They compute the same function of the same weights with fewer operations. Nothing is approximated.

- Cross-attention to one token: the softmax over one key is 1, so the output is one vector per sample. It needs no
  query and no normalisation before it.
- Temporal attention over two frames: the softmax is a sigmoid of the difference of both logits.
- A (3, 1, 1) convolution of two frames takes three matrix products instead of six.
- Nearest upsampling and a 3 × 3 convolution equal four 2 × 2 convolutions: 4 instead of 9 taps per output pixel.

Each module is a subclass of the diffusers module that it replaces and uses the same parameters, so names, shapes,
hooks and adapters stay valid. Other inputs fall back to the general implementation.
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
_FEWEST_UP = 600  # pixels from which `UpsampleConv` is faster
_FEWEST_MIXED = 48  # pixels per frame from which `TwoFrameConv` is faster
_ROWS = 1280  # tokens per chunk of a feed-forward on the CPU


def specialise(model: M) -> M:
    """Replace the modules of a diffusers video U-Net or temporal VAE decoder by the faster ones, in place.

    Freezes `idle_weights`: they would have a zero gradient in diffusers and have none here, and DDP waits for the
    gradient of every trainable weight.

    Returns:
        The same model.
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
    """Return, by name, the weights without effect when the context is one token.

    These are queries, keys and the normalisation of cross-attention.
    """
    idle: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        if isinstance(module, (BasicTransformerBlock, TemporalBasicTransformerBlock)) and module.attn2 is not None:
            for part in ("norm2", "attn2.to_q", "attn2.to_k"):
                idle |= {f"{name}.{part}.{key}": p for key, p in module.get_submodule(part).named_parameters()}
    return idle


def generalise(model: M) -> M:
    """Restore diffusers' modules in place (the inverse of `specialise`), and return the model."""
    general = {faster: original for original, faster in _SHORTCUTS.items()} | {TwoFrameConv: nn.Conv3d}
    for module in model.modules():
        if type(module) in general:
            module.__class__ = general[type(module)]
    return model


def one_token(attn: Attention, context: Tensor) -> Tensor:
    """Return cross-attention to a single token, [..., 1, d] → [..., 1, c]. It is the same for every query."""
    return attn.to_out[0](attn.to_v(context))


def feed_forward(norm: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    """Return x + layer(norm(x)) for tokens [..., c].

    On the CPU, tokens are processed in chunks, so that the wide activations stay in the cache.
    """
    if x.device.type != "cpu" or x.shape[:-1].numel() <= _ROWS or torch.compiler.is_compiling():
        return layer(norm(x)) + x
    return torch.cat([layer(norm(rows)) + rows for rows in x.flatten(0, -2).split(_ROWS)]).view(x.shape)


class SpatialBlock(BasicTransformerBlock):
    """Spatial transformer block on tokens [b · f, n, c] with one context token [b · f, 1, d]."""

    def forward(self, hidden_states: Tensor, attention_mask=None, encoder_hidden_states=None, *args, **kwargs):
        if encoder_hidden_states is None or encoder_hidden_states.shape[1] != 1:
            return super().forward(hidden_states, attention_mask, encoder_hidden_states, *args, **kwargs)
        x = self.attn1(self.norm1(hidden_states)) + hidden_states
        x = x + one_token(self.attn2, encoder_hidden_states)
        return feed_forward(self.norm3, self.ff, x)


class TemporalBlock(TemporalBasicTransformerBlock):
    """Temporal transformer block on tokens [b · 2, n, c], not transposed, with one context token [b, 1, d]."""

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
    """Return temporal self-attention of tokens [b, 2, n, c]: v₁ + sigmoid(q · (k₀ − k₁) / √d) (v₀ − v₁).

    Each token attends to the tokens at its position in both frames.
    """
    heads = (attn.heads, -1)
    query, value = (to(x).unflatten(-1, heads) for to in (attn.to_q, attn.to_v))
    key = attn.to_k(x[:, :1] - x[:, 1:]).unflatten(-1, heads)
    first = ((query * key).sum(-1, keepdim=True) * query.shape[-1] ** -0.5).sigmoid()
    share = first.to(value.dtype)  # autocast on a GPU sums in float32
    return attn.to_out[0](torch.lerp(value[:, 1:], value[:, :1], share).flatten(-2))


class SpatioTemporalTransformer(TransformerSpatioTemporalModel):
    """Alternating spatial and temporal blocks on [b · f, c, h, w]. The image token is not repeated per pixel."""

    def forward(self, hidden_states, encoder_hidden_states=None, image_only_indicator=None, return_dict=True):
        if image_only_indicator.shape[-1] != FRAMES or encoder_hidden_states.shape[1] != 1:
            return super().forward(hidden_states, encoder_hidden_states, image_only_indicator, return_dict)
        height, width = hidden_states.shape[-2:]
        x = self.proj_in(self.norm(hidden_states).flatten(2).mT)
        frame = torch.arange(FRAMES, device=x.device)
        position = self.time_pos_embed(self.time_proj(frame).to(x.dtype))[:, None]
        for spatial, temporal in zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True):
            x = self._run(spatial, x, None, encoder_hidden_states)
            mixed = (x.unflatten(0, (-1, FRAMES)) + position).flatten(0, 1)
            mixed = self._run(temporal, mixed, FRAMES, encoder_hidden_states[::FRAMES])
            x = self.time_mixer(x, mixed)
        # the sum has the memory layout of its first term
        x = hidden_states + self.proj_out(x).mT.unflatten(2, (height, width))
        return TransformerTemporalModelOutput(sample=x) if return_dict else (x,)

    def _run(self, block: nn.Module, *args):
        """Call a block, with gradient checkpointing if it is enabled."""
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)


class Blend(AlphaBlender):
    """Blends the spatial and the temporal branch with one factor for all frames.

    This holds because a video U-Net marks no frame as image-only.
    """

    def forward(self, x_spatial: Tensor, x_temporal: Tensor, image_only_indicator: Tensor | None = None) -> Tensor:
        share = self.mix_factor if self.merge_strategy == "fixed" else self.mix_factor.sigmoid()
        first, second = (x_spatial, x_temporal) if self.switch_spatial_to_temporal_mix else (x_temporal, x_spatial)
        return torch.lerp(first, second, share.to(first.dtype))


class TwoFrameConv(nn.Conv3d):
    """A (3, 1, 1) convolution of two frames by three products: W₁(x₀ + x₁), (W₂ − W₁)x₁ and (W₀ − W₁)x₀.

    Below `_FEWEST_MIXED` pixels the weight differences cost more than they save, and inference falls back to the
    general implementation. Training does not fall back: on the CPU, torch 2.15 computes a wrong gradient of the
    convolution weight in bfloat16.
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
        # frames come before channels in memory, as in the spatial layers, so that merging them with the batch is free
        return torch.stack(frames, 1).transpose(1, 2).unflatten(3, x.shape[3:])


class UpsampleConv(Upsample2D):
    """Nearest upsampling by 2 and a 3 × 3 convolution as four 2 × 2 convolutions.

    Each 2 × 2 convolution computes one of the four output pixels of an input pixel. Its kernel is a sum of taps of the
    3 × 3 kernel. Below `_FEWEST_UP` pixels these sums cost as much as they save.
    """

    def forward(self, hidden_states: Tensor, output_size=None, *args, **kwargs) -> Tensor:
        conv = getattr(self, "conv", None)
        if (
            output_size is not None
            or self.norm is not None
            or type(conv) is not nn.Conv2d  # for example an adapter
            or hasattr(conv, "_hf_hook")  # offloaded: weights arrive only when it is called
            or conv.kernel_size != (3, 3)
            or hidden_states[:, 0].numel() < _FEWEST_UP
        ):
            return super().forward(hidden_states, output_size, *args, **kwargs)
        height, width = hidden_states.shape[-2:]
        x = F.pad(hidden_states, (1, 1, 1, 1))
        parts = [
            F.conv2d(x[..., i : i + height + 1, j : j + width + 1], kernel, conv.bias)
            for i, rows in enumerate(_halves(conv.weight, -2))
            for j, kernel in enumerate(_halves(rows, -1))
        ]
        return rearrange(torch.stack(parts), "(i j) b c h w -> b c (h i) (w j)", i=2)


def _halves(kernel: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the two-tap kernels that three taps become on the first and second half of an upsampled pixel."""
    before, here, after = kernel.unbind(dim)
    return torch.stack([before, here + after], dim), torch.stack([before + here, after], dim)


_SHORTCUTS: dict[type[nn.Module], type[nn.Module]] = {
    BasicTransformerBlock: SpatialBlock,
    TemporalBasicTransformerBlock: TemporalBlock,
    TransformerSpatioTemporalModel: SpatioTemporalTransformer,
    AlphaBlender: Blend,
    Upsample2D: UpsampleConv,
}
