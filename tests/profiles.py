"""Small ICC profiles, written by hand: Display P3 and linear RGB, grey of any gamma, and one for CMYK."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import product

P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))  # XYZ (D50) of R, G, B


def profile(kind: bytes, space: bytes, connection: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    """A version 4 profile; `tags` are added to its name and white point."""
    text = b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", 8, 28) + "Test".encode("utf-16-be")
    every = {b"desc": text, b"cprt": text, b"wtpt": xyz((0.9642, 1, 0.8249)), **tags}
    table, data, start = b"", b"", 128 + 4 + 12 * len(every)
    for name, value in every.items():
        padded = value + b"\0" * (-len(value) % 4)
        table += struct.pack(">4sII", name, start + len(data), len(value))
        data += padded
    body = struct.pack(">I", len(every)) + table + data
    head = struct.pack(">I4sI4s4s4s", 128 + len(body), b"test", 0x04000000, kind, space, connection)
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head + bytes(48) + body


def xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def curve(*parameters: float, form: int) -> bytes:
    numbers = [round(value * 65536) for value in parameters]
    return b"para\0\0\0\0" + struct.pack(f">HH{len(numbers)}i", form, 0, *numbers)


SRGB_CURVE = curve(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045, form=3)


def rgb_profile(tone: bytes = SRGB_CURVE) -> bytes:
    """Display P3, or its primaries with another tone curve."""
    primaries = {name: xyz(values) for name, values in zip((b"rXYZ", b"gXYZ", b"bXYZ"), P3, strict=True)}
    return profile(b"mntr", b"RGB ", b"XYZ ", primaries | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), tone))


def grey_profile(gamma: float) -> bytes:
    return profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve(gamma, form=0)})


def cmyk_profile() -> bytes:
    """Every ink darkens by a quarter and none has a hue: lightness is 1 - (C + M + Y + K) / 4."""
    ramp = bytes(range(256))
    grid = b"".join(bytes((round(255 * (1 - sum(inks) / 4)), 128, 128)) for inks in product((0, 1), repeat=4))
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + ramp * 4 + grid + ramp * 3
    return profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table, b"A2B1": table, b"A2B2": table})
