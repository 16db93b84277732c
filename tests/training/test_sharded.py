"""Two processes that train in shards equal one: losses, weights, moments, checkpoints; and what does not shard."""

import json
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.distributed as dist
from commandline import call_forked
from safetensors.torch import load_file
from test_distributed import RUN, logged, run_one, run_two
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from fp_lightning.bench.measure import peak_bytes
from fp_lightning.bench.networks import filled
from fp_lightning.bench.plan import TINY, _middle
from fp_lightning.cli.main import main
from fp_lightning.errors import InputError
from fp_lightning.model.edm import seeded_generators
from fp_lightning.training.footprint import footprint
from fp_lightning.training.sharding import check_sharding, local, shard
from fp_lightning.training.simulation import editor_of, empty_batch
from fp_lightning.weights.convert import convert_checkpoint

SAME = ["--model.schedule=constant", "--model.learning_rate=1e-4", "--model.warmup=2", "--trainer.precision=32-true"]
SAME += ["--data.val_samples=2"]
SHARDS = ["--config", "hardware/node_8_fsdp", *SAME, "--trainer.devices=2", "--data.batch_size=2"]
ADAPTERS = ["--model.editor.trains=lora", "--model.editor.gradient_checkpointing=true", "--data.batch_size=1"]
ADAPTERS += ["--trainer.max_steps=2", "--trainer.limit_val_batches=0", "--trainer.callbacks+=test_sharded.BadGradient"]


class BadGradient(L.Callback):
    """Makes one gradient of the main process NaN in the second step."""

    def on_after_backward(self, trainer, pl_module) -> None:
        if trainer.global_step == 1 and trainer.is_global_zero:
            local(next(p.grad for p in pl_module.parameters() if p.requires_grad)).fill_(torch.nan)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """Four steps of one process."""
    out = tmp_path_factory.mktemp("one")
    run_one(out, *SAME, "--trainer.max_steps=4")
    return out


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    """Two steps of two processes."""
    out = tmp_path_factory.mktemp("half")
    run_two(out, "--trainer.max_steps=2", devices=SHARDS)
    return out / "checkpoints" / "last.ckpt"


def states(out: Path) -> dict:
    checkpoint = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    moments = checkpoint["optimizer_states"][0]["state"]
    average = checkpoint["callbacks"]["TrainableEMA"]["average"]
    return {"weights": checkpoint["state_dict"], "moments": moments, "average": average}


def assert_equal_runs(found: Path, reference: Path, since: int) -> None:
    """Assert equal losses from a step on, and equal states at the end."""
    values, expected = logged(found), logged(reference)
    names = {f"{stage}/{name}" for stage in ("train", "val") for name in ("total", "diffusion", "matching")}
    losses = [key for key in expected if key[0] in names and int(key[1]) >= since]
    assert {name for name, _ in losses} == names
    assert [values[key] for key in losses] == pytest.approx([expected[key] for key in losses], rel=1e-5)
    torch.testing.assert_close(states(found), states(reference), rtol=1e-5, atol=1e-5)


def test_two_processes_in_shards_equal_one_also_after_a_resume(one, half, tmp_path):
    run_two(tmp_path, "--trainer.max_steps=4", f"--ckpt_path={half}", devices=SHARDS)
    assert_equal_runs(tmp_path, one, since=2)
    folders = []
    for run in (one, tmp_path):
        folders.append(tmp_path / f"{run.name}-pipeline")
        convert_checkpoint(run / "checkpoints" / "last.ckpt", folders[-1])
    for name in ("unet", "control_encoder"):
        ours, theirs = (load_file(f / name / "diffusion_pytorch_model.safetensors") for f in folders)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_one_process_resumes_what_two_began_in_shards(one, half, tmp_path):
    run_one(tmp_path, *SAME, "--trainer.max_steps=4", f"--ckpt_path={half}")
    assert_equal_runs(tmp_path, one, since=2)


def test_adapters_with_recomputed_activations_train_in_shards_and_all_processes_skip_a_bad_step(tmp_path):
    run_two(tmp_path / "two", *ADAPTERS, devices=SHARDS)
    run_one(tmp_path / "one", *SAME, *ADAPTERS, "--data.batch_size=2")
    runs = [tmp_path / name for name in ("two", "one")]
    for run in runs:
        assert [json.loads(line)["step"] for line in (run / "left_out.jsonl").read_text().splitlines()] == [1]
    torch.testing.assert_close(*map(states, runs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("processes", "optimizer", "precision", "message"),
    [
        (1, "adamw", "bf16-mixed", "2 or more processes, got 1; add --trainer.strategy auto"),
        (8, "muon", "bf16-mixed", "optimizer muon does not .* --model.optimizer adamw"),
        (8, "adamw_8bit", "bf16-mixed", "optimizer adamw_8bit does not .*/node_8_24gb"),
        (8, "adamw", "16-mixed", "16-mixed needs; add --trainer.precision bf16-mixed"),
    ],
)
def test_what_does_not_shard_is_one_line(processes, optimizer, precision, message):
    with pytest.raises(InputError, match=message):
        check_sharding(processes, optimizer, precision)
    with pytest.raises(InputError, match=message):
        footprint(replace(TINY, strategy="sharded", processes=processes, optimizer=optimizer, precision=precision))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.optimizer=muon"], "optimizer muon does not work on shards"),
        (["--trainer.devices=1"], "2 or more processes, got 1"),
    ],
)
def test_fit_refuses_before_it_starts(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "0")  # as if a launcher had started the others
    fit = ["fit", *RUN[:-1], *SHARDS, f"--trainer.default_root_dir={tmp_path}", *words]
    monkeypatch.setattr("sys.argv", ["fp-lightning", *fit])
    assert main() == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def measure(folder: Path) -> None:
    """Write planned and measured bytes of one of eight processes, with collectives that send nothing."""
    dist.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    (folder / "model").mkdir()
    model = _middle(folder / "model")
    setting = replace(TINY, model=model, batch_size=1, gradient_checkpointing=True, strategy="sharded", processes=8)
    planned = footprint(setting, on_cpu=True)
    editor = filled(editor_of(setting), device="cpu").train()
    batch = empty_batch(setting).map(torch.zeros_like)
    shard(editor, init_device_mesh("cpu", (8,)))
    trained = [p for p in editor.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, fused=True)

    def step() -> None:
        editor.losses(batch, seeded_generators(batch.name, 0)).total.backward()
        optimiser.step()
        optimiser.zero_grad()

    step()  # the moments are there from now on
    weights = sum(local(t).nbytes for t in (*editor.parameters(), *editor.buffers()))
    moments = sum(local(m).nbytes for state in optimiser.state.values() for m in state.values())
    measured = weights + moments + peak_bytes(step)
    (folder / "bytes.json").write_text(json.dumps([planned.peak, measured, planned.gathered]))


def test_memory_of_a_shard_is_as_planned(tmp_path):
    call_forked(measure, tmp_path)
    planned, measured, gathered = json.loads((tmp_path / "bytes.json").read_text())
    assert measured < planned < 1.25 * measured  # the plan adds the most of activations and of gathered weights
    assert planned - gathered < measured
