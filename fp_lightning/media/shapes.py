"""The size at which the network works on a photo of another shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

CLEARLY = 1.1  # ratio of two aspects from which an image is said to be squeezed
PIXEL_WEIGHT = 0.25  # of another number of pixels, relative to another aspect


def squeeze_factor(photo: tuple[int, int], size: tuple[int, int]) -> float:
    """Return by how much one axis shrinks more than the other, 1 or more, if `photo` is resized to `size`.

    Args:
        photo: (height, width) in pixels.
        size: (height, width) in pixels.
    """
    factor = photo[0] * size[1] / (photo[1] * size[0])
    return max(factor, 1 / factor)


def nearest_size(photo: tuple[int, int], trained: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Return the size (height, width) for a photo: near its aspect, with about as many pixels as `trained`.

    The size minimises |log(squeeze)| + 1/4 |log(pixels / trained pixels)| and has at most a quarter more pixels.

    Args:
        photo: (height, width) in pixels.
        trained: (height, width) at which the network was trained.
        multiple: both sides are multiples of this, in pixels.
    """
    pixels = trained[0] * trained[1]
    most = max(1, int(1.25 * pixels / multiple**2))  # in squares of `multiple`

    def cost(size: tuple[int, int]) -> float:
        share = size[0] * size[1] / pixels
        return math.log(squeeze_factor(photo, size)) + PIXEL_WEIGHT * abs(math.log(share))

    grid = ((multiple * h, multiple * w) for h in range(1, most + 1) for w in range(1, most // h + 1))
    return min(grid, key=cost)


def batches_of_one_size(sizes: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """Group the indices of `sizes` into batches of at most `batch_size` whose sizes are equal."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(size, []).append(index)
    return [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]
