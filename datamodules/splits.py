"""Which videos a split has, and which of their pairs."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fp_lightning.errors import InputError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def split_videos(videos: list[str], val: float, test: float, seed: int) -> dict[Split, list[str]]:
    """Shares videos out at random; a split whose fraction is above 0 gets one video at least.

    Raises:
        InputError: a fraction is negative or there are too few videos.
    """
    order = [videos[i] for i in np.random.default_rng(seed).permutation(len(videos))]
    n_val, n_test = (max(1, round(len(videos) * fraction)) if fraction > 0 else 0 for fraction in (val, test))
    if min(val, test) < 0 or n_val + n_test >= len(videos):
        raise InputError(
            f"{len(videos)} videos cannot be split with val_fraction {val:g} and test_fraction {test:g}; make pairs of "
            f"{n_val + n_test + 1} videos or more, lower the fractions (0 for none), or set data.overfit to true"
        )
    return {"val": order[:n_val], "test": order[n_val : n_val + n_test], "train": order[n_val + n_test :]}


def spread(indices: range | list[int], limit: int | None) -> list[int]:
    """At most `limit` of the indices, evenly spread over them."""
    if limit is None or limit >= len(indices):
        return list(indices)
    return [indices[i * len(indices) // limit] for i in range(limit)]
