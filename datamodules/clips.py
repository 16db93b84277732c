"""Clips of procedural scenes for a video prior, filmed as they are asked for: training never sees one twice."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.base import one_thread
from datamodules.loaders import EpochSampler, ResumableLoader, ShareSampler
from datamodules.scenes import scene_seed
from datamodules.splits import SPLITS, Split
from fp_lightning.errors import InputError
from fp_lightning.scenes.scene import Scene
from fp_lightning.types import ClipBatch, to_unit_range

SUPERSAMPLE = 2  # of a pixel's side


class SceneClipDataModule(L.LightningDataModule):
    """Endless clips to train on and fixed ones to validate on. A batch has clips of one length.

    Every batch is a function of (seed, split, number of the batch), so the number of workers changes none.

    Args:
        size: (height, width) in pixels.
        frames: lengths of clips; each batch has one of them, drawn at random; one named twice is drawn twice as often.
        frames_per_batch: a batch has as many clips as have so many frames in all.
        num_workers: loader processes.
        train_batches: batches in one epoch; the next epoch has new ones.
        val_batches: batches to validate on, always the same.
        seed: another seed gives other clips throughout.
        content: what a scene shows and how it moves, see `Scene`.

    Raises:
        InputError: a length of less than two frames, a batch that holds no clip of some length, or something in
            `content` is out of range.
    """

    def __init__(
        self,
        size: tuple[int, int] = (64, 64),
        frames: tuple[int, ...] = (2, 4),
        frames_per_batch: int = 32,
        num_workers: int = 1,
        train_batches: int = 1000,
        val_batches: int = 8,
        seed: int = 0,
        **content: Any,
    ) -> None:
        super().__init__()
        if not frames or min(frames) < 2 or frames_per_batch < max(frames):
            raise InputError(
                f"clips have two frames or more and frames_per_batch holds the longest, got {list(frames)} "
                f"and {frames_per_batch}"
            )
        self.size, self.frames, self.frames_per_batch = size, tuple(frames), frames_per_batch
        self.num_workers, self.seed = num_workers, seed
        self.batches: dict[Split, int] = {"train": train_batches, "val": val_batches}
        self.content = content
        self._scene(0)  # what is wrong with the content shows at once

    def batch(self, split: Split, number: int) -> ClipBatch:
        """One batch."""
        rng = np.random.default_rng([self.seed, SPLITS.index(split), number])
        length = int(rng.choice(self.frames))
        count = self.frames_per_batch // length
        first = number * self.frames_per_batch  # more than any batch has clips
        clips = [self._clip(scene_seed(self.seed, split, first + i), length) for i in range(count)]
        return ClipBatch(
            torch.stack([frames for frames, _ in clips]),
            torch.tensor([motion for _, motion in clips]),
            [f"{split}-{first + i}" for i in range(count)],
        )

    def _clip(self, seed: int, length: int) -> tuple[torch.Tensor, float]:
        scene = self._scene(seed)
        frames = [scene.frame(time, SUPERSAMPLE) for time in np.linspace(0, 1, length)]
        return to_unit_range(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)), scene.travel(0, 1)

    def _scene(self, seed: int) -> Scene:
        return Scene(seed, self.size, **self.content)

    def train_dataloader(self) -> DataLoader[ClipBatch]:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[ClipBatch]:
        return self._loader("val")

    def _loader(self, split: Split) -> DataLoader[ClipBatch]:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        options: dict[str, Any] = {
            "batch_size": None,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "worker_init_fn": one_thread,
        }
        batches = _Batches(self, split)
        if split == "train":
            order = EpochSampler(len(batches), self.seed, rank, world)
            loader = ResumableLoader(batches, sampler=order, **options)
            loader.fingerprint = f"clips {self.seed} {len(batches)} {self.frames} {sorted(self.content.items())}"
            return loader
        return DataLoader(batches, sampler=ShareSampler(len(batches), rank, world, even=world > 1), **options)

    def __getstate__(self) -> dict:
        """Loader processes get the data module without its trainer."""
        return {**self.__dict__, "trainer": None}


class _Batches(Dataset[ClipBatch]):
    def __init__(self, data: SceneClipDataModule, split: Split) -> None:
        self.data, self.split = data, split

    def __len__(self) -> int:
        return self.data.batches[self.split]

    def __getitem__(self, number: int) -> ClipBatch:
        return self.data.batch(self.split, number)
