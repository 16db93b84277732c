"""Turns a drawing of the page into the model's signals, with the code that makes signals for training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fp_lightning.errors import InputError
from fp_lightning.signals.cutouts import Piece, cut_and_paste, filled

MOST = 100_000  # positions of a drawing; an hour of brushing has some thousands
Signals = dict[str, Any]


def signals_of(drawing: Any, photo: Image.Image) -> Signals:
    """Return the pipeline's arguments "sketch", "coarse", "points" and "region" for a drawing.

    Args:
        drawing: the document that static/canvas/history.js describes, untrusted; positions in pixels of the photo.
        photo: RGB.

    Raises:
        InputError: the drawing is malformed, or holds nothing to edit by.
    """
    if not isinstance(drawing, dict):
        raise InputError("no drawing was received; reload the page")
    lists = {name: drawing.get(name) or [] for name in ("strokes", "arrows", "pieces", "region")}
    if wrong := [name for name, value in lists.items() if not isinstance(value, list)]:
        raise InputError(f"{wrong[0]} in the drawing must be a list; reload the page")
    size = (photo.height, photo.width)
    signals: Signals = {}
    sketch = _sketch(lists["strokes"], size)
    if sketch is not None:
        signals["sketch"] = sketch
    if lists["arrows"]:
        signals["points"] = [_numbers(arrow, 4, "an arrow") for arrow in _few(lists["arrows"])]
    pieces = [_piece(piece) for piece in _few(lists["pieces"])]
    if any(_changes(piece) for piece in pieces):
        signals["coarse"] = Image.fromarray(cut_and_paste(np.array(photo), pieces))
    if not signals:
        raise InputError("draw first: add a stroke, an arrow, or a cut-out that is moved")
    if lists["region"]:
        mask = np.any([filled(_line(shape), size) for shape in _few(lists["region"])], axis=0)
        signals["region"] = Image.fromarray(mask.astype(np.uint8) * 255)
    return signals


def outline(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the longest outline of a mask [h, w]: positions [n, 2] in pixels, to 0.8 of a pixel."""
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.approxPolyDP(max(lines, key=len), 0.8, True)[:, 0] + 0.5, np.float64)


def _sketch(strokes: Sequence[Any], size: tuple[int, int]) -> Image.Image | None:
    """Paint strokes and erasures, of any colour, on a transparent image; None if nothing is left."""
    alpha = np.zeros(size, np.uint8)
    for stroke in _few(strokes):
        if not isinstance(stroke, dict):
            raise InputError("a stroke in the drawing is malformed; reload the page")
        line, (width,) = _line(stroke.get("points")), _numbers([stroke.get("size")], 1, "the size of a stroke")
        if not 0 < width <= max(size):
            raise InputError(f"the size of a stroke is {width:g} px; it must be above 0 and within the photo")
        shift = 4  # fractional bits
        vertices = np.rint((line - 0.5) * (1 << shift)).astype(np.int32)
        ink = 0 if stroke.get("erase") else 255
        cv2.polylines(alpha, [vertices], False, ink, max(1, round(width)), cv2.LINE_8, shift)
        if len(line) == 1:
            cv2.circle(alpha, vertices[0].tolist(), round(width / 2 * (1 << shift)), ink, cv2.FILLED, cv2.LINE_8, shift)
    if not alpha.any():
        return None
    white = np.full(size, 255, np.uint8)
    return Image.fromarray(np.dstack([white, white, white, alpha]))


def _piece(cut: Any) -> Piece:
    """A cut-out with its motion about the centre of its bounding box."""
    if not isinstance(cut, dict):
        raise InputError("a cut-out in the drawing is malformed; reload the page")
    outline, copied = _line(cut.get("outline")), bool(cut.get("copied"))
    if cut.get("gone"):
        return Piece(outline, None, copied)
    dx, dy = _numbers(cut.get("move", [0, 0]), 2, "the move of a cut-out")
    angle, scale = _numbers([cut.get("angle", 0), cut.get("scale", 1)], 2, "the turn of a cut-out")
    if not 0.01 <= scale <= 100:
        raise InputError(f"a cut-out is scaled by {scale:g}; it must be between 0.01 and 100")
    cos, sin, flip = math.cos(angle) * scale, math.sin(angle) * scale, -1 if cut.get("mirror") else 1
    turn = np.array([[cos * flip, -sin], [sin * flip, cos]])
    centre = (outline.min(0) + outline.max(0)) / 2
    return Piece(outline, np.column_stack([turn, centre - turn @ centre + np.array([dx, dy])]), copied)


def _changes(piece: Piece) -> bool:
    return piece.motion is None or not np.allclose(piece.motion, np.eye(2, 3))


def _few(items: Sequence[Any]) -> Sequence[Any]:
    if len(items) > MOST:
        raise InputError(f"the drawing has {len(items)} parts, more than {MOST}; clear some")
    return items


def _line(points: Any) -> NDArray[np.float64]:
    """Positions [n, 2]."""
    if not isinstance(points, list) or not points:
        raise InputError("a line in the drawing has no points; reload the page")
    return np.array([_numbers(point, 2, "a point") for point in _few(points)])


def _numbers(values: Any, count: int, name: str) -> list[float]:
    usable = isinstance(values, list) and len(values) == count
    if not usable or any(type(v) not in (int, float) or not abs(v) < 1e6 for v in values):
        raise InputError(f"{name} in the drawing is {str(values)[:40]}, not {count} numbers; reload the page")
    return [float(value) for value in values]
