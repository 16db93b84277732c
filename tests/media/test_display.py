"""Frames come out as players show them: pixel shape, rotation, flips, colours, fields, transparency."""

import av
import cv2
import numpy as np
import pytest
from films import MATRICES, corners, flat, levels, set_matrix, write_film

from fp_lightning.errors import InputError
from fp_lightning.media.decoding import VideoError
from fp_lightning.media.display import as_shown, fit
from fp_lightning.media.tonemap import HLG, PQ, to_sdr
from fp_lightning.media.video import read_frames

SHOWN = {  # corners from the top left, row by row
    "left-right": "grey red blue grey",
    "top-bottom": "grey blue red grey",
    "half turn": "blue grey grey red",
    "quarter turn right": "grey red blue grey",
    "quarter turn left": "grey blue red grey",
    "transposed": "red grey grey blue",
    "transposed and turned": "blue grey grey red",
}
RGB = (0.8, 0.3, 0.2)
WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}  # of red and blue
LIMITED, FULL = 1, 2


def first(path, size=(64, 96)):
    return read_frames(path, [0.0], size).frames[0.0][1]


def word(colour):
    red, _, blue = colour.astype(int)
    return "red" if red > blue + 60 else "blue" if blue > red + 60 else "grey"


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_film(tmp_path_factory.mktemp("film") / "corners.mp4", [corners()] * 4)


@pytest.mark.parametrize("name", MATRICES)
def test_rotation_and_flips(film, tmp_path, name):
    path = tmp_path / "v.mp4"
    path.write_bytes(film.read_bytes())
    turned = MATRICES[name][0] == 0
    image = first(set_matrix(path, MATRICES[name]), (96, 64) if turned else (64, 96))
    assert " ".join(word(image[y, x]) for y in (3, -4) for x in (3, -4)) == SHOWN[name]


@pytest.mark.parametrize("matrix", [(0,) * 9, (0x8000, 0, 0, 0, 0x8000, 0, 0, 0, 1 << 30)], ids=["zero", "scaled"])
def test_other_matrices_leave_a_film_as_it_is(film, tmp_path, matrix):
    path = tmp_path / "v.mp4"
    path.write_bytes(film.read_bytes())
    assert np.array_equal(first(set_matrix(path, matrix)), first(film))


@pytest.mark.parametrize("turned", [False, True])
def test_pixels_that_are_not_square(tmp_path, turned):
    image = np.zeros((64, 96, 3), np.uint8)
    cv2.circle(image, (48, 32), 20, (255, 255, 255), -1)
    path = write_film(tmp_path / "v.mp4", [image] * 4, sample_aspect_ratio=2)
    if turned:
        set_matrix(path, MATRICES["quarter turn right"])
    found = first(path, (192, 64) if turned else (64, 192))[..., 0] > 128
    height, width = (np.ptp(np.nonzero(found)[axis]) + 1 for axis in (0, 1))
    assert (width, height) == pytest.approx((40, 80) if turned else (80, 40), abs=2)


@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (64, 1), (3, 500)])
def test_tiny_and_thin_images_fit(shape):
    assert fit(np.full((*shape, 3), 7, np.uint8), (64, 512)).tolist() == np.full((64, 512, 3), 7).tolist()


@pytest.mark.parametrize("side", [1, 37])
def test_tiny_and_odd_films(tmp_path, side):
    path = write_film(
        tmp_path / "v.mkv", levels(2, (side, side), 200), codec="ffv1", pix_fmt="bgr0", options={"crf": ""}
    )
    assert (read_frames(path, [0.1], (64, 96)).frames[0.1][1] == 200).all()


def codes(matrix, colour_range):
    red, blue = WEIGHTS[matrix]
    y = red * RGB[0] + (1 - red - blue) * RGB[1] + blue * RGB[2]
    cb, cr = (RGB[2] - y) / (2 - 2 * blue), (RGB[0] - y) / (2 - 2 * red)
    values = (16 + 219 * y, 128 + 224 * cb, 128 + 224 * cr)
    return tuple(map(round, values if colour_range == LIMITED else (255 * y, 128 + 255 * cb, 128 + 255 * cr)))


@pytest.mark.parametrize("colour_range", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", WEIGHTS)
def test_colour_matrices_and_ranges(tmp_path, matrix, colour_range):
    frames = [flat(codes(matrix, colour_range))] * 2
    path = write_film(tmp_path / "v.mkv", frames, colorspace=matrix, color_range=colour_range)
    assert first(path).mean((0, 1)) == pytest.approx([255 * c for c in RGB], abs=2.5)


@pytest.mark.parametrize(("size", "matrix"), [((480, 854), 5), ((720, 1280), 1)])
def test_an_untagged_matrix_is_that_of_its_resolution(tmp_path, size, matrix):
    path = write_film(tmp_path / "v.mkv", [flat(codes(matrix, LIMITED), size=size)] * 2)
    assert first(path).mean((0, 1)) == pytest.approx([255 * c for c in RGB], abs=2.5)


def test_an_unknown_matrix_is_told(tmp_path):
    path = write_film(tmp_path / "v.mkv", [flat((90, 128, 128))] * 2, colorspace=14)
    with pytest.raises(VideoError, match=r"v\.mkv cannot be read: its colour matrix ICtCp .* convert the video"):
        first(path)


@pytest.mark.parametrize(("transfer", "white"), [(PQ, 0.58), (HLG, 0.75)], ids=["PQ", "HLG"])
@pytest.mark.parametrize("matrix", [2, 9], ids=["untagged", "BT.2020"])
def test_diffuse_white_of_hdr_is_nearly_white(tmp_path, transfer, white, matrix):
    frames = [flat((round(64 + 876 * white), 512, 512), "yuv420p10le")] * 2
    tags = {"color_trc": transfer, "color_primaries": 9, "colorspace": matrix}
    image = first(write_film(tmp_path / "v.mkv", frames, pix_fmt="yuv420p10le", **tags))
    assert image.mean() == pytest.approx(238, abs=2)
    assert np.ptp(image) <= 1


def greys(transfer, primaries=9):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)
    return to_sdr(np.broadcast_to(ramp[None, :, None], (1, 256, 3)), transfer, primaries)[0].astype(int)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_tone_mapping_keeps_grey_and_order(transfer):
    ramp = greys(transfer)
    assert (np.diff(ramp[:, 0]) >= 0).all()
    assert np.ptp(ramp, axis=1).max() <= 1
    assert ramp[0, 0] == 0
    assert ramp[-1, 0] > 250


def test_known_values_of_the_hdr_curves():
    """BT.2100: PQ 0.508 is 100 nits; HLG 0.5 is 1/12 of the scene's peak, shown at 1000 · (1/12)^1.2 nits."""
    for transfer, signal, nits in ((PQ, 0.5081, 100), (HLG, 0.5, 1000 * (1 / 12) ** 1.2)):
        code = np.full((1, 1, 3), round(65535 * signal), np.uint16)
        assert to_sdr(code, transfer, 9).mean() == pytest.approx(255 * (nits / 203) ** (1 / 2.4), abs=1)


def test_wide_gamut_red_is_redder_than_that_of_ordinary_video():
    red = np.array([[[40000, 10000, 10000]]], np.uint16)
    wide, ordinary = (to_sdr(red, 1, primaries)[0, 0].astype(int) for primaries in (9, 1))
    assert ordinary.tolist() == [156, 39, 39]
    assert wide[0] > 180
    assert wide[1] < 30


def test_interlaced_frames_lose_their_combs(tmp_path):
    frames = []
    for i in range(12):
        image = np.full((64, 96, 3), 60, np.uint8)
        for field in range(2):
            x = 4 + 6 * i + 3 * field
            image[field::2, x : x + 12] = 230
        frames.append(image)
    path = write_film(tmp_path / "v.mp4", frames, options={"x264-params": "tff=1", "flags": "+ildct+ilme"})
    clip = read_frames(path, [i / 8 for i in range(12)], (64, 96)).frames
    assert [time for time, _ in clip.values()] == pytest.approx([i / 8 for i in range(12)])
    for i, (_, image) in enumerate(clip.values()):
        rows = image[20:44, :, 0].astype(int)
        assert np.abs(np.diff(rows, axis=0)).mean() < 4  # 15 with combs
        shown = np.nonzero(rows.mean(0) > 150)[0]
        assert shown.mean() == pytest.approx(4 + 6 * i + 6, abs=2.5)


def test_rotated_interlaced_frames_are_turned(tmp_path):
    options = {"x264-params": "tff=1", "flags": "+ildct+ilme"}
    path = write_film(tmp_path / "v.mp4", [corners()] * 4, options=options)
    image = first(set_matrix(path, MATRICES["quarter turn right"]), (96, 64))
    assert " ".join(word(image[y, x]) for y in (3, -4) for x in (3, -4)) == SHOWN["quarter turn right"]


def test_transparent_pixels_are_white():
    image = np.zeros((4, 4, 4), np.uint8)
    image[:, 2:] = (10, 20, 30, 255)
    shown = as_shown(av.VideoFrame.from_ndarray(image, format="rgba"), 1.0, (4, 4))
    assert shown[0].tolist() == [[255] * 3] * 2 + [[10, 20, 30]] * 2


def test_an_unsupported_matrix_names_a_remedy():
    frame = flat((90, 128, 128))
    frame.colorspace = 8
    with pytest.raises(InputError, match=r"YCgCo is not supported; convert"):
        as_shown(frame, 1.0, (64, 96))
