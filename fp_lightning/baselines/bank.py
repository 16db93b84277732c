"""Reference tokens: one U-Net writes the input of its self-attention to a bank, and another reads it."""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

from fp_lightning.baselines.stable_diffusion import transformer_blocks

Bank = dict[str, Tensor]  # by the name of the transformer block, the normalised tokens [b, n, c]


class Writer(AttnProcessor2_0):
    """Self-attention that puts its input [b, n, c] into a bank."""

    def __init__(self, bank: Bank, block: str) -> None:
        super().__init__()
        self.bank, self.block = bank, block

    def __call__(self, attn: Attention, hidden_states: Tensor, *given: Any, **options: Any) -> Tensor:
        """Return the attention's output, [b, n, c]."""
        self.bank[self.block] = hidden_states
        return super().__call__(attn, hidden_states, *given, **options)


def write_tokens(unet: UNet2DConditionModel, bank: Bank) -> None:
    """Let every transformer block of a U-Net write to a bank whenever the U-Net runs."""
    for name, block in transformer_blocks(unet):
        block.attn1.set_processor(Writer(bank, name))
