"""Clips for a prior: what decides a batch, and what it says of its scenes."""

import pickle
from itertools import islice

import pytest
import torch

from datamodules import SceneClipDataModule
from datamodules.scenes import scene_seed
from fp_lightning.errors import InputError
from fp_lightning.scenes.scene import Scene
from fp_lightning.types import ClipBatch, to_unit_range


def clips(**options) -> SceneClipDataModule:
    return SceneClipDataModule(
        **{"size": (16, 24), "frames_per_batch": 4, "num_workers": 0, "train_batches": 4, "val_batches": 3, **options}
    )


def same(a: ClipBatch, b: ClipBatch) -> bool:
    return torch.equal(a.frames, b.frames) and torch.equal(a.motion, b.motion) and a.name == b.name


@pytest.mark.parametrize("split", ["train", "val"])
def test_workers_change_no_batch(split):
    def epochs(workers: int) -> list[ClipBatch]:
        data = clips(num_workers=workers)
        loader = data.train_dataloader() if split == "train" else data.val_dataloader()
        return [batch for _ in range(2) for batch in loader]

    alone, helped = epochs(0), epochs(1)
    assert len(alone) == (8 if split == "train" else 6)
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))


def test_a_batch_is_its_number_split_and_seed():
    data = clips()
    data.batch("train", 3)
    assert same(data.batch("train", 7), clips().batch("train", 7))
    first = data.batch("train", 0).frames[0, 0]
    for other in (data.batch("train", 1), data.batch("val", 0), clips(seed=1).batch("train", 0)):
        assert not torch.equal(first, other.frames[0, 0])


def test_a_batch_has_clips_of_one_length_that_fill_it():
    data = clips(frames=(2, 3), frames_per_batch=7)
    shapes = {tuple(data.batch("train", number).frames.shape[:2]) for number in range(12)}
    assert shapes == {(3, 2), (2, 3)}


def test_a_length_named_twice_comes_more_often():
    data = clips(frames=(2, 2, 2, 2, 2, 2, 2, 4))
    lengths = [data.batch("train", number).frames.shape[1] for number in range(24)]
    assert lengths.count(2) > lengths.count(4)


def test_frames_are_the_scenes_at_even_times():
    data = clips(frames=(3,))
    (clip,) = data.batch("train", 2).frames
    scene = Scene(scene_seed(0, "train", 2 * 4), (16, 24), data.content)
    for frame, time in zip(clip, (0.0, 0.5, 1.0), strict=True):
        assert torch.equal(frame, to_unit_range(torch.from_numpy(scene.frame(time, 2)).permute(2, 0, 1)))


def test_frames_are_in_the_unit_range():
    frames = torch.cat([clips(frames=(2,), exposure=1.0).batch("train", i).frames for i in range(4)])
    assert frames.shape == (8, 2, 3, 16, 24)
    assert -1 <= frames.min() < -0.5 and 0.5 < frames.max() <= 1


def test_motion_is_the_scenes_travel():
    data = clips(frames=(2,), objects=(1, 1), motion=(0.25, 0.25), turn=0.0, growth=0.0, variety=0.0)
    batch = data.batch("train", 5)
    scenes = [Scene(scene_seed(0, "train", 5 * 4 + i), (16, 24), data.content) for i in range(2)]
    assert batch.motion.tolist() == pytest.approx([scene.travel(0, 1) for scene in scenes])
    assert batch.motion.dtype == torch.float32
    assert batch.motion.tolist() == pytest.approx([0.25, 0.25], abs=1e-5)


def test_no_clip_comes_twice():
    loader = clips(frames=(2, 4)).train_dataloader()
    names = [name for _ in range(3) for batch in loader for name in batch.name]
    assert len(set(names)) == len(names) >= 12


def test_validation_clips_stay():
    loader = clips().val_dataloader()
    first, second = ([batch.name for batch in loader] for _ in range(2))
    assert first == second and len(first) == 3


def test_a_loader_goes_on_after_the_batches_it_gave():
    whole = [batch.name for batch in clips().train_dataloader()]
    first, second = clips().train_dataloader(), clips().train_dataloader()
    given = [batch.name for batch in islice(first, 3)]
    second.load_state_dict(first.state_dict())
    assert given + [batch.name for batch in second] == whole


def test_it_goes_to_a_process_without_its_trainer():
    data = clips()
    data.trainer = lambda: None  # does not pickle
    copy = pickle.loads(pickle.dumps(data))
    assert copy.trainer is None and same(copy.batch("val", 0), data.batch("val", 0))


@pytest.mark.parametrize("options", [{"frames": ()}, {"frames": (1, 2)}, {"frames": (2, 8)}, {"frames_per_batch": 1}])
def test_impossible_lengths_are_errors(options):
    with pytest.raises(
        InputError, match="clips must have 2 frames or more and frames_per_batch at least as many as the longest"
    ):
        clips(**options)


def test_to_moves_every_tensor_and_keeps_names():
    batch = clips(frames=(2,)).batch("train", 0)
    moved = batch.to(torch.float64)
    assert moved.frames.dtype == moved.motion.dtype == torch.float64
    assert moved.name == batch.name and len(moved) == 2
