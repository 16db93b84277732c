"""Published drag benchmarks: where each of them stores its photos, drags, regions and edited photos."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.files import well_formed
from fp_lightning.media.images import drags, region_mask, squeeze
from fp_lightning.media.reading import read_image
from fp_lightning.types import EditBatch, to_unit_range

SDE_DRAG_SIDE = 512  # px of both sides of the photo in which SDE-Drag gives its points
AGAIN = "download it again"


@dataclass(frozen=True)
class Layout:
    """How a benchmark stores its examples.

    Attributes:
        annotations: pattern of the files that hold the drags of one example each.
        photo: the photo of an annotation.
        rows: reads an annotation for a photo of (height, width), in a form of `fp_lightning.media.images.drags`.
    """

    annotations: str
    photo: Callable[[Path], Path]
    rows: Callable[[Path, tuple[int, int]], list[Any]]


class DragExamples:
    """The examples of a drag benchmark, found anywhere below `root`, in one of these layouts.

    - DragBench (Shi et al. 2024): `original_image.png`, `meta_data.pkl` with "points", handles and targets alternating.
    - VFD-Bench (Koo et al. 2025): `input.png`, `gt.png`, `mask.png`, `points.json`.
    - ReD Bench (Zhou et al. 2025): `original_image.png`, `instruction.json` with "point_operations".
    - SDE-Drag (Nie et al. 2024): `origin_image.png`, `mask.png`, `prompt.json` with "source" and "target", in pixels of
      the photo at 512 × 512.
    - MoveBench (Chu et al. 2025): `first_frame/ID.jpg`, `track/{single,multi}/ID_tracks.npy` and `ID_visibility.npy`. A
      drag leads from a track's first position to the last one that is visible inside the picture.

    Raises:
        InputError: there is no example, or two examples have the same name.
    """

    regions = "The moving region is the benchmark's mask, where it publishes true targets."

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        found: dict[tuple[str, ...], tuple[Path, Layout]] = {}
        for layout in LAYOUTS:
            for path in self.root.rglob(layout.annotations):
                if layout.photo(path).is_file():
                    found.setdefault(self._parts(path), (path, layout))
        if not found:
            raise InputError(
                f"{root} holds no drag benchmark; expected folders of original_image.png, origin_image.png or "
                "input.png with their drags, or first_frame and track of MoveBench"
            )
        self.parts = sorted(found)
        self.annotations, self.layouts = zip(*(found[parts] for parts in self.parts), strict=True)
        self.sources = [layout.photo(path) for path, layout in zip(self.annotations, self.layouts, strict=True)]
        self.names = ["-".join(parts) for parts in self.parts]
        self._sizes: dict[int, tuple[int, int]] = {}  # of the photos that were read
        if len(set(self.names)) < len(self.names):
            duplicate = next(name for name in self.names if self.names.count(name) > 1)
            raise InputError(f"two examples of {root} have the name {duplicate}; rename one of their folders")

    def _parts(self, annotation: Path) -> tuple[str, ...]:
        """Return what names an example: its folders, and for MoveBench the language, the kind and the number."""
        below = annotation.relative_to(self.root)
        if not annotation.name.endswith(TRACKS):
            return below.parent.parts
        return *(part for part in below.parent.parts if part != "track"), below.name.removesuffix(TRACKS)

    def files(self, index: int) -> list[str]:
        nested = "/".join(self.parts[index])
        return [self.names[index], nested, f"{nested}/dragged_image"]

    def size(self, index: int) -> tuple[int, int]:
        if index not in self._sizes:
            image = read_image(self.sources[index])
            self._sizes[index] = image.height, image.width
        return self._sizes[index]

    def rows(self, index: int) -> list[Any]:
        """The drags as stored, in pixels of the source; see `fp_lightning.media.images.drags`.

        Raises:
            InputError: the annotation is damaged.
        """
        path = self.annotations[index]
        with well_formed(path, AGAIN):
            return self.layouts[index].rows(path, self.size(index))

    def region(self, index: int) -> Tensor | None:
        """Return the pixels that the benchmark lets an edit change, bool [1, H, W]; None if it does not say.

        Raises:
            InputError: the annotation or the mask is damaged.
        """
        path, size = self.annotations[index], self.size(index)
        if path.suffix != ".pkl":
            file = path.with_name("mask.png")
            return region_mask(read_image(file, keep_transparency=True), size, file) if file.is_file() else None
        with well_formed(path, AGAIN):
            mask = load_plain(path).get("mask")
            if mask is not None and np.asarray(mask).shape != size:
                raise ValueError(f"its mask has the shape {np.asarray(mask).shape}, its photo {size}")
            return None if mask is None else torch.from_numpy(np.asarray(mask) > 0)[None]

    def __getitem__(self, index: int) -> EditBatch:
        path = self.sources[index]
        image = read_image(path)
        size = self._sizes[index] = image.height, image.width
        points = drags(self.rows(index), size, size, str(self.annotations[index]))[None]
        truth = path.with_name("gt.png")
        target = squeeze(read_image(truth), size) if truth.is_file() else None
        region = None if target is None else self.region(index)
        return EditBatch(
            to_unit_range(squeeze(image, size))[None],
            [self.names[index]],
            target=None if target is None else to_unit_range(target)[None],
            moving=None if region is None else region[None],
            points=points,
            points_valid=torch.ones(points.shape[:2], dtype=torch.bool),
        )


def _beside(name: str) -> Callable[[Path], Path]:
    return lambda annotation: annotation.with_name(name)


def _dragbench(path: Path, size: tuple[int, int]) -> list[Any]:
    return [list(map(float, point)) for point in load_plain(path)["points"]]


def _vfd_bench(path: Path, size: tuple[int, int]) -> list[Any]:
    return json.loads(path.read_bytes())["points"]


def _red_bench(path: Path, size: tuple[int, int]) -> list[Any]:
    operations = json.loads(path.read_bytes())["point_operations"]
    ends = zip(operations["begin_points"], operations["target_points"], strict=True)
    return [[*begin, *end] for begin, end in ends]


def _sde_drag(path: Path, size: tuple[int, int]) -> list[Any]:
    content = json.loads(path.read_bytes())
    ends = np.hstack([np.asarray(content[key], float).reshape(-1, 2) for key in ("source", "target")])
    height, width = size
    return (ends * np.array([width, height, width, height]) / SDE_DRAG_SIDE).tolist()


def _movebench(path: Path, size: tuple[int, int]) -> list[Any]:
    beside = path.with_name(path.name.removesuffix(TRACKS) + "_visibility.npy")
    if not beside.is_file():
        raise InputError(f"{beside} is missing; {AGAIN}")
    tracks, visible = (np.load(file, allow_pickle=False) for file in (path, beside))
    tracks = tracks.astype(float).reshape(-1, *tracks.shape[-2:])  # [frames, tracks, 2], x and y
    visible = visible.astype(bool).reshape(-1, visible.shape[-1])
    if tracks.shape != (*visible.shape, 2):
        raise ValueError(f"{tracks.shape} positions, but {visible.shape} visibilities")
    shown = visible & ((tracks >= 0) & (tracks < np.array(size[::-1]))).all(-1)
    if not shown[0].any():
        raise ValueError("no track is visible in the first frame")
    last = len(shown) - 1 - shown[::-1].argmax(0)
    return [[*tracks[0, i].tolist(), *tracks[last[i], i].tolist()] for i in np.flatnonzero(shown[0])]


def _first_frame(path: Path) -> Path:
    return path.parents[min(2, len(path.parents) - 1)] / "first_frame" / f"{path.name.removesuffix(TRACKS)}.jpg"


TRACKS = "_tracks.npy"
LAYOUTS = (
    Layout("meta_data.pkl", _beside("original_image.png"), _dragbench),
    Layout("points.json", _beside("input.png"), _vfd_bench),
    Layout("instruction.json", _beside("original_image.png"), _red_bench),
    Layout("prompt.json", _beside("origin_image.png"), _sde_drag),
    Layout(f"*{TRACKS}", _first_frame, _movebench),
)


class _PlainUnpickler(pickle.Unpickler):
    """Unpickle numbers, strings, lists, dicts and NumPy arrays, and refuse everything that could run code."""

    ALLOWED = frozenset(
        {
            *(("numpy", name) for name in ("ndarray", "dtype")),
            *(("numpy._core.multiarray", name) for name in ("_reconstruct", "scalar")),
            ("numpy._core.numeric", "_frombuffer"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # the name before NumPy 2
        if (module, name) in self.ALLOWED:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 and earlier write bytes
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"it contains {module}.{name}, which is not data")


def load_plain(path: Path) -> Any:
    """Load a pickle of plain data.

    Raises:
        InputError: the file holds anything else, which is not loaded, or is damaged.
    """
    try:
        return _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a damaged pickle may raise anything
        raise InputError(f"{path} is not loaded: {error}; download it again from its source") from error
