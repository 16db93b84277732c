"""SVD's U-Net with an attention kind and the places where the control response and drag points enter."""

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
    """`UNetSpatioTemporalConditionModel` for two frames, the source image and its edit.

    Without arguments it is SVD's network with the paper's matching attention and the shortcuts of
    `specialise`, which `generalise` takes out. Saved and loaded by diffusers like any model; its keys
    are SVD's own, and `*.attn1.processor.*` for the branch.

    Args:
        attention: "matching", "cross_frame" or "temporal", see `install_attention`.
        match_queries: which frames ask in matching attention: "target" (paper) or "both" (released).
        The others are `UNetSpatioTemporalConditionModel`'s.
    """

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
        self.up_blocks[-1].register_forward_pre_hook(self._keep, with_kwargs=True)
        self.down_blocks[0].register_forward_hook(self._inject)
        for block in self.modules():
            if isinstance(block, TransformerSpatioTemporalModel):
                block.register_forward_hook(self._copy)

    @classmethod
    def from_svd(
        cls,
        unet: UNetSpatioTemporalConditionModel,
        attention: AttentionKind = "matching",
        match_queries: MatchQueries = "target",
    ) -> FramePainterUNet:
        """The network over the tensors of an SVD U-Net, not copied; the branch starts from its weights."""
        with torch.device("meta"):
            model = cls.from_config(dict(unet.config), attention=attention, match_queries=match_queries)
        model.load_state_dict(unet.state_dict(), strict=False, assign=True)
        for attn in spatial_attentions(model).values():
            if isinstance(attn.processor, MatchingAttnProcessor):
                attn.processor.to_empty(device=unet.device).to(unet.dtype).copy_from(attn)
        return specialise(model.requires_grad_(True))

    def set_match_queries(self, queries: MatchQueries) -> None:
        """Chooses which frames ask in matching attention; no weight changes."""
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
        """One call of the network F.

        Args:
            sample: [b, 2, in_channels, h, w], noisy latents and image latents.
            c_noise: [b], ¼ ln σ.
            embedding: [b, 1, cross_attention_dim] of the source image.
            added_time_ids: [b, 3], (fps − 1, motion bucket, noise augmentation).
            response: [b, f, c, H, W] of the control encoder: f = 1 for the target alone (paper), 2 for both frames.
            control_scale: [b] factor of the response.
            correspondence: asks for the matching losses.
            points: copies tokens at the output of every attention block, spatial and temporal attention at
                one place (16 in SVD).
            matching_form: of the matching losses, see `matching_loss`.
            deep: keeps the deep features, or says that those kept stand in for all but the finest blocks; the
                control response, which enters below those, is then the one that they were made with.

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
        """The call without the deeper blocks, as `UNetSpatioTemporalConditionModel.forward` does it otherwise."""
        assert deep.features is not None, "a whole call comes first"
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

    def _keep(self, block: nn.Module, args, kwargs: dict[str, Any]) -> None:
        """Keeps what the finest up block is given."""
        if self._deep is not None:
            self._deep.features = kwargs["hidden_states"]

    def _inject(self, block: nn.Module, args, output: tuple[Tensor, tuple[Tensor, ...]]):
        """Adds the control response after the first block; its skip features never see it."""
        if self._control is None:
            return None
        features, skips = output
        response, scale = self._control
        frames = response.shape[1]
        video = features.unflatten(0, (-1, FRAMES))
        changed = inject(video[:, -frames:].flatten(0, 1), response.flatten(0, 1), scale.repeat_interleave(frames))
        video = torch.cat([video[:, :-frames], changed.unflatten(0, (-1, frames))], 1)
        return video.flatten(0, 1), skips

    def _copy(self, block: nn.Module, args, output: tuple[Tensor]):
        """Copies the dragged tokens after an attention block, which returns a tuple of one."""
        if self._points is None:
            return None
        return (copy_tokens(output[0].unflatten(0, (-1, FRAMES)), self._points).flatten(0, 1),)
