"""The controls of the page become settings of an edit, and back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from demo.inputs import picture
from fp_lightning.demo.controls import Controls
from fp_lightning.errors import InputError
from fp_lightning.media.edits import Edit


def test_a_new_page_keeps_unedited_pixels():
    assert Controls().settings()["keep_unedited"] is True


def test_controls_become_settings_and_come_back():
    controls = Controls(3, 7, 12, 0.5, 2.5, "heun", True, 2, "0.2; 40")
    assert controls.seeds() == [7, 8, 9]
    edit = Edit(picture(8, 8), settings=controls.settings(), seed=7)
    assert edit.settings["guidance_interval"] == (0.2, 40.0)
    assert Controls.of(edit) == replace(controls, candidates=1, interval="0.2, 40")
    assert Controls.of(Edit(picture(8, 8))) == Controls(keep=False), "an edit without settings has the pipeline's"


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        (Controls(candidates=9), "candidates must be 1 to 4, got 9"),
        (Controls(seed=-1), "the seed must be a whole number"),
        (Controls(seed=None), "got None"),
        (Controls(interval="0.2"), "must be two numbers, such as 0.2, 40; got 0.2"),
        (Controls(interval="a, b"), "must be two numbers"),
    ],
)
def test_unusable_controls_raise(controls, message):
    with pytest.raises(InputError, match=message):
        controls.seeds(), controls.settings()
