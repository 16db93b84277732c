"""Photos, drawings and uploads that several tests use."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from fp_lightning.demo.drawing import signals_of
from fp_lightning.media.edits import Edit

SQUARE = [[10, 10], [20, 10], [20, 20], [10, 20]]
STROKE = {"points": [[5, 5], [50, 5]], "size": 3, "erase": False, "colour": "#ff0000"}
FAST = {"num_inference_steps": 2, "guidance_scale": 1.0}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def an_edit(photo: Image.Image, **settings) -> Edit:
    drawing = {"arrows": [[5, 5, 20, 20]]}
    return Edit(photo, **signals_of(drawing, photo), settings=settings, drawing=drawing)


def bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """A PNG of 3 MB whose pixels would take 2.7 GB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + 3 * width)) for _ in range(height // 100)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def rotated_jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(picture(40, 20), "JPEG", exif=exif)


def transparent() -> Image.Image:
    image = Image.new("RGBA", (40, 30), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 10, 10))
    return image


ACCEPTED = {
    "cmyk.jpg": (encode(Image.new("CMYK", (40, 30), (0, 255, 255, 0)), "JPEG"), (40, 30)),
    "16bit.png": (encode(Image.fromarray(np.full((30, 40), 0x8000, np.uint16))), (40, 30)),
    "animated.gif": (
        encode(
            Image.new("RGB", (40, 30), "red"), "GIF", save_all=True, append_images=[Image.new("RGB", (40, 30), "blue")]
        ),
        (40, 30),
    ),
    "transparent.png": (encode(transparent()), (40, 30)),
    "one.png": (encode(Image.new("RGB", (1, 1), "green")), (1, 1)),
    "turned.jpg": (rotated_jpeg(), (20, 40)),
    "palette.png": (encode(Image.new("P", (40, 30), 3)), (40, 30)),
    "really.txt": (encode(picture(40, 30)), (40, 30)),
    "name; rm -rf $(x) ‮gnp.png": (encode(picture(40, 30)), (40, 30)),
}
REFUSED = {
    "empty.png": (b"", "is empty .0 bytes."),
    "text.png": (b"hello, I am text", "is not an image that can be read"),
    "bomb.png": (bomb(), "has more than 40 million pixels; make it smaller"),
    "cut.png": (encode(picture(400, 300))[:2000], "is not an image that can be read"),
    "vector.svg": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "is not an image"),
    "code.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "is not an image"),
    "other.json": (b'{"a": 1}', "is not an image|not a saved edit"),
}
