"""Where attention looks for each target token, against the tracks: the paper's Figure 8 as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from torchmetrics import Metric

from fp_lightning.editor import NOISE_AUGMENTATION, FramePainter
from fp_lightning.matching import Correspondence, CrossFrameAttnProcessor, MatchingAttnProcessor, spatial_attentions
from fp_lightning.scores import EXACT
from fp_lightning.types import MOVING_WIDTH, EditBatch

WITHIN = (1, 2, 4)  # tokens
ENTRIES = 1 << 24  # of attention that exist at a time


class CorrespondenceMetrics(Metric):
    """How far the source token with the most attention is from the tracked one, for every layer.

    One call of the network on the true pair with noise: for every target token with a visible track, the attention
    to the source's tokens is averaged over heads, and its arg-max compared with the token that holds the track.
    Of matching attention it is the branch's, of cross-frame attention the source's share of it.

    Args:
        layers: names of the attention layers, `spatial_attentions(unet)`.
        sigma: noise level of both frames' latents.
    """

    full_state_update = False
    sums: Tensor  # [layers, 2 + len(WITHIN)]: tokens, their errors in pixels at 512 px width, how many are within

    def __init__(self, layers: Sequence[str], sigma: float = 1.0) -> None:
        super().__init__()
        self.layers, self.sigma = list(layers), sigma
        self.add_state("sums", torch.zeros(len(self.layers), 2 + len(WITHIN), dtype=EXACT), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, editor: FramePainter, batch: EditBatch, generators: Sequence[torch.Generator]) -> None:
        """Adds the tokens of a batch with tracks; does nothing where the network has no attention between frames.

        Args:
            generators: one a sample, on the CPU, for its noise.
        """
        if batch.tracks is None or batch.visible is None or batch.target is None:
            return
        size = (batch.source.shape[-2], batch.source.shape[-1])
        truth = Correspondence(batch.tracks, batch.visible, size)
        device = batch.source.device

        def normal(shape: Sequence[int]) -> Tensor:
            return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators]).to(device)

        augmentation = torch.full((len(batch),), NOISE_AUGMENTATION, device=device)
        condition = editor.condition(batch, normal(batch.source.shape[1:]), augmentation)
        clean = torch.stack([editor.encode(x) for x in (batch.source, batch.target)], 1)
        clean = clean * editor.vae.config.scaling_factor
        handles = [self._watch(attn, self.layers.index(name), truth) for name, attn in self._asked(editor).items()]
        try:
            sigma = torch.full((len(batch),), self.sigma, device=device)
            editor.denoise(clean + self.sigma * normal(clean.shape[1:]), sigma, condition)
        finally:
            for handle in handles:
                handle.remove()

    def compute(self) -> dict[str, dict[str, float]]:
        """By layer: "tokens" (how many), "error" (mean, pixels at 512 px width), "within_1", "within_2", "within_4"
        (share of tokens, distance in tokens); and "all" layers together. Empty if nothing was measured."""
        rows = {name: row for name, row in zip(self.layers, self.sums, strict=True) if row[0] > 0}
        if not rows:
            return {}
        rows["all"] = torch.stack(list(rows.values())).sum(0)
        names = ("error", *(f"within_{n}" for n in WITHIN))
        return {
            layer: {"tokens": int(row[0]), **dict(zip(names, (row[1:] / row[0]).tolist(), strict=True))}
            for layer, row in rows.items()
        }

    def _asked(self, editor: FramePainter) -> dict[str, Any]:
        kinds = (MatchingAttnProcessor, CrossFrameAttnProcessor)
        return {k: attn for k, attn in spatial_attentions(editor.unet).items() if isinstance(attn.processor, kinds)}

    def _watch(self, attn: Any, layer: int, truth: Correspondence) -> RemovableHandle:
        def look(module: Any, args: tuple[Tensor, ...]) -> None:
            self._add(attn, layer, truth, args[0])

        return attn.register_forward_pre_hook(look)

    def _add(self, attn: Any, layer: int, truth: Correspondence, hidden: Tensor) -> None:
        source, target = rearrange(hidden, "(b f) n c -> f b n c", f=2)
        branch = attn.processor if isinstance(attn.processor, MatchingAttnProcessor) else attn
        answering = source if branch is attn.processor else torch.cat([source, target], 1)
        query, key = (
            rearrange(x, "b n (h d) -> b h n d", h=attn.heads) for x in (branch.to_q(target), branch.to_k(answering))
        )
        tokens = source.shape[1]
        index = truth.source_index(tokens)
        stride = (truth.size[0] * truth.size[1] / tokens) ** 0.5
        columns = round(truth.size[1] / stride)
        for sample in range(len(index)):
            asking = (index[sample] >= 0).nonzero()[:, 0]
            for rows in asking.split(max(1, ENTRIES // (key.shape[1] * key.shape[2]))):
                logits = query[sample, :, rows].float() @ key[sample].float().mT * query.shape[-1] ** -0.5
                found = logits.softmax(-1)[..., :tokens].mean(0).argmax(-1)
                wanted = index[sample, rows]
                away = torch.hypot(
                    (found % columns - wanted % columns).to(EXACT), (found // columns - wanted // columns).to(EXACT)
                )
                within = [(away <= limit).sum() for limit in WITHIN]
                pixels = away.sum() * stride * MOVING_WIDTH / truth.size[1]
                self.sums[layer] += torch.stack([away.new_tensor(len(rows)), pixels, *within]).to(self.sums)
