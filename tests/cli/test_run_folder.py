"""What a run keeps: its folder against other runs, its checkpoints by name, its seed and its configuration."""

import csv
import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace

from fp_lightning.cli import trainer
from fp_lightning.cli.main import main
from fp_lightning.cli.run_folder import fill_seeds, find_checkpoint
from fp_lightning.errors import InputError
from fp_lightning.files import locked
from fp_lightning.training.recipe_files import recipe_path

SCENES = ["--config", "tiny", "--data.class_path=datamodules.SceneDataModule", "--data.size=[32,32]"]
SCENES += ["--data.batch_size=2", "--data.train_samples=8", "--data.val_samples=2", "--trainer.val_check_interval=2"]
SCENES += ["--model.sampling.num_inference_steps=1", "--model.warmup=0", "--trainer.log_every_n_steps=1"]
SCENES += ["--model.schedule=constant"]


def call(*arguments) -> int:
    """The exit status of `fp-lightning ARGUMENTS`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fp-lightning", *map(str, arguments)])
        return main()


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """The folder of a run of two steps; only a resumed run may change it."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert call("fit", *SCENES, "--trainer.max_steps=2", f"--trainer.default_root_dir={folder}") == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_second_fit_leaves_the_first_ones_checkpoints(first, capfd):
    before = contents(first)
    assert call("fit", *SCENES, "--trainer.max_steps=3", f"--trainer.default_root_dir={first}") == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("fp-lightning: ")]
    assert (
        "holds 2 checkpoints of another run" in line and "last.ckpt, choose another --trainer.default_root_dir" in line
    )
    assert contents(first) == before


def test_a_checkpoint_of_elsewhere_does_not_open_the_folder(first, tmp_path, capfd):
    copied = tmp_path / "last.ckpt"
    copied.write_bytes((first / "checkpoints" / "last.ckpt").read_bytes())
    before = contents(first)
    assert call("fit", *SCENES, f"--trainer.default_root_dir={first}", f"--ckpt_path={copied}") == 1
    assert "holds 2 checkpoints of another run" in capfd.readouterr().err
    assert contents(first) == before


def test_a_folder_in_use_is_refused(tmp_path, capfd):
    with locked(tmp_path, ".fit.lock"):
        assert call("fit", *SCENES, f"--trainer.default_root_dir={tmp_path}") == 1
    assert "another run is writing to" in capfd.readouterr().err
    assert not (tmp_path / "checkpoints").exists()


def test_a_saved_configuration_runs_elsewhere_and_writes_only_there(first, tmp_path):
    before = contents(first)
    assert call("fit", "--config", first / "config.fit.yaml", f"--trainer.default_root_dir={tmp_path}") == 0
    assert contents(first) == before
    assert {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.csv"} <= contents(tmp_path).keys()
    weights = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (first, tmp_path)]
    assert all(torch.equal(a, weights[1]["state_dict"][name]) for name, a in weights[0]["state_dict"].items())


def test_a_saved_configuration_takes_another_seed(first, monkeypatch):
    words = ["fit", "--config", str(first / "config.fit.yaml"), "--seed_everything=5"]
    assert seeds(monkeypatch, *words) == (5, 5)


@pytest.mark.parametrize("name", ["best", "last"])
def test_checkpoints_are_found_by_name(first, tmp_path, name, caplog, capfd):
    words = [*SCENES, "--ckpt_path", name]
    assert call("validate", *words, f"--trainer.default_root_dir={first}") == 0
    saved = yaml.safe_load((first / "config.validate.yaml").read_text())
    assert saved["ckpt_path"] == str(first / "checkpoints" / f"{name}.ckpt")
    assert call("validate", *words, f"--trainer.default_root_dir={tmp_path}") == 1
    assert (
        f"no {name}.ckpt in {tmp_path / 'checkpoints'}; --trainer.default_root_dir names the run"
        in capfd.readouterr().err
    )


def test_another_learning_rate_is_used_at_resume(first, caplog):
    words = ["--trainer.max_steps=4", f"--trainer.default_root_dir={first}", "--ckpt_path=last"]
    assert call("fit", *SCENES, *words, "--model.learning_rate=1e-9", "--model.weight_decay=0.5") == 0
    with (first / "metrics.csv").open() as file:
        rates = [float(row["lr-AdamW"]) for row in csv.DictReader(file) if row["lr-AdamW"]]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-9, 1e-9])
    assert "going on with learning_rate 1e-09 (checkpoint: 0.001), weight_decay 0.5 (checkpoint: 0.01)" in caplog.text


def test_the_last_requeued_checkpoint_is_found_by_name(tmp_path):
    config = Namespace(trainer=Namespace(default_root_dir=str(tmp_path), callbacks=None))
    with pytest.raises(InputError, match="no hpc_ckpt"):
        find_checkpoint("hpc", config)
    for number in (2, 10):
        (tmp_path / f"hpc_ckpt_{number}.ckpt").touch()
    assert find_checkpoint("hpc", config) == str(tmp_path / "hpc_ckpt_10.ckpt")
    with pytest.raises(InputError, match="no checkpoint registry"):
        find_checkpoint("registry", config)


def seeds(monkeypatch, *words: str) -> tuple[int, int]:
    """The seeds of the model and the data that a command builds."""

    class Built(trainer.EditCLI):
        def _run_subcommand(self, subcommand: str) -> None:
            pass

    monkeypatch.setattr(sys, "argv", ["fp-lightning", *words])
    cli = trainer._cli(Built)
    return cli.model.seed, cli.datamodule.seed


def test_one_seed_reaches_model_and_data_unless_they_have_their_own(monkeypatch):
    words = ["fit", "--config", recipe_path("tiny"), *SCENES[2:]]
    assert seeds(monkeypatch, *words) == (0, 0)
    assert seeds(monkeypatch, *words, "--seed_everything=3") == (3, 3)
    assert seeds(monkeypatch, *words, "--seed_everything=3", "--model.seed=0") == (0, 3)


def test_every_open_seed_is_filled_and_no_other():
    def config(seed):
        editor = Namespace(init_args=Namespace(seed=None))
        return Namespace(
            seed_everything=seed,
            model=Namespace(init_args=Namespace(seed=None, editor=editor)),
            data=Namespace(init_args=Namespace(seed=7, size=None)),
        )

    filled = config(4)
    fill_seeds(filled)
    assert filled["model.init_args.seed"] == filled["model.init_args.editor.init_args.seed"] == 4
    assert filled["data.init_args.seed"] == 7 and filled["data.init_args.size"] is None
    for nothing in (False, None):
        left = config(nothing)
        fill_seeds(left)
        assert left["model.init_args.seed"] is None


def test_ctrl_c_outside_of_training_steps_has_its_status(tmp_path, monkeypatch):
    from fp_lightning.training.module import FramePainterModule

    def interrupted(self, stage):
        raise KeyboardInterrupt

    monkeypatch.setattr(FramePainterModule, "setup", interrupted)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert call("fit", *SCENES, f"--trainer.default_root_dir={tmp_path}") == 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, before)
