"""Two processes equal one: the same losses, metrics and weights at the same global batch size."""

import csv
import hashlib
import json
import os
import signal
import socket
import time
from pathlib import Path

import lightning as L
import pytest
import torch
from commandline import Command

STEPS = 6
RUN = [
    *("--config", "tiny", "--data.class_path=datamodules.SceneDataModule", "--data.size=[32,32]"),
    *("--data.train_samples=18", "--data.val_samples=6", "--data.signals=[sketch,points]", "--model.warmup=2"),
    *("--model.sampling.num_inference_steps=1", f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=2"),
    *("--trainer.log_every_n_steps=1", "--trainer.callbacks+=test_distributed.FrozenWeights"),
]
DISTIL = ["--config", "distill", "--model.editor.model=tiny-editor", "--model.warmup=2", "--model.levels=10"]
ONE = ["--data.batch_size=4"]
TWO = ["--data.batch_size=2", "--trainer.devices=2", "--trainer.strategy=lightning.pytorch.strategies.DDPStrategy"]
TWO += ['--trainer.strategy.dict_kwargs={"gradient_as_bucket_view": true}']  # as in svd.yaml


class FrozenWeights(L.Callback):
    """Writes a hash of all frozen weights to the run's folder, a file per process."""

    def on_fit_end(self, trainer, pl_module) -> None:
        digest = hashlib.sha256()
        for name, weight in pl_module.named_parameters():
            if not weight.requires_grad:
                digest.update(name.encode() + weight.detach().numpy().tobytes())
        Path(trainer.default_root_dir, f"frozen-{trainer.global_rank}").write_text(digest.hexdigest())


def run_one(out: Path, *options: str, command: str = "fit") -> None:
    words = [command, *RUN, f"--trainer.default_root_dir={out}", *ONE, *options]
    Command(words, errors=out / "errors.log").finish()


def run_two(out: Path, *options: str, command: str = "fit", devices: list[str] = TWO) -> None:
    """Start both processes as a cluster's launcher does, with their ranks in the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        cluster = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    words = [command, *RUN, f"--trainer.default_root_dir={out}", *devices, *options]
    ranks = [
        Command(words, errors=out / f"errors-{rank}.log", environment=cluster | {"LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    for rank in ranks:
        rank.finish()


def launch_two(out: Path, *options: str) -> Command:
    """Start one process, from which Lightning launches the other, a new interpreter."""
    words = ["fit", *RUN, f"--trainer.default_root_dir={out}", *TWO, *options]
    folders = [
        *map(str, Path(__file__).parents[:2]),
        os.environ.get("PYTHONPATH", ""),
    ]  # this module's and its imports'
    return Command(words, errors=out / "errors.log", environment={"PYTHONPATH": os.pathsep.join(folders)})


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("one")
    run_one(out)
    return out


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("two")
    run_two(out)
    return out


def logged(out: Path) -> dict[tuple[str, str], float]:
    """Return logged values by (name, step); the last one counts if a step was repeated."""
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = {(name, row["step"]): row[name] for row in rows for name in row if "/" in name and row[name]}
    return {key: float(value) for key, value in values.items() if "per_second" not in key[0]}


def assert_same_run(found: Path, reference: Path) -> None:
    """Assert equal logs, steps and weights, up to the order of summation."""
    values, expected = logged(found), logged(reference)
    losses = [key for key in expected if key[0].startswith("train/")]
    assert [values[key] for key in losses] == pytest.approx([expected[key] for key in losses], rel=1e-5)
    assert values == pytest.approx(expected, rel=1e-4)
    checkpoints = [torch.load(out / "checkpoints" / "last.ckpt", weights_only=True) for out in (found, reference)]
    assert [checkpoint["global_step"] for checkpoint in checkpoints] == [STEPS, STEPS]
    for weights in (lambda c: c["state_dict"], lambda c: c["callbacks"]["TrainableEMA"]["average"]):
        torch.testing.assert_close(*map(weights, checkpoints), rtol=1e-4, atol=1e-5)


def test_two_processes_train_and_validate_as_one(one, two):
    assert {name for name, _ in logged(one)} >= {"train/total", "val/total", "val/psnr_moving", "val/ssim"}
    assert_same_run(two, one)


def test_two_processes_distil_as_one(tmp_path):
    averages = []
    for out, run in ((tmp_path / "one", run_one), (tmp_path / "two", run_two)):
        run(out, *DISTIL)
        averages.append(torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["consistency_average"])
    assert_same_run(tmp_path / "two", tmp_path / "one")
    torch.testing.assert_close(*averages, rtol=1e-4, atol=1e-5)


def test_frozen_weights_are_the_same_everywhere(one, two):
    assert len({path.read_text() for path in (one / "frozen-0", two / "frozen-0", two / "frozen-1")}) == 1


def test_two_processes_evaluate_as_one(one, tmp_path):
    metrics = []
    for out, run in ((tmp_path / "one", run_one), (tmp_path / "two", run_two)):
        run(out, f"--ckpt_path={one}/checkpoints/last.ckpt", command="validate")
        metrics.append(json.loads((out / "metrics.json").read_text()))
    numbers = [{name: value for name, value in m.items() if isinstance(value, (int, float))} for m in metrics]
    assert numbers[0]["n"] == 6 and numbers[1] == pytest.approx(numbers[0], rel=1e-5)


def test_sigterm_stops_all_processes_at_one_step_and_one_alone_goes_on(one, tmp_path):
    process = launch_two(tmp_path)
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 143 and "go on with --ckpt_path" in process.errors.read_text()
    assert 2 <= torch.load(checkpoint, weights_only=True)["global_step"] < STEPS
    run_one(tmp_path, f"--ckpt_path={checkpoint}")
    assert_same_run(tmp_path, one)
