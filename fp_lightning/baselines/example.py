"""What a baseline edits: a photo with its signal, and the region that may change."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.evaluation.benchmarks import DragExamples
from fp_lightning.media.images import drags, read_points, region_mask, squeeze, strokes
from fp_lightning.media.reading import read_image
from fp_lightning.media.shapes import nearest_size
from fp_lightning.signals.combine import SignalName
from fp_lightning.signals.inputs import REGIONS, SIGNAL_FILES, list_inputs
from fp_lightning.signals.region import drag_region
from fp_lightning.types import to_unit_range


@dataclass(frozen=True)
class Example:
    """One photo to edit, with the signals that were found beside it.

    Attributes:
        name: its name; the edited photo is NAME.png.
        photo: [3, h, w] in [-1, 1].
        region: pixels that may change, bool [1, h, w]; None if none was given and there are no points.
        points: drags [p, 4] as (x_src, y_src, x_tgt, y_tgt) in pixels.
        sketch: white strokes on black, [3, h, w] in {0, 1}.
        coarse: coarse edit with transparency, [4, h, w] in [0, 1].
        full_size: (height, width) of the photo before it was resized; None if it was not.
    """

    name: str
    photo: Tensor
    region: Tensor | None = None
    points: Tensor | None = None
    sketch: Tensor | None = None
    coarse: Tensor | None = None
    full_size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.photo.shape[-2], self.photo.shape[-1]


@dataclass(frozen=True)
class Files:
    """Where an example is read from.

    Attributes:
        name: its name.
        photo: the photo.
        signals: files of its signals, by name.
        region: returns the pixels that may change for a photo of (height, width), bool [1, H, W], or None.
        rows: drags as a benchmark publishes them, instead of a file of points.
    """

    name: str
    photo: Path
    signals: dict[str, Path]
    region: Callable[[tuple[int, int]], Tensor | None] = lambda size: None
    rows: list[list[float]] | None = None

    def read(self, area: int | None, multiple: int = 1) -> Example:
        """Read the example at about `area` pixels, with the photo's aspect and sides that are multiples of `multiple`.

        If `area` is None, the photo keeps its size.

        Raises:
            InputError: a file cannot be read.
        """
        photo = read_image(self.photo)
        full = photo.height, photo.width
        size = full
        if area is not None:
            side = max(multiple, round(math.sqrt(area) / multiple) * multiple)
            size = nearest_size(full, (side, side), multiple)
        example = Example(self.name, to_unit_range(squeeze(photo, size)), full_size=full)
        if self.rows is not None or "points" in self.signals:
            where = str(self.signals.get("points", self.photo))
            rows = self.rows if self.rows is not None else read_points(self.signals["points"])
            example = replace(example, points=drags(rows, full, size, where))
        if "sketch" in self.signals:
            path = self.signals["sketch"]
            example = replace(example, sketch=strokes(read_image(path, keep_transparency=True), full, size, path))
        if "coarse" in self.signals:
            path = self.signals["coarse"]
            coarse = read_image(path, keep_transparency=True).convert("RGBA").resize((size[1], size[0]))
            example = replace(example, coarse=torch.from_numpy(np.array(coarse)).permute(2, 0, 1) / 255)
        region = self.region(full)
        if region is not None:
            return replace(example, region=F.interpolate(region[None].to(torch.uint8), size)[0].bool())
        return replace(example, region=None if example.points is None else drag_region(example.points, size))


def find_files(folder: Path, signal: SignalName | Literal[""]) -> list[Files]:
    """List the photos of a folder that have a signal beside them: NAME.png with NAME.sketch.png and so on.

    A region is NAME.region.png or NAME.mask.png, bright or opaque where the photo may change.

    Raises:
        InputError: the folder is missing, or one of its photos has no such signal.
    """
    found, without = [], []
    for image in list_inputs(folder, "--inputs", regions=True):
        if image.is_edit:
            raise InputError(f"{image.path} is a saved edit; give its photo, with the signal as a file beside it")
        signals = {name: path for name, forms in SIGNAL_FILES.items() if (path := image.beside(forms))}
        if signal and signal not in signals:
            without.append(image.path.name)
        region = image.beside(REGIONS)
        found.append(Files(image.name, image.path, signals, partial(_read_region, region)))
    if without:
        wanted = SIGNAL_FILES[signal][0]
        names = ", ".join(without[:3]) + (" and others" if len(without) > 3 else "")
        raise InputError(f"{len(without)} photos of {folder} have no NAME{wanted}: {names}; add it, or move them away")
    return found


def _read_region(path: Path | None, size: tuple[int, int]) -> Tensor | None:
    return None if path is None else region_mask(read_image(path, keep_transparency=True), size, path)


def find_drags(folder: Path) -> list[Files]:
    """List the examples of a drag benchmark, see `DragExamples`, with the regions that it publishes.

    Raises:
        InputError: there are none, or an annotation is damaged.
    """
    examples = DragExamples(folder)

    def region(index: int, size: tuple[int, int]) -> Tensor | None:
        return examples.region(index)

    return [
        Files(name, examples.sources[index], {}, partial(region, index), examples.rows(index))
        for index, name in enumerate(examples.names)
    ]
