"""One place that turns what was drawn into what the network reads."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SignalName = Literal["sketch", "coarse", "points"]
SIGNALS: tuple[SignalName, ...] = ("sketch", "coarse", "points")
RIM = 2 / 512  # image widths of black around strokes


def signal_fields(
    size: tuple[int, int],
    sketch: Tensor | None = None,
    coarse: Tensor | None = None,
    points: Tensor | None = None,
    among: Collection[str] = SIGNALS,
) -> dict[str, Any]:
    """One sample's signals as the fields of an `EditBatch`, b = 1.

    A sketch and a coarse edit share the control image, so that one encoder reads both: white strokes with
    a thin black rim over the coarse edit, or over black without one.

    Args:
        size: (height, width) in pixels at which the network works.
        sketch: strokes, float [3, h, w] in {0, 1}.
        coarse: coarse edit, float [3, h, w] in [0, 1].
        points: drags, float [p, 4] as (x_src, y_src, x_tgt, y_tgt) in pixels of `size`.
        among: the signals that any sample of the same batch may have, by name. They decide the fields, so
            that every mix can be batched: `control` [1, 3, h, w] and `control_valid` [1] with a sketch or a
            coarse edit among them, `points` [1, p, 4] and `points_valid` [1, p] with points among them.

    Raises:
        ValueError: a signal is given that is not `among` them, or an image is not of `size`.
    """
    given = {"sketch": sketch, "coarse": coarse, "points": points}
    if stray := [name for name, value in given.items() if value is not None and name not in among]:
        raise ValueError(f"{', '.join(stray)} given, but not among {', '.join(among)}")
    if wrong := [tuple(x.shape) for x in (sketch, coarse) if x is not None and tuple(x.shape) != (3, *size)]:
        raise ValueError(f"control images must be {(3, *size)}, got {wrong[0]}")
    fields: dict[str, Any] = {}
    if "sketch" in among or "coarse" in among:
        fields["control"] = _control_image(size, sketch, coarse)[None]
        fields["control_valid"] = torch.tensor([sketch is not None or coarse is not None])
    if "points" in among:
        drags = torch.zeros(0, 4) if points is None else points
        fields["points"], fields["points_valid"] = drags[None], torch.ones(1, len(drags), dtype=torch.bool)
    return fields


def _control_image(size: tuple[int, int], sketch: Tensor | None, coarse: Tensor | None) -> Tensor:
    """Strokes over a coarse edit over black: float [3, h, w] in [0, 1]."""
    if sketch is None:
        return torch.zeros(3, *size) if coarse is None else coarse
    if coarse is None:
        return sketch
    reach = max(1, round(RIM * size[1]))
    near = F.max_pool2d(sketch[None], 2 * reach + 1, stride=1, padding=reach)[0]
    return torch.maximum(sketch, coarse * (1 - near))
