"""Conversion: lossless round trips, refusal of wrong files, and no partial results."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import Command
from conftest import make_editor
from PIL import Image
from safetensors.torch import load_file, save_file

from datamodules import SketchDataModule
from fp_lightning.errors import InputError
from fp_lightning.inference.pipeline import FramePainterPipeline
from fp_lightning.model.build import build_editor
from fp_lightning.model.editor import OFFICIAL
from fp_lightning.model.edm import seeded_generator
from fp_lightning.weights.convert import RELEASED, convert_checkpoint, convert_pipeline, convert_released
from fp_lightning.weights.tensorfiles import open_tensors, write_tensors

UNET, CONTROL = RELEASED["unet"], RELEASED["control_encoder"]


@pytest.fixture(scope="module")
def released_files(tmp_path_factory) -> Path:
    """Files with released names and keys, in half precision, of the tiny networks."""
    folder, editor = tmp_path_factory.mktemp("released"), make_editor(match_queries="both", tiny=True).half()
    unet = {k.replace(".attn1.processor.", ".sparse_attention."): v for k, v in editor.prior.unet.state_dict().items()}
    save_file({k: v.contiguous() for k, v in unet.items()}, folder / UNET, {"format": "pt"})
    save_file(editor.control_encoder.state_dict(), folder / CONTROL, {"format": "pt"})
    return folder


@pytest.fixture
def released(released_files, tmp_path) -> Path:
    """A copy for tests that damage it."""
    return shutil.copytree(released_files, tmp_path / "released")


def convert(released: Path, out: Path, model: Path, **options):
    return convert_released(str(released), out, str(model), size=(64, 64), **options)


def test_released_to_pipeline_to_released_keeps_every_bit(released_files, tiny_folder, tmp_path):
    convert(released_files, tmp_path / "pipe", tiny_folder)
    convert_pipeline(str(tmp_path / "pipe"), tmp_path / "back")
    for name in (UNET, CONTROL):
        before, after = load_file(released_files / name), load_file(tmp_path / "back" / name)
        assert before.keys() == after.keys()
        assert all(v.dtype == after[k].dtype and torch.equal(v, after[k]) for k, v in before.items())


def test_a_converted_pipeline_has_the_released_settings_and_weights(released_files, tiny_folder, tmp_path):
    convert(released_files, tmp_path / "pipe", tiny_folder)
    pipe = FramePainterPipeline.from_pretrained(tmp_path / "pipe")
    settings = pipe.editor.settings()
    assert settings == {"attention": "matching", **OFFICIAL}
    released, converted = load_file(released_files / UNET), pipe.unet.state_dict()
    for name, value in released.items():
        assert torch.equal(value, converted[name.replace(".sparse_attention.", ".attn1.processor.")].to(value.dtype)), (
            name
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_types_are_converted_on_request(released_files, tiny_folder, tmp_path, dtype):
    convert(released_files, tmp_path / "pipe", tiny_folder, dtype=dtype)
    for path in (tmp_path / "pipe").rglob("*.safetensors"):
        assert {t.dtype for t in open_tensors(path).values() if t.dtype.is_floating_point} == {dtype}, path


def test_a_fit_starts_from_a_pipeline_folder(released_files, tiny_folder, tmp_path):
    convert(released_files, tmp_path / "pipe", tiny_folder)
    editor = build_editor(str(tmp_path / "pipe"), **OFFICIAL)
    control, released = editor.control_encoder.state_dict(), load_file(released_files / CONTROL)
    assert editor.trained and all(torch.equal(control[k], v.float()) for k, v in released.items())
    branch = [p for n, p in editor.prior.unet.named_parameters() if ".processor.to_out" in n]
    assert branch and all(p.abs().sum() > 0 and p.requires_grad for p in branch)


def test_another_setting_than_the_saved_one_is_warned_of(released_files, tiny_folder, tmp_path, caplog):
    convert(released_files, tmp_path / "pipe", tiny_folder)
    editor = build_editor(str(tmp_path / "pipe"))
    assert editor.settings()["match_queries"] == "target"
    assert "match_queries both (now target), control_frames both (now target)" in caplog.text
    assert "--config official" in caplog.text


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run of two steps of the tiny build, with predictions."""
    out = tmp_path_factory.mktemp("run")
    inputs = out / "inputs"
    inputs.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    Image.fromarray(pixels).resize((90, 70)).save(inputs / "photo.png")
    drawn = Image.new("L", (90, 70))
    drawn.paste(255, (20, 20, 60, 24))
    drawn.save(inputs / "photo.sketch.png")
    root = ["--trainer.default_root_dir", str(out), "--data.size", "[64, 64]", "--model.sampling.num_inference_steps=2"]
    small = ["--data.class_path=datamodules.SceneDataModule", "--data.train_samples=4", "--data.val_samples=2"]
    steps = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--data.batch_size=2", "--model.warmup=0"]
    last = ["--ckpt_path", str(out / "checkpoints" / "last.ckpt"), "--data.inputs", str(inputs)]
    fit = ["fit", "--config", "tiny", *small, *root, *steps]
    predict = ["predict", "--config", "tiny", "--config", "signals/sketch", *root, *last]
    for words in (fit, predict):
        Command(words, errors=out / "errors.log").finish()
    return out


@pytest.mark.parametrize("weights", ["auto", "raw"])
def test_a_converted_checkpoint_edits_as_predict_does(run, tmp_path, weights):
    checkpoint = run / "checkpoints" / "last.ckpt"
    converted = convert_checkpoint(checkpoint, tmp_path / "pipe", weights)
    pipe = FramePainterPipeline.from_pretrained(tmp_path / "pipe")
    pipe.set_progress_bar_config(disable=True)
    photo, drawn = Image.open(run / "inputs" / "photo.png"), Image.open(run / "inputs" / "photo.sketch.png")
    edited = pipe(
        photo, drawn, num_inference_steps=2, guidance_scale=1.0, generator=seeded_generator(0, "edit", "photo")
    ).images[0]
    predicted = Image.open(run / "predictions" / "photo.png")
    away = np.abs(np.array(edited, int) - np.array(predicted, int))
    same = away.max() <= 1 and (away > 0).mean() < 1e-3  # another process rounds a value in ten thousand otherwise
    assert same == (weights == "auto")  # predict uses the average
    assert ("average" if weights == "auto" else "raw") in str(converted)


def test_a_checkpoint_of_an_unknown_model_asks_for_it(run, tmp_path):
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    del state["origin"]
    torch.save(state, tmp_path / "old.ckpt")
    with pytest.raises(InputError, match="does not say its model; pass --model"):
        convert_checkpoint(tmp_path / "old.ckpt", tmp_path / "pipe")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("touched-by-a-pickle"),))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "editor": Evil()}, "evil.ckpt")
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        convert_checkpoint("evil.ckpt", "pipe", model="tiny", size=(64, 64))
    assert not Path("touched-by-a-pickle").exists() and not Path("pipe").exists()


def damage(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("conv_in.bias"), r"1 missing in unet \(first: conv_in.bias \(64,\)\)"),
        (lambda t: t.update(more=torch.ones(2)), r"1 unexpected in unet \(first: more \(2,\)\)"),
        (
            lambda t: t.update({"conv_in.bias": torch.ones(3)}),
            r"1 misshapen in unet \(first: conv_in.bias \(3,\) instead of \(64,\)\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_written(released, tiny_folder, tmp_path, change, message):
    damage(released / UNET, change)
    with pytest.raises(InputError, match=message) as caught:
        convert(released, tmp_path / "out" / "pipe", tiny_folder)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_truncated_file_is_named(released, tiny_folder, tmp_path):
    path = released / CONTROL
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"{CONTROL} is not a complete safetensors file"):
        convert(released, tmp_path / "pipe", tiny_folder)


@pytest.mark.parametrize("dump", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_with_another_name_is_not_opened(released, tiny_folder, tmp_path, dump):
    dump({"a": Evil()}, released / UNET)
    with pytest.raises(InputError, match=rf"{UNET} is a pickle"):
        convert(released, tmp_path / "pipe", tiny_folder)
    assert not Path("touched-by-a-pickle").exists()


def test_folders_that_are_no_pipelines_are_named(tiny_folder, tmp_path):
    with pytest.raises(InputError, match="has no model_index.json; `fp-lightning convert`"):
        convert_pipeline(str(tiny_folder), tmp_path / "out")
    shutil.copytree(tiny_folder, tmp_path / "other")
    (tmp_path / "other" / "model_index.json").write_text(json.dumps({"_class_name": "StableVideoDiffusionPipeline"}))
    with pytest.raises(InputError, match="is a StableVideoDiffusionPipeline, not a FramePainterPipeline"):
        convert_pipeline(str(tmp_path / "other"), tmp_path / "out")


def test_a_missing_released_folder_says_where_to_get_it(tiny_folder, tmp_path):
    with pytest.raises(InputError, match=r"no model folder .*nowhere; get it with `hf download Yabo/FramePainter"):
        convert(tmp_path / "nowhere", tmp_path / "pipe", tiny_folder)


def test_an_existing_result_is_not_replaced(released, tiny_folder, tmp_path):
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe" / "mine").touch()
    with pytest.raises(InputError, match="pipe exists; choose another name"):
        convert(released, tmp_path / "pipe", tiny_folder)
    assert [path.name for path in (tmp_path / "pipe").iterdir()] == ["mine"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_written_tensors_are_read_back_by_the_library(tmp_path, dtype):
    tensors = {
        "odd": torch.arange(3).half(),
        "wide": torch.rand(2, 5),
        "scalar": torch.tensor(4),
        "none": torch.ones(0),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    write_tensors(tmp_path / "b.safetensors", open_tensors(tmp_path / "a.safetensors"), dtype)
    for name, value in load_file(tmp_path / "b.safetensors").items():
        kind = dtype if tensors[name].is_floating_point() else tensors[name].dtype
        assert torch.equal(value, tensors[name].to(kind)) and value.dtype == kind


def test_the_data_module_is_remembered(run):
    origin = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["origin"]
    expected = {"model": "tiny", "trains": "all", "optimizer": "adamw", "size": [64, 64], "signals": ["sketch"]}
    expected |= {"data_seed": 0}
    assert origin == expected
    assert SketchDataModule(pairs=None).signals == ("sketch",)
