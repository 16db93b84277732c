"""Data modules: splits by video, samples that seeds alone decide, the predict folder."""

import logging
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import SceneDataModule, SketchDataModule
from datamodules.base import flipped
from datamodules.splits import EpochSampler, split_videos
from fp_lightning.errors import InputError
from fp_lightning.scenes import Scene
from fp_lightning.shards import MANIFEST, write_shard
from fp_lightning.signals.sketch import sketch
from fp_lightning.types import to_uint8

VIDEOS, PER_VIDEO = 5, 2


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    for video in range(VIDEOS):
        pairs = [Scene(10 * video + i, (64, 64)).pair() for i in range(PER_VIDEO)]
        write_shard(root, f"clip{video}.mp4", pairs)
    (root / MANIFEST).write_text("{}")
    return str(root)


def module(stored, stage="fit", **options) -> SketchDataModule:
    data = SketchDataModule(pairs=stored, size=(64, 64), **{"batch_size": 2, **options})
    data.setup(stage)
    return data


def names(loader) -> list[str]:
    return [name for batch in loader for name in batch.name]


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


@pytest.mark.parametrize("kind", ["pairs", "scenes"])
def test_workers_change_nothing(stored, kind):
    def two_epochs(workers: int):
        if kind == "pairs":
            data = module(stored, num_workers=workers, flip=True)
        else:
            data = SceneDataModule(size=(32, 32), batch_size=2, train_samples=4, num_workers=workers)
            data.setup("fit")
        loader = data.train_dataloader()
        return [batch for _ in range(2) for batch in loader]

    for alone, helped in zip(two_epochs(0), two_epochs(1), strict=True):
        assert alone.name == helped.name
        assert torch.equal(alone.target, helped.target)


def test_data_module_goes_to_a_process_without_its_trainer(stored):
    data = module(stored)
    data.trainer = lambda: None  # does not pickle
    copy = pickle.loads(pickle.dumps(data))
    assert copy.trainer is None
    assert torch.equal(copy.sample("val", 0).source, data.sample("val", 0).source)


def test_flipped_twice_is_the_pair():
    pair = Scene(3, (64, 64), objects=(2, 2)).pair()
    twice = flipped(flipped(pair))
    for name in ("source", "target", "flow_to_source", "flow_to_target", "visible"):
        assert torch.equal(getattr(twice, name), getattr(pair, name))
    torch.testing.assert_close(twice.tracks, pair.tracks)


def test_flipped_motion_fits_the_flipped_images():
    pair = flipped(Scene(3, (64, 64)).pair(stride=1))
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


def test_training_scenes_never_repeat_and_validation_ones_stay():
    data = scenes()
    loader = data.train_dataloader()
    assert len(set(names(loader) + names(loader) + names(loader))) == 12
    assert names(data.val_dataloader()) == names(data.val_dataloader())


def test_scene_seeds_are_disjoint():
    seeds = [
        data.scene_seed(split, count)
        for data in (scenes(), scenes(seed=1))
        for split in ("train", "val", "test")
        for count in range(50)
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


def predict(folder, **options):
    data = SketchDataModule(inputs=str(folder), size=(32, 64), batch_size=1, **options)
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


def test_ink_on_paper_is_inverted_and_said_so(folder, caplog):
    expected = predict(folder)[0].control
    image = Image.open(folder / "photo.sketch.png")
    Image.fromarray(255 - np.array(image)).save(folder / "photo.sketch.png")
    with caplog.at_level(logging.WARNING):
        assert torch.equal(predict(folder)[0].control, expected)
    assert "inverted" in caplog.text


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
    with pytest.raises(InputError, match=f"{name} is not a readable image"):
        predict(folder)


def test_two_images_of_one_name_are_refused(folder):
    Image.new("RGB", (8, 8)).save(folder / "photo.png")
    with pytest.raises(InputError, match="rename one"):
        predict(folder)


def test_other_signals_are_no_images(folder):
    Image.new("RGB", (8, 8)).save(folder / "photo.coarse.png")
    assert len(predict(folder)) == 1


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_images_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=name):
        predict(tmp_path / name)


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
    loader = module(stored, val_fraction=0, test_fraction=0).train_dataloader()
    loader.load_state_dict({"given": 2})
    assert names(loader) == whole[4:]
