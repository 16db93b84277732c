"""Outlines at a click."""

from __future__ import annotations

import numpy as np
import pytest

from demo.inputs import picture
from fp_lightning.demo.segmenter import Segmenter
from fp_lightning.errors import InputError


def test_a_click_finds_the_connected_part_of_the_mask(sam_folder, monkeypatch):
    segmenter, photo = Segmenter(str(sam_folder)), picture(90, 60)
    mask = np.zeros((60, 90), bool)
    mask[10:30, 10:40] = mask[40:50, 60:80] = True
    monkeypatch.setattr(segmenter, "_mask", lambda *_: mask)
    found = np.array(segmenter.find(photo, 20, 20))
    assert found.min(0) == pytest.approx([10.5, 10.5]) and found.max(0) == pytest.approx([39.5, 29.5])
    assert np.array(segmenter.find(photo, 60, 49)).min(0) == pytest.approx([60.5, 40.5])
    assert segmenter.find(photo, 50, 5) is None


def test_the_best_mask_has_the_size_of_the_photo(sam_folder):
    segmenter, photo = Segmenter(str(sam_folder)), picture(90, 60)
    masks = [segmenter._mask(photo, x, 20) for x in (5, 80)]
    assert all(mask.shape == (60, 90) and mask.dtype == bool for mask in masks)
    assert not np.array_equal(*masks)  # the click matters


@pytest.mark.parametrize("model", ["nobody/nothing", "tiny-editor"])
def test_a_model_that_is_no_segmenter_raises_one_line(model):
    with pytest.raises(InputError) as caught:
        Segmenter(model)
    assert model in str(caught.value) and "\n" not in str(caught.value)
