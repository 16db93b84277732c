"""The diffusers pipeline: sizes, save and load, agreement with the sampler."""

import numpy as np
import pytest
import torch
from conftest import make_editor
from PIL import Image

from fp_lightning.errors import InputError
from fp_lightning.images import squeeze, strokes, unsqueeze
from fp_lightning.pipeline import FramePainterPipeline
from fp_lightning.sampler import Sampling, sample
from fp_lightning.types import EditBatch, to_unit_range


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def drawing(width: int, height: int) -> Image.Image:
    drawn = Image.new("RGB", (width, height))
    drawn.paste((255, 255, 255), (width // 4, height // 4, width // 2, height // 4 + 2))
    return drawn


@pytest.fixture(scope="module")
def pipe() -> FramePainterPipeline:
    pipe = FramePainterPipeline.from_editor(make_editor(), (64, 64))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def edit(pipe, image, sketch, seed=0, **options) -> Image.Image:
    return pipe(image, sketch, num_inference_steps=2, generator=torch.Generator().manual_seed(seed), **options).images[
        0
    ]


@pytest.mark.parametrize(("width", "height"), [(64, 64), (90, 160), (200, 50), (1, 1)])
def test_edits_come_back_at_the_size_of_the_image(pipe, width, height):
    assert edit(pipe, picture(width, height), drawing(width, height)).size == (width, height)


def test_pipeline_equals_the_sampler(pipe):
    image, drawn = picture(80, 60), drawing(80, 60)
    batch = EditBatch(
        source=to_unit_range(squeeze(image, (64, 64)))[None],
        control=strokes(drawn, (60, 80), (64, 64))[None],
        name=["a"],
    )
    expected = sample(pipe.editor, batch, Sampling(2), [torch.Generator().manual_seed(3)])[0]
    assert np.array_equal(np.array(edit(pipe, image, drawn, 3)), unsqueeze(expected, (60, 80)).permute(1, 2, 0).numpy())


@pytest.mark.parametrize("attention", ["matching", "cross_frame", "temporal"])
def test_saved_and_loaded_pipeline_gives_the_same_edit(tmp_path, attention):
    pipe = FramePainterPipeline.from_editor(make_editor(attention, control_frames="both", control_factor=0.7), (64, 64))
    pipe.save_pretrained(tmp_path / "pipe")
    loaded = FramePainterPipeline.from_pretrained(tmp_path / "pipe")
    assert loaded.config.control_frames == "both" and loaded.unet.config.attention == attention
    for each in (pipe, loaded):
        each.set_progress_bar_config(disable=True)
    image, drawn = picture(64, 64), drawing(64, 64)
    assert np.array_equal(np.array(edit(pipe, image, drawn)), np.array(edit(loaded, image, drawn)))


def test_batch_with_a_generator_each_equals_single_edits(pipe):
    images, drawings = [picture(64, 64, 1), picture(32, 48, 2)], [drawing(64, 64), drawing(32, 48)]
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    together = pipe(images, drawings, num_inference_steps=2, generator=generators).images
    for i, result in enumerate(together):
        alone = edit(pipe, images[i], drawings[i], seed=i + 1)
        assert result.size == images[i].size
        assert np.abs(np.array(result).astype(int) - np.array(alone)).max() <= 1


def test_without_a_generator_edits_differ(pipe):
    image, drawn = picture(64, 64), drawing(64, 64)
    first, second = (pipe(image, drawn, num_inference_steps=1).images[0] for _ in range(2))
    assert not np.array_equal(np.array(first), np.array(second))


def test_missing_sketches_and_generators_are_errors(pipe):
    with pytest.raises(InputError, match="1 images need as many sketches, got 0"):
        pipe(picture(64, 64))
    with pytest.raises(InputError, match="2 images need as many generators, got 1"):
        pipe([picture(64, 64)] * 2, [drawing(64, 64)] * 2, generator=[torch.Generator()])


def test_size_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="height must be a multiple of 8, got 60"):
        FramePainterPipeline.from_editor(make_editor(), (60, 64))


def test_a_turned_photo_is_upright(pipe):
    turned = picture(60, 40)
    turned.getexif()[0x0112] = 6
    assert edit(pipe, turned, drawing(40, 60)).size == (40, 60)
