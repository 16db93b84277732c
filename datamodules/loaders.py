"""Samplers that shuffle and distribute samples over ranks, and a loader that resumes within an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from fp_lightning.errors import InputError


class EpochSampler(DistributedSampler[int]):
    """Shuffle each epoch and yield one rank's share of it. Epoch e has the indices e · length to (e + 1) · length - 1.

    As indices never repeat, index and seed decide a sample's randomness, whatever the number of workers, and every
    epoch has new procedural scenes. All ranks get equally many indices; a remainder is left out of the epoch.
    Lightning does not replace a DistributedSampler, and it calls `set_epoch`, so that a resumed run continues in
    the right epoch. An epoch starts when its first index is taken, because a loader with worker processes creates
    two iterators and uses one.

    Args:
        length: samples per epoch, of all ranks.
        seed: decides the order.
        rank: number of this process, from 0.
        world: number of processes.

    Attributes:
        skip: number of samples, of all ranks, to leave out at the start of the next epoch.
    """

    def __init__(self, length: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.length, self.seed, self.rank, self.world = length, seed, rank, world
        self.epoch, self.skip = 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch. Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // self.world

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        start, self.epoch = self.epoch * self.length, self.epoch + 1
        skip, self.skip = self.skip, 0
        mine = order[skip + self.rank :: self.world][: (self.length - skip) // self.world]
        yield from (start + int(index) for index in mine)


class ShareSampler(DistributedSampler[int]):
    """Yield one rank's share of a split in order, without repetition: rank, rank + world and so on.

    Lightning's own sampler repeats samples until all shares are equal, but does not replace a DistributedSampler.
    A rank whose share would be empty gets the last sample, because Lightning synchronises ranks at the end of an
    epoch only if each has seen a batch.

    Args:
        length: samples of the split, 1 or more.
        rank: number of this process, from 0.
        world: number of processes.
        even: repeat the first samples until all shares are equal. Ranks that synchronise at every batch need this.
    """

    def __init__(self, length: int, rank: int = 0, world: int = 1, even: bool = False) -> None:
        if even:
            self.indices = [i % length for i in range(rank, -(-length // world) * world, world)]
        else:
            self.indices = list(range(min(rank, length - 1), length, world))

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: every epoch has the same order."""

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


class EditLoader(DataLoader[Any]):
    """A loader that passes on an InputError of a worker process without the worker's traceback."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except InputError as error:  # a worker's message is "Caught … Traceback … InputError: one line"
            raise InputError(str(error).rpartition("InputError: ")[2].strip()) from None


class ResumableLoader(EditLoader):
    """A training loader that resumes at the next batch after a checkpoint within an epoch.

    Lightning saves its state. The state counts the samples of all ranks, so a run can resume with another number of
    ranks. Without a batch size, every item of the data set is a batch.
    """

    sampler: EpochSampler
    batches_done = 0  # batches of this epoch that were yielded
    fingerprint = ""  # identifies the data and their order

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.batches_done = self.sampler.skip // self.share
        for batch in super().__iter__():
            self.batches_done += 1
            yield batch

    @property
    def share(self) -> int:
        """Samples per batch, of all ranks together."""
        return (self.batch_size or 1) * self.sampler.world

    def batches(self, state: dict[str, Any]) -> int:
        """Convert a saved state to the number of this loader's batches that are done in the epoch; 0 at its end.

        Raises:
            InputError: the state belongs to other data, or its samples are not a multiple of `share`.
        """
        if state["fingerprint"] != self.fingerprint:
            raise InputError(
                "the checkpoint was trained on other data; resume with the same data, or convert it with `fp-lightning "
                "convert checkpoint` and start a new run with --model.editor.model"
            )
        if state["samples"] % self.share:
            raise InputError(
                f"the checkpoint is {state['samples']} samples into an epoch, not a multiple of {self.sampler.world} "
                f"processes × data.batch_size {self.batch_size or 1}; change either so that it is"
            )
        return state["samples"] // self.share

    def state_dict(self) -> dict[str, Any]:
        """Return the progress within the epoch, in samples of all ranks."""
        return {"samples": self.batches_done % max(1, len(self)) * self.share, "fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the samples of a saved state, see `batches`."""
        self.batches_done = self.batches(state)  # what a checkpoint before the next batch saves
        self.sampler.skip = self.batches_done * self.share
