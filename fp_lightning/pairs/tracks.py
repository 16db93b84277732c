"""Tracks of target tokens to the source, and trackers by name. To add one, put its loader into `TRACKERS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fp_lightning.types import TRACK_STRIDE, Image


class Tracker(Protocol):
    """Tracks target tokens to the source (paper, section 3.2)."""

    def __call__(
        self, frames: Sequence[Image], flow_to_source: Tensor, flow_to_target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Find the source positions of the target's token centres.

        Args:
            frames: uint8 [h, w, 3], from the source to the target.
            flow_to_source: [2, h, w] in pixels, at target positions.
            flow_to_target: [2, h, w] in pixels, at source positions.

        Returns:
            Positions float32 [2, th, tw] in pixels, and visibility in the source, bool [th, tw].
        """


def centres(size: tuple[int, int], stride: int = 1) -> Tensor:
    """Compute the centres [2, h/stride, w/stride], in pixels, of squares of `stride` px that tile an image.

    Args:
        size: (height, width) of the image in pixels.
        stride: side of a square in pixels.
    """
    y = (torch.arange(size[0] // stride) + 0.5) * stride
    x = (torch.arange(size[1] // stride) + 0.5) * stride
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))


def sample(field: Tensor, positions: Tensor) -> Tensor:
    """Sample field [c, h, w] bilinearly at positions [2, n, m] in pixels: [c, n, m]. Pixel centres are at i + 0.5."""
    height, width = field.shape[-2:]
    grid = torch.stack([positions[0] * 2 / width - 1, positions[1] * 2 / height - 1], -1)
    return F.grid_sample(field[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0]


def step(
    flow: Tensor, back: Tensor, positions: Tensor, alpha: float = 0.01, beta: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Move positions along `flow` and check that `back` returns them.

    Forward–backward check of Sundaram et al. (2010): |f + b|² < alpha (|f|² + |b|²) + beta, where f is the
    flow at a position and b is the backward flow at its end. Positions that leave the image fail the check.

    Args:
        flow: [2, h, w] in pixels, from this frame to the other.
        back: [2, h, w] in pixels, from the other frame to this one.
        positions: [2, n, m] in pixels of this frame.
        alpha: allowed squared error relative to the squared motion.
        beta: allowed squared error in px² at 512 px width.

    Returns:
        The moved positions [2, n, m], and whether they passed the check: bool [n, m].
    """
    height, width = flow.shape[-2:]
    forward = sample(flow, positions)
    moved = positions + forward
    backward = sample(back, moved)
    allowed = alpha * (forward.square() + backward.square()).sum(0) + beta * (width / 512) ** 2
    inside = (moved >= 0).all(0) & (moved[0] < width) & (moved[1] < height)
    return moved, inside & ((forward + backward).square().sum(0) < allowed)


def tracks_from_flow(
    flow_to_source: Tensor, flow_to_target: Tensor, stride: int = TRACK_STRIDE
) -> tuple[Tensor, Tensor]:
    """Follow target token centres to the source by flow. Tokens are visible if they pass the check in `step`.

    The paper uses CoTracker-v3 instead.

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
    """`tracks_from_flow` as a tracker."""
    return lambda frames, flow_to_source, flow_to_target: tracks_from_flow(flow_to_source, flow_to_target)


def _cotracker(weights: str | None, accept_license: bool) -> Tracker:
    """CoTracker-v3 as a tracker."""
    from fp_lightning.pairs.cotracker import load_cotracker

    follow = load_cotracker(weights, accept_license=accept_license)

    def track(frames: Sequence[Image], flow_to_source: Tensor, flow_to_target: Tensor) -> tuple[Tensor, Tensor]:
        return follow(frames, centres((frames[0].shape[0], frames[0].shape[1]), TRACK_STRIDE))

    return track


TRACKERS: dict[str, Callable[[str | None, bool], Tracker]] = {"flow": _flow_tracker, "cotracker3": _cotracker}


@lru_cache(maxsize=1)
def point_tracker(name: str, weights: str | None = None, accept_license: bool = False) -> Tracker:
    """Return the tracker called `name`. It is loaded once per process.

    Args:
        name: a key of `TRACKERS`.
        weights: folder with code and weights, for trackers that need one.
        accept_license: consent to the tracker's licence, if it restricts its use.
    """
    return TRACKERS[name](weights, accept_license)
