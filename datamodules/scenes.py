"""Edits of procedural scenes, made as they are asked for: training never sees one twice."""

from __future__ import annotations

from typing import Any

from datamodules.base import EditDataModule
from datamodules.signals import Coarse, Points, Sketch, choose
from datamodules.splits import SPLITS, Split
from fp_lightning.scenes.scene import Scene
from fp_lightning.types import TRACK_STRIDE, VideoPair


class SceneDataModule(EditDataModule):
    """Endless training scenes and fixed ones to validate and test on, with exact flow and tracks.

    Args:
        size: (height, width) in pixels.
        batch_size: samples per batch.
        num_workers: loader processes; results do not depend on it.
        train_samples: scenes in one epoch; the next epoch has new ones.
        val_samples: scenes to validate on, always the same.
        test_samples: scenes to test on, always the same and other ones.
        seed: another seed gives other scenes throughout.
        stride: pixels between tracked token centres.
        inputs: folder of the user's images and signals, for predict.
        signals, together, sketch, coarse, points: see `AllSignalsDataModule`; a sketch alone by default.
        content: what a scene shows and how it moves, see `Scene`.

    Raises:
        InputError: a batch size, number of workers or something in `content` is out of range.
    """

    def __init__(
        self,
        size: tuple[int, int] = (64, 64),
        batch_size: int = 16,
        num_workers: int = 0,
        train_samples: int = 4096,
        val_samples: int = 64,
        test_samples: int = 64,
        seed: int = 0,
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
        self.content = content
        self.stride = stride
        self._scene("train", 0)  # what is wrong with the content shows at once

    def _split(self) -> None:
        """Scenes need no pairs: a seed per split keeps them apart."""

    def length(self, split: Split) -> int:
        return self.samples[split]

    def fingerprint(self) -> str:
        return f"scenes {self.seed} {self.samples['train']} {sorted(self.content.items())}"

    def pair(self, split: Split, count: int) -> tuple[str, VideoPair]:
        return f"{split}-{count}", self._scene(split, count).pair(stride=self.stride)

    def _scene(self, split: Split, count: int) -> Scene:
        return Scene(scene_seed(self.seed, split, count), self.size, **self.content)


def scene_seed(seed: int, split: Split, count: int) -> int:
    """A number of its own for every (seed, split, count), and no small one: those are for clips."""
    return (seed * len(SPLITS) + SPLITS.index(split) + 1) * 2**40 + count
