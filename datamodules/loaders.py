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
    and drops one. `skip` samples of all ranks are left out of the next epoch.
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
        mine = order[skip + self.rank :: self.world][: (self.length - skip) // self.world]
        yield from (start + int(index) for index in mine)


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

    The state counts the samples of all ranks, so that another number of ranks goes on where these were. Without a
    batch size every item of the data set is a batch.
    """

    sampler: EpochSampler
    given = 0  # batches of this epoch
    fingerprint = ""  # of what it loads

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.given = self.sampler.skip // self.share
        for batch in super().__iter__():
            self.given += 1
            yield batch

    @property
    def share(self) -> int:
        """Samples in a batch of every rank together."""
        return (self.batch_size or 1) * self.sampler.world

    def batches(self, state: dict[str, Any]) -> int:
        """After how many of its batches of an epoch a state is; 0 at an epoch's end.

        Raises:
            InputError: the state is of other data, or of a number of samples that is no multiple of its own.
        """
        if state["fingerprint"] != self.fingerprint:
            raise InputError(
                "the checkpoint was trained on other data; go on with that, or make an editor of it with `fp-lightning "
                "convert checkpoint` and train it anew as --model.editor.model"
            )
        if state["samples"] % self.share:
            raise InputError(
                f"the checkpoint is {state['samples']} samples into an epoch, no multiple of {self.sampler.world} "
                f"processes with data.batch_size {self.batch_size or 1}; choose the two so that it is one"
            )
        return state["samples"] // self.share

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self.given % max(1, len(self)) * self.share, "fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.skip = self.batches(state) * self.share
