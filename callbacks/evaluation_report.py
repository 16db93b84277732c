"""Write metrics.json and report.html after `validate` and `test`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fp_lightning.evaluation.metrics import EditMetrics
from fp_lightning.evaluation.report import write_metrics, write_report
from fp_lightning.evaluation.samples import ReportSample
from fp_lightning.types import EditBatch


class EvaluationReport(Callback):
    """Write `<run>/metrics.json` and `<run>/report.html` after `validate` or `test`, never while fitting.

    The run is the trainer's default root folder. In each step, the module updates its attribute `edit_metrics` and
    returns the scored images under "edited", float [b, 3, h, w] in [-1, 1].

    Args:
        max_samples: maximum number of images in the report, the first of the main process.
        signal: row of the paper's Table 1 that is shown beside the metrics. None takes the signal of the data module,
            and shows all rows if it has several signals.
    """

    def __init__(self, max_samples: int = 24, signal: Literal["sketch", "coarse", "points"] | None = None) -> None:
        self.max_samples, self.signal = max_samples, signal
        self._samples: list[ReportSample] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._samples = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: EditBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        missing = self.max_samples - len(self._samples)
        evaluating = trainer.state.fn in ("validate", "test") and trainer.is_global_zero
        if evaluating and missing > 0 and isinstance(outputs, dict) and outputs.get("edited") is not None:
            self._samples += ReportSample.of(outputs["edited"], batch, missing)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn not in ("validate", "test"):
            return
        edit_metrics = pl_module.edit_metrics
        assert isinstance(edit_metrics, EditMetrics)
        metrics = edit_metrics.compute()  # in all processes, because it gathers their scores
        pictures: dict[str, Tensor] = {}  # see `CorrespondenceMetrics.pictures`
        correspondence = getattr(pl_module, "correspondence_metrics", None)
        if correspondence is not None:
            metrics["correspondence"] = correspondence.compute()
            pictures = correspondence.pictures
        if not trainer.is_global_zero:
            return
        scores = edit_metrics.per_sample()
        for sample in self._samples:
            sample.scores = scores.get(sample.name, {})
            if sample.name in pictures:
                sample.others["attention"] = pictures[sample.name]
        run = Path(trainer.default_root_dir)
        signals = getattr(trainer.datamodule, "signals", ())  # type: ignore[attr-defined]
        signal = self.signal or (", ".join(signals) or None)
        settings = {"run": run, "checkpoint": trainer.ckpt_path, "signal": signal}
        write_metrics(run, metrics)
        report = write_report(
            run,
            metrics,
            self._samples,
            title=f"Evaluation of {run.resolve().name}",
            correspondence=metrics.get("correspondence"),
            settings={key: value for key, value in settings.items() if value is not None},
        )
        _show(metrics, report)
        self._samples = []

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


def _show(metrics: dict[str, Any], report: Path) -> None:
    """Print a table of the metrics and the path of the report."""
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", title=f"{metrics['n']} edited images", title_justify="left")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.3f}")
    for name in metrics["not_measured"]:
        table.add_row(f"[dim]{name}", "[dim]not measured")
    Console().print(table)
    print(f"Report: {report}")
