"""Edits of procedural scenes, made as they are asked for: training never sees one twice."""

from __future__ import annotations

from datamodules.base import EditDataModule
from datamodules.signals import Coarse, Points, Sketch, choose
from datamodules.splits import SPLITS, Split
from fp_lightning.scenes import Scene
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
        objects: least and greatest number of objects.
        motion: least and greatest displacement in image widths.
        turn: greatest rotation in radians.
        growth: greatest change of log scale.
        exposure: 0 for well-lit scenes, up to 1 for a wide range of light, see `Scene`.
        variety: 0 for plain objects, up to 1 for limbs, bending, shadows and more, see `Scene`.
        radius: least and greatest radius of an object, in image widths.
        detail: of textures, up to 1, see `Scene`.
        stride: pixels between tracked token centres.
        inputs: folder of the user's images and signals, for predict.
        signals, together, sketch, coarse, points: see `AllSignalsDataModule`; a sketch alone by default.
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
        objects: tuple[int, int] = (1, 1),
        motion: tuple[float, float] = (0.125, 0.375),
        turn: float = 0.3,
        growth: float = 0.1,
        exposure: float = 0.0,
        variety: float = 0.0,
        radius: tuple[float, float] = (0.12, 0.24),
        detail: float = 1.0,
        stride: int = TRACK_STRIDE,
        inputs: str | None = None,
        signals: tuple[str, ...] = ("sketch",),
        together: float = 0.25,
        sketch: Sketch | None = None,
        coarse: Coarse | None = None,
        points: Points | None = None,
    ) -> None:
        mix = choose(signals, together, sketch, coarse, points)
        super().__init__(mix, size=size, batch_size=batch_size, num_workers=num_workers, seed=seed, inputs=inputs)
        self.samples: dict[Split, int] = {"train": train_samples, "val": val_samples, "test": test_samples}
        self.content = {
            "objects": objects,
            "motion": motion,
            "turn": turn,
            "growth": growth,
            "exposure": exposure,
            "variety": variety,
            "radius": radius,
            "detail": detail,
        }
        self.stride = stride

    def _split(self) -> None:
        """Scenes need no pairs: a seed per split keeps them apart."""

    def length(self, split: Split) -> int:
        return self.samples[split]

    def pair(self, split: Split, count: int) -> tuple[str, VideoPair]:
        scene = Scene(scene_seed(self.seed, split, count), self.size, **self.content)  # type: ignore[arg-type]
        return f"{split}-{count}", scene.pair(stride=self.stride)


def scene_seed(seed: int, split: Split, count: int) -> int:
    """A number of its own for every (seed, split, count), and no small one: those are for clips."""
    return (seed * len(SPLITS) + SPLITS.index(split) + 1) * 2**40 + count
