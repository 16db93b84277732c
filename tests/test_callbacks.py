"""Each callback in a real trainer, around an editor so small that its edits are known."""

from __future__ import annotations

import csv
import io
import json
from contextlib import nullcontext

import pytest
import torch
from conftest import losses_of, make_batch, make_editor
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from callbacks import (
    CorrespondenceMaps,
    EvaluationReport,
    ImageGrid,
    MetricsCSV,
    PredictionWriter,
    ProgressBar,
    Throughput,
)
from callbacks.correspondence_maps import furthest
from datamodules import SceneDataModule
from fp_lightning.evaluation.metrics import EditMetrics
from fp_lightning.inference.sampler import Sampling
from fp_lightning.media.pictures import encode, signal_image, to_tensor
from fp_lightning.training.counting import CountedOperations
from fp_lightning.training.module import FramePainterModule
from fp_lightning.types import EditBatch, to_uint8, to_unit_range

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice about workers and log intervals
SIZE = 16


@pytest.fixture(autouse=True)
def no_weights(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))


class Brighten(LightningModule):
    """Edits by adding a half; its targets are just that."""

    def __init__(self, returns_edits: bool = True, more_names: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.edit_metrics = EditMetrics(clip_model="nowhere")
        self.returns_edits, self.more_names = returns_edits, more_names

    def training_step(self, batch, batch_idx):
        loss = (self.weight - 1).square()
        self.log("loss", loss)
        if self.more_names and batch_idx == 1:
            self.log("late", 7.0)
        return loss

    def on_validation_epoch_start(self):
        self.edit_metrics.reset()

    def validation_step(self, batch, batch_idx):
        edited = (batch.source + 0.5).clamp(-1, 1)
        self.edit_metrics.update(edited, batch)
        self.log("val_loss", 1.0, batch_size=len(batch))
        return {"edited": edited} if self.returns_edits else None

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return batch.source + 0.5

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(n: int = 3, batch_size: int = 2, full_size: tuple[int, int] | None = None) -> DataLoader:
    draw = torch.Generator().manual_seed(0)
    samples = []
    for i in range(n):
        source = to_unit_range(torch.randint(0, 128, (1, 3, SIZE, SIZE), generator=draw, dtype=torch.uint8))
        samples.append(
            EditBatch(
                source=source,
                name=[f"sample{i}"],
                target=(source + 0.5).clamp(-1, 1),
                control=torch.rand(1, 3, SIZE, SIZE, generator=draw),
                moving=torch.ones(1, 1, SIZE, SIZE, dtype=torch.bool),
                full_size=None if full_size is None else [full_size],
            )
        )
    return DataLoader(samples, batch_size=batch_size, collate_fn=EditBatch.cat)


def trainer(folder, *callbacks, **options) -> Trainer:
    given = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, "max_epochs": 1}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **(given | quiet | options))


def table(folder) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "metrics.csv").read_text())))


# ImageGrid


def test_each_validation_leaves_a_sheet_named_by_its_step(tmp_path):
    trainer(tmp_path, ImageGrid(), max_epochs=2).fit(Brighten(), loader(), loader())
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["step-000002.png", "step-000004.png"]


def test_a_sheet_shows_source_signal_edit_and_target(tmp_path):
    trainer(tmp_path, ImageGrid(max_samples=3)).fit(Brighten(), loader(), loader(5))
    sheet = to_tensor(Image.open(tmp_path / "samples/step-000002.png"))
    assert sheet.shape == (3, 3 * SIZE + 2 * 2, 4 * SIZE + 3 * 2)
    source, signal, edited, target = (
        sheet[:, :SIZE, left : left + SIZE].int() for left in range(0, 4 * (SIZE + 2), SIZE + 2)
    )
    assert torch.equal(edited, target)
    assert (edited - source - 64).abs().max() <= 1
    assert not torch.equal(signal, source)


def test_drags_are_shown_over_the_photo_where_there_is_no_control_image():
    batch = EditBatch.cat(list(loader(2)))
    batch.control_valid = torch.tensor([False, True])
    batch.points = torch.tensor([[[2.0, 8.5, 14.0, 8.5]]]).expand(2, 1, 4)
    batch.points_valid = torch.tensor([[True], [False]])
    dragged, drawn = (signal_image(batch, i) for i in range(2))
    assert torch.equal(dragged[:, :4], to_uint8(batch.source[0])[:, :4])
    assert dragged[:, 8, 8].tolist() == [255, 214, 10]
    assert torch.equal(drawn, (batch.control[1] * 255).round().to(torch.uint8))


def test_every_second_validation_leaves_a_sheet(tmp_path):
    trainer(tmp_path, ImageGrid(every_n_val=2), max_epochs=3).fit(Brighten(), loader(), loader())
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["step-000002.png", "step-000006.png"]


def test_no_sheet_without_edits_or_outside_of_fitting(tmp_path):
    trainer(tmp_path, ImageGrid()).fit(Brighten(returns_edits=False), loader(), loader())
    trainer(tmp_path, ImageGrid()).validate(Brighten(), loader(), verbose=False)
    assert not (tmp_path / "samples").exists()


# EvaluationReport


@pytest.mark.parametrize("command", ["validate", "test"])
def test_an_evaluation_leaves_its_metrics_and_report(tmp_path, command, capsys):
    module = Brighten()
    getattr(trainer(tmp_path, EvaluationReport(max_samples=2, signal="sketch")), command)(
        module, loader(), verbose=False
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["n"] == 3
    assert metrics["psnr"] == pytest.approx(100)
    assert metrics["psnr_moving_copy_source"] == pytest.approx(12, abs=0.5)
    assert metrics["lpips"] is None
    report = (tmp_path / "report.html").read_text()
    assert report.count("<figure><img") == 2 * 4
    assert "100.00 dB" in report.partition("<article")[2]  # of the sample
    assert "0.859" in report
    assert "report.html" in capsys.readouterr().out


def test_validation_while_fitting_leaves_no_report(tmp_path):
    trainer(tmp_path, EvaluationReport()).fit(Brighten(), loader(), loader())
    assert list(tmp_path.iterdir()) == []


def test_a_report_names_its_checkpoint(tmp_path):
    trainer(tmp_path, enable_checkpointing=True).fit(Brighten(), loader())
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    trainer(tmp_path, EvaluationReport()).validate(Brighten(), loader(), ckpt_path=str(checkpoint), verbose=False)
    assert str(checkpoint) in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("signals", "rows"), [(("points",), ["8.513"]), (("sketch", "points"), ["7.783", "8.513"])])
def test_the_papers_row_is_that_of_the_data_modules_signal(tmp_path, signals, rows):
    data = LightningDataModule.from_datasets(val_dataset=loader().dataset)
    data.val_dataloader, data.signals = loader, signals
    trainer(tmp_path, EvaluationReport()).validate(Brighten(), datamodule=data, verbose=False)
    page = (tmp_path / "report.html").read_text()
    assert [row for row in ("7.783", "8.513") if row in page] == rows
    assert ", ".join(signals) in page


# PredictionWriter


def test_predictions_are_files_at_the_size_of_the_users_image(tmp_path, capsys):
    module = Brighten()
    trainer(tmp_path, PredictionWriter()).predict(module, loader(3, full_size=(24, 40)), return_predictions=False)
    files = sorted((tmp_path / "predictions").iterdir())
    assert [p.name for p in files] == ["sample0.png", "sample1.png", "sample2.png"]
    assert {Image.open(p).size for p in files} == {(40, 24)}
    assert f"3 edited images in {tmp_path / 'predictions'}" in capsys.readouterr().out


def test_a_prediction_at_its_own_size_is_exact_and_goes_where_it_is_told(tmp_path):
    data = loader(1, full_size=(SIZE, SIZE))
    trainer(tmp_path, PredictionWriter(str(tmp_path / "elsewhere"))).predict(Brighten(), data)
    batch = next(iter(data))
    written = to_tensor(Image.open(tmp_path / "elsewhere/sample0.png")).float()
    torch.testing.assert_close(written, (batch.source[0] + 1.5) * 127.5, atol=0.5, rtol=0)
    assert not (tmp_path / "predictions").exists()


def test_shrinking_a_prediction_is_antialiased(tmp_path):
    stripes = torch.ones(1, 3, SIZE, SIZE)
    stripes[..., ::4] = stripes[..., 3::4] = -1
    data = DataLoader(
        [EditBatch(source=stripes * 0.5 - 0.5, name=["a"], full_size=[(4, 4)])], collate_fn=EditBatch.cat, batch_size=1
    )
    trainer(tmp_path, PredictionWriter()).predict(Brighten(), data)
    written = to_tensor(Image.open(tmp_path / "predictions/a.png")).float()
    assert (written - 127.5).abs().max() < 20  # their mean, where picked pixels would be 191


# MetricsCSV


def test_a_row_for_each_step_logged_and_each_validation(tmp_path):
    trainer(tmp_path, MetricsCSV()).fit(Brighten(), loader(), loader())
    rows = table(tmp_path)
    assert list(rows[0]) == ["step", "epoch", "loss", "val_loss"]
    assert [row["loss"] != "" for row in rows] == [True, True, False]
    assert [float(row["loss"]) for row in rows[:2]] == pytest.approx([1.0, 0.64])
    assert rows[2]["val_loss"] == "1.0"


def test_a_name_logged_late_gets_a_column_and_loses_no_row(tmp_path):
    trainer(tmp_path, MetricsCSV()).fit(Brighten(more_names=True), loader())
    rows = table(tmp_path)
    assert [row["late"] for row in rows] == ["", "7.0"]
    assert all(row["loss"] for row in rows)


def test_a_resumed_run_appends(tmp_path):
    def checkpoint() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / "checkpoints", save_last=True)

    trainer(tmp_path, MetricsCSV(), checkpoint(), enable_checkpointing=True).fit(Brighten(), loader())
    first = table(tmp_path)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("99,cut sho")  # as by a crash
    again = trainer(tmp_path, MetricsCSV(), checkpoint(), enable_checkpointing=True, max_epochs=2)
    again.fit(Brighten(more_names=True), loader(), ckpt_path=str(tmp_path / "checkpoints/last.ckpt"))
    rows = table(tmp_path)
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3]
    assert [row["loss"] for row in rows[:2]] == [row["loss"] for row in first]
    assert not (tmp_path / "metrics.1.csv").exists()


def test_a_run_anew_sets_the_old_table_aside(tmp_path):
    for _ in range(3):
        trainer(tmp_path, MetricsCSV()).fit(Brighten(), loader())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.1.csv", "metrics.2.csv", "metrics.csv"]
    assert [row["step"] for row in table(tmp_path)] == ["0", "1"]


def test_the_table_is_for_fitting_and_leaves_other_loggers_alone(tmp_path):
    run = trainer(tmp_path, MetricsCSV())
    run.fit(Brighten(), loader())
    before = (tmp_path / "metrics.csv").read_bytes()
    run.validate(Brighten(), loader(), verbose=False)
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert run.loggers == []


def test_checkpoints_stay_in_the_run_when_the_table_is_the_only_logger(tmp_path):
    trainer(tmp_path, MetricsCSV(), enable_checkpointing=True).fit(Brighten(), loader())
    assert len(list((tmp_path / "checkpoints").glob("*.ckpt"))) == 1


def test_png_of_a_known_colour():
    red = torch.zeros(3, 2, 2, dtype=torch.uint8)
    red[0] = 255
    assert Image.open(io.BytesIO(encode(red))).getpixel((0, 0)) == (255, 0, 0)


def test_throughput_is_logged_with_the_operations_of_a_step(tmp_path):
    rows = []

    class Log(DummyLogger):
        def log_metrics(self, metrics, step=None):
            rows.append((step, dict(metrics)))

    watch = Throughput()
    module = FramePainterModule(make_editor(), learning_rate=1e-3)
    data = SceneDataModule(size=(32, 32), batch_size=2, train_samples=12, val_samples=2)
    Trainer(
        default_root_dir=tmp_path, max_steps=6, accelerator="cpu", logger=Log(), callbacks=[watch, ProgressBar()],
        log_every_n_steps=2, limit_val_batches=0, enable_model_summary=False, enable_checkpointing=False,
    ).fit(module, data)  # fmt: skip
    logged = {step: row for step, row in rows if "train/samples_per_second" in row}
    assert list(logged) == [3, 5]  # steps from 0; the second is counted, not timed
    assert all(row["train/samples_per_second"] > 0 and row["train/tflops_per_second"] > 0 for row in logged.values())
    batch = next(iter(data.train_dataloader()))
    module.zero_grad()
    with FlopCounterMode(display=False) as counter:
        losses_of(module.editor, batch).total.backward()
    assert watch.flops == pytest.approx(counter.get_total_flops(), rel=0.05)  # how many rows are visible differs


def test_counting_operations_changes_no_bit_and_counts_as_torch_does():
    batch = make_batch(2, 32)

    def gradients(counter) -> list[torch.Tensor]:
        editor = make_editor().train()
        with counter:
            losses_of(editor, batch).total.backward()
        return [p.grad for p in editor.parameters() if p.grad is not None]

    counted, torchs = CountedOperations(), FlopCounterMode(display=False)
    plain, ours, _ = (gradients(counter) for counter in (nullcontext(), counted, torchs))
    assert all(map(torch.equal, plain, ours))
    assert counted.total == torchs.get_total_flops() > 0


# CorrespondenceMaps


def watched(folder, attention: str = "matching", **options) -> Trainer:
    """A fit of two steps with a validation after each."""
    module = FramePainterModule(make_editor(attention), sampling=Sampling(1, guidance_scale=1.0), fit_edits=0)
    data = SceneDataModule(size=(32, 32), batch_size=2, train_samples=4, val_samples=3, stride=4)
    run = trainer(folder, CorrespondenceMaps(**options), max_steps=2, val_check_interval=1, num_sanity_val_steps=1)
    run.fit(module, data)
    return run


def test_a_validation_leaves_a_row_of_maps_for_each_sample(tmp_path):
    run = watched(tmp_path, max_layers=3)
    sheets = sorted((tmp_path / "correspondence").iterdir())
    assert [p.name for p in sheets] == ["step-000001.png", "step-000002.png"]
    assert Image.open(sheets[0]).size == ((2 + 3) * 192, 2 * 192)  # target, source and layers by samples
    logged = {name: float(v) for name, v in run.callback_metrics.items() if name.endswith("/entropy")}
    assert len(logged) == len(run.model.correspondence_metrics.layers)
    assert all(0 < value <= 1 for value in logged.values())


def test_maps_come_at_every_nth_validation_and_of_no_more_samples_than_asked(tmp_path):
    watched(tmp_path, every_n_val=2, max_samples=1, max_layers=1)
    (sheet,) = (tmp_path / "correspondence").iterdir()
    assert sheet.name == "step-000001.png"
    assert Image.open(sheet).size == (3 * 192, 192)


def test_where_no_attention_joins_the_frames_there_are_no_maps(tmp_path):
    run = watched(tmp_path, "temporal")
    assert not (tmp_path / "correspondence").exists()
    assert not [name for name in run.callback_metrics if "entropy" in name]


def test_the_queried_token_is_the_visible_one_that_moved_furthest():
    y, x = torch.meshgrid(torch.arange(4) * 4 + 2.0, torch.arange(4) * 4 + 2.0, indexing="ij")
    tracks = torch.stack([x, y]).expand(2, 2, 4, 4).clone()
    tracks[0, :, 1, 2] += torch.tensor([3.0, -1.0])
    tracks[0, :, 3, 0] += 9.0  # hidden
    tracks[1, 0, 0, 3] -= 5.0
    visible = torch.ones(2, 4, 4, dtype=torch.bool)
    visible[0, 3, 0] = False
    batch = EditBatch(source=torch.zeros(2, 3, 16, 16), name=["a", "b"], tracks=tracks, visible=visible)
    points, truth = furthest(batch)
    assert points.tolist() == [[[10.0, 6.0]], [[14.0, 2.0]]]
    assert truth.tolist() == [[[13.0, 5.0]], [[9.0, 2.0]]]
