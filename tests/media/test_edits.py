"""Saved edits: what goes into a file comes out of it, whoever wrote it, and `predict` makes the same pixels of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_editor
from lightning.pytorch import Trainer
from PIL import Image

from callbacks import PredictionWriter
from datamodules import AllSignalsDataModule
from fp_lightning.errors import InputError
from fp_lightning.inference.pipeline import FramePainterPipeline
from fp_lightning.media.edits import FORMAT, Edit, _to_text, parse_edit, read_edit
from fp_lightning.model.fingerprint import fingerprint
from fp_lightning.training.module import FramePainterModule


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, len(mode)), np.uint8)
    return Image.fromarray(pixels.squeeze(), mode)


def strokes(width: int, height: int) -> Image.Image:
    drawn = Image.new("RGBA", (width, height))
    drawn.paste((255, 0, 0, 255), (width // 4, height // 4, width // 2, height // 2))
    return drawn


def example(width: int = 90, height: int = 70, **changes) -> Edit:
    given = {
        "sketch": strokes(width, height),
        "points": [[10, 20, 30.5, 40]],
        "region": noise(width, height, "L", 2),
        "settings": {"num_inference_steps": 2, "guidance_scale": 2.0, "height": 64, "width": 64, "keep_unedited": True},
        "seed": 11,
        "model": "mine",
        "drawing": {"strokes": []},
    }
    return Edit(noise(width, height), **given | changes)


def test_what_is_saved_is_read_again(tmp_path):
    edit = example(coarse=noise(90, 70, "RGBA", 3))
    read = read_edit(edit.save(tmp_path / "a.edit.json"))
    for name in ("image", "sketch", "coarse", "region"):
        own = getattr(edit, name)
        assert np.array_equal(np.array(own), np.array(getattr(read, name).convert(own.mode))), name
    for name in ("points", "settings", "seed", "model", "drawing"):
        assert getattr(edit, name) == getattr(read, name), name


def test_of_a_coarse_edit_only_what_it_changes_is_kept(tmp_path):
    photo = noise(300, 200)
    coarse = photo.copy()
    coarse.paste((1, 2, 3), (10, 10, 40, 40))
    coarse.putpixel((100, 100), (0, 0, 0))
    edit = Edit(photo, coarse=coarse)
    assert len(edit.to_bytes()) < 1.1 * len(Edit(photo).to_bytes())
    assert np.array_equal(np.array(read_edit(edit.save(tmp_path / "a.edit.json")).coarse), np.array(coarse))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "another"}, "its format is 'another'"),
        ({"image": None}, "has no image"),
        ({"image": "data:text/plain;base64,aGk="}, "image of x is not a PNG"),
        ({"image": "data:image/png;base64,aGk="}, "image of x is not an image that can be read"),
        ({"image": "data:image/png;base64,???"}, "image of x is damaged"),
        ({"sketch": 3}, "sketch of x is not a PNG"),
        ({"coarse_changes": _to_text(noise(3, 4, "RGBA"))}, "coarse_changes are .3, 4. pixels"),
        ({"points": [[1, 2, 3000, 4]]}, "ends at .3000, 4., outside of its image"),
        ({"points": "all"}, "row 1 is a;"),
        ({"seed": -1}, "seed -1; it must be a whole number"),
        ({"seed": True}, "seed True"),
        ({"settings": []}, "settings of x are"),
        ({"settings": {"path": "/etc"}}, "has the setting 'path'; choose from num_inference_steps"),
        ({"settings": {"num_inference_steps": "many"}}, "num_inference_steps of x is 'many'"),
        ({"settings": {"num_inference_steps": True}}, "num_inference_steps of x is 'True'"),
        ({"settings": {"guidance_scale": float("inf")}}, "guidance_scale of x is 'inf'"),
    ],
)
def test_what_is_not_usable_is_said_on_one_line(change, message):
    content = json.loads(example().to_bytes()) | change
    with pytest.raises(InputError, match=message) as caught:
        parse_edit(json.dumps({k: v for k, v in content.items() if v is not None}).encode(), "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'["format"]'])
def test_other_files_are_refused(data):
    with pytest.raises(InputError, match=f"JSON|must be '{FORMAT}'"):
        parse_edit(data, "x")


def test_a_missing_file_and_a_large_image_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_edit(tmp_path / "no.edit.json")
    with pytest.raises(InputError, match="90 × 70 pixels, more than 0.005 million"):
        parse_edit(example().to_bytes(), "x", max_pixels=5000)


@pytest.fixture(scope="module")
def editor():
    return make_editor()


def predict(editor, folder: Path, batch_size: int) -> Path:
    data = AllSignalsDataModule(inputs=str(folder), size=(64, 64), batch_size=batch_size)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[PredictionWriter(str(folder / "out"))]
    )
    trainer.predict(FramePainterModule(editor), data, return_predictions=False)
    return folder / "out"


@pytest.mark.parametrize("batch_size", [1, 3])
def test_predict_makes_the_same_pixels_as_the_pipeline(editor, tmp_path, batch_size):
    edits = {"a": example(), "b": example(120, 64, region=None, points=None, seed=5)}
    pipe = FramePainterPipeline.from_editor(editor, (64, 64))
    pipe.set_progress_bar_config(disable=True)
    noise(50, 40).save(tmp_path / "plain.png")
    strokes(50, 40).save(tmp_path / "plain.sketch.png")
    for name, edit in edits.items():
        edit.save(tmp_path / f"{name}.edit.json")
    out = predict(editor, tmp_path, batch_size)
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "b.png", "plain.png"]
    for name, edit in edits.items():
        again = read_edit(tmp_path / f"{name}.edit.json").arguments()
        expected = np.array(pipe(**edit.arguments()).images[0])
        assert np.array_equal(expected, np.array(pipe(**again).images[0]))
        assert np.array_equal(expected, np.array(Image.open(out / f"{name}.png")))
    assert Image.open(out / "plain.png").size == (50, 40)


def test_other_weights_than_those_that_made_it_are_said(editor, tmp_path, caplog):
    example(weights=fingerprint(editor.control_encoder)).save(tmp_path / "same.edit.json")
    predict(editor, tmp_path, 1)
    assert "different weights" not in caplog.text
    example(weights="0" * 64, model="theirs").save(tmp_path / "other.edit.json")
    predict(editor, tmp_path, 1)
    assert "saved by theirs with different weights" in caplog.text


def test_two_files_of_one_name_are_refused(tmp_path):
    example().save(tmp_path / "a.edit.json")
    noise(50, 40).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="would write the same result"):
        AllSignalsDataModule(inputs=str(tmp_path)).setup("predict")


def test_outside_of_the_region_the_photo_is_kept_to_the_bit(editor):
    region = Image.new("L", (90, 70))
    region.paste(255, (30, 20, 60, 50))
    pipe = FramePainterPipeline.from_editor(editor, (64, 64))
    pipe.set_progress_bar_config(disable=True)
    edit = example(region=region, settings={"num_inference_steps": 1, "guidance_scale": 1.0})
    photo, edited = np.array(edit.image), np.array(pipe(**edit.arguments()).images[0])
    outside = np.array(region) == 0
    assert np.array_equal(edited[outside], photo[outside])
    inside = np.array(pipe(**{**edit.arguments(), "region": None}).images[0])[30:40, 40:50]
    assert np.array_equal(edited[30:40, 40:50], inside) and not np.array_equal(inside, photo[30:40, 40:50])


def test_the_denoised_latents_are_told(editor):
    told = []
    pipe = FramePainterPipeline.from_editor(editor, (64, 64))
    pipe.set_progress_bar_config(disable=True)

    def keep(pipe, step, timestep, tensors):
        told.append(tensors)

    result = pipe(
        **example(region=None, settings={"num_inference_steps": 3, "guidance_scale": 1.0}).arguments(),
        output_type="latent",
        callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=("latents", "denoised"),
    ).images
    assert all(set(tensors) == {"latents", "denoised"} for tensors in told)
    assert torch.equal(told[-1]["latents"], result)
    torch.testing.assert_close(told[-1]["denoised"], result)  # at noise level 0 they are the same
    assert not torch.allclose(told[0]["denoised"], told[0]["latents"], atol=0.1)
