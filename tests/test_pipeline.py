"""The diffusers pipeline: sizes, every signal, save and load, agreement with the sampler."""

import numpy as np
import pytest
import torch
from conftest import make_editor
from PIL import Image

from fp_lightning import pipeline
from fp_lightning.editor import FramePainter
from fp_lightning.errors import InputError
from fp_lightning.images import coarse_image, drags, squeeze, strokes, unsqueeze
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


@pytest.fixture
def seen(pipe, monkeypatch) -> list[EditBatch]:
    """The batches that reach the sampler, whose work is skipped."""
    batches: list[EditBatch] = []

    def sample_latents(editor, batch, settings, generators, progress):
        batches.append(batch)
        return batch.source[:, None].expand(-1, 2, -1, -1, -1)

    monkeypatch.setattr(pipeline, "sample_latents", sample_latents)
    monkeypatch.setattr(FramePainter, "decode", lambda editor, latents: latents)
    return batches


def test_each_signal_arrives_at_the_size_of_the_network(pipe, seen):
    image, drawn, edited, points = picture(80, 60), drawing(80, 60), picture(80, 60, 1), [[8, 6, 40, 30]]
    pipe(image, drawn)
    pipe(image, coarse=edited)
    pipe(image, points=np.array(points))
    assert torch.equal(seen[0].control[0], strokes(drawn, (60, 80), (64, 64)))
    assert torch.equal(seen[1].control[0], coarse_image(edited, image, (64, 64)))
    assert torch.equal(seen[2].points[0], drags(points, (60, 80), (64, 64)))
    assert [batch.control is None for batch in seen] == [False, False, True]
    assert [batch.points is None for batch in seen] == [True, True, False]


def test_signals_of_one_image_go_together(pipe, seen):
    pipe(picture(64, 64), drawing(64, 64), picture(64, 64, 1), [[1, 2, 3, 4]])
    (batch,) = seen
    white = strokes(drawing(64, 64), (64, 64), (64, 64)) > 0
    assert (batch.control[0][white] == 1).all() and (batch.control[0][~white] > 0).any()
    assert batch.points_valid.tolist() == [[True]]


def test_images_of_one_batch_may_have_different_signals(pipe, seen):
    images = [picture(64, 64), picture(32, 48)]
    edited = pipe(images, sketch=[drawing(64, 64), None], points=[None, [[1, 2, 3, 4], [5, 6, 7, 8]]]).images
    (batch,) = seen
    assert [image.size for image in edited] == [(64, 64), (32, 48)]
    assert batch.control_valid.tolist() == [True, False]
    assert batch.points_valid.tolist() == [[False, False], [True, True]]


def test_points_change_the_edit(pipe):
    image = picture(64, 64)
    one, other = (edit(pipe, image, None, points=[[8, 8, x, 32]]) for x in (24, 48))
    assert not np.array_equal(np.array(one), np.array(other))


@pytest.mark.parametrize(
    ("images", "signals", "message"),
    [
        (1, {}, "image 0 has no signal; pass a sketch, a coarse edit or points"),
        (2, {"sketch": [drawing(64, 64), None]}, "image 1 has no signal"),
        (2, {"sketch": [drawing(64, 64)]}, "2 images need a list of as many sketch, got 1"),
        (2, {"sketch": drawing(64, 64)}, "2 images need a list of as many sketch, got no list"),
        (2, {"points": [[[1, 2, 3, 4]]]}, "2 images need a list of as many points, got 1"),
        (1, {"coarse": [picture(64, 64)]}, "coarse must be a PIL image, got list"),
        (1, {"points": [[1, 2, 3, 99]]}, r"point 1 ends at \(3, 99\), outside of its image, which is 64x64"),
        (
            2,
            {"sketch": [drawing(64, 64)] * 2, "generator": [torch.Generator()]},
            "2 images need as many generators, got 1",
        ),
    ],
)
def test_what_does_not_fit_is_named_on_one_line(pipe, seen, images, signals, message):
    with pytest.raises(InputError, match=message) as caught:
        pipe(picture(64, 64) if images == 1 else [picture(64, 64)] * images, **signals)
    assert "\n" not in str(caught.value)


def test_size_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="height must be a multiple of 8, got 60"):
        FramePainterPipeline.from_editor(make_editor(), (60, 64))


def test_a_turned_photo_is_upright(pipe):
    turned = picture(60, 40)
    turned.getexif()[0x0112] = 6
    assert edit(pipe, turned, drawing(40, 60)).size == (40, 60)
