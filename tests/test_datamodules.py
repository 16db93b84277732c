"""Data modules: splits by video, samples that seeds alone decide, every signal and mix, the predict folder."""

import json
import logging
import pickle
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from PIL import Image, ImageDraw

from datamodules import (
    AllSignalsDataModule,
    CoarseDataModule,
    PointsDataModule,
    SceneClipDataModule,
    SceneDataModule,
    SketchDataModule,
)
from datamodules.loaders import EpochSampler, ResumableLoader, ShareSampler
from datamodules.scenes import scene_seed
from datamodules.signals import Coarse, Points, Sketch
from datamodules.splits import split_videos
from fp_lightning.errors import InputError
from fp_lightning.media import reading
from fp_lightning.pairs.shards import write_manifest, write_shard
from fp_lightning.scenes.content import SceneContent
from fp_lightning.scenes.scene import Scene
from fp_lightning.signals.coarse import coarse_edit
from fp_lightning.signals.sketch import sketch
from fp_lightning.types import to_uint8

VIDEOS, PER_VIDEO = 5, 2
ALL = ("sketch", "coarse", "points")


def write_pairs(root: Path, videos: int = VIDEOS) -> str:
    """A folder of PER_VIDEO pairs of every video."""
    records = []
    for video in range(videos):
        name, pairs = f"clip{video}.mp4", [Scene(10 * video + i, (64, 64)).pair() for i in range(PER_VIDEO)]
        write_shard(root, name, pairs)
        records.append({"video": name, "pairs": len(pairs), "rejected": {}, "error": None})
    write_manifest(root, records)
    return str(root)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def module(stored, stage="fit", **options) -> SketchDataModule:
    data = SketchDataModule(pairs=stored, size=(64, 64), **{"batch_size": 2, **options})
    data.setup(stage)
    return data


def names(loader) -> list[str]:
    return [name for batch in loader for name in batch.name]


def drags_of(batch, i: int) -> list[list[float]]:
    """The drags of one sample of a batch."""
    return [] if batch.points is None else batch.points[i][batch.points_valid[i]].tolist()


def video_of(name: str) -> str:
    return name.rsplit("-", 1)[0]


# --- splits


def test_no_video_is_in_two_splits_and_none_is_lost(stored):
    data = module(stored, val_fraction=0.3, test_fraction=0.3)
    parts = [
        set(map(video_of, names(loader)))
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    ]
    assert len(set.union(*parts)) == sum(map(len, parts)) == VIDEOS


def test_small_fractions_still_get_a_video():
    parts = split_videos(["a", "b", "c"], 0.01, 0.01, seed=0)
    assert [len(parts[split]) for split in ("train", "val", "test")] == [1, 1, 1]


def test_fraction_zero_gives_none():
    parts = split_videos(["a", "b"], 0, 0.5, seed=0)
    assert [len(parts[split]) for split in ("train", "val", "test")] == [1, 0, 1]


def test_seed_decides_the_split():
    videos = [str(i) for i in range(20)]
    assert split_videos(videos, 0.2, 0.2, 1) == split_videos(videos, 0.2, 0.2, 1)
    assert split_videos(videos, 0.2, 0.2, 1) != split_videos(videos, 0.2, 0.2, 2)


@pytest.mark.parametrize(("count", "val"), [(2, 0.1), (5, 0.9), (5, -0.1)])
def test_impossible_splits_are_errors(count, val):
    with pytest.raises(InputError, match=f"{count} videos cannot be split"):
        split_videos([str(i) for i in range(count)], val, 0.1, 0)


def test_overfit_uses_the_same_pairs_everywhere(stored):
    data = module(stored, overfit=True, limit_pairs=3)
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    assert len({video_of(name) for name in names(loaders[1])}) == 3  # spread over videos
    assert set(names(loaders[1])) == set(names(loaders[2])) >= set(names(loaders[0]))


def test_limit_holds_for_each_split(stored):
    data = module(stored, limit_pairs=1)
    assert [data.length(split) for split in ("train", "val", "test")] == [1, 1, 1]


def test_validating_without_a_validation_split_is_an_error(stored):
    with pytest.raises(InputError, match="val_fraction"):
        module(stored, "validate", val_fraction=0.0)
    assert module(stored, "fit", val_fraction=0.0).val_dataloader() == []


@pytest.mark.parametrize("pairs", [None, "nowhere"])
def test_missing_pairs_name_the_command(pairs):
    with pytest.raises(InputError, match="fp-lightning pairs"):
        module(pairs)


# --- samples


def test_sample_is_the_stored_pair(stored):
    data = module(stored)
    sample, pair = data.sample("val", 0), data.store[data.indices["val"][0]]
    assert torch.equal(to_uint8(sample.source[0]), pair.source)
    assert torch.equal(to_uint8(sample.target[0]), pair.target)
    assert torch.equal(sample.control[0], sketch(pair))
    assert sample.control_valid.tolist() == [True]
    assert sample.points is None
    assert torch.equal(sample.tracks[0], pair.tracks)
    assert torch.equal(sample.visible[0], pair.visible)
    assert torch.equal(sample.moving[0], pair.moving())


def test_size_scales_images_and_tracks_together(stored):
    full, half = module(stored).sample("val", 0), SketchDataModule(pairs=stored, size=(32, 32))
    half.setup("fit")
    small = half.sample("val", 0)
    assert small.source.shape == small.control.shape == (1, 3, 32, 32)
    torch.testing.assert_close(small.tracks, full.tracks / 2)


def test_names_are_unique(stored):
    data = module(stored, overfit=True)
    assert len(set(names(data.test_dataloader()))) == VIDEOS * PER_VIDEO


def test_training_drops_the_last_batch_only_if_there_is_another(stored):
    assert [len(b) for b in module(stored, batch_size=4).train_dataloader()] == [4]  # of 6
    assert [len(b) for b in module(stored, batch_size=8).train_dataloader()] == [6]


def test_epochs_differ_in_order_and_setting_one_repeats_it(stored):
    loader = module(stored, overfit=True).train_dataloader()
    first, second = names(loader), names(loader)
    assert sorted(first) == sorted(second)
    assert first != second
    loader.sampler.set_epoch(0)
    assert names(loader) == first


SEEDED = {
    "pairs": lambda stored, **how: SketchDataModule(pairs=stored, size=(64, 64), flip=True, **how),
    "all": lambda stored, **how: AllSignalsDataModule(pairs=stored, size=(64, 64), flip=True, **how),
    "scenes": lambda stored, **how: SceneDataModule(size=(32, 32), train_samples=4, signals=ALL, **how),
}


@pytest.mark.parametrize("kind", SEEDED)
def test_neither_workers_nor_batch_size_change_a_sample(stored, kind):
    def samples(batch_size: int, workers: int):
        data = SEEDED[kind](stored, batch_size=batch_size, num_workers=workers)
        data.setup("fit")
        loader = data.train_dataloader()
        return {
            (epoch, name): (batch.target[i], batch.control[i], drags_of(batch, i))
            for epoch in range(2)
            for batch in loader
            for i, name in enumerate(batch.name)
        }

    alone = samples(1, 0)
    for other in (samples(2, 0), samples(2, 1)):
        assert alone.keys() >= other.keys() and len(other) >= 8
        for key, (target, control, drags) in other.items():
            assert torch.equal(alone[key][0], target) and torch.equal(alone[key][1], control)
            assert alone[key][2] == drags


def test_data_module_goes_to_a_process_without_its_trainer(stored):
    data = module(stored)
    data.trainer = lambda: None  # does not pickle
    copy = pickle.loads(pickle.dumps(data))
    assert copy.trainer is None
    assert torch.equal(copy.sample("val", 0).source, data.sample("val", 0).source)


def test_flipped_twice_is_the_pair():
    pair = Scene(3, (64, 64), SceneContent(objects=(2, 2))).pair()
    twice = pair.mirrored().mirrored()
    for name in ("source", "target", "flow_to_source", "flow_to_target", "visible"):
        assert torch.equal(getattr(twice, name), getattr(pair, name))
    torch.testing.assert_close(twice.tracks, pair.tracks)


def test_flipped_motion_fits_the_flipped_images():
    pair = Scene(3, (64, 64)).pair(stride=1).mirrored()
    y, x = np.mgrid[:64, :64] + 0.5
    torch.testing.assert_close(pair.tracks, pair.flow_to_source + torch.tensor(np.stack([x, y]), dtype=torch.float32))
    inside = pair.flow_to_source.norm(dim=0) > 1
    at = (pair.tracks.round().long() - 1).clamp(0, 63)
    found = pair.source[:, at[1], at[0]].float()
    assert (found - pair.target.float())[:, inside].abs().median() < 20


def test_flip_mirrors_some_training_samples_and_no_others(stored):
    plain, mirrored = module(stored), module(stored, flip=True)
    same = [torch.equal(plain.sample("train", i).source, mirrored.sample("train", i).source) for i in range(30)]
    assert 0 < sum(same) < 30
    assert torch.equal(plain.sample("val", 0).source, mirrored.sample("val", 0).source)


# --- signals


def data_module(kind, stored, **options):
    data = kind(pairs=stored, size=(64, 64), **options)
    data.setup("fit")
    return data


def test_training_sketches_are_by_hand_unless_told_otherwise(stored):
    hand, exact = module(stored), module(stored, sketch=Sketch(augment=False))
    assert not all(torch.equal(hand.sample("train", i).control, exact.sample("train", i).control) for i in range(6))
    for split, data in (("train", exact), ("val", hand), ("test", hand)):
        assert torch.equal(data.sample(split, 0).control[0], sketch(data.pair(split, 0)[1]))


def test_settings_of_a_sketch_reach_it(stored):
    thick = module(stored, sketch=Sketch(line_width=5 / 64)).sample("val", 0).control
    assert thick.sum() > 2 * module(stored).sample("val", 0).control.sum()


def test_a_pair_is_drawn_anew_in_every_epoch_and_always_the_same_in_validation(stored):
    data = data_module(PointsDataModule, stored, limit_pairs=1)
    first, second = (data.sample("train", count).points for count in (0, 1))
    assert data.sample("train", 0).name == data.sample("train", 1).name
    assert first.shape != second.shape or not torch.equal(first, second)
    assert torch.equal(data.sample("val", 0).points, data.sample("val", 0).points)


def test_points_alone_have_no_control_image(stored):
    sample = data_module(PointsDataModule, stored, points=Points(3, 3)).sample("train", 0)
    assert sample.control is None and sample.control_valid is None
    assert sample.points.shape == (1, 3, 4)
    assert sample.points_valid.all()


def test_points_of_a_mirrored_pair_follow_its_own_tracks(stored):
    data = data_module(PointsDataModule, stored, flip=True)
    plain = data_module(PointsDataModule, stored)
    count = next(
        i for i in range(20) if not torch.equal(data.pair("train", i)[1].source, plain.pair("train", i)[1].source)
    )
    tracks = data.pair("train", count)[1].tracks
    for x_src, y_src, x_tgt, y_tgt in data.sample("train", count).points[0].tolist():
        assert tracks[:, int(y_tgt) // 8, int(x_tgt) // 8].tolist() == [x_src, y_src]


def test_coarse_edits_are_splatted_and_some_of_training_are_cut(stored):
    data = data_module(CoarseDataModule, stored, coarse=Coarse(cut_probability=0.5), val_fraction=0.3)
    pairs = [data.pair("train", i)[1] for i in range(12)]
    drawn = [data.sample("train", i).control[0] for i in range(12)]
    cut = [torch.equal(image, coarse_edit(pair, mode="cut")) for image, pair in zip(drawn, pairs, strict=True)]
    splat = [torch.equal(image, coarse_edit(pair, mode="splat")) for image, pair in zip(drawn, pairs, strict=True)]
    assert all(a or b for a, b in zip(cut, splat, strict=True))
    assert 0 < sum(cut) < 12
    for i in range(2):
        assert torch.equal(data.sample("val", i).control[0], coarse_edit(data.pair("val", i)[1], mode="splat"))


def kinds(data, count: int) -> list[tuple[bool, bool]]:
    """Of `count` training samples: whether each has a control image, and whether it has points."""
    samples = [data.sample("train", i) for i in range(count)]
    return [(bool(sample.control_valid), sample.points.shape[1] > 0) for sample in samples]


def test_each_sample_of_a_mix_has_one_signal_and_sometimes_more():
    alone = kinds(scenes(signals=ALL, together=0.0, stride=2), 60)
    assert set(alone) == {(True, False), (False, True)}
    assert 8 < sum(points for _, points in alone) < 32  # a third of 60
    assert set(kinds(scenes(signals=ALL, together=1.0, stride=2), 5)) == {(True, True)}
    assert sum(control and points for control, points in kinds(scenes(signals=ALL, together=0.25, stride=2), 80)) > 8


def test_a_mix_batches_whatever_its_samples_have(stored):
    batch = next(iter(data_module(AllSignalsDataModule, stored, batch_size=6, overfit=True).train_dataloader()))
    assert batch.control.shape == (6, 3, 64, 64)
    assert batch.control_valid.shape == (6,)
    assert batch.points.shape[:2] == batch.points_valid.shape


def test_a_mix_of_two_leaves_the_third_out(stored):
    data = data_module(AllSignalsDataModule, stored, signals=("points", "sketch"))
    assert data.signals == ("points", "sketch")
    assert all(set(data.sample("train", i).control.unique().tolist()) <= {0.0, 1.0} for i in range(10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"signals": ("scribble",)}, "there is no signal 'scribble'; choose from sketch, coarse, points"),
        ({"signals": ()}, "signals must name one or more"),
        ({"signals": ("sketch", "sketch")}, "each once"),
        ({"together": 1.5}, "together must be between 0 and 1, got 1.5"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_workers": -1}, "num_workers at least 0"),
    ],
)
def test_impossible_options_are_errors(options, message):
    with pytest.raises(InputError, match=message):
        AllSignalsDataModule(**options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Sketch, {"drop": 1.5}),
        (Sketch, {"wobble": -1}),
        (Sketch, {"thickness": 0.5}),
        (Coarse, {"cut_probability": -0.1}),
        (Points, {"least": 0}),
        (Points, {"least": 5, "most": 4}),
    ],
)
def test_impossible_settings_of_a_signal_are_errors(kind, options):
    with pytest.raises(InputError, match=str(next(iter(options.values())))):
        kind(**options)


def test_an_error_in_a_loader_process_is_the_one_line_that_it_was_raised_with(tmp_path):
    root = write_pairs(tmp_path, videos=2)
    data = SketchDataModule(pairs=root, size=(64, 64), overfit=True, num_workers=1)
    data.setup("fit")
    for shard in (tmp_path / "shards").iterdir():
        shard.write_bytes(b"broken")
    with pytest.raises(InputError, match="is damaged") as caught:
        next(iter(data.train_dataloader()))
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


# --- scenes


def scenes(**options) -> SceneDataModule:
    data = SceneDataModule(size=(32, 32), batch_size=2, train_samples=4, val_samples=3, test_samples=2, **options)
    data.setup("fit")
    return data


def test_scene_batches_have_exact_tracks_and_a_sketch():
    batch = next(iter(scenes(stride=4).val_dataloader()))
    assert batch.tracks.shape == (2, 2, 8, 8)
    assert batch.visible.shape == (2, 8, 8)
    assert batch.control.amax(dim=(1, 2, 3)).tolist() == [1, 1]


@pytest.mark.parametrize("data", [SceneDataModule, SceneClipDataModule])
def test_what_is_wrong_with_the_content_of_scenes_shows_at_once(data):
    with pytest.raises(InputError, match=r"detail of a scene .* got 1\.5"):
        data(detail=1.5)


def test_training_scenes_never_repeat_and_validation_ones_stay():
    data = scenes()
    loader = data.train_dataloader()
    assert len(set(names(loader) + names(loader) + names(loader))) == 12
    assert names(data.val_dataloader()) == names(data.val_dataloader())


def test_scene_seeds_are_disjoint():
    seeds = [
        scene_seed(seed, split, count) for seed in (0, 1) for split in ("train", "val", "test") for count in range(50)
    ]
    assert len(set(seeds)) == len(seeds)


def test_epoch_sampler_counts_on():
    sampler = EpochSampler(5, seed=0)
    assert [sorted(sampler) for _ in range(2)] == [list(range(5)), list(range(5, 10))]
    sampler.set_epoch(7)
    assert sorted(sampler) == list(range(35, 40))


# --- predict


@pytest.fixture
def folder(tmp_path):
    """One image of 40 × 60 (height × width) with a white stroke on black."""
    Image.new("RGB", (60, 40), (255, 0, 0)).save(tmp_path / "photo.jpg")
    drawn = Image.new("L", (60, 40))
    drawn.paste(255, (30, 0, 32, 40))
    drawn.save(tmp_path / "photo.sketch.png")
    return tmp_path


def predict(folder, kind=SketchDataModule, **options):
    data = kind(inputs=str(folder), size=(32, 64), batch_size=1, **options)
    data.setup("predict")
    return list(data.predict_dataloader())


def test_predict_needs_no_pairs_and_tells_the_full_size(folder):
    (batch,) = predict(folder)
    assert batch.name == ["photo"]
    assert batch.full_size == [(40, 60)]
    assert batch.source.shape == batch.control.shape == (1, 3, 32, 64)
    assert batch.source[0, :, 5, 5].tolist() == pytest.approx([1, -1, -1], abs=0.02)
    assert batch.target is None


def test_strokes_are_where_they_were_drawn(folder):
    control = predict(folder)[0].control[0, 0]
    assert set(control.unique().tolist()) == {0.0, 1.0}
    assert control[:, 32:34].all()
    assert not control[:, :31].any()
    assert not control[:, 36:].any()


def test_thin_strokes_survive_shrinking(folder):
    drawn = Image.new("L", (600, 400))
    drawn.paste(255, (301, 0, 302, 400))
    Image.new("RGB", (600, 400)).save(folder / "photo.jpg")
    drawn.save(folder / "photo.sketch.png")
    assert predict(folder)[0].control[0, 0].sum(1).tolist() == [1.0] * 32


def test_ink_on_paper_is_strokes_and_said_so(folder, caplog):
    expected = predict(folder)[0].control
    image = Image.open(folder / "photo.sketch.png")
    Image.fromarray(255 - np.array(image)).save(folder / "photo.sketch.png")
    with caplog.at_level(logging.WARNING):
        assert torch.equal(predict(folder)[0].control, expected)
    assert "photo.sketch.png has a bright ground, (255, 255, 255)" in caplog.text


def test_opaque_strokes_on_a_transparent_sheet_count(folder):
    expected = predict(folder)[0].control
    alpha = Image.open(folder / "photo.sketch.png")
    sheet = Image.new("RGBA", alpha.size)  # black ink
    sheet.putalpha(alpha)
    sheet.save(folder / "photo.sketch.png")
    assert torch.equal(predict(folder)[0].control, expected)


def test_a_sketch_of_another_size_is_stretched_and_both_sizes_are_named(folder, caplog):
    Image.new("L", (30, 30)).save(folder / "photo.sketch.png")
    with caplog.at_level(logging.WARNING):
        assert predict(folder)[0].control.shape == (1, 3, 32, 64)
    assert "30x30" in caplog.text
    assert "60x40" in caplog.text


def test_a_turned_photo_is_upright(folder):
    image = Image.new("RGB", (60, 40))
    image.paste((255, 255, 255), (0, 0, 30, 40))  # the left half, which is the top when upright
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(folder / "photo.jpg", exif=exif)
    Image.new("L", (40, 60)).save(folder / "photo.sketch.png")
    (batch,) = predict(folder)
    assert batch.full_size == [(60, 40)]
    assert batch.source[0, 0, 2].mean() > 0.9 > -0.9 > batch.source[0, 0, -3].mean()


def test_a_missing_sketch_is_named(folder):
    (folder / "photo.sketch.png").unlink()
    with pytest.raises(InputError, match=r"put photo\.sketch\.png beside it"):
        predict(folder)


@pytest.mark.parametrize("name", ["photo.jpg", "photo.sketch.png"])
def test_an_unreadable_file_is_named(folder, name):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=f"{name} is not an image that can be read .*; save it again as PNG or JPEG"):
        predict(folder)


def write_points(folder, rows) -> None:
    (folder / "photo.points.json").write_text(json.dumps({"points": rows}))


def test_points_are_scaled_to_the_network(folder):
    write_points(folder, [[6, 4, 30, 20], [0, 0, 60, 40]])
    (batch,) = predict(folder, PointsDataModule)
    assert batch.control is None
    assert drags_of(batch, 0)[0] == pytest.approx([6.4, 3.2, 32, 16])
    assert drags_of(batch, 0)[1] == pytest.approx([0, 0, 64, 32], rel=1e-5)


def test_a_coarse_edit_is_the_control_image(folder):
    Image.new("RGB", (60, 40), (0, 255, 0)).save(folder / "photo.coarse.jpg", quality=100)
    control = predict(folder, CoarseDataModule)[0].control
    assert control[0, :, 5, 5].tolist() == pytest.approx([0, 1, 0], abs=0.02)


def test_any_signals_beside_an_image_are_read_together(folder):
    Image.new("RGB", (60, 40), (255, 0, 0)).save(folder / "dragged.jpg")
    (folder / "dragged.points.json").write_text('{"points": [[1, 2], [3, 4]]}')
    Image.new("RGB", (60, 40), (0, 255, 0)).save(folder / "photo.coarse.png")
    dragged, photo = predict(folder, AllSignalsDataModule)
    assert (dragged.name, photo.name) == (["dragged"], ["photo"])
    assert dragged.control_valid.tolist() == [False] and len(drags_of(dragged, 0)) == 1
    assert photo.control_valid.tolist() == [True] and drags_of(photo, 0) == []
    assert photo.control[0, :, 5, 33].tolist() == [1, 1, 1]  # the stroke
    assert photo.control[0, :, 5, 5].tolist() == [0, 1, 0]  # the coarse edit
    data = AllSignalsDataModule(inputs=str(folder), size=(32, 64), batch_size=2)
    data.setup("predict")
    assert [len(batch) for batch in data.predict_dataloader()] == [2]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (PointsDataModule, r"photo\.jpg has no signal; put photo\.points\.json beside it"),
        (CoarseDataModule, r"put photo\.coarse\.png beside it"),
        (AllSignalsDataModule, r"put photo\.sketch\.png or photo\.coarse\.png or photo\.points\.json beside it"),
    ],
)
def test_a_missing_signal_is_named(folder, kind, message):
    (folder / "photo.sketch.png").unlink()
    with pytest.raises(InputError, match=message):
        predict(folder, kind)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"points": [[1, 2', "is not readable JSON"),
        ("[[1, 2, 3, 4]]", 'has no "points"'),
        ('{"points": [[1, 2, 3, 4], [1, 2, 3]]}', r"row 2 is \[1, 2, 3\]"),
        ('{"points": [[1, 2, 3, 4], [50, 2, 61, 4]]}', r"point 2 ends at \(61, 4\).* 60x40"),
    ],
)
def test_unusable_points_name_the_file_on_one_line(folder, text, message):
    (folder / "photo.points.json").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        predict(folder, PointsDataModule)
    assert str(caught.value).startswith(str(folder / "photo.points.json")) and "\n" not in str(caught.value)


def test_two_images_of_one_name_are_refused(folder):
    Image.new("RGB", (8, 8)).save(folder / "photo.png")
    with pytest.raises(InputError, match="rename one"):
        predict(folder)


def test_other_signals_are_no_images(folder):
    Image.new("RGB", (8, 8)).save(folder / "photo.coarse.png")
    assert len(predict(folder)) == 1


def test_hidden_and_system_files_need_no_word(folder, caplog):
    for name in ("._photo.jpg", ".DS_Store", "Thumbs.db", ".hidden.png"):
        (folder / name).write_bytes(bytes.fromhex("0005160700020000"))
    assert len(predict(folder)) == 1
    assert "not edited" not in caplog.text


def test_files_that_are_left_out_are_named_in_one_line(folder, caplog, monkeypatch):
    monkeypatch.setattr(reading, "formats", lambda: ("PNG", "JPEG"))
    for name in ("notes.txt", "b.HEIC", "c.heif", "other.sketch.png", "photo.points.json"):
        (folder / name).write_bytes(b"x")
    (folder / "sub.png").mkdir()
    assert len(predict(folder)) == 1
    (line,) = [record.getMessage() for record in caplog.records if "not edited" in record.getMessage()]
    assert line == (
        f"{folder}: not edited: b.HEIC, c.heif (needs pip install 'fp-lightning[heif]'); notes.txt (not an image); "
        "other.sketch.png (no photo of that name); sub.png (a folder)"
    )


def test_a_folder_of_unreadable_formats_alone_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "formats", lambda: ("PNG", "JPEG"))
    (tmp_path / "b.heic").write_bytes(b"x")
    with pytest.raises(InputError, match=r"has no image \(b\.heic \(needs pip install 'fp-lightning\[heif\]'\)\)"):
        predict(tmp_path)


@pytest.mark.parametrize("ending", [".jpg", ".PNG", ".webp"])
def test_a_sketch_may_be_any_image_file(folder, ending):
    expected = predict(folder)[0].control
    with Image.open(folder / "photo.sketch.png") as drawn:
        drawn.save(folder / f"photo.sketch{ending}", quality=95)
    (folder / "photo.sketch.png").rename(folder / ".old.png")
    assert torch.equal(predict(folder)[0].control, expected)


def test_two_sketches_of_a_photo_are_refused(folder):
    Image.new("L", (60, 40)).save(folder / "photo.sketch.jpg")
    with pytest.raises(InputError, match=r"photo\.sketch\.png and .*photo\.sketch\.jpg are both signals of .*; "):
        predict(folder)


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_images_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=name):
        predict(tmp_path / name)


# --- shapes


def test_pairs_of_another_aspect_are_cropped_and_said_so_once(stored, caplog):
    with caplog.at_level(logging.INFO):
        data = SketchDataModule(pairs=stored, size=(32, 64), batch_size=2, num_workers=0)
        data.setup("fit")
        data.setup("validate")
    (line,) = [r.getMessage() for r in caplog.records if "stored at" in r.getMessage()]
    assert "stored at 64x64 and, for data.size 32x64 (height x width), cropped centrally to 32x64; " in line
    assert "--size 32 64" in line
    pair, whole = (each.pair("train", 0)[1] for each in (data, module(stored)))
    assert torch.equal(pair.source, whole.source[:, 16:48])
    (batch,) = islice(data.train_dataloader(), 1)
    assert batch.source.shape == (2, 3, 32, 64) and batch.tracks.shape == (2, 2, 4, 8)


def test_pairs_that_fit_need_no_word(stored, caplog):
    with caplog.at_level(logging.INFO):
        module(stored)
    assert "stored at" not in caplog.text


def test_training_needs_a_size(stored):
    data = SketchDataModule(pairs=stored, size="auto")
    with pytest.raises(InputError, match="data.size auto is for predict; set data.size"):
        data.setup("fit")


def circles(folder: Path, sizes: dict[str, tuple[int, int]]) -> Path:
    """Photos by name with a white circle in the middle, half as wide as the shorter side, and a sketch."""
    for name, (height, width) in sizes.items():
        image, radius = Image.new("RGB", (width, height)), min(height, width) // 4
        box = (width // 2 - radius, height // 2 - radius, width // 2 + radius, height // 2 + radius)
        ImageDraw.Draw(image).ellipse(box, fill="white")
        image.save(folder / f"{name}.png")
        image.save(folder / f"{name}.sketch.png")
    return folder


def auto(folder: Path, trained: tuple[int, int] | None = (64, 64), **options) -> SketchDataModule:
    data = SketchDataModule(inputs=str(folder), size="auto", **{"batch_size": 2, **options})
    prior = SimpleNamespace(size_multiple=8)
    network = SimpleNamespace(trained_size=trained, editor=SimpleNamespace(prior=prior))
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, lightning_module=network)
    data.setup("predict")
    return data


SHAPES = {"a": (300, 900), "b": (100, 100), "c": (310, 900), "d": (900, 300), "e": (305, 900)}


@pytest.mark.parametrize("workers", [0, 1])
def test_auto_chooses_a_size_for_each_photo_and_a_circle_stays_one(tmp_path, workers, caplog):
    batches = list(auto(circles(tmp_path, SHAPES), num_workers=workers).predict_dataloader())
    assert sorted(name for batch in batches for name in batch.name) == list(SHAPES)
    assert {tuple(batch.source.shape[-2:]): len(batch) for batch in batches if len(batch) > 1} == {(40, 120): 2}
    for batch in batches:
        for image, name, full in zip(batch.source, batch.name, batch.full_size, strict=True):
            assert full == SHAPES[name]
            bright = image[0] > 0
            assert abs(int(bright.any(0).sum()) - int(bright.any(1).sum())) <= 1
    assert "squeezed" not in caplog.text


def test_auto_needs_a_model_that_knows_its_size(tmp_path):
    with pytest.raises(InputError, match="data.size auto needs a model that knows its size"):
        auto(circles(tmp_path, SHAPES), trained=None).predict_dataloader()


def test_a_squeezed_photo_is_told_in_one_line(tmp_path, caplog):
    data = SketchDataModule(inputs=str(circles(tmp_path, SHAPES)), size=(64, 64), batch_size=2)
    data.setup("predict")
    assert len(list(data.predict_dataloader())) == 3
    (line,) = [r.getMessage() for r in caplog.records if "squeezed" in r.getMessage()]
    assert line.startswith("4 of 5 photos are squeezed to another aspect, such as") and "300x900 to 64x64" in line
    assert "--data.size auto" in line


# --- several ranks


@pytest.mark.parametrize("length", [8, 9])
def test_ranks_share_an_epoch_without_overlap(length):
    shares = [EpochSampler(length, seed=0, rank=rank, world=2) for rank in range(2)]
    for sampler in shares:
        sampler.set_epoch(3)
    first, second = (list(sampler) for sampler in shares)
    assert len(first) == len(second) == length // 2
    assert not set(first) & set(second)
    assert set(first + second) <= set(range(3 * length, 4 * length))


def test_a_loader_goes_on_after_the_batches_it_gave(stored):
    whole = names(module(stored, val_fraction=0, test_fraction=0).train_dataloader())
    first, second = (module(stored, val_fraction=0, test_fraction=0).train_dataloader() for _ in range(2))
    given = [name for batch in islice(first, 2) for name in batch.name]
    second.load_state_dict(first.state_dict())
    assert given + names(second) == whole


def rank_loader(data: SceneDataModule, rank: int, world: int) -> ResumableLoader:
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    return data.train_dataloader()


@pytest.mark.parametrize(("world", "batch_size", "batches"), [(1, 2, 4), (2, 2, 2), (4, 1, 2), (4, 2, 1), (1, 8, 1)])
def test_another_number_of_ranks_goes_on_without_losing_or_repeating_a_sample(world, batch_size, batches):
    """Two ranks that each have given two batches of two, of an epoch of 18 samples."""
    firsts = [rank_loader(SceneDataModule((32, 32), batch_size=2, train_samples=18), rank, 2) for rank in range(2)]
    given = [name for loader in firsts for batch in islice(loader, 2) for name in batch.name]
    state = firsts[0].state_dict()
    assert state == firsts[1].state_dict() and state["samples"] == 8
    rest = []
    for rank in range(world):
        loader = rank_loader(SceneDataModule((32, 32), batch_size=batch_size, train_samples=18), rank, world)
        assert loader.batches(state) == batches
        loader.load_state_dict(state)
        rest += names(loader)
    assert len(set(given + rest)) == len(given + rest) == 8 + len(loader) * loader.share - batches * loader.share


def test_a_loader_refuses_where_it_cannot_go_on():
    data = SceneDataModule((32, 32), batch_size=2, train_samples=18)
    state = {"samples": 8, "fingerprint": data.fingerprint()}
    with pytest.raises(InputError, match="other data"):
        SceneDataModule((32, 32), batch_size=2, train_samples=18, seed=1).train_dataloader().load_state_dict(state)
    with pytest.raises(InputError, match=r"8 samples into an epoch, not a multiple of 1 processes × data.batch_size 3"):
        SceneDataModule((32, 32), batch_size=3, train_samples=18).train_dataloader().load_state_dict(state)


@pytest.mark.parametrize(("length", "world"), [(9, 2), (8, 2), (7, 3)])
def test_ranks_share_an_evaluation_without_repeats(length, world):
    shares = [list(ShareSampler(length, rank, world)) for rank in range(world)]
    assert sorted(chain(*shares)) == list(range(length))


def test_a_rank_for_which_nothing_is_left_still_has_a_sample():
    assert [list(ShareSampler(2, rank, 4)) for rank in range(4)] == [[0], [1], [1], [1]]


@pytest.mark.parametrize(("length", "world"), [(9, 2), (8, 2), (2, 5)])
def test_even_shares_cover_everything(length, world):
    shares = [list(ShareSampler(length, rank, world, even=True)) for rank in range(world)]
    assert {len(share) for share in shares} == {-(-length // world)}
    assert set(chain(*shares)) == set(range(length))


@pytest.mark.parametrize(
    ("stage", "strategy", "given"),
    [("validate", DDPStrategy, [2, 1]), ("fit", DDPStrategy, [2, 2]), ("validate", FSDPStrategy, [2, 2])],
)
def test_shares_are_even_where_ranks_wait_for_each_other(stored, stage, strategy, given):
    """Three samples on two ranks: only DDP outside of `fit` runs its forward passes alone."""

    def share(rank: int) -> int:
        data = module(stored, "validate", limit_pairs=3, overfit=True)
        state = SimpleNamespace(fn=stage)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, state=state, strategy=object.__new__(strategy))
        return len(names(data.val_dataloader()))

    assert [share(rank) for rank in range(2)] == given
