"""Compare the attention between the frames with the true tracks: the paper's Figure 8 as numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torchmetrics import Metric

from fp_lightning.evaluation.scores import EXACT
from fp_lightning.model import edm
from fp_lightning.model.editor import FramePainter
from fp_lightning.model.edm import seeded_generators
from fp_lightning.model.matching import (
    Correspondence,
    CrossFrameAttnProcessor,
    MatchingAttnProcessor,
)
from fp_lightning.types import MOVING_WIDTH, EditBatch, to_uint8

WITHIN = (1, 2, 4)  # tokens: limits of a correct correspondence
ENTRIES = 1 << 24  # attention entries that are held in memory at a time


class CorrespondenceMetrics(Metric):
    """Distance between the most attended source token and the tracked source token, per layer.

    The network runs once on the noised true pair. For each target token with a visible track, the attention to the
    source tokens is averaged over heads, and its arg-max is compared with the token that contains the track. In
    matching attention, the branch's attention is measured; in cross-frame attention, its part over the source tokens.

    `pictures` visualises the first images of this process: each target token is replaced by its most attended source
    token, in the last layer of the finest grid. The better the correspondence, the closer the picture is to the
    target.

    Args:
        layers: names of the attention layers, see `fp_lightning.model.matching.spatial_attentions`.
        sigma: noise level of the latents of both frames.
        keep: maximum number of pictures.
    """

    full_state_update = False
    sums: Tensor  # [layers, 2 + len(WITHIN)]: tokens, sum of errors in pixels at 512 px width, tokens within each limit

    def __init__(self, layers: Sequence[str], sigma: float = 1.0, keep: int = 24) -> None:
        super().__init__()
        self.layers, self.sigma, self.keep = list(layers), sigma, keep
        self.pictures: dict[str, Tensor] = {}  # uint8 [3, h, w] by image name
        self._finest: Tensor | None = None  # arg-max of the last call on the finest grid, long [b, tokens]
        self.add_state("sums", torch.zeros(len(self.layers), 2 + len(WITHIN), dtype=EXACT), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, editor: FramePainter, batch: EditBatch, generators: edm.Generators) -> None:
        """Add the tokens of a batch. Without tracks or targets, or without attention between frames, nothing is added.

        Args:
            generators: noise generators on the CPU, one per sample.
        """
        self.sums = self.sums.to(EXACT)  # `module.to(bfloat16)` casts states too
        if batch.tracks is None or batch.visible is None or batch.target is None:
            return
        truth = Correspondence(batch.tracks, batch.visible, (batch.source.shape[-2], batch.source.shape[-1]))
        self._finest = None
        for layer in probe(editor, batch, self.sigma, generators):
            self._add(layer, truth)
        best: Sequence[Tensor] = [] if self._finest is None else list(self._finest)
        for name, source, found in zip(batch.name[: len(best)], batch.source[: len(best)], best, strict=True):
            if len(self.pictures) < self.keep:
                self.pictures[name] = reassembled(to_uint8(source).cpu(), found.cpu())

    def reset(self) -> None:
        super().reset()
        self.pictures = {}

    def compute(self) -> dict[str, dict[str, float]]:
        """Results by layer, and of all layers together as "all"; empty if nothing was measured.

        Returns:
            {layer: {"tokens": count, "error": mean in pixels at 512 px width, "within_1", "within_2", "within_4":
            share of tokens whose error is at most 1, 2 and 4 tokens}}.
        """
        rows = {name: row for name, row in zip(self.layers, self.sums, strict=True) if row[0] > 0}
        if not rows:
            return {}
        rows["all"] = torch.stack(list(rows.values())).sum(0)
        names = ("error", *(f"within_{n}" for n in WITHIN))
        return {
            layer: {"tokens": int(row[0]), **dict(zip(names, (row[1:] / row[0]).tolist(), strict=True))}
            for layer, row in rows.items()
        }

    def _add(self, layer: FrameAttention, truth: Correspondence) -> None:
        index = truth.source_index(layer.tokens)
        best = torch.stack([most_attended(q, k, layer.tokens) for q, k in zip(layer.query, layer.key, strict=True)])
        if self._finest is None or layer.tokens >= self._finest.shape[1]:
            self._finest = best
        away, pixels = distances(best[index >= 0], index[index >= 0], layer.tokens, truth.size)
        within = [(away <= limit).sum() for limit in WITHIN]
        self.sums[self.layers.index(layer.layer)] += torch.stack(
            [away.new_tensor(len(away)), pixels.sum(), *within]
        ).to(self.sums)


@dataclass(frozen=True)
class FrameAttention:
    """Queries and keys of an attention layer between the frames."""

    layer: str
    query: Tensor  # [b, h, n, d] of the target tokens
    key: Tensor  # [b, h, m, d]; the first n are the source tokens, the others, if any, the target tokens
    tokens: int  # n


@torch.no_grad()
def probe(editor: FramePainter, batch: EditBatch, sigma: float, generators: edm.Generators) -> Iterator[FrameAttention]:
    """Run the network once on the noised true pairs, and yield the queries and keys of attention between the frames.

    They are those of the branch in matching attention, and those of the target tokens in cross-frame attention. A
    network without attention between the frames yields nothing.

    Args:
        batch: with target, and control or points.
        sigma: noise level of both frames.
        generators: noise generators on the CPU, one per sample.
    """
    device = batch.source.device
    assert batch.target is not None, "the true pair is needed"

    def normal(shape: Sequence[int]) -> Tensor:
        return edm.drawn(partial(torch.randn, tuple(shape)), generators).to(device)

    augmentation = torch.full((len(batch),), editor.prior.noise_augmentation, device=device)
    condition = editor.condition(batch, normal(batch.source.shape[1:]), augmentation)
    clean = torch.stack([editor.encode(x) for x in (batch.source, batch.target)], 1)
    clean = clean * editor.prior.scaling_factor
    hidden: dict[str, Tensor] = {}
    attentions = {
        name: attn
        for name, attn in editor.prior.attentions().items()
        if isinstance(attn.processor, (MatchingAttnProcessor, CrossFrameAttnProcessor))
    }

    def keep(name: str) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            hidden[name] = args[0]

        return hook

    handles = [attn.register_forward_pre_hook(keep(name)) for name, attn in attentions.items()]
    try:
        levels = torch.full((len(batch),), sigma, device=device)
        editor.denoise(clean + sigma * normal(clean.shape[1:]), levels, condition)
    finally:
        for handle in handles:
            handle.remove()
    for name, attn in attentions.items():
        source, target = rearrange(hidden[name], "(b f) n c -> f b n c", f=2)
        branch = attn.processor if isinstance(attn.processor, MatchingAttnProcessor) else attn
        answering = source if branch is attn.processor else torch.cat([source, target], 1)
        query, key = (
            rearrange(x, "b n (h d) -> b h n d", h=attn.heads) for x in (branch.to_q(target), branch.to_k(answering))
        )
        yield FrameAttention(name, query, key, source.shape[1])


def distances(found: Tensor, wanted: Tensor, tokens: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Distances between source tokens, [n] each: in tokens, and in pixels at 512 px width.

    Args:
        found, wanted: token indices [n] of a grid of `tokens` square tokens.
        size: (height, width) of the image in pixels.
    """
    stride = (size[0] * size[1] / tokens) ** 0.5
    columns = round(size[1] / stride)
    away = torch.hypot((found % columns - wanted % columns).to(EXACT), (found // columns - wanted // columns).to(EXACT))
    return away, away * (stride * MOVING_WIDTH / size[1])


def attention_maps(
    editor: FramePainter,
    batch: EditBatch,
    points: Tensor,
    generators: edm.Generators,
    sigma: float = 1.0,
) -> dict[str, Tensor]:
    """Attention of the target tokens at some points to the source tokens (the paper's Figure 8), by layer.

    Args:
        batch, generators, sigma: see `probe`.
        points: [b, p, 2] as (x, y) in the target, in pixels.

    Returns:
        {layer: attention [b, h, p, rows, columns] over the source tokens}. Maps of matching attention sum to 1, maps of
        cross-frame attention to the share of the source tokens.
    """
    (height, width), maps = batch.source.shape[-2:], {}
    for layer in probe(editor, batch, sigma, generators):
        stride = (height * width / layer.tokens) ** 0.5
        rows, columns = round(height / stride), round(width / stride)
        column, row = (points / stride).floor().long().unbind(-1)
        token = row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1)  # [b, p]
        query = torch.stack([q[:, index] for q, index in zip(layer.query, token, strict=True)])
        logits = query.float() @ layer.key.float().mT * query.shape[-1] ** -0.5
        attention = logits.softmax(-1)[..., : layer.tokens]
        maps[layer.layer] = attention.unflatten(-1, (rows, columns)).cpu()
    return maps


def by_head(editor: FramePainter, batch: EditBatch, sigmas: Sequence[float], seed: int = 0) -> list[dict[str, Any]]:
    """Measure correspondence and entropy of each layer and head at several noise levels.

    Args:
        batch: with target, tracks and visible.
        seed: seed of the noise, which differs between levels only in its strength.

    Returns:
        One row per noise level, layer and head, with "layer", "grid" (tokens of a frame), "head", "sigma", "tokens"
        (with a visible track), "error" (mean distance of the arg-max in px at 512 px width), "within_1" (share of
        tokens with an error of at most one token) and "entropy" (mean of `entropy` over target tokens).
    """
    assert batch.tracks is not None and batch.visible is not None, "correspondence needs tracks"
    size = (batch.source.shape[-2], batch.source.shape[-1])
    truth = Correspondence(batch.tracks, batch.visible, size)
    rows: list[dict[str, Any]] = []
    for sigma in sigmas:
        noise = seeded_generators(batch.name, seed, "correspondence")
        for layer in probe(editor, batch, sigma, noise):
            index = truth.source_index(layer.tokens)
            for head in range(layer.query.shape[1]):
                query, key = layer.query[:, head], layer.key[:, head]
                best = torch.stack(
                    [most_attended(q[None], k[None], layer.tokens) for q, k in zip(query, key, strict=True)]
                )
                away, pixels = distances(best[index >= 0], index[index >= 0], layer.tokens, size)
                rows.append(
                    {
                        "layer": layer.layer,
                        "grid": layer.tokens,
                        "head": head,
                        "sigma": sigma,
                        "tokens": len(away),
                        "error": float(pixels.mean()) if len(away) else float("nan"),
                        "within_1": float((away <= 1).double().mean()) if len(away) else float("nan"),
                        "entropy": float(entropy(query, key).mean()),
                    }
                )
    return rows


def entropy(query: Tensor, key: Tensor) -> Tensor:
    """Entropy of attention over the keys, divided by its maximum ln m: [..., n], 0 for one key and 1 for uniform.

    Args:
        query: [..., n, d].
        key: [..., m, d].
    """
    values = []
    for rows in query.split(max(1, ENTRIES // (key[..., 0].numel())), dim=-2):
        logs = (rows.float() @ key.float().mT * query.shape[-1] ** -0.5).log_softmax(-1)
        values.append(-(logs.exp() * logs).sum(-1))
    return torch.cat(values, -1) / math.log(key.shape[-2])


def most_attended(query: Tensor, key: Tensor, tokens: int) -> Tensor:
    """Index of the most attended of the first `tokens` keys for each query, mean over heads: long [n].

    Args:
        query: [h, n, d].
        key: [h, m, d], m ≥ tokens; the softmax runs over all m keys.
    """
    return torch.cat([rows.argmax(-1) for rows in attention_rows(query, key, tokens)])


def attention_rows(query: Tensor, key: Tensor, tokens: int) -> Iterator[Tensor]:
    """Yield attention to the first `tokens` keys in chunks of queries, mean over heads: [rows, tokens] each.

    The arguments are those of `most_attended`.
    """
    for rows in query.split(max(1, ENTRIES // (key.shape[0] * key.shape[1])), dim=1):
        logits = rows.float() @ key.float().mT * query.shape[-1] ** -0.5
        yield logits.softmax(-1)[..., :tokens].mean(0)


@dataclass(frozen=True)
class Matches:
    """The source token of each token of an edit, in the last layer of the finest grid, mean over heads."""

    grid: tuple[int, int]  # (rows, columns) of tokens
    best: Tensor  # long [n]: the source token with the most attention
    cells: tuple[int, int]  # (rows, columns) of blocks of tokens in either image
    maps: Tensor  # float [m, m]: attention of each block of the edit to each block of the source, mean over its tokens


@torch.no_grad()
def matches(
    editor: FramePainter, batch: EditBatch, generators: edm.Generators, sigma: float = 1.0, most: int = 1024
) -> Matches | None:
    """Find the source token of each token of one edit; None if the network has no attention between frames.

    Args:
        batch: one sample, with the edit as target.
        generators, sigma: see `probe`.
        most: maximum number of blocks; blocks are as small as this allows.
    """
    finest: FrameAttention | None = None
    for layer in probe(editor, batch, sigma, generators):
        if finest is None or layer.tokens >= finest.tokens:
            finest = layer
    if finest is None:
        return None
    height, width = batch.source.shape[-2:]
    stride = (height * width / finest.tokens) ** 0.5
    rows, columns = round(height / stride), round(width / stride)
    sides = [n for n in range(1, min(rows, columns) + 1) if rows % n == 0 == columns % n]
    side = next((n for n in sides if finest.tokens <= most * n * n), sides[-1])
    cells = (rows // side, columns // side)
    token = torch.arange(finest.tokens, device=batch.source.device)
    block = token // columns // side * cells[1] + token % columns // side
    maps = torch.zeros(cells[0] * cells[1], cells[0] * cells[1], device=batch.source.device)
    best, begin = [], 0
    for attention in attention_rows(finest.query[0], finest.key[0], finest.tokens):
        best.append(attention.argmax(-1))
        pooled = attention.new_zeros(len(attention), maps.shape[1]).index_add_(1, block, attention)
        maps.index_add_(0, block[begin : begin + len(attention)], pooled)
        begin += len(attention)
    return Matches((rows, columns), torch.cat(best).cpu(), cells, (maps / side**2).cpu())


def reassembled(source: Tensor, found: Tensor) -> Tensor:
    """Rebuild the target from patches of the source uint8 [3, h, w]; `found` [n] is the source token of each patch."""
    stride = round((source.shape[1] * source.shape[2] / len(found)) ** 0.5)
    shape = {"s": stride, "t": stride}
    pieces = rearrange(source, "c (r s) (k t) -> (r k) c s t", **shape)
    return rearrange(pieces[found], "(r k) c s t -> c (r s) (k t)", r=source.shape[1] // stride)
