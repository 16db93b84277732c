"""Pairs of procedural scenes on disk: exact up to what the format holds."""

import json
from dataclasses import asdict

import pytest
import torch
from commandline import fork_pools

from fp_lightning.errors import InputError
from fp_lightning.pairs.shards import QUANTUM, PairStore
from fp_lightning.scenes import procedural
from fp_lightning.scenes.content import SceneContent
from fp_lightning.scenes.procedural import write_scene_pairs
from fp_lightning.scenes.scene import Scene

CONTENT = SceneContent(objects=(1, 2), variety=0.5)


def write(out, count: int = 3, **options) -> dict:
    return write_scene_pairs(out, count, **{"size": (32, 32), "workers": 1, "content": CONTENT, **options})


def files(root) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_what_is_read_is_the_scenes_pair_up_to_the_stored_step(tmp_path):
    write(tmp_path, 3, seed=7)
    store = PairStore(tmp_path)
    assert len(store) == 3
    for index in range(3):
        read, exact = store[index], Scene(7 + index, (32, 32), CONTENT).pair(stride=4)
        for name in ("source", "target", "visible"):
            assert torch.equal(getattr(read, name), getattr(exact, name))
        for name in ("flow_to_source", "flow_to_target", "tracks"):
            torch.testing.assert_close(getattr(read, name), getattr(exact, name), atol=0.51 / QUANTUM, rtol=0)
        assert read.meta["flow"] == "exact"


def test_stride_is_that_of_the_tracks(tmp_path):
    write(tmp_path, 1, stride=8)
    assert PairStore(tmp_path)[0].tracks.shape == (2, 4, 4)


def test_so_many_scenes_count_as_one_video(tmp_path, monkeypatch):
    monkeypatch.setattr(procedural, "PER_SHARD", 2)
    manifest = write(tmp_path, 5)
    assert [record["pairs"] for record in manifest["per_video"]] == [2, 2, 1]
    assert manifest["pairs"] == 5 and len(set(PairStore(tmp_path).videos)) == 3


def test_the_manifest_says_how_they_were_made(tmp_path):
    write(tmp_path, 2, seed=3)
    settings = json.loads((tmp_path / "manifest.json").read_text())["settings"]
    plain = json.loads(json.dumps(asdict(SceneContent())))
    content = plain | {"objects": [1, 2], "variety": 0.5}
    assert settings == {"scenes": 2, "seed": 3, "size": [32, 32], "stride": 4} | content


def test_workers_change_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(procedural, "PER_SHARD", 2)
    fork_pools(monkeypatch)
    for workers in (1, 2):
        write(tmp_path / str(workers), 3, workers=workers)
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_a_folder_that_holds_pairs_is_refused_and_stays(tmp_path):
    write(tmp_path, 1)
    before = files(tmp_path)
    with pytest.raises(InputError, match="already holds pairs; choose another folder"):
        write(tmp_path, 2, seed=5)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "options",
    [
        {"count": 0},
        {"size": (30, 32)},
        {"size": (0, 32)},
        {"stride": 0},
        {"workers": 0},
    ],
)
def test_what_is_wrong_shows_before_anything_is_written(tmp_path, options):
    with pytest.raises(InputError):
        write(tmp_path / "pairs", **options)
    assert not (tmp_path / "pairs").exists()
