"""Images of a pair's preview: flow as colours, tracks as lines."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor

from fp_lightning.media.pictures import data_url
from fp_lightning.types import MOVING_PIXELS, MOVING_WIDTH, VideoPair, token_centres

WIDTH, QUALITY = 320, 88  # of every image on the page: pixels, and quality of WebP
TOKENS = 40  # maximum number of tokens per row whose tracks are drawn; finer grids are thinned out


@dataclass(frozen=True)
class Picture:
    """An image as the page shows it."""

    url: str
    width: int
    height: int


def picture(image: Tensor | None) -> Picture | None:
    """Prepare an image uint8 [3, h, w] for the page; None stays None."""
    if image is None:
        return None
    resized = at_page_width(image)
    return Picture(data_url(resized, lossless=False, quality=QUALITY), WIDTH, resized.shape[1])


def at_page_width(image: Tensor) -> Tensor:
    """Resize uint8 [3, h, w] to a width of `WIDTH`; smaller images are enlarged with hard pixel edges."""
    height, width = image.shape[1:]
    size = max(1, round(height * WIDTH / width)), WIDTH
    if width < WIDTH:
        return F.interpolate(image[None], size, mode="nearest-exact")[0]
    resized = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return resized.round().to(torch.uint8)


def flow_colours(flow: Tensor, full: float) -> Tensor:
    """Flow [2, h, w] → uint8 [3, h, w]: direction as hue, length as saturation, white for no motion.

    The colour wheel of the Middlebury flow benchmark (Baker et al. 2011), with evenly spaced HSV hues: right is red,
    left is cyan.

    Args:
        full: length of full saturation, in the unit of the flow; longer flow looks the same.
    """
    hue = torch.atan2(flow[1], flow[0]) * (3 / math.pi)  # in sectors of 60°
    saturation = (flow.norm(dim=0) / full).clamp(max=1)
    sector = (hue + torch.tensor([5.0, 3.0, 1.0])[:, None, None]) % 6
    missing = torch.minimum(sector, 4 - sector).clamp(0, 1)  # of red, green, blue in the pure hue
    return ((1 - saturation * missing) * 255).round().to(torch.uint8)


def colour_wheel() -> Tensor:
    """The legend of `flow_colours`, uint8 [3, WIDTH, WIDTH]: pixels have the colour of their offset from the centre."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, WIDTH), torch.linspace(-1, 1, WIDTH), indexing="ij")
    return flow_colours(torch.stack([x, y]), 1)


def tracks_image(pair: VideoPair, full: float) -> Tensor:
    """Draw tracks over the darkened target, uint8 [3, h, WIDTH].

    Each visible token that moves has a dot and a line to its position in the source, in the colour of that
    displacement. Tokens that are not visible in the source are hatched. Of a grid with more than `TOKENS` columns,
    only every second (third, …) token is drawn.

    Args:
        full: as in `flow_colours`, in pixels of the pair.
    """
    target = at_page_width(pair.target)
    height, width = target.shape[1:]
    hidden = F.interpolate((~pair.visible)[None, None].float(), (height, width), mode="nearest-exact")[0] > 0
    hatch = (torch.arange(height)[:, None] + torch.arange(width)) % 6 < 2
    canvas = torch.where(hidden & hatch, 180, target * 0.4).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    step = -(-pair.visible.shape[1] // TOKENS)
    every = (..., slice(step // 2, None, step), slice(step // 2, None, step))
    centres, sources = token_centres(pair.tracks, pair.size)[every], pair.tracks[every]
    moved = sources - centres
    drawn = pair.visible[every] & (moved.norm(dim=0) > MOVING_PIXELS * pair.size[1] / MOVING_WIDTH)
    pixels = torch.cat([centres, sources])[:, drawn] * (WIDTH / pair.size[1]) - 0.5  # in OpenCV, centres are integers
    colours = flow_colours(moved, full)[:, drawn].T.tolist()
    for (x, y, x_source, y_source), colour in zip((pixels * 16).round().int().T.tolist(), colours, strict=True):
        cv2.line(canvas, (x, y), (x_source, y_source), colour, 1, cv2.LINE_AA, shift=4)  # in 1/16 of a pixel
        cv2.circle(canvas, (x, y), 32, colour, -1, cv2.LINE_AA, shift=4)
    return torch.from_numpy(canvas).permute(2, 0, 1)
