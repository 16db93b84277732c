"""LightningCLI as this project uses it: stacked recipes, one run folder, errors of one line."""

from __future__ import annotations

import argparse
import glob
import json
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import transformers
import yaml
from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from fp_lightning.cli.names import MODE, protect_options, protect_recipes, protect_values, restore
from fp_lightning.cli.run_folder import as_recipe, fill_seeds, find_checkpoint, protected
from fp_lightning.errors import InputError
from fp_lightning.files import require_writable, write_text
from fp_lightning.training.provenance import provenance
from fp_lightning.training.recipe_files import RECIPES

RUN_RECIPE = RECIPES / "run.yaml"  # what every run writes; read before the recipes that a command names


class RunConfig(SaveConfigCallback):
    """Writes `<run>/{config.*.yaml,provenance.*.json}`, * being the command, so that none replaces another's.

    The configuration is a recipe: with another `--trainer.default_root_dir` it writes nothing into this run.
    """

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        folder, command = Path(trainer.default_root_dir), trainer.state.fn.value  # type: ignore[union-attr]
        write_text(folder / f"config.{command}.yaml", as_recipe(self.parser, self.config))
        pairs = getattr(getattr(trainer, "datamodule", None), "pairs", None)
        write_text(folder / f"provenance.{command}.json", json.dumps(provenance(pairs), indent=2))


class EditCLI(LightningCLI):
    """Command-line arguments win over what a checkpoint remembers: its hyper-parameters are not read."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The command of `sys.argv` alone: building the parsers of all commands takes seconds."""
        return {sys.argv[1]: LightningCLI.subcommands()[sys.argv[1]]}

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        for name, subparser in self._subcommand_parsers.items():
            subparser.prog = f"fp-lightning {name}"

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Read `sys.argv`, with names of files and folders as they are."""
        self.config = restore(parser.parse_args(protect_options(sys.argv[1:])))

    def _dump_config(self) -> None:
        """Set what models record as their hyper-parameters."""
        if not hasattr(self, "config_dump"):
            text = self.parser.dump(protect_values(self.config), skip_link_targets=False, skip_none=False)
            self.config_dump = restore(yaml.safe_load(text))[self.config.subcommand]

    def before_instantiate_classes(self) -> None:
        """Refuse a run folder that cannot be written before any work; fill in the seeds."""
        config = self.config[self.config.subcommand]
        folder = config.trainer.default_root_dir
        if folder is not None and "://" not in str(folder):
            require_writable(Path(folder), "--trainer.default_root_dir")
        fill_seeds(config)

    def _parse_ckpt_path(self) -> None:
        config = self.config[self.config.subcommand]
        if config.get("ckpt_path"):
            config["ckpt_path"] = find_checkpoint(str(config["ckpt_path"]), config)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[L.Callback]) -> L.Trainer:
        try:
            return super()._instantiate_trainer(config, callbacks)
        except (ValueError, RuntimeError, TypeError, MisconfigurationException) as error:
            # for instance a strategy that is unknown or not for this accelerator, or SLURM's variables without srun
            raise _refusal(error) from error

    def _run_subcommand(self, subcommand: str) -> None:
        with protected(self.trainer, subcommand, self.config[subcommand].get("ckpt_path")):
            super()._run_subcommand(subcommand)


class Unbuilt(EditCLI):
    """Reads a configuration and builds nothing of it."""

    def _set_seed(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def configuration(words: Sequence[str]) -> Namespace:
    """What `fit` with these words would be configured as.

    Raises:
        InputError: as in `run`.
    """
    before, sys.argv = sys.argv, [sys.argv[0], "fit", *words]
    try:
        with _told("fit"):
            return _cli(Unbuilt).config["fit"]
    finally:
        sys.argv = before


def run(command: str) -> None:
    """Runs `fit`, `validate`, `test` or `predict` as `sys.argv` says.

    After SIGTERM or Ctrl+C the step is finished and `last.ckpt` written. The exit status is 128 plus the signal's
    number, as shells and SLURM read it.

    Raises:
        InputError: a recipe or an option is wrong; one line that names it.
    """
    with _told(command):
        _cli(EditCLI)


def _cli(kind: type[EditCLI]) -> EditCLI:
    """Of the words in `sys.argv`."""
    quiet()
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    protect_recipes()
    always = [glob.escape(str(RUN_RECIPE))]
    common = {"parser_mode": MODE, "exit_on_error": False, "allow_abbrev": False}
    command = {sys.argv[1]: {**common, "default_config_files": always}}
    return kind(
        L.LightningModule,
        L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_callback=RunConfig,
        save_config_kwargs={"save_to_log_dir": False},
        parser_kwargs={"prog": "fp-lightning", **common, **command},
    )


@contextmanager
def _told(command: str) -> Iterator[None]:
    """Turns what Lightning and jsonargparse raise into one line."""
    try:
        yield
    except SIGTERMException as error:
        number = error.args[0] if error.args else signal.SIGTERM
        stopped = f"stopped by {'Ctrl+C' if number == signal.SIGINT else 'SIGTERM'}"
        print(f"{stopped}; go on with --ckpt_path RUN/checkpoints/last.ckpt", file=sys.stderr)
        raise SystemExit(128 + number) from None
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning exits with status 1
            raise KeyboardInterrupt from None
        raise
    except argparse.ArgumentError as error:
        raise InputError(one_line(restore(str(error)), command)) from error
    except MisconfigurationException as error:
        raise _refusal(error) from error
    except ValueError as error:  # jsonargparse wraps what a constructor raises, or quotes it
        if wrapped := wrapped_input_error(error):
            raise wrapped from error
        if missing := re.search(r"Requirement '?([^']+)'? not met|No module named '([^']+)'", str(error)):
            package = missing[1] or missing[2]
            raise InputError(f"this needs {package}: pip install '{package}', or leave out what needs it") from error
        raise


def _refusal(error: Exception) -> InputError:
    """One line of what Lightning refuses, with the remedy."""
    reason = " ".join(str(error).split()).rstrip(".")
    if "SLURM" in reason or "srun" in reason:
        return InputError(
            f"{reason}; SLURM's variables are set: start with srun, or unset SLURM_NTASKS to run one process"
        )
    return InputError(f"{reason}; change the trainer's options")


def wrapped_input_error(error: BaseException | None) -> InputError | None:
    """The InputError among the causes of an error."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def one_line(message: str, command: str) -> str:
    """jsonargparse's tree of failed alternatives → its innermost complaints, on one line."""
    lines = [re.sub(r"^[-\s]+", "", line).strip() for line in message.splitlines()]
    telling = [
        line
        for line in lines
        if re.search(r"not accepted|not expected|unrecognized|required|Unable to|No such|must|got", line)
    ]
    chosen = list(dict.fromkeys(telling or lines[:3]))
    return f"{'; '.join(chosen).rstrip('.')}; `fp-lightning {command} --help` and the recipes list what is accepted"


def quiet() -> None:
    """Silences notices that no user can act on."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Couldn't infer the batch indices.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*JsonargparseDeprecationWarning.*")
    warnings.filterwarnings("ignore", module="jsonargparse")
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage() and "litmodels" not in record.getMessage()
    )
