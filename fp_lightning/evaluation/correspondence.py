"""Where attention looks for each target token, against the tracks: the paper's Figure 8 as numbers."""

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
    def update(self, editor: FramePainter, batch: EditBatch, generators: edm.Generators) -> None:
        """Adds the tokens of a batch with tracks; does nothing where the network has no attention between frames.

        Args:
            generators: one a sample, on the CPU, for its noise.
        """
        self.sums = self.sums.to(EXACT)  # `module.to(bfloat16)` lowers states too, which start as zeros
        if batch.tracks is None or batch.visible is None or batch.target is None:
            return
        truth = Correspondence(batch.tracks, batch.visible, (batch.source.shape[-2], batch.source.shape[-1]))
        self._finest = None
        for seen in probe(editor, batch, self.sigma, generators):
            self._add(seen, truth)
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

    def _add(self, seen: Seen, truth: Correspondence) -> None:
        index = truth.source_index(seen.tokens)
        best = torch.stack([looked_at(q, k, seen.tokens) for q, k in zip(seen.query, seen.key, strict=True)])
        if self._finest is None or seen.tokens >= self._finest.shape[1]:
            self._finest = best
        away, pixels = distances(best[index >= 0], index[index >= 0], seen.tokens, truth.size)
        within = [(away <= limit).sum() for limit in WITHIN]
        self.sums[self.layers.index(seen.layer)] += torch.stack([away.new_tensor(len(away)), pixels.sum(), *within]).to(
            self.sums
        )


@dataclass(frozen=True)
class Seen:
    """Queries and keys of one attention layer that joins the frames."""

    layer: str
    query: Tensor  # [b, h, n, d] of the target's tokens
    key: Tensor  # [b, h, m, d]; the first n are the source's tokens, the others, if any, the target's
    tokens: int  # n


@torch.no_grad()
def probe(editor: FramePainter, batch: EditBatch, sigma: float, generators: edm.Generators) -> Iterator[Seen]:
    """One call of the network on the true pairs with noise of level `sigma`; what its attention between frames asks.

    Of matching attention it is the branch's, of cross-frame attention that of the target's tokens. Nothing where the
    network has no attention between frames.

    Args:
        batch: with target, and control or points.
        generators: one a sample, on the CPU, for its noise.
    """
    device = batch.source.device
    assert batch.target is not None, "the true pair is looked at"

    def normal(shape: Sequence[int]) -> Tensor:
        return edm.drawn(partial(torch.randn, tuple(shape)), generators).to(device)

    augmentation = torch.full((len(batch),), editor.prior.noise_augmentation, device=device)
    condition = editor.condition(batch, normal(batch.source.shape[1:]), augmentation)
    clean = torch.stack([editor.encode(x) for x in (batch.source, batch.target)], 1)
    clean = clean * editor.prior.scaling_factor
    hidden: dict[str, Tensor] = {}
    asked = {
        name: attn
        for name, attn in editor.prior.attentions().items()
        if isinstance(attn.processor, (MatchingAttnProcessor, CrossFrameAttnProcessor))
    }

    def keep(name: str) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            hidden[name] = args[0]

        return hook

    handles = [attn.register_forward_pre_hook(keep(name)) for name, attn in asked.items()]
    try:
        levels = torch.full((len(batch),), sigma, device=device)
        editor.denoise(clean + sigma * normal(clean.shape[1:]), levels, condition)
    finally:
        for handle in handles:
            handle.remove()
    for name, attn in asked.items():
        source, target = rearrange(hidden[name], "(b f) n c -> f b n c", f=2)
        branch = attn.processor if isinstance(attn.processor, MatchingAttnProcessor) else attn
        answering = source if branch is attn.processor else torch.cat([source, target], 1)
        query, key = (
            rearrange(x, "b n (h d) -> b h n d", h=attn.heads) for x in (branch.to_q(target), branch.to_k(answering))
        )
        yield Seen(name, query, key, source.shape[1])


def distances(found: Tensor, wanted: Tensor, tokens: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """How far source tokens are from others, [n] each: in tokens, and in pixels at 512 px width.

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
    """Where the target's tokens under some points look in the source (the paper's Figure 8), by layer.

    Args:
        batch, generators, sigma: see `probe`.
        points: [b, p, 2] as (x, y) in the target, in pixels.

    Returns:
        For each layer attention [b, h, p, rows, columns] over the source's tokens; of matching attention every map
        sums to 1, of cross-frame attention to the source's share.
    """
    (height, width), maps = batch.source.shape[-2:], {}
    for seen in probe(editor, batch, sigma, generators):
        stride = (height * width / seen.tokens) ** 0.5
        rows, columns = round(height / stride), round(width / stride)
        column, row = (points / stride).floor().long().unbind(-1)
        token = row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1)  # [b, p]
        query = torch.stack([q[:, index] for q, index in zip(seen.query, token, strict=True)])
        logits = query.float() @ seen.key.float().mT * query.shape[-1] ** -0.5
        attention = logits.softmax(-1)[..., : seen.tokens]
        maps[seen.layer] = attention.unflatten(-1, (rows, columns)).cpu()
    return maps


def by_head(editor: FramePainter, batch: EditBatch, sigmas: Sequence[float], seed: int = 0) -> list[dict[str, Any]]:
    """Correspondence and entropy of every layer and head at some noise levels, a row each.

    "tokens" are those with a visible track, "error" (mean, px at 512 px width) and "within_1" (share within one token)
    are of the arg-max of one head's attention, "entropy" is the mean over target tokens of the attention's entropy by
    the greatest possible, 0 for a single token and 1 for all alike.

    Args:
        batch: with target, tracks and visible.
        seed: of the noise, which is the same at every level but for its strength.
    """
    assert batch.tracks is not None and batch.visible is not None, "correspondence needs tracks"
    size = (batch.source.shape[-2], batch.source.shape[-1])
    truth = Correspondence(batch.tracks, batch.visible, size)
    rows: list[dict[str, Any]] = []
    for sigma in sigmas:
        noise = seeded_generators(batch.name, seed, "correspondence")
        for seen in probe(editor, batch, sigma, noise):
            index = truth.source_index(seen.tokens)
            for head in range(seen.query.shape[1]):
                query, key = seen.query[:, head], seen.key[:, head]
                best = torch.stack([looked_at(q[None], k[None], seen.tokens) for q, k in zip(query, key, strict=True)])
                away, pixels = distances(best[index >= 0], index[index >= 0], seen.tokens, size)
                rows.append(
                    {
                        "layer": seen.layer,
                        "grid": seen.tokens,
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
    """Entropy of attention over its keys, by its greatest value ln m: [..., n] in [0, 1].

    Args:
        query: [..., n, d].
        key: [..., m, d].
    """
    values = []
    for rows in query.split(max(1, ENTRIES // (key[..., 0].numel())), dim=-2):
        logs = (rows.float() @ key.float().mT * query.shape[-1] ** -0.5).log_softmax(-1)
        values.append(-(logs.exp() * logs).sum(-1))
    return torch.cat(values, -1) / math.log(key.shape[-2])


def looked_at(query: Tensor, key: Tensor, tokens: int) -> Tensor:
    """Which of the first `tokens` keys each query attends to most, on average over heads: long [n].

    Args:
        query: [h, n, d].
        key: [h, m, d], m ≥ tokens; attention is shared among all of them.
    """
    return torch.cat([rows.argmax(-1) for rows in attention_rows(query, key, tokens)])


def attention_rows(query: Tensor, key: Tensor, tokens: int) -> Iterator[Tensor]:
    """Attention of some queries at a time to the first `tokens` keys, mean over heads: [rows, tokens] each.

    Arguments are those of `looked_at`.
    """
    for rows in query.split(max(1, ENTRIES // (key.shape[0] * key.shape[1])), dim=1):
        logits = rows.float() @ key.float().mT * query.shape[-1] ** -0.5
        yield logits.softmax(-1)[..., :tokens].mean(0)


@dataclass(frozen=True)
class Matches:
    """Where every token of an edit comes from, by the last layer of the finest grid, mean over heads."""

    grid: tuple[int, int]  # (rows, columns) of tokens
    best: Tensor  # long [n]: the source token with the most attention
    cells: tuple[int, int]  # (rows, columns) of blocks of tokens, in both images
    maps: Tensor  # float [m, m]: how much a block of the edit attends to each block of the source, mean over its tokens


@torch.no_grad()
def matches(
    editor: FramePainter, batch: EditBatch, generators: edm.Generators, sigma: float = 1.0, most: int = 1024
) -> Matches | None:
    """The matches of one edit; None where the network has no attention between frames.

    Args:
        batch: one sample, with the edit as target; generators, sigma: see `probe`.
        most: blocks at most; they are as small as that allows, one token at least.
    """
    finest: Seen | None = None
    for seen in probe(editor, batch, sigma, generators):
        if finest is None or seen.tokens >= finest.tokens:
            finest = seen
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
    """The source uint8 [3, h, w] cut into tokens, and at each place of the target the one that `found` [n] names."""
    stride = round((source.shape[1] * source.shape[2] / len(found)) ** 0.5)
    shape = {"s": stride, "t": stride}
    pieces = rearrange(source, "c (r s) (k t) -> (r k) c s t", **shape)
    return rearrange(pieces[found], "(r k) c s t -> c (r s) (k t)", r=source.shape[1] // stride)
