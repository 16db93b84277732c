"""Clips of procedural scenes to train a video prior, rendered on access."""

from __future__ import annotations

from dataclasses import asdict
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
from fp_lightning.scenes.content import SceneContent
from fp_lightning.scenes.scene import Scene
from fp_lightning.types import ClipBatch, to_unit_range

SUPERSAMPLE = 2  # samples per pixel along each side


class SceneClipDataModule(L.LightningDataModule):
    """Clips of procedural scenes: new ones in every training epoch, fixed ones for validation.

    All clips of a batch have the same length. A batch depends only on (seed, split, number of the batch), so the
    number of workers does not change it.

    Args:
        size: (height, width) in pixels.
        frames: possible numbers of frames per clip. One is drawn for each batch; a number listed twice is drawn
            twice as often.
        frames_per_batch: total number of frames in a batch, at most.
        num_workers: number of loader processes.
        train_batches: number of batches per epoch; every epoch has new ones.
        val_batches: number of validation batches, the same in every epoch.
        seed: decides all clips; None as in `EditDataModule`.
        content: fields of `SceneContent`: what a scene shows and how it moves.

    Raises:
        InputError: a clip has less than two frames, `frames_per_batch` is less than the longest clip, or a field of
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
        seed: int | None = None,
        **content: Any,
    ) -> None:
        super().__init__()
        if not frames or min(frames) < 2 or frames_per_batch < max(frames):
            raise InputError(
                f"clips must have 2 frames or more and frames_per_batch at least as many as the longest, "
                f"got frames {list(frames)} and frames_per_batch {frames_per_batch}"
            )
        self.size, self.frames, self.frames_per_batch = size, tuple(frames), frames_per_batch
        self.num_workers, self.seed = num_workers, seed or 0
        self.batches: dict[Split, int] = {"train": train_batches, "val": val_batches}
        self.content = SceneContent(**content)
        self._scene(0)  # an invalid size or seed fails here

    def batch(self, split: Split, number: int) -> ClipBatch:
        """Render batch `number` of a split; in training, `number` continues from epoch to epoch."""
        rng = np.random.default_rng([self.seed, SPLITS.index(split), number])
        length = int(rng.choice(self.frames))
        count = self.frames_per_batch // length
        first = number * self.frames_per_batch  # a batch has fewer clips than this, so the seeds of batches differ
        clips = [self._clip(scene_seed(self.seed, split, first + i), length) for i in range(count)]
        return ClipBatch(
            torch.stack([frames for frames, _ in clips]),
            torch.tensor([motion for _, motion in clips]),
            [f"{split}-{first + i}" for i in range(count)],
        )

    def _clip(self, seed: int, length: int) -> tuple[torch.Tensor, float]:
        """Render a clip, float [length, 3, h, w] in [-1, 1]; return it with its largest displacement in widths."""
        scene = self._scene(seed)
        frames = [scene.frame(time, SUPERSAMPLE) for time in np.linspace(0, 1, length)]
        return to_unit_range(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)), scene.travel(0, 1)

    def _scene(self, seed: int) -> Scene:
        return Scene(seed, self.size, self.content)

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
            loader.fingerprint = (
                f"clips {self.seed} {len(batches)} {self.frames} {sorted(asdict(self.content).items())}"
            )
            return loader
        return DataLoader(batches, sampler=ShareSampler(len(batches), rank, world, even=world > 1), **options)

    def __getstate__(self) -> dict:
        """Leave out the trainer, which loader processes do not need."""
        return {**self.__dict__, "trainer": None}


class _Batches(Dataset[ClipBatch]):
    """The batches of one split."""

    def __init__(self, data: SceneClipDataModule, split: Split) -> None:
        self.data, self.split = data, split

    def __len__(self) -> int:
        return self.data.batches[self.split]

    def __getitem__(self, number: int) -> ClipBatch:
        return self.data.batch(self.split, number)
