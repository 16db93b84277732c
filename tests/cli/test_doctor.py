"""`fp-lightning doctor`: the report, the self-test and the exit status."""

import json
import sys

import pytest
import torch

from fp_lightning.cli import machine, selftest
from fp_lightning.cli.main import main
from fp_lightning.cli.selftest import Check, self_test


@pytest.fixture
def doctor(monkeypatch, capsys):
    """Run `fp-lightning doctor WORDS`; return the exit status and what it printed."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["fp-lightning", "doctor", *map(str, words)])
        try:
            status = main()
        except SystemExit as request:
            status = request.code
        return status or 0, capsys.readouterr().out

    return run


def test_the_report_names_what_there_is_and_how_to_get_the_rest(doctor, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(machine, "installed", lambda name: None if name == "peft" else "1.2.3")
    monkeypatch.setattr(machine.metadata, "requires", lambda name: ['peft>=0.17; extra == "lora"'])
    status, out = doctor("--no-self-test", "--json", tmp_path / "report.json")
    assert status == 0 and "self-test" not in out
    found = {one["name"]: one for one in json.loads((tmp_path / "report.json").read_text())["findings"]}
    assert found["torch"]["value"] == "1.2.3" and found["lora"]["value"] == "missing: peft"
    assert found["lora"]["remedy"] == "pip install 'fp-lightning[lora]'" and found["lora"]["remedy"] in out
    assert found["CUDA"]["value"].startswith("no GPU") and found["CUDA"]["remedy"]
    assert found["tiny-editor"]["remedy"] == "" and "h264" in found["decoders"]["value"]
    assert {one["group"] for one in found.values()} == {"versions", "GPU", "video", "weights", "extras"}


def test_a_gpu_is_described(monkeypatch):
    class Properties:
        name, total_memory, major, minor = "Some GPU", 24 * 2**30, 7, 5

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: Properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (6 * 2**30, 24 * 2**30))
    found = {one.name: one.value for one in machine._gpus()}
    assert found["cuda:0"] == (
        "Some GPU, 24.0 GiB, 6.0 free, compute capability 7.5, no bf16: train with --trainer.precision 16-mixed"
    )


def test_the_self_test_passes_on_this_machine():
    checks = self_test("cpu")
    assert [check.passed for check in checks] == [True, True], checks
    assert "standard deviation" in checks[0].text and "loss" in checks[1].text


def test_the_parts_for_a_gpu_run_on_the_cpu():
    """A dry run, so that they do not fail by a slip."""
    assert selftest._same_edit("cpu") == "mean difference 0.0000 of 1"
    assert float(selftest._kernels("cpu").split()[-1]) < 1e-5


def test_a_failed_part_is_a_line_and_status_1(doctor, monkeypatch, tmp_path):
    def broken(device):
        raise RuntimeError("CUDA error: an illegal instruction was encountered")

    monkeypatch.setattr(selftest, "_training_step", broken)
    monkeypatch.setattr(selftest, "_edit", lambda device: "fine")
    status, out = doctor("--json", tmp_path / "report.json")
    assert status == 1 and "self-test failed: 1 of" in out
    assert "FAILED  training step on" in out and "illegal instruction" in out
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["passed"] is False and Check(**written["self_test"][0]).passed
