"""Which samples a split has, in what order training sees them, and where it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from fp_lightning.errors import InputError
from fp_lightning.types import EditBatch

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class EpochSampler(DistributedSampler[int]):
    """One rank's share of a shuffled epoch of indices that run on: epoch e gives e · length to (e + 1) · length - 1.

    Index and seed thus decide a sample's randomness and procedural scenes never repeat, whatever the
    number of workers. Lightning calls `set_epoch`, so a resumed run goes on where it was, and leaves
    a DistributedSampler as it is. Every rank has equally many; a remainder waits for another epoch.
    """

    def __init__(self, length: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.length, self.seed, self.rank, self.world = length, seed, rank, world
        self.epoch, self.skip = 0, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // self.world

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        start, self.epoch = self.epoch * self.length, self.epoch + 1
        skip, self.skip = self.skip, 0
        mine = order[self.rank :: self.world][: len(self)]
        return (start + int(index) for index in mine[skip:])


class ResumableLoader(DataLoader[EditBatch]):
    """A loader that a checkpoint taken within an epoch resumes at its next batch; Lightning keeps the state."""

    sampler: EpochSampler
    batch_size: int
    given = 0  # batches of this epoch

    def __iter__(self) -> Iterator[EditBatch]:  # type: ignore[override]
        self.given = self.sampler.skip // self.batch_size
        for batch in super().__iter__():
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given % max(1, len(self))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.skip = state["given"] * self.batch_size


def split_videos(videos: list[str], val: float, test: float, seed: int) -> dict[Split, list[str]]:
    """Shares videos out at random; a split whose fraction is above 0 gets one video at least.

    Raises:
        InputError: a fraction is negative or there are too few videos.
    """
    order = [videos[i] for i in np.random.default_rng(seed).permutation(len(videos))]
    n_val, n_test = (max(1, round(len(videos) * fraction)) if fraction > 0 else 0 for fraction in (val, test))
    if min(val, test) < 0 or n_val + n_test >= len(videos):
        raise InputError(
            f"{len(videos)} videos cannot be split with val_fraction {val:g} and test_fraction {test:g}; make pairs of "
            f"{n_val + n_test + 1} videos or more, lower the fractions (0 for none), or set data.overfit to true"
        )
    return {"val": order[:n_val], "test": order[n_val : n_val + n_test], "train": order[n_val + n_test :]}


def spread(indices: range | list[int], limit: int | None) -> list[int]:
    """At most `limit` of the indices, evenly spread over them."""
    if limit is None or limit >= len(indices):
        return list(indices)
    return [indices[i * len(indices) // limit] for i in range(limit)]
