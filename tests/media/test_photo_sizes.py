"""The network's size for photos of other shapes."""

import pytest

from fp_lightning.media.shapes import batches_of_one_size, nearest_size, squeeze_factor

SVD, TINY = ((576, 1024), 64), ((64, 64), 8)


@pytest.mark.parametrize(
    ("photo", "trained", "expected"),
    [
        ((1080, 1920), SVD, (576, 1024)),
        ((1920, 1080), SVD, (1024, 576)),
        ((3000, 3000), SVD, (768, 768)),
        ((300, 900), TINY, (40, 120)),
        ((900, 300), TINY, (120, 40)),
        ((77, 78), TINY, (64, 64)),
    ],
)
def test_the_size_follows_the_photo(photo, trained, expected):
    assert nearest_size(photo, *trained) == expected


@pytest.mark.parametrize("photo", [(100, n) for n in (25, 40, 66, 75, 133, 150, 178, 235, 400)])
@pytest.mark.parametrize(("trained", "multiple"), [SVD, TINY])
def test_shapes_are_kept_with_about_the_same_number_of_pixels(photo, trained, multiple):
    size = nearest_size(photo, trained, multiple)
    assert size[0] % multiple == size[1] % multiple == 0
    assert squeeze_factor(photo, size) < 1.1
    assert 0.7 <= size[0] * size[1] / (trained[0] * trained[1]) <= 1.25


def test_an_extreme_shape_still_has_a_size():
    assert nearest_size((1, 10_000), (64, 64), 8)[0] == 8
    assert nearest_size((5, 5), (8, 8), 8) == (8, 8)


def test_the_factor_is_the_same_either_way():
    assert squeeze_factor((300, 900), (64, 64)) == squeeze_factor((900, 300), (64, 64)) == pytest.approx(3)
    assert squeeze_factor((576, 1024), (288, 512)) == 1


def test_batches_have_one_size_and_every_index_once():
    sizes = [(8, 8), (8, 16), (8, 8), (8, 8), (8, 16), (16, 8)]
    batches = batches_of_one_size(sizes, 2)
    assert sorted(index for batch in batches for index in batch) == list(range(6))
    assert all(len({sizes[i] for i in batch}) == 1 and len(batch) <= 2 for batch in batches)
    assert len(batches) == 4
