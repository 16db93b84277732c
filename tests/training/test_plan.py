"""What is foretold of a recipe, beside what is measured, and what is said of it."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fp_lightning.bench.networks import filled
from fp_lightning.bench.plan import SETTINGS, TINY, _one
from fp_lightning.cli.main import main
from fp_lightning.cli.trainer import configuration
from fp_lightning.errors import InputError
from fp_lightning.model.edm import seeded_generators
from fp_lightning.model.svd.load import SHIPPED, SVD
from fp_lightning.training.counting import CountedOperations, LiveBytes
from fp_lightning.training.footprint import footprint
from fp_lightning.training.gpus import GIB, fits
from fp_lightning.training.plan import PARTS, Plan, cheaper, setting_of
from fp_lightning.training.recipe_files import RECIPES, resolve_recipes
from fp_lightning.training.simulation import Setting, editor_of, empty_batch, simulate

MEASURED = ["tiny", "tiny-bf16", "tiny-checkpointing", "tiny-lora", "tiny-accumulate"]
PAPER = Setting(SVD, (576, 1024), 2, "bf16-mixed", gradient_checkpointing=True, strategy="ddp_views", processes=2)


@pytest.mark.parametrize("name", MEASURED)
def test_memory_is_as_foretold(name):
    """To the byte nearly; CPUs without units for bf16 convert in between."""
    assert _one(name, replace(SETTINGS[name], batch_size=4)).error < 0.15


@pytest.mark.parametrize("name", ["tiny-distill", "tiny-distill-lora"])
def test_memory_of_a_distillation_counts_its_copies_once(name):
    assert _one(name, replace(SETTINGS[name], batch_size=2)).error < 0.02


class Watched(TorchDispatchMode):
    """Adds what operations on real tensors make."""

    def __init__(self, live: LiveBytes) -> None:
        super().__init__()
        self.live = live

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.live.add(leaf)
        return result


def test_the_bytes_of_a_storage_count_once_and_while_it_lives():
    live, kept = LiveBytes(), torch.zeros(3)
    live.add(kept)
    with Watched(live):
        made = torch.zeros(1000)
        view = made[2:].view(2, -1)
        assert kept.unbind() and live.now == 12 + 4000
        del made
        assert live.now == 12 + 4000
        del view
        assert live.now == 12
        torch.zeros(10)
    del kept
    assert (live.now, live.most) == (0, 12 + 4000)


def test_gradients_that_are_there_stand_for_the_micro_batches_before():
    """Both micro-batches run here, on real tensors. The simulation counts the operations of all rows as if visible."""
    setting = replace(TINY, size=(32, 32), batch_size=1, accumulate=2)
    editor = filled(editor_of(setting), device="cpu").train()
    batch, live, counted = empty_batch(setting).map(torch.zeros_like), LiveBytes(), CountedOperations()
    for tensor in (*editor.parameters(), *editor.buffers()):
        live.add(tensor)
    with Watched(live), counted:
        for _ in range(2):
            editor.losses(batch, seeded_generators(batch.name, 0)).total.backward()
    simulated = simulate(setting, on_cpu=True)
    assert 2 * simulated.operations == pytest.approx(counted.total, rel=0.01)
    assert simulated.peak == pytest.approx(live.most, rel=1e-3)
    assert simulated.peak > 1.1 * simulate(replace(setting, accumulate=1), on_cpu=True).peak


def test_settings_that_differ_in_arithmetic_share_a_simulation():
    setting = replace(TINY, size=(32, 32), batch_size=1, accumulate=2)
    one = simulate(setting)
    for change in (
        {"optimizer": "adamw_8bit"},
        {"ema": True},
        {"strategy": "ddp", "processes": 2},
        {"accumulate": 8},
        {"augmentation_draws": 3},
    ):
        assert simulate(replace(setting, **change)) is one, change


def test_a_folder_that_has_changed_is_simulated_anew(tmp_path):
    folder = shutil.copytree(SHIPPED["tiny"], tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    setting = Setting(str(folder), (32, 32))
    before = simulate(setting)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"layers_per_block": 2}))
    assert simulate(setting).weights > before.weights


def test_strategies_share_what_they_share():
    strategies = ("auto", 1), ("ddp", 2), ("deepspeed_stage_2", 2), ("deepspeed_stage_2_offload", 2), ("sharded", 4)
    alone, ddp, zero, offload, sharded = (
        footprint(replace(TINY, strategy=strategy, processes=count, ema=strategy == "sharded"))
        for strategy, count in strategies
    )
    assert ddp.peak == alone.peak + alone.gradients
    assert footprint(replace(TINY, ema=True)).peak == alone.peak + alone.trained
    assert zero.peak == alone.peak - alone.gradients // 2 - alone.optimiser // 2
    assert offload.optimiser == 0 and offload.peak < zero.peak
    for part in ("trained", "gradients", "optimiser"):
        assert getattr(sharded, part) == -(-getattr(alone, part) // 4)
    assert sharded.average == sharded.trained and sharded.frozen == alone.frozen


def test_gradients_kept_from_step_to_step_are_beside_the_most_activations():
    alone, views, sharded = (
        footprint(replace(TINY, strategy=strategy, processes=count))
        for strategy, count in (("auto", 1), ("ddp_views", 2), ("sharded", 2))
    )
    assert views.peak > alone.peak and views.buckets == 0
    assert sharded.step == views.step
    assert alone.gradients // 10 < sharded.gathered < alone.gradients


@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_moments_in_8_bits_are_a_remedy_except_for_shards(strategy, monkeypatch):
    peaks = iter(range(90, 0, -10))
    monkeypatch.setattr("fp_lightning.training.plan.footprint", lambda setting: SimpleNamespace(peak=next(peaks) * GIB))
    said = [words for words, _ in cheaper(replace(TINY, strategy=strategy, processes=8), 100 * GIB, 0)]
    assert ("--model.optimizer adamw_8bit" in said) == (strategy == "ddp")
    assert "--model.editor.trains lora" in said


@pytest.mark.parametrize("cached", [False, True])
def test_half_precision_halves_what_trains_and_the_vae_stays_whole(cached):
    setting = replace(TINY, cached=cached, augmentation_draws=4)
    whole, half = footprint(setting), footprint(replace(setting, precision="bf16-true"))
    assert half.trained == whole.trained // 2 and half.optimiser == whole.optimiser // 2
    assert whole.frozen // 2 < half.frozen < whole.frozen


def test_operations_grow_with_samples_and_micro_batches():
    one = footprint(replace(TINY, batch_size=1)).operations
    assert footprint(replace(TINY, batch_size=4)).operations == pytest.approx(4 * one, rel=0.01)
    assert footprint(replace(TINY, batch_size=1, accumulate=4)).operations == 4 * one
    assert footprint(replace(TINY, batch_size=1, cached=True, augmentation_draws=4)).operations < 0.9 * one


def test_what_saves_memory_is_named_until_it_fits():
    peak = footprint(TINY).peak
    room = 1.5 + 0.4 * peak / GIB / 0.95  # GiB, with the reserve
    said = list(cheaper(TINY, peak, room))
    assert said[0][0] == "--model.editor.gradient_checkpointing true"
    assert [peak for _, peak in said] == sorted((peak for _, peak in said), reverse=True)
    assert fits(said[-1][1], room) and not any(fits(peak, room) for _, peak in said[:-1])


def test_the_papers_setting_fits_two_gpus_of_48_gib():
    cost = footprint(PAPER)
    assert cost.trainable == 1_527_333_802
    assert fits(cost.peak, 48) and not fits(cost.peak, 24)


@pytest.mark.parametrize(
    ("recipe", "processes", "samples"),
    [
        *(("one_24gb", 1, 4), ("one_80gb", 1, 4), ("nodes_slurm", 32, 64)),
        *(("node_8", 8, 16), ("node_8_24gb", 8, 16), ("node_8_fsdp", 8, 16)),
    ],
)
def test_recipes_for_machines_take_as_many_samples_as_they_say(recipe, processes, samples):
    words = ["--config", "svd", "--config", f"hardware/{recipe}", "--config", "signals/sketch"]
    setting, steps = setting_of(configuration(resolve_recipes(words)))
    assert setting.processes == processes
    assert setting.processes * setting.batch_size * setting.accumulate == samples
    assert steps * samples == 80_000  # the paper's: four at a time, 20,000 times


@pytest.mark.parametrize(("recipe", "memory"), [("one_24gb", 24), ("node_8_24gb", 24), ("node_8_fsdp", 16)])
def test_recipes_for_small_gpus_fit_them(recipe, memory):
    words = ["--config", "svd", "--config", f"hardware/{recipe}", "--config", "signals/sketch"]
    setting, _ = setting_of(configuration(resolve_recipes(words)))
    assert fits(footprint(setting).peak, memory)


@pytest.fixture
def said(monkeypatch, capsys):
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["fp-lightning", "plan", *words])
        status = main()
        return status, *capsys.readouterr()

    return run


def test_a_recipe_is_planned_with_the_options_of_fit(said):
    recipe = str(RECIPES / "tiny.yaml")
    words = ["--config", recipe, "--config", "signals/sketch", "--data.batch_size", "4", "--gpu", "rtx-3090"]
    status, out, _ = said(*words)
    assert status == 0
    assert "tiny, 64 × 64 px, 1 × rtx-3090 (24 GiB), auto, 32-true, 4 samples × 1 a process" in out
    assert "average of the weights" in out and "It fits" in out and "for 1,500 steps" in out


def test_a_distillation_takes_a_teacher_and_a_target_of_what_trains(said):
    words = ["--config", "tiny", "--config", "signals/sketch", "--config", "distill", "--data.batch_size", "2"]
    peaks = {}
    for name, more in {"all": [], "lora": ["--model.editor.trains", "lora"]}.items():
        status, out, _ = said(*words, *more)
        assert status == 0 and "teacher and target of a distillation" in out
        setting, _ = setting_of(configuration(resolve_recipes([*words, *more])))
        cost, plain = footprint(setting), footprint(replace(setting, distills=False))
        assert cost.teacher == 8 * cost.trainable and plain.teacher == 0
        assert cost.operations > 1.2 * plain.operations
        peaks[name] = cost.peak
    assert peaks["lora"] < peaks["all"]


def test_the_json_file_has_the_printed_numbers(said, tmp_path):
    file = tmp_path / "plan.json"
    words = ["--config", "tiny", "--config", "signals/sketch", "--gpu", "rtx-3090", "--json", str(file)]
    status, out, _ = said(*words)
    plan = json.loads(file.read_text())
    assert status == 0 and [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert plan["peak_bytes"] == sum(plan["bytes"].values())
    for name, label in PARTS.items():
        printed = [line.rsplit(None, 1)[1] for line in out.splitlines() if line.strip().startswith(label + " ")]
        assert printed == ([f"{plan['bytes'][name] / GIB:.2f}"] if plan["bytes"][name] else [])
    assert plan["fits"] is True and plan["remedies"] == []
    assert f"{plan['seconds_per_step']:.2g} s at" in out and f"{plan['hours']:.2g} h for {plan['steps']:,} steps" in out
    assert plan["setting"]["size"] == [64, 64] and plan["gpu_memory_gib"] == 24


def test_remedies_are_in_the_json_file():
    setting = Setting("tiny", (64, 64), 8)
    cost = footprint(setting)
    plan = Plan(setting, cost, "rtx-3090", 0.5, -1, [("--config cached", cost.peak // 2)])
    assert plan.to_json()["remedies"] == [{"options": "--config cached", "peak_bytes": cost.peak // 2, "fits": True}]
    assert plan.to_json()["hours"] is None


def test_a_plan_that_cannot_be_written_is_one_line(said, tmp_path):
    (tmp_path / "file").touch()
    words = ["--config", "tiny", "--config", "signals/sketch", "--json", str(tmp_path / "file" / "plan.json")]
    status, _, err = said(*words)
    assert status == 1 and err.count("\n") == 1 and "plan.json" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "gtx-1"], "--gpu must be one of rtx-3090, .* got gtx-1"),
        (["--utilisation", "40"], "--utilisation must be above 0 and at most 1, got 40"),
        (["--data.size", "[60, 64]"], "height must be a multiple of 8, got 60; try 56 or 64"),
        (["--trainer.precision", "64-true"], "plan knows 32-true, 16-mixed, bf16-mixed and bf16-true, got 64-true"),
        (
            ["--trainer.devices", "2", "--trainer.strategy", "fsdp"],
            "plan knows auto, DDP, ShardedStrategy and deepspeed_stage_2, got fsdp",
        ),
        (["--trainer.devices", "auto"], "set --trainer.devices, got auto"),
        (["--model.editor.nothing", "1"], "nothing"),
        (
            ["--data.batch_size", "0", "--trainer.accumulate_grad_batches", "-1"],
            "data.batch_size must be 1 or more, got 0; trainer.accumulate_grad_batches must be 1 or more, got -1",
        ),
        (["--trainer.devices", "0"], "trainer.devices × trainer.num_nodes must be 1 or more, got 0"),
        (["--model.editor.augmentation_draws", "0"], "model.editor.augmentation_draws must be 1 or more, got 0"),
        (["--json", "."], r"--json must name a file, got the folder \."),
    ],
)
def test_bad_input_is_one_line(said, words, message):
    status, _, err = said("--config", "tiny", "--config", "signals/sketch", *words)
    assert status == 1 and err.count("\n") == 1
    with pytest.raises(InputError, match=message):
        raise InputError(err)


def test_what_trains_no_editor_is_not_planned(said):
    status, _, err = said("--config", "tiny_vae")
    assert status == 1 and "plan is for recipes that train an editor" in err
