"""AdamW with 8-bit moments, and messages about unsuitable precisions and optimisers."""

import logging
import sys

import pytest
import torch
from conftest import make_editor
from lightning import Trainer

from callbacks import LastCheckpoint
from datamodules import SceneDataModule
from fp_lightning.errors import InputError
from fp_lightning.inference.sampler import Sampling
from fp_lightning.training.footprint import footprint
from fp_lightning.training.module import FramePainterModule
from fp_lightning.training.simulation import Setting


def fit(folder, steps: int, ckpt_path=None, optimizer: str = "adamw_8bit", **options) -> Trainer:
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, limit_val_batches=0, logger=False,
        callbacks=[LastCheckpoint(folder)], enable_progress_bar=False, default_root_dir=folder, **options,
    )  # fmt: skip
    module = FramePainterModule(make_editor(tiny=True), 1e-3, optimizer=optimizer, sampling=Sampling(1))
    data = SceneDataModule((32, 32), batch_size=2, train_samples=8)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return trainer


def test_8_bit_moments_take_a_quarter_and_resume(tmp_path):
    whole = fit(tmp_path, 4)
    module = whole.lightning_module
    states = whole.optimizers[0].state
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    assert len(states) == len(trained)
    assert all(states[w]["state1"].dtype == (torch.uint8 if w.numel() >= 4096 else torch.float32) for w in trained)
    names = "state1", "state2", "absmax1", "absmax2"
    taken = sum(states[w][name].nbytes for w in trained for name in names if name in states[w])
    assert taken < 0.3 * 2 * sum(weight.nbytes for weight in trained)

    fit(tmp_path / "half", 2)
    resumed = fit(tmp_path / "half", 4, tmp_path / "half" / "last.ckpt").lightning_module
    assert all(map(torch.equal, resumed.parameters(), module.parameters()))


def test_the_plan_knows_the_memory_of_muon(tmp_path):
    parts = fit(tmp_path, 1, optimizer="muon").optimizers[0].state_dict()["parts"].values()
    states = [value for part in parts for state in part["state"].values() for value in state.values()]
    taken = sum(value.nbytes for value in states if value.ndim)
    assert footprint(Setting("tiny", (32, 32), optimizer="muon"), on_cpu=True).optimiser == taken


def test_the_plan_knows_the_memory_of_8_bit_moments(tmp_path):
    states = fit(tmp_path, 1).optimizers[0].state.values()
    names = "state1", "state2", "absmax1", "absmax2"
    taken = sum(state[name].nbytes for state in states for name in names if name in state)
    assert footprint(Setting("tiny", (32, 32), optimizer="adamw_8bit"), on_cpu=True).optimiser == taken


def test_8_bit_updates_are_close_to_32_bit_ones(tmp_path):
    eight, full, before = (fit(tmp_path, n, optimizer=o).lightning_module.parameters() for n, o in (
        (4, "adamw_8bit"), (4, "adamw"), (0, "adamw"),
    ))  # fmt: skip
    start = [weight.detach() for weight in before]
    moved = torch.cat([(a - b).flatten() for a, b in zip(full, start, strict=True)])
    moved_eight = torch.cat([(a - b).flatten() for a, b in zip(eight, start, strict=True)])
    assert torch.cosine_similarity(moved, moved_eight, 0) > 0.9


def test_unsuitable_settings_are_reported(tmp_path, monkeypatch, caplog):
    with pytest.raises(InputError, match="optimizer must be adamw or adamw_8bit or muon, got 'sgd'"):
        fit(tmp_path, 1, optimizer="sgd")
    with caplog.at_level(logging.WARNING, logger="fp_lightning"):
        fit(tmp_path, 0, optimizer="adamw", precision="bf16-true")
    assert "bf16-true also stores trainable weights in 16 bits" in caplog.text
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(InputError, match=r"optimizer adamw_8bit needs bitsandbytes: pip install"):
        fit(tmp_path, 1)
