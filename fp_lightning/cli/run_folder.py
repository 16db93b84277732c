"""The folder of a run: its checkpoints by name, protection from other runs, and its configuration as a recipe."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import lightning as L
from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import Checkpoint

from fp_lightning.cli.names import protect, protect_options, saved
from fp_lightning.errors import InputError
from fp_lightning.files import locked

ROOT = "trainer.default_root_dir"
_PLACEHOLDER = "FP_LIGHTNING_RUN_FOLDER"  # stands for the run's folder while a configuration is read again


def find_checkpoint(name: str, config: Namespace) -> str:
    """Return the path of the checkpoint that `--ckpt_path` names.

    Args:
        name: a path, "best" or "last" for that checkpoint of the run, or "hpc" for the last one that SLURM requeued.
        config: configuration of the command; its checkpoint callbacks and `trainer.default_root_dir` name the folders.

    Raises:
        InputError: there is no such checkpoint.
    """
    root = Path(config.get(ROOT) or ".")
    if name == "hpc":
        numbered = {
            int(match[1]): path for path in root.glob("hpc_ckpt_*.ckpt") if (match := re.search(r"_(\d+)\.", path.name))
        }
        if not numbered:
            raise InputError(f"no hpc_ckpt_*.ckpt in {root}; --{ROOT} names the run, or pass a file as --ckpt_path")
        return str(numbered[max(numbered)])
    if name not in ("best", "last"):
        if not Path(name).is_file():
            raise InputError(f"no checkpoint {name}; a run keeps its own in checkpoints/last.ckpt and best.ckpt")
        return name
    callbacks = [callback.get("init_args") for callback in config.get("trainer.callbacks") or []]
    folders = [Path(options["dirpath"]) for options in callbacks if options and options.get("dirpath")]
    folders = list(dict.fromkeys(folders)) or [root / "checkpoints"]
    for folder in folders:
        if (folder / f"{name}.ckpt").is_file():
            return str(folder / f"{name}.ckpt")
    raise InputError(
        f"no {name}.ckpt in {' or '.join(map(str, folders))}; --{ROOT} names the run, or pass a file as --ckpt_path"
    )


@contextmanager
def protected(trainer: L.Trainer, command: str, ckpt_path: str | None) -> Iterator[None]:
    """Keep other processes of the same command out of the run's folder, and keep the checkpoints of earlier runs.

    Validate or test a run while `fit` goes on: each command has a lock of its own.

    Raises:
        InputError: another run of `command` uses the folder, or `fit` would overwrite the checkpoints of another run.
    """
    root, writes = trainer.default_root_dir, not getattr(trainer, "fast_dev_run", False)
    local = writes and trainer.is_global_zero and "://" not in root
    with locked(Path(root), f".{command}.lock") if local else nullcontext():
        if command == "fit" and writes:
            _keep_checkpoints(trainer, ckpt_path)
        yield


def _keep_checkpoints(trainer: L.Trainer, ckpt_path: str | None) -> None:
    """Raise InputError if a checkpoint callback writes into a folder with checkpoints that this run does not resume."""
    root = Path(trainer.default_root_dir).resolve()
    if not ckpt_path and SLURMEnvironment.detect() and any(root.glob("hpc_ckpt_*.ckpt")):
        return  # Lightning resumes a requeued job
    resumed = Path(ckpt_path).parent.resolve() if ckpt_path else None
    for callback in trainer.checkpoint_callbacks:
        folder = _folder(callback)
        kept = (
            [] if folder is None else sorted(folder.glob("*.ckpt"), key=lambda path: (path.stem != "last", path.name))
        )
        if kept and resumed not in (folder.resolve(), root):  # type: ignore[union-attr]
            raise InputError(
                f"{folder} holds {len(kept)} checkpoints of another run, which this one would overwrite; continue that "
                f"run with --ckpt_path {kept[0]}, choose another --{ROOT}, or delete them"
            )


def _folder(callback: Checkpoint) -> Path | None:
    folder = getattr(callback, "dirpath", None)
    return None if folder is None or "://" in str(folder) else Path(os.path.relpath(folder))


def as_recipe(parser: ArgumentParser, config: Namespace) -> str:
    """Return a configuration as YAML that also works for a run in another folder.

    Paths in the run's folder are written as `${trainer.default_root_dir}/…`, as the recipes write them. Seeds that
    follow `seed_everything` are left null.

    Args:
        parser: parser of the command, which reads the words of `sys.argv` again.
        config: the configuration that they gave.
    """
    again = parser.parse_args([*protect_options(sys.argv[2:]), f"--{ROOT}={_PLACEHOLDER}"])
    again.seed_everything = config.seed_everything
    for name in (ROOT, "ckpt_path"):
        again[name] = config[name] and protect(str(config[name]))
    text = saved(parser.dump(again, skip_none=False, skip_validation=True))
    return text.replace(_PLACEHOLDER, f"${{{ROOT}}}")


def fill_seeds(config: Namespace) -> None:
    """Set every seed of the model and the data that is None to `seed_everything`, if that is a number."""
    seed = config.get("seed_everything")
    if isinstance(seed, bool) or seed is None:
        return
    for part in ("model", "data"):
        for name, value in list((config.get(part) or Namespace()).items()):
            if name.rpartition(".")[2] == "seed" and value is None:
                config[f"{part}.{name}"] = seed
