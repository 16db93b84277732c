"""Convert wide-gamut and HDR video to the SDR colours of ordinary video, with published curves."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from fp_lightning.types import Image

PQ, HLG = 16, 18  # transfer characteristics of ITU-T H.273
BT2020, P3_D65 = 9, 12  # colour primaries of ITU-T H.273
WHITE = 203.0  # nits of diffuse white in PQ and HLG (ITU-R BT.2408)
PEAK = 1000.0  # nits of the display that HLG is shown on (ITU-R BT.2100)
KNEE = 0.7  # linear light up to which SDR shows HDR unchanged; diffuse white becomes 0.85, or 238 of 255
DISPLAY_GAMMA = 2.4  # of SDR (ITU-R BT.1886)
TO_BT709 = {  # linear RGB of these primaries → linear RGB of BT.709 (ITU-R BT.2087; SMPTE EG 432-1)
    BT2020: ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)),
    P3_D65: ((1.2249, -0.2247, 0.0), (-0.0420, 1.0419, 0.0), (-0.0197, -0.0786, 1.0979)),
}


def is_hdr(transfer: int) -> bool:
    """Whether a transfer characteristic is one of the two HDR curves."""
    return transfer in (PQ, HLG)


def to_sdr(codes: NDArray[np.uint16], transfer: int, primaries: int) -> Image:
    """Convert an image to SDR with BT.709 primaries.

    HDR up to 0.7 of diffuse white keeps its brightness; brighter light is compressed below 1, with its hue.

    Args:
        codes: RGB [h, w, 3] in 0 to 65535 for signals of 0 to 1.
        transfer: transfer characteristic by H.273. All but PQ and HLG are taken for the gamma of SDR displays.
        primaries: colour primaries by H.273. HDR without primaries is taken for BT.2020.
    """
    light = _light(transfer)[codes]
    if transfer == HLG:  # the display's own gamma, 1.2 at 1000 nits (BT.2100)
        light = light * (light @ np.array([0.2627, 0.6780, 0.0593], np.float32))[..., None] ** np.float32(0.2)
        light *= np.float32(PEAK / WHITE)
    matrix = TO_BT709.get(primaries, TO_BT709[BT2020] if is_hdr(transfer) else None)
    if matrix is not None:
        light = np.maximum(light @ np.array(matrix, np.float32).T, 0)
    if is_hdr(transfer):
        brightest = light.max(-1, keepdims=True)
        over = np.maximum(brightest - KNEE, 0)
        shown = KNEE + over * (1 - KNEE) / (over + 1 - KNEE)  # slope 1 at the knee, 1 at infinity
        light *= np.where(over > 0, shown / np.maximum(brightest, KNEE), 1)
    return (255 * np.minimum(light, 1) ** (1 / DISPLAY_GAMMA)).round().astype(np.uint8)


@cache
def _light(transfer: int) -> NDArray[np.float32]:
    """Return the linear light of each 16-bit code: for HLG of the scene, otherwise of the display with diffuse white 1.

    The curves are those of ITU-R BT.2100, tables 4 (PQ) and 5 (HLG), and BT.1886.
    """
    signal = np.linspace(0, 1, 2**16)
    if transfer == PQ:
        root = signal ** (32 / 2523)  # m2 = 2523 / 32
        linear = 10000 / WHITE * (np.maximum(root - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * root)) ** (8192 / 1305)
    elif transfer == HLG:
        a = 0.17883277
        b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
        linear = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    else:
        linear = signal**DISPLAY_GAMMA
    return linear.astype(np.float32)
