"""Runs that a signal stops: what they leave, and that a resumed run equals an uninterrupted one."""

import csv
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from commandline import Command
from conftest import make_editor
from lightning import Callback, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks import LastCheckpoint, TrainableEMA
from datamodules import SceneDataModule
from fp_lightning.inference.sampler import Sampling
from fp_lightning.training.module import FramePainterModule

STEPS = 16
RUN = [
    *("fit", "--config", "tiny", "--data.class_path=datamodules.SceneDataModule", "--data.size=[32,32]"),
    *("--data.batch_size=2", "--data.train_samples=16", "--data.val_samples=2", "--model.warmup=2"),
    *("--model.sampling.num_inference_steps=1", f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=4"),
    "--trainer.log_every_n_steps=1",
]


def start(out: Path, *options: str, environment: dict[str, str] | None = None) -> Command:
    words = [*RUN, f"--trainer.default_root_dir={out}", *options]
    return Command(words, errors=out / "errors.log", environment=environment)


def wait_for_checkpoint(command: Command, out: Path) -> None:
    while not (out / "checkpoints" / "last.ckpt").exists() and command.poll() is None:
        time.sleep(0.02)


def last(out: Path) -> dict:
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)


def losses(out: Path) -> dict[str, str]:
    """Logged losses by step; the last one counts if a step was repeated."""
    with (out / "metrics.csv").open() as file:
        return {row["step"]: row["train/total"] for row in csv.DictReader(file) if row["train/total"]}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("whole")
    start(out).finish()
    return last(out) | {"folder": out}


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_resumes_to_the_same_end(uninterrupted, tmp_path, how):
    command = start(tmp_path)
    wait_for_checkpoint(command, tmp_path)
    command.send_signal(how)
    status = command.wait(120)
    if how == signal.SIGKILL:
        assert status == -signal.SIGKILL
    else:
        assert status == 128 + how and "go on with --ckpt_path" in command.errors.read_text()
    reached = last(tmp_path)["global_step"]
    assert 4 <= reached < STEPS
    assert not list((tmp_path / "checkpoints").glob("*.partial"))
    start(tmp_path, f"--ckpt_path={tmp_path / 'checkpoints' / 'last.ckpt'}").finish()
    end = last(tmp_path)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert same(end[part], uninterrupted[part]), part
    assert losses(tmp_path) == losses(uninterrupted["folder"])
    averages = [state["callbacks"]["TrainableEMA"] for state in (end, uninterrupted)]
    assert same(*averages)


def test_a_slurm_job_requeues_itself_and_resumes(uninterrupted, tmp_path):
    queue = tmp_path / "bin" / "scontrol"
    queue.parent.mkdir()
    queue.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/queued\nkill -9 $PPID\n')  # SLURM ends the job at once
    queue.chmod(0o755)
    job = {"SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "edit", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    job |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "PATH": f"{queue.parent}:{os.environ['PATH']}"}
    command = start(tmp_path, environment=job)
    wait_for_checkpoint(command, tmp_path)
    command.send_signal(signal.SIGUSR1)
    assert command.wait(120) == -signal.SIGKILL
    assert (tmp_path / "queued").read_text() == "requeue 17\n"
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["hpc_ckpt_1.ckpt"]
    start(tmp_path, environment=job).finish()
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert same(last(tmp_path)[part], uninterrupted[part]), part
    logged, expected = losses(tmp_path), losses(uninterrupted["folder"])
    assert logged.items() <= expected.items() and len(logged) >= STEPS - 1  # the step of the signal may not be logged


class Interrupted(Callback):
    """Sends a signal to its own process at a training batch, or at a batch of the validation after a step."""

    def __init__(self, number: int, batch: int, validation: tuple[int, int] | None = None) -> None:
        self.number, self.batch, self.validation = number, batch, validation

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if self.validation is None and trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        if self.validation == (trainer.global_step, batch_idx):
            os.kill(os.getpid(), self.number)


def fit(folder: Path, logged: list, signal: Interrupted, micro_batches: int = 1, ckpt_path: Path | None = None) -> dict:
    """Fit for 8 steps, 3 per epoch, with a validation of 2 batches every 2 steps; append metrics to `logged`."""

    class Log(DummyLogger):
        def log_metrics(self, metrics, step=None):
            metrics = {name: value for name, value in metrics.items() if "/" in name}
            if metrics:
                logged.append((step, metrics))

    trainer = Trainer(
        accelerator="cpu", max_steps=8, val_check_interval=2 * micro_batches, check_val_every_n_epoch=None,
        num_sanity_val_steps=0, callbacks=[TrainableEMA(0.9), LastCheckpoint(folder), signal], logger=Log(),
        accumulate_grad_batches=micro_batches, log_every_n_steps=1, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    module = FramePainterModule(make_editor(), learning_rate=1e-3, sampling=Sampling(1, guidance_scale=1.0))
    data = SceneDataModule(size=(32, 32), batch_size=2, train_samples=6 * micro_batches, val_samples=4)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return torch.load(folder / "last.ckpt", weights_only=True)


NEVER = Interrupted(signal.SIGTERM, -1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Metrics and last checkpoint of uninterrupted runs, by number of micro-batches."""

    def made(micro_batches: int) -> tuple[list, dict]:
        if micro_batches not in runs:
            logged: list = []
            runs[micro_batches] = logged, fit(tmp_path_factory.mktemp("whole"), logged, NEVER, micro_batches)
        return runs[micro_batches]

    runs: dict[int, tuple[list, dict]] = {}
    return made


@pytest.mark.parametrize(
    ("micro_batches", "stops"),
    [
        pytest.param(1, [(batch, None, batch + 1) for batch in range(7)], id="in every step"),
        pytest.param(2, [(batch, None, batch // 2 + 1) for batch in range(0, 14, 3)], id="between micro-batches"),
        pytest.param(1, [(-1, (step, batch), step) for step in (2, 4, 6) for batch in (0, 1)], id="in validation"),
        pytest.param(2, [(-1, (4, 0), 4)], id="in validation, with micro-batches"),
    ],
)
def test_a_run_that_is_stopped_and_resumed_again_and_again_trains_as_one_does(whole, tmp_path, micro_batches, stops):
    expected, checkpoint = whole(micro_batches)
    logged: list = []
    resumed = None
    for number, (batch, validation, reached) in enumerate(stops):
        folder = tmp_path / str(number)
        with pytest.raises(SIGTERMException):
            fit(folder, logged, Interrupted(signal.SIGTERM, batch, validation), micro_batches, resumed)
        resumed = folder / "last.ckpt"
        assert torch.load(resumed, weights_only=True)["global_step"] == reached
    found = fit(tmp_path / "end", logged, NEVER, micro_batches, resumed)
    assert logged == expected
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert same(found[part], checkpoint[part]), part
    assert same(found["callbacks"]["TrainableEMA"], checkpoint["callbacks"]["TrainableEMA"])


@pytest.fixture
def terminal():
    """Ctrl+C interrupts Python, as in a terminal; a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_leaves_a_checkpoint_as_sigterm_does(terminal, tmp_path):
    with pytest.raises(SIGTERMException) as stopped:
        fit(tmp_path, [], Interrupted(signal.SIGINT, 2))
    assert stopped.value.args == (signal.SIGINT,)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Impatient(Interrupted):
    """Presses Ctrl+C twice within a step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)


def test_a_second_ctrl_c_stops_at_once(terminal, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, [], Impatient(signal.SIGINT, 1))
    assert isinstance(stopped.value.__context__, KeyboardInterrupt)
    assert not (tmp_path / "last.ckpt").exists()


def test_windows_has_fewer_signals(tmp_path, monkeypatch):
    monkeypatch.delattr(signal, "SIGUSR1")
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.signal_connector._IS_WINDOWS", True)
    monkeypatch.setattr(signal, "valid_signals", lambda: {signal.SIGINT, signal.SIGTERM})
    assert fit(tmp_path, [], NEVER)["global_step"] == 8
