"""The base data module of stored pairs: splits by video, samples, loaders, and the inputs of `predict`."""

from __future__ import annotations

import hashlib
from collections.abc import Set
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cv2
import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, Dataset

from datamodules.loaders import EditLoader, EpochSampler, ResumableLoader, ShareSampler
from datamodules.signals import SignalMix
from datamodules.splits import SPLITS, Split, split_videos, spread, tell_fit
from fp_lightning.errors import InputError
from fp_lightning.media.images import squeeze
from fp_lightning.media.shapes import batches_of_one_size, nearest_size
from fp_lightning.pairs.heldout import listed_pairs
from fp_lightning.pairs.latents import LatentStore
from fp_lightning.pairs.shards import PairStore
from fp_lightning.signals.inputs import InputImage, list_inputs, tell_squeezed
from fp_lightning.types import EditBatch, VideoPair, to_unit_range

STAGES: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ()}


class EditDataModule(L.LightningDataModule):
    """Stored pairs as edits. Subclasses choose the signals.

    All random choices (signals, positions of points, strokes of sketches, flips) depend only on (seed, split,
    sample), so the batch size and the number of workers do not change a sample.

    Args:
        mix: the signals.
        pairs: folder written by `fp-lightning pairs`; not needed for prediction.
        size: (height, width) in pixels of the network's input. Stored pairs of another aspect are cropped centrally.
            Prediction also takes "auto": a size for each photo, see `nearest_size`.
        batch_size: samples per batch.
        num_workers: number of loader processes; it does not change the samples.
        val_fraction: fraction of the videos for validation; 0 for none.
        test_fraction: fraction of the videos for testing; 0 for none.
        seed: decides splits, order and signals; None for that of `--seed_everything` on the command line, and 0 in
            Python.
        inputs: folder of the user's images and signals, for prediction.
        limit_pairs: largest number of pairs per split; they are spread evenly over the split.
        overfit: train, validate and test on the same pairs (all, or `limit_pairs` of them).
        latents: folder that caches the outputs of the frozen networks, so that they are not computed again at every
            step. "beside" is `latents` in the folder of pairs; None caches nothing.
        holdout: list of held-out pairs written by `fp-lightning benchmark`. They are the test split, and no pair of
            their videos is used for training or validation.
        flip: mirror training pairs left to right with probability 1/2, before signals are drawn.

    Raises:
        InputError: the batch size is below 1, the number of workers is negative, `latents` is "beside" a URL, or
            `holdout` and `overfit` are both set.
    """

    def __init__(
        self,
        mix: SignalMix,
        pairs: str | None = None,
        size: tuple[int, int] | Literal["auto"] = (320, 512),
        batch_size: int = 4,
        num_workers: int = 0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        seed: int | None = None,
        inputs: str | None = None,
        limit_pairs: int | None = None,
        overfit: bool = False,
        flip: bool = False,
        latents: str | None = None,
        holdout: str | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise InputError(
                f"batch_size must be at least 1 and num_workers at least 0, got {batch_size} and {num_workers}"
            )
        if latents == "beside" and "://" in str(pairs):
            raise InputError(
                f"data.latents cannot be beside {pairs}, it must be a folder on this machine; set data.latents to one"
            )
        self.mix = mix
        self.latents = f"{pairs}/latents" if latents == "beside" else latents
        self.latent_store: LatentStore | None = None
        self.pairs, self.batch_size, self.num_workers = pairs, batch_size, num_workers
        self.size: tuple[int, int] | None = None if size == "auto" else size  # None: a size for each photo
        self.fractions = {"val": val_fraction, "test": test_fraction}
        self.seed, self.inputs, self.limit_pairs, self.overfit = seed or 0, inputs, limit_pairs, overfit
        self.flip = flip
        if holdout is not None and overfit:
            raise InputError("data.holdout and data.overfit exclude each other; leave one out")
        self.holdout = holdout
        self.store: PairStore | None = None
        self.indices: dict[Split, list[int]] = {}  # indices in the store
        self.images: list[InputImage] = []
        self.photo_sizes: list[tuple[int, int]] = []  # of the network's input for each of `images`

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals: "sketch", "coarse", "points"."""
        return self.mix.names

    def setup(self, stage: str) -> None:
        """Split the pairs, or list the inputs of `predict`.

        Raises:
            InputError: there are no pairs, too few videos for the splits, or the input folder is invalid.
        """
        if stage == "predict":
            self.images = list_inputs(self.inputs)
            for image in self.images:  # invalid signals fail here, before the network runs
                self.mix.read(image, self.size or image.size)
            return
        if self.size is None:
            raise InputError(f"data.size auto is for predict; set data.size to the height and width to {stage} at")
        if not self.indices:
            self._split()
        for split in STAGES[stage]:
            if split != "val" or stage == "validate":
                self._require(split)

    def _split(self) -> None:
        """Assign the pairs of the store to the splits."""
        if self.pairs is None:
            raise InputError(
                "data.pairs is not set; set it to a folder written by `fp-lightning pairs VIDEOS --out DIR`"
            )
        self.store = PairStore(self.pairs)
        tell_fit(self.store[0].size, self.size)
        videos = self.store.videos
        if self.overfit:
            self.indices = dict.fromkeys(SPLITS, spread(range(len(videos)), self.limit_pairs))
            return
        held = [] if self.holdout is None else listed_pairs(self.store, Path(self.holdout))
        free = sorted(set(videos) - {videos[i] for i in held})
        parts = split_videos(free, self.fractions["val"], 0 if held else self.fractions["test"], self.seed)
        for split, names in parts.items():
            members = set(names)
            self.indices[split] = spread([i for i, name in enumerate(videos) if name in members], self.limit_pairs)
        if held:
            self.indices["test"] = spread(held, self.limit_pairs)

    def _require(self, split: Split) -> None:
        """Raise InputError if a split is empty."""
        if not self.length(split):
            raise InputError(
                f"the {split} split has no pairs; set data.{split}_fraction above 0 or data.overfit to true"
            )

    def length(self, split: Split) -> int:
        """Return the number of samples per epoch of a split."""
        return len(self.indices[split])

    def pair(self, split: Split, count: int) -> tuple[str, VideoPair]:
        """Return a unique name and the resized pair. In training, `count` continues from epoch to epoch."""
        assert self.store is not None and self.size is not None, "setup comes first"
        index = self.indices[split][count % self.length(split)]
        pair = self.store[index].fitted(self.size)
        return self.store.name(index), pair.mirrored() if self._mirrored(split, count) else pair

    def _mirrored(self, split: Split, count: int) -> bool:
        """Whether a sample is mirrored."""
        return self.flip and split == "train" and np.random.default_rng([self.seed, count]).random() < 0.5

    def fingerprint(self) -> str:
        """Return a hash of the training samples and their order. A resumed run must have the same."""
        assert self.store is not None, "setup comes first"
        names = [self.store.name(index) for index in self.indices["train"]]
        return hashlib.sha256("\n".join([str(self.seed), *names]).encode(errors="surrogateescape")).hexdigest()

    def missing_latents(self, keys: Set[str], rank: int = 0, world: int = 1) -> MissingLatents:
        """Return one rank's share of the samples of `fit` whose latents are not among the cached `keys`."""
        return MissingLatents(self, keys, rank, world)

    def sample(self, split: Split, count: int) -> EditBatch:
        """Make one sample, a batch with b = 1. It depends only on (seed, split, count)."""
        name, pair = self.pair(split, count)
        rng = np.random.default_rng([self.seed, SPLITS.index(split), count])
        batch = replace(
            images(name, pair),
            tracks=pair.tracks[None],
            visible=pair.visible[None],
            moving=pair.moving()[None],
            **self.mix.draw(pair, rng, training=split == "train"),
        )
        if self.latent_store is None or split == "test":
            return batch
        return self.latent_store.read(key(name, self._mirrored(split, count)), batch)

    def predict_sample(self, index: int) -> EditBatch:
        """Read one of the user's images with its signals, resized to the network's size: a batch with b = 1."""
        image, size = self.images[index], self.size or self.photo_sizes[index]
        edit, signals = image.edit(), self.mix.read(image, size)
        pixels = squeeze(edit.image, size) if edit else image.resized(size)
        source = to_unit_range(pixels)[None]
        return EditBatch(source, [image.name], full_size=[image.size], edit=[edit], **signals)

    def train_dataloader(self) -> DataLoader[EditBatch]:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[EditBatch] | list[Any]:
        return self._loader("val") if self.length("val") else []  # an empty list skips validation

    def test_dataloader(self) -> DataLoader[EditBatch]:
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[EditBatch]:
        if self.size is not None:
            self.photo_sizes = [self.size] * len(self.images)
        else:
            self.photo_sizes = self._sizes_for_photos()
        tell_squeezed(self.images, self.photo_sizes)
        return self._loader("predict")

    def _sizes_for_photos(self) -> list[tuple[int, int]]:
        """Choose a size for each photo by the size at which the model was trained."""
        module: Any = self.trainer.lightning_module if self.trainer else None
        trained = getattr(module, "trained_size", None)
        if module is None or trained is None:
            raise InputError("data.size auto needs a model that knows its size; pass --ckpt_path, or set data.size")
        return [nearest_size(image.size, trained, module.editor.prior.size_multiple) for image in self.images]

    def _loader(self, split: Split | Literal["predict"]) -> DataLoader[EditBatch]:
        samples = Samples(self, split)
        options: dict[str, Any] = {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": EditBatch.cat,
            "worker_init_fn": one_thread,
        }
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if split == "predict" and len(set(self.photo_sizes)) > 1:
            batches = PhotoBatches(self)
            share = ShareSampler(len(batches), rank, world, even=self._forward_is_collective())
            return EditLoader(batches, batch_size=None, sampler=share, **options | {"collate_fn": None})
        if split != "train":
            share = ShareSampler(len(samples), rank, world, even=self._forward_is_collective())
            return EditLoader(samples, batch_size=self.batch_size, sampler=share, **options)
        order = EpochSampler(len(samples), self.seed, rank, world)
        if not len(order):
            raise InputError(f"{world} processes cannot share {len(samples)} training samples; use fewer processes")
        loader = ResumableLoader(
            samples,
            batch_size=self.batch_size,
            sampler=order,
            drop_last=len(order) >= self.batch_size,
            **options,
        )
        loader.fingerprint = self.fingerprint()
        return loader

    def _forward_is_collective(self) -> bool:
        """Whether a forward pass synchronises ranks, which then all need the same number of batches.

        DDP broadcasts buffers in `fit`; in other stages, Lightning does not wrap the model. Sharding strategies always
        gather weights.
        """
        if self.trainer is None or self.trainer.world_size == 1:
            return False
        return self.trainer.state.fn == "fit" or type(self.trainer.strategy) is not DDPStrategy

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the trainer, which loader processes do not need."""
        return {**self.__dict__, "trainer": None}


def one_thread(worker: int) -> None:
    """Turn off OpenCV's threads in a loader process, as its thread pool does not survive a fork."""
    cv2.setNumThreads(0)


class Samples(Dataset[EditBatch]):
    """One split of a data module as a map-style data set."""

    def __init__(self, data: EditDataModule, split: Split | Literal["predict"]) -> None:
        self.data, self.split = data, split

    def __len__(self) -> int:
        return len(self.data.images) if self.split == "predict" else self.data.length(self.split)

    def __getitem__(self, count: int) -> EditBatch:
        return self.data.predict_sample(count) if self.split == "predict" else self.data.sample(self.split, count)


class PhotoBatches(Dataset[EditBatch]):
    """The photos of `predict` in batches of one size each."""

    def __init__(self, data: EditDataModule) -> None:
        self.data, self.batches = data, batches_of_one_size(data.photo_sizes, data.batch_size)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> EditBatch:
        return EditBatch.cat([self.data.predict_sample(index) for index in self.batches[number]])


class MissingLatents(Dataset[tuple[str, EditBatch]]):
    """Keys and images of training and validation pairs that are not in the latent cache, mirrored ones included.

    All pairs are shared out among the ranks before cached ones are left out, so that ranks that see another state of
    the cache still cover it together. The order is random, so that two runs that fill one cache share the work.
    """

    def __init__(self, data: EditDataModule, keys: Set[str], rank: int, world: int) -> None:
        assert data.store is not None and data.size is not None, "setup comes first"
        self.data, self.size, self.pairs = data.store, data.size, []
        for split in ("train", "val"):
            for mirrored in (False, True) if data.flip and split == "train" else (False,):
                self.pairs += [(index, mirrored) for index in data.indices[split]]
        names = {(index, mirrored): key(data.store.name(index), mirrored) for index, mirrored in self.pairs}
        missing = [pair for pair, name in list(names.items())[rank::world] if name not in keys]
        self.pairs = [missing[i] for i in np.random.default_rng().permutation(len(missing))]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> tuple[str, EditBatch]:
        index, mirrored = self.pairs[number]
        pair, name = self.data[index].fitted(self.size), self.data.name(index)
        return key(name, mirrored), images(name, pair.mirrored() if mirrored else pair)


def key(name: str, mirrored: bool) -> str:
    """Return the key of a pair in the latent cache."""
    return f"{name}.mirrored" if mirrored else name


def images(name: str, pair: VideoPair) -> EditBatch:
    """Make a sample with images only, a batch with b = 1."""
    return EditBatch(to_unit_range(pair.source)[None], [name], target=to_unit_range(pair.target)[None])
