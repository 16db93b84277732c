"""Which files and folders count as videos."""

import os

import pytest

from fp_lightning.errors import InputError
from fp_lightning.media.finding import frame_files, list_videos


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def names(root, *paths):
    return [str(path.relative_to(root)) for path in list_videos(paths)]


def test_linked_folders_and_files_are_followed(tmp_path):
    touch(tmp_path / "a" / "a.mp4", tmp_path / "b" / "deep" / "b.mp4")
    root = tmp_path / "root"
    root.mkdir()
    (root / "film.mp4").symlink_to(tmp_path / "a" / "a.mp4")
    (root / "more").symlink_to(tmp_path / "b")
    assert names(root, root) == ["film.mp4", "more/deep/b.mp4"]


def test_loops_and_second_ways_are_followed_once(tmp_path):
    touch(tmp_path / "a" / "v.mp4")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "w.mp4").symlink_to(tmp_path / "a" / "v.mp4")
    (tmp_path / "own.mp4").symlink_to(tmp_path / "w.mp4")
    assert names(tmp_path, tmp_path, tmp_path / "b", tmp_path / "w.mp4") == ["a/v.mp4"]


def test_a_link_to_a_folder_of_frames_is_one_video(tmp_path):
    touch(*(tmp_path / "shots" / f"{i}.png" for i in range(3)))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "dog").symlink_to(tmp_path / "shots")
    assert names(tmp_path / "in", tmp_path / "in") == ["dog"]


def test_hidden_files_and_folders_are_no_media(tmp_path):
    touch(tmp_path / "a.mp4", tmp_path / "._a.mp4", tmp_path / ".trash" / "b.mp4")
    touch(tmp_path / "shots" / "1.png", tmp_path / "shots" / "._1.png", tmp_path / "only" / "._1.png")
    assert names(tmp_path, tmp_path) == ["a.mp4", "shots"]
    assert [path.name for path in frame_files(tmp_path / "shots")] == ["1.png"]


def test_a_folder_inside_a_hidden_one_can_be_given(tmp_path):
    touch(tmp_path / ".cache" / "clips" / "a.mp4")
    assert names(tmp_path, tmp_path / ".cache" / "clips") == [".cache/clips/a.mp4"]


def test_endings_in_any_case(tmp_path):
    touch(tmp_path / "a.MP4", tmp_path / "b.MOV", tmp_path / "c.Mkv", tmp_path / "shots" / "1.JPG")
    assert names(tmp_path, tmp_path) == ["a.MP4", "b.MOV", "c.Mkv", "shots"]


def test_a_broken_link_is_listed_so_that_it_is_reported(tmp_path):
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    assert names(tmp_path, tmp_path) == ["gone.mp4"]


def test_a_name_that_is_not_utf8_is_listed(tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    touch(tmp_path / name)
    assert names(tmp_path, tmp_path) == [name]


def test_digits_of_other_scripts_sort(tmp_path):
    touch(*(tmp_path / f"{stem}.png" for stem in ("f²", "f10", "f2", "f٣")))
    assert len(frame_files(tmp_path)) == 4


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "v.mp4")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        list_videos([tmp_path / "v.mp4"])


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    touch(tmp_path / "a.mp4")

    def refused(*_args, onerror, **_options):
        onerror(PermissionError(13, "Permission denied", str(tmp_path / "secret")))
        return iter(())

    monkeypatch.setattr("os.walk", refused)
    with pytest.raises(InputError, match=r"secret cannot be read \(Permission denied\)"):
        list_videos([tmp_path])
