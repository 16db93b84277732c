"""Bad steps: left out whole, told of, and too many of them stop a run."""

import json
from dataclasses import dataclass

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader

from callbacks import LossGuard
from fp_lightning.errors import InputError


@dataclass
class Batch:
    factor: torch.Tensor  # of the loss
    name: list[str]


class Module(L.LightningModule):
    """One weight, whose loss is as bad as its batch."""

    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.weight, self.fused = torch.nn.Parameter(torch.ones(3)), fused
        self.after: list[torch.Tensor] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        return batch.factor * self.weight.square().sum()

    def on_train_batch_end(self, *_) -> None:
        self.after.append(self.weight.detach().clone())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2, fused=self.fused)


def train(guard: LossGuard, factors: list[float], module: Module | None = None, **options) -> Module:
    module = module or Module()
    batches = [Batch(torch.tensor(factor), [f"sample-{i}"]) for i, factor in enumerate(factors)]
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        callbacks=[guard], gradient_clip_val=1.0, **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return module


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 100.0])
def test_a_bad_step_changes_nothing_and_is_told_of(tmp_path, bad, fused):
    guard = LossGuard(tmp_path / "left_out.jsonl", spike=20.0, window=3, every=1)
    module = train(guard, [1.0, 1.0, 1.0, bad, 1.0], Module(fused))
    (line,) = (tmp_path / "left_out.jsonl").read_text().splitlines()
    told = json.loads(line)
    assert told["step"] == 3 and told["samples"] == ["sample-3"] and told["median"] == pytest.approx(3, rel=0.1)
    assert torch.equal(module.after[3], module.after[2])
    without = train(LossGuard(tmp_path / "none.jsonl"), [1.0, 1.0, 1.0, 1.0], Module(fused))
    assert torch.equal(module.after[4], without.after[3])  # moments and their count are as if it had never been
    assert not (tmp_path / "none.jsonl").exists()


def test_a_leap_is_none_where_only_finite_ones_are_asked_for(tmp_path):
    module = train(LossGuard(tmp_path / "left_out.jsonl", spike=None, window=3, every=1), [1.0, 1.0, 1.0, 100.0])
    assert not torch.equal(module.after[3], module.after[2]) and not (tmp_path / "left_out.jsonl").exists()


def test_one_bad_part_of_an_accumulated_step_leaves_it_out(tmp_path):
    guard = LossGuard(tmp_path / "left_out.jsonl", every=1)
    module = train(guard, [1.0, 1.0, float("nan"), 1.0], accumulate_grad_batches=2)
    assert torch.equal(module.after[3], module.after[1])
    assert json.loads((tmp_path / "left_out.jsonl").read_text())["samples"] == ["sample-2", "sample-3"]


def test_too_many_bad_steps_stop_the_run(tmp_path):
    guard = LossGuard(tmp_path / "left_out.jsonl", patience=3, window=10, every=2)
    with pytest.raises(InputError, match="4 of the last 10 steps .* the last one step 3; see"):
        train(guard, [float("nan")] * 9)
    assert len((tmp_path / "left_out.jsonl").read_text().splitlines()) == 4


def test_what_is_kept_resumes(tmp_path):
    guard = LossGuard(tmp_path / "left_out.jsonl", window=2, every=1)
    train(guard, [1.0, float("nan"), 1.0])
    again = LossGuard(tmp_path / "left_out.jsonl", window=2, every=1)
    again.load_state_dict(guard.state_dict())
    assert again.losses == guard.losses and again.skipped == [1]
    assert again.state_dict() == guard.state_dict() and again.state_dict()["limit"] < 100


@pytest.mark.parametrize("options", [{"spike": 1.0}, {"window": 0}, {"patience": 0}, {"every": 0}])
def test_numbers_out_of_range_are_refused(tmp_path, options):
    with pytest.raises(InputError, match="spike must be greater than 1"):
        LossGuard(tmp_path, **options)


class HalfModule(Module):
    """Has gradients in float16, which overflow beyond 65504."""

    def __init__(self) -> None:
        super().__init__(fused=False)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        return batch.factor * self.weight.half().sum().float()


def train_scaled(guard: LossGuard, factors: list[float], scale: float) -> tuple[HalfModule, torch.amp.GradScaler]:
    """Train in float16 from this scale of the losses."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    return train(guard, factors, HalfModule(), plugins=[precision]), scaler


def test_overflows_of_the_first_float16_steps_are_the_scalers_own(tmp_path):
    guard = LossGuard(tmp_path / "left_out.jsonl", window=4, patience=2, every=1)
    module, scaler = train_scaled(guard, [1.0] * 6, 2.0**19)
    assert scaler.get_scale() == 2.0**15  # four steps overflowed
    assert torch.equal(module.after[3], torch.ones(3)) and not torch.equal(module.after[4], module.after[3])
    assert guard.skipped == [] and not (tmp_path / "left_out.jsonl").exists()


def test_float16_losses_are_recorded_without_their_scale(tmp_path):
    guard = LossGuard(tmp_path / "left_out.jsonl", every=1)
    train_scaled(guard, [1.0, 1.0], 256.0)
    assert guard.losses == pytest.approx([3.0, 3.0], rel=0.05)


@pytest.mark.parametrize(("factor", "scale"), [(float("nan"), 256.0), (1e5, 1.0)])
def test_bad_float16_steps_are_told_of(tmp_path, factor, scale):
    guard = LossGuard(tmp_path / "left_out.jsonl", spike=None, every=1)
    module, _ = train_scaled(guard, [1.0, factor], scale)
    assert guard.skipped == [1] and torch.equal(module.after[1], module.after[0])


def test_another_spike_counts_at_resume(tmp_path):
    guard = LossGuard(tmp_path / "left_out.jsonl", window=2)
    train(guard, [1.0, 1.0])
    limits = {}
    for spike in (10.0, 2.0, None):
        resumed = LossGuard(tmp_path / "left_out.jsonl", spike=spike, window=2)
        resumed.load_state_dict(guard.state_dict())
        limits[spike] = resumed.state_dict()["limit"]
    assert limits[10.0] == guard.state_dict()["limit"] == pytest.approx(5 * limits[2.0])
    assert limits[None] == float("inf")
