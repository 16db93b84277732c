"""Combine drawn signals into the tensors that the network reads."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SignalName = Literal["sketch", "coarse", "points"]
SIGNALS: tuple[SignalName, ...] = ("sketch", "coarse", "points")
RIM = 2 / 512  # width of the black outline of strokes, in image widths


def signal_fields(
    size: tuple[int, int],
    sketch: Tensor | None = None,
    coarse: Tensor | None = None,
    points: Tensor | None = None,
    among: Collection[str] = SIGNALS,
) -> dict[str, Any]:
    """Convert one sample's signals to the fields of an `EditBatch` with b = 1.

    A sketch and a coarse edit share the control image, so one encoder reads both: white strokes with a thin
    black outline over the coarse edit, or over black if there is no coarse edit.

    Args:
        size: (height, width) in pixels of the network's input.
        sketch: strokes, float [3, h, w] in {0, 1}.
        coarse: coarse edit, float [3, h, w] in [0, 1].
        points: drags, float [p, 4] as (x_src, y_src, x_tgt, y_tgt) in pixels of `size`.
        among: names of all signals that samples of the same batch may have. They decide which fields are
            returned, so that all samples can be batched: `control` [1, 3, h, w] and `control_valid` [1] if
            they include a sketch or a coarse edit, `points` [1, p, 4] and `points_valid` [1, p] if they
            include points.

    Raises:
        ValueError: a signal is passed that `among` does not name, or an image does not have `size`.
    """
    signals = {"sketch": sketch, "coarse": coarse, "points": points}
    if unexpected := [name for name, value in signals.items() if value is not None and name not in among]:
        raise ValueError(
            f"signals {', '.join(unexpected)} passed, but not among {', '.join(among)}; add them to `among`"
        )
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
    """Draw strokes over the coarse edit, or over black: float [3, h, w] in [0, 1]."""
    if sketch is None:
        return torch.zeros(3, *size) if coarse is None else coarse
    if coarse is None:
        return sketch
    reach = max(1, round(RIM * size[1]))
    near = F.max_pool2d(sketch[None], 2 * reach + 1, stride=1, padding=reach)[0]
    return torch.maximum(sketch, coarse * (1 - near))
