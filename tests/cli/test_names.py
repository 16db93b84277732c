"""Names of files and folders are read as they are, in options, in recipes and in saved configurations."""

import inspect
import os
import sys

import pytest

import callbacks
import datamodules
from fp_lightning.cli.names import OPTIONAL, PLACES, protect_options, restore
from fp_lightning.cli.quickstart import split_names
from fp_lightning.cli.run_folder import as_recipe
from fp_lightning.cli.trainer import Unbuilt, _cli, configuration
from fp_lightning.errors import InputError
from fp_lightning.model.build import build_editor
from fp_lightning.training.recipe_files import resolve_recipes

NAMES = [
    "Trip: Rome",
    "[x]",
    "#x",
    "1e3",
    "null",
    "a${b}",
    "~",
    "yes",
    os.fsdecode(b"caf\xe9"),
    "-x",
    "{a: b}",
    "e\u0301",
]
NAMES += ["1", "x: ", "it's", "a #b", "é"]
OPTIONS = ["--data.pairs", "--data.inputs", "--trainer.default_root_dir", "--model.editor.model"]
TINY = ["--config", "tiny"]


def read(config) -> list[str]:
    data = config.data.init_args
    return [data.pairs, data.inputs, config.trainer.default_root_dir, config.model.init_args.editor.init_args.model]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_is_a_name_in_every_option(name):
    words = [word for option in OPTIONS for word in (option, name)]
    assert read(configuration(resolve_recipes([*TINY, *words]))) == [name] * 4
    assert restore(protect_options(["--ckpt_path", name, f"--data.latents={name}"]))[1:] == [
        name,
        f"--data.latents={name}",
    ]


def test_a_saved_configuration_reads_back_equal(tmp_path, monkeypatch):
    for start in range(0, len(NAMES), len(OPTIONS)):
        names = [NAMES[(start + number) % len(NAMES)] for number in range(len(OPTIONS))]
        words = resolve_recipes([*TINY, *(f"{option}={name}" for option, name in zip(OPTIONS, names, strict=True))])
        monkeypatch.setattr(sys, "argv", ["fp-lightning", "fit", *words])
        cli = _cli(Unbuilt)
        (tmp_path / "saved.yaml").write_text(as_recipe(cli._parser("fit"), cli.config["fit"]), "utf-8")
        assert read(configuration(["--config", str(tmp_path / "saved.yaml")])) == names


def test_the_folder_of_what_a_run_writes_follows_its_name(tmp_path):
    config = configuration(resolve_recipes([*TINY, "--trainer.default_root_dir", "a${b}: c"]))
    assert config.trainer.logger[0].init_args.save_dir == "a${b}: c"
    assert config.trainer.callbacks[0].init_args.dirpath == "a${b}: c/checkpoints"


def test_null_leaves_an_option_out_unless_it_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = resolve_recipes([*TINY, "--config", "cached", "--data.latents", "null", "--data.pairs=p"])
    assert configuration(words).data.init_args.latents is None
    (tmp_path / "null").mkdir()
    assert configuration(words).data.init_args.latents == "null"


def test_every_text_option_is_known_to_be_a_place_or_not():
    """A new option that takes a file or folder must join `PLACES`."""
    others = {"signals", "variant", "trains", "console_kwargs", "weights", "attention", "match_queries"}
    found = set()
    modules = [*vars(datamodules).values(), *vars(callbacks).values(), build_editor]
    for item in filter(callable, modules):
        for parameter in inspect.signature(item).parameters.values():
            if any(word in str(parameter.annotation) for word in ("str", "Path")):
                found.add(parameter.name)
    assert found - PLACES <= others and {"pairs", "inputs", "latents", "holdout", "out", "path"} <= found
    assert OPTIONAL <= PLACES


def test_a_recipe_in_a_folder_with_an_odd_name_is_read(tmp_path):
    folder = tmp_path / "[x]: #1 ${y}"
    folder.mkdir()
    (folder / "mine.yaml").write_text("trainer:\n  max_steps: 7\n")
    assert configuration(resolve_recipes([*TINY, "--config", str(folder / "mine.yaml")])).trainer.max_steps == 7


def test_names_with_spaces_are_told_apart_by_what_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "My Films", "My", "b  c.MP4", "it's.mp4"):
        (tmp_path / name).touch()
    assert split_names("a.mp4 My Films  b  c.MP4 it's.mp4") == ["a.mp4", "My Films", "b  c.MP4", "it's.mp4"]
    assert split_names("My Films") == ["My Films"]
    with pytest.raises(InputError, match="no video or folder d.mp4; check its name"):
        split_names("a.mp4 d.mp4")


def test_a_run_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    from fp_lightning.cli.main import main

    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "run"
    monkeypatch.setattr(sys, "argv", ["fp-lightning", "fit", *TINY, "--trainer.default_root_dir", str(folder)])
    assert main() == 1
    assert f"cannot write into {folder}: Not a directory; choose another folder with --tr" in capsys.readouterr().err
