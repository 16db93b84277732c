"""What training and evaluation see in what order, on every rank, and where it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from fp_lightning.errors import InputError


class EpochSampler(DistributedSampler[int]):
    """One rank's share of a shuffled epoch of indices that run on: epoch e gives e · length to (e + 1) · length - 1.

    Index and seed thus decide a sample's randomness and procedural scenes never repeat, whatever the
    number of workers. Lightning calls `set_epoch`, so a resumed run goes on where it was, and leaves
    a DistributedSampler as it is. Every rank has equally many; a remainder waits for another epoch.
    An epoch counts once its first index is taken: a loader with worker processes asks for two iterators
    and drops one.
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
        yield from (start + int(index) for index in mine[skip:])


class ShareSampler(DistributedSampler[int]):
    """One rank's share of the indices of a split, in order: rank, rank + world, …, none of them twice.

    Lightning leaves a DistributedSampler as it is; its own repeats samples until the shares are equal. A rank
    for which nothing is left takes the last sample, since Lightning's ranks wait for each other at an epoch's
    end only if each has seen a batch.

    Args:
        length: samples of the split, one at least.
        even: repeat the first samples until every rank has equally many, for ranks that wait for each other
            at every batch.
    """

    def __init__(self, length: int, rank: int = 0, world: int = 1, even: bool = False) -> None:
        if even:
            self.indices = [i % length for i in range(rank, -(-length // world) * world, world)]
        else:
            self.indices = list(range(min(rank, length - 1), length, world))

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is the same."""

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


class EditLoader(DataLoader[Any]):
    """A loader whose worker processes pass an InputError on as it is, without their traceback."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except InputError as error:  # from a worker, the message is "Caught … Traceback … InputError: one line"
            raise InputError(str(error).rpartition("InputError: ")[2].strip()) from None


class ResumableLoader(EditLoader):
    """A loader that a checkpoint taken within an epoch resumes at its next batch; Lightning keeps the state.

    Without a batch size every item of the data set is a batch.
    """

    sampler: EpochSampler
    given = 0  # batches of this epoch

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.given = self.sampler.skip // (self.batch_size or 1)
        for batch in super().__iter__():
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given % max(1, len(self))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.skip = state["given"] * (self.batch_size or 1)
