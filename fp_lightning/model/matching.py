"""Matching attention (paper section 3.2) and the attention it is compared with.

Each kind is a diffusers attention processor on the spatial self-attention `attn1` of every
transformer block. Tokens arrive as [b · f, n, c], two frames a video: the source, then the target.
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
    """Which source token each target token shows (Eq. 5, 6), for token grids of any size."""

    tracks: Tensor  # [b, 2, th, tw] source position, in pixels, of each tracked target position
    visible: Tensor  # bool [b, th, tw]
    size: tuple[int, int]  # (height, width) of the image in pixels

    def source_index(self, tokens: int) -> Tensor:
        """The source token of each target token, long [b, tokens]; -1 where there is no visible match.

        The grid is the one with `tokens` square tokens. Each token takes the displacement tracked
        nearest to its centre: displacements are never averaged, since between two motions there is
        no third one.
        """
        (height, width), device = self.size, self.tracks.device
        stride = (height * width / tokens) ** 0.5
        rows, columns = round(height / stride), round(width / stride)
        if rows * columns != tokens:
            raise ValueError(f"{tokens} tokens do not tile an image of {height}×{width} px with squares")
        th, tw = self.visible.shape[-2:]
        y = (torch.arange(rows, device=device) + 0.5) * stride
        x = (torch.arange(columns, device=device) + 0.5) * stride
        ty, tx = (y * th / height).long(), (x * tw / width).long()  # the tracked cell that holds the centre
        near = self.tracks[:, :, ty][:, :, :, tx]
        source_x = near[:, 0] + x - (tx + 0.5) * (width / tw)
        source_y = near[:, 1] + (y - (ty + 0.5) * (height / th))[:, None]
        column, row = (source_x / stride).floor().long(), (source_y / stride).floor().long()
        seen = self.visible[:, ty][:, :, tx] & (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        return torch.where(seen, row * columns + column, -1).flatten(1)


@dataclass
class MatchingCall:
    """One U-Net call as its processors see it: what to match, and the losses that they leave."""

    correspondence: Correspondence | None = None
    form: MatchingForm = "squared"
    losses: dict[str, Tensor] = field(default_factory=dict)
    open: bool = True  # closed after the forward pass: recomputation for gradient checkpointing leaves no losses


class MatchingAttnProcessor(nn.Module):
    """Spatial attention plus matching attention: target tokens ask, source tokens answer (Eq. 2 to 4).

    Owns the branch's weights: to_q, to_k and to_v start as copies of the spatial attention's, to_out
    at zero, so that the branch starts silent (as released; the paper copies only).

    Args:
        attn: the spatial attention whose weights it copies.
        name: of the layer, under which its loss is left in `call.losses`.
        queries: "target" (paper) or "both" frames (as released).
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
        """Starts the branch anew from the spatial attention's weights, silent."""
        for own, other in ((self.to_q, attn.to_q), (self.to_k, attn.to_k), (self.to_v, attn.to_v)):
            own.load_state_dict(other.state_dict())
        for parameter in self.to_out.parameters():
            parameter.zero_()

    def forward(self, attn: Attention, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        spatial = self.spatial(attn, hidden_states, *args, **kwargs)
        tokens = rearrange(hidden_states, "(b f) n c -> b f n c", f=FRAMES)
        source, asking = tokens[:, 0], tokens if self.queries == "both" else tokens[:, 1:]

        def split_heads(x: Tensor) -> Tensor:
            return rearrange(x, "b n (h d) -> b h n d", h=attn.heads)

        query = split_heads(self.to_q(rearrange(asking, "b f n c -> b (f n) c")))
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
        silent = FRAMES - matched.shape[1]  # the paper pads the source frame with zeros (Eq. 4)
        output = torch.cat([spatial[:, :silent], spatial[:, silent:] + matched], 1)
        return rearrange(output, "b f n c -> (b f) n c")


class CrossFrameAttnProcessor:
    """Spatial attention inflated along time: every token attends to the tokens of both frames."""

    def __init__(self) -> None:
        self.spatial = AttnProcessor2_0()

    def __call__(self, attn: Attention, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        video = rearrange(hidden_states, "(b f) n c -> b (f n) c", f=FRAMES)
        return rearrange(self.spatial(attn, video, *args, **kwargs), "b (f n) c -> (b f) n c", f=FRAMES)


def install_attention(
    unet: UNetSpatioTemporalConditionModel, kind: AttentionKind = "matching", queries: MatchQueries = "target"
) -> None:
    """Puts attention of the named kind on every spatial self-attention of `unet`.

    "matching" adds the matching branch, "cross_frame" inflates K and V along time, "temporal" adds
    nothing: only SVD's own temporal attention joins the frames (the arms of Table 3).

    Raises:
        ValueError: an unknown kind or choice of queries.
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
    """The spatial self-attentions by the name of their transformer block."""
    return {
        name.removesuffix(".attn1"): module
        for name, module in unet.named_modules()
        if name.endswith(".transformer_blocks.0.attn1") and "temporal" not in name
    }
