"""Uploads: what is read, what is refused, and from where."""

from __future__ import annotations

import numpy as np
import pytest

from demo.inputs import ACCEPTED, REFUSED, an_edit, encode, picture
from fp_lightning.demo.uploads import Uploads
from fp_lightning.errors import InputError


@pytest.mark.parametrize("name", ACCEPTED)
def test_unusual_images_are_read_as_they_look(name, tmp_path):
    data, size = ACCEPTED[name]
    (tmp_path / name).write_bytes(data)
    image = Uploads(tmp_path).image(str(tmp_path / name))
    assert image.mode == "RGB" and image.size == size
    pixels = np.array(image)
    if name == "cmyk.jpg":
        assert pixels[0, 0, 0] > 200 and pixels[0, 0, 1:].max() < 60
    if name == "16bit.png":
        assert (pixels == 128).all()
    if name == "animated.gif":
        assert (pixels[0, 0] == (255, 0, 0)).all()
    if name == "transparent.png":
        assert (pixels[20, 20] == 255).all() and (pixels[5, 5] == (0, 0, 255)).all()


@pytest.mark.parametrize("name", REFUSED)
def test_bad_uploads_raise_one_line(name, tmp_path):
    data, message = REFUSED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        Uploads(tmp_path).photo_or_edit(str(tmp_path / name))
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_large_files_are_refused_before_they_are_read(tmp_path):
    for name, start, size, limit in (("large.png", b"\x89PNG", 2000, "0.001"), ("large.json", b"{", 5000, "0.004")):
        (tmp_path / name).write_bytes(start + bytes(size))
        with pytest.raises(InputError, match=f"{name} has 0.0 MB, more than {limit}"):
            Uploads(tmp_path, max_bytes=1000).photo_or_edit(str(tmp_path / name))


def test_a_saved_edit_may_be_larger_than_a_photo(tmp_path):
    data = an_edit(picture(60, 60)).to_bytes()
    (tmp_path / "a.edit.json").write_bytes(data)
    name, edit = Uploads(tmp_path, max_bytes=len(data) // 2).photo_or_edit(str(tmp_path / "a.edit.json"))
    assert name == "a.edit.json" and edit.points == [[5, 5, 20, 20]]


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../secret.png", "/proc/self/environ", "sub/../../secret.png", "", "."]
)
def test_nothing_outside_of_the_upload_folder_is_opened(path, tmp_path):
    folder = tmp_path / "uploads"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(encode(picture(4, 4)))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    for sent in (path, str(folder / path), str(folder / "link.png"), "link.png"):
        with pytest.raises(InputError, match="is not an uploaded file"):
            Uploads(folder).read(sent)
