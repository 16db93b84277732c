"""Benchmarks: alternating rounds, the JSON format, and the accuracy that the pair builder must keep."""

import json

import pytest
import torch
from conftest import make_editor

from fp_lightning.bench import edit as edit_module
from fp_lightning.bench import loader as loader_module
from fp_lightning.bench import matching as matching_module
from fp_lightning.bench.few_steps import few_steps
from fp_lightning.bench.measure import Result, compare, flops, peak_bytes
from fp_lightning.bench.networks import filled
from fp_lightning.bench.pairs import _stages, correspondence
from fp_lightning.bench.run import BENCHMARKS, bench
from fp_lightning.errors import InputError
from fp_lightning.inference.sampler import Sampling
from fp_lightning.model.control import ControlEncoder
from fp_lightning.pairs.settings import PairSettings
from fp_lightning.scenes.clips import write_clips
from fp_lightning.scenes.content import SceneContent

KEYS = [
    *("name", "ours", "reference", "ratio", "ratio_low", "ratio_high", "error", "flops_ours", "flops_reference"),
    *("peak_bytes_ours", "peak_bytes_reference", "settings"),
]


def test_both_implementations_run_equally_often_and_alternate():
    calls = []
    result = compare("x", lambda: calls.append("ours"), lambda: calls.append("reference"), rounds=4, size=3)
    assert sorted(calls[i : i + 2] for i in range(0, 8, 2)) == [["ours", "reference"]] * 2 + [["reference", "ours"]] * 2
    assert result.settings == {"rounds": 4, "size": 3}
    assert result.ratio_low <= result.ratio <= result.ratio_high


def test_ratio_is_reference_over_ours():
    assert compare("x", lambda: None, lambda: sum(range(200_000)), rounds=3).ratio > 10


def test_json_has_the_documented_keys(tmp_path, monkeypatch):
    monkeypatch.setitem(
        BENCHMARKS, "nothing", lambda rounds: [Result("nothing", ours=1.0, settings={"a": {"b": rounds}})]
    )
    bench(["nothing"], 2, tmp_path / "figures.json")
    (entry,) = json.loads((tmp_path / "figures.json").read_text())
    assert list(entry) == KEYS
    assert entry["ours"] == 1.0 and entry["reference"] is None and entry["settings"] == {"a": {"b": 2}}


def test_unknown_benchmarks_are_named():
    with pytest.raises(InputError, match="no benchmark speed; choose from unet, matching, edit, "):
        bench(["pairs", "speed"])


def test_estimated_motion_of_scenes_is_accurate():
    (result,) = correspondence(rounds=1, size=(160, 256), scenes=4)
    chained, jump = result.settings["chained"], result.settings["jump"]
    assert chained["track_error_median"] <= 1
    assert chained["track_error_moving_median"] <= 4  # px at 512 px width, twice those at this size
    assert chained["visibility_f1"] >= 0.9
    assert jump["track_error_moving_median"] > 5 * chained["track_error_moving_median"]
    assert result.error == chained["track_error_moving_median"]


def test_stages_account_for_the_time(tmp_path):
    clip = write_clips(tmp_path, 1, (96, 160), seconds=3, content=SceneContent(motion=(0.1, 0.2)))
    shares = _stages(clip, tmp_path / "out", PairSettings(size=(96, 160), candidates=4)).settings["shares"]
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)
    assert all(shares[stage] > 0.01 for stage in ("decode", "cut", "flow", "motion", "filter"))
    assert {"tracks", "write"} <= shares.keys()
    assert -0.01 <= shares["other"] < 0.4


def test_only_the_work_is_counted():
    x = torch.randn(100, 50)
    assert flops(lambda: x @ x.T) == 2 * 100 * 50 * 100
    both_matrices = 2 * 4 * 100 * 100  # bytes; the sum is negligible
    assert peak_bytes(lambda: ((x @ x.T) * 2).sum()) == pytest.approx(both_matrices, abs=100)


def test_attention_is_counted_on_every_device():
    q, k = torch.randn(1, 2, 100, 16), torch.randn(1, 2, 200, 16)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert flops(lambda: attention(q, k, k)) == 2 * 2 * 2 * 100 * 200 * 16


def test_the_matching_loss_equals_the_dense_reference(monkeypatch):
    for name, value in {"TOKENS": 64, "HEADS": 2, "WIDTH": 16}.items():
        monkeypatch.setattr(matching_module, name, value)
    results = {result.name: result for result in matching_module.matching(1)}
    assert len(results) == 4
    for form in ("squared", "cross_entropy"):
        assert results[f"matching/{form}/dense"].error < 1e-5
        assert results[f"matching/{form}/attention alone"].flops_reference > 0


def test_the_edit_equals_the_reference_with_fewer_operations():
    editor = make_editor()
    result = edit_module._edit("edit", editor, (32, 32), 1, Sampling(6))
    assert result.error < 1e-4
    assert result.flops_ours < 0.95 * result.flops_reference


def test_filled_networks_have_no_zero_parameter():
    with torch.device("meta"):
        network = ControlEncoder(widths=(8, 16, 16), out_channels=32)
    assert all(p.abs().max() > 0 and p.isfinite().all() for p in filled(network).parameters())


def test_loader_is_compared_for_every_signal(monkeypatch):
    for name, value in {"SIZE": (64, 64), "VIDEOS": 1, "PER_VIDEO": 4}.items():
        monkeypatch.setattr(loader_module, name, value)
    names = [result.name for result in loader_module.loader(1)]
    assert names == [f"loader/{signal}/{workers}" for signal in ("sketch", "points", "coarse") for workers in (0, 1, 2)]


def test_a_distilled_edit_takes_a_sixth_of_the_operations():
    (result,) = few_steps(rounds=1)
    assert result.settings["calls"] == "4 and 50"
    assert 6 < result.flops_reference / result.flops_ours < 12.5  # of the network a twelfth; both run the VAE
