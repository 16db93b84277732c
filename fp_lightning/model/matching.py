"""Matching attention (paper, section 3.2) and the two kinds of attention that Table 3 compares it with.

Each kind is a diffusers attention processor on the spatial self-attention `attn1` of every transformer block.
Tokens have the shape [b · f, n, c] with f = 2 frames per video: the source, then the target.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from einops import rearrange
from torch import Tensor, nn

from fp_lightning.model.matching_loss import MatchingForm, matching_loss

FRAMES = 2
AttentionKind = Literal["matching", "cross_frame", "temporal"]
MatchQueries = Literal["target", "both"]


@dataclass
class Correspondence:
    """Correspondence from target to source (C of Eq. 5) and visibility (M of Eq. 6), for token grids of any size."""

    tracks: Tensor  # [b, 2, th, tw] source position (x, y) in pixels of each tracked target position
    visible: Tensor  # bool [b, th, tw]: the target position is visible in the source
    size: tuple[int, int]  # (height, width) of the image in pixels

    def source_index(self, tokens: int) -> Tensor:
        """Return the source token of each target token, long [b, tokens]; -1 where no visible match exists.

        Each token takes the displacement of the tracked position nearest to its centre. Displacements are not
        averaged: the mean of two motions is a motion of neither object.

        Args:
            tokens: number of square tokens that tile the image.

        Raises:
            ValueError: no grid of square tokens has this number.
        """
        (height, width), device = self.size, self.tracks.device
        stride = (height * width / tokens) ** 0.5
        rows, columns = round(height / stride), round(width / stride)
        if rows * columns != tokens:
            raise ValueError(f"{tokens} tokens do not tile an image of {height}×{width} px with squares")
        th, tw = self.visible.shape[-2:]
        y = (torch.arange(rows, device=device) + 0.5) * stride
        x = (torch.arange(columns, device=device) + 0.5) * stride
        ty, tx = (y * th / height).long(), (x * tw / width).long()  # the tracked cell that contains the centre
        near = self.tracks[:, :, ty][:, :, :, tx]
        source_x = near[:, 0] + x - (tx + 0.5) * (width / tw)
        source_y = near[:, 1] + (y - (ty + 0.5) * (height / th))[:, None]
        column, row = (source_x / stride).floor().long(), (source_y / stride).floor().long()
        seen = self.visible[:, ty][:, :, tx] & (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        return torch.where(seen, row * columns + column, -1).flatten(1)


@dataclass
class MatchingCall:
    """The state of one U-Net call that the matching processors share: what to match, and their losses."""

    correspondence: Correspondence | None = None
    form: MatchingForm = "squared"
    losses: dict[str, Tensor] = field(default_factory=dict)  # by layer
    open: bool = True  # False after the forward pass, so that gradient checkpointing does not record losses again


class MatchingAttnProcessor(nn.Module):
    """Spatial attention plus matching attention (Eq. 2 to 4).

    In the matching branch, queries come from the target frame, keys and values from the source frame. The processor
    owns the branch's weights: to_q, to_k and to_v start as copies of the spatial attention's. to_out starts at zero,
    so that the branch adds nothing before training (as in the released code; the paper only copies).

    Args:
        attn: the spatial attention whose weights are copied.
        name: layer name, the key of its loss in `call.losses`.
        queries: frames whose tokens are queries: "target" (paper) or "both" (released).
    """

    def __init__(self, attn: Attention, name: str, queries: MatchQueries = "target") -> None:
        super().__init__()
        self.name, self.queries, self.call = name, queries, MatchingCall()
        self.spatial = AttnProcessor2_0()
        inner, width = attn.to_q.weight.shape
        self.to_q = nn.Linear(width, inner, bias=attn.to_q.bias is not None)
        self.to_k = nn.Linear(width, inner, bias=attn.to_k.bias is not None)
        self.to_v = nn.Linear(width, inner, bias=attn.to_v.bias is not None)
        self.to_out = nn.ModuleList([nn.Linear(inner, attn.to_out[0].out_features)])
        self.copy_from(attn)

    @torch.no_grad()
    def copy_from(self, attn: Attention) -> None:
        """Reset the branch: copy the spatial attention's weights and set the output projection to zero."""
        for branch, spatial in ((self.to_q, attn.to_q), (self.to_k, attn.to_k), (self.to_v, attn.to_v)):
            branch.load_state_dict(spatial.state_dict())
        for parameter in self.to_out.parameters():
            parameter.zero_()

    def forward(self, attn: Attention, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        """Return O_spatial + [0, O_match] (Eq. 4) for tokens [b · 2, n, c]."""
        spatial = self.spatial(attn, hidden_states, *args, **kwargs)
        tokens = rearrange(hidden_states, "(b f) n c -> b f n c", f=FRAMES)
        source, query_frames = tokens[:, 0], tokens if self.queries == "both" else tokens[:, 1:]

        def split_heads(x: Tensor) -> Tensor:
            return rearrange(x, "b n (h d) -> b h n d", h=attn.heads)

        query = split_heads(self.to_q(rearrange(query_frames, "b f n c -> b (f n) c")))
        key, value = split_heads(self.to_k(source)), split_heads(self.to_v(source))
        if self.call.correspondence is not None:
            index = self.call.correspondence.source_index(source.shape[1])
            loss = matching_loss(query[:, :, -source.shape[1] :], key, index, self.call.form)
            if self.call.open:
                self.call.losses[self.name] = loss
        matched = F.scaled_dot_product_attention(query, key, value)
        matched = self.to_out[0](rearrange(matched, "b h n d -> b n (h d)"))
        matched = rearrange(matched, "b (f n) c -> b f n c", n=source.shape[1])
        spatial = rearrange(spatial, "(b f) n c -> b f n c", f=FRAMES)
        unchanged = FRAMES - matched.shape[1]  # frames without queries: Eq. 4 pads them with zeros
        output = torch.cat([spatial[:, :unchanged], spatial[:, unchanged:] + matched], 1)
        return rearrange(output, "b f n c -> (b f) n c")


class CrossFrameAttnProcessor:
    """Spatial attention inflated along time: each token attends to all tokens of both frames (Table 3)."""

    def __init__(self) -> None:
        self.spatial = AttnProcessor2_0()

    def __call__(self, attn: Attention, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        video = rearrange(hidden_states, "(b f) n c -> b (f n) c", f=FRAMES)
        return rearrange(self.spatial(attn, video, *args, **kwargs), "b (f n) c -> (b f) n c", f=FRAMES)


def install_attention(
    unet: UNetSpatioTemporalConditionModel, kind: AttentionKind = "matching", queries: MatchQueries = "target"
) -> None:
    """Set the attention processor of every spatial self-attention of `unet`, in place (the rows of Table 3).

    Args:
        unet: a U-Net with SVD's transformer blocks.
        kind: "matching" adds the matching branch. "cross_frame" inflates keys and values along time. "temporal" adds
            nothing, so that only SVD's temporal attention connects the frames.
        queries: see `MatchingAttnProcessor`.

    Raises:
        ValueError: unknown `kind` or `queries`.
    """
    if kind not in ("matching", "cross_frame", "temporal"):
        raise ValueError(f"attention must be matching, cross_frame or temporal, got {kind!r}")
    if queries not in ("target", "both"):
        raise ValueError(f"match_queries must be target or both, got {queries!r}")
    for name, attn in spatial_attentions(unet).items():
        if kind == "matching":
            attn.set_processor(MatchingAttnProcessor(attn, name, queries))
        else:
            attn.set_processor(CrossFrameAttnProcessor() if kind == "cross_frame" else AttnProcessor2_0())


def spatial_attentions(unet: nn.Module) -> dict[str, Attention]:
    """Return the spatial self-attentions by the name of their transformer block."""
    return {
        name.removesuffix(".attn1"): module
        for name, module in unet.named_modules()
        if name.endswith(".transformer_blocks.0.attn1") and "temporal" not in name
    }
