"""The only shared contract: `VideoPair` on disk, `EditBatch` in memory, and `ClipBatch` for a video prior.

Positions are continuous pixel coordinates of the tensor they belong to, x before y: pixel column i
covers [i, i + 1) and its centre is i + 0.5. Resizing an image by s therefore multiplies positions
and flows by s, and a token of t pixels that holds x has the index floor(x / t).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Image = NDArray[np.uint8]  # [h, w, 3] RGB

TRACK_STRIDE = 8  # pixels between tracked token centres in a stored pair
MOVING_PIXELS, MOVING_WIDTH = 1.0, 512  # "moving": flow above 1 px at a width of 512 px


@dataclass
class VideoPair:
    """Two frames of one static-camera video and how they correspond; serves every editing signal."""

    source: Tensor  # uint8 [3, h, w], RGB
    target: Tensor  # uint8 [3, h, w], RGB
    flow_to_source: Tensor  # float32 [2, h, w]: target position + flow = source position
    flow_to_target: Tensor  # float32 [2, h, w]: source position + flow = target position
    tracks: Tensor  # float32 [2, th, tw]: the source position of each target token's centre
    visible: Tensor  # bool [th, tw]: that source position is inside the image and not occluded
    meta: dict[str, Any] = field(default_factory=dict)  # video, frame times in seconds, estimators

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.source.shape[-2:]
        return height, width

    def moving(self) -> Tensor:
        """Where anything moves: bool [1, h, w], the flow either way exceeds 1 px at 512 px width.

        Both ways, since an edit must draw the object where it goes and the ground where it was.
        """
        limit = MOVING_PIXELS * self.size[1] / MOVING_WIDTH
        return ((length(self.flow_to_source) > limit) | (length(self.flow_to_target) > limit))[None]

    def resized(self, size: tuple[int, int]) -> VideoPair:
        """The pair at `size` (height, width): images antialiased, flows and tracks scaled.

        Flows are picked from the nearest pixel, never averaged: between two motions there is no
        third one. The track grid keeps its number of tokens.
        """
        if size == self.size:
            return self
        scale = torch.tensor([size[1] / self.size[1], size[0] / self.size[0]])[:, None, None]

        def image(x: Tensor) -> Tensor:
            y = F.interpolate(x[None].float(), size, mode="bicubic", antialias=True, align_corners=False)[0]
            return y.round().clamp(0, 255).to(torch.uint8)

        def flow(x: Tensor) -> Tensor:
            return F.interpolate(x[None], size, mode="nearest-exact")[0] * scale

        return replace(
            self,
            source=image(self.source),
            target=image(self.target),
            flow_to_source=flow(self.flow_to_source),
            flow_to_target=flow(self.flow_to_target),
            tracks=self.tracks * scale,
        )


@dataclass
class EditBatch:
    """What the editor trains on, validates on and predicts from. A sample is a batch of one."""

    source: Tensor  # float [b, 3, h, w] in [-1, 1]
    name: list[str]  # b names, unique within a data set
    target: Tensor | None = None  # float [b, 3, h, w] in [-1, 1]; None in predict
    control: Tensor | None = None  # float [b, 3, h, w] in [0, 1]
    control_valid: Tensor | None = None  # bool [b]: the sample has a control image; None: all have
    points: Tensor | None = None  # float [b, p, 4] as (x_src, y_src, x_tgt, y_tgt)
    points_valid: Tensor | None = None  # bool [b, p]
    tracks: Tensor | None = None  # float [b, 2, th, tw]: source position of each target token centre
    visible: Tensor | None = None  # bool [b, th, tw]
    moving: Tensor | None = None  # bool [b, 1, h, w], see VideoPair.moving
    latents: Tensor | None = None  # [b, 2, c, h/8, w/8] of source and target, not scaled; None: not made yet
    embedding: Tensor | None = None  # [b, 1, d] of the source
    image_latents: Tensor | None = None  # [b, k, c, h/8, w/8] of the source with each of k noises
    augmentation: Tensor | None = None  # [b, k] the level of each
    full_size: list[tuple[int, int]] | None = None  # (height, width) of the user's own image, in predict
    edit: list[Any] | None = None  # in predict: the `Edit` that a sample reproduces, None for the others

    def __len__(self) -> int:
        return self.source.shape[0]

    def one(self, index: int) -> EditBatch:
        """One sample, a batch of one."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        alone: dict[str, Any] = {k: None if v is None else v[index : index + 1] for k, v in values.items()}
        return EditBatch(**alone)

    def map(self, function) -> EditBatch:
        """A copy with `function` applied to every tensor."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return EditBatch(**{k: function(v) if isinstance(v, Tensor) else v for k, v in values.items()})

    def to(self, *args, **kwargs) -> EditBatch:
        """Moves every tensor; Lightning calls this to bring a batch to its device."""
        return self.map(lambda x: x.to(*args, **kwargs))

    def pin_memory(self) -> EditBatch:
        return self.map(Tensor.pin_memory)

    @staticmethod
    def cat(batches: Sequence[EditBatch]) -> EditBatch:
        """One batch of many, the collate function of every loader; shorter lists of points are padded.

        Raises:
            ValueError: a field is present in some samples and absent in others.
        """
        joined: dict[str, Any] = {}
        for f in fields(EditBatch):
            values = [getattr(batch, f.name) for batch in batches]
            present = [value for value in values if value is not None]
            if present and len(present) < len(values):
                raise ValueError(f"{f.name} is present in {len(present)} of {len(values)} samples of one batch")
            if not present:
                joined[f.name] = None
            elif f.name in ("points", "points_valid"):
                most = max(value.shape[1] for value in present)
                joined[f.name] = torch.cat([_padded(value, most) for value in present])
            elif isinstance(present[0], Tensor):
                joined[f.name] = torch.cat(present)
            else:
                joined[f.name] = [item for value in present for item in value]
        return EditBatch(**joined)


@dataclass
class ClipBatch:
    """Clips of equally many frames at even times: what a video prior trains on."""

    frames: Tensor  # float [b, f, 3, h, w] in [-1, 1]
    motion: Tensor  # float [b] greatest displacement from the first frame to the last, in image widths
    name: list[str]  # b names, unique within a data set

    def __len__(self) -> int:
        return len(self.frames)

    def to(self, *args, **kwargs) -> ClipBatch:
        """Moves every tensor; Lightning calls this to bring a batch to its device."""
        return ClipBatch(self.frames.to(*args, **kwargs), self.motion.to(*args, **kwargs), self.name)

    def pin_memory(self) -> ClipBatch:
        return ClipBatch(self.frames.pin_memory(), self.motion.pin_memory(), self.name)


def _padded(points: Tensor, count: int) -> Tensor:
    """[b, p, ...] → [b, count, ...] with zeros at the end: points that are not valid."""
    missing = points.new_zeros((len(points), count - points.shape[1], *points.shape[2:]))
    return torch.cat([points, missing], 1)


def length(flow: Tensor) -> Tensor:
    """Lengths [...] of vectors [2, ...]; `norm` over the first dimension is many times slower on a CPU."""
    return torch.hypot(flow[0], flow[1])


def to_unit_range(image: Tensor) -> Tensor:
    """uint8 [..., 3, h, w] → float in [-1, 1]."""
    return image.float() / 127.5 - 1


def to_uint8(image: Tensor) -> Tensor:
    """float in [-1, 1] → uint8, rounded and clamped; the inverse of `to_unit_range`."""
    return ((image.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def token_centres(tracks: Tensor, size: tuple[int, int]) -> Tensor:
    """Positions [2, th, tw] in pixels of the centres of th × tw tokens that tile `size` (height, width)."""
    rows, columns = tracks.shape[-2:]
    y = (torch.arange(rows) + 0.5) * (size[0] / rows)
    x = (torch.arange(columns) + 0.5) * (size[1] / columns)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))
