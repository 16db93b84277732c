"""What a baseline edits: a photo with its signal, and the region that may change."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.evaluation.examples import DragExamples
from fp_lightning.media.images import drags, read_points, region_mask, squeeze, strokes
from fp_lightning.media.reading import image_endings, named_files, read_image
from fp_lightning.media.shapes import nearest_size
from fp_lightning.types import to_unit_range

MARGIN, AT = 64, 512  # px around the drags that may change, at this geometric mean of the sides
SIGNALS = {"sketch": (".sketch.png",), "coarse": (".coarse.png",), "points": (".points.json",)}


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
    """

    name: str
    photo: Tensor
    region: Tensor | None = None
    points: Tensor | None = None
    sketch: Tensor | None = None
    coarse: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.photo.shape[-2], self.photo.shape[-1]


@dataclass(frozen=True)
class Files:
    """The files of an example: the photo, its signals by name, and the region or None.

    Attributes:
        rows: drags as a benchmark publishes them, instead of a file of points.
    """

    name: str
    photo: Path
    signals: dict[str, Path]
    region: Path | NDArray[np.bool_] | None = None
    rows: list[list[float]] | None = None

    def full_size(self) -> tuple[int, int]:
        """Return (height, width) of the upright photo in pixels."""
        photo = read_image(self.photo)
        return photo.height, photo.width

    def read(self, area: int, multiple: int) -> Example:
        """Read the example at about `area` pixels, with the photo's aspect and sides that are multiples of `multiple`.

        Raises:
            InputError: a file cannot be read.
        """
        photo = read_image(self.photo)
        full = photo.height, photo.width
        side = max(multiple, round(math.sqrt(area) / multiple) * multiple)
        size = nearest_size(full, (side, side), multiple)
        example = Example(self.name, to_unit_range(squeeze(photo, size)))
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
        if self.region is not None:
            return replace(example, region=_resized(self._region(full), size))
        return replace(example, region=None if example.points is None else drag_region(example.points, size))

    def _region(self, full: tuple[int, int]) -> NDArray[np.bool_]:
        if isinstance(self.region, Path):
            return region_mask(read_image(self.region, keep_transparency=True), full, self.region)[0].numpy()
        assert self.region is not None
        return self.region


def _resized(mask: NDArray[np.bool_], size: tuple[int, int]) -> Tensor:
    """Resize a mask [H, W] to bool [1, h, w]."""
    resized = Image.fromarray(mask.astype(np.uint8)).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(resized) > 0)[None]


def drag_region(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the region that drags may change: the convex hull of handles and targets, and `MARGIN` around it.

    It is made from the inputs alone. A region from the true motion would tell a method where the object ends.

    Args:
        points: [p, 4] as (x_src, y_src, x_tgt, y_tgt) in pixels.
        size: (height, width) in pixels.

    Returns:
        bool [1, h, w].
    """
    radius = round(MARGIN * math.sqrt(size[0] * size[1]) / AT)
    canvas = np.zeros(size, np.uint8)
    hull = cv2.convexHull(points.reshape(-1, 2).round().int().numpy())
    cv2.fillConvexPoly(canvas, hull, 1)
    cv2.polylines(canvas, [hull], True, 1, thickness=1 + 2 * radius)
    return torch.from_numpy(canvas > 0)[None]


def find_files(folder: Path, signal: str) -> list[Files]:
    """List the photos of a folder that have a signal beside them: NAME.png with NAME.sketch.png and so on.

    A region is NAME.region.png or NAME.mask.png, bright or opaque where the photo may change.

    Raises:
        InputError: the folder is missing, or none of its photos has the signal.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; write one with `fp-lightning benchmark`")
    endings, found, without = image_endings(), [], []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in endings or "." in path.stem:
            continue
        stem = path.with_name(path.stem)
        signals = {name: files[0] for name, forms in SIGNALS.items() if (files := named_files([stem], forms))}
        regions = named_files([stem], (".region.png", ".mask.png"))
        if signal and signal not in signals:
            without.append(path.name)
            continue
        found.append(Files(path.stem, path, signals, regions[0] if regions else None))
    if without:
        wanted = SIGNALS[signal][0]
        names = ", ".join(without[:3]) + (" and others" if len(without) > 3 else "")
        raise InputError(f"{len(without)} photos of {folder} have no NAME{wanted}: {names}; add it, or move them away")
    if not found:
        raise InputError(f"{folder} has no photos; write some with `fp-lightning benchmark`")
    return found


def find_drags(folder: Path) -> list[Files]:
    """List the examples of a drag benchmark, see `DragExamples`, with the regions that it publishes.

    Raises:
        InputError: there are none, or an annotation is damaged.
    """
    examples = DragExamples(folder)
    return [
        Files(name, examples.sources[index], {}, examples.region(index), examples.rows(index))
        for index, name in enumerate(examples.names)
    ]
