"""Where each target token comes from, and whether it can be seen there. Add a tracker's loader to `TRACKERS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fp_lightning.types import TRACK_STRIDE, Image


class Tracker(Protocol):
    def __call__(
        self, frames: Sequence[Image], flow_to_source: Tensor, flow_to_target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Source positions [2, th, tw] in pixels of the target's token centres, and whether they are seen there."""


def centres(size: tuple[int, int], stride: int = 1) -> Tensor:
    """Positions [2, h/stride, w/stride] in pixels of the centres of squares of `stride` px that tile `size`."""
    y = (torch.arange(size[0] // stride) + 0.5) * stride
    x = (torch.arange(size[1] // stride) + 0.5) * stride
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))


def sample(field: Tensor, positions: Tensor) -> Tensor:
    """Bilinear values [c, n, m] of field [c, h, w] at positions [2, n, m] in pixels; pixel centres are at i + 0.5."""
    height, width = field.shape[-2:]
    grid = torch.stack([positions[0] * 2 / width - 1, positions[1] * 2 / height - 1], -1)
    return F.grid_sample(field[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0]


def step(
    flow: Tensor, back: Tensor, positions: Tensor, alpha: float = 0.01, beta: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Positions [2, n, m] moved along `flow`, and whether the way `back` leads home: bool [n, m].

    Forward–backward check of Sundaram et al. (2010): |f + b|² < alpha (|f|² + |b|²) + beta, with f the
    flow at a position and b the flow back from where it leads. What leaves the image does not come home.

    Args:
        flow: [2, h, w] in pixels, where `positions` lie.
        back: [2, h, w] in pixels, where they lead.
        positions: [2, n, m] in pixels.
        alpha: allowed squared error relative to the squared motion.
        beta: allowed squared error in px² at 512 px width.
    """
    height, width = flow.shape[-2:]
    there = sample(flow, positions)
    moved = positions + there
    home = sample(back, moved)
    allowed = alpha * (there.square() + home.square()).sum(0) + beta * (width / 512) ** 2
    inside = (moved >= 0).all(0) & (moved[0] < width) & (moved[1] < height)
    return moved, inside & ((there + home).square().sum(0) < allowed)


def tracks_from_flow(
    flow_to_source: Tensor, flow_to_target: Tensor, stride: int = TRACK_STRIDE
) -> tuple[Tensor, Tensor]:
    """Follows target token centres to the source; visible where the way back leads home. The paper uses CoTracker-v3.

    Args:
        flow_to_source: [2, h, w] in pixels, at target positions.
        flow_to_target: [2, h, w] in pixels, at source positions.
        stride: pixels per token; h and w are multiples of it.

    Returns:
        Source positions float32 [2, h/stride, w/stride] in pixels, and visibility bool [h/stride, w/stride].
    """
    height, width = flow_to_source.shape[-2:]
    return step(flow_to_source, flow_to_target, centres((height, width), stride))


def _flow_tracker(weights: str | None, accept_license: bool) -> Tracker:
    return lambda frames, flow_to_source, flow_to_target: tracks_from_flow(flow_to_source, flow_to_target)


def _cotracker(weights: str | None, accept_license: bool) -> Tracker:
    from fp_lightning.pairs.cotracker import load_cotracker

    follow = load_cotracker(weights, accept_license=accept_license)

    def track(frames: Sequence[Image], flow_to_source: Tensor, flow_to_target: Tensor) -> tuple[Tensor, Tensor]:
        return follow(frames, centres((frames[0].shape[0], frames[0].shape[1]), TRACK_STRIDE))

    return track


TRACKERS: dict[str, Callable[[str | None, bool], Tracker]] = {"flow": _flow_tracker, "cotracker3": _cotracker}


@lru_cache(maxsize=1)
def point_tracker(name: str, weights: str | None = None, accept_license: bool = False) -> Tracker:
    """The tracker of that name, loaded once a process."""
    return TRACKERS[name](weights, accept_license)
