"""Pasting back: unedited pixels are the photo's, the edit is kept, and the transition is smooth."""

import pytest
import torch

from fp_lightning.inference.blend import edit_mask, paste_back
from fp_lightning.types import to_uint8, to_unit_range


@pytest.fixture
def photo() -> torch.Tensor:
    small = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(small, (128, 128), mode="bicubic").clamp(0, 1)
    return (smooth[0] * 255).to(torch.uint8)


def edited(photo: torch.Tensor) -> torch.Tensor:
    """Add a bright square at rows and columns 40 to 79, and noise such as a VAE's error."""
    noise = 0.02 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(1))
    image = to_unit_range(photo) + noise
    image[:, 40:80, 40:80] = 0.9
    return image.clamp(-1, 1)


def test_far_from_the_edit_the_photo_is_kept_to_the_bit_and_the_edit_stays(photo):
    image = edited(photo)
    result = to_uint8(paste_back(photo, image, *edit_mask(image, to_unit_range(photo))))
    assert torch.equal(result[:, :20], photo[:, :20]) and torch.equal(result[:, :, 100:], photo[:, :, 100:])
    difference = (result[:, 44:76, 44:76].float() - to_uint8(image)[:, 44:76, 44:76]).abs()
    assert difference.max() <= 8  # the global shift is removed from the edit too


def test_the_mask_is_smooth(photo):
    mask, _ = edit_mask(edited(photo), to_unit_range(photo))
    assert mask.min() == 0 and mask.max() > 0.999
    assert mask.diff(dim=-1).abs().max() < 0.3 and mask.diff(dim=-2).abs().max() < 0.3


def test_a_shift_of_the_whole_image_is_no_edit(photo):
    darker = to_unit_range(photo) * 0.8 - torch.tensor([0.1, 0.05, 0.0])[:, None, None]
    shifted = to_unit_range(photo) + 0.2
    mask, shift = edit_mask(shifted, to_unit_range(photo))
    assert mask.sum() == 0 and torch.allclose(shift, torch.tensor(0.2), atol=1e-3)
    assert edit_mask(darker, darker)[0].sum() == 0


def test_a_speck_is_no_edit(photo):
    image = to_unit_range(photo)
    image[:, 60, 60] *= -1
    assert edit_mask(image, to_unit_range(photo))[0].sum() == 0


def test_the_photo_may_be_larger_than_the_edit(photo):
    small = torch.nn.functional.interpolate(to_unit_range(photo)[None], (64, 64), mode="area")[0]
    image = small.clone()
    image[:, 20:40, 20:40] = 0.9
    result = to_uint8(paste_back(photo, image, *edit_mask(image, small)))
    assert result.shape == photo.shape and torch.equal(result[:, :16], photo[:, :16])
    assert (result[:, 50:70, 50:70] > 225).all()
