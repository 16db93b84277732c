"""`fp-lightning bench gpu`: the dry run on the CPU, the budget of time, and rows that fail."""

import json
import time

import pytest
import torch
from conftest import make_editor

from fp_lightning.bench import gpu as gpu_module
from fp_lightning.bench import gpu_edit, gpu_rows
from fp_lightning.bench.gpu import bench_gpu
from fp_lightning.bench.gpu_edit import Editing
from fp_lightning.bench.gpu_rows import Bench, Task, limited, markdown
from fp_lightning.errors import InputError


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """The rows of a dry run without what compiles, its JSON and its table."""
    folder = tmp_path_factory.mktemp("dry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_edit, "WAYS", ("plain modules", "channels-last"))
        patch.setattr(gpu_rows, "ROUNDS", 1)
        patch.setattr(gpu_module, "_tiny_editor", make_editor)
        rows = bench_gpu(10, True, folder / "gpu.json", folder / "gpu.md")
    return rows, json.loads((folder / "gpu.json").read_text()), (folder / "gpu.md").read_text()


def test_every_row_is_measured(dry_run):
    rows, written, table = dry_run
    print(table)
    assert [row.reason for row in rows] == [None] * len(rows)
    assert len({row.part for row in rows}) == 6 and len(written["rows"]) == len(rows)
    assert all(row.seconds > 0 and row.peak_bytes > 0 for row in rows)
    assert "dry run on the CPU" in written["machine"]["device"]
    assert table.count("\n| ") == len(rows) + 1 and "not measured" not in table


def test_ways_differ_by_rounding_only(dry_run):
    rows = [row for row in dry_run[0] if row.name == "channels-last"]
    limits = {row.part: 1e-4 if "float32" in row.part else 0.1 for row in rows}
    assert len(rows) == 4 and all(row.difference < limits[row.part] for row in rows)


def test_training_is_beside_its_plan(dry_run):
    rows = [row for row in dry_run[0] if row.part.startswith("training")]
    assert [row.name for row in rows][:2] == ["all weights", "all weights, cached latents"]
    for row in rows:
        assert row.peak_bytes == pytest.approx(row.planned_bytes, rel=0.15), row
        assert row.samples == pytest.approx(1 / row.seconds) and row.operations > 0


def test_only_repeated_blocks_are_compiled_and_undone():
    editing = Editing(make_editor, (32, 32), 1, "cpu", {"backend": "eager"})
    unet = editing.prepared(torch.float32, "compiled blocks").prior.unet
    compiled = {type(module).__name__ for module in unet.modules() if module._compiled_call_impl is not None}
    assert compiled == {"SpatialBlock", "TemporalBlock"}
    assert editing.prepared(torch.float32, "compiled, CUDA graphs").prior.unet._compiled_call_impl is not None
    unet = editing.prepared(torch.float32, "eager").prior.unet
    assert all(module._compiled_call_impl is None for module in unet.modules())


def out_of_memory():
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")


def work(seconds, value=1.0):
    def run():
        time.sleep(seconds)
        return torch.full((3,), value)

    return lambda: (run, 100)


def test_a_row_that_fails_is_a_reason_and_the_next_one_runs():
    tasks = [
        Task("a", "plain", work(0.02), needs=0, reference=True),
        Task("a", "large", out_of_memory, needs=0),
        Task("a", "broken", lambda: 1 / 0, needs=0),
        Task("a", "fast", work(0.001), needs=0, samples=2, operations=lambda: 10**9),
        Task("a", "other", work(0.001, 1.5), needs=0),
    ]
    plain, large, broken, fast, other = Bench("cpu", 60, tflops=1e12).run(tasks)
    assert large.reason == "out of memory" and broken.reason == "ZeroDivisionError: division by zero"
    assert fast.ratio > 4 and plain.ratio == 1 and fast.samples == pytest.approx(2 / fast.seconds)
    assert fast.mfu == pytest.approx(1e-3 / fast.seconds) and fast.peak_bytes >= 100
    assert fast.difference is None and other.difference == pytest.approx(0.5)
    table = markdown([large, fast])
    assert (
        "| a | large | not measured: out of memory |" in table
        and len({line.count("|") for line in table.splitlines()}) == 1
    )


def test_what_does_not_fit_the_budget_is_named():
    tasks = [Task("a", "long", work(30), needs=0), Task("a", "next", work(0), needs=5)]
    begin = time.monotonic()
    long, following = Bench("cpu", 0.3).run(tasks)
    assert time.monotonic() - begin < 10
    assert long.reason == "stopped: the budget of time ended"
    assert following.reason == "not begun: it may take 5 s, 0 s of the budget are left"


def test_the_limit_ends_with_its_block():
    with limited(0.05):
        pass
    time.sleep(0.1)


def test_without_a_gpu_it_refuses(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="bench gpu needs a GPU, and torch finds none; --dry-run"):
        bench_gpu()
    with pytest.raises(InputError, match="--minutes must be above 0, got 0"):
        bench_gpu(0)
