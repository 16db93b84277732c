"""Write attention maps after each validation, and log the entropy of attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from fp_lightning.files import write_atomic
from fp_lightning.media.pictures import encode
from fp_lightning.types import EditBatch, to_uint8

SIDE = 192  # minimum height of an image in pixels
QUERY, TRUTH, FOUND = (255, 64, 64), (64, 255, 64), (255, 255, 64)  # RGB of the markers


class CorrespondenceMaps(Callback):
    """Write `<run>/correspondence/step-000123.png` while fitting, and log `attention/<layer>/entropy`.

    Each row is one sample (the paper's Figure 8). The target has a red marker on the query, the token that moves
    furthest. The source has a green marker on its tracked position. Then follows, for each layer, the source under the
    query's attention, mean over heads, with a yellow marker on the arg-max. The entropy is the mean over all target
    tokens of the same samples, 0 for one source token and 1 for uniform attention. A network without attention
    between the frames writes nothing.

    The module has `attention_maps(batch, points)` and `attention_entropy(batch)`; the batch has tracks.

    Args:
        every_n_val: write after the first validation and then after every n-th.
        max_samples: maximum number of rows, the first samples of the main process's first batch.
        max_layers: maximum number of layers, spread evenly over the network's depth.
    """

    def __init__(self, every_n_val: int = 1, max_samples: int = 4, max_layers: int = 6) -> None:
        self.every_n_val, self.max_samples, self.max_layers = every_n_val, max_samples, max_layers
        self._validations = 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: EditBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        wanted = trainer.state.fn == "fit" and not trainer.sanity_checking and self._validations % self.every_n_val == 0
        if not (wanted and batch_idx == 0 and trainer.is_global_zero) or batch.target is None or batch.tracks is None:
            return
        few = batch.map(lambda x: x[: self.max_samples])
        few.name = batch.name[: self.max_samples]
        points, truth = furthest(few)
        maps: dict[str, Tensor] = pl_module.attention_maps(few, points)  # type: ignore[operator]
        if not maps:
            return
        for layer, value in pl_module.attention_entropy(few).items():  # type: ignore[operator]
            pl_module.log(f"attention/{layer}/entropy", value, batch_size=len(few), rank_zero_only=True)
        names = list(maps)
        if len(names) > self.max_layers:
            names = [names[i * (len(names) - 1) // max(1, self.max_layers - 1)] for i in range(self.max_layers)]
        rows = np.concatenate(
            [
                _row(to_uint8(few.target[i]), to_uint8(few.source[i]), points[i, 0], truth[i, 0], shown)  # type: ignore[index]
                for i in range(len(few))
                if (shown := [maps[name][i, :, 0].mean(0) for name in names])
            ]
        )
        path = Path(trainer.default_root_dir) / "correspondence" / f"step-{trainer.global_step:06d}.png"
        write_atomic(path, encode(torch.from_numpy(rows).permute(2, 0, 1)))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validations += not trainer.sanity_checking


def furthest(batch: EditBatch) -> tuple[Tensor, Tensor]:
    """Centre of the visible target token that moves furthest, and its source position: [b, 1, 2] each, in pixels."""
    assert batch.tracks is not None and batch.visible is not None
    (height, width), (rows, columns) = batch.source.shape[-2:], batch.visible.shape[-2:]
    device = batch.tracks.device
    y = (torch.arange(rows, device=device) + 0.5) * (height / rows)
    x = (torch.arange(columns, device=device) + 0.5) * (width / columns)
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy")).flatten(1)  # [2, n]
    moved = (batch.tracks.flatten(2) - centres).norm(dim=1).masked_fill(~batch.visible.flatten(1), -1)
    chosen = moved.argmax(1)
    truth = torch.stack([tracks.flatten(1)[:, token] for tracks, token in zip(batch.tracks, chosen, strict=True)])
    return centres.T[chosen][:, None], truth[:, None]


def _row(target: Tensor, source: Tensor, query: Tensor, truth: Tensor, maps: list[Tensor]) -> NDArray[np.uint8]:
    """The images of one sample side by side, uint8 [h, w, 3]."""
    scale = max(1, -(-SIDE // source.shape[1]))
    height, width = (side * scale for side in source.shape[1:])

    def large(image: Tensor) -> NDArray[np.uint8]:
        array = np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy())
        return cv2.resize(array, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.uint8)

    shown, dimmed = large(source), large(source) // 3
    cells = [_marked(large(target), query * scale, QUERY), _marked(shown, truth * scale, TRUTH)]
    for attention in maps:
        heat = cv2.resize((attention / attention.max()).numpy(), (width, height), interpolation=cv2.INTER_NEAREST)
        glow = (dimmed + heat[..., None] * (255 - dimmed)).astype(np.uint8)
        rows, columns = attention.shape
        best = int(attention.argmax())
        centre = torch.tensor([(best % columns + 0.5) * width / columns, (best // columns + 0.5) * height / rows])
        cells.append(_marked(_marked(glow, truth * scale, TRUTH), centre, FOUND))
    return np.concatenate(cells, 1)


def _marked(image: NDArray[np.uint8], at: Tensor, colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    x, y = (round(float(v)) for v in at)
    return cv2.circle(image.copy(), (x, y), max(3, image.shape[0] // 40), colour, 2).astype(np.uint8)
