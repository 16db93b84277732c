"""Mutual self-attention (MasaCtrl, Cao et al. 2023): an edited image attends to the source's keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from fp_lightning.baselines.stable_diffusion import late_blocks


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
