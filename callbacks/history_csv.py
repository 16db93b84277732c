"""Everything logged while fitting, in one table that a resumed run continues."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from fp_lightning.files import write_atomic


class MetricsCSV(Callback):
    """Writes `<run>/metrics.csv` while fitting: `step`, `epoch` and a column per logged name.

    It listens as one more logger, beside those the trainer has, so a row is what was logged at one step, as
    often as the trainer logs. A resumed run appends. A run that starts anew in a used folder sets the table
    found there aside, as `metrics.1.csv` and so on. The run is the trainer's default root folder.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and not any(isinstance(logger, _Table) for logger in trainer.loggers):
            trainer.loggers = [*trainer.loggers, _Table(Path(trainer.default_root_dir))]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = Path(trainer.default_root_dir) / "metrics.csv"
        if trainer.is_global_zero and trainer.global_step == 0 and path.exists():
            number = 1
            while (aside := path.with_suffix(f".{number}.csv")).exists():
                number += 1
            path.rename(aside)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.loggers = [logger for logger in trainer.loggers if not isinstance(logger, _Table)]


class _Table(Logger):
    """Appends each logged event to a CSV file at once; a new name rewrites the file with one more column.

    Lightning's own CSVLogger deletes an earlier file and holds rows back.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Hyper-parameters are in the run's configuration file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        path = self.folder / "metrics.csv"
        if self._columns is None or not row.keys() <= set(self._columns):
            rows = _read(path)
            names = {name for known in [*rows, row] for name in known}
            self._columns = ["step", "epoch", *sorted(names - {"step", "epoch"})]
            write_atomic(path, _lines([dict(zip(self._columns, self._columns, strict=True)), *rows], self._columns))
        with path.open("ab") as file:
            file.write(_lines([row], self._columns))


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows of a table, without a last one that was cut short."""
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return list(csv.DictReader(io.StringIO(whole)))


def _lines(rows: list[dict[str, Any]], columns: list[str]) -> bytes:
    buffer = io.StringIO()
    csv.DictWriter(buffer, columns, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()
