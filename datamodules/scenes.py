"""Edits of procedural scenes, rendered on access."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from datamodules.base import EditDataModule
from datamodules.signals import Coarse, Points, Sketch, choose
from datamodules.splits import SPLITS, Split
from fp_lightning.scenes.content import SceneContent
from fp_lightning.scenes.scene import Scene
from fp_lightning.types import TRACK_STRIDE, VideoPair


class SceneDataModule(EditDataModule):
    """Procedural scenes with exact flow and tracks: new ones in every training epoch, fixed ones otherwise.

    Args:
        size: (height, width) in pixels.
        batch_size: samples per batch.
        num_workers: number of loader processes; it does not change the samples.
        train_samples: number of scenes per epoch; every epoch has new ones.
        val_samples: number of validation scenes, the same in every epoch.
        test_samples: number of test scenes, the same in every epoch.
        seed: decides the scenes of all splits; None as in `EditDataModule`.
        stride: pixels between tracked token centres.
        inputs: folder of the user's images and signals, for prediction.
        signals: names of the signals; a sketch by default. See `AllSignalsDataModule`.
        together: see `AllSignalsDataModule`.
        sketch: settings of sketches; None for the defaults.
        coarse: settings of coarse edits; None for the defaults.
        points: settings of points; None for the defaults.
        content: fields of `SceneContent`: what a scene shows and how it moves.

    Raises:
        InputError: the batch size, the number of workers or a field of `content` is out of range.
    """

    def __init__(
        self,
        size: tuple[int, int] = (64, 64),
        batch_size: int = 16,
        num_workers: int = 0,
        train_samples: int = 4096,
        val_samples: int = 64,
        test_samples: int = 64,
        seed: int | None = None,
        stride: int = TRACK_STRIDE,
        inputs: str | None = None,
        signals: tuple[str, ...] = ("sketch",),
        together: float = 0.25,
        sketch: Sketch | None = None,
        coarse: Coarse | None = None,
        points: Points | None = None,
        **content: Any,
    ) -> None:
        mix = choose(signals, together, sketch, coarse, points)
        super().__init__(mix, size=size, batch_size=batch_size, num_workers=num_workers, seed=seed, inputs=inputs)
        self.samples: dict[Split, int] = {"train": train_samples, "val": val_samples, "test": test_samples}
        self.content = SceneContent(**content)
        self.stride = stride
        self._scene("train", 0)  # an invalid size or seed fails here

    def _split(self) -> None:
        """Do nothing: scenes are not stored, and each split has its own seeds."""

    def length(self, split: Split) -> int:
        return self.samples[split]

    def fingerprint(self) -> str:
        return f"scenes {self.seed} {self.samples['train']} {sorted(asdict(self.content).items())}"

    def pair(self, split: Split, count: int) -> tuple[str, VideoPair]:
        return f"{split}-{count}", self._scene(split, count).pair(stride=self.stride)

    def _scene(self, split: Split, count: int) -> Scene:
        """Make a scene; `count` continues from epoch to epoch in training."""
        assert self.size is not None, "a scene has a size"
        return Scene(scene_seed(self.seed, split, count), self.size, self.content)


def scene_seed(seed: int, split: Split, count: int) -> int:
    """Return a unique scene seed for every (seed, split, count).

    All are 2^40 or larger, so they differ from the small seeds of written clips and pairs.
    """
    return (seed * len(SPLITS) + SPLITS.index(split) + 1) * 2**40 + count
