"""Drawings of the page become the model's signals."""

from __future__ import annotations

import numpy as np
import pytest

from demo.inputs import SQUARE, STROKE, picture
from fp_lightning.demo.drawing import signals_of
from fp_lightning.demo.examples import examples
from fp_lightning.errors import InputError


def test_strokes_of_all_colours_form_one_sketch_and_the_eraser_removes():
    eraser = {"points": [[20, 5]], "size": 8, "erase": True}
    drawing = {"strokes": [STROKE, {**STROKE, "points": [[5, 30], [50, 30]], "colour": "#00ff00"}, eraser]}
    alpha = np.array(signals_of(drawing, picture(60, 40))["sketch"])[..., 3]
    assert set(np.unique(alpha)) == {0, 255}
    assert alpha[5, 6:15].all() and alpha[30, 6:49].all() and alpha[5, 26:49].all()
    assert not alpha[5, 17:23].any() and not alpha[10:25].any()
    assert 3 <= (alpha[:12, 30] > 0).sum() <= 5


def test_a_drawing_may_hold_all_signals_and_a_region():
    drawing = {
        "strokes": [STROKE],
        "arrows": [[1, 2, 3, 4]],
        "pieces": [{"outline": SQUARE, "move": [25, 8], "angle": 0, "scale": 1}],
        "region": [SQUARE],
    }
    photo = picture(60, 40)
    signals = signals_of(drawing, photo)
    assert signals.keys() == {"sketch", "points", "coarse", "region"} and signals["points"] == [[1, 2, 3, 4]]
    coarse, pixels = np.array(signals["coarse"]), np.array(photo)
    assert np.array_equal(coarse[18:28, 35:45], pixels[10:20, 10:20])
    assert not np.array_equal(coarse[10:20, 10:20], pixels[10:20, 10:20])
    region = np.array(signals["region"])
    assert region[10:20, 10:20].all() and region.sum() == 100 * 255


def test_a_piece_is_turned_scaled_and_mirrored_about_the_centre_of_its_box():
    photo = picture(60, 60)
    turned = {"outline": SQUARE, "move": [20, 0], "angle": np.pi / 2, "scale": 1, "mirror": True}
    coarse = np.array(signals_of({"pieces": [turned]}, photo)["coarse"])
    part = np.array(photo)[10:20, 10:20]
    assert np.array_equal(coarse[10:20, 30:40], np.rot90(part[:, ::-1], -1))
    double = {"outline": SQUARE, "move": [20, 20], "scale": 2, "copied": True}
    coarse = np.array(signals_of({"pieces": [double]}, photo)["coarse"])
    assert not np.array_equal(coarse[25:45, 25:45], np.array(photo)[25:45, 25:45])
    assert np.array_equal(np.delete(coarse, np.s_[24:46], 0), np.delete(np.array(photo), np.s_[24:46], 0))


@pytest.mark.parametrize(
    ("drawing", "message"),
    [
        (None, "no drawing was received"),
        ({}, "draw first"),
        ({"strokes": [{**STROKE, "erase": True}]}, "draw first"),
        ({"pieces": [{"outline": SQUARE, "move": [0, 0]}]}, "draw first"),
        ({"region": [SQUARE]}, "draw first"),
        ({"strokes": {"a": 1}}, "strokes in the drawing must be a list"),
        ({"strokes": ["x"]}, "a stroke in the drawing is malformed"),
        ({"strokes": [{**STROKE, "points": []}]}, "a line in the drawing has no points"),
        ({"strokes": [{**STROKE, "size": 1e9}]}, "the size of a stroke in the drawing"),
        ({"strokes": [{**STROKE, "size": -1}]}, "the size of a stroke is -1 px"),
        ({"arrows": [[1, 2, 3]]}, "not 4 numbers"),
        ({"arrows": [[1, 2, 3, float("nan")]]}, "not 4 numbers"),
        ({"arrows": [[1, 2, 3, True]]}, "not 4 numbers"),
        ({"pieces": [{"outline": SQUARE, "move": [1, 1], "scale": 1e5}]}, "scaled by 100000"),
        ({"pieces": [7]}, "a cut-out in the drawing is malformed"),
        ({"arrows": [[0, 0, 1, 1]] * 100_001}, "more than 100000; clear some"),
    ],
)
def test_a_malformed_drawing_raises_one_line(drawing, message):
    with pytest.raises(InputError, match=message) as caught:
        signals_of(drawing, picture(60, 40))
    assert "\n" not in str(caught.value)


def test_each_example_has_a_drawing():
    kinds = [set(signals_of(example.drawing, example.photo)) for example in examples()]
    assert kinds == [{"sketch"}, {"points"}, {"coarse"}]
