"""The one reader: every kind of image looks as it should, and the same by every way in."""

from __future__ import annotations

import io
import logging
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from profiles import cmyk_profile, curve, grey_profile, rgb_profile

from fp_lightning.demo.uploads import Uploads
from fp_lightning.errors import InputError
from fp_lightning.evaluation.predictions import prediction
from fp_lightning.inference.arguments import list_images
from fp_lightning.media import reading
from fp_lightning.media.edits import Edit, parse_edit
from fp_lightning.media.images import region_mask, squeeze, strokes
from fp_lightning.media.reading import MAX_PIXELS, decode_image, normalised, read_image
from fp_lightning.signals.inputs import InputImage

SIZE = (48, 64)
RAMP = np.tile(np.linspace(0, 65535, 64).round().astype(np.uint16), (48, 1))


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def quarters() -> np.ndarray:
    """RGB [48, 64, 3]: the left half is dark, and its top is red."""
    pixels = np.full((*SIZE, 3), 200, np.uint8)
    pixels[:, :32] = 30
    pixels[:24, :32] = (220, 40, 40)
    return pixels


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF of entries (tag, type, count, value), little-endian, with any types."""
    body, data = struct.pack("<H", len(entries)), b""
    for tag, kind, count, value in sorted(entries):
        if len(value) > 4:
            place = struct.pack("<L", 8 + 2 + 12 * len(entries) + 4 + len(data))
            data, value = data + value, place
        body += struct.pack("<HHL", tag, kind, count) + value.ljust(4, b"\0")
    return b"Exif\0\0II*\0" + struct.pack("<L", 8) + body + struct.pack("<L", 0) + data


TURNED = (274, 3, 1, struct.pack("<H", 6))
HIDDEN = np.dstack([np.full((*SIZE, 3), (71, 112, 76), np.uint8), np.zeros(SIZE, np.uint8)])
HIDDEN[16:32, 16:48] = (255, 0, 0, 255)

# --- every way in sees the same pixels


KINDS = {
    "grey of 16 bits": encode(Image.fromarray(RAMP)),
    "grey of 16 bits, big-endian": encode(Image.frombytes("I;16B", (64, 48), RAMP.byteswap().tobytes()), "TIFF"),
    "floats": encode(Image.fromarray(RAMP.astype(np.float32) / 65535), "TIFF"),
    "transparent": encode(Image.fromarray(HIDDEN)),
    "grey with alpha": encode(Image.fromarray(HIDDEN).convert("LA")),
    "palette": encode(Image.fromarray(quarters()).quantize(8)),
    "one bit": encode(Image.fromarray(quarters()).convert("1")),
    "turned": encode(Image.fromarray(quarters()), "JPEG", exif=exif(TURNED)),
    "odd EXIF": encode(Image.fromarray(quarters()), "JPEG", exif=exif(TURNED, (282, 10, 1, struct.pack("<ll", -1, 0)))),
    "Display P3": encode(Image.fromarray(quarters()), "JPEG", icc_profile=rgb_profile()),
    "CMYK": encode(Image.fromarray(quarters()).convert("CMYK"), "JPEG"),
    "CMYK with a profile": encode(Image.fromarray(quarters()).convert("CMYK"), "JPEG", icc_profile=cmyk_profile()),
    "an animation": encode(
        Image.fromarray(quarters()), "GIF", save_all=True, append_images=[Image.new("RGB", (64, 48), "blue")]
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_in_sees_the_same(kind, tmp_path):
    data = KINDS[kind]
    path = tmp_path / "photo.png"  # the content decides
    path.write_bytes(data)
    expected = np.array(decode_image(data, "photo", MAX_PIXELS))
    size = expected.shape[:2]
    opened = Image.open(io.BytesIO(data))
    seen = {
        "predict": InputImage(path, size).resized(size).permute(1, 2, 0).numpy(),
        "evaluate": prediction(path, size).permute(1, 2, 0).numpy(),
        "the page": np.array(Uploads(tmp_path).image(str(path))),
        "the pipeline": np.array(list_images(opened)[0]),
        "a tensor": squeeze(opened, size).permute(1, 2, 0).numpy(),
        "a saved edit": np.array(parse_edit(Edit(opened, points=[[1, 1, 2, 2]]).to_bytes(), "edit").image),
    }
    for name, pixels in seen.items():
        assert np.array_equal(pixels, expected), name


def test_a_read_image_is_read_again_unchanged():
    for data in KINDS.values():
        once = normalised(Image.open(io.BytesIO(data)))
        assert normalised(once) is once and once.mode == "RGB"


# --- deep greys


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(RAMP),
        Image.frombytes("I;16B", (64, 48), RAMP.byteswap().tobytes()),
        Image.fromarray(RAMP.astype(np.int32)),
        Image.fromarray(RAMP.astype(np.float32)),
        Image.fromarray(RAMP.astype(np.float32) / 65535),
        Image.fromarray((RAMP / 257).round().astype(np.float32)),
    ],
    ids=lambda image: image.mode,
)
def test_deep_greys_are_scaled(image):
    pixels = np.array(normalised(image))
    assert np.abs(pixels - (RAMP / 257)[..., None]).max() <= 0.5


@pytest.mark.parametrize(
    "values",
    [
        np.float32([[0.5, 7.25]]),
        np.float32([[-0.5, 1]]),
        np.float32([[0, np.nan]]),
        np.float32([[0, np.inf]]),
        np.float32([[0, 70000]]),
        np.int32([[0, 200]]),
        np.int32([[-5, 60000]]),
        np.int32([[0, 70000]]),
    ],
    ids=str,
)
def test_an_unknown_range_is_refused(values):
    with pytest.raises(InputError, match=r"^mine holds .* and it is unknown which is white; save it as 16 bits$"):
        normalised(Image.fromarray(values), "mine")


def test_a_black_deep_image_is_black():
    for kind in (np.uint16, np.int32, np.float32):
        assert not np.array(normalised(Image.fromarray(np.zeros((2, 2), kind)))).any()


def test_a_transparent_level_of_a_deep_grey_is_white():
    data = encode(Image.fromarray(RAMP), transparency=int(RAMP[0, 20]))
    pixels = np.array(decode_image(data, "mine", MAX_PIXELS))
    assert (pixels[:, 20] == 255).all() and abs(int(pixels[0, 21, 0]) - RAMP[0, 21] / 257) <= 0.5


# --- transparency


@pytest.mark.parametrize("mode", ["RGBA", "LA", "La", "RGBa", "PA"])
def test_hidden_colours_are_never_shown(mode):
    image = Image.fromarray(HIDDEN)
    image = image.quantize(4).convert("PA") if mode == "PA" else image.convert("LA" if "L" in mode else "RGBA")
    image = image if image.mode == mode else image.convert(mode)
    pixels = np.array(normalised(image))
    assert (pixels[2, 2] == 255).all()
    assert pixels[20, 20, 0] == (76 if "L" in mode else 255)
    kept = normalised(image, keep_transparency=True)
    assert kept.mode == "RGBA" and kept.getpixel((2, 2))[3] == 0 and kept.getpixel((20, 20))[3] == 255


def test_a_transparent_colour_of_16_bits_is_white():
    image = Image.new("RGB", (4, 4), (156, 0, 0))  # as Pillow reads (40000, 10, 20)
    image.putpixel((0, 0), (156, 0, 1))
    image.info["transparency"] = (40000, 10, 20)
    assert normalised(image).getpixel((2, 2)) == (255, 255, 255)
    assert normalised(image).getpixel((0, 0)) == (156, 0, 1)
    assert image.info["transparency"] == (40000, 10, 20)


def test_a_saved_edit_with_hidden_colours_is_white():
    edit = Edit(Image.fromarray(HIDDEN), points=[[1, 1, 2, 2]])
    text = edit.to_bytes()
    assert parse_edit(text, "edit").image.getpixel((2, 2)) == (255, 255, 255)


# --- EXIF


@pytest.mark.parametrize(
    "entry",
    [
        (282, 10, 1, struct.pack("<ll", -1, 0)),
        (271, 5, 1, struct.pack("<LL", 1, 3)),
        (0x8769, 4, 1, struct.pack("<L", 2**31)),
        (36867, 2, 2**31, b"\0" * 4),
        (41730, 7, 1, b"\xff" * 8),
    ],
    ids=["resolution", "maker", "pointer", "count", "undefined"],
)
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_an_odd_field_costs_neither_the_photo_nor_its_orientation(entry, kind):
    data = encode(Image.fromarray(quarters()), kind, exif=exif(TURNED, entry))
    image = decode_image(data, "mine", MAX_PIXELS)
    assert image.size == (48, 64)
    assert image.getpixel((40, 10))[0] > 150 > image.getpixel((10, 10))[0]  # red, which was top left, is top right


@pytest.mark.parametrize("error", [struct.error, TypeError, AttributeError, OverflowError, ZeroDivisionError])
def test_unreadable_exif_is_told_and_the_photo_read(error, monkeypatch, caplog):
    def fail(self):
        raise error("broken")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    image = decode_image(encode(Image.fromarray(quarters()), "JPEG"), "mine", MAX_PIXELS)
    assert image.size == (64, 48)
    assert f"mine has damaged EXIF ({error.__name__}): it is read without rotation" in caplog.text


def test_cut_exif_is_told_and_the_photo_read(caplog):
    data = encode(Image.fromarray(quarters()), "PNG", exif=exif(TURNED)[:9])
    assert decode_image(data, "mine", MAX_PIXELS).size == (64, 48)
    assert "mine has damaged EXIF" in caplog.text


@pytest.mark.parametrize("turn", range(1, 9))
def test_all_orientations_turn_upright(turn):
    image = Image.fromarray(quarters())
    image.getexif()[274] = turn
    undo = reading.TURNS.get({6: 8, 8: 6}.get(turn, turn))
    upright = normalised(image)
    assert np.array_equal(np.array(upright if undo is None else upright.transpose(undo)), quarters())
    assert upright.size == ((64, 48) if turn < 5 else (48, 64))


@pytest.mark.parametrize("value", [9, 300, "6"])
def test_an_orientation_that_is_none_is_told(value, caplog):
    image = Image.fromarray(quarters())
    image.getexif()[274] = value
    assert normalised(image, "mine").size == (64, 48)
    assert f"mine has the EXIF orientation {value}, which is none" in caplog.text


# --- colour profiles


def p3_to_srgb(colour: tuple[int, int, int]) -> np.ndarray:
    """Display P3 → sRGB by the matrix of CSS Color 4, in levels."""
    encoded = np.array(colour) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    matrix = [[1.2249401, -0.2249404, 0], [-0.0420569, 1.0420571, 0], [-0.0196376, -0.0786361, 1.0982735]]
    linear = np.array(matrix) @ linear
    return 255 * np.where(linear <= 0.0031308, linear * 12.92, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("colour", [(200, 100, 100), (90, 160, 90), (80, 90, 170), (128, 128, 128)])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_display_p3_becomes_srgb(colour, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(Image.new("RGB", (8, 8), colour), kind, icc_profile=rgb_profile(), **options)
    pixel = decode_image(data, "mine", MAX_PIXELS).getpixel((4, 4))
    assert np.abs(np.array(pixel) - p3_to_srgb(colour)).max() <= 1.5


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA"])
def test_a_profile_applies_in_every_mode(mode):
    """A linear tone curve brightens a grey of 128 to 188."""
    data = encode(
        Image.new("RGBA", (8, 8), (128, 128, 128, 255)).convert(mode), icc_profile=rgb_profile(curve(1.0, form=0))
    )
    assert np.abs(np.array(decode_image(data, "mine", MAX_PIXELS)).astype(int) - 188).max() <= 1


@pytest.mark.parametrize("image", [Image.new("L", (8, 8), 128), Image.fromarray(np.full((8, 8), 128 * 257, np.uint16))])
def test_a_grey_profile_applies_to_greys(image):
    data = encode(image, icc_profile=grey_profile(1.0))
    assert np.abs(np.array(decode_image(data, "mine", MAX_PIXELS)).astype(int) - 188).max() <= 1


def test_a_cmyk_profile_decides_what_an_ink_is():
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    plain, profiled = (
        decode_image(encode(cyan, "JPEG", quality=100, **options), "mine", MAX_PIXELS).getpixel((4, 4))
        for options in ({}, {"icc_profile": cmyk_profile()})
    )
    assert plain[0] < 5 and plain[1] > 250
    assert max(profiled) - min(profiled) <= 2 and 175 < profiled[0] < 195  # a lightness of 75 %


def test_an_srgb_profile_changes_no_bit():
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(np.array(decode_image(encode(Image.fromarray(pixels), icc_profile=srgb), "a", 10**6)), pixels)


@pytest.mark.parametrize(
    "profile",
    [b"no profile", rgb_profile()[:200], grey_profile(1.0), cmyk_profile()],
    ids=["text", "cut", "grey", "cmyk"],
)
def test_a_profile_that_does_not_fit_is_told_and_the_photo_read(profile, caplog):
    data = encode(Image.fromarray(quarters()), icc_profile=profile)
    assert np.array_equal(np.array(decode_image(data, "mine", MAX_PIXELS)), quarters())
    assert "mine has a colour profile that cannot be used" in caplog.text


def test_a_warning_about_a_file_is_logged_once(tmp_path, caplog):
    path = tmp_path / "photo.png"
    path.write_bytes(encode(Image.fromarray(quarters()), icc_profile=b"no profile"))
    for _ in range(3):
        read_image(path)
    assert caplog.text.count("colour profile") == 1


# --- formats


def test_avif_is_read():
    if "AVIF" not in reading.formats():
        pytest.skip("this Pillow has no AVIF")
    image = decode_image(encode(Image.fromarray(quarters()), "AVIF", quality=95), "mine", MAX_PIXELS)
    assert np.abs(np.array(image).astype(int) - quarters())[4:-4, 36:].max() < 12


def test_heic_without_its_library_names_the_remedy(monkeypatch):
    monkeypatch.setattr(reading, "formats", lambda: ("PNG", "JPEG"))
    data = struct.pack(">I", 24) + b"ftypheic" + bytes(12)
    with pytest.raises(InputError, match=r"mine is a photo in HEIF format.*pip install 'fp-lightning\[heif\]'"):
        decode_image(data, "mine", MAX_PIXELS)
    assert reading.remedy(".HEIC") == "pip install 'fp-lightning[heif]'" and reading.remedy(".png") is None


def test_a_photo_that_breaks_off_is_one_line_in_the_pipeline():
    data = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)), "JPEG")
    with pytest.raises(InputError, match=r"^the image is not an image that can be read .*save it again") as caught:
        list_images(Image.open(io.BytesIO(data[: len(data) // 2])))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.png", "."])
def test_an_unreadable_path_is_one_line(name, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_image(Path(tmp_path / name))


# --- sketches and regions


def sketch(ground, ink, mode: str = "RGB") -> Image.Image:
    image = Image.new(mode, (64, 48), ground)
    image.paste(ink, (30, 8, 32, 40))
    return image


EXPECTED = np.zeros(SIZE, bool)
EXPECTED[8:40, 30:32] = True
COLOURS = {
    "red on black": ((0, 0, 0), (255, 0, 0)),
    "blue on black": ((0, 0, 0), (0, 0, 255)),
    "dark green on black": ((0, 0, 0), (0, 100, 0)),
    "yellow on white": ((255, 255, 255), (255, 255, 0)),
    "grey on white": ((255, 255, 255), (150, 150, 150)),
    "black on grey": ((128, 128, 128), (0, 0, 0)),
    "white on grey": ((128, 128, 128), (255, 255, 255)),
    "red on green": ((0, 255, 0), (255, 0, 0)),
}


@pytest.mark.parametrize("colours", COLOURS.values(), ids=COLOURS)
def test_a_stroke_is_what_differs_from_the_ground(colours):
    found = strokes(sketch(*colours), SIZE, SIZE)
    assert np.array_equal(found[0].numpy() > 0, EXPECTED)


def test_strokes_of_several_colours_count():
    image = sketch((255, 255, 255), (0, 0, 0))
    image.paste((255, 255, 0), (10, 8, 12, 40))
    assert strokes(image, SIZE, SIZE)[0].sum() == 2 * EXPECTED.sum()


@pytest.mark.parametrize("colours", [((0, 0, 0), (255, 0, 0)), ((255, 255, 255), (0, 0, 0))])
def test_a_sketch_in_jpeg_has_its_strokes_and_no_others(colours):
    data = encode(sketch(*colours), "JPEG", quality=75, icc_profile=rgb_profile())
    found = strokes(decode_image(data, "mine", MAX_PIXELS), SIZE, SIZE)[0].numpy() > 0
    assert found[EXPECTED].all() and np.argwhere(found)[:, 1].min() >= 28 and np.argwhere(found)[:, 1].max() <= 33


@pytest.mark.parametrize(
    "image",
    [
        Image.new("L", (64, 48)),
        Image.new("RGB", (64, 48), "white"),
        Image.new("RGBA", (64, 48)),
        Image.fromarray(np.random.default_rng(0).integers(0, 20, (*SIZE, 3), np.uint8)),
    ],
    ids=["black", "white", "transparent", "noise"],
)
def test_an_empty_sketch_is_told(image, caplog):
    with caplog.at_level(logging.WARNING):
        assert strokes(image, SIZE, SIZE, "mine").sum() == 0
    assert "mine is empty: no stroke" in caplog.text


@pytest.mark.parametrize(
    "image",
    [
        sketch((0, 0, 0), (255, 0, 0)),
        sketch(0, 255, "L"),
        sketch((9, 9, 9, 0), (0, 0, 0, 255), "RGBA"),
        sketch((0, 0, 0, 255), (0, 0, 255, 255), "RGBA"),
    ],
    ids=["red", "grey", "opaque", "blue without transparency"],
)
def test_a_region_is_bright_or_opaque(image):
    assert np.array_equal(region_mask(image, SIZE)[0].numpy(), EXPECTED)


def test_an_empty_region_is_told(caplog):
    assert not region_mask(Image.new("RGB", (64, 48)), SIZE, "mine").any()
    assert "mine is empty" in caplog.text
