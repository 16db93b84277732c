"""The page in a browser: every signal, from the pointer to the edit."""

from __future__ import annotations

import numpy as np
import pytest

from demo.user import DESKTOP, User, near, new_context
from fp_lightning.demo.examples import examples
from fp_lightning.demo.serve import served
from fp_lightning.signals.cutouts import filled


def test_a_sketch_on_the_example_is_edited(user):
    assert user.drawing["strokes"], "the example has a sketch"
    user.shot("1-opened")
    user.press("Clear")
    user.pull((40, 60), (120, 60), (120, 140))
    assert near(user.drawing["strokes"][0]["points"][0], (40, 60)) and near(
        user.drawing["strokes"][0]["points"][-1], (120, 140)
    )
    user.press("Eraser")
    user.pull((40, 50), (40, 70))
    assert [stroke["erase"] for stroke in user.drawing["strokes"]] == [False, True]
    user.page.get_by_label("Show outlines").check()
    user.shot("2-sketch")
    assert "1 edit in " in user.edit()
    user.shot("3-edited")
    edit = user.shown_edit
    marked = np.array(edit.sketch)[..., 3] > 0
    assert marked[60, 60:115].all() and marked[65:135, 120].all() and not marked[60, 38:42].any()
    assert edit.points is None and edit.coarse is None and edit.settings["keep_unedited"] is True
    assert user.page.locator("#compare img").count() == 2
    result = user.session.node(user.session.shown).open()
    assert not np.array_equal(np.array(result), np.array(edit.image))


def test_arrows_are_drawn_moved_and_deleted(desktop):
    user = desktop
    user.press("Clear")
    user.press("Drag")
    user.pull((60, 150), (100, 90))
    user.pull((150, 50), (200, 50))
    user.pull((200, 200), (220, 220))
    user.page.locator("#canvas canvas").press("Delete")  # the selected one, which is the last
    assert near(user.drawing["arrows"], [[60, 150, 100, 90], [150, 50, 200, 50]])
    user.pull((200, 50), (200, 80))  # its end
    user.pull((80, 120), (85, 120))  # the first as a whole
    expected = [[65, 150, 105, 90], [150, 50, 200, 80]]
    assert near(user.drawing["arrows"], expected)
    user.press("Region")
    user.press("Box")
    user.pull((20, 20), (230, 200))
    user.press("Drag")
    user.shot("1-arrows")
    user.edit()
    user.shot("2-edited")
    edit = user.shown_edit
    assert near(edit.points, expected)
    photo, result = np.array(edit.image), np.array(user.session.node(user.session.shown).open())
    assert np.array_equal(result[205:], photo[205:]) and not np.array_equal(result[100:150], photo[100:150])


def test_a_cut_out_is_moved_scaled_mirrored_copied_and_deleted(user):
    user.press("Clear")
    user.press("Cut & paste")
    outline = [(30, 100), (90, 90), (130, 150), (100, 200), (30, 190), (30, 110)]
    user.pull(*outline)
    user.pull((80, 150), (130, 110))
    (piece,) = user.drawing["pieces"]
    assert near(piece["outline"][0], outline[0]) and near(piece["move"], (50, -40))
    left, top = np.min(piece["outline"], 0)
    right, bottom = np.max(piece["outline"], 0)
    centre = np.array([(left + right) / 2, (top + bottom) / 2]) + piece["move"]
    corner = np.array([right, bottom]) + piece["move"]
    user.pull(tuple(corner), tuple(centre + 1.5 * (corner - centre)))
    assert user.drawing["pieces"][0]["scale"] == pytest.approx(1.5, abs=0.08)
    user.press("Mirror")
    user.press("Duplicate")
    user.shot("1-cut")
    copies = user.drawing["pieces"]
    assert [p["copied"] for p in copies] == [False, True] and all(p["mirror"] for p in copies)
    user.press("Delete")
    assert len(user.drawing["pieces"]) == 1
    assert "1 edit in " in user.edit()
    user.shot("2-edited")
    edit = user.shown_edit
    user.press("Region")  # without frames
    coarse, photo = np.array(edit.coarse).astype(int), np.array(edit.image).astype(int)
    away = np.abs(user.canvas_pixels((256, 256)) - coarse).mean(-1)
    assert np.median(away) <= 1 and np.mean(away > 24) < 0.02, "the canvas shows the coarse edit that the model reads"
    assert np.abs(coarse - photo)[100:160, 60:100].mean() > 5  # the hole, and the piece over it
    user.press("Cut & paste")
    user.pull((130, 110), (131, 110))  # select it again
    user.press("Delete")
    assert user.drawing["pieces"][0]["gone"]
    user.press("Put back")
    assert not user.drawing["pieces"]


def test_every_example_is_edited_as_it_is(desktop):
    user = desktop
    for number, example in enumerate(examples()):
        user.page.locator("#examples button").nth(number).click()
        user.page.wait_for_selector(f"#canvas [data-mode={example.mode}][aria-selected=true]")
        assert "1 edit in " in user.edit()
        user.shot(f"example-{number}")
        edit = user.shown_edit
        signals = {"sketch": edit.sketch, "drag": edit.points, "cut": edit.coarse}
        assert [name for name, value in signals.items() if value is not None] == [example.mode]


def test_a_click_cuts_out_the_object_that_a_segmenter_finds(browser, sam_folder, tmp_path):
    with served(port=0, segmenter=str(sam_folder)) as running:
        user = User(new_context(browser, DESKTOP), running, tmp_path)
        user.press("Clear")
        user.press("Cut & paste")
        user.press("Click")
        for x, y in ((60, 140), (128, 128), (200, 60), (30, 30)):  # a random model finds an object at some of them
            user.page.mouse.click(*user.place(x, y))
            user.page.wait_for_function(
                "() => /Cut out|No object found/.test(document.querySelector('#canvas .hint').textContent)"
            )
            if user.drawing["pieces"]:
                mask = filled(np.array(user.drawing["pieces"][0]["outline"]), (256, 256))
                assert mask[y - 3 : y + 3, x - 3 : x + 3].any()
                break
        assert user.drawing["pieces"]
        user.context.close()
        assert not user.errors
