"""Turn decoded frames into the images that players show: colours, pixel shape, rotation and flips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from fp_lightning.errors import InputError
from fp_lightning.media.tonemap import TO_BT709, is_hdr, to_sdr
from fp_lightning.types import Image

if TYPE_CHECKING:
    import av

Pixels = TypeVar("Pixels", NDArray[np.uint8], NDArray[np.uint16])
UNSPECIFIED, BT709, BT601, BT2020 = 2, 1, 5, 9  # colour matrices of ITU-T H.273
UNKNOWN_MATRICES = {  # of H.273, that FFmpeg's scaler does not have
    **{8: "YCgCo", 11: "SMPTE ST 2085", 12: "chroma-derived", 13: "chroma-derived", 14: "ICtCp", 15: "IPT-PQ-C2"},
    **{16: "YCgCo-Re", 17: "YCgCo-Ro"},
}


def as_shown(frame: av.VideoFrame, aspect: float, size: tuple[int, int]) -> Image:
    """Convert a frame to RGB uint8 [h, w, 3] as players show it, cropped and resized to `size` (height, width).

    Transparent pixels are shown on white. HDR becomes SDR, see `to_sdr`.

    Args:
        frame: a decoded frame. A missing colour matrix is filled in.
        aspect: width of a stored pixel divided by its height.
        size: (height, width) of the image in pixels.

    Raises:
        InputError: the frame's colour matrix is not supported.
    """
    _set_matrix(frame)
    matrix = _display_matrix(frame)
    if matrix[0, 0] == matrix[1, 1] == 0:
        aspect = 1 / aspect  # upright, pixels are as high as they are stored wide
    transfer, primaries = int(frame.color_trc), int(frame.color_primaries)
    if is_hdr(transfer) or primaries in TO_BT709:
        codes: NDArray[np.uint16] = frame.to_ndarray(format="rgb48le")  # type: ignore[assignment]
        return to_sdr(fit(_turned(codes, matrix), size, aspect), transfer, primaries)
    transparent = any(component.is_alpha for component in frame.format.components)
    image: Image = frame.to_ndarray(format="rgba" if transparent else "rgb24")  # type: ignore[assignment]
    return fit(_turned(_on_white(image) if transparent else image, matrix), size, aspect)


def fit(image: Pixels, size: tuple[int, int], aspect: float = 1.0) -> Pixels:
    """Crop the centre of an image to the aspect ratio of `size` (height, width) and resize it to that size.

    Args:
        image: 8 or 16 bits [h, w, 3].
        size: (height, width) in pixels of the result, whose pixels are square.
        aspect: width of the image's pixels divided by their height.
    """
    height, width = image.shape[:2]
    scale = min(height / size[0], width * aspect / size[1])
    h = min(height, max(1, round(size[0] * scale)))
    w = min(width, max(1, round(size[1] * scale / aspect)))
    top, left = (height - h) // 2, (width - w) // 2
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    crop = np.ascontiguousarray(image[top : top + h, left : left + w])
    return cv2.resize(crop, (size[1], size[0]), interpolation=method).astype(image.dtype, copy=False)


def _set_matrix(frame: av.VideoFrame) -> None:
    """Fill in the colour matrix of a frame that does not name one, as players do.

    That is BT.2020 for HDR, BT.709 from 1280 × 577 pixels, and BT.601 below.

    Raises:
        InputError: the frame's colour matrix is not supported.
    """
    matrix = int(frame.colorspace)
    if frame.format.is_rgb:
        return
    if matrix in UNKNOWN_MATRICES:
        raise InputError(
            f"its colour matrix {UNKNOWN_MATRICES[matrix]} is not supported; convert the video to BT.709 first"
        )
    if matrix == UNSPECIFIED:
        hdr = is_hdr(int(frame.color_trc)) or int(frame.color_primaries) == BT2020
        large = frame.width >= 1280 or frame.height > 576
        frame.colorspace = BT2020 if hdr else BT709 if large else BT601


def _display_matrix(frame: av.VideoFrame) -> NDArray[np.int8]:
    """Return the display matrix of a frame, rounded to a quarter turn and flips.

    Returns:
        [2, 2] in {-1, 0, 1}: the shown (x, y) is the stored (x, y) times this matrix.
    """
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return np.eye(2, dtype=np.int8)
    stored = np.frombuffer(bytes(data), np.int32).astype(float).reshape(3, 3)[:2, :2]
    upright = np.abs(stored * np.eye(2)).sum() >= np.abs(stored).sum() / 2
    signs = np.sign(stored * (np.eye(2) if upright else 1 - np.eye(2))).astype(np.int8)
    return signs if np.abs(signs).sum() == 2 else np.eye(2, dtype=np.int8)


def _turned(image: Pixels, matrix: NDArray[np.int8]) -> Pixels:
    """Rotate and flip an image [h, w, c] by its display matrix."""
    if not matrix[0, 0]:
        image = image.swapaxes(0, 1)
    across, down = matrix.sum(0)  # where the shown x and y run to
    return image[:: int(down), :: int(across)]


def _on_white(image: NDArray[np.uint8]) -> Image:
    """Lay an RGBA image [h, w, 4] on white."""
    colour, opacity = image[..., :3].astype(np.uint16), image[..., 3:].astype(np.uint16)
    return ((colour * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
