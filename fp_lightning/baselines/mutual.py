"""Self-attention to a source image: instead of (MasaCtrl, Cao et al. 2023) or beside an edit's own tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from fp_lightning.baselines.stable_diffusion import late_blocks, transformer_blocks


class SourceKeys:
    """Self-attention in which each half of pairs [source, edit, source, edit, …] uses the source's keys and values."""

    def __call__(self, attn: Attention, hidden_states: Tensor, *_: Any, **options: Any) -> Tensor:
        """Return the attention's output, [b, n, c] with b even."""
        source = hidden_states[::2].repeat_interleave(2, 0)
        heads = attn.heads

        def split(tokens: Tensor) -> Tensor:
            return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)

        out = F.scaled_dot_product_attention(
            split(attn.to_q(hidden_states)), split(attn.to_k(source)), split(attn.to_v(source)), scale=attn.scale
        )
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


@contextmanager
def mutual_attention(unet: UNet2DConditionModel) -> Iterator[None]:
    """In this block the self-attention of the last two up blocks uses the source's keys and values."""
    changed = [block.attn1 for _, block in late_blocks(unet)]
    kept = [attention.processor for attention in changed]
    try:
        for attention in changed:
            attention.processor = SourceKeys()
        yield
    finally:
        for attention, processor in zip(changed, kept, strict=True):
            attention.processor = processor


@contextmanager
def kept_tokens(unet: UNet2DConditionModel) -> Iterator[list[Tensor]]:
    """Collect the inputs [b, n, c] of the self-attention of all up blocks, in the order in which they run."""
    kept: list[Tensor] = []
    with _before_attention(unet, lambda index, tokens, options: kept.append(tokens)):
        yield kept


@contextmanager
def joined_tokens(unet: UNet2DConditionModel, source: list[Tensor]) -> Iterator[None]:
    """In this block the self-attention of all up blocks also sees `source`, see `kept_tokens`, after its own tokens."""

    def join(index: int, tokens: Tensor, options: dict[str, Any]) -> tuple[tuple[Tensor], dict[str, Any]]:
        beside = source[index].to(tokens).expand(len(tokens), -1, -1)
        return (tokens,), options | {"encoder_hidden_states": torch.cat([tokens, beside], 1)}

    with _before_attention(unet, join):
        yield


@contextmanager
def _before_attention(unet: UNet2DConditionModel, call: Callable[[int, Tensor, dict[str, Any]], Any]) -> Iterator[None]:
    """Call with (index, tokens, options) before the self-attention of each up block; a result replaces its inputs."""
    blocks = [block for name, block in transformer_blocks(unet) if name.startswith("up_blocks.")]
    hooks = [
        block.attn1.register_forward_pre_hook(
            lambda _, args, options, index=index: call(index, args[0], options), with_kwargs=True
        )
        for index, block in enumerate(blocks)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
