"""Examples to evaluate: stored pairs or a published drag benchmark, as batches of one sample."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fp_lightning.errors import InputError
from fp_lightning.files import well_formed, write_atomic, write_text
from fp_lightning.media.images import drags, region_mask, squeeze
from fp_lightning.media.pictures import encode
from fp_lightning.media.reading import read_image
from fp_lightning.pairs.heldout import listed_pairs
from fp_lightning.pairs.shards import PairStore
from fp_lightning.signals.coarse import coarse_edit
from fp_lightning.signals.combine import signal_fields
from fp_lightning.signals.points import points
from fp_lightning.signals.sketch import sketch
from fp_lightning.types import EditBatch, VideoPair, to_uint8, to_unit_range


class Examples(Protocol):
    """Numbered examples with unique names that are valid file names."""

    names: list[str]

    def files(self, index: int) -> list[str]:
        """Paths in a folder of predictions, without suffix, at which the prediction may be stored."""

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels."""

    def __getitem__(self, index: int) -> EditBatch:
        """The example as a batch of one sample."""


class PairExamples:
    """Stored pairs, with their sketches as the signal that an edit should follow.

    Args:
        root: folder written by `fp-lightning pairs`.
        listed: file written by `fp_lightning.pairs.heldout.write_list`; selects its pairs, in its order.

    Raises:
        InputError: there are no pairs, or the list does not match them.
    """

    def __init__(self, root: str | Path, listed: Path | None = None) -> None:
        self.store = PairStore(root)
        self.indices = list(range(len(self.store))) if listed is None else listed_pairs(self.store, listed)
        self.names = [self.store.name(i) for i in self.indices]

    def files(self, index: int) -> list[str]:
        return [self.names[index]]

    def pair(self, index: int) -> VideoPair:
        return self.store[self.indices[index]]

    def size(self, index: int) -> tuple[int, int]:
        return self.pair(index).size

    def __getitem__(self, index: int) -> EditBatch:
        pair = self.pair(index)
        return EditBatch(
            to_unit_range(pair.source)[None],
            [self.names[index]],
            target=to_unit_range(pair.target)[None],
            tracks=pair.tracks[None],
            visible=pair.visible[None],
            moving=pair.moving()[None],
            **signal_fields(pair.size, sketch=sketch(pair), among=("sketch",)),
        )


class DragExamples:
    """A drag benchmark: each folder below `root` with one of these layouts is an example.

    - DragBench (Shi et al. 2024): `original_image.png`, `meta_data.pkl` with "points", handles and targets alternating.
    - VFD-Bench (Koo et al. 2025): `input.png`, `gt.png`, `mask.png`, `points.json`.
    - ReD Bench (Zhou et al. 2025): `original_image.png`, `instruction.json` with "point_operations".

    Raises:
        InputError: there is no example, or two examples have the same name.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        sources = [path for name in ("original_image.png", "input.png") for path in self.root.rglob(name)]
        self.sources = sorted(path for path in sources if _annotation(path) is not None)
        if not self.sources:
            raise InputError(
                f"{root} holds no drag benchmark; expected folders of original_image.png with meta_data.pkl or "
                "instruction.json, or of input.png with points.json"
            )
        self.parts = [path.parent.relative_to(self.root).parts for path in self.sources]
        self.names = ["-".join(parts) for parts in self.parts]
        if len(set(self.names)) < len(self.names):
            duplicate = next(name for name in self.names if self.names.count(name) > 1)
            raise InputError(f"two examples of {root} have the name {duplicate}; rename one of their folders")

    def files(self, index: int) -> list[str]:
        nested = "/".join(self.parts[index])
        return [self.names[index], nested, f"{nested}/dragged_image"]

    def size(self, index: int) -> tuple[int, int]:
        image = read_image(self.sources[index])
        return image.height, image.width

    def rows(self, index: int) -> list[Any]:
        """The drags as stored, in pixels of the source; see `fp_lightning.media.images.drags`.

        Raises:
            InputError: the annotation is damaged.
        """
        path = _annotation(self.sources[index])
        assert path is not None
        try:
            if path.suffix == ".pkl":
                return [list(map(float, point)) for point in load_plain(path)["points"]]
            content = json.loads(path.read_bytes())
            if path.name == "points.json":
                return content["points"]
            operations = content["point_operations"]
            ends = zip(operations["begin_points"], operations["target_points"], strict=True)
            return [[*begin, *end] for begin, end in ends]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); download it again") from error

    def region(self, index: int) -> Path | NDArray[np.bool_] | None:
        """Return the pixels that the benchmark lets an edit change: a file, a mask [H, W], or None.

        Raises:
            InputError: the annotation is damaged.
        """
        path = _annotation(self.sources[index])
        assert path is not None
        if path.suffix != ".pkl":
            mask = path.with_name("mask.png")
            return mask if mask.is_file() else None
        with well_formed(path, "download it again"):
            mask = load_plain(path).get("mask")
            if mask is not None and np.asarray(mask).shape != self.size(index):
                raise ValueError(f"its mask has the shape {np.asarray(mask).shape}, its photo {self.size(index)}")
            return None if mask is None else np.asarray(mask) > 0

    def __getitem__(self, index: int) -> EditBatch:
        path = self.sources[index]
        image = read_image(path)
        size = image.height, image.width
        points = drags(self.rows(index), size, size, str(_annotation(path)))[None]
        truth, mask = path.with_name("gt.png"), path.with_name("mask.png")
        target = squeeze(read_image(truth), size) if truth.is_file() else None
        region = None
        if target is not None and mask.is_file():
            region = region_mask(read_image(mask, keep_transparency=True), size, mask)
        return EditBatch(
            to_unit_range(squeeze(image, size))[None],
            [self.names[index]],
            target=None if target is None else to_unit_range(target)[None],
            moving=None if region is None else region[None],
            points=points,
            points_valid=torch.ones(points.shape[:2], dtype=torch.bool),
        )


def _annotation(source: Path) -> Path | None:
    """The annotation file beside a source image; None if there is none."""
    known = ("points.json",) if source.name == "input.png" else ("meta_data.pkl", "instruction.json")
    return next((path for name in known if (path := source.with_name(name)).is_file()), None)


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


def write_examples(examples: PairExamples | DragExamples, out: Path, seed: int = 0) -> None:
    """Write examples as input for `fp-lightning predict`.

    Each example becomes NAME.png with NAME.points.json; a pair also has NAME.sketch.png and NAME.coarse.png.

    Args:
        seed: seed of the points drawn from a pair.
    """
    for index, name in enumerate(examples.names):
        if isinstance(examples, DragExamples):
            rows = examples.rows(index)
            source = squeeze(image := read_image(examples.sources[index]), (image.height, image.width))
        else:
            pair = examples.pair(index)
            source = pair.source
            rows = points(pair, np.random.default_rng([seed, index])).tolist()
            for signal, drawn in (("sketch", sketch(pair)), ("coarse", coarse_edit(pair))):
                write_atomic(out / f"{name}.{signal}.png", encode(to_uint8(drawn * 2 - 1)))
        write_atomic(out / f"{name}.png", encode(source))
        if rows:
            write_text(out / f"{name}.points.json", json.dumps({"points": rows}))
