"""The data types that all packages share: `VideoPair` on disk, `EditBatch` and `ClipBatch` in memory.

Positions are continuous pixel coordinates of the tensor they belong to, x before y: pixel column i
covers [i, i + 1) and its centre is at i + 0.5. Resizing an image by s therefore multiplies positions
and flows by s. In a grid of t × t pixel tokens, position x lies in token floor(x / t).
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
    """Two frames of one static-camera video and their correspondence (paper, section 3.3).

    All editing signals are derived from the same pairs.
    """

    source: Tensor  # uint8 [3, h, w], RGB
    target: Tensor  # uint8 [3, h, w], RGB
    flow_to_source: Tensor  # float32 [2, h, w]: target position + flow = source position
    flow_to_target: Tensor  # float32 [2, h, w]: source position + flow = target position
    tracks: Tensor  # float32 [2, th, tw]: source position of each target token's centre
    visible: Tensor  # bool [th, tw]: the source position is inside the image and not occluded
    meta: dict[str, Any] = field(default_factory=dict)  # video, frame times in seconds, estimators

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.source.shape[-2:]
        return height, width

    def moving(self) -> Tensor:
        """Mask of moving pixels: bool [1, h, w], True where either flow exceeds 1 px at 512 px width.

        It uses both flows because an edit must draw the object at its new place and the background at its old one.
        """
        limit = MOVING_PIXELS * self.size[1] / MOVING_WIDTH
        return ((length(self.flow_to_source) > limit) | (length(self.flow_to_target) > limit))[None]

    def resized(self, size: tuple[int, int]) -> VideoPair:
        """Resize the pair to `size` (height, width): images are antialiased, flows and tracks are scaled.

        Flow is resampled from the nearest pixel. Averaging would invent a motion at the border of two objects.
        The track grid keeps its number of tokens.
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

    def cropped(self, aspect: tuple[int, int]) -> VideoPair:
        """Crop the pair to the aspect ratio of `aspect` (height, width), with flows, tracks and visibility.

        The crop is central, to the nearest tracked token, and as large as possible. A token whose source lies outside
        the crop is not visible. Where the crop cuts through tokens, its own tokens take the displacement of the stored
        token that contains their centre.
        """
        (height, width), (rows, columns) = self.size, self.visible.shape
        kept = crop_size(self.size, aspect)
        if kept == self.size:
            return self
        stride = (height / rows, width / columns)
        top, left = (_crop_start(*each) for each in zip(self.size, kept, stride, strict=True))
        grid = tuple(max(1, round(side / step)) for side, step in zip(kept, stride, strict=True))
        corner = torch.tensor([left, top])[:, None, None]
        centres = token_centres(torch.empty(*grid), kept) + corner
        column, row = (centres[0] / stride[1]).long(), (centres[1] / stride[0]).long()
        moved = (self.tracks - token_centres(self.tracks, self.size))[:, row, column]
        tracks = centres + moved - corner
        inside = (tracks >= 0).all(0) & (tracks[0] < kept[1]) & (tracks[1] < kept[0])

        def cut(x: Tensor) -> Tensor:
            return x[..., top : top + kept[0], left : left + kept[1]].contiguous()

        return replace(
            self,
            source=cut(self.source),
            target=cut(self.target),
            flow_to_source=cut(self.flow_to_source),
            flow_to_target=cut(self.flow_to_target),
            tracks=tracks,
            visible=self.visible[row, column] & inside,
        )

    def mirrored(self) -> VideoPair:
        """Mirror the pair left to right, with its flows and tracks."""
        sign = torch.tensor([-1.0, 1.0])[:, None, None]
        return replace(
            self,
            source=self.source.flip(-1),
            target=self.target.flip(-1),
            flow_to_source=self.flow_to_source.flip(-1) * sign,
            flow_to_target=self.flow_to_target.flip(-1) * sign,
            tracks=torch.stack([self.size[1] - self.tracks[0], self.tracks[1]]).flip(-1),
            visible=self.visible.flip(-1),
        )

    def fitted(self, size: tuple[int, int]) -> VideoPair:
        """Crop the pair to the aspect ratio of `size` (height, width), and resize it to `size`: no shape changes."""
        return self if size == self.size else self.cropped(size).resized(size)


def crop_size(size: tuple[int, int], aspect: tuple[int, int]) -> tuple[int, int]:
    """Return the size of the largest crop of an image of `size` with the aspect ratio of `aspect`, (height, width)."""
    height, width = size
    if width * aspect[0] > height * aspect[1]:
        return height, max(1, round(height * aspect[1] / aspect[0]))
    return max(1, round(width * aspect[0] / aspect[1])), width


def _crop_start(side: int, kept: int, stride: float) -> int:
    """Return the first pixel of a central crop, moved by at most half a token to the border of one."""
    start = (side - kept) // 2
    aligned = round(start / stride) * stride
    return int(aligned) if aligned == int(aligned) and 0 <= aligned <= side - kept else start


@dataclass
class EditBatch:
    """A batch of edits, for training, validation and prediction. A single sample is a batch with b = 1."""

    source: Tensor  # float [b, 3, h, w] in [-1, 1]
    name: list[str]  # b names, unique within a data set
    target: Tensor | None = None  # float [b, 3, h, w] in [-1, 1]; None in prediction
    control: Tensor | None = None  # float [b, 3, h, w] in [0, 1]
    control_valid: Tensor | None = None  # bool [b]: the sample has a control image; None: all samples have one
    points: Tensor | None = None  # float [b, p, 4] as (x_src, y_src, x_tgt, y_tgt)
    points_valid: Tensor | None = None  # bool [b, p]
    tracks: Tensor | None = None  # float [b, 2, th, tw]: source position of each target token centre
    visible: Tensor | None = None  # bool [b, th, tw]
    moving: Tensor | None = None  # bool [b, 1, h, w], see `VideoPair.moving`
    latents: Tensor | None = None  # [b, 2, c, h/8, w/8] of source and target, unscaled; None: not computed yet
    embedding: Tensor | None = None  # [b, 1, d], image embedding of the source
    image_latents: Tensor | None = None  # [b, k, c, h/8, w/8] of the source with k noise augmentations
    augmentation: Tensor | None = None  # [b, k], noise level of each of `image_latents`
    full_size: list[tuple[int, int]] | None = None  # (height, width) of each user's image, in prediction
    edit: list[Any] | None = None  # in prediction: the saved `Edit` to reproduce, or None

    def __len__(self) -> int:
        return self.source.shape[0]

    def one(self, index: int) -> EditBatch:
        """Return sample `index` as a batch with b = 1."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        sample: dict[str, Any] = {k: None if v is None else v[index : index + 1] for k, v in values.items()}
        return EditBatch(**sample)

    def map(self, function) -> EditBatch:
        """Return a copy with `function` applied to every tensor."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return EditBatch(**{k: function(v) if isinstance(v, Tensor) else v for k, v in values.items()})

    def to(self, *args, **kwargs) -> EditBatch:
        """Apply `Tensor.to` to every tensor. Lightning calls this to move a batch to its device."""
        return self.map(lambda x: x.to(*args, **kwargs))

    def pin_memory(self) -> EditBatch:
        """Copy every tensor to pinned memory. Lightning's loaders call this."""
        return self.map(Tensor.pin_memory)

    @staticmethod
    def cat(batches: Sequence[EditBatch]) -> EditBatch:
        """Concatenate batches; the collate function of every loader. Shorter lists of points are padded.

        Raises:
            ValueError: a field is present in some samples and missing in others.
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
    """A batch of video clips with the same number of evenly spaced frames, to train a video prior."""

    frames: Tensor  # float [b, f, 3, h, w] in [-1, 1]
    motion: Tensor  # float [b], largest displacement from the first frame to the last, in image widths
    name: list[str]  # b names, unique within a data set

    def __len__(self) -> int:
        return len(self.frames)

    def to(self, *args, **kwargs) -> ClipBatch:
        """Apply `Tensor.to` to every tensor. Lightning calls this to move a batch to its device."""
        return ClipBatch(self.frames.to(*args, **kwargs), self.motion.to(*args, **kwargs), self.name)

    def pin_memory(self) -> ClipBatch:
        """Copy every tensor to pinned memory. Lightning's loaders call this."""
        return ClipBatch(self.frames.pin_memory(), self.motion.pin_memory(), self.name)


def _padded(points: Tensor, count: int) -> Tensor:
    """Pad points [b, p, ...] with zeros to [b, count, ...]; the added points are not valid."""
    missing = points.new_zeros((len(points), count - points.shape[1], *points.shape[2:]))
    return torch.cat([points, missing], 1)


def length(flow: Tensor) -> Tensor:
    """Compute the lengths [...] of vectors [2, ...].

    On a CPU this is many times faster than `Tensor.norm` over the first dimension.
    """
    return torch.hypot(flow[0], flow[1])


def to_unit_range(image: Tensor) -> Tensor:
    """Convert a uint8 image [..., 3, h, w] to float in [-1, 1]."""
    return image.float() / 127.5 - 1


def to_uint8(image: Tensor) -> Tensor:
    """Convert float values in [-1, 1] to uint8, rounded and clamped; the inverse of `to_unit_range`."""
    return ((image.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def token_centres(tracks: Tensor, size: tuple[int, int]) -> Tensor:
    """Compute the token centres [2, th, tw], in pixels, of a token grid that tiles `size` (height, width).

    Args:
        tracks: any tensor [..., th, tw]; only its token grid is used.
        size: (height, width) in pixels.
    """
    rows, columns = tracks.shape[-2:]
    y = (torch.arange(rows) + 0.5) * (size[0] / rows)
    x = (torch.arange(columns) + 0.5) * (size[1] / columns)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))
