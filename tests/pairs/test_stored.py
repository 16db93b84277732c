"""Adding videos to a folder of pairs: nothing is dropped, and a video is known whatever path leads to it."""

from pathlib import Path

import pytest

from fp_lightning.errors import InputError
from fp_lightning.media.video import VideoError
from fp_lightning.pairs import build
from fp_lightning.pairs.build import build_pairs
from fp_lightning.pairs.candidates import VideoResult
from fp_lightning.pairs.settings import PairSettings
from fp_lightning.pairs.shards import PairStore, write_manifest
from fp_lightning.scenes.procedural import write_scene_pairs
from fp_lightning.scenes.scene import Scene

PAIR = Scene(0, (32, 32)).pair()
SETTINGS = PairSettings(size=(64, 64))


@pytest.fixture
def read(tmp_path, monkeypatch) -> list[str]:
    """The videos that are read, each with one pair. Files are videos by their name alone."""
    paths: list[str] = []

    def build_video(path, settings) -> VideoResult:
        paths.append(path)
        if Path(path).read_text() == "broken":
            raise VideoError(f"{path} cannot be read")
        return VideoResult(pairs=[PAIR])

    monkeypatch.setattr(build, "build_video", build_video)
    monkeypatch.setattr(build, "write_preview", lambda out: None)
    monkeypatch.chdir(tmp_path)
    return paths


def film(name: str, content: str = "film") -> Path:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(content)
    return Path(name)


def videos(manifest) -> dict[str, int]:
    return {record["video"]: record["pairs"] for record in manifest["per_video"]}


def test_other_videos_are_added(read):
    film("a/a.mp4"), film("b/b.mp4")
    build_pairs(["a"], "p", SETTINGS)
    both = build_pairs(["b"], "p", SETTINGS, resume=True)
    assert videos(both) == {"a/a.mp4": 1, "b/b.mp4": 1} and both["pairs"] == len(PairStore("p")) == 2
    assert read == ["a/a.mp4", "b/b.mp4"]
    assert build_pairs(["b", "a"], "p", SETTINGS, resume=True) == both


def test_the_same_video_by_another_path_is_not_built_again(read, tmp_path, monkeypatch):
    film("a/a.mp4")
    first = build_pairs(["a"], "p", SETTINGS)
    Path("link").symlink_to("a")
    Path("other.mp4").symlink_to("a/a.mp4")
    for path in (tmp_path / "a", "a/a.mp4", "a/../a/a.mp4", "link", "other.mp4"):
        assert build_pairs([path], "p", SETTINGS, resume=True) == first
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert build_pairs(["../a"], "../p", SETTINGS, resume=True) == first
    assert read == ["a/a.mp4"]


def test_two_videos_of_one_name_are_two(read, tmp_path, monkeypatch):
    film("one/v.mp4"), film("two/v.mp4")
    monkeypatch.chdir("one")
    build_pairs(["v.mp4"], "../p", SETTINGS)
    monkeypatch.chdir("../two")
    both = build_pairs(["v.mp4"], "../p", SETTINGS, resume=True)
    assert videos(both) == {"v.mp4": 1, str(tmp_path / "two" / "v.mp4"): 1}
    assert len(PairStore("../p")) == 2
    assert build_pairs(["v.mp4"], "../p", SETTINGS, resume=True) == both
    assert len(read) == 2


@pytest.mark.parametrize(("content", "count"), [("film", 1), ("another film", 2)])
def test_a_moved_video_keeps_its_name(read, tmp_path, monkeypatch, content, count):
    """It is known by its size; another video that takes the place of a lost one is a second video."""
    film("one/v.mp4")
    monkeypatch.chdir("one")
    build_pairs(["v.mp4"], "../p", SETTINGS)
    Path("v.mp4").unlink()
    monkeypatch.chdir("..")
    film("two/v.mp4", content)
    monkeypatch.chdir("two")
    assert len(videos(build_pairs(["v.mp4"], "../p", SETTINGS, resume=True))) == len(read) == count


def test_a_video_that_fails_later_keeps_its_pairs(read):
    film("a.mp4"), film("b.mp4")
    build_pairs(["a.mp4", "b.mp4"], "p", SETTINGS)
    sidecar = next(Path("p/shards").glob("a-*.json"))
    sidecar.write_text(sidecar.read_text().replace('"error": null', '"error": "frames are missing"'))
    film("a.mp4", "broken")
    again = build_pairs(["a.mp4"], "p", SETTINGS, resume=True)
    assert videos(again) == {"a.mp4": 1, "b.mp4": 1} and len(PairStore("p")) == 2
    assert again["per_video"][0]["error"] == "a.mp4 cannot be read"
    assert read[-1] == "a.mp4"


def test_a_video_that_never_worked_is_tried_again(read):
    film("a.mp4", "broken"), film("b.mp4")
    build_pairs(["a.mp4", "b.mp4"], "p", SETTINGS)
    film("a.mp4")
    assert videos(build_pairs([Path("a.mp4").absolute()], "p", SETTINGS, resume=True)) == {"a.mp4": 1, "b.mp4": 1}


def test_new_videos_with_other_settings_are_refused(read):
    film("a.mp4"), film("b.mp4")
    build_pairs(["a.mp4"], "p", SETTINGS)
    with pytest.raises(InputError, match="p was built with other settings"):
        build_pairs(["b.mp4"], "p", PairSettings(size=(64, 128)), resume=True)
    assert videos({"per_video": build.StoredVideos(Path("p"), SETTINGS.to_json()).merged([], {})}) == {"a.mp4": 1}


def test_procedural_pairs_take_no_videos(read):
    write_scene_pairs("p", 1, size=(32, 32), workers=1)
    film("a.mp4")
    with pytest.raises(InputError, match="other settings"):
        build_pairs(["a.mp4"], "p", SETTINGS, resume=True)
    assert len(PairStore("p")) == 1


def test_folders_of_earlier_versions_are_continued(read):
    """Their records do not say which file they were built from."""
    film("a.mp4"), film("b.mp4")
    build_pairs(["a.mp4"], "p", SETTINGS)
    for sidecar in Path("p/shards").glob("*.json"):
        sidecar.unlink()
    assert videos(build_pairs(["b.mp4"], "p", SETTINGS, resume=True)) == {"a.mp4": 1, "b.mp4": 1}
    write_manifest("p", [{"video": "a.mp4", "pairs": 1, "rejected": {}, "error": None}], SETTINGS.to_json())
    assert videos(build_pairs([Path("a.mp4").absolute()], "p", SETTINGS, resume=True)) == {"a.mp4": 1, "b.mp4": 1}
    assert read == ["a.mp4", "b.mp4"]
