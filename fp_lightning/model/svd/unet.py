"""SVD's U-Net with a choice of attention, and hooks that add the control response and copy dragged tokens."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ModelMixin, UNetSpatioTemporalConditionModel  # noqa: F401  (pipelines look for ModelMixin here)
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import Tensor, nn

from fp_lightning.model.control import inject
from fp_lightning.model.matching import (
    FRAMES,
    AttentionKind,
    Correspondence,
    MatchingAttnProcessor,
    MatchingCall,
    MatchQueries,
    install_attention,
    spatial_attentions,
)
from fp_lightning.model.matching_loss import MatchingForm
from fp_lightning.model.points import DragPoints, copy_tokens
from fp_lightning.model.prior import DeepFeatures
from fp_lightning.model.svd.specialise import specialise


class FramePainterUNet(PeftAdapterMixin, UNetSpatioTemporalConditionModel):
    """A `UNetSpatioTemporalConditionModel` for two frames: the source image and its edit.

    The defaults are SVD's network with the paper's matching attention and the faster modules of `specialise`
    (`generalise` restores diffusers' modules). diffusers saves and loads it like any model. State-dict keys are SVD's,
    plus `*.attn1.processor.*` for the matching branch.

    Args:
        attention: "matching", "cross_frame" or "temporal", see `install_attention`.
        match_queries: frames whose tokens are queries in matching attention: "target" (paper) or "both" (released).

    All other arguments are those of `UNetSpatioTemporalConditionModel`.
    """

    _repeated_blocks = ["SpatialBlock", "TemporalBlock"]  # noqa: RUF012  what `compile_repeated_blocks` compiles

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = 96,
        in_channels: int = 8,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = ("CrossAttnDownBlockSpatioTemporal",) * 3 + ("DownBlockSpatioTemporal",),
        up_block_types: tuple[str, ...] = ("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * 3,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        addition_time_embed_dim: int = 256,
        projection_class_embeddings_input_dim: int = 768,
        layers_per_block: int | tuple[int, ...] = 2,
        cross_attention_dim: int | tuple[int, ...] = 1024,
        transformer_layers_per_block: int | tuple[int, ...] = 1,
        num_attention_heads: int | tuple[int, ...] = (5, 10, 20, 20),
        num_frames: int = FRAMES,
        attention: AttentionKind = "matching",
        match_queries: MatchQueries = "target",
    ) -> None:
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            addition_time_embed_dim=addition_time_embed_dim,
            projection_class_embeddings_input_dim=projection_class_embeddings_input_dim,
            layers_per_block=layers_per_block,
            cross_attention_dim=cross_attention_dim,
            transformer_layers_per_block=transformer_layers_per_block,
            num_attention_heads=num_attention_heads,
            num_frames=num_frames,
        )
        install_attention(self, attention, match_queries)
        specialise(self)
        self._control: tuple[Tensor, Tensor] | None = None
        self._points: DragPoints | None = None
        self._deep: DeepFeatures | None = None
        self.up_blocks[-1].register_forward_pre_hook(self._store_deep, with_kwargs=True)
        self.down_blocks[0].register_forward_hook(self._inject)
        for block in self.modules():
            if isinstance(block, TransformerSpatioTemporalModel):
                block.register_forward_hook(self._copy_tokens)

    @classmethod
    def from_svd(
        cls,
        unet: UNetSpatioTemporalConditionModel,
        attention: AttentionKind = "matching",
        match_queries: MatchQueries = "target",
    ) -> FramePainterUNet:
        """Build the network on the tensors of an SVD U-Net, without copying them.

        The matching branch starts from copies of the spatial attention's weights.
        """
        with torch.device("meta"):
            model = cls.from_config(dict(unet.config), attention=attention, match_queries=match_queries)
        model.load_state_dict(unet.state_dict(), strict=False, assign=True)
        for attn in spatial_attentions(model).values():
            if isinstance(attn.processor, MatchingAttnProcessor):
                attn.processor.to_empty(device=unet.device).to(unet.dtype).copy_from(attn)
        return specialise(model.requires_grad_(True))

    def set_match_queries(self, queries: MatchQueries) -> None:
        """Set the frames whose tokens are queries in matching attention. Weights do not change."""
        for attn in spatial_attentions(self).values():
            if isinstance(attn.processor, MatchingAttnProcessor):
                attn.processor.queries = queries
        self.register_to_config(match_queries=queries)

    def forward(  # type: ignore[override]
        self,
        sample: Tensor,
        c_noise: Tensor,
        embedding: Tensor,
        added_time_ids: Tensor,
        response: Tensor | None = None,
        control_scale: Tensor | None = None,
        correspondence: Correspondence | None = None,
        points: DragPoints | None = None,
        matching_form: MatchingForm = "squared",
        deep: DeepFeatures | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Evaluate the network F.

        Args:
            sample: [b, 2, in_channels, h, w], scaled noisy latents (c_in · x) and image latents, joined along channels.
            c_noise: [b], ¼ ln σ.
            embedding: [b, 1, cross_attention_dim] of the source image.
            added_time_ids: [b, 3], (fps − 1, motion bucket, noise augmentation).
            response: [b, f, c, H, W], output of the control encoder; f = 1: target frame only (paper), f = 2: both.
            control_scale: [b], factor of the response.
            correspondence: requests the matching losses.
            points: drags whose tokens are copied after every spatio-temporal transformer block (16 in SVD).
            matching_form: form of the matching losses, see `matching_loss`.
            deep: receives the deep features, or replaces the deeper blocks if `deep.reuse` is set. The control
                response enters in the deeper blocks, so that a reused call has the response of the stored features.

        Returns:
            The output [b, 2, out_channels, h, w], and the matching loss of each layer by name.
        """
        call = MatchingCall(correspondence, matching_form)
        for attn in spatial_attentions(self).values():
            if isinstance(attn.processor, MatchingAttnProcessor):
                attn.processor.call = call
        if response is not None and control_scale is not None:
            self._control = (response, control_scale)
        self._points, self._deep = points, deep
        try:
            if deep is not None and deep.reuse:
                output = self._finest(sample, c_noise, embedding, added_time_ids, deep)
            else:
                output = super().forward(sample, c_noise, embedding, added_time_ids, return_dict=False)[0]
        finally:
            self._control, self._points, self._deep, call.open = None, None, None, False
        return output, call.losses

    def _finest(
        self, sample: Tensor, c_noise: Tensor, embedding: Tensor, added_time_ids: Tensor, deep: DeepFeatures
    ) -> Tensor:
        """Evaluate only the finest blocks, on the stored deep features; the rest is as in diffusers' forward."""
        assert deep.features is not None, "run a full call before reusing deep features"
        down, up = self.down_blocks[0], self.up_blocks[-1]
        ids = self.add_time_proj(added_time_ids.flatten()).unflatten(0, added_time_ids.shape).flatten(1)
        level = self.time_embedding(self.time_proj(c_noise).to(sample.dtype))
        level = (level + self.add_embedding(ids.to(level.dtype))).repeat_interleave(FRAMES, 0)
        context, images = embedding.repeat_interleave(FRAMES, 0), sample.new_zeros(sample.shape[:2])
        x = self.conv_in(sample.flatten(0, 1))
        skips = [x]
        for resnet, attention in zip(down.resnets, down.attentions, strict=True):
            x = attention(resnet(x, level, images), context, images, return_dict=False)[0]
            skips.append(x)
        x = up(
            hidden_states=deep.features,
            temb=level,
            res_hidden_states_tuple=tuple(skips),
            encoder_hidden_states=context,
            image_only_indicator=images,
        )
        return self.conv_out(self.conv_act(self.conv_norm_out(x))).unflatten(0, sample.shape[:2])

    def _store_deep(self, block: nn.Module, args, kwargs: dict[str, Any]) -> None:
        """Store the input of the finest up block as deep features."""
        if self._deep is not None:
            self._deep.features = kwargs["hidden_states"]

    def _inject(self, block: nn.Module, args, output: tuple[Tensor, tuple[Tensor, ...]]):
        """Add the control response to the output of the first block. The skip features stay unchanged."""
        if self._control is None:
            return None
        features, skips = output
        response, scale = self._control
        frames = response.shape[1]
        video = features.unflatten(0, (-1, FRAMES))
        changed = inject(video[:, -frames:].flatten(0, 1), response.flatten(0, 1), scale.repeat_interleave(frames))
        video = torch.cat([video[:, :-frames], changed.unflatten(0, (-1, frames))], 1)
        return video.flatten(0, 1), skips

    def _copy_tokens(self, block: nn.Module, args, output: tuple[Tensor]):
        """Copy the dragged tokens in the output of a transformer block, a tuple of one tensor."""
        if self._points is None:
            return None
        return (copy_tokens(output[0].unflatten(0, (-1, FRAMES)), self._points).flatten(0, 1),)
