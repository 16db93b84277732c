"""Folders of predictions, published drag benchmarks, held-out lists and the user study."""

import csv
import json
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from datamodules import SketchDataModule
from fp_lightning.baselines.example import find_files
from fp_lightning.errors import InputError
from fp_lightning.evaluation.benchmarks import DragExamples, load_plain
from fp_lightning.evaluation.compare import SOURCE, TARGET, evaluate
from fp_lightning.evaluation.examples import PairExamples, write_examples
from fp_lightning.evaluation.study import QUESTIONS, build_study, score_study
from fp_lightning.pairs.heldout import choose_pairs, write_list
from fp_lightning.pairs.shards import PairStore, write_manifest, write_shard
from fp_lightning.scenes.scene import Scene
from fp_lightning.signals.region import RULE

SIZE = 64


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Four videos of two pairs."""
    root = tmp_path_factory.mktemp("pairs")
    for video in range(4):
        scenes = [Scene(10 * video + i, (SIZE, SIZE)).pair(stride=8) for i in range(2)]
        write_shard(root, f"video-{video}.mp4", scenes)
    write_manifest(root, [{"video": f"video-{v}.mp4", "pairs": 2, "rejected": {}, "error": None} for v in range(4)])
    return root


@pytest.fixture
def folders(pairs, tmp_path):
    """The target with a little noise, the target blurred, the source, and the target of another pair."""
    examples, rng = PairExamples(pairs), np.random.default_rng(0)
    made = {name: tmp_path / name for name in ("noisy", "blurred", "copy", "wrong")}
    for folder in made.values():
        folder.mkdir()
    for i, name in enumerate(examples.names):
        pair, other = examples.pair(i), examples.pair((i + 2) % len(examples.names))
        source, target, wrong = (x.permute(1, 2, 0).numpy() for x in (pair.source, pair.target, other.target))
        noisy = np.clip(target + rng.normal(0, 4, target.shape), 0, 255).astype(np.uint8)
        images = {"noisy": noisy, "copy": source, "wrong": wrong}
        for label, image in images.items():
            Image.fromarray(image).save(made[label] / f"{name}.png")
        Image.fromarray(target).filter(ImageFilter.GaussianBlur(2)).save(made["blurred"] / f"{name}.png")
    return made


def value(comparison, system, metric):
    return comparison["systems"][system][metric]["value"]


def test_systems_rank_as_they_should(pairs, folders, tmp_path):
    found = evaluate(list(folders.values()), PairExamples(pairs), tmp_path / "out")
    order = [value(found, label, "psnr_moving") for label in ("noisy", "blurred", "copy")]
    assert order == sorted(order, reverse=True)
    assert value(found, "wrong", "ssim") < min(value(found, label, "ssim") for label in ("noisy", "blurred", "copy"))
    assert value(found, "copy", "sketch_distance") == 64 > value(found, "noisy", "sketch_distance")
    assert value(found, TARGET, "drag_distance") < value(found, "copy", "drag_distance")
    for metric in found["systems"]["copy"]:  # PNG is lossless
        assert value(found, "copy", metric) == pytest.approx(value(found, SOURCE, metric), rel=1e-12)
    assert found["differences"]["copy"]["psnr_moving"]["better"] is False
    assert "clip_fid" in found["not_measured"]


def test_differences_are_those_of_the_images(pairs, folders, tmp_path):
    found = evaluate([folders["noisy"], folders["blurred"]], PairExamples(pairs), tmp_path / "out")
    entry = found["differences"]["blurred"]["psnr"]
    assert entry["value"] == pytest.approx(value(found, "blurred", "psnr") - value(found, "noisy", "psnr"))
    assert entry["interval"][0] <= entry["value"] <= entry["interval"][1]


def test_everything_is_written(pairs, folders, tmp_path):
    out = tmp_path / "out"
    found = evaluate([folders["noisy"], folders["copy"]], PairExamples(pairs), out)
    assert json.loads((out / "comparison.json").read_text()) == found
    assert json.loads((out / "noisy" / "metrics.json").read_text())["n"] == 8
    rows = list(csv.DictReader((out / "comparison.csv").open()))
    assert {row["system"] for row in rows} == {"noisy", "copy", SOURCE, TARGET}
    text = (out / "comparison.md").read_text()
    assert "| noisy | " in text and "Not measured: lpips" in text
    page = (out / "report.html").read_text()
    for stated in (text, page):
        assert f"longer than 1 px at 512 px width. {RULE}" in stated
    assert page.count("<article") == 8
    assert "src=" in page and "http" not in page.replace("https://download.pytorch.org", "").replace("hf download", "")


def test_bad_predictions_are_one_line_and_nothing_is_written(pairs, folders, tmp_path):
    examples, out, noisy = PairExamples(pairs), tmp_path / "out", folders["noisy"]
    first, second = (noisy / f"{name}.png" for name in examples.names[:2])

    def fails(match, *given, **options):
        with pytest.raises(InputError, match=match) as caught:
            evaluate(list(given) or [noisy], examples, out, **options)
        assert "\n" not in str(caught.value)
        assert not out.exists()

    fails("is not a folder", tmp_path / "nowhere")
    fails("given twice", noisy, noisy)
    fails("holds no prediction of any of 8 examples", tmp_path)
    kept = first.read_bytes()
    Image.open(first).convert("RGB").save(first.with_suffix(".jpg"))
    fails("are both predictions of")
    first.with_suffix(".jpg").unlink()
    first.write_bytes(kept[:200])
    fails("is not an image that can be read")
    first.unlink()
    fails("lacks 1 of 8 predictions; .*--allow-missing")
    Image.open(second).resize((32, 32)).save(second)
    fails("1 of 7 predictions .* differ in size .*32x32 instead of 64x64.*--resize", allow_missing=True)
    assert evaluate([noisy], examples, out, resize=True, allow_missing=True)["n"] == 7


def test_what_is_required_and_not_there_fails(pairs, folders, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(InputError, match="lpips is required and not measured"):
        evaluate([folders["noisy"]], PairExamples(pairs), tmp_path / "out", {"require": ("lpips",)})
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="require takes lpips and clip_fid"):
        evaluate([folders["noisy"]], PairExamples(pairs), tmp_path / "out", {"require": ("ssim",)})


# Held-out pairs


def test_a_list_holds_whole_videos_and_leaves_some(pairs):
    store = PairStore(pairs)
    chosen = choose_pairs(store, 4, seed=1)
    assert len(chosen) == 4
    assert len({store.videos[i] for i in chosen}) == 2
    assert chosen == choose_pairs(store, 4, seed=1) != choose_pairs(store, 4, seed=2)
    with pytest.raises(InputError, match="none is left for training"):
        choose_pairs(store, 8)


def test_a_list_fits_its_own_pairs_only(pairs, tmp_path):
    path, store = tmp_path / "heldout.json", PairStore(pairs)
    write_list(store, [1, 3], path, seed=0)
    assert PairExamples(pairs, path).names == [store.name(1), store.name(3)]
    content = json.loads(path.read_text())
    content["pairs"][1]["sha256"] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"1 of 2 pairs .* differ .*first {store.name(3)};"):
        PairExamples(pairs, path)
    content["pairs"][0]["name"] = "gone"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="lacks 1 of 2 pairs .*first gone;"):
        PairExamples(pairs, path)
    path.write_text("[]")
    with pytest.raises(InputError, match="is not a list of held-out pairs"):
        PairExamples(pairs, path)


def test_held_out_videos_neither_train_nor_validate(pairs, tmp_path):
    path, store = tmp_path / "heldout.json", PairStore(pairs)
    write_list(store, choose_pairs(store, 3), path, seed=0)
    listed = {pair["video"] for pair in json.loads(path.read_text())["pairs"]}
    data = SketchDataModule(pairs=str(pairs), size=(SIZE, SIZE), val_fraction=0.3, holdout=str(path))
    data.setup("fit")
    assert data.length("train") > 0 and data.length("val") > 0
    for split in ("train", "val"):
        assert not listed & {store.videos[i] for i in data.indices[split]}
    assert [store.name(i) for i in data.indices["test"]] == PairExamples(pairs, path).names
    with pytest.raises(InputError, match="exclude each other"):
        SketchDataModule(pairs=str(pairs), holdout=str(path), overfit=True)


def test_what_systems_are_given_is_what_predict_reads(pairs, tmp_path):
    write_examples(PairExamples(pairs), tmp_path / "inputs")
    data = SketchDataModule(inputs=str(tmp_path / "inputs"), size=(SIZE, SIZE))
    data.setup("predict")
    assert [image.name for image in data.images] == sorted(PairExamples(pairs).names)
    sample = data.predict_sample(0)
    expected = PairExamples(pairs)[PairExamples(pairs).names.index(sample.name[0])]
    assert torch.equal(sample.control, expected.control)
    assert torch.equal(sample.source, expected.source)


# Drag benchmarks


def save(path, size=(48, 40), value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 40, 200)).save(path)


@pytest.fixture
def published(tmp_path):
    """One example of each layout."""
    root = tmp_path / "published"
    save(root / "animals" / "cat" / "original_image.png")
    meta = {"prompt": "a cat", "points": [[10, 12], np.array([20, 12])], "mask": np.ones((40, 48), np.uint8)}
    (root / "animals" / "cat" / "meta_data.pkl").write_bytes(pickle.dumps(meta))
    save(root / "deer" / "input.png")
    save(root / "deer" / "gt.png", value=120)
    save(root / "deer" / "mask.png")
    (root / "deer" / "points.json").write_text('{"points": [[5, 6], [7, 8], [1, 2], [3, 4]]}')
    save(root / "train" / "original_image.png")
    operations = {"begin_points": [[5, 6]], "target_points": [[9, 6]]}
    (root / "train" / "instruction.json").write_text(json.dumps({"point_operations": operations}))
    save(root / "1_0" / "origin_image.png")
    save(root / "1_0" / "mask.png")
    prompt = {"prompt": "a hill", "source": [[256, 128]], "target": [[512 / 48, 256]]}
    (root / "1_0" / "prompt.json").write_text(json.dumps(prompt))
    (root / "en" / "track" / "single").mkdir(parents=True)
    save(root / "en" / "first_frame" / "7.jpg")
    tracks = np.array([[[4, 5], [6, 7]], [[8, 5], [6, 9]], [[99, 5], [6, 11]]], float)  # the first leaves the picture
    visible = np.array([[1, 1], [1, 1], [1, 0]], bool)
    np.save(root / "en" / "track" / "single" / "7_tracks.npy", tracks)
    np.save(root / "en" / "track" / "single" / "7_visibility.npy", visible)
    return root


def test_published_layouts_are_read(published):
    examples = DragExamples(published)
    assert examples.names == ["1_0", "animals-cat", "deer", "en-single-7", "train"]
    batches = {name: examples[i] for i, name in enumerate(examples.names)}
    assert batches["animals-cat"].points.tolist() == [[[10, 12, 20, 12]]]
    assert batches["deer"].points.tolist() == [[[5, 6, 7, 8], [1, 2, 3, 4]]]
    assert batches["train"].points.tolist() == [[[5, 6, 9, 6]]]
    assert batches["1_0"].points.tolist() == [[[24, 10, 1, 20]]]
    assert batches["en-single-7"].points.tolist() == [[[4, 5, 8, 5], [6, 7, 6, 9]]]
    assert [name for name, batch in batches.items() if batch.target is not None] == ["deer"]
    assert batches["deer"].moving.shape == (1, 1, 40, 48)
    assert [examples.region(i) is not None for i in range(5)] == [True, True, True, False, False]


def test_the_inputs_of_a_benchmark_keep_its_regions(published, tmp_path):
    examples = DragExamples(published)
    write_examples(examples, tmp_path)
    written = [name for name in examples.names if (tmp_path / f"{name}.region.png").is_file()]
    assert written == ["1_0", "animals-cat", "deer"]
    found = [each.region((40, 48)) for each in find_files(tmp_path, "points")]
    for index, region in enumerate(found):
        own = examples.region(index)
        assert (region is None and own is None) or torch.equal(region, own)


def test_drags_are_scored_without_targets(published, tmp_path):
    examples = DragExamples(published)
    save(tmp_path / "edits" / "animals" / "cat" / "dragged_image.png")
    save(tmp_path / "edits" / "deer.png")
    save(tmp_path / "edits" / "train" / "dragged_image.png")
    for name in ("1_0", "en-single-7"):
        save(tmp_path / "edits" / f"{name}.png")
    found = evaluate([tmp_path / "edits"], examples, tmp_path / "out")
    moved = (10 + 8**0.5 + 4 + 629**0.5 + 3) / 5 * 512 / 48  # nothing has, so handles are as far off as they were to go
    assert value(found, "edits", "drag_distance") == pytest.approx(moved, rel=1e-3)


class Evil:
    def __reduce__(self):
        return os.system, ("touch EVIL",)


@pytest.mark.parametrize("content", [pickle.dumps({"points": Evil()}), b"\x80\x04garbage", b""])
def test_a_pickle_that_is_more_than_data_is_not_loaded(published, content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = published / "animals" / "cat" / "meta_data.pkl"
    path.write_bytes(content)
    with pytest.raises(InputError, match="meta_data.pkl is not loaded"):
        DragExamples(published)[1]
    assert not (tmp_path / "EVIL").exists()


@pytest.mark.parametrize("value", [np.float64(2.5), np.arange(6).reshape(2, 3), b"bytes", [np.int64(3), "text", None]])
def test_plain_data_is_read_as_written(value, tmp_path):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(value, protocol))
        np.testing.assert_equal(load_plain(tmp_path / "x.pkl"), value)


def test_a_damaged_or_empty_benchmark_is_an_input_error(published, tmp_path):
    with pytest.raises(InputError, match="holds no drag benchmark"):
        DragExamples(tmp_path / "nowhere")
    (published / "deer" / "points.json").write_text('{"points": [[5, 6], [700, 8]]}')
    with pytest.raises(InputError, match="outside of its image"):
        DragExamples(published)[2]
    (published / "train" / "instruction.json").write_text("{}")
    with pytest.raises(
        InputError,
        match="instruction.json has content that does not fit .*KeyError: 'point_operations'.*download it again",
    ):
        DragExamples(published)[4]


# The study


def answer(key, rater, choose):
    """A rater's file: `choose(left, right)` returns a side or "same"."""
    answers = {
        str(i): dict.fromkeys(QUESTIONS, choose(item["left"], item["right"])) for i, item in enumerate(key["items"])
    }
    return {"format": "fp_lightning study answers 1", "study": key["study"], "rater": rater, "answers": answers}


@pytest.fixture
def study(pairs, folders, tmp_path):
    page = build_study(folders["noisy"], folders["copy"], PairExamples(pairs), tmp_path / "study", seed=3)
    return page, json.loads((tmp_path / "study" / "key.json").read_text())


def test_the_page_is_blind_and_the_sides_are_even(study):
    page, key = study
    text = page.read_text()
    assert "noisy" not in text and "copy" not in text
    assert not any(item["name"] in text for item in key["items"])
    assert sorted(item["left"] for item in key["items"]) == ["copy"] * 4 + ["noisy"] * 4
    assert text.count("<article") == 8 and "http" not in text


def test_sides_on_the_page_are_those_of_the_key(study, folders):
    import base64
    import io
    import re

    page, key = study
    shown = re.findall(r'alt="(left|right)" src="data:image/png;base64,([^"]+)"', page.read_text())
    for (side, data), (item, wanted) in zip(
        shown, [(item, side) for item in key["items"] for side in ("left", "right")], strict=True
    ):
        assert side == wanted
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        truth = Image.open(folders[item[side]] / f"{item['name']}.png")
        assert np.array_equal(np.asarray(image), np.asarray(truth))


def test_preferences_are_counted_for_the_system_not_the_side(study, tmp_path):
    _, key = study
    votes = {
        "a": lambda left, right: "left" if left == "noisy" else "right",
        "b": lambda left, right: "left" if left == "noisy" else "right",
        "c": lambda left, right: "same",
        "d": lambda left, right: "left" if left == "copy" else "right",
    }
    files = []
    for rater, choose in votes.items():
        files.append(tmp_path / f"{rater}.json")
        files[-1].write_text(json.dumps(answer(key, rater, choose)))
    result = score_study(tmp_path / "study" / "key.json", files)
    assert result["systems"] == ["noisy", "copy"] and result["raters"] == 4 and result["answers"] == 4 * 8 * 3
    for found in result["questions"].values():
        assert (found["wins"], found["ties"], found["losses"]) == (16, 8, 8)
        assert found["preferred"] == pytest.approx(2.5 / 4)
        assert found["interval"] == pytest.approx([2.5 / 4] * 2)  # every example had the same votes


def test_answers_of_another_study_or_twice_are_turned_away(study, tmp_path):
    _, key = study
    good, other = tmp_path / "good.json", tmp_path / "other.json"
    good.write_text(json.dumps(answer(key, "a", lambda left, right: "left")))
    given = answer(key, "b", lambda left, right: "left")
    path = tmp_path / "study" / "key.json"
    for change, match in (
        ({"study": "x"}, "answers study x"),
        ({"rater": "a"}, "are both from rater a"),
        ({"answers": {"99": {}}}, "answers that do not belong to its study"),
        ({"answers": {"0": {"quality": "up"}}}, "answers that do not belong to its study"),
        ({"format": "?"}, "is not a file of answers"),
    ):
        other.write_text(json.dumps(given | change))
        with pytest.raises(InputError, match=match):
            score_study(path, [good, other])
    good.write_text(json.dumps(given | {"answers": {}}))
    with pytest.raises(InputError, match="the files contain no answers"):
        score_study(path, [good])
    with pytest.raises(InputError, match="is not the key.json of a study"):
        score_study(other, [good])
