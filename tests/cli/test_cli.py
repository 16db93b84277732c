"""The real command line: every command, every recipe, and what bad input is told."""

import copy
import csv
import hashlib
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
import yaml
from commandline import Command
from conftest import make_editor
from PIL import Image
from safetensors.torch import save_file

from fp_lightning import FramePainterModule, build_editor
from fp_lightning.cli.main import main
from fp_lightning.cli.trainer import one_line
from fp_lightning.errors import InputError
from fp_lightning.pairs.heldout import choose_pairs, write_list
from fp_lightning.pairs.shards import PairStore
from fp_lightning.scenes.clips import write_clips
from fp_lightning.scenes.content import SceneContent
from fp_lightning.scenes.scene import Scene
from fp_lightning.training.recipe_files import RECIPES, recipe_path
from fp_lightning.training.sweep import plan

TINY = ["--config", "tiny", "--config", "signals/sketch"]
SIGNALS = ("points", "coarse", "all")  # besides sketch
SMALL = ["--data.size", "[32,32]", "--data.batch_size", "2", "--model.sampling.num_inference_steps", "1"]


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs `fp-lightning ARGUMENTS`; returns exit status, stdout, stderr."""

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fp-lightning", *map(str, arguments)])
        status = main()
        return (status, *capfd.readouterr())

    call.printed = lambda: capfd.readouterr().out
    return call


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder, 4, size=(64, 64), seed=0)
    return folder


@pytest.fixture(scope="module")
def pairs(clips, tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "pairs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fp-lightning", "pairs", str(clips), "--out", str(out), "--size", "64", "64"])
        patch.setattr("fp_lightning.pairs.engines.cores", lambda: 1)
        assert main() == 0
    return out


@pytest.fixture(scope="module")
def holdout(pairs, tmp_path_factory):
    path, store = tmp_path_factory.mktemp("holdout") / "heldout.json", PairStore(pairs)
    write_list(store, choose_pairs(store, 1), path, 0)
    return path


def one_line_of(err: str) -> str:
    """The command's complaint: exactly one line, and no traceback anywhere."""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("fp-lightning: ")]
    assert len(lines) == 1, err
    return lines[0]


# --- the commands


def test_help_lists_every_command(run):
    status, out, _ = run("--help")
    assert status == 0
    for command in ("fit", "validate", "test", "predict", "pairs", "clips", "scenes", "sweep", "quickstart"):
        assert f"\n  {command} " in out


def test_fit_validate_test_predict(run, pairs, tmp_path):
    folder = tmp_path / "run"
    common = [*TINY, *SMALL, "--data.pairs", pairs, "--trainer.default_root_dir", folder]
    checkpoint = ["--ckpt_path", folder / "checkpoints" / "last.ckpt"]
    fit = ["--trainer.max_steps", 2, "--trainer.val_check_interval", 1, "--trainer.log_every_n_steps", 1]
    assert run("fit", *common, *fit)[0] == 0
    assert (folder / "checkpoints" / "best.ckpt").exists() and (folder / "checkpoints" / "last.ckpt").exists()
    assert list((folder / "samples").glob("*.png")) and (folder / "tensorboard").is_dir()
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"step", "train/diffusion", "train/matching", "val/total", "val/psnr_moving"} <= rows[0].keys()

    fit_config = (folder / "config.fit.yaml").read_text()
    assert yaml.safe_load(fit_config)["trainer"]["max_steps"] == 2
    known = json.loads((folder / "provenance.fit.json").read_text())
    assert known["command"][0] == "fit" and torch.__version__.startswith(known["packages"]["torch"])
    assert known["pairs_manifest_sha256"] == hashlib.sha256((Path(pairs) / "manifest.json").read_bytes()).hexdigest()
    assert known["git"] is None or len(known["git"]["commit"]) == 40
    assert run("validate", *common, *checkpoint)[0] == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["n"] > 0 and metrics["psnr_moving"] > 0 and metrics["lpips"] is None
    assert "lpips" in metrics["not_measured"] and "psnr_moving_copy_source" in metrics
    assert "<html" in (folder / "report.html").read_text()
    assert run("test", *common, *checkpoint)[0] == 0
    assert (folder / "config.fit.yaml").read_text() == fit_config

    loaded = FramePainterModule.load_from_checkpoint(
        checkpoint[1], editor=build_editor("tiny", "random", control_factor=1.0)
    )
    stored = torch.load(checkpoint[1], weights_only=True)["state_dict"]
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in stored.items())

    inputs = tmp_path / "inputs"
    inputs.mkdir()
    Image.fromarray(np.zeros((50, 70, 3), np.uint8)).save(inputs / "photo.jpg")
    Image.fromarray(np.zeros((50, 70), np.uint8)).save(inputs / "photo.sketch.png")
    assert run("predict", *common, *checkpoint, "--data.inputs", inputs)[0] == 0
    assert Image.open(folder / "predictions" / "photo.png").size == (70, 50)


def test_quickstart_ends_with_a_report_and_edits(run, tmp_path, monkeypatch):
    def in_process(command):
        assert command[:3] == [sys.executable, "-m", "fp_lightning"]
        monkeypatch.setattr(sys, "argv", ["fp-lightning", *command[3:]])
        return SimpleNamespace(returncode=main())

    monkeypatch.setattr("fp_lightning.cli.quickstart.subprocess", SimpleNamespace(run=in_process))
    monkeypatch.setattr("fp_lightning.pairs.engines.cores", lambda: 1)
    status, out, err = run("quickstart", "--out", tmp_path, "--steps", 1, "--clips", 3)
    assert status == 0, err
    assert (tmp_path / "run" / "report.html").exists()
    photos = [p.name for p in (tmp_path / "heldout" / "inputs").glob("*.png") if p.suffixes == [".png"]]
    assert photos and sorted(photos) == sorted(p.name for p in (tmp_path / "run" / "predictions").glob("*.png"))
    assert "$ fp-lightning pairs" in out and "PSNR where things move" in out.replace("\n", " ")


def test_resume_goes_on_where_the_run_was(run, pairs, tmp_path):
    folder = tmp_path / "run"
    common = [*TINY, *SMALL, "--data.pairs", pairs, "--trainer.default_root_dir", folder]
    common += ["--trainer.val_check_interval", 1, "--trainer.log_every_n_steps", 1]
    assert run("fit", *common, "--trainer.max_steps", 1)[0] == 0
    resume = ["--ckpt_path", folder / "checkpoints" / "last.ckpt"]
    assert run("fit", *common, "--trainer.max_steps", 2, *resume)[0] == 0
    with (folder / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/total"]]
    assert steps == [0, 1]


def test_steps_after_the_last_validation_are_kept_and_gone_on_from(run, pairs, tmp_path):
    folder = tmp_path / "run"
    common = [*TINY, *SMALL, "--data.pairs", pairs, "--trainer.default_root_dir", folder]
    common += ["--trainer.val_check_interval", 2, "--trainer.log_every_n_steps", 1]
    last = folder / "checkpoints" / "last.ckpt"
    assert run("fit", *common, "--trainer.max_steps", 3)[0] == 0
    assert torch.load(last, weights_only=True)["global_step"] == 3
    assert run("fit", *common, "--trainer.max_steps", 4, "--ckpt_path", last)[0] == 0
    with (folder / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/total"]]
    assert steps == [0, 1, 2, 3] and torch.load(last, weights_only=True)["global_step"] == 4


@pytest.mark.parametrize("recipe", ["tiny_svd", "tiny_vae"])
def test_a_prior_does_not_train_what_it_would_not_write(run, recipe, tmp_path):
    steps = ["--trainer.max_steps", 7, "--trainer.val_check_interval", 3, "--trainer.default_root_dir", tmp_path]
    status, _, err = run("fit", "--config", recipe, *CLIPS, *ONE_CPU, *steps)
    message = "max_steps 7 is not a multiple of trainer.val_check_interval 3; set it to 6"
    assert status == 1 and message in one_line_of(err)


def test_clips_are_of_the_scenes_asked_for(run, tmp_path):
    status, out, err = run("clips", tmp_path / "clips", "--count", 1, "--size", 32, 32, "--radius", 0.3, 0.4)
    assert status == 0 and "1 videos" in out, err
    with av.open(str(tmp_path / "clips" / "scene-0.mp4")) as video:
        film = next(video.decode(video=0)).to_ndarray(format="rgb24")
    error = {
        radius: np.abs(film.astype(float) - Scene(0, (32, 32), SceneContent(radius=radius)).frame(0.0)).mean()
        for radius in ((0.3, 0.4), (0.12, 0.24))
    }
    assert error[0.3, 0.4] < error[0.12, 0.24] / 2


def test_scenes_become_pairs(run, tmp_path):
    status, out, err = run(
        *("scenes", tmp_path / "pairs", "--count", 2, "--size", 16, 24, "--seed", 5, "--workers", 1),
        *("--objects", 2, 3, "--motion", 0.1, 0.2, "--variety", 0.5, "--radius", 0.2, 0.3),
    )
    assert status == 0 and "2 pairs in" in out, err
    exact = Scene(5, (16, 24), SceneContent(objects=(2, 3), motion=(0.1, 0.2), variety=0.5, radius=(0.2, 0.3))).pair()
    assert torch.equal(PairStore(tmp_path / "pairs")[0].target, exact.target)


def test_a_finished_sweep_is_shown_again(run, tmp_path):
    words = ["base", "ablations/prior_off"]
    for done, psnr in zip(plan(words, [3], tmp_path, ["tiny", "ablations/base"]), (20.0, 18.0), strict=True):
        done.folder.mkdir(parents=True)
        (done.folder / "sweep.json").write_text(json.dumps(done.words))
        done.metrics.write_text(json.dumps({"psnr": psnr}))
    status, out, err = run("sweep", *words, "--seeds", 3, "--out", tmp_path, "--metrics", "psnr")
    assert status == 0, err
    assert "| prior_off | 1 | 18.000 ± inf | -2.000 ± inf |" in out
    assert (tmp_path / "results.csv").read_text().splitlines()[1:] == ["base,3,20.0", "prior_off,3,18.0"]


# --- the recipes

ONE_CPU = ["--trainer.strategy", "auto", "--trainer.devices", "1", "--trainer.precision", "32"]
ABLATION = ["--config", "tiny", "--config", "ablations/base"]
EDITOR = ["--config", "tiny", "--config", "tiny_editor"]
FAST = ["--config", "tiny", "--config", "distill", "--config", "tiny_editor_fast"]
CLIPS = ["--data.size", "[32,32]", "--data.frames_per_batch", "4", "--data.val_batches", "1"]
GENERATED = ["--model.generated", "1", "--model.num_inference_steps", "1"]
RECIPE_RUNS = {
    "tiny": [*TINY, *SMALL],
    "svd": ["--config", "svd", "--config", "signals/sketch", *SMALL, *ONE_CPU],
    "official": ["--config", "svd", "--config", "official", "--config", "signals/sketch", *SMALL, *ONE_CPU],
    "cached": ["--config", "tiny", "--config", "cached", *SMALL],
    "fast": [*TINY, "--config", "fast", *SMALL],
    "paper": [*TINY, "--config", "paper", *SMALL],
    "tiny_vae": ["--config", "tiny_vae", *CLIPS, *ONE_CPU],
    "tiny_svd": ["--config", "tiny_svd", *CLIPS, *GENERATED, *ONE_CPU],
    "tiny_editor": [*EDITOR, *SMALL, *ONE_CPU],
    "distill": ["--config", "tiny", "--config", "distill", "--model.editor.model", "tiny-editor", *SMALL],
    "tiny_editor_fast": [*FAST, *SMALL, *ONE_CPU],
    "ablations/base": [*ABLATION, *SMALL],
    "ablations/prior_off": [*ABLATION, "--config", "ablations/prior_off", *SMALL],
    "ablations/attention_cross_frame": [*ABLATION, "--config", "ablations/attention_cross_frame", *SMALL],
}
MACHINES = sorted(path.stem for path in (RECIPES / "hardware").glob("*.yaml"))
RECIPE_RUNS |= {
    f"hardware/{name}": [*RECIPE_RUNS["svd"], "--config", f"hardware/{name}", *ONE_CPU, "--trainer.num_nodes", "1"]
    for name in MACHINES
}
NO_PAIRS = ("tiny_vae", "tiny_svd")
ARMS = sorted(path.stem for path in (RECIPES / "ablations").glob("*.yaml") if path.stem != "base")


@pytest.mark.parametrize("name", RECIPE_RUNS)
def test_recipe_runs_on_tiny_settings(run, name, pairs, holdout, tiny_folder, tmp_path):
    arguments = [*RECIPE_RUNS[name], "--trainer.default_root_dir", tmp_path / "run", "--trainer.max_steps", 1]
    arguments += ["--trainer.val_check_interval", 1, "--trainer.accelerator", "cpu", "--data.num_workers", 0]
    if name in ("svd", "official") or name.startswith("hardware/"):
        arguments += ["--model.editor.model", tiny_folder, "--data.val_fraction", "0.25"]
    if name not in NO_PAIRS:
        arguments += ["--data.pairs", pairs]
    if name.startswith("ablations/"):
        arguments += ["--data.holdout", holdout]
    if name.startswith(("ablations/", "hardware/one_24gb", "tiny_editor")):
        arguments += ["--data.latents", tmp_path / "latents"]
    status, _, err = run("fit", *arguments)
    assert status == 0, err
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("name", SIGNALS)
def test_every_signal_validates_and_predicts(run, name, pairs, tmp_path):
    folder, inputs = tmp_path / "run", tmp_path / "inputs"
    inputs.mkdir()
    Image.new("RGB", (70, 50), "grey").save(inputs / "photo.png")
    Image.new("RGB", (70, 50), "white").save(inputs / "photo.coarse.png")
    (inputs / "photo.points.json").write_text('{"points": [[10, 10, 30, 20]]}')
    common = ["--config", "tiny", "--config", f"signals/{name}", *SMALL, "--trainer.default_root_dir", folder]
    fit = ["--trainer.max_steps", 1, "--trainer.val_check_interval", 1]
    assert run("fit", *common, "--data.pairs", pairs, *fit)[0] == 0
    checkpoint = ["--ckpt_path", folder / "checkpoints" / "last.ckpt"]
    assert run("validate", *common, "--data.pairs", pairs, *checkpoint)[0] == 0
    assert json.loads((folder / "metrics.json").read_text())["n"] > 0
    assert run("predict", *common, "--data.inputs", inputs, *checkpoint)[0] == 0
    assert Image.open(folder / "predictions" / "photo.png").size == (70, 50)


def test_a_distilled_editor_remembers_its_steps(run, pairs, tmp_path):
    folder, inputs = tmp_path / "run", tmp_path / "inputs"
    inputs.mkdir()
    Image.new("RGB", (70, 50), "grey").save(inputs / "photo.png")
    Image.new("L", (70, 50)).save(inputs / "photo.sketch.png")
    common = [*TINY, "--data.size", "[32,32]", "--trainer.default_root_dir", folder]
    distill = ["--config", "distill", "--model.steps", 2, "--model.sampling.num_inference_steps", 2]
    fit = [*distill, "--model.editor.model", "tiny-editor", "--data.pairs", pairs, "--data.batch_size", 2]
    status, _, err = run("fit", *common, *fit, "--trainer.max_steps", 1, "--trainer.val_check_interval", 1)
    assert status == 0, err
    checkpoint, predict = folder / "checkpoints" / "last.ckpt", ["predict", *common, "--data.inputs", inputs]
    assert run("convert", "checkpoint", checkpoint, tmp_path / "fast")[0] == 0
    assert json.loads((tmp_path / "fast" / "model_index.json").read_text())["distilled_steps"] == 2
    edits = []
    for words in (
        [*distill, "--ckpt_path", checkpoint],
        [*distill, "--model.editor.model", tmp_path / "fast"],
    ):
        status, _, err = run(*predict, *words)
        assert status == 0, err
        edits.append(np.array(Image.open(folder / "predictions" / "photo.png"), int))
    assert np.abs(edits[0] - edits[1]).max() <= 1  # weights at other addresses round otherwise
    for words in (["--ckpt_path", checkpoint], ["--model.editor.model", tmp_path / "fast"]):
        status, _, err = run(*predict, *words)
        assert status and "distilled for 1 to 2 steps: solver must be consistency, got euler" in one_line_of(err)
    status, out, _ = run("convert", "pipeline", tmp_path / "fast", tmp_path / "back")
    assert status == 0 and "note: the released code has no solver for a distilled editor" in out


def test_released_weights_edit_on_the_command_line(run, tiny_folder, tmp_path, caplog):
    released, inputs = tmp_path / "released", tmp_path / "photos"
    released.mkdir()
    inputs.mkdir()
    editor = make_editor(match_queries="both", tiny=True)
    unet = {k.replace(".attn1.processor.", ".sparse_attention."): v for k, v in editor.prior.unet.state_dict().items()}
    save_file(unet, released / "unet_diffusion_pytorch_model.safetensors")
    save_file(editor.control_encoder.state_dict(), released / "encoder_diffusion_pytorch_model.safetensors")
    Image.new("RGB", (70, 50), "grey").save(inputs / "photo.png")
    Image.new("L", (70, 50)).save(inputs / "photo.sketch.png")
    convert = ["convert", "released", released, tmp_path / "pipe", "--model", tiny_folder, "--size", 64, 64]
    status, out, err = run(*convert)
    assert status == 0 and "tensors" in out, err
    assert "choose another name" in one_line_of(run(*convert)[2])
    common = ["--config", "svd", "--config", "official", "--config", "signals/sketch", *SMALL, *ONE_CPU]
    common += ["--trainer.accelerator", "cpu", "--data.num_workers", 0, "--trainer.default_root_dir", tmp_path / "run"]
    status, out, err = run("predict", *common, "--model.editor.model", tmp_path / "pipe", "--data.inputs", inputs)
    assert status == 0, err
    assert Image.open(tmp_path / "run" / "predictions" / "photo.png").size == (70, 50)
    assert "no trained weights" not in caplog.text and "was saved by" not in caplog.text
    status, out, err = run("convert", "pipeline", tmp_path / "pipe", tmp_path / "back")
    assert status == 0 and len(list((tmp_path / "back").iterdir())) == 2, err


def test_predict_without_anything_trained_says_so(run, tmp_path, caplog):
    Image.new("RGB", (70, 50), "grey").save(tmp_path / "photo.png")
    Image.new("L", (70, 50)).save(tmp_path / "photo.sketch.png")
    run("predict", *TINY, *SMALL, "--data.inputs", tmp_path, "--trainer.default_root_dir", tmp_path)
    assert "no trained weights are loaded" in caplog.text


def configuration(run, *arguments) -> dict:
    """What a fit with these arguments would be given."""
    with pytest.raises(SystemExit) as done:
        run("fit", *arguments, "--print_config")
    assert not done.value.code
    config = yaml.safe_load(run.printed())
    return {part: config[part]["init_args"] for part in ("model", "data")} | {"trainer": config["trainer"]}


@pytest.fixture(scope="module")
def base_configuration():
    return {}


@pytest.mark.parametrize("name", ARMS)
def test_an_ablation_differs_from_its_base_in_what_it_states_and_builds(run, name, base_configuration):
    if not base_configuration:
        base_configuration.update(configuration(run, *ABLATION))
    stated = yaml.safe_load((RECIPES / "ablations" / f"{name}.yaml").read_text())
    found = configuration(run, *ABLATION, "--config", f"ablations/{name}")
    expected = copy.deepcopy(base_configuration)
    for part, values in stated.items():
        for key, value in values["init_args"].items():
            if key == "editor":
                expected[part][key]["init_args"] |= value["init_args"]
            else:
                expected[part][key] = value
    assert found == expected != base_configuration
    editor = build_editor(**found["model"]["editor"]["init_args"])
    assert editor.prior.unet.config.attention == found["model"]["editor"]["init_args"]["attention"]


def test_every_recipe_is_run_above():
    whole = {str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.yaml")}
    used = {argument for arguments in RECIPE_RUNS.values() for argument in arguments}
    used |= {f"signals/{name}" for name in SIGNALS} | {f"ablations/{name}" for name in ARMS}
    used |= {f"loggers/{name}" for name in LOGGERS}
    assert whole - {"run"} <= used  # run.yaml is read before each


def test_svd_recipe_states_the_papers_numbers():
    recipe = yaml.safe_load((RECIPES / "svd.yaml").read_text())
    assert recipe["data"]["init_args"]["size"] == [576, 1024]
    assert recipe["data"]["init_args"]["batch_size"] * recipe["trainer"]["devices"] == 4
    assert recipe["trainer"]["max_steps"] == 20000
    assert recipe["model"]["init_args"]["learning_rate"] == 1e-5
    assert recipe["model"]["init_args"]["sampling"]["num_inference_steps"] == 25


@pytest.mark.parametrize("name", ["tiny", "tiny.yaml", "recipes/tiny.yaml"])
def test_recipes_are_found_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe_path(name) == str(RECIPES / "tiny.yaml")


def test_a_file_of_the_users_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text("{}")
    assert recipe_path("tiny.yaml") == "tiny.yaml"


# --- bad input: one line, a status that is not 0


def test_unknown_command(run):
    status, _, err = run("fti")
    assert status == 1 and "unknown command fti; choose fit," in one_line_of(err)


def test_unknown_signal_lists_the_recipes(run):
    status, _, err = run("fit", "--config", "tiny", "--config", "signals/scribble")
    assert status == 1
    assert "no recipe or file signals/scribble; the recipes are" in one_line_of(err)
    assert "signals/sketch" in err
    with pytest.raises(InputError):
        recipe_path("signals/scribble")


@pytest.mark.parametrize(
    "option",
    ["--model.editor.atention=matching", "--trainer.max_step=3", "--data.batchsize=3", "--model.learning_rat=1"],
)
def test_misspelt_options_are_named(run, option):
    status, _, err = run("fit", *TINY, option)
    assert status == 1
    assert option.split("=")[0].split(".")[-1].removeprefix("--") in one_line_of(err)


def test_misspelt_key_in_a_recipe_is_named(run, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model:\n  init_args:\n    learning_rte: 1\n")
    status, _, err = run("fit", *TINY, "--config", recipe)
    assert status == 1 and "learning_rte" in one_line_of(err)


def test_missing_checkpoint_is_named(run, pairs, tmp_path):
    status, _, err = run("validate", *TINY, "--data.pairs", pairs, "--ckpt_path", tmp_path / "no.ckpt")
    assert status == 1 and "no checkpoint" in one_line_of(err)


def test_missing_pairs_are_named(run, tmp_path):
    status, _, err = run("fit", *TINY, "--trainer.default_root_dir", tmp_path, "--data.pairs", tmp_path / "none")
    assert status == 1 and "fp-lightning pairs VIDEOS --out" in one_line_of(err)


def test_missing_weights_are_named(run, pairs, tmp_path):
    status, _, err = run("fit", *TINY, "--data.pairs", pairs, "--model.editor.model", tmp_path / "svd")
    assert status == 1 and "no model folder" in one_line_of(err)


def test_size_that_does_not_fit_is_named(run, pairs, tmp_path):
    size = ["--data.size", "[36,32]", "--trainer.default_root_dir", tmp_path]
    status, _, err = run("fit", *TINY, "--data.pairs", pairs, *size)
    assert status == 1 and "height must be a multiple of 8, got 36; try 32 or 40" in one_line_of(err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count", 0], "count must be 1 or more"),
        (["--size", 30, 32], "multiples of 4, got 1 and (30, 32)"),
        (["--variety", 2], "variety of a scene must be between 0 and 1, got 2"),
        (["--exposure", -1], "exposure of a scene must be between 0 and 1, got -1"),
        (["--objects", 3, 1], "objects of a scene must be a smallest and a largest value, 0 or more, got 3 and 1"),
        (["--motion", 0.3, 0.1], "motion of a scene"),
        (["--workers", 0], "stride and workers must be 1 or more, got 4 and 0"),
        (["--stride", 0], "stride and workers must be 1 or more, got 0 and"),
    ],
)
def test_impossible_scenes_are_named_before_any_is_written(run, options, message, tmp_path):
    status, _, err = run("scenes", tmp_path / "pairs", "--count", 1, *options)
    assert status == 1 and message in one_line_of(err)
    assert not (tmp_path / "pairs").exists()


def test_a_folder_that_holds_pairs_takes_no_scenes(run, pairs):
    status, _, err = run("scenes", pairs)
    assert status == 1 and "already holds pairs; choose another folder" in one_line_of(err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["base", "ablations/none"], "no recipe or file ablations/none; the recipes are"),
        (["base", "base"], "one arm and one seed, none twice"),
        (["base", "--seeds", 1, 1], "one arm and one seed, none twice"),
        (["base", "--base", "nothing"], "no recipe or file nothing"),
        (["base", "--jobs", 0], "--jobs must be 1 or more, got 0"),
        (["base", "--set", "trainer.max_steps"], "--set takes NAME=VALUE, got trainer.max_steps"),
    ],
)
def test_impossible_sweeps_are_named_before_any_run(run, arguments, message, tmp_path):
    status, _, err = run("sweep", *arguments, "--out", tmp_path / "runs")
    assert status == 1 and message in one_line_of(err)
    assert not (tmp_path / "runs").exists()


def test_folder_without_videos_is_named(run, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    status, _, err = run("pairs", tmp_path, "--out", tmp_path / "pairs")
    assert status == 1 and str(tmp_path) in one_line_of(err)
    assert not (tmp_path / "pairs").exists()


def test_truncated_video_among_good_ones_is_reported_and_the_others_go_on(run, clips, tmp_path):
    good = sorted(clips.glob("*.mp4"))[0]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(good.read_bytes()[: good.stat().st_size // 3])
    status, _, err = run("pairs", good, broken, "--out", tmp_path / "pairs", "--size", 64, 64, "--workers", 1)
    assert status == 0
    assert "broken.mp4" in one_line_of(err)
    manifest = json.loads((tmp_path / "pairs" / "manifest.json").read_text())
    by_name = {entry["video"]: entry for entry in manifest["per_video"]}
    assert by_name[str(good)]["pairs"] > 0 and by_name[str(good)]["error"] is None
    assert by_name[str(broken)]["error"]


def test_complaints_of_the_parser_become_one_line():
    tree = (
        "Parser key 'model':\n  Does not validate\n  - Problem with x:\n      - Option 'zz' is not accepted\n  Given: y"
    )
    assert one_line(tree, "fit").startswith("Option 'zz' is not accepted;")


SCENES = ["--config", "tiny", "--data.class_path=datamodules.SceneDataModule", "--data.size=[32,32]"]
SCENES += ["--data.batch_size=2", "--data.train_samples=8", "--data.val_samples=2", "--trainer.val_check_interval=2"]
SCENES += ["--model.sampling.num_inference_steps=1", "--model.warmup=0"]


LOGGERS = {"wandb": "wandb", "mlflow": "mlflow"}  # recipe → package


@pytest.mark.parametrize(("name", "package"), LOGGERS.items())
def test_metrics_go_to_other_loggers_or_their_absence_is_one_line(run, tmp_path, monkeypatch, name, package):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    words = ["--config", f"loggers/{name}", "--trainer.max_steps=2", f"--trainer.default_root_dir={tmp_path}"]
    status, _, err = run("fit", *SCENES, *words)
    if find_spec(package):
        assert status == 0, err
        assert list(tmp_path.glob("wandb/offline-run-*")) or (tmp_path / "mlflow.db").is_file()
        assert (tmp_path / "metrics.csv").is_file()
    else:
        assert status == 1 and package in one_line_of(err).lower() and "install" in one_line_of(err)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The checkpoint of a run of two steps."""
    folder = tmp_path_factory.mktemp("stopped")
    words = ["fit", *SCENES, "--trainer.max_steps=2", f"--trainer.default_root_dir={folder}"]
    Command(words, errors=folder / "errors.log").finish()
    return folder / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer.strategy=fsdp"], "`fsdp` requires a GPU accelerator.*change the trainer's options"),
        (["--trainer.strategy=quick"], "invalid strategy name: `strategy='quick'`.*change the trainer's options"),
        (["--trainer.strategy=deepspeed_stage_2"], "DeepSpeed installed.*pip install"),
        (["--data.seed=3"], "trained on other data; resume with the same data, or convert it"),
        (["--data.batch_size=3"], "4 samples into an epoch, not a multiple of 1 processes × data.batch_size 3"),
        (["--trainer.accumulate_grad_batches=4"], "2 batches into an epoch, not a multiple of trainer.accumulate"),
        (["--model.editor.trains=temporal"], "from a different architecture: [0-9]+ unexpected .*use the recipe"),
        (
            ["--model.optimizer=adamw_8bit"],
            "holds the optimiser state of adamw, not of adamw_8bit; continue with --model.optimizer adamw",
        ),
    ],
)
def test_what_cannot_go_on_is_one_line_and_leaves_the_checkpoint(run, stopped, tmp_path, words, message):
    if "deepspeed" in words[0] and find_spec("deepspeed"):
        pytest.skip("deepspeed is installed, so nothing is missing")
    before = stopped.read_bytes()
    common = ["fit", *SCENES, "--trainer.max_steps=4", f"--trainer.default_root_dir={tmp_path}"]
    status, _, err = run(*common, "--ckpt_path", stopped, *words)
    assert status == 1
    assert re.search(message, one_line_of(err)), err
    assert stopped.read_bytes() == before
