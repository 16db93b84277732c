"""Pairs on disk: nothing is lost, nothing half-written, errors say what to do."""

import pickle

import fsspec
import pytest
import torch

from fp_lightning.errors import InputError
from fp_lightning.pairs.shards import FLOW_LIMIT, MANIFEST, PairStore, shard_path, write_manifest, write_shard
from fp_lightning.scenes.content import SceneContent
from fp_lightning.scenes.scene import Scene


def record(video: str, pairs: int) -> dict:
    return {"video": video, "pairs": pairs, "rejected": {}, "error": None}


@pytest.fixture
def pairs():
    return [Scene(seed, (64, 96), SceneContent(objects=(1, 3))).pair() for seed in range(3)]


@pytest.fixture
def root(tmp_path, pairs):
    write_shard(tmp_path, "films/a dog.mp4", pairs[:2])
    write_shard(tmp_path, "films/cat.mp4", pairs[2:])
    write_manifest(tmp_path, [record("films/a dog.mp4", 2), record("films/none.mp4", 0), record("films/cat.mp4", 1)])
    return tmp_path


def test_images_and_visibility_are_kept_exactly(root, pairs):
    stored = PairStore(root)[1]
    assert torch.equal(stored.source, pairs[1].source)
    assert torch.equal(stored.target, pairs[1].target)
    assert torch.equal(stored.visible, pairs[1].visible)


@pytest.mark.parametrize("name", ["flow_to_source", "flow_to_target", "tracks"])
def test_positions_are_kept_to_half_a_quantum(root, pairs, name):
    stored, given = getattr(PairStore(root)[2], name), getattr(pairs[2], name)
    assert stored.dtype == torch.float32
    torch.testing.assert_close(stored, given, atol=1 / 128 + 1e-4, rtol=0)


def test_meta_is_kept(root, pairs):
    assert PairStore(root)[0].meta == pairs[0].meta


def test_videos_and_names_follow_the_pairs(root):
    store = PairStore(root)
    assert store.videos == ["films/a dog.mp4"] * 2 + ["films/cat.mp4"]
    assert len({store.name(i) for i in range(len(store))}) == len(store) == 3
    assert store.name(0).startswith("a_dog-")


def test_same_stem_in_two_folders_gives_two_shards(tmp_path):
    assert shard_path(tmp_path, "a/1.mp4") != shard_path(tmp_path, "b/1.mp4")


def test_store_travels_to_other_processes(root, pairs):
    assert torch.equal(pickle.loads(pickle.dumps(PairStore(root)))[0].source, pairs[0].source)


def test_flow_that_cannot_be_stored_is_refused_and_leaves_nothing(tmp_path, pairs):
    pairs[1].flow_to_source[0, 0, 0] = FLOW_LIMIT + 1
    with pytest.raises(InputError, match=r"pair 1 of v\.mp4"):
        write_shard(tmp_path, "v.mp4", pairs)
    assert not list(tmp_path.rglob("*"))


def test_greatest_flow_is_kept(tmp_path, pairs):
    pairs[0].flow_to_source[:, 0, 0] = torch.tensor([FLOW_LIMIT, -FLOW_LIMIT])
    write_shard(tmp_path, "v.mp4", pairs[:1])
    write_manifest(tmp_path, [record("v.mp4", 1)])
    assert PairStore(tmp_path)[0].flow_to_source[:, 0, 0].tolist() == [FLOW_LIMIT, -FLOW_LIMIT]


def test_an_interrupted_write_leaves_the_old_shard(root, pairs, monkeypatch):
    def interrupted(tensors, path, metadata):
        with open(path, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("fp_lightning.pairs.shards.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shard(root, "films/cat.mp4", pairs[:2])
    assert len(PairStore(root)) == 3
    assert len(list((root / "shards").iterdir())) == 2


@pytest.mark.parametrize("folder", ["missing", "."])
def test_a_folder_without_pairs_names_the_command(tmp_path, folder):
    with pytest.raises(InputError, match="fp-lightning pairs VIDEOS --out"):
        PairStore(tmp_path / folder)


def test_a_manifest_without_pairs_is_no_pairs(tmp_path):
    write_manifest(tmp_path, [record("v.mp4", 0)])
    with pytest.raises(InputError, match="lists none"):
        PairStore(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[]", "no json", '{"per_video": [{}]}'])
def test_a_damaged_manifest_is_one_line(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(
        InputError, match=r"manifest.json (is not readable JSON|has content that does not fit).*--resume"
    ):
        PairStore(tmp_path)


def test_a_missing_shard_is_named_at_once(root):
    shard_path(root, "films/cat.mp4").unlink()
    with pytest.raises(InputError, match=r"lacks 1 shards, .*cat-"):
        PairStore(root)


def test_only_what_the_manifest_lists_is_read(root):
    write_manifest(root, [record("films/cat.mp4", 1)])
    assert PairStore(root).videos == ["films/cat.mp4"]


def test_manifest_sums_its_records(tmp_path):
    records = [{**record("a", 2), "rejected": {"cut": 1}}, {**record("b", 1), "rejected": {"cut": 2, "alike": 1}}]
    manifest = write_manifest(tmp_path, records, {"seed": 1})
    assert {k: manifest[k] for k in ("videos", "pairs", "rejected", "settings")} == {
        "videos": 2,
        "pairs": 3,
        "rejected": {"alike": 1, "cut": 3},
        "settings": {"seed": 1},
    }


def test_a_remote_folder_is_fetched_shard_by_shard(root, pairs, tmp_path, monkeypatch):
    memory = fsspec.filesystem("memory")
    for path in root.rglob("*.*"):
        memory.pipe_file(f"/bucket/{path.relative_to(root)}", path.read_bytes())
    monkeypatch.setenv("FP_LIGHTNING_CACHE", str(tmp_path / "cache"))
    store = PairStore("memory://bucket")
    assert torch.equal(store[2].source, pairs[2].source)
    fetched = [path.name for path in (tmp_path / "cache").rglob("*.safetensors")]
    assert fetched == [shard_path("", "films/cat.mp4").name]
    memory.rm("/bucket/shards", recursive=True)
    assert torch.equal(pickle.loads(pickle.dumps(store))[2].target, pairs[2].target)  # from the cache
    with pytest.raises(InputError, match="memory://bucket"):
        store[0]


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b"garbage", lambda b: b""])
def test_a_damaged_shard_is_named(root, damage):
    path = shard_path(root, "films/cat.mp4")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=path.name):
        PairStore(root)[2]


def test_a_damaged_image_is_named(root):
    path = shard_path(root, "films/cat.mp4")
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    content[header:] = bytes(len(content) - header)
    path.write_bytes(content)
    with pytest.raises(InputError, match=path.name):
        PairStore(root)[2]
