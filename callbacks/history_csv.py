"""A CSV file of all metrics logged during `fit`, which a resumed run continues."""

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
    """Write `<run>/metrics.csv` during `fit`, with `step`, `epoch` and one column per metric.

    The run folder is the trainer's default root folder. The callback adds a logger to the trainer, so it writes a
    row whenever the trainer logs. A resumed run appends to the file. A new run in the same folder first renames an
    existing file to `metrics.1.csv`, `metrics.2.csv` and so on.
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
    """A logger that appends every event to a CSV file at once. A new metric rewrites the file with one more column.

    Lightning's CSVLogger deletes existing files and buffers rows.
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
        """Do nothing: hyperparameters are in the run's configuration file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row."""
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
    """Read the rows of a table, without an incomplete last line."""
    complete = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return list(csv.DictReader(io.StringIO(complete)))


def _lines(rows: list[dict[str, Any]], columns: list[str]) -> bytes:
    """Encode rows as CSV lines."""
    buffer = io.StringIO()
    csv.DictWriter(buffer, columns, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()
