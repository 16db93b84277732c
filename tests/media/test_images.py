"""A user's images and signals: sizes, forms, and what unusable ones are told."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from fp_lightning.errors import InputError
from fp_lightning.media.images import coarse_image, drags, squeeze, strokes

PHOTO, SIZE = (40, 60), (32, 64)  # (height, width) of the photo and of the network


def photo() -> Image.Image:
    return Image.new("RGB", (60, 40), (200, 0, 0))


# --- drags


def test_drags_scale_with_each_axis():
    scaled = drags([[6, 4, 30, 20]], PHOTO, SIZE)
    assert scaled.dtype == torch.float32
    torch.testing.assert_close(scaled, torch.tensor([[6.4, 3.2, 32.0, 16.0]]))


def test_rows_of_two_are_handles_and_targets_in_turn():
    rows = [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert torch.equal(drags(rows, PHOTO, PHOTO), torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]))


@pytest.mark.parametrize("kind", [np.array, torch.tensor, tuple, list])
def test_drags_come_in_any_array(kind):
    assert drags(kind([[1.0, 2.0, 3.0, 4.0]]), PHOTO, PHOTO).tolist() == [[1, 2, 3, 4]]


def test_the_far_border_counts_to_the_last_pixel():
    x, y = drags([[0, 0, 60, 40]], PHOTO, SIZE)[0, 2:]
    assert x.floor() == 63 and y.floor() == 31


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "5 is not a list of points"),
        ([], "there are no points"),
        ([[1, 2, 3, 4], [1, 2, 3]], r"row 2 is \[1, 2, 3\]"),
        ([[1, 2, 3, "4"]], r"row 1 is \[1, 2, 3, '4'\]"),
        ([[1, 2, None, 4]], "row 1 is"),
        ([[1, 2, [3], 4]], "row 1 is"),
        ([1, 2, 3, 4], "row 1 is 1"),
        ([[1, 2, float("nan"), 4]], r"row 1 is \[1, 2, nan, 4\]"),
        ([[1, 2, 3, float("inf")]], "row 1 is"),
        ([[1, 2, 3, 4], [1, 2]], "mixed"),
        ([[1, 2], [3, 4], [5, 6]], "the last of 3 rows of two is a handle without a target"),
        ([[1, 2, 3, 4], [-1, 2, 3, 4]], r"point 2 starts at \(-1, 2\), outside of its image, which is 60x40"),
        ([[1, 2, 3, 40.5]], r"point 1 ends at \(3, 40\.5\)"),
        ([[1, 2], [3, 4], [5, 6], [61, 8]], r"point 2 ends at \(61, 8\)"),
    ],
)
def test_unusable_drags_are_named_on_one_line(given, message):
    with pytest.raises(InputError, match=f"^mine: .*{message}") as caught:
        drags(given, PHOTO, SIZE, "mine")
    assert "\n" not in str(caught.value)


# --- coarse edits


def test_a_coarse_edit_is_resized_to_the_network():
    edited = coarse_image(Image.new("RGB", (60, 40), (0, 255, 51)), photo(), SIZE)
    assert edited.shape == (3, *SIZE)
    assert edited[:, 3, 3].tolist() == pytest.approx([0, 1, 0.2])


def test_the_photo_shows_where_a_coarse_edit_is_transparent():
    canvas = Image.new("RGBA", (60, 40))
    canvas.paste((0, 0, 255, 255), (30, 0, 60, 40))
    edited = coarse_image(canvas, photo(), PHOTO)
    assert torch.equal(edited[:, :, :30], squeeze(photo(), PHOTO)[:, :, :30] / 255)
    assert edited[:, 5, 40].tolist() == [0, 0, 1]


def test_a_coarse_edit_that_changes_nothing_is_said_so(caplog):
    coarse_image(photo(), photo(), SIZE, "mine")
    assert "mine is equal to its photo" in caplog.text


# --- sizes


@pytest.mark.parametrize("read", [strokes, coarse_image])
def test_another_aspect_is_stretched_and_both_sizes_are_named(read, caplog):
    given = PHOTO if read is strokes else photo()
    with caplog.at_level(logging.WARNING):
        assert read(Image.new("RGB", (30, 30)), given, SIZE, "mine").shape == (3, *SIZE)
    assert "mine is 30x30, its image is 60x40" in caplog.text


@pytest.mark.parametrize(("width", "height"), [(60, 40), (120, 80), (30, 20), (31, 21)])
def test_the_same_aspect_is_not_worth_a_word(width, height, caplog):
    drawn = Image.new("RGB", (width, height))
    drawn.putpixel((5, 5), (255, 255, 255))
    strokes(drawn, PHOTO, SIZE)
    assert not caplog.text
