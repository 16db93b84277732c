"""Split videos into training, validation and test, and limit their pairs."""

from __future__ import annotations

from typing import Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from fp_lightning.errors import InputError
from fp_lightning.types import crop_size

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def split_videos(videos: list[str], val: float, test: float, seed: int) -> dict[Split, list[str]]:
    """Split videos at random. A split whose fraction is above 0 gets at least one video.

    Args:
        videos: names of the videos.
        val: fraction for validation, in [0, 1).
        test: fraction for testing, in [0, 1).
        seed: decides the split.

    Raises:
        InputError: a fraction is negative, or no video is left for training.
    """
    order = [videos[i] for i in np.random.default_rng(seed).permutation(len(videos))]
    n_val, n_test = (max(1, round(len(videos) * fraction)) if fraction > 0 else 0 for fraction in (val, test))
    if min(val, test) < 0 or n_val + n_test >= len(videos):
        raise InputError(
            f"{len(videos)} videos cannot be split with val_fraction {val:g} and test_fraction {test:g}; build pairs "
            f"of {n_val + n_test + 1} videos or more, lower the fractions (0 for none), or set data.overfit to true"
        )
    return {"val": order[:n_val], "test": order[n_val : n_val + n_test], "train": order[n_val + n_test :]}


def tell_fit(stored: tuple[int, int], size: tuple[int, int] | None) -> None:
    """Log, on one rank, that stored pairs are cropped to the aspect of `size` (height, width), or enlarged."""
    if size is None:
        return
    rows, columns = crop_size(stored, size)
    changes = [f"cropped centrally to {rows}x{columns}"] if (rows, columns) != tuple(stored) else []
    changes += [f"enlarged {size[0] / rows:.3g} times"] if size[0] > rows else []
    if changes:
        rank_zero_info(
            f"pairs are stored at {stored[0]}x{stored[1]} and, for data.size {size[0]}x{size[1]} (height x width), "
            f"{' and '.join(changes)}; `fp-lightning pairs --size {size[0]} {size[1]}` stores them to fit"
        )


def spread(indices: range | list[int], limit: int | None) -> list[int]:
    """Choose at most `limit` of the indices, evenly spread. None keeps all."""
    if limit is None or limit >= len(indices):
        return list(indices)
    return [indices[i * len(indices) // limit] for i in range(limit)]
