"""The command, from inputs to files that `evaluate` takes."""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fp_lightning.baselines.example import find_drags, find_files
from fp_lightning.baselines.registry import BASELINES
from fp_lightning.cli.main import main
from fp_lightning.errors import InputError
from fp_lightning.evaluation.compare import SOURCE, TARGET
from fp_lightning.pairs.shards import write_manifest, write_shard
from fp_lightning.scenes.scene import Scene

SIZE = (96, 60)  # width, height


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "inputs"
    folder.mkdir()
    for name in ("a", "b"):
        pixels = np.random.default_rng(len(name)).integers(0, 255, (6, 8, 3), np.uint8)
        Image.fromarray(pixels).resize(SIZE).save(folder / f"{name}.png")
        (folder / f"{name}.points.json").write_text(json.dumps({"points": [[20, 20, 60, 30]]}))
        drawn = Image.new("RGB", SIZE)
        drawn.paste("white", (30, 10, 50, 14))
        drawn.save(folder / f"{name}.sketch.png")
        drawn.convert("RGBA").save(folder / f"{name}.coarse.png")
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["fp-lightning", "baseline", *map(str, words)])
        status = main()
        return status, capsys.readouterr()

    return run


def test_table_1_from_pairs_to_the_comparison(
    tmp_path, monkeypatch, capsys, sd_folder, inpainting, lightning_drag, magic_fixup
):
    """Every method edits the inputs of four pairs; only DragDiffusion's 80 steps a photo are left to `test_methods`."""
    monkeypatch.chdir(tmp_path)
    for video in ("a.mp4", "b.mp4"):
        write_shard(Path("pairs"), video, [Scene(seed, (48, 80)).pair(stride=4) for seed in range(4)])
    records = [{"video": video, "pairs": 4, "rejected": {}, "error": None} for video in ("a.mp4", "b.mp4")]
    write_manifest(Path("pairs"), records)

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["fp-lightning", *map(str, words)])
        status = main()
        said = capsys.readouterr()
        assert status == 0, said.err
        return said

    command("benchmark", "--pairs", "pairs", "--count", 4, "--out", "bench")
    names = sorted(set(BASELINES) - {"drag_diffusion"})
    for name in names:
        entry = BASELINES[name]
        converted = {"lightning_drag": [inpainting, lightning_drag], "magic_fixup": [magic_fixup]}
        models = converted.get(name, [sd_folder, sd_folder / "scribble"])[: len(entry.models)]
        options = ["--model", *models, "--steps", 10, "--lora-steps", 1, "--area", 64 * 64] if models else []
        options += ["--accept-license"] if entry.licence else []
        said = command("baseline", name, "--inputs", "bench/inputs", "--out", f"rivals/{name}", *options)
        assert "4 edited photos" in said.out and "network evaluations" in said.err
        assert {Image.open(path).size for path in Path("rivals", name).iterdir()} == {(80, 48)}
    folders = [f"rivals/{name}" for name in names]
    command("evaluate", *folders, "--pairs", "pairs", "--list", "bench/heldout.json", "--out", "comparison")
    found = json.loads(Path("comparison/comparison.json").read_text())
    scores = {label: entry["psnr_moving"]["value"] for label, entry in found["systems"].items() if label != TARGET}
    assert set(scores) == {*names, SOURCE} and found["n"] == 4
    assert scores["copy"] == scores[SOURCE] and len(set(scores.values())) == len(names)


def test_an_optional_model_is_used(inputs, tmp_path, run, sd_folder, adapter_folder):
    """The image prompt of DiffEditor: with 10 steps two more evaluations for each of two photos."""
    counts = []
    for name, models in (("with", [sd_folder, adapter_folder]), ("without", [sd_folder])):
        words = ["--model", *models, "--steps", 10, "--area", 64 * 64]
        status, said = run("diff_editor", "--inputs", inputs, "--out", tmp_path / name, *words)
        assert status == 0, said.err
        counts.append(int(said.err.split("at most ")[1].split()[0]))
    assert counts[0] == counts[1] + 2 * 2
    photos = [np.asarray(Image.open(tmp_path / name / "a.png")) for name in ("with", "without")]
    assert not np.array_equal(*photos)


def test_written_photos_are_kept(inputs, tmp_path, run):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_bytes(b"mine")
    status, said = run("copy", "--inputs", inputs, "--out", out)
    assert status == 0 and "1 edited photos" in said.out and "are kept" in said.err
    assert (out / "a.png").read_bytes() == b"mine"
    assert np.array_equal(np.asarray(Image.open(out / "b.png")), np.asarray(Image.open(inputs / "b.png")))


def test_regions_beside_photos_are_used(inputs):
    mask = Image.new("L", SIZE)
    mask.paste(255, (10, 10, 70, 50))
    mask.save(inputs / "a.mask.png")
    given, derived = (each.read(64 * 64, 32) for each in find_files(inputs, "points"))
    assert 0.3 < given.region.float().mean() < 0.5 != derived.region.float().mean()
    assert given.size == derived.size and given.size[0] < given.size[1]


def test_a_drag_benchmark_is_read_with_its_region(inputs, tmp_path):
    folder = tmp_path / "bench" / "cat"
    folder.mkdir(parents=True)
    (inputs / "a.png").rename(folder / "input.png")
    (inputs / "a.points.json").rename(folder / "points.json")
    Image.new("L", SIZE, 255).save(folder / "mask.png")
    (found,) = find_drags(tmp_path / "bench")
    example = found.read(64 * 64, 32)
    assert found.name == "cat" and example.points.shape == (1, 4) and example.region.all()


@pytest.mark.parametrize("fits", [True, False])
def test_the_mask_of_dragbench_is_its_region(inputs, tmp_path, fits):
    folder = tmp_path / "bench" / "animals" / "cat"
    folder.mkdir(parents=True)
    (inputs / "a.png").rename(folder / "original_image.png")
    mask = np.zeros(SIZE[::-1] if fits else SIZE, np.uint8)
    mask[20:40] = 1
    data = {"prompt": "a cat", "mask": mask, "points": [[20, 20], [60, 30]]}
    (folder / "meta_data.pkl").write_bytes(pickle.dumps(data))
    if not fits:
        with pytest.raises(InputError, match=r"its mask has the shape \(96, 60\), its photo \(60, 96\)"):
            find_drags(tmp_path / "bench")[0].read(64 * 64, 32)
        return
    example = find_drags(tmp_path / "bench")[0].read(64 * 64, 32)
    assert example.region.float().mean() == pytest.approx(20 / 60, abs=0.05)


def test_bad_input_is_one_line(inputs, tmp_path, run, sd_folder, magic_fixup):
    out = tmp_path / "out"
    for words, match in (
        (["sde_drag", "--inputs", inputs], "sde_drag needs 1 --model folders (Stable Diffusion 1.5), got 0"),
        (["masactrl", "--inputs", inputs, "--model", sd_folder], "needs 2 --model folders"),
        (["sde_drag", "--inputs", inputs, "--model", tmp_path / "no"], "is not a folder"),
        (["sde_drag", "--inputs", inputs, "--model", sd_folder, "--steps", 7], "--steps must divide 1000, got 7"),
        (["drag_diffusion", "--inputs", inputs, "--model", sd_folder, "--dtype", "float16"], "needs float32"),
        (["sde_drag", "--inputs", inputs, "--model", sd_folder, "--lora-steps", -1], "--lora-steps must be 0 or more"),
        (
            ["diff_editor", "--inputs", inputs],
            "needs 1 to 2 --model folders (Stable Diffusion 1.5, and if you like its",
        ),
        (["diff_editor", "--inputs", inputs, "--model", sd_folder, tmp_path / "no"], "must hold one adapter"),
        (["diff_editor", "--inputs", inputs, "--model", sd_folder, "--dtype", "float16"], "needs float32"),
        (["diff_editor", "--inputs", inputs, "--model", sd_folder, "--steps", 3], "--steps must divide 1000, got 3"),
        (["warp", "--inputs", tmp_path / "no"], "is not a folder"),
        (["magic_fixup", "--inputs", inputs, "--model", magic_fixup], "research only; pass --accept-license"),
        (["lightning_drag", "--inputs", inputs, "--model", sd_folder, sd_folder], "4 input channels, but 9 are needed"),
    ):
        status, said = run(*words, "--out", out)
        assert status == 1 and match in said.err.splitlines()[-1] and "Traceback" not in said.err
    (inputs / "a.points.json").unlink()
    with pytest.raises(InputError, match=r"1 photos of .* have no NAME.points.json: a.png"):
        find_files(inputs, "points")


def test_released_files_are_converted_by_the_command(
    lightning_drag_files, magic_fixup_file, tmp_path, monkeypatch, capsys
):
    def convert(*words):
        monkeypatch.setattr(sys, "argv", ["fp-lightning", "convert", *map(str, words), "--dtype", "bfloat16"])
        return main(), capsys.readouterr()

    for name, file, consent, parts in (
        ("lightning_drag", lightning_drag_files, [], ["adapter", "appearance_encoder", "image_encoder", "lcm_lora"]),
        ("magic_fixup", magic_fixup_file, ["--accept-license"], ["reference_unet", "scheduler", "unet", "vae"]),
    ):
        out = tmp_path / name
        status, said = convert(name, file, out, *consent)
        assert status == 0 and "tensors" in said.out
        assert sorted(path.name for path in out.iterdir()) == parts
        status, said = convert(name, file, out, *consent)
        assert status == 1 and "exists; choose another name" in said.err
    status, said = convert("magic_fixup", magic_fixup_file, tmp_path / "other")
    assert status == 1 and "non-commercial research only; pass --accept-license" in said.err
