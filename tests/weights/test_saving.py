"""Weights saved over earlier ones: only the newest are left, in every order of forms."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fp_lightning import FramePainterPipeline
from fp_lightning.weights.folders import open_part
from fp_lightning.weights.saving import is_weights, save_over
from fp_lightning.weights.tensorfiles import open_weights

NAMES = {
    "diffusion_pytorch_model.safetensors": None,
    "diffusion_pytorch_model.bin": None,
    "diffusion_pytorch_model-00001-of-00002.safetensors": None,
    "diffusion_pytorch_model.safetensors.index.json": None,
    "model.safetensors": None,
    "pytorch_model.bin": None,
    "pytorch_model.bin.index.json": None,
    "diffusion_pytorch_model.fp16.safetensors": "fp16",
    "diffusion_pytorch_model.fp16-00001-of-00002.safetensors": "fp16",
    "model-00001-of-00002.fp16.safetensors": "fp16",
    "model.safetensors.index.fp16.json": "fp16",
}


@pytest.mark.parametrize(("name", "variant"), NAMES.items())
def test_weight_files_are_known_by_their_variant(name, variant):
    assert is_weights(name, variant) and not is_weights(name, "fp16" if variant is None else None)


@pytest.mark.parametrize("name", ["config.json", "README.md", "my_model.safetensors", "model.txt", "model_index.json"])
def test_other_files_are_no_weights(name):
    assert not is_weights(name)


def test_saving_deletes_the_same_variant_and_nothing_else(tmp_path):
    (tmp_path / "unet").mkdir()
    for name in [*NAMES, "notes.txt"]:
        (tmp_path / "unet" / name).write_text("old")

    def save(folder: Path) -> None:
        (folder / "unet").mkdir()
        (folder / "unet" / "diffusion_pytorch_model.safetensors").write_text("new")
        (folder / "model_index.json").write_text("new")

    save_over(tmp_path, save)
    left = {path.name: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    other_variant = {name: "old" for name, variant in NAMES.items() if variant}
    new = dict.fromkeys(["diffusion_pytorch_model.safetensors", "model_index.json"], "new")
    assert left == {**other_variant, "notes.txt": "old", **new}


def test_a_failed_save_leaves_the_earlier_one(tmp_path):
    (tmp_path / "model.safetensors").write_text("old")

    def save(folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_over(tmp_path, save)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("model.safetensors", "old")]


SHARDED = {"max_shard_size": "100KB"}


@pytest.mark.parametrize("forms", [({}, SHARDED), (SHARDED, {})], ids=["whole first", "shards first"])
def test_a_pipeline_saved_over_another_gives_its_newest_weights(tmp_path, forms):
    pipe = FramePainterPipeline.from_pretrained("tiny-editor")
    parts = ("unet", "control_encoder", "vae", "image_encoder")
    for value, form in zip((0.25, 0.625), forms, strict=True):
        for part in parts:
            with torch.no_grad():
                next(iter(getattr(pipe, part).parameters())).fill_(value)
        pipe.save_pretrained(tmp_path, **form)
    loaded = FramePainterPipeline.from_pretrained(tmp_path)
    for part in parts:
        name, weight = next(iter(getattr(loaded, part).named_parameters()))
        assert bool((weight == 0.625).all()), part
        assert torch.equal(open_part(tmp_path, part)[name].read(), weight), part
    assert not list(tmp_path.glob(".saving-*"))


@pytest.mark.parametrize(("stem", "value"), [("diffusion_pytorch_model", 2.0), ("model", 1.0)])
def test_of_two_forms_the_one_is_checked_that_the_library_loads(tmp_path, stem, value):
    """diffusers prefers shards, transformers the single file."""
    save_file({"a": torch.tensor(1.0)}, tmp_path / f"{stem}.safetensors")
    save_file({"a": torch.tensor(2.0)}, tmp_path / f"{stem}-00001-of-00001.safetensors")
    index = f'{{"weight_map": {{"a": "{stem}-00001-of-00001.safetensors"}}}}'
    (tmp_path / f"{stem}.safetensors.index.json").write_text(index)
    assert open_weights(tmp_path, stem)["a"].read() == value
