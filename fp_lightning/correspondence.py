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
from fp_lightning.types import MOVING_WIDTH, EditBatch, to_uint8

WITHIN = (1, 2, 4)  # tokens
ENTRIES = 1 << 24  # of attention that exist at a time


class CorrespondenceMetrics(Metric):
    """How far the source token with the most attention is from the tracked one, for every layer.

    One call of the network on the true pair with noise: for every target token with a visible track, the attention
    to the source's tokens is averaged over heads, and its arg-max compared with the token that holds the track.
    Of matching attention it is the branch's, of cross-frame attention the source's share of it.

    `pictures` shows it for the first images of this process: the source's tokens, each at the target tokens that look
    at it most, by the last layer of the finest grid; close to the target where attention has found everything.

    Args:
        layers: names of the attention layers, `spatial_attentions(unet)`.
        sigma: noise level of both frames' latents.
        keep: pictures at most.
    """

    full_state_update = False
    sums: Tensor  # [layers, 2 + len(WITHIN)]: tokens, their errors in pixels at 512 px width, how many are within

    def __init__(self, layers: Sequence[str], sigma: float = 1.0, keep: int = 24) -> None:
        super().__init__()
        self.layers, self.sigma, self.keep = list(layers), sigma, keep
        self.pictures: dict[str, Tensor] = {}  # uint8 [3, h, w] by the image's name
        self._finest: Tensor | None = None  # the last call's arg-max on the finest grid, long [b, tokens]
        self.add_state("sums", torch.zeros(len(self.layers), 2 + len(WITHIN), dtype=EXACT), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, editor: FramePainter, batch: EditBatch, generators: Sequence[torch.Generator]) -> None:
        """Adds the tokens of a batch with tracks; does nothing where the network has no attention between frames.

        Args:
            generators: one a sample, on the CPU, for its noise.
        """
        self.sums = self.sums.to(EXACT)  # `module.to(bfloat16)` lowers states too, which start as zeros
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
        self._finest = None
        handles = [self._watch(attn, self.layers.index(name), truth) for name, attn in self._asked(editor).items()]
        try:
            sigma = torch.full((len(batch),), self.sigma, device=device)
            editor.denoise(clean + self.sigma * normal(clean.shape[1:]), sigma, condition)
        finally:
            for handle in handles:
                handle.remove()
        best: Sequence[Tensor] = [] if self._finest is None else list(self._finest)
        for name, source, found in zip(batch.name[: len(best)], batch.source[: len(best)], best, strict=True):
            if len(self.pictures) < self.keep:
                self.pictures[name] = reassembled(to_uint8(source).cpu(), found.cpu())

    def reset(self) -> None:
        super().reset()
        self.pictures = {}

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
        best = torch.stack([looked_at(q, k, tokens) for q, k in zip(query, key, strict=True)])
        if self._finest is None or tokens >= self._finest.shape[1]:
            self._finest = best
        found, wanted = best[index >= 0], index[index >= 0]
        away = torch.hypot(
            (found % columns - wanted % columns).to(EXACT), (found // columns - wanted // columns).to(EXACT)
        )
        pixels = away.sum() * stride * MOVING_WIDTH / truth.size[1]
        within = [(away <= limit).sum() for limit in WITHIN]
        self.sums[layer] += torch.stack([away.new_tensor(len(away)), pixels, *within]).to(self.sums)


def looked_at(query: Tensor, key: Tensor, tokens: int) -> Tensor:
    """Which of the first `tokens` keys each query attends to most, on average over heads: long [n].

    Args:
        query: [h, n, d].
        key: [h, m, d], m ≥ tokens; attention is shared among all of them.
    """
    found = []
    for rows in query.split(max(1, ENTRIES // (key.shape[0] * key.shape[1])), dim=1):
        logits = rows.float() @ key.float().mT * query.shape[-1] ** -0.5
        found.append(logits.softmax(-1)[..., :tokens].mean(0).argmax(-1))
    return torch.cat(found)


def reassembled(source: Tensor, found: Tensor) -> Tensor:
    """The source uint8 [3, h, w] cut into tokens, and at each place of the target the one that `found` [n] names."""
    stride = round((source.shape[1] * source.shape[2] / len(found)) ** 0.5)
    shape = {"s": stride, "t": stride}
    pieces = rearrange(source, "c (r s) (k t) -> (r k) c s t", **shape)
    return rearrange(pieces[found], "(r k) c s t -> c (r s) (k t)", r=source.shape[1] // stride)
