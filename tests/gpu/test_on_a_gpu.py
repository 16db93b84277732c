"""What only a GPU can show. `make test-gpu` runs these tests; the same code on the CPU is a dry run of them."""

import csv
import sys
from contextlib import contextmanager
from dataclasses import replace

import lightning as L
import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from commandline import Command
from conftest import losses_of, make_batch, make_editor
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image, ImageDraw

from datamodules import SceneDataModule
from fp_lightning.bench.plan import SETTINGS, measured_peak
from fp_lightning.cli.trainer import configuration
from fp_lightning.inference.pipeline import FramePainterPipeline
from fp_lightning.inference.sampler import Sampling
from fp_lightning.model.matching_loss import FORMS, matching_loss
from fp_lightning.training.footprint import footprint
from fp_lightning.training.module import FramePainterModule
from fp_lightning.training.recipe_files import resolve_recipes

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
BOTH = pytest.mark.parametrize("device", ["cpu", GPU])
TYPES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}  # and the relative error that they allow


def relative(found, expected) -> float:
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return ((found - expected).norm() / expected.norm()).item()


# --- kernels


@BOTH
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("n", "m", "width"), [(70, 130, 16), (144, 144, 64), (65, 64, 128), (40, 96, 256)])
def test_the_matching_loss_equals_the_plain_version(device, n, m, width, dtype, form):
    """Plain: float32 on the CPU, of the same rounded queries and keys."""
    if device == "cuda":
        pytest.importorskip("triton", reason="Triton is not installed")
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, size, width, generator=g).to(dtype) for size in (n, m)]
    index = torch.randint(-m, m, (2, n), generator=g).clamp(min=-1)
    results = []
    for place, kind in ((device, dtype), ("cpu", torch.float32)):
        query, key = (x.to(place, kind).requires_grad_() for x in inputs)
        loss = matching_loss(query, key, index.to(place), form)
        results.append((loss, *torch.autograd.grad(loss, (query, key))))
    errors = [relative(found, expected) for found, expected in zip(*results, strict=True)]
    assert max(errors) < TYPES[dtype], errors


# --- training


class Losses(L.Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.values.append(outputs["loss"].detach().float().cpu())


def fit(folder, device, steps, precision="32-true", resume=None, **options):
    """Fit a small editor; return its losses, its weights and the path of the last checkpoint."""
    losses = Losses()
    trainer = L.Trainer(
        default_root_dir=folder,
        max_steps=steps,
        accelerator=device,
        devices=1,
        precision=precision,
        logger=False,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[losses, ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)],
    )
    module = FramePainterModule(make_editor(), learning_rate=1e-3, sampling=Sampling(1), **options)
    trainer.fit(module, SceneDataModule(size=(32, 32), batch_size=2, num_workers=0, train_samples=8), ckpt_path=resume)
    weights = {name: weight.detach().cpu() for name, weight in module.named_parameters() if weight.requires_grad}
    return torch.stack(losses.values), weights, folder / f"step={steps}.ckpt"


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("cpu"), "cpu", 4)[0]


@BOTH
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", pytest.param("16-mixed", marks=pytest.mark.gpu)])
def test_losses_are_those_of_the_cpu(on_the_cpu, tmp_path, device, precision):
    losses = fit(tmp_path, device, 4, precision)[0]
    assert relative(losses, on_the_cpu) < (1e-3 if precision == "32-true" else 0.03)


@BOTH
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, device):
    """On a GPU up to the order of summation."""
    _, whole, _ = fit(tmp_path / "whole", device, 4)
    checkpoint = fit(tmp_path / "first", device, 2)[2]
    losses, resumed, _ = fit(tmp_path / "second", device, 4, resume=checkpoint)
    assert len(losses) == 2
    for name, weight in whole.items():
        torch.testing.assert_close(resumed[name], weight, **({"rtol": 1e-3, "atol": 1e-4} if device == "cuda" else {}))


@BOTH
def test_moments_in_8_bits_train(tmp_path, device):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    losses, weights, _ = fit(tmp_path, device, 3, optimizer="adamw_8bit")
    assert losses.isfinite().all() and all(weight.isfinite().all() for weight in weights.values())


@contextmanager
def waiting_is_an_error(device):
    """Let torch raise where the host waits for the GPU; nothing on the CPU."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@BOTH
def test_a_training_step_does_not_wait_for_the_gpu(device):
    editor, batch = make_editor().to(device).train(), make_batch(2, size=32, points=3).to(device)
    for last in (False, True):  # the first compiles the kernels
        with waiting_is_an_error(device if last else "cpu"):
            with torch.autocast(device, torch.bfloat16):
                loss = losses_of(editor, batch).total
            loss.backward()
    assert loss.isfinite()


RUN = [
    *("--config", "tiny", "--data.class_path=datamodules.SceneDataModule", "--data.size=[32,32]"),
    *("--data.train_samples=16", "--data.val_samples=4", "--model.sampling.num_inference_steps=1"),
    *("--trainer.max_steps=4", "--trainer.val_check_interval=4", "--trainer.log_every_n_steps=1"),
    *("--trainer.accelerator=gpu", "--trainer.precision=32-true"),
]
ONE = [*RUN, "--data.batch_size=4", "--trainer.devices=1"]
TWO = [*RUN, "--data.batch_size=2", "--trainer.devices=2", "--trainer.strategy=ddp"]


def test_the_options_of_one_and_of_two_gpus_are_accepted():
    one, two = (configuration(resolve_recipes(words)) for words in (ONE, TWO))
    assert int(two.trainer.devices) == 2 and one.trainer.accelerator == "gpu"


def logged_losses(folder):
    with (folder / "metrics.csv").open() as file:
        return [float(row["train/total"]) for row in csv.DictReader(file) if row.get("train/total")]


@pytest.mark.gpu
def test_two_gpus_train_as_one(tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    for name, words in (("one", ONE), ("two", TWO)):
        words = ["fit", *words, f"--trainer.default_root_dir={tmp_path / name}"]
        Command(words, errors=tmp_path / f"{name}.log").finish()
    assert logged_losses(tmp_path / "two") == pytest.approx(logged_losses(tmp_path / "one"), rel=1e-3)


@BOTH
@pytest.mark.parametrize("name", ["tiny", pytest.param("tiny-bf16", marks=pytest.mark.gpu)])
def test_the_plan_foretells_the_peak(device, name):
    setting = replace(SETTINGS[name], batch_size=1, size=(32, 32)) if device == "cpu" else SETTINGS[name]
    measured = measured_peak(setting, device)
    assert footprint(setting, on_cpu=device == "cpu").peak == pytest.approx(measured, rel=0.15)


# --- editing


def pipeline(dtype=torch.float32) -> FramePainterPipeline:
    pipe = FramePainterPipeline.from_pretrained("tiny-editor", dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def edited(pipe) -> np.ndarray:
    photo, sketch = Image.new("RGB", (64, 64), (90, 130, 80)), Image.new("RGB", (64, 64))
    ImageDraw.Draw(photo).ellipse((16, 20, 36, 40), fill=(220, 60, 40))
    ImageDraw.Draw(sketch).ellipse((26, 20, 46, 40), outline=(255, 255, 255))
    options = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(0), "output_type": "np"}
    return pipe(photo, sketch, points=[[26, 30, 36, 30]], keep_unedited=True, **options).images[0]


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return edited(pipeline())


@BOTH
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.gpu)], ids=str
)
def test_the_pipeline_edits_as_on_the_cpu_in_float32(expected, device, dtype):
    difference = np.abs(edited(pipeline(dtype).to(device)) - expected).mean()
    assert difference < (0.002 if dtype == torch.float32 else 0.02)


@BOTH
@pytest.mark.parametrize("how", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offload_changes_nothing(expected, device, how):
    pipe = pipeline()
    if device == "cuda":
        getattr(pipe, how)()
    else:  # diffusers refuses to offload without a GPU
        for model in (pipe.image_encoder, pipe.unet, pipe.vae):
            cpu_offload(model, torch.device("cpu"), offload_buffers=len(model._parameters) > 0)
    assert np.abs(edited(pipe) - expected).mean() < 0.002


@pytest.mark.gpu
def test_a_compiled_network_edits_as_the_eager_one(expected):
    """tests/inference/test_pipeline.py does the same on the CPU."""
    pipe = pipeline().to("cuda")
    pipe.unet = torch.compile(pipe.unet)
    assert np.abs(edited(pipe) - expected).mean() < 0.002


@BOTH
def test_the_self_test_passes(device, monkeypatch, capsys):
    from fp_lightning.cli import selftest
    from fp_lightning.cli.main import main

    monkeypatch.setattr(selftest.torch.cuda, "is_available", lambda: device == "cuda")
    monkeypatch.setattr(sys, "argv", ["fp-lightning", "doctor"])
    assert main() == 0 and "self-test passed" in capsys.readouterr().out
