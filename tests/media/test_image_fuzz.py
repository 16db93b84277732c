"""Damaged images are read, or the reason is one line that names them.

`FP_LIGHTNING_FUZZ=500 pytest tests/media/test_image_fuzz.py -s` tries 500 and prints the outcomes.
"""

import io
from collections import Counter

import numpy as np
import pytest
from damage import COUNT, damaged
from PIL import Image, ImageCms

from fp_lightning.errors import InputError
from fp_lightning.media.reading import decode_image, formats, read_image

MOST = 4_000_000  # pixels, for larger ones only take longer


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def originals() -> list[tuple[str, bytes]]:
    """Images in many formats and modes, with profiles, EXIF, transparency and animation."""
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 255, (24, 36, 3), np.uint8))
    deep = Image.fromarray(rng.integers(0, 65535, (24, 36), np.uint16))
    floats = Image.fromarray(rng.random((24, 36), np.float32))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[274], exif[306] = 6, "2026:01:01 10:00:00"
    transparent = colours.copy()
    transparent.putalpha(Image.linear_gradient("L").resize(colours.size))
    found = [
        ("a.png", encoded(colours, "PNG", icc_profile=profile)),
        ("b.png", encoded(transparent, "PNG", exif=exif)),
        ("c.png", encoded(deep, "PNG")),
        ("d.png", encoded(colours.quantize(16), "PNG", transparency=3)),
        ("e.jpg", encoded(colours, "JPEG", exif=exif, icc_profile=profile)),
        ("f.jpg", encoded(colours.convert("CMYK"), "JPEG", progressive=True)),
        ("g.gif", encoded(colours.convert("P"), "GIF", save_all=True, append_images=[deep.convert("L")])),
        ("h.bmp", encoded(colours, "BMP")),
        ("i.tif", encoded(deep, "TIFF", compression="tiff_lzw")),
        ("j.tif", encoded(floats, "TIFF")),
        ("k.tif", encoded(colours.convert("CMYK"), "TIFF", compression="tiff_deflate", exif=exif)),
        ("l.webp", encoded(transparent, "WEBP", exif=exif, icc_profile=profile)),
        ("m.webp", encoded(colours, "WEBP", lossless=True)),
    ]
    return found + [(f"n.{kind.lower()}", encoded(colours, kind)) for kind in ("AVIF", "HEIF") if kind in formats()]


def outcome(data: bytes, path, keep: bool) -> str:
    """Read a file and its bytes alike."""
    path.write_bytes(data)
    try:
        image = decode_image(data, path.name, MOST, keep)
    except InputError as error:
        reason = str(error)
        if "more than" not in reason:
            with pytest.raises(InputError):
                read_image(path, keep)
        return "reason" if path.name in reason and "\n" not in reason else f"not one line: {reason}"
    assert image.mode in (("RGB", "RGBA") if keep else ("RGB",)) and not image.info
    assert np.array_equal(np.asarray(image), np.asarray(read_image(path, keep)))
    return "read"


def test_damaged_images_are_read_or_a_reason_is_told(originals, tmp_path):
    outcomes: Counter[str] = Counter()
    for seed in range(COUNT):
        rng = np.random.default_rng(seed)
        name, data = originals[seed % len(originals)]
        try:
            outcomes[outcome(damaged(data, rng), tmp_path / name, bool(rng.integers(2)))] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed} ({name}): {type(error).__name__}: {error}") from error
    print(dict(outcomes))
    assert outcomes.keys() == {"read", "reason"}
    assert {path.name for path in tmp_path.iterdir()} <= {name for name, _ in originals}


def test_undamaged_originals_are_read(originals, tmp_path):
    for name, data in originals:
        assert outcome(data, tmp_path / name, False) == "read"
