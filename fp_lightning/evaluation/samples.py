"""Edited samples as reports and sheets of images show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fp_lightning.media.pictures import signal_image
from fp_lightning.types import EditBatch, to_uint8

COLUMNS = ("source", "signal", "edited", "target")
GREY = 128  # separators and missing images of a contact sheet


@dataclass
class ReportSample:
    """One edit as the report shows it; images are uint8 [3, h, w], None where there is none."""

    name: str
    source: Tensor
    signal: Tensor | None
    edited: Tensor
    target: Tensor | None = None
    scores: dict[str, float] = field(default_factory=dict)  # as `EditMetrics.per_sample` has them
    others: dict[str, Tensor] = field(default_factory=dict)  # the same edit by other systems, by their names
    label: str = "edited"  # what the edited image is called

    def columns(self) -> dict[str, Tensor | None]:
        """The images by what they are called, in the order in which they are shown."""
        return {
            "source": self.source, "signal": self.signal, self.label: self.edited, **self.others, "target": self.target
        }  # fmt: skip

    @staticmethod
    def of(edited: Tensor, batch: EditBatch, limit: int | None = None) -> list[ReportSample]:
        """The first `limit` samples of a batch, on the CPU; edited is float [b, 3, h, w] in [-1, 1]."""
        return [
            ReportSample(
                name,
                source=to_uint8(batch.source[i]).cpu(),
                signal=signal_image(batch, i),
                edited=to_uint8(edited[i]).cpu(),
                target=None if batch.target is None else to_uint8(batch.target[i]).cpu(),
            )
            for i, name in enumerate(batch.name[:limit])
        ]


def contact_sheet(samples: Sequence[ReportSample], gap: int = 2) -> Tensor:
    """source | signal | edited | target, a row per sample, uint8 [3, H, W]; a missing image stays grey.

    Raises:
        ValueError: there is no sample, or the images differ in size.
    """
    images = [getattr(sample, column) for sample in samples for column in COLUMNS]
    sizes = sorted({tuple(image.shape) for image in images if image is not None})
    if len(sizes) != 1:
        raise ValueError(f"a contact sheet needs images of one size, got {[list(size) for size in sizes]}")
    _, height, width = sizes[0]
    sheet = torch.full(
        (3, len(samples) * (height + gap) - gap, len(COLUMNS) * (width + gap) - gap), GREY, dtype=torch.uint8
    )
    for i, image in enumerate(images):
        top, left = i // len(COLUMNS) * (height + gap), i % len(COLUMNS) * (width + gap)
        if image is not None:
            sheet[:, top : top + height, left : left + width] = image
    return sheet
