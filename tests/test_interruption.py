"""Runs that are stopped from outside: what is left of them, and that they go on as if nothing had happened."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import make_editor
from lightning import Callback, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks import LastCheckpoint, TrainableEMA
from datamodules import SceneDataModule
from fp_lightning.module import FramePainterModule
from fp_lightning.sampler import Sampling

STEPS = 24
RUN = [
    *("fit", "--config", "tiny", "--data.class_path=datamodules.SceneDataModule", "--data.size=[32,32]"),
    *("--data.batch_size=2", "--data.train_samples=16", "--data.val_samples=2", "--model.warmup=2"),
    *("--model.sampling.num_inference_steps=1", f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=4"),
    "--trainer.log_every_n_steps=1",
]


def start(out: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "fp_lightning", *RUN, f"--trainer.default_root_dir={out}", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


def last(out: Path) -> dict:
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)


def losses(out: Path) -> dict[str, str]:
    """By step, as they were logged; a step that was made twice counts as it was made last."""
    with (out / "metrics.csv").open() as file:
        return {row["step"]: row["train/total"] for row in csv.DictReader(file) if row["train/total"]}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("whole")
    finish(start(out))
    return last(out) | {"folder": out}


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on_to_the_same_end(uninterrupted, tmp_path, how):
    process = start(tmp_path)
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(how)
    _, errors = process.communicate(timeout=120)
    if how == signal.SIGTERM:
        assert process.returncode == 143 and "go on with --ckpt_path" in errors
    else:
        assert process.returncode == -signal.SIGKILL
    reached = last(tmp_path)["global_step"]
    assert 4 <= reached < STEPS
    assert not list((tmp_path / "checkpoints").glob("*.partial"))
    finish(start(tmp_path, f"--ckpt_path={checkpoint}"))
    end = last(tmp_path)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert same(end[part], uninterrupted[part]), part
    assert losses(tmp_path) == losses(uninterrupted["folder"])
    averages = [state["callbacks"]["TrainableEMA"] for state in (end, uninterrupted)]
    assert same(*averages)


class Terminated(Callback):
    """SIGTERM to itself, in the middle of training or of a validation."""

    def __init__(self, when: str) -> None:
        self.when = when

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if self.when == "training" and trainer.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        if self.when == "validation" and trainer.global_step == 4 and batch_idx == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def fit(folder: Path, steps: list, when: str = "never", ckpt_path: Path | None = None) -> dict:
    """8 steps, a validation of two batches after every second; fills `steps` with (step, loss) as they are logged."""

    class Log(DummyLogger):
        def log_metrics(self, metrics, step=None):
            if "train/total" in metrics:
                steps.append((step, metrics["train/total"]))

    trainer = Trainer(
        accelerator="cpu", max_steps=8, val_check_interval=2, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        callbacks=[TrainableEMA(0.9), LastCheckpoint(folder), Terminated(when)], logger=Log(), log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    module = FramePainterModule(make_editor(), learning_rate=1e-3, sampling=Sampling(1, guidance_scale=1.0))
    data = SceneDataModule(size=(32, 32), batch_size=2, train_samples=8, val_samples=4)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return torch.load(folder / "last.ckpt", weights_only=True)


@pytest.mark.parametrize(("when", "reached"), [("training", 6), ("validation", 4)])
def test_sigterm_leaves_a_checkpoint_of_that_step(tmp_path, when, reached):
    whole: list = []
    wanted = fit(tmp_path / "whole", whole)
    steps: list = []
    with pytest.raises(SIGTERMException):
        fit(tmp_path / "run", steps, when)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == reached
    found = fit(tmp_path / "run", steps, ckpt_path=tmp_path / "run" / "last.ckpt")
    assert steps == whole
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert same(found[part], wanted[part]), part
    assert same(found["callbacks"]["TrainableEMA"], wanted["callbacks"]["TrainableEMA"])
