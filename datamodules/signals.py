"""Editing signals: how each is drawn from a pair and read from a user's file, and mixes of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.media.images import coarse_image, drags, read_points, strokes
from fp_lightning.media.reading import read_image
from fp_lightning.signals.coarse import coarse_edit
from fp_lightning.signals.combine import SIGNALS, SignalName, signal_fields
from fp_lightning.signals.inputs import SIGNAL_FILES, InputImage
from fp_lightning.signals.points import points
from fp_lightning.signals.sketch import sketch
from fp_lightning.types import VideoPair


class Signal(Protocol):
    """One editing signal. A new one needs a class with these members and an argument of `signal_fields`."""

    name: ClassVar[SignalName]  # name of the argument of `signal_fields`
    suffixes: ClassVar[tuple[str, ...]]  # of the user's file beside NAME.jpg

    def draw(self, pair: VideoPair, rng: np.random.Generator, training: bool) -> Tensor:
        """Draw what a user would draw to get the pair's target; the shape is in `signal_fields`.

        Args:
            pair: source, target and their correspondence.
            rng: decides all random choices.
            training: apply augmentations.
        """
        ...

    def read(self, path: Path, image: InputImage, size: tuple[int, int]) -> Tensor:
        """Read a user's signal for `image`, at the network's `size` (height, width).

        Raises:
            InputError: the file is unreadable or invalid.
        """
        ...


@dataclass(frozen=True)
class Sketch:
    """The outlines wanted in the edited image, drawn by `sketch`. Lengths are in image widths.

    Args:
        threshold: smallest jump of the flow across an outline.
        share: smallest jump as a share of the pair's largest motion.
        strain: smallest gradient of the flow, in pixels per pixel.
        line_width: width of the strokes, at least one pixel.
        min_length: length of the shortest stroke.
        augment: imitate hand drawings in training, with gaps, varying widths and small displacements.
        drop: largest share of dropped segments, in [0, 1].
        wobble: largest displacement, 0 or more.
        thickness: largest factor on a segment's width, 1 or more.

    Raises:
        InputError: `drop`, `wobble` or `thickness` is out of range.
    """

    name: ClassVar[SignalName] = "sketch"
    suffixes: ClassVar[tuple[str, ...]] = SIGNAL_FILES["sketch"]
    threshold: float = 2 / 512
    share: float = 0.06
    strain: float = 0.35
    line_width: float = 2.5 / 512
    min_length: float = 24 / 512
    augment: bool = True
    drop: float = 0.3
    wobble: float = 4 / 512
    thickness: float = 2.0

    def __post_init__(self) -> None:
        if not (0 <= self.drop <= 1 and self.wobble >= 0 and self.thickness >= 1):
            raise InputError(
                "sketch needs 0 ≤ drop ≤ 1, wobble ≥ 0 and thickness ≥ 1, "
                f"got {self.drop:g}, {self.wobble:g} and {self.thickness:g}"
            )

    def draw(self, pair: VideoPair, rng: np.random.Generator, training: bool) -> Tensor:
        return sketch(
            pair,
            threshold=self.threshold,
            share=self.share,
            strain=self.strain,
            line_width=self.line_width,
            min_length=self.min_length,
            rng=rng if training and self.augment else None,
            drop=self.drop,
            wobble=self.wobble,
            thickness=self.thickness,
        )

    def read(self, path: Path, image: InputImage, size: tuple[int, int]) -> Tensor:
        return strokes(read_image(path, keep_transparency=True), image.size, size, path)


@dataclass(frozen=True)
class Coarse:
    """The photo with its parts moved to their place in the edited image, made by `coarse_edit`.

    Args:
        cut_probability: probability in [0, 1] that a training sample is cut and pasted instead of splatted.
            Validation always splats.

    Raises:
        InputError: `cut_probability` is outside [0, 1].
    """

    name: ClassVar[SignalName] = "coarse"
    suffixes: ClassVar[tuple[str, ...]] = SIGNAL_FILES["coarse"]
    cut_probability: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.cut_probability <= 1:
            raise InputError(f"coarse.cut_probability must be between 0 and 1, got {self.cut_probability:g}")

    def draw(self, pair: VideoPair, rng: np.random.Generator, training: bool) -> Tensor:
        return coarse_edit(pair, mode="cut" if training and rng.random() < self.cut_probability else "splat")

    def read(self, path: Path, image: InputImage, size: tuple[int, int]) -> Tensor:
        edited = read_image(path, keep_transparency=True)
        return coarse_image(edited, read_image(image.path), size, path)


@dataclass(frozen=True)
class Points:
    """Drags from source to target positions, drawn by `points`.

    Args:
        least: smallest number of drags. The number is uniform from `least` to `most`.
        most: largest number of drags.

    Raises:
        InputError: not 1 ≤ least ≤ most.
    """

    name: ClassVar[SignalName] = "points"
    suffixes: ClassVar[tuple[str, ...]] = SIGNAL_FILES["points"]
    least: int = 1
    most: int = 20

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise InputError(f"points needs 1 ≤ least ≤ most, got {self.least} and {self.most}")

    def draw(self, pair: VideoPair, rng: np.random.Generator, training: bool) -> Tensor:
        return points(pair, rng, self.least, self.most)

    def read(self, path: Path, image: InputImage, size: tuple[int, int]) -> Tensor:
        return drags(read_points(path), image.size, size, str(path))


class SignalMix:
    """The signals of one data module. Each sample gets one at random, and each other one by chance.

    Args:
        signals: one or more signals.
        together: probability in [0, 1] that each other signal is added.

    Raises:
        InputError: there is no signal, one is repeated, or `together` is outside [0, 1].
    """

    def __init__(self, signals: Sequence[Signal], together: float = 0.0) -> None:
        self.signals, self.together = tuple(signals), together
        self.names = tuple(signal.name for signal in self.signals)
        if not self.names or len(set(self.names)) < len(self.names):
            raise InputError(f"signals must name one or more of {', '.join(SIGNALS)}, each once, got {self.names}")
        if not 0 <= together <= 1:
            raise InputError(f"together must be between 0 and 1, got {together:g}")

    def draw(self, pair: VideoPair, rng: np.random.Generator, training: bool) -> dict[str, Any]:
        """Draw the signals of a pair as `EditBatch` fields with b = 1. `rng` decides all random choices."""
        first = rng.integers(len(self.signals))
        chosen = [i == first or rng.random() < self.together for i in range(len(self.signals))]
        drawn = {s.name: s.draw(pair, rng, training) for s, on in zip(self.signals, chosen, strict=True) if on}
        return signal_fields(pair.size, **drawn, among=self.names)

    def read(self, image: InputImage, size: tuple[int, int]) -> dict[str, Any]:
        """Read all signals beside a user's image as `EditBatch` fields with b = 1.

        The fields of a saved edit are empty, because its signals are in the edit itself.

        Raises:
            InputError: there is no signal, or one is unreadable or invalid.
        """
        if image.is_edit:
            return signal_fields(size, among=self.names)
        found = [(signal, path) for signal in self.signals if (path := image.beside(signal.suffixes))]
        if not found:
            missing = " or ".join(image.name + signal.suffixes[0] for signal in self.signals)
            raise InputError(f"{image.path} has no signal; put {missing} beside it")
        drawn = {signal.name: signal.read(path, image, size) for signal, path in found}
        return signal_fields(size, **drawn, among=self.names)


def choose(
    names: Sequence[str], together: float, sketch: Sketch | None, coarse: Coarse | None, points: Points | None
) -> SignalMix:
    """Make the mix of the signals called `names`, with their settings or the defaults.

    Raises:
        InputError: a name is unknown, or `SignalMix` rejects the signals.
    """
    known: dict[str, Signal] = {
        "sketch": sketch or Sketch(),
        "coarse": coarse or Coarse(),
        "points": points or Points(),
    }
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"there is no signal {unknown[0]!r}; choose from {', '.join(known)}")
    return SignalMix([known[name] for name in names], together)
