"""Examples to evaluate, as batches of one sample, and as input files of a method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from fp_lightning.evaluation.benchmarks import DragExamples
from fp_lightning.files import write_atomic, write_text
from fp_lightning.media.images import squeeze
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
    """Numbered examples with unique names that are valid file names.

    Attributes:
        names: their names.
        regions: a sentence that says which pixels the scores by region count.
    """

    names: list[str]
    regions: str

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

    regions = "The moving region is where either flow of a pair is longer than 1 px at 512 px width."

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


def write_examples(examples: PairExamples | DragExamples, out: Path, seed: int = 0) -> None:
    """Write examples as input for `fp-lightning predict`.

    Each example becomes NAME.png with NAME.points.json. A pair also has NAME.sketch.png and NAME.coarse.png, an example
    of a benchmark NAME.region.png if the benchmark says which pixels may change.

    Args:
        seed: seed of the points drawn from a pair.
    """
    for index, name in enumerate(examples.names):
        if isinstance(examples, DragExamples):
            rows = examples.rows(index)
            source = squeeze(image := read_image(examples.sources[index]), (image.height, image.width))
            if (region := examples.region(index)) is not None:
                write_atomic(out / f"{name}.region.png", encode(region.expand(3, -1, -1).to(torch.uint8) * 255))
        else:
            pair = examples.pair(index)
            source = pair.source
            rows = points(pair, np.random.default_rng([seed, index])).tolist()
            for signal, drawn in (("sketch", sketch(pair)), ("coarse", coarse_edit(pair))):
                write_atomic(out / f"{name}.{signal}.png", encode(to_uint8(drawn * 2 - 1)))
        write_atomic(out / f"{name}.png", encode(source))
        if rows:
            write_text(out / f"{name}.points.json", json.dumps({"points": rows}))
