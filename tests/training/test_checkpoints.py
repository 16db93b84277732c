"""Checkpoint writing is atomic and in the background."""

import re
import resource
import signal
import threading

import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from fp_lightning.errors import InputError
from fp_lightning.training import checkpoints
from fp_lightning.training.checkpoints import CheckpointWriter


def state(value: float, count: int = 100) -> dict:
    return {"weights": {"a": torch.full((count,), value)}, "step": 3, "names": ["x"]}


@pytest.mark.parametrize("background", [True, False])
def test_a_checkpoint_holds_the_state_at_the_time_of_saving(tmp_path, background):
    writer, checkpoint = CheckpointWriter(background), state(1.0)
    writer.save_checkpoint(checkpoint, tmp_path / "runs" / "last.ckpt")
    checkpoint["weights"]["a"].fill_(2.0)  # training continues
    found = writer.load_checkpoint(tmp_path / "runs" / "last.ckpt", weights_only=True)
    assert found["weights"]["a"].tolist() == [1.0] * 100
    assert {**found, "weights": None} == {**checkpoint, "weights": None}
    writer.teardown()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["last.ckpt"]


def test_training_does_not_wait_for_the_disk_until_two_copies_do(tmp_path, monkeypatch):
    go, calls = threading.Event(), []

    def slow(checkpoint, path) -> None:
        assert go.wait(30)
        calls.append(path.name)

    monkeypatch.setattr(checkpoints, "write", slow)
    writer = CheckpointWriter()
    writer.save_checkpoint(state(1.0), tmp_path / "best.ckpt")
    writer.save_checkpoint(state(1.0), tmp_path / "last.ckpt")
    assert calls == []
    third = threading.Thread(target=writer.save_checkpoint, args=(state(2.0), tmp_path / "third.ckpt"))
    third.start()
    third.join(0.2)
    assert third.is_alive()
    go.set()
    third.join(30)
    writer.teardown()
    assert calls == ["best.ckpt", "last.ckpt", "third.ckpt"]


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint_intact(tmp_path, background):
    path, writer = tmp_path / "last.ckpt", CheckpointWriter(background)
    writer.save_checkpoint(state(1.0), path)
    writer.load_checkpoint(path, weights_only=True)
    message, limits = "", resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
        writer.save_checkpoint(state(2.0, 2**20), path)
        writer.teardown()
    except InputError as error:
        message = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert re.fullmatch(
        r"cannot write .*last.ckpt: (File too large|the disk seems to be full); the previous checkpoint is intact: .*",
        message,
    ), message
    assert TorchCheckpointIO().load_checkpoint(path, weights_only=True)["weights"]["a"][0] == 1.0
    assert list(tmp_path.iterdir()) == [path]
    writer.teardown()  # an error shows once
