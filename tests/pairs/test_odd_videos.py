"""Odd videos cost no others: each is built or recorded with its reason."""

import json
import os
import shutil

import av
import numpy as np
import pytest
from films import add_sound, levels, write_film

from fp_lightning.pairs.build import build_pairs
from fp_lightning.pairs.candidates import build_video
from fp_lightning.pairs.settings import PairSettings
from fp_lightning.pairs.shards import PairStore

SETTINGS = PairSettings(size=(64, 96), pairs_per_video=1, candidates=4)
LATIN_1 = os.fsdecode(b"caf\xe9.mp4")


def moving(count=24):
    """A square that moves over a still ground, at 8 frames a second."""
    ground = np.random.default_rng(0).integers(60, 120, (64, 96, 3), np.uint8)
    for x in range(10, 10 + count):
        image = ground.copy()
        image[20:44, x : x + 24], image[26:38, x + 6 : x + 18] = (220, 60, 60), (40, 60, 220)
        yield image


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_film(tmp_path_factory.mktemp("film") / "film.mp4", moving(), options={"crf": "23"})


def test_names_that_are_not_utf8_are_built(film, tmp_path):
    (tmp_path / "in").mkdir()
    for name in (LATIN_1, "good.mp4"):
        shutil.copy(film, tmp_path / "in" / name)
    (tmp_path / "in" / ("damaged " + LATIN_1)).write_bytes(film.read_bytes()[:300])
    manifest = build_pairs([tmp_path / "in"], tmp_path / "out", SETTINGS)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    records = {record["video"]: record for record in manifest["per_video"]}
    built = records[str(tmp_path / "in" / LATIN_1)]
    assert (built["pairs"], built["error"]) == (1, None)
    assert "cannot be read" in records[str(tmp_path / "in" / ("damaged " + LATIN_1))]["error"]
    store = PairStore(tmp_path / "out")
    assert [os.path.basename(store[i].meta["video"]) for i in range(len(store))] == [LATIN_1, "good.mp4"]
    assert "caf\\udce9.mp4" in (tmp_path / "out" / "preview.html").read_text()


def test_sound_after_the_picture_is_no_error_and_leaves_no_work(tmp_path, monkeypatch):
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        stream, sound = container.add_stream("libx264", rate=8), container.add_stream("aac", rate=16000, layout="mono")
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for image in [*moving(), None]:
            frame = None if image is None else av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame))
        add_sound(container, sound, 12)
    first = build_pairs([path], tmp_path / "out", SETTINGS)
    assert first["per_video"][0]["error"] is None
    assert "not_decoded" not in first["rejected"]
    monkeypatch.setattr("fp_lightning.pairs.build.build_video", lambda *_: pytest.fail("read again"))
    assert build_pairs([path], tmp_path / "out", SETTINGS, resume=True) == first


def test_odd_files_are_recorded_and_the_others_go_on(film, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(film, folder / "good.mp4")
    write_film(folder / "one_frame.mp4", levels(1))
    write_film(folder / "tiny.mkv", levels(24, (1, 1)), codec="ffv1", pix_fmt="bgr0")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "gone.mp4").symlink_to(tmp_path / "nowhere")
    manifest = build_pairs([folder], tmp_path / "out", SETTINGS)
    records = {os.path.basename(record["video"]): record for record in manifest["per_video"]}
    assert records["good.mp4"]["pairs"] == 1
    assert records["one_frame.mp4"]["rejected"] == {"too_short": 1}
    assert (records["tiny.mkv"]["pairs"], records["tiny.mkv"]["error"]) == (0, None)
    for name in ("empty.mp4", "gone.mp4"):
        assert "cannot be read" in records[name]["error"]


def test_a_cut_off_film_gives_the_pairs_it_has_and_the_reason(tmp_path):
    path = write_film(tmp_path / "v.mkv", moving(60), options={"crf": "23", "g": "8"})
    path.write_bytes(path.read_bytes()[: int(0.6 * path.stat().st_size)])
    result = build_video(path, PairSettings(size=(64, 96), candidates=12, pairs_per_video=12))
    assert result.pairs
    assert "are missing; the file may be truncated" in (result.problem or "")
